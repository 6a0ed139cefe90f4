"""How much a convolution at one size stretches a vector that was found: its norm from below."""

from __future__ import annotations

import math

import numpy as np

from snaudit.arrays import lanczos
from snaudit.bound import down
from snaudit.linear import Located
from snaudit.rounding import SAFE, TINY, U, frobenius_up, gamma, norm_enclosed

_WORK = 4e9  # products spent on a lower end: a fraction of a second of one thread
_MEMORY = 1 << 24  # numbers that the Lanczos basis may take


def kappa_up(kernel: np.ndarray) -> float:
    """Σ_t ‖W_t‖_F from above, for a kernel with entries of order one."""
    flat = kernel.reshape(kernel.shape[0], kernel.shape[1], -1)
    return SAFE * sum(frobenius_up(flat[:, :, t]) for t in range(flat.shape[2]))


def stretch_down(map: Located, start: tuple[np.ndarray, np.ndarray, int] | None, seed: int) -> float:
    """‖Gᵀy‖/‖y‖ from below for a Ritz vector y of G·Gᵀ, G the convolution (or what it is the adjoint of).

    Lanczos from a plane wave under a sine window where one is given (it loses O(1/M²) of the norm
    over all sizes), as many steps as the work allows. fl(Gᵀy) adds up at most k products for each entry,
    so it is within γ_k·‖|G|‖·‖y‖ of Gᵀy, and ‖|G|‖ ≤ Σ_t‖W_t‖_F·√(copies).
    """
    conv = map.convolution
    few = map.ends[0]
    outputs, inputs = conv.kernel.shape[0], conv.kernel.shape[1]
    taps = math.prod(conv.kernel.shape[2:])
    size = outputs * math.prod(few)
    each = math.prod(few) * taps * (outputs * inputs + 10 * (outputs + inputs * conv.groups))
    steps = int(max(1, min(40, _WORK / (2 * each), _MEMORY / size)))
    y = _start(map, few, start, seed)
    if steps > 1:
        y = lanczos(lambda x: map.gather(map.scatter(x)), y, steps, rtol=0.0).vector
    below, _ = norm_enclosed(map.scatter(y))
    _, above = norm_enclosed(y)
    copies = [int(np.bincount(source[source >= 0]).max()) for source in map.sources()]
    terms = (outputs // conv.groups + 2) * taps + sum(copies) + 2
    lost = SAFE * gamma(terms) * kappa_up(conv.kernel) * math.sqrt(math.prod(copies)) * SAFE
    return max(0.0, down(below / above) * (1.0 - 4 * U) - lost - TINY)


def _start(
    map: Located, few: tuple[int, ...], wave: tuple[np.ndarray, np.ndarray, int] | None, seed: int
) -> np.ndarray:
    """A plane wave under a sine window, and a little of everything else; or only the latter."""
    conv, rng = map.convolution, np.random.default_rng(seed)
    y = rng.standard_normal((conv.groups, conv.kernel.shape[0] // conv.groups, *few))
    y /= np.linalg.norm(y)
    if wave is None:
        return y.ravel()
    vector, frequency, group = wave
    phase = np.zeros(())
    window = np.ones(())
    for size, omega in zip(few, frequency, strict=True):
        index = np.arange(size)
        phase = phase[..., None] + omega * index
        window = window[..., None] * np.sin(np.pi * (index + 1) / (size + 1))
    image = (vector[(slice(None), *(None,) * len(few))] * np.exp(1j * phase)).real * window
    y[group] = 0.05 * y[group] + image / np.linalg.norm(image)
    return y.ravel()
