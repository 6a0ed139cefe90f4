"""Windows over the spatial axes: maxima, means and p-norms, with overlap, padding and dilation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from snaudit.bound import Bound, at_most, chain, exactly, up
from snaudit.gains import copies, means, non_negative, outward
from snaudit.rules.interface import Row, Step, Unbounded, Value, jumping, through

_DENSE = 400  # an axis longer than this is bounded by its sums, not by its matrix
_WIDEST = 64  # a window wider than this is bounded by how many cover an entry, where the size is unknown


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis' window: kernel k, stride s, dilation d, pads, and how the ends are treated."""

    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    auto: str
    ceil: bool

    @property
    def extent(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    @property
    def overlap(self) -> int:
        """The most windows over one entry at any size: taps t with d·t ≡ r (mod s) for one r."""
        return -(-self.kernel // (self.stride // math.gcd(self.stride, self.dilation)))

    def counts(self, size: int | None) -> bool:
        """Whether the axis is short enough to be looked at window by window."""
        return size is not None and size <= _DENSE and self.begin + self.end <= 4 * _DENSE

    def windows(self, size: int) -> tuple[list[range], int, int]:
        """The positions of each window over an axis of `size` entries, and the pads before and after."""
        begin, end = self.begin, self.end
        if self.auto.startswith("SAME"):
            count = -(-size // self.stride)
            total = max(0, (count - 1) * self.stride + self.extent - size)
            begin = total // 2 if self.auto == "SAME_UPPER" else total - total // 2
            end = total - begin
        elif self.auto == "VALID":
            begin = end = 0
        span = max(0, size + begin + end - self.extent)  # too long a window: runtimes still place one
        count = (-(-span // self.stride) if self.ceil else span // self.stride) + 1
        starts = [i * self.stride - begin for i in range(count)]
        return [range(s, s + self.extent, self.dilation) for s in starts if s < size + end], begin, end

    def sizes(self, size: int | None) -> Iterator[int]:
        """The axis' size, or enough sizes to show every way in which a window meets an end.

        An entry sees only the windows over it, each within `extent` of it; beyond two extents and
        a stride a longer axis only adds interior. The sizes cover each remainder by the stride.
        """
        if self.counts(size):
            return iter((size,))
        return iter(range(1, 3 * self.extent + 3 * self.stride + self.begin + self.end + 2))


def _axes(step: Step) -> list[_Axis]:
    kernel = [int(k) for k in step.attribute("kernel_shape")]
    rank = len(kernel)
    strides = step.attribute("strides", [1] * rank)
    dilations = step.attribute("dilations", [1] * rank)
    pads = step.attribute("pads", [0] * (2 * rank))
    auto = step.attribute("auto_pad", "NOTSET")
    if auto != "NOTSET":
        pads = [0] * (2 * rank)
    if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0 or len(pads) != 2 * rank:
        raise Unbounded("the window's attributes make no sense", "repair the node", "malformed")
    ceil = bool(step.attribute("ceil_mode", 0))
    if ceil and auto.startswith("SAME"):
        reason = "ceil_mode together with auto_pad is understood differently by different runtimes"
        raise Unbounded(reason, "write the pads out", "no-constant")
    return [
        _Axis(kernel[i], int(strides[i]), int(dilations[i]), int(pads[i]), int(pads[rank + i]), auto, ceil)
        for i in range(rank)
    ]


def _spatial(step: Step, rank: int) -> tuple[int | None, ...]:
    shape = step.shape(0)
    return (None,) * rank if shape is None or len(shape) != rank + 2 else shape[2:]


def _cover(step: Step) -> int:
    """The largest number of windows over one entry: the product of the axes' counts, by folding ones."""
    axes = _axes(step)
    return math.prod(_axis_cover(a, n) for a, n in zip(axes, _spatial(step, len(axes)), strict=True))


def _axis_cover(axis: _Axis, size: int | None) -> int:
    if not axis.counts(size):
        return axis.overlap
    windows, _, _ = axis.windows(size)
    counts = np.zeros(size, int)
    for window in windows:
        counts[_inside(window, 0, size)] += 1
    return int(counts.max(initial=0))


def _inside(window: range, low: int, high: int) -> range:
    """The window's positions in [low, high)."""
    first = max(0, -((window.start - low) // window.step))
    last = max(0, -((window.start - high) // window.step))
    return window[first:last]


def max_pool(step: Step) -> tuple[Value, ...]:
    """√m (l2), m (l1) or 1 (linf) times the input's, m the largest number of windows over one entry.

    |max_w x − max_w y| ≤ max_{j∈w}|xⱼ − yⱼ|; in Σ_w an entry appears at most m times. Attained.
    The indices (output 2) are a step function.
    """
    value = through(step.data(), copies(_cover(step), step.norm))
    return (value, jumping(step))[: len(step.node.outputs)]


def average_pool(step: Step) -> tuple[Value, ...]:
    """The norm of the averaging map times the input's: the product of its axes' norms.

    Divisors are products over the axes (with or without padding counted), so the map is the tensor
    product of one-dimensional averages, whose norms multiply in l2, l1 and linf. On an axis of
    known length the matrix is built (l2: Collatz–Wielandt, tight); otherwise every way to meet an
    end is tried, and l2 takes √(row sum·column sum), at most a few per cent loose.
    """
    axes = _axes(step)
    include = bool(step.attribute("count_include_pad", 0))
    gain = exactly(1.0, "average")
    for axis, size in zip(axes, _spatial(step, len(axes)), strict=True):
        gain = chain(gain, _axis_average(axis, size, include, step), "average")
    return (through(step.data(), gain),)


def _axis_average(axis: _Axis, size: int | None, include: bool, step: Step) -> Bound:
    exact = axis.counts(size)
    if not exact and axis.extent + axis.begin + axis.end > _WIDEST:
        return copies(axis.overlap, step.norm)  # a mean is at most the maximum
    largest = 0.0
    for n in axis.sizes(size):
        matrix = _average_matrix(axis, n, include)
        if exact or step.norm != "l2":
            largest = max(largest, non_negative(matrix, step.norm).upper)
        elif matrix.size:
            sums = float(matrix.sum(axis=0).max()) * float(matrix.sum(axis=1).max())
            largest = max(largest, outward(math.sqrt(sums), 4 * axis.extent))
    return at_most(largest, "average")


def _average_matrix(axis: _Axis, size: int, include: bool) -> np.ndarray:
    """Each window's weights; with padding counted, positions beyond the end pad (ceil_mode) are not."""
    windows, begin, end = axis.windows(size)
    matrix = np.zeros((len(windows), size))
    for row, window in enumerate(windows):
        inside = _inside(window, 0, size)
        counted = len(_inside(window, -begin, size + end)) if include else len(inside)
        matrix[row, inside] = 1.0 / max(1, counted)
    return matrix


def global_average(step: Step) -> tuple[Value, ...]:
    """1/√n (l2), 1/n (l1) or 1 (linf) times the input's over n positions; 1 where n is not known."""
    shape = step.shape(0)
    size = 1 if shape is None else math.prod(d or 1 for d in shape[2:])
    return (through(step.data(), means(size, step.norm)),)


def global_max(step: Step) -> tuple[Value, ...]:
    """The input's own: a maximum over disjoint windows is 1-Lipschitz in l2, l1 and linf."""
    return (through(step.data(), exactly(1.0, "maximum")),)


def lp_pool(step: Step) -> tuple[Value, ...]:
    """The p-norm of each window: √m (l2), m (l1), k^(1/p) (linf) times the input's.

    Below p = 2 it is √(k^(2/p − 1)·m) in l2.

    |‖x_w‖_p − ‖y_w‖_p| ≤ ‖x_w − y_w‖_p, and the p-norm is at most the 1-norm, for p ≥ 2 at most the
    2-norm, and at most k^(1/p) times the maximum norm (k entries), with m windows over an entry.
    """
    axes = _axes(step)
    entries = math.prod(axis.kernel for axis in axes)
    return (through(step.data(), _p_norm(step, entries, _cover(step))),)


def global_lp_pool(step: Step) -> tuple[Value, ...]:
    """As LpPool with one window: 1 (l1; l2 for p ≥ 2), √n (l2, p = 1), n^(1/p) (linf)."""
    shape = step.shape(0)
    size = None if shape is None or None in shape[2:] else math.prod(shape[2:])
    return (through(step.data(), _p_norm(step, size, 1)),)


def _p_norm(step: Step, entries: int | None, cover: int) -> Bound:
    p = float(step.attribute("p", 2))
    if not p >= 1:
        raise Unbounded("LpPool with p < 1 is no norm", "use p ≥ 1", "no-constant")
    if step.norm == "l1" or (step.norm == "l2" and p >= 2):
        return copies(cover, step.norm)
    if entries is None:
        raise Unbounded(
            "the number of entries in a window is not known", "fix the input's size", "unknown-shape"
        )
    if step.norm == "linf":
        return at_most(up(outward(entries ** (1.0 / p), 8)), "p-norm")
    return at_most(up(outward(math.sqrt(entries ** (2.0 / p - 1.0) * cover), 16)), "p-norm")


_INSTEAD = {
    "DFT": "write the transform as a MatMul or Conv with stored cosines and sines",
    "STFT": "write the transform as a Conv with stored cosines and sines",
    "Col2Im": "replace it by ConvTranspose with a stored kernel of zeros and ones",
    "DeformConv": "use Conv",
}
"""What can stand for an op that is no pooling; sampling at fixed places is Resize."""


def _no_rule(step: Step) -> tuple[Value, ...]:
    """None yet."""
    op = step.node.op_type
    raise Unbounded(f"{op} is not bounded yet", _INSTEAD.get(op, "replace it by pooling or Resize"), "no-rule")


ROWS: tuple[Row, ...] = (
    Row("MaxPool", max_pool, "√m, m windows over an entry (l1: m, linf: 1)", "counting by folding ones"),
    Row("AveragePool", average_pool, "norm of the averaging map", "tensor product of one-dimensional maps"),
    Row("GlobalAveragePool", global_average, "1/√n (l1: 1/n, linf: 1)", "mean"),
    Row("GlobalMaxPool", global_max, "1", "maximum over disjoint windows"),
    Row("LpPool", lp_pool, "√m (l1: m, linf: k^(1/p))", "reverse triangle inequality", "p ≥ 1"),
    Row("GlobalLpPool", global_lp_pool, "1 (linf: n^(1/p))", "reverse triangle inequality", "p ≥ 1"),
    *(
        Row(op, _no_rule, "∞", "none yet")
        for op in (
            "MaxRoiPool",
            "RoiAlign",
            "MaxUnpool",
            "GridSample",
            "DeformConv",
            "Col2Im",
            "AffineGrid",
            "DFT",
            "STFT",
        )
    ),
)
