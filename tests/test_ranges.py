"""Ranges: every interval holds what onnxruntime computes, and what rests on them is sound and tight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import (
    composed,
    fold,
    function_of,
    gain,
    jacobian,
    make_model,
    norms_of,
    random_dag,
    read,
    session_of,
    size,
    stated,
)
from onnx import helper
from op_cases import CURVES, LINEAR, OTHERS, RANGED, RESIZED, Case

import snaudit
from snaudit import lipschitz, ranges
from snaudit.images import affine
from snaudit.bound import NORMS, at_most
from snaudit.errors import UsageError
from snaudit.ranges import Range
from snaudit.report import REPORTS, View
from snaudit.rounding import SAFE
from snaudit.walk import Walk

RNG = np.random.default_rng(11)
W = RNG.standard_normal((4, 4))


def node(op: str, inputs: str, outputs: str = "y", domain: str = "", **attributes: Any) -> onnx.NodeProto:
    names = ["" if name == "-" else name for name in inputs.split()]
    outs = outputs.split()
    return helper.make_node(op, names, outs, name=f"at {outs[0]}", domain=domain, **attributes)


def walked(model: onnx.ModelProto, norms: Mapping[str, Any], box: Mapping[str, tuple[Any, Any]]) -> dict[str, Range]:
    """The range of every value of a model, by name."""
    graph = read(model)
    made = {o.name: o for n in graph.graph for o in n.outputs}
    operators = {made[name]: at_most(table["l2"], "given") for name, table in norms.items()}
    walk = Walk(graph, "l2", operators, {}, {}, fold, frozenset(graph.graph.inputs))
    walk.ranges.update({v: stated(box)[v.name] for v in graph.graph.inputs if v.name in box})
    for each in lipschitz._order(walk, graph.graph.outputs):
        lipschitz._visit(walk, each)
    return {value.name: one for value, one in walk.ranges.items() if isinstance(value, ir.Value)}


def everything(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all that its nodes make as outputs."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    shown = {output.name for output in whole.graph.output}
    for each in whole.graph.node:
        whole.graph.output.extend(onnx.ValueInfoProto(name=o) for o in each.output if o and o not in shown)
    return whole


def hold(model: onnx.ModelProto, norms: Mapping[str, Any], box: Mapping[str, tuple[Any, Any]], rng: Any) -> int:
    """Check that all values lie in their ranges for random inputs in the box; how many had a finite one."""
    found = walked(model, norms, box)
    session = session_of(everything(model))
    names = [output.name for output in session.get_outputs()]
    rounding = 1e-6 if all("double" in i.type for i in session.get_inputs()) else 1e-4
    finite = 0
    for trial in range(24):
        feed = {}
        for each in session.get_inputs():
            low, high = (np.broadcast_to(end, each.shape) for end in box[each.name])
            part = rng.random(each.shape) if trial % 3 else rng.integers(0, 2, each.shape)
            feed[each.name] = (low + (high - low) * part).astype(np.float64 if rounding == 1e-6 else np.float32)
        for name, array in zip(names, session.run(None, feed), strict=True):
            one = found.get(name)
            if one is None or array.dtype.kind != "f":
                continue
            array = array.astype(np.float64)
            slack = rounding * (1.0 + np.abs(array))
            assert np.broadcast_shapes(one.low.shape, array.shape) == array.shape, name
            assert (one.low <= array + slack).all() and (array - slack <= one.high).all(), (name, one, array)
            for most, order in ((one.rows, 2), (one.sums, 1)):
                if most is not None and array.ndim >= -most[0]:
                    norm = np.linalg.norm(array, order, axis=most[0])
                    assert (norm <= most[1] * (1 + rounding) + rounding).all(), (name, most)
            finite += one.bounded
    return finite


@pytest.mark.parametrize("one", RANGED, ids=lambda one: one.name)
def test_a_slope_on_an_interval_is_the_steepest_there(one: Case) -> None:
    assert one.box is not None
    function, n = function_of(one.model() if _has(one) else replace(one, single=True).model())
    single = one.single or not _has(one)
    x = np.linspace(*one.box, n)
    steepest = np.abs(np.diff(function(x)) / np.diff(x)).max()
    for norm in NORMS:
        found = composed((replace(one, single=single)).model(), norm, box={"x": one.box})
        assert not found.gaps
        assert steepest <= found.bound.upper * (1 + (2e-3 if single else 1e-9))
        assert found.bound.upper <= 1.01 * steepest + 1e-12
    rests = found.assumptions
    assert rests in ((), ("box of x",))


def _has(one: Case) -> bool:
    """Whether onnxruntime has the op in float64."""
    try:
        function_of(one.model())
    except Exception as error:
        assert type(error).__name__ in ("NotImplemented", "InvalidGraph"), error
        return False
    return True


@pytest.mark.parametrize(
    "one", [c for c in (*CURVES, *LINEAR, *OTHERS, *RESIZED, *RANGED)], ids=lambda one: one.name
)
def test_each_op_keeps_its_image(one: Case) -> None:
    one = one if one.single or _has(one) else replace(one, single=True)
    low, high = one.box or (-1.0, 2.0)
    rng = np.random.default_rng(3)
    hold(one.model(), {}, {"x": (low, high)}, rng)
    if one.box is None:
        small = rng.uniform(-1, 1, one.shape)
        hold(one.model(), {}, {"x": (small - 0.1, small + 0.2)}, rng)


@pytest.mark.parametrize("seed", range(40))
def test_values_of_random_graphs_lie_in_their_ranges(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, norms = random_dag(300 + seed, linear=bool(seed % 3 == 0))
    centre = {i.name: rng.uniform(-2, 2) for i in model.graph.input}
    box = {name: (at - rng.uniform(0, 1), at + rng.uniform(0, 2)) for name, at in centre.items()}
    assert hold(model, norms, box, rng) >= 48, "ranges that say nothing prove nothing"
    function, _ = function_of(model)
    shapes = [(i.name, [d.dim_value for d in i.type.tensor_type.shape.dim]) for i in model.graph.input]
    for norm in NORMS:
        plain, bounded = composed(model, norm, norms), composed(model, norm, norms, box=box)
        assert bounded.bound.upper <= plain.bound.upper * (1 + 1e-12)
        for _ in range(8):
            x, y = (np.concatenate([rng.uniform(*box[n], s).ravel() for n, s in shapes]) for _ in range(2))
            y = x + (y - x) * rng.choice([1e-3, 1.0])
            assert size(function(x) - function(y), norm) <= bounded.bound.upper * size(x - y, norm) * (1 + 1e-6)


def image_net(seed: int) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Convolutions with padding, strides, groups and transposed ones, pools, norms, resizing, a gate."""
    rng = np.random.default_rng(seed)
    weights = {
        "k1": rng.standard_normal((4, 2, 3, 3)), "b1": rng.standard_normal(4), "k2": rng.standard_normal((4, 2, 2, 2)),
        "k3": rng.standard_normal((4, 3, 3, 2)), "b3": rng.standard_normal(3), "g": rng.standard_normal(3),
        "v": rng.uniform(0.2, 2, 3), "w": rng.standard_normal((27, 5)), "c": rng.standard_normal(5),
        "s": np.array([1, 1, 2, 2], np.float32), "r": np.array([], np.float32), "to": np.array([1, 3, 6, 5]),
    }  # fmt: skip
    nodes = [
        node("Conv", "x k1 b1", "a", pads=[1, 0, 1, 1], strides=[1, 2]),
        node("Tanh", "a", "t"),
        node("Conv", "t k2", "d", group=2),
        node("ConvTranspose", "d k3 b3", "e", strides=[2, 1], pads=[0, 1, 1, 0]),
        node("BatchNormalization", "e g g v v", "n"),
        node("GlobalAveragePool", "n", "p"),
        node("Sigmoid", "p", "q"),
        node("Mul", "n q", "m"),
        node("Resize", "m r - to", "u", mode="cubic"),
        node("MaxPool", "u", "z", kernel_shape=[2, 2], strides=[2, 2]),
        node("AveragePool", "u", "o", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 0, 1], count_include_pad=1),
        node("Neg", "z", "_p"),
        node("Flatten", "o", "f"),
        node("Gemm", "f w c", "y", alpha=0.5, beta=-2.0),
    ]
    return make_model(nodes, {"x": [1, 2, 4, 5]}, weights, dtype="float32"), {}


