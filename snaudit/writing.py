"""Writing a rewritten model: whole or not at all.

Every file is written beside its target under a temporary name, flushed to the disk, read back and
proved, and only then takes the target's name. Whatever happens before that, what stood at the
target still stands there. A kill that cannot be caught may leave a `.snaudit-*.part` file behind,
never half a file under the target's name.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from snaudit.errors import WriteError
from snaudit.formats.interface import Patched
from snaudit.interrupts import uninterrupted


def check_target(target: Path, force: bool) -> Path:
    """The file that a write to `target` would replace (links followed); WriteError if it must not."""
    real = Path(os.path.realpath(target))
    if not os.path.isdir(real.parent):
        raise WriteError(f"{target}: the folder {real.parent} does not exist")
    try:
        mode = real.stat().st_mode
    except FileNotFoundError:
        return real
    except OSError as error:
        raise WriteError(f"{target}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise WriteError(f"{target}: exists and is no regular file")
    if not force:
        raise WriteError(f"{target}: exists already; --force replaces it")
    return real


def write_model(
    files: tuple[Patched, ...], target: Path, source: Path, verify: Callable[[Path], None]
) -> tuple[Path, ...]:
    """The paths written: `target` and the files beside it.

    target: as `check_target` returned it. `verify` gets the path of the finished but unnamed main
    file (the files beside it stand under their own, new names by then) and raises to refuse it.
    Raises WriteError when the disk does not take the bytes.
    """
    main = next(file for file in files if file.name is None)
    named: list[Path] = []
    try:
        for file in files:
            if file.name is not None:
                place = target.parent / file.name
                with _part(place, file.source or source) as part:
                    _fill(part, file, place)
                    with uninterrupted():
                        os.link(part, place)  # unlike a rename, fails where the name is taken
                        named.append(place)
        with _part(target, source) as part:
            _fill(part, main, target)
            verify(part)
            with uninterrupted():
                os.replace(part, target)
                written, named = (target, *named), []  # the model that now stands there needs them
        _sync_folder(target.parent)
    except BaseException as error:
        for place in named:
            place.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteError(f"{target}: {error.strerror or error}; nothing was written") from error
        raise
    return written


@contextlib.contextmanager
def _part(target: Path, source: Path) -> Iterator[Path]:
    """A new file beside the target with the mode the target must get, gone when the block ends."""
    suffix = "".join(target.suffixes[-1:])
    part: Path | None = None
    try:
        with uninterrupted():
            fd, name = tempfile.mkstemp(prefix=".snaudit-", suffix=f"{suffix}.part", dir=target.parent)
            part = Path(name)
            try:
                os.fchmod(fd, _mode(target, source))
            finally:
                os.close(fd)
        yield part
    finally:
        with uninterrupted():
            if part is not None:
                part.unlink(missing_ok=True)


def _mode(target: Path, source: Path) -> int:
    """The mode of the file that is replaced, else of the input."""
    for path in (target, source):
        with contextlib.suppress(OSError):
            return stat.S_IMODE(path.stat().st_mode) & 0o777
    return 0o600


def _fill(part: Path, file: Patched, target: Path) -> None:
    fd = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    try:
        file.write(fd)
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
