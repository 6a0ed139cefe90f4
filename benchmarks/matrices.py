"""σ₁ of every matrix of a model: snaudit's proven intervals beside what people run today.

    python benchmarks/matrices.py [MODEL …] [--runs 3] [--weightwatcher VENV] [--write]

The claim: whole `snaudit inspect`, with PROVED intervals, in at most a third of svdvals' CPU time, below
weightwatcher's memory, within twice plain Lanczos (svds), which proves nothing. Each way is a process
of its own, start-up and reading included, in turn, so that a machine whose speed drifts treats all
alike; medians, ratios taken round by round, one thread. snaudit's time also includes what the others
do not do: hashing the file, the operator norm of every convolution, power iteration, the network bound.
(Only the search for a network's lower end is off: it takes as long as it is given.) The way `proved` is snaudit's σ₁ alone, for comparing like with like.

The truth is a Rayleigh quotient in long double (`sides.py reference`). "below σ" counts the matrices
whose figure lies below it: no bound from above. For snaudit it is the upper end that counts, and the
error is the distance to the further end of the interval.

--weightwatcher VENV runs weightwatcher too, from an environment that is made there if there is none.
With no MODEL: ResNet-50's and GPT-2 small's layer shapes, seeded, and the real models that are present.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints import real
from processes import Cost, Failed, machine, median, needed, run
from tables import publish, store, table

HERE = Path(__file__).parent
WAYS = {
    "snaudit": "`snaudit inspect` (proved interval)",
    "proved": "snaudit's σ₁ alone (proved upper end)",
    "svdvals": "`torch.linalg.svdvals`",
    "svdvals64": "the same in float64",
    "matrix_norm": "`torch.linalg.matrix_norm(ord=2)`",
    "svds": "`scipy.sparse.linalg.svds(k=1)`",
    "svds64": "the same in float64",
    "gram": "Gram matrix + `eigvalsh`",
    "gram64": "the same in float64",
    "weightwatcher": "`weightwatcher.analyze`",
}
SHORT = ("snaudit", "proved", "svdvals", "svds64", "gram64")
SHORT_NAMES = {"proved": "its σ₁ alone", "svdvals": "svdvals", "svds64": "svds, float64", "gram64": "Gram, float64"}
GOALS = (
    ("svdvals", "cpu", 1 / 3, "CPU ≤ a third of svdvals'"),
    ("weightwatcher", "peak", 1.0, "memory below weightwatcher's"),
    ("svds64", "cpu", 2.0, "CPU ≤ twice plain Lanczos in float64"),
)
Truth = dict[str, list[float]]
HEAD = ("way", "wall s", "CPU s", "peak MB", "snaudit ÷ it: CPU", "memory", "error", "below σ", "matrices")


def command(way: str, model: Path, ww: Path | None) -> list[str]:
    """The command line of one way for one model."""
    if way == "snaudit":
        options = ["--format", "json", "--threads", "1", "--witness-seconds", "0"]
        return [sys.executable, "-m", "snaudit", "inspect", str(model), *options]
    python = str(ww / "bin" / "python") if way == "weightwatcher" and ww else sys.executable
    return [python, str(HERE / "sides.py"), way, str(model)]


def ends(way: str, printed: str) -> dict[str, tuple[float, float, int, int]]:
    """{matrix: (lower, upper, rows, columns)} of what a way printed; one number where it has one."""
    if way != "snaudit":
        values = json.loads(printed.strip().splitlines()[-1])
        return {name: (value, value, rows, columns) for name, (value, rows, columns) in values.items()}
    found = {}
    for layer in json.loads(printed)["layers"]:
        if layer["sigma"]["bounded"] and layer["sigma"]["grade"] == "proved":
            found[layer["name"]] = (layer["sigma"]["lower"], layer["sigma"]["upper"], *layer["matrix"])
    return found


def off(value: float, truth: list[float]) -> float:
    """(value − σ)/σ, to more digits than float64 has: the truth comes in two parts."""
    sigma, low = truth[:2]
    return ((value - sigma) - low) / sigma if sigma else value


def compared(way: str, printed: str, truth: Truth) -> tuple[str, str, str]:
    """(largest relative error, how many figures lie below σ, how many matrices) of one way."""
    errors, below = [], 0
    for name, (lower, upper, rows, columns) in ends(way, printed).items():
        if name not in truth or {rows, columns} != set(truth[name][3:]):
            continue  # another matrix of the same tensor: two factors of one weight, slices of a stack
        margin = truth[name][2] + 1e-18
        errors.append(max(abs(off(lower, truth[name])), abs(off(upper, truth[name]))))
        below += off(upper, truth[name]) < -margin
        if way == "snaudit" and off(lower, truth[name]) > margin:
            raise SystemExit(f"{name}: the lower end {lower!r} lies above σ: a bug of ours")
    if way == "snaudit" and below:
        raise SystemExit(f"{below} upper ends lie below σ: a bug of ours")
    return (f"{max(errors):.0e}" if errors else "–", str(below), str(len(errors)))


@dataclass(frozen=True, slots=True)
class Rounds:
    """Costs of every way on one model, round by round, the truth, and why some ways failed."""

    model: Path
    costs: dict[str, list[Cost]]
    failed: dict[str, str]
    truth: Truth

    def ratio(self, way: str, key: str) -> float:
        """The median over the rounds of snaudit's CPU time or memory ÷ that of another way."""
        pairs = zip(self.costs["snaudit"], self.costs[way], strict=True)
        return statistics.median(getattr(a, key) / getattr(b, key) for a, b in pairs)