@pytest.mark.parametrize("seed", range(4))
def test_values_of_an_image_network_lie_in_their_ranges(seed: int) -> None:
    model, norms = image_net(seed)
    model.graph.output.append(onnx.ValueInfoProto(name="_p"))
    rng = np.random.default_rng(seed)
    assert hold(model, norms, {"x": (-0.5, 1.5)}, rng) == 24 * 14
    small = rng.standard_normal((1, 2, 4, 5))
    assert hold(model, norms, {"x": (small, small + 0.3)}, rng) == 24 * 14


def test_a_convolution_s_interval_is_attained() -> None:
    """Without padding, with the corner of the box that its kernel asks for."""
    kernel = RNG.standard_normal((2, 3, 2, 2)).astype(np.float32)
    model = make_model([node("Conv", "x k b")], {"x": [1, 3, 2, 2]}, {"k": kernel, "b": np.array([1.0, -2.0])}, dtype="float32")
    one = walked(model, {}, {"x": (-1.0, 3.0)})["y"]
    function, _ = function_of(model)
    for channel in (0, 1):
        top = function(np.where(kernel[channel] > 0, 3.0, -1.0).ravel())[channel]
        least = function(np.where(kernel[channel] > 0, -1.0, 3.0).ravel())[channel]
        assert one.high.ravel()[channel] == pytest.approx(top, rel=1e-6)
        assert one.low.ravel()[channel] == pytest.approx(least, rel=1e-6)


