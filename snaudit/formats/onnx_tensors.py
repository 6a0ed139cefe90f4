"""TensorProto payloads: where their bytes lie in the file, and arrays out of them and into them.

ONNX keeps a tensor's data in one of six fields, or in a file beside the model. Half and quarter
precision numbers may stand in int32_data as varints of their bits, whose length changes with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from snaudit.errors import UnreadableModel
from snaudit.formats.beside import Beside
from snaudit.formats.protobuf import (
    BYTES,
    Field,
    Resize,
    Wire,
    encoded_varint,
    pack_varints,
    unpack_varints,
)
from snaudit.formats.storage import Edit, decode, dtype_of

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 17: "float8_e4m3fn",
    18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4_e2m1fn", 24: "float8_e8m0fnu",
}  # fmt: skip
"""TensorProto.DataType → the Tensor's dtype."""

LEFT_OUT = {
    8: "strings", 14: "complex64", 15: "complex128", 25: "uint2", 26: "int2", 27: "float6_e2m3fn",
    28: "float6_e3m2fn",
}  # fmt: skip
_NIBBLES = (21, 22, 23)
_FIELD_OF = {1: 4, 11: 10, 7: 7, 12: 11, 13: 11}
"""Which data field a type uses beside raw_data; int32_data (5) for all others."""
_LIMITS = {
    "int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535),
    "bool": (0, 1), "float16": (0, 65535), "bfloat16": (0, 65535), "uint32": (0, 2**32 - 1),
}  # fmt: skip
_MOST_REGIONS = 1000

Coding = Literal["raw", "fixed", "varint", "external", "zero"]
Role = Literal["constant", "fill", "other", "skipped", "training"]


class Region(NamedTuple):
    """Consecutive data: one packed field's payload, or (`packed` None) whole fields, one a number."""

    begin: int
    end: int
    packed: Field | None


class External(NamedTuple):
    """Data in a file beside the model. location, checksum: the value's field and what encloses it."""

    file: Beside
    offset: int
    length: int
    location: tuple[Field, ...]
    checksum: tuple[Field, ...] | None


@dataclass(slots=True)
class Stored:
    """A tensor as it stands in the file.

    scope   the names of the nodes and attributes around it, outermost first
    role    "constant": the value of that name; "fill": what a ConstantOfShape fills that value with;
            "other": of some other node; "skipped": of a type that is not audited; "training": in
            the training graph
    coding  how its numbers are written; "zero": they are absent, and zero by ONNX's default
    trail   the length-delimited fields that enclose its data regions
    """

    name: str
    data_type: int
    dims: tuple[int, ...]
    scope: tuple[str, ...]
    role: Role
    coding: Coding
    regions: tuple[Region, ...]
    trail: tuple[Field, ...]
    external: External | None = None

    @property
    def count(self) -> int:
        count = 1
        for size in self.dims:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers, packed as raw_data has them."""
        if self.data_type in _NIBBLES:
            return (self.count + 1) // 2
        return self.count * dtype_of(DTYPES[self.data_type]).itemsize


def data_field(data_type: int) -> int:
    """The number of the TensorProto field that holds this type's data, if it is not raw_data."""
    return _FIELD_OF.get(data_type, 5)


def add_region(wire: Wire, regions: list[Region], field: Field) -> None:
    """Add an occurrence of a data field; neighbours that are not packed become one region."""
    last = regions[-1] if regions else None
    if field.wire == BYTES:
        regions.append(Region(field.begin, field.end, field))
    elif last is not None and not last.packed and last.end == field.tag:
        regions[-1] = Region(last.begin, field.end, None)
    else:
        regions.append(Region(field.tag, field.end, None))
    if len(regions) > _MOST_REGIONS:
        raise wire.malformed(field.tag, "its data is torn into more than 1000 parts")


def raw_bytes(wire: Wire, stored: Stored) -> bytes:
    """The tensor's numbers as raw_data would hold them. Raises UnreadableModel where they are not
    exactly as many as the shape says, or do not fit its type."""
    if stored.external is not None:
        return stored.external.file.read(stored.external.offset, stored.nbytes)
    if stored.coding == "zero":
        return bytes(stored.nbytes)
    parts = [_region_bytes(wire, region) for region in stored.regions]
    raw = b"".join(parts)
    if stored.coding == "varint":
        raw = _from_varints(wire, stored, raw)
    if len(raw) != stored.nbytes:
        raise UnreadableModel(
            wire.source.path, f"{stored.name}: {len(raw)} bytes of data for shape {list(stored.dims)}"
        )
    return raw


