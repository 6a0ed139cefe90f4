"""GroupSort and MaxMin, written out: one value sorted, so 1-Lipschitz in every norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import composed, function_of, gain, jacobian, make_model
from onnx import helper

from snaudit.bound import NORMS, Norm


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"at {outputs.split()[0]}", **attributes)


HALVES = [node("Split", "x", "a b", axis=1, num_outputs=2), node("Max", "a b", "p"), node("Min", "b a", "q")]
GROUPS = [
    node("Reshape", "x pairs", "r"), node("ReduceMax", "r last", "p0", keepdims=0),
    node("ReduceMin", "r last", "q0", keepdims=0), node("Unsqueeze", "p0 last", "p"), node("Unsqueeze", "q0 last", "q"),
]  # fmt: skip
JOIN = [node("Concat", "p q", "y", axis=1)]
CONSTANTS = {"pairs": np.array([2, 3, 2]), "last": np.array([2]), "zero": np.array(0.0)}


def model_of(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    used = {name for one in nodes for name in one.input}
    return make_model(nodes, {"x": [2, 6]}, {k: v for k, v in CONSTANTS.items() if k in used}, opset=18)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("nodes", [HALVES + JOIN, GROUPS + JOIN], ids=["halves", "groups"])
def test_a_sort_is_one_lipschitz(nodes: list[onnx.NodeProto], norm: Norm) -> None:
    model = model_of(nodes)
    assert composed(model, norm).bound.upper == 1.0
    function, n = function_of(model)
    for seed in range(5):
        x = np.random.default_rng(seed).permutation(n) * 0.1
        assert gain(jacobian(function, x, 1e-6), norm) == pytest.approx(1.0)


def test_what_only_looks_like_a_sort_is_none() -> None:
    twice = [node("Split", "x", "a b", axis=1, num_outputs=2), node("Max", "a b", "p"), node("Max", "b a", "q")]
    other = [HALVES[0], HALVES[1], node("Min", "b x0", "q"), node("Identity", "a", "x0")]
    other = [HALVES[0], other[3], HALVES[1], other[2]]
    alone = [node("Max", "x zero", "p"), node("Min", "x zero", "q")]
    for nodes in (twice, other, alone):
        model = model_of(nodes + JOIN)
        function, n = function_of(model)
        x = np.random.default_rng(0).permutation(n) * 0.1 - 0.3
        assert gain(jacobian(function, x, 1e-6), "l2") <= composed(model).bound.upper * (1 + 1e-6)
        assert composed(model).bound.upper > 1.4
