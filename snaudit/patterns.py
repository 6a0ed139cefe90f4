"""Activations and normalizations that exporters write out in parts: shortcuts past their products.

x·σ(x) is a product of two varying values to the op rules, but a function of one value with a known
slope. Each matcher looks at one node and, backwards, at what it is made of; the match is exact, and
the slope holds for the constants found, not for those expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from snaudit.bound import Norm, at_most, root_up, up
from snaudit.domains import is_default
from snaudit import magnitudes
from snaudit.local_slopes import Gated
from snaudit.matching import Fold, Graph, Shortcut, size_along
from snaudit.rules.interface import Unbounded
from snaudit.rules.normalization import normalized
from snaudit.slopes import GELU_ERF, GELU_TANH, MISH, SILU, Interval


def find(node: ir.Node, fold: Fold, norm: Norm, opset: int) -> Iterator[Shortcut]:
    """The shortcuts that end at a node's first output."""
    if not is_default(node):
        return
    graph = Graph(fold, norm, opset)
    for matcher in _MATCHERS.get(node.op_type, ()):
        for source, found, name, *more in matcher(graph, node):
            slopes = found if isinstance(found, tuple) else None
            gain = found if slopes is None else max(abs(slopes[0]), abs(slopes[1]))
            if math.isfinite(gain):
                gated = more[0] if more else None
                yield Shortcut(node.outputs[0], source, at_most(gain, name), name, slopes=slopes, gated=gated)
    yield from magnitudes.find(graph, node)


_Found = Iterator[tuple]
"""(source, its gain or its slopes, name) of each match, and its function as `Gated` where that is known."""


def _gate(graph: Graph, node: ir.Node) -> _Found:
    """a·r times b·g(r): the slopes of x·g(x) times a·b."""
    for left, right in graph.split(node):
        roots = graph.scales(left)
        for gate, factor in graph.scales(right):
            for name, inner, slopes, gated in _gates(graph, gate):
                for root, scale in roots:
                    if root is inner:
                        by = scale * factor
                        own = None if gated is None or not gated.inner else gated._replace(outer=gated.outer * by)
                        yield root, _times(slopes, by), name, own


def _gates(graph: Graph, gate: ir.Value) -> Iterator[tuple[str, ir.Value, Interval, Gated | None]]:
    """(name, r, the slopes of x·g(x), that function) for each way to read `gate` as g(r).

    x·g(kx) has the slopes of x·g(x) for any scale k ≠ 0; for k = 0 its one slope is g(0), in between.
    """
    node = graph.made(gate, "Sigmoid")
    if node is not None:
        for root, scale in graph.scales(node.inputs[0]):
            yield "SiLU", root, SILU, Gated("Swish", {}, scale, 1.0)
    node = graph.made(gate, "HardSigmoid")
    if node is not None:  # x·clip(αx + β, 0, 1): slopes −β and 2 − β at the ends of the line, 0 and 1 outside
        beta = node.attributes["beta"].value if "beta" in node.attributes else 0.5
        yield "HardSwish", node.inputs[0], _over(0.0, 1.0, -beta, 2.0 - beta), None
    clipped = graph.clip(gate)
    if clipped is not None:
        inner, low, high = clipped
        shifted = graph.plus(inner) or (inner, 0.0)
        ends = (low, high, 2 * low - shifted[1], 2 * high - shifted[1])  # x·clip(x + c, low, high)
        yield "HardSwish", shifted[0], _over(*ends), None
    node = graph.made(gate, "Tanh")
    softplus = None if node is None else graph.made(node.inputs[0], "Softplus")
    if softplus is not None:
        yield "Mish", softplus.inputs[0], MISH, Gated("Mish", {}, 1.0, 1.0)
    plus = graph.plus(gate)
    if plus is not None and plus[1] == 1.0:
        yield from _gelu_gates(graph, plus[0])


def _over(*slopes: float) -> Interval:
    """The interval over some slopes, each rounded once."""
    return math.nextafter(min(slopes), -math.inf), up(max(slopes))


def _times(slopes: Interval, factor: float) -> Interval:
    """The slopes times a factor, enlarged by more than the rounding of twenty factors."""
    low, high = sorted(end * factor for end in slopes)
    slack = 2.0**-46
    return (
        math.nextafter(low - abs(low) * slack, -math.inf) if low else 0.0,
        up(high + abs(high) * slack) if high else 0.0,
    )


