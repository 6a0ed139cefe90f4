"""All benchmarks, one after another, about a quarter of an hour on one core.

    python benchmarks [--write] [--weightwatcher VENV]

--write puts the tables into docs/benchmarks.md; --weightwatcher adds it, see matrices.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

SCRIPTS = ("startup", "matrices", "convolutions", "memory", "clipping", "training_overhead")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weightwatcher", metavar="VENV")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    for script in SCRIPTS:
        print(f"\n## {script}\n", flush=True)
        options = ["--write"] if given.write else []
        if script == "matrices" and given.weightwatcher:
            options += ["--weightwatcher", given.weightwatcher]
        subprocess.run([sys.executable, str(Path(__file__).with_name(f"{script}.py")), *options], check=True)


if __name__ == "__main__":
    main()
