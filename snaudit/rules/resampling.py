"""Resize and Upsample: a tensor product of one-dimensional interpolations, whose norms multiply."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from snaudit.bound import Bound, at_most, chain, exactly
from snaudit.broadcasting import dims
from snaudit.gains import copies, non_negative, outward, signed
from snaudit.rules.interface import Row, Step, Unbounded, Value, through

_LARGEST = 1 << 21  # entries of a one-dimensional matrix that is still built
_MODES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")


@dataclass(frozen=True, slots=True)
class Kind:
    """How positions are mapped and entries mixed; as in ONNX's reference."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude: bool

    def positions(self, size: int, out: int, scale: float) -> np.ndarray:
        """Where each output entry lies among the input's."""
        x = np.arange(out, dtype=np.float64)
        if self.coordinates == "asymmetric":
            return x / scale
        if self.coordinates == "align_corners":
            return x * (size - 1) / (out - 1) if out > 1 else np.zeros(out)
        if self.coordinates == "pytorch_half_pixel" and out == 1:
            return np.zeros(1)
        half = (x + 0.5) / scale - 0.5
        if self.coordinates == "half_pixel_symmetric":
            return half + size / 2 * (1 - out / (scale * size))
        return half

    def indices(self, places: np.ndarray, size: int) -> np.ndarray:
        """The entry that `nearest` takes at each place."""
        down = np.ceil(places - 0.5)
        up = np.floor(places + 0.5)
        rounded = {
            "round_prefer_floor": down,
            "round_prefer_ceil": up,
            "floor": np.floor(places),
            "ceil": np.ceil(places),
        }
        return np.clip(rounded[self.nearest], 0, size - 1).astype(np.int64)

    def matrix(self, size: int, out: int, scale: float) -> np.ndarray:
        """The one-dimensional interpolation, (out, size); entries beyond the ends are the ends'."""
        places = self.positions(size, out, scale)
        if self.mode == "linear":
            places = np.clip(places, 0, size - 1)
            taps = (0, 1)
        else:
            taps = (-1, 0, 1, 2)
        base = np.floor(places)
        fraction = places - base
        result = np.zeros((out, size))
        weights = np.stack([self._weight(np.abs(fraction - tap)) for tap in taps], axis=1)
        index = base[:, None].astype(np.int64) + np.array(taps)
        if self.exclude and self.mode == "cubic":
            weights = np.where((index < 0) | (index >= size), 0.0, weights)
            weights /= weights.sum(axis=1, keepdims=True)
        np.add.at(result, (np.arange(out)[:, None], np.clip(index, 0, size - 1)), weights)
        return result

    def _weight(self, distance: np.ndarray) -> np.ndarray:
        if self.mode == "linear":
            return np.maximum(0.0, 1.0 - distance)
        a, d = self.cubic, distance
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    def norm(self, size: int, out: int, scale: float, step: Step) -> Bound:
        if self.mode == "nearest":
            return copies(self._copies(size, out, scale), step.norm)
        matrix = self.matrix(size, out, scale)
        return (non_negative if self.mode == "linear" else signed)(matrix, step.norm)

    def _copies(self, size: int, out: int, scale: float) -> int:
        places = self.positions(size, out, scale)
        chosen = [self.indices(places, size)]
        if scale != int(scale) and 1 / scale != int(1 / scale):
            # a runtime's float32 may round a tie either way: count both
            slack = 1e-5 * (1.0 + np.abs(places))
            chosen = [self.indices(places - slack, size), self.indices(places + slack, size)]
        counts = np.bincount(chosen[0], minlength=size)
        for other in chosen[1:]:
            counts += np.bincount(other[other != chosen[0]], minlength=size)
        return int(counts.max(initial=0))


def resize(step: Step) -> tuple[Value, ...]:
    """The product of its axes' norms times the input's.

    nearest: √copies (l2), copies (l1), 1 (linf). linear, cubic: the interpolation matrix is built for
    the axis' size (l2: Collatz–Wielandt, and for cubic, which has negative weights, the SVD). Where
    the size is not known and the scale is a whole number or its reciprocal, the worst of all ways to
    meet the ends, by √(row sum·column sum). No antialiasing, no cropping.
    """
    kind = _kind(step)
    gain = exactly(1.0, "interpolation")
    for size, out, scale in _extents(step):
        if scale is not None and scale == 1.0 and kind.coordinates != "align_corners":
            continue
        if size == out and size is not None and scale is None:
            continue
        gain = chain(gain, _axis(kind, size, out, scale, step), "interpolation")
    return (through(step.data(), gain),)


