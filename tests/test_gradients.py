"""The witness's gradients: each row against onnxruntime and finite differences, and how near they come."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import op_cases
import pytest
import torch
from graphs import composed, make_model, norms_of
from onnx import TensorProto, helper
from test_witness import node, sought

from snaudit.bound import NORMS, Norm
from snaudit.differentiable import ROWS
from snaudit.differentiable.interface import NoGradient
from snaudit.precision import in_precision
from snaudit.running import open_session
from snaudit.tracing import Program, traced

ALL = (*op_cases.CURVES, *op_cases.LINEAR, *op_cases.RESIZED, *op_cases.OTHERS, *op_cases.RANGED)
CASES = [one for one in ALL if one.op != "Resize" or len(one.constants) != 3]  # onnxruntime refuses those in float32
KNOWN = {op for op in ROWS if op not in {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}}
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def program_of(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> Program:
    return traced(in_precision(model, TensorProto.DOUBLE), feed, list(feed))[0]


def hold(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> None:
    """The program's value is onnxruntime's, its uᵀJv that of central differences."""
    session = open_session(in_precision(model, TensorProto.FLOAT).SerializeToString())
    found = session.run(None, {name: array.astype(np.float32) for name, array in feed.items()})
    wanted = np.concatenate([y.ravel() for y in found if y.dtype == np.float32])
    program = program_of(model, feed)
    x = np.concatenate([array.ravel() for array in feed.values()])
    tape = program.at(x)
    size = np.abs(wanted).max(initial=0.0)
    assert tape.value.shape == wanted.shape and np.abs(tape.value - wanted).max(initial=0.0) < 1e-4 * (1 + size)
    v, u = np.random.default_rng(1).standard_normal(x.size), np.random.default_rng(2).standard_normal(wanted.size)
    slope = (program.value(x + 1e-6 * v) - program.value(x - 1e-6 * v)) @ u / 2e-6
    assert tape.back(u) @ v == pytest.approx(slope, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("one", CASES, ids=lambda case: case.name)
def test_a_row_is_the_op_and_its_slope(one: op_cases.Case) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(*one.box, one.shape) if one.box else rng.standard_normal(one.shape)
    hold(one.model(), {"x": x})


LSTM = {"hidden_size": 3, "direction": "bidirectional"}
MORE: tuple[tuple[str, str, str, Sequence[int], Mapping[str, Any], Mapping[str, Any]], ...] = (
    ("MatMul", "x w", "y", (2, 3, 4), {"w": normal(4, 5)}, {}),
    ("Gemm", "x w b", "y", (4, 3), {"w": normal(5, 4), "b": normal(5)}, {"transA": 1, "transB": 1, "alpha": 0.5}),
    ("Einsum", "x w", "y", (2, 3), {"w": normal(3, 4)}, {"equation": "bi, ij -> bj"}),
    ("Conv", "x w b", "y", (1, 2, 7, 6), {"w": normal(4, 1, 3, 2), "b": normal(4)},
     {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}),
    ("Conv", "x w", "y", (1, 2, 9), {"w": normal(3, 2, 4)}, {"auto_pad": "SAME_LOWER", "strides": [2]}),
    ("ConvTranspose", "x w b", "y", (1, 2, 4, 3), {"w": normal(2, 3, 3, 2), "b": normal(3)},
     {"strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 0]}),
    ("ConvTranspose", "x w", "y", (1, 2, 4, 3), {"w": normal(2, 3, 3, 3)}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("LSTM", "x w r b", "y h c", (4, 2, 5), {"w": normal(2, 12, 5), "r": normal(2, 12, 3), "b": normal(2, 24)}, LSTM),
    ("LSTM", "x w r b e h0 c0 p", "y", (4, 2, 5),
     {"w": normal(1, 12, 5), "r": normal(1, 12, 3), "b": normal(1, 24), "e": np.array([4, 4], np.int32),
      "h0": normal(1, 2, 3), "c0": normal(1, 2, 3), "p": normal(1, 9)}, {"hidden_size": 3, "direction": "reverse"}),
    ("GRU", "x w r b", "y h", (4, 2, 5), {"w": normal(1, 9, 5), "r": normal(1, 9, 3), "b": normal(1, 18)},
     {"hidden_size": 3, "linear_before_reset": 1}),
    ("GRU", "x w r", "y h", (4, 2, 5), {"w": normal(1, 9, 5), "r": normal(1, 9, 3)}, {"hidden_size": 3}),
    ("RNN", "x w r b", "y h", (4, 2, 5), {"w": normal(1, 3, 5), "r": normal(1, 3, 3), "b": normal(1, 6)}, {"hidden_size": 3}),
    ("MeanVarianceNormalization", "x", "y", (2, 3, 4, 4), {}, {}),
    ("LpNormalization", "x", "y", (3, 4), {}, {"axis": 1, "p": 1}),
    ("ReduceProd", "x", "y", (3, 4), {}, {"axes": [1]}),
    ("ReduceSumSquare", "x", "y", (3, 4), {}, {"axes": [0], "keepdims": 0}),
    ("GridSample", "x g", "y", (1, 2, 4, 5), {"g": RNG.uniform(-1, 1, (1, 3, 3, 2))}, {"align_corners": 1}),
    ("Mod", "x m", "y", (3, 4), {"m": np.array(0.7)}, {"fmod": 1}),
)  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "outputs", "shape", "weights", "attributes"), MORE)
def test_rows_with_weights_and_states(op: str, inputs: str, outputs: str, shape, weights, attributes) -> None:
    model = make_model([node(op, inputs, outputs, **attributes)], {"x": shape}, weights, outputs.split())
    hold(model, {"x": np.random.default_rng(3).standard_normal(shape)})


CHAINS = {
    "steps": ("Floor x a|Ceil x b|Round x c|Sign x d|Add a b e|Add e c f|Add f d s|Mul s x y", {}),
    "masks": (
        "Greater x z p|Less x o q|Or p q r|And p q t|Xor r t w|Not w n|Where n x o k|GreaterOrEqual k z g|"
        "LessOrEqual k z l|Equal g l m|Where m z k j|IsNaN x v|Where v z j h|IsInf x u|Where u z h y",
        {"z": np.zeros(()), "o": np.array(0.4)},
    ),
    "places": ("ArgMax x i|ArgMin x d|Cast i a|Cast d b|Mul a x e|Mul b x f|Add e f y", {}),
    "lengths": ("Mul x x a|ReduceLogSum a b|Sum a b x c|Tan c d|Acos w p|Mul d p y", {"w": np.array(0.3)}),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_jumps_is_held_where_it_is(name: str) -> None:
    text, weights = CHAINS[name]
    nodes = []
    for part in text.split("|"):
        op, *inputs, output = part.split()
        settings: dict[str, Any] = {"to": TensorProto.DOUBLE} if op == "Cast" else {}
        settings |= {"axis": 1, "keepdims": 1} if op.startswith("Arg") else {}
        settings |= {"axes": [1]} if op == "ReduceLogSum" else {}
        nodes.append(node(op, " ".join(inputs), output, **settings))
    hold(make_model(nodes, {"x": (2, 3)}, weights), {"x": np.random.default_rng(5).uniform(0.2, 0.9, (2, 3))})


def test_heads_of_attention_as_one_op() -> None:
    """onnxruntime has no kernel for it everywhere: held to torch's own."""
    nodes = [node("Attention", "x k v", q_num_heads=2, kv_num_heads=1, is_causal=1)]
    weights = {"k": normal(1, 3, 4), "v": normal(1, 3, 4)}
    x = np.random.default_rng(6).standard_normal((1, 3, 8))
    found = program_of(make_model(nodes, {"x": (1, 3, 8)}, weights, opset=23), {"x": x}).value(x.ravel())
    q = torch.tensor(x).reshape(1, 3, 2, 4).transpose(1, 2)
    k, v = (torch.tensor(weights[name]).reshape(1, 3, 1, 4).transpose(1, 2).expand(1, 2, 3, 4) for name in "kv")
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    assert np.allclose(found, wanted.reshape(-1).numpy())


