"""Forms: how stored tensors make a weight, and how to scale that weight in its own parameters.

A form reads its stored tensors through `stored`, a mapping from tensor name to an array that takes
the place of what the file holds (empty: the file as it is), so that one piece of code serves to
measure a file and to measure what a rewrite would make of it. All weights are float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from snaudit.errors import ConstraintError
from snaudit.linear import LowRank, flat
from snaudit.model import Tensor
from snaudit.rounding import exponent_of, scale

Stored = Mapping[str, np.ndarray]
NOTHING: Stored = {}


class Form(Protocol):
    """tensors: what it is made of, the first one names its dtype; shape: the weight's own."""

    tensors: tuple[Tensor, ...]
    shape: tuple[int, ...]

    def weight(self, stored: Stored = NOTHING) -> np.ndarray | LowRank:
        """The weight in float64."""
        ...

    def rounding(self, stored: Stored = NOTHING) -> float:
        """ε such that the exact weight's norms lie within 1 ± ε of those of `weight`'s float64 arrays."""
        ...

    def scaled(self, factor: float, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        """Stored arrays, in their dtypes, that make factor times the weight (up to rounding).

        Raises ConstraintError where no change of the stored tensors does.
        """
        ...

    def replaced(self, weight: np.ndarray | LowRank, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        """Stored arrays, in their dtypes, that make this weight, which has the form's shape (up to
        rounding). Raises ConstraintError where the stored tensors cannot make any such weight.
        """
        ...


def _array(tensor: Tensor, stored: Stored) -> np.ndarray:
    found = stored.get(tensor.name)
    return tensor.load() if found is None else found


def _float64(tensor: Tensor, stored: Stored) -> np.ndarray:
    with np.errstate(all="ignore"):
        return _array(tensor, stored).astype(np.float64)


def _times(array: np.ndarray, factor: float) -> np.ndarray:
    """factor·array in float64, rounded once to the array's dtype."""
    with np.errstate(all="ignore"):
        return np.asarray(array.astype(np.float64) * factor).astype(array.dtype)


def _rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array rounded once to a dtype."""
    with np.errstate(all="ignore"):
        return np.asarray(array).astype(dtype)


@dataclass(frozen=True, slots=True)
class Plain:
    """The stored tensor itself, or the part of it that `index` selects, with axes permuted by `order`."""

    tensor: Tensor
    index: tuple[Any, ...] = ()
    order: tuple[int, ...] | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tensor,)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = np.broadcast_to(np.empty(()), self.tensor.shape)[self.index].shape
        return shape if self.order is None else tuple(shape[axis] for axis in self.order)

    def weight(self, stored: Stored = NOTHING) -> np.ndarray:
        with np.errstate(all="ignore"):
            part = _array(self.tensor, stored)[self.index].astype(np.float64)
        return part if self.order is None else np.ascontiguousarray(part.transpose(self.order))

    def entries(self, stored: Stored = NOTHING) -> np.ndarray:
        """The weight in its stored dtype: a large one is converted block by block where it is used."""
        part = _array(self.tensor, stored)[self.index]
        return part if self.order is None else part.transpose(self.order)

    def rounding(self, stored: Stored = NOTHING) -> float:
        return 0.0

    def scaled(self, factor: float, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        array = np.array(_array(self.tensor, stored))
        array[self.index] = _times(array[self.index], factor)
        return {self.tensor.name: array}

    def replaced(self, weight: np.ndarray | LowRank, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        assert isinstance(weight, np.ndarray)
        array = np.array(_array(self.tensor, stored))
        back = weight if self.order is None else weight.transpose(np.argsort(self.order))
        array[self.index] = _rounded(back, array.dtype)
        return {self.tensor.name: array}


@dataclass(frozen=True, slots=True)
class WeightNorm:
    """w = g·v/‖v‖ with the norm over all axes along which g has one entry (Salimans & Kingma 2016)."""

    magnitude: Tensor
    direction: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.direction, self.magnitude)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.direction.shape

    def weight(self, stored: Stored = NOTHING) -> np.ndarray:
        v, g = _float64(self.direction, stored), _float64(self.magnitude, stored)
        g = g.reshape((1,) * v.ndim) if g.size == 1 else g
        axes = tuple(axis for axis in range(v.ndim) if g.shape[axis] == 1)
        with np.errstate(all="ignore"):
            largest = np.max(np.abs(v), axis=axes, keepdims=True, initial=0.0)
            unit = np.where(largest > 0, v / np.where(largest > 0, largest, 1.0), v)
            norm = np.sqrt(np.sum(unit * unit, axis=axes, keepdims=True))
            return g * (unit / norm)  # 0/0 for a zero direction: NaN, as the module itself computes

    def rounding(self, stored: Stored = NOTHING) -> float:
        """Each slice's factor g/‖v‖ is off by at most (n+8)u of itself, n entries in ‖v‖, which scales
        rows; each entry by 4u besides, which moves the operator by 4u·‖|W|‖ ≤ 4u·√size·‖W‖."""
        size = int(np.prod(self.shape))
        return 2.0**-53 * (size + 8 + 8 * float(np.sqrt(size)))

    def scaled(self, factor: float, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        return {self.magnitude.name: _times(_array(self.magnitude, stored), factor)}

    def replaced(self, weight: np.ndarray | LowRank, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        """v is the weight itself, where it is not zero, and g its norms."""
        assert isinstance(weight, np.ndarray)
        v, g = _array(self.direction, stored), _array(self.magnitude, stored)
        shape = (1,) * v.ndim if g.size == 1 else g.shape
        axes = tuple(axis for axis in range(v.ndim) if shape[axis] == 1)
        norm = np.sqrt(np.sum(weight * weight, axis=axes, keepdims=True))
        direction = np.where(norm > 0.0, weight, v.astype(np.float64))
        return {
            self.direction.name: _rounded(direction, v.dtype),
            self.magnitude.name: _rounded(norm.reshape(g.shape), g.dtype),
        }


@dataclass(frozen=True, slots=True)
class SpectralNorm:
    """w = W/(uᵀ W_mat v), as torch's spectral_norm computes it in evaluation from its stored u and v.

    W_mat has axis `dim` in front. Scaling W changes nothing, so a rewrite scales u by 1/factor:
    in evaluation the module computes factor·w. (In training it renormalises u, and then caps at 1.)
    A file without v has it recomputed from u, as torch does when it loads one.
    """

    original: Tensor
    left: Tensor
    right: Tensor | None
    dim: int = 0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.original, self.left) + (() if self.right is None else (self.right,))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.original.shape

    def weight(self, stored: Stored = NOTHING) -> np.ndarray:
        weight, u, v, exponent = self._parts(stored)
        with np.errstate(all="ignore"):
            return np.ldexp(weight / (u @ (self._matrix(weight) @ v)), exponent)

    def rounding(self, stored: Stored = NOTHING) -> float:
        """uᵀWv is off by at most γ_k·|u|ᵀ|W||v| with k = rows + columns + 2 roundings on a path; each
        entry of the quotient by u besides. ∞ where that leaves less than one digit of it, and where
        the quotient is no normal number."""
        weight, u, v, exponent = self._parts(stored)
        matrix = self._matrix(weight)
        with np.errstate(all="ignore"):
            size, quotient = np.abs(u) @ (np.abs(matrix) @ np.abs(v)), np.abs(u @ (matrix @ v))
            roundings = sum(matrix.shape) + 2 + (0 if self.right is not None else matrix.shape[0] + 8)
            relative = 1.1 * roundings * 2.0**-53 * size / quotient
        if not relative < 0.1 or quotient < 2.0**-900 or abs(exponent) > 900:
            return float("inf")
        return 1.25 * float(relative) + 2.0**-50 * float(np.sqrt(weight.size))

    def _parts(self, stored: Stored) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """(W, u, v, e) scaled by powers of two to entries of order one; the weight is 2ᵉ·W/(uᵀWv)."""
        weight, u = _float64(self.original, stored), _float64(self.left, stored).ravel()
        weight = scale(weight, exponent_of(weight))
        exponent = exponent_of(u)
        u = scale(u, exponent)
        if self.right is None:
            with np.errstate(all="ignore"):
                return weight, u, self._right_of(self._matrix(weight), u), -exponent
        v = _float64(self.right, stored).ravel()
        return weight, u, scale(v, exponent_of(v)), -exponent - exponent_of(v)

    def _matrix(self, weight: np.ndarray) -> np.ndarray:
        return flat(np.moveaxis(weight, self.dim, 0))

    def _right_of(self, matrix: np.ndarray, u: np.ndarray) -> np.ndarray:
        v = matrix.T @ u
        return v / np.linalg.norm(v)

    def scaled(self, factor: float, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        return {self.left.name: _times(_array(self.left, stored), 1.0 / factor)}

    def replaced(self, weight: np.ndarray | LowRank, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        """W is the weight itself, and u is scaled so that uᵀ W_mat v is 1."""
        assert isinstance(weight, np.ndarray)
        original = _rounded(weight, _array(self.original, stored).dtype)
        matrix = flat(np.moveaxis(original.astype(np.float64), self.dim, 0))
        u = _float64(self.left, stored).ravel()
        v = _float64(self.right, stored).ravel() if self.right is not None else self._right_of(matrix, u)
        denominator = float(u @ (matrix @ v))
        if not abs(denominator) > 0.0:
            raise ConstraintError(f"{self.original.name}: its stored vectors see nothing of the new weight")
        return {
            self.original.name: original,
            self.left.name: _times(_array(self.left, stored), 1.0 / denominator),
        }


@dataclass(frozen=True, slots=True)
class LowRankPair:
    """The product up·down of a LoRA pair (Hu et al. 2021), without the factor alpha/r, which the
    weights do not hold. Never multiplied out; a rewrite scales both factors alike."""

    up: Tensor
    down: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.up, self.down)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.up.shape[0], *self.down.shape[1:])

    def weight(self, stored: Stored = NOTHING) -> LowRank:
        up, down = _float64(self.up, stored), _float64(self.down, stored)
        return LowRank(flat(up), flat(down))

    def rounding(self, stored: Stored = NOTHING) -> float:
        return 0.0

    def scaled(self, factor: float, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        root = float(np.sqrt(factor))
        return {part.name: _times(_array(part, stored), root) for part in (self.up, self.down)}

    def replaced(self, weight: np.ndarray | LowRank, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        if not isinstance(weight, LowRank):
            raise ConstraintError(
                f"{self.up.name}: a product of two factors that acts as a convolution has no clip; --how scale"
            )
        pairs = ((self.up, weight.left), (self.down, weight.right))
        return {
            part.name: _rounded(array.reshape(part.shape), _array(part, stored).dtype) for part, array in pairs
        }


@dataclass(frozen=True, slots=True)
class Folded:
    """A constant that a graph computes from its stored tensors (a transpose, a cast, a dequantizer…).

    `handle` is a stored tensor in which the constant is linear, or None: then it cannot be scaled.
    `digest` tells constants of equal content: a graph may compute one weight in two places.
    """

    value: Any
    tensors: tuple[Tensor, ...]
    shape: tuple[int, ...]
    handle: Tensor | None
    digest: bytes
    index: tuple[Any, ...] = ()

    def weight(self, stored: Stored = NOTHING) -> np.ndarray:
        from snaudit import folding

        with np.errstate(all="ignore"):
            return folding.evaluate(self.value, stored)[self.index].astype(np.float64)

    def rounding(self, stored: Stored = NOTHING) -> float:
        return 0.0

    def scaled(self, factor: float, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        if self.handle is None:
            raise ConstraintError(
                f"{self.value.name}: the graph computes this weight in a way in which no stored tensor "
                "scales it; fold the constants of the model first"
            )
        return {self.handle.name: _times(_array(self.handle, stored), factor)}

    def replaced(self, weight: np.ndarray | LowRank, stored: Stored = NOTHING) -> dict[str, np.ndarray]:
        """Where the constant is a selection of the handle's entries (moved, cut out), they are set."""
        from snaudit import folding

        assert isinstance(weight, np.ndarray)
        if self.handle is None or not folding.only_moves(self.value):
            raise ConstraintError(
                f"{self.value.name}: the graph computes this weight from what is stored; only --how scale can cap it"
            )
        array = np.array(_array(self.handle, stored))
        places = np.arange(array.size, dtype=np.float64).reshape(array.shape)
        chosen = folding.evaluate(self.value, {self.handle.name: places})[self.index].astype(np.int64)
        array.reshape(-1)[chosen.ravel()] = _rounded(weight, array.dtype).ravel()
        return {self.handle.name: array}
