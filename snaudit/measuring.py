"""Measuring layers: each stored matrix once, whatever number of names and uses it has."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from snaudit import sigma
from snaudit.bound import UNBOUNDED, Bound, Grade, Norm, down, scaled, times_up, up
from snaudit.errors import SoundnessError
from snaudit.findings import Finding, LayerResult, Settings
from snaudit.forms import NOTHING, Stored
from snaudit.layers import Layer
from snaudit.linear import BLOCK, AnyMap, BlockDiagonal, Convolution, Dense, LowRank, flat
from snaudit.rounding import TINY, exponent_of, frobenius_up, gamma, scale, unscale
from snaudit.sigma.interface import Options, PowerEstimate
from snaudit.sigma.scaling import arrays_of
from snaudit.threads import Job, available, in_order

_HUGE = 2e10
"""Products in a WᵀW that gets all BLAS threads: half a second of one."""
_ROOM = 1 << 28
"""Bytes of float64 weights that may be under way, if none of them alone is larger than half of it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers of one layer: σ of its matrix, the norm of its operator, and what goes with them."""

    sigma: Bound
    norm: Bound
    power: PowerEstimate | None
    frobenius: float
    spectrum: tuple[float, ...] | None = None
    condition: float | None = None
    why: tuple[str, str] = ("", "")
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Known:
    """A weight that was met: how to read it again, its digest once that was needed, its numbers once
    they are `done`."""

    reread: Callable[[], AnyMap]
    digest: bytes | None = None
    measured: Measured | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> Measured:
        """The numbers, which another thread may still be at. Its error, if any, comes up there."""
        self.done.wait()
        if self.measured is None:
            raise SoundnessError("an equal weight could not be measured")
        return self.measured


@dataclass(slots=True)
class Meter:
    """Measures layers under one set of settings, and remembers what it measured by content."""

    settings: Settings
    known: dict[bytes, list[_Known]] = field(default_factory=dict)
    arrays: dict[bytes, Bound] = field(default_factory=dict)

    @property
    def options(self) -> Options:
        s = self.settings
        asked = {} if s.rtol is None else {"rtol": s.rtol, "budget": None}
        return Options(method=s.method, device=s.device, iterations=s.iterations, seed=s.seed, **asked)

    def measure(self, layer: Layer, stored: Stored = NOTHING) -> Measured:
        """The layer's numbers, from memory where equal bytes in equal geometry were measured."""
        return self._prepared(layer, stored)()

    def measure_all(self, layers: Sequence[Layer]) -> Iterator[Measured]:
        """The numbers of each layer in order, several at once on the threads of the settings."""
        sizes = [8 * math.prod(layer.shape) for layer in layers]
        jobs = [
            Job(size, _is_huge(layer), partial(self._prepared, layer))
            for layer, size in zip(layers, sizes, strict=True)
        ]
        threads = self.settings.threads or available()
        workers = None if self.settings.device == "cpu" else 1  # reads the next while the GPU computes
        room = max(_ROOM, 2 * max(sizes, default=0))
        yield from in_order(jobs, threads, room, workers)

    def norm_at(self, layer: Layer, index: int) -> Bound:
        """The norm of the node's own operator for one of the layer's outputs, without its gain."""
        places = layer.places[index : index + 1]
        return self.measure(replace(layer, gain=1.0, places=places)).norm

    def norm_of(self, operator: AnyMap) -> Bound:
        """The norm of a map that is no layer by itself (a stretch of several): the upper end matters."""
        return sigma.measure(operator, self.settings.norm, replace(self.options, lower=False))

    def norm_of_array(self, matrix: np.ndarray) -> Bound:
        """The norm of a matrix that a rule has put together, from memory where an equal one was measured."""
        key = hashlib.sha256(repr((matrix.shape, matrix.dtype.str)).encode() + np.ascontiguousarray(matrix).tobytes()).digest()
        if key not in self.arrays:
            self.arrays[key] = self.norm_of(Dense(matrix))
        return self.arrays[key]

    def _prepared(self, layer: Layer, stored: Stored = NOTHING) -> Callable[[], Measured]:
        """Reads the layer; what it returns measures it, or waits for whoever measures an equal one."""
        matrix, operator = layer.maps(stored)
        rounding = layer.form.rounding(stored)
        known, new = self._remembered(layer, matrix, rounding, not stored)
        if not new:
            return known.wait

        def work() -> Measured:
            try:
                known.measured = self._measure(layer, matrix, operator, rounding)
            finally:
                known.done.set()
            return known.measured

        return work

    def _remembered(
        self, layer: Layer, matrix: AnyMap, rounding: float, lasting: bool
    ) -> tuple[_Known, bool]:
        """(what is known of an equal weight in equal geometry, whether this is the first of its kind).

        Weights that agree in shape and in a sample of their entries are compared by a digest of all;
        the earlier one is read again for it, unless it was no part of the file (`lasting`).
        """
        facts = (layer.geometry, layer.shape, rounding, layer.gain, layer.assumption, tuple(dict.fromkeys(layer.places)))
        alike = self.known.setdefault(_sample(matrix) + repr(facts).encode(), [])
        own = _digest(matrix) if alike or not lasting else None
        for known in alike:
            if known.digest is None:
                known.digest = _digest(known.reread())
            if known.digest == own:
                return known, False
        known = _Known(lambda: layer.maps()[0], own)
        alike.append(known)
        return known, True

    def _measure(self, layer: Layer, matrix: AnyMap, operator: AnyMap, rounding: float) -> Measured:
        norm: Norm = self.settings.norm
        found = sigma.survey(matrix, self.options)
        first, why = _widened(found.bound, rounding), found.why
        if operator is matrix and norm == "l2":
            second = first
        elif layer.geometry is not None and not layer.geometry.known and norm != "l2":
            second, why = _widened(self._sums_for_every_geometry(operator, norm), rounding), "sums: the norm itself"
        else:
            maps = layer.here(operator) if isinstance(operator, Convolution) else (operator,)
            second = _widened(self._largest(maps), rounding)
            why = sigma.choose(maps[0], norm, self.options)[1]
        if layer.geometry is not None and isinstance(matrix, LowRank):
            second = _with_product_rounding(second, matrix, layer, norm)
        if layer.geometry is not None and not layer.geometry.known and norm == "l2":
            second = _for_every_geometry(matrix, second, rounding)
        second = scaled(second, layer.gain)
        if layer.assumption:
            first, second = (replace(bound, grade=Grade.ASSUMED) for bound in (first, second))
        power = found.power if self.settings.iterations > 0 else None
        spectrum, condition = _spectrum(matrix) if self.settings.spectrum and first.bounded else (None, None)
        reasons = (found.why, why)
        return Measured(first, second, power, found.frobenius, spectrum, condition, reasons, found.notes)

    def _largest(self, operators: tuple[AnyMap, ...]) -> Bound:
        """The largest norm of one layer in its several places."""
        bounds = [sigma.measure(operator, self.settings.norm, self.options) for operator in operators]
        worst = max(bounds, key=lambda bound: bound.upper)
        if len(bounds) == 1:
            return worst
        lower, grade = max(bound.lower for bound in bounds), min(bound.grade for bound in bounds)
        return replace(worst, lower=lower, grade=grade, method=f"{worst.method}, of {len(bounds)} sizes")

    def _sums_for_every_geometry(self, operator: AnyMap, norm: Norm) -> Bound:
        """An upper bound in l1 or linf of a kernel of unknown stride, dilation, groups, orientation.

        In either norm, each entry of a row (or column) sum of |W| belongs to one slice of the first
        or of the second stored axis, whichever the layer makes outputs of; stride and groups only
        leave entries out. So the largest sum over slices of either axis bounds all readings.
        """
        assert isinstance(operator, Convolution)
        kernel = operator.kernel
        sums = [
            sigma.measure(Dense(flat(np.moveaxis(kernel, axis, 0))), "linf", self.options)
            for axis in (0, 1)
        ]
        worst = max(sums, key=lambda bound: bound.upper)
        return replace(worst, lower=0.0, method=f"{worst.method}, every geometry")


