"""Published ways to bound the norm of a convolution, each written from its paper's formula.

A kernel is (outputs, inputs/groups, k₁…k_D) with stride, dilation and groups; `n` is the input's size on
every axis. All but `naive` and `scaled_naive` are about stride 1: striding only selects outputs, so
they bound the strided layer too, loosely. A transposed convolution has its adjoint's norm: it is
given as that. A grouped one has the largest norm of its groups. float64 throughout.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A convolution with zero padding, at one input size."""

    name: str
    kernel: np.ndarray
    size: tuple[int, ...]
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    @property
    def axes(self) -> int:
        return self.kernel.ndim - 2

    @property
    def strides(self) -> tuple[int, ...]:
        return self.stride or (1,) * self.axes

    @property
    def dilations(self) -> tuple[int, ...]:
        return self.dilation or (1,) * self.axes

    def grouped(self) -> np.ndarray:
        """(groups, outputs/groups, inputs/groups, k…)."""
        return self.kernel.reshape(self.groups, -1, *self.kernel.shape[1:])


def top(matrix: np.ndarray) -> float:
    """σ₁ by a full SVD, as the papers' own code has it."""
    return float(np.linalg.svd(matrix, compute_uv=False)[..., 0].max())


def naive(layer: Layer) -> float:
    """σ₁ of the kernel reshaped to outputs × (inputs·k): Yoshida & Miyato 2017, torch's spectral_norm."""
    kernel = np.swapaxes(layer.kernel, 0, 1) if layer.transposed else layer.kernel
    return top(kernel.reshape(len(kernel), -1))


def scaled_naive(layer: Layer) -> float:
    """√(k₁⋯k_D)·naive: each input entry is read at most k₁⋯k_D times (Tsuzuku et al. 2018)."""
    return math.sqrt(math.prod(layer.kernel.shape[2:])) * naive(layer)


def four_bounds(layer: Layer) -> float:
    """√(k₁⋯k_D)·min over four reshapings (Singla & Feizi, ICLR 2021).

    Each spatial axis is put beside the outputs or beside the inputs: in 2-D the paper's R, S, T, U;
    in other dimensions the same for all 2^D ways.
    """
    best = math.inf
    for rows in itertools.product((False, True), repeat=layer.axes):
        beside = [axis + 2 for axis in range(layer.axes) if rows[axis]]
        others = [axis + 2 for axis in range(layer.axes) if not rows[axis]]
        worst = 0.0
        for kernel in layer.grouped():
            moved = kernel.transpose(0, *beside, 1, *others)
            worst = max(worst, top(moved.reshape(math.prod(moved.shape[: 1 + len(beside)]), -1)))
        best = min(best, worst)
    return math.sqrt(math.prod(layer.kernel.shape[2:])) * best


def spectra(layer: Layer, grid: tuple[int, ...]) -> np.ndarray:
    """The transfer matrices (groups, frequencies, outputs, inputs) on half a DFT grid, kernels being real.

    The kernel is dilated explicitly, and wrapped around where it is larger than the grid.
    """
    kernels = layer.grouped()
    placed = np.zeros((*kernels.shape[:3], *grid))
    for tap in itertools.product(*(range(k) for k in kernels.shape[3:])):
        place = tuple(d * t % n for d, t, n in zip(layer.dilations, tap, grid, strict=True))
        placed[(..., *place)] += kernels[(..., *tap)]
    half = np.fft.rfftn(placed, axes=tuple(range(3, 3 + layer.axes)))
    return np.moveaxis(half.reshape(*kernels.shape[:3], -1), -1, 1)


def fourier_grid(layer: Layer) -> float:
    """max σ₁ of the transfer matrices on the n-grid: exact for circular padding (Sedghi et al. 2019)."""
    return top(spectra(layer, layer.size))


def gram_circular(layer: Layer, steps: int = 6) -> float:
    """max over the n-grid of ‖G‖_F^(2^−t), G ← G*G from the transfer matrix (Delattre et al., ICML 2023).

    The norm is divided out at each step and kept as a logarithm.
    """
    gram = spectra(layer, layer.size)
    logarithm = np.zeros(gram.shape[:2])
    for step in range(steps):
        if step == 0 and gram.shape[-2] < gram.shape[-1]:
            gram = np.conj(np.swapaxes(gram, -1, -2))  # the smaller side first: the norm is the same
        size = np.linalg.norm(gram, axis=(-2, -1))
        gram = gram / np.maximum(size, 1e-300)[..., None, None]
        gram = np.conj(np.swapaxes(gram, -1, -2)) @ gram
        logarithm = 2 * (logarithm + np.log(np.maximum(size, 1e-300)))
    logarithm += np.log(np.maximum(np.linalg.norm(gram, axis=(-2, -1)), 1e-300))
    return float(np.exp(logarithm * 0.5**steps).max())


def gram_zero_padded(layer: Layer, steps: int = 4) -> float:
    """(max row sum of |K_t|)^(2^−t), K_t the kernel convolved with its own adjoint t times.

    The variant for zero padding of Delattre et al. 2024: the Gram operator of a convolution is one, with
    the autocorrelation of its kernel, of every size; symmetric, so its norm is at most its largest
    absolute row sum. The correlations are multiplied out by FFTs on a grid that holds their support.
    """
    wide = tuple(2**steps * (k - 1) + 1 for k in layer.kernel.shape[2:])  # dilation leaves sums as they are
    plain = Layer(layer.name, layer.kernel, layer.size, groups=layer.groups)
    product, logarithm = spectra(plain, wide), 0.0
    if product.shape[-2] < product.shape[-1]:
        product = np.conj(np.swapaxes(product, -1, -2))
    for _ in range(steps):
        size = float(np.abs(product).max())
        product = product / size
        product = np.conj(np.swapaxes(product, -1, -2)) @ product
        logarithm = 2 * (logarithm + math.log(size))
    half = (*wide[:-1], wide[-1] // 2 + 1)
    stacked = np.moveaxis(product, 1, -1).reshape(*product.shape[:1], *product.shape[2:], *half)
    kernel = np.fft.irfftn(stacked, s=wide, axes=tuple(range(3, 3 + layer.axes)))
    sums = np.abs(kernel).sum(axis=tuple(range(2, kernel.ndim)))
    return float(math.exp((logarithm + math.log(sums.max())) * 0.5**steps))


RIVALS = {
    "naive reshape": naive,
    "√k·naive": scaled_naive,
    "four bounds": four_bounds,
    "FFT grid": fourier_grid,
    "Gram, circular": gram_circular,
    "Gram, zero-padded": gram_zero_padded,
}
