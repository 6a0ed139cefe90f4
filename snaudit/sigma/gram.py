"""Gram matrices of stacks, summed over blocks of rows, with what their rounding can amount to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from snaudit.arrays import Arrays
from snaudit.linear import BLOCK
from snaudit.rounding import SAFE, TINY, scale
from snaudit.sigma.scaling import largest_of


@dataclass(frozen=True, slots=True)
class Gram:
    """S = fl(WᵀW) of each block W of 2⁻ᵉ·blocks (k, m, n), n ≤ m, on a device.

    depth: every entry of S is a sum that is nested so deep, hence |S − WᵀW| ≤ γ_depth·|W|ᵀ|W|
    (Higham, section 4.2: blocks of rows, then their sum: far less than γ_m for a tall table).
    square: an upper bound of every block's ‖W‖_F² = tr WᵀW, and so of ‖|W|ᵀ|W|‖₂ and of ‖|S|‖₂.
    largest: None, or where the matrices tell nothing the largest |entry|: 0, ∞ or NaN.
    """

    matrix: Any
    blocks: np.ndarray
    diagonal: np.ndarray
    exponent: int
    depth: int
    square: float
    largest: float | None = None


def gram_of(blocks: np.ndarray, device: Arrays) -> Gram:
    """The Gram matrices. The diagonal tells whether squares over- or underflowed, or an entry is not
    finite; only then all entries are looked through, and a power of two taken out."""
    made = _made(blocks, device, 0)
    if 2.0**-200 <= made.square <= 2.0**200:
        return made
    largest = largest_of(blocks)
    if largest == 0.0 or not math.isfinite(largest):
        return replace(made, largest=largest)
    return _made(blocks, device, math.frexp(largest)[1])


def scaled_rows(blocks: np.ndarray, exponent: int) -> Iterator[np.ndarray]:
    """2⁻ᵉ·blocks in float64, some rows of all of them at a time, each in the place of the one before."""
    step, buffer = _rows_at_once(*blocks.shape), None
    for start in range(0, blocks.shape[1], step):
        part = blocks[:, start : start + step]
        if part.dtype != np.float64:
            buffer = np.empty_like(part, dtype=np.float64) if buffer is None else buffer
            stored, part = part, buffer[:, : part.shape[1]]
            np.copyto(part, stored, casting="unsafe")
        yield scale(part, exponent)


def _made(blocks: np.ndarray, device: Arrays, exponent: int) -> Gram:
    step = _rows_at_once(*blocks.shape)
    depth = min(step, blocks.shape[1]) + -(-blocks.shape[1] // step)
    matrix = device.gram(scaled_rows(blocks, exponent))
    diagonal = device.diagonal(matrix).copy()
    return Gram(matrix, blocks, diagonal, exponent, depth, SAFE * float(diagonal.sum(axis=1).max()) + TINY)


def _rows_at_once(count: int, rows: int, columns: int) -> int:
    """So many that adding up the products costs little beside making them."""
    return max(1, BLOCK // (count * columns), min(columns, 4096))
