"""Runs a process and returns what it took; one thread, so that cores do not blur the ratios.

Only the standard library is imported here: a child's peak memory counts from what its parent holds
when it starts it, so the parents stay small, and everything heavy happens in children.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_MB = (1 << 20) if sys.platform == "darwin" else (1 << 10)  # of ru_maxrss


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process took: wall seconds, CPU seconds, peak resident MB, and what it printed."""

    wall: float
    cpu: float
    peak: float
    output: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """A process that ended with an error, and the last line that it wrote."""

    reason: str


def run(command: Sequence[str]) -> Cost | Failed:
    """The cost of one process, on one thread, with this tree's snaudit."""
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            err.seek(0)
            lines = err.read().decode(errors="replace").strip().splitlines() or ["no message"]
            return Failed(f"exit {child.returncode}: {lines[-1]}")
        out.seek(0)
        printed = out.read().decode()
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / _MB, printed)


def needed(command: Sequence[str]) -> Cost:
    """The cost of a process without which the benchmark cannot go on. Raises SystemExit with its error."""
    cost = run(command)
    if isinstance(cost, Failed):
        raise SystemExit(f"{' '.join(command)}: {cost.reason}")
    return cost


def median(costs: Sequence[Cost]) -> Cost:
    """The medians of several runs of one command."""
    walls, cpus, peaks = ([getattr(cost, key) for cost in costs] for key in ("wall", "cpu", "peak"))
    return Cost(statistics.median(walls), statistics.median(cpus), statistics.median(peaks), costs[0].output)


def machine() -> str:
    """One line on the machine and the libraries that the figures depend on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    libraries = []
    for name in ("numpy", "scipy", "torch", "safetensors", "onnxruntime"):
        try:
            libraries.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            libraries.append(f"no {name}")
    python = platform.python_version()
    return f"{os.cpu_count()} cores, {model}, Python {python}, {', '.join(libraries)}; one thread"
