"""Walk: what is known so far on a walk over a graph, and how its nodes hang together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from snaudit.domains import is_default
from snaudit.bound import UNBOUNDED, Bound, Norm, exactly
from snaudit.findings import Gap
from snaudit.matching import Shortcut
from snaudit.ranges import UNKNOWN, Range, of_constant
from snaudit.rules.interface import CONSTANT, Value, unmeasured

MALFORMED = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What a rule raises over attributes or inputs that make no sense."""


UNROUNDED = Value(exactly(0.0, "input"), frozenset({"rounding"}))
"""A real value that nothing has rounded yet, on a walk about errors."""


@dataclass(slots=True)
class Walk:
    """What is known so far of each value that the outputs depend on."""

    model: ir.Model
    norm: Norm
    operators: Mapping[ir.Value, Bound]
    names: Mapping[ir.Value, str]
    shortcuts: dict[ir.Value, list[Shortcut]]
    fold: Callable[[ir.Value], np.ndarray | None]
    inputs: frozenset[ir.Value]
    starts: Mapping[ir.Value, str] = field(default_factory=dict)
    """Values that are taken as inputs of their own, whatever makes them, and what to call them."""
    ranges: dict[ir.Value, Range] = field(default_factory=dict)
    """Where entries lie: of the inputs as the user states it, of other values as it follows."""
    narrower: Mapping[ir.Value, Range] = field(default_factory=dict)
    """What is known of that beyond what each op's rule says of its result."""
    values: dict[ir.Value, Value] = field(default_factory=dict)
    taken: dict[ir.Value, Shortcut] = field(default_factory=dict)
    gaps: dict[ir.Value, Gap] = field(default_factory=dict)
    integers: set[ir.Value] = field(default_factory=set)
    """Constant values that are computed from the numbers in an integer input."""
    embeddings: list[str] = field(default_factory=list)
    shaped_by_data: set[ir.Value] = field(default_factory=set)
    """Values whose shape may depend on the numbers in the network's input."""
    codes: set[ir.Value] = field(default_factory=set)
    """Integers that stand for varying real values."""
    measure: Callable[[np.ndarray], Bound] = unmeasured
    """The enclosed norm of a matrix that a rule has put together."""
    only: ir.Value | None = None
    """The one input that varies; all others, and the rows that they pick, are held fixed. None: all vary."""
    held: set[ir.Value] = field(default_factory=set)
    """Values computed from what is held fixed for `only`: constants that no one knows."""
    prior: Mapping[ir.Value, Range] = field(default_factory=dict)
    """Where entries lie when all inputs vary, of the main graph's values: so they do where some are held."""
    errors: bool = False
    """Whether lips are bounds of what rounding has added so far: real inputs have none, and share one source."""


def reads_of(walk: Walk, node: ir.Node) -> list[ir.Value]:
    """All values that a node's outputs depend on: its inputs and what its bodies take from outside."""
    found = [value for value in node.inputs if value is not None]
    if node.op_type == "If" and is_default(node):
        return found + [value for branch in branches_of(walk, node) for value in branch.outputs]
    for graph in bodies_of(node):
        inner = set(ir.traversal.RecursiveGraphIterator(graph))
        own = {*graph.inputs, *(v for body in all_graphs(inner) for v in body.inputs)}
        used = [*graph.outputs, *(v for n in inner for v in n.inputs if v is not None)]
        for value in used:
            if value not in own and (value.producer() is None or value.producer() not in inner):
                found.append(value)
    return found


def bodies_of(node: ir.Node) -> list[ir.Graph]:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    found = [a.value for a in node.attributes.values() if not a.is_ref() and a.type in kinds]
    return [graph for value in found for graph in (value if isinstance(value, (list, tuple)) else (value,))]


def all_graphs(nodes: set[ir.Node]) -> list[ir.Graph]:
    return [graph for node in nodes for graph in bodies_of(node)]


def branches_of(walk: Walk, node: ir.Node) -> list[ir.Graph]:
    """The branches of an If that may run: one, where its condition is a known constant."""
    both = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    condition = walk.fold(node.inputs[0])
    if condition is None or condition.size != 1:
        return both
    return [both[0] if bool(condition.ravel()[0]) else both[1]]


def where_is(node: ir.Node) -> str:
    return next(n for n in (node.name, *(o.name for o in node.outputs), node.op_type) if n)


def value_of(walk: Walk, value: ir.Value) -> Value:
    """What is known of a value; values that no node makes are judged here, once."""
    if value not in walk.values:
        walk.values[value] = root_of(walk, value)
    return walk.values[value]


def range_of(walk: Walk, value: ir.Value) -> Range:
    """Where the entries of a value lie: as the walk found or the user stated it; of a constant, exactly."""
    found = walk.ranges.get(value)
    if found is None:
        found = UNKNOWN
        if value not in walk.starts and value_of(walk, value).is_constant:
            array = walk.fold(value)
            if array is not None and array.dtype.kind not in "USOc" and array.size:
                found = of_constant(array)
        walk.ranges[value] = found
    return found


def root_of(walk: Walk, value: ir.Value) -> Value:
    if value in walk.starts:
        return Value(exactly(1.0, "cut"), frozenset({walk.starts[value]}))
    if value.const_value is not None or "tensor" in value.meta or value.is_initializer():
        return CONSTANT
    name = value.name or "?"
    if value not in walk.inputs:  # a cycle, or a value that nothing makes
        walk.gaps[value] = Gap(
            "malformed", name, "graph", "a value that is used before it is made", "repair the model"
        )
        return Value(UNBOUNDED, frozenset({f"<{name}>"}))
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        reason = "a graph input that is no tensor (a sequence or an optional)"
        walk.gaps[value] = Gap("no-rule", name, "input", reason, "export the model with tensor inputs")
        return Value(UNBOUNDED, frozenset({name}))
    if value.dtype is not None and not value.dtype.is_floating_point():
        walk.integers.add(value)
        return CONSTANT
    if walk.errors:
        return UNROUNDED
    if walk.only is not None and value is not walk.only:
        walk.held.add(value)
        return CONSTANT
    return Value(exactly(1.0, "input"), frozenset({name}))
