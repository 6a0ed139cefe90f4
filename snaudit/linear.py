"""LinearMap: what σ is measured of. Dense matrices, convolutions, low-rank products, stacks.

All arrays are float64 here: fp32, fp16, bf16 and fp8 weights are exact in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class LinearMap(Protocol):
    """A linear map between finite-dimensional spaces (scipy's names)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) = (outputs, inputs)."""
        ...

    def matvec(self, x: np.ndarray) -> np.ndarray:
        """A·x for x of shape (columns,)."""
        ...

    def rmatvec(self, y: np.ndarray) -> np.ndarray:
        """Aᵀ·y for y of shape (rows,)."""
        ...

    def dense(self) -> np.ndarray:
        """The matrix itself, (rows, columns)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A matrix W of shape (rows, columns): x ↦ W·x."""

    weight: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape  # type: ignore[return-value]

    def matvec(self, x: np.ndarray) -> np.ndarray:
        return self.weight @ x

    def rmatvec(self, y: np.ndarray) -> np.ndarray:
        return self.weight.T @ y

    def dense(self) -> np.ndarray:
        return self.weight


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """A product left·right, of shapes (rows, r) and (r, columns), never multiplied out (LoRA's B·A)."""

    left: np.ndarray
    right: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    def matvec(self, x: np.ndarray) -> np.ndarray:
        return self.left @ (self.right @ x)

    def rmatvec(self, y: np.ndarray) -> np.ndarray:
        return self.right.T @ (self.left.T @ y)

    def dense(self) -> np.ndarray:
        return self.left @ self.right


@dataclass(frozen=True, slots=True, eq=False)
class BlockDiagonal:
    """diag(A₁, …, A_k), a stack of matrices (k, rows, columns) of which each acts on its own input.

    Its norm is the largest of the blocks' (in l2, l1 and linf). Stacked experts: a token meets one.
    """

    blocks: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        count, rows, columns = self.blocks.shape
        return count * rows, count * columns

    def matvec(self, x: np.ndarray) -> np.ndarray:
        count, _, columns = self.blocks.shape
        return np.einsum("kij,kj->ki", self.blocks, x.reshape(count, columns)).ravel()

    def rmatvec(self, y: np.ndarray) -> np.ndarray:
        count, rows, _ = self.blocks.shape
        return np.einsum("kij,ki->kj", self.blocks, y.reshape(count, rows)).ravel()

    def dense(self) -> np.ndarray:
        count, rows, columns = self.blocks.shape
        matrix = np.zeros((count, rows, count, columns))
        index = np.arange(count)
        matrix[index, :, index, :] = self.blocks
        return matrix.reshape(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Convolution:
    """A convolution (cross-correlation, as every framework has it) for *every* input size.

    y[m] = Σ_t W_t x[s·m + d·t − p], kernel W of shape (O, I/groups, k₁…k_D) as Conv stores it;
    with `transposed`, the map is the adjoint of that, and `kernel` is what ConvTranspose stores:
    (C_in, C_out/groups, k…). Zero padding of any amount. It has no one matrix: only a bound over
    all sizes; `at(size)` is the operator at one.
    """

    kernel: np.ndarray
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    @property
    def axes(self) -> int:
        return self.kernel.ndim - 2


AnyMap = Dense | LowRank | BlockDiagonal | Convolution
