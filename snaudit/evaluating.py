"""A graph as functions of its real inputs: as onnxruntime computes it in float32, as other code computes it
in float64, and with its gradients where torch is installed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from snaudit.box import Asked
from snaudit.running import open_session, samples, short
from snaudit.stated import ends_of

Feed = dict[str, np.ndarray]


class NoWitness(Exception):
    """There is none; the message says why."""


@dataclass(slots=True)
class Network:
    """The graph's real outputs as a function of its real inputs, in float32 and in float64.

    Other inputs are held fixed. float32 runs in onnxruntime; float64 there where its kernels know double,
    else it is `program`, else ONNX's reference implementation.
    """

    names: list[str]
    shapes: list[tuple[int, ...]]
    narrow: list[bool]
    """Whether the input is stored as float16: points are rounded to it."""
    fixed: Feed
    low: Any
    wide: Any
    """The graph in double."""
    program: Any
    """The `tracing.Program` in float64; None where there is none, and `ungraded` says why."""
    ungraded: str
    box: tuple[np.ndarray, np.ndarray] | None = None
    """Ends for all entries, in which points stay."""
    held: Feed = field(default_factory=dict)
    """Real inputs that are constants of the graph, and their values."""
    high: Any = None
    how: str = ""
    """What evaluates in float64 (None: the program), and its name; known after the first time."""

    @property
    def size(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def feed(self, x: np.ndarray, dtype: Any) -> Feed:
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
        """f(x), computed in float64. Raises NoWitness where nothing does that."""
        if not self.how:
            self.high, self.how = _precise(self.wide, self.feed(x, np.float64), self.program)
        if self.high is None:
            return self.program.value(x)
        return joined(self.high.run(None, self.feed(x, np.float64)))


def joined(outputs: list[Any]) -> np.ndarray:
    """All real outputs as one vector."""
    real = [o for o in outputs if isinstance(o, np.ndarray) and np.issubdtype(o.dtype, np.floating)]
    return np.concatenate([np.asarray(o, np.float64).ravel() for o in real] or [np.zeros(0)])


@dataclass(slots=True)
class Graph:
    """A graph that onnxruntime has opened, its copy in float64, and what was asked of its inputs."""

    low: Any
    high: Any
    narrow: dict[str, bool]
    asked: Asked | None
    seed: int
    held: Feed = field(default_factory=dict)
    """Real inputs that are constants of the graph now, and their values."""

    def first(self) -> Feed:
        """A sample input of the first size that it runs at."""
        return next(self._usable())

    def network(self) -> Network:
        """The graph without gradients, at the first size that it runs at."""
        return self._at(self.first(), None, "not sought")

    def graded(self, seconds: float) -> tuple[Network, float]:
        """(the graph with gradients at the first size where it has them, else without at the first size at
        all; processor seconds that loading torch took). After so many more no other size is tried.

        Too small an image leaves nothing after the last of many pools: that is no size to look at.
        """
        started = time.process_time()
        try:
            import torch
        except ImportError:
            return self._at(self.first(), None, "torch is not installed"), 0.0
        torch.set_num_threads(1)
        loaded = time.process_time() - started
        first: tuple[Feed, str] | None = None
        for feed in self._usable():
            program, ungraded, hopeless = self._program(feed)
            if program is not None:
                return self._at(feed, program, ""), loaded
            first = first or (feed, ungraded)
            if hopeless or time.process_time() > started + loaded + seconds:
                break
        assert first is not None
        return self._at(first[0], None, first[1]), loaded

    def _at(self, feed: Feed, program: Any, ungraded: str) -> Network:
        real = _real(feed)
        fixed = {name: array for name, array in feed.items() if name not in real}
        shapes = [feed[name].shape for name in real]
        box = ends_of(self.asked, real, shapes)
        narrow = [self.narrow.get(name, False) for name in real]
        return Network(real, shapes, narrow, fixed, self.low, self.high, program, ungraded, box, self.held)

    def _program(self, feed: Feed) -> tuple[Any, str, bool]:
        """(the graph with its gradients, why there is none, whether no other size can help)."""
        from snaudit.differentiable.interface import NoGradient
        from snaudit.tracing import traced

        try:
            program, value = traced(self.high, _wide(feed), _real(feed))
        except NoGradient as error:
            return None, str(error), True
        except Exception as error:  # a row may fail in any way on sizes and settings that it does not know
            return None, short(error), False
        expected = joined(self.low.run(None, feed))
        scale = float(np.abs(expected).max(initial=0.0))
        if value.shape != expected.shape or not np.allclose(value, expected, 0.05, 0.05 * scale):
            return None, "torch evaluates it as another function", False
        return program, "", False

    def _usable(self) -> Iterator[Feed]:
        """Sample inputs that the graph runs on, twice with one result. Raises NoWitness where there is none."""
        error: Exception | None = None
        found = False
        for feed in samples(self.low, self.seed):
            try:
                first, second = (joined(self.low.run(None, feed)) for _ in range(2))
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
            if not sum(feed[name].size for name in _real(feed)):
                raise NoWitness("the graph has no real-valued input")
            found = True
            yield feed
        if not found:
            raise NoWitness(f"onnxruntime does not run the graph on random input: {short(error)}")


def opened(
    path: Path, seed: int, asked: Asked | None, sizes: tuple[str, ...] = (), focus: Mapping[str, Any] = {}
) -> Graph:
    """The graph in a file, its inputs of the sizes given as `--input-size` does. Raises NoWitness for what
    cannot be run.

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
    graph = Graph(*_copies(model), {}, asked, seed)
    if focus.get("only") is not None:
        try:
            held = focus.get("held") or fixing.held_at(model.graph, graph.first(), focus["only"], asked)
            fixing.fix(model.graph, held)
        except fixing.Unfixed as error:
            raise NoWitness(str(error)) from error
        graph = Graph(*_copies(model), {}, asked, seed, held)
    graph.narrow = {v.name: v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for v in model.graph.input}
    return graph


def _copies(model: Any) -> tuple[Any, Any]:
    """(a session of the graph in float32, the graph in float64, its fused ops written out). Raises NoWitness."""
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
        raise NoWitness(f"onnxruntime does not run the graph: {short(error)}") from error


def _real(feed: Feed) -> list[str]:
    return [name for name, array in feed.items() if array.dtype == np.float32]


def _wide(feed: Feed) -> Feed:
    return {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in feed.items()}


def _precise(high: Any, feed: Feed, program: Any) -> tuple[Any, str]:
    """(what evaluates the graph in float64, its name): onnxruntime where all its kernels know double, which
    some say only when they run."""
    try:
        session = open_session(high.SerializeToString())
        session.run(None, feed)
        return session, "float64 in onnxruntime"
    except Exception:  # no kernel for double
        if program is not None:
            return None, "float64 in torch"
    from onnx.reference import ReferenceEvaluator

    from snaudit.kernels import fitting

    try:
        return ReferenceEvaluator(high, new_ops=fitting(high)), "float64 in ONNX's reference implementation"
    except Exception as error:
        raise NoWitness(f"nothing evaluates the graph in float64: {short(error)}") from error
