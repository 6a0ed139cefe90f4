"""An ONNX graph as a differentiable function: the straight line of torch calls that it takes on inputs of
one size.

What does not depend on the real inputs' numbers (shapes above all) is computed once, by ONNX's reference
implementation; branches and loops that such numbers decide are followed, and unrolled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from snaudit.differentiable import MICROSOFT, ROWS
from snaudit.differentiable.interface import Call, NoGradient, Row, Tensor
from snaudit.differentiable.softened import softened
from snaudit.domains import plain

_MOST_STEPS = 20_000


@dataclass(slots=True)
class _Seen:
    """A value of the graph. slot: its number in the program, None for what no real input moves."""

    value: Any
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class _Step:
    row: Row
    call: Call
    inputs: list[int | Tensor | None]
    outputs: list[int | None]


@dataclass(slots=True)
class Tape:
    """f at a point, and u ↦ Jᵀu there."""

    value: np.ndarray
    start: Tensor
    end: Tensor

    def back(self, u: np.ndarray) -> np.ndarray:
        """Jᵀu, with zeros for what is not finite."""
        if not self.end.requires_grad:
            return np.zeros(self.start.numel())
        weights = torch.as_tensor(u, dtype=self.end.dtype)
        (found,) = torch.autograd.grad(self.end, self.start, weights, retain_graph=True)
        return np.nan_to_num(found.numpy().astype(np.float64), posinf=0.0, neginf=0.0)


@dataclass(slots=True)
class Program:
    """The function. shapes: of its real inputs, which are flattened and joined, as its real outputs are."""

    shapes: list[tuple[int, ...]]
    real: torch.dtype
    steps: list[_Step] = field(default_factory=list)
    last: dict[int, int] = field(default_factory=dict)
    """The step that reads a slot last."""
    ends: list[int | Tensor] = field(default_factory=list)

    def at(self, x: np.ndarray) -> Tape:
        """What the function is and how it moves at a point."""
        start = torch.tensor(x, dtype=self.real, requires_grad=True)
        end = self._run(start)
        return Tape(end.detach().numpy().astype(np.float64), start, end)

    def value(self, x: np.ndarray) -> np.ndarray:
        """f(x) alone."""
        with torch.no_grad():
            return self._run(torch.tensor(x, dtype=self.real)).numpy().astype(np.float64)

    def narrowed(self) -> Program:
        """The same function in float32."""
        kept: dict[int, Tensor] = {}

        def narrow(given: Any) -> Any:
            return kept.setdefault(id(given), _single(given)) if isinstance(given, torch.Tensor) else given

        steps = [
            _Step(s.row, replace(s.call, real=torch.float32), [narrow(i) for i in s.inputs], s.outputs)
            for s in self.steps
        ]
        return Program(self.shapes, torch.float32, steps, self.last, [narrow(end) for end in self.ends])

    def has_corners(self) -> bool:
        """Whether `softened` is another function."""
        return any(step.call.op in softened(1.0) for step in self.steps)

    def softened(self, width: float) -> Program:
        """A smooth function near this one, corners rounded over `width` of their inputs' size."""
        rows = softened(width)
        steps = [replace(step, row=rows.get(step.call.op, step.row)) for step in self.steps]
        return replace(self, steps=steps)

    def _run(self, start: Tensor) -> Tensor:
        parts = torch.split(start, [math.prod(shape) for shape in self.shapes])
        slots: dict[int, Tensor] = {i: p.reshape(s) for i, (p, s) in enumerate(zip(parts, self.shapes, strict=True))}
        for number, step in enumerate(self.steps):
            found = step.row(step.call, *(slots[i] if isinstance(i, int) else i for i in step.inputs))
            for slot, value in zip(step.outputs, found if isinstance(found, tuple) else (found,), strict=False):
                if slot is not None:
                    slots[slot] = value
            for slot in step.inputs:
                if isinstance(slot, int) and self.last[slot] == number:
                    slots.pop(slot, None)
        ends = [(slots[end] if isinstance(end, int) else end).reshape(-1) for end in self.ends]
        return torch.cat(ends) if ends else torch.zeros(0, dtype=self.real)


