"""What a rule is given and what it returns.

A rule bounds one op. It sees a `Step` and returns a `Value` for each output of the node; it raises
`Unbounded` where no finite constant exists or is known, with the reason and the remedy, and
`lipschitz.compose` makes that a Gap. Rules never measure a σ: they receive it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from snaudit.attributes import attribute
from snaudit.bound import UNBOUNDED, Bound, Norm, chain, exactly
from snaudit.opsets import since
from snaudit.ranges import UNKNOWN, Range

if TYPE_CHECKING:
    import onnx_ir


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of one value of the graph, as a function of the network's real inputs jointly.

    lip      its Lipschitz constant in the audit's norm, over the concatenation of all real inputs
    sources  the real inputs it depends on; empty: it is constant (weights, shapes, token ids)
    jumps    not None: piecewise constant in real inputs (an index, a comparison); using it in
             arithmetic or to choose between values has no Lipschitz constant; says which node
    assumes  one sentence for each thing that this value's own rule could not check (an input size)
    part     (whole, index): it depends on the input only through piece `index` of the value `whole`,
             whose pieces are disjoint, and lip is the whole's constant times a gain from that piece
    """

    lip: Bound
    sources: frozenset[str] = frozenset()
    jumps: str | None = None
    assumes: tuple[str, ...] = ()
    part: tuple[Any, int] | None = None

    @property
    def is_constant(self) -> bool:
        return not self.sources and self.jumps is None


SURROGATE = (
    "the quantizers do not round: with rounding the function jumps and has no Lipschitz constant, and the "
    "number is that of the function without"
)
"""What a Value assumes that rests on quantizers."""

CONSTANT = Value(exactly(0.0, "constant"))


class Unbounded(Exception):
    """No finite constant is known here: why, and what the user can do."""

    def __init__(self, reason: str, remedy: str, code: str = "no-constant") -> None:
        super().__init__(reason)
        self.reason, self.remedy, self.code = reason, remedy, code


def unmeasured(matrix: np.ndarray) -> Bound:
    """What is known of a matrix that nobody measures."""
    return UNBOUNDED


@dataclass(frozen=True, slots=True)
class Step:
    """One node of the graph as a rule sees it.

    node     the onnx_ir node; use `attribute`, `constant`, `shape` rather than digging in it
    inputs   a Value for each input, None where an optional one is absent
    norm     the audit's norm
    operator the measured norm of the node's own linear map (its layer), or None
    opset    version of the node's domain
    errors   the walk is about rounding: a Value's lip bounds the error that its actual value may have
    ranges   where the entries of a value lie, as far as that is known
    measure  encloses the norm, in the audit's norm, of a float64 matrix that the rule has put together
    """

    node: onnx_ir.Node
    inputs: tuple[Value | None, ...]
    norm: Norm
    opset: int
    operator: Bound | None = None
    fold: Callable[[Any], np.ndarray | None] = field(default=lambda value: None, repr=False)
    errors: bool = False
    ranges: Callable[[Any], Range] = field(default=lambda value: UNKNOWN, repr=False)
    measure: Callable[[np.ndarray], Bound] = field(default=unmeasured, repr=False)

    @property
    def where(self) -> str:
        """The node's name, or that of its first output, or its op."""
        named = [self.node.name, *(output.name for output in self.node.outputs), self.node.op_type]
        return next(name for name in named if name)

    @property
    def varying(self) -> tuple[int, ...]:
        """The positions of the inputs that depend on the network's real inputs."""
        return tuple(i for i, v in enumerate(self.inputs) if v is not None and not v.is_constant)

    def has(self, index: int) -> bool:
        """Whether optional input `index` is present."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def data(self, index: int = 0) -> Value:
        """Input `index`, where all other inputs must be constant; Unbounded otherwise."""
        others = [i for i in self.varying if i != index]
        if others:
            raise Unbounded(
                f"input {others[0]} of {self.node.op_type} depends on the network's input too",
                "make it a constant of the model",
                "varying-parameter",
            )
        value = self.inputs[index]
        assert value is not None
        return value

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's value, or `default` where the node does not have it."""
        return attribute(self.node, name, default)

    def constant(self, index: int) -> np.ndarray | None:
        """The array that input `index` always holds, or None if it is absent or no constant."""
        if index >= len(self.node.inputs) or self.node.inputs[index] is None:
            return None
        return self.fold(self.node.inputs[index])

    def range(self, index: int) -> Range:
        """Where the entries of input `index` lie; unknown for one that is absent."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return UNKNOWN if value is None else self.ranges(value)

    def shape(self, index: int) -> tuple[int | None, ...] | None:
        """Input `index`'s shape with None for each unknown dimension; None if its rank is unknown."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return _shape(value)

    def output_shape(self, index: int = 0) -> tuple[int | None, ...] | None:
        """Output `index`'s shape, as `shape`."""
        return _shape(self.node.outputs[index])


