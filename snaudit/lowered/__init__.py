"""onnxruntime's own ops, written as ONNX's: what its optimizers emit has the bound of what it stands for.

`lowered` changes a model before its shapes are inferred; a node that it does not understand stays, with
its reason in `node.metadata_props`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from snaudit.domains import KEPT, REMEDY
from snaudit.lowered import blocked, evaluated, layouts, norms, pointwise, products
from snaudit.lowered.interface import Call, Kept, Lowering, ShapeNeeded

ROWS: tuple[Lowering, ...] = (*products.ROWS, *norms.ROWS, *pointwise.ROWS, *layouts.ROWS, *blocked.ROWS)
_TABLE = {(row.domain, row.op): row for row in ROWS}
_EVALUATED = {(row.domain, row.op): row for row in evaluated.ROWS}
_MALFORMED = (ValueError, TypeError, IndexError, KeyError, OverflowError)

_MOST_ROUNDS = 8
_Facts = tuple[Mapping[str, tuple[int | None, ...]], Mapping[str, int]]
"""Shapes and element types of values, by name."""
Infer = Callable[[onnx.ModelProto], onnx.ModelProto]


def lowered(model: onnx.ModelProto, infer: Infer) -> bool:
    """Whether there were nodes of onnxruntime's own, in the graph or its bodies, which are now written as ONNX's
    where they can be. infer: gives a copy with its shapes.

    The attributes are handed on as they are: whoever calls this checks the signatures of what was written.
    """
    return _lowered(model, infer, _TABLE, onnx.TensorProto.FLOAT)


def for_evaluation(model: onnx.ModelProto, infer: Infer) -> None:
    """As `lowered`, all real numbers of the model being float64, and with ops written out that have a rule."""
    _lowered(model, infer, _TABLE, onnx.TensorProto.DOUBLE)
    _lowered(model, infer, _EVALUATED, onnx.TensorProto.DOUBLE)


def _lowered(model: onnx.ModelProto, infer: Infer, table: Mapping[tuple[str, str], Lowering], real: int) -> bool:
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < 7 or not any((node.domain, node.op_type) in table for node in _nodes(model.graph)):
        return False
    block = blocked.block_of(_nodes(model.graph), _facts(model)[0])
    kept = {} if block is None else blocked.kept_of(model.graph, _facts(model)[0])
    walk = _Walk(table, opset, _names(model), block, real, kept)
    walk.whole(model, _facts(model))
    facts = _facts(model)
    for _ in range(_MOST_ROUNDS):
        if not (before := walk.waiting):
            return True
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        stand_in(copy.graph)
        facts = _facts(infer(copy))
        walk.whole(model, facts)
        if walk.waiting == before:
            break
    walk.whole(model, facts, last=True)
    return True


@dataclass(slots=True)
class _Walk:
    table: Mapping[tuple[str, str], Lowering]
    opset: int
    taken: dict[str, int]
    block: int | None
    real: int
    kept: Mapping[str, int]
    waiting: int = 0

    def whole(self, model: onnx.ModelProto, facts: _Facts, last: bool = False) -> None:
        """Write a model's nodes anew; `waiting` is then how many wait for shapes. last: note why these stay."""
        self.waiting = 0
        self.graph(model.graph, *facts, last)

    def graph(
        self, graph: onnx.GraphProto, shapes: Mapping[str, tuple[int | None, ...]], kinds: Mapping[str, int], last: bool
    ) -> None:
        """Write the nodes of one graph anew, where there is one to be written."""
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            for body in _bodies(node):
                self.graph(body, shapes, kinds, last)
            row = self.table.get((node.domain, node.op_type))
            call = Call(node, self.opset, shapes, kinds, self.taken, self.block, self.real, self.kept)
            nodes += [node] if row is None else self._written(row, call, last)
        if len(nodes) != len(graph.node) or any(a is not b for a, b in zip(nodes, graph.node, strict=True)):
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
            del graph.node[:]
            graph.node.extend(copies)

    def _written(self, row: Lowering, call: Call, last: bool) -> list[onnx.NodeProto]:
        try:
            row.write(call)
            return call.made
        except ShapeNeeded as refusal:
            self.waiting += 1
            found: Kept = refusal
            if not last:
                return [call.node]
        except Kept as refusal:
            found = refusal
        except _MALFORMED:
            found = Kept("has attributes or inputs that make no sense")
        note(call.node, found)
        return [call.node]


