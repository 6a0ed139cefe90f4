"""The ops on tensors that TorchScript's code calls, collected as they are met, with what is known of their results.

Each op is translated to ONNX on trial, and ONNX's inference says what shape and dtype it makes.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from snaudit.errors import UsageError
from snaudit.formats.aten_calls import DOMAIN, OPSET, Claim, Code, Ref, Writer
from snaudit.formats.aten_made import MADE
from snaudit.formats.exported_graph import NUMBERS, TRANSLATORS, translate
from snaudit.formats.exported_program import Call, NotTaken, may_write
from snaudit.formats.onnx_fits import misfit
from snaudit.formats.onnx_tensors import DTYPES as ONNX_DTYPES
from snaudit.formats.script_overloads import count_of, target_of
from snaudit.formats.script_values import PLAIN, SCALAR_TYPES, Num, applied, whole
from snaudit.model import Tensor

_MOST_CALLS = 20_000
_INLINE = 1 << 12
REAL = ("float16", "float32", "float64")


@dataclass(slots=True)
class Tracer:
    """Ops met so far, and what is known of the tensors that they make."""

    tensors: Mapping[str, Tensor]
    claims: dict[str, Claim] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    indices: set[str] = field(default_factory=set)
    """Inputs that are taken for indices, which must be integers."""
    asked: bool = False
    """Whether the code asks for gradients, on which what it computes may then depend."""
    _labels: Counter[str] = field(default_factory=Counter)
    writer: Writer = field(init=False)

    def __post_init__(self) -> None:
        self.writer = Writer(self.claims, {})

    def hold(self, name: str) -> Ref:
        tensor, known = self.tensors[name], f"held:{name}"
        self.held[known] = name
        self.claims[known] = Claim(tensor.dtype, tensor.shape)
        return Ref(known)

    def number(self, value: Any) -> Any:
        """The Num of a stored integer without axes; any other value as it is."""
        if isinstance(value, Ref) and value.name in self.held:
            tensor = self.tensors[self.held[value.name]]
            if tensor.shape == () and tensor.dtype in ("int64", "int32", "bool"):
                return Num(tensor.load().item())
        return value

    def __call__(self, op: str, args: list[Any], keywords: dict[str, Any], count: int, place: str) -> Any:
        args = [self.number(one) for one in args]
        tensors = [one for one in args if isinstance(one, Ref)]
        if op in PLAIN and not tensors and not any(type(one) is list and one for one in args):
            return applied(op, args, keywords)
        if op in _QUERIES:
            return _QUERIES[op](self, *args, **keywords)
        args = [self._operand(one, tensors) for one in args]
        keywords = {name: one.value if isinstance(one, Num) else one for name, one in keywords.items()}
        if op == "to":
            op, args, keywords = "to", [args[0], self._dtype(args[1:], keywords)], {}
        return self._collect(op, args, keywords, count, place)

    def _operand(self, value: Any, tensors: list[Ref]) -> Any:
        """A Num as its number, also a stored one behind the first tensor, which sets the dtype."""
        if isinstance(value, Num):
            return value.value
        if type(value) in (list, tuple):
            if any(type(one) in (list, tuple) for one in value):
                raise NotTaken("a list of lists as an argument")
            known = [self.number(one) for one in value]
            return [one.value if isinstance(one, Num) else one for one in known]
        if isinstance(value, Ref) and value is not tensors[0] and value.name in self.held:
            tensor = self.tensors[self.held[value.name]]
            first = self.claims.get(tensors[0].name, Claim(None, ()))
            if tensor.shape == () and tensor.dtype in REAL and first.shape and first.dtype in REAL:
                return float(tensor.load())
        return value

    def _dtype(self, rest: list[Any], keywords: Mapping[str, Any]) -> Code | None:
        """The dtype that `to` converts into; None where it only moves."""
        for one in (*rest, keywords.get("dtype")):
            if isinstance(one, Ref):
                return Code("as_scalar_type", self.claims.get(one.name, Claim(None, ())).dtype)
            if type(one) is int:
                return _code(one)
        return None

    def _collect(self, op: str, args: list[Any], keywords: dict[str, Any], count: int, place: str) -> Any:
        writes = op.endswith("_") and not op.endswith("__")
        plain = op[:-1] if writes else op
        target = target_of(plain, args, keywords)
        named = _named(target, args, keywords)
        made = count_of(target, named, self.claims, count)
        names = self._names(f"{place}.{op}".lstrip("."), max(made, 1) if made is not None else 1)
        reads = tuple(_reads([*named.values()]))
        if not reads and target not in MADE:
            raise NotTaken(f"it calls {op[:80]} on no tensor")
        call = Call(target, names[0], named, names, reads)
        self._translate(call)
        if target == "embedding.default" and isinstance(named.get("indices"), Ref):
            self.indices.add(named["indices"].name)
        if writes:
            short, _, overload = target.partition(".")
            call = replace(call, target=f"{short}_.{overload}")
        self.calls.append(call)
        if len(self.calls) > _MOST_CALLS:
            raise NotTaken(f"more than {_MOST_CALLS} ops")
        return Ref(names[0]) if made is None else [Ref(name) for name in names]

    def _names(self, label: str, count: int) -> tuple[str, ...]:
        names = []
        for _ in range(count):
            self._labels[label] += 1
            again = self._labels[label]
            names.append(label if again == 1 else f"{label}_{again}")
        if any(name in self.claims or name in self.tensors for name in names):
            raise NotTaken("two of its values have one name")
        return tuple(names)

    def _translate(self, call: Call) -> None:
        """Translate the call on trial; what ONNX's inference says of its outputs becomes known."""
        writer = self.writer
        writer.nodes.clear(), writer.constants.clear(), writer.used.clear()  # type: ignore[func-returns-value]
        rest = translate(call, writer)
        if rest and may_write(call):
            raise NotTaken(f"{call.label} may write into its inputs ({call.target}): export it in eval mode")
        reason = self._misfit()
        if reason is not None:
            raise UsageError(f"--input-size: its forward does not run on this size: {reason}")
        for name in call.outputs:
            self.claims[name] = Claim(None, ())
        found = _inferred(writer, self.claims, [name for name in call.outputs if name not in rest])
        for name in call.outputs:
            if name in found:
                self.claims[name] = found[name]
            else:
                del self.claims[name]

    def _misfit(self) -> str | None:
        """Why the nodes just written do not run on what is known of their inputs."""
        between = [name for node in self.writer.nodes[:-1] for name in node.output]
        inner = _inferred(self.writer, self.claims, between) if between else {}
        known = {name: claim.shape for name, claim in (self.claims | inner).items() if claim.shape or claim.dtype}
        return misfit(self.writer.nodes, known | {name: one.shape for name, one in self.writer.constants.items()})