SCALARS = {"two": np.array(2.0), "one": np.array(1.0), "eps": np.array(1e-2), "axis": np.array([1])}
PRODUCTS: dict[str, tuple[list[onnx.NodeProto], dict[str, Sequence[int]], tuple[float, float], float]] = {
    "mul": ([node("Mul", "x z")], {"x": [3], "z": [3]}, (0.5, 2.0), 1.01),
    "square": ([node("Mul", "x x")], {"x": [3]}, (-1.0, 2.0), 1.01),
    "difference of squares": (
        [node("Pow", "x two", "a"), node("Mul", "x x", "b"), node("Sub", "a b", "c"), node("Add", "c x")],
        {"x": [3]}, (-1.0, 2.0), 9.5,
    ),
    "gate": (
        [node("ReduceMean", "x", "p", axes=[2], keepdims=1), node("Sigmoid", "p", "g"), node("Mul", "x g")],
        {"x": [1, 2, 4]}, (0.0, 1.0), 1.6,
    ),
    "gated": ([node("Sigmoid", "z", "g"), node("Tanh", "x", "t"), node("Mul", "t g")], {"x": [4], "z": [4]},
              (-2.0, 2.0), 1.5),
    "quotient": ([node("Div", "x z")], {"x": [3], "z": [3]}, (0.5, 2.0), 1.01),
    "reciprocal": ([node("Div", "one x")], {"x": [3]}, (0.5, 2.0), 1.01),
    "softmax in parts": (
        [node("Exp", "x", "e"), node("ReduceSum", "e axis", "s"), node("Div", "e s")], {"x": [2, 3]}, (-0.5, 0.5), 9.0
    ),
    "norm in parts": (
        [node("ReduceMean", "x", "m", axes=[1]), node("Sub", "x m", "d"), node("Abs", "d", "a"),
         node("ReduceMean", "a", "v", axes=[1]), node("Add", "v eps", "e"), node("Sqrt", "e", "s"), node("Div", "d s")],
        {"x": [2, 3]}, (-0.5, 0.5), 500.0,
    ),
    "bilinear": ([node("MatMul", "x z")], {"x": [2, 3], "z": [3, 4]}, (-1.0, 2.0), 1.02),
    "bilinear batch": ([node("MatMul", "x z")], {"x": [2, 2, 3], "z": [3, 4]}, (0.0, 1.0), 1.02),
    "attention": (
        [node("Transpose", "x", "k", perm=[0, 2, 1]), node("MatMul", "x k", "s"), node("Softmax", "s", "p", axis=-1),
         node("MatMul", "p x")],
        {"x": [1, 3, 4]}, (-0.5, 0.5), 9.0,
    ),
    "attention after a norm": (
        [node("LayerNormalization", "x gamma", "n", epsilon=0.5), node("Transpose", "n", "k", perm=[0, 2, 1]),
         node("MatMul", "n k", "s"), node("Softmax", "s", "p", axis=-1), node("MatMul", "p n")],
        {"x": [1, 3, 4]}, (-0.5, 0.5), 80.0,
    ),
    "glu after a norm": (
        [node("LayerNormalization", "x gamma", "n", epsilon=0.5), node("Split", "n", "a b", axis=-1), node("Sigmoid", "b", "c"),
         node("Mul", "a c")],
        {"x": [3, 4]}, (-0.5, 0.5), 4.0,
    ),
    "sum of squares": ([node("ReduceSumSquare", "x", axes=[1])], {"x": [2, 3]}, (-1.0, 2.0), 1.01),
    "log of a sum": ([node("ReduceLogSum", "x", axes=[1])], {"x": [2, 3]}, (0.5, 2.0), 1.01),
}  # fmt: skip


