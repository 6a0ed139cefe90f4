"""The onnx_ir graph of an exported program (.pt2): its ATen calls translated, without running any.

A call that is not understood to the letter becomes a node of the domain "aten", which no rule knows:
a gap. What the file claims of shapes and dtypes is believed only where ONNX's own inference agrees.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from snaudit.errors import UnreadableModel
from snaudit.formats.aten_affine import AFFINE
from snaudit.formats.aten_attention import ATTENTION
from snaudit.formats.aten_calls import DOMAIN, OPSET, Ref, Untranslated, Writer
from snaudit.formats.aten_made import MADE
from snaudit.formats.aten_moves import COPIES, MOVES
from snaudit.formats.aten_pointwise import POINTWISE, Translator
from snaudit.formats.aten_recurrent import RECURRENT
from snaudit.formats.aten_sums import SUMS
from snaudit.formats.exported_program import (
    Call,
    NotTaken,
    Program,
    functional,
    may_write,
    program_of,
)
from snaudit.formats.onnx_graph import graph_of
from snaudit.formats.onnx_tensors import DTYPES as ONNX_DTYPES
from snaudit.formats.onnx_weights import MARK
from snaudit.model import Tensor

TRANSLATORS: dict[str, Translator] = POINTWISE | AFFINE | ATTENTION | RECURRENT | MOVES | COPIES | SUMS | MADE
VIEWS = frozenset(MOVES) | {
    "contiguous.default", "alias.default", "detach.default", "dropout.default", "feature_dropout.default",
    "alpha_dropout.default",
}  # fmt: skip
PURE = frozenset(TRANSLATORS) - VIEWS
NUMBERS = {name: number for number, name in ONNX_DTYPES.items()}
_INLINE = 512
_MOST_CONTAINERS = 2_000_000


@dataclass(frozen=True, slots=True)
class Translated:
    """The graph, or None with the reason; `opaque` are the ops that were not translated."""

    graph: ir.Model | None
    notes: tuple[str, ...]
    opaque: tuple[str, ...] = ()


ELSE = "torch.onnx.export of the module gives a graph, or its state dict with --architecture"


def translated(
    path: Path, text: bytes, tensors: Mapping[str, Tensor], dtypes: Mapping[int, str], sizes: tuple[str, ...] = ()
) -> Translated:
    """The graph in a model's JSON, with the archive's tensors in it.

    Raises UnreadableModel for JSON that is none, UsageError for sizes that are not the graph's.
    """
    if text.count(b"[") + text.count(b"{") > _MOST_CONTAINERS:  # a deflated record costs nothing, parsed it does
        return Translated(None, (f"its graph is not read: its JSON has over two million lists and objects; {ELSE}",))
    try:
        document = json.loads(
            text, parse_constant=_no_constant, parse_int=_bounded_int, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        raise UnreadableModel(path, "its program is not JSON") from error
    try:
        program = functional(program_of(document, dtypes), PURE, VIEWS)
        return program_graph(path, program, tensors, sizes)
    except NotTaken as error:
        return Translated(None, (f"its graph is not read: {error}; {ELSE}",))
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UnreadableModel(path, f"its program is malformed ({type(error).__name__}: {str(error)[:120]})") from error


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key that stands twice")
    return found


def _bounded_int(text: str) -> int:
    if len(text) > 20:
        raise ValueError("an integer of more than 20 digits")
    return int(text)


def program_graph(
    path: Path, program: Program, tensors: Mapping[str, Tensor], sizes: tuple[str, ...]
) -> Translated:
    """The graph of a program whose calls are functions. Raises NotTaken for what it cannot be."""
    names = _names(program, tensors)
    writer = Writer(program.claims, names)
    opaque = _write(program, writer)
    stored: list[Tensor] = [tensors[program.held[name]] for name in program.held if name in names]
    protos = [_initializer(number, tensor.name, tensor) for number, tensor in enumerate(stored)]
    for name, array in writer.constants.items():
        tensor = Tensor(name, array.shape, str(array.dtype), ("made", name), partial(_same, array))
        protos.append(_initializer(len(stored), name, tensor, array))
        stored.append(tensor)
    graph = helper.make_graph(
        writer.nodes, "program", [_input(program, name) for name in program.inputs],
        [onnx.ValueInfoProto(name=names.get(name, name)) for name in program.outputs], protos,
        value_info=[_value(program, name) for name in opaque],
    )  # fmt: skip
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    types = [SimpleNamespace(data_type=NUMBERS[tensor.dtype]) for tensor in stored]
    attached = graph_of(path, model.SerializeToString(), types, list(stored), sizes)  # type: ignore[arg-type]
    _check_claims(program, writer, attached.graph, {name for name in opaque})
    ops = tuple(dict.fromkeys(node.op_type for node in writer.nodes if node.domain == DOMAIN))
    notes = (f"ops of its graph that are not translated: {', '.join(ops[:8])}",) if ops else ()
    return Translated(attached.graph, (*notes, *attached.notes), ops)


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _names(program: Program, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{graph name: name of the tensor in the archive} of what is held; held tensors that are not read as
    tensors, and are used, keep the graph from being taken."""
    used = {name for call in program.calls for name in call.reads} | set(program.outputs)
    names: dict[str, str] = {}
    others = {*program.inputs, *(name for call in program.calls for name in call.outputs)}
    for name, own in program.held.items():
        if own in tensors and tensors[own].dtype in NUMBERS:
            if own in others or own in names.values() or "/" in own:
                raise NotTaken(f"two of its values are called {own}")
            claim = program.claims.get(name)
            if claim is None or (claim.shape, claim.dtype) != (tensors[own].shape, tensors[own].dtype):
                raise NotTaken(f"{own} is not of the shape and dtype that its graph says")
            names[name] = own
        elif name in used:
            raise NotTaken(f"the tensor {own}, which it uses, cannot be read")
    return names


