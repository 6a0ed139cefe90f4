"""A pickle machine that builds inert values: it imports nothing, calls nothing of the file, runs nothing.

It knows the opcodes of protocols 2 to 5 that torch.save writes (and the few text ones of Python 2).
A global is a name; calling one that is not on the caller's list makes an `Opaque`, which keeps its
arguments so that one can see which tensors depend on it. After CPython's pickletools, restricted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from snaudit.errors import UnreadableModel

# A tensor takes about 35 opcodes, thrice that with its optimizer state, and each opcode may claim
# some 100 bytes: what the file describes may be large only where it holds many storages.
_OPCODES, _OPCODES_FOR_A_STORAGE = 2_000_000, 200
_MAX_LONG = 1024
_WINDOW = 1 << 20


@dataclass(frozen=True, slots=True)
class Global:
    """A name of something importable. Nobody imports it."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Pairs:
    """A dict of any kind, as the list of its (key, value) pairs: keys need not be hashable here."""

    entries: list[tuple[Any, Any]] = field(default_factory=list)
    state: Any = None

    def get(self, key: str) -> Any:
        """The value under a key that is text, or None."""
        return next((value for k, value in self.entries if type(k) is str and k == key), None)


@dataclass(slots=True, eq=False)
class Opaque:
    """What calling `callee` would have made, had it been called; `parts` is all that went into it."""

    callee: str
    parts: list[Any]
    state: Any = None


Call = Callable[[tuple[Any, ...]], Any]


class Stream:
    """A file's bytes from an offset to `end`, read forward through a window."""

    def __init__(self, path: Path, read: Callable[[int, int], bytes], offset: int, end: int) -> None:
        self.path, self.read, self.end = path, read, end
        self._base, self._at, self._window = offset, 0, b""

    @property
    def offset(self) -> int:
        return self._base + self._at

    def take(self, length: int) -> bytes:
        """The next `length` bytes; UnreadableModel where there are fewer."""
        if self._at + length > len(self._window):
            start = self.offset
            if start + length > self.end:
                self.fail("the pickle is cut off")
            self._window = self.read(start, min(max(length, _WINDOW), self.end - start))
            self._base, self._at = start, 0
        self._at += length
        return self._window[self._at - length : self._at]

    def line(self, limit: int = 1024) -> str:
        """The text up to the next line feed."""
        out = bytearray()
        while (byte := self.take(1)) != b"\n":
            out += byte
            if len(out) > limit:
                self.fail("a name in the pickle is too long")
        try:
            return out.decode()
        except UnicodeDecodeError:
            self.fail("a name in the pickle is not UTF-8")

    def fail(self, reason: str) -> NoReturn:
        raise UnreadableModel(self.path, reason)