def _region_bytes(wire: Wire, region: Region) -> bytes:
    if region.packed:
        return wire.source.read(region.begin, region.end - region.begin)
    parts = []
    for field in Wire(wire.source).fields(region.begin, region.end):
        parts.append(wire.source.read(field.begin, field.end - field.begin))
    return b"".join(parts)


def _from_varints(wire: Wire, stored: Stored, raw: bytes) -> bytes:
    try:
        values = unpack_varints(raw)
    except ValueError as error:
        raise UnreadableModel(wire.source.path, f"{stored.name}: malformed numbers") from error
    name = DTYPES[stored.data_type]
    if name in ("int64", "uint64"):
        return values.astype("<u8").tobytes()
    if name != "uint32":
        values = values.astype(np.uint32).view(np.int32)  # an int32 field is the low 32 bits
    low, high = _LIMITS.get(name, (0, 255))
    if name != "int32" and values.size and (values.min() < low or values.max() > high):
        raise UnreadableModel(wire.source.path, f"{stored.name}: a number outside {name}'s range")
    return values.astype(f"<u{_width(stored.data_type)}").tobytes()


def _width(data_type: int) -> int:
    """Bytes of one number as an integer: packed nibbles go by the byte."""
    return 1 if data_type in _NIBBLES else dtype_of(DTYPES[data_type]).itemsize


def to_array(wire: Wire, stored: Stored, raw: bytes) -> np.ndarray:
    """The array in its dtype; two nibbles to a byte, the lower first, are unpacked."""
    path, dtype = wire.source.path, DTYPES[stored.data_type]
    if stored.data_type not in _NIBBLES:
        return decode(path, stored.name, raw, dtype, stored.dims)
    octets = np.frombuffer(raw, np.uint8)
    nibbles = np.stack([octets & 15, octets >> 4], -1).ravel()[: stored.count]
    if dtype == "int4":
        signed = (nibbles.astype(np.int8) ^ 8) - 8
        return signed.astype(dtype_of(dtype)).reshape(stored.dims)
    if dtype == "uint4":
        return nibbles.astype(dtype_of(dtype)).reshape(stored.dims)
    return nibbles.view(dtype_of(dtype)).reshape(stored.dims)


def from_array(stored: Stored, array: np.ndarray) -> bytes:
    """The inverse of `to_array`: the bytes as raw_data holds them."""
    if stored.data_type not in _NIBBLES:
        return np.ascontiguousarray(array).tobytes()
    flat = np.ascontiguousarray(array).ravel()
    nibbles = flat.view(np.uint8) if stored.data_type == 23 else flat.astype(np.int8).view(np.uint8)
    nibbles = np.append(nibbles & 15, np.zeros(flat.size % 2, np.uint8))
    return (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes()


def replaced(wire: Wire, stored: Stored, make: Callable[[], bytes]) -> tuple[list[Edit], list[Resize]]:
    """What puts new numbers in a tensor's place inside the model file.

    make: gives them as raw_data would hold them; called now where the length depends on them, else
    when the bytes are written.
    """
    if stored.coding == "varint":
        return [], _new_varints(wire, stored, make())
    if len(stored.regions) != 1 or stored.regions[0].packed is None:
        raw = make()  # once, and not for each part
        make = partial(bytes, raw)
    edits, at = [], 0
    for region in stored.regions:
        if region.packed is not None:
            size = region.end - region.begin
            edits.append(Edit(region.begin, region.end, partial(_slice, make, at, size)))
        else:
            for field in Wire(wire.source).fields(region.begin, region.end):
                size = field.end - field.begin
                edits.append(Edit(field.begin, field.end, partial(_slice, make, at, size)))
                at += size
            size = 0
        at += size
    return edits, []


def _slice(make: Callable[[], bytes], at: int, size: int) -> bytes:
    return make()[at : at + size]


def _new_varints(wire: Wire, stored: Stored, raw: bytes) -> list[Resize]:
    kind = "i" if DTYPES[stored.data_type] in ("int8", "int16", "int32", "int64") else "u"
    numbers = np.frombuffer(raw, f"<{kind}{_width(stored.data_type)}")
    values = numbers.astype(np.int64).view(np.uint64) if kind == "i" else numbers.astype(np.uint64)
    changes, at = [], 0
    for region in stored.regions:
        old = np.frombuffer(_region_bytes(wire, region), np.uint8)
        part = values[at : at + int(np.count_nonzero(old < 0x80))]
        at += part.size
        if region.packed is not None:
            trail = (*stored.trail, region.packed)
            changes.append(Resize(region.begin, region.end, pack_varints(part), trail))
            continue
        fields = Wire(wire.source).fields(region.begin, region.end)
        for field, value in zip(fields, part, strict=True):
            changes.append(Resize(field.begin, field.end, encoded_varint(int(value)), stored.trail))
    return changes
