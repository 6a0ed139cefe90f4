"""What TorchScript's ops do with plain values: numbers, truth values, texts, lists, and tensors' sizes.

Integers are torch's (64 bits): one that leaves them, like anything else that is not certain, raises NotTaken.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from snaudit.formats.aten_calls import Code, Ref
from snaudit.formats.exported_program import NotTaken

_INT64 = 1 << 63
_MOST_ITEMS = 4096
_MOST_TEXT = 10_000


@dataclass(frozen=True, slots=True)
class Num:
    """A tensor without axes whose number is known: sizes, in traces, are such."""

    value: int | float | bool


class Unset:
    """A variable that no branch so far has given a value."""


UNSET = Unset()

SCALAR_TYPES = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64",
    9: "complex64", 10: "complex128", 11: "bool", 15: "bfloat16",
}  # fmt: skip
"""c10's ScalarType: how TorchScript writes a dtype."""


def checked(value: Any) -> Any:
    """The value, within the limits of what is kept."""
    if type(value) is int and not -_INT64 <= value < _INT64:
        raise NotTaken("an integer of more than 64 bits")
    if type(value) is complex:
        raise NotTaken("a root of a negative number")
    if type(value) in (list, tuple) and len(value) > _MOST_ITEMS or type(value) is str and len(value) > _MOST_TEXT:
        raise NotTaken("a list or text that grows too long")
    return value


def truth(value: Any) -> bool:
    """A condition's value. Raises NotTaken for one that depends on data."""
    if isinstance(value, Num):
        value = value.value
    if type(value) not in (bool, int, float):
        raise NotTaken("it branches on what it computes")
    return bool(value)


def whole(value: Any) -> int:
    """An int that the code makes of a number; what it makes of a tensor is data."""
    if isinstance(value, Num):
        value = value.value
    if type(value) not in (bool, int, float):
        raise NotTaken("it makes a number of what it computes")
    return int(value)


def real(value: Any) -> float:
    """As `whole`, for a float."""
    if isinstance(value, Num):
        value = value.value
    if type(value) not in (bool, int, float):
        raise NotTaken("it makes a number of what it computes")
    return float(value)


def _arithmetic(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def applied(a: Any, b: Any, alpha: Any = 1) -> Any:
        if alpha != 1:
            raise NotTaken("a scaled sum of numbers")
        return function(a, b)

    return applied


def _divided(a: Any, b: Any) -> float:
    if type(a) not in (int, float) or type(b) not in (int, float):
        raise NotTaken("a quotient of no numbers")
    return a / b


def _integral(function: Callable[[Any], Any]) -> Callable[[Any], int]:
    def applied(value: Any) -> int:
        return int(function(value))

    return applied


def _formatted(text: str, *parts: Any) -> str:
    """What torch's `format` gives, for messages: sizes and numbers in the places of {}."""
    for part in parts:
        text = text.replace("{}", str(part)[:200] if type(part) in (int, float, str, bool) else "?", 1)
        text = text[:_MOST_TEXT]
    return text[:_MOST_TEXT]


def _length(value: Any) -> int:
    if type(value) not in (list, tuple, str, dict):
        raise NotTaken("the length of what is no list")
    return len(value)


def _sliced(value: Any, start: Any = None, end: Any = None, step: Any = 1) -> Any:
    return value[start:end:step]


def _append(items: list[Any], item: Any) -> list[Any]:
    items.append(item)
    return items


def _set_item(items: list[Any], index: int, item: Any) -> list[Any]:
    items[index] = item
    return items


def _pop(items: list[Any], index: int = -1) -> Any:
    return items.pop(index)


def _insert(items: list[Any], index: int, item: Any) -> None:
    if len(items) >= _MOST_ITEMS:
        raise NotTaken("a list or text that grows too long")
    items.insert(index, item)


def _extend(items: list[Any], more: Any) -> None:
    if len(items) + len(more) > _MOST_ITEMS:
        raise NotTaken("a list or text that grows too long")
    items.extend(more)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Ref) and a == b:
        return True
    if a is not None and b is not None:
        raise NotTaken("it asks whether two values are one")
    return a is b


def _kind_of_device(device: Any) -> str:
    if device != Code("as_device", "cpu"):
        raise NotTaken("it asks for the type of what is no device")
    return "cpu"


def _range_length(low: int, high: int, step: int) -> int:
    return len(range(low, high, step))


