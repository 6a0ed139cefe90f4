"""TorchScript's code, followed with what is known and without being run.

Numbers, lists and conditions are worked out here; tensors are names, and an op on them is handed to `call`.
What is reached is a straight line of ops, or NotTaken: a branch on data, a loop without end, an effect.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from snaudit.formats.aten_calls import Code, Ref
from snaudit.formats.exported_program import NotTaken
from snaudit.formats.script_code import Library
from snaudit.formats.script_values import (
    ON_ANYTHING,
    PLAIN,
    UNSET,
    Num,
    Unset,
    applied,
    checked,
    cost,
    real,
    truth,
    whole,
)

_MOST_STEPS = 1_000_000
_MOST_DEPTH = 60
_RESERVED = frozenset(("torch", "ops", "__torch__", "CONSTANTS"))


@dataclass(eq=False, slots=True)
class Thing:
    """An object of the file: a module. `path` is where it stands in the model."""

    kind: str
    attributes: dict[str, Any]
    path: str = ""


@dataclass(frozen=True, slots=True)
class Callee:
    """A function of the code by its name, or a method with its object."""

    name: str
    owner: Thing | None = None


class _Returned(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


Tensors = Callable[[str, list[Any], dict[str, Any], int, str], Any]
"""(op, arguments, keywords, how many values are taken from it or 0, place in the model) → its value."""


@dataclass(slots=True)
class Runner:
    """Follows calls of the library's functions. `written`: attributes that the code gave new values."""

    library: Library
    constants: Mapping[str, Any]
    call: Tensors
    written: dict[str, None] = field(default_factory=dict)
    _steps: int = 0
    _places: list[str] = field(default_factory=lambda: [""])

    def method(self, owner: Thing, name: str, args: list[Any], keywords: Mapping[str, Any]) -> Any:
        self._places.append(owner.path)
        try:
            return self._invoke(self.library.method(owner.kind, name), [owner, *args], keywords)
        finally:
            self._places.pop()

    def _invoke(self, function: ast.FunctionDef, args: list[Any], keywords: Mapping[str, Any]) -> Any:
        if len(self._places) > _MOST_DEPTH:
            raise NotTaken(f"calls more than {_MOST_DEPTH} deep")
        names = [one.arg for one in (*function.args.args, *function.args.kwonlyargs)]
        defaults = dict(zip(names[len(names) - len(function.args.defaults) :], function.args.defaults, strict=True))
        if len(args) > len(names) or set(keywords) - set(names[len(args) :]) or function.args.kwonlyargs:
            raise NotTaken(f"{function.name[:80]} is called with other arguments than it has")
        local = dict(zip(names, args, strict=False)) | dict(keywords)
        for name in names:
            if name not in local:
                if name not in defaults:
                    raise NotTaken(f"argument {name[:80]} of {function.name[:80]} has no value")
                local[name] = self.value(defaults[name], {})
        try:
            self._block(function.body, local)
        except _Returned as found:
            return found.value
        return None

    # statements

    def _block(self, statements: list[ast.stmt], local: dict[str, Any]) -> None:
        for one in statements:
            self._step()
            kind = type(one).__name__
            follow = _STATEMENTS.get(kind)
            if follow is None:
                raise NotTaken(f"its code has a statement of the kind {kind}")
            follow(self, one, local)

    def _step(self, count: int = 1) -> None:
        self._steps += count
        if self._steps > _MOST_STEPS:
            raise NotTaken("its code takes too many steps")

    def _assign(self, one: ast.Assign, local: dict[str, Any]) -> None:
        if len(one.targets) != 1:
            raise NotTaken("an assignment of another form")
        target = one.targets[0]
        count = len(target.elts) if isinstance(target, ast.Tuple) else 0
        self._bind(target, self.value(one.value, local, count), local)

    def _bind(self, target: ast.expr, value: Any, local: dict[str, Any]) -> None:
        if isinstance(target, ast.Name):
            if target.id in _RESERVED:
                raise NotTaken(f"it gives {target.id} another meaning")
            local[target.id] = value
        elif isinstance(target, ast.Tuple):
            if type(value) not in (list, tuple) or len(value) != len(target.elts):
                raise NotTaken("it takes apart what has another length")
            for part, item in zip(target.elts, value, strict=True):
                self._bind(part, item, local)
        elif isinstance(target, ast.Attribute):
            owner = self.value(target.value, local)
            if not isinstance(owner, Thing) or target.attr not in owner.attributes:
                raise NotTaken("it sets an attribute of what has none")
            owner.attributes[target.attr] = value
            self.written[f"{owner.path}.{target.attr}".lstrip(".")] = None
        else:
            raise NotTaken("an assignment of another form")

    def _annotated(self, one: ast.AnnAssign, local: dict[str, Any]) -> None:
        if one.value is not None:
            self._bind(one.target, self.value(one.value, local), local)

    def _if(self, one: ast.If, local: dict[str, Any]) -> None:
        self._block(one.body if truth(self.value(one.test, local)) else one.orelse, local)

    def _for(self, one: ast.For, local: dict[str, Any]) -> None:
        items = self.value(one.iter, local)
        if one.orelse or type(items) not in (list, tuple, range):
            raise NotTaken("a loop of another form")
        for item in items:
            self._step()
            self._bind(one.target, item, local)
            self._block(one.body, local)

    def _while(self, one: ast.While, local: dict[str, Any]) -> None:
        while truth(self.value(one.test, local)):
            self._step()
            self._block(one.body, local)

    def _with(self, one: ast.With, local: dict[str, Any]) -> None:
        for item in one.items:
            guard = self.value(item.context_expr, local)
            if not isinstance(guard, Thing) or not guard.kind.endswith("grad_mode.no_grad"):
                raise NotTaken("a with statement that is not no_grad's")
        self._block(one.body, local)

    def _return(self, one: ast.Return, local: dict[str, Any]) -> None:
        raise _Returned(None if one.value is None else self.value(one.value, local))

    # expressions

    def value(self, one: ast.expr, local: Mapping[str, Any], count: int = 0) -> Any:
        """What an expression is worth; count: how many values it is taken apart into, 0 for itself."""
        self._step()
        if isinstance(one, ast.Call):
            return self._call(one, local, count)
        follow = _EXPRESSIONS.get(type(one).__name__)
        if follow is None:
            raise NotTaken(f"its code has an expression of the kind {type(one).__name__}")
        return follow(self, one, local)

    def _constant(self, one: ast.Constant, local: Mapping[str, Any]) -> Any:
        if one.value is not None and type(one.value) not in (bool, int, float, str):
            raise NotTaken("a constant of another kind")
        return checked(one.value)

    def _name(self, one: ast.Name, local: Mapping[str, Any]) -> Any:
        if one.id in ("inf", "nan") and one.id not in local:
            return float(one.id)
        if one.id not in local:
            raise NotTaken(f"{one.id[:80]} has no value")
        return local[one.id]

    def _attribute(self, one: ast.Attribute, local: Mapping[str, Any]) -> Any:
        dotted = _dotted(one)
        if dotted is not None:
            root, _, rest = dotted.partition(".")
            if root == "CONSTANTS":
                if rest not in self.constants:
                    raise NotTaken(f"the constant {rest[:80]} is not in it")
                return self.constants[rest]
            return Callee(dotted)
        return self._get(self.value(one.value, local), one.attr)

    def _get(self, owner: Any, name: str) -> Any:
        if isinstance(owner, Thing) and name in owner.attributes:
            return owner.attributes[name]
        if isinstance(owner, Thing):
            return Callee(name, owner)
        raise NotTaken(f"it takes {name[:80]} of what is no module")

    def _list(self, one: Any, local: Mapping[str, Any]) -> Any:
        items = [self.value(item, local) for item in one.elts]
        return checked(tuple(items) if isinstance(one, ast.Tuple) else items)

    def _dict(self, one: ast.Dict, local: Mapping[str, Any]) -> dict[str, Any]:
        if one.keys:
            raise NotTaken("a table of values")
        return {}

    def _subscript(self, one: ast.Subscript, local: Mapping[str, Any]) -> Any:
        owner = self.value(one.value, local)
        if type(owner) not in (list, tuple):
            raise NotTaken("it takes an item of what is no list")
        if isinstance(one.slice, ast.Slice):
            ends = [None if end is None else whole(self.value(end, local)) for end in (one.slice.lower, one.slice.upper)]
            if one.slice.step is not None:
                raise NotTaken("a slice of another form")
            self._step(len(owner))
            return owner[ends[0] : ends[1]]
        return owner[whole(self.value(one.slice, local))]

    def _unary(self, one: ast.UnaryOp, local: Mapping[str, Any]) -> Any:
        inner = self.value(one.operand, local)
        if isinstance(one.op, ast.USub) and type(inner) in (int, float):
            return checked(-inner)
        if isinstance(one.op, ast.Not):
            return not truth(inner)
        raise NotTaken("an operator of another kind")

    def _call(self, one: ast.Call, local: Mapping[str, Any], count: int) -> Any:
        func = one.func
        if isinstance(func, ast.Name) and func.id not in local:
            special = _SPECIAL.get(func.id)
            if special is None or one.keywords:
                raise NotTaken(f"it calls {func.id[:80]}")
            return special(self, one.args, local)
        if isinstance(func, ast.Attribute) and func.attr == "__new__" and (kind := _dotted(func.value)):
            return Thing(kind, {})
        args = [self.value(arg, local) for arg in one.args]
        keywords = {str(word.arg): self.value(word.value, local) for word in one.keywords}
        dotted = _dotted(func)
        callee = Callee(dotted) if dotted else self.value(func, local)
        if not isinstance(callee, Callee):
            raise NotTaken("it calls what is no function")
        if callee.owner is not None:
            return self.method(callee.owner, callee.name, args, keywords)
        return self._named(callee.name, args, keywords, count)

    def _named(self, name: str, args: list[Any], keywords: dict[str, Any], count: int) -> Any:
        """The value of a call by a dotted name: of the file's own functions, or of an op."""
        if name.startswith("__torch__."):
            self._places.append(self._places[-1])
            try:
                return self._invoke(self.library.function(name), args, keywords)
            finally:
                self._places.pop()
        space, _, op = name.rpartition(".")
        if space not in ("torch", "ops.prim", "ops.aten"):
            raise NotTaken(f"it calls {name[:80]}, which may do anything with its inputs")
        if any(isinstance(one, (Unset, Callee)) for one in (*args, *keywords.values())):
            raise NotTaken("it computes with what has no value")
        if space == "ops.prim" and op == "RaiseException":
            told = next((one for one in args if type(one) is str), "")
            raise NotTaken(f"it refuses this input: {told[:200]}")
        tensor = any(isinstance(one, Ref) for one in args[:2])
        if op in ON_ANYTHING or (op in PLAIN and not tensor):
            self._step(cost(op, [*args, *keywords.values()]))
            return applied(op, args, keywords)
        return self.call(op, args, keywords, count, self._places[-1])