class Machine:
    """Runs pickles over one stream, with the calls and the persistent ids that the caller knows.

    `calls` maps a global's full name to what makes its (inert) value from the arguments. `inert`
    tells which other names are harmless when merely mentioned; all else is collected in `foreign`.
    """

    def __init__(self, stream: Stream, calls: Mapping[str, Call], persistent: Callable[[Any], Any],
                 inert: Callable[[str], bool]) -> None:
        self.stream, self.calls, self.persistent, self.inert = stream, CONTAINERS | calls, persistent, inert
        self.foreign: dict[str, None] = {}
        self._left = _OPCODES
        self._storages: set[str] = set()

    def load(self) -> Any:
        """The value of the next pickle in the stream, which then stands behind its STOP."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        if self.stream.take(1) != b"\x80" or not 2 <= self.stream.take(1)[0] <= 5:
            self.fail("no pickle of protocol 2 to 5")
        while (code := self.stream.take(1)) != b".":
            operation = OPERATIONS.get(code[0])
            self._left -= 1
            if operation is None:
                self.fail(f"the pickle has an opcode that torch.save does not write (0x{code[0]:02x})")
            if self._left < 0:
                self.fail("the pickle has far more opcodes than its tensors need")
            operation(self)
        value = self.pop()
        if self.stack or self.marks:
            self.fail("the pickle leaves more than one value")
        return value

    def fail(self, reason: str) -> NoReturn:
        self.stream.fail(reason)

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.stream.take(struct.calcsize(layout)))[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.fail("the pickle takes from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def many(self) -> list[Any]:
        """The values above the last mark, which goes."""
        if not self.marks:
            self.fail("the pickle lacks a mark")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def global_(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            self.fail("a global in the pickle is no name")
        found = Global("builtins" if module == "__builtin__" else module, name)
        if str(found) not in self.calls and not self.inert(str(found)):
            self.foreign[str(found)] = None
        self.push(found)

    def call(self, callee: Any, arguments: Any) -> None:
        if type(arguments) is not tuple:
            self.fail("a call in the pickle has no arguments")
        name = str(callee) if type(callee) is Global else "an object of the pickle"
        known = self.calls.get(name) if type(callee) is Global else None
        if known is not None:
            self.push(known(arguments))
            return
        self.foreign[name] = None
        if name in ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__") and arguments:
            name = str(arguments[0]) if type(arguments[0]) is Global else name
        self.push(Opaque(name, [*arguments] if type(callee) is Global else [callee, *arguments]))

    def new(self, keywords: Any = None) -> None:
        arguments, callee = self.pop(), self.pop()
        if type(arguments) is not tuple:
            self.fail("an object in the pickle has no arguments")
        name = str(callee) if type(callee) is Global else "an object of the pickle"
        known = self.calls.get(name)
        if known is not None and keywords is None:
            self.push(known(arguments))
            return
        self.foreign[name] = None
        self.push(Opaque(name, [*arguments] if keywords is None else [*arguments, keywords]))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if type(target) is Opaque:
            target.state = state
            target.parts.append(state)
        elif type(target) is Pairs:
            target.state = state
        else:
            self.fail("the pickle changes the state of a value that has none")

    def persist(self) -> None:
        name = self.pop()
        if type(name) is tuple and len(name) > 2 and type(name[2]) is str and name[2] not in self._storages:
            self._storages.add(name[2])
            self._left += _OPCODES_FOR_A_STORAGE
        self.push(self.persistent(name))

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is Opaque:
            target.parts.extend(values)
        elif type(target) is list:
            target.extend(values)
        else:
            self.fail("the pickle appends to something that is no list")

    def put_items(self, values: list[Any]) -> None:
        target = self.top()
        if len(values) % 2:
            self.fail("the pickle has a key without a value")
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if type(target) is Pairs:
            target.entries.extend(pairs)
        elif type(target) is Opaque:
            target.parts.extend(value for pair in pairs for value in pair)
        else:
            self.fail("the pickle sets an item of something that is no dict")

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.fail("the pickle recalls a value that it did not make")
        self.push(self.memo[index])

    def text(self, length: int) -> None:
        try:
            self.push(self.stream.take(length).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            self.fail("a text in the pickle is not UTF-8")

    def bytes_text(self, length: int) -> None:
        """Python 2's strings: its names are ASCII, but they may hold any bytes."""
        raw = self.stream.take(length)
        try:
            self.push(raw.decode())
        except UnicodeDecodeError:
            self.push(raw)

    def long(self, length: int) -> None:
        if not 0 <= length <= _MAX_LONG:
            self.fail(f"the pickle has an integer of {length} bytes")
        self.push(int.from_bytes(self.stream.take(length), "little", signed=True))

    def decimal(self) -> None:
        text = self.stream.line(64)
        if not text.removeprefix("-").isascii() or not text.removeprefix("-").isdigit():
            self.fail("the pickle has an integer that is none")
        self.push({"00": False, "01": True}.get(text, int(text)))

    def frame(self) -> None:
        if self.number("<Q") > self.stream.end - self.stream.offset:
            self.fail("the pickle is cut off")

    def tuple_(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def protocol(self) -> None:
        self.fail("the pickle starts twice")


def _dict(arguments: tuple[Any, ...]) -> Pairs:
    """A dict from nothing, from a dict, or from a list of pairs (as Python 2 writes OrderedDict)."""
    out = Pairs()
    for source in arguments[:1]:
        if type(source) is Pairs:
            out.entries.extend(source.entries)
        elif type(source) in (list, tuple):
            out.entries.extend((key, value) for key, value in source)
    return out


def _default_dict(arguments: tuple[Any, ...]) -> Pairs:
    return _dict(arguments[1:])


def _list(arguments: tuple[Any, ...]) -> list[Any]:
    return list(arguments[0]) if arguments and type(arguments[0]) in (list, tuple) else []


CONTAINERS: dict[str, Call] = {
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": _default_dict,
    "builtins.dict": _dict,
    "builtins.list": _list,
    "builtins.set": _list,
    "builtins.frozenset": _list,
}
"""The containers: their content matters, for there may be tensors in it."""

OPERATIONS: dict[int, Callable[[Machine], Any]] = {
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    ord("I"): Machine.decimal,
    0x8A: lambda m: m.long(m.number("<B")),
    0x8B: lambda m: m.long(m.number("<i")),
    ord("G"): lambda m: m.push(m.number(">d")),
    ord("X"): lambda m: m.text(m.number("<I")),
    0x8C: lambda m: m.text(m.number("<B")),
    0x8D: lambda m: m.text(m.number("<Q")),
    ord("T"): lambda m: m.bytes_text(m.number("<I")),
    ord("U"): lambda m: m.bytes_text(m.number("<B")),
    ord("B"): lambda m: m.push(m.stream.take(m.number("<I"))),
    ord("C"): lambda m: m.push(m.stream.take(m.number("<B"))),
    0x8E: lambda m: m.push(m.stream.take(m.number("<Q"))),
    0x96: lambda m: m.push(m.stream.take(m.number("<Q"))),
    ord("}"): lambda m: m.push(Pairs()),
    ord("]"): lambda m: m.push([]),
    0x8F: lambda m: m.push([]),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.many())),
    0x85: lambda m: m.tuple_(1),
    0x86: lambda m: m.tuple_(2),
    0x87: lambda m: m.tuple_(3),
    ord("l"): lambda m: m.push(m.many()),
    0x91: lambda m: m.push(m.many()),
    ord("a"): lambda m: m.extend([m.pop()]),
    ord("e"): lambda m: m.extend(m.many()),
    0x90: lambda m: m.extend(m.many()),
    ord("s"): lambda m: m.put_items([m.pop() for _ in range(2)][::-1]),
    ord("u"): lambda m: m.put_items(m.many()),
    ord("("): lambda m: m.marks.append(len(m.stack)),
    ord("0"): Machine.pop,
    ord("1"): Machine.many,
    ord("2"): lambda m: m.push(m.top()),
    ord("h"): lambda m: m.get(m.number("<B")),
    ord("j"): lambda m: m.get(m.number("<I")),
    ord("q"): lambda m: m.memo.__setitem__(m.number("<B"), m.top()),
    ord("r"): lambda m: m.memo.__setitem__(m.number("<I"), m.top()),
    0x94: lambda m: m.memo.__setitem__(len(m.memo), m.top()),
    ord("c"): lambda m: m.global_(m.stream.line(), m.stream.line()),
    0x93: lambda m: m.global_(*[m.pop() for _ in range(2)][::-1]),
    ord("R"): lambda m: m.call(*[m.pop() for _ in range(2)][::-1]),
    0x81: Machine.new,
    0x92: lambda m: m.new(m.pop()),
    ord("b"): Machine.build,
    ord("Q"): Machine.persist,
    0x80: Machine.protocol,
    0x95: Machine.frame,
}
