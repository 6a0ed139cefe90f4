"""A section on tori as stages of a covariance recursion: linear maps of all that is live, then one unit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from snaudit.waves.blocks import identity, summed
from snaudit.waves.grid import grid
from snaudit.waves.interface import Sum, Torus, Unit
from snaudit.waves.symbols import frequencies


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What is live before a unit and after it, as numbers of values.

    before: after the unit before (or the source alone); made: the sums computed at once; after: what is
    live then, the unit's z in it. unit: its number, None at the end; kept: what of `after` stays live.
    """

    before: tuple[int, ...]
    made: tuple[int, ...]
    after: tuple[int, ...]
    unit: int | None
    kept: tuple[int, ...]


def steps_of(torus: Torus) -> list[Step] | None:
    """The order in which the recursion runs; None where values of different tori would be live together."""
    output = len(torus.steps)
    live, done, found = (0,), {0}, []
    units = [k for k, step in enumerate(torus.steps, start=1) if isinstance(step, Unit)]
    for unit in [*units, None]:
        wanted = output if unit is None else torus.steps[unit - 1].source
        for eager in (True, False):
            made = _ready(torus, done, torus.values[live[0]].sides if not eager else None)
            after = _needed(torus, done | set(made), live, made, output)
            if wanted in after and len({torus.values[i].sides for i in after}) == 1:
                break
        else:
            return None
        done |= set(made)
        if unit is None:
            found.append(Step(live, made, (output,), None, ()))
            break
        done.add(unit)
        kept = tuple(i for i in _needed(torus, done, after, (), output) if i != unit)
        found.append(Step(live, made, after, unit, kept))
        live = (*kept, unit)
        if len({torus.values[i].sides for i in live}) != 1:
            return None
    return found


def _ready(torus: Torus, done: set[int], sides: tuple[int, ...] | None) -> tuple[int, ...]:
    """The sums that can be computed now (on tori of these sides only), one after another."""
    made: list[int] = []
    for number, step in enumerate(torus.steps, start=1):
        if number in done or isinstance(step, Unit) or (sides is not None and torus.values[number].sides != sides):
            continue
        if all(i in done or i in made for i, _ in step.terms):
            made.append(number)
    return tuple(made)


def _needed(
    torus: Torus, done: set[int], live: tuple[int, ...], made: tuple[int, ...], output: int
) -> tuple[int, ...]:
    """What of the live and the made is still read by something that is not done, or is the output."""
    read = {i for number in range(1, output + 1) if number not in done for i in torus.reads(number)}
    return tuple(i for i in sorted({*live, *made}) if i in read or i == output)


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """s' = T·s: T (F, A, rows, columns) for each frequency of the new torus and the A of the old that fold onto it.

    numbers, turned: (F, A), the rows of the old torus' grid that these are, and whether conjugated.
    lost: (F, rows, blocks) with |T − exact| ≤ lost, entry by entry, for columns of each `block`.
    """

    maps: np.ndarray
    numbers: np.ndarray
    turned: np.ndarray
    lost: np.ndarray
    columns: np.ndarray

    @property
    def stays(self) -> bool:
        """Whether the torus stays as it is."""
        return self.numbers.shape[1] == 1


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """A unit on rows `read` of the state, slopes in [low, low + width]; of the state stay rows `kept`, and the
    unit's output comes last."""

    read: np.ndarray
    kept: np.ndarray
    low: np.ndarray
    width: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """The recursion of a section: first the covariance I of `inputs` channels at `first` frequencies.

    pairs: a linear map (None: the identity) and an activation (None: the end), in turn.
    weights: how many frequencies of the torus each of the grid's at the end stands for.
    """

    inputs: int
    first: int
    pairs: tuple[tuple[Linear | None, Activation | None], ...]
    weights: np.ndarray


def stages_of(torus: Torus) -> Stages | None:
    """The stages with their symbols."""
    steps = steps_of(torus)
    if steps is None:
        return None
    pairs = [(_linear(torus, step), _activation(torus, step)) for step in steps]
    end = grid(torus.values[-1].sides)
    weights = np.bincount(end.number, minlength=len(end)).astype(float)
    return Stages(torus.values[0].channels, len(grid(torus.values[0].sides)), tuple(pairs), weights)


def _linear(torus: Torus, step: Step) -> Linear | None:
    if step.before == step.after:
        return None
    start = {i: identity(torus.values[i], np.ones(torus.values[i].channels)) for i in step.before}
    blocks = {i: {i: block} for i, block in start.items()}
    for number in step.made:
        made = torus.steps[number - 1]
        assert isinstance(made, Sum)
        blocks[number] = summed(torus, number, made, blocks)
    old, new = (grid(torus.values[group[0]].sides) for group in (step.before, step.after))
    places = next(iter(blocks[step.after[0]].values())).places
    rows = [torus.values[i].channels for i in step.after]
    widths = [torus.values[i].channels for i in step.before]
    count, times = places.shape
    maps = np.zeros((count, times, sum(rows), sum(widths)), complex)
    lost = np.zeros((count, sum(rows), len(widths)))
    for i, top, height in zip(step.after, np.cumsum([0, *rows]), rows, strict=False):
        for k, (j, left, width) in enumerate(zip(step.before, np.cumsum([0, *widths]), widths, strict=False)):
            block = blocks[i].get(j)
            if block is None:
                continue
            assert np.array_equal(block.places, places)
            filled = block.filled().reshape(count, height, times, width)
            maps[:, :, top : top + height, left : left + width] = filled.transpose(0, 2, 1, 3)
            lost[:, top : top + height, k] = block.lost[:, None]
    assert len(new) == count
    which = np.repeat(np.arange(len(widths)), widths)
    return Linear(maps, old.number[places], old.turned[places], lost, which)


def _activation(torus: Torus, step: Step) -> Activation | None:
    if step.unit is None:
        return None
    unit = torus.steps[step.unit - 1]
    assert isinstance(unit, Unit)
    starts, place = {}, 0
    for i in step.after:
        starts[i] = np.arange(place, place + torus.values[i].channels)
        place += torus.values[i].channels
    kept = np.concatenate([starts[i] for i in step.kept]) if step.kept else np.zeros(0, dtype=int)
    width = np.nextafter(unit.high - unit.low, np.inf)  # low + width is not below high
    return Activation(starts[unit.source], kept, unit.low, width)


def sizes_of(torus: Torus, steps: list[Step]) -> list[tuple[int, int, int, int, int, int]]:
    """Of each step: (old frequencies, new ones, columns, rows, the unit's channels, rows that stay with it)."""
    found = []
    for step in steps:
        old, new = (torus.values[group[0]] for group in (step.before, step.after))
        columns, rows = (sum(torus.values[i].channels for i in group) for group in (step.before, step.after))
        unit = 0 if step.unit is None else torus.values[step.unit].channels
        stay = sum(torus.values[i].channels for i in step.kept) + unit
        found.append((math.prod(old.sides), frequencies(new), columns, rows, unit, stay))
    return found