def _dotted(one: ast.expr) -> str | None:
    """A path of names that starts at one of those that torch reserves; None for any other expression."""
    parts: list[str] = []
    while isinstance(one, ast.Attribute):
        parts.append(one.attr)
        one = one.value
    return ".".join([one.id, *reversed(parts)]) if isinstance(one, ast.Name) and one.id in _RESERVED else None


def _second(run: Runner, args: list[ast.expr], local: Mapping[str, Any]) -> Any:
    """annotate(TYPE, value) and unchecked_cast(TYPE, value): the value."""
    if len(args) != 2:
        raise NotTaken("a cast of another form")
    return run.value(args[1], local)


def _converted(convert: Callable[[Any], Any]) -> Callable[..., Any]:
    def special(run: Runner, args: list[ast.expr], local: Mapping[str, Any]) -> Any:
        if len(args) != 1:
            raise NotTaken("a conversion of another form")
        if isinstance(args[0], ast.Constant) and args[0].value in ("inf", "-inf", "nan"):
            return float(args[0].value)
        return convert(run.value(args[0], local))

    return special


def _getattr(run: Runner, args: list[ast.expr], local: Mapping[str, Any]) -> Any:
    if len(args) != 2 or not isinstance(args[1], ast.Constant) or type(args[1].value) is not str:
        raise NotTaken("an attribute of another form")
    return run._get(run.value(args[0], local), args[1].value)


