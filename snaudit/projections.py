"""Matrices and kernels near a given one whose singular values stay under a cap.

`clip` is the projection onto {σ₁ ≤ cap} in the Frobenius norm: the singular values above the cap are
set to it, all else stays (von Neumann's trace inequality; Lewis & Malick, *Alternating projections on
manifolds*, Math. Oper. Res. 33, 2008). `soft` is the smooth map σ ↦ σ/(1 + (σ/cap)⁴)^¼: below σ and
below the cap, monotone, within 1.6% of σ up to cap/2, and of derivative 1 at 0.

Nothing here is a proof: floating point and the support of a kernel leave the result about the cap.
Whoever writes it to a file certifies it and scales by what is missing.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np

from snaudit.linear import AnyMap, BlockDiagonal, Convolution, Dense, LowRank
from snaudit.rounding import exponent_of, scale

How = Literal["clip", "soft"]

_ROUNDS = 40
_WORK = 1e12
"""Multiplications that one group of a convolution may take: about a minute of one core."""
_SETTLED = 1e-4
_LOSSY = 2.0**-20
"""σ from the Gram matrix is good to u·(σ₁/σ)² of itself: below this ratio of cap to σ₁, an SVD."""


def bring_under(map: AnyMap, cap: float, how: How) -> AnyMap:
    """The nearby map (clip: the nearest, but for convolutions) with singular values of at most about `cap`.

    A convolution: the kernel of the same support whose operator norm over all input sizes is about
    the cap. Raises ValueError for a cap that is not positive, numpy's LinAlgError where LAPACK fails.
    """
    if not (cap > 0.0 and math.isfinite(cap)):
        raise ValueError(f"cap must be a positive number, not {cap}")
    if isinstance(map, Convolution):
        return _kernel(map, cap, how)
    if isinstance(map, LowRank):
        return _product(map, cap, how)
    if isinstance(map, BlockDiagonal):
        return BlockDiagonal(np.stack([_matrix(block, cap, how) for block in map.blocks.astype(np.float64)]))
    return Dense(_matrix(map.dense(), cap, how))


def _matrix(matrix: np.ndarray, cap: float, how: How) -> np.ndarray:
    """W·g(WᵀW) on the shorter side, g the factor that each singular value is to take.

    One eigendecomposition of the Gram matrix instead of an SVD; of the clip only the eigenvectors
    above the cap are used: W' = W − W·V·diag(1 − cap/σ)·Vᵀ.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return _matrix(matrix.T, cap, how).T
    if matrix.size == 0 or not matrix.any():
        return matrix
    exponent = exponent_of(matrix)
    if exponent:
        inner = _matrix(scale(matrix, exponent), math.ldexp(cap, -exponent), how)
        return np.ldexp(inner, exponent)
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    sigma = np.sqrt(np.maximum(values, 0.0))
    if cap < _LOSSY * sigma[-1]:
        u, sigma, vh = np.linalg.svd(matrix, full_matrices=False)
        return (u * (sigma * _factors(sigma, cap, how))) @ vh
    lost = 1.0 - _factors(sigma, cap, how)
    moved = lost > 0.0
    if not moved.any():
        return matrix
    basis = vectors[:, moved]
    return matrix - ((matrix @ basis) * lost[moved]) @ basis.T


def _factors(sigma: np.ndarray, cap: float, how: How) -> np.ndarray:
    """What each singular value is multiplied by."""
    ratio = sigma / cap
    if how == "soft":
        return (1.0 + ratio**4) ** -0.25
    return np.minimum(1.0, 1.0 / np.maximum(ratio, np.finfo(float).tiny))


def _product(map: LowRank, cap: float, how: How) -> LowRank:
    """Factors of the same rank for the product: BA = Q_B·(R_B R_Aᵀ)·Q_Aᵀ, and the small core is moved.

    The new factors share the core's singular values evenly.
    """
    if min(map.left.shape[0], map.right.shape[1]) < map.left.shape[1]:
        raise ValueError("a product whose inner dimension exceeds an outer one is no low-rank pair")
    q_left, r_left = np.linalg.qr(map.left)
    q_right, r_right = np.linalg.qr(map.right.T)
    u, sigma, vh = np.linalg.svd(r_left @ r_right.T)
    root = np.sqrt(sigma * _factors(sigma, cap, how))
    return LowRank(q_left @ (u * root), (root[:, None] * vh) @ q_right.T)


def _kernel(map: Convolution, cap: float, how: How) -> Convolution:
    """Dykstra's alternating projections between {‖F(ω)‖ ≤ cap on a grid} and the kernel's support.

    Dykstra (J. Amer. Stat. Assoc. 78, 1983; Boyle & Dykstra 1986) converges to the nearest kernel in
    the intersection of the two convex sets, which plain alternation does not. The set of symbols on a
    grid is convex and its projection clips at each frequency; the support is a subspace and needs no
    correction. `soft` is one such pass of the smooth map. Groups are done one by one.
    """
    kernels = map.polyphase()
    ones = np.ones((1, 1, *map.kernel.shape[2:]))
    mask = Convolution(ones, map.stride, map.dilation).polyphase()[0, 0] > 0.0  # (∏s', Q…): no padding
    mask = np.tile(mask, (map.kernel.shape[1], *(1,) * map.axes))
    moved = np.stack([_symbol(group, mask, cap, how) for group in kernels])
    return Convolution(_unpolyphase(map, moved), map.stride, map.dilation, map.groups, map.transposed)


