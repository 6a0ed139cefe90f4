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
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from snaudit.errors import UnreadableModel, UnsupportedModel
from snaudit.formats.beside import Beside
from snaudit.formats.interface import Format, Patched
from snaudit.formats.onnx_external import check_sums
from snaudit.formats.onnx_tensors import DTYPES, Stored, from_array, raw_bytes, region_edits, to_array
from snaudit.formats.onnx_walk import unique_names, walked
from snaudit.formats.protobuf import BYTES, VARINT, Resize, Wire, resized
from snaudit.formats.source import Source
from snaudit.formats.storage import Edit, dtype_of, edited, free_names, writer
from snaudit.model import FileRead, LeftOut, Model, Tensor

_WIRES = {1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES, 14: BYTES, 20: BYTES, 25: BYTES, 26: BYTES}  # fmt: skip


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
        return seen == {1} and head[:1] == b"\x08" and head[1] <= 64 or {1, 7} <= seen or {1, 2} <= seen
    return {1, 7} <= seen


def _read(source: Source, key: str | None) -> Model:
    """The model; `key` has no meaning here."""
    from snaudit.formats.onnx_graph import graph_of

    walk, skeleton = walked(source)
    names = unique_names(walk.tensors)
    files = {file.path: file for file in walk.files.values()}
    externals = [(s.name, s.external) for s in walk.tensors if s.external is not None]
    check_sums(walk.wire, externals)
    tensors = [_tensor(walk.wire, *pair) for pair in zip(walk.tensors, names, strict=True)]
    attached = graph_of(source.path, skeleton, walk.tensors, tensors)
    held: dict[str, Tensor] = {}
    left_out = list(walk.left_out)
    for number, (stored, name) in enumerate(zip(walk.tensors, names, strict=True)):
        tensor = attached.tensors.get(number) or (tensors[number] if stored.role == "constant" else None)
        if tensor is not None:
            held[name] = tensor
        elif stored.role in ("other", "fill"):
            left_out.append(LeftOut(name, "an attribute of a node, not a weight"))
    records = (source.record(), *(file.record() for file in files.values()))
    notes = tuple(dict.fromkeys(attached.notes))
    return Model(source.path, ONNX.name, held, attached.graph, tuple(left_out), notes, records)


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
        makers = _makers(model, walk.wire, walk.tensors, changes)
        main_edits, other_edits = _data_edits(walk.wire, walk.tensors, makers)
        moved = _is_elsewhere(model.path, target)
        touched = [r for r in others if moved or r.path in other_edits]
        names = dict(zip((r.path for r in touched), _new_names(target, len(touched)), strict=True))
        resizes = [change for change, _ in main_edits if change is not None]
        resizes += _references(walk.wire, walk.tensors, touched, names, other_edits)
        edits = [*(edit for _, edit in main_edits if edit is not None), *resized(resizes)]
    finally:
        source.close()
    files = [Patched(None, writer(main, edits))]
    files += [Patched(names[r.path], writer(r, other_edits.get(r.path, []))) for r in touched]
    return tuple(files)
