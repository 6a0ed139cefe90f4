"""Gates as exporters write them: above every Jacobian that a search finds, below what suprema over all entries give."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import composed, function_of, make_model, norms_of
from onnx import helper
from test_attention_forms import climbed

N, D, H = 2, 3, 5


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"at {outputs.split()[0]}", **attributes)


GATES: dict[str, tuple[list[onnx.NodeProto], tuple[str, ...]]] = {
    "SwiGLU": ([node("MatMul", "x W", "z"), node("Sigmoid", "z", "s"), node("Mul", "z s", "f"), node("MatMul", "x V", "g"),
                node("Mul", "f g")], ("x",)),
    "ReGLU, packed": ([node("MatMul", "x WV", "p"), node("Add", "p b", "q"), node("Split", "q z g", axis=-1, num_outputs=2),
                       node("Relu", "z", "f"), node("Mul", "g f")], ("x",)),
    "sigmoid of another": ([node("MatMul", "x W", "z"), node("Sigmoid", "z", "f"), node("MatMul", "u V", "g"),
                            node("Mul", "f g")], ("x", "u")),
    "square": ([node("MatMul", "x W", "z"), node("Tanh", "z", "f"), node("Mul", "f z")], ("x",)),
    "of other tokens": ([node("MatMul", "x W", "z"), node("Gather", "z back", "f", axis=1), node("MatMul", "x V", "g"),
                         node("Mul", "f g")], ("x",)),
}  # fmt: skip
GATES["ReGLU, packed"][0][2].CopyFrom(node("Split", "q", "z g", axis=-1, num_outputs=2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", GATES)
def test_no_jacobian_on_a_box_is_above(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes, inputs = GATES[kind]
    rows = 10.0 ** rng.uniform(-1, 0.5, H)
    weights = {"W": rng.standard_normal((D, H)) * rows, "V": rng.standard_normal((D, H)) / rows, "back": np.array([1, 0])}
    weights |= {"WV": np.concatenate([weights["W"], weights["V"]], axis=1), "b": rng.standard_normal(2 * H)}
    used = {i for n in nodes for i in n.input}
    model = make_model(nodes, {name: (1, N, D) for name in inputs}, {k: v for k, v in weights.items() if k in used}, opset=18)
    radius, middle = 10.0 ** rng.uniform(-1.5, 0.5), float(rng.normal())
    norms = {n.output[0]: norms_of(weights[n.input[1]]) for n in nodes if n.op_type == "MatMul"}
    found = composed(model, operators=norms, box=dict.fromkeys(inputs, (middle - radius, middle + radius)))
    assert any("box of x" in text for text in found.assumptions)
    ends = (np.full(N * D * len(inputs), middle + sign * radius) for sign in (-1, 1))
    seen = climbed(function_of(model)[0], *ends, rng)
    assert seen <= found.bound.upper * (1 + 1e-5)
    assert "gate" in [name for name, _ in found.contributions] and found.bound.upper <= (20 if kind in ("square", "of other tokens") else 6) * seen


def test_two_norms_of_one_value_move_apart() -> None:
    """They agree on no direction: each factor has a part of its own, and the parts add."""
    rng = np.random.default_rng(5)
    weights = {"W": rng.standard_normal((D, H)), "V": rng.standard_normal((D, H)), "gamma": rng.uniform(0.5, 2.0, D)}
    nodes = [node("LayerNormalization", "x gamma", "u", epsilon=0.5), node("RMSNormalization", "x gamma", "r", epsilon=0.5),
             node("MatMul", "u W", "f"), node("MatMul", "r V", "g"), node("Mul", "f g")]  # fmt: skip
    model = make_model(nodes, {"x": (1, N, D)}, weights, opset=23)
    norms = {name: norms_of(weights[w]) for name, w in (("f", "W"), ("g", "V"))}
    found = composed(model, operators=norms)
    assert [name for name, _ in found.contributions] == ["gate", "gate"]
    count = N * D
    seen = max(climbed(function_of(model)[0], np.full(count, -r), np.full(count, r), rng) for r in (0.3, 1.0))
    parts = [bound for _, bound in found.contributions]
    assert seen <= found.bound.upper * (1 + 1e-5)
    assert found.bound.upper == pytest.approx(sum(parts), rel=1e-12)


def test_a_square_attains_its_bound() -> None:
    """(u + 1)·(u + 1) on [0, 1], as a product of two maps: the slope 4 at its end."""
    weights = {"W": np.eye(D), "one": np.ones(D)}
    nodes = [node("MatMul", "x W", "z"), node("Add", "z one", "f"), node("MatMul", "x W", "v"), node("Add", "v one", "g"),
             node("Mul", "f g")]  # fmt: skip
    norms = {name: norms_of(np.eye(D)) for name in ("z", "v")}
    found = composed(make_model(nodes, {"x": (1, N, D)}, weights), operators=norms, box={"x": (0.0, 1.0)}).bound.upper
    assert 4.0 <= found <= 4.0 * (1 + 1e-8)


def test_each_entry_counts_with_its_own_range() -> None:
    """A large row meets a small factor only: the suprema over all entries would give a hundred times as much."""
    big = np.diag([100.0, 0.01, 1.0])
    small = np.diag([0.01, 100.0, 1.0])
    nodes = [node("MatMul", "x W", "f"), node("MatMul", "x V", "g"), node("Mul", "f g")]
    norms = {"f": norms_of(big), "g": norms_of(small)}
    model = make_model(nodes, {"x": (1, N, D)}, {"W": big, "V": small})
    found = composed(model, operators=norms, box={"x": (-1.0, 1.0)}).bound.upper
    assert 2.0 <= found <= 2.0 * (1 + 1e-8)


UNLIKE: dict[str, list[onnx.NodeProto]] = {
    "turned": [node("MatMul", "x W", "z"), node("Mul", "z ten", "a"), node("Mul", "z ten", "b"), node("Add", "a b", "f"),
               node("MatMul", "x W", "g"), node("Mul", "f g")],
    "a token twice": [node("MatMul", "x W", "z"), node("Gather", "z twice", "f", axis=1), node("Mul", "f f")],
    "other features": [node("MatMul", "x wide", "z"), node("Reshape", "z apart", "r"), node("Gather", "r picked", "f", axis=1),
                       node("MatMul", "x W", "g"), node("Mul", "f g")],
}  # fmt: skip


@pytest.mark.parametrize("why", UNLIKE)
def test_what_is_no_function_of_each_token_once_is_no_gate(why: str) -> None:
    """A sum of multiples, one token's entries in two rows, and columns of more than one feature."""
    weights = {"W": np.eye(D), "ten": np.array(10.0), "twice": np.array([0, 0]), "apart": np.array([1, 2 * N, D]),
               "wide": np.concatenate([np.eye(D), 30.0 * np.eye(D)], axis=1), "picked": np.array([0, 3])}  # fmt: skip
    used = {i for n in UNLIKE[why] for i in n.input}
    model = make_model(UNLIKE[why], {"x": (1, N, D)}, {k: v for k, v in weights.items() if k in used}, opset=18)
    norms = {n.output[0]: norms_of(weights[n.input[1]]) for n in UNLIKE[why] if n.op_type == "MatMul"}
    found = composed(model, operators=norms, box={"x": (-1.0, 1.0)})
    seen = climbed(function_of(model)[0], np.full(N * D, 0.99), np.ones(N * D), np.random.default_rng(0), 3)
    assert "gate" not in [name for name, _ in found.contributions] and seen <= found.bound.upper * (1 + 1e-5)
