"""Stored bytes: arrays out of them and into them, and copies of files with some ranges replaced."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from snaudit.errors import UnreadableModel, UnsupportedModel
from snaudit.formats.source import Source
from snaudit.model import FileRead, Tensor

_BLOCK = 1 << 20
_MOST_AXES = 32
_MOST_ELEMENTS = 1 << 60


def dtype_of(name: str) -> np.dtype:
    """The numpy dtype of a Tensor's dtype name; KeyError where this installation has none."""
    extended = getattr(ml_dtypes, name, None)
    try:
        return np.dtype(name if extended is None else extended)
    except TypeError as error:
        raise KeyError(name) from error


def check_shape(path: Path, name: str, shape: Sequence[int]) -> int:
    """The number of elements of a shape that numpy can hold; UnreadableModel for any other."""
    if len(shape) > _MOST_AXES:
        raise UnreadableModel(path, f"{name}: {len(shape)} axes")
    if any(size < 0 for size in shape):
        raise UnreadableModel(path, f"{name}: a negative size in its shape")
    if math.prod(size for size in shape if size) > _MOST_ELEMENTS:
        raise UnreadableModel(path, f"{name}: its shape claims more elements than any file holds")
    return math.prod(shape)


def decode(path: Path, name: str, raw: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The little-endian `raw` as an array; UnreadableModel for a boolean that is neither 0 nor 1."""
    if dtype == "bool" and raw and np.frombuffer(raw, np.uint8).max() > 1:
        raise UnreadableModel(path, f"{name}: a boolean is neither 0 nor 1")
    return np.frombuffer(raw, dtype_of(dtype)).reshape(shape)


def new_bytes(changes: Mapping[str, np.ndarray], tensors: Sequence[Tensor], path: Path) -> bytes:
    """The bytes that the changed ones of `tensors`, all of one place, must get there.

    Raises ValueError for another shape or dtype than the stored one, UnsupportedModel where two
    tensors of one place would have to become different.
    """
    found: bytes | None = None
    for tensor in tensors:
        if tensor.name not in changes:
            continue
        array = changes[tensor.name]
        if array.shape != tensor.shape or array.dtype != dtype_of(tensor.dtype):
            raise ValueError(f"{tensor.name}: {array.dtype} {array.shape} is not what is stored")
        raw = np.ascontiguousarray(array).tobytes()
        if found is not None and raw != found:
            reason = f"{tensor.name}: shares its bytes with a tensor that changes otherwise"
            raise UnsupportedModel(path, reason)
        found = raw
    if found is None:
        raise ValueError("none of these tensors changes")
    return found


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes begin..end of a file are replaced by what `make()` returns."""

    begin: int
    end: int
    make: Callable[[], bytes]


def edited(record: FileRead, edits: Sequence[Edit]) -> Iterator[bytes]:
    """The blocks of a copy of a file in which the (disjoint) ranges of `edits` are replaced.

    Raises UnreadableModel at the end if the file is not, byte for byte, the one that was read.
    """
    source = Source(record.path)
    digest = hashlib.sha256()
    try:
        position = 0
        for edit in sorted(edits, key=lambda edit: (edit.begin, edit.end)):
            if edit.begin < position:
                raise UnsupportedModel(record.path, "two overlapping parts of the file both change")
            yield from _hashed(source, position, edit.begin, digest)
            for _ in _hashed(source, edit.begin, edit.end, digest):
                pass
            yield edit.make()
            position = edit.end
        yield from _hashed(source, position, source.size, digest)
        source.check_unchanged()
    finally:
        source.close()
    if digest.hexdigest() != record.sha256:
        raise UnreadableModel(record.path, "changed since it was read")


def writer(record: FileRead, edits: Sequence[Edit]) -> Callable[[int], None]:
    """A function that writes such a copy on an empty file."""

    def write(fd: int) -> None:
        for block in edited(record, edits):
            view = memoryview(block)
            while view:
                view = view[os.write(fd, view) :]

    return write


def free_names(folder: Path, pattern: Callable[[str], Sequence[str]]) -> Sequence[str]:
    """The first of pattern(""), pattern("-2"), pattern("-3"), … of which no name exists in the folder."""
    number = 1
    while True:
        names = pattern("" if number == 1 else f"-{number}")
        if not any(os.path.lexists(folder / name) for name in names):
            return names
        number += 1


def _hashed(source: Source, begin: int, end: int, digest: hashlib._Hash) -> Iterator[bytes]:
    for offset in range(begin, end, _BLOCK):
        block = source.read(offset, min(_BLOCK, end - offset))
        digest.update(block)
        yield block
