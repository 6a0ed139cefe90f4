"""Copies of a file, or of a zip archive, in which some bytes differ and all others are the input's."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Mapping

from snaudit.errors import UnreadableModel, UnsupportedModel
from snaudit.formats.archive import BLOCK, DEFLATED, Archive, Field, Record
from snaudit.formats.source import Source
from snaudit.model import FileRead

Content = Callable[[], bytes]
"""The new bytes of something, made when they are needed and held one at a time."""


def check_same(source: Source, before: FileRead) -> None:
    """Raise UnreadableModel if the file is not the one that was read before."""
    now = source.record()
    if (now.size, now.sha256) != (before.size, before.sha256):
        raise UnreadableModel(source.path, "changed since it was read")


def patch_ranges(source: Source, changes: Iterable[tuple[int, Content]], fd: int) -> None:
    """Write the file to `fd` with the given contents in place of the bytes from each offset."""
    at = 0
    for start, content in sorted(changes, key=lambda change: change[0]):
        _copy(source, at, start, fd)
        data = content()
        _write(fd, data)
        at = start + len(data)
    _copy(source, at, source.size, fd)
    source.check_unchanged()


def patch_records(archive: Archive, contents: Mapping[str, Content], fd: int) -> None:
    """Write the archive to `fd` with new contents of the same length in the named records.

    A stored record keeps its place, so that all but its bytes and its CRC (which stays zero where
    the archive has none) is equal. A deflated one is deflated anew and what follows it moves.
    """
    edits: dict[int, bytes] = {}
    shift = 0
    for record in archive.records.values():
        _edit(archive, edits, [record.offset], record.header + shift, shift)
        content = contents.get(record.name)
        if content is None:
            _copy(archive.source, record.header, record.end, fd)
        else:
            shift += _replace(archive, record, content(), edits, fd)
    end = archive.end
    _edit(archive, edits, end.offsets, end.offset + shift, shift)
    if end.zip64_at is not None:
        _edit(archive, edits, [end.zip64_at], end.offset + end.size + shift, shift)
    _copy(archive.source, end.offset, archive.source.size, fd, edits)
    archive.source.check_unchanged()


def _replace(archive: Archive, record: Record, data: bytes, edits: dict[int, bytes], fd: int) -> int:
    """Write one record with new content; returns by how much the following ones move."""
    if len(data) != record.size:
        raise ValueError(f"{len(data)} bytes for record {record.name!r} of {record.size}")
    packed = data
    if record.method == DEFLATED:
        engine = zlib.compressobj(6, zlib.DEFLATED, -15)
        packed = engine.compress(data) + engine.flush()
    if archive.checked:
        _edit(archive, edits, record.crcs, zlib.crc32(data))
    moved = len(packed) - record.packed
    _edit(archive, edits, record.packeds, len(packed), moved)
    _copy(archive.source, record.header, record.start, fd, edits)
    _write(fd, packed)
    _copy(archive.source, record.start + record.packed, record.end, fd, edits)
    return moved


def _edit(archive: Archive, edits: dict[int, bytes], fields: Iterable[Field], value: int, changed: int = 1) -> None:
    for field in fields if changed else ():
        if value >= 1 << 8 * field.width:
            raise UnsupportedModel(archive.source.path, "deflated anew it would need the zip64 form")
        edits[field.at] = field.pack(value)


def _copy(source: Source, start: int, end: int, fd: int, edits: Mapping[int, bytes] | None = None) -> None:
    """Copy [start, end) of the file to `fd` block by block; `edits` replace the bytes from their keys."""
    inside = sorted(at for at in edits or () if start <= at < end)
    for at in inside:
        _copy(source, start, at, fd)
        _write(fd, edits[at])  # type: ignore[index]
        start = at + len(edits[at])  # type: ignore[index]
    for at in range(start, end, BLOCK):
        _write(fd, source.read(at, min(BLOCK, end - at)))


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[: 1 << 30]) :]
