"""What a lowering is given, and how it writes the nodes that stand for one node.

A lowering writes one op of onnxruntime's own as ops that have rules, exactly, in real arithmetic. It
keeps the node's name for the op that carries the weight, and its inputs, so that layers, patches and
explanations see ordinary ops. It raises `Kept` for what it does not know: the node then stays a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

MICROSOFT = "com.microsoft"
NCHWC = "com.microsoft.nchwc"


class Kept(Exception):
    """The node stays as it is: why ("": its op has a rule). remedy: what the user can do, where there is
    better than to avoid the op."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class ShapeNeeded(Kept):
    """It can be lowered once the shape of one of its inputs is known."""


@dataclass(frozen=True, slots=True)
class Lowering:
    """A row of the table: which op, written as what, on which condition."""

    op: str
    write: Callable[[Call], None]
    becomes: str
    condition: str = ""
    domain: str = MICROSOFT


@dataclass(slots=True)
class Call:
    """One node of the graph as a lowering sees it, and the nodes that it writes (`made`).

    opset   of ONNX's own ops
    shapes  of values as far as they are known, None for an open dimension
    kinds   the element types of values, as far as known
    taken   all names of the model, each with the number that the next of its name is given
    kept    blocked values whose other channels nothing reads: how many of their channels are written
    block   channels in a block of com.microsoft.nchwc; None: the file does not settle it
    real    the type of new real constants where the node's inputs do not say
    """

    node: onnx.NodeProto
    opset: int
    shapes: Mapping[str, tuple[int | None, ...]]
    kinds: Mapping[str, int]
    taken: dict[str, int]
    block: int | None = None
    real: int = onnx.TensorProto.FLOAT
    kept: Mapping[str, int] = field(default_factory=dict)
    made: list[onnx.NodeProto] = field(default_factory=list)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's value, strings decoded, or `default` where the node does not have it."""
        for one in self.node.attribute:
            if one.name == name:
                value = helper.get_attribute_value(one)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def attributes(self, *names: str) -> dict[str, Any]:
        """Those of these attributes that the node has."""
        found = {name: self.attribute(name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def only(self, *names: str) -> None:
        """Raise Kept for an attribute that is none of these: it may mean anything."""
        other = next((one.name for one in self.node.attribute if one.name not in names), None)
        if other is not None:
            raise Kept(f"has an attribute {other} that is not known")

    def signature(self, inputs: int, outputs: tuple[int, ...] = (0,)) -> None:
        """Raise Kept for more inputs than `inputs`, or an output in use that is none of `outputs`."""
        if any(self.node.input[inputs:]):
            raise Kept(f"has an input {inputs} that is not known")
        other = next((i for i, name in enumerate(self.node.output) if name and i not in outputs), None)
        if other is not None:
            raise Kept(f"gives output {other} of its own, which no other op gives")

    def input(self, index: int) -> str:
        """The name of an input, "" where it is absent."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def needed(self, index: int) -> str:
        """The name of an input that must be there."""
        if not self.input(index):
            raise Kept(f"lacks input {index}")
        return self.input(index)

    def output(self, index: int = 0) -> str:
        """The name of an output, "" where it is not asked for."""
        return self.node.output[index] if index < len(self.node.output) else ""

    def shape(self, index: int) -> tuple[int | None, ...]:
        """The shape of an input. Raises ShapeNeeded where its rank is not known."""
        found = self.shapes.get(self.needed(index))
        if found is None:
            raise ShapeNeeded(f"is read by the rank of input {index}, which is not known")
        return found

    def rank(self, index: int) -> int:
        """The rank of an input, as `shape`."""
        return len(self.shape(index))

    def fresh(self, name: str) -> str:
        """A name that the model does not have yet."""
        found = name
        while found in self.taken:
            found = f"{name}.{self.taken[name]}"
            self.taken[name] += 1
        self.taken[found] = 2
        return found

    def emit(
        self, op: str, inputs: list[str], part: str = "", output: str = "", domain: str = "", **attributes: Any
    ) -> str:
        """The output of a new node. part: what it is of this node; "" for the op that keeps its name.
        output: its name where it has one already."""
        own = self.node.name and (self.fresh(f"{self.node.name}/{part}") if part else self.node.name)
        first = next((name for name in self.node.output if name), self.node.op_type)
        made = output or self.fresh(f"{first}/{part or op}")
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self.made.append(helper.make_node(op, inputs, [made], name=own, domain=domain, **attributes))
        return made

    def constant(self, value: Any, part: str = "constant") -> str:
        """A new constant: integers as they are, real numbers in the type of the node's inputs."""
        array = np.asarray(value)
        if array.dtype.kind == "f":
            kind = next((self.kinds[name] for name in self.node.input if self.kinds.get(name) in _REAL), self.real)
            array = array.astype(helper.tensor_dtype_to_np_dtype(kind))
        return self.emit("Constant", [], part, value=numpy_helper.from_array(array))


_REAL = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16})
