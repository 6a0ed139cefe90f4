"""NumPy's npz: a zip of .npy arrays. Arrays of objects are pickles and stay closed.

The header of a .npy (NEP 1) is a Python literal; here it is matched, not evaluated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from snaudit.errors import EmptyModel, UsageError
from snaudit.formats.archive import Archive, names, unreadable_where_malformed
from snaudit.formats.interface import Format, Patched
from snaudit.formats.records import record_edits
from snaudit.formats.source import Source
from snaudit.formats.storage import writer
from snaudit.model import LeftOut, Model, Tensor

_MAX_HEADER = 10_000  # numpy's own limit
_MAX_RANK = 32
_DTYPE = re.compile(r"[<>|=]?([fiub][1248]|f16|c8|c16|b1)")
_SHAPE = re.compile(r"\((?:\s*(\d{1,19})L?\s*(?:,\s*\d{1,19}L?\s*)*,?\s*)?\)")
_CLOSED = {
    "O": "an array of objects (a pickle)", "V": "raw bytes of a dtype that npz does not name",
    "U": "an array of text", "S": "an array of text", "a": "an array of text", "M": "an array of times",
    "m": "an array of times",
}
"""Kinds of dtype that are not audited."""
_ENTRY = re.compile(r"\s*'(descr|fortran_order|shape)'\s*:\s*("
                    r"'[^'\\]*'|True|False|\([\d\s,L]*\)|\[[^{}]*\])\s*(,|\}\s*\Z)")


@dataclass(frozen=True, slots=True)
class Array:
    """Where an array lies in its record: `start` bytes in, to its end."""

    record: str
    dtype: str
    """As the header has it, with its byte order."""
    shape: tuple[int, ...]
    fortran: bool
    start: int


def _header(archive: Archive, record: str) -> tuple[dict[str, str], int]:
    """The header's entries as they are written, and where the data begin."""
    size = archive.records[record].size
    head = archive.read(record, 0, min(12, size))
    if head[:6] != b"\x93NUMPY" or head[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        archive.fail(f"record {record!r} is no .npy array")
    width = 2 if head[6] == 1 else 4
    length, start = int.from_bytes(head[8 : 8 + width], "little"), 8 + width
    if length > _MAX_HEADER or start + length > size:
        archive.fail(f"record {record!r} has a header that is too long")
    text = archive.read(record, start, length).decode("utf-8" if head[6] == 3 else "latin-1")
    found: dict[str, str] = {}
    at = 1 if text.startswith("{") else -1
    while at >= 0 and (entry := _ENTRY.match(text, at)):
        if entry[1] in found:
            archive.fail(f"record {record!r} has a malformed header")
        found[entry[1]] = entry[2]
        at = entry.end()
        if entry[3] == "," and (end := re.compile(r"\s*\}\s*\Z").match(text, at)):
            at = end.end()
        if at == len(text):
            break
    if at != len(text) or len(found) != 3 or found["fortran_order"] not in ("True", "False"):
        archive.fail(f"record {record!r} has a malformed header")
    return found, start + length


def _array(archive: Archive, record: str, name: str) -> Array | LeftOut:
    """The array in a record, or why it is none that can be audited."""
    header, start = _header(archive, record)
    descr = header["descr"].strip("'")
    if not _SHAPE.fullmatch(header["shape"]):
        archive.fail(f"record {record!r} has a malformed header")
    shape = tuple(int(n) for n in re.findall(r"\d+", header["shape"]))
    structured = header["descr"].startswith("[")
    reason = "a structured array" if structured else _CLOSED.get(descr.lstrip("<>|=")[:1])
    if reason:
        return LeftOut(name, reason, reason == _CLOSED["V"] and len(shape) > 1)
    if not _DTYPE.fullmatch(descr):
        archive.fail(f"record {record!r} has a malformed header")
    dtype = np.dtype(descr)
    if len(shape) > _MAX_RANK or math.prod(shape) * dtype.itemsize != archive.records[record].size - start:
        archive.fail(f"record {record!r} has not the bytes that its shape needs")
    if dtype.itemsize > 8 and dtype.kind == "f":
        return LeftOut(name, "its numbers are wider than float64", len(shape) > 1)
    return Array(record, descr, shape, header["fortran_order"] == "True", start)


def _load(archive: Archive, array: Array) -> np.ndarray:
    with unreadable_where_malformed(archive.source.path):
        dtype = np.dtype(array.dtype)
        raw = archive.load(array.record)
        flat = np.frombuffer(raw, dtype, math.prod(array.shape), array.start)
        if dtype == bool and flat.size and flat.view(np.uint8).max() > 1:
            raise ValueError("a boolean is neither 0 nor 1")
        shaped = flat.reshape(array.shape, order="F" if array.fortran else "C")
        return shaped.astype(dtype.newbyteorder("="), copy=False)


def _read(source: Source, key: str | None) -> Model:
    if key is not None:
        raise UsageError("an npz file has no nested entries: leave --key out")
    with unreadable_where_malformed(source.path):
        archive = Archive(source)
        tensors: dict[str, Tensor] = {}
        left: list[LeftOut] = []
        for record in archive.records:
            name = record.removesuffix(".npy")
            array = _array(archive, record, name) if record != name else LeftOut(name, "not an array (.npy)", tensors=0)
            if isinstance(array, LeftOut):
                left.append(array)
            else:
                dtype = np.dtype(array.dtype).name
                tensors[name] = Tensor(name, array.shape, dtype, array, partial(_load, archive, array))
        if not tensors and not left:
            raise EmptyModel(source.path, "it holds no arrays")
        notes = () if archive.checked else ("the archive has no checksums: damage would not be seen",)
        source.check_unchanged()
        return Model(source.path, NPZ.name, tensors, None, tuple(left), notes, (source.record(),))


def _content(archive: Archive, array: Array, values: np.ndarray) -> bytes:
    dtype = np.dtype(array.dtype)
    if values.shape != array.shape or values.dtype != dtype.newbyteorder("="):
        raise ValueError(f"{values.dtype}{values.shape} for an array of {array.dtype}{array.shape}")
    header = archive.read(array.record, 0, array.start)
    return header + values.astype(dtype, copy=False).tobytes("F" if array.fortran else "C")


def _patch(model: Model, changes: Mapping[str, np.ndarray], target: Path) -> tuple[Patched, ...]:
    archive = Archive(Source(model.path))
    contents = {}
    for name, values in changes.items():
        array: Array = model.tensors[name].place  # type: ignore[assignment]
        contents[array.record] = partial(_content, archive, array, values)
    return (Patched(None, writer(model.files[0], record_edits(archive, contents))),)


def _is_npz(source: Source) -> bool:
    found = names(source)
    return any(n.endswith(".npy") for n in found) and not any(n.endswith("/data.pkl") for n in found)


NPZ = Format("npz", _is_npz, _read, _patch)
