"""PyTorch's files: checkpoints (zip and legacy pickles), TorchScript archives, exported programs.

Nothing in them is run. A checkpoint's pickle goes through `pickles.Machine`; TorchScript's objects
become nests of attributes; an exported program's tensors are listed in its JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from snaudit.errors import UnsupportedModel, UsageError
from snaudit.formats import exported
from snaudit.formats.archive import Archive, names, unreadable_where_malformed
from snaudit.formats.checkpoint import Choice, Leaf, Nest, choose
from snaudit.formats.interface import Format, Patched
from snaudit.formats.pickles import Machine, Stream
from snaudit.formats.rebuilds import Number, Rebuilder, Storage, is_inert
from snaudit.formats.records import record_edits
from snaudit.formats.source import Source
from snaudit.formats.storage import Edit, writer
from snaudit.formats.views import View, clash, gather, scatter
from snaudit.model import LeftOut, Model, Tensor
from snaudit.names import printable
from snaudit.sizes import sizes_of

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_UNCHECKED = "the archive has no checksums (all CRCs are zero): damage would not be seen"

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class _Script:
    """What a TorchScript archive holds beside tensors: its objects, its constants, and where its code is."""

    objects: Any
    constants: Any
    archive: Archive
    root: str


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file's leaves and how to reach its storages: `reader(key)(offset, length)` gives bytes."""

    leaves: tuple[Leaf, ...]
    foreign: tuple[str, ...]
    reader: Callable[[str], Read]
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    places: Mapping[str, tuple[int, int]] | None = None
    """Where each storage of a legacy file lies: (offset, bytes)."""
    script: _Script | None = None


def _model(source: Source, format_name: str, opened: _Opened, choice: Choice) -> Model:
    """The Model of the chosen tensors; each of them is read when it is loaded."""
    tensors = {name: _number(name, view) if type(view) is Number else
               _tensor(source.path, name, view, opened.reader(view.storage))
               for name, view in choice.tensors.items()}
    notes = (*choice.notes, *opened.notes)
    if opened.foreign:
        shown = ", ".join(printable(name, 120) for name in opened.foreign[:5])
        shown += f" (and {len(opened.foreign) - 5} more)" if opened.foreign[5:] else ""
        notes += (f"foreign globals beside the tensors were left alone; other loaders may run them: {shown}",)
    left = (*choice.left_out, *opened.left_out)
    source.check_unchanged()
    return Model(source.path, format_name, tensors, None, left, notes, (source.record(),))


def _number(name: str, number: Number) -> Tensor:
    """A number in the pickle, as a tensor that no patch can change."""
    return Tensor(name, (), "float64", (name, number), lambda: np.asarray(number.value))


def _tensor(path: Path, name: str, view: View, read: Read) -> Tensor:
    def load() -> np.ndarray:
        with unreadable_where_malformed(path):
            return gather(view, read)

    return Tensor(name, view.shape, view.dtype, view, load)


# Zip checkpoints and TorchScript


def _root(archive: Archive) -> str:
    """The folder that all records of torch's archives stand in: the first record's."""
    first = next(iter(archive.records), "")
    root = first.partition("/")[0] + "/"
    folded: dict[str, str] = {}
    for name in archive.records:
        # torch finds records without regard to case, and in the first record's folder only
        twin = folded.setdefault(name.lower(), name)
        if twin != name and "/code/" not in name:
            archive.fail(f"records {twin!r} and {name!r} differ only in case")
        if name.endswith("/data.pkl") and name != root + "data.pkl" and name.count("/") == 1:
            archive.fail("it holds two pickles under two roots")
    return root


def _big_endian(archive: Archive, root: str) -> bool:
    order = archive.load(root + "byteorder", 16) if root + "byteorder" in archive else b"little"
    if order not in (b"little", b"big"):
        archive.fail(f"its byte order is {order!r}")
    return order == b"big"


