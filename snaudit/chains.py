"""Chains of a graph's layers between which only positively homogeneous functions stand.

f is positively homogeneous if f(c·x) = c·f(x) for all c > 0. Where an affine layer's output goes through
such functions into the next affine layer and nowhere else, c times the first weight and bias and 1/c
times the second weight make the same network (Neyshabur, Salakhutdinov, Srebro, *Path-SGD*, 2015).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from snaudit.domains import is_default
from snaudit import folding
from snaudit.forms import Folded, Plain
from snaudit.layers import Layer
from snaudit.model import Tensor

_AFFINE = {"Conv": 1, "ConvTranspose": 1, "Gemm": 2, "MatMul": 2}
"""Affine ops, and among how many of their first inputs the data may be (Conv: the first only)."""
_HOMOGENEOUS = {
    "Relu", "LeakyRelu", "PRelu", "Abs", "Neg", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool",
    "GlobalMaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Dropout", "ReduceMean",
    "ReduceSum", "ReduceMax", "Mul", "Div",
}  # fmt: skip
"""Positively homogeneous in their first input, where all others are constants; Mul in either."""


@dataclass(frozen=True, slots=True)
class Link:
    """A layer of a chain: `weight` its stored tensor, `shifts` the tensors that are added between it and
    the next one (biases, BatchNormalization's mean and bias)."""

    layer: Layer
    weight: Tensor
    shifts: tuple[Tensor, ...] = ()


def find_chains(graph: ir.Model, layers: tuple[Layer, ...]) -> tuple[tuple[Link, ...], ...]:
    """All chains of two layers or more, in the graph's order. Every tensor in them has one use."""
    uses = _uses(graph)
    owned = {}
    for layer in layers:
        node = layer.outputs[0].producer() if len(layer.outputs) == 1 else None
        weight = _weight(layer, uses)
        if node is not None and node.graph is graph.graph and weight is not None and _data(node) is not None:
            owned[node] = Link(layer, weight)
    after = {}
    for node, link in owned.items():
        found = _follow(node, owned.keys(), uses)
        if found is not None:
            after[node] = found[0]
            owned[node] = Link(link.layer, link.weight, found[1])
    starts = [node for node in owned if node in after and node not in after.values()]
    return tuple(tuple(owned[node] for node in _from(start, after)) for start in starts)


def _from(node: ir.Node, after: dict[ir.Node, ir.Node]) -> Iterator[ir.Node]:
    yield node
    while node in after:
        node = after[node]
        yield node


def _uses(graph: ir.Model) -> Counter[Hashable]:
    """How often the numbers of each stored tensor reach a node, or an output, that is no constant."""
    counts: Counter[Hashable] = Counter()

    def count(value: ir.Value | None) -> None:
        if value is not None:
            counts.update(tensor.place for tensor in folding.roots(value))

    for output in graph.graph.outputs:
        count(output)
    for body in (graph.graph, *graph.functions.values()):
        for node in ir.traversal.RecursiveGraphIterator(body):
            for attribute in node.attributes.values():
                inner = [attribute.value] if attribute.type == ir.AttributeType.GRAPH else []
                for output in (output for part in inner for output in part.outputs):
                    count(output)
            if not all(folding.is_constant(output) for output in node.outputs):
                for value in node.inputs:
                    count(value)
    return counts


def _weight(layer: Layer, uses: Counter[Hashable]) -> Tensor | None:
    form = layer.form
    if isinstance(form, Plain) and not form.index:
        return form.tensor if uses[form.tensor.place] == 1 else None
    return _alone(form.value, uses) if isinstance(form, Folded) and not form.index else None


def _alone(value: ir.Value, uses: Counter[Hashable]) -> Tensor | None:
    """The stored tensor of real numbers that a constant is, its entries moved at most, if this is its
    only use."""
    roots = folding.roots(value)
    if len(roots) != 1 or not roots[0].is_real or uses[roots[0].place] != 1 or not folding.only_moves(value):
        return None
    return roots[0]


def _data(node: ir.Node) -> ir.Value | None:
    """The one input of an affine node that is no constant, where that is its data."""
    if not is_default(node) or node.op_type not in _AFFINE:
        return None
    data = [value for value in node.inputs if value is not None and not folding.is_constant(value)]
    return data[0] if len(data) == 1 and data[0] in node.inputs[: _AFFINE[node.op_type]] else None


def _follow(
    node: ir.Node, wanted: object, uses: Counter[Hashable]
) -> tuple[ir.Node, tuple[Tensor, ...]] | None:
    """(the affine node that alone takes what this one makes, the tensors added on the way), or None."""
    shifts: list[Tensor] = []
    added = list(node.inputs[2:])
    while True:
        for value in added:
            tensor = None if value is None else _alone(value, uses)
            if tensor is not None:
                shifts.append(tensor)
            elif value is not None and folding.evaluate(value).any():
                return None  # a shift that others use, too: it cannot be scaled
        output = node.outputs[0]
        users = [use.node for use in output.uses()]
        if len(users) != 1 or output.is_graph_output() or users[0].graph is not node.graph:
            return None
        node = users[0]
        if node in wanted and _data(node) is output:  # type: ignore[operator]
            return node, tuple(shifts)
        passed = _passes(node, output)
        if passed is None:
            return None
        added = passed


def _passes(node: ir.Node, data: ir.Value) -> list[ir.Value | None] | None:
    """What a node adds to a positively homogeneous function of `data`; None where it is no such node."""
    others = [value for value in node.inputs if value is not data]
    constant = all(value is None or folding.is_constant(value) for value in others)
    more = any(output.is_graph_output() or output.uses() for output in node.outputs[1:])
    if not is_default(node) or not constant or more or len(others) != len(node.inputs) - 1:
        return None
    op = node.op_type
    if op in ("Add", "Sub"):
        return list(others)
    if node.inputs[0] is not data and op != "Mul":
        return None
    if op == "BatchNormalization":
        training = node.attributes.get("training_mode")
        whole = len(node.inputs) == 5 and len(node.outputs) == 1 and not (training is not None and training.value)
        return list(node.inputs[2:4]) if whole else None
    if op == "Pad":
        return _padding(node)
    return [] if op in _HOMOGENEOUS else None


def _padding(node: ir.Node) -> list[ir.Value | None] | None:
    """Nothing for a Pad by zeros or by the data's own entries, None for one by other numbers."""
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return []
    if "value" in node.attributes:  # opset 10 and before
        return [] if node.attributes["value"].value == 0.0 else None
    filled = node.inputs[2] if len(node.inputs) > 2 else None
    return [] if filled is None or not folding.evaluate(filled).any() else None