def _ranged(count: Any) -> range:
    return range(whole(count))


def _is_instance(run: Runner, args: list[ast.expr], local: Mapping[str, Any]) -> bool:
    found = run.value(args[0], local) if len(args) == 2 else UNSET
    named = args[1].id if len(args) == 2 and isinstance(args[1], ast.Name) else ""
    kinds: dict[str, Any] = {"Tensor": (Ref, Num), "int": int, "float": float, "bool": bool, "str": str}
    if named not in kinds or isinstance(found, (Unset, Thing, Code)):
        raise NotTaken("it asks for a type of another kind")
    return isinstance(found, kinds[named]) and (named != "int" or type(found) is not bool)


_SPECIAL: dict[str, Callable[..., Any]] = {
    "annotate": _second, "unchecked_cast": _second, "uninitialized": lambda run, args, local: UNSET,
    "int": _converted(whole), "float": _converted(real), "bool": _converted(truth), "range": _converted(_ranged),
    "getattr": _getattr, "isinstance": _is_instance,
}  # fmt: skip
_STATEMENTS: dict[str, Callable[..., None]] = {
    "Assign": Runner._assign, "AnnAssign": Runner._annotated, "If": Runner._if, "For": Runner._for,
    "While": Runner._while, "With": Runner._with, "Return": Runner._return, "Pass": lambda run, one, local: None,
    "Expr": lambda run, one, local: run.value(one.value, local),
}  # fmt: skip
_EXPRESSIONS: dict[str, Callable[..., Any]] = {
    "Constant": Runner._constant, "Name": Runner._name, "Attribute": Runner._attribute, "List": Runner._list,
    "Tuple": Runner._list, "Dict": Runner._dict, "Subscript": Runner._subscript, "UnaryOp": Runner._unary,
}  # fmt: skip