FREE = ("attention after a norm", "glu after a norm", "gated")
"""Bounded by what their ops are, whatever the input."""


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_bounded_on_its_box(name: str) -> None:
    nodes, inputs, box, loose = PRODUCTS[name]
    single = any(n.op_type in ("ReduceSumSquare", "ReduceLogSum") for n in nodes)
    model = make_model(nodes, inputs, SCALARS | {"gamma": np.array([1.0, -2.0, 0.5, 1.5])}, dtype="float32" if single else "float64")
    function, n = function_of(model)
    rng = np.random.default_rng(2)
    boxes = dict.fromkeys(inputs, box)
    for norm in NORMS:
        found = composed(model, norm, box=boxes)
        assert not found.gaps and {f"box of {each}" for each in inputs} <= {*found.assumptions} or name in FREE
        inner = [np.full(n, box[0] + 1e-3), np.full(n, box[1] - 1e-3), np.full(n, sum(box) / 2)]
        inner += [rng.uniform(*box, n) for _ in range(12)]
        inner += [np.where(rng.random(n) < 0.5, box[0] + 1e-3, box[1] - 1e-3) for _ in range(24)]
        step, rounding = (1e-3, 5e-3) if single else (1e-6, 1e-6)
        truth = max(gain(jacobian(function, x, step), norm) for x in inner)
        assert truth <= found.bound.upper * (1 + rounding), norm
        assert found.bound.upper <= loose * truth, (norm, found.bound.upper, truth)
        for _ in range(20):
            x, y = rng.uniform(*box, (2, n))
            assert size(function(x) - function(y), norm) <= found.bound.upper * size(x - y, norm) * (1 + rounding)
    assert not composed(model).bound.bounded or name in FREE


@pytest.mark.parametrize(
    ("nodes", "box", "code"),
    [
        ([node("Log", "x")], (-1.0, 1.0), "needs-range"),
        ([node("Sqrt", "x")], (0.0, 1.0), "needs-range"),
        ([node("Reciprocal", "x")], (-1.0, 1.0), "needs-range"),
        ([node("Div", "one x")], (0.0, 1.0), "needs-range"),
        ([node("Tan", "x")], (0.0, 2.0), "needs-range"),
        ([node("Asin", "x")], (0.0, 1.0), "needs-range"),
        ([node("Pow", "x half")], (-1.0, 1.0), "needs-range"),
        ([node("Pow", "x minus")], (-1.0, 1.0), "needs-range"),
        ([node("Mystery", "x", "a", "own"), node("Mul", "a x")], (0.0, 1.0), "product"),
        ([node("ReduceLogSum", "x")], (-1.0, 1.0), "needs-range"),
        ([node("Round", "x", "a"), node("Mul", "a x")], (0.0, 1.0), "step"),
        ([node("Greater", "x one", "a"), node("Where", "a x one")], (0.0, 0.5), "step"),
    ],
)
def test_a_pole_or_a_step_in_the_box_has_no_constant(nodes: list, box: tuple[float, float], code: str) -> None:
    weights = SCALARS | {"half": np.array(0.5), "minus": np.array(-1.0)}
    found = composed(make_model(nodes, {"x": [3]}, weights), box={"x": box})
    assert not found.bound.bounded and code in {gap.code for gap in found.gaps}


def test_a_dead_relu_and_a_saturated_clip_pass_nothing_on() -> None:
    for nodes in ([node("Relu", "x")], [node("Clip", "x one two")]):
        model = make_model(nodes, {"x": [3]}, SCALARS)
        assert composed(model, box={"x": (-2.0, -1.0)}).bound.upper == 0.0
        assert composed(model).bound.upper == 1.0


