"""Linear stretches: an affine node with the channel scalings around it, as one operator.

‖diag(s₂)·W·diag(s₁)‖ is at most max|s₂|·‖W‖·max|s₁| and usually far less: a BatchNorm after a
convolution evens out what the kernel's channels differ by. `lipschitz.compose` takes the lesser.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from snaudit.domains import is_default
from snaudit import folding
from snaudit.bound import Bound, scaled
from snaudit.forms import NOTHING, Stored
from snaudit.layers import Layer, Place
from snaudit.linear import AnyMap, Convolution, Dense
from snaudit.places import padded_place

_ROUNDING = 1e-9
"""The scales are computed in float64: each entry of the scaled weight is off by at most 8u ≈ 9e-16
of itself, hence the operator by at most 8u·‖|W|‖ ≤ 8u·√(taps·min(rows, columns))·‖W‖, which is
below 1e-9·‖W‖ for fewer than 1e12 taps times channels."""


_AFFINE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_DEFAULT_EPSILON = float(np.float32(1e-5))


@dataclass(frozen=True, slots=True)
class Stretch:
    """`output` is an affine function of `source`, with the layer's weight between two scalings.

    before (inputs,) and after (outputs,) scale the layer's channels; None where there is none.
    place is where a convolution acts, a Pad before it included; None: for all sizes.
    """

    layer: Layer
    source: ir.Value
    output: ir.Value
    before: np.ndarray | None
    after: np.ndarray | None
    place: Place | None = None

    def map(self, stored: Stored = NOTHING) -> AnyMap | None:
        """The stretch's linear part; None where a product of weight and scales leaves the normal floats.
        Reads the weight's bytes."""
        _, operator = self.layer.maps(stored)
        with np.errstate(all="ignore"):
            return self._of(operator)

    def _of(self, operator: AnyMap) -> AnyMap | None:
        factors = [scale for scale in (self.before, self.after) if scale is not None]
        weight = operator.kernel if isinstance(operator, Convolution) else operator.dense()
        if factors and not _is_safe(weight, *factors):
            return None
        if isinstance(operator, Convolution):
            scaled_ = _scale_convolution(operator, self.before, self.after)
            return scaled_ if self.place is None else self.place.of(scaled_)
        assert isinstance(operator, Dense)
        if self.after is not None:
            weight = weight * self.after[:, None]
        if self.before is not None:
            weight = weight * self.before[None, :]
        return Dense(weight)

    def enclosed(self, measured: Bound) -> Bound:
        """The bound of the exact stretch from that of the one with rounded scales."""
        if self.before is None and self.after is None:
            return measured
        widened = scaled(measured, 1 + _ROUNDING)
        return Bound(0.0, widened.upper, widened.grade, f"{measured.method}, scales folded")


_SMALLEST, _LARGEST = 2.0**-900, 2.0**900


def _is_safe(*factors: np.ndarray) -> bool:
    """Whether every product of non-zero entries, in whatever order, is a normal number, far from the ends."""
    small = large = 1.0
    for factor in factors:
        size = np.abs(factor[factor != 0.0])
        if size.size:
            small, large = small * min(1.0, float(size.min())), large * max(1.0, float(size.max()))
        if not (_SMALLEST < small and large < _LARGEST):
            return False
    return True


