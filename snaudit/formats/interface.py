"""What a model file format must provide.

A format is a row of the table in `formats/__init__.py`. It reads through `Source` (pread only),
never through another library's loader, and writes by patching bytes, never by re-serialising.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snaudit.formats.source import Source
from snaudit.model import Model


@dataclass(frozen=True, slots=True)
class Patched:
    """One file of a rewritten model: `write(fd)` puts its whole content on an empty file.

    `name` is the plain file name that it must get beside the main file, or None for the main file
    itself (whose name the caller chooses). `source` is the file that it is a copy of, whose mode it
    gets; None: the model's main file. `same`: it is byte-equal to its source, so that a link will do.
    """

    name: str | None
    write: Callable[[int], None]
    source: Path | None = None
    same: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """A file format.

    sniff(source) → whether the *content* is of this format (never the name).
    read(source, key) → Model; key is the entry of a nested checkpoint to take, or None.
    patch(model, changes, target) → the files of a copy of the model in which the tensors named in
    `changes` hold the given arrays (same shape and dtype as stored), and all else is byte-equal.
    `target` is where the main file will stand: files beside it (external data, shards) take their
    names from its name, and must not be names that exist in its folder. Nothing is written before
    `Patched.write` is called. Raises UnsupportedModel where it cannot be done exactly (two
    overlapping views both changed, say).
    """

    name: str
    sniff: Callable[[Source], bool]
    read: Callable[[Source, str | None], Model]
    patch: Callable[[Model, Mapping[str, np.ndarray], Path], tuple[Patched, ...]]