@pytest.mark.parametrize("opset", [11, 13])
def test_the_logarithm_of_a_softmax_is_its_own_function(opset: int) -> None:
    nodes = [node("Softmax", "x", "p", axis=1), node("Log", "p")]
    model = make_model(nodes, {"x": [2, 4]}, opset=opset)
    function, n = function_of(model)
    points = [np.tile([9.0, 0, 0, 0], 2) * 2, RNG.standard_normal(n)]
    for norm in NORMS:
        found = composed(model, norm)
        truth = max(gain(jacobian(function, x, 1e-6), norm) for x in points)
        assert not found.gaps and truth <= found.bound.upper * (1 + 1e-6) and found.bound.upper <= 1.35 * truth
    dynamic = make_model(nodes, {"x": [2, None]}, opset=opset)
    assert composed(dynamic, "linf").bound.upper == 2.0 and not composed(dynamic, "l2").bound.bounded


def test_a_held_input_over_a_varying_one_has_no_constant() -> None:
    nodes = [node("Cast", "ids", "c", to=11), node("Div", "c x")]
    model = make_model(nodes, {"ids": [3], "x": [3]}, kinds={"ids": "int64"})
    found = composed(model, box={"x": (1.0, 2.0)})
    assert [gap.code for gap in found.gaps] == ["unknown-constant"] and not found.bound.bounded


def remedied(folder: Path, model: onnx.ModelProto, **asked: Any) -> tuple[str, str]:
    """(reason and remedy of the only gap of a model behind a layer that does nothing, its code)."""
    width = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    for one in model.graph.node:
        for index, name in enumerate(one.input):
            one.input[index] = "layer" if name == "x" else name
    model.graph.node.insert(0, node("MatMul", "x eye", "layer"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(width, dtype=np.float32), "eye"))
    onnx.save(model, folder / "m.onnx")
    (gap,) = snaudit.audit(folder / "m.onnx", witness_seconds=0, **asked).gaps
    return f"{gap.reason}; {gap.remedy}", gap.code


def test_a_factor_that_is_not_known_says_what_would_tell_it(tmp_path: Path) -> None:
    """A held input's box, an integer's value, a size; each remedy leads to a bound."""
    held = make_model([node("Sigmoid", "x", "a"), node("Mul", "a gate")], {"x": (1, 2), "gate": (1, 2)}, dtype="float32")
    text, code = remedied(tmp_path, held, from_input="x")
    assert "--input-range gate=LO,HI" in text and "held fixed" in text and code == "needs-range"
    given = snaudit.audit(tmp_path / "m.onnx", from_input="x", input_range=("gate=-2,1",), witness_seconds=0)
    assert given.network.bound.upper == pytest.approx(0.5)
    cast = [node("Cast", "n", "f", to=onnx.TensorProto.FLOAT), node("Mul", "x f")]
    counted = make_model(cast, {"x": (1, 2), "n": ()}, dtype="float32", kinds={"n": "int64"})
    text, code = remedied(tmp_path, counted)
    assert "integer input n" in text and "--input-size n=N" in text and code == "unknown-constant"
    assert snaudit.audit(tmp_path / "m.onnx", input_size=("n=3",)).network.bound.upper == pytest.approx(3.0)
    nodes = [node("Shape", "x", "s"), node("Cast", "s", "c", to=onnx.TensorProto.FLOAT), node("ReduceMax", "c", "f", keepdims=0)]
    sized = make_model([*nodes, node("Mul", "x f")], {"x": ("n", 2)}, dtype="float32")
    text, code = remedied(tmp_path, sized)
    assert "size of x" in text and "--input-size" in text and code == "unknown-constant"
    assert snaudit.audit(tmp_path / "m.onnx", input_size=("n=7",)).network.bound.upper == pytest.approx(7.0)


def test_an_op_without_a_rule_is_not_always_a_pool(tmp_path: Path) -> None:
    """What can stand for a transform is a product with stored numbers, not pooling."""
    model = make_model([node("DFT", "x", axis=1)], {"x": (1, 2, 1)}, dtype="float32")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(1, dtype=np.float32), "one"))
    model.graph.node.append(node("MatMul", "y one", "z"))
    model.graph.output[0].name = "z"
    onnx.save(model, tmp_path / "m.onnx")
    (gap,) = snaudit.audit(tmp_path / "m.onnx", witness_seconds=0).gaps
    assert gap.op == "DFT" and "cosines and sines" in gap.remedy and "pooling" not in gap.remedy