def roots(value: Any) -> tuple[list[Any], list[Any]]:
    """(the graph's inputs whose numbers a value is computed from, those of which only the open size is used)."""
    used: dict[Any, bool] = {}
    stack = [(value, False)]
    while stack:
        one, sized = stack.pop()
        if one is None or (one in used and used[one] <= sized):
            continue
        used[one] = sized
        node = one.producer()
        sized = sized or (node is not None and node.op_type in ("Shape", "Size"))
        stack += [] if node is None else [(read, sized) for read in node.inputs]
    inputs = [one for one in used if one.producer() is None and one.is_graph_input() and not one.is_initializer()]
    return [v for v in inputs if not used[v]], [v for v in inputs if used[v] and None in (_shape(v) or (None,))]


def unknown(step: Step, index: int) -> Unbounded:
    """Why the numbers in constant input `index` are not known, and what tells them."""
    numbers, sizes = roots(step.node.inputs[index])
    held = [v for v in numbers if v.dtype is not None and v.dtype.is_floating_point()]
    op, what = step.node.op_type, "by a constant whose value is not known"
    if held:
        names = " and ".join(str(v.name) for v in held)
        told = " ".join(f"--input-range {v.name}=LO,HI" for v in held)
        reason = f"{op} by what is computed from {names}, which is held fixed at any value"
        return Unbounded(reason, f"state where it is held: {told}", "needs-range")
    if numbers:
        reason = f"{op} {what}: it is computed from the integer input {numbers[0].name}"
        fixed = f", or fix it with --input-size {numbers[0].name}=N" if _shape(numbers[0]) == () else ""
        return Unbounded(reason, f"store it as a constant of the model{fixed}", "unknown-constant")
    if sizes:
        reason = f"{op} {what}: it depends on the size of {sizes[0].name}, which is open"
        return Unbounded(reason, "give the input's size with --input-size", "unknown-constant")
    return Unbounded(f"{op} {what}", "store it as a constant of the model", "unknown-constant")


def through(value: Value, gain: Bound) -> Value:
    """The value of g(value), g with Lipschitz bound `gain`: uppers multiply."""
    if gain.upper == 1.0 and gain.grade >= value.lip.grade:
        return Value(value.lip, value.sources, part=value.part)
    return Value(chain(value.lip, gain), value.sources, part=value.part)


def within(value: Value, *used: Range) -> Value:
    """The value, its bound resting on these ranges: it holds on the box of inputs that they rest on."""
    assumes = dict.fromkeys([*value.assumes, *(s for one in used for s in sorted(one.rests))])
    return replace(value, assumes=tuple(assumes))


def jumping(step: Step) -> Value:
    """The value of an op that is piecewise constant in its real inputs."""
    sources = frozenset().union(*(step.inputs[i].sources for i in step.varying))
    return Value(UNBOUNDED, sources, jumps=step.where)


def _shape(value: Any) -> tuple[int | None, ...] | None:
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) and d >= 0 else None for d in value.shape)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the op table: which op, since which opset, under which condition, with what constant."""

    op: str
    rule: Callable[[Step], tuple[Value, ...]]
    constant: str
    theorem: str
    condition: str = ""
    domain: str = ""
    norms: tuple[Norm, ...] = ("l2", "linf", "l1")

    @property
    def since(self) -> int:
        """The opset from which the op is read."""
        return since(self.domain, self.op)