def _kind(step: Step) -> Kind:
    old = step.node.op_type == "Upsample" or step.opset < 11
    coordinates = "asymmetric" if old else step.attribute("coordinate_transformation_mode", "half_pixel")
    kind = Kind(
        step.attribute("mode", "nearest"),
        coordinates,
        "floor" if old else step.attribute("nearest_mode", "round_prefer_floor"),
        float(step.attribute("cubic_coeff_a", -0.75)),
        bool(step.attribute("exclude_outside", 0)),
    )
    kind = Kind("linear", *_rest(kind)) if kind.mode == "bilinear" else kind
    if kind.mode not in ("nearest", "linear", "cubic") or coordinates not in _MODES:
        raise Unbounded(
            f"Resize with mode {kind.mode}, {coordinates} is not bounded yet",
            "use nearest, linear or cubic without cropping",
            "no-rule",
        )
    if step.attribute("antialias", 0) or step.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unbounded(
            "Resize with antialiasing or a kept aspect ratio is not bounded yet",
            "use AveragePool, or plain Resize",
            "no-rule",
        )
    return kind


def _rest(kind: Kind) -> tuple[str, str, float, bool]:
    return kind.coordinates, kind.nearest, kind.cubic, kind.exclude


def _extents(step: Step) -> list[tuple[int | None, int | None, float | None]]:
    """(input size, output size, scale) of each axis that is resized; scale None where sizes are given."""
    shape, result = dims(step.node.inputs[0]), dims(step.node.outputs[0])
    scales, sizes = _given(step)
    given = scales if scales is not None else sizes
    rank = len(shape) if shape is not None else (None if given is None else len(given))
    if given is None:
        if shape is None or result is None:
            raise Unbounded(
                "the resized sizes are not known", "make scales or sizes a constant", "unknown-shape"
            )
        given = sizes = np.array([d if isinstance(d, int) else -1 for d in result])
        same = [a == b for a, b in zip(shape, result, strict=True)]
    else:
        same = [False] * (rank or 0)
    axes = [int(a) % rank for a in step.attribute("axes", range(rank))]
    found = []
    for position, axis in enumerate(axes):
        if same[axis]:
            continue
        size = shape[axis] if shape is not None and isinstance(shape[axis], int) else None
        if scales is not None:
            scale = float(scales[position])
            found.append((size, None if size is None else math.floor(size * scale), scale))
        else:
            out = int(given[position])
            found.append((size, out if out >= 0 else None, None))
    return found


def _given(step: Step) -> tuple[np.ndarray | None, np.ndarray | None]:
    if step.node.op_type == "Upsample" and step.opset < 9:
        scales = step.attribute("scales")
        return (None if scales is None else np.asarray(scales, np.float64)), None
    scales = step.constant(1 if step.opset < 11 else 2)
    sizes = step.constant(3) if step.opset >= 11 else None
    filled = scales is not None and scales.size > 0
    return (scales.ravel().astype(np.float64) if filled else None), (None if sizes is None else sizes.ravel())


def _axis(kind: Kind, size: int | None, out: int | None, scale: float | None, step: Step) -> Bound:
    if size is not None and out is not None and size * out <= _LARGEST and size > 0 and out > 0:
        return kind.norm(size, out, out / size if scale is None else scale, step)
    whole = scale is not None and scale > 0 and (scale == int(scale) or 1 / scale == int(1 / scale))
    if not whole or kind.coordinates == "align_corners" or not 1 / 16 <= scale <= 16:
        raise Unbounded(
            "the size that Resize starts from is not known (or too large to build its matrix)",
            "fix the input's size, or use a whole scale",
            "unknown-shape",
        )
    largest = 0.0
    for n in range(1, 8 + int(8 / min(scale, 1.0))):
        length = math.floor(n * scale)
        if length == 0:
            continue
        if kind.mode == "nearest":
            largest = max(largest, copies(kind._copies(n, length, scale), step.norm).upper)
            continue
        entries = np.abs(kind.matrix(n, length, scale))
        down, across = (float(entries.sum(axis=axis).max()) for axis in (0, 1))
        sums = {"l1": down, "linf": across, "l2": math.sqrt(down * across)}[step.norm]
        largest = max(largest, outward(sums, 200))
    return at_most(largest, "interpolation")


ROWS: tuple[Row, ...] = (
    Row(
        "Resize",
        resize,
        "norm of the interpolation",
        "tensor product of one-dimensional maps",
        "nearest, linear, cubic; no antialiasing",
    ),
    Row("Upsample", resize, "norm of the interpolation", "tensor product of one-dimensional maps"),
)
