"""Print the requirements of a group (`test` by default), one for a line: pip learned --group only in 25.1."""

import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

if __name__ == "__main__":
    print(*tomllib.loads(PYPROJECT.read_text())["dependency-groups"][(sys.argv[1:] or ["test"])[0]], sep="\n")
