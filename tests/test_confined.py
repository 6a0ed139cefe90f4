"""Sections on a box: slopes where the entries lie, ranges by affine forms, bounds against ascended Jacobians there."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import fold, function_of, jacobian, make_model, random_dag, read, session_of, stated
from onnx import helper

import snaudit
from snaudit import confined, cuts, lipschitz, local_slopes, patterns, slopes
from snaudit.attributes import attribute
from snaudit.bound import Grade
from snaudit.ranges import enclosing, middle_of

DIFFERENCES = 1e-6
"""Relative error of central differences in float64."""


def node(op: str, inputs: str, output: str = "y", domain: str = "", **attributes) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name=f"at {output}", domain=domain, **attributes)


def network(seed: int, sizes: tuple[int, ...], op: str) -> onnx.ModelProto:
    """A chain with a residual around its second layer."""
    rng = np.random.default_rng(seed)
    nodes, weights = [], {}
    for k in range(len(sizes) - 1):
        weights[f"w{k}"] = rng.standard_normal((sizes[k], sizes[k + 1])) * np.sqrt(2 / sizes[k])
        weights[f"b{k}"] = rng.standard_normal(sizes[k + 1]) * 0.2
        last = k == len(sizes) - 2
        weights |= {"lines": rng.choice([0.2, 1.4, -0.5], sizes[1])} if op == "PRelu" else {}
        nodes.append(node("Gemm", f"{'x' if k == 0 else f'h{k - 1}'} w{k} b{k}", "y" if last else f"z{k}"))
        if not last:
            nodes.append(node(op, f"z{k} lines" if op == "PRelu" else f"z{k}", f"a{k}" if k == 1 else f"h{k}"))
        if k == 1 and not last:
            nodes.append(node("Add", "a1 h0", "h1"))
    return make_model(nodes, {"x": [1, sizes[0]]}, weights, opset=20)


def steepest(model: onnx.ModelProto, low: float, high: float, seed: int, starts: int = 8) -> float:
    """The largest ‖J‖ found inside the box: random points and corners, then hill climbing."""
    function, n = function_of(model)
    rng, best = np.random.default_rng(seed), 0.0
    step = 1e-5 * (high - low)
    inside = partial(np.clip, a_min=low + step, a_max=high - step)

    def size(x: np.ndarray) -> float:
        return float(np.linalg.norm(jacobian(function, x, step), 2))

    for start in range(starts):
        part = rng.random(n) if start % 2 else rng.integers(0, 2, n)
        x = inside(low + (high - low) * part)
        value = size(x)
        for reach in (0.5, 0.2, 0.05):
            for _ in range(6):
                y = inside(x + reach * (high - low) * rng.standard_normal(n))
                new = size(y)
                x, value = (y, new) if new > value else (x, value)
        best = max(best, value)
    return best


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    return path


def bound_on(path: Path, box: tuple[float, float] | None) -> snaudit.findings.NetworkResult:
    return snaudit.audit(path, **({} if box is None else {"input_range": box})).network


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


_erf = np.vectorize(math.erf)
CURVES: dict[str, tuple[dict, Callable[[np.ndarray], np.ndarray]]] = {
    "Relu": ({}, lambda x: np.maximum(x, 0)),
    "LeakyRelu": ({"alpha": 0.25}, lambda x: np.where(x > 0, x, 0.25 * x)),
    "Abs": ({}, np.abs),
    "Tanh": ({}, np.tanh),
    "Sigmoid": ({}, lambda x: 1 / (1 + np.exp(-x))),
    "Erf": ({}, _erf),
    "Softplus": ({}, _softplus),
    "Softsign": ({}, lambda x: x / (1 + np.abs(x))),
    "Atan": ({}, np.arctan),
    "Asinh": ({}, np.arcsinh),
    "Elu": ({"alpha": 2.0}, lambda x: np.where(x > 0, x, 2.0 * np.expm1(x))),
    "Selu": ({"alpha": 1.5, "gamma": 1.25}, lambda x: 1.25 * np.where(x > 0, x, 1.5 * np.expm1(x))),
    "Celu": ({"alpha": 0.5}, lambda x: np.where(x > 0, x, 0.5 * np.expm1(x / 0.5))),
    "Gelu": ({}, lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2)))),
    "Swish": ({"alpha": 2.0}, lambda x: x / (1 + np.exp(-2 * x))),
    "Mish": ({}, lambda x: x * np.tanh(_softplus(x))),
    "HardSwish": ({}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Sin": ({}, np.sin),
}


@pytest.mark.parametrize("op, attributes", [("Elu", {"alpha": -0.5}), ("Selu", {"alpha": -1.5, "gamma": 1.25}),
                                            ("Selu", {"alpha": 1.5, "gamma": -1.25})])  # fmt: skip
def test_functions_that_fall_have_the_slopes_of_the_whole_line(op: str, attributes: dict[str, float]) -> None:
    """A curve knows its slope's size only: of those with odd signs, that is no slope."""
    (made,) = read(make_model([node(op, "x", **attributes)], {"x": [400]}, opset=20)).graph
    own = partial(attribute, made)
    whole = tuple(np.array([end]) for end in slopes.interval("", op, own))
    function, _ = function_of(make_model([node(op, "x", **attributes)], {"x": [400]}, opset=20, dtype="float32"))
    for low, high in ((-3.0, -1.0), (-1.0, 0.5), (0.5, 2.0)):
        least, most = local_slopes.curved("", op, own, whole, np.array([low]), np.array([high]))
        x = np.linspace(low, high, 400)
        secants = np.diff(function(x)) / np.diff(x)
        assert (secants >= least - 1e-3).all() and (secants <= most + 1e-3).all(), (low, high)


