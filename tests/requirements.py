"""Print the requirements of the `test` group, one for a line: pip learned --group only in 25.1."""

import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

if __name__ == "__main__":
    print(*tomllib.loads(PYPROJECT.read_text())["dependency-groups"]["test"], sep="\n")
