"""Zip archives: a strict reader and a patcher that keeps every byte it need not change.

A zip names each record twice (locally and in the central directory), and readers disagree about
which counts. So what is not told the same way twice is refused: the records must tile the file
from byte 0 to the central directory, names are unique, sizes are what the bytes say. The layout is
that of PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3 (zip64).
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from snaudit.errors import UnreadableModel
from snaudit.formats.source import Source

STORED, DEFLATED = 0, 8
BLOCK = 1 << 20
_MAX_RATIO, _MODEST = 200, 1 << 26  # weights never shrink 200-fold; runs of zeros of up to 64 MiB may
_STREAMED, _UTF8 = 0x8, 0x800
_SEALED = 0x1 | 0x20 | 0x40 | 0x2000  # encrypted, patch data, strong encryption, masked headers
_FOLDER = 0x10
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


@contextmanager
def unreadable_where_malformed(path: Path) -> Iterator[None]:
    """Turn what a parser trips over into UnreadableModel: the last line behind the explicit checks."""
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, struct.error, zlib.error,
            RecursionError, MemoryError) as error:
        reason = f"malformed: its parts do not fit together ({type(error).__name__})"
        raise UnreadableModel(path, reason) from error


@dataclass(frozen=True, slots=True)
class Field:
    """Where a number stands in the file, and its width in bytes."""

    at: int
    width: int

    def pack(self, value: int) -> bytes:
        return value.to_bytes(self.width, "little")


@dataclass(frozen=True, slots=True)
class Record:
    """One member of an archive, with where it lies: [header, start) [start, +packed) … end."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    header: int
    start: int
    end: int
    crcs: tuple[Field, ...]
    """Where the CRC stands: centrally first, locally, in the data descriptor."""
    packeds: tuple[Field, ...]
    """Where the packed size stands, in the same order."""
    offset: Field


