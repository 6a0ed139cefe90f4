"""balance(path, …): the same network with its layers' norms evened out along each chain.

Layer j of a chain gets its weight times c_j, and what is added behind it times c₁⋯c_j; c₁⋯c_m = 1 for
the whole chain, so the function is the same (`chains`). The c_j are powers of two: every number is then
scaled exactly, and floating-point arithmetic makes the same bits, unless something over- or underflows.
Of all such c they make Σ(log norm)² least, which leaves any two norms of a chain within a factor 2: with
a larger spread, moving one factor 2 from the largest to the least lowers the sum, and where no exchange
of two does, none at all does (a separable convex function of integers of a given sum).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snaudit import formats
from snaudit.bound import Bound
from snaudit.chains import Link, find_chains
from snaudit.errors import ConstraintError, SoundnessError, UnsupportedModel, WriteError
from snaudit.extraction import extract
from snaudit.findings import Settings
from snaudit.layers import Layer
from snaudit.measuring import Meter
from snaudit.model import Model, Tensor
from snaudit.outputs import OutputChange
from snaudit.rewriting import Rewritten, write
from snaudit.writing import check_target

Progress = Callable[[int, int, str], None]
_SPREAD = 1.01
"""log₂ of the largest ratio of two norms that stays: above 1, so that twice is once whatever the last
digits of the measured norms."""


@dataclass(frozen=True, slots=True)
class Evened:
    """One layer of a chain: its norm before and after, and the exponent of the two that scales it."""

    name: str
    op: str
    dtype: str
    before: Bound
    after: Bound
    exponent: int


@dataclass(frozen=True, slots=True)
class Balance:
    """What `balance` did: the chains' layers with their norms, and the file that was written, or that
    would have been."""

    source: str
    target: str
    written: bool
    chains: tuple[tuple[Evened, ...], ...]
    layers: int
    notes: tuple[str, ...] = ()
    outputs: tuple[OutputChange, ...] = ()


def default_target(path: Path) -> Path:
    """MODEL.balanced.EXT beside the model."""
    return path.with_name(f"{path.stem}.balanced{path.suffix}")


def balance(
    path: Path,
    target: Path | None = None,
    *,
    settings: Settings = Settings(),
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Balance:
    """Write a copy of the ONNX model at `path` that computes the same function, bit for bit but for over-
    and underflow, with any two norms of a chain within a factor 2.

    Raises UnsupportedModel for a checkpoint (it has no graph), ConstraintError where the outputs move
    after all, WriteError, ModelError.
    """
    if os.path.isdir(path):
        path = formats.find_in_folder(path)
    wanted = default_target(path) if target is None else target
    real = check_target(wanted, force or dry_run)
    model = formats.read(path, settings.key)
    if model.graph is None or model.runnable is None:
        raise UnsupportedModel(path, "balance needs a graph, which says what stands between the layers: an ONNX file")
    if str(real) in {os.path.realpath(file.path) for file in model.files} - {os.path.realpath(path)}:
        raise WriteError(f"{wanted}: {path} needs this file")
    layers = extract(model).layers
    chains = find_chains(model.graph, layers)
    before = _norms(chains, Meter(settings), progress)
    plans, notes = [], []
    for chain in chains:
        plan, why = _exponents(chain, before)
        plans.append(plan)
        notes += [why] if why else []
    with Rewritten(real.parent if not dry_run else None) as stored:
        for chain, plan in zip(chains, plans, strict=True):
            stored.replace(_scaled(chain, plan))
        return _written(model, None if dry_run else real, wanted, chains, plans, before, stored, settings, notes, len(layers))


def _norms(
    chains: tuple[tuple[Link, ...], ...], meter: Meter, progress: Progress | None
) -> dict[str, Bound]:
    links = [link for chain in chains for link in chain]
    found = {}
    for index, link in enumerate(links):
        if progress is not None:
            progress(index, len(links), link.layer.name)
        found[link.layer.name] = meter.measure(link.layer).norm
    return found


def _exponents(chain: tuple[Link, ...], norms: dict[str, Bound]) -> tuple[list[int], str]:
    """log₂ c_j for each layer of a chain, and why they are all zero where they need not be."""
    none = [0] * len(chain)
    uppers = [norms[link.layer.name].upper for link in chain]
    name = f"{chain[0].layer.name} … {chain[-1].layer.name}"
    if not all(0.0 < upper < math.inf for upper in uppers):
        return none, f"not balanced: {name}: a norm is zero, or has no finite bound"
    logs = [math.log2(upper) for upper in uppers]
    plan = list(none)
    while max(logs) - min(logs) > _SPREAD:
        for index, move in ((logs.index(max(logs)), -1), (logs.index(min(logs)), 1)):
            logs[index] += move
            plan[index] += move
    for tensor, exponent in _steps(chain, plan):
        array = tensor.float64()
        back = _times(tensor, exponent).astype(np.float64)
        if not np.array_equal(np.ldexp(back, -exponent), array):
            why = f"{tensor.name} does not hold 2^{exponent} times its numbers exactly in {tensor.dtype}"
            return none, f"not balanced: {name}: {why}"
    return plan, ""


def _steps(chain: tuple[Link, ...], plan: list[int]) -> list[tuple[Tensor, int]]:
    """Each tensor of a chain that changes, with the exponent of its factor."""
    found, total = [], 0
    for link, exponent in zip(chain, plan, strict=True):
        total += exponent
        found.append((link.weight, exponent))
        found += [(tensor, total) for tensor in link.shifts]
    return [(tensor, exponent) for tensor, exponent in found if exponent]


def _times(tensor: Tensor, exponent: int) -> np.ndarray:
    array = tensor.load()
    with np.errstate(all="ignore"):
        return np.ldexp(array.astype(np.float64), exponent).astype(array.dtype)


def _scaled(chain: tuple[Link, ...], plan: list[int]) -> dict[str, np.ndarray]:
    return {tensor.name: _times(tensor, exponent) for tensor, exponent in _steps(chain, plan)}


def _written(
    model: Model, target: Path | None, wanted: Path, chains: tuple[tuple[Link, ...], ...], plans: list[list[int]],
    before: dict[str, Bound], stored: Rewritten, settings: Settings, notes: list[str], layers: int,
) -> Balance:  # fmt: skip
    """The outcome, once the copy is written, read back, measured and run."""
    names = {link.layer.name: link.layer for chain in chains for link in chain}
    after: dict[str, Bound] = {}
    outputs: tuple[OutputChange, ...] = ()
    if target is None:
        meter = Meter(settings)
        after = {name: meter.measure(layer, stored).norm for name, layer in names.items()}
    else:

        def prove(written: Model) -> None:
            meter = Meter(settings)
            found = {layer.name: layer for layer in extract(written).layers}
            after.update({name: meter.measure(found[name]).norm for name in names})
            if any(after[name].known != before[name].known for name in names):
                raise SoundnessError("a norm was lost by scaling it with a power of two")

        outputs, more = write(model, target, stored, settings, prove, accept=_unmoved)
        notes += more
    evened = tuple(
        tuple(_evened(link.layer, before, after, exponent) for link, exponent in zip(chain, plan, strict=True))
        for chain, plan in zip(chains, plans, strict=True)
    )
    return Balance(str(model.path), str(wanted), target is not None, evened, layers, (*model.notes, *notes), outputs)


def _evened(layer: Layer, before: dict[str, Bound], after: dict[str, Bound], exponent: int) -> Evened:
    return Evened(layer.name, layer.op, layer.dtype, before[layer.name], after[layer.name], exponent)


def _unmoved(outputs: tuple[OutputChange, ...]) -> None:
    """Raise ConstraintError where an output moved."""
    for output in outputs:
        if output.max_relative != 0.0:
            raise ConstraintError(
                f"output {output.name}: moved by {output.max_relative:.3g}, relative to its largest entry, on {output.on}: "
                "a value on the way over- or underflows, or the graph draws random numbers; nothing was written"
            )
