"""constrain(path, …): a copy of a model in which no layer stretches more than a cap.

Spectral norm constraint (Yoshida & Miyato 2017; Gouk et al. 2021): a weight whose σ exceeds the cap
is scaled down as a whole so that its σ equals it; spectral normalization (Miyato et al. 2018) scales
every weight; a clip sets only the singular values above the cap to it (`projections`). The scale is
cap/upper with the *certified* upper end, and the cap is proved again for the rounded numbers and for
the bytes on disk, because rounding to the stored dtype can raise σ. A limit on the network's bound
becomes caps of its layers (`budget`), and the bound is proved again from the file that was written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from snaudit import budget, formats
from snaudit.bound import Bound
from snaudit.capping import Capping, Change, How, Measure
from snaudit.errors import ConstraintError, EmptyModel, UsageError, WriteError
from snaudit.extraction import extract
from snaudit.feeds import Given, read_feed
from snaudit.findings import Settings
from snaudit.forms import SpectralNorm
from snaudit.layers import Extraction, Layer, select
from snaudit.measuring import Meter
from snaudit.model import Model
from snaudit.outputs import OutputChange
from snaudit.rewriting import Rewritten, write
from snaudit.writing import check_target, new_folder

Progress = Callable[[int, int, str], None]
_HOWS = ("scale", "normalize", "clip", "soft")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a constrain run; `target` is the file written, or that would have been."""

    source: str
    target: str
    written: bool
    measure: Measure
    max_sigma: float | None
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    outputs: tuple[OutputChange, ...] = ()
    how: How = "scale"
    max_lipschitz: float | None = None
    network: tuple[Bound, Bound | None] | None = None
    """With a limit on the network: its bound before, and in the file that was written."""


def default_target(path: Path) -> Path:
    """MODEL.constrained.EXT beside the model."""
    name = path.name
    ending = formats.INDEX if name.endswith(formats.INDEX) else path.suffix
    return path.with_name(f"{name.removesuffix(ending)}.constrained{ending}")


def _place(path: Path, target: Path | None) -> tuple[Path, bool]:
    """(the file that is to be written, whether its folder may have to be made). For a model in shards the
    target may be a folder, and what does not end in .json is one: it gets an index of the same name."""
    if target is None:
        return default_target(path), False
    folder = os.path.isdir(target) or (target.suffix != ".json" and not os.path.lexists(target))
    return (target / path.name, True) if folder and path.name.endswith(formats.INDEX) else (target, False)


