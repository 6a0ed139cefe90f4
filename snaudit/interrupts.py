"""Signals as exceptions: where they must not strike, and where they got lost."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What ends a run from outside and can be caught."""


_AGAIN_SECONDS = 0.005


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived. No Exception, so that nothing takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@dataclass(slots=True)
class _Held:
    """How many `uninterrupted` blocks are open, and what arrived in them."""

    depth: int = 0
    signum: int | None = None


_held = _Held()


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Within the block the signals raise Interrupted, so that half-written files are removed.

    One that strikes where nothing can be raised (a finalizer, a callback from C) would be printed
    and lost: it is raised again a moment later. A signal that the caller had ignored (nohup) stays
    ignored.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        if _held.depth:
            _held.signum = signum
        else:
            raise Interrupted(signum)

    def lost(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Interrupted):
            hook(unraisable)
        elif hasattr(signal, "setitimer"):
            signum = unraisable.exc_value.signum
            signal.signal(signal.SIGALRM, lambda *_: stop(signum, None))
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)

    before: dict[int, Any] = {}
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            before[signum] = signal.signal(signum, stop)
    hook, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)


def interrupt_behind(error: BaseException | None) -> Interrupted | KeyboardInterrupt | None:
    """The interrupt that an error is or was caused by: an import that one cuts off is an ImportError."""
    while error is not None and not isinstance(error, (Interrupted, KeyboardInterrupt)):
        error = error.__cause__ or error.__context__
    return error


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Within the block the signals wait; they arrive when it ends. For blocks of microseconds.

    The mask is the main thread's alone: a signal that another thread takes (a runtime's pool, a
    timer) still calls the handler here, which then only notes it.
    """
    _held.depth += 1
    try:
        with _masked():
            yield
    finally:
        _held.depth -= 1
        if not _held.depth and _held.signum is not None:
            signum, _held.signum = _held.signum, None
            raise Interrupted(signum)


@contextlib.contextmanager
def _masked() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(
            signal.SIG_BLOCK, (*SIGNALS, signal.SIGALRM)
        )  # may raise what arrived just before: inside the try
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