def _unpickled(
    archive: Archive, name: str, rebuilder: Rebuilder, scripted: bool
) -> tuple[list[Leaf], list[str], Any]:
    """One pickle's leaves, the foreign globals that it mentions, and its value; its storages are checked."""
    path, data = archive.source.path, archive.load(name)
    stream = Stream(path, lambda offset, length: data[offset : offset + length], 0, len(data))
    machine = Machine(stream, rebuilder.calls, rebuilder.persistent, is_inert)
    value = machine.load()
    if stream.offset != len(data):
        archive.fail(f"bytes follow the pickle in record {name!r}")
    for storage in rebuilder.storages.values():
        record = archive.records.get(storage.key)
        if storage.count and record is None:
            archive.fail(f"record {storage.key!r}, which a tensor needs, is missing")
        if not storage.reason and record is not None and record.size != storage.size:
            archive.fail(f"record {storage.key!r} has {record.size} bytes, its storage {storage.size}")
    foreign = [f for f in machine.foreign if not (scripted and f.startswith("__torch__."))]
    return Nest(path, value, scripted).leaves, foreign, value


def _open_zip(source: Source) -> _Opened:
    archive = Archive(source)
    root = _root(archive)
    if root + "data.pkl" not in archive:
        shown = ", ".join(repr(name) for name in list(archive.records)[:3])
        if root + "model.json" in archive or any("/.data/extern_modules" in name for name in archive.records):
            reason = "an archive of torch.package, or of a PyTorch before 1.3; save a state dict instead"
            raise UnsupportedModel(source.path, reason)
        archive.fail(f"a zip archive without a PyTorch pickle (it holds {shown or 'nothing'})")
    scripted = root + "constants.pkl" in archive
    big = _big_endian(archive, root)
    rebuilder = Rebuilder(source.path, root + "data/", big)
    leaves, foreign, objects = _unpickled(archive, root + "data.pkl", rebuilder, scripted)
    used, notes, left, script = set(rebuilder.storages), [], [], None
    if scripted:
        rebuilder = Rebuilder(source.path, root + "constants/", big)
        constants, more, values = _unpickled(archive, root + "constants.pkl", rebuilder, scripted)
        leaves += [Leaf(("CONSTANTS", *(f"c{part}" for part in leaf.path[:1]), *leaf.path[1:]), leaf.value)
                   for leaf in constants]
        foreign += more
        used |= set(rebuilder.storages)
        script = _Script(objects, values, archive, root)
        notes.append("TorchScript: its code was not run; other loaders run it")
        traced = [name for name in archive.records if name.startswith(root + "traced_inputs/")]
        examples = LeftOut("traced_inputs", f"example inputs: {len(traced)} tensors", tensors=len(traced))
        left += [examples] if traced else []
    if not archive.checked:
        notes.append(_UNCHECKED)
    stored = (root + "data/", root + "constants/")
    unused = [name for name in archive.records if name.startswith(stored) and name not in used]
    if unused:
        reason = f"stored, but no tensor uses it (one of {len(unused)} such records)"
        left.append(LeftOut(unused[0], reason, tensors=0))
    reader = lambda key: partial(archive.read, key)
    return _Opened(tuple(leaves), tuple(foreign), reader, tuple(notes), tuple(left), script=script)


def _read_zip(source: Source, key: str | None) -> Model:
    with unreadable_where_malformed(source.path):
        opened = _open_zip(source)
        return _model(source, TORCH_ZIP.name, opened, choose(source.path, opened.leaves, key, opened.foreign))


def _read_script(source: Source, key: str | None) -> Model:
    return read_script_at(source, key, ())


def read_script_at(source: Source, key: str | None, sizes: tuple[str, ...]) -> Model:
    """A TorchScript file's tensors; with the graph of its code, where sizes of its inputs are given."""
    with unreadable_where_malformed(source.path):
        opened = _open_zip(source)
        choice = choose(source.path, opened.leaves, "." if key is None else key, opened.foreign)
        model = _model(source, TORCHSCRIPT.name, opened, choice)
        if not sizes:
            return replace(model, notes=(*model.notes, "its graph is read from its code where --input-size is given"))
        if key is not None:
            raise UsageError("the graph of a TorchScript file is that of the whole: leave --key or --input-size out")
        assert opened.script is not None
        return _with_script(model, opened.script, sizes)


