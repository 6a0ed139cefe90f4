"""How a value of the graph is laid out, and which value on tori it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from snaudit.linearized.interface import Node, Refused
from snaudit.waves.building import Builder


@dataclass(frozen=True, slots=True)
class Seen:
    """A value of the graph: which of the builder's it is, and how its entries are laid out after the batch.

    layout: the axes (0 the channels, then the spatial ones) in the graph's order; flat: as one axis.
    batch: how many entries its first axis has, None where that is open.
    """

    builder: Builder
    number: int
    layout: tuple[int, ...]
    flat: bool
    batch: int | None

    @property
    def channels(self) -> int:
        return self.builder.values[self.number].channels

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.builder.values[self.number].sizes

    @property
    def axes(self) -> tuple[int, ...]:
        """The sizes of the axes in the graph's order."""
        every = (self.channels, *self.sizes)
        return tuple(every[a] for a in self.layout)

    @property
    def shape(self) -> tuple[int, ...]:
        """The graph's shape, with 1 for the batch."""
        return (1, math.prod(self.axes)) if self.flat else (1, *self.axes)

    @property
    def natural(self) -> bool:
        """Whether the channels are the graph's axis 1 and all others spatial, or there is one place only."""
        if math.prod(self.sizes) == 1 and self.flat:
            return True
        return not self.flat and self.layout == tuple(range(len(self.layout)))

    def again(self, number: int) -> Seen:
        return Seen(self.builder, number, self.layout, self.flat, self.batch)

    def plain(self, number: int, flat: bool = False) -> Seen:
        return Seen(self.builder, number, tuple(range(len(self.layout))), flat, self.batch)

    def by_channel(self, array: np.ndarray) -> np.ndarray:
        """An array of the graph's shape as (channels, places)."""
        order = tuple(int(a) for a in np.argsort(self.layout))
        return array.reshape(self.axes).transpose(order).reshape(self.channels, -1)


def natural(node: Node) -> Seen:
    data = node.only()
    if not data.natural:
        raise Refused
    return data


def mapped(data: Seen) -> Seen:
    """A value with spatial axes."""
    if data.flat or not data.natural:
        raise Refused
    return data
