"""python -m snaudit."""

import sys

from snaudit.cli import main

if __name__ == "__main__":
    sys.exit(main())