def body(nodes: Sequence[onnx.NodeProto], inputs: Sequence[str], outputs: Sequence[str]) -> onnx.GraphProto:
    kinds = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "on": TensorProto.BOOL}
    shapes = dict.fromkeys(kinds, []) | dict.fromkeys(("acc", "one", "more", "put"), [3])

    def known(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kinds.get(name, TensorProto.DOUBLE), shapes.get(name, [2, 3]))

    return helper.make_graph(list(nodes), "body", [known(n) for n in inputs], [known(n) for n in outputs])


def test_branches_and_loops_are_followed() -> None:
    """A branch that the shape decides, a Loop and a Scan that it counts, and a local function."""
    steps = body([node("Identity", "go", "on"), node("Tanh", "s", "t"), node("MatMul", "t w", "next"),
                  node("Identity", "next", "row")], ["i", "go", "s"], ["on", "next", "row"])  # fmt: skip
    each = body([node("Mul", "one half", "less"), node("Add", "acc less", "more"), node("Sin", "more", "put")],
                ["acc", "one"], ["more", "put"])  # fmt: skip
    nodes = [
        node("Shape", "x", "dims"), node("Gather", "dims zero", "rows"), node("Equal", "rows two", "is"),
        node("If", "is", "chosen", then_branch=body([node("Sin", "x", "a")], [], ["a"]),
             else_branch=body([node("Neg", "x", "b")], [], ["b"])),
        node("Loop", "rows yes chosen", "last all", body=steps),
        node("Squeeze", "chosen", "same"), node("Scan", "start same", "sum scanned", body=each, num_scan_inputs=1),
        node("Unsqueeze", "sum first", "row_of"), node("Concat", "last row_of scanned", "c", axis=0), helper.make_node("own_op", ["c"], ["y"], domain="own"),
    ]  # fmt: skip
    function = helper.make_function("own", "own_op", ["p"], ["q"], [node("Softplus", "p", "q")], [helper.make_opsetid("", 17)])
    weights = {"zero": np.array(0), "two": np.array(2), "yes": np.array(True), "w": normal(3, 3), "half": np.array(0.5),
               "start": np.zeros(3), "first": np.array([0])}  # fmt: skip
    model = make_model(nodes, {"x": (2, 3)}, weights, functions=[function])
    hold(model, {"x": np.random.default_rng(4).standard_normal((2, 3))})


