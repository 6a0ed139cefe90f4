"""LinearMap: what σ is measured of. Dense matrices, convolutions, low-rank products, stacks.

All arrays are float64 here: fp32, fp16, bf16 and fp8 weights are exact in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
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

    def __post_init__(self) -> None:
        axes = self.kernel.ndim - 2
        if axes < 1 or len(self.stride) != axes or len(self.dilation) != axes:
            raise ValueError(f"kernel {self.kernel.shape} with stride {self.stride}, dilation {self.dilation}")
        if min(*self.stride, *self.dilation, self.groups) < 1 or self.kernel.shape[0] % self.groups:
            raise ValueError(f"stride {self.stride}, dilation {self.dilation}, groups {self.groups}")

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return self.kernel.ndim - 2

    @property
    def depthwise(self) -> bool:
        """Whether each input channel is filtered by itself."""
        inputs = self.kernel.shape[0] // self.groups if self.transposed else self.kernel.shape[1]
        return self.groups > 1 and inputs == 1

    def matrix(self) -> Dense:
        """The kernel as a matrix in its stored order: the first axis by all others."""
        return Dense(self.kernel.reshape(self.kernel.shape[0], math.prod(self.kernel.shape[1:])))

    def polyphase(self) -> np.ndarray:
        """Kernels K, (groups, O/g, I/g·∏s', Q₁…Q_D), of stride-1 convolutions with this one's l2 norm.

        The norm over all input sizes is max over groups and ω of ‖Σ_q K[g, :, :, q] e^{i⟨ω,q⟩}‖₂.
        Transposed layers hold their adjoint's kernel, and adjoints have equal norms. Only s/gcd(s,d)
        matters: in T·Tᵀ taps t, t' meet where s(m−m') = d(t'−t), so T·Tᵀ is that of (s/gcd, 1)
        spread over the multiples of d/gcd. A stride s' is a stride-1 convolution of the s' shifted
        subsamplings of x, stacked as channels: K[o, (i,ρ), q] = W[o, i, s'q + ρ], zero-padded.
        """
        kernel, axes = self.kernel, self.axes
        strides = [s // math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True)]
        taps = [-(-k // s) for k, s in zip(kernel.shape[2:], strides, strict=True)]
        wide = [s * q - k for s, q, k in zip(strides, taps, kernel.shape[2:], strict=True)]
        padded = np.pad(kernel, [(0, 0), (0, 0), *((0, w) for w in wide)])
        pairs = itertools.chain.from_iterable(zip(taps, strides, strict=True))
        split = padded.reshape(*kernel.shape[:2], *pairs)
        order = (0, 1, *(3 + 2 * a for a in range(axes)), *(2 + 2 * a for a in range(axes)))
        channels = kernel.shape[1] * math.prod(strides)
        outputs = kernel.shape[0] // self.groups
        return split.transpose(order).reshape(self.groups, outputs, channels, *taps)

    def at(
        self,
        size: Sequence[int],
        padding: Sequence[int | tuple[int, int]] = (),
        output_padding: Sequence[int] = (),
    ) -> Located:
        """The operator at one input size; padding (both sides, or before and after) for each axis.

        Raises ValueError where the output would be empty.
        """
        sides = tuple((p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding) or ((0, 0),) * self.axes
        extra = tuple(output_padding) or (0,) * self.axes
        return Located(self, tuple(size), sides, extra)


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """A convolution at one input size, with zero padding (or, transposed, cropping): a LinearMap.

    Vectors are (channels, *size) in C order. It stands for tests and witnesses, not for speed.
    """

    convolution: Convolution
    size: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    output_padding: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(p for pair in self.padding for p in pair) < 0:
            raise ValueError(f"negative padding {self.padding}")
        if min(*self.output_size, *self.size) < 1:
            raise ValueError(f"input {self.size} leaves an output of {self.output_size}")

    @property
    def output_size(self) -> tuple[int, ...]:
        """The spatial shape of the output."""
        c = self.convolution
        rows = zip(self.size, c.kernel.shape[2:], c.stride, c.dilation, self.padding, strict=True)
        if c.transposed:
            sizes = ((n - 1) * s + d * (k - 1) + 1 - sum(p) for n, k, s, d, p in rows)
            return tuple(n + e for n, e in zip(sizes, self.output_padding, strict=True))
        return tuple((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, d, p in rows)

    @property
    def _channels(self) -> tuple[int, int]:
        """(output, input) channels of the stored convolution, whichever way it is used."""
        return self.convolution.kernel.shape[0], self.convolution.kernel.shape[1] * self.convolution.groups

    @property
    def shape(self) -> tuple[int, int]:
        outputs, inputs = self._channels[::-1] if self.convolution.transposed else self._channels
        return outputs * math.prod(self.output_size), inputs * math.prod(self.size)

    def matvec(self, x: np.ndarray) -> np.ndarray:
        return self._scatter(x) if self.convolution.transposed else self._gather(x)

    def rmatvec(self, y: np.ndarray) -> np.ndarray:
        return self._gather(y) if self.convolution.transposed else self._scatter(y)

    def dense(self) -> np.ndarray:
        columns = np.eye(self.shape[1])
        return np.stack([self.matvec(column) for column in columns], axis=1)

    def _sizes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(few, many, padded many): the spatial shapes on the strided side and on the other."""
        c = self.convolution
        few, many = (self.size, self.output_size) if c.transposed else (self.output_size, self.size)
        rows = zip(few, many, c.kernel.shape[2:], c.stride, c.dilation, self.padding, strict=True)
        wide = tuple(max(p[0] + n + max(p[1], 0), (m - 1) * s + d * (k - 1) + 1) for m, n, k, s, d, p in rows)
        return few, many, wide

    def _taps(self, few: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Each tap of the kernel with the places in the padded array that it meets."""
        c = self.convolution
        for tap in itertools.product(*(range(k) for k in c.kernel.shape[2:])):
            rows = zip(tap, few, c.stride, c.dilation, strict=True)
            yield tap, tuple(slice(d * t, d * t + s * (m - 1) + 1, s) for t, m, s, d in rows)

    def _gather(self, x: np.ndarray) -> np.ndarray:
        """y[m] = Σ_t W_t x[s·m + d·t − p]."""
        few, many, wide = self._sizes()
        (outputs, inputs), c = self._channels, self.convolution
        padded = np.zeros((inputs, *wide))
        padded[self._inner(many)] = x.reshape(inputs, *many)
        y = np.zeros((c.groups, outputs // c.groups, *few))
        kernel = c.kernel.reshape(c.groups, outputs // c.groups, inputs // c.groups, *c.kernel.shape[2:])
        for tap, places in self._taps(few):
            seen = padded[(slice(None), *places)].reshape(c.groups, inputs // c.groups, *few)
            y += np.einsum("goi,gi...->go...", kernel[(..., *tap)], seen)
        return y.ravel()

    def _scatter(self, y: np.ndarray) -> np.ndarray:
        """The adjoint of `_gather`."""
        few, many, wide = self._sizes()
        (outputs, inputs), c = self._channels, self.convolution
        padded = np.zeros((inputs, *wide))
        given = y.reshape(c.groups, outputs // c.groups, *few)
        kernel = c.kernel.reshape(c.groups, outputs // c.groups, inputs // c.groups, *c.kernel.shape[2:])
        for tap, places in self._taps(few):
            part = np.einsum("goi,go...->gi...", kernel[(..., *tap)], given)
            padded[(slice(None), *places)] += part.reshape(inputs, *few)
        return padded[self._inner(many)].ravel()

    def _inner(self, many: tuple[int, ...]) -> tuple[slice, ...]:
        return (slice(None), *(slice(p, p + n) for (p, _), n in zip(self.padding, many, strict=True)))


def flat(weight: np.ndarray) -> np.ndarray:
    """The matrix (shape[0], all the rest), also of an array without an element, which reshape(n, -1) refuses."""
    return weight.reshape(weight.shape[0], math.prod(weight.shape[1:]))


AnyMap = Dense | LowRank | BlockDiagonal | Convolution
