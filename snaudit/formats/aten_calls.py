"""What translating a call of an ATen op takes: the call's decoded arguments, and a writer of ONNX nodes.

A shape or dtype that the file claims is only used through `Writer`, which remembers that it was: all
that was used must then be what ONNX's inference finds, or the graph is not taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

OPSET = 20
DOMAIN = "aten"
_MOST_RANK = 32
_MOST_FILLED = 1 << 20


class Untranslated(Exception):
    """This call is not one that is understood to the letter; its node stays opaque."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor of the program, by its name in the graph."""

    name: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """A size that is only known at run time."""

    name: str


@dataclass(frozen=True, slots=True)
class Code:
    """A dtype (its number in torch's schema), memory format, layout or device: `kind` says which."""

    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class Claim:
    """What the file says of a tensor; None for a size that is symbolic."""

    dtype: str | None
    shape: tuple[int | None, ...]


@dataclass(slots=True)
class Writer:
    """ONNX nodes in the making. `used` says which claims were relied on: (name, axis), axis None for
    the rank, or "dtype"."""

    claims: Mapping[str, Claim]
    onnx_names: Mapping[str, str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    used: list[tuple[str, Any]] = field(default_factory=list)
    label: str = ""
    refusal: str = ""
    """Why the last call that was not translated was not."""
    outputs: tuple[str, ...] = ()
    _count: int = 0

    def name_of(self, ref: Any) -> str:
        """The ONNX name of a tensor argument, or the name itself of what the writer made."""
        if isinstance(ref, str):
            return ref
        if not isinstance(ref, Ref):
            raise Untranslated("an argument that is no tensor")
        return self.onnx_names.get(ref.name, ref.name)

    def claim(self, ref: Any) -> Claim:
        if not isinstance(ref, Ref) or ref.name not in self.claims:
            raise Untranslated("nothing is known of its input, which stands behind an op that is not translated")
        return self.claims[ref.name]

    def rank(self, ref: Any) -> int:
        found = self.claim(ref)
        self.used.append((ref.name, None))
        return len(found.shape)

    def size(self, ref: Any, axis: int) -> int:
        """The size of one axis, where it is a number."""
        rank = self.rank(ref)
        axis = axis_of(axis, rank)
        size = self.claim(ref).shape[axis]
        if size is None:
            raise Untranslated("a size that is only known at run time")
        self.used.append((ref.name, axis))
        return size

    def dtype(self, ref: Any) -> str:
        found = self.claim(ref).dtype
        if found is None:
            raise Untranslated("a dtype that ONNX does not have")
        self.used.append((ref.name, "dtype"))
        return found

    def fresh(self, what: str) -> str:
        self._count += 1
        return f"{self.label}/{what}#{self._count}"  # no name of torch's has a slash in it

    def add(self, op: str, inputs: Sequence[Any], outputs: Sequence[str] | None = None, **attributes: Any) -> str:
        """A node's first output: a fresh name, unless outputs are given. None among the inputs: absent."""
        names = ["" if one is None else self.name_of(one) for one in inputs]
        while names and not names[-1]:
            names.pop()
        made = [self.fresh(op)] if outputs is None else list(outputs)
        label = self.label if tuple(made[:1]) == self.outputs[:1] else made[0]
        kept = {name: value for name, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op, names, made, name=label, **kept))
        return made[0]

    def last(self, op: str, inputs: Sequence[Any], **attributes: Any) -> None:
        """The node that makes the call's only output."""
        self.add(op, inputs, self.outputs[:1], **attributes)

    def constant(self, array: np.ndarray) -> str:
        name = self.fresh("constant")
        self.constants[name] = array
        return name

    def filled(self, shape: Sequence[int], value: float, like: Any) -> str:
        """An array of one number in a tensor's dtype; its shape may be a claim, and must not be large."""
        if math.prod(shape) > _MOST_FILLED:
            raise Untranslated("a default of more than a million numbers")
        return self.constant(np.full(tuple(shape), value, self.real(like)))

    def ints(self, values: Sequence[int]) -> str:
        return self.constant(np.asarray(values, np.int64))

    def scalar(self, value: Any, like: Any) -> str:
        """A number as a real tensor's companion, in its dtype, as torch takes it."""
        dtype = self.real(like)
        return self.constant(np.asarray(number(value), np.float64).astype(dtype))

    def real(self, ref: Any) -> str:
        """The dtype of a real tensor that numpy has."""
        dtype = self.dtype(ref)
        if dtype not in ("float16", "float32", "float64"):
            raise Untranslated(f"arithmetic on {dtype}")
        return dtype


def number(value: Any) -> float:
    """A plain number, no truth value."""
    if type(value) not in (int, float):
        raise Untranslated("an argument that is no number")
    return float(value)


def integer(value: Any) -> int:
    if type(value) is not int:
        raise Untranslated("an argument that is no integer")
    return value


def integers(value: Any, count: int | None = None) -> list[int]:
    """A list of integers; one integer, or a list of one, stands for `count` equal ones."""
    if type(value) is int and count is not None:
        value = [value]
    if type(value) is not list or len(value) > _MOST_RANK or any(type(one) is not int for one in value):
        raise Untranslated("an argument that is no list of integers")
    if count is not None and len(value) == 1:
        value = value * count
    if count is not None and len(value) != count:
        raise Untranslated(f"{len(value)} numbers where {count} belong")
    return value


def flag(value: Any) -> bool:
    if type(value) is not bool:
        raise Untranslated("an argument that is no truth value")
    return value


def tensors(value: Any) -> list[Ref]:
    """A list of tensors, none of them absent."""
    if type(value) is not list or not value or not all(isinstance(one, Ref) for one in value):
        raise Untranslated("an argument that is no list of tensors")
    return value


def absent(*values: Any) -> None:
    """Raise Untranslated unless each of the arguments is left out."""
    if any(value is not None for value in values):
        raise Untranslated("an argument that is not translated")


def axis_of(axis: Any, rank: int) -> int:
    """The axis counted from the front."""
    axis = integer(axis)
    if not -rank <= axis < rank:
        raise Untranslated(f"axis {axis} of {rank}")
    return axis % rank
