"""Einsum of one varying value with one constant: the linear map that it is, as a stack of matrices.

Each index is of one kind: in all of x, c and the result (a stack: one matrix for each value), in x and c only
(summed: columns), in c and the result (rows), in x and the result (a batch: every slice meets the same matrix),
in x only (summed up before).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from snaudit.forms import NOTHING, Form, Stored
from snaudit.linear import LowRank
from snaudit.model import Tensor


@dataclass(frozen=True, slots=True)
class Contraction:
    """The indices of an equation by kind, and the constant's in their order."""

    constant: str
    stack: str
    rows: str
    columns: str
    summed: str
    data: str


def contraction_of(equation: str, terms: int, data: int) -> Contraction | None:
    """How the operand `data` is contracted with the other one (none, for one term); None where the constant
    is summed or cut by itself, or an ellipsis reaches it or does not lead."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if len(operands) != terms or terms > 2:
        return None
    x, c = operands[data].removeprefix("..."), operands[1 - data] if terms == 2 else ""
    if arrow and operands[data] != x and "..." not in result:
        return None
    if not arrow:
        letters = "".join(operands).replace("...", "")
        result = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    result = result.replace("...", "")
    plain = all(part.isalpha() or not part for part in (x, c, result))
    if not plain or len(set(c)) != len(c) or any(letter not in x + result for letter in c):
        return None
    return Contraction(
        c,
        "".join(letter for letter in c if letter in x and letter in result),
        "".join(letter for letter in c if letter not in x),
        "".join(letter for letter in c if letter in x and letter not in result),
        "".join(dict.fromkeys(letter for letter in x if letter not in result and letter not in c)),
        x,
    )


@dataclass(frozen=True, slots=True)
class Arranged:
    """A weight whose axes are put in the order (stack, rows, columns) of a contraction."""

    form: Form
    contraction: Contraction

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.form.tensors

    @property
    def index(self) -> str:
        """What tells apart two arrangements of one weight."""
        return f"{getattr(self.form, 'index', '')} {self.contraction}"

    @property
    def _order(self) -> list[int]:
        one = self.contraction
        return [one.constant.index(letter) for letter in one.stack + one.rows + one.columns]

    @property
    def shape(self) -> tuple[int, ...]:
        one = self.contraction
        sizes = dict(zip(one.constant, self.form.shape, strict=True))
        return tuple(math.prod(sizes[letter] for letter in part) for part in (one.stack, one.rows, one.columns))

    def weight(self, stored: Stored = NOTHING) -> np.ndarray:
        whole = self.form.weight(stored)
        assert isinstance(whole, np.ndarray)
        return np.ascontiguousarray(whole.transpose(self._order)).reshape(self.shape)

    def rounding(self, stored: Stored = NOTHING) -> float:
        return self.form.rounding(stored)

    def scaled(self, factor: float, stored: Stored = NOTHING) -> Mapping[str, np.ndarray]:
        return self.form.scaled(factor, stored)

    def replaced(self, weight: np.ndarray | LowRank, stored: Stored = NOTHING) -> Mapping[str, np.ndarray]:
        assert isinstance(weight, np.ndarray)
        order = self._order
        back = weight.reshape([self.form.shape[axis] for axis in order]).transpose(np.argsort(order))
        return self.form.replaced(np.ascontiguousarray(back), stored)
