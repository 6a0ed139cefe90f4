"""The heavy float64 work on arrays, on the device that was asked for. All devices are reached here.

A Gram matrix stays where it was made; vectors and small results come back as NumPy arrays. What a
proof rests on (products, Cholesky) is float64 with conventional summation on either device; on a GPU,
whose Cholesky states no backward error, the factorization is checked afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from snaudit.errors import UsageError
from snaudit.rounding import SAFE, TINY, U, cholesky_deficit, gamma, largest_entry


class Arrays(Protocol):
    """What a device can do. NumPy arrays in float64 go in; a "gram" is the device's own (k, n, n).

    `exhausted` are the errors that say that something did not fit into the device's memory.
    """

    exhausted: tuple[type[Exception], ...]

    def gram(self, blocks: Iterable[np.ndarray]) -> Any:
        """Σ BᵀB over blocks (k, m, n), one sum for each of the k, symmetric, by conventional products."""
        ...

    def diagonal(self, gram: Any) -> np.ndarray:
        """(k, n): the diagonals."""
        ...

    def times(self, gram: Any, vector: np.ndarray) -> np.ndarray:
        """S·v for the only S of the stack."""
        ...

    def host(self, gram: Any) -> np.ndarray:
        """The stack as a NumPy array."""
        ...

    def deficit(self, gram: Any, shift: float) -> float | None:
        """An ε with λmin(shift·I − S) ≥ −ε for each S of the stack, or None where Cholesky broke down.

        Of the exact S; the diagonal's rounding is in ε.
        """
        ...

    def singular_values(self, matrix: np.ndarray) -> np.ndarray:
        """All singular values, in falling order; of a stack, for each."""
        ...


@dataclass(frozen=True, slots=True)
class Cpu:
    """NumPy with its BLAS and LAPACK."""

    exhausted = ()

    def gram(self, blocks: Iterable[np.ndarray]) -> np.ndarray:
        total: np.ndarray | None = None
        product: np.ndarray | None = None
        for block in blocks:
            if total is None:
                total = block.swapaxes(-1, -2) @ block
                continue
            product = np.matmul(block.swapaxes(-1, -2), block, out=product)
            total += product
        assert total is not None
        return total

    def diagonal(self, gram: np.ndarray) -> np.ndarray:
        return np.einsum("kii->ki", gram)

    def times(self, gram: np.ndarray, vector: np.ndarray) -> np.ndarray:
        return gram[0] @ vector

    def host(self, gram: np.ndarray) -> np.ndarray:
        return gram

    def deficit(self, gram: np.ndarray, shift: float) -> float | None:
        shifted = np.negative(gram, out=gram)  # in place: the largest thing that there is
        held = np.einsum("kii->ki", shifted)
        diagonal = held.copy()
        held += shift
        try:
            np.linalg.cholesky(shifted)
            trace, largest = float(held.sum(axis=1).max()), largest_entry(held)
        except np.linalg.LinAlgError:
            return None
        finally:
            held[...] = diagonal
            np.negative(gram, out=gram)
        return cholesky_deficit(gram.shape[-1], trace) + SAFE * U * largest

    def singular_values(self, matrix: np.ndarray) -> np.ndarray:
        return np.linalg.svd(matrix, compute_uv=False)


class Cuda:
    """torch in float64 on one GPU (or, to test it, on torch's CPU)."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        self.exhausted: tuple[type[Exception], ...] = (torch.OutOfMemoryError,)
        _refuse_reduced_precision(torch)

    def gram(self, blocks: Iterable[np.ndarray]) -> Any:
        total = None
        for block in blocks:
            given = self._to(block)
            total = given.mT @ given if total is None else total.baddbmm_(given.mT, given)
        assert total is not None
        return total.tril() + total.tril(-1).mT

    def diagonal(self, gram: Any) -> np.ndarray:
        return gram.diagonal(dim1=-2, dim2=-1).cpu().numpy()

    def times(self, gram: Any, vector: np.ndarray) -> np.ndarray:
        return (gram[0] @ self._to(vector)).cpu().numpy()

    def host(self, gram: Any) -> np.ndarray:
        return gram.cpu().numpy()

    def deficit(self, gram: Any, shift: float) -> float | None:
        """A posteriori: λmin(A) ≥ −‖A − LLᵀ‖_F, for any computed L at all; the residual is computed
        to within γ_{n+2}·(|A| + |L||Lᵀ|), whose Frobenius norm is at most γ_{n+2}(‖A‖_F + ‖L‖_F²)."""
        import torch

        shifted = -gram
        shifted.diagonal(dim1=-2, dim2=-1).add_(shift)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if bool((info != 0).any()) or not bool(torch.isfinite(factor).all()):
            return None
        largest = float(shifted.diagonal(dim1=-2, dim2=-1).abs().max())
        sizes = torch.linalg.matrix_norm(shifted) + torch.linalg.matrix_norm(factor) ** 2
        residual = torch.linalg.matrix_norm(torch.baddbmm(shifted, factor, factor.mT, alpha=-1))
        worst = float((residual + gamma(gram.shape[-1] + 2) * sizes).max())
        return SAFE * (worst + U * largest) + TINY

    def singular_values(self, matrix: np.ndarray) -> np.ndarray:
        import torch

        return torch.linalg.svdvals(self._to(matrix)).cpu().numpy()

    def _to(self, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device)


def _refuse_reduced_precision(torch: Any) -> None:
    """Raises UsageError where float64 products could be something else: the proofs assume IEEE doubles.

    TF32 and the reductions of half precision do not touch float64; they are switched off all the same,
    so that nothing of this process rests on them. cuBLAS can *emulate* doubles where told to.
    """
    told = [name for name in os.environ if name.startswith("CUBLAS_") and "EMULAT" in name]
    if told:
        raise UsageError(f"{told[0]} is set: emulated doubles carry no proof; unset it, or use --device cpu")
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = False
    if matmul.allow_tf32 or matmul.allow_fp16_reduced_precision_reduction:
        raise UsageError("torch does not let go of reduced-precision products: use --device cpu")


def arrays_on(device: str) -> Arrays:
    """The arrays of "cpu", "cuda" (or "cuda:1"), or "auto": a GPU if torch sees one, else the CPU.

    Raises UsageError for any other name, and where CUDA is asked for and cannot be had.
    """
    if device == "cpu":
        return Cpu()
    if device != "auto" and device.split(":")[0] != "cuda":
        raise UsageError(f"unknown device {device!r}: cpu, cuda or auto")
    try:
        import torch
    except ImportError as error:
        if device == "auto":
            return Cpu()
        raise UsageError(f"device {device} needs PyTorch: pip install 'snaudit[torch]'") from error
    if torch.cuda.is_available():
        return Cuda("cuda" if device == "auto" else device)
    if device == "auto":
        return Cpu()
    raise UsageError(f"device {device}: torch {torch.__version__} sees no CUDA device; use --device cpu")


@dataclass(frozen=True, slots=True)
class Ritz:
    """What Lanczos knows of a Hermitian operator after some steps from a start vector.

    theta, vector   the largest Ritz value and its unit vector
    nodes, weights  the Ritz values and the squares of their vectors' first entries: a quadrature rule
                    that integrates polynomials of degree < 2·steps exactly over the start's spectrum
    beta            the off-diagonal entries, the last of them the residual's length
    settled         whether the residual says that θ stands to `rtol` of itself (Parlett, *The Symmetric
                    Eigenvalue Problem*, theorem 11.7.1: |θ−λ| ≤ residual²/gap): no proof that it is
                    the largest eigenvalue
    """

    theta: float
    vector: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray
    beta: np.ndarray
    settled: bool


def lanczos(
    times: Callable[[np.ndarray], np.ndarray], start: np.ndarray, steps: int = 300, rtol: float = 1e-11
) -> Ritz:
    """At most `steps` Lanczos steps x ↦ times(x) from `start`, fewer where the largest value settles.

    Reorthogonalised twice, because one Gram–Schmidt pass loses orthogonality in floating point.
    """
    order = start.size
    steps = min(steps, order)
    basis = np.zeros((min(32, steps), order), dtype=start.dtype)
    alpha, beta = np.zeros(steps), np.zeros(steps)
    vector = start / np.linalg.norm(start)
    for k in range(steps):
        if k == len(basis):  # as it grows: most runs end early
            basis = np.concatenate([basis, np.zeros((min(len(basis), steps - k), order), dtype=start.dtype)])
        basis[k] = vector
        image = times(vector)
        alpha[k] = float(np.vdot(vector, image).real)
        for _ in range(2):
            image -= basis[: k + 1].T @ (basis[: k + 1].conj() @ image)
        beta[k] = float(np.linalg.norm(image))
        last = k + 1 == steps or beta[k] <= 1e-13 * abs(alpha[: k + 1]).max()
        if last or k % 8 == 7:
            found = _ritz(alpha[: k + 1], beta[: k + 1], rtol)
            if found.settled or last:
                break
        vector = image / beta[k]
    return Ritz(found.theta, found.vector @ basis[: k + 1], *(found.nodes, found.weights, found.beta, found.settled))


def _ritz(alpha: np.ndarray, beta: np.ndarray, rtol: float) -> Ritz:
    k = len(alpha)
    values, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(beta[: k - 1], 1) + np.diag(beta[: k - 1], -1))
    theta = float(values[-1])
    residual = beta[-1] * abs(vectors[-1, -1])
    gap = theta - float(values[-2]) if k > 1 else theta
    settled = min(residual, residual**2 / gap if gap > 0 else residual) <= rtol * abs(theta)
    return Ritz(theta, vectors[:, -1], values, vectors[0] ** 2, beta.copy(), bool(settled))


def top_eigenpair(matrix: np.ndarray, seed: int, steps: int = 300) -> tuple[float, np.ndarray, bool]:
    """(θ, v, settled): the largest eigenvalue of a Hermitian matrix and its vector; an estimate.

    Orders up to 64 by LAPACK at once, else by `lanczos` from a seeded random vector.
    """
    order = matrix.shape[0]
    if order <= 64:
        values, vectors = np.linalg.eigh(matrix)
        return float(values[-1]), vectors[:, -1], True
    start = np.random.default_rng(seed).standard_normal(order).astype(matrix.dtype)
    found = lanczos(lambda x: matrix @ x, start, steps)
    return found.theta, found.vector, found.settled
