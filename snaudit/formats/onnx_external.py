"""ONNX external data: which file beside the model, and which bytes of it."""

from __future__ import annotations

import hashlib

from snaudit.errors import UnreadableModel, UnsupportedModel
from snaudit.formats.beside import Beside, open_beside
from snaudit.formats.onnx_tensors import External
from snaudit.formats.protobuf import BYTES, Field, Wire

_BLOCK = 1 << 20


def external_data(
    wire: Wire,
    name: str,
    entries: list[Field],
    trail: tuple[Field, ...],
    size: int | None,
    files: dict[str, Beside],
) -> External:
    """What a tensor's external_data entries say, proved against the file.

    size: bytes that its shape needs, None if unknown. `files` remembers the files by location.
    Raises UnreadableModel for duplicate or malformed entries, bytes outside the file, or a SHA-1
    that is not the file's; RefusedModel for a location that leads out of the folder.
    """
    values: dict[str, tuple[str, tuple[Field, ...]]] = {}
    for entry in entries:
        if entry.wire != BYTES:
            raise wire.malformed(entry.tag, "a number where a message belongs")
        parts = [f for f in wire.fields(entry.begin, entry.end) if f.number in (1, 2)]
        if sorted(f.number for f in parts) != [1, 2]:
            raise wire.malformed(entry.tag, f"{name}: a malformed external_data entry")
        key, value = sorted(parts)
        if wire.text(key) in values:
            raise UnreadableModel(wire.source.path, f"{name}: external_data says {wire.text(key)} twice")
        values[wire.text(key)] = (wire.text(value), (*trail, entry, value))
    if "location" not in values:
        raise UnreadableModel(wire.source.path, f"{name}: external data without a location")
    location = values["location"][0]
    file = files.get(location)
    if file is None:
        file = files[location] = _opened(wire, location, files)
    offset = _number(wire, name, values, "offset", 0)
    length = _number(wire, name, values, "length", file.size - offset if size is None else size)
    if length < 0 or offset + length > file.size:
        raise UnreadableModel(
            wire.source.path, f"{name}: bytes {offset}..{offset + length} lie outside {location}"
        )
    checksum = values.get("checksum")
    return External(file, offset, length, values["location"][1], None if checksum is None else checksum[1])


def _opened(wire: Wire, location: str, files: dict[str, Beside]) -> Beside:
    """The file at a location, one value for one file whatever its names."""
    file = open_beside(wire.source.path, location)
    if file.stamp == wire.source.stamp:
        raise UnsupportedModel(wire.source.path, "its external data lies in the model file itself")
    return next((known for known in files.values() if known.stamp == file.stamp), file)


def check_sums(wire: Wire, tensors: list[tuple[str, External]]) -> None:
    """Raise UnreadableModel unless every checksum is the SHA-1 of its file, each file read once."""
    known: dict[Beside, str] = {}
    for name, external in tensors:
        if external.checksum is None:
            continue
        if external.file not in known:
            known[external.file] = _sha1(external.file)
        if wire.text(external.checksum[-1]).lower() != known[external.file]:
            raise UnreadableModel(wire.source.path, f"{name}: the SHA-1 of its external data is another")


def _number(
    wire: Wire, name: str, values: dict[str, tuple[str, tuple[Field, ...]]], key: str, default: int
) -> int:
    if key not in values:
        return default
    text = values[key][0]
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise UnreadableModel(wire.source.path, f"{name}: external_data's {key} is no number")
    return int(text)


def _sha1(file: Beside) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    for offset in range(0, file.size, _BLOCK):
        digest.update(file.read(offset, min(_BLOCK, file.size - offset)))
    return digest.hexdigest()