@pytest.mark.parametrize("op", CURVES)
def test_secants_have_slopes_between_those_of_the_interval(op: str) -> None:
    """And nearly all of them occur."""
    attributes, function = CURVES[op]
    (made,) = read(make_model([node(op, "x", **attributes)], {"x": [4]}, opset=24)).graph
    own = partial(attribute, made)
    whole = tuple(np.array([end]) for end in slopes.interval("", op, own))
    rng = np.random.default_rng(3)
    for low, high in ((-4.0, -3.0), (-3.0, -1.0), (-1.0, 0.0), (-1.0, 0.01), (-0.01, 1.0), (-0.5, 0.2), (0.0, 0.3), (0.5, 2.5), (1.0, 4.0), (-6.0, 6.0)):
        ends = np.array([low]), np.array([high])
        knee = local_slopes.knee_of(op, own)
        least, most = local_slopes.bent(*knee, *ends) if knee else local_slopes.curved("", op, own, whole, *ends)
        x = np.concatenate([np.linspace(low, high, 300), rng.uniform(low, high, 100)])
        x = np.sort(x)[np.diff(np.sort(x), append=np.inf) > 1e-5]
        secants = np.diff(function(x)) / np.diff(x)
        assert (secants >= least - 1e-9).all() and (secants <= most + 1e-9).all(), (low, high)
        assert least >= whole[0] and most <= whole[1]
        loose = ("Sin", "HardSwish", *(("Elu", "Selu") if low == 0.0 else ()))  # the whole line's, the knee's both
        if op not in loose:
            room = 0.05 * float((whole[1] - whole[0])[0])
            assert secants.min() <= least + room and secants.max() >= most - room, (low, high)


def placed(model: onnx.ModelProto, low: float, high: float) -> tuple[dict[str, tuple], list[cuts.Cut]]:
    """What the affine forms add to the ranges of values, by name, and the sections."""
    graph = read(model)
    box = stated({v.name: (low, high) for v in graph.graph.inputs})
    found = lipschitz.compose(graph, "l2", {}, {}, (), fold, box)
    points = {name: middle_of(one) for name, one in box.items()}
    at = lipschitz.compose(graph, "linf", {}, {}, (), fold, points).ranges
    one = confined.Box(lambda v: found.ranges.get(v, enclosing(-np.inf, np.inf)), at.__getitem__)
    sections = list(cuts.find_sections(graph, box=one))
    return {v.name: (found.ranges[v], closer) for v, closer in one.narrower.items()}, sections


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("op", ["Relu", "Tanh", "Abs", "Sigmoid"])
def test_values_lie_in_the_ranges_of_affine_forms(op: str, seed: int) -> None:
    model = network(seed, (6, 12, 12, 12, 12, 3), op)
    low, high = 0.3, 0.3 + (0.02, 0.1, 0.4)[seed % 3]
    found, _ = placed(model, low, high)
    assert found
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in found)
    session = session_of(shown)
    rng = np.random.default_rng(seed)
    seen = []
    for trial in range(200):
        part = rng.random((1, 6)) if trial % 3 == 0 else rng.integers(0, 2, (1, 6))
        seen.append(session.run(None, {"x": low + (high - low) * part}))
    for index, (before, after) in enumerate(found.values()):
        values = np.concatenate([each[index] for each in seen])
        assert (after.low <= values + 1e-12).all() and (values - 1e-12 <= after.high).all()
        assert (after.low >= before.low).all() and (after.high <= before.high).all()
    last = list(found.values())[-1]  # as wide as it must be, within a factor: an interval's would be many times that
    width = float(np.mean(last[1].high - last[1].low)), float(np.mean(values.max(axis=0) - values.min(axis=0)))
    assert width[0] <= 3.5 * width[1] if high - low < 0.05 else width[0] < np.mean(last[0].high - last[0].low)


