"""The search for a witness, in a process of its own: a model's graph is run here, under limits.

`witness` starts it and reads its answer. Whatever fails is an answer, too: {"note": why there is none}.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from snaudit.ascent import NOISE, Search, ascend, length
from snaudit.bound import down
from snaudit.box import Asked
from snaudit.running import open_session, samples
from snaudit.stated import ends_of

EVALUATIONS = 6000
_CONFIRMED = 4


class NoWitness(Exception):
    """There is none; the message says why."""


@dataclass(slots=True)
class Network:
    """The graph's real outputs as a function of its real inputs, in float32 and in float64.

    Other inputs are held fixed. `low` runs in onnxruntime; `high` there where its kernels know
    double, else in ONNX's reference implementation.
    """

    names: list[str]
    shapes: list[tuple[int, ...]]
    narrow: list[bool]
    """Whether the input is stored as float16: points are rounded to it."""
    fixed: dict[str, np.ndarray]
    low: Any
    high: Any
    how: str
    box: tuple[np.ndarray, np.ndarray] | None = None
    """Ends for all entries, in which points stay."""
    held: dict[str, np.ndarray] = field(default_factory=dict)
    """Real inputs that are constants of the graph, and their values."""

    @property
    def size(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def feed(self, x: np.ndarray, dtype: Any) -> dict[str, np.ndarray]:
        ends = np.cumsum([0, *(math.prod(shape) for shape in self.shapes)])
        parts = zip(self.names, self.shapes, ends, ends[1:], strict=False)
        return {name: x[a:b].reshape(shape).astype(dtype) for name, shape, a, b in parts} | self.fixed

    def point(self, x: np.ndarray) -> np.ndarray:
        """The nearest point whose entries the inputs' stored type holds, in the box."""
        x = np.asarray(x, np.float64)
        x = x.astype(np.float16 if all(self.narrow) else np.float32).astype(np.float64)
        if self.box is not None:
            x = np.clip(x, *self.box)
        return x

    def value(self, x: np.ndarray) -> np.ndarray | None:
        """f(x) as onnxruntime computes it in float32; None where it refuses."""
        try:
            return joined(self.low.run(None, self.feed(x, np.float32)))
        except Exception:  # onnxruntime's errors share no base class
            return None

    def precise(self, x: np.ndarray) -> np.ndarray:
        """f(x), computed in float64."""
        return joined(self.high.run(None, self.feed(x, np.float64)))


def joined(outputs: list[Any]) -> np.ndarray:
    """All real outputs as one vector."""
    real = [o for o in outputs if isinstance(o, np.ndarray) and np.issubdtype(o.dtype, np.floating)]
    return np.concatenate([np.asarray(o, np.float64).ravel() for o in real] or [np.zeros(0)])