def traced(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], real: Sequence[str]) -> tuple[Program, np.ndarray]:
    """(the graph as a program of its real inputs, the others held at the feed's; its value there). Raises
    NoGradient, and whatever torch raises for sizes that do not fit."""
    if model.functions:
        model = inline_local_functions(model)
    double = any(feed[name].dtype == np.float64 for name in real)
    program = Program([feed[name].shape for name in real], torch.float64 if double else torch.float32)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    tracer = _Tracer(program, opset, list(model.opset_import))
    names = {name: _Seen(array) for name, array in feed.items()}
    for slot, name in enumerate(real):
        names[name] = _Seen(_single(tracer.torch(feed[name])), slot)  # single: the way is traced, not its numbers
    tracer.slots = len(real)
    with torch.no_grad():
        tracer.graph(model.graph, names)
    values = []
    for output in model.graph.output:
        seen = names[output.name]
        value = tracer.tensor(seen)
        if value.is_floating_point():
            program.ends.append(value if seen.slot is None else seen.slot)
            values.append(value.reshape(-1).double().numpy())
    for number, step in enumerate(program.steps):
        program.last |= {slot: number for slot in step.inputs if isinstance(slot, int)}
    program.last |= {end: len(program.steps) for end in program.ends if isinstance(end, int)}
    return program, np.concatenate([np.zeros(0), *values])


