"""ONNX: initializers, constants in all graphs, and external data; patched in place.

The file is walked as protobuf wire format (`onnx_walk`); weights stay in it until they are loaded.
A patch replaces the bytes of the changed tensors and nothing else. Where tensors lie beside the
model they stay there: the changed file is copied under a new name, and the model points to it.

A ConstantOfShape is one number that fills a shape: its tensor is a constant array, and a patch of it
must be one, too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from snaudit.errors import UnreadableModel, UnsupportedModel, UsageError
from snaudit.formats.interface import Format, Patched
from snaudit.formats.onnx_external import check_sums
from snaudit.formats.onnx_tensors import (
    DTYPES,
    Stored,
    from_array,
    raw_bytes,
    replaced,
    to_array,
)
from snaudit.formats.onnx_walk import walked
from snaudit.formats.onnx_weights import unique_names
from snaudit.formats.protobuf import BYTES, VARINT, Resize, Wire, resized
from snaudit.formats.source import Source
from snaudit.formats.storage import Edit, dtype_of, edited, free_names, writer
from snaudit.model import FileRead, LeftOut, Model, Tensor

_WIRES = {1: VARINT, 5: VARINT} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES)
"""ModelProto's fields and their wire types."""


def _is_onnx(source: Source) -> bool:
    """Whether the top level is a ModelProto's, or begins as one and is cut off later."""
    wire, seen = Wire(source), set()
    try:
        for number, field in enumerate(wire.fields(0, source.size)):
            if _WIRES.get(field.number) != field.wire or number > 100_000:
                return False
            seen.add(field.number)
    except (UnreadableModel, UnsupportedModel):
        head = source.read_up_to(0, 2)
        begins = seen == {1} and head[:1] == b"\x08" and head[1] <= 64
        return begins or {1, 7} <= seen or {1, 2} <= seen
    return {1, 7} <= seen


def _read(source: Source, key: str | None) -> Model:
    """The model. Raises UsageError for a key."""
    if key is not None:
        raise UsageError("an ONNX model has no nested entries: leave --key out")
    return read_at(source, ())


def read_at(source: Source, sizes: tuple[str, ...]) -> Model:
    """The model with its inputs of given sizes, as `--input-size` says them. Raises UsageError."""
    from snaudit.formats.onnx_graph import graph_of

    walk, skeleton = walked(source)
    names = unique_names(walk.tensors)
    files = {file.path: file for file in walk.files.values()}
    externals = [(s.name, s.external) for s in walk.tensors if s.external is not None]
    check_sums(walk.wire, externals)
    tensors = [_tensor(walk.wire, *pair) for pair in zip(walk.tensors, names, strict=True)]
    attached = graph_of(source.path, skeleton, walk.tensors, tensors, sizes)
    held: dict[str, Tensor] = {}
    left_out = list(walk.left_out)
    for number, (stored, name) in enumerate(zip(walk.tensors, names, strict=True)):
        tensor = attached.tensors.get(number) or (tensors[number] if stored.role == "constant" else None)
        if tensor is not None:
            held[name] = tensor
        elif stored.role in ("other", "fill"):
            left_out.append(LeftOut(name, "an attribute of a node, not a weight"))
    records = (source.record(), *(file.record() for file in files.values()))
    given = [f"input size given, {'; '.join(sizes)}: all bounds are for it alone"] if sizes else []
    notes = tuple(dict.fromkeys([*given, *attached.notes]))
    return Model(
        source.path, ONNX.name, held, attached.graph, tuple(left_out), notes, records, source.path
    )


def _tensor(wire: Wire, stored: Stored, name: str) -> Tensor | None:
    if stored.role in ("skipped", "training"):
        return None
    load = partial(_load, wire, stored)
    return Tensor(name, stored.dims, DTYPES[stored.data_type], _place(wire, stored), load)


def _load(wire: Wire, stored: Stored) -> np.ndarray:
    return to_array(wire, stored, raw_bytes(wire, stored))


def _place(wire: Wire, stored: Stored) -> tuple[str, int, int]:
    """Where the bytes lie; a tensor without bytes is at its own field, and ends before it begins."""
    if stored.external is not None and stored.nbytes:
        return str(stored.external.file.path), stored.external.offset, stored.nbytes
    if stored.regions and stored.nbytes:
        return str(wire.source.path), stored.regions[0].begin, stored.regions[-1].end
    return str(wire.source.path), stored.trail[-1].tag, -1


def _patch(model: Model, changes: Mapping[str, np.ndarray], target: Path) -> tuple[Patched, ...]:
    """The model's file with new bytes, and copies of the files beside it that must be new."""
    main, *others = model.files
    source = Source(main.path)
    try:
        if source.record().sha256 != main.sha256:
            raise UnreadableModel(main.path, "changed since it was read")
        walk, _ = walked(source)
        edits: dict[Path, list[Edit]] = {main.path: []}
        resizes: list[Resize] = []
        for stored, make in _makers(model, walk.wire, walk.tensors, changes):
            if stored.external is not None:
                begin, length = stored.external.offset, stored.external.length
                here = edits.setdefault(stored.external.file.path, [])
                here.append(Edit(begin, begin + length, make))
            else:
                more, resized_ = replaced(walk.wire, stored, make)
                edits[main.path] += more
                resizes += resized_
        moved = os.path.realpath(target.parent) != os.path.realpath(model.path.parent)
        copied = [record for record in others if moved or record.path in edits]
        names = _new_names(target, [record.path for record in copied])
        resizes += _references(walk.tensors, copied, names, edits)
    finally:
        source.close()
    files = [Patched(None, writer(main, [*edits[main.path], *resized(resizes)]))]
    files += [Patched(names[r.path], writer(r, edits.get(r.path, [])), r.path, r.path not in edits) for r in copied]
    return tuple(files)


