"""How integers narrower than a byte lie in stored words: several to a word, the first in the low bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Packing:
    """Codes of `bits` bits along `axis` of a stored array of integers.

    order   the code at place i of a word (its i-th lowest bits) is the one of index order[i]; empty: i
    offset  what the stored zero points lack (AutoGPTQ stores them less one)
    middle  the code 2^(bits − 1) stands for zero, and the codes are returned less it

    Zero points are packed along their last axis, in the same order.
    """

    bits: int
    axis: int
    order: tuple[int, ...] = ()
    offset: int = 0
    middle: bool = False

    def codes(self, stored: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """The codes, (rows, columns) of int64; what fills up the last block of a row is cut off."""
        codes = self._unpack(stored, self.axis).reshape(shape[0], -1)[:, : shape[1]]
        return codes - (1 << self.bits - 1) if self.middle else codes

    def zeros(self, stored: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """The zero points, one for each entry of the grid."""
        return self._unpack(stored.reshape(grid[0], -1), 1)[:, : grid[1]] + self.offset

    def _unpack(self, stored: np.ndarray, axis: int) -> np.ndarray:
        width = 8 * stored.itemsize
        words = stored.view(np.dtype(f"u{stored.itemsize}")).astype(np.int64)
        parts = words[..., None] >> np.arange(0, width, self.bits) & (1 << self.bits) - 1
        if self.order:
            parts = parts[..., np.argsort(self.order)]
        parts = np.moveaxis(parts, -1, axis + 1)
        shape = stored.shape[:axis] + (stored.shape[axis] * (width // self.bits),) + stored.shape[axis + 1 :]
        return parts.reshape(shape)


AWQ = Packing(4, 1, (0, 2, 4, 6, 1, 3, 5, 7))
"""AutoAWQ's GEMM version: words along the outputs of an (inputs, outputs) matrix, codes interleaved."""