def test_every_row_is_held_to_something() -> None:
    seen = {one.op for one in CASES} | {row[0] for row in MORE} | {"Attention"}
    seen |= {part.split()[0] for text, _ in CHAINS.values() for part in text.split("|")}
    seen |= {"BiasGelu", "FusedMatMul"}  # onnxruntime's own, which `lowered` writes out before
    assert sorted(KNOWN - seen) == []


def dense(widths: Sequence[int], curve: str, seed: int) -> tuple[onnx.ModelProto, dict]:
    rng = np.random.default_rng(seed)
    nodes, weights, name = [], {}, "x"
    for k, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        weights |= {f"w{k}": rng.standard_normal((a, b)) / np.sqrt(a) * 1.5, f"b{k}": rng.standard_normal(b) * 0.3}
        nodes += [node("MatMul", f"{name} w{k}", f"m{k}"), node("Add", f"m{k} b{k}", f"a{k}")]
        name = f"a{k}"
        if k < len(widths) - 2:
            nodes.append(node(curve, name, f"h{k}"))
            name = f"h{k}"
    nodes.append(node("Identity", name))
    norms = {f"w{k}": norms_of(weights[f"w{k}"]) for k in range(len(widths) - 1)}
    return make_model(nodes, {"x": (1, widths[0])}, weights, opset=20), norms


