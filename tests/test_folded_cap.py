"""--measure folded: the cap holds for the kernel with the BatchNorm behind it, against a dense SVD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import snaudit
from snaudit.errors import UsageError


def save(path: Path, gain: float) -> None:
    """Gemm, BatchNorm of gain·(0.5 … 1.5), Relu, MatMul without scales."""
    rng = np.random.default_rng(3)
    arrays = {
        "w": rng.standard_normal((6, 5)), "b": rng.standard_normal(6), "gamma": gain * rng.uniform(0.5, 1.5, 6),
        "beta": rng.standard_normal(6), "mean": rng.standard_normal(6), "var": rng.uniform(0.1, 2, 6),
        "v": rng.standard_normal((6, 4)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], transB=1),
        helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 5), ("y", 4))]
    held = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def norms(path: str | Path) -> tuple[float, float]:
    """(of diag(γ/√(var + ε))·w, of v), from a full SVD in float64."""
    held = {name: tensor.load().astype(np.float64) for name, tensor in snaudit.load(path).tensors.items()}
    scale = held["gamma"] / np.sqrt(held["var"] + np.float32(1e-5))
    return float(np.linalg.norm(scale[:, None] * held["w"], 2)), float(np.linalg.norm(held["v"], 2))


@pytest.mark.parametrize("gain", [20.0, 0.01])
@pytest.mark.parametrize("how", ["scale", "normalize"])
def test_the_cap_is_on_the_layer_with_its_batchnorm(tmp_path: Path, gain: float, how: str) -> None:
    path = tmp_path / "m.onnx"
    save(path, gain)
    before = norms(path)
    outcome = snaudit.constrain(path, max_sigma=1.5, measure="folded", how=how)
    after = norms(outcome.target)
    by = {change.name: change for change in outcome.changes}
    for name, old, new in zip(("w", "v"), before, after, strict=True):
        assert old <= by[name].before.upper <= old * (1 + 1e-6)
        assert new <= by[name].after.upper <= 1.5 and by[name].after.grade is snaudit.Grade.PROVED
        assert new >= 1.499 or (how == "scale" and new == old < 1.5)
    assert by["w"].changed == (how == "normalize" or gain > 1)
    assert snaudit.audit(outcome.target).network.bound.upper <= 1.5**2
    old, new = (snaudit.load(file).tensors for file in (path, outcome.target))
    assert all(old[name].load().tobytes() == new[name].load().tobytes() for name in old if name not in "wv")
    again = snaudit.constrain(outcome.target, tmp_path / "again.onnx", max_sigma=1.5, measure="folded", how=how)
    assert not any(change.changed for change in again.changes)


def test_what_does_not_go_with_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", w=np.ones((3, 3)))
    with pytest.raises(UsageError, match="needs a graph"):
        snaudit.constrain(tmp_path / "bare.npz", max_sigma=1.0, measure="folded")
    for options in ({"how": "clip"}, {"max_lipschitz": 2.0}):
        with pytest.raises(UsageError, match="--measure folded"):
            snaudit.constrain(tmp_path / "m.onnx", max_sigma=1.0, measure="folded", **options)
