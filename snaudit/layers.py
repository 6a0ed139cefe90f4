"""Layer: a tensor that is applied as a linear map, and with which geometry.

Two ways lead to layers (`extraction.py` chooses): a graph says what it does with each constant
(`nodes.py`), a bare checkpoint says it through names and shapes (`parameters.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from snaudit.errors import UsageError
from snaudit.forms import NOTHING, Form, Plain, Stored
from snaudit.linear import AnyMap, BlockDiagonal, Convolution, Dense, Located, LowRank, flat
from snaudit.model import LeftOut

if TYPE_CHECKING:
    import onnx_ir


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a kernel acts. `known` is False for a bare checkpoint: then stride, dilation and groups
    are 1, which bounds every other choice from above (they select or spread what that one computes), and says
    nothing from below."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    known: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """Where a convolution acts: the input's size, and how it is padded there (see `Convolution.at`)."""

    size: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    output_padding: tuple[int, ...] = ()
    mode: str = "zeros"
    outside: tuple[tuple[int, int], ...] = ()

    def of(self, convolution: Convolution) -> Located:
        """The convolution here."""
        return convolution.at(self.size, self.padding, self.output_padding, self.mode, self.outside)


@dataclass(frozen=True, slots=True)
class Layer:
    """One linear map of the model.

    form      how stored tensors make its weight
    geometry  of a convolution, else None
    flipped   the weight is stored (inputs, outputs), not (outputs, inputs)
    stacked   the weight is [E, …]: E matrices, each for itself
    used_by   names under which, or nodes by which, it is applied
    outputs   the graph's values that it makes (empty for a checkpoint)
    places    of a convolution, for each of `outputs` where it acts, or None where that is not known
    in_chain  whether it is a factor of a bare checkpoint's chain (an embedding is not: its input
              is an index)
    gain      a factor that the node applies besides the weight (Gemm's |alpha|): it counts in the
              operator's norm, not in σ
    assumption what the reading of the weight rests on and nobody checked; empty: nothing
    """

    name: str
    op: str
    form: Form
    geometry: Geometry | None = None
    flipped: bool = False
    stacked: bool = False
    used_by: tuple[str, ...] = ()
    outputs: tuple[onnx_ir.Value, ...] = ()
    places: tuple[Place | None, ...] = ()
    in_chain: bool = True
    notes: tuple[str, ...] = ()
    gain: float = 1.0
    assumption: str = ""

    @property
    def dtype(self) -> str:
        return self.form.tensors[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.form.shape

    @property
    def aliases(self) -> tuple[str, ...]:
        """All stored names of a checkpoint's weight (a graph's uses are nodes, not names)."""
        return (self.name,) if self.outputs else self.used_by or (self.name,)

    @property
    def uses(self) -> int:
        return max(1, len(self.used_by))

    def here(self, convolution: Convolution) -> tuple[AnyMap, ...]:
        """The convolution at each place where the layer acts; for all sizes, where one is not known."""
        if not self.places or None in self.places:
            return (convolution,)
        return tuple(place.of(convolution) for place in dict.fromkeys(self.places) if place is not None)

    def maps(self, stored: Stored = NOTHING) -> tuple[AnyMap, AnyMap]:
        """(the reshaped weight matrix, the layer as the operator that it applies); one object where
        they are the same. Reads the weight's bytes."""
        plain = isinstance(self.form, Plain) and self.geometry is None
        weight = self.form.entries(stored) if plain else self.form.weight(stored)
        if isinstance(weight, LowRank):
            if self.geometry is None:
                return weight, weight
            return weight, self._convolution(weight.dense().reshape(self.shape))
        if self.geometry is not None:
            return Dense(self._as_matrix(weight)), self._convolution(weight)
        if self.stacked:
            blocks = weight.reshape(math.prod(weight.shape[:-2]), *weight.shape[-2:])
            stack = BlockDiagonal(blocks.transpose(0, 2, 1) if self.flipped else blocks)
            return stack, stack
        matrix = flat(weight) if weight.ndim else weight.reshape(1, 1)
        dense = Dense(matrix.T if self.flipped else matrix)
        return dense, dense

    def replaced(self, near: AnyMap, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        """Stored arrays, in their dtypes, with which `maps` gives `near` as its matrix or its operator.

        Raises ConstraintError where the stored form cannot hold any weight of the shape.
        """
        if isinstance(near, LowRank):
            return self.form.replaced(near, stored)
        if isinstance(near, Convolution):
            return self.form.replaced(near.kernel, stored)
        if isinstance(near, BlockDiagonal):
            blocks = near.blocks.transpose(0, 2, 1) if self.flipped else near.blocks
            return self.form.replaced(blocks.reshape(self.shape), stored)
        matrix = near.dense()
        if self.geometry is not None and self.geometry.transposed:
            first, second, *taps = self.shape
            return self.form.replaced(matrix.reshape(second, first, *taps).swapaxes(0, 1), stored)
        return self.form.replaced((matrix.T if self.flipped else matrix).reshape(self.shape), stored)

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns) of the reshaped weight; of one slice for stacked matrices."""
        shape = self.shape
        if self.stacked:
            rows, columns = shape[-2:]
        elif self.geometry is not None and self.geometry.transposed:
            rows, columns = shape[1], shape[0] * int(np.prod(shape[2:]))
        else:
            rows, columns = (shape[0] if shape else 1), int(np.prod(shape[1:]))
        return (columns, rows) if self.flipped else (rows, columns)

    def _as_matrix(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel reshaped with its outputs in front, as torch's spectral_norm reshapes it."""
        if self.geometry is not None and self.geometry.transposed:
            kernel = np.swapaxes(kernel, 0, 1)
        return flat(kernel)

    def _convolution(self, kernel: np.ndarray) -> Convolution:
        g = self.geometry
        assert g is not None
        return Convolution(kernel, g.stride, g.dilation, g.groups, g.transposed)


@dataclass(frozen=True, slots=True)
class Extraction:
    """All layers of a model in their order, and all that is no layer, with reasons.

    `scales` are normalization layers of a bare checkpoint with their gain, or None where it does
    not follow from the file; `broken_chain` says why the layers are certainly no plain chain.
    """

    layers: tuple[Layer, ...]
    left_out: tuple[LeftOut, ...] = ()
    scales: tuple[tuple[str, float | None], ...] = ()
    broken_chain: tuple[str, ...] = ()


def select(layers: Iterable[Layer], wanted: Sequence[str], skipped: Sequence[str] = ()) -> tuple[Layer, ...]:
    """The layers whose name matches one of `wanted` (all, if empty) and none of `skipped`.

    Patterns are shell patterns over the whole name; one without wildcards also matches a dotted part
    of it ("layer1" matches "layer1.0.weight"). Raises UsageError for a pattern that matches nothing,
    with the names nearest to it. A weight that is stored under several names is wanted under any of
    them, and skipped only when all are. `layers` are Layers or LayerResults.
    """
    layers = tuple(layers)
    for pattern in (*wanted, *skipped):
        if not any(matches(name, pattern) for layer in layers for name in _names(layer)):
            raise UsageError(f"no layer matches {pattern!r}{_nearest(pattern, layers)}")
    chosen = tuple(
        layer
        for layer in layers
        if (not wanted or any(matches(name, p) for name in _names(layer) for p in wanted))
        and not all(any(matches(name, p) for p in skipped) for name in _names(layer))
    )
    if layers and not chosen:
        raise UsageError("--layers and --skip leave no layer")
    return chosen


def _names(layer: Any) -> tuple[str, ...]:
    return layer.aliases or (layer.name,)


def matches(name: str, pattern: str) -> bool:
    """Whether a layer's name matches a pattern, as `select` explains; "W#2" goes by W, too."""
    base, _, count = name.rpartition("#")
    if base and count.isdigit() and matches(base, pattern):
        return True
    if fnmatchcase(name, pattern) or name == pattern:
        return True
    return not set("*?[") & set(pattern) and f".{pattern}." in f".{name}."


_SHOWN = 4
"""Names that an error shows where none is near the one asked for."""


def _nearest(pattern: str, layers: tuple[Layer, ...]) -> str:
    import difflib

    near = difflib.get_close_matches(pattern, [layer.name for layer in layers], 3, 0.3)
    if near:
        return f"; near it: {', '.join(near)}"
    names = [layer.name for layer in layers[:_SHOWN]]
    return f"; it has {', '.join(names)}{', …' if len(layers) > _SHOWN else ''}" if names else ""
