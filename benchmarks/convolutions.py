"""The norm of a convolution as an operator: snaudit's proven bound beside six published ways.

    python benchmarks/convolutions.py [--rtol X] [--write]

The claim: an upper bound for every input size, proved, that is closer to the true norm of the
zero-padded layer than the published bounds, which are loose or (below the truth) no bounds at all. Ten
layer shapes with random kernels, a Laplacian, and kernels of trained models where they are present.

The truth is ARPACK's Lanczos on the layer itself (torch's convolution in float64, zero padding that keeps
the size), converged to 1e-7: a value from below, so that what lies below it is certainly no bound.
What remains of snaudit's ratio is mostly (sup over all sizes) ÷ (this size), not slack: the
column "slack" is its upper end ÷ its own proven lower end. Times are CPU milliseconds on one thread, the
best of three where one takes less than a second.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from checkpoints import real
from processes import machine
from rivals import RIVALS, Layer
from scipy.sparse.linalg import LinearOperator, eigsh
from tables import publish, table

import snaudit
from snaudit import sigma
from snaudit.extraction import extract
from snaudit.linear import Convolution

BELOW = 1e-6  # relative: the truth itself is converged to less
_OCR = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
_SILERO = "silero_vad/data/silero_vad_op18_ifless.onnx"
TRAINED = (
    ("deepCR", "learned_models/mask/decam.pth", "module.down1.mpconv.1.conv.3.weight", (32, 32)),
    ("OCR stem", _OCR, "conv2d_0.w_0", (32, 32)),
    ("OCR depthwise", _OCR, "conv2d_418.w_0", (32, 32)),
    ("OCR upsampling", _OCR, "conv2d_transpose_0.w_0", (32, 32)),
    ("PLCMOS", "speechmos/plcmos_models/plcmos_v2.onnx", "in_blocks.0.conv2.weight", (32, 32)),
    ("silero VAD", _SILERO, "model.encoder.1.reparam_conv.weight", (32,)),
    ("PESTO", "pesto/weights/mir-1k_g7.ckpt", "encoder.prefilt_layers.0.0.weight", (128,)),
    ("RivaGAN", "imwatermark/rivagan_encoder.onnx", "_conv.0.weight", (1, 32, 32)),
)


def made_layers() -> list[Layer]:
    """Ten shapes with seeded normal kernels, and a Laplacian stencil on an odd grid."""
    rng = np.random.default_rng(0)
    laplacian = np.array([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])

    def layer(name: str, shape: tuple[int, ...], size: int, **geometry) -> Layer:
        kernel = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        return Layer(name, kernel, (size,) * (len(shape) - 2), **geometry)

    return [
        layer("3→64, 7×7, stride 2", (64, 3, 7, 7), 32, stride=(2, 2)),
        layer("64→64, 3×3", (64, 64, 3, 3), 32),
        layer("128→256, 3×3, stride 2", (256, 128, 3, 3), 32, stride=(2, 2)),
        layer("256 depthwise, 3×3", (256, 1, 3, 3), 32, groups=256),
        layer("128→128 in 8 groups, 3×3", (128, 16, 3, 3), 32, groups=8),
        layer("32→32, 3×3, dilation 2", (32, 32, 3, 3), 32, dilation=(2, 2)),
        layer("32→16 transposed, 4×4, stride 2", (32, 16, 4, 4), 16, stride=(2, 2), transposed=True),
        layer("16→64, 5×5", (64, 16, 5, 5), 32),
        layer("64→64, 1-D, 9", (64, 64, 9), 32),
        layer("8→16, 3-D, 3×3×3", (16, 8, 3, 3, 3), 16),
        Layer("1→1, 3×3, Laplacian", laplacian[None, None], (7, 7)),
    ]


def trained_layers() -> list[Layer]:
    """Kernels of trained models, with the geometry that their graphs give them."""
    found = []
    for title, file, name, size in TRAINED:
        path = next(real([file]), None)
        if path is None:
            continue
        layer = next(layer for layer in extract(snaudit.load(path)).layers if layer.name == name)
        operator = layer.maps()[1]
        assert isinstance(operator, Convolution)
        kernel, geometry = operator.kernel, (operator.stride, operator.dilation, operator.groups)
        found.append(Layer(title + ", " + described(operator), kernel, size, *geometry, operator.transposed))
    return found


def described(map: Convolution) -> str:
    """Channels, kernel and geometry in a few words."""
    few = map.kernel.shape[1] * map.groups
    ends = (map.kernel.shape[0], few) if map.transposed else (few, map.kernel.shape[0])
    text = f"{ends[0]}→{ends[1]}, {'×'.join(str(k) for k in map.kernel.shape[2:])}"
    if map.depthwise:
        text += " depthwise"
    if max(map.stride) > 1:
        text += f", stride {max(map.stride)}"
    if max(map.dilation) > 1:
        text += f", dilation {'×'.join(str(d) for d in map.dilation)}"
    return text + (", transposed" if map.transposed else "")


def truth(layer: Layer) -> float:
    """The norm of the zero-padded layer at its input size, from below, converged to 1e-7.

    Of a transposed layer as its adjoint, which has the same norm, from an input of stride·size.
    """
    forward = (torch.conv1d, torch.conv2d, torch.conv3d)[layer.axes - 1]
    backward = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[layer.axes - 1]
    kernel = torch.from_numpy(np.ascontiguousarray(layer.kernel, dtype=np.float64))
    scale = layer.strides if layer.transposed else (1,) * layer.axes
    size = tuple(n * s for n, s in zip(layer.size, scale, strict=True))
    shape = (1, layer.kernel.shape[1] * layer.groups, *size)
    rows = list(zip(layer.kernel.shape[2:], layer.dilations, layer.strides, size, strict=True))
    padding = tuple((d * (k - 1)) // 2 if not layer.transposed else (k - s) // 2 for k, d, s, _ in rows)
    left = tuple((n + 2 * p - d * (k - 1) - 1) % s for (k, d, s, n), p in zip(rows, padding, strict=True))

    def gram(x: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(np.ascontiguousarray(x.reshape(shape)))
        out = forward(image, kernel, None, layer.strides, padding, layer.dilations, layer.groups)
        back = backward(out, kernel, None, layer.strides, padding, left, layer.groups, layer.dilations)
        return back.numpy().ravel()

    entries = math.prod(shape)
    start = np.random.default_rng(1).standard_normal(entries)
    operator = LinearOperator((entries, entries), matvec=gram, dtype=np.float64)
    return math.sqrt(eigsh(operator, k=1, tol=1e-7, v0=start, return_eigenvectors=False, ncv=40)[0])


def timed(work: Callable[[], object]) -> tuple[object, float]:
    """(the result, CPU milliseconds)."""
    result, best = None, math.inf
    for _ in range(3):
        started = time.process_time()
        result = work()
        best = min(best, 1e3 * (time.process_time() - started))
        if best > 1e3:
            break
    return result, best


def compare(layer: Layer, options: sigma.Options) -> tuple[list[str], list[str], list[bool]]:
    """(ratios to the truth, times, which are below it) of snaudit and the rivals on one layer."""
    map = Convolution(layer.kernel, layer.strides, layer.dilations, layer.groups, layer.transposed)
    true = truth(layer)
    bound, spent = timed(lambda: sigma.measure(map, "l2", options))
    if bound.grade.name != "PROVED" or bound.upper < true * (1 - BELOW):
        raise SystemExit(f"{layer.name}: {bound} for {true}: a bug of ours")
    slack = f"{bound.upper / bound.lower - 1:.0e}"
    ratios = ["×".join(str(n) for n in layer.size), f"{bound.upper / true:.3f}", slack]
    times, low = [f"{spent:.0f}"], []
    for way in RIVALS.values():
        value, spent = timed(lambda way=way: way(layer))
        low.append(value < true * (1 - BELOW))
        ratios.append(f"**{value / true:.3f}** ✗" if low[-1] else f"{value / true:.3f}")
        times.append(f"{spent:.0f}")
    return ratios, times, low


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rtol", type=float, help="narrow to this width, however long it takes")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    words, options = "as by default, within its work budget", sigma.Options()
    if given.rtol is not None:
        words, options = f"at rtol {given.rtol:g}", sigma.Options(rtol=given.rtol, budget=None)
    parts = [f"{machine()}; snaudit {words}. ✗: below the truth, no upper bound."]
    for title, layers in (("made", made_layers()), ("trained", trained_layers())):
        ratios, times, lows = [], [], []
        for layer in layers:
            ratio, spent, low = compare(layer, options)
            print(layer.name, *ratio, "| ms", *spent, file=sys.stderr, flush=True)
            ratios.append([layer.name, *ratio])
            times.append([layer.name, *spent])
            lows.append(low)
        if not layers:
            continue
        below = ["below the truth", "", f"0 of {len(layers)}", ""]
        below += [f"{sum(column)} of {len(layers)}" for column in zip(*lows, strict=True)]
        parts.append(f"Kernels: {title}. Bound ÷ true norm of the zero-padded layer at its input size:")
        parts.append(table(("layer", "n", "snaudit", "slack", *RIVALS), [*ratios, below]))
        parts.append("CPU milliseconds:")
        parts.append(table(("layer", "snaudit", *RIVALS), times))
    publish("convolutions", "\n\n".join(parts), given.write)


if __name__ == "__main__":
    main()
