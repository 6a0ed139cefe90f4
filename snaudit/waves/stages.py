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
    readers: list[list[int]] = [[] for _ in torus.values]
    for number in range(1, output + 1):
        for i in torus.reads(number):
            readers[i].append(number)
    for unit in [*units, None]:
        wanted = output if unit is None else torus.steps[unit - 1].source
        for eager in (True, False):
            made = _ready(torus, done, torus.values[live[0]].sides if not eager else None)
            after = _needed(readers, done | set(made), live, made, output)
            if wanted in after and len({torus.values[i].sides for i in after}) == 1:
                break
        else:
            return None
        done |= set(made)
        if unit is None:
            found.append(Step(live, made, (output,), None, ()))
            break
        done.add(unit)
        kept = tuple(i for i in _needed(readers, done, after, (), output) if i != unit)
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
    readers: list[list[int]], done: set[int], live: tuple[int, ...], made: tuple[int, ...], output: int
) -> tuple[int, ...]:
    """What of the live and the made is still read by something that is not done, or is the output."""
    return tuple(i for i in sorted({*live, *made}) if i == output or not done.issuperset(readers[i]))


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """s' = T·s for each frequency of the new torus and the A of the old that fold onto it, in `parts`: (rows,
    columns, (F, A, rows, columns) or None for the identity).

    numbers, turned: (F, A), the rows of the old torus' grid that these are, and whether conjugated.
    lost: (F, rows, blocks) with |T − exact| ≤ lost, entry by entry, for columns of each `block`.
    """

    parts: tuple[tuple[slice, slice, np.ndarray | None], ...]
    numbers: np.ndarray
    turned: np.ndarray
    lost: np.ndarray
    columns: np.ndarray

    def times(self, stack: np.ndarray) -> np.ndarray:
        """T·stack, for (F, A, columns, n)."""
        found = np.zeros((*stack.shape[:2], self.lost.shape[1], stack.shape[3]), complex)
        for rows, columns, part in self.parts:
            found[:, :, rows] += stack[:, :, columns] if part is None else part @ stack[:, :, columns]
        return found

    def back(self, stack: np.ndarray) -> np.ndarray:
        """Tᴴ·stack, for (F, A, rows, n)."""
        found = np.zeros((*stack.shape[:2], len(self.columns), stack.shape[3]), complex)
        for rows, columns, part in self.parts:
            given = stack[:, :, rows]
            found[:, :, columns] += given if part is None else part.conj().swapaxes(-1, -2) @ given
        return found

    def sizes(self, roots: np.ndarray) -> np.ndarray:
        """Σ_a |T_a|·roots_a, for (F, A, columns)."""
        found = np.zeros((len(roots), self.lost.shape[1]))
        for rows, columns, part in self.parts:
            given = roots[:, :, columns]
            found[:, rows] += given.sum(axis=1) if part is None else np.einsum("faij,faj->fi", np.abs(part), given)
        return found

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
    parts: list[tuple[slice, slice, np.ndarray | None]] = []
    lost = np.zeros((count, sum(rows), len(widths)))
    for i, top, height in zip(step.after, np.cumsum([0, *rows]), rows, strict=False):
        for k, (j, left, width) in enumerate(zip(step.before, np.cumsum([0, *widths]), widths, strict=False)):
            block = blocks[i].get(j)
            if block is None:
                continue
            assert np.array_equal(block.places, places)
            mine = slice(top, top + height), slice(left, left + width)
            if block.rows is None and (block.diagonal == 1.0).all():
                parts.append((*mine, None))
            else:
                filled = block.filled().reshape(count, height, times, width)
                parts.append((*mine, np.ascontiguousarray(filled.transpose(0, 2, 1, 3))))
            lost[:, mine[0], k] = block.lost[:, None]
    assert len(new) == count
    which = np.repeat(np.arange(len(widths)), widths)
    return Linear(tuple(parts), old.number[places], old.turned[places], lost, which)


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


@dataclass(frozen=True, slots=True)
class Sizes:
    """What counts for the work of one step: frequencies (the old ones that fold, the new ones), columns and rows of
    its map, the entries of it that are not zero or one, channels of its unit, rows that stay with that."""

    folds: int
    count: int
    columns: int
    rows: int
    entries: int
    unit: int
    stay: int


def sizes_of(torus: Torus, steps: list[Step]) -> list[Sizes]:
    """The sizes of each step."""
    found = []
    for step in steps:
        old, new = (torus.values[group[0]] for group in (step.before, step.after))
        columns, rows = (sum(torus.values[i].channels for i in group) for group in (step.before, step.after))
        reach = {i: frozenset((i,)) for i in step.before}
        for i in step.made:
            reach[i] = frozenset().union(*(reach.get(j, frozenset()) for j in torus.reads(i)))
        entries = sum(
            torus.values[i].channels * torus.values[j].channels for i in step.after if i not in step.before for j in reach[i]
        )
        unit = 0 if step.unit is None else torus.values[step.unit].channels
        stay = sum(torus.values[i].channels for i in step.kept) + unit
        times = math.prod(old.sides) // math.prod(new.sides)
        found.append(Sizes(times, frequencies(new), columns, rows, entries, unit, stay))
    return found
