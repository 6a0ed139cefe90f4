"""Time and peak memory of `snaudit inspect` beside a plain numpy SVD loop over the same file.

    python benchmarks/inspect_vs_svd.py [MODEL.safetensors …]

Each side runs in a process of its own, in turn, so that a machine whose speed drifts treats both
alike; the figures are medians, and the ratios are taken pair by pair. The loop is what people write
today: read each tensor, reshape it to a matrix, `numpy.linalg.svd`. It has no error bound, no
operator norm of a convolution and no network bound; snaudit's time includes all of them. With no
model named, two are made: the layer shapes of ResNet-50 and of GPT-2 small, seeded.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RUNS = 3
LOOP = """
import sys, json, struct, numpy as np
with open(sys.argv[1], 'rb') as f:
    size = struct.unpack('<Q', f.read(8))[0]
    header = json.loads(f.read(size))
    header.pop('__metadata__', None)
    for name, entry in header.items():
        start, stop = entry['data_offsets']
        f.seek(8 + size + start)
        if len(entry['shape']) > 1:
            w = np.frombuffer(f.read(stop - start), '<f4').reshape(entry['shape'][0], -1)
            np.linalg.svd(w.astype(np.float64), compute_uv=False)[0]
"""


def resnet50() -> list[tuple[int, ...]]:
    """The shapes of ResNet-50's 53 convolutions and its classifier."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    width_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, width_in, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, width_in, 1, 1))
            width_in = 4 * width
    return [*shapes, (1000, 2048)]


def gpt2_small() -> list[tuple[int, ...]]:
    """The shapes of GPT-2 small's matrices."""
    block = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
    return [(50257, 768), (1024, 768), *(block * 12)]


def make(path: Path, shapes: list[tuple[int, ...]]) -> Path:
    """A seeded float32 safetensors file of these shapes, Kaiming-scaled, written tensor by tensor."""
    import json
    import struct

    header, offset = {}, 0
    for index, shape in enumerate(shapes):
        stop = offset + 4 * int(np.prod(shape))
        header[f"layer{index}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes:
            scale = np.sqrt(2 / np.prod(shape[1:]))
            file.write((rng.standard_normal(shape) * scale).astype("<f4").tobytes())
    return path


def measure(command: list[str]) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak MB) of one process."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{command} exited {child.returncode}")
    wall = time.perf_counter() - started
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)


def compare(path: Path) -> None:
    """Print both sides' medians and the median ratios for one model."""
    ours = [sys.executable, "-m", "snaudit", "inspect", str(path), "--format", "json"]
    loop = [sys.executable, "-c", LOOP, str(path)]
    pairs = [(measure(ours), measure(loop)) for _ in range(RUNS)]
    print(f"{path.name} ({path.stat().st_size / 1e6:.0f} MB), {RUNS} runs each, one thread")
    for index, unit in enumerate(("wall s", "CPU s", "peak MB")):
        a, b = (statistics.median(pair[side][index] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[0][index] / pair[1][index] for pair in pairs)
        print(f"  {unit:8} snaudit inspect {a:9.2f}   numpy svd loop {b:9.2f}   ratio {ratio:.2f}")


def main() -> None:
    if len(sys.argv) > 1:
        for name in sys.argv[1:]:
            compare(Path(name))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(make(Path(folder) / "resnet50-like.safetensors", resnet50()))
        compare(make(Path(folder) / "gpt2-small-like.safetensors", gpt2_small()))


if __name__ == "__main__":
    main()
