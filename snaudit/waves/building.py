"""Building a section on tori value by value: what is clean, and how many places a torus needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from snaudit.waves.interface import Kernel, Map, Moved, Sum, Torus, Unit, Value


@dataclass(slots=True, eq=False)
class Growing:
    """A value while its section grows; see `interface` for faithful and clean.

    sizes: the network's value on each axis; level: the stride from the source's torus to its own on each
    axis, None where its torus has one place; needs: the fewest places of it; keeps: clean if all that it
    is made of are; depth: how many convolutions led here.
    """

    channels: int
    sizes: tuple[int, ...]
    level: tuple[int, ...] | None
    made: Sum | Unit | None
    clean: bool
    keeps: bool
    needs: list[int]
    depth: int

    @property
    def reads(self) -> tuple[int, ...]:
        if self.made is None:
            return ()
        return (self.made.source,) if isinstance(self.made, Unit) else tuple(i for i, _ in self.made.terms)


class Refused(Exception):
    """It has no place on the tori of this section."""


class Builder:
    """A source and the values made of it."""

    def __init__(self, channels: int, sizes: tuple[int, ...]) -> None:
        start = Growing(channels, sizes, (1,) * len(sizes), None, True, True, list(sizes), 0)
        self.values: list[Growing] = [start]

    def _put(self, *of: object) -> int:
        self.values.append(Growing(*of))
        return len(self.values) - 1

    def convolved(self, number: int, kernel: Kernel, sizes: tuple[int, ...]) -> int:
        """A convolution, of which these are the outputs; one output: a map to a torus of one place."""
        value = self.values[number]
        if kernel.weight.shape[0] * math.prod(sizes) == 0 or kernel.weight.shape[1] * kernel.groups != value.channels:
            raise Refused
        stride = kernel.stride or (1,) * len(sizes)
        spans = [d * (k - 1) for d, k in zip(kernel.dilation, kernel.weight.shape[2:], strict=True)]
        axes = list(zip(value.sizes, sizes, stride, spans, kernel.offset, strict=True))
        lows = [offset for *_, offset in axes]
        highs = [s * (m - 1) + span + offset for _, m, s, span, offset in axes]
        if any(low < 0 or high >= n for low, high, n in zip(lows, highs, value.sizes, strict=True)):
            if value.level is None or not self._wiped(number):
                raise Refused
            rows = zip(value.needs, lows, highs, value.sizes, strict=True)
            value.needs[:] = [max(need, n - low, high + 1) for need, low, high, n in rows]
        weighs = kernel.weight.size > value.channels
        if math.prod(sizes) == 1:
            whole = Kernel(kernel.weight, None, kernel.dilation, kernel.offset, kernel.groups, kernel.relative)
            return self._put(
                kernel.weight.shape[0], sizes, None, Sum(((number, whole),)), True, True, [1] * len(sizes),
                value.depth + weighs,
            )  # fmt: skip
        if value.level is None or kernel.stride is None:
            raise Refused
        # places past the last output read only places past n, up to the last of the torus
        keeps = all(offset <= 0 and offset + span < s and s * m + offset >= n for n, m, s, span, offset in axes)
        level = tuple(a * s for a, s in zip(value.level, stride, strict=True))
        made = Sum(((number, kernel),))
        clean = keeps and value.clean
        return self._put(kernel.weight.shape[0], sizes, level, made, clean, keeps, list(sizes), value.depth + weighs)

    def summed(self, terms: tuple[tuple[int, Map], ...], channels: int) -> int:
        """A sum of channelwise maps of values of one size and level."""
        parts = [self.values[i] for i, _ in terms]
        first = parts[0]
        if any((part.sizes, part.level) != (first.sizes, first.level) for part in parts):
            raise Refused
        clean, depth = all(part.clean for part in parts), max(part.depth for part in parts)
        needs = list(first.sizes)
        return self._put(channels, first.sizes, first.level, Sum(terms), clean, True, needs, depth)

    def applied(self, number: int, low: np.ndarray, high: np.ndarray) -> int:
        """A function of each entry, slopes of each channel in [low, high]."""
        value = self.values[number]
        clean = bool(((low <= 0.0) & (high >= 0.0)).all()) or value.level is None
        unit = Unit(number, low, high)
        return self._put(
            value.channels, value.sizes, value.level, unit, clean, False, list(value.sizes), value.depth
        )

    def _wiped(self, number: int) -> bool:
        """Make a value clean where the slopes before it can be widened to hold 0."""
        stack, units, met = [number], [], set()
        while stack:
            i = stack.pop()
            value = self.values[i]
            if value.clean or i in met:
                continue
            met.add(i)
            if isinstance(value.made, Unit):
                units.append(value)
            elif value.keeps:
                stack += value.reads
            else:
                return False
        for value in units:
            unit = value.made
            value.made = Unit(unit.source, np.minimum(unit.low, 0.0), np.maximum(unit.high, 0.0))
            value.clean = True
        return True

    def used(self, source: int, output: int) -> list[int] | None:
        """The values on the way from one to another, both included; None if the output rests on others."""
        found, stack = {output}, [output]
        while stack:
            i = stack.pop()
            if i == source:
                continue
            if i == 0 or i < source:
                return None
            fresh = [j for j in self.values[i].reads if j not in found]
            found.update(fresh)
            stack += fresh
        return sorted(found)

    def torus(self, source: int, output: int) -> Torus | None:
        """The section from one value to another, on the smallest tori that do; None where there is none.

        A source in the midst is put in clean and faithful like any other, whatever it was before."""
        used = self.used(source, output)
        if used is None or source not in used or self.values[source].level is None:
            return None
        start = self.values[source]
        sides = []
        for axis, level in enumerate(start.level):
            rows = [self.values[i] for i in used if self.values[i].level is not None]
            steps = [value.level[axis] // level for value in rows]
            every = math.lcm(*steps)
            least = max(step * value.needs[axis] for step, value in zip(steps, rows, strict=True))
            sides.append(-(-least // every) * every)
        places = {i: k for k, i in enumerate(used)}
        values, made = [], []
        for i in used:
            value = self.values[i]
            level = value.level or tuple(a * n for a, n in zip(start.level, sides, strict=True))
            rows = zip(sides, level, start.level, strict=True)
            values.append(Value(value.channels, tuple(n * a // b for n, b, a in rows)))
            if i != source:
                made.append(_renamed(value.made, places))
        return Torus(tuple(values), tuple(made))


def _renamed(step: Sum | Unit, places: dict[int, int]) -> Sum | Unit:
    if isinstance(step, Unit):
        return Unit(places[step.source], step.low, step.high)
    return Sum(tuple((places[i], each) for i, each in step.terms))


def identity(channels: int, factor: float = 1.0) -> Moved:
    """factor·x, for a factor that is a power of two."""
    return Moved(np.arange(channels), np.full(channels, factor))