def _symbol(kernel: np.ndarray, mask: np.ndarray, cap: float, how: How) -> np.ndarray:
    """One group's polyphase kernel (O, I, Q₁…Q_D) brought under the cap; mask (I, Q₁…Q_D): its support.

    The rounds are as many as `_WORK` allows, at least three: what they leave over the cap, the
    certified scale takes away.
    """
    outputs, inputs, *taps = kernel.shape
    fine = 8 if min(outputs, inputs) <= 16 else 4
    sizes = [1 if q == 1 else fine * q for q in taps]
    forward, back = _transforms(taps, sizes)
    flat = kernel.reshape(outputs * inputs, -1).T  # (taps, O·I)
    support = np.broadcast_to(mask.reshape(inputs, -1), (outputs, inputs, len(flat))).reshape(-1, len(flat)).T
    shape = (len(forward), outputs, inputs)
    work = len(forward) * (min(outputs, inputs) ** 2 * (max(outputs, inputs) + 15 * min(outputs, inputs)) + 1e5)
    rounds = 1 if how == "soft" else max(3, min(_ROUNDS, int(_WORK / work)))
    x, correction = flat, np.zeros(shape, np.complex128)
    for _ in range(rounds):
        given = (forward @ x).reshape(shape) + correction
        clipped = _clip_stack(given, cap, how)
        correction = given - clipped
        after = np.where(support, (back @ clipped.reshape(len(forward), -1)).real, 0.0)
        step = float(np.linalg.norm(after - x))
        x = after
        if step <= _SETTLED * float(np.linalg.norm(flat)):
            break
    return x.T.reshape(kernel.shape)


def _transforms(taps: list[int], sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies, taps) with F = forward·K, and its left inverse back for real K, over half the grid.

    One of each pair ±ω stands for both, with weight 2 where they differ.
    """
    points = [p for p in itertools.product(*(range(n) for n in sizes)) if p <= _mirrored(p, sizes)]
    weights = [1.0 if p == _mirrored(p, sizes) else 2.0 for p in points]
    omega = 2.0 * math.pi * np.array(points, float) / np.array(sizes, float)
    places = np.array(list(itertools.product(*(range(q) for q in taps))), float)
    forward = np.exp(1j * (omega @ places.T))
    return forward, (forward.conj() * np.array(weights)[:, None]).T / math.prod(sizes)


def _mirrored(point: tuple[int, ...], sizes: list[int]) -> tuple[int, ...]:
    return tuple(-p % n for p, n in zip(point, sizes, strict=True))


def _clip_stack(stack: np.ndarray, cap: float, how: How) -> np.ndarray:
    """Each of (frequencies, O, I) complex matrices with its singular values moved, by its Gram matrix."""
    if stack.shape[1] < stack.shape[2]:
        return _clip_stack(stack.swapaxes(1, 2), cap, how).swapaxes(1, 2)
    if stack.shape[2] > 64:  # one at a time: an eigendecomposition outweighs the loop
        return np.concatenate([_clip_batch(stack[i : i + 1], cap, how) for i in range(len(stack))])
    return _clip_batch(stack, cap, how)


def _clip_batch(stack: np.ndarray, cap: float, how: How) -> np.ndarray:
    values, vectors = np.linalg.eigh(stack.conj().swapaxes(1, 2) @ stack)
    lost = 1.0 - _factors(np.sqrt(np.maximum(values, 0.0)), cap, how)
    first = int(np.argmax((lost > 0.0).any(axis=0))) if lost.any() else lost.shape[1]
    basis = vectors[:, :, first:]  # eigenvalues rise: what is above the cap stands last
    return stack - ((stack @ basis) * lost[:, None, first:]) @ basis.conj().swapaxes(1, 2)


def _unpolyphase(map: Convolution, kernels: np.ndarray) -> np.ndarray:
    """The kernel W with W[o, i, s'q + ρ] = K[o, (i, ρ), q], as `Convolution.polyphase` lays it out."""
    axes, shape = map.axes, map.kernel.shape
    strides = [s // math.gcd(s, d) for s, d in zip(map.stride, map.dilation, strict=True)]
    taps = kernels.shape[3:]
    split = kernels.reshape(shape[0], shape[1], *strides, *taps)
    pairs = itertools.chain.from_iterable((2 + axes + a, 2 + a) for a in range(axes))
    wide = split.transpose(0, 1, *pairs).reshape(
        *shape[:2], *(q * s for q, s in zip(taps, strides, strict=True))
    )
    return wide[(slice(None), slice(None), *(slice(0, k) for k in shape[2:]))]
