"""Source: one file, opened once, read by pread, hashed, and watched for change."""

from __future__ import annotations

import hashlib
import os
import stat
import weakref
from pathlib import Path

from snaudit.errors import UnreadableModel
from snaudit.model import FileRead

_BLOCK = 1 << 20


class Source:
    """A regular, non-empty file, opened read-only; every read is a pread of known length.

    Raises UnreadableModel for a folder, a device, a pipe, an empty or missing file, and from
    `finish` when the file changed while it was read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise UnreadableModel(self.path, getattr(error, "strerror", None) or str(error)) from error
        # a model keeps its source for as long as its tensors may be loaded; nobody else closes it
        self._closing = weakref.finalize(self, os.close, self._fd)
        self._before = os.fstat(self._fd)
        if not stat.S_ISREG(self._before.st_mode):
            self.close()
            raise UnreadableModel(self.path, "not a regular file")
        self.size = self._before.st_size
        if self.size == 0:
            self.close()
            raise UnreadableModel(self.path, "the file is empty")

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; UnreadableModel if the file does not hold them."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise UnreadableModel(self.path, f"bytes {offset}..{offset + length} lie outside the file")
        parts = []
        while length:
            try:
                part = os.pread(self._fd, min(length, 1 << 30), offset)
            except OSError as error:
                raise UnreadableModel(self.path, error.strerror) from error
            if not part:
                raise UnreadableModel(self.path, "changed while it was read")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def read_up_to(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`, at most `length`, fewer at the file's end."""
        return self.read(offset, max(0, min(length, self.size - offset)))

    def record(self) -> FileRead:
        """The file's path, size and SHA-256, read in blocks."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, _BLOCK):
            digest.update(self.read_up_to(offset, _BLOCK))
        return FileRead(self.path, self.size, digest.hexdigest(), self.check_unchanged)

    @property
    def stamp(self) -> tuple[int, int, int, int]:
        """What tells this file, in this state, from any other: device, inode, size, mtime in ns."""
        s = self._before
        return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raise UnreadableModel if the file changed since it was opened."""
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise UnreadableModel(self.path, "changed while it was read")

    def close(self) -> None:
        self._closing()
