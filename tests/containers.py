"""Writers of zip archives, pickles and torch files that can lie in every field.

The formats are assembled byte by byte, so that a test says exactly what is wrong with a file.
Nothing here is read back by these functions: they are no reference for the readers under test.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STORED, DEFLATED = 0, 8


@dataclass(frozen=True)
class Member:
    """A zip member. None means "the truth"; anything else is written as it is given."""

    name: str
    data: bytes
    method: int = STORED
    flags: int = 0
    crc: int | None = None
    declared: int | None = None
    """Uncompressed size, in both headers."""
    packed: int | None = None
    """Compressed size, in both headers."""
    local_name: str | None = None
    local_declared: int | None = None
    extra: bytes = b""
    central_extra: bytes = b""
    attributes: int = 0
    at: int | None = None
    """The local header's offset as the central directory has it; no local record is written."""


def zipped(
    *members: Member,
    prefix: bytes = b"",
    comment: bytes = b"",
    count: int | None = None,
    directory_shift: int = 0,
    suffix: bytes = b"",
) -> bytes:
    """A zip archive of the members; the keywords are the end record's lies."""
    out, directory = bytearray(prefix), bytearray()
    for m in members:
        body = m.data
        if m.method == DEFLATED:
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            body = packer.compress(m.data) + packer.flush()
        crc = zlib.crc32(m.data) if m.crc is None else m.crc
        declared = len(m.data) if m.declared is None else m.declared
        packed = len(body) if m.packed is None else m.packed
        name = m.name.encode()
        local = name if m.local_name is None else m.local_name.encode()
        local_declared = declared if m.local_declared is None else m.local_declared
        at = len(out) if m.at is None else m.at
        if m.at is None:
            out += struct.pack(
                "<4s5H3I2H",
                b"PK\3\4",
                20,
                m.flags,
                m.method,
                0,
                0x21,
                crc,
                packed,
                local_declared,
                len(local),
                len(m.extra),
            )
            out += local + m.extra + body
        directory += (
            struct.pack(
                "<4s6H3I5H2I",
                b"PK\1\2",
                0x314,
                20,
                m.flags,
                m.method,
                0,
                0x21,
                crc,
                packed,
                declared,
                len(name),
                len(m.central_extra),
                0,
                0,
                0,
                m.attributes,
                at,
            )
            + name
            + m.central_extra
        )
    total = len(members) if count is None else count
    end = struct.pack(
        "<4s4H2IH", b"PK\5\6", 0, 0, total, total, len(directory), len(out) + directory_shift, len(comment)
    )
    return bytes(out + directory) + end + comment + suffix


# Pickles: each function returns the opcodes that leave one value on the stack.

MARK, REDUCE, BUILD, NEWOBJ, PERSID, NONE, TRUE, FALSE = (
    b"(",
    b"R",
    b"b",
    b"\x81",
    b"Q",
    b"N",
    b"\x88",
    b"\x89",
)


def pickled(body: bytes, protocol: int = 2) -> bytes:
    """A whole pickle of the value that `body` leaves."""
    return b"\x80" + bytes([protocol]) + body + b"."


def name(module: str, attribute: str) -> bytes:
    """A global by GLOBAL."""
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def stack_name(module: str, attribute: str) -> bytes:
    """A global by STACK_GLOBAL."""
    return text(module) + text(attribute) + b"\x93"


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def items(*values: bytes) -> bytes:
    """A tuple."""
    return MARK + b"".join(values) + b"t"


def ints(values: tuple[int, ...]) -> bytes:
    return items(*map(integer, values))


def mapping(pairs: dict[str, bytes]) -> bytes:
    """A dict with string keys."""
    return b"}" + MARK + b"".join(text(k) + v for k, v in pairs.items()) + b"u"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + items(*arguments) + REDUCE


def storage(
    key: str, count: int, kind: str = "FloatStorage", device: str = "cpu", tail: bytes = b""
) -> bytes:
    """torch's persistent id of a storage, `tail` being legacy's view metadata."""
    return items(text("storage"), name("torch", kind), text(key), text(device), integer(count), tail) + PERSID


def view(held: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """torch._utils._rebuild_tensor_v2 of a storage."""
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        held,
        integer(offset),
        ints(shape),
        ints(strides),
        FALSE,
        call(name("collections", "OrderedDict")),
    )


def tensor(array: np.ndarray, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """A contiguous tensor of the array's shape, whose bytes stand in the record `key`."""
    strides = tuple(s // array.itemsize for s in np.ascontiguousarray(array).strides)
    return view(storage(key, array.size, kind), array.shape, strides)


def torch_members(
    body: bytes, records: dict[str, bytes], root: str = "archive", order: str = "little"
) -> list[Member]:
    """The members of a torch.save archive whose data.pkl holds the value `body`."""
    return [
        Member(f"{root}/data.pkl", pickled(body)),
        Member(f"{root}/byteorder", order.encode()),
        *(Member(f"{root}/data/{key}", data) for key, data in records.items()),
        Member(f"{root}/version", b"3\n"),
    ]


def torch_file(path: Path, body: bytes, records: dict[str, bytes], **keywords: str) -> Path:
    """A torch.save file (zip) of the value `body`."""
    path.write_bytes(zipped(*torch_members(body, records, **keywords)))
    return path


def legacy(
    body: bytes, keys: bytes, storages: bytes, magic: int = 0x1950A86A20F9469CFC6C, order: bytes = TRUE
) -> bytes:
    """A pre-zip torch.save file: five pickles, then for each key its length and its bytes."""
    sizes = mapping({"short": integer(2), "int": integer(4), "long": integer(4)})
    system = mapping({"protocol_version": integer(1001), "little_endian": order, "type_sizes": sizes})
    return b"".join(map(pickled, (integer(magic), integer(1001), system, body, keys))) + storages


def legacy_storage(array: np.ndarray) -> bytes:
    return struct.pack("<q", array.size) + array.tobytes()