def steepest(program: Program, size: int, norm: Norm, seed: int) -> float:
    """The largest norm of a dense Jacobian seen at many points, and around the best of them."""
    order = {"l2": 2, "l1": 1, "linf": np.inf}[norm]
    rng = np.random.default_rng(seed)

    def gain(x: np.ndarray) -> float:
        tape = program.at(x)
        return float(np.linalg.norm(np.stack([tape.back(u) for u in np.eye(tape.value.size)]), order))

    points = [(gain(x), x) for scale in (0.1, 1.0, 4.0) for x in scale * rng.standard_normal((20, size))]
    best, at = max(points, key=lambda point: point[0])
    for step in np.geomspace(1.0, 0.01, 100):
        other = at + step * rng.standard_normal(size)
        best, at = max([(best, at), (gain(other), other)], key=lambda point: point[0])
    return best


@pytest.mark.parametrize("curve", ["Relu", "Tanh", "Gelu"])
def test_small_networks_are_seen_up_to_their_steepest_place(curve: str, tmp_path: Path) -> None:
    for number, norm in enumerate(NORMS):
        model, norms = dense((12, 24, 24, 5), curve, number)
        found = sought(model, tmp_path, norm)
        assert found["found"] == "ascent by gradients"
        program = program_of(model, {"x": np.zeros((1, 12))})
        assert found["lower"] > 0.95 * steepest(program, 12, norm, number)
        assert found["lower"] <= composed(model, norm, norms).bound.upper


def image_network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes, name, weights = [node("Conv", "x k", "c", pads=[1, 1, 1, 1]), node("Relu", "c", "r0")], "r0", {}
    weights["k"] = rng.standard_normal((12, 3, 3, 3)) / 5
    for block in range(3):
        weights |= {f"{n}{block}": rng.standard_normal((12, 12, 3, 3)) / 10 for n in "uv"}
        nodes += [
            node("Conv", f"{name} u{block}", f"p{block}", pads=[1, 1, 1, 1]), node("Relu", f"p{block}", f"q{block}"),
            node("Conv", f"q{block} v{block}", f"s{block}", pads=[1, 1, 1, 1]), node("Add", f"s{block} {name}", f"t{block}"),
            node("Relu", f"t{block}", f"r{block + 1}"),
        ]  # fmt: skip
        name = f"r{block + 1}"
    nodes += [node("GlobalAveragePool", name, "g"), node("Flatten", "g", "f"), node("MatMul", "f w")]
    weights["w"] = rng.standard_normal((12, 10)) / 3
    return make_model(nodes, {"x": (1, 3, 16, 16)}, weights, dtype="float32")


def test_a_deep_image_network_is_seen_steeper_than_by_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without torch; in a box both pairs stay in it."""
    model = image_network()
    found = sought(model, tmp_path, evaluations=1500)
    box = sought(model, tmp_path, evaluations=600, box=[0.0, 1.0])
    assert found["found"] == box["found"] == "ascent by gradients" and "torch" in found["how"]
    monkeypatch.setitem(sys.modules, "torch", None)
    plain = sought(model, tmp_path, evaluations=1500)
    assert plain["found"] == "ascent by values (no gradients: torch is not installed)"
    assert "reference" in plain["how"] and found["lower"] > 1.5 * plain["lower"] > 0.0
    assert box["points"].min() >= 0.0 and box["points"].max() <= 1.0 and box["lower"] > 0.0


def test_a_graph_without_a_row_is_searched_by_values(tmp_path: Path) -> None:
    weights = {"w": np.eye(4), "t": np.array([1, 4])}
    nodes = [node("Tanh", "x", "h"), node("Det", "h", "d"), node("MatMul", "h w", "m"), node("Add", "m d")]
    model = make_model(nodes, {"x": (4, 4)}, weights, dtype="float32")
    with pytest.raises(NoGradient, match="Det is not"):
        program_of(model, {"x": np.eye(4)})
    found = sought(model, tmp_path, evaluations=600)
    assert found["lower"] > 1.0 and "no gradients: Det is not differentiated" in found["found"]


def test_the_climb_repeats_itself(tmp_path: Path) -> None:
    first, second = (sought(image_network(), tmp_path, evaluations=300) for _ in range(2))
    assert first["lower"] == second["lower"] and np.array_equal(first["points"], second["points"])