def note(node: onnx.NodeProto, refusal: Kept) -> None:
    """Say in a node's metadata why it stays."""
    kept = [entry for entry in node.metadata_props if entry.key not in (KEPT, REMEDY)]
    del node.metadata_props[:]
    node.metadata_props.extend(kept)
    for key, text in ((KEPT, refusal.reason), (REMEDY, refusal.remedy)):
        if text:
            node.metadata_props.add(key=key, value=text)


def stand_in(graph: onnx.GraphProto) -> None:
    """Put ops of equal shapes in the place of those that wait for shapes."""
    for node in graph.node:
        for body in _bodies(node):
            stand_in(body)
        if (node.domain, node.op_type) not in _TABLE:
            continue
        given = {one.name: one.i for one in node.attribute}
        if node.op_type in _PRODUCTS:
            left, right = _axes("A", "ik", given), _axes("B", "kj", given)
            _put(node, "Einsum", 2, equation=f"{left},{right}->...ij")
        elif node.op_type == "ReorderInput" and given.get("channels_last"):
            _put(node, "Transpose", 1, perm=[0, 3, 1, 2])
        elif node.op_type in _SAME:
            _put(node, "Identity", 1)


def _axes(side: str, axes: str, given: Mapping[str, int]) -> str:
    """Einsum's letters for a side of a product: rows and columns, in the order in which the side has them."""
    first, second = reversed(axes) if given.get(f"trans{side}") else axes
    return f"{first}...{second}" if given.get(f"transBatch{side}") else f"...{first}{second}"


def _put(node: onnx.NodeProto, op: str, inputs: int, **attributes: Any) -> None:
    node.CopyFrom(onnx.helper.make_node(op, list(node.input[:inputs]), list(node.output[:1]), **attributes))


_PRODUCTS = {"FusedMatMul", "TransposeMatMul", "FusedMatMulActivation"}
_SAME = {"BiasSoftmax", "ReorderInput", "SkipGroupNorm"}
"""What waits for shapes and has its first input's. (ReorderInput pads channels, but no number of channels is
asked for before it is stated anew: by a kernel, or by ReorderOutput.)"""


def _facts(model: onnx.ModelProto) -> _Facts:
    """Shapes and element types of values: of inputs, initializers and what was inferred."""
    shapes: dict[str, tuple[int | None, ...]] = {}
    kinds: dict[str, int] = {}
    unlike: set[str] = set()
    for graph in _graphs(model.graph):
        for value in (*graph.input, *graph.value_info, *graph.output):
            if not value.type.HasField("tensor_type"):
                continue
            held = value.type.tensor_type
            kinds[value.name] = held.elem_type
            if held.HasField("shape"):
                sizes = tuple(d.dim_value if d.HasField("dim_value") else None for d in held.shape.dim)
                unlike |= {value.name} if shapes.get(value.name, sizes) != sizes else set()
                shapes[value.name] = sizes
        for tensor in graph.initializer:
            kinds[tensor.name] = tensor.data_type
            sizes = tuple(tensor.dims)
            unlike |= {tensor.name} if shapes.get(tensor.name, sizes) != sizes else set()
            shapes[tensor.name] = sizes
    return {name: sizes for name, sizes in shapes.items() if name not in unlike}, kinds


def _names(model: onnx.ModelProto) -> dict[str, int]:
    """All names of values and nodes, each with the number that the next of its name is given."""
    found: set[str] = set()
    for graph in _graphs(model.graph):
        found |= {value.name for value in (*graph.input, *graph.initializer)}
        for node in graph.node:
            found |= {node.name, *node.input, *node.output}
    return dict.fromkeys(found, 2)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from _graphs(body)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for one in _graphs(graph):
        yield from one.node