def _gelu_gates(graph: Graph, value: ir.Value) -> Iterator[tuple[str, ir.Value, Interval, Gated | None]]:
    """1 + erf(kx) for any k; 1 + tanh(√(2/π)(x + 0.044715x³)) with those constants to 1e-6."""
    node = graph.made(value, "Erf")
    if node is not None:
        for root, scale in graph.scales(node.inputs[0]):
            gated = Gated("Gelu", {}, math.sqrt(2.0) * scale, 2.0)  # x(1 + erf(kx)) = 2·GELU(√2·kx)/(√2·k)
            yield "GELU", root, (2.0 * GELU_ERF[0], 2.0 * GELU_ERF[1]), gated
    node = graph.made(value, "Tanh")
    for inner, scale in graph.scales(node.inputs[0]) if node is not None else ():
        root = _cubic(graph, inner)
        if root is not None and abs(scale - math.sqrt(2.0 / math.pi)) < 1e-6:
            slopes = 2.0 * (GELU_TANH[0] - 1e-5), 2.0 * (GELU_TANH[1] + 1e-5)
            yield "GELU", root, slopes, Gated("Gelu", {"approximate": "tanh"}, 1.0, 2.0, 1e-5)


def _cubic(graph: Graph, value: ir.Value) -> ir.Value | None:
    """x where value = x + 0.044715·x³ (±1e-6), the cube as Pow or as products.

    A change of the two constants by 1e-6 moves the largest slope by less than 5e-6 (tests/test_lipschitz.py).
    """
    node = graph.made(value, "Add")
    for root, rest in graph.split(node) if node is not None else ():
        for cube, scale in graph.scales(rest):
            if abs(scale - 0.044715) < 1e-6 and _is_cube(graph, cube, root):
                return root
    return None


def _is_cube(graph: Graph, value: ir.Value, root: ir.Value) -> bool:
    power = graph.made(value, "Pow")
    if power is not None:
        return power.inputs[0] is root and graph.scalar(power.inputs[1]) == 3.0
    product = graph.made(value, "Mul")
    squares = [graph.made(b, "Mul") for a, b in (graph.split(product) if product is not None else ()) if a is root]
    return any(square is not None and list(square.inputs) == [root, root] for square in squares)


def _steeper(graph: Graph, node: ir.Node) -> _Found:
    """Max or Min of a·r and b·r is a function of r with slopes a and b (LeakyRelu written out)."""
    if len(node.inputs) != 2 or None in node.inputs:
        return
    for left, a in graph.scales(node.inputs[0]):
        for right, b in graph.scales(node.inputs[1]):
            if left is right:
                yield left, _times((min(a, b), max(a, b)), 1.0), "LeakyRelu"


def _sorting(graph: Graph, node: ir.Node) -> _Found:
    """(max, min) of two halves, or over groups of at least two, put side by side: entries of a sorted group
    (GroupSort, MaxMin). Sorting is 1-Lipschitz in every p-norm (Anil, Lucas & Grosse 2019)."""
    made = [graph.made(_under(graph, value), *_EXTREMES) for value in node.inputs]
    if len(made) != 2 or None in made or {made[0].op_type, made[1].op_type} not in _PAIRS:
        return
    first, second = made
    if first.op_type.startswith("Reduce"):
        axes = graph.axes(first)
        size = None if axes is None else size_along(first.inputs[0], axes)
        same = first.inputs[0] is second.inputs[0] and axes == graph.axes(second)
        if same and size is not None and size > 1:
            yield first.inputs[0], 1.0, "sorting"
    elif len(first.inputs) == 2 and set(first.inputs) == set(second.inputs) and None not in first.inputs:
        halves = [graph.made(value, "Split") for value in first.inputs]
        shapes = [value.shape for value in first.inputs]
        fixed = shapes[0] is not None and all(isinstance(d, int) for d in shapes[0])
        if halves[0] is not None and halves[0] is halves[1] and first.inputs[0] is not first.inputs[1]:
            if fixed and shapes[0] == shapes[1]:
                yield halves[0].inputs[0], 1.0, "sorting"


_EXTREMES = ("Max", "Min", "ReduceMax", "ReduceMin")
_PAIRS = ({"Max", "Min"}, {"ReduceMax", "ReduceMin"})


def _under(graph: Graph, value: ir.Value | None) -> ir.Value | None:
    node = graph.made(value, "Unsqueeze")
    return value if node is None else node.inputs[0]


def _axes(graph: Graph, node: ir.Node) -> tuple[int, ...] | None:
    """The axes of a reduction that keeps its dimensions; None if they are not known."""
    keeps = node.attributes["keepdims"].value if "keepdims" in node.attributes else 1
    return graph.axes(node) if keeps else None