def _write(program: Program, writer: Writer) -> list[str]:
    """Translate all calls; the outputs of those that stay opaque and depend on the network's input."""
    read = {name for call in program.calls for name in call.reads} | set(program.outputs)
    varying, opaque = set(program.inputs), []
    for call in program.calls:
        rest = translate(call, writer)
        if rest == list(call.outputs) and may_write(call):
            raise NotTaken(f"{call.label} may write into its inputs ({call.target}): export it in eval mode")
        if rest and any(name in read for name in rest):
            inputs = [writer.name_of(Ref(name)) for name in dict.fromkeys(call.reads)]
            node = helper.make_node(call.target, inputs, rest, name=call.label, domain=DOMAIN)
            node.doc_string = writer.refusal
            writer.nodes.append(node)
            opaque += [name for name in rest if varying & set(call.reads)]
        if varying & set(call.reads):
            varying.update(call.outputs)
    return opaque


def translate(call: Call, writer: Writer) -> list[str]:
    """Write a call's nodes; the outputs that they do not make."""
    translator = TRANSLATORS.get(call.target)
    nodes, constants, used = len(writer.nodes), len(writer.constants), len(writer.used)
    writer.label, writer.outputs = call.label, call.outputs
    try:
        if translator is None:
            raise Untranslated("there is no translation of it")
        try:
            inspect.signature(translator).bind(writer, **call.args)
        except TypeError as error:
            raise Untranslated("arguments that its schema does not have") from error
        translator(writer, **call.args)
    except Untranslated as refusal:
        writer.refusal = str(refusal)
        del writer.nodes[nodes:]
        while len(writer.constants) > constants:
            writer.constants.popitem()
        del writer.used[used:]
        return list(call.outputs)
    made = {name for node in writer.nodes[nodes:] for name in node.output}
    return [name for name in call.outputs if name not in made]


def _initializer(number: int, name: str, tensor: Tensor, array: np.ndarray | None = None) -> onnx.TensorProto:
    """A tensor of the skeleton: its number, and its content where it is small (shapes, axes)."""
    proto = onnx.TensorProto(name=name, data_type=NUMBERS[tensor.dtype], dims=tensor.shape)
    if array is not None and array.nbytes <= _INLINE:
        proto.raw_data = array.tobytes()
    else:
        proto.data_location = onnx.TensorProto.EXTERNAL
        proto.external_data.add(key="location", value=f"{MARK}-{number}")
    proto.metadata_props.add(key=MARK, value=str(number))
    return proto


def _input(program: Program, name: str) -> onnx.ValueInfoProto:
    claim = program.claims[name]
    if claim.dtype is None:
        raise NotTaken(f"input {name} has a dtype that ONNX does not have")
    shape = [size if size is not None else symbol for size, symbol in zip(claim.shape, program.symbols[name], strict=True)]
    return helper.make_tensor_value_info(name, NUMBERS[claim.dtype], shape)


def _value(program: Program, name: str) -> onnx.ValueInfoProto:
    """What the file claims of an opaque node's output. Its bound is a gap, whatever its shape is."""
    claim = program.claims.get(name)
    if claim is None or claim.dtype is None:
        return onnx.ValueInfoProto(name=name)
    return helper.make_tensor_value_info(name, NUMBERS[claim.dtype], list(claim.shape))


def _check_claims(program: Program, writer: Writer, graph: ir.Model, declared: set[str]) -> None:
    """Raise NotTaken where inference contradicts a claim, or where a claim was used that it does not confirm."""
    values = {value.name: value for value in graph.graph.inputs}
    values |= {output.name: output for node in graph.graph for output in node.outputs}
    used: dict[str, set[Any]] = {}
    for name, what in writer.used:
        used.setdefault(name, set()).add(what)
    for name, claim in program.claims.items():
        value = values.get(name)
        if value is None or name in declared:
            continue
        relied = used.get(name, set())
        if not _agrees(claim.shape, claim.dtype, value, relied):
            raise NotTaken(f"{name}: its shape or dtype is not what the program says")


def _agrees(shape: tuple[int | None, ...], dtype: str | None, value: ir.Value, relied: set[Any]) -> bool:
    kind = None if value.dtype is None else ONNX_DTYPES.get(int(value.dtype))
    if (kind is None and "dtype" in relied) or (None not in (kind, dtype) and kind != dtype):
        return False
    if value.shape is None:
        return not relied - {"dtype"}
    if len(value.shape) != len(shape):
        return False
    for axis, (claimed, found) in enumerate(zip(shape, value.shape, strict=True)):
        if isinstance(found, int):
            if claimed is not None and claimed != found:
                return False
        elif axis in relied:
            return False
    return True
