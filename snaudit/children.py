"""A part of this package in a process of its own: there foreign graphs, and code that a user names, run.

The parent starts a `Child` with the name of a module whose `answer(request)` returns (a dictionary, raw
bytes), and waits for its answer; a crash, a bomb or a hang over there is a `ChildFailed` here, with the
reason. The child starts isolated, so that a folder which holds a model brings no modules of its own, and
puts itself under its limits before it imports anything else.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import IO, Any

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from snaudit.children import serve; serve()"
_ANSWER, _SHORT_ANSWER, _SAID, _AT_ONCE = 4 << 30, 1 << 26, 1 << 16, 1 << 16
_PATIENCE = 5.0


class ChildFailed(Exception):
    """There is no answer; the message says why. `late`: it was given no more time."""

    def __init__(self, reason: str, late: bool = False) -> None:
        super().__init__(reason)
        self.late = late


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a child may take: bytes of address space, seconds of processor time. None: no limit."""

    memory: int | None = None
    seconds: float | None = None


class Child:
    """A process that works at `module.answer(request)`. `close()`, or the end of a with block, ends it."""

    def __init__(
        self, module: str, request: Mapping[str, Any], limits: Limits = Limits(), heard: bool = False,
        confined_to: str | None = None,
    ) -> None:  # fmt: skip
        """heard: it runs foreign code: its answer is short, and the end of what it prints is kept, so that its
        last words stand in the reason if it fails. confined_to: a
        folder that it starts in and has for its home, with nothing else of our environment but PATH."""
        envelope = {"module": module, "request": request, "limits": asdict(limits)}
        command = [sys.executable, "-I", "-c", _BOOT, json.dumps([p for p in sys.path if p])]
        pipe = subprocess.PIPE
        said = pipe if heard else subprocess.DEVNULL
        environment = None if confined_to is None else _bare(confined_to)
        try:
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=said, start_new_session=True, cwd=confined_to, env=environment
            )
        except OSError as error:
            raise ChildFailed(f"no process could be started ({error.strerror})") from error
        self._answer, self._said, self._ended = bytearray(), bytearray(), False
        self._most = _SHORT_ANSWER if heard else _ANSWER
        first = threading.Thread(target=_first, args=(self.process.stdout, self._answer, self._most), daemon=True)
        last = threading.Thread(target=_last, args=(self.process.stderr, self._said), daemon=True)
        self._readers = [first, last] if heard else [first]
        for reader in self._readers:
            reader.start()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(envelope).encode())
            self.process.stdin.close()
        except OSError:
            pass  # it is gone already, which its status will tell
        except BaseException:
            self.close()
            raise
        finally:
            self.process.stdin = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and what it started, even where that outlives it."""
        self._end()
        self.process.wait()
        for reader in self._readers:
            reader.join(_PATIENCE)  # what left its group may hold a pipe, which then stays open
        for stream, reader in zip((self.process.stdout, self.process.stderr), self._readers, strict=False):
            if stream is not None and not reader.is_alive():
                stream.close()

    def _end(self) -> None:
        if self._ended:
            return  # its number may be another's by now
        self._ended = True
        if hasattr(os, "killpg"):
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.returncode is None:
            self.process.kill()

    def answer(self, seconds: float) -> tuple[dict[str, Any], bytes]:
        """What it answers within so many seconds of wall-clock time. Raises ChildFailed."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise ChildFailed(f"it did not end within {seconds:g} s", late=True) from error
        self._end()
        for reader in self._readers:
            reader.join(_PATIENCE)
        out, said = bytes(self._answer), bytes(self._said)
        if len(out) > self._most:
            raise ChildFailed(f"its answer has more than {self._most >> 20} MiB")
        head, _, raw = out.partition(b"\n")
        if code or not head:
            how = f"signal {-code}" if code < 0 else f"status {code}"
            how += ": its processor time was used up" * (-code == getattr(signal, "SIGXCPU", 0))
            raise ChildFailed(f"its process ended with {how}{_last_words(said)}")
        try:
            found = json.loads(head)
        except (ValueError, RecursionError) as error:
            raise ChildFailed("its answer is not JSON") from error
        if type(found) is not dict:
            raise ChildFailed("its answer is no table")
        return found, raw


def _first(stream: IO[bytes], kept: bytearray, most: int) -> None:
    """Keep what is read up to one byte more than an answer may have; the rest is read and dropped."""
    while part := os.read(stream.fileno(), _AT_ONCE):
        kept += part[: max(0, most + 1 - len(kept))]


def _last(stream: IO[bytes], kept: bytearray) -> None:
    """Keep the end of what is read."""
    while part := os.read(stream.fileno(), _AT_ONCE):
        kept += part
        del kept[:-_SAID]


def _bare(folder: str) -> dict[str, str]:
    """An environment that tells nothing of the user's: tokens and keys stand in such."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "OMP_NUM_THREADS") if name in os.environ}
    return {**kept, "HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"}


def _last_words(said: bytes) -> str:
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    return f"; its last words: {lines[-1]}" if lines else ""


def serve() -> None:
    """Answer the request on stdin: the child's side."""
    out = os.dup(1)
    os.dup2(2, 1)  # what is printed here is no answer
    sys.stdout = sys.stderr  # in its order among what goes wrong
    envelope = json.loads(sys.stdin.buffer.read())
    _keep(Limits(**envelope["limits"]))
    found, raw = importlib.import_module(envelope["module"]).answer(envelope["request"])
    with os.fdopen(out, "wb") as stream:
        stream.write(json.dumps(found).encode() + b"\n" + raw)
    sys.stderr.flush()
    os._exit(0)  # threads that foreign code left behind do not keep it


def _keep(limits: Limits) -> None:
    """Put this process under limits, where the system knows them."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        asked = {resource.RLIMIT_AS: limits.memory, resource.RLIMIT_CPU: limits.seconds, resource.RLIMIT_CORE: 0}
        for kind, amount in asked.items():
            _, hard = resource.getrlimit(kind)
            if amount is not None:
                limit = int(amount) if hard == resource.RLIM_INFINITY else min(int(amount), hard)
                resource.setrlimit(kind, (limit, hard))
