"""constrain(path, …): a copy of a model in which no layer stretches more than a cap.

Spectral norm constraint (Yoshida & Miyato 2017; Gouk et al. 2021): a weight whose σ exceeds the cap
is scaled down as a whole so that its σ equals it; spectral normalization (Miyato et al. 2018) scales
every weight; a clip sets only the singular values above the cap to it (`projections`). The scale is cap/upper with the *certified* upper end, and the cap is proved again for
the rounded numbers and for the bytes on disk, because rounding to the stored dtype can raise σ.
"""

from __future__ import annotations

import math
import os
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from snaudit import formats, projections
from snaudit.bound import Bound, Grade
from snaudit.errors import ConstraintError, EmptyModel, SoundnessError, UsageError, WriteError
from snaudit.extraction import extract
from snaudit.findings import Settings
from snaudit.forms import NOTHING, SpectralNorm
from snaudit.layers import Extraction, Layer, select
from snaudit.linear import LowRank
from snaudit.measuring import Meter, not_finite
from snaudit.model import Model
from snaudit.outputs import OutputChange
from snaudit.rewriting import Rewritten, write
from snaudit.writing import check_target

Measure = Literal["operator", "matrix"]
How = Literal["scale", "normalize", "clip", "soft"]
_HOWS = ("scale", "normalize", "clip", "soft")
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a constrain run; `target` is the file written, or that would have been."""

    source: str
    target: str
    written: bool
    measure: Measure
    max_sigma: float
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    outputs: tuple[OutputChange, ...] = ()
    how: How = "scale"


def default_target(path: Path) -> Path:
    """MODEL.constrained.EXT beside the model."""
    name = path.name
    ending = formats.INDEX if name.endswith(formats.INDEX) else path.suffix
    return path.with_name(f"{name.removesuffix(ending)}.constrained{ending}")


def constrain(
    path: Path,
    target: Path | None = None,
    max_sigma: float = 1.0,
    *,
    settings: Settings = Settings(),
    how: How = "scale",
    normalize: bool = False,
    measure: Measure = "operator",
    layers: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Outcome:
    """Write a copy of the model at `path` in which the chosen layers keep σ ≤ max_sigma.

    how: "scale" the whole weight where σ exceeds the cap; "normalize" (or normalize=True): always;
    "clip": only the singular values above it, the nearest such weight in Frobenius norm; "soft": as
    clip, with the smooth σ ↦ σ/(1 + (σ/cap)⁴)^¼. Clipped and softened weights keep their dtype,
    kernel and rank, and end with the scale that the proof still needs.
    measure: "operator" caps the layer as the operator that it applies (a convolution's Lipschitz
    constant), "matrix" the σ of the reshaped weight. All in the file that is not changed stays
    bit-equal. Raises UsageError for a cap that is not a positive number, ConstraintError where a
    weight is not finite or cannot be brought under the cap, WriteError, ModelError.
    """
    if not (max_sigma > 0 and math.isfinite(max_sigma)):
        raise UsageError(f"--max-sigma must be a positive number, not {max_sigma}")
    if measure not in ("operator", "matrix"):
        raise UsageError(f"measure must be operator or matrix, not {measure!r}")
    if how not in _HOWS or (normalize and how not in ("scale", "normalize")):
        raise UsageError(f"--how must be one of {', '.join(_HOWS)}, and --normalize is one of them")
    if how in ("clip", "soft") and settings.norm != "l2":
        raise UsageError(f"{how} moves singular values: it needs the l2 norm, not {settings.norm}")
    if os.path.isdir(path):
        path = formats.find_in_folder(path)
    wanted = default_target(path) if target is None else target
    real = check_target(wanted, force or dry_run)
    model = formats.read(path, settings.key)
    parts = {os.path.realpath(file.path) for file in model.files} - {os.path.realpath(model.path)}
    if str(real) in parts:
        raise WriteError(f"{wanted}: {path} needs this file")
    extraction = extract(model)
    if not extraction.layers:
        raise EmptyModel(path, "no weight matrix to constrain in it")
    chosen = select(extraction.layers, layers, skip)
    how = "normalize" if normalize else how
    with Rewritten(None if dry_run else real.parent) as stored:
        work = _Work(Meter(settings), max_sigma, measure, how, stored)
        changes = work.bring_all_under(chosen, progress)
        notes = model.notes + tuple(_notes(chosen, measure)) + tuple(_not_capped(model, extraction))
        outputs: tuple[OutputChange, ...] = ()
        if not dry_run:
            names = frozenset(layer.name for layer in chosen)
            outputs, more = write(model, real, stored, settings, lambda written: work.prove(written, names))
            notes += more
    return Outcome(str(path), str(wanted), not dry_run, measure, max_sigma, changes, notes, outputs, how)


@dataclass(slots=True)
class _Work:
    """The state of one run."""

    meter: Meter
    cap: float
    which: Measure
    how: How
    stored: Rewritten
    settled: dict[str, tuple[int, Bound]] = field(default_factory=dict)
    """For a layer that was changed: its bound then, and how many steps its tensors had seen."""

    def bound_of(self, layer: Layer, stored: Mapping[str, np.ndarray]) -> Bound:
        measured = self.meter.measure(layer, stored)
        return measured.norm if self.which == "operator" else measured.sigma

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
        before = self.bound_of(layer, self.stored) if self.stored.depth(layer) else original
        if not before.bounded:
            bad = not_finite(layer)
            why = bad.message if bad is not None else f"no finite bound by {before.method}"
            raise ConstraintError(f"{layer.name}: {why}; --skip {layer.name} leaves it as it is")
        if before.grade < Grade.COMPUTED:
            raise ConstraintError(f"{layer.name}: {before.method} proves no upper bound to constrain by")
        if before.upper > self.cap and self.how in ("clip", "soft"):
            self._project(layer)
        elif before.upper > self.cap or self._is_short(before):
            self._scale(layer, before)
        return original

    def _is_short(self, bound: Bound) -> bool:
        """Whether normalization must raise this layer: what rounding or the width of an enclosure
        leaves open is no reason to touch it again."""
        slack = 1 - max(2 * self.meter.settings.width, 0.01)
        return self.how == "normalize" and 0.0 < bound.upper < self.cap * slack

    def _scale(self, layer: Layer, before: Bound) -> None:
        factor, step = self.cap / before.upper, 2.0**-52
        for _ in range(_ROUNDS):
            scaled = layer.form.scaled(factor, self.stored)
            after = self._checked(layer, scaled)
            if after.upper <= self.cap:
                self.stored.scale(layer.form, factor, scaled)
                self.settled[layer.name] = (self.stored.depth(layer), after)
                return
            if not after.bounded:
                break
            factor *= min(1 - step, self.cap / after.upper)
            step *= 2
        raise ConstraintError(
            f"{layer.name}: in {layer.dtype} no scale brings it from {before.upper:.6g} under {self.cap:.6g}"
        )

    def _project(self, layer: Layer) -> None:
        """Move the layer's singular values, then scale by what rounding and support left over the cap."""
        matrix, operator = layer.maps(self.stored)
        gain = layer.gain if self.which == "operator" else 1.0
        cap = self.cap / gain * (1 - _MARGIN)
        try:
            near = projections.bring_under(operator if self.which == "operator" else matrix, cap, self.how)  # type: ignore[arg-type]
        except np.linalg.LinAlgError as error:
            raise ConstraintError(f"{layer.name}: {error}; --how scale needs no eigenvalues") from error
        arrays = layer.replaced(near, self.stored)
        after = self._checked(layer, arrays)
        self.stored.replace(arrays)
        if after.upper > self.cap:
            self._scale(layer, after)
        else:
            self.settled[layer.name] = (self.stored.depth(layer), after)

    def _checked(self, layer: Layer, arrays: Mapping[str, np.ndarray]) -> Bound:
        """The layer's bound with these arrays in it. Raises ConstraintError where nothing is left."""
        after = self.bound_of(layer, ChainMap(dict(arrays), self.stored))  # type: ignore[arg-type]
        if after.upper == 0.0:
            raise ConstraintError(
                f"{layer.name}: {self.cap:.6g} is below what {layer.dtype} can hold: every entry would be zero"
            )
        return after

    def prove(self, written: Model, names: frozenset[str]) -> None:
        """Raise SoundnessError unless every layer of these names keeps the cap in the model read back."""
        again = replace(self, meter=Meter(self.meter.settings))
        for layer in extract(written).layers:
            if layer.name in names:
                bound = again.bound_of(layer, NOTHING)
                if bound.upper > self.cap:
                    raise SoundnessError(f"{layer.name}: {bound.upper!r} on disk, over the cap {self.cap!r}")

    def change_of(self, layer: Layer, before: Bound) -> Change:
        """What became of a layer once all layers are done: a later one may share its tensors."""
        if not self.stored.depth(layer):
            return Change(layer.name, layer.op, layer.dtype, self.which, before, before, 0.0, False)
        depth, after = self.settled.get(layer.name, (-1, before))
        if depth != self.stored.depth(layer):
            after = self.bound_of(layer, self.stored)
        if after.upper > self.cap:
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


def _notes(chosen: tuple[Layer, ...], measure: Measure) -> Iterator[str]:
    unknown = sum(layer.geometry is not None and not layer.geometry.known for layer in chosen)
    if measure == "operator" and unknown:
        yield (
            f"convolutions of unknown stride, dilation and groups ({unknown}) are capped for every choice "
            "of them; --measure matrix caps the reshaped kernel instead"
        )
    normed = [layer.name for layer in chosen if isinstance(layer.form, SpectralNorm)]
    if normed:
        yield (
            f"spectral_norm layers ({len(normed)}): the cap holds in evaluation; the first training step "
            "renormalises u and brings their matrix back to σ = 1"
        )


def _not_capped(model: Model, extraction: Extraction) -> Iterator[str]:
    """What acts as a weight and was not capped: matrices that could not be read, copies of weights."""
    missed = [item for item in (*model.left_out, *extraction.left_out) if item.missed]
    if missed:
        names = ", ".join(item.name for item in missed[:3]) + (", …" if len(missed) > 3 else "")
        yield f"not capped, because not read as matrices ({len(missed)}): {names}: {missed[0].reason}"
    for item in model.left_out:
        if "copy of the weights" in item.reason:
            yield f"not capped: {item.name}: {item.reason}; --key chooses it"
