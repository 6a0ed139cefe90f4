"""l1 and linf norms: the largest column sum and the largest row sum of |W|, exactly or rounded outward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from snaudit.bound import Bound, Grade, Norm
from snaudit.linear import AnyMap, BlockDiagonal, Convolution, Located, LowRank, flat
from snaudit.rounding import SAFE, TINY, exponent_of, gamma, scale, unscale
from snaudit.sigma.interface import Method, Options

_BATCH = 1 << 22


def fits(map: AnyMap, norm: Norm) -> bool:
    """Every map in l1 and linf."""
    return norm in ("l1", "linf")


def measure(map: AnyMap, norm: Norm, options: Options) -> Bound:
    """‖W‖₁ = the largest sum of a column's |entries|, ‖W‖∞ = the largest sum of a row's (Higham, 6.2).

    Sums of non-negative numbers in floating point are within γ_n of themselves; where the largest
    sum is a float, it is returned as it is. For a convolution, over all input sizes: see `_rows`; at
    one size, the borders count: see `_at_size`.
    """
    if isinstance(map, LowRank):
        return _product(map if norm == "linf" else LowRank(map.right.T, map.left.T))
    if isinstance(map, Located):
        if map.copies or not _meets_all(map, norm):
            return _at_size(map, norm)
        map = map.convolution
    lower = upper = 0.0
    for rows in _rows(map, norm):
        low, high = largest_row_sum(rows)
        lower, upper = max(lower, low), max(upper, high)
    return Bound(lower, upper, Grade.PROVED, "sums")


METHOD = Method("sums", Grade.PROVED, "‖W‖∞ = max row sum, ‖W‖₁ = max column sum of |W|", fits, measure)


def largest_row_sum(matrix: np.ndarray) -> tuple[float, float]:
    """(below, above) of max_i Σ_j |a_ij|; equal where that sum is a float.

    The rows that may be largest are summed again by `fsum`, which rounds once, unless they are many.
    """
    exponent = exponent_of(matrix)
    matrix = scale(matrix, exponent)
    step = max(1, _BATCH // max(1, matrix.shape[1]))
    sums = np.concatenate([np.abs(matrix[i : i + step]).sum(axis=1) for i in range(0, len(matrix), step)])
    slack = gamma(matrix.shape[1] + 2)
    top = float(sums.max(initial=0.0))
    near = np.flatnonzero(sums >= top * (1.0 - 3 * slack))
    if exponent == 0 and len(near) * matrix.shape[1] <= 1 << 16:
        ends = [_once_rounded(np.abs(matrix[i]).tolist()) for i in near]
        return max(low for low, _ in ends), max(high for _, high in ends)
    return unscale(top * (1.0 - slack) - TINY, top * (1.0 + slack) + TINY, exponent)


def _once_rounded(terms: list[float]) -> tuple[float, float]:
    total = math.fsum(terms)
    lost = math.fsum([*terms, -total])  # its sign is exact
    low = total if lost >= 0 else math.nextafter(total, 0.0)
    return low, total if lost <= 0 else math.nextafter(total, math.inf)


def _rows(map: AnyMap, norm: Norm) -> Iterator[np.ndarray]:
    """Matrices whose rows hold what the sums run over: the map's rows (linf) or columns (l1)."""
    if isinstance(map, Convolution):
        forward = (norm == "linf") != map.transposed  # the adjoint swaps rows and columns
        yield from [_outputs(map)] if forward else _inputs(map)
        return
    blocks = map.blocks.astype(np.float64, copy=False) if isinstance(map, BlockDiagonal) else map.dense()[None]
    if norm == "l1":
        blocks = blocks.swapaxes(1, 2)
    yield from blocks


def _outputs(conv: Convolution) -> np.ndarray:
    """(O, taps): an output sums all of its kernel, each tap at another input; inner outputs attain it."""
    return flat(conv.kernel)


