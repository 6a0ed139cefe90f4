"""A section of a convolutional network as maps on tori, and what a way to bound it must provide.

A value of C channels and sizes n₁…n_D lies at the places [0, n₁)×…×[0, n_D) of a torus with at least as
many places on each axis. All maps are convolutions of tori, so that they are block diagonal by
frequencies. **Why the torus bounds the network.** Call a value *faithful* if at the places of the
network's value it holds that value's differences, and *clean* if it is zero at all other places.
- The source is put in clean and faithful: an isometry.
- A convolution of a faithful value is faithful if none of the places that its outputs read lies
  outside [0, n), or if the value is clean and those places are outside modulo the side too: then they
  read zeros, which is what zero padding puts there.
- An activation has δw_i = d_i·δz_i with d_i in [α, β]. If 0 is in [α, β], set d_i = 0 at all other
  places: these d are slopes like any others, and w is clean. Else w is faithful with any d_i there.
- The network's output is a restriction of the torus' output, of which it keeps the differences.
So for each pair of inputs there are slopes d in [α, β] with which the linear network on tori maps the
difference of the sources to a vector that holds the difference of the outputs: a bound for all slopes
is one for the network, at this input size. (Zero padding as compression of a Laurent operator: e.g.
Grishina, Gorbunov & Rakhuba, *Tight and efficient upper bound on spectral norm of convolutional
layers*, ECCV 2024; slopes that absorb the mask are what lets whole networks do the same.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from snaudit.bound import Bound, Grade


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """y[m] = Σ_t W_t x[stride·m + dilation·t + offset], on tori.

    weight: (O, I/groups, k₁…k_D), each entry known within `relative` of itself. stride None: the whole
    side of the torus, so that y has one place (a dense layer that reads a map of channels).
    """

    weight: np.ndarray
    stride: tuple[int, ...] | None
    dilation: tuple[int, ...]
    offset: tuple[int, ...]
    groups: int = 1
    relative: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """Channel o of y is factors[o] times channel index[o] of x, factors known within `relative`; −1: zero."""

    index: np.ndarray
    factors: np.ndarray
    relative: float = 0.0

    def same(self, channels: int) -> bool:
        """Whether channels stay where they are, all of so many."""
        return bool(np.array_equal(self.index, np.arange(channels)))

    @property
    def exact(self) -> bool:
        """Whether all factors are exactly one."""
        return self.relative == 0.0 and bool((self.factors == 1.0).all())


Map = Kernel | Moved


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """A value that is the sum of maps of earlier values, (number, map) each."""

    terms: tuple[tuple[int, Map], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """A value w = φ(z) of entrywise functions, slopes of channel c in [low_c, high_c]; z: a value's number."""

    source: int
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, slots=True)
class Value:
    """Channels of a value, and the places of its torus on each axis."""

    channels: int
    sides: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Torus:
    """A section on tori: values[0] is the source, values[i + 1] is made by steps[i], the last is the output."""

    values: tuple[Value, ...]
    steps: tuple[Sum | Unit, ...]

    def made(self, number: int) -> Sum | Unit:
        return self.steps[number - 1]

    def reads(self, number: int) -> tuple[int, ...]:
        """The values that a value is made of."""
        step = self.made(number)
        return (step.source,) if isinstance(step, Unit) else tuple(i for i, _ in step.terms)

    def last_uses(self) -> list[int]:
        """For each value, the last value that is made of it."""
        last = list(range(len(self.values)))
        for number in range(1, len(self.values)):
            for i in self.reads(number):
                last[i] = number
        return last


@dataclass(frozen=True, slots=True)
class Method:
    """A way to bound a section on tori in l2.

    cost(torus) → the fewest operations that `measure` takes, about: counted, so that no clock decides; infinite
    where it does not fit. measure(torus, work) → a Bound of at most `grade`, for so many operations.
    """

    name: str
    grade: Grade
    theorem: str
    cost: Callable[[Torus], float]
    measure: Callable[[Torus, float], Bound]
