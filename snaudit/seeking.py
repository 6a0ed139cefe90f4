"""The search for a witness, in a process of its own: a model's graph is run here, under limits.

`witness` starts it and reads its answer. Whatever fails is an answer, too: {"note": why there is none}.
"""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from snaudit.ascent import NOISE, Search, ascend, length
from snaudit.bound import down
from snaudit.evaluating import Graph, Network, NoWitness, opened
from snaudit.running import short
from snaudit.stated import ends_of

EVALUATIONS = 6000
_CONFIRMED = 4
_COLUMNS = 3072
_SLOW = 0.1
"""The part of the time that a run may take where gradients, worth a dozen runs each, are to be of use."""
_SOFT = (0.3, 0.1, 0.03)


def lower_end(net: Network, x: np.ndarray, y: np.ndarray, norm: Any) -> float:
    """A number that ‖f(x) − f(y)‖/‖x − y‖ in real arithmetic is not below.

    f is evaluated in float64 and, by other code, in float32. The two differ by the error of the
    float32 run plus that of the float64 run, whose unit roundoff is 2^29 times smaller. The whole
    difference at both ends (the larger one, twice) is taken off, and sixteen float32 roundings of
    the values besides, in case the two share an error (a step that both take in float32) or the
    difference is small by chance; so an evaluator that is wrong costs tightness and not soundness.
    """
    with np.errstate(all="ignore"):
        exact, rough = [net.precise(p) for p in (x, y)], [net.value(p) for p in (x, y)]
        if any(r is None or r.shape != exact[0].shape for r in (*rough, *exact)):
            return 0.0
        differences = [length(e - r, norm) for e, r in zip(exact, rough, strict=True)]
        sizes = sum(length(e, norm) for e in exact)
        moved = length(exact[0] - exact[1], norm)
        allowance = 2.0 * max(differences) + NOISE * sizes
        rounding = 1.0 - (x.size + exact[0].size + 16) * 2.0**-52  # of the two norms and the quotient
        distance = length(x - y, norm)
        found = (moved - allowance) / distance * rounding if distance else 0.0
    return down(found) if math.isfinite(found) and found > 0.0 else 0.0


def sought(graph: Graph, request: dict[str, Any], deadline: float) -> tuple[Network, dict[str, Any]]:
    """(the graph at the size of the answer, the answer): the best pair that the search found and float64
    confirmed. Loading torch is not counted as time of the search."""
    norm, rng = request["norm"], np.random.default_rng(request["seed"])
    net = graph.network()
    affine = _is_affine(net, request["seed"])
    started = time.process_time()
    net.value(net.point(np.zeros(net.size)))
    if time.process_time() - started > _SLOW * (deadline - started):
        net.ungraded = "one run takes too much of the time given"
    elif not affine:
        net, loading = graph.graded(0.3 * (deadline - time.process_time()))
        deadline += loading
    search = Search(net.value, net.shapes, norm, net.point, rng, request.get("evaluations", EVALUATIONS), deadline)
    cost = _price(net)
    rounds = int(np.clip((deadline - time.process_time()) * 0.5 / max(2 * cost, 1e-9), 1, _CONFIRMED))
    search.deadline = deadline - 2.2 * rounds * cost
    if net.program is not None:
        _climb(net, search)
    ascend(search)
    best: tuple[float, Any, Any] = (0.0, None, None)
    for guess, x, y in search.ranked()[:rounds]:
        if guess > best[0]:
            best = max(best, (lower_end(net, x, y, norm), x, y), key=lambda kept: kept[0])
    if best[1] is None:
        raise NoWitness("no pair of inputs moved the outputs by more than rounding may")
    found = {"lower": best[0], "x": best[1], "y": best[2], "evaluations": search.seen + 4 * rounds}
    without = "" if affine or net.program is not None else f" (no gradients: {net.ungraded})"
    return net, found | {"found": f"ascent by {'gradients' if net.program is not None else 'values'}{without}"}


def _is_affine(net: Network, seed: int) -> bool:
    """Whether the function looks affine, and its columns can all be taken: then no gradients are needed."""
    if net.size > _COLUMNS:
        return False
    rng, zero = np.random.default_rng(seed), net.point(np.zeros(net.size))
    for scale in (0.1, 1.0, 10.0):
        x, y = (net.point(scale * rng.standard_normal(net.size)) for _ in range(2))
        start, one, other, both = (net.value(p) for p in (zero, x, y, net.point(x + y)))
        if start is None or one is None or other is None or both is None:
            return False
        with np.errstate(all="ignore"):
            moved = float(np.abs(both - start).max())
            if not 0.0 < moved < math.inf or not np.abs(both - one - other + start).max() <= 1e-4 * moved:
                return False
    return True


