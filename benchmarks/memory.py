"""Peak memory of `snaudit inspect` on a checkpoint many times larger than what it may take.

    python benchmarks/memory.py [--write] [MODEL.safetensors]

The claim: tensors are read one after another, so the peak is at most four times the largest layer in
float64, plus a constant (what the process takes for a model of a few kilobytes), however large the
file. With no MODEL, 3.2 GB are written to the temporary folder and removed: 96 layers of 64 MB in
float64, of which two are nearly square (their Gram matrix counts too). Beside it, both in float32: the
loop that loads the state dict (the pages of the mapped file count as resident; under pressure the kernel
can drop them) and runs svdvals on each tensor, and one that reads a tensor at a time by hand. One run each.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

from processes import ROOT, Failed, machine, needed, run
from tables import publish, table

HERE = Path(__file__).parent
MAPPED = """
import sys, torch
from safetensors.torch import load_file
for name, weight in load_file(sys.argv[1]).items():
    torch.linalg.svdvals(weight.flatten(1))[0]
"""
ONE_BY_ONE = """
import json, sys, torch
with open(sys.argv[1], "rb") as file:
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        weight = torch.frombuffer(bytearray(file.read(stop - start)), dtype=torch.float32)
        torch.linalg.svdvals(weight.reshape(entry["shape"]).flatten(1))[0]
"""


def largest(model: Path) -> float:
    """MB of the file's largest tensor in float64, from its header."""
    with model.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return max(8 * math.prod(shape) for shape in shapes) / (1 << 20)


def compare(model: Path) -> str:
    """The table for one file."""
    inspect = [sys.executable, "-m", "snaudit", "inspect", "--format", "json", "--threads", "1"]
    constant = needed([*inspect, str(ROOT / "sample_models" / "pnet.pt")]).peak
    ours = needed([*inspect, str(model)])
    layer, size = largest(model), model.stat().st_size / (1 << 20)
    limit = 4 * layer + constant
    rows = [["`snaudit inspect`", f"{ours.wall:.0f}", f"{ours.cpu:.0f}", f"{ours.peak:.0f}", "1"]]
    commands = {
        "`load_file`, then `svdvals` of each": [sys.executable, "-c", MAPPED, str(model)],
        "reading one tensor after another by hand, `svdvals`": [sys.executable, "-c", ONE_BY_ONE, str(model)],
    }
    for name, line in commands.items():
        cost = run(line)
        if isinstance(cost, Failed):
            rows.append([f"{name}: {cost.reason}", "–", "–", "–", "–"])
            continue
        figures = (f"{cost.wall:.0f}", f"{cost.cpu:.0f}", f"{cost.peak:.0f}", f"{ours.peak / cost.peak:.2f}")
        rows.append([name, *figures])
    verdict = "kept" if ours.peak <= limit else "NOT kept"
    claim = (
        f"File {size:.0f} MB, largest layer {layer:.0f} MB in float64, constant {constant:.0f} MB: the "
        f"limit is 4 × {layer:.0f} + {constant:.0f} = {limit:.0f} MB, {verdict}: peak {ours.peak:.0f} MB = "
        f"{(ours.peak - constant) / layer:.2f} × the layer + constant; "
        f"the file is {size / limit:.1f} × the limit."
    )
    head = ("way", "wall s", "CPU s", "peak MB", "snaudit ÷ it: memory")
    return f"{claim}\n\n{table(head, rows)}"


def main() -> None:
    write, named = "--write" in sys.argv[1:], [Path(name) for name in sys.argv[1:] if name != "--write"]
    if named:
        text = "\n\n".join(compare(path.absolute()) for path in named)
    else:
        with tempfile.TemporaryDirectory() as folder:
            if shutil.disk_usage(folder).free < 5e9:
                raise SystemExit(f"{folder}: this needs 5 GB of disk for a while; set TMPDIR")
            path = Path(folder) / "many-layers.safetensors"
            needed([sys.executable, str(HERE / "checkpoints.py"), "many-layers", str(path)])
            text = compare(path)
    publish("memory", f"{machine()}\n\n{text}", write)


if __name__ == "__main__":
    main()
