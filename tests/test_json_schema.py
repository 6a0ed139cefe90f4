"""The JSON report is what its published schema says, no key more and none less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from graphs import make_model
from onnx import helper

from snaudit.cli import main

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "docs" / "report.schema.json").read_text())


def strict(part: Any) -> Any:
    """The schema without room for keys that it does not name; the bound is a part of larger objects."""
    if isinstance(part, list):
        return [strict(one) for one in part]
    if not isinstance(part, dict):
        return part
    made = {key: value if key == "$defs" else strict(value) for key, value in part.items()}
    return made | {"unevaluatedProperties": False} if "properties" in part else made


VALIDATOR = jsonschema.Draft202012Validator(strict(SCHEMA))


def gap(path: Path) -> Path:
    """A graph that ends in a gap between two layers, its norms beyond the floats."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Exp", ["a"], ["e"]),
             helper.make_node("MatMul", ["e", "v"], ["y"])]  # fmt: skip
    onnx.save(make_model(nodes, {"x": (1, 3)}, {"w": np.eye(3), "v": np.eye(3) * 2}), path)
    return path


def huge(path: Path) -> Path:
    nodes = [helper.make_node("MatMul", [f"h{i}" if i else "x", "w"], [f"h{i + 1}"]) for i in range(3)]
    nodes = [one for i, node in enumerate(nodes) for one in (node, helper.make_node("Relu", [f"h{i + 1}"], [f"r{i}"]))]
    nodes[2].input[0], nodes[4].input[0], nodes[-1].output[0] = "r0", "r1", "y"
    onnx.save(make_model(nodes, {"x": (1, 3)}, {"w": np.eye(3) * 1e150}), path)
    return path


CASES: dict[str, list[str]] = {
    "graph with a witness": ["inspect", "sample_models/pnet.onnx", "--witness-seconds", "0.5"],
    "checkpoint with spectra": ["inspect", "sample_models/known.safetensors", "--spectrum"],
    "violated": ["check", "sample_models/pnet.onnx", "--max-sigma", "4", "--witness-seconds", "0"],
    "on a box": ["inspect", "sample_models/pnet.onnx", "--input-range", "0,1", "--input-size", "1,3,12,12",
                 "--of-output", "box", "--witness-seconds", "0"],
    "no file": ["inspect", "sample_models/nothing.pt"],
    "broken": ["inspect", "sample_models/broken/empty.onnx"],
}  # fmt: skip


def document(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    main([*arguments, "--format", "json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("case", CASES)
def test_reports_are_what_the_schema_says(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    VALIDATOR.validate(document(CASES[case], capsys))


@pytest.mark.parametrize("make", [gap, huge])
def test_so_are_those_with_gaps_and_with_logarithms(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(["check", str(make(tmp_path / "m.onnx")), "--max-lipschitz", "2", "--witness-seconds", "0"], capsys)
    VALIDATOR.validate(found)
    assert bool(found["network"]["partials"]) == (make is gap)
    assert ("log10_upper" in found["network"]) == (make is huge)


def test_the_schema_tells_a_wrong_document() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for wrong in ({}, {"schema": "snaudit.report/2"}):
        with pytest.raises(jsonschema.ValidationError):
            VALIDATOR.validate(wrong)