class Archive:
    """A zip archive's records by name. Raises UnreadableModel for all that is ambiguous or false.

    `checked` is whether the records carry CRCs at all: torch can be told to write zeros.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        with unreadable_where_malformed(source.path):
            self.end = _end(source)
            self.records = _records(source, self.end)
        self.checked = any(record.crc for record in self.records.values())
        self._verified: set[str] = set()

    def fail(self, reason: str) -> NoReturn:
        raise UnreadableModel(self.source.path, reason)

    def __contains__(self, name: str) -> bool:
        return name in self.records

    def load(self, name: str, limit: int | None = None) -> bytes:
        """The record's bytes, of at most `limit`, inflated and checked against its CRC."""
        record = self.records[name]
        if limit is not None and record.size > limit:
            self.fail(f"record {name!r} is larger than the {limit} bytes that it may have")
        data = self.source.read(record.start, record.packed)
        if record.method == DEFLATED:
            data = self._inflated(record, data)
        if self.checked and zlib.crc32(data) != record.crc:
            self.fail(f"record {name!r} does not match its checksum: the file is damaged")
        self._verified.add(name)
        return data

    def read(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes of the record from `offset`; only these are held, if they are stored as is."""
        record = self.records[name]
        if offset < 0 or length < 0 or offset + length > record.size:
            self.fail(f"bytes {offset}..{offset + length} lie outside record {name!r}")
        if record.method == DEFLATED or length == record.size:
            return self.load(name)[offset : offset + length]
        if self.checked and name not in self._verified:
            self._verify(record)
        return self.source.read(record.start + offset, length)

    def _verify(self, record: Record) -> None:
        crc = 0
        for at in range(0, record.size, BLOCK):
            crc = zlib.crc32(self.source.read(record.start + at, min(BLOCK, record.size - at)), crc)
        if crc != record.crc:
            self.fail(f"record {record.name!r} does not match its checksum: the file is damaged")
        self._verified.add(record.name)

    def _inflated(self, record: Record, data: bytes) -> bytes:
        if record.size > max(_MODEST, _MAX_RATIO * record.packed):
            self.fail(f"record {record.name!r} claims to inflate {_MAX_RATIO}-fold: a decompression bomb")
        engine = zlib.decompressobj(-15)
        try:
            out = engine.decompress(data, record.size + 1)
        except zlib.error as error:
            raise UnreadableModel(self.source.path, f"record {record.name!r} does not inflate") from error
        if len(out) != record.size or not engine.eof or engine.unused_data:
            self.fail(f"record {record.name!r} does not inflate to the size that it declares")
        return out


@functools.lru_cache(maxsize=1)  # every format's sniffer asks
def names(source: Source) -> list[str]:
    """The names that a zip seems to hold, without judging it; [] if it is none. Never raises."""
    if source.read_up_to(0, 4) not in (b"PK\3\4", b"PK\5\6"):
        return []
    try:
        return list(Archive(source).records)
    except UnreadableModel:
        return _first_names(source)


def _first_names(source: Source) -> list[str]:
    """Names found in the first bytes, of a file that is truncated or lies: enough to guess its kind."""
    head = source.read_up_to(0, BLOCK)
    found, at = [], 0
    while (at := head.find(b"PK\3\4", at)) >= 0 and at + 30 <= len(head) and len(found) < 100:
        (length,) = struct.unpack_from("<H", head, at + 26)
        found.append(head[at + 30 : at + 30 + length].decode("utf-8", "replace"))
        at += 30
    return found


@dataclass(frozen=True, slots=True)
class End:
    count: int
    size: int
    offset: int
    offsets: tuple[Field, ...]
    """Where the central directory's offset stands."""
    zip64_at: Field | None
    """Where the offset of the zip64 end record stands."""


def _end(source: Source) -> End:
    """The end record, with the zip64 one where there is one; they must agree and end the file."""
    def fail(reason: str) -> NoReturn:
        raise UnreadableModel(source.path, reason)

    at = source.size - 22
    tail = source.read(at, 22) if at >= 0 else b""
    if tail[:4] != b"PK\5\6" or tail[20:] != b"\0\0":
        fail("no zip directory at the file's end: it is truncated, or something follows the archive")
    disk, directory_disk, here, count, size, offset = struct.unpack("<4H2I", tail[4:20])
    told = (here, count, size, offset)
    end, offsets, zip64_at = at, [Field(at + 16, 4)], None
    locator = source.read(at - 20, 20) if at >= 20 else b""
    if locator[:4] == b"PK\6\7":
        end = at - 76
        first, record_at, disks = struct.unpack("<IQI", locator[4:])
        record = source.read(end, 56) if end >= 0 else b""
        if record[:4] != b"PK\6\6" or record_at != end or first or disks > 1:
            fail("its zip64 end record is not where it should be")
        length, _, _, disk64, directory64, *wide = struct.unpack("<QHHIIQQQQ", record[4:])
        if length != 44 or disk64 or directory64:
            fail("its zip64 end record is malformed")
        full = (_FULL16, _FULL16, _FULL32, _FULL32)
        if any(t not in (w, f) for t, w, f in zip(told, wide, full, strict=True)):
            fail("its zip64 end record contradicts its end record")
        here, count, size, offset = wide
        offsets = [Field(end + 48, 8)] + ([] if told[3] == _FULL32 else offsets)
        zip64_at = Field(at - 12, 8)
    if disk or directory_disk or here != count:
        fail("it is one part of a zip split over several files")
    if offset + size != end or count * 46 > size:
        fail("its zip directory is not where the end record says")
    return End(count, size, offset, tuple(offsets), zip64_at)


def _records(source: Source, end: End) -> dict[str, Record]:
    """All records by name, in the file's order, after every check that needs no record's bytes."""
    def fail(reason: str) -> NoReturn:
        raise UnreadableModel(source.path, reason)

    directory, at, found = source.read(end.offset, end.size), 0, []
    for _ in range(end.count):
        if directory[at : at + 4] != b"PK\1\2" or at + 46 > end.size:
            fail("its zip directory is malformed")
        lengths = struct.unpack_from("<3H", directory, at + 28)
        length = 46 + sum(lengths)
        if at + length > end.size:
            fail("its zip directory is malformed")
        found.append(_central(directory[at : at + length], end.offset + at, fail))
        at += length
    if at != end.size:
        fail("bytes hide in its zip directory")
    found.sort(key=lambda record: record.header)
    records: dict[str, Record] = {}
    limits = [record.header for record in found[1:]] + [end.offset]
    if (found[0].header if found else end.offset) != 0:
        fail("bytes stand before the zip archive")
    for record, limit in zip(found, limits, strict=True):
        if record.name in records:
            fail(f"two records are called {record.name!r}")
        records[record.name] = _local(source, record, limit, fail)
    return records


def _central(entry: bytes, at: int, fail) -> Record:
    """A record as the central directory tells it; start and end are not known yet."""
    flags, method = struct.unpack_from("<2H", entry, 8)
    crc, packed, size, name_length, extra_length, _, disk = struct.unpack_from("<3I4H", entry, 16)
    (header,) = struct.unpack_from("<I", entry, 42)
    raw = entry[46 : 46 + name_length]
    name = _name(raw, flags, fail)
    values, fields = [size, packed, header], [Field(at + 24, 4), Field(at + 20, 4), Field(at + 42, 4)]
    wide = _zip64(entry, 46 + name_length, extra_length)
    if wide is not None:
        for index in range(3):
            if values[index] == _FULL32:
                if wide[1] < 8:
                    fail(f"record {name!r} has a malformed zip64 field")
                values[index] = int.from_bytes(entry[wide[0] : wide[0] + 8], "little")
                fields[index] = Field(at + wide[0], 8)
                wide = wide[0] + 8, wide[1] - 8
    if flags & _SEALED:
        fail(f"record {name!r} is encrypted")
    if method not in (STORED, DEFLATED):
        fail(f"record {name!r} is compressed by method {method}; only stored and deflated ones are read")
    if disk or (method == STORED and values[0] != values[1]):
        fail(f"record {name!r} declares two sizes")
    size, packed, header = values
    (attributes,) = struct.unpack_from("<I", entry, 38)
    if size and (attributes & _FOLDER or name.endswith("/")):  # torch then leaves its weights uninitialised
        fail(f"record {name!r} has bytes and is marked as a folder")
    crcs = (Field(at + 16, 4),)
    return Record(name, method, crc, packed, size, header, 0, 0, crcs, (fields[1],), fields[2])


def _local(source: Source, record: Record, limit: int, fail) -> Record:
    """The record with what its local header adds, after both were found to tell the same."""
    name, at = record.name, record.header
    if at + 30 > limit:
        fail(f"record {name!r} overlaps another")
    head = source.read(at, 30)
    flags, method = struct.unpack_from("<2H", head, 6)
    crc, packed, size, name_length, extra_length = struct.unpack_from("<3I2H", head, 14)
    start = at + 30 + name_length + extra_length
    if head[:4] != b"PK\3\4" or start + record.packed > limit:
        fail(f"record {name!r} does not lie where the zip directory says")
    head = source.read(at, start - at)
    if _name(head[30 : 30 + name_length], flags, fail) != name:
        fail(f"record {name!r} has another name in its own header")
    field, streamed = Field(at + 18, 4), bool(flags & _STREAMED)
    wide = _zip64(head, 30 + name_length, extra_length)
    if _FULL32 in (packed, size) and wide is not None and wide[1] >= 16:
        size, packed = struct.unpack_from("<2Q", head, wide[0])
        field = Field(at + wide[0] + 8, 8)
    told, true = (crc, packed, size), (record.crc, record.packed, record.size)
    lies = any(t != r and not (streamed and t == 0) for t, r in zip(told, true, strict=True))
    if lies or flags & _SEALED or method != record.method:
        fail(f"record {name!r} is told in two ways by its header and the zip directory")
    crcs, packeds = [*record.crcs], [*record.packeds]
    if not streamed or (crc, packed) != (0, 0):
        crcs.append(Field(at + 14, 4))
        packeds.append(field)
    data_end = start + record.packed
    if data_end != limit:
        raw = source.read(data_end, min(limit - data_end, 25))
        descriptor = _descriptor(raw, record) if streamed else None
        if descriptor is None:
            fail(f"bytes that belong to nothing follow record {name!r}")
        crcs.append(Field(data_end + descriptor[0], 4))
        packeds.append(Field(data_end + descriptor[0] + 4, descriptor[1]))
    return replace(record, start=start, end=limit, crcs=tuple(crcs), packeds=tuple(packeds))


def _descriptor(raw: bytes, record: Record) -> tuple[int, int] | None:
    """Where the CRC stands in a data descriptor and how wide its sizes are, if it is one and true."""
    for signature in (b"PK\7\10", b""):
        for width in (4, 8):
            numbers = record.crc.to_bytes(4, "little")
            if record.size < 1 << 8 * width and record.packed < 1 << 8 * width:
                numbers += record.packed.to_bytes(width, "little") + record.size.to_bytes(width, "little")
                if raw == signature + numbers:
                    return len(signature), width
    return None


def _name(raw: bytes, flags: int, fail) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError:
        fail("a record's name is no UTF-8")
    if not name or "\0" in name:
        fail(f"a record is called {name!r}")
    return name


def _zip64(entry: bytes, at: int, length: int) -> tuple[int, int] | None:
    """Where the zip64 field's numbers start, and their length; None if there is no such field."""
    end = at + length
    while at + 4 <= end:
        kind, size = struct.unpack_from("<2H", entry, at)
        if kind == 1 and at + 4 + size <= end:
            return at + 4, size
        at += 4 + size
    return None
