"""The walk over an ONNX file: every tensor it holds, and its skeleton, the same model without weights.

The skeleton is what protobuf parses. In it every tensor is written anew in one plain form, with its
number in the walk as a metadata entry; data of more than a few numbers stays in the file.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from snaudit.errors import UnreadableModel, UnsupportedModel
from snaudit.formats.beside import Beside
from snaudit.formats.onnx_external import external_data
from snaudit.formats.onnx_tensors import (
    DTYPES,
    LEFT_OUT,
    Coding,
    Region,
    Role,
    Stored,
    add_region,
    data_field,
    raw_bytes,
)
from snaudit.formats.protobuf import BYTES, FIXED32, FIXED64, VARINT, Field, Wire, encoded, unpack_varints
from snaudit.formats.source import Source
from snaudit.formats.storage import check_shape
from snaudit.model import LeftOut

MARK = "snaudit"
_INLINE = 4096
_MOST_SKELETON = 1 << 29
_MOST_NODES = 200_000
_MOST_LINKS = 2_000_000
_DEEPEST = 24
_DATA = {4: FIXED32, 5: VARINT, 6: BYTES, 7: VARINT, 9: BYTES, 10: FIXED64, 11: VARINT}
"""The fields of a TensorProto that hold data, and the wire type of one number."""
_FIELD_OF_TYPE = {4: 5, 5: 6, 9: 10, 10: 11, 11: 22, 12: 23}
"""AttributeProto.type → the field of its value, for those that are messages."""
_PLAIN = {"value_float": (2, 1), "value_floats": (7, 1), "value_int": (3, 7), "value_ints": (8, 7)}
"""A Constant's plain attributes: the field that holds the value, and the data type it stands for."""

Trail = tuple[Field, ...]
Scope = tuple[str, ...]


