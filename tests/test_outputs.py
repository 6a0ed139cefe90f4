"""How far outputs move: on random input and on the user's, against the network in numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import snaudit
from snaudit import cli
from snaudit.errors import UsageError


def mlp(path: Path, batch: object = "n") -> tuple[np.ndarray, np.ndarray]:
    """x → W x → Relu → V: logits of 4 classes, and a vector beside them that is none."""
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 8), (8, 4)))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
        helper.make_node("ReduceSum", ["y"], ["s"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [batch, 5])],
        [helper.make_tensor_value_info("y", 1, [batch, 4]), helper.make_tensor_value_info("s", 1, [])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return w, v


@pytest.mark.parametrize(("batch", "kind"), [("n", "npz"), ("n", "npy"), (10, "npz"), (1, "npy"), (40, "npz")])
def test_the_change_on_data_is_that_of_the_network(tmp_path: Path, batch: object, kind: str) -> None:
    path = tmp_path / "m.onnx"
    w, v = mlp(path, batch)
    x = np.random.default_rng(1).standard_normal((40, 5)).astype(np.float32)
    data = tmp_path / f"x.{kind}"
    if kind == "npz":
        np.savez(data, x=x)
    else:
        np.save(data, np.asfortranarray(x))
    outcome = snaudit.constrain(path, max_sigma=2.0, how="clip", data=data)
    new = snaudit.load(outcome.target).tensors
    old, moved = (np.maximum(x @ a, 0) @ b for a, b in ((w, v), (new["w"].load(), new["v"].load())))
    (found,) = [o for o in outcome.outputs if o.on == str(data) and o.name == "y"]
    assert found.rows == 40 and 0.5 < found.top1 < 1.0
    assert found.top1 == np.mean(old.argmax(1) == moved.argmax(1))
    difference = np.abs(moved - old) / np.abs(old).max()
    assert found.max_relative == pytest.approx(difference.max(), rel=1e-5)
    assert found.mean_relative == pytest.approx(difference.mean(), rel=1e-5)
    by = {(o.name, o.on): o for o in outcome.outputs}
    assert by["y", "random input"].top1 is None or batch != "n", "one row tells nothing"
    assert by["s", str(data)].top1 is None


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": np.zeros((2, 5), np.float32)}, "no input 'z'; the graph takes x: float32 (n, 5)"),
        ({"x": np.zeros((2, 5))}, "x is float64 (2, 5); the graph takes x: float32 (n, 5)"),
        ({"x": np.zeros((2, 6), np.float32)}, "x is float32 (2, 6)"),
        ({"x": np.zeros((0, 5), np.float32)}, "x is float32 (0, 5)"),
        ({"x": np.zeros(5, np.float32)}, "x is float32 (5,)"),
        ({}, "x.npz"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    mlp(tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError) as caught:
        snaudit.constrain(tmp_path / "m.onnx", max_sigma=1.0, data=tmp_path / "x.npz")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "m.constrained.onnx").exists()


def test_data_that_is_none(tmp_path: Path) -> None:
    mlp(tmp_path / "m.onnx", 3)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "odd.npy", np.zeros((4, 5), np.float32))
    whole = (tmp_path / "odd.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-3])
    (tmp_path / "head.npy").write_bytes(whole[:9])
    (tmp_path / "text.npz").write_text("no arrays")
    for name in ("objects.npy", "odd.npy", "cut.npy", "head.npy", "text.npz", "missing.npz", "m.onnx"):
        with pytest.raises(UsageError, match=name.replace(".", r"\.")):
            snaudit.constrain(tmp_path / "m.onnx", max_sigma=1.0, data=tmp_path / name)
    np.savez(tmp_path / "bare.npz", w=np.ones((3, 3)))
    with pytest.raises(UsageError, match="needs a graph that"):
        snaudit.constrain(tmp_path / "bare.npz", max_sigma=1.0, data=tmp_path / "odd.npy")


def test_the_report_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, report, data = tmp_path / "m.onnx", tmp_path / "r.json", tmp_path / "x.npy"
    mlp(path)
    np.save(data, np.ones((3, 5), np.float32))
    command = ["constrain", str(path), "--max-sigma", "1", "--data", str(data), "--report"]
    assert cli.main([*command, str(report)]) == 0
    kept, shown = json.loads(report.read_text()), " ".join(capfd.readouterr().out.split())
    assert kept["schema"] == "snaudit.constrain/1" and kept["written"] is True
    (found,) = [o for o in kept["outputs"] if o["name"] == "y" and o["on"] == str(data)]
    assert found["rows"] == 3 and f"same top-1 in {round(3 * found['top1_agreement'])} of 3 rows" in shown
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for wrong in (path, data, tmp_path / "m.constrained.onnx", tmp_path, tmp_path / "none" / "r.json"):
        assert cli.main([*command, str(wrong), "--force"]) == 2
        assert "--report" in capfd.readouterr().err
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}