@pytest.mark.parametrize("radius", [0.5, 0.05, 0.002])
@pytest.mark.parametrize("op", ["Relu", "Tanh", "Abs"])
def test_a_network_on_a_box_is_between_its_jacobians_and_the_bound_everywhere(op: str, radius: float, tmp_path: Path) -> None:
    model = network(5, (5, 10, 10, 10, 4), op)
    path = saved(model, tmp_path)
    truth = steepest(model, 0.2 - radius, 0.2 + radius, 1)
    found = bound_on(path, (0.2 - radius, 0.2 + radius))
    assert found.bound.grade is Grade.PROVED
    assert truth <= found.bound.upper * (1 + DIFFERENCES)
    assert found.bound.upper <= bound_on(path, None).bound.upper * (1 + 1e-6)
    if radius < 0.01:
        assert found.bound.upper <= 1.1 * truth
        assert any("the bound holds on that box only" in text for text in found.assumptions)


@pytest.mark.parametrize("seed", range(10))
def test_random_graphs_on_boxes_are_not_below_their_jacobians(seed: int, tmp_path: Path) -> None:
    model, _ = random_dag(700 + seed, linear=False, depth=12)
    radius = (0.02, 0.2, 1.0)[seed % 3]
    truth = steepest(model, -radius, radius, seed, 4)
    found = bound_on(saved(model, tmp_path), (-radius, radius))
    assert truth <= found.bound.upper * (1 + 1e-5)
    assert min(m.bound.upper for m in found.methods) >= found.bound.upper


LIMITS = {
    "Clip": [node("Clip", "a zero six", "h")],
    "Max": [node("Max", "low a", "h")],
    "Min": [node("Min", "a low", "h")],
    "PRelu": [node("PRelu", "a slopes", "h")],
}


