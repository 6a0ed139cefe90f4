"""Dequantized: the real matrix that stored integers stand for, and how to scale it through its scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from snaudit.errors import ConstraintError
from snaudit.forms import NOTHING, Stored
from snaudit.linear import LowRank
from snaudit.model import Tensor
from snaudit.packing import Packing


@dataclass(frozen=True, slots=True)
class Dequantized:
    """(q − z)·s/divisor: stored codes q, zero points z and scales s, as the real matrix that they stand for.

    q, z, s are stored tensors or constants of a graph. The scales lie in an array of shape `grid`, which
    has the weight's rank: along each axis one for all, one for each entry, or one for each block of
    `blocks` entries; zero points the same in `zero_grid`. `groups` tells for each row which row of the grid it
    has (GPTQ's g_idx). `handle` is the stored scale, or None: then the weight cannot be scaled. `packing`
    says how codes lie in wider words. `index` is the part of the matrix that is meant; `where` the node.
    """

    quantized: Any
    scale: Any
    zero: Any
    tensors: tuple[Tensor, ...]
    whole: tuple[int, ...]
    grid: tuple[int, ...]
    zero_grid: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    groups: Tensor | None = None
    packing: Packing | None = None
    handle: Tensor | None = None
    divisor: float = 1.0
    index: tuple[Any, ...] = ()
    where: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return np.broadcast_to(np.empty(()), self.whole)[self.index].shape

    def weight(self, stored: Stored = NOTHING) -> np.ndarray:
        codes = _part(self.quantized, stored)
        with np.errstate(all="ignore"):
            if self.packing is not None:
                codes = self.packing.codes(codes, self.whole)  # type: ignore[arg-type]
            weight = codes.reshape(self.whole).astype(np.float64)
            if self.zero is not None:
                weight -= self._spread(self._zeros(stored), self.zero_grid, stored)
            weight *= self._spread(_part(self.scale, stored), self.grid, stored)
            return weight[self.index] / self.divisor if self.divisor != 1.0 else weight[self.index]

    def _zeros(self, stored: Stored) -> np.ndarray:
        zeros = _part(self.zero, stored)
        if self.packing is not None and zeros.dtype.kind in "iu":
            return self.packing.zeros(zeros, self.zero_grid)  # type: ignore[arg-type]
        return zeros

    def _spread(self, array: np.ndarray, grid: tuple[int, ...], stored: Stored) -> np.ndarray:
        """The array in float64, so that it broadcasts against the weight."""
        found = array.astype(np.float64).reshape(grid)
        if self.groups is not None:
            return found[_part(self.groups, stored)]
        for axis, (have, need) in enumerate(zip(grid, self.whole, strict=True)):
            if have not in (1, need):
                found = np.take(found, np.arange(need) // self.blocks[axis], axis)
        return found

    def rounding(self, stored: Stored = NOTHING) -> float:
        """0 where q − z has 21 bits or fewer and s 32 bits or fewer: then the product fits in float64. Else each
        entry is off by at most 3u of itself, which moves the operator by 3u·‖|W|‖ ≤ 3u·√size·‖W‖."""
        codes, scale = _part(self.quantized, stored).dtype, _part(self.scale, stored).dtype
        narrow = scale.itemsize <= 4 and (self.packing is not None or codes.itemsize <= 2)
        if self.zero is not None:
            zeros = self._zeros(stored).astype(np.float64)
            narrow &= bool((np.abs(zeros) < 2.0**20).all() and (zeros == np.rint(zeros)).all())
        if narrow and self.divisor == 1.0:
            return 0.0
        return 2.0**-51 * float(np.sqrt(np.prod(self.whole)))

    def scaled(self, factor: float, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        if self.handle is None:
            raise ConstraintError(
                f"{self._named}: its scale is no stored tensor, so that nothing scales the integer weight "
                "but quantizing it anew"
            )
        with np.errstate(all="ignore"):
            scale = _part(self.handle, stored)
            return {self.handle.name: np.asarray(scale.astype(np.float64) * factor).astype(scale.dtype)}

    def replaced(self, weight: np.ndarray | LowRank, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        """None: another weight would have to be quantized anew."""
        raise ConstraintError(f"{self._named}: integer weights can only be scaled; only --how scale can cap them")

    @property
    def _named(self) -> str:
        return self.tensors[0].name + (f" of node {self.where}" if self.where else "")


def _part(part: Any, stored: Stored) -> np.ndarray:
    """The array of a stored tensor, or of a constant that a graph computes."""
    if isinstance(part, Tensor):
        found = stored.get(part.name)
        return part.load() if found is None else found
    from snaudit import folding

    with np.errstate(all="ignore"):
        return folding.evaluate(part, stored)
