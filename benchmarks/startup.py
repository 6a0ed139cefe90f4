"""How soon `snaudit` answers, beside the import of torch alone.

    python benchmarks/startup.py [--write]

The claim: help costs less than `import torch`, and so does a whole audit of a small model: nothing heavy
is imported that the task does not need. Five rounds in turn, medians; the last column is taken round
by round.
"""

from __future__ import annotations

import statistics
import sys

from processes import machine, median, needed
from tables import publish, table

COMMANDS = {
    "`import torch`": ["-c", "import torch"],
    "`snaudit --help`": ["-m", "snaudit", "--help"],
    "`snaudit inspect` of a checkpoint of 29 kB": ["-m", "snaudit", "inspect", "sample_models/pnet.pt"],
    "`snaudit inspect` of an ONNX graph of 28 kB": ["-m", "snaudit", "inspect", "sample_models/pnet.onnx"],
}
ROUNDS = 5


def main() -> None:
    rounds = []
    for _ in range(ROUNDS):
        rounds.append({name: needed([sys.executable, *line]) for name, line in COMMANDS.items()})
    first = next(iter(COMMANDS))
    rows = []
    for name in COMMANDS:
        cost = median([one[name] for one in rounds])
        ratio = statistics.median(one[name].cpu / one[first].cpu for one in rounds)
        rows.append([name, f"{cost.wall:.2f}", f"{cost.cpu:.2f}", f"{cost.peak:.0f}", f"{ratio:.2f}"])
    head = ("command", "wall s", "CPU s", "peak MB", "CPU ÷ `import torch`")
    publish("startup", f"{machine()}\n\n{table(head, rows)}", "--write" in sys.argv[1:])


if __name__ == "__main__":
    main()
