"""LinearMap: what σ is measured of. Dense matrices, convolutions, low-rank products, stacks.

All arithmetic is float64: fp32, fp16, bf16 and fp8 weights are exact in it. A matrix may stay in its
stored dtype, and is converted a block of rows at a time, so that a large one needs no second copy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
    """A matrix W of shape (rows, columns), in any real dtype: x ↦ W·x."""

    weight: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape  # type: ignore[return-value]

    def matvec(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros(0), *(block @ x for block in float64_rows(self.weight))])

    def rmatvec(self, y: np.ndarray) -> np.ndarray:
        total, start = np.zeros(self.shape[1]), 0
        for block in float64_rows(self.weight):
            total += block.T @ y[start : start + len(block)]
            start += len(block)
        return total

    def dense(self) -> np.ndarray:
        return self.weight.astype(np.float64, copy=False)


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
    """diag(A₁, …, A_k), a stack (k, rows, columns) in any real dtype; each acts on its own input.

    Its norm is the largest of the blocks' (in l2, l1 and linf). Stacked experts: a token meets one.
    """

    blocks: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        count, rows, columns = self.blocks.shape
        return count * rows, count * columns

    def matvec(self, x: np.ndarray) -> np.ndarray:
        count, _, columns = self.blocks.shape
        parts = zip(self.blocks, x.reshape(count, columns), strict=True)
        return np.concatenate([np.zeros(0), *(Dense(block).matvec(part) for block, part in parts)])

    def rmatvec(self, y: np.ndarray) -> np.ndarray:
        count, rows, _ = self.blocks.shape
        parts = zip(self.blocks, y.reshape(count, rows), strict=True)
        return np.concatenate([np.zeros(0), *(Dense(block).rmatvec(part) for block, part in parts)])

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

    def trimmed(self) -> Convolution:
        """The convolution without the outermost taps that are zero all over: a shift of it, of equal norm
        over all sizes."""
        kernel = self.kernel
        for axis in range(2, kernel.ndim):
            others = tuple(a for a in range(kernel.ndim) if a != axis)
            there = np.flatnonzero(kernel.any(axis=others))
            if len(there) and (there[0] > 0 or there[-1] < kernel.shape[axis] - 1):
                kernel = np.take(kernel, np.arange(there[0], there[-1] + 1), axis=axis)
        return self if kernel is self.kernel else replace(self, kernel=kernel)

    def at(
        self,
        size: Sequence[int],
        padding: Sequence[int | tuple[int, int]] = (),
        output_padding: Sequence[int] = (),
        mode: str = "zeros",
        outside: Sequence[tuple[int, int]] = (),
    ) -> Located:
        """The operator at one input size; padding (both sides, or before and after) for each axis.

        mode: what the padding holds ("zeros", "reflect", "replicate", "circular", torch's names);
        outside: zeros that are added around that. Raises ValueError where the output would be empty
        or the mode cannot pad so much.
        """
        none = ((0, 0),) * self.axes
        sides = tuple((p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding) or none
        extra = tuple(output_padding) or (0,) * self.axes
        return Located(self, tuple(size), sides, extra, mode, tuple(outside) or none)


MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""What padding holds, by torch's names and by NumPy's (which are ONNX's)."""


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """A convolution at one input size, padded (or, transposed, cropped): a LinearMap.

    Vectors are (channels, *size) in C order. Padding in another mode than zeros copies entries of
    the input; `outside` are zeros around those.
    """

    convolution: Convolution
    size: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    output_padding: tuple[int, ...]
    mode: str
    outside: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        c = self.convolution
        parts = (self.size, self.padding, self.output_padding, self.outside)
        if any(len(part) != c.axes for part in parts) or self.mode not in MODES:
            raise ValueError(f"{c.axes} axes, but {parts}, {self.mode}")
        if min(p for pair in (*self.padding, *self.outside, self.output_padding) for p in pair) < 0:
            raise ValueError(f"negative padding {self.padding}")
        if self.copies and c.transposed:
            raise ValueError(f"a transposed convolution does not pad by {self.mode}")
        most = {"reflect": [n - 1 for n in self.size], "circular": self.size}.get(self.mode)
        if most and any(max(pair) > room for pair, room in zip(self.padding, most, strict=True)):
            raise ValueError(f"{self.mode} cannot pad {self.size} by {self.padding}")
        if min(*self.output_size, *self.size) < 1:
            raise ValueError(f"input {self.size} leaves an output of {self.output_size}")

    @property
    def copies(self) -> bool:
        """Whether the padding copies entries of the input."""
        return self.mode != "zeros" and any(any(pair) for pair in self.padding)

    @property
    def output_size(self) -> tuple[int, ...]:
        """The spatial shape of the output."""
        c = self.convolution
        rows = zip(self.size, c.kernel.shape[2:], c.stride, c.dilation, self.sides(), strict=True)
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

    @property
    def ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The spatial shapes on the strided side (a convolution's output) and on the other."""
        sizes = self.output_size, self.size
        return sizes[::-1] if self.convolution.transposed else sizes

    def matvec(self, x: np.ndarray) -> np.ndarray:
        return self.scatter(x) if self.convolution.transposed else self.gather(x)

    def rmatvec(self, y: np.ndarray) -> np.ndarray:
        return self.gather(y) if self.convolution.transposed else self.scatter(y)

    def dense(self) -> np.ndarray:
        return BlockDiagonal(self.blocks()).dense()

    def blocks(self) -> np.ndarray:
        """The matrix of each group, (groups, rows, columns): they act on channels of their own.

        Exact, but where copies make several taps of the kernel meet in one entry.
        """
        (few, many), (outputs, inputs), c = self.ends, self._channels, self.convolution
        outer, inner = outputs // c.groups, inputs // c.groups
        matrix = np.zeros((c.groups, outer, math.prod(few), inner, math.prod(many)))
        kernel = c.kernel.reshape(c.groups, outer, inner, *c.kernel.shape[2:])
        sources = self.sources()
        for tap, places in self._taps(few):
            met, there = np.zeros(1, dtype=np.int64), np.ones(1, dtype=bool)
            for source, place, n in zip(sources, places, many, strict=True):
                line = source[place]
                met = (met[:, None] * n + line).ravel()
                there = (there[:, None] & (line >= 0)).ravel()
            rows = np.flatnonzero(there)  # a tap joins each place of the output to at most one of the input
            matrix[:, :, rows, :, met[rows]] += kernel[(..., *tap)]
        matrix = matrix.reshape(c.groups, outer * math.prod(few), inner * math.prod(many))
        return matrix.swapaxes(1, 2) if c.transposed else matrix

    def sources(self) -> tuple[np.ndarray, ...]:
        """For each axis, which entry of the input each entry of the padded array holds; −1 for zeros."""
        few, many = self.ends
        c, found = self.convolution, []
        rows = zip(few, many, c.kernel.shape[2:], c.stride, c.dilation, self.padding, self.outside, strict=True)
        for m, n, k, s, d, sides, zeros in rows:
            inner = np.arange(n)
            if self.copies:
                inner = np.pad(inner, sides, mode=MODES[self.mode])
                sides = zeros
            else:
                sides = sides[0] + zeros[0], sides[1] + zeros[1]
            needed = (m - 1) * s + d * (k - 1) + 1 - sides[0] - len(inner)
            found.append(np.pad(inner, (sides[0], max(sides[1], needed)), constant_values=-1))
        return tuple(found)

    def without_idle_taps(self) -> Located:
        """The same operator, with zeros for the taps that never meet an entry of the input."""
        c, (few, _) = self.convolution, self.ends
        kernel, sources = c.kernel, self.sources()
        for axis, (k, s, d, m, source) in enumerate(
            zip(kernel.shape[2:], c.stride, c.dilation, few, sources, strict=True), start=2
        ):
            met = [bool((source[d * t : d * t + s * (m - 1) + 1 : s] >= 0).any()) for t in range(k)]
            if not all(met):
                shape = tuple(k if a == axis else 1 for a in range(kernel.ndim))
                kernel = kernel * np.array(met, dtype=np.float64).reshape(shape)
        return self if kernel is c.kernel else replace(self, convolution=replace(c, kernel=kernel))

    def sides(self) -> list[tuple[int, int]]:
        """All padding of each axis, before and after."""
        return [(p[0] + z[0], p[1] + z[1]) for p, z in zip(self.padding, self.outside, strict=True)]

    def _taps(self, few: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Each tap of the kernel with the places in the padded array that it meets."""
        c = self.convolution
        for tap in itertools.product(*(range(k) for k in c.kernel.shape[2:])):
            rows = zip(tap, few, c.stride, c.dilation, strict=True)
            yield tap, tuple(slice(d * t, d * t + s * (m - 1) + 1, s) for t, m, s, d in rows)

    def gather(self, x: np.ndarray) -> np.ndarray:
        """y[m] = Σ_t W_t x[s·m + d·t − p]: the convolution, also where the layer is its adjoint."""
        (few, many), (outputs, inputs), c = self.ends, self._channels, self.convolution
        padded = x.reshape(inputs, *many)
        for axis, source in enumerate(self.sources(), start=1):
            shape = tuple(-1 if a == axis else 1 for a in range(c.axes + 1))
            padded = np.take(padded, source, axis=axis) * (source >= 0).reshape(shape)
        y = np.zeros((c.groups, outputs // c.groups, math.prod(few)))
        kernel = c.kernel.reshape(c.groups, outputs // c.groups, inputs // c.groups, *c.kernel.shape[2:])
        for tap, places in self._taps(few):
            seen = padded[(slice(None), *places)].reshape(c.groups, inputs // c.groups, -1)
            y += kernel[(..., *tap)] @ seen
        return y.ravel()

    def scatter(self, y: np.ndarray) -> np.ndarray:
        """The adjoint of `gather`."""
        (few, many), (outputs, inputs), c = self.ends, self._channels, self.convolution
        sources = self.sources()
        padded = np.zeros((inputs, *map(len, sources)))
        given = y.reshape(c.groups, outputs // c.groups, -1)
        kernel = c.kernel.reshape(c.groups, outputs // c.groups, inputs // c.groups, *c.kernel.shape[2:])
        for tap, places in self._taps(few):
            part = kernel[(..., *tap)].swapaxes(1, 2) @ given
            padded[(slice(None), *places)] += part.reshape(inputs, *few)
        for axis, (source, size, sides) in enumerate(zip(sources, many, self.sides(), strict=True), start=1):
            lines = np.moveaxis(padded, axis, 0)
            core = slice(sides[0], sides[0] + size)
            total = lines[core].copy()
            for place in (*range(core.start), *range(core.stop, len(source))):
                if source[place] >= 0:
                    total[source[place]] += lines[place]  # a copy gives back to what it was copied from
            padded = np.moveaxis(total, 0, axis)
        return padded.ravel()


BLOCK = 1 << 21
"""Entries that are converted to float64 at once."""


def float64_rows(matrix: np.ndarray, entries: int = BLOCK) -> Iterator[np.ndarray]:
    """The matrix (or stack) in float64, in blocks along its first axis; itself where it is that already."""
    if matrix.dtype == np.float64:
        yield matrix
        return
    step = max(1, entries // max(1, math.prod(matrix.shape[1:])))
    for start in range(0, len(matrix), step):
        yield matrix[start : start + step].astype(np.float64)


def flat(weight: np.ndarray) -> np.ndarray:
    """The matrix (shape[0], all the rest), also of an array without an element, which reshape(n, -1) refuses."""
    return weight.reshape(weight.shape[0], math.prod(weight.shape[1:]))


AnyMap = Dense | LowRank | BlockDiagonal | Convolution | Located