def _scale_convolution(
    map: Convolution, before: np.ndarray | None, after: np.ndarray | None
) -> Convolution:
    kernel, groups = map.kernel, map.groups
    first, second = kernel.shape[0], kernel.shape[1]
    spatial = (1,) * map.axes
    outer, inner = (before, after) if map.transposed else (after, before)
    if outer is not None:  # one factor for each entry of the first stored axis
        kernel = kernel * outer.reshape(first, 1, *spatial)
    if inner is not None:  # the second stored axis counts within a group
        grouped = kernel.reshape(groups, first // groups, second, *kernel.shape[2:])
        kernel = (grouped * inner.reshape(groups, 1, second, *spatial)).reshape(kernel.shape)
    return Convolution(kernel, map.stride, map.dilation, groups, map.transposed)


def find_stretches(layers: tuple[Layer, ...]) -> Iterator[Stretch]:
    """All stretches around the layers' nodes that have a scaling at all."""
    for layer in layers:
        if layer.op in ("Embedding", "Attention", "LSTM", "GRU", "RNN") or layer.stacked:
            continue
        for output, place in zip(layer.outputs, layer.places or (None,) * len(layer.outputs), strict=True):
            stretch = _around(layer, output, place)
            if stretch is not None:
                yield stretch


def _around(layer: Layer, output: ir.Value, place: Place | None) -> Stretch | None:
    node = output.producer()
    if node is None or not is_default(node) or node.op_type not in _AFFINE:
        return None
    data = [v for v in node.inputs if v is not None and not folding.is_constant(v)]
    if len(data) != 1 or node.inputs[0] is not data[0]:  # a bias that varies is a second way in
        return None
    if node.op_type == "Gemm" and _transposes(node):
        return None
    others = [v for v in node.inputs[2:] if v is not None]
    if not all(np.isfinite(folding.evaluate(v).astype(np.float64)).all() for v in others):
        return None  # a bias that is no number: the rule's to refuse, not ours to pass by
    rows, columns = _channels(layer)
    axis = 1 if layer.geometry is not None else -1
    after, last = _follow(output, rows, axis, layer)
    padded = None if place is None else padded_place(node, layer.shape, layer.geometry, place)
    first, place = (data[0], place) if padded is None else padded
    before, source = _precede(first, columns, axis, layer)
    if node.op_type == "Gemm":
        alpha = node.attributes.get("alpha")
        if alpha is not None:
            after = float(alpha.value) * (np.ones(rows) if after is None else after)
    changes = any(scale is not None and (np.abs(scale) != 1.0).any() for scale in (before, after))
    if not changes and padded is None:
        return None  # only additions around it: nothing to gain
    return Stretch(layer, source, last, before, after, place)


def _transposes(node: ir.Node) -> bool:
    found = node.attributes.get("transA")
    return found is not None and bool(found.value)


def _channels(layer: Layer) -> tuple[int, int]:
    """(output channels, input channels) of the layer."""
    if layer.geometry is None:
        return layer.matrix
    first, second = layer.shape[0], layer.shape[1] * layer.geometry.groups
    return (second, first) if layer.geometry.transposed else (first, second)


def _follow(value: ir.Value, channels: int, axis: int, layer: Layer) -> tuple[np.ndarray | None, ir.Value]:
    """Walk down while the only consumer scales channels or adds a constant."""
    scale: np.ndarray | None = None
    while True:
        uses = [use.node for use in value.uses()]
        if len(uses) != 1 or value.is_graph_output() or value not in uses[0].inputs:
            return scale, value
        step = _scaling(uses[0], value, channels, axis, layer)
        if step is None or not _is_safe(step, *(() if scale is None else (scale,))):
            return scale, value
        scale = step if scale is None else scale * step
        value = uses[0].outputs[0]


def _precede(value: ir.Value, channels: int, axis: int, layer: Layer) -> tuple[np.ndarray | None, ir.Value]:
    """Walk up while the producer scales channels or adds a constant."""
    scale: np.ndarray | None = None
    while True:
        node = value.producer()
        if node is None:
            return scale, value
        data = [v for v in node.inputs if v is not None and not folding.is_constant(v)]
        whole = len(data) == 1 and _has_channels(data[0], channels, axis, layer)
        step = _scaling(node, data[0], channels, axis, layer) if whole else None
        if step is None or (scale is None and node.op_type in ("Add", "Sub")):
            return scale, value  # an addition alone is no reason to look further up
        if not _is_safe(step, *(() if scale is None else (scale,))):
            return scale, value
        scale = step if scale is None else scale * step
        value = data[0]


def _scaling(node: ir.Node, data: ir.Value, channels: int, axis: int, layer: Layer) -> np.ndarray | None:
    """The factor for each channel that a node applies to `data`; None if it does anything else."""
    if not is_default(node):
        return None
    if node.op_type == "BatchNormalization":
        return _batch_normalization(node, data, channels, axis, layer)
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    other = right if left is data else left
    if left is right or other is None or not folding.is_constant(other):
        return None
    if node.op_type == "Div" and left is not data:
        return None
    constant = folding.evaluate(other).astype(np.float64)
    if not np.isfinite(constant).all():
        return None
    per_channel = _per_channel(constant, channels, axis, layer)
    if per_channel is None or not _keeps_shape(node, data):
        return None
    if node.op_type in ("Add", "Sub"):
        sign = -1.0 if node.op_type == "Sub" and right is data else 1.0
        return np.full(channels, sign)
    with np.errstate(all="ignore"):
        scale = per_channel if node.op_type == "Mul" else 1.0 / per_channel
    return scale if np.isfinite(scale).all() else None


def _batch_normalization(
    node: ir.Node, data: ir.Value, channels: int, axis: int, layer: Layer
) -> np.ndarray | None:
    training = node.attributes.get("training_mode")
    if (training is not None and training.value) or node.inputs[0] is not data:
        return None
    if any(output.is_graph_output() or len(list(output.uses())) for output in node.outputs[1:]):
        return None  # training form
    if axis == -1 and (data.shape is None or len(data.shape) != 2):
        return None  # BatchNorm's channels are axis 1
    constants = [v for v in node.inputs[1:5] if v is not None and folding.is_constant(v)]
    if len(constants) != 4:
        return None
    parts = [folding.evaluate(v).astype(np.float64).ravel() for v in constants]
    if not all(np.isfinite(part).all() for part in parts):
        return None
    gamma, _, _, variance = parts
    epsilon = node.attributes.get("epsilon")
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + (_DEFAULT_EPSILON if epsilon is None else float(epsilon.value)))
    return scale if scale.shape == (channels,) and np.isfinite(scale).all() else None


def _per_channel(constant: np.ndarray, channels: int, axis: int, layer: Layer) -> np.ndarray | None:
    """The constant as one factor for each channel, or None where it varies over anything else."""
    if constant.size == 1:
        return np.full(channels, constant.ravel()[0])
    if axis == -1:
        ok = constant.shape[-1] == channels and constant.size == channels
        return constant.ravel() if ok else None
    spatial = len(layer.shape) - 2
    if constant.size != channels or constant.ndim < spatial + 1:
        return None
    ok = constant.shape[constant.ndim - spatial - 1] == channels
    return constant.ravel() if ok else None


def _has_channels(data: ir.Value, channels: int, axis: int, layer: Layer) -> bool:
    """Whether the data is known to have all its channels (one that a scaling would copy has not)."""
    if data.shape is None:
        return False
    place = len(data.shape) - 1 if axis == -1 else len(data.shape) - 1 - (len(layer.shape) - 2)
    return place >= 0 and data.shape[place] == channels


def _keeps_shape(node: ir.Node, data: ir.Value) -> bool:
    """Whether broadcasting leaves the data's shape as it is (so that no entry is copied)."""
    output = node.outputs[0]
    if data.shape is None or output.shape is None:
        return False
    return len(data.shape) == len(output.shape)