@pytest.mark.parametrize("op", LIMITS)
def test_limits_that_are_never_reached_are_no_functions(op: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    weights = {
        "w": rng.standard_normal((4, 6)), "b": np.linspace(-3.0, 8.0, 6), "v": rng.standard_normal((6, 3)),
        "zero": np.array(0.0), "six": np.array(6.0), "low": np.linspace(-1.0, 1.0, 6), "slopes": np.linspace(-0.5, 2.0, 6),
    }  # fmt: skip
    nodes = [node("Gemm", "x w b", "a"), *LIMITS[op], node("MatMul", "h v")]
    used = {i for n in nodes for i in n.input}
    model = make_model(nodes, {"x": [1, 4]}, {k: v for k, v in weights.items() if k in used})
    truth = steepest(model, -0.01, 0.01, 3)
    found = bound_on(saved(model, tmp_path), (-0.01, 0.01)).bound
    assert truth <= found.upper * (1 + DIFFERENCES) and found.upper <= 1.05 * truth
    assert bound_on(saved(model, tmp_path), None).bound.upper > 1.1 * found.upper


def test_a_box_that_hardly_narrows_slopes_costs_no_tightness(tmp_path: Path) -> None:
    """LipLT's bound is less with all slopes in [0, 1] here than where some units are linear."""
    path = saved(network(1, (32, 48, 48, 48, 48, 4), "Relu"), tmp_path)
    free, boxed = bound_on(path, None), bound_on(path, (0.3, 0.7))
    for one, other in zip(boxed.methods, free.methods, strict=True):
        assert one.name == other.name and one.bound.upper <= other.bound.upper * (1 + 1e-6)
    assert boxed.bound.upper < 0.99 * free.bound.upper


def test_an_input_that_is_held_fixed_is_at_no_centre(tmp_path: Path) -> None:
    """z shifts what the functions see by far more than x does; no slope may rest on z being in the middle."""
    weights = {"w": np.eye(3), "v": np.eye(3) * 2.0, "u": np.eye(3)}
    nodes = [node("MatMul", "x w", "a"), node("Add", "a z", "b"), node("Relu", "b", "c"), node("MatMul", "c v", "d"),
             node("Sub", "d one", "e"), node("Relu", "e", "f"), node("MatMul", "f u")]  # fmt: skip
    model = make_model(nodes, {"x": [1, 3], "z": [1, 3]}, weights | {"one": np.array(1.0)})
    path = saved(model, tmp_path)
    found = snaudit.audit(path, input_range=("x=-1,-0.9", "z=-5,5"), from_input="x").network.bound
    assert 2.0 <= found.upper <= 2.0 * (1 + 1e-6)
    nearly = snaudit.audit(path, input_range=("x=-1,-0.9", "z=-5,0.5"), from_input="x").network.bound
    assert nearly.upper < 1e-9


PARTS = {
    "SiLU": [node("Sigmoid", "x", "b"), node("Mul", "x b", "y")],
    "sharp SiLU": [node("Mul", "x three", "t"), node("Sigmoid", "t", "b"), node("Mul", "x b", "y")],
    "negative SiLU": [node("Sigmoid", "x", "b"), node("Mul", "minus x", "c"), node("Mul", "c b", "y")],
    "SiLU of the other side": [node("Mul", "x minus", "t"), node("Sigmoid", "t", "b"), node("Mul", "x b", "y")],
    "Mish": [node("Softplus", "x", "b"), node("Tanh", "b", "c"), node("Mul", "x c", "y")],
    "GELU": [node("Div", "x root2", "b"), node("Erf", "b", "c"), node("Add", "c one", "d"), node("Mul", "x half", "e"),
             node("Mul", "d e", "y")],
    "tanh GELU": [node("Pow", "x cube", "p"), node("Mul", "p small", "q"), node("Add", "x q", "r"), node("Mul", "r rate", "s"),
                  node("Tanh", "s", "c"), node("Add", "c one", "d"), node("Mul", "half x", "e"), node("Mul", "e d", "y")],
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_a_function_in_parts_has_the_slopes_of_where_it_is(name: str) -> None:
    """Against secants in float32."""
    weights = {"minus": np.array(-1.5), "three": np.array(3.0), "root2": np.array(np.sqrt(2)), "one": np.array(1.0),
               "half": np.array(0.5), "cube": np.array(3.0), "small": np.array(0.044715),
               "rate": np.array(math.sqrt(2 / math.pi))}  # fmt: skip
    used = {i for n in PARTS[name] for i in n.input}
    model = make_model(PARTS[name], {"x": [1, 81]}, {k: v for k, v in weights.items() if k in used}, dtype="float32")
    graph = read(model)
    last = graph.graph.outputs[0].producer()
    found = next(s for s in patterns.find(last, fold, "l2", 17) if s.gated is not None)
    assert found.source is graph.graph.inputs[0]
    function, _ = function_of(model)
    tight = 0
    for low, high in ((-4.0, -2.0), (-2.0, 0.0), (-0.5, 0.5), (0.5, 1.0), (1.0, 3.0), (-5.0, 5.0)):
        ends = np.array([low]), np.array([high])
        place = confined.Place(ends, ends, ends, None, frozenset())
        whole = tuple(np.array([end]) for end in found.slopes)
        (least, most), _ = confined.gated_at(found.gated, whole, place)
        x = np.linspace(low, high, 81).astype(np.float32).astype(np.float64)
        secants = np.diff(function(x)) / np.diff(x)
        assert (secants >= least - 1e-4).all() and (secants <= most + 1e-4).all(), (low, high)
        tight += bool(secants.min() <= least + 0.05 and secants.max() >= most - 0.05)
    assert tight >= 5


@pytest.mark.parametrize("radius", [0.3, 0.003])
def test_a_network_of_gates_on_a_box(radius: float, tmp_path: Path) -> None:
    model = network(11, (5, 10, 10, 4), "Sigmoid")
    for each in [n for n in model.graph.node if n.op_type == "Sigmoid"]:
        out, each.output[0], each.name = each.output[0], f"gate {each.output[0]}", f"gate {each.name}"
        model.graph.node.insert(list(model.graph.node).index(each) + 1, node("Mul", f"{each.input[0]} @", out))
        model.graph.node[list(model.graph.node).index(each) + 1].input[1] = each.output[0]
    path = saved(model, tmp_path)
    truth = steepest(model, 0.2 - radius, 0.2 + radius, 1, 4)
    found = bound_on(path, (0.2 - radius, 0.2 + radius)).bound.upper
    assert truth <= found * (1 + DIFFERENCES)
    assert found <= bound_on(path, None).bound.upper * (1 + 1e-6)
    assert found <= 1.1 * truth or radius > 0.1
