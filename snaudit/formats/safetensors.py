"""safetensors, one file or sharded through its index.

A file is a u64 length, a JSON header, and the tensors' bytes, which the header must cover exactly.
The index of a sharded model is JSON with a `weight_map` from tensor names to files beside it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from snaudit.errors import RefusedModel, UnreadableModel, UnsupportedModel
from snaudit.formats.beside import Beside, open_beside
from snaudit.formats.interface import Format, Patched
from snaudit.formats.source import Source
from snaudit.formats.storage import (
    Edit,
    check_shape,
    decode,
    dtype_of,
    free_names,
    new_bytes,
    writer,
)
from snaudit.model import FileRead, LeftOut, Model, Tensor

_MOST_HEADER = 100_000_000
INDEX = ".safetensors.index.json"

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_OTHER_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}


class _File(Protocol):
    """Where the bytes come from: the opened file, or a shard beside the index."""

    path: Path
    size: int

    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    """Its bytes, from the start of the file."""


def _is_safetensors(source: Source) -> bool:
    head = source.read_up_to(0, 9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def _read(source: Source, key: str | None) -> Model:
    """The tensors of one safetensors file; `key` has no meaning here."""
    tensors, left_out = _tensors(source)
    return Model(
        source.path, SAFETENSORS.name, tensors, None, tuple(left_out), files=(source.record(),)
    )


def _tensors(file: _File) -> tuple[dict[str, Tensor], list[LeftOut]]:
    tensors: dict[str, Tensor] = {}
    left_out: list[LeftOut] = []
    for entry in _header(file):
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            left_out.append(LeftOut(entry.name, f"dtype {entry.dtype} is not supported", len(entry.shape) > 1))
        else:
            place = (str(file.path), entry.begin, entry.name if entry.begin == entry.end else "")
            load = _loader(file, entry, dtype)
            tensors[entry.name] = Tensor(entry.name, entry.shape, dtype, place, load)
    return tensors, left_out


def _loader(file: _File, entry: _Entry, dtype: str) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        raw = file.read(entry.begin, entry.end - entry.begin)
        return decode(file.path, entry.name, raw, dtype, entry.shape)

    return load


def _header(file: _File) -> list[_Entry]:
    """The header's entries in its order; UnreadableModel unless they cover the rest exactly."""
    if file.size < 8:
        raise UnreadableModel(file.path, "truncated: no room for a header")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > _MOST_HEADER:
        raise UnreadableModel(file.path, f"its header claims {length} bytes; 100 MB is the most")
    if length > file.size - 8:
        raise UnreadableModel(file.path, f"truncated: its header claims {length} of {file.size - 8} bytes")
    text = file.read(8, length)
    if text[:1] != b"{":
        raise UnreadableModel(file.path, "its header is no JSON object")
    header = _json(file.path, text, _no_fraction)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UnreadableModel(file.path, "__metadata__ is no map of strings")
    entries = [_entry(file.path, name, fields, 8 + length) for name, fields in header.items()]
    position = 8 + length
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            what = "overlaps another tensor" if entry.begin < position else "leaves a hole before it"
            raise UnreadableModel(file.path, f"{entry.name} {what}")
        position = entry.end
    if position != file.size:
        what = "truncated: tensors end" if position > file.size else "bytes that no tensor covers: they end"
        raise UnreadableModel(file.path, f"{what} at byte {position}, the file at {file.size}")
    return entries


