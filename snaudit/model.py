"""Model: a file's tensors, lazily, and its graph where it has one.

Reading a name, a shape or a dtype costs nothing; `Tensor.load()` reads bytes. Nothing here knows
a file format: the members of `formats/` build these values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir


RUN = "its code"
"""How the format of a model ends whose graph the file's code gave when it was run."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A stored array: `load()` returns it in its stored dtype and logical shape.

    dtype is numpy's name, or ml_dtypes' for what numpy lacks ("bfloat16", "float8_e4m3fn").
    `place` says where the bytes lie: tensors of equal place are one (tied, aliased) tensor, and
    a patch of one is a patch of the other. `load` raises a ModelError when the bytes are not there.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    place: Hashable
    load: Callable[[], np.ndarray] = field(repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_real(self) -> bool:
        """Whether it holds floating-point numbers (of any width)."""
        return self.dtype.startswith(("float", "bfloat"))

    def float64(self) -> np.ndarray:
        """The values in float64: exact for every floating dtype up to 64 bits."""
        with np.errstate(all="ignore"):
            return self.load().astype(np.float64)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something in the file that is no tensor to audit, and why. Never a silent omission.

    `missed`: it acts (or may act) as a weight matrix all the same, only it could not be measured;
    then a limit on every layer cannot be shown to hold. `tensors`: for how many it stands.
    """

    name: str
    reason: str
    missed: bool = False
    tensors: int = 1


@dataclass(frozen=True, slots=True)
class FileRead:
    """A file whose bytes the audit rests on.

    `check()` raises UnreadableModel if the file changed since it was opened.
    """

    path: Path
    size: int
    sha256: str
    check: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Model:
    """What a model file holds.

    `tensors` are in the file's order, under the names that the file gives them (within the chosen
    state dict). `graph` is an onnx_ir model or None; in it each ir.Value that is a constant held
    by the file carries its Tensor as `value.meta["tensor"]`. `notes` are one-line facts the user
    should see (which entry was chosen, that other loaders would run code, checksums that are off).
    """

    path: Path
    format: str
    tensors: Mapping[str, Tensor]
    graph: onnx_ir.Model | None = None
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[FileRead, ...] = ()
    runnable: Path | None = None
    """An ONNX file of the graph with its weights, for a runtime to run; None: there is none."""
