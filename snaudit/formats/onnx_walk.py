"""The walk over an ONNX file: its nodes and graphs, and its skeleton, the same model without weights.

The skeleton is what protobuf parses. Documentation and claimed shapes of inner values are not in it,
and its tensors are in the plain form of `onnx_weights`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from snaudit.errors import UnreadableModel, UnsupportedModel
from snaudit.formats.onnx_tensors import Coding, Region, Role, Stored, add_region
from snaudit.formats.onnx_weights import Scope, Trail, Weights, elsewhere
from snaudit.formats.protobuf import BYTES, FIXED32, VARINT, Field, Wire, encoded
from snaudit.formats.source import Source
from snaudit.formats.storage import check_shape

_MOST_NODES = 200_000
_MOST_LINKS = 2_000_000
_DEEPEST = 24
_FIELD_OF_TYPE = {4: 5, 5: 6, 9: 10, 10: 11, 11: 22, 12: 23}
"""AttributeProto.type → the field of its value, for those that are messages."""
_PLAIN = {"value_float": (2, 1), "value_floats": (7, 1), "value_int": (3, 7), "value_ints": (8, 7)}
"""A Constant's plain attributes: the field that holds the value, and the data type it stands for."""


@dataclass(slots=True)
class Walk(Weights):
    """A walk over one file; `model` is the whole of it."""

    _nodes: int = 0
    _links: int = 0

    def model(self) -> bytes:
        """The skeleton of the whole file; its tensors are then in `tensors`."""
        fields = list(_limited(self, self.wire.fields(0, self.wire.source.size)))
        present = Counter(f.number for f in fields)
        if present[1] != 1 or present[7] != 1:
            raise UnreadableModel(self.path, "not an ONNX model: needs one ir_version and one graph")
        out = []
        for f in fields:
            if f.number == 7:
                out.append(encoded(7, self.graph(f, (f,), ())))
            elif f.number == 25:
                out.append(encoded(25, self._function(f)))
            elif f.number == 20:
                self._training(f)
            elif f.number != 6:
                out.append(self.copied(f))
        return b"".join(out)

    def graph(self, message: Field, trail: Trail, scope: Scope) -> bytes:
        """A GraphProto without documentation, without claimed shapes of inner values."""
        self.is_message(message)
        if len(scope) > _DEEPEST:
            raise UnsupportedModel(self.path, f"graphs nested more than {_DEEPEST} deep")
        out, index = [], 0
        for f in self.wire.fields(message.begin, message.end):
            if f.number == 1:
                out.append(encoded(1, self._node(f, (*trail, f), scope, index)))
                index += 1
            elif f.number == 5:
                out.append(encoded(5, self.tensor(f, (*trail, f), scope, "constant")))
            elif f.number == 15:
                out.append(encoded(5, self._sparse(f)))
            elif f.number not in (10, 13):
                out.append(self.copied(f))
        return b"".join(out)

    def _function(self, message: Field) -> bytes:
        self.is_message(message)
        fields = list(_limited(self, self.wire.fields(message.begin, message.end)))
        name = next((self.wire.text(f) for f in fields if f.number == 1), "function")
        out, index = [], 0
        for f in fields:
            if f.number == 7:
                out.append(encoded(7, self._node(f, (message, f), (name,), index)))
                index += 1
            elif f.number == 11:
                out.append(encoded(11, self._attribute(f, (message, f), (name,), "", name, "")))
            elif f.number not in (8, 12):
                out.append(self.copied(f))
        return b"".join(out)

    def _training(self, message: Field) -> None:
        """Walk a training graph only to know which files its tensors lie in."""
        self.is_message(message)
        self.leave_out("training_info", "the training graph is not audited")
        self.training = True
        for f in self.wire.fields(message.begin, message.end):
            if f.number in (1, 2):
                self.graph(f, (message, f), ("training",))
        self.training = False

    def _node(self, message: Field, trail: Trail, scope: Scope, index: int) -> bytes:
        self.is_message(message)
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise UnsupportedModel(self.path, f"more than {_MOST_NODES} nodes")
        fields = list(_limited(self, self.wire.fields(message.begin, message.end)))
        self.once(fields, (3, 4, 7, 8), message)
        texts = {f.number: self.wire.text(f) for f in reversed(fields) if f.number in (2, 3, 4, 7)}
        op, output = texts.get(4, ""), texts.get(2, "")
        if not op:
            raise self.wire.malformed(message.tag, "a node without an op")
        label = texts.get(3) or f"{op}_{index}"
        op = op if texts.get(7, "") in ("", "ai.onnx") else ""
        out, filled = [], False
        for f in fields:
            if f.number == 5:
                attribute = self._attribute(f, (*trail, f), scope, op, label, output)
                out.append(encoded(5, attribute) if attribute else b"")
                filled = True
            elif f.number != 6:
                out.append(self.copied(f))
        if op == "ConstantOfShape" and not filled:
            zero = Stored(output or label, 1, (1,), scope, self.role("fill"), "zero", (), trail)
            out.append(encoded(5, _tensor_attribute(self.written(zero))))
        return b"".join(out)

    def _attribute(
        self, message: Field, trail: Trail, scope: Scope, op: str, label: str, output: str
    ) -> bytes:
        """An AttributeProto; empty where it holds what is left out."""
        self.is_message(message)
        copied = _Spans(self)
        messages: list[Field] = []
        heads: dict[int, list[Field]] = {1: [], 20: [], 21: []}
        plain: dict[int, _Numbers] = {2: _Numbers(4), 7: _Numbers(4), 3: _Numbers(0), 8: _Numbers(0)}
        for f in self.wire.fields(message.begin, message.end):
            if f.number in _FIELD_OF_TYPE.values():
                messages.append(f)
                continue
            if f.number in heads:
                heads[f.number].append(f)
            elif f.number in plain:
                plain[f.number].add(self.wire, f)
            if f.number != 13:
                copied.add(f)
        self.once([f for fs in heads.values() for f in fs] + messages, (1, 20, 21, 5, 6, 22), message)
        name = self.wire.text(heads[1][0]) if heads[1] else ""
        kind = heads[20][0].value if heads[20] else 0
        if any(_FIELD_OF_TYPE.get(kind) != f.number for f in messages):
            raise self.wire.malformed(message.tag, f"attribute {name} is not of the type it says")
        if kind in (11, 12):
            self.leave_out(f"{output or label}.{name}", "sparse")
            return b""
        if op == "Constant" and name in _PLAIN and not heads[21]:
            stored = self._plain(name, plain, output or label, trail, scope)
            return _tensor_attribute(self.written(stored))
        return b"".join([copied.bytes(), *self._parts(messages, trail, scope, op, name, label, output)])

    def _parts(
        self, messages: list[Field], trail: Trail, scope: Scope, op: str, name: str, label: str, output: str
    ) -> list[bytes]:
        """The tensors and graphs of an attribute."""
        out = []
        for number, f in enumerate(messages):
            if f.number in (6, 11):
                inner = f"{label}.{name}" + (f"[{number}]" if f.number == 11 else "")
                out.append(encoded(f.number, self.graph(f, (*trail, f), (*scope, inner))))
                continue
            role: Role = "other"
            if name == "value" and f.number == 5 and op in ("Constant", "ConstantOfShape"):
                role = "constant" if op == "Constant" else "fill"
            own = (output or label) if role != "other" else f"{output or label}.{name}"
            out.append(encoded(f.number, self.tensor(f, (*trail, f), scope, role, own)))
        return out

    def _sparse(self, message: Field) -> bytes:
        """An initializer of the sparse tensor's name and shape, without numbers."""
        self.is_message(message)
        name, data_type, dims = b"", 1, []
        for f in self.wire.fields(message.begin, message.end):
            if f.number == 3:
                dims += self.dims(f)
            elif f.number == 1:
                self.is_message(f)
                for g in self.wire.fields(f.begin, f.end):
                    name = self.wire.text(g).encode() if g.number == 8 else name
                    data_type = g.value if g.number == 2 else data_type
            if len(dims) > 64:
                raise self.wire.malformed(message.tag, "a tensor with more than 64 sizes")
        check_shape(self.path, name.decode(), dims)
        self.leave_out(name.decode(), "sparse")
        sizes = b"".join(encoded(1, size) for size in dims)
        return sizes + encoded(2, data_type) + encoded(8, name) + elsewhere("sparse")

    def _plain(
        self, name: str, plain: dict[int, _Numbers], own: str, trail: Trail, scope: Scope
    ) -> Stored:
        number, data_type = _PLAIN[name]
        numbers = plain[number]
        many = name.endswith("s")
        if not many and numbers.count > 1:
            raise self.wire.malformed(trail[-1].tag, f"attribute {name} holds more than one number")
        dims = (numbers.count,) if many else ()
        coding: Coding = "fixed" if data_type == 1 else "varint"
        if not many and not numbers.count:
            coding = "zero"
        role = self.role("constant")
        return Stored(own, data_type, dims, scope, role, coding, tuple(numbers.regions), trail)

    def count_link(self) -> None:
        self._links += 1
        if self._links > _MOST_LINKS:
            raise UnsupportedModel(self.path, f"more than {_MOST_LINKS} inputs, outputs and attributes")