def rounds(model: Path, ways: Sequence[str], runs: int, ww: Path | None) -> Rounds:
    """All ways in turn, `runs` times; the truth only for the matrices that snaudit reports."""
    truth = json.loads(needed([sys.executable, str(HERE / "sides.py"), "reference", str(model)]).output)
    costs: dict[str, list[Cost]] = {way: [] for way in ways}
    failed: dict[str, str] = {}
    for _ in range(runs):
        for way in [way for way in ways if way not in failed]:
            cost = run(command(way, model, ww))
            if isinstance(cost, Failed):
                failed[way] = cost.reason
                del costs[way]
            else:
                costs[way].append(cost)
    if "snaudit" in failed:
        raise SystemExit(f"snaudit inspect {model}: {failed['snaudit']}")
    ours = ends("snaudit", costs["snaudit"][0].output)
    return Rounds(model, costs, failed, {name: truth[name] for name in ours if name in truth})


def long_table(found: Rounds) -> str:
    """Every way in a line of its own, and whether the goals are met."""
    rows = []
    for way, costs in found.costs.items():
        cost = median(costs)
        figures = [f"{cost.wall:.2f}", f"{cost.cpu:.2f}", f"{cost.peak:.0f}"]
        ratios = [f"{found.ratio(way, 'cpu'):.2f}", f"{found.ratio(way, 'peak'):.2f}"]
        rows.append([WAYS[way], *figures, *ratios, *compared(way, cost.output, found.truth)])
    size = found.model.stat().st_size / 1e6
    lines = [f"**{found.model.stem}** ({size:.0f} MB)", "", table(HEAD, rows), "", goals(found)]
    lines += [f"\nNot run: {WAYS[way]} ({reason})" for way, reason in found.failed.items()]
    return "\n".join(lines)


def goals(found: Rounds) -> str:
    """One line: each goal, the ratio that was measured, and whether it is met."""
    texts = []
    for way, key, most, text in GOALS:
        if way in found.costs:
            ratio = found.ratio(way, key)
            texts.append(f"{text}: {ratio:.2f}, {'met' if ratio <= most else '**not met**'}")
    return "Goals: " + "; ".join(texts) + "."


def short_table(all_found: Sequence[Rounds]) -> str:
    """One line for each model."""
    rows = []
    for found in all_found:
        cost = median(found.costs["snaudit"])
        error, _, count = compared("snaudit", cost.output, found.truth)
        cells = [f"{found.model.name}", count, f"{cost.cpu:.2f}", f"{cost.peak:.0f}", error]
        for way in SHORT[1:]:
            if way in found.failed:
                cells.append(f"failed: {found.failed[way]}")
                continue
            _, below, of = compared(way, found.costs[way][0].output, found.truth)
            cells.append(f"{found.ratio(way, 'cpu'):.2f} ({below} of {of})")
        rows.append(cells)
    ratios = [f"CPU ÷ {SHORT_NAMES[way]}" for way in SHORT[1:]]
    return table(("model", "matrices", "CPU s", "peak MB", "error", *ratios), rows)


def weightwatcher_in(venv: Path) -> Path:
    """The environment of weightwatcher, made where there is none."""
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        constraints = HERE.parent / "constraints.txt"
        packages = ["-c", str(constraints), "torch", "safetensors", "weightwatcher==0.7.7"]
        subprocess.run([*pip, *packages], check=True)
    return venv


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--weightwatcher", type=Path, metavar="VENV")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    ww = weightwatcher_in(given.weightwatcher.absolute()) if given.weightwatcher else None
    parts = [f"{machine()}; medians of {given.runs} rounds."]
    every = [way for way in WAYS if way != "weightwatcher" or ww]
    with tempfile.TemporaryDirectory() as folder:
        for name in () if given.model else ("resnet50", "gpt2-small"):
            path = Path(folder) / f"{name}-like.safetensors"
            needed([sys.executable, str(HERE / "checkpoints.py"), name, str(path)])
            parts.append(long_table(rounds(path, every, given.runs, ww)))
            print(parts[-1], "\n", file=sys.stderr, flush=True)
            if given.write:
                store("matrices", "\n\n".join(parts))  # what is measured stays, whatever comes after
    models = [path.absolute() for path in given.model] or list(real())
    if models:
        parts.append("Real models: snaudit's CPU time ÷ that of others (how many figures lie below σ).")
        parts.append(short_table([rounds(model, SHORT, given.runs, ww) for model in models]))
    publish("matrices", "\n\n".join(parts), given.write)


if __name__ == "__main__":
    main()