def _widened(bound: Bound, relative: float) -> Bound:
    """The enclosure for a weight that is known up to a relative error only."""
    if relative == 0.0 or not bound.bounded:
        return bound
    if relative >= 1.0:
        return replace(UNBOUNDED, method="the weight cancels to less than a digit")
    return replace(bound, lower=down(bound.lower * (1 - relative)), upper=times_up(bound.upper, 1 + relative))


def _with_product_rounding(bound: Bound, pair: LowRank, layer: Layer, norm: Norm) -> Bound:
    """The enclosure of a convolution whose kernel is fl(B·A), off by a kernel E with ‖E‖_F ≤ γ_r‖B‖_F‖A‖_F.

    E's operator has an l2 norm of at most Σ_t‖E_t‖ ≤ √taps·‖E‖_F, and row and column sums (whatever the
    stride, groups and orientation leave out) of at most √size·‖E‖_F (both by Cauchy–Schwarz).
    """
    count = math.prod(layer.shape[2:] if norm == "l2" else layer.shape)
    exponents = exponent_of(pair.left), exponent_of(pair.right)
    sizes = [frobenius_up(scale(x, e)) for x, e in zip((pair.left, pair.right), exponents, strict=True)]
    error = 1.01 * gamma(pair.right.shape[0] + 2) * sizes[0] * sizes[1]
    error = times_up(unscale(0.0, error, sum(exponents))[1], 1.01 * math.sqrt(count))
    if any(exponents):
        error += TINY  # products of such factors may underflow
    return replace(bound, lower=max(0.0, down(bound.lower - error)), upper=up(bound.upper + error))


