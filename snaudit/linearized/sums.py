"""Sums, scalings, and what only passes its input on."""

from __future__ import annotations

import numpy as np

from snaudit.enclosed import scaled, total
from snaudit.linearized.interface import (
    Coefficients,
    Node,
    Refused,
    aligned,
    same_batch,
)
from snaudit.rounding import U


def same(node: Node) -> Coefficients:
    return node.only()


def dropped(node: Node) -> Coefficients | None:
    """Dropout in inference. A training mode that is not known to be off is refused."""
    mode = node.constant(2)
    if mode is not None and bool(np.asarray(mode).any()):
        raise Refused
    return node.only()


def cast(node: Node) -> Coefficients | None:
    if node.attribute("to") not in (1, 10, 11, 16):
        raise Refused
    return node.only()


def negated(node: Node) -> Coefficients:
    return node.only().times(np.array(-1.0))


def sum(node: Node) -> Coefficients | None:
    """a ± b: constants drop out, but for the shape that they broadcast to."""
    sign = -1.0 if node.node.op_type == "Sub" else 1.0
    if any(v is None for v in node.node.inputs) or node.attribute("axis") is not None:
        raise Refused
    first = next(iter(node.data.values()))
    others = [aligned(node.constant(i), first) for i in range(len(node.node.inputs)) if i not in node.data]
    same_batch(tuple(node.data.values()))
    shape = np.broadcast_shapes(*(d.shape for d in node.data.values()), *(o.shape for o in others))
    found: Coefficients | None = None
    for index, data in node.data.items():
        part = data.picked(np.broadcast_to(data.numbers(), shape))
        if part is None:
            return None
        factor = sign if index else 1.0
        if found is None:
            found = part if factor == 1.0 else part.times(np.array(-1.0))
        else:
            found = _added(found, part, factor)
    return found


def _added(first: Coefficients, second: Coefficients, sign: float) -> Coefficients:
    found = dict(first.blocks)
    for j, part in second.blocks.items():
        if j in found:
            found[j] = total(found[j], part, sign)
        else:
            found[j] = scaled(part, np.full(part.shape[0], sign))
    return Coefficients(first.shape, first.batched, found, max(first.depth, second.depth) + 1)


def factor(node: Node) -> Coefficients | None:
    """a·c, c·a or a/c for a constant c."""
    if len(node.data) != 1 or len(node.node.inputs) != 2 or node.attribute("axis") is not None:
        raise Refused
    ((index, data),) = node.data.items()
    divides = node.node.op_type == "Div"
    constant = aligned(np.asarray(node.constant(1 - index)), data)
    if constant.dtype.kind != "f" or (divides and (index == 1 or not constant.all())):
        raise Refused  # integers divide otherwise
    shape = np.broadcast_shapes(data.shape, constant.shape)
    part = data.picked(np.broadcast_to(data.numbers(), shape))
    if part is None:
        return None
    return part.times(1.0 / constant, 2 * U) if divides else part.times(constant)


def normalized(node: Node) -> Coefficients | None:
    """BatchNormalization in inference: γ/√(σ² + ε) for each channel, within 4u of itself."""
    data = node.only()
    if len(data.shape) < 2:
        raise Refused
    return data.times(channel_factors(node, data.shape[1]).reshape(1, -1, *(1,) * (len(data.shape) - 2)), 8 * U)


def channel_factors(node: Node, channels: int) -> np.ndarray:
    """γ/√(σ² + ε) of a BatchNormalization in inference, each within 4u of itself; refused in training."""
    used = any(o.is_graph_output() or len(list(o.uses())) for o in node.node.outputs[1:])
    if node.attribute("training_mode", 0) or used or node.attribute("spatial", 1) != 1:
        raise Refused
    gamma, _, _, variance = (node.constant(i) for i in range(1, 5))
    wide = variance + float(node.attribute("epsilon", float(np.float32(1e-5))))
    if gamma.shape != (channels,) or wide.shape != gamma.shape or not (wide > 0).all():
        raise Refused
    return gamma / np.sqrt(wide)
