"""The layers that would lower the network's bound most, if their norm were 1.

The composition's bound B grows with layer i's norm as its elasticity says, eᵢ = ∂ log B/∂ log σᵢ: 1 for a
layer that all ways pass once, less beside a residual, more for a weight that is used again. As log B is
convex in log σ (see `budget`), bringing σᵢ to 1 lowers log B by at most eᵢ·log σᵢ. So layers are tried in
the order of that, by composing again with the one norm changed, until no other can do better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping


from snaudit.bound import Bound
from snaudit.findings import Lever

MOST = 3
_TRIES = 8
"""Compositions that may be tried; each takes up to a few tenths of a second."""


def levers(bound: Bound, norms: Mapping[str, float], again: Callable[[Mapping[str, float]], Bound]) -> tuple[Lever, ...]:
    """Up to three layers whose norm, brought to 1, lowers the bound most, the best first.

    bound: the composition's, with what it rests on. norms: each layer's, by name. again: the composition's
    bound with layers scaled by factors.
    """
    hopes = sorted(
        ((part * math.log10(norms[name]), name, part) for name, part in bound.rests if 1.0 < norms.get(name, 0.0) < math.inf),
        reverse=True,
    )
    found: list[Lever] = []
    for hope, name, part in hopes[:_TRIES]:
        if len(found) >= MOST and found[MOST - 1].log10_fall >= hope:
            break
        after = again({name: 1.0 / norms[name]})
        fall = bound.log10_upper - after.log10_upper
        if after.known and fall > 1e-9:
            found.append(Lever(name, norms[name], part, after, fall))
        found.sort(key=lambda lever: -lever.log10_fall)
    return tuple(found[:MOST])
