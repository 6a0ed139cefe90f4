"""A checkpoint together with its code: the graph that the code makes, with the checkpoint's weights.

A checkpoint has no graph. `--architecture PACKAGE.MODULE:NAME` names code that has one; it is imported
and called in a process of its own (`exporting`), which loads the weights that snaudit's own reader
read, exports the module to ONNX and ends. The exported file is then read like any other, and what
it holds of the checkpoint is the checkpoint's tensors again, compared number by number.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snaudit import formats
from snaudit.children import Child, ChildFailed, Limits
from snaudit.errors import UnsupportedModel, UsageError, WriteError
from snaudit.factories import Factory, factory_of
from snaudit.findings import Settings
from snaudit.formats.pytorch import TORCHSCRIPT
from snaudit.formats.storage import dtype_of
from snaudit.model import RUN, Model, Tensor
from snaudit.names import printable
from snaudit.sizes import sizes_of

if TYPE_CHECKING:
    import onnx_ir as ir

SECONDS = 900
"""Wall-clock time that the code, the export and its trial run may take."""
CODE_LIMITS = Limits(memory=8 << 30, seconds=120.0)
"""Address space, beside 16 times the file's size, and processor time of a file's own code; torch alone maps 4 GiB."""
_MOST_WRITTEN = 1 << 28
"""Numbers of a model whose graph is written to a file for a runtime: protobuf ends at two gigabytes."""


@contextmanager
def opened(path: Path, settings: Settings) -> Iterator[Model]:
    """The model to audit: the file's own, or with the graph of the architecture that is named.

    An exported graph lies in a temporary folder that is gone when the block ends. Raises what
    `formats.read` raises; UsageError where the named code cannot be called or run, UnsupportedModel where the
    weights do not fit it or it cannot be exported.
    """
    if settings.allow_code:
        with _allowed(path, settings) as model:
            yield model
        return
    if settings.architecture is None:
        with _runnable(formats.read(path, settings.key, settings.input_size or ()), settings) as model:
            yield model
        return
    factory = factory_of(settings.architecture, settings.architecture_args)
    sizes = settings.input_size or ()
    if not sizes:
        raise UsageError("--architecture needs --input-size: the code is run on an input of that size")
    model = formats.read(path, settings.key)
    if model.graph is not None:
        raise UsageError(f"--architecture is for checkpoints, and {path} has a graph of its own")
    with _folder() as folder:
        answer = _exported(path, settings, factory, sizes_of(sizes), Path(folder))
        told = f"the graph is that of {factory.module}:{factory.name}, whose code was run"
        yield _joined(model, formats.read(Path(folder) / "model.onnx"), answer, told, "architecture")


@contextmanager
def _allowed(path: Path, settings: Settings) -> Iterator[Model]:
    """A TorchScript file with its graph: as it is read from its code, else as torch exports it, running it. Other files as
    they are."""
    sizes = settings.input_size or ()
    kind = formats.kind_of(path)
    if kind != TORCHSCRIPT.name:
        note = f"--allow-code is for TorchScript files, and this is {kind}: nothing in it is to be run, and nothing was"
        model = formats.read(path, settings.key, sizes)
        with _runnable(replace(model, notes=(*model.notes, note)), settings) as found:
            yield found
        return
    if not sizes:
        raise UsageError("--allow-code needs --input-size: the code is run on an input of that size")
    model = formats.read(path, settings.key, sizes)
    if model.graph is not None and all(node.domain == "" for node in model.graph.graph):
        note = "--allow-code was not needed: the graph is read without running the code"
        with _runnable(replace(model, notes=(*model.notes, note)), settings) as found:
            yield found
        return
    with _folder() as folder:
        try:
            answer = _exported_script(path, settings, sizes_of(sizes), Path(folder))
        except UnsupportedModel as error:
            if model.graph is None:
                raise
            note = f"its code was run, and gave no better graph: {error.reason}"
            yield replace(model, notes=(*model.notes, note))
            return
        exported = formats.read(Path(folder) / "model.onnx")
        _check_weights(path, model, exported, answer["names"])
        told = "the graph is torch's export of the file, whose code was run (--allow-code)"
        bare = replace(model, graph=None, notes=tuple(n for n in model.notes if "was not run" not in n))
        yield _joined(bare, exported, answer, told, RUN)


def _check_weights(path: Path, model: Model, exported: Model, names: Mapping[str, str]) -> None:
    """Raise UnsupportedModel where the graph holds other numbers under a name than the file does."""
    for own, theirs in names.items():
        if own in exported.tensors and theirs in model.tensors and _same(model.tensors[theirs], exported.tensors[own]) is None:
            raise UnsupportedModel(path, f"{theirs} is not what its code makes of it: the graph would not be this file's")


def _exported_script(path: Path, settings: Settings, sizes: tuple[Any, ...], folder: Path) -> dict[str, Any]:
    """What the child says of its export, which has limits and nothing of our environment."""
    request = {"path": str(path.absolute()), "folder": str(folder), "seed": settings.seed, "sizes": sizes}
    room = CODE_LIMITS.memory or 0
    limits = replace(CODE_LIMITS, memory=room + 16 * path.stat().st_size)
    try:
        with Child("snaudit.scripting", request, limits, heard=True, confined_to=str(folder)) as child:
            answer, _ = child.answer(2.0 * (CODE_LIMITS.seconds or SECONDS))
    except ChildFailed as error:
        raise UnsupportedModel(path, f"--allow-code: {printable(str(error), 1500)}") from error
    if "error" in answer:
        reason = f"--allow-code: {printable(answer['error'], 1500)}"
        raise UsageError(reason) if answer["usage"] else UnsupportedModel(path, reason)
    return answer


@contextmanager
def _runnable(model: Model, settings: Settings) -> Iterator[Model]:
    """The model with an ONNX file of its graph, where its own file is none and one is to be run."""
    wanted = settings.witness_seconds > 0.0 or settings.replay is not None
    size = sum(math.prod(tensor.shape) for tensor in model.tensors.values())
    known = model.graph is not None and all(node.domain == "" for node in model.graph.graph)
    if not wanted or not known or model.runnable is not None or size > _MOST_WRITTEN:
        yield model
        return
    import onnx_ir as ir  # a bare checkpoint is audited without it

    with _folder() as folder:
        target = Path(folder) / "model.onnx"
        target.write_bytes(ir.serde.serialize_model(model.graph).SerializeToString())
        yield replace(model, runnable=target)


def _folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="snaudit-")
    except OSError as error:
        raise WriteError(f"no temporary folder for the exported graph: {error}") from error


def _exported(
    path: Path, settings: Settings, factory: Factory, sizes: tuple[Any, ...], folder: Path
) -> dict[str, Any]:
    """What the child says of its export. Its process is gone when this returns."""
    request = {
        "path": str(path.absolute()), "key": settings.key, "folder": str(folder), "seed": settings.seed,
        "module": factory.module, "name": factory.name, "args": factory.args, "kwargs": factory.kwargs,
        "sizes": sizes,
    }  # fmt: skip
    named = f"--architecture {factory.module}:{factory.name}"
    try:
        with Child("snaudit.exporting", request, heard=True) as child:
            answer, _ = child.answer(SECONDS)
    except ChildFailed as error:
        raise UsageError(f"{named}: {printable(str(error), 1500)}") from error
    if "error" in answer:
        reason = f"{named}: {printable(answer['error'], 1500)}"
        raise UsageError(reason) if answer["usage"] else UnsupportedModel(path, reason)
    return answer


def _joined(model: Model, exported: Model, answer: Mapping[str, Any], told: str, by: str) -> Model:
    """The file with the exported graph, in which its own tensors stand where they are unchanged.

    told: where the graph is from; by: what gave it.
    """
    assert exported.graph is not None
    names: dict[str, str] = answer["names"]
    known: dict[str, Tensor] = {}
    for own, theirs in names.items():
        if own in exported.tensors and theirs in model.tensors:
            same = _same(model.tensors[theirs], exported.tensors[own])
            known[own] = same or replace(exported.tensors[own], name=theirs)
    for value in _values(exported.graph):
        tensor = value.meta.get("tensor")
        if isinstance(tensor, Tensor) and tensor.name in known:
            value.meta["tensor"] = known[tensor.name]
    tensors = dict(model.tensors)
    tensors |= {tensor.name: tensor for tensor in known.values()}
    for name, tensor in exported.tensors.items():
        if name not in known and tensor.is_real and tensor.shape:
            tensors.setdefault(name, tensor)
    notes = [told, *answer["notes"]]
    return replace(
        model,
        format=f"{model.format} + {by}",
        tensors=tensors,
        graph=exported.graph,
        notes=(*model.notes, *notes, *exported.notes),
        runnable=exported.path,
    )


def _same(stored: Tensor, exported: Tensor) -> Tensor | None:
    """The stored tensor in the graph's dtype, where that changes no number; else None."""
    if stored.shape != exported.shape:
        return None
    mine, its = stored.load(), exported.load()
    if not np.array_equal(mine.astype(np.float64), its.astype(np.float64), equal_nan=True):
        return None
    if stored.dtype == exported.dtype:
        return stored
    kind = dtype_of(exported.dtype)
    return replace(stored, dtype=exported.dtype, load=lambda: stored.load().astype(kind))


def _values(graph: ir.Model) -> Iterator[ir.Value]:
    """All values of a graph and its bodies that may be constants."""
    import onnx_ir as ir

    seen: set[int] = set()
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        for value in (*node.inputs, *node.outputs):
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                yield value
    for value in graph.graph.initializers.values():
        if id(value) not in seen:
            yield value