def _entry(path: Path, name: str, fields: Any, start: int) -> _Entry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise UnreadableModel(path, f"{name}: its header entry is not dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise UnreadableModel(path, f"{name}: its dtype, shape or data_offsets are malformed")
    begin, end = offsets
    count = check_shape(path, name, shape)
    bits = dtype_of(_DTYPES[dtype]).itemsize * 8 if dtype in _DTYPES else _OTHER_BITS.get(dtype)
    if bits is not None and count * bits != (end - begin) * 8:
        raise UnreadableModel(path, f"{name}: {end - begin} bytes for {count} elements of {dtype}")
    if end < begin:
        raise UnreadableModel(path, f"{name}: ends before it begins")
    return _Entry(name, dtype[:40], tuple(shape), start + begin, start + end)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def _json(path: Path, text: bytes, fraction: Callable[[str], Any] = float) -> dict[str, Any]:
    """The JSON object in `text`; UnreadableModel for duplicate keys, huge integers, lone surrogates."""
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_bounded,
            parse_float=fraction,
            parse_constant=_no_fraction,
        )
    except RecursionError as error:
        raise UnreadableModel(path, "its JSON is nested too deep") from error
    except ValueError as error:
        raise UnreadableModel(path, f"its JSON cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UnreadableModel(path, "its JSON is no object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    for key in found:
        key.encode("utf-8")  # a lone surrogate is no name
    return found


def _bounded(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("an integer of more than 20 digits")
    return int(digits)


def _no_fraction(text: str) -> Any:
    raise ValueError(f"a number that is no integer: {text[:20]}")


def _patch(model: Model, changes: Mapping[str, np.ndarray], target: Path) -> tuple[Patched, ...]:
    """One file: the header as it is, the changed tensors' bytes replaced."""
    return (Patched(None, writer(model.files[0], _edits(model, changes, model.files[0].path))),)


def _edits(model: Model, changes: Mapping[str, np.ndarray], path: Path) -> list[Edit]:
    """The edits of the file at `path`; the arrays are asked for only when they are written."""
    edits = []
    for name in changes:
        tensor = model.tensors[name]
        if tensor.place[0] != str(path):  # type: ignore[index]
            continue
        begin = tensor.place[1]  # type: ignore[index]
        end = begin + tensor.size * dtype_of(tensor.dtype).itemsize
        edits.append(Edit(begin, end, lambda tensor=tensor: new_bytes(changes, (tensor,), path)))
    return edits


def _is_index(source: Source) -> bool:
    head = source.read_up_to(0, 64).lstrip()
    if head[:1] != b"{" or source.size > _MOST_HEADER:
        return False
    return b'"weight_map"' in source.read(0, source.size)


def _read_sharded(source: Source, key: str | None) -> Model:
    """The tensors of all shards, in the index's order; the index and the shards must agree."""
    text = source.read(0, source.size)
    weight_map = _json(source.path, text).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise UnreadableModel(source.path, "its weight_map is no map from tensors to files")
    _spans(source.path, text)
    found: dict[str, Tensor | LeftOut] = {}
    files = [source.record()]
    for shard in sorted(set(weight_map.values())):
        file = _open_shard(source.path, shard)
        tensors, left_out = _tensors(file)
        held = {**tensors, **{item.name: item for item in left_out}}
        for name in held:
            if weight_map.get(name) != shard:
                raise UnreadableModel(source.path, f"{shard} holds {name}, which the index puts elsewhere")
        found.update(held)
        files.append(file.record())
    missing = next((name for name in weight_map if name not in found), None)
    if missing is not None:
        raise UnreadableModel(source.path, f"{weight_map[missing]} does not hold {missing}")
    ordered = [found[name] for name in weight_map]
    tensors = {item.name: item for item in ordered if isinstance(item, Tensor)}
    left = tuple(item for item in ordered if isinstance(item, LeftOut))
    return Model(source.path, SHARDED.name, tensors, None, left, files=tuple(files))


def _open_shard(index: Path, shard: str) -> Beside:
    if "/" in shard or shard in ("", ".", ".."):
        raise RefusedModel(index, f"a shard is not a plain file name: {shard!r}")
    file = open_beside(index, shard)
    if file.size < 9 or file.read(8, 1) != b"{" or file.read(0, 8)[5:] != b"\0\0\0":
        raise UnsupportedModel(index, f"its shard {shard} is no safetensors file; audit each shard by itself")
    return file


def _patch_sharded(model: Model, changes: Mapping[str, np.ndarray], target: Path) -> tuple[Patched, ...]:
    """The index with the shards' new names, and every shard that changes under its new one. The others
    keep their names where the index is replaced or goes to another folder; else they are linked."""
    index, *shards = model.files
    renamed = _shard_names(index, shards, target)
    touched = {shard.path.name: _edits(model, changes, shard.path) for shard in shards}
    if os.path.realpath(index.path) == os.path.realpath(target) and _all_in(shards, target.parent):
        renamed = {name: new for name, new in renamed.items() if touched[name]}
    source = Source(index.path)
    try:
        text = source.read(0, source.size)
    finally:
        source.close()
    edits = []
    for begin, end, old in _spans(index.path, text):
        new = json.dumps(renamed.get(old, old)).encode()
        edits.append(Edit(begin, end, lambda new=new: new))
    files = [Patched(None, writer(index, edits))]
    for shard in shards:
        if shard.path.name in renamed:
            here = touched[shard.path.name]
            files.append(Patched(renamed[shard.path.name], writer(shard, here), shard.path, same=not here))
    return tuple(files)


def _all_in(shards: Sequence[FileRead], folder: Path) -> bool:
    return all(os.path.realpath(shard.path.parent) == os.path.realpath(folder) for shard in shards)


def _shard_names(index: FileRead, shards: Sequence[FileRead], target: Path) -> dict[str, str]:
    """A name beside the target for each shard: its own, where an index of the same name goes to another
    folder in which they are free."""
    own = [shard.path.name for shard in shards]
    if target.name == index.path.name and not any(os.path.lexists(target.parent / name) for name in own):
        return dict(zip(own, own, strict=True))
    stem = re.sub(r"(\.safetensors)?(\.index)?(\.json)?$", "", target.name) or "model"

    def pattern(suffix: str) -> Sequence[str]:
        count = len(shards)
        return [f"{stem}{suffix}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]

    return dict(zip(own, free_names(target.parent, pattern), strict=True))


def _spans(path: Path, raw: bytes) -> list[tuple[int, int, str]]:
    """(begin, end, value) of each file name in the index's weight_map, as bytes of the index.

    `raw` is valid JSON without duplicate keys; only its top level and the weight_map are walked.
    """
    text = raw.decode("utf-8")
    string = json.decoder.scanstring
    skip = json.JSONDecoder().raw_decode

    def members(at: int, visit: Callable[[str, int], int]) -> int:
        """Visit (key, start of its value) of the object that begins at `at`; the position after it."""
        at = _blank(text, at + 1)
        while text[at] != "}":
            key, at = string(text, at + 1, True)
            at = _blank(text, visit(key, _blank(text, _blank(text, at) + 1)))
            at = _blank(text, at + 1) if text[at] == "," else at
        return at + 1

    spans: list[tuple[int, int, str]] = []

    def name(key: str, at: int) -> int:
        value, end = string(text, at + 1, True)
        spans.append((at, end, value))
        return end

    def top(key: str, at: int) -> int:
        return members(at, name) if key == "weight_map" else skip(text, at)[1]

    members(_blank(text, 0), top)
    return _in_bytes(text, spans)


def _in_bytes(text: str, spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Rising, disjoint spans of characters as spans of the text's UTF-8 bytes."""
    if text.isascii():
        return spans
    found, place, passed = [], 0, 0
    for begin, end, value in spans:
        start = passed + len(text[place:begin].encode())
        passed = start + len(text[begin:end].encode())
        place = end
        found.append((start, passed, value))
    return found


def _blank(text: str, at: int) -> int:
    while text[at] in " \t\n\r":
        at += 1
    return at


SAFETENSORS = Format("safetensors", _is_safetensors, _read, _patch)
SHARDED = Format("safetensors-sharded", _is_index, _read_sharded, _patch_sharded)
