"""The tensors of an ONNX file: each TensorProto read where it stands, and written anew in one plain form.

The plain form is for the skeleton (`onnx_walk`): it carries the tensor's number as a metadata entry,
and data only of a few numbers; the rest stays in the file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from snaudit.errors import UnreadableModel, UnsupportedModel
from snaudit.formats.beside import Beside
from snaudit.formats.onnx_external import external_data
from snaudit.formats.onnx_tensors import (
    DTYPES,
    LEFT_OUT,
    Region,
    Role,
    Stored,
    add_region,
    data_field,
    raw_bytes,
)
from snaudit.formats.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    Field,
    Wire,
    encoded,
    unpack_varints,
)
from snaudit.formats.storage import check_shape
from snaudit.model import LeftOut

MARK = "snaudit"
_INLINE = 4096
_MOST_SKELETON = 1 << 29
_DATA = {4: FIXED32, 5: VARINT, 6: BYTES, 7: VARINT, 9: BYTES, 10: FIXED64, 11: VARINT}
"""The fields of a TensorProto that hold data, and the wire type of one number."""

Trail = tuple[Field, ...]
Scope = tuple[str, ...]


@dataclass(slots=True)
class Weights:
    """The tensors of one file as they are walked over, in its order, and what was left out."""

    wire: Wire
    tensors: list[Stored] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    files: dict[str, Beside] = field(default_factory=dict)
    training: bool = False
    _written: int = 0

    @property
    def path(self) -> Path:
        return self.wire.source.path

    def tensor(self, message: Field, trail: Trail, scope: Scope, role: Role, own: str = "") -> bytes:
        """A TensorProto in plain form; what it is and where its data lies goes into `tensors`."""
        self.is_message(message)
        heads: dict[int, list[Field]] = {2: [], 3: [], 8: [], 14: []}
        dims: list[int] = []
        regions: dict[int, list[Region]] = {}
        entries: list[Field] = []
        for f in self.wire.fields(message.begin, message.end):
            if f.number in heads:
                heads[f.number].append(f)
            elif f.number == 1:
                dims += self.dims(f)
            elif f.number in _DATA:
                if f.wire not in (BYTES, _DATA[f.number]):
                    raise self.wire.malformed(f.tag, "tensor data of a wrong kind")
                add_region(self.wire, regions.setdefault(f.number, []), f)
            elif f.number == 13:
                entries.append(f)
            if len(dims) > 64 or len(entries) > 64:
                raise self.wire.malformed(message.tag, "a tensor with more than 64 sizes or entries")
        self.once([f for fs in heads.values() for f in fs], tuple(heads), message)
        name = own or (self.wire.text(heads[8][0]) if heads[8] else "")
        data_type = heads[2][0].value if heads[2] else 0
        if not name:
            raise self.wire.malformed(message.tag, "an initializer without a name")
        if data_type not in DTYPES and data_type not in LEFT_OUT:
            raise UnreadableModel(self.path, f"{name}: data type {data_type} is not one of ONNX's")
        if heads[3]:
            raise UnsupportedModel(self.path, f"{name}: its data is split into segments")
        check_shape(self.path, name, dims)
        stored = Stored(name, data_type, tuple(dims), scope, self.role(role), "zero", (), trail)
        if heads[14] and heads[14][0].value == 1:
            self._is_one_field(name, len(regions) + 1)
            self._outside(stored, entries, trail)
        else:
            self._inside(stored, regions)
        kept = heads[8][0] if heads[8] else None
        if role == "fill" and (data_type not in DTYPES or stored.count != 1):
            raise UnreadableModel(self.path, f"{name}: ConstantOfShape's value is not one number")
        return self.written(stored, self.copied(kept) if kept else b"", regions.get(6))

    def _inside(self, stored: Stored, regions: dict[int, list[Region]]) -> None:
        self._is_one_field(stored.name, len(regions))
        if stored.data_type not in DTYPES:
            if stored.data_type == 8 and set(regions) - {6}:
                raise UnreadableModel(self.path, f"{stored.name}: strings in a field of another type")
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

    def written(
        self, stored: Stored, name: bytes = b"", strings: list[Region] | None = None
    ) -> bytes:
        """The skeleton's TensorProto; the tensor gets its number."""
        if stored.data_type not in DTYPES:
            self.leave_out(stored.name, f"dtype {LEFT_OUT[stored.data_type]} is not supported")
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
            out.append(elsewhere(str(number)))
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
            reason = f"{stored.name}: {count:g} numbers for shape {list(stored.dims)}"
            raise UnreadableModel(self.path, reason)

    def dims(self, f: Field) -> list[int]:
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

    def role(self, role: Role) -> Role:
        return "training" if self.training else role

    def leave_out(self, name: str, reason: str) -> None:
        if not self.training:
            reason = "sparse tensors are not supported" if reason == "sparse" else reason
            self.left_out.append(LeftOut(name, reason))

    def copied(self, f: Field) -> bytes:
        self.grow(f.end - f.tag)
        return self.wire.bytes(f.tag, f.end)

    def grow(self, size: int) -> None:
        """Count what the skeleton will hold; UnsupportedModel beyond what fits a protobuf message."""
        self._written += size
        if self._written > _MOST_SKELETON:
            raise UnsupportedModel(self.path, "the graph alone, without weights, is over 512 MB")

    def is_message(self, f: Field) -> None:
        if f.wire != BYTES:
            raise self.wire.malformed(f.tag, "a number where a message belongs")

    def once(self, fields: list[Field], numbers: tuple[int, ...], message: Field) -> None:
        present = Counter(f.number for f in fields)
        if any(present[number] > 1 for number in numbers):
            raise self.wire.malformed(message.tag, "a field that may stand once stands twice")


def elsewhere(what: str) -> bytes:
    """The fields of a TensorProto that say that its data is not here."""
    entry = encoded(1, b"location") + encoded(2, f"{MARK}-{what}".encode())
    return encoded(13, entry) + encoded(14, 1)


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
