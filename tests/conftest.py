"""What all tests share: one BLAS thread, so that two workers do not fight for two cores; and the
real models, which `make test` unpacks."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import signal
import sys
from pathlib import Path

import pytest

# A runner that was started in the background ignores these, and its children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "sample_models"
sys.path.insert(0, str(Path(__file__).parent))


def models_folder() -> Path:
    """Where the real models' packages are unpacked; SNAUDIT_MODELS overrides it."""
    given = os.environ.get("SNAUDIT_MODELS")
    return Path(given) if given else ROOT / ".venv" / "models"


@pytest.fixture(scope="session")
def models() -> Path:
    folder = models_folder()
    if not folder.is_dir():
        pytest.fail(f"the real models are not in {folder}: run `make test`, or set SNAUDIT_MODELS")
    return folder