def network(
    path: Path, seed: int, asked: Asked | None, sizes: tuple[str, ...] = (), focus: Mapping[str, Any] = {}
) -> Network:
    """The graph in a file, its inputs of the sizes given as `--input-size` does. Raises NoWitness for what
    cannot be run, or has no real input or output.

    focus: the one output and the one input that count (of, only), and what the others are held at (held)."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    from snaudit import fixing
    from snaudit.formats.onnx_sizes import bind_sizes

    model = onnx.ModelProto.FromString(path.read_bytes())
    bind_sizes(model.graph, sizes)  # the runtime holds to fixed dimensions: no pair of another size
    load_external_data_for_model(model, str(path.parent))
    if focus.get("of") is not None:
        fixing.keep_output(model.graph, focus["of"])
    session, high = _copies(model)
    feed, held = _sample(session, seed), {}
    if focus.get("only") is not None:
        try:
            held = focus.get("held") or fixing.held_at(model.graph, feed, focus["only"], asked)
            fixing.fix(model.graph, held)
        except fixing.Unfixed as error:
            raise NoWitness(str(error)) from error
        session, high = _copies(model)
        feed = _sample(session, seed)
    narrow = {v.name: v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for v in model.graph.input}
    real = [name for name, array in feed.items() if array.dtype == np.float32]
    if not real or not sum(feed[name].size for name in real):
        raise NoWitness("the graph has no real-valued input")
    fixed = {name: array for name, array in feed.items() if name not in real}
    shapes = [feed[name].shape for name in real]
    evaluator, how = _precise(high, feed)
    box = ends_of(asked, real, shapes)
    return Network(real, shapes, [narrow.get(n, False) for n in real], fixed, session, evaluator, how, box, held)


def _copies(model: Any) -> tuple[Any, Any]:
    """(a session of the graph in float32, the graph in float64). Raises NoWitness."""
    import onnx

    from snaudit.formats.onnx_graph import with_shapes
    from snaudit.lowered import for_evaluation
    from snaudit.precision import Unfit, in_precision

    try:
        low = in_precision(model, onnx.TensorProto.FLOAT)
        high = in_precision(model, onnx.TensorProto.DOUBLE)
        for_evaluation(high, lambda copy: with_shapes(copy, []))
    except Unfit as error:
        raise NoWitness(str(error)) from error
    try:
        return open_session(low.SerializeToString()), high
    except Exception as error:
        raise NoWitness(f"onnxruntime does not run the graph: {_short(error)}") from error


def _sample(session: Any, seed: int) -> dict[str, np.ndarray]:
    """The first sample input that the graph runs on, twice with one result."""
    error: Exception | None = None
    for feed in samples(session, seed):
        try:
            first, second = (joined(session.run(None, feed)) for _ in range(2))
        except Exception as caught:
            error = error or caught
            continue
        if not first.size:
            raise NoWitness("the graph has no real-valued output")
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            error = error or ValueError("its outputs are not finite")
            continue
        if not np.array_equal(first, second):
            raise NoWitness("two runs on one input differ: the graph is random")
        return feed
    raise NoWitness(f"onnxruntime does not run the graph on random input: {_short(error)}")


def _precise(high: Any, feed: dict[str, np.ndarray]) -> tuple[Any, str]:
    """(what evaluates the graph in float64, its name): onnxruntime where all its kernels know double, which
    some say only when they run."""
    wide = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in feed.items()}
    try:
        session = open_session(high.SerializeToString())
        session.run(None, wide)
        return session, "float64 in onnxruntime"
    except Exception:  # no kernel for double
        from onnx.reference import ReferenceEvaluator

        from snaudit.kernels import fitting

        try:
            return ReferenceEvaluator(high, new_ops=fitting(high)), "float64 in ONNX's reference implementation"
        except Exception as error:
            raise NoWitness(f"nothing evaluates the graph in float64: {_short(error)}") from error


def _short(error: Exception | None) -> str:
    return " ".join(str(error).split())[:120]


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


def sought(net: Network, request: dict[str, Any], deadline: float) -> dict[str, Any]:
    """The answer: the best pair that the search found and float64 confirmed."""
    norm, rng = request["norm"], np.random.default_rng(request["seed"])
    search = Search(net.value, net.shapes, norm, net.point, rng, request.get("evaluations", EVALUATIONS), deadline)
    cost = _price(net)
    rounds = int(np.clip((deadline - time.process_time()) * 0.5 / max(2 * cost, 1e-9), 1, _CONFIRMED))
    search.deadline = deadline - 2.2 * rounds * cost
    ascend(search)
    best: tuple[float, Any, Any] = (0.0, None, None)
    for guess, x, y in search.ranked()[:rounds]:
        if guess > best[0]:
            best = max(best, (lower_end(net, x, y, norm), x, y), key=lambda kept: kept[0])
    if best[1] is None:
        raise NoWitness("no pair of inputs moved the outputs by more than rounding may")
    return {"lower": best[0], "x": best[1], "y": best[2], "evaluations": search.seen + 4 * rounds}


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
    """What `network` is to keep to; of a pair that is run again, what it held is held."""
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
        focus = _focus(request)
        net = network(Path(request["path"]), request["seed"], asked, tuple(request.get("sizes", ())), focus)
        replay = "x" in request
        deadline = started + request["seconds"]
        found = replayed(net, request) if replay else sought(net, request, deadline)
    except NoWitness as error:
        return {"note": str(error)}, b""
    except MemoryError:
        return {"note": "the graph needs more memory than its limit"}, b""
    except Exception as error:  # a graph may break its runtime in any way: then there is no witness
        return {"note": f"the graph could not be run ({type(error).__name__}: {_short(error)})"}, b""
    still = [net.held[name].ravel() for name in net.held]
    points = np.stack([np.concatenate([found.pop(end), *still]) for end in ("x", "y")]).astype(np.float64)
    shapes = [*net.shapes, *(array.shape for array in net.held.values())]
    sizes = {"names": [*net.names, *net.held], "shapes": shapes, "how": net.how}
    return found | sizes | {"seconds": time.process_time() - started}, points.tobytes()
