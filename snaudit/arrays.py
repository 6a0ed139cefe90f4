"""The heavy float64 work on arrays, on the device that was asked for. All devices are reached here.

Gram matrices and singular values go to the device; factorizations that a proof rests on stay on the
CPU, where their backward error is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from snaudit.errors import UsageError


class Arrays(Protocol):
    """What a device can do. NumPy arrays in float64 go in and come out."""

    def gram(self, matrix: np.ndarray) -> np.ndarray:
        """AᵀA by conventional products; of a stack (k, m, n), one for each."""
        ...

    def singular_values(self, matrix: np.ndarray) -> np.ndarray:
        """All singular values, in falling order; of a stack, for each."""
        ...


@dataclass(frozen=True, slots=True)
class Cpu:
    """NumPy with its BLAS and LAPACK."""

    def gram(self, matrix: np.ndarray) -> np.ndarray:
        return matrix.swapaxes(-1, -2) @ matrix

    def singular_values(self, matrix: np.ndarray) -> np.ndarray:
        return np.linalg.svd(matrix, compute_uv=False)


@dataclass(frozen=True, slots=True)
class Cuda:
    """torch in float64 on one GPU."""

    device: str

    def gram(self, matrix: np.ndarray) -> np.ndarray:
        given = self._to(matrix)
        return (given.mT @ given).cpu().numpy()

    def singular_values(self, matrix: np.ndarray) -> np.ndarray:
        import torch

        return torch.linalg.svdvals(self._to(matrix)).cpu().numpy()

    def _to(self, matrix: np.ndarray):  # noqa: ANN202  torch is imported late
        import torch

        return torch.from_numpy(np.ascontiguousarray(matrix)).to(self.device)


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


def top_eigenpair(matrix: np.ndarray, seed: int, steps: int = 300) -> tuple[float, np.ndarray, bool]:
    """(θ, v, settled): the largest Ritz value of a Hermitian matrix and its vector; an estimate.

    Lanczos from a seeded random vector, reorthogonalised twice, because one Gram–Schmidt pass loses
    orthogonality in floating point; orders up to 64 by LAPACK at once. `settled` is whether the
    residual says that θ stands to 1e-11 of itself (Parlett, *The Symmetric Eigenvalue Problem*,
    theorem 11.7.1: |θ−λ| ≤ residual²/gap), which is no proof that it is the largest.
    """
    order = matrix.shape[0]
    if order <= 64:
        values, vectors = np.linalg.eigh(matrix)
        return float(values[-1]), vectors[:, -1], True
    rng = np.random.default_rng(seed)
    steps = min(steps, order)
    basis = np.zeros((steps, order), dtype=matrix.dtype)
    alpha, beta = np.zeros(steps), np.zeros(steps)
    vector = rng.standard_normal(order).astype(matrix.dtype)
    vector /= np.linalg.norm(vector)
    for k in range(steps):
        basis[k] = vector
        image = matrix @ vector
        alpha[k] = float(np.vdot(vector, image).real)
        for _ in range(2):
            image -= basis[: k + 1].T @ (basis[: k + 1].conj() @ image)
        beta[k] = float(np.linalg.norm(image))
        last = k + 1 == steps or beta[k] <= 1e-13 * abs(alpha[: k + 1]).max()
        if last or k % 8 == 7:
            theta, weights, settled = _ritz(alpha[: k + 1], beta[: k + 1])
            if settled or last:
                break
        vector = image / beta[k]
    return theta, weights @ basis[: k + 1], settled


def _ritz(alpha: np.ndarray, beta: np.ndarray) -> tuple[float, np.ndarray, bool]:
    k = len(alpha)
    values, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(beta[: k - 1], 1) + np.diag(beta[: k - 1], -1))
    theta = float(values[-1])
    residual = beta[-1] * abs(vectors[-1, -1])
    gap = theta - float(values[-2]) if k > 1 else theta
    settled = min(residual, residual**2 / gap if gap > 0 else residual) <= 1e-11 * abs(theta)
    return theta, vectors[:, -1], bool(settled)
