"""Where an interrupt must not strike: between making a file and knowing its name, say."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What ends a run from outside and can be caught."""


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Within the block the signals wait; they arrive when it ends. For blocks of microseconds."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # may raise what arrived just before: inside the try
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
