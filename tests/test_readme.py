"""What the README shows is what the commands print."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^    \$ (snaudit .*)\n((?:    .*\n|\n(?=    ))*)", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_shown_output_is_real(tmp_path: Path, command: str, shown: str) -> None:
    (tmp_path / "sample_models").symlink_to(ROOT / "sample_models")
    words = shlex.split(command)[1:]
    environment = {**os.environ, "COLUMNS": "96", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "snaudit", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    expected = [line.removeprefix("    ").rstrip() for line in shown.rstrip().splitlines()]
    printed = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
    skip = re.compile(r"moved by at most|entry, on random|^ *input$|a pair of inputs was run")  # depends on the runtime's kernels
    assert [x for x in printed if not skip.search(x)] == [x for x in expected if not skip.search(x)]


def test_there_are_three_uses() -> None:
    assert [command.split()[1] for command, _ in BLOCKS] == ["inspect", "constrain", "check"]
