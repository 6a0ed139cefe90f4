"""New contents for an archive's records, as edits of its file: all other bytes stay the input's."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping

from snaudit.errors import UnsupportedModel
from snaudit.formats.archive import DEFLATED, Archive, Field, Record
from snaudit.formats.storage import Edit

Content = Callable[[], bytes]
"""The new bytes of a record, made when they are needed and held one record at a time."""


def record_edits(archive: Archive, contents: Mapping[str, Content]) -> list[Edit]:
    """The edits that give the named records new contents of the same (unpacked) length.

    A stored record keeps its place, and only its bytes and its CRC change (which stays zero where
    the archive has none). A deflated one is deflated anew, and the offsets of what follows it move.
    """
    news = [_New(archive, archive.records[name], content) for name, content in contents.items()]
    edits = [edit for new in news for edit in new.edits()]
    if not any(new.record.method == DEFLATED for new in news):
        return edits

    def moved(fields: Iterable[Field], value: int, before: int) -> Iterable[Edit]:
        return (_edit(archive, field, lambda: value + sum(n.moved for n in news if n.record.header < before))
                for field in fields)

    for record in archive.records.values():
        edits += moved([record.offset], record.header, record.header)
    end = archive.end
    edits += moved(end.offsets, end.offset, end.offset)
    if end.zip64_at is not None:
        edits += moved([end.zip64_at], end.offset + end.size, end.offset)
    return edits


class _New:
    """One record's new content; it is made by the first edit in the file that needs it."""

    def __init__(self, archive: Archive, record: Record, content: Content) -> None:
        self.archive, self.record, self.content = archive, record, content
        self.moved = self.crc = self.length = 0
        self._packed: bytes | None = None

    def edits(self) -> list[Edit]:
        record = self.record
        out = [Edit(record.start, record.start + record.packed, self._take)]
        if self.archive.checked:
            out += [_edit(self.archive, field, lambda: self._made() and self.crc) for field in record.crcs]
        if record.method == DEFLATED:
            out += [_edit(self.archive, at, lambda: self._made() and self.length) for at in record.packeds]
        return out

    def _made(self) -> bool:
        if self._packed is None and not self.length:
            data = self.content()
            if len(data) != self.record.size:
                raise ValueError(f"{len(data)} bytes for record {self.record.name!r} of {self.record.size}")
            self.crc, packed = zlib.crc32(data), data
            if self.record.method == DEFLATED:
                engine = zlib.compressobj(6, zlib.DEFLATED, -15)
                packed = engine.compress(data) + engine.flush()
            self._packed, self.length = packed, len(packed)
            self.moved = self.length - self.record.packed
        return True

    def _take(self) -> bytes:
        self._made()
        packed, self._packed = self._packed, None
        return packed or b""


def _edit(archive: Archive, field: Field, value: Callable[[], int]) -> Edit:
    def make() -> bytes:
        number = value()
        if number >= 1 << 8 * field.width:
            raise UnsupportedModel(archive.source.path, "deflated anew, it would need the zip64 form")
        return field.pack(number)

    return Edit(field.at, field.at + field.width, make)
