"""Where a graph applies its convolutions: the size of the input, and the padding, at each node."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from snaudit import folding
from snaudit.attributes import attribute
from snaudit.domains import is_default
from snaudit.layers import Geometry, Place
from snaudit.linear import Convolution

_PADS = {"constant": "zeros", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def place_of(node: ir.Node, shape: tuple[int, ...], geometry: Geometry) -> Place | None:
    """Where a Conv or ConvTranspose node acts; None where its input's size is not known, and where
    the shapes do not go together."""
    size = _size(node.inputs[0], shape, geometry)
    if size is None:
        return None
    place = _transposed(node, shape, geometry, size) if geometry.transposed else _forward(node, shape, geometry, size)
    return place if place is not None and _fits(node, shape, geometry, place) else None


def padded_place(
    node: ir.Node, shape: tuple[int, ...], geometry: Geometry, place: Place
) -> tuple[ir.Value, Place] | None:
    """(what the Pad node before a Conv pads, where both act as one); None where they do not.

    Its pads must be constants, not negative, and on spatial axes alone; the Conv's own padding then
    lies outside of it.
    """
    padded = node.inputs[0]
    maker = None if padded is None else padded.producer()
    if maker is None or maker.op_type != "Pad" or not is_default(maker) or geometry.transposed:
        return None
    source = maker.inputs[0]
    size, pads = _size(source, shape, geometry), _pads_of(maker, len(shape))
    mode = _PADS.get(attribute(maker, "mode", "constant"))
    if size is None or pads is None or mode is None or any(any(pair) for pair in pads[:2]):
        return None
    sides = tuple(pads[2:])
    if min(p for pair in sides for p in pair) < 0 or (mode == "zeros" and not _pads_shift(maker)):
        return None
    if mode == "zeros":
        both = zip(sides, place.padding, strict=True)
        found = Place(size, tuple((a[0] + b[0], a[1] + b[1]) for a, b in both))
    else:
        found = Place(size, sides, (), mode, place.padding)
    return (source, found) if _fits(node, shape, geometry, found) else None


def _forward(node: ir.Node, shape: tuple[int, ...], geometry: Geometry, size: tuple[int, ...]) -> Place | None:
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto == "NOTSET":
        sides = _sides(node, len(size))
    elif auto == "VALID":
        sides = ((0, 0),) * len(size)
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        rows = zip(size, shape[2:], geometry.stride, geometry.dilation, strict=True)
        wanted = [max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n) for n, k, s, d in rows]
        sides = tuple(_halves(total, auto) for total in wanted)
    else:
        return None
    return None if sides is None else Place(size, sides)


def _transposed(node: ir.Node, shape: tuple[int, ...], geometry: Geometry, size: tuple[int, ...]) -> Place | None:
    """ConvTranspose: pads crop; output_shape is rounded about, so that nodes with it have no place."""
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes:
        return None
    sides, extra = _sides(node, len(size)), _integers(node, "output_padding", [0] * len(size))
    return None if sides is None or len(extra) != len(size) else Place(size, sides, extra)


def _halves(total: int, auto: str) -> tuple[int, int]:
    less, more = total // 2, total - total // 2
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def _fits(node: ir.Node, shape: tuple[int, ...], geometry: Geometry, place: Place) -> bool:
    """Whether the place is possible and gives the output the size that was inferred for it."""
    inner = (1,) * 2 + shape[2:]
    try:
        one = Convolution(np.zeros(inner), geometry.stride, geometry.dilation, 1, geometry.transposed)
        made = place.of(one).output_size
    except ValueError:
        return False
    if node.op_type == "FusedConv":
        return True  # its output's shape is not inferred
    known = node.outputs[0].shape
    return known is not None and len(known) == len(shape) and tuple(known)[2:] == made


def _size(value: ir.Value | None, shape: tuple[int, ...], geometry: Geometry) -> tuple[int, ...] | None:
    """The spatial size of a layer's input, where all of it is known and the channels are the kernel's."""
    if value is None or value.shape is None or len(value.shape) != len(shape):
        return None
    channels = shape[0] if geometry.transposed else shape[1] * geometry.groups
    given, sizes = value.shape[1], tuple(value.shape)[2:]
    if given != channels or not all(isinstance(n, int) and n > 0 for n in sizes):
        return None
    return tuple(int(n) for n in sizes)  # type: ignore[arg-type]


def _sides(node: ir.Node, axes: int) -> tuple[tuple[int, int], ...] | None:
    pads = _integers(node, "pads", [0] * (2 * axes))
    if len(pads) != 2 * axes or min(pads) < 0:
        return None
    return tuple(zip(pads[:axes], pads[axes:], strict=True))


def _pads_of(node: ir.Node, rank: int) -> list[tuple[int, int]] | None:
    """What a Pad node adds before and after each axis; None where that is no constant."""
    given = node.attributes.get("pads") or node.attributes.get("paddings")
    if given is not None:
        pads = [int(p) for p in given.value]
    elif len(node.inputs) > 1 and node.inputs[1] is not None and folding.is_constant(node.inputs[1]):
        pads = [int(p) for p in folding.evaluate(node.inputs[1]).ravel()]
    else:
        return None
    axes = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        if not folding.is_constant(node.inputs[3]):
            return None
        axes = [int(a) % rank for a in folding.evaluate(node.inputs[3]).ravel()]
    if len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        return None
    found = [(0, 0)] * rank
    for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False):
        found[axis] = before, after
    return found


def _pads_shift(node: ir.Node) -> bool:
    """Whether what a constant Pad adds is a finite number: then it only shifts the output."""
    given = node.attributes.get("value")
    if given is not None:
        return math.isfinite(float(given.value))
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    value = node.inputs[2]
    return folding.is_constant(value) and bool(np.isfinite(folding.evaluate(value).astype(float)).all())


def _integers(node: ir.Node, name: str, default: list[int]) -> tuple[int, ...]:
    return tuple(int(v) for v in attribute(node, name, default))
