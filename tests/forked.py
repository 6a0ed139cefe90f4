"""Runs many command lines of snaudit, each in a process of its own, under limits.

`Forker` starts one worker that imports everything once; for each command line it forks a child,
which gets a limit on its address space, its own stdout and stderr, and a deadline. So a crash, a
hang or a leak stays in its child, and six hundred runs take seconds.
`python tests/forked.py` is that worker; it is not meant to be called by hand.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

ADDRESS_SPACE = 2_500_000_000
SECONDS = 20.0
TRESPASS = 99
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "os.remove",
    "os.rename",
    "subprocess.Popen",
    "pickle.find_class",
    "marshal.load",
    "socket.connect",
    "socket.getaddrinfo",
    "urllib.Request",
    "shutil.rmtree",
    "webbrowser.open",
    "code.__new__",
)
"""Audit events that end a run which was asked to read."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the exit status (-N: killed by signal N), its output, time and peak memory."""

    code: int
    out: bytes
    err: bytes
    seconds: float
    peak: int
    """Growth of the resident set over the worker's own, in bytes."""

    @property
    def trespass(self) -> bool:
        """Whether it was ended because it tried to run something, or to open a file that it must not."""
        return self.code == TRESPASS


class Forker:
    """Context manager; `run(*arguments)` → Outcome."""

    def __enter__(self) -> Forker:
        env = os.environ | {"PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"}
        self._worker = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            cwd=Path(__file__).parent.parent,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.communicate()

    def run(
        self,
        *arguments: str | os.PathLike[str],
        kill: tuple[int, float] | None = None,
        file_size: int | None = None,
        powerless: bool = False,
    ) -> Outcome:
        """kill: (signal, seconds after the start); file_size: RLIMIT_FSIZE; powerless: no root's rights."""
        line = json.dumps([[os.fspath(a) for a in arguments], kill, file_size, powerless])
        assert self._worker.stdin is not None and self._worker.stdout is not None
        self._worker.stdin.write(line.encode() + b"\n")
        self._worker.stdin.flush()
        answer = json.loads(self._worker.stdout.readline())
        return Outcome(
            answer[0], answer[1].encode("latin-1"), answer[2].encode("latin-1"), answer[3], answer[4]
        )


def _import_all() -> None:
    import importlib
    import pkgutil

    import snaudit

    for module in pkgutil.walk_packages(snaudit.__path__, "snaudit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for heavy in ("onnx", "onnx_ir", "ml_dtypes", "rich.table"):
        importlib.import_module(heavy)


def _warm_up() -> None:
    """Let what is built on first use (the parser, mostly) be built once, not in every child."""
    from snaudit.cli import main

    with (
        io.TextIOWrapper(io.BytesIO()) as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        main(["inspect", "absent", "--format", "json"])
    gc.collect()
    gc.freeze()


OWN_LIBRARIES = "/proc/self/maps"
"""Where threadpoolctl reads which BLAS this process has loaded: no name out of a model leads there."""


def _watch(arguments: list[str]) -> None:
    """End the process at a forbidden event, or at opening a file that is not the model's or Python's."""
    named = [a for a in arguments if os.path.isabs(a)]
    roots = [sys.prefix, sys.base_prefix, str(Path(__file__).parent.parent), *sys.path[1:], os.devnull]
    for path in named:
        roots += [
            path if os.path.isdir(path) else os.path.dirname(path),
            os.path.dirname(os.path.realpath(path)),
        ]
    named.append(OWN_LIBRARIES)
    within = tuple(os.path.join(os.path.realpath(root), "") for root in roots)

    def hook(event: str, details: tuple[object, ...]) -> None:
        path = details[0] if event == "open" else None
        climbs = (
            isinstance(path, (str, bytes))
            and os.fsdecode(path) not in named
            and not (os.path.realpath(os.fsdecode(path)) + "/").startswith(within)
        )
        if event in FORBIDDEN or climbs:
            os.write(2, ascii((event, details)).encode())
            os._exit(TRESPASS)

    sys.addaudithook(hook)


def _give_up_root() -> None:
    """Drop every capability: a file's mode then means for root what it means for others."""
    import ctypes

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(ctypes.byref(Header(0x20080522, 0)), nothing):
        raise OSError(ctypes.get_errno(), "capset")


def _child(
    arguments: list[str], out: int, err: int, file_size: int | None, powerless: bool, killed: bool
) -> None:
    if killed:  # an import that is cut off leaves its file to the collector
        warnings.simplefilter("ignore", ResourceWarning)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if powerless:
        _give_up_root()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    from snaudit.cli import main

    if arguments[0] in ("inspect", "check"):
        arguments = [*arguments, "--witness-seconds", "0"]  # what runs the model is test_witness.py's
        if "-o" not in arguments:
            _watch(arguments)
    code = 70
    try:
        code = main(arguments)
    except KeyboardInterrupt:  # before main had its handlers
        code = 130
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 71
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(KeyboardInterrupt):  # the run is over: one that comes now strikes the harness
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    _import_all()
    _warm_up()
    answers = sys.stdout
    page = resource.getpagesize()
    for line in sys.stdin:
        arguments, kill, file_size, powerless = json.loads(line)
        reading, writing = os.pipe()  # for stderr, which a limit on file size must not silence
        with tempfile.TemporaryFile() as out, open(reading, "rb") as err:
            own = int(Path("/proc/self/statm").read_text().split()[1]) * page
            started = time.monotonic()
            child = os.fork()
            if child == 0:
                _child(arguments, out.fileno(), writing, file_size, powerless, kill is not None)
            while (ended := os.wait4(child, os.WNOHANG))[0] == 0:
                if time.monotonic() - started > SECONDS:
                    os.kill(child, signal.SIGKILL)
                if kill is not None and time.monotonic() - started >= kill[1]:
                    os.kill(child, kill[0])
                    kill = None
                time.sleep(0.0005)
            seconds = time.monotonic() - started
            os.close(writing)
            out.seek(0)
            texts = [out.read().decode("latin-1"), err.read().decode("latin-1")]
            peak = ended[2].ru_maxrss * 1024 - own
            answers.write(json.dumps([os.waitstatus_to_exitcode(ended[1]), *texts, seconds, peak]) + "\n")
            answers.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    _serve()
