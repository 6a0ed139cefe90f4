"""Model file formats: the table of what exists, and `read`, which chooses by content.

A directory stands for the one model that it holds: a safetensors index with its shards, or a file.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from snaudit.errors import EmptyModel, UnreadableModel, UnsupportedModel, UsageError
from snaudit.formats.interface import Format
from snaudit.formats.npz import NPZ
from snaudit.formats.onnx import ONNX, read_at
from snaudit.formats.pytorch import (
    PT2,
    TORCH_LEGACY,
    TORCH_ZIP,
    TORCHSCRIPT,
    read_exported_at,
    read_script_at,
)
from snaudit.formats.safetensors import INDEX, SAFETENSORS, SHARDED
from snaudit.formats.source import Source
from snaudit.model import Model

FORMATS: tuple[Format, ...] = (
    TORCHSCRIPT,
    PT2,
    TORCH_ZIP,
    NPZ,
    SAFETENSORS,
    SHARDED,
    TORCH_LEGACY,
    ONNX,
)
"""In the order in which their sniffers are asked; the first that knows the content reads it."""

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".jit", ".pt2", ".safetensors", ".npz", ".onnx")
"""The names under which model files go; only for finding one in a folder, never to read one."""

_NUMBERED = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_MOST_OF_INDEX = 1 << 26
_OF_TRAINING = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "scaler.pt")
"""What trainers store beside the model: no model where another file is."""

_KNOWN_STRANGERS = (
    (b"version https://git-lfs.github.com/spec/", "a git-lfs pointer, not the model: run `git lfs pull`"),
    (b"\x89HDF", "HDF5 (Keras?): not supported; export to ONNX or safetensors"),
    (b"GGUF", "GGUF: not supported; use the safetensors checkpoint it was made from"),
    (b"\x1f\x8b", "gzip: unpack it first"),
    (b"BZh", "bzip2: unpack it first"),
    (b"\xfd7zXZ\0", "xz: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "7-zip: unpack it first"),
    (b"\x93NUMPY", "a single array (.npy): not supported; save it with numpy.savez under its name"),
)


def sniff(source: Source) -> Format:
    """The format of a file's content. Raises UnsupportedModel for content that is none of ours."""
    for known in FORMATS:
        if known.sniff(source):
            return known
    head = source.read_up_to(0, 512)
    for magic, what in _KNOWN_STRANGERS:
        if head.startswith(magic):
            raise UnsupportedModel(source.path, what)
    if head[4:8] == b"TFL3":
        raise UnsupportedModel(source.path, "TensorFlow Lite: not supported; export to ONNX")
    if head.lstrip()[:1] == b"<":
        raise UnsupportedModel(source.path, "an HTML or XML page, not a model: the download went wrong")
    raise UnsupportedModel(source.path, "not a model file of a known format")


def read(path: str | os.PathLike[str], key: str | None = None, sizes: tuple[str, ...] = ()) -> Model:
    """The model in a file, or in a directory that holds one.

    key: which entry of a nested checkpoint to take; sizes: of a graph's inputs, as `--input-size`
    says them. Raises a ModelError for what cannot be read,
    UsageError for a key that is not there. Bytes of tensors are read when they are loaded.
    """
    place = Path(path)
    if os.path.isdir(place):
        place = find_in_folder(place)
    source = Source(place)
    try:
        known = sniff(source)
        if sizes and known is PT2:
            return read_exported_at(source, key, sizes)
        if sizes and known is TORCHSCRIPT:
            return read_script_at(source, key, sizes)
        if sizes and known is not ONNX:
            raise UsageError(f"--input-size needs a graph, and {place} has none: name its code with --architecture, or export it to ONNX")
        return read_at(source, sizes) if sizes else known.read(source, key)
    except MemoryError as error:
        raise UnreadableModel(place, "it claims more memory than there is") from error


def kind_of(path: Path) -> str:
    """The name of the format of a file, or of the model in a folder. Raises as `read` does."""
    return sniff(Source(find_in_folder(path) if os.path.isdir(path) else path)).name


def by_name(name: str) -> Format:
    """The format whose models carry this name."""
    return next(known for known in FORMATS if known.name == name)


def candidates(folder: Path) -> list[Path]:
    """The model files of a folder, by their names, sorted; shards stand behind their index."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        raise UnreadableModel(folder, error.strerror or str(error)) from error
    indexes = [name for name in names if name.endswith(INDEX)]
    is_shard = _shards(folder, indexes)
    singles = [name for name in names if name.endswith(SUFFIXES) and not is_shard(name)]
    return [folder / name for name in (*indexes, *singles)]


def _shards(folder: Path, indexes: list[str]) -> Callable[[str], bool]:
    """Whether a file is a part of a model: by its name beside an index, or because one names it."""
    stems = tuple(f"{name.removesuffix(INDEX)}-" for name in indexes)
    told = b""
    for name in filter(lambda name: os.path.isfile(folder / name), indexes):  # a pipe would wait for its writer
        with contextlib.suppress(OSError), open(folder / name, "rb") as file:
            told += file.read(_MOST_OF_INDEX)

    def is_shard(name: str) -> bool:
        if not indexes or not name.endswith(".safetensors"):
            return False
        return name.startswith(stems) or bool(_NUMBERED.search(name)) or b'"%b"' % os.fsencode(name) in told

    return is_shard


def find_in_folder(folder: Path) -> Path:
    """The one model of a folder: its safetensors index with its shards, or its only model file. Several files may be
    several models, so none of them stands for the folder."""
    found = candidates(folder)
    aside = {".constrained", ".balanced"}  # what constrain and balance wrote
    given = [path for path in found if not aside & set(path.suffixes) and path.name not in _OF_TRAINING]
    found = given or found
    if len(found) == 1:
        return found[0]
    if not found:
        raise EmptyModel(folder, "no model file in this folder")
    names = ", ".join(path.name for path in found[:5]) + (", …" if len(found) > 5 else "")
    raise UnsupportedModel(folder, f"several model files in this folder, name one: {names}")