def _for_every_geometry(matrix: AnyMap, bound: Bound, rounding: float) -> Bound:
    """A kernel of unknown stride, dilation, groups: the upper end as it is (all other
    choices select or spread what stride 1 in one group computes); from below, one output unit in
    the interior is a functional whose norm is that of its own row, whatever the choice.
    """
    if not bound.bounded:
        return bound
    lower = 0.0
    if isinstance(matrix, Dense):
        lower = down(max((_euclidean_down(row) for row in matrix.weight), default=0.0) * (1 - rounding))
    return replace(bound, lower=min(lower, bound.upper), method=f"{bound.method}, every geometry")


def _euclidean_down(row: np.ndarray) -> float:
    """‖row‖₂ rounded down: below the exact value for fewer than 1e9 entries."""
    largest = float(np.max(np.abs(row), initial=0.0))
    if largest == 0.0 or not np.isfinite(largest):
        return 0.0
    scaled = row / largest  # each entry off by at most one rounding
    return down(largest * float(np.sqrt(np.sum(scaled * scaled))) * (1 - (row.size + 8) * 2.0**-53))


def _spectrum(matrix: AnyMap) -> tuple[tuple[float, ...], float | None]:
    """(all singular values in falling order, σ₁/σ_min, or None where σ_min is zero)."""
    if isinstance(matrix, BlockDiagonal):
        parts = [sigma.singular_values(Dense(block).dense()) for block in matrix.blocks]
        values = np.sort(np.concatenate(parts))[::-1] if parts else np.zeros(0)
    else:
        values = sigma.singular_values(matrix.dense())
    condition = float(values[0] / values[-1]) if values.size and values[-1] > 0 else None
    return tuple(float(value) for value in values), condition


def _is_huge(layer: Layer) -> bool:
    """Whether one product WᵀW is worth all BLAS threads; the rest run side by side, one thread each."""
    if layer.geometry is not None or layer.stacked:
        return False
    return math.prod(layer.matrix) * min(layer.matrix) > _HUGE


def _sample(matrix: AnyMap) -> bytes:
    """A key that is equal for equal matrices; some entries only."""
    arrays = arrays_of(matrix)
    parts = [repr((type(matrix).__name__, [(array.shape, array.dtype.name) for array in arrays])).encode()]
    for array in arrays:
        parts.append(array[tuple(slice(None, None, max(1, n // 16)) for n in array.shape)].tobytes())
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def _digest(matrix: AnyMap) -> bytes:
    """A digest of all stored entries."""
    digest = hashlib.sha256()
    for array in arrays_of(matrix):
        step = max(1, BLOCK // max(1, math.prod(array.shape[1:])))
        for start in range(0, len(array), step):
            digest.update(np.ascontiguousarray(array[start : start + step]).view(np.uint8).data)
    return digest.digest()


def not_finite(layer: Layer) -> Finding | None:
    """A finding where a weight holds NaN or infinities, with the tensor and how many; else None."""
    for tensor in layer.form.tensors:
        if not tensor.is_real:
            continue
        values = tensor.float64()
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        if bad:
            nan = int(np.count_nonzero(np.isnan(values)))
            text = f"{bad} of {values.size} entries are not finite ({nan} NaN, {bad - nan} infinite): σ is unbounded"
            return Finding("not-finite", "error", tensor.name, text)
    return None


def result_of(layer: Layer, measured: Measured) -> LayerResult:
    """The layer as it stands in a report."""
    stable = None
    top = measured.sigma.lower if measured.sigma.lower > 0 else measured.sigma.upper
    if 0 < top < np.inf and np.isfinite(measured.frobenius):
        stable = (measured.frobenius / top) ** 2
    return LayerResult(
        name=layer.name,
        op=layer.op,
        shape=layer.shape,
        dtype=layer.dtype,
        matrix=layer.matrix,
        uses=layer.uses,
        sigma=measured.sigma,
        power=measured.power,
        norm=measured.norm,
        frobenius=measured.frobenius,
        stable_rank=stable,
        used_by=layer.used_by,
        notes=(*layer.notes, *measured.notes),
        spectrum=measured.spectrum,
        condition=measured.condition,
        aliases=layer.aliases,
        why=measured.why,
    )
