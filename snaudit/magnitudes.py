"""Magnitudes written out, √(a² + b²) and √Σx²: no slope of a square or a root is bounded, that of both together is.

A Euclidean norm is 1-Lipschitz (reverse triangle inequality), and so is √(‖x‖² + c) for c ≥ 0, the norm of
(x, √c). Spectrograms end in one, and standard deviations, and smooth absolute values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from snaudit.bound import Grade, at_most, root_up, up
from snaudit.broadcasting import dims, spread
from snaudit.matching import Graph, Shortcut, size_along

_MOST_TERMS = 16


def find(graph: Graph, node: ir.Node) -> Iterator[Shortcut]:
    """The shortcut past a Sqrt (or a Pow by ½) of squares that are added up, to what is squared."""
    if node.op_type == "Sqrt" or (node.op_type == "Pow" and graph.scalar(node.inputs[1]) == 0.5):
        square = _at_least_zero(graph, node.inputs[0])
        yield from _reduced(graph, node, square)
        yield from _entrywise(graph, node, square)


def _at_least_zero(graph: Graph, value: ir.Value) -> ir.Value:
    """s where the value is s + c, or the larger of s and c, with a scalar c ≥ 0: √max(s, c) = max(√s, √c)."""
    for _ in range(4):
        plus = graph.plus(value)
        clip, larger = graph.made(value, "Clip", "Relu"), graph.made(value, "Max")
        if plus is not None and plus[1] >= 0.0:
            value = plus[0]
        elif clip is not None and (clip.op_type == "Relu" or _least(graph, clip) is not None):
            value = clip.inputs[0]
        elif larger is not None and any((graph.scalar(v) or 0.0) > 0.0 for v in larger.inputs):
            pairs = [data for data, other in graph.split(larger) if (graph.scalar(other) or 0.0) > 0.0]
            if not pairs:
                break
            value = pairs[0]
        else:
            break
    return value


def _least(graph: Graph, clip: ir.Node) -> float | None:
    """The lower limit of a Clip where it is at least 0 (what is clipped is no less: no upper limit is looked at)."""
    if graph.opset < 11:
        least = clip.attributes["min"].value if "min" in clip.attributes else None
    else:
        least = graph.scalar(clip.inputs[1]) if len(clip.inputs) > 1 else None
    return least if least is not None and least >= 0.0 else None


def _reduced(graph: Graph, node: ir.Node, square: ir.Value) -> Iterator[Shortcut]:
    """√Σx²: 1 in l2 and in l1, since ‖·‖₂ ≤ ‖·‖₁ in each group, √k in linf for k entries; a mean is 1/√k of it."""
    total = graph.made(square, "ReduceSum", "ReduceMean", "ReduceSumSquare")
    if total is None:
        return
    source = total.inputs[0] if total.op_type == "ReduceSumSquare" else graph.squared(total.inputs[0])
    if source is None:
        return
    axes = graph.axes(total)
    size = None if axes is None else size_along(total.inputs[0], axes)
    is_mean = total.op_type == "ReduceMean"
    if graph.norm == "linf":
        gain = 1.0 if is_mean else None if size is None else root_up(float(size))
    else:
        gain = root_up(up(1.0 / size)) if is_mean and size else 1.0
    if gain is not None:
        yield Shortcut(node.outputs[0], source, at_most(gain, "magnitude"), "magnitude")


def _entrywise(graph: Graph, node: ir.Node, square: ir.Value) -> Iterator[Shortcut]:
    """√(a² + b² + …), entry by entry: 1 in l2 and l1 for (a, b, …) side by side, √k in linf for k squares;
    √m times that where one value is squared and added m times."""
    terms = _terms(graph, square)
    sources = [graph.squared(term) for term in terms]
    if not sources or None in sources:
        return
    often = Counter(sources)
    sources = list(often)
    shapes = [dims(source) for source in sources]
    meets: dict[str, None] = {}
    for index, shape in enumerate(shapes):
        found = spread(shape, shapes[:index] + shapes[index + 1 :])
        if found.count != 1:
            return  # broadcasting may copy it
        meets |= dict.fromkeys(found.meets)
    gain = root_up(float(often.total() if graph.norm == "linf" else max(often.values())))
    bound = at_most(gain, "magnitude")
    slopes = (-gain, gain) if len(sources) == 1 else None
    assumes = tuple(
        f"{node.name or node.op_type}: the dynamic sizes {pair} are equal at run time (nothing is broadcast)"
        for pair in meets
    )
    bound = replace(bound, grade=Grade.ASSUMED) if assumes else bound
    first, *more = sources
    yield Shortcut(node.outputs[0], first, bound, "magnitude", assumes, slopes=slopes, also=tuple(more))


def _terms(graph: Graph, value: ir.Value) -> list[ir.Value]:
    """The summands of a sum written with Add and Sum; the value itself where it is none."""
    found, stack = [], [value]
    while stack and len(found) + len(stack) <= _MOST_TERMS:
        top = stack.pop()
        node = graph.made(top, "Add", "Sum")
        if node is None or None in node.inputs:
            found.append(top)
        elif (plus := graph.plus(top)) is not None and plus[1] >= 0.0:
            stack.append(plus[0])
        else:
            stack += node.inputs
    return [] if stack else found
