"""How much float64 arrays can have lost: bounds on the rounding of sums, products and factorizations.

Model: IEEE double precision, round to nearest, u = 2⁻⁵³; with or without fused multiply-add.
γ_k = ku/(1−ku). A sum of k products, in any order of summation (blocked, threaded, streamed,
vectorised), is within γ_k·Σ|aᵢbᵢ| (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed.,
section 3.1 and (3.13)): so it holds for BLAS as long as it multiplies conventionally, not by
Strassen's scheme nor with emulated doubles.

Error terms here are computed in float64 themselves; the factor 1.01 covers that, for up to 10¹² terms.
Underflow: arrays are scaled so that their largest entry is near one; what is lost below is then at
most 2⁻¹⁰²² for each operation (even with subnormals flushed to zero), together less than TINY.
"""

from __future__ import annotations

import math

import numpy as np

from snaudit.bound import down, up

U = 2.0**-53
TINY = 1e-280
SAFE = 1.01


def gamma(k: int) -> float:
    """γ_k with a margin of 1%; infinite where k·u is no longer small."""
    return SAFE * k * U if k * U < 1e-3 else math.inf


def exponent_of(*arrays: np.ndarray) -> int:
    """The e for which 2⁻ᵉ·array is of order one; 0 where squares are far from over- and underflow."""
    largest = max((largest_entry(a) for a in arrays), default=0.0)
    if largest == 0.0 or 2.0**-100 <= largest <= 2.0**100:
        return 0
    return math.frexp(largest)[1]


def scale(array: np.ndarray, exponent: int) -> np.ndarray:
    """2⁻ᵉ·array: exact but for what falls below 2⁻¹⁰²², which TINY covers. The array itself if e = 0."""
    return array if exponent == 0 else np.ldexp(array, -exponent)


def unscale(lower: float, upper: float, exponent: int) -> tuple[float, float]:
    """2ᵉ·[lower, upper], rounded outward."""
    if exponent == 0:
        return max(lower, 0.0), upper
    try:
        low = down(math.ldexp(max(lower, 0.0), exponent))
    except OverflowError:
        low = math.nextafter(math.inf, 0.0)
    try:
        return low, up(math.ldexp(upper, exponent))
    except OverflowError:
        return low, math.inf


def largest_entry(array: np.ndarray) -> float:
    """max |aᵢ|, without a temporary copy."""
    return max(float(array.max()), -float(array.min())) if array.size else 0.0


def frobenius_up(array: np.ndarray) -> float:
    """‖A‖_F from above, for entries of order one; of all entries jointly, whatever the shape."""
    flat = array.ravel("K")
    return SAFE * math.sqrt(float(np.vdot(flat, flat).real)) + TINY


def magnitude_up(matrix: np.ndarray) -> float:
    """An upper bound of ‖ |A| ‖₂ for a matrix: the lesser of ‖A‖_F and √(‖A‖₁‖A‖∞) (Hölder)."""
    step = max(1, (1 << 20) // max(1, matrix.shape[1]))
    columns = np.zeros(matrix.shape[1])
    widest = 0.0
    for start in range(0, matrix.shape[0], step):  # in blocks: |A| of a large embedding is large
        part = np.abs(matrix[start : start + step])
        columns += part.sum(axis=0)
        widest = max(widest, float(part.sum(axis=1).max(initial=0.0)))
    mixed = SAFE * math.sqrt(float(columns.max(initial=0.0)) * widest) + TINY
    return min(frobenius_up(matrix), mixed)


def norm_enclosed(vector: np.ndarray) -> tuple[float, float]:
    """(below, above) of ‖x‖₂ for a real or complex vector with entries of order one."""
    flat = np.ascontiguousarray(vector).view(np.float64).ravel()
    computed = math.sqrt(float(flat @ flat))
    slack = gamma(flat.size + 4)
    return max(0.0, computed * (1.0 - slack) - TINY), computed * (1.0 + slack) + TINY


def cholesky_deficit(order: int, trace: float, is_complex: bool = False) -> float:
    """An ε with λmin(A) ≥ −ε, for a Hermitian A of that order and trace whose Cholesky completed.

    The computed factor has RᴴR = A + ΔA with |ΔA| ≤ γ|Rᴴ||R| (Higham, Theorem 10.3), so column i has
    ‖rᵢ‖² ≤ aᵢᵢ/(1−γ), and by Cauchy–Schwarz ‖ΔA‖₂ ≤ Σᵢ‖rᵢ‖²·γ ≤ γ/(1−γ)·tr A (Demmel 1989; Rump,
    *Verification of positive definiteness*, BIT 46, 2006). Real: γ_{n+1}; here n+4 for solvers that
    multiply by reciprocal pivots. Complex: real and imaginary part are sums of 2n real products, of
    modulus at most |a||b|, hence √2·γ_{2n+4}; here 4(n+4). Any order of elimination or blocking, as
    long as triangles are solved by substitution (reference LAPACK, OpenBLAS).
    """
    slack = gamma(4 * (order + 4) if is_complex else order + 4)
    return SAFE * slack * abs(trace) + TINY