def _with_script(model: Model, script: _Script, sizes: tuple[str, ...]) -> Model:
    """The model with the graph of its code, or with a note on why there is none."""
    from snaudit.formats.exported_program import NotTaken
    from snaudit.formats.script_code import library
    from snaudit.formats.script_graph import ELSE, Script, script_graph

    archive = script.archive
    try:
        code = library(archive.records, script.root, archive.load)
    except NotTaken as error:
        return replace(model, notes=(*model.notes, f"its graph is not read: {error}; {ELSE}"))
    found = script_graph(model, Script(script.objects, script.constants, code), sizes_of(sizes))
    return replace(model, graph=found.graph, notes=(*model.notes, *found.notes))


# Legacy files: five pickles, then the storages


def _open_legacy(source: Source) -> _Opened:
    if _is_tar(source):
        reason = "a tar archive (PyTorch 0.1, or a bundle): unpack it, or load it and save its state dict"
        raise UnsupportedModel(source.path, reason)
    rebuilder = Rebuilder(source.path, legacy=True)
    stream = Stream(source.path, source.read, 0, source.size)
    machine = Machine(stream, rebuilder.calls, rebuilder.persistent, is_inert)
    if machine.load() != _MAGIC:
        reason = "a pickle that torch.save did not write: load it and use torch.save(state_dict, PATH)"
        raise UnsupportedModel(source.path, reason)
    if machine.load() != _PROTOCOL:
        stream.fail("a torch file of an unknown protocol")
    machine.load()  # sizes of C types and the byte order: storages are little-endian whatever it says
    value = machine.load()
    keys = machine.load()
    if type(keys) is not list or not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
        stream.fail("its list of storages is malformed")
    if set(keys) != set(rebuilder.storages):
        stream.fail("its list of storages is not that of its tensors")
    places = _places(stream, [rebuilder.storages[key] for key in keys])
    leaves = Nest(source.path, value).leaves

    def reader(key: str) -> Read:
        return lambda offset, length: source.read(places[key][0] + offset, length)

    return _Opened(tuple(leaves), tuple(machine.foreign), reader, places=places)


def _places(stream: Stream, storages: Iterable[Storage]) -> dict[str, tuple[int, int]]:
    """Where each storage lies, in the order of the file, which must end behind the last."""
    places, at = {}, stream.offset
    for storage in storages:
        if storage.reason:
            reason = f"storage {storage.key!r} cannot be passed over: {storage.reason}"
            raise UnsupportedModel(stream.path, reason)
        header = Stream(stream.path, stream.read, at, stream.end).take(8)
        if int.from_bytes(header, "little") != storage.count:
            stream.fail(f"storage {storage.key!r} has another length than its tensors say")
        places[storage.key] = at + 8, storage.size
        at += 8 + storage.size
        if at > stream.end:
            stream.fail("it is cut off within its storages")
    if at != stream.end:
        stream.fail("bytes follow its last storage")
    return places


def _read_legacy(source: Source, key: str | None) -> Model:
    with unreadable_where_malformed(source.path):
        opened = _open_legacy(source)
        choice = choose(source.path, opened.leaves, key, opened.foreign)
        return _model(source, TORCH_LEGACY.name, opened, choice)


# Exported programs


def _read_exported(source: Source, key: str | None) -> Model:
    return read_exported_at(source, key, ())


def read_exported_at(source: Source, key: str | None, sizes: tuple[str, ...]) -> Model:
    """The program with its inputs of given sizes, as `--input-size` says them. Raises UsageError."""
    if key is not None:
        raise UsageError("an exported program has no nested entries: leave --key out")
    with unreadable_where_malformed(source.path):
        archive = Archive(source)
        root = _root(archive)
        choice = exported.tensors(archive, root, _big_endian(archive, root))
        notes = ("an exported program: its code was not run; other loaders run it",)
        notes += () if archive.checked else (_UNCHECKED,)
        opened = _Opened((), (), lambda key: partial(archive.read, key), notes)
        model = _model(source, PT2.name, opened, choice)
        program = exported.program(archive, root)
    return model if program is None else _with_graph(model, program, sizes)