def test_what_follows_an_unknown_factor_keeps_its_shapes(tmp_path: Path) -> None:
    """The shape behind such a gap follows from shapes: a Reshape by it is no second gap."""
    nodes = [
        node("Shape", "x", "s"), node("Cast", "s", "c", to=onnx.TensorProto.FLOAT), node("ReduceMax", "c", "f", keepdims=0),
        node("Mul", "x f", "m"), node("Shape", "m", "k"), node("Sigmoid", "m", "g"), node("Reshape", "g k"),
    ]  # fmt: skip
    text, code = remedied(tmp_path, make_model(nodes, {"x": ("n", 3)}, dtype="float32"))
    assert code == "unknown-constant" and "step" not in text


def test_an_embedding_lies_in_its_table() -> None:
    table = RNG.standard_normal((7, 4))
    nodes = [node("Gather", "table ids", "e"), node("MatMul", "e w", "q"), node("Mul", "q e")]
    model = make_model(nodes, {"ids": [3]}, {"table": table, "w": W}, kinds={"ids": "int64"})
    found = composed(model, "l2", {"q": norms_of(W)})
    most = np.abs(table).max() * np.linalg.norm(W, 2) + np.linalg.norm(table, axis=1).max() * np.linalg.norm(W, axis=0).max()
    assert found.bound.upper <= most * 1.02
    assert found.assumptions[-1] == "the embedding at e stays within the range of its table"


def test_rounding_is_outward() -> None:
    rng = np.random.default_rng(0)
    from fractions import Fraction

    for _ in range(300):
        a, b = rng.standard_normal(2) * 10.0 ** rng.integers(-8, 8, 2)
        x, y = ranges.enclosing(a, a), ranges.enclosing(b, b)
        for one, exact in (
            (ranges.added(x, y), Fraction(a) + Fraction(b)),
            (ranges.multiplied(x, y), Fraction(a) * Fraction(b)),
            (ranges.inverted(x), 1 / Fraction(a)),
            (ranges.squared(x), Fraction(a) ** 2),
        ):
            assert Fraction(float(one.low)) <= exact <= Fraction(float(one.high))
            assert one.high - one.low <= 4 * np.spacing(abs(float(exact)))
    zero = ranges.multiplied(ranges.enclosing(0.0, 0.0), ranges.UNKNOWN)
    assert zero.low == zero.high == 0.0
    assert not ranges.inverted(ranges.enclosing(-1.0, 1.0)).known
    assert not ranges.of_constant(np.array([np.nan])).known
    mask = ranges.of_constant(np.array([0.0, -np.inf]))
    assert mask.low[0] == mask.high[0] == 0.0 and np.isinf(mask.low[1]) and np.isinf(mask.high[1])
    large = RNG.standard_normal((300, 400))
    whole = ranges.of_constant(large)
    assert whole.low == large.min() and whole.high == large.max()
    assert whole.rows[1] == pytest.approx(np.linalg.norm(large, axis=1).max(), rel=0.02)


def test_gaps_are_passed_by_partial_bounds() -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("LpNormalization", "a", "b"),
        node("MatMul", "b w", "c"),
        node("Exp", "c", "d"),
        node("MatMul", "d w", "e"),
        node("Add", "e x", "y"),
    ]
    norms = dict.fromkeys(("a", "c", "e"), norms_of(W))
    found = composed(make_model(nodes, {"x": [2, 4]}, {"w": W}), "l2", norms)
    top = np.linalg.norm(W, 2)
    shown = {(part.start, part.end): part.bound.upper for part in found.partials}
    assert shown.keys() == {(("x",), "at b"), (("at b",), "at d"), (("at d", "x"), "y")}
    expected = [top, top, np.hypot(top, 1.0)]
    assert list(shown.values()) == pytest.approx(expected, rel=1e-9)
    assert composed(make_model(nodes[:1], {"x": [2, 4]}, {"w": W}, ["a"]), "l2", norms).partials == ()


