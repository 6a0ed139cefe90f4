"""Measuring layers: each stored matrix once, whatever number of names and uses it has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from snaudit import sigma
from snaudit.bound import UNBOUNDED, Bound, Grade, Norm, down, scaled, times_up, up
from snaudit.findings import Finding, LayerResult, Settings
from snaudit.forms import NOTHING, Stored
from snaudit.layers import Layer
from snaudit.linear import AnyMap, BlockDiagonal, Convolution, Dense, LowRank, flat
from snaudit.rounding import frobenius_up, gamma
from snaudit.sigma.interface import NOT_FINITE, Options, PowerEstimate


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers of one layer: σ of its matrix, the norm of its operator, and what goes with them."""

    sigma: Bound
    norm: Bound
    power: PowerEstimate | None
    frobenius: float
    spectrum: tuple[float, ...] | None = None
    condition: float | None = None


@dataclass(slots=True)
class Meter:
    """Measures layers under one set of settings, and remembers what it measured by content."""

    settings: Settings
    known: dict[bytes, Measured] = field(default_factory=dict)

    @property
    def options(self) -> Options:
        s = self.settings
        return Options(s.method, s.device, s.rtol, s.iterations, s.seed)

    def measure(self, layer: Layer, stored: Stored = NOTHING) -> Measured:
        """The layer's numbers, from memory where equal bytes in equal geometry were measured."""
        matrix, operator = layer.maps(stored)
        rounding = layer.form.rounding(stored)
        key = _digest(matrix, layer) + repr((rounding, layer.gain, layer.assumption)).encode()
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self._measure(layer, matrix, operator, rounding)
        return found

    def norm_at(self, layer: Layer, index: int) -> Bound:
        """The norm of the node's own operator for one of the layer's outputs, without its gain."""
        places = layer.places[index : index + 1]
        return self.measure(replace(layer, gain=1.0, places=places)).norm

    def norm_of(self, operator: AnyMap) -> Bound:
        """The norm of a map that is no layer by itself (a stretch of several)."""
        return sigma.measure(operator, self.settings.norm, self.options)

    def _measure(self, layer: Layer, matrix: AnyMap, operator: AnyMap, rounding: float) -> Measured:
        norm: Norm = self.settings.norm
        first = _widened(sigma.measure(matrix, "l2", self.options), rounding)
        if operator is matrix and norm == "l2":
            second = first
        elif layer.geometry is not None and not layer.geometry.known and norm != "l2":
            second = _widened(self._sums_for_every_geometry(operator, norm), rounding)
        else:
            second = _widened(self._largest(layer.here(operator) if isinstance(operator, Convolution) else (operator,)), rounding)
        if layer.geometry is not None and isinstance(matrix, LowRank):
            second = _with_product_rounding(second, matrix, layer)
        if layer.geometry is not None and not layer.geometry.known and norm == "l2":
            second = _for_every_geometry(matrix, second, rounding)
        second = scaled(second, layer.gain)
        if layer.assumption:
            first, second = (replace(bound, grade=Grade.ASSUMED) for bound in (first, second))
        power = None
        if first.method != NOT_FINITE and self.settings.iterations > 0:
            power = sigma.power_estimate(matrix, self.settings.iterations, self.settings.seed)
        spectrum, condition = _spectrum(matrix) if self.settings.spectrum and first.bounded else (None, None)
        return Measured(first, second, power, _frobenius(matrix), spectrum, condition)


    def _largest(self, operators: tuple[AnyMap, ...]) -> Bound:
        """The largest norm of one layer in its several places."""
        bounds = [self.norm_of(operator) for operator in operators]
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


def _with_product_rounding(bound: Bound, pair: LowRank, layer: Layer) -> Bound:
    """The enclosure of a convolution whose kernel is fl(B·A): the exact kernel differs by at most
    γ_r‖B‖_F‖A‖_F in Frobenius norm, the operator by at most √taps times that (any of the norms: by
    √size more)."""
    taps, size = float(np.prod(layer.shape[2:])), float(np.prod(layer.shape))
    error = 1.01 * gamma(pair.right.shape[0] + 2) * frobenius_up(pair.left) * frobenius_up(pair.right)
    error = times_up(error, np.sqrt(taps) * (1.0 if bound.method.startswith("fourier") else np.sqrt(size)) * 1.01)
    return replace(bound, lower=max(0.0, down(bound.lower - error)), upper=up(bound.upper + error))


def _for_every_geometry(matrix: AnyMap, bound: Bound, rounding: float) -> Bound:
    """A kernel of unknown stride, dilation, groups: the upper end as it is (MATH R11: all other
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
        parts = [sigma.singular_values(block) for block in matrix.blocks]
        values = np.sort(np.concatenate(parts))[::-1] if parts else np.zeros(0)
    else:
        values = sigma.singular_values(matrix.dense())
    condition = float(values[0] / values[-1]) if values.size and values[-1] > 0 else None
    return tuple(float(value) for value in values), condition


def _frobenius(matrix: AnyMap) -> float:
    """‖W‖_F; of a low-rank product through its Gram matrices."""
    with np.errstate(all="ignore"):
        if isinstance(matrix, LowRank):
            gram = (matrix.left.T @ matrix.left) * (matrix.right @ matrix.right.T)
            return float(np.sqrt(max(0.0, float(np.sum(gram)))))
        entries = matrix.blocks if isinstance(matrix, BlockDiagonal) else matrix.dense()
        largest = float(np.max(np.abs(entries), initial=0.0))
        if largest == 0.0 or not np.isfinite(largest):
            return largest
        return largest * float(np.linalg.norm((entries / largest).ravel()))


def _digest(matrix: AnyMap, layer: Layer) -> bytes:
    """A key that is equal only for the same numbers in the same geometry."""
    digest = hashlib.blake2b(digest_size=16)
    parts = {
        Dense: lambda: (matrix.weight,),
        LowRank: lambda: (matrix.left, matrix.right),
        BlockDiagonal: lambda: (matrix.blocks,),
    }[type(matrix)]()
    digest.update(repr((type(matrix).__name__, layer.geometry, layer.shape, dict.fromkeys(layer.places))).encode())
    for part in parts:
        digest.update(repr(part.shape).encode())
        digest.update(np.ascontiguousarray(part).data)
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
        notes=layer.notes,
        spectrum=measured.spectrum,
        condition=measured.condition,
        aliases=layer.aliases,
    )
