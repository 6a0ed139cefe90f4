"""What a clip costs and how much less it changes than a scale.

    python benchmarks/clipping.py [--write]

Matrices: `snaudit.projections` (one eigendecomposition of the Gram matrix on the shorter side) beside
the clip that everyone writes, a full SVD, in the same run: seconds, the ratio, and the largest
difference of the two results relative to σ₁. Convolutions: how far the weights move until the
*certified* operator norm is under half of what it was, by `--how scale`, `clip` and `soft`; and where
clipping each frequency of an FFT once and cutting back to the kernel's support, without more, ends up.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from tables import publish

from snaudit import projections, sigma
from snaudit.linear import Convolution, Dense

ROUNDS = 3
MATRICES = ((1024, 1024), (3072, 768), (4096, 1024), (768, 50257))
KERNELS = {
    "64→64 3×3": ((64, 64, 3, 3), 1, 1), "128→256 3×3 s2": ((256, 128, 3, 3), 2, 1), "3→64 7×7 s2": ((64, 3, 7, 7), 2, 1),
    "depthwise 128 3×3": ((128, 1, 3, 3), 1, 128), "64→64 k9": ((64, 64, 9), 1, 1),
}  # fmt: skip


def by_svd(matrix: np.ndarray, cap: float) -> np.ndarray:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u * np.minimum(s, cap)) @ vh


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def matrices() -> Iterator[str]:
    """Rows: ours beside the full SVD."""
    yield ("| matrix | above the cap | snaudit CPU s | SVD CPU s | ratio | largest difference ÷ σ₁ |\n|---|---|---|---|---|---|")
    for shape in MATRICES:
        matrix = np.random.default_rng(0).standard_normal(shape)
        values = np.linalg.svd(matrix, compute_uv=False)
        for part in (0.05, 0.5):
            cap = float(values[int(part * len(values))])
            pairs = []
            for _ in range(ROUNDS if max(shape) < 10_000 else 1):
                ours, near = timed(lambda cap=cap: projections.bring_under(Dense(matrix), cap, "clip").dense())
                theirs, truth = timed(lambda cap=cap: by_svd(matrix, cap))
                pairs.append((ours, theirs))
            off = np.abs(near - truth).max() / values[0]
            a, b = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
            ratio = statistics.median(x / y for x, y in pairs)
            yield (f"| {shape[0]}×{shape[1]} | {part:.0%} | {a:.2f} | {b:.2f} | {ratio:.2f} | {off:.1e} |")


def once_by_fft(conv: Convolution, cap: float, size: int = 16) -> Convolution:
    """Clip every frequency of the kernel on a torus once, and cut back to the support (Sedghi et al. 2019)."""
    axes = tuple(range(2, conv.kernel.ndim))
    symbol = np.fft.fftn(conv.kernel, [size] * len(axes), axes)
    stack = np.moveaxis(symbol, (0, 1), (-2, -1))
    u, s, vh = np.linalg.svd(stack, full_matrices=False)
    clipped = (u * np.minimum(s, cap)[..., None, :]) @ vh
    back = np.fft.ifftn(np.moveaxis(clipped, (-2, -1), (0, 1)), axes=axes).real
    kernel = back[(slice(None), slice(None), *(slice(0, k) for k in conv.kernel.shape[2:]))]
    return Convolution(np.ascontiguousarray(kernel), conv.stride, conv.dilation, conv.groups)


def convolutions() -> Iterator[str]:
    """Rows: each way for each kernel."""
    yield ("| kernel | way | CPU s | certified norm ÷ cap before the last scale | weights moved in all |\n|---|---|---|---|---|")
    for name, (shape, stride, groups) in KERNELS.items():
        kernel = np.random.default_rng(1).standard_normal(shape)
        axes = len(shape) - 2
        conv = Convolution(kernel, (stride,) * axes, (1,) * axes, groups)
        cap = sigma.measure(conv).upper / 2
        ways: dict[str, Callable[[], Convolution]] = {
            "scale": lambda conv=conv: conv,
            "clip": lambda conv=conv, cap=cap: projections.bring_under(conv, cap, "clip"),
            "soft": lambda conv=conv, cap=cap: projections.bring_under(conv, cap, "soft"),
        }
        if stride == 1 and groups == 1:
            ways["one FFT clip, cut back"] = lambda conv=conv, cap=cap: once_by_fft(conv, cap)
        for way, make in ways.items():
            started = time.process_time()
            near = make()
            seconds = time.process_time() - started
            over = sigma.measure(near).upper / cap
            moved = np.linalg.norm(near.kernel / max(1.0, over) - kernel) / np.linalg.norm(kernel)
            yield (f"| {name} | {way} | {seconds:.2f} | {over:.3f} | {moved:.3f} |")


if __name__ == "__main__":
    publish("clipping", "\n".join([*matrices(), "", *convolutions()]), "--write" in sys.argv)
