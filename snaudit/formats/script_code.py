"""TorchScript's code, taken apart: the classes and functions in an archive's `code/` records, by name.

The records hold a subset of Python, which is parsed (`ast`) and never compiled or run.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from snaudit.formats.exported_program import NotTaken

_MOST_CODE, _MOST_WORDS = 1 << 22, 250_000
_WORD = re.compile(rb"\w+|[(\[{\"']")
_NEWEST = 10


@dataclass(slots=True)
class Library:
    """Functions by qualified name ("__torch__.f"), and methods by that of their class."""

    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    methods: dict[str, dict[str, ast.FunctionDef]] = field(default_factory=dict)
    hooked: set[str] = field(default_factory=set)
    """Classes with hooks, which torch runs around `forward` where it is called from outside."""

    def method(self, kind: str, name: str) -> ast.FunctionDef:
        """A method of a class. Raises NotTaken where there is none."""
        found = self.methods.get(kind, {}).get(name)
        if found is None:
            raise NotTaken(f"{kind[-80:]} has no method {name[:80]}")
        return found

    def function(self, name: str) -> ast.FunctionDef:
        """A function or method by its qualified name. Raises NotTaken where there is none."""
        kind, _, method = name.rpartition(".")
        if kind in self.methods:
            return self.method(kind, method)
        if name not in self.functions:
            raise NotTaken(f"it calls {name[-80:]}, which is not in it")
        return self.functions[name]


def library(names: Iterable[str], root: str, load: Callable[[str, int], bytes]) -> Library:
    """The code of an archive whose records are `names`; `load(name, limit)` gives a record's bytes.

    Raises NotTaken for code of a later version or of another form than TorchScript's.
    """
    found_at = next((root + at for at in ("version", ".data/version") if root + at in names), None)
    version = load(found_at, 16) if found_at else b""
    if not version.strip().isdigit() or int(version) > _NEWEST:
        raise NotTaken(f"its code's version ({version[:10].decode('ascii', 'replace').strip()}) is not known")
    codes = [name.lower() for name in names if name.startswith(root + "code/")]
    if len(set(codes)) != len(codes):
        raise NotTaken("records of its code differ only in case, and torch does not tell them apart")
    start, left, words, found = root + "code/", _MOST_CODE, 0, Library()
    for name in names:
        if name.startswith(start) and name.endswith(".py"):
            text = load(name, left)
            left -= len(text)
            words += sum(1 for _ in _WORD.finditer(text))
            if words > _MOST_WORDS:  # a deflated record costs nothing, parsed it does: a kilobyte for a word
                raise NotTaken(f"its code has more than {_MOST_WORDS} words")
            _add(found, name.removeprefix(start).removesuffix(".py").replace("/", "."), text)
    return found


def _add(found: Library, module: str, text: bytes) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ast warns of odd escapes, on stderr
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotTaken(f"its code {module[-80:]} is not Python's grammar") from error
    for one in tree.body:
        if isinstance(one, ast.FunctionDef):
            _once(found.functions, f"{module}.{one.name}", one)
        elif isinstance(one, ast.ClassDef):
            methods: dict[str, ast.FunctionDef] = {}
            for part in one.body:
                if isinstance(part, ast.FunctionDef):
                    _once(methods, part.name, part)
                elif isinstance(part, ast.Assign) and any(
                    isinstance(one, ast.Name) and "hooks__" in one.id for one in part.targets
                ):
                    found.hooked.add(f"{module}.{one.name}")
            if f"{module}.{one.name}" in found.methods:
                raise NotTaken(f"{one.name[:80]} is defined twice")
            found.methods[f"{module}.{one.name}"] = methods


def _once(table: dict[str, ast.FunctionDef], name: str, function: ast.FunctionDef) -> None:
    signature = function.args
    if name in table:
        raise NotTaken(f"{name[-80:]} is defined twice")
    if function.decorator_list or signature.vararg or signature.kwarg or signature.posonlyargs:
        raise NotTaken(f"{name[-80:]} has a signature of another form")
    table[name] = function
