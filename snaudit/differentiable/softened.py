"""Curves with a corner, rounded off: functions near the true ones whose slopes change everywhere.

The slopes of a piecewise linear network do not move with its input, but for jumps: where to go for a
steeper region only a smooth neighbour tells. A corner is rounded over a part of its inputs' own size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F

from snaudit.differentiable.interface import Call, Given, Row, Tensor


def softened(width: float) -> dict[str, Row]:
    """The rows with corners rounded over `width` times the root mean square of the inputs."""

    def ramp(x: Tensor) -> Tensor:
        around = width * x.detach().square().mean().sqrt() + 1e-30
        return around * F.softplus(x / around)

    def bent(slope: Callable[..., Tensor | float]) -> Row:
        def row(call: Call, x: Given, *rest: Given) -> Tensor:
            below = slope(call, *rest)
            return below * x + (1.0 - below) * ramp(x)

        return row

    return {
        "LeakyRelu": bent(lambda call: call.get("alpha", 0.01)),
        "PRelu": bent(lambda call, slope: slope),
        "Relu": bent(lambda call: 0.0),
    }