def constrain(
    path: Path,
    target: Path | None = None,
    max_sigma: float | None = None,
    *,
    max_lipschitz: float | None = None,
    settings: Settings = Settings(),
    how: How = "scale",
    normalize: bool = False,
    measure: Measure = "operator",
    layers: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    force: bool = False,
    dry_run: bool = False,
    data: Path | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Write a copy of the model at `path` in which the chosen layers keep σ ≤ max_sigma (default 1, where
    there is no other limit), and the network's bound, as `audit` reports it, is at most max_lipschitz.

    how: "scale" the whole weight where σ exceeds the cap; "normalize" (or normalize=True): always;
    "clip": only the singular values above it, the nearest such weight in Frobenius norm; "soft": as
    clip, with the smooth σ ↦ σ/(1 + (σ/cap)⁴)^¼. Clipped and softened weights keep their dtype,
    kernel and rank, and end with the scale that the proof still needs.
    measure: "operator" caps the layer as the operator that it applies (a convolution's Lipschitz
    constant), "matrix" the σ of the reshaped weight, "folded" the operator with the scales that stand around
    it in the graph (BatchNorm, Mul): what is scaled is the kernel. All in the file that is not changed stays
    bit-equal. data: input (`read_feed`) on which a graph's outputs are compared, besides random input.
    Raises UsageError for limits that are no positive numbers or do not go together,
    ConstraintError where a weight is not finite, or a layer or the network cannot be brought under its
    limit, WriteError, ModelError. A folder as the target: see `_place`.
    """
    if max_sigma is None and max_lipschitz is None:
        max_sigma = 1.0
    how = _checked(max_sigma, max_lipschitz, settings, how, normalize, measure)
    if os.path.isdir(path):
        path = formats.find_in_folder(path)
    wanted, new = _place(path, target)
    real = check_target(wanted, force or dry_run, new)
    model = formats.read(path, settings.key, settings.input_size or ())
    parts = {os.path.realpath(file.path) for file in model.files} - {os.path.realpath(model.path)}
    if str(real) in parts:
        raise WriteError(f"{wanted}: {path} needs this file")
    if measure == "folded" and model.graph is None:
        raise UsageError("--measure folded needs a graph, which says what scales a layer: a bare checkpoint has none")
    extraction = extract(model)
    if not extraction.layers:
        raise EmptyModel(path, "no weight matrix to constrain in it")
    chosen = select(extraction.layers, layers, skip)
    given = None if data is None else read_feed(data, model.graph if model.runnable else None)
    run = _Run(model, extraction, chosen, settings, measure, how, None if dry_run else real, progress, given)
    caps = {} if max_sigma is None else {layer.name: max_sigma for layer in chosen}
    with new_folder(real.parent, not dry_run):
        if max_lipschitz is None:
            changes, outputs, notes, network = *run.rewrite(caps), None
        else:
            changes, outputs, notes, network = run.within(max_lipschitz, caps)
    zeros = _zeros(changes) if how == "normalize" else ()
    return Outcome(
        str(path), str(wanted), not dry_run, measure, max_sigma, changes,
        model.notes + tuple(_notes(chosen, measure, settings.input_size or ())) + tuple(_not_capped(model, extraction)) + tuple(zeros) + notes,
        outputs, how, max_lipschitz, network,
    )  # fmt: skip


def _checked(
    max_sigma: float | None, max_lipschitz: float | None, settings: Settings, how: How, normalize: bool,
    measure: Measure,
) -> How:  # fmt: skip
    """How to constrain. Raises UsageError for options that are none, or contradict each other."""
    for name, limit in (("--max-sigma", max_sigma), ("--max-lipschitz", max_lipschitz)):
        if limit is not None and not (limit > 0 and math.isfinite(limit)):
            raise UsageError(f"{name} must be a positive number, not {limit}")
    if measure not in ("operator", "matrix", "folded"):
        raise UsageError(f"measure must be operator, matrix or folded, not {measure!r}")
    if how not in _HOWS or (normalize and how not in ("scale", "normalize")):
        raise UsageError(f"--how must be one of {', '.join(_HOWS)}, and --normalize is one of them")
    how = "normalize" if normalize else how
    if settings.of_output is not None or settings.from_input is not None:
        raise UsageError("constrain takes the network as a whole: leave out of_output and from_input")
    if how in ("clip", "soft") and settings.norm != "l2":
        raise UsageError(f"{how} moves singular values: it needs the l2 norm, not {settings.norm}")
    if how in ("clip", "soft") and measure == "folded":
        raise UsageError(f"--measure folded scales the kernel as a whole: not with --how {how}")
    if max_lipschitz is not None and (measure != "operator" or how == "normalize"):
        given = f"--measure {measure}" if measure != "operator" else "--how normalize"
        raise UsageError(f"--max-lipschitz caps layers as operators, from above: not with {given}")
    return how


class _Missed(Exception):
    """The bound of the file read back is over its limit, or further below it than need be."""


@dataclass(frozen=True, slots=True)
class _Run:
    """One model and the way in which it is rewritten; target is None for a dry run."""

    model: Model
    extraction: Extraction
    chosen: tuple[Layer, ...]
    settings: Settings
    measure: Measure
    how: How
    target: Path | None
    progress: Progress | None
    given: Given | None

    def rewrite(
        self, caps: Mapping[str, float], prove: Callable[[Model], None] = lambda written: None
    ) -> tuple[tuple[Change, ...], tuple[OutputChange, ...], tuple[str, ...]]:
        """(changes, what became of the outputs, notes) of the copy with these caps, once it is proved."""
        with Rewritten(None if self.target is None else self.target.parent) as stored:
            capping = Capping(Meter(self.settings), caps, self.measure, self.how, stored)
            changes = capping.bring_all_under(self.chosen, self.progress)
            if self.target is None:
                return changes, (), ()

            def proved(written: Model) -> None:
                capping.prove(written)
                prove(written)

            return changes, *write(self.model, self.target, stored, self.settings, proved, self.given)

    def within(
        self, limit: float, caps: Mapping[str, float]
    ) -> tuple[tuple[Change, ...], tuple[OutputChange, ...], tuple[str, ...], tuple[Bound, Bound | None]]:
        """As `rewrite`, with the caps that bring the network's bound under the limit as well.

        What the layers' caps make of the bound is known for the composition over the graph only, so
        the written file decides: the goal for the composition is moved until the file's bound is
        under the limit and near it.
        """
        plan = budget.Budget(self.model, self.extraction, self.chosen, Meter(self.settings))
        search = budget.Goals(limit, limit * plan.slack)
        while search.goal is not None:
            shared = plan.caps(search.goal)
            both = {name: min(cap, caps.get(name, math.inf)) for name, cap in shared.items()}
            found: list[Bound] = []

            def prove(written: Model, found: list[Bound] = found) -> None:
                found.append(budget.bound_of(written, extract(written), Meter(self.settings)))
                if not search.accepts(found[0].upper, bool(shared)):
                    raise _Missed

            try:
                changes, outputs, notes = self.rewrite({**caps, **both}, prove)
            except _Missed:
                search.move(found[0].upper)
                continue
            return changes, outputs, notes + plan.notes, (plan.before, found[0] if found else None)
        raise ConstraintError(f"no caps of the layers bring the network's bound under {limit:.6g}")


def _notes(chosen: tuple[Layer, ...], measure: Measure, sizes: tuple[str, ...]) -> Iterator[str]:
    if sizes:
        yield f"limits are kept, and proved, at the input size given, {'; '.join(sizes)}: at no other"
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


def _zeros(changes: tuple[Change, ...]) -> Iterator[str]:
    """What no factor brings to the cap."""
    names = [change.name for change in changes if change.before.upper == 0.0]
    if names:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        yield f"not normalized, because all entries are zero ({len(names)}): {shown}"


def _not_capped(model: Model, extraction: Extraction) -> Iterator[str]:
    """What acts as a weight and was not capped: matrices that could not be read, copies of weights."""
    missed = [item for item in (*model.left_out, *extraction.left_out) if item.missed]
    if missed:
        names = ", ".join(item.name for item in missed[:3]) + (", …" if len(missed) > 3 else "")
        yield f"not capped, because not read as matrices ({len(missed)}): {names}: {missed[0].reason}"
    for item in model.left_out:
        if "copy of the weights" in item.reason:
            yield f"not capped: {item.name}: {item.reason}; --key chooses it"