@dataclass(slots=True)
class _Numbers:
    """The regions and the count of one plain repeated field: `width` 4 for floats, 0 for varints."""

    width: int
    regions: list[Region] = field(default_factory=list)
    count: int = 0

    def add(self, wire: Wire, f: Field) -> None:
        if f.wire == BYTES and self.width:
            self.count += (f.end - f.begin) // self.width
        elif f.wire == BYTES:
            octets = np.frombuffer(wire.bytes(f.begin, f.end), np.uint8)
            self.count += int(np.count_nonzero(octets < 0x80))
        elif f.wire == (FIXED32 if self.width else VARINT):
            self.count += 1
        else:
            raise wire.malformed(f.tag, "an attribute's number of a wrong kind")
        add_region(wire, self.regions, f)


class _Spans:
    """Fields to be copied as they are; neighbours are read in one piece."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.spans: list[list[int]] = []

    def add(self, f: Field) -> None:
        self.walk.grow(f.end - f.tag)
        if self.spans and self.spans[-1][1] == f.tag:
            self.spans[-1][1] = f.end
        else:
            self.spans.append([f.tag, f.end])

    def bytes(self) -> bytes:
        return b"".join(self.walk.wire.bytes(begin, end) for begin, end in self.spans)


def _limited(walk: Walk, fields: Iterator[Field]) -> Iterator[Field]:
    for f in fields:
        walk.count_link()
        yield f


def _tensor_attribute(tensor: bytes) -> bytes:
    """An AttributeProto "value" of type TENSOR."""
    return encoded(1, b"value") + encoded(20, 4) + encoded(5, tensor)


def walked(source: Source) -> tuple[Walk, bytes]:
    """The walk over a file and the skeleton that it made."""
    walk = Walk(Wire(source))
    return walk, walk.model()