def _centre(graph: Graph, value: ir.Value | None) -> tuple[ir.Value, tuple[int, ...]] | None:
    """(x, axes) where value = x − mean(x) over those axes."""
    node = graph.made(value, "Sub")
    mean = graph.made(node.inputs[1], "ReduceMean") if node is not None else None
    if mean is None or mean.inputs[0] is not node.inputs[0]:
        return None
    axes = _axes(graph, mean)
    return None if axes is None else (node.inputs[0], axes)


def _centring(graph: Graph, node: ir.Node) -> _Found:
    """x − mean(x) is a projection: 1 in l2, 2(1 − 1/k) in l1 and linf for k entries."""
    found = _centre(graph, node.outputs[0])
    if found is not None:
        size = size_along(*found)
        gain = 1.0 if graph.norm == "l2" else 2.0 if size is None else up(up(2.0 * (1.0 - 1.0 / size)))
        yield found[0], gain, "centring"


def core_of(node: ir.Node, fold: Fold, opset: int) -> tuple[tuple[int, ...], bool] | None:
    """(axes, whether the mean is taken off) where a node ends a normalization written out; else None."""
    found = _core(Graph(fold, "l2", opset), node) if node.op_type in ("Mul", "Div") else None
    return None if found is None else (found[1], found[2])


def _normalizing(graph: Graph, node: ir.Node) -> _Found:
    """u/√(mean(u²) + ε) with u = x − mean(x) (LayerNorm) or u = x (RMSNorm): as the op's own rule."""
    found = _core(graph, node)
    if found is None:
        return
    value, axes, is_centred, epsilon = found
    try:
        gain = normalized(1.0, epsilon, size_along(value, axes), is_centred, graph.norm).upper
    except Unbounded:
        return
    yield value, gain, "LayerNorm" if is_centred else "RMSNorm"


def _core(graph: Graph, node: ir.Node) -> tuple[ir.Value, tuple[int, ...], bool, float] | None:
    """(x, axes, whether u = x − mean(x) rather than x, ε) where the node's output is u/√(mean(u²) + ε)."""
    data, root = _quotient(graph, node)
    deviation = graph.made(root, "Sqrt")
    plus = graph.plus(deviation.inputs[0]) if deviation is not None else None
    mean = graph.made(plus[0], "ReduceMean") if plus is not None and plus[1] > 0.0 else None
    axes = None if mean is None else _axes(graph, mean)
    square = None if axes is None else graph.squared(mean.inputs[0])
    if square is None:
        return None
    centred, divided = _centre(graph, square), _centre(graph, data)
    same = divided is not None and divided == centred  # Sub is often exported twice
    if square is not data and not same:
        return None
    source, centre_axes = centred or (square, None)
    is_centred = centre_axes == axes
    return source if is_centred else square, axes, is_centred, plus[1]


def _quotient(graph: Graph, node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """(u, r) where the node's output is u/r, as Div or as Mul by a reciprocal."""
    if node.op_type == "Div":
        return node.inputs[0], node.inputs[1]
    for data, other in graph.split(node):
        inverse = graph.made(other, "Reciprocal", "Div")
        if inverse is not None and inverse.op_type == "Reciprocal":
            return data, inverse.inputs[0]
        if inverse is not None and graph.scalar(inverse.inputs[0]) == 1.0:
            return data, inverse.inputs[1]
    return None, None


def _log_softmax(graph: Graph, node: ir.Node) -> _Found:
    """Log(Softmax(x)) is LogSoftmax: √n (l2), max(1, n − 1) (l1), 2 (linf) for n classes."""
    softmax = graph.made(node.inputs[0], "Softmax")
    if softmax is None:
        return
    data = softmax.inputs[0]
    axis = softmax.attributes["axis"].value if "axis" in softmax.attributes else -1 if graph.opset >= 13 else 1
    rank = 0 if data.shape is None else len(data.shape)
    axes = tuple(range(axis % rank, rank)) if rank else ()
    size = size_along(data, axes if graph.opset < 13 else axes[:1]) if axes else None
    if graph.norm == "linf":
        yield data, 2.0, "LogSoftmax"
    elif size is not None:
        yield data, root_up(float(size)) if graph.norm == "l2" else float(max(1, size - 1)), "LogSoftmax"


_MATCHERS = {
    "Log": (_log_softmax,),
    "Mul": (_gate, _normalizing),
    "Div": (_normalizing,),
    "Sub": (_centring,),
    "Max": (_steeper,),
    "Min": (_steeper,),
    "Concat": (_sorting,),
}