def _with_graph(model: Model, program: bytes, sizes: tuple[str, ...]) -> Model:
    """The model with the graph of its program, or with a note on why there is none."""
    from snaudit.formats.exported_graph import translated

    found = translated(model.path, program, model.tensors, exported.DTYPES, sizes)
    return replace(model, graph=found.graph, notes=(*model.notes, *found.notes))


# Patching


def _grouped(model: Model, changes: Mapping[str, np.ndarray]) -> dict[str, dict[View, np.ndarray]]:
    """The new values by storage and view. Raises UnsupportedModel where two of them touch one number."""
    groups: dict[str, dict[View, np.ndarray]] = {}
    first: dict[View, str] = {}
    for name, array in changes.items():
        view: View = model.tensors[name].place  # type: ignore[assignment]
        group = groups.setdefault(view.storage, {})
        if view in group and group[view].tobytes() != array.tobytes():
            reason = f"{name!r} and {first[view]!r} are one tensor and would become two"
            raise UnsupportedModel(model.path, reason)
        group[view] = array
        first.setdefault(view, name)
    for group in groups.values():
        if (pair := clash(group)) is not None:
            a, b = (first[view] for view in pair)
            raise UnsupportedModel(model.path, f"{a!r} has elements that share their bytes" if a == b else
                                   f"{a!r} and {b!r} overlap in one storage and cannot both be changed")
    return groups


def _content(read: Read, size: int, group: Mapping[View, np.ndarray]) -> bytes:
    content = bytearray(read(0, size))
    for view, array in group.items():
        scatter(view, array, content)
    return bytes(content)


def _patch_zip(model: Model, changes: Mapping[str, np.ndarray], target: Path) -> tuple[Patched, ...]:
    groups = _grouped(model, changes)
    archive = Archive(Source(model.path))
    with unreadable_where_malformed(model.path):  # it may be another file by now
        contents = {key: partial(_content, partial(archive.read, key), archive.records[key].size, group)
                    for key, group in groups.items() if any(view.size for view in group)}
    return (Patched(None, writer(model.files[0], record_edits(archive, contents))),)


def _patch_legacy(model: Model, changes: Mapping[str, np.ndarray], target: Path) -> tuple[Patched, ...]:
    groups = _grouped(model, changes)
    edits = []
    with unreadable_where_malformed(model.path):  # it may be another file by now
        opened = _open_legacy(Source(model.path))
        for key, group in groups.items():
            at, size = opened.places[key]  # type: ignore[index]
            edits.append(Edit(at, at + size, partial(_content, opened.reader(key), size, group)))
    return (Patched(None, writer(model.files[0], edits)),)


# Sniffing: a damaged zip is some format's too, which then says what is wrong with it


def _is_tar(source: Source) -> bool:
    return source.read_up_to(0, 262)[257:] == b"ustar"


def _ends(source: Source, *ends: str) -> bool:
    return any(name.endswith(ends) for name in names(source))


def _is_torchscript(source: Source) -> bool:
    return _ends(source, "/constants.pkl") and not _is_pt2(source)


def _is_pt2(source: Source) -> bool:
    return _ends(source, "/archive_format") or _ends(source, "serialized_exported_program.json")


def _is_torch_zip(source: Source) -> bool:
    if source.read_up_to(0, 4) not in (b"PK\3\4", b"PK\5\6") and not _ends_in_zip(source):
        return False
    if _is_torchscript(source) or _is_pt2(source):
        return False
    return _ends(source, "/data.pkl") or not _ends(source, ".npy")


def _ends_in_zip(source: Source) -> bool:
    return source.size >= 22 and source.read(source.size - 22, 4) == b"PK\5\6"


def _is_legacy(source: Source) -> bool:
    head = source.read_up_to(0, 16)
    header = head[5:9] == b"\0\0\0{"  # a safetensors header may be 0x280 bytes long
    pickle = head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return (pickle and not header) or _is_tar(source)


TORCH_ZIP = Format("torch", _is_torch_zip, _read_zip, _patch_zip)
TORCHSCRIPT = Format("torchscript", _is_torchscript, _read_script, _patch_zip)
PT2 = Format("pt2", _is_pt2, _read_exported, _patch_zip)
TORCH_LEGACY = Format("torch-legacy", _is_legacy, _read_legacy, _patch_legacy)
