"""The onnx_ir graph of a skeleton, with shapes inferred and the file's tensors attached.

Shapes that the file claims for inner values and outputs are not believed: they are inferred from the
inputs' shapes and the ops, or unknown. A bound must not rest on a claim that nobody checked.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from snaudit.errors import ModelError, UnreadableModel, UnsupportedModel, UsageError
from snaudit.formats import onnx_stand_ins
from snaudit.formats.onnx_computed import settled
from snaudit.formats.onnx_signatures import check_signatures
from snaudit.formats.onnx_fits import misfit, shapes_of
from snaudit.formats.onnx_sizes import bind_sizes
from snaudit.formats.onnx_tensors import Stored
from snaudit.formats.onnx_weights import MARK
from snaudit.lowered import lowered
from snaudit.model import Tensor

_MOST_INLINED = 200_000
_MOST_FILLED = 1 << 28
_MOST_PROPAGATED = 1 << 16
_MOST_AXES = 64


@dataclass(slots=True)
class Attached:
    """The graph, the tensors that it uses by their number in the walk, and notes."""

    graph: ir.Model
    tensors: dict[int, Tensor]
    notes: list[str] = field(default_factory=list)


def graph_of(
    path: Path,
    skeleton: bytes,
    stored: list[Stored],
    tensors: list[Tensor | None],
    sizes: tuple[str, ...] = (),
) -> Attached:
    """The graph of a skeleton, its inputs of the `sizes` that the user gives; each constant's ir.Value has its Tensor as `meta["tensor"]`.

    A node that fills a shape (ConstantOfShape) and whose shape is not itself stored has its one
    number as `node.meta["tensor"]` instead. Raises UnreadableModel for a graph that is none.
    """
    notes: list[str] = []
    logger = logging.getLogger("onnx_ir")  # it warns on stderr of what is checked here anyway
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        proto = onnx.ModelProto()
        proto.ParseFromString(skeleton)
        _check_opset(proto, notes)
        check_signatures(path, proto)
        unsorted = _check_graph(path, proto.graph, ())
        for function in proto.functions:
            _check_function(path, function)
        proto = _flat(path, proto, unsorted, notes)
        bind_sizes(proto.graph, sizes)
        if lowered(proto, lambda copy: with_shapes(copy, [])):
            check_signatures(path, proto)
        proto = with_shapes(proto, notes)
        read = partial(_read, attacher=_Attacher(path, stored, tensors))
        model, found = settled(proto, read, partial(with_shapes, notes=[]))
        reason = misfit(proto.graph.node, shapes_of(proto.graph)) if sizes else None
        if reason is not None:
            raise UsageError(f"--input-size: the graph does not run on this size: {reason}")
        _drop_constant_inputs(model, notes)
    except (ModelError, UsageError, MemoryError):
        raise
    except Exception as error:  # protobuf, onnx and onnx_ir raise their own kinds for a malformed graph
        raise UnreadableModel(path, f"not a valid ONNX graph: {_one_line(error)}") from error
    finally:
        logger.setLevel(level)
    return Attached(model, found, notes)


def _read(proto: onnx.ModelProto, attacher: _Attacher) -> tuple[ir.Model, dict[int, Tensor]]:
    """(the graph with the file's tensors attached, these by their number)."""
    attacher = replace(attacher, found={})
    model = ir.serde.deserialize_model(proto)
    attacher.graph(model.graph)
    for function in model.functions.values():
        attacher.nodes(function)
    return model, attacher.found


def _one_line(error: Exception) -> str:
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return " ".join(str(error).split())[:160] or type(error).__name__


def _check_opset(proto: onnx.ModelProto, notes: list[str]) -> None:
    if not 3 <= proto.ir_version <= 1000:
        raise ValueError(f"ir_version {proto.ir_version}")
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        notes.append("no opset version for ONNX's own ops is given")
    elif min(versions) < 7:
        notes.append(f"opset {min(versions)}: older than 7, its ops may mean something else")


_Scope = tuple[set[str], set[str]]
"""What is defined so far, and what will be, in one graph."""


def _check_graph(path: Path, graph: onnx.GraphProto, outer: tuple[_Scope, ...]) -> bool:
    """Whether a node stands before what it reads. Clears claimed shapes of outputs.

    Raises UnreadableModel for a name that is defined twice, or read and not defined.
    """
    inputs = [value.name for value in graph.input]
    initializers = [tensor.name for tensor in graph.initializer]
    made = [name for node in graph.node for name in node.output if name]
    for names in (inputs + made, initializers + made):
        _check_unique(path, names)
    scope = ({*inputs, *initializers}, {*inputs, *initializers, *made})
    late = _check_nodes(path, graph.node, (*outer, scope))
    for value in graph.output:
        if not any(value.name in known for known, _ in (*outer, scope)):
            raise UnreadableModel(path, f"{value.name}: an output that nothing defines")
        if value.name in made and value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return late


def _check_function(path: Path, function: onnx.FunctionProto) -> None:
    made = [name for node in function.node for name in node.output if name]
    _check_unique(path, [*function.input, *made])
    if _check_nodes(path, function.node, ((set(function.input), {*function.input, *made}),)):
        raise UnreadableModel(path, f"function {function.name}: a node stands before what it reads")


def _check_unique(path: Path, names: list[str]) -> None:
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise UnreadableModel(path, f"{twice}: this name is defined twice in one graph")


def _check_nodes(path: Path, nodes: Iterable[onnx.NodeProto], scopes: tuple[_Scope, ...]) -> bool:
    """Whether a node, here or in a body, stands before what it reads."""
    late = False
    for node in nodes:
        for name in node.input:
            if not name or any(name in known for known, _ in scopes):
                continue
            if not any(name in coming for _, coming in scopes):
                where = node.name or node.op_type
                raise UnreadableModel(path, f"{name}: node {where} reads it, nothing defines it")
            late = True
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                late |= _check_graph(path, body, scopes)
        scopes[-1][0].update(node.output)
    return late


def _flat(path: Path, proto: onnx.ModelProto, unsorted: bool, notes: list[str]) -> onnx.ModelProto:
    """The model with its functions put where they are called, in topological order."""
    if not proto.functions and not unsorted:
        return proto
    model = ir.serde.deserialize_model(proto)
    if model.functions:
        _check_expansion(path, model)
        from onnx_ir.passes.common import InlinePass

        try:
            InlinePass()(model)
        except Exception as error:  # the pass raises whatever it meets; functions then stay opaque
            notes.append(f"the model's own functions stay opaque: {_one_line(error)}")
            return proto
    model.graph.sort()
    return ir.serde.serialize_model(model)


def _check_expansion(path: Path, model: ir.Model) -> None:
    """Raise UnsupportedModel if functions that call functions would grow without measure."""
    sizes: dict[Any, int] = {}

    def size(body: Any, above: tuple[Any, ...]) -> int:
        total = 0
        for node in ir.traversal.RecursiveGraphIterator(body):
            called = node.op_identifier()
            if called in above or len(above) > 100:
                raise UnreadableModel(path, f"function {called[1]} calls itself")
            if called in model.functions:
                if called not in sizes:
                    sizes[called] = size(model.functions[called], (*above, called))
                total += sizes[called]
            total += 1
        return total

    if size(model.graph, ()) > _MOST_INLINED:
        raise UnsupportedModel(path, f"its functions make over {_MOST_INLINED} nodes where they are called")


def with_shapes(proto: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """The model with inferred shapes; as it is, with a note, where inference fails."""
    functions = list(proto.functions)
    del proto.functions[:]  # inference would walk a function once a call
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    kept = onnx_stand_ins.put(proto.graph, opset)
    try:
        inferred = _inferred(proto)
    except Exception as error:  # onnx raises several kinds of its own
        notes.append(f"shapes were not inferred: {_one_line(error)}")
        inferred = proto
    onnx_stand_ins.restore(inferred.graph, kept)
    inferred.functions.extend(functions)
    return inferred


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """onnx's inference with its propagation of small integers, kept from what lets these explode.

    onnx computes a whole Range, and every Concat of known integers: a file of a few hundred bytes
    can ask for terabytes. So Ranges are hidden in a foreign domain while integers are propagated,
    and these are not propagated at all where Concats could make many of them.
    """
    infer = partial(onnx.shape_inference.infer_shapes, check_type=False, strict_mode=False)
    if _most_integers(proto.graph, {}) > _MOST_PROPAGATED:
        return infer(proto)
    ranges = [node for node in _all_nodes(proto.graph) if node.op_type == "Range" and not node.domain]
    if not ranges:
        return infer(proto, data_prop=True)
    for node in ranges:
        node.domain = MARK
    proto.opset_import.append(onnx.helper.make_opsetid(MARK, 1))
    proto = infer(proto, data_prop=True)
    for node in _all_nodes(proto.graph):
        if node.domain == MARK:
            node.domain = ""
    kept = [entry for entry in proto.opset_import if entry.domain != MARK]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    return infer(proto)


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _all_nodes(body)


def _most_integers(graph: onnx.GraphProto, counts: dict[str, int]) -> int:
    """A bound on the integers of any one value that propagation can make, Ranges apart: only Concat
    makes more of them than it is given, and a Shape has at most as many as there are axes."""
    counts.update((tensor.name, _inline(tensor)) for tensor in graph.initializer)
    for node in graph.node:
        given = [counts.get(name, 0) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("t"):
                given.append(_inline(attribute.t))
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                given.append(_most_integers(body, counts))
        if node.op_type in ("Shape", "Size"):
            given = [_MOST_AXES]
        made = sum(given) if node.op_type == "Concat" else max(given, default=0)
        counts.update(dict.fromkeys(node.output, min(made, 1 << 62)))
    return max((counts[name] for node in graph.node for name in node.output), default=0)


def _inline(tensor: onnx.TensorProto) -> int:
    """How many numbers of a tensor the skeleton holds."""
    return 0 if tensor.data_location == onnx.TensorProto.EXTERNAL else math.prod(tensor.dims)


@dataclass(slots=True)
class _Attacher:
    path: Path
    stored: list[Stored]
    tensors: list[Tensor | None]
    found: dict[int, Tensor] = field(default_factory=dict)

    def graph(self, graph: ir.Graph) -> None:
        for value in graph.initializers.values():
            self._hold(value, self._of(value.const_value))
        self.nodes(graph)

    def nodes(self, nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            plain = node.domain in ("", "ai.onnx")
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.GRAPH:
                    self.graph(attribute.as_graph())
                elif attribute.type == ir.AttributeType.GRAPHS:
                    for body in attribute.as_graphs():
                        self.graph(body)
                elif attribute.type == ir.AttributeType.TENSOR and name == "value" and plain:
                    self._value_attribute(node, attribute.as_tensor())

    def _value_attribute(self, node: ir.Node, held: Any) -> None:
        number = self._of(held)
        if number is None or self.tensors[number] is None:
            return
        if node.op_type == "Constant":
            self._hold(node.outputs[0], number)
            lazy = node.outputs[0].const_value
            node.attributes["value"] = ir.AttrTensor("value", lazy)
        elif node.op_type == "ConstantOfShape":
            filled = self._filled(node, number)
            if filled is None:
                node.meta["tensor"] = self.found.setdefault(number, self.tensors[number])
            else:
                self.found[number] = filled
                node.outputs[0].meta["tensor"] = filled

    def _filled(self, node: ir.Node, number: int) -> Tensor | None:
        """The whole array that a ConstantOfShape makes, where its shape is stored; a lazy view."""
        one = self.tensors[number]
        shape_of = node.inputs[0].meta.get("tensor") if node.inputs and node.inputs[0] is not None else None
        if one is None or shape_of is None or len(shape_of.shape) != 1 or shape_of.size > 16:
            return None
        shape = tuple(int(size) for size in shape_of.load())
        if any(size < 0 for size in shape) or math.prod(shape) > _MOST_FILLED:
            return None
        if number in self.found and self.found[number].shape != shape:
            return None
        return replace(one, shape=shape, load=partial(_fill, one, shape))

    def _hold(self, value: ir.Value, number: int | None) -> None:
        tensor = None if number is None else self.tensors[number]
        if tensor is None:
            return
        self.found[number] = tensor
        value.meta["tensor"] = tensor
        value.const_value = _lazy(tensor, self.stored[number].data_type)
        value.shape = ir.Shape(tensor.shape)
        value.type = ir.TensorType(ir.DataType(self.stored[number].data_type))

    def _of(self, held: Any) -> int | None:
        """The number of an ir tensor in the walk; None for a tensor that is left out."""
        mark = None if held is None else held.metadata_props.get(MARK)
        return None if mark is None else int(mark)


def _fill(one: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(one.load().reshape(()), shape)


def _lazy(tensor: Tensor, data_type: int) -> ir.LazyTensor:
    kind, shape = ir.DataType(data_type), ir.Shape(tensor.shape)
    return ir.LazyTensor(lambda: ir.Tensor(tensor.load(), dtype=kind), kind, shape, name=tensor.name)


def _drop_constant_inputs(model: ir.Model, notes: list[str]) -> None:
    """Initializers are no inputs of the network, though old files list them as such too."""
    held = [value for value in model.graph.inputs if value.name in model.graph.initializers]
    if held and (model.ir_version or 0) >= 4:
        notes.append(
            f"{len(held)} weights are also inputs, which a caller may override: the stored numbers are audited"
        )
    kept = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    model.graph.inputs[:] = kept
