"""Matrices whose σ₁ is known, convolutions of every geometry, and independent truths about them."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np

from snaudit.linear import Convolution


def hadamard(order: int) -> np.ndarray:
    """The ±1 matrix of order 2^k with HᵀH = order·I (Sylvester)."""
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def with_spectrum(values: np.ndarray) -> np.ndarray:
    """H·diag(d): exact in floating point, with singular values √n·|d|. n = 4^k makes √n exact."""
    return hadamard(len(values)) * values


def rotated(values: np.ndarray, seed: int) -> np.ndarray:
    """U·diag(values)·Vᵀ with random orthogonal U, V: the spectrum up to rounding."""
    rng = np.random.default_rng(seed)
    n = len(values)
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    return (u * values) @ v.T


def hidden_from(seed: int, order: int, second: float) -> np.ndarray:
    """A symmetric matrix with σ₁ = 1, the others `second`, whose top vector no iteration that starts
    from this seed's Gaussian vector can see: the two are orthogonal up to rounding."""
    start = np.random.default_rng(seed).standard_normal(order)
    top = np.zeros(order)
    top[:2] = start[1], -start[0]
    top /= np.linalg.norm(top)
    return second * np.eye(order) + (1.0 - second) * np.outer(top, top)


def hilbert(order: int) -> np.ndarray:
    """1/(i+j+1), rounded: condition about e^{3.5n}."""
    index = np.arange(order)
    return 1.0 / (index[:, None] + index + 1.0)


def kahan(order: int, angle: float = 1.2) -> np.ndarray:
    """Kahan's triangular matrix, on which QR without care misjudges the rank."""
    s, c = math.sin(angle), math.cos(angle)
    upper = np.triu(np.full((order, order), -c), 1) + np.eye(order)
    return s ** np.arange(order)[:, None] * upper


def bfloat_lattice(rows: int, columns: int, seed: int) -> np.ndarray:
    """Gaussian entries rounded to bfloat16: eight significant bits."""
    import ml_dtypes

    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(ml_dtypes.bfloat16).astype(float)


def small_matrices() -> dict[str, np.ndarray]:
    """Small matrices of every difficult kind, for the 50-digit reference."""
    rng = np.random.default_rng(7)
    dense = rng.standard_normal((6, 5))
    made = {f"gap 1e-{k}": rotated(np.array([1.0, 1.0 - 10.0**-k, 0.5, 0.1, 0.0]), k) for k in range(1, 15)}
    return made | {
        "gaussian": dense,
        "wide": dense[:3],
        "one row": dense[:1],
        "one column": dense[:, :1],
        "one number": dense[:1, :1],
        "repeated": rotated(np.ones(6), 3),
        "rank one": np.outer(dense[:, 0], dense[0]),
        "hilbert": hilbert(9),
        "kahan": kahan(9),
        "bf16": bfloat_lattice(7, 6, 2),
        "huge": dense * 1e150,
        "tiny": dense * 1e-150,
        "largest": dense / np.abs(dense).max() * 1.7e308,
        "subnormal": np.array([[5e-324, 1e-323], [1.5e-323, 3e-320]]),
        "all scales": np.array([[1e150, 1.0, 1e-150], [1.0, 1e-300, 2.0], [3.0, 5e-324, 1e150]]),
        "graded": np.diag(10.0 ** -np.arange(0, 24, 4)) @ rng.standard_normal((6, 6)),
        "zero column": np.pad(dense, ((0, 0), (0, 1))),
        "pythagorean": np.array([[3.0, 4.0]]),
        "permutation": np.eye(5)[[2, 0, 1, 4, 3]] * np.array([1.0, -7.0, 2.0, 0.0, 3.0]),
        "zero": np.zeros((3, 2)),
    }


def exact_sigma(matrix: np.ndarray) -> mpmath.mpf:
    """σ₁ to 45 digits, from the stored floats taken as they are (call within mpmath.workdps)."""
    if not matrix.any():
        return mpmath.mpf(0)
    largest = mpmath.mpf(float(np.abs(matrix).max()))
    rows = mpmath.matrix([[mpmath.mpf(float(x)) / largest for x in row] for row in matrix])
    if rows.rows < rows.cols:
        rows = rows.T
    values = mpmath.svd_r(rows, compute_uv=False)
    return max(values) * largest


