"""Loop and Scan: the bound of the unrolled graph, above what onnxruntime shows; a gap where steps are not known."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import composed, function_of, jacobian, make_model, norms_of
from onnx import TensorProto, helper

N = 3
RNG = np.random.default_rng(0)
W = RNG.standard_normal((N, N)) * 0.6


def info(name: str, kind: int = TensorProto.DOUBLE, shape: Any = (N,)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    given = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, given, outputs.split(), name=f"at {outputs.split()[0]}", **attributes)


def looped(trips: Any = 4, body: list[onnx.NodeProto] | None = None, go: str = "Identity", **kinds: str) -> Any:
    """s ← tanh(sW) + x, its states also stacked."""
    inner = body or [node("MatMul", "s W", "m"), node("Tanh", "m", "t"), node("Add", "t x", "s2"), node("Identity", "s2", "o")]
    last = node("Identity", "go", "on") if go == "Identity" else node("Less", "i three", "on")
    graph = helper.make_graph(
        [last, *inner], "body", [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("s")],
        [info("on", TensorProto.BOOL, []), info("s2"), info("o")],
    )  # fmt: skip
    weights = {"W": W, "yes": np.array(True), "three": np.array(3)}
    inputs: dict[str, Any] = {"x": [N]}
    if trips is None:
        inputs["trips"], kinds = [], {"trips": "int64"}
    else:
        weights["trips"] = np.array(trips)
    return make_model([node("Loop", "trips yes x", "y z", body=graph)], inputs, weights, ["y", "z"], kinds=kinds)


def scanned(length: Any = 4, state: str = "Tanh") -> Any:
    """s ← f(sW) + x_t over the rows of x; every s and the last."""
    graph = helper.make_graph(
        [node("MatMul", "s W", "m"), node(state, "m", "t"), node("Add", "t r", "s2"), node("Identity", "s2", "o")],
        "body", [info("s"), info("r")], [info("s2"), info("o")],
    )  # fmt: skip
    weights = {"W": W, "zero": np.zeros(N)}
    return make_model([node("Scan", "zero x", "y z", body=graph, num_scan_inputs=1)], {"x": [length, N]}, weights, ["y", "z"])


@pytest.mark.parametrize("model", [looped(), looped(1), scanned(), scanned(7, "Sin")], ids=["loop", "once", "scan", "sin"])
def test_loops_are_unrolled(model: Any) -> None:
    upper = composed(model, operators={"m": norms_of(W)}).bound.upper
    function, n = function_of(model)
    rng = np.random.default_rng(1)
    seen = max(np.linalg.norm(jacobian(function, rng.standard_normal(n) * s, 1e-5), 2) for s in (0.0, 0.1, 1.0, 3.0))
    assert seen <= upper * (1 + 1e-6) and upper <= 12 * seen


def test_the_bound_is_that_of_the_same_nodes_in_a_row() -> None:
    nodes, state = [], "x"
    for step in range(4):
        nodes += [node("MatMul", f"{state} W", f"m{step}"), node("Tanh", f"m{step}", f"t{step}"), node("Add", f"t{step} x", f"s{step}")]
        state = f"s{step}"
    nodes.append(node("Concat", "s0 s1 s2 s3", "z", axis=0))
    flat = make_model(nodes, {"x": [N]}, {"W": W}, ["s3", "z"])
    same = composed(flat, operators={f"m{step}": norms_of(W) for step in range(4)}).bound.upper
    assert composed(looped(), operators={"m": norms_of(W)}).bound.upper == pytest.approx(same, rel=1e-12)


def test_pieces_of_a_scan_are_disjoint() -> None:
    graph = helper.make_graph([node("Tanh", "r", "o")], "body", [info("r")], [info("o")])
    model = make_model([node("Scan", "x", "y", body=graph, num_scan_inputs=1)], {"x": [9, N]})
    assert composed(model).bound.upper == pytest.approx(1.0)


def test_steps_that_are_not_known_are_gaps() -> None:
    norms = {"m": norms_of(W)}
    for model in (looped(None), looped(go="Less"), scanned(None), looped(10**6), scanned(10**5)):
        (gap,) = composed(model, operators=norms).gaps
        assert gap.code == "control-flow" and gap.where == "at y" and gap.remedy
    unknown = [node("Exp", "s", "s2"), node("Identity", "s2", "o")]
    (gap,) = composed(looped(body=unknown)).gaps
    assert gap.where == "at y" and "at s2" in gap.reason and gap.code == "needs-range"
    assert composed(looped(0)).outputs[0][1].upper == 1.0