def saved(tmp_path: Path, nodes: list[onnx.NodeProto], inputs: Mapping[str, Sequence[int]]) -> Path:
    model = make_model(nodes, inputs, {"w": W, "one": np.array(1.0)}, dtype="float32")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_box_is_stated_in_three_ways(tmp_path: Path) -> None:
    path = saved(tmp_path, [node("MatMul", "x w", "a"), node("Mul", "a z")], {"x": [2, 4], "z": [2, 4]})
    whole = snaudit.audit(path, input_range=(0, 1))
    assert whole.network.bound.bounded and not snaudit.audit(path).network.bound.bounded
    assert "the input z lies in [0, 1]: the bound holds on that box only" in whole.network.assumptions
    assert snaudit.audit(path, input_range=("0,1",)).network.bound == whole.network.bound
    named = snaudit.audit(path, input_range=("x=0,1", "z=-1,0"))
    assert named.network.bound.upper == pytest.approx(whole.network.bound.upper)
    assert not snaudit.audit(path, input_range=("x=0,1",)).network.bound.bounded
    file = tmp_path / "box.npz"
    np.savez(file, **{"x.lo": np.zeros((2, 4)), "x.hi": np.ones(4)[None], "z.lo": np.array(0.0), "z.hi": np.array(1.0)})
    with pytest.raises(UsageError, match="one shape"):
        snaudit.audit(path, input_range=(str(file),))
    np.savez(file, **{"x.lo": np.zeros((1, 4)), "x.hi": np.ones((1, 4)), "z.lo": np.array(0.0), "z.hi": np.array(1.0)})
    stored = snaudit.audit(path, input_range=(str(file),))
    assert stored.network.bound.upper == pytest.approx(whole.network.bound.upper)
    assert any("box of box.npz" in text for text in stored.network.assumptions)


def test_the_lower_end_stays_in_the_box(tmp_path: Path) -> None:
    """x² is steepest outside: what was seen must lie in the box, or it would refute the bound."""
    path = saved(tmp_path, [node("MatMul", "x w", "a"), node("Mul", "a a")], {"x": [2, 4]})
    file = tmp_path / "box.npz"
    np.savez(file, **{"x.lo": np.full((1, 4), -0.5), "x.hi": np.array([[0.5, 0.4, 0.3, 0.2]])})
    for asked in ((-0.5, 0.25), ("x=-0.5,0.25",), (str(file),)):
        bound = snaudit.audit(path, input_range=asked, witness_seconds=0.5).network.bound
        assert 0.3 * bound.upper <= bound.lower <= bound.upper, asked


@pytest.mark.parametrize(
    "asked", [("1,0",), ("0,inf",), ("nan,1",), ("q=0,1",), ("0,1,2",), ("=0,1",), ("x",), (1, 0), (0.0, float("nan")), 3]
)
def test_what_is_no_box_is_refused(tmp_path: Path, asked: Any) -> None:
    path = saved(tmp_path, [node("MatMul", "x w")], {"x": [2, 4]})
    with pytest.raises(UsageError):
        snaudit.audit(path, input_range=asked)


def test_rows_of_a_product_are_no_shorter_than_they_can_be() -> None:
    """A one-hot row of weights picks a row of the other factor: the claim for rows is met exactly there."""
    shapes = {0: (4, 5), 1: (5, 3)}
    step = SimpleNamespace(shape=shapes.get, output_shape=lambda: (4, 3))
    weights = ranges.enclosing(0.0, 1.0, sums=(-1, 1.0))
    low = np.array([-2.0, 0.5, -1.0])
    found = affine.product(step, weights, ranges.enclosing(low, -low + 1.0), 5)
    longest = float(np.linalg.norm(np.maximum(np.abs(low), np.abs(1.0 - low))))
    assert found.rows is not None and found.rows[0] == -1
    assert longest * SAFE * (1 - 1e-9) <= found.rows[1] <= 1.05 * longest, "with its margin for rounding"


def test_a_range_that_brings_nothing_is_told(tmp_path: Path) -> None:
    def told(*nodes: onnx.NodeProto) -> str:
        onnx.save(make_model(nodes, {"x": (1, 4)}, {"w": W, "b": np.full(4, -100.0)}), tmp_path / "told.onnx")
        report = snaudit.audit(tmp_path / "told.onnx", input_range=("-1,1",))
        return REPORTS["table"].render(report, View())

    nothing, still = "--input-range did not lower the bound: it holds everywhere", "what comes out does not depend on what goes in"
    linear = told(node("MatMul", "x w"))
    assert nothing in linear and still not in linear
    confined = told(node("MatMul", "x w", "h"), node("Exp", "h"))
    assert nothing not in confined and "that box only" in confined and still not in confined
    dead = told(node("MatMul", "x w", "h"), node("Add", "h b", "s"), node("Relu", "s"))
    assert nothing not in dead and still in dead and "at most 0, " in dead