def _makers(
    model: Model, wire: Wire, tensors: list[Stored], changes: Mapping[str, np.ndarray]
) -> Iterable[tuple[Stored, Callable[[], bytes]]]:
    """For each place that changes: a tensor stored there, and what makes its new bytes.

    Raises UnsupportedModel where a tensor that would change with it is another one, or where the
    file has no bytes for it.
    """
    groups: dict[Hashable, list[tuple[Stored, str]]] = {}
    for stored, name in zip(tensors, unique_names(tensors), strict=True):
        if name in model.tensors:
            groups.setdefault(_place(wire, stored), []).append((stored, name))
    missing = next((name for name in changes if name not in model.tensors), None)
    if missing is not None:
        raise ValueError(f"{missing}: no tensor of this model")
    outside = [stored for stored in tensors if stored.external is not None]
    for group in groups.values():
        changed = [(stored, name) for stored, name in group if name in changes]
        if not changed:
            continue
        stored = changed[0][0]
        other = next((other for other in outside if _collides(stored, other)), None)
        if other is not None:
            reason = f"{other.name}: shares some of its bytes with {stored.name}"
            raise UnsupportedModel(model.path, reason)
        if stored.coding == "zero" and stored.count:
            reason = f"{changed[0][1]}: the file holds no bytes for it (zero by default)"
            raise UnsupportedModel(model.path, reason)
        yield stored, partial(_new_bytes, model, changed, changes)


def _collides(one: Stored, other: Stored) -> bool:
    """Whether two tensors share bytes of a file and yet are not one tensor."""
    a, b = one.external, other.external
    if a is None or b is None or a.file is not b.file or not a.length or not b.length:
        return False
    overlap = a.offset < b.offset + b.length and b.offset < a.offset + a.length
    same = (a.offset, a.length, one.data_type) == (b.offset, b.length, other.data_type)
    return overlap and not same


def _new_bytes(model: Model, changed: list[tuple[Stored, str]], changes: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of one place, as raw_data has them; all tensors of the place must ask for the same."""
    found: bytes | None = None
    for stored, name in changed:
        array, tensor = changes[name], model.tensors[name]
        if array.shape != tensor.shape or array.dtype != dtype_of(tensor.dtype):
            raise ValueError(f"{name}: {array.dtype} {array.shape} is not what is stored")
        if stored.role == "fill":
            array = _one_number(model, name, array)
        raw = from_array(stored, array)
        if found is not None and raw != found:
            reason = f"{name}: shares its bytes with a tensor that changes otherwise"
            raise UnsupportedModel(model.path, reason)
        found = raw
    assert found is not None
    return found


def _one_number(model: Model, name: str, array: np.ndarray) -> np.ndarray:
    """The number that fills the array, bit for bit; UnsupportedModel if it holds different ones."""
    if not array.size:
        return model.tensors[name].load().reshape(-1)[:1]
    first = array.reshape(-1)[:1] if not any(array.strides) else np.ascontiguousarray(array).reshape(-1)
    bits = first.view(f"V{array.dtype.itemsize}").tobytes()
    if bits != bits[: array.dtype.itemsize] * first.size:
        raise UnsupportedModel(model.path, f"{name}: one number fills it in the file; it cannot hold several")
    return first[:1]


def _new_names(target: Path, paths: Sequence[Path]) -> dict[Path, str]:
    """Free names beside the target for copies of these files: TARGET.data, or TARGET.1.data, …"""
    stem = re.sub(r"[\\\0]", "_", target.name)

    def pattern(suffix: str) -> Sequence[str]:
        if len(paths) == 1:
            return [f"{stem}{suffix}.data"]
        return [f"{stem}{suffix}.{number}.data" for number in range(1, len(paths) + 1)]

    return dict(zip(paths, free_names(target.parent, pattern) if paths else (), strict=True))


def _references(
    tensors: list[Stored], copied: list[FileRead], names: dict[Path, str], edits: dict[Path, list[Edit]]
) -> list[Resize]:
    """The model's references to the copied files: their names, and their checksums where given."""
    sums: dict[Path, bytes] = {}
    records = {record.path: record for record in copied}
    changes = []
    for stored in tensors:
        external = stored.external
        if external is None or external.file.path not in records:
            continue
        path = external.file.path
        field = external.location[-1]
        changes.append(Resize(field.begin, field.end, os.fsencode(names[path]), external.location))
        if external.checksum is not None:
            if path not in sums:
                digest = hashlib.sha1(usedforsecurity=False)
                for block in edited(records[path], edits.get(path, [])):
                    digest.update(block)
                sums[path] = digest.hexdigest().encode()
            field = external.checksum[-1]
            changes.append(Resize(field.begin, field.end, sums[path], external.checksum))
    return changes


ONNX = Format("onnx", _is_onnx, _read, _patch)
