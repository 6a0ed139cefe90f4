"""A limit on the network's bound becomes caps of its layers: the least change, and a proof in the file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import snaudit
from snaudit.bound import Grade
from snaudit.budget import shares
from snaudit.errors import ConstraintError, UsageError


def test_a_chain_shares_alike() -> None:
    norms = np.log([5.0, 3.0, 2.0, 0.5])
    found = shares(lambda t: float(np.sum(norms - t)), 4, 0.0)
    assert np.allclose(found, math.log(15) / 4, atol=1e-6)
    assert not shares(lambda t: float(np.sum(norms - t)), 4, 10.0).any(), "what keeps the limit stays"


def test_residuals_and_maxima_against_their_optima() -> None:
    """The optima by a general convex solver, to seven digits: they stand here as numbers."""

    def residual(t: np.ndarray) -> float:
        return float(np.log1p(6 * np.exp(-t[0] - t[1])) + np.log1p(6 * np.exp(-t[2] - t[3])) + np.log(2) - t[4])

    found = shares(residual, 5, math.log(5.0))
    assert residual(found) <= math.log(5.0)
    assert abs(float(found @ found) - 2.7333673) < 1e-4

    def largest(t: np.ndarray) -> float:
        return float(max(np.log(10) - t[0], np.log(3) - t[1]) + np.log(2) - t[2])

    found = shares(largest, 3, 0.0)
    assert np.allclose(found, [1.3999017, 0.1959289, 1.5958306], atol=1e-4) and largest(found) <= 0.0


def test_what_cannot_be_reached_is_none() -> None:
    assert shares(lambda t: float(np.log1p(np.exp(-t).sum())), 3, -0.1) is None
    assert shares(lambda t: 1.0, 2, 0.0) is None


def residual_model(path: Path, seed: int = 0) -> Path:
    """x + W₂ relu(W₁ x), then a linear layer behind a BatchNormalization."""
    rng = np.random.default_rng(seed)
    tensors = {
        "w1": rng.standard_normal((6, 6)), "w2": rng.standard_normal((6, 6)), "w3": rng.standard_normal((6, 4)),
        "g": rng.uniform(0.5, 3, 6), "b": rng.standard_normal(6), "m": np.zeros(6), "v": np.ones(6),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["s"]), helper.make_node("Add", ["x", "s"], ["t"]),
        helper.make_node("BatchNormalization", ["t", "g", "b", "m", "v"], ["n"]),
        helper.make_node("MatMul", ["n", "w3"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("how", ["scale", "clip", "soft"])
def test_the_file_that_is_written_keeps_the_limit(tmp_path: Path, how: str) -> None:
    path = residual_model(tmp_path / "m.onnx")
    before = snaudit.audit(path).network.bound.upper
    limit = before / 8
    outcome = snaudit.constrain(path, max_lipschitz=limit, how=how)
    after = snaudit.audit(outcome.target).network.bound
    assert outcome.network == (snaudit.audit(path).network.bound, after)
    assert after.grade is Grade.PROVED and 0.9 * limit <= after.upper <= limit
    again = snaudit.constrain(outcome.target, tmp_path / "again.onnx", max_lipschitz=limit, how=how)
    assert not any(change.changed for change in again.changes)
    assert Path(outcome.target).read_bytes() == (tmp_path / "again.onnx").read_bytes()


def test_it_moves_the_weights_less_than_one_cap_for_all(tmp_path: Path) -> None:
    path = residual_model(tmp_path / "m.onnx")
    limit = snaudit.audit(path).network.bound.upper / 8
    shared = snaudit.constrain(path, max_lipschitz=limit)
    moved = sum(change.relative_change**2 for change in shared.changes)
    for cap in np.geomspace(5, 0.05, 40):
        uniform = snaudit.constrain(path, tmp_path / "u.onnx", max_sigma=float(cap), force=True)
        if snaudit.audit(uniform.target).network.bound.upper <= limit:
            break
    assert moved < 0.95 * sum(change.relative_change**2 for change in uniform.changes)


def test_both_limits_and_chosen_layers(tmp_path: Path) -> None:
    path = residual_model(tmp_path / "m.onnx")
    limit = snaudit.audit(path).network.bound.upper / 3
    outcome = snaudit.constrain(path, max_sigma=2.0, max_lipschitz=limit, skip=("w2",))
    report = snaudit.audit(outcome.target)
    norms = {layer.name: layer.norm.upper for layer in report.layers}
    assert report.network.bound.upper <= limit and norms["w1"] <= 2.0 and norms["w3"] <= 2.0
    assert "w2" not in {change.name for change in outcome.changes}
    dry = snaudit.constrain(path, tmp_path / "dry.onnx", max_lipschitz=limit, dry_run=True)
    assert not (tmp_path / "dry.onnx").exists() and dry.network[1] is None


def test_a_checkpoint_is_taken_as_a_chain(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.eye(3) * 4, "b.weight": torch.eye(3) * 2}, tmp_path / "m.pt")
    outcome = snaudit.constrain(tmp_path / "m.pt", max_lipschitz=2.0)
    assert any("chain" in note for note in outcome.notes)
    assert [round(change.after.upper, 4) for change in outcome.changes] == [2.0, 1.0]
    assert outcome.network[1].grade is Grade.ASSUMED and outcome.network[1].upper <= 2.0


def test_refusals(tmp_path: Path) -> None:
    path = residual_model(tmp_path / "m.onnx")
    with pytest.raises(ConstraintError, match="ways past them"):
        snaudit.constrain(path, max_lipschitz=0.01, layers=("w1",))
    for options in ({"measure": "matrix"}, {"how": "normalize"}):
        with pytest.raises(UsageError, match="max-lipschitz"):
            snaudit.constrain(path, max_lipschitz=1.0, **options)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="positive"):
            snaudit.constrain(path, max_lipschitz=bad)
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Nobody", ["y"], ["z"], domain="my"))
    model.graph.output[0].name = "z"
    model.opset_import.append(helper.make_opsetid("my", 1))
    onnx.save(model, tmp_path / "gap.onnx")
    with pytest.raises(ConstraintError, match="no finite bound"):
        snaudit.constrain(tmp_path / "gap.onnx", max_lipschitz=1.0)
    assert not (tmp_path / "gap.constrained.onnx").exists()
