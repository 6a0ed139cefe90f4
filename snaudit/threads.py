"""Work on several threads at once, its results in order; how many threads there are, and BLAS's share.

NumPy lets go of the interpreter's lock in BLAS and LAPACK, so that threads run side by side. A BLAS of
many threads inside each of many threads would oversubscribe the machine, and is many times slower: so
BLAS keeps to one thread, but for a job that runs alone.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work: `load()`, in the calling thread and in order, returns what is run beside others.

    size: bytes that it takes while it is under way; alone: it runs by itself, with all BLAS threads.
    """

    size: int
    alone: bool
    load: Callable[[], Callable[[], Any]]


def available() -> int:
    """How many threads to use: OMP_NUM_THREADS where it is set, else the cores this process may run on."""
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if told.isdigit() and int(told) > 0:
        return int(told)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(jobs: Sequence[Job], threads: int, room: int, workers: int | None = None) -> Iterator[Any]:
    """The jobs' results in their order. Together those under way take at most `room` bytes, or are one.

    An error of a job is raised in its place. `workers`: how many threads run jobs, if not `threads`;
    with no worker beside the caller, everything happens in the calling thread.
    """
    workers = (threads if threads > 1 else 0) if workers is None else workers
    limit = _blas()
    with limit(1):
        crew = _Crew(workers)
        pending: deque[tuple[int, _Result]] = deque()
        try:
            for job in jobs:
                while pending and (
                    job.alone or sum(size for size, _ in pending) + job.size > room or len(pending) > 2 * workers
                ):
                    yield pending.popleft()[1].wait()
                work = job.load()
                if workers == 0 or job.alone:
                    with limit(threads if job.alone else 1):
                        result = work()
                    yield result
                    continue
                pending.append((job.size, crew.give(work)))
                del work
            while pending:
                yield pending.popleft()[1].wait()
        finally:
            crew.dismiss()


def _blas() -> Callable[[int], AbstractContextManager[Any]]:
    """limit(n): a context in which BLAS uses n threads."""
    from threadpoolctl import ThreadpoolController

    controller = ThreadpoolController()
    return lambda threads: controller.limit(limits=threads, user_api="blas")


class _Result:
    """What a worker will have made."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def make(self, work: Callable[[], Any]) -> None:
        try:
            self._value = work()
        except BaseException as error:  # noqa: BLE001  raised where the result is waited for
            self._error = error
        self._done.set()

    def wait(self) -> Any:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value


class _Crew:
    """Daemon threads: an interrupted program does not wait for a factorization to end."""

    def __init__(self, count: int) -> None:
        self._queue: SimpleQueue[tuple[_Result, Callable[[], Any]] | None] = SimpleQueue()
        self._count, self._dismissed = count, False
        for _ in range(count):
            threading.Thread(target=self._serve, daemon=True).start()

    def give(self, work: Callable[[], Any]) -> _Result:
        result = _Result()
        self._queue.put((result, work))
        return result

    def dismiss(self) -> None:
        self._dismissed = True
        for _ in range(self._count):
            self._queue.put(None)

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None and not self._dismissed:
            result, work = item
            result.make(work)
            del item, result, work  # or the array lives until the next one comes
