"""Where output goes: stdout, stderr, a file; their width, colour and alphabet; progress.

Results go to stdout, everything else to stderr. Imports nothing heavy: usage errors pass through.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from snaudit.errors import SnauditError, UsageError, WriteError
from snaudit.interrupts import uninterrupted
from snaudit.names import printable

_GLYPHS = "σ×–…█▌≤·—"
_PIPED_WIDTH = 100
_WIDEST = 400
_QUIET_SECONDS = 1.0


def keep_standard_streams_open() -> None:
    """Open what was closed of stdin, stdout and stderr: else a model or a report gets their numbers."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def view_facts(to_file: bool) -> dict[str, Any]:
    """width, colour, unicode and terminal of the place where a table will go, as `report.View` takes them."""
    terminal = not to_file and sys.stdout is not None and sys.stdout.isatty()
    encoding = "utf-8" if to_file else getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        unicode = bool(_GLYPHS.encode(encoding))
    except (UnicodeError, LookupError):
        unicode = False
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return {"width": _width(terminal), "colour": colour, "unicode": unicode, "terminal": bool(terminal)}


def _width(terminal: bool) -> int:
    if terminal:
        return min(_WIDEST, shutil.get_terminal_size((80, 24)).columns)
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else 0
    return min(_WIDEST, width or _PIPED_WIDTH)


def emit(text: str) -> None:
    """Write to stdout, at once and in full. A reader that went away is no error; a full disk is."""
    if sys.stdout is None:
        raise WriteError("stdout is closed: nowhere to write the result")
    try:
        sys.stdout.flush()
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.buffer.write(text.encode(encoding, "backslashreplace"))
        sys.stdout.buffer.flush()
    except OSError as error:
        give_up_stdout(error)


def settle() -> None:
    """Flush stdout (help and version are written by others); as `emit`, WriteError for a full disk."""
    if sys.stdout is not None:
        emit("")


def give_up_stdout(error: OSError) -> None:
    """Take a failed write to stdout as final: silence if its reader went away, else WriteError."""
    # what the failed stream still buffers would fail again at exit, and change the exit status
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if error.errno != errno.EPIPE:
        raise WriteError(f"stdout: {error.strerror or error}") from error


def tell(text: str) -> None:
    """One line on stderr: `snaudit: text`, written raw, neither wrapped nor marked up."""
    if sys.stderr is None:
        return
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    line = f"snaudit: {printable(text, 4000)}\n"
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line.encode(encoding, "backslashreplace").decode(encoding))
        sys.stderr.flush()


def check_output(output: Path | None, model: Path | None, option: str = "--output") -> None:
    """Refuse, before any work, a report that would replace the model, or that has no folder to go to."""
    if output is None:
        return
    if os.path.isdir(output):
        raise UsageError(f"{option} {output} is a folder")
    if not os.path.isdir(os.path.dirname(os.path.realpath(output))):
        raise UsageError(f"{option} {output}: its folder does not exist")
    with contextlib.suppress(OSError):
        if model is not None and os.path.samefile(output, model):
            raise UsageError(f"{option} {output} is the model itself")
    if _is_model(output):
        raise UsageError(f"{option} {output} is a model file: a report does not replace it")


def check_witness(witness: Path | None, output: Path | None) -> None:
    """Refuse, before any work, a pair that would replace anything but a pair, or has no folder."""
    if witness is None:
        return
    if not os.path.isdir(os.path.dirname(os.path.realpath(witness))):
        raise UsageError(f"--witness {witness}: its folder does not exist")
    if output is not None and os.path.realpath(witness) == os.path.realpath(output):
        raise UsageError(f"--witness and --output are one file, {output}")
    if os.path.exists(witness) and (not os.path.isfile(witness) or os.path.getsize(witness)):
        from snaudit.witness import stored_pair

        try:
            stored_pair(witness)
        except SnauditError as error:
            raise UsageError(f"--witness {witness} exists and holds no pair: it is not replaced") from error


def _is_model(path: Path) -> bool:
    """Whether a file stands there whose content is a model's."""
    if not os.path.isfile(path) or os.path.getsize(path) == 0:
        return False
    from snaudit.formats import FORMATS
    from snaudit.formats.source import Source

    try:
        source = Source(path)
        try:
            return any(known.sniff(source) for known in FORMATS)
        finally:
            source.close()
    except SnauditError:
        return False


def may_replace(path: Path) -> bool:
    """Whether the report of a failure may go here: never over a file that is no JSON report, such as
    weights beside a model that could not be read so far as to name them."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return True
        with open(path, "rb") as file:
            return b'"snaudit.report/' in file.read(200)
    except FileNotFoundError:
        return True


def write_file(path: Path, text: str) -> None:
    """The file `path` holding the text, as `write_bytes` does it."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """The file `path` holding the bytes, whole or not at all; WriteError where the disk refuses.

    A device or a pipe is written to as it is: replacing /dev/null by a file would be no service.
    """
    try:
        real = Path(os.path.realpath(path))
        if real.exists() and not stat.S_ISREG(real.stat().st_mode):
            with open(real, "wb", buffering=0) as device:
                device.write(data)
            return
        _replace(real, data)
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror or error}") from error


def _replace(real: Path, data: bytes) -> None:
    part: str | None = None
    try:
        with uninterrupted():
            fd, part = tempfile.mkstemp(prefix=".snaudit-", suffix=".part", dir=real.parent)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), stat.S_IMODE(real.stat().st_mode) if real.exists() else _new_mode())
            os.fsync(file.fileno())
        os.replace(part, real)
    except BaseException:
        if part is not None:
            with contextlib.suppress(OSError):
                os.unlink(part)
        raise


def _new_mode() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


class Meter:
    """A progress bar on stderr, from the second second on, where stderr is a terminal.

    Call it with (done, total, name); it is gone when the block ends.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._wanted = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, done: int, total: int, name: str) -> None:
        if not self._wanted:
            return
        if self._bar is None:
            if time.monotonic() - self._started < _QUIET_SECONDS:
                return
            self._start()
        self._bar.update(self._task, completed=done, total=total, description=printable(name, 40))

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None)
        self._bar.start()
