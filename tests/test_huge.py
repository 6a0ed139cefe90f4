"""Bounds beyond the largest float: carried, printed, compared and judged as logarithms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
from graphs import make_model
from onnx import helper

import snaudit
from snaudit import cli, numerals, policy
from snaudit.bound import (
    UNBOUNDED,
    Bound,
    Grade,
    at_most,
    chain,
    exactly,
    larger,
    scaled,
    stacked,
    total,
)
from snaudit.findings import Verdict


def deep(count: int, sigma: float, folder: Path) -> Path:
    nodes = [helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"]) for i in range(count)]
    weights = {f"w{i}": np.eye(2) * sigma for i in range(count)}
    model = make_model(nodes, {"t0": [1, 2]}, weights, [f"t{count}"], dtype="float32")
    path = folder / "deep.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_deep_chain_has_its_logarithm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = deep(400, 10.0, tmp_path)
    report = snaudit.check(path, max_lipschitz=1e300)
    assert report.verdict is Verdict.UNDECIDED and not report.gaps
    assert 400.0 <= report.network.bound.log10_upper <= 400.0001
    assert cli.main(["check", str(path), "--max-lipschitz", "1e300", "--witness-seconds", "0"]) == 3
    assert "e+400" in capsys.readouterr().out
    assert cli.main(["inspect", str(path), "--format", "json", "--witness-seconds", "0"]) == 0
    network = json.loads(capsys.readouterr().out)["network"]
    assert network["upper"] is None and not network["bounded"] and 400.0 <= network["log10_upper"] <= 400.0001
    np.savez(tmp_path / "deep.npz", **{f"l{i}.weight": np.eye(2, dtype="float32") * 10 * (1 + i % 2) for i in range(400)})
    chained = snaudit.check(tmp_path / "deep.npz", max_lipschitz=1e300).network.bound
    assert chained.grade is Grade.ASSUMED
    assert chained.log10_upper == pytest.approx(400 + 200 * math.log10(2), abs=1e-3)


def test_combinators_enclose_what_they_stand_for() -> None:
    mpmath.mp.dps = 60
    rng = np.random.default_rng(4)
    for _ in range(200):
        logs = [float(x) for x in rng.uniform(200, 600, 3)]
        parts = []
        for log in logs:
            parts.append(chain(at_most(10.0 ** (log / 2), "a"), at_most(10.0 ** (log / 2), "b")))
        exact = [mpmath.mpf(10.0 ** (log / 2)) ** 2 for log in logs]
        for found, truth in (
            (total(parts), sum(exact)),
            (stacked(parts, "l2"), mpmath.sqrt(sum(x * x for x in exact))),
            (stacked(parts, "l1"), sum(exact)),
            (larger(parts, "m"), max(exact)),
            (chain(parts[0], parts[1]), exact[0] * exact[1]),
            (scaled(parts[0], 3.0), exact[0] * 3),
            (chain(parts[0], at_most(1e-300, "s")), exact[0] * mpmath.mpf(1e-300)),
        ):
            assert found.known and found.lower == 0.0
            if found.bounded:
                assert truth <= mpmath.mpf(found.upper) <= truth * (1 + mpmath.mpf(1e-9))
            else:
                log = mpmath.log10(truth)
                assert log <= mpmath.mpf(found.huge) <= log + mpmath.mpf(1e-8)
                shown = numerals.upper_of(found)
                assert truth <= mpmath.mpf(shown) <= truth * mpmath.mpf("1.0003"), shown
    mpmath.mp.dps = 15


def test_what_has_no_bound_gets_none_by_a_logarithm() -> None:
    huge = chain(at_most(1e200, "a"), at_most(1e200, "b"))
    for found in (chain(huge, UNBOUNDED), total([huge, UNBOUNDED]), stacked([huge, UNBOUNDED], "linf")):
        assert not found.known and numerals.upper_of(found) == "unbounded"
    assert not scaled(huge, math.inf).known
    larger_one = scaled(huge, 10.0)
    assert huge.size < larger_one.size < UNBOUNDED.size and exactly(1e308).size < huge.size
    assert policy.judge(huge, 1.7e308) is Verdict.UNDECIDED
    assert Bound(0.0, 2.0, Grade.PROVED, "m").log10_upper == pytest.approx(math.log10(2))
    assert chain(huge, exactly(0.0)).upper >= 0.0
