"""Shapes that rest on numbers which the graph computes: pads, starts, target shapes, a chosen branch.

Exporters write a Pad's widths as a dozen nodes on constants and on Shape, and a Squeeze behind an If on a
size. Inference propagates some of that; what is constant by `folding` (pure ops on stored numbers and static
shapes) is put into a copy of the graph here, the branch that will run in the place of its If, and shapes are
inferred again. Sizes that this fixes are taken over; nothing else of the copy is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from snaudit import folding
from snaudit.model import Tensor

_MOST_ENTRIES = 64
_MOST_ROUNDS = 6

Infer = Callable[[onnx.ModelProto], onnx.ModelProto]
Read = Callable[[onnx.ModelProto], tuple[ir.Model, dict[int, Tensor]]]


def settled(proto: onnx.ModelProto, read: Read, infer: Infer) -> tuple[ir.Model, dict[int, Tensor]]:
    """The model, read, with all sizes that its own constants fix; what one round finds may fix more in the next.

    read: deserializes a model and attaches the stored tensors. infer: infers shapes.
    """
    model, tensors = read(proto)
    seen: set[str] = set()
    twice = _ambiguous(proto.graph)
    for _ in range(_MOST_ROUNDS):
        if not _open(proto.graph):
            break
        known = {name: array for name, array in _computed(model.graph) if name not in twice}
        if not set(known) - seen:
            break
        seen = set(known)
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        inlined = _put(copy.graph, known)
        if not _take_over(proto.graph, infer(copy).graph, twice, inlined):
            break
        model, tensors = read(proto)
    return model, tensors


def _open(graph: onnx.GraphProto) -> bool:
    """Whether a node makes something of a size that is not known."""
    known = {value.name for value in (*graph.value_info, *graph.output) if _is_fixed(value)}
    return any(name and name not in known for node in graph.node for name in node.output)


def _is_fixed(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)


def _computed(nodes: Iterable[ir.Node]) -> Iterator[tuple[str, np.ndarray]]:
    """The small integers and conditions that nodes compute from constants, by name; those of a branch that
    will run, too."""
    for node in nodes:
        if node.op_type == "If" and node.domain in ("", "ai.onnx") and node.inputs[0] is not None:
            condition = _small(node.inputs[0])
            if condition is not None and condition.size == 1:
                yield node.inputs[0].name or "", condition
                branch = "then_branch" if bool(condition.ravel()[0]) else "else_branch"
                yield from _computed(node.attributes[branch].as_graph())
            continue
        for output in node.outputs if node.op_type != "Constant" else ():
            array = _small(output)
            if array is not None and output.name:
                yield output.name, array


def _small(value: ir.Value) -> np.ndarray | None:
    kind = folding.kind_of(value)
    if kind is None or kind[1].kind not in "ib" or math.prod(kind[0]) > _MOST_ENTRIES:
        return None
    try:
        return np.array(folding.evaluate(value, limit_bytes=1 << 16))
    except ValueError:
        return None


def _ambiguous(graph: onnx.GraphProto) -> set[str]:
    """The names that stand for more than one value: branches beside each other may share them."""
    often = Counter(name for one in _every_graph(graph) for name in _defined(one))
    return {name for name, count in often.items() if count > 1}


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    held = {tensor.name for tensor in graph.initializer}
    yield from held
    yield from (value.name for value in graph.input if value.name not in held)
    yield from (name for node in graph.node for name in node.output if name)


def _every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all that are nested in it."""
    stack = [graph]
    while stack:
        one = stack.pop()
        yield one
        for attribute in (a for node in one.node for a in node.attribute):
            stack += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _put(graph: onnx.GraphProto, known: dict[str, np.ndarray]) -> set[str]:
    """Replace the nodes that make known numbers by these, and each If whose condition is known by its branch;
    the names that the branches taken in make."""
    made = {name for node in graph.node for name in node.output} | {t.name for t in graph.initializer}
    before = set(made)
    nodes = list(_chosen(graph, known, made))
    del graph.node[:]
    held = {tensor.name for tensor in graph.initializer}
    for node in nodes:
        if node.output and all(name in known for name in node.output if name):
            for name in node.output:
                if name and name not in held:
                    graph.initializer.append(numpy_helper.from_array(known[name], name))
                    held.add(name)
        else:
            graph.node.append(node)
    return made - before


def _chosen(graph: onnx.GraphProto, known: dict[str, np.ndarray], made: set[str]) -> Iterator[onnx.NodeProto]:
    """The nodes, those of a branch that will run in the place of its If; its constants go to the graph's."""
    stack = list(reversed(graph.node))
    while stack:
        node = stack.pop()
        bodies = {a.name: a.g for a in node.attribute if a.HasField("g")}
        condition = known.get(node.input[0]) if node.op_type == "If" and node.domain in ("", "ai.onnx") else None
        if condition is None or condition.size != 1:
            yield node
            continue
        body = bodies["then_branch" if bool(condition.ravel()[0]) else "else_branch"]
        inner = {name for n in body.node for name in n.output if name} | {t.name for t in body.initializer}
        if inner & made or len(body.output) != len(node.output):
            yield node  # names that the graph uses as well
            continue
        made |= inner
        graph.initializer.extend(body.initializer)
        ends = [onnx.helper.make_node("Identity", [v.name], [name])
                for v, name in zip(body.output, node.output, strict=True) if name]  # fmt: skip
        stack += [*reversed(ends), *reversed(body.node)]


def _take_over(graph: onnx.GraphProto, inferred: onnx.GraphProto, twice: set[str], inlined: set[str]) -> bool:
    """Whether a size was fixed: each that is a number in `inferred` and open in the graph or in a branch taken in.

    Values are told by their names, so those that several graphs define keep what they had.
    """
    found = {value.name: value for value in (*inferred.value_info, *inferred.output) if value.name not in twice}
    changed = False
    for body in _graphs(graph):
        there = {value.name: value for value in (*body.value_info, *body.output)}
        names = [name for node in body.node for name in node.output if name in found]
        for name in names if body is graph else [name for name in names if name in inlined]:
            if not found[name].type.tensor_type.HasField("shape"):
                continue
            if name not in there:
                body.value_info.add().CopyFrom(_without_names(found[name]))
                changed = True
            else:
                changed |= _fix(there[name], found[name])
    return changed


def _fix(value: onnx.ValueInfoProto, found: onnx.ValueInfoProto) -> bool:
    own, other = value.type.tensor_type, found.type.tensor_type
    if not own.HasField("shape"):
        own.shape.CopyFrom(_without_names(found).type.tensor_type.shape)
        own.elem_type = own.elem_type or other.elem_type
        return True
    changed = False
    if len(own.shape.dim) == len(other.shape.dim):
        for dim, new in zip(own.shape.dim, other.shape.dim, strict=True):
            if new.HasField("dim_value") and not dim.HasField("dim_value"):
                dim.dim_value = new.dim_value
                changed = True
    return changed


def _without_names(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """A copy whose open sizes have no names: equal names would mean equal sizes, and each inference makes its own."""
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    for dim in copy.type.tensor_type.shape.dim:
        if not dim.HasField("dim_value"):
            dim.Clear()
    return copy


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and the branches of its Ifs."""
    yield graph
    for node in graph.node:
        if node.op_type == "If":
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from _graphs(attribute.g)
