"""Bringing layers under their caps: scaled or clipped, and proved for the numbers as they are stored."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from snaudit import projections
from snaudit.bound import UNBOUNDED, Bound, Grade
from snaudit.errors import ConstraintError, SoundnessError
from snaudit.extraction import extract
from snaudit.forms import NOTHING
from snaudit.layers import Layer
from snaudit.linear import LowRank
from snaudit.measuring import Meter, not_finite
from snaudit.model import Model
from snaudit.rewriting import Rewritten
from snaudit.stretches import find_stretches

Measure = Literal["operator", "matrix", "folded"]
How = Literal["scale", "normalize", "clip", "soft"]
_ROUNDS = 60
_MARGIN = 2e-8
"""By how much a clip aims below the cap: the width of an enclosure of what it makes."""


@dataclass(frozen=True, slots=True)
class Change:
    """What was done to one layer: its bound before and after, and ‖W' − W‖_F/‖W‖_F."""

    name: str
    op: str
    dtype: str
    measure: Measure
    before: Bound
    after: Bound
    relative_change: float
    changed: bool


@dataclass(slots=True)
class Capping:
    """The state of one run.

    caps   for each layer's name, what it is brought under; a layer without one is left as it is
    which  what the cap is of
    stored the tensors that changed so far
    """

    meter: Meter
    caps: Mapping[str, float]
    which: Measure
    how: How
    stored: Rewritten
    settled: dict[str, tuple[int, Bound]] = field(default_factory=dict)
    """For a layer that was changed: its bound then, and how many steps its tensors had seen."""

    def bound_of(self, layer: Layer, stored: Mapping[str, np.ndarray]) -> Bound:
        if self.which == "folded":
            return self._folded(layer, stored)
        measured = self.meter.measure(layer, stored)
        return measured.norm if self.which == "operator" else measured.sigma

    def _folded(self, layer: Layer, stored: Mapping[str, np.ndarray]) -> Bound:
        """The largest norm of the layer with the scales around it, over all places where it is applied."""
        found = list(find_stretches((layer,)))
        bounds = [] if 0 < len(layer.outputs) == len(found) else [self.meter.measure(layer, stored).norm]
        for stretch in found:
            whole = stretch.map(stored)
            bounds.append(UNBOUNDED if whole is None else stretch.enclosed(self.meter.norm_of(whole)))
        return max(bounds, key=lambda bound: bound.upper)

    def bring_all_under(
        self, chosen: tuple[Layer, ...], progress: Callable[[int, int, str], None] | None
    ) -> tuple[Change, ...]:
        """Every layer brought under the cap, one after another, and what became of each."""
        before = []
        for index, layer in enumerate(chosen):
            if progress is not None:
                progress(index, len(chosen), layer.name)
            before.append(self.bring_under(layer))
        return tuple(self.change_of(layer, bound) for layer, bound in zip(chosen, before, strict=True))

    def bring_under(self, layer: Layer) -> Bound:
        """The layer's bound before it is scaled until its proved bound, for the rounded numbers, is
        at most the cap."""
        original = self.bound_of(layer, NOTHING)
        if layer.name not in self.caps:
            return original
        before = self.bound_of(layer, self.stored) if self.stored.depth(layer) else original
        if not before.bounded:
            bad = not_finite(layer)
            why = bad.message if bad is not None else f"no finite bound by {before.method}"
            raise ConstraintError(f"{layer.name}: {why}; --skip {layer.name} leaves it as it is")
        if before.grade < Grade.COMPUTED:
            raise ConstraintError(f"{layer.name}: {before.method} proves no upper bound to constrain by")
        cap = self.caps[layer.name]
        if before.upper > cap and self.how in ("clip", "soft"):
            self._project(layer, cap)
        elif before.upper > cap or self._is_short(before, cap):
            self._scale(layer, before, cap)
        return original

    def _is_short(self, bound: Bound, cap: float) -> bool:
        """Whether normalization must raise this layer: what rounding or the width of an enclosure
        leaves open is no reason to touch it again."""
        slack = 1 - max(2 * self.meter.settings.width, 0.01)
        return self.how == "normalize" and 0.0 < bound.upper < cap * slack

    def _scale(self, layer: Layer, before: Bound, cap: float) -> None:
        factor, step = cap / before.upper, 2.0**-52
        for _ in range(_ROUNDS):
            scaled = layer.form.scaled(factor, self.stored)
            after = self._checked(layer, scaled, cap)
            if after.upper <= cap:
                self.stored.scale(layer.form, factor, scaled)
                self.settled[layer.name] = (self.stored.depth(layer), after)
                return
            if not after.bounded:
                break
            factor *= min(1 - step, cap / after.upper)
            step *= 2
        raise ConstraintError(
            f"{layer.name}: in {layer.dtype} no scale brings it from {before.upper:.6g} under {cap:.6g}"
        )

    def _project(self, layer: Layer, limit: float) -> None:
        """Move the layer's singular values, then scale by what rounding and support left over the cap."""
        matrix, operator = layer.maps(self.stored)
        gain = layer.gain if self.which == "operator" else 1.0
        cap = limit / gain * (1 - _MARGIN)
        try:
            near = projections.bring_under(operator if self.which == "operator" else matrix, cap, self.how)  # type: ignore[arg-type]
        except np.linalg.LinAlgError as error:
            raise ConstraintError(f"{layer.name}: {error}; --how scale needs no eigenvalues") from error
        arrays = layer.replaced(near, self.stored)
        after = self._checked(layer, arrays, limit)
        self.stored.replace(arrays)
        if after.upper > limit:
            self._scale(layer, after, limit)
        else:
            self.settled[layer.name] = (self.stored.depth(layer), after)

    def _checked(self, layer: Layer, arrays: Mapping[str, np.ndarray], cap: float) -> Bound:
        """The layer's bound with these arrays in it. Raises ConstraintError where nothing is left."""
        after = self.bound_of(layer, ChainMap(dict(arrays), self.stored))  # type: ignore[arg-type]
        if after.upper == 0.0:
            raise ConstraintError(
                f"{layer.name}: {cap:.6g} is below what {layer.dtype} can hold: every entry would be zero"
            )
        return after

    def prove(self, written: Model) -> None:
        """Raise SoundnessError unless every capped layer keeps its cap in the model read back."""
        again = replace(self, meter=Meter(self.meter.settings))
        layers = extract(written).layers
        lost = self.caps.keys() - {layer.name for layer in layers}
        if lost:
            raise SoundnessError(f"{min(lost)}: capped, and not in the file read back")
        for layer in layers:
            cap = self.caps.get(layer.name, math.inf)
            if math.isfinite(cap):
                bound = again.bound_of(layer, NOTHING)
                if bound.upper > cap:
                    raise SoundnessError(f"{layer.name}: {bound.upper!r} on disk, over the cap {cap!r}")

    def change_of(self, layer: Layer, before: Bound) -> Change:
        """What became of a layer once all layers are done: a later one may share its tensors."""
        if not self.stored.depth(layer):
            return Change(layer.name, layer.op, layer.dtype, self.which, before, before, 0.0, False)
        depth, after = self.settled.get(layer.name, (-1, before))
        if depth != self.stored.depth(layer):
            after = self.bound_of(layer, self.stored)
        if after.upper > self.caps.get(layer.name, math.inf):
            raise ConstraintError(f"{layer.name}: shares numbers with layers that pull it over the cap")
        moved = _relative_change(layer, self.stored)
        return Change(layer.name, layer.op, layer.dtype, self.which, before, after, moved, True)


def _relative_change(layer: Layer, stored: Mapping[str, np.ndarray]) -> float:
    """‖W' − W‖_F/‖W‖_F, 0 for a zero weight."""
    old, new = layer.form.weight(), layer.form.weight(stored)
    old = old.dense() if isinstance(old, LowRank) else old
    new = new.dense() if isinstance(new, LowRank) else new
    size = float(np.linalg.norm(old.ravel()))
    return float(np.linalg.norm((new - old).ravel())) / size if size else 0.0