@dataclass(slots=True)
class _Tracer:
    program: Program
    opset: int
    imports: list[Any]
    slots: int = 0

    def torch(self, array: Any) -> Tensor:
        """An array in the types of the run."""
        array = np.asarray(array)
        if array.dtype.kind == "f":
            return torch.tensor(array).to(self.program.real)
        if array.dtype.kind not in "biu":
            raise NoGradient(f"numbers of the type {array.dtype} are not differentiated")
        return torch.tensor(array if array.dtype.kind == "b" else array.astype(np.int64))

    def tensor(self, seen: _Seen) -> Tensor:
        if isinstance(seen.value, torch.Tensor):
            return seen.value
        return self.torch(seen.value)

    def graph(self, graph: onnx.GraphProto, names: dict[str, _Seen]) -> list[_Seen]:
        """Its outputs, everything in it traced; `names`: what is known, and what will be."""
        for tensor in graph.initializer:
            names[tensor.name] = _Seen(numpy_helper.to_array(tensor))
        for node in graph.node:
            if len(self.program.steps) > _MOST_STEPS:
                raise NoGradient(f"it takes more than {_MOST_STEPS} steps")
            found = self.node(node, names)
            for name, seen in zip(node.output, found, strict=False):
                if name:
                    names[name] = seen
        return [names[output.name] for output in graph.output]

    def node(self, node: onnx.NodeProto, names: dict[str, _Seen]) -> list[_Seen]:
        inputs = [names[name] if name else None for name in node.input]
        own = plain(node.domain) == ""
        if own and node.op_type in ("Shape", "Size") and inputs[0] is not None:
            return [_Seen(_extent(node, tuple(inputs[0].value.shape)))]
        if own and node.op_type == "If":
            return self._branch(node, names, inputs)
        if own and node.op_type == "Loop":
            return self._loop(node, names, inputs)
        if own and node.op_type == "Scan":
            return self._scan(node, names, inputs)
        if all(seen is None or seen.slot is None for seen in inputs):
            return self._constant(node, inputs)
        if not (own or (node.domain == "com.microsoft" and node.op_type in MICROSOFT)) or node.op_type not in ROWS:
            raise NoGradient(f"{node.op_type} is not differentiated")
        return self._call(node, inputs)

    def _call(self, node: onnx.NodeProto, inputs: list[_Seen | None]) -> list[_Seen]:
        real = self.program.real
        row, call = ROWS[node.op_type], Call(node.op_type, self.opset, _attributes(node), _used(node), real)
        given = [None if seen is None else self.tensor(seen) for seen in inputs]
        found = row(replace(call, real=torch.float32), *(_single(tensor) for tensor in given))
        found = found if isinstance(found, tuple) else (found,)
        outputs = [_Seen(value, self.slots + i) for i, value in enumerate(found)]
        slots = [seen.slot if seen.value is not None else None for seen in outputs]
        self.slots += len(outputs)
        reads = [
            value if seen is None or seen.slot is None else seen.slot for seen, value in zip(inputs, given, strict=True)
        ]
        self.program.steps.append(_Step(row, call, reads, slots))
        return outputs

    def _constant(self, node: onnx.NodeProto, inputs: list[_Seen | None]) -> list[_Seen]:
        names = [f"x{i}" if seen is not None else "" for i, seen in enumerate(inputs)]
        outputs = [f"y{i}" if name else "" for i, name in enumerate(node.output)]
        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        del alone.input[:], alone.output[:]
        alone.input.extend(names)
        alone.output.extend(outputs)
        wanted = [name for name in outputs if name]
        function = helper.make_function("one", "f", [n for n in names if n], wanted, [alone], self.imports)
        feed = {name: _array(seen.value) for name, seen in zip(names, inputs, strict=True) if seen is not None}
        found = iter(ReferenceEvaluator(function).run(None, feed, {}))
        return [_Seen(next(found) if name else None) for name in outputs]

    def _branch(self, node: onnx.NodeProto, names: dict[str, _Seen], inputs: list[_Seen | None]) -> list[_Seen]:
        (condition,) = inputs
        assert condition is not None
        if condition.slot is not None:
            raise NoGradient("a branch that the input decides is not differentiated")
        chosen = "then_branch" if bool(np.asarray(condition.value).all()) else "else_branch"
        return self.graph(_attributes(node)[chosen], dict(names))

    def _loop(self, node: onnx.NodeProto, names: dict[str, _Seen], inputs: list[_Seen | None]) -> list[_Seen]:
        count, goes, *states = inputs
        body = _attributes(node)["body"]
        most = math.inf if count is None else int(np.asarray(count.value).reshape(()))
        kept: list[list[_Seen]] = [[] for _ in body.output[1 + len(states) :]]
        step = 0
        while step < most and (goes is None or bool(np.asarray(goes.value).all())):
            known = dict(names)
            heads = [_Seen(np.array(step)), goes or _Seen(np.array(True))]
            known |= {v.name: s for v, s in zip(body.input, [*heads, *states], strict=True)}
            goes, *found = self.graph(body, known)
            states = found[: len(states)]
            for rows, row in zip(kept, found[len(states) :], strict=True):
                rows.append(row)
            if goes.slot is not None or (count is not None and count.slot is not None):
                raise NoGradient("a loop that the input ends is not differentiated")
            step += 1
        return [*states, *(self._stacked(rows, 0) for rows in kept)]

    def _scan(self, node: onnx.NodeProto, names: dict[str, _Seen], inputs: list[_Seen | None]) -> list[_Seen]:
        held = _attributes(node)
        body, width = held["body"], held["num_scan_inputs"]
        if any(any(held.get(k, ())) for k in ("scan_input_directions", "scan_output_directions", "scan_output_axes")):
            raise NoGradient("a Scan that runs backward or along other axes is not differentiated")
        states, slices = inputs[: len(inputs) - width], inputs[len(inputs) - width :]
        axes = held.get("scan_input_axes", [0] * width)
        kept: list[list[_Seen]] = [[] for _ in body.output[len(states) :]]
        for step in range(slices[0].value.shape[axes[0]]):
            pieces = []
            for seen, axis in zip(slices, axes, strict=True):
                pick = helper.make_node("Gather", ["a", "b"], ["c"], axis=axis)
                pieces += self.node(pick, {"a": seen, "b": _Seen(np.array(step))})
            known = dict(names) | {v.name: s for v, s in zip(body.input, [*states, *pieces], strict=True)}
            found = self.graph(body, known)
            states = found[: len(states)]
            for rows, row in zip(kept, found[len(states) :], strict=True):
                rows.append(row)
        return [*states, *(self._stacked(rows, 0) for rows in kept)]

    def _stacked(self, rows: list[_Seen], axis: int) -> _Seen:
        if not rows:
            raise NoGradient("a loop without a step is not differentiated")
        lifted = []
        for row in rows:
            lift = helper.make_node("Unsqueeze", ["a", "b"], ["c"])
            if self.opset < 13:
                lift = helper.make_node("Unsqueeze", ["a"], ["c"], axes=[axis])
            lifted += self.node(lift, {"a": row, "b": _Seen(np.array([axis]))})
        join = helper.make_node("Concat", [f"r{i}" for i in range(len(rows))], ["c"], axis=axis)
        return self.node(join, {f"r{i}": row for i, row in enumerate(lifted)})[0]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    found = {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}
    return {
        k: [e.decode() if isinstance(e, bytes) else e for e in v] if isinstance(v, (list, tuple)) else v
        for k, v in found.items()
    }


def _used(node: onnx.NodeProto) -> int:
    """How many outputs the node has, unnamed ones at the end not counted."""
    return max((i + 1 for i, name in enumerate(node.output) if name), default=0)


def _single(given: Any) -> Any:
    return given.float() if isinstance(given, torch.Tensor) and given.dtype == torch.float64 else given


def _array(value: Any) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value


def _extent(node: onnx.NodeProto, shape: tuple[int, ...]) -> np.ndarray:
    if node.op_type == "Size":
        return np.array(math.prod(shape), np.int64)
    held = _attributes(node)
    return np.array(shape[held.get("start", 0) : held.get("end")], np.int64)