PLAIN: dict[str, Callable[..., Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "add": _arithmetic(operator.add), "sub": _arithmetic(operator.sub), "mul": operator.mul, "div": _divided,
    "floordiv": operator.floordiv, "floor_divide": operator.floordiv, "remainder": operator.mod, "neg": operator.neg,
    "pow": operator.pow, "abs": abs, "sqrt": math.sqrt, "floor": _integral(math.floor), "ceil": _integral(math.ceil),
    "len": _length, "append": _append, "_set_item": _set_item, "slice": _sliced, "list": list,
    "pop": _pop, "insert": _insert, "extend": _extend, "reverse": lambda items: items.reverse(), "copy": list,
    "clear": lambda items: items.clear(),
    "__is__": _same, "__isnot__": lambda a, b: not _same(a, b), "__not__": operator.not_,
    "__and__": operator.and_, "__or__": operator.or_, "__contains__": lambda items, one: one in items,
    "__range_length": _range_length, "__derive_index": lambda i, low, step: low + i * step,
    "format": _formatted, "warn": lambda *parts: None, "min": min, "max": max,
    "any": lambda items: any([truth(one) for one in items]), "all": lambda items: all([truth(one) for one in items]),
    "type": _kind_of_device,
    "is_autocast_enabled": lambda: False, "is_scripting": lambda: True,
    "device": lambda *parts: Code("as_device", "cpu"), "Int": whole, "Float": real, "Bool": truth,
    "IntImplicit": whole, "FloatImplicit": real, "ScalarImplicit": real, "item": lambda value: value,
}  # fmt: skip
"""What ops do where no tensor is among their arguments."""

ON_ANYTHING = frozenset(("append", "_set_item", "__is__", "__isnot__", "list", "insert", "pop", "extend"))
"""Those that move values about, tensors too."""

_UNWRAP = frozenset(("Int", "Float", "Bool", "IntImplicit", "FloatImplicit", "ScalarImplicit", "item"))


def _items(value: Any) -> list[Any]:
    return [value, *value] if type(value) in (list, tuple) else [value]


_NUMBERS = (int, float, bool)
_COMPARED = frozenset(("eq", "ne", "__contains__"))
_ON_LISTS = frozenset((
    "len", "append", "_set_item", "slice", "list", "pop", "insert", "extend", "reverse", "copy", "clear", "any", "all",
    "min", "max", "add", "mul",
))  # fmt: skip
"""Ops that take lists of values; all others, but those that compare, take numbers alone."""
_ON_WHATEVER = frozenset((
    "__is__", "__isnot__", "format", "warn", "type", "device", "is_autocast_enabled", "is_scripting", "Int", "Float", "Bool",
    "IntImplicit", "FloatImplicit", "ScalarImplicit", "item", "__not__",
))  # fmt: skip
"""Those that look at the types themselves."""


def _allow(name: str, values: list[Any]) -> None:
    """Raise NotTaken for arguments on which an op would take more time or memory than its steps tell."""
    if any(type(one) is range for one in values):
        raise NotTaken("a range outside of a loop")
    if name in _ON_WHATEVER:
        return
    if name in _COMPARED:
        if any(isinstance(one, Ref) for v in values for one in _items(v)):
            raise NotTaken("it compares tensors")
        if any(type(one) in (list, tuple) for v in values for one in _items(v)[1:]):
            raise NotTaken("it compares lists of lists")
    elif name in ("min", "max"):
        if not all(type(one) in _NUMBERS for v in values for one in (v if type(v) is list else [v])):
            raise NotTaken(f"{name} of what is no number")
    elif name in ("add", "mul"):
        _allow_growth(name, values)
    elif name not in _ON_LISTS and not all(type(one) in _NUMBERS for one in values):
        raise NotTaken(f"{name} of what is no number")
    if name == "pow" and not all(abs(one) < 4096 for one in values):
        raise NotTaken("a power of large numbers")


def _allow_growth(name: str, values: list[Any]) -> None:
    """add and mul take numbers, and lists and texts that stay short."""
    if not all(type(one) in (*_NUMBERS, list, str) for one in values):
        raise NotTaken(f"{name} of what is no number, list or text")
    if any(type(one) in (list, str) for one in values):
        size = [len(one) if type(one) in (list, str) else int(one) for one in values]
        if (math.prod(size) if name == "mul" else sum(size)) > _MOST_ITEMS:
            raise NotTaken("a list or text that grows too long")


def applied(name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
    """What a PLAIN op makes of plain values; a Num where one went in."""
    wrapped = any(isinstance(one, Num) for one in args)
    values = [one.value if isinstance(one, Num) else one for one in args]
    if any(isinstance(v, Num) for v in keywords.values()):
        raise NotTaken(f"{name} of a tensor's number by keyword")
    _allow(name, [*values, *keywords.values()])
    result = checked(PLAIN[name](*values, **keywords))
    if wrapped and name in ("div", "sqrt", "pow") and type(args[0]) is Num and type(values[0]) is int:
        result = float(np.float32(result))  # torch makes float32 of integers that it divides
    return Num(result) if wrapped and name not in _UNWRAP and type(result) in _NUMBERS else result


_AT_ONCE = frozenset(("append", "_set_item", "pop", "insert", "len", "__is__", "__isnot__", "__not__", "warn", "clear"))


def cost(name: str, values: list[Any]) -> int:
    """How many steps an op on these values counts for: the items that it may look at or copy."""
    return 1 if name in _AT_ONCE else 1 + sum(len(one) for one in values if type(one) in (list, tuple, str))
