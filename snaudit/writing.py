"""Writing a rewritten model: whole or not at all.

Every file is written beside its target under a temporary name, flushed to the disk, read back and
proved, and only then takes the target's name. Whatever happens before that, what stood at the
target still stands there. A kill that cannot be caught may leave a `.snaudit-*.part` file behind,
never half a file under the target's name.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from snaudit.errors import WriteError
from snaudit.formats.interface import Patched
from snaudit.interrupts import uninterrupted

_LARGE = 1 << 26


def check_target(target: Path, force: bool, new: bool = False) -> Path:
    """The file that a write to `target` would replace (links followed); WriteError if it must not.

    new: its folder may be one that is still to be made.
    """
    real = Path(os.path.realpath(target))
    if new and not os.path.lexists(real.parent) and os.path.isdir(real.parent.parent):
        return real
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
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """(the paths written: `target` and the files beside it; notes on files that this one replaced).

    Where the model stands at the target itself, its files that have a replacement go with it.
    target: as `check_target` returned it. `verify` gets the path of the finished but unnamed main
    file (the files beside it stand under their own, new names by then) and raises to refuse it.
    Raises WriteError when the disk does not take the bytes.
    """
    main = next(file for file in files if file.name is None)
    named: list[Path] = []
    old = [file.source for file in files if file.name is not None and file.source is not None]
    old = old if os.path.realpath(source) == os.path.realpath(target) else []
    try:
        for file in files:
            if file.name is not None:
                place = target.parent / file.name
                if file.same and file.source is not None and _linked(file.source, place, named):
                    continue
                with _part(place, file.source or source) as part:
                    _fill(part, file, place)
                    with uninterrupted():
                        os.link(part, place)  # unlike a rename, fails where the name is taken
                        named.append(place)
        with _part(target, source) as part:
            _fill(part, main, target)
            verify(part)
            gone = _removable(old, target)
            with uninterrupted():
                os.replace(part, target)
                written, named = (target, *named), []  # the model that now stands there needs them
                for path in gone:
                    with contextlib.suppress(OSError):
                        path.unlink()
        _sync_folder(target.parent)
    except BaseException as error:
        for place in named:
            place.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteError(f"{target}: {error.strerror or error}; nothing was written") from error
        raise
    return written, tuple(_told(old))


def _told(old: Iterable[Path]) -> Iterator[str]:
    kept = [path.name for path in old if path.exists()]
    removed = [path.name for path in old if path.name not in kept]
    if removed:
        yield f"replaced and removed: {', '.join(removed)}"
    if kept:
        yield f"replaced, and kept, as more than this model may need them: {', '.join(kept)}"


def _linked(source: Path, place: Path, named: list[Path]) -> bool:
    """Whether `place` now is a further name of the source's bytes; False where the disk makes no links."""
    with contextlib.suppress(OSError), uninterrupted():
        os.link(os.path.realpath(source), place)
        named.append(place)
        return True
    return False


def _removable(old: Iterable[Path], target: Path) -> set[Path]:
    """Of the files of the model that stands at `target`, those which nothing will need once it is replaced:
    regular files beside the target that no other file there, or in the folder above, names."""
    folder = target.parent
    beside = [path for path in old if os.path.realpath(path.parent) == os.path.realpath(folder)]
    return {path for path in beside if not path.is_symlink() and not _is_named(path, target)}


def _is_named(path: Path, target: Path) -> bool:
    """Whether a file beside the target, but not what stands there, or one in the folder above holds the
    file's name; also where one
    that may cannot be read, and for a name that JSON may spell in other bytes. Large files are searched
    only if they are ONNX."""
    if not path.name.isascii():
        return True
    try:
        others = {other for place in (target.parent, target.parent.parent) for other in place.iterdir()}
        others -= {target, target.parent / path.name}
        return any(_holds(other, os.fsencode(path.name)) for other in others if other.is_file())
    except (OSError, ValueError):
        return True


def _holds(path: Path, name: bytes) -> bool:
    size = path.stat().st_size
    if size == 0 or (size >= _LARGE and path.suffix != ".onnx"):
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(name) >= 0


@contextlib.contextmanager
def new_folder(folder: Path, wanted: bool) -> Iterator[None]:
    """The folder exists in the block, and stays if the block ends well; one that is made for nothing goes."""
    made = wanted and not os.path.lexists(folder)
    if made:
        try:
            folder.mkdir()
        except OSError as error:
            raise WriteError(f"{folder}: {error.strerror or error}") from error
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


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