def _climb(net: Network, search: Search) -> None:
    """Search with gradients, for most of the time; leave a sixth of the evaluations for values alone."""
    from snaudit.climbing import climb

    evaluations, deadline = search.evaluations, search.deadline
    search.evaluations = 2 * evaluations
    search.deadline = time.process_time() + 0.85 * (deadline - time.process_time())
    program = net.program.narrowed()
    smooth = [program.softened(width).at for width in _SOFT] if program.has_corners() else []
    with contextlib.suppress(RuntimeError):  # torch has no memory left: values alone need less
        climb(search, program.at, smooth)
    search.evaluations, search.deadline = search.seen + evaluations // 6, deadline


def _price(net: Network) -> float:
    """Processor seconds of a run in float64."""
    started = time.process_time()
    net.precise(net.point(np.zeros(net.size)))
    return time.process_time() - started


def replayed(net: Network, request: dict[str, Any]) -> dict[str, Any]:
    """The answer for a given pair. Raises NoWitness where it does not fit the graph."""
    ends = []
    for which in ("x", "y"):
        parts = []
        for name in net.names:
            if name not in request[which]:
                raise NoWitness(f"the pair holds no input {name}")
            parts.append(np.asarray(request[which][name], np.float64))
        net.shapes = [part.shape for part in parts]
        _check_sizes(net)
        ends.append(np.concatenate([part.ravel() for part in parts]))
    if ends[0].shape != ends[1].shape or not np.isfinite(ends).all():
        raise NoWitness("the pair's points are not finite, or not of one shape")
    box = ends_of(None if request.get("box") is None else tuple(request["box"]), net.names, net.shapes)
    if box is not None and any(((end < box[0]) | (end > box[1])).any() for end in ends):
        raise NoWitness("the pair lies outside --input-range")
    lower = lower_end(net, *ends, request["norm"])
    return {"lower": lower, "x": ends[0], "y": ends[1], "evaluations": 4}


def _check_sizes(net: Network) -> None:
    """Raise NoWitness for points that do not have the sizes which the graph, or the user, fixes."""
    fixed = {node.name: node.shape for node in net.low.get_inputs()}
    for name, shape in zip(net.names, net.shapes, strict=True):
        dims = fixed[name]
        wrong = any(isinstance(d, int) and d > 0 and d != n for d, n in zip(dims, shape, strict=False))
        if wrong or (dims and len(dims) != len(shape)):
            raise NoWitness(f"the pair's {name} has the shape {shape}, which is not the input's size")


def _focus(request: dict[str, Any]) -> dict[str, Any]:
    """What the graph is to keep to; of a pair that is run again, what it held is held."""
    focus = dict(request.get("focus") or {})
    only = focus.get("only")
    if only is not None and "x" in request:
        others = {name: (request["x"][name], request["y"].get(name)) for name in request["x"] if name != only}
        moved = [name for name, (x, y) in others.items() if x != y]
        if moved:
            raise NoWitness(f"the pair moves the input {moved[0]}, which is held fixed")
        focus["held"] = {name: np.asarray(x, np.float64) for name, (x, _) in others.items()}
    return focus


def answer(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """(what was found, the raw float64 points): never an exception, but for what kills the process."""
    started = time.process_time()
    try:
        asked = None if request.get("box") is None else tuple(request["box"])
        graph = opened(Path(request["path"]), request["seed"], asked, tuple(request.get("sizes", ())), _focus(request))
        if "x" in request:
            net = graph.network()
            found = replayed(net, request)
        else:
            net, found = sought(graph, request, started + request["seconds"])
    except NoWitness as error:
        return {"note": str(error)}, b""
    except MemoryError:
        return {"note": "the graph needs more memory than its limit"}, b""
    except Exception as error:  # a graph may break its runtime in any way: then there is no witness
        return {"note": f"the graph could not be run ({type(error).__name__}: {short(error)})"}, b""
    still = [net.held[name].ravel() for name in net.held]
    points = np.stack([np.concatenate([found.pop(end), *still]) for end in ("x", "y")]).astype(np.float64)
    shapes = [*net.shapes, *(array.shape for array in net.held.values())]
    sizes = {"names": [*net.names, *net.held], "shapes": shapes, "how": net.how}
    return found | sizes | {"seconds": time.process_time() - started}, points.tobytes()