GEOMETRIES = (
    # kernel, stride, dilation, groups, transposed
    ((4, 3, 3), (1,), (1,), 1, False),
    ((3, 2, 5), (2,), (1,), 1, False),
    ((4, 2, 4), (3,), (2,), 2, False),
    ((2, 3, 3), (4,), (2,), 1, False),
    ((4, 3, 4), (2,), (1,), 1, True),
    ((6, 1, 5), (1,), (3,), 6, False),
    ((3, 3, 3, 3), (1, 1), (1, 1), 1, False),
    ((4, 2, 3, 3), (2, 2), (1, 1), 1, False),
    ((4, 2, 3, 2), (2, 1), (2, 3), 2, False),
    ((2, 3, 1, 7), (1, 1), (1, 1), 1, False),
    ((4, 1, 3, 3), (1, 2), (1, 1), 4, False),
    ((4, 2, 4, 4), (2, 2), (1, 1), 2, True),
    ((2, 3, 3, 3), (3, 2), (2, 2), 1, True),
    ((3, 2, 4, 4), (4, 4), (1, 1), 1, False),
    ((2, 2, 3, 3, 3), (1, 1, 1), (1, 1, 1), 1, False),
    ((2, 1, 3, 2, 3), (2, 1, 2), (1, 1, 1), 2, True),
)


def convolution(geometry: tuple, seed: int = 0) -> Convolution:
    """A convolution of that geometry with Gaussian weights that float32 holds exactly."""
    shape, stride, dilation, groups, transposed = geometry
    kernel = np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(np.float64)
    return Convolution(kernel, stride, dilation, groups, transposed)


def name_of(geometry: tuple) -> str:
    shape, stride, dilation, groups, transposed = geometry
    parts = ("x".join(map(str, values)) for values in (shape, stride, dilation))
    return "k{} s{} d{} g{}".format(*parts, groups) + (" transposed" if transposed else "")


def aliased_sup(conv: Convolution, points: int) -> tuple[float, float]:
    """(below, above) of the norm over all sizes, by another road than polyphase: aliasing.

    y's spectrum at θ is ∏s⁻¹·Σ_k Ŵ((θ+2πk)/s)·x̂((θ+2πk)/s), Ŵ(ξ) = Σ_t W_t e^{i⟨ξ,d·t⟩}: the norm at θ
    is ∏s^{−1/2} times that of [Ŵ_k]_k side by side. Below: a grid of θ. Above: that, inflated by
    the classical 1 − (π·degree/N)²/8 for each axis with margin, degree ≤ d(k−1)/s in θ.
    """
    axes = conv.axes
    outputs, groups = conv.kernel.shape[0] // conv.groups, conv.groups
    kernel = conv.kernel.reshape(groups, outputs, conv.kernel.shape[1], -1)
    taps = np.indices(conv.kernel.shape[2:]).reshape(axes, -1).T * np.array(conv.dilation)
    theta = np.array(list(itertools.product(2 * np.pi * np.arange(points) / points, repeat=axes)))
    parts = []
    for shift in itertools.product(*(range(s) for s in conv.stride)):
        xi = (theta + 2 * np.pi * np.array(shift)) / np.array(conv.stride)
        parts.append(np.einsum("goiq,cq->gcoi", kernel, np.exp(1j * xi @ taps.T)))
    side_by_side = np.concatenate(parts, axis=-1) / math.sqrt(math.prod(conv.stride))
    below = float(np.linalg.svd(side_by_side, compute_uv=False).max())
    inflation = 1.0
    for k, s, d in zip(conv.kernel.shape[2:], conv.stride, conv.dilation, strict=True):
        inflation /= 1.0 - (np.pi * (d * (k - 1) / s) / points) ** 2 / 7.5
    return below, below * inflation