def _inferred(writer: Writer, claims: Mapping[str, Claim], wanted: list[str]) -> dict[str, Claim]:
    """What ONNX's inference says of the nodes' outputs."""
    made = {name for node in writer.nodes for name in node.output}
    read = dict.fromkeys(name for node in writer.nodes for name in node.input if name and name not in made)
    inputs, initializers = [], []
    for name in read:
        array = writer.constants.get(name)
        if array is not None and array.nbytes <= _INLINE:
            initializers.append(onnx.numpy_helper.from_array(array, name))
        else:
            claim = claims.get(name) if array is None else Claim(str(array.dtype), array.shape)
            if claim is None or claim.dtype is None:
                return {}
            inputs.append(helper.make_tensor_value_info(name, NUMBERS[claim.dtype], list(claim.shape)))
    outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
    graph = helper.make_graph(writer.nodes, "call", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    try:
        model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=10), data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise NotTaken("its ops do not fit the sizes of its tensors") from error
    return {value.name: claim for value in model.graph.output if (claim := _claim(value)) is not None}


def _claim(value: onnx.ValueInfoProto) -> Claim | None:
    kind = value.type.tensor_type
    if kind.elem_type not in ONNX_DTYPES or not kind.HasField("shape"):
        return None
    return Claim(ONNX_DTYPES[kind.elem_type], tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim))


def _code(number: Any) -> Code:
    return Code("as_scalar_type", SCALAR_TYPES.get(number, "unknown"))


def _named(target: str, args: list[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by their names in the op's schema, dtypes among them told as such."""
    translator = TRANSLATORS.get(target)
    names = [str(at) for at in range(len(args))]
    if translator is not None:
        names = [name for name in inspect.signature(translator).parameters][1:]
        if len(names) < len(args):
            raise NotTaken(f"{target} with {len(args)} arguments")
    named = dict(zip(names, args, strict=False))
    if set(named) & set(keywords):
        raise NotTaken(f"{target}: an argument given twice")
    named |= keywords
    return {name: _code(value) if name == "dtype" and type(value) is int else value for name, value in named.items()}


def _reads(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, Ref):
            yield value.name
        elif type(value) in (list, tuple):
            yield from (one.name for one in value if isinstance(one, Ref))


# What code asks of a tensor


def _sizes(tracer: Tracer, tensor: Any, axis: Any = None) -> Any:
    claim = tracer.claims.get(tensor.name) if isinstance(tensor, Ref) else None
    if claim is None or None in claim.shape:
        raise NotTaken("it asks for a size that is not known")
    return list(claim.shape) if axis is None else claim.shape[whole(axis)]


def _kind(tracer: Tracer, tensor: Any) -> Any:
    claim = tracer.claims.get(tensor.name) if isinstance(tensor, Ref) else None
    found = [number for number, name in SCALAR_TYPES.items() if claim is not None and name == claim.dtype]
    if not found:
        raise NotTaken("it asks for a dtype that is not known")
    return found[0]


def _length(tracer: Tracer, tensor: Any) -> int:
    return len(tensor) if type(tensor) in (list, tuple) else _sizes(tracer, tensor, 0)


def _asking(tracer: Tracer) -> bool:
    tracer.asked = True
    return True


_QUERIES: dict[str, Callable[..., Any]] = {
    "size": _sizes, "shape": _sizes, "dim": lambda tracer, one: len(_sizes(tracer, one)), "len": _length,
    "numel": lambda tracer, one: int(np.prod(_sizes(tracer, one), dtype=object)), "dtype": _kind,
    "is_floating_point": lambda tracer, one: SCALAR_TYPES[_kind(tracer, one)].startswith(("float", "bfloat")),
    "is_complex": lambda tracer, one: SCALAR_TYPES[_kind(tracer, one)].startswith("complex"),
    "is_cuda": lambda tracer, one: False, "is_quantized": lambda tracer, one: False, "is_sparse": lambda tracer, one: False,
    "is_nested": lambda tracer, one: False, "requires_grad": lambda tracer, one: _asking(tracer),
    "is_grad_enabled": lambda tracer: _asking(tracer),
    "device": lambda tracer, one: Code("as_device", "cpu"), "data": lambda tracer, one: one, "cpu": lambda tracer, one: one,
    "NumToTensor": lambda tracer, one: one if isinstance(one, (Num, Ref)) else Num(one),
}  # fmt: skip
"""Where the function is the same on either path (gradients, devices), the answer is the common one."""
