"""The checkpoints that the benchmarks measure: made ones, seeded, and real ones where they are present.

    python benchmarks/checkpoints.py resnet50|gpt2-small|many-layers FILE.safetensors
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

Shape = tuple[int, ...]

REAL = (
    "facenet_pytorch/data/onet.pt",
    "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/pytorch_model.bin",
    "silero_vad/data/silero_vad_16k.safetensors",
    "learned_models/mask/decam.pth",
    "imwatermark/rivagan_encoder.onnx",
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    "speechmos/aecmos_models/Run_1668423760_Stage_0.onnx",
)
"""Files inside the packages of tests/models.txt."""


def resnet50() -> list[tuple[str, Shape]]:
    """The names and shapes of ResNet-50's 53 convolutions and its classifier."""
    layers: list[tuple[str, Shape]] = [("conv1.weight", (64, 3, 7, 7))]
    before = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            layers.append((f"{name}.conv1.weight", (width, before, 1, 1)))
            layers.append((f"{name}.conv2.weight", (width, width, 3, 3)))
            layers.append((f"{name}.conv3.weight", (4 * width, width, 1, 1)))
            if block == 0:
                layers.append((f"{name}.downsample.0.weight", (4 * width, before, 1, 1)))
            before = 4 * width
    return [*layers, ("fc.weight", (1000, 2048))]


def gpt2_small() -> list[tuple[str, Shape]]:
    """The names and shapes of GPT-2 small's matrices."""
    layers: list[tuple[str, Shape]] = [("wte.weight", (50257, 768)), ("wpe.weight", (1024, 768))]
    for block in range(12):
        layers += [
            (f"h.{block}.attn.c_attn.weight", (768, 2304)),
            (f"h.{block}.attn.c_proj.weight", (768, 768)),
            (f"h.{block}.mlp.c_fc.weight", (768, 3072)),
            (f"h.{block}.mlp.c_proj.weight", (3072, 768)),
        ]
    return layers


def many_layers() -> list[tuple[str, Shape]]:
    """96 matrices of 2²³ entries (64 MB each in float64; 3.2 GB on disk): 94 tall and 2 nearly square."""
    shapes = [(65536, 128)] * 47 + [(4096, 2048)]
    return [(f"layers.{index}.weight", shape) for index, shape in enumerate(shapes * 2)]


MADE = {"resnet50": resnet50, "gpt2-small": gpt2_small, "many-layers": many_layers}


def real(names: Iterable[str] = REAL) -> Iterator[Path]:
    """The real models below the folder that $SNAUDIT_MODELS names (default: `make test`'s)."""
    root = Path(os.environ.get("SNAUDIT_MODELS", Path(__file__).parent.parent / ".venv" / "models"))
    for name in names:
        if (root / name).exists():
            yield root / name
        else:
            hint = "set SNAUDIT_MODELS, or run `make test` first"
            print(f"not here, left out: {name} ({hint})", file=sys.stderr)


def make(path: Path, layers: list[tuple[str, Shape]]) -> None:
    """Write a seeded float32 safetensors file of these layers, Kaiming-scaled, tensor by tensor."""
    import numpy as np

    header, offset = {}, 0
    for name, shape in layers:
        stop = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in layers:
            values = rng.standard_normal(shape, dtype=np.float32)
            values *= math.sqrt(2 / math.prod(shape[1:]))
            file.write(values.tobytes())


if __name__ == "__main__":
    make(Path(sys.argv[2]), MADE[sys.argv[1]]())