def _inputs(conv: Convolution) -> Iterator[np.ndarray]:
    """(I, terms) for each residue class: x[j] meets tap t at output m where s·m + d·t = j + p.

    So the taps that meet an input are those with d·t ≡ r (mod s) on every axis, for one residue r;
    inner inputs meet them all, at all outputs of their group.
    """
    outputs = conv.kernel.shape[0] // conv.groups
    grouped = conv.kernel.reshape(conv.groups, outputs, *conv.kernel.shape[1:])
    classes = []
    for k, s, d in zip(conv.kernel.shape[2:], conv.stride, conv.dilation, strict=True):
        residues = (d * np.arange(k)) % s
        classes.append([np.flatnonzero(residues == r) for r in np.unique(residues)])
    for choice in itertools.product(*classes):
        part = grouped
        for axis, taps in enumerate(choice):
            part = np.take(part, taps, axis=3 + axis)
        yield np.moveaxis(part, 2, 1).reshape(conv.groups * conv.kernel.shape[1], -1)


def _meets_all(map: Located, norm: Norm) -> bool:
    """Whether some output reads all taps from inside the input, or, for column sums, inputs of every
    residue class are read by all of their taps: then the sums over all sizes are reached."""
    c, (few, many) = map.convolution, map.ends
    sides = [p[0] + z[0] for p, z in zip(map.padding, map.outside, strict=True)]
    rows = zip(few, many, c.kernel.shape[2:], c.stride, c.dilation, sides, strict=True)
    for m, n, k, s, d, before in rows:
        reach = d * (k - 1)
        if (norm == "linf") != c.transposed:
            first = -(-before // s)
            if first > m - 1 or s * first + reach - before > n - 1:
                return False
        elif min(n - 1, s * (m - 1) - before) - max(0, reach - before) + 1 < s:
            return False
    return True


def _at_size(map: Located, norm: Norm) -> Bound:
    """Row or column sums of |A|, all at once: of the convolution with |W| summed over channels, of ones.

    Where padding copies, taps of unlike sign can meet in one entry: then that sum is only from above,
    and the worst line's own sum is from below.
    """
    conv = map.convolution
    forward = (norm == "linf") != conv.transposed
    exponent = exponent_of(conv.kernel)
    kernel = scale(conv.kernel, exponent)
    outputs, inputs, *taps = kernel.shape
    if forward:
        summed = np.abs(kernel).sum(axis=1, keepdims=True)
    else:
        grouped = np.abs(kernel).reshape(conv.groups, outputs // conv.groups, inputs, *taps)
        summed = grouped.sum(axis=1).reshape(1, conv.groups * inputs, *taps)
    flat_map = replace(map, convolution=replace(conv, kernel=summed, groups=1))
    few, many = map.ends
    sums = flat_map.gather(np.ones(math.prod(many))) if forward else flat_map.scatter(np.ones(math.prod(few)))
    copied = sum(len(source) for source in map.sources())
    slack = gamma(math.prod(taps) + max(outputs, inputs) + copied + 4)
    top = float(sums.max())
    low, high = top * (1.0 - slack) - TINY, top * (1.0 + slack) + TINY
    if map.copies:
        unit = np.zeros(outputs * math.prod(few) if forward else inputs * conv.groups * math.prod(many))
        unit[int(np.argmax(sums))] = 1.0
        whole = replace(map, convolution=replace(conv, kernel=kernel))
        line = whole.scatter(unit) if forward else whole.gather(unit)
        low = float(np.abs(line).sum()) * (1.0 - gamma(line.size)) - SAFE * slack * high - TINY
    lower, upper = unscale(max(0.0, low), high, exponent)
    return Bound(lower, upper, Grade.PROVED, "sums at " + "×".join(str(n) for n in map.size))


def _product(map: LowRank) -> Bound:
    """The largest row sum of |BA|, formed in blocks of rows: fl(BA) is within γ_r|B||A| of BA."""
    exponents = exponent_of(map.left), exponent_of(map.right)
    left, right = scale(map.left, exponents[0]), scale(map.right, exponents[1])
    weights = np.abs(right).sum(axis=1)
    step = max(1, _BATCH // max(1, right.shape[1]))
    inner, slack = gamma(right.shape[0] + 2), gamma(right.shape[1] + 2)
    lower = upper = 0.0
    for start in range(0, len(left), step):
        rows = left[start : start + step]
        sums = np.abs(rows @ right).sum(axis=1)
        lost = SAFE * SAFE * inner * (np.abs(rows) @ weights) + TINY
        lower = max(lower, float((sums * (1.0 - slack) - lost).max()))
        upper = max(upper, float((sums * (1.0 + slack) + lost).max() * (1.0 + slack)))
    return Bound(*unscale(lower, upper, sum(exponents)), Grade.PROVED, "sums")