@dataclass(slots=True)
class Walk:
    """What a walk finds; `tensors` in the file's order."""

    wire: Wire
    tensors: list[Stored] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    files: dict[str, Beside] = field(default_factory=dict)
    training: bool = False
    _written: int = 0
    _nodes: int = 0
    _links: int = 0

    @property
    def path(self) -> Path:
        return self.wire.source.path

    # -- messages ----------------------------------------------------------------------------

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
                out.append(self._copied(f))
        return b"".join(out)

    def graph(self, message: Field, trail: Trail, scope: Scope) -> bytes:
        """A GraphProto without documentation, without claimed shapes of inner values."""
        self._is_message(message)
        if len(scope) > _DEEPEST:
            raise UnsupportedModel(self.path, f"graphs nested more than {_DEEPEST} deep")
        out, index = [], 0
        for f in self.wire.fields(message.begin, message.end):
            if f.number == 1:
                out.append(encoded(1, self._node(f, (*trail, f), scope, index)))
                index += 1
            elif f.number == 5:
                out.append(encoded(5, self._tensor(f, (*trail, f), scope, "constant")))
            elif f.number == 15:
                self._leave_out(f"sparse initializer in {'/'.join(scope) or 'the graph'}", "sparse")
            elif f.number not in (10, 13):
                out.append(self._copied(f))
        return b"".join(out)

    def _function(self, message: Field) -> bytes:
        self._is_message(message)
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
                out.append(self._copied(f))
        return b"".join(out)

    def _training(self, message: Field) -> None:
        """Walk a training graph only to know which files its tensors lie in."""
        self._is_message(message)
        self._leave_out("training_info", "the training graph is not audited")
        self.training = True
        for f in self.wire.fields(message.begin, message.end):
            if f.number in (1, 2):
                self.graph(f, (message, f), ("training",))
        self.training = False

    def _node(self, message: Field, trail: Trail, scope: Scope, index: int) -> bytes:
        self._is_message(message)
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise UnsupportedModel(self.path, f"more than {_MOST_NODES} nodes")
        fields = list(_limited(self, self.wire.fields(message.begin, message.end)))
        self._once(fields, (3, 4, 7, 8), message)
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
                out.append(self._copied(f))
        if op == "ConstantOfShape" and not filled:
            zero = Stored(output or label, 1, (1,), scope, self._role("fill"), "zero", (), trail)
            out.append(encoded(5, _tensor_attribute(self._written_tensor(zero))))
        return b"".join(out)

    def _attribute(
        self, message: Field, trail: Trail, scope: Scope, op: str, label: str, output: str
    ) -> bytes:
        """An AttributeProto; empty where it holds what is left out."""
        self._is_message(message)
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
        self._once([f for fs in heads.values() for f in fs] + messages, (1, 20, 21, 5, 6, 22), message)
        name = self.wire.text(heads[1][0]) if heads[1] else ""
        kind = heads[20][0].value if heads[20] else 0
        if any(_FIELD_OF_TYPE.get(kind) != f.number for f in messages):
            raise self.wire.malformed(message.tag, f"attribute {name} is not of the type it says")
        if kind in (11, 12):
            self._leave_out(f"{output or label}.{name}", "sparse")
            return b""
        if op == "Constant" and name in _PLAIN and not heads[21]:
            stored = self._plain(name, plain, output or label, trail, scope)
            return _tensor_attribute(self._written_tensor(stored))
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
            out.append(encoded(f.number, self._tensor(f, (*trail, f), scope, role, own)))
        return out

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
        role = self._role("constant")
        return Stored(own, data_type, dims, scope, role, coding, tuple(numbers.regions), trail)

    # -- tensors -----------------------------------------------------------------------------

    def _tensor(self, message: Field, trail: Trail, scope: Scope, role: Role, own: str = "") -> bytes:
        """A TensorProto in plain form; what it is and where its data lies goes into `tensors`."""
        self._is_message(message)
        heads: dict[int, list[Field]] = {2: [], 3: [], 8: [], 14: []}
        dims: list[int] = []
        regions: dict[int, list[Region]] = {}
        entries: list[Field] = []
        for f in self.wire.fields(message.begin, message.end):
            if f.number in heads:
                heads[f.number].append(f)
            elif f.number == 1:
                dims += self._dims(f)
            elif f.number in _DATA:
                if f.wire not in (BYTES, _DATA[f.number]):
                    raise self.wire.malformed(f.tag, "tensor data of a wrong kind")
                add_region(self.wire, regions.setdefault(f.number, []), f)
            elif f.number == 13:
                entries.append(f)
            if len(dims) > 64 or len(entries) > 64:
                raise self.wire.malformed(message.tag, "a tensor with more than 64 sizes or entries")
        self._once([f for fs in heads.values() for f in fs], tuple(heads), message)
        name = own or (self.wire.text(heads[8][0]) if heads[8] else "")
        data_type = heads[2][0].value if heads[2] else 0
        if not name:
            raise self.wire.malformed(message.tag, "an initializer without a name")
        if data_type not in DTYPES and data_type not in LEFT_OUT:
            raise UnreadableModel(self.path, f"{name}: data type {data_type} is not one of ONNX's")
        if heads[3]:
            raise UnsupportedModel(self.path, f"{name}: its data is split into segments")
        check_shape(self.path, name, dims)
        stored = Stored(name, data_type, tuple(dims), scope, self._role(role), "zero", (), trail)
        if heads[14] and heads[14][0].value == 1:
            self._is_one_field(name, len(regions) + 1)
            self._outside(stored, entries, trail)
        else:
            self._inside(stored, regions)
        kept = heads[8][0] if heads[8] else None
        if role == "fill" and (data_type not in DTYPES or stored.count != 1):
            raise UnreadableModel(self.path, f"{name}: ConstantOfShape's value is not one number")
        return self._written_tensor(stored, self._copied(kept) if kept else b"", regions.get(6))

    def _inside(self, stored: Stored, regions: dict[int, list[Region]]) -> None:
        self._is_one_field(stored.name, len(regions))
        if stored.data_type not in DTYPES:
            return
        for number, found in regions.items():
            if number not in (9, data_field(stored.data_type)):
                raise UnreadableModel(self.path, f"{stored.name}: its data stands in a field of another type")
            if number == 9 and len(found) > 1:
                raise UnreadableModel(self.path, f"{stored.name}: raw_data occurs twice")
            stored.coding = "raw" if number == 9 else "fixed" if _DATA[number] != VARINT else "varint"
            stored.regions = tuple(found)
        if not regions:
            if stored.count:
                raise UnreadableModel(self.path, f"{stored.name}: no data for shape {list(stored.dims)}")
            stored.coding = "raw"
        if stored.coding == "raw":
            size = sum(region.end - region.begin for region in stored.regions)
            self._has_size(stored, size)

    def _outside(self, stored: Stored, entries: list[Field], trail: Trail) -> None:
        size = stored.nbytes if stored.data_type in DTYPES else None
        stored.external = external_data(self.wire, stored.name, entries, trail, size, self.files)
        stored.coding = "external"
        if size is not None:
            self._has_size(stored, stored.external.length)

    def _has_size(self, stored: Stored, size: int) -> None:
        if size != stored.nbytes:
            raise UnreadableModel(
                self.path, f"{stored.name}: {size} bytes of data for shape {list(stored.dims)}"
            )

    def _is_one_field(self, name: str, count: int) -> None:
        if count > 1:
            raise UnreadableModel(self.path, f"{name}: its data stands in more than one field")

    def _written_tensor(
        self, stored: Stored, name: bytes = b"", strings: list[Region] | None = None
    ) -> bytes:
        """The skeleton's TensorProto; the tensor gets its number."""
        if stored.data_type not in DTYPES:
            self._leave_out(stored.name, f"dtype {LEFT_OUT[stored.data_type]} is not supported")
            stored.role = "skipped"
        number = len(self.tensors)
        self.tensors.append(stored)
        out = [name] + [encoded(1, size) for size in stored.dims] + [encoded(2, stored.data_type)]
        small = stored.role != "skipped" and stored.nbytes <= _INLINE
        if stored.coding in ("fixed", "varint") and not small:
            self._count_numbers(stored)
        if small:
            out.append(encoded(9, raw_bytes(self.wire, stored)))
        elif stored.data_type == 8 and strings and sum(r.end - r.begin for r in strings) <= _INLINE:
            out += [encoded(6, self.wire.bytes(r.begin, r.end)) for r in strings]
        else:
            entry = encoded(1, b"location") + encoded(2, f"{MARK}-{number}".encode())
            out += [encoded(13, entry), encoded(14, 1)]
        mark = encoded(1, MARK.encode()) + encoded(2, str(number).encode())
        out.append(encoded(16, mark))
        return b"".join(out)

    def _count_numbers(self, stored: Stored) -> None:
        """Raise unless a big tensor holds as many numbers as its shape says."""
        count = 0
        for region in stored.regions:
            if not region.packed:
                count += sum(1 for _ in self.wire.fields(region.begin, region.end))
            elif stored.coding == "fixed":
                count += (region.end - region.begin) / (8 if stored.data_type == 11 else 4)
            else:
                for at in range(region.begin, region.end, 1 << 20):
                    block = self.wire.source.read(at, min(1 << 20, region.end - at))
                    count += int(np.count_nonzero(np.frombuffer(block, np.uint8) < 0x80))
        wanted = stored.nbytes if stored.data_type in (21, 22, 23) else stored.count
        if count != wanted:
            raise UnreadableModel(self.path, f"{stored.name}: {count:g} numbers for shape {list(stored.dims)}")

    # -- small parts -------------------------------------------------------------------------

    def _dims(self, f: Field) -> list[int]:
        if f.wire == VARINT:
            values = [f.value]
        elif f.wire == BYTES and f.end - f.begin <= 640:
            try:
                values = unpack_varints(self.wire.bytes(f.begin, f.end)).tolist()
            except ValueError as error:
                raise self.wire.malformed(f.tag, "malformed sizes") from error
        else:
            raise self.wire.malformed(f.tag, "malformed sizes")
        return [value - (1 << 64) if value >> 63 else value for value in values]

    def _role(self, role: Role) -> Role:
        return "training" if self.training else role

    def _leave_out(self, name: str, reason: str) -> None:
        if not self.training:
            reason = "sparse tensors are not supported" if reason == "sparse" else reason
            self.left_out.append(LeftOut(name, reason))

    def _copied(self, f: Field) -> bytes:
        self.grow(f.end - f.tag)
        return self.wire.bytes(f.tag, f.end)

    def grow(self, size: int) -> None:
        """Count what the skeleton will hold; UnsupportedModel beyond what fits a protobuf message."""
        self._written += size
        if self._written > _MOST_SKELETON:
            raise UnsupportedModel(self.path, "the graph alone, without weights, is over 512 MB")

    def count_link(self) -> None:
        self._links += 1
        if self._links > _MOST_LINKS:
            raise UnsupportedModel(self.path, f"more than {_MOST_LINKS} inputs, outputs and attributes")

    def _is_message(self, f: Field) -> None:
        if f.wire != BYTES:
            raise self.wire.malformed(f.tag, "a number where a message belongs")

    def _once(self, fields: list[Field], numbers: tuple[int, ...], message: Field) -> None:
        present = Counter(f.number for f in fields)
        if any(present[number] > 1 for number in numbers):
            raise self.wire.malformed(message.tag, "a field that may stand once stands twice")


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


def unique_names(tensors: list[Stored]) -> list[str]:
    """A name for each tensor: its own, with its scope in front where another tensor has the same,
    and with a number behind where that is not enough."""
    own = Counter(stored.name for stored in tensors)
    taken: set[str] = set()
    names = []
    for stored in tensors:
        name = stored.name
        if own[name] > 1 and stored.scope:
            name = "/".join((*stored.scope, name))
        number, first = 2, name
        while name in taken or (name != stored.name and name in own):
            name = f"{first}#{number}"
            number += 1
        taken.add(name)
        names.append(name)
    return names
