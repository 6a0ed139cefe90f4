"""Files beside a model file (external data, shards): which may be read, and how.

Nothing outside the model's folder is read: that is the folder in which the model was named, or the
one in which it really lies, so that the links of a Hugging Face cache work.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from snaudit.errors import RefusedModel, UnreadableModel
from snaudit.formats.source import Source
from snaudit.model import FileRead


@dataclass(frozen=True, slots=True)
class Beside:
    """A file beside the model's, opened anew for each read: a model may have more of them than one
    process may hold open. Raises UnreadableModel when it is no longer the file that was first opened."""

    path: Path
    size: int
    stamp: tuple[int, int, int, int]

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`."""
        source = self._opened()
        try:
            return source.read(offset, length)
        finally:
            source.close()

    def record(self) -> FileRead:
        """The file's path, size and SHA-256."""
        source = self._opened()
        try:
            record = source.record()
            return FileRead(record.path, record.size, record.sha256, self.check)
        finally:
            source.close()

    def check(self) -> None:
        """Raise UnreadableModel if the file changed since it was first opened."""
        self._opened().close()

    def _opened(self) -> Source:
        source = Source(self.path)
        if source.stamp != self.stamp:
            source.close()
            raise UnreadableModel(self.path, "changed while it was read")
        return source


def open_beside(model: Path, location: str) -> Beside:
    """The file at `location`, relative to the model's folder.

    Raises RefusedModel for a location that could lead out of the folder (absolute, "..", a link to
    elsewhere), UnreadableModel for one that is no file.
    """
    path = _locate(model, location)
    try:
        source = Source(path)
    except UnreadableModel as error:
        raise UnreadableModel(model, f"its file {location!r}: {error.reason}") from error
    try:
        return Beside(path, source.size, source.stamp)
    finally:
        source.close()


def _locate(model: Path, location: str) -> Path:
    parts = location.split("/")
    if not location or "\0" in location or "\\" in location or ".." in parts or location.startswith("/"):
        raise RefusedModel(model, f"it names a file outside its folder: {location!r}")
    if location.endswith("/") or any(len(part.encode("utf-8", "replace")) > 255 for part in parts):
        raise UnreadableModel(model, f"it names a file that cannot be: {location[:80]!r}")
    named, real = model.parent, Path(os.path.realpath(model)).parent
    roots = {os.path.realpath(named), str(real)}
    for folder in (named, real):
        path = folder / location
        if os.path.lexists(path):
            target = os.path.realpath(path)
            if any(os.path.commonpath((root, target)) == root for root in roots):
                return path
            raise RefusedModel(model, f"{location!r} is a link that leads out of its folder")
    raise UnreadableModel(model, f"its file {location!r} is missing")
