"""Protobuf's wire format, walked in the file: every length checked, big payloads left where they lie.

Protocol Buffers encoding: https://protobuf.dev/programming-guides/encoding. Groups are not accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from snaudit.errors import UnreadableModel, UnsupportedModel
from snaudit.formats.source import Source
from snaudit.formats.storage import Edit

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WINDOW = 1 << 16
_MOST_FIELDS = 10_000_000


class Field(NamedTuple):
    """One field of a message: its tag at `tag`, its length (if it has one) at `length`, its payload
    at begin..end; `value` is a varint's."""

    number: int
    wire: int
    tag: int
    length: int
    begin: int
    end: int
    value: int = 0


class Wire:
    """A file's bytes as protobuf fields. Raises UnreadableModel with the byte where it is malformed."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._start = 0
        self._window = b""
        self._fields = 0

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """The fields of the message in begin..end; each lies inside it."""
        at = begin
        while at < end:
            self._fields += 1
            if self._fields > _MOST_FIELDS:
                raise UnsupportedModel(self.source.path, f"more than {_MOST_FIELDS} protobuf fields")
            tag, after = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            if number == 0 or number >= 1 << 29:
                raise self.malformed(at, "no such protobuf field")
            if wire == BYTES:
                size, start = self.varint(after, end)
                field = Field(number, wire, at, after, start, start + size)
            elif wire == VARINT:
                value, stop = self.varint(after, end)
                field = Field(number, wire, at, after, after, stop, value)
            elif wire in (FIXED32, FIXED64):
                field = Field(number, wire, at, after, after, after + (4 if wire == FIXED32 else 8))
            else:
                raise self.malformed(at, "no such protobuf wire type")
            if field.end > end:
                raise self.malformed(at, "truncated, or a length that leads out of its message")
            yield field
            at = field.end

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """The unsigned 64-bit varint at `at`, and the position after it."""
        if not self._start <= at <= self._start + len(self._window) - 10:
            self._window = self.source.read_up_to(at, _WINDOW)
            self._start = at
        window, first = self._window, at - self._start
        value = shift = 0
        for index in range(first, min(first + 10, end - self._start, len(window))):
            byte = window[index]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, self._start + index + 1
            shift += 7
        raise self.malformed(at, "a malformed or truncated number")

    def bytes(self, begin: int, end: int) -> bytes:
        """The file's bytes begin..end."""
        if self._start <= begin and end <= self._start + len(self._window):
            return self._window[begin - self._start : end - self._start]
        return self.source.read(begin, end - begin)

    def text(self, field: Field) -> str:
        """A field's payload as text; UnreadableModel if it is not UTF-8."""
        if field.wire != BYTES:
            raise self.malformed(field.tag, "a number where a string belongs")
        try:
            return self.bytes(field.begin, field.end).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.malformed(field.begin, "a name that is not UTF-8") from error

    def malformed(self, at: int, what: str) -> UnreadableModel:
        return UnreadableModel(self.source.path, f"byte {at}: {what}")


def encoded_varint(value: int) -> bytes:
    """A non-negative integer below 2⁶⁴ as a varint."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encoded(number: int, payload: bytes | int) -> bytes:
    """A field: a varint for an integer, length and bytes for bytes."""
    if isinstance(payload, int):
        return encoded_varint(number << 3 | VARINT) + encoded_varint(payload)
    return encoded_varint(number << 3 | BYTES) + encoded_varint(len(payload)) + payload


def unpack_varints(raw: bytes) -> np.ndarray:
    """The uint64 values of packed varints; ValueError if the last one is cut or one is too long."""
    octets = np.frombuffer(raw, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    if octets.size and (not ends.size or ends[-1] != octets.size - 1):
        raise ValueError("truncated")
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1]) if ends.size else ends
    lengths = ends - starts + 1
    longest = int(lengths.max(initial=0))
    if longest > 10:
        raise ValueError("too long")
    values = np.zeros(ends.size, np.uint64)
    for k in range(longest):
        more = lengths > k
        part = (octets[starts[more] + k] & 0x7F).astype(np.uint64)
        values[more] |= part << np.uint64(7 * k)
    return values


def pack_varints(values: np.ndarray) -> bytes:
    """uint64 values as packed varints."""
    lengths = np.ones(values.size, np.int64)
    for k in range(1, 10):
        lengths += values >= np.uint64(1 << 7 * k)
    ends = np.cumsum(lengths)
    out = np.empty(int(ends[-1]) if values.size else 0, np.uint8)
    for k in range(int(lengths.max(initial=0))):
        here = lengths > k
        low = (values[here] >> np.uint64(7 * k)) & np.uint64(0x7F)
        high = np.where(lengths[here] > k + 1, 0x80, 0).astype(np.uint64)
        out[(ends - lengths)[here] + k] = (low | high).astype(np.uint8)
    return out.tobytes()


class Resize(NamedTuple):
    """begin..end becomes `new`, and the lengths of all enclosing fields (outermost first) follow."""

    begin: int
    end: int
    new: bytes
    trail: tuple[Field, ...]


def resized(changes: Iterable[Resize]) -> Sequence[Edit]:
    """The edits that make these changes and set every enclosing length right, which may itself
    need more or fewer bytes, and so change the lengths around it."""
    edits: list[Edit] = []
    growth: dict[int, int] = {}
    around: dict[int, tuple[Field, tuple[Field, ...]]] = {}
    for change in changes:
        edits.append(Edit(change.begin, change.end, lambda new=change.new: new))
        for depth, field in enumerate(change.trail):
            around[field.length] = (field, change.trail[:depth])
            growth[field.length] = growth.get(field.length, 0) + len(change.new) - (change.end - change.begin)
    for at in sorted(around, reverse=True):  # a later length lies further in
        field, outer = around[at]
        if growth[at] == 0:
            continue
        new = encoded_varint(field.end - field.begin + growth[at])
        edits.append(Edit(field.length, field.begin, lambda new=new: new))
        for other in outer:
            growth[other.length] += len(new) - (field.begin - field.length)
    return edits
