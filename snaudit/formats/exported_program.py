"""The graph of an exported program: its JSON, read without a line of torch, as calls of ATen ops.

Every number, name and list in it is checked as it is decoded. Ops that write into their input
(`relu_`) are taken as functions where nothing else can see what they write; else the graph is not taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from snaudit.formats.aten_calls import Claim, Code, Ref, Symbol
from snaudit.formats.onnx_tensors import DTYPES as ONNX_DTYPES

_MAJOR = 8
_MOST_NODES, _MOST_LINKS, _MOST_RANK = 200_000, 2_000_000, 64
_INT64 = 1 << 63


class NotTaken(Exception):
    """The graph cannot be read as a function of its inputs; the message says why."""


@dataclass(frozen=True, slots=True)
class Call:
    """One node: an op of ATen by its name without the namespace ("conv2d.default"), or another's."""

    target: str
    label: str
    args: Mapping[str, Any]
    outputs: tuple[str, ...]
    reads: tuple[str, ...]
    by_keyword: bool = False
    """Whether a tensor is given by keyword, as all those are that an op writes to on demand (`out=`)."""


@dataclass(frozen=True, slots=True)
class Program:
    """inputs: the user's tensors; held: {graph name: name of the parameter, buffer or constant}."""

    inputs: tuple[str, ...]
    held: Mapping[str, str]
    outputs: tuple[str, ...]
    calls: tuple[Call, ...]
    claims: Mapping[str, Claim]
    symbols: Mapping[str, tuple[str | None, ...]]
    """For each input, the names of its symbolic sizes; None for a number."""


def program_of(document: Any, dtypes: Mapping[int, str]) -> Program:
    """The program in a model's JSON. Raises NotTaken for one that is not understood or not a function;
    whatever a malformed document raises besides (KeyError, TypeError, …) is the caller's to explain."""
    version = document.get("schema_version", {})
    if version.get("major") != _MAJOR:
        raise NotTaken(f"its schema is version {str(version.get('major'))[:20]}, not {_MAJOR}; export it anew")
    module = document["graph_module"]
    graph, signature = module["graph"], module["signature"]
    claims, symbols = {}, {}
    for name, meta in graph["tensor_values"].items():
        claims[name], symbols[name] = _claim(meta, dtypes)
    inputs, held = _inputs(graph["inputs"], signature["input_specs"])
    outputs = tuple(_outputs(graph["outputs"], signature["output_specs"]))
    calls = tuple(_calls(graph["nodes"], dtypes))
    _check_order({*inputs, *held}, calls, outputs)
    return Program(tuple(inputs), held, outputs, calls, claims, {name: symbols[name] for name in inputs})


def _claim(meta: Any, dtypes: Mapping[int, str]) -> tuple[Claim, tuple[str | None, ...]]:
    if len(meta["sizes"]) > _MOST_RANK:
        raise NotTaken("a tensor with more than 64 axes")
    shape, names = [], []
    for size in meta["sizes"]:
        kind, value = _union(size)
        if kind == "as_int":
            shape.append(_int(value))
            names.append(None)
        else:
            shape.append(None)
            names.append(str(value["expr_str"])[:80])
    dtype = dtypes.get(_int(meta["dtype"]))
    return Claim(dtype if dtype in ONNX_DTYPES.values() else None, tuple(shape)), tuple(names)


def _inputs(arguments: list[Any], specs: list[Any]) -> tuple[list[str], dict[str, str]]:
    inputs: list[str] = []
    held: dict[str, str] = {}
    places = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
    if len(arguments) != len(specs):
        raise NotTaken("its inputs are not those of its signature")
    for argument, spec in zip(arguments, specs, strict=True):
        kind, value = _union(spec)
        if kind in places:
            own = _union(argument)[1]["name"]
            if value["arg"]["name"] != own:
                raise NotTaken("its inputs are not those of its signature")
            held[_str(own)] = _str(value[places[kind]])
        elif kind == "user_input":
            given, inner = _union(value["arg"])
            if (given, inner) != _union(argument):
                raise NotTaken("its inputs are not those of its signature")
            if given == "as_tensor":
                inputs.append(_str(inner["name"]))
        elif kind != "constant_input":
            raise NotTaken(f"an input of the kind {kind}")
    if len({*inputs, *held}) != len(inputs) + len(held):
        raise NotTaken("two of its inputs have one name")
    return inputs, held


def _outputs(arguments: list[Any], specs: list[Any]) -> Iterator[str]:
    if len(arguments) != len(specs):
        raise NotTaken("its outputs are not those of its signature")
    for argument, spec in zip(arguments, specs, strict=True):
        kind, _ = _union(spec)
        if kind not in ("user_output", "loss_output"):
            raise NotTaken(f"it has an effect beside its outputs ({kind}): export it in eval mode")
        given, value = _union(argument)
        if given == "as_tensor":
            yield _str(value["name"])
        elif given in ("as_tensors", "as_optional_tensors"):
            raise NotTaken("lists among its outputs")


def _calls(nodes: list[Any], dtypes: Mapping[int, str]) -> Iterator[Call]:
    if len(nodes) > _MOST_NODES:
        raise NotTaken(f"more than {_MOST_NODES} nodes")
    links = 0
    for node in nodes:
        target = _str(node["target"])
        args: dict[str, Any] = {}
        by_keyword = False
        for entry in node["inputs"]:
            name = _str(entry["name"])
            if name in args:
                raise NotTaken(f"{target}: an argument given twice")
            args[name] = _argument(entry["arg"], dtypes)
            by_keyword |= entry.get("kind") != 1 and any(_reads([args[name]]))
        outputs, symbolic = [], False
        for output in node["outputs"]:
            kind, value = _union(output)
            if kind == "as_tensor":
                outputs.append(_str(value["name"]))
            elif kind == "as_tensors":
                outputs += [_str(one["name"]) for one in value]
            elif kind in ("as_sym_int", "as_sym_bool", "as_sym_float", "as_none"):
                symbolic = True
            else:
                raise NotTaken(f"{target}: an output of the kind {kind}")
        reads = tuple(_reads(list(args.values())))
        links += len(reads) + len(outputs)
        if links > _MOST_LINKS:
            raise NotTaken(f"more than {_MOST_LINKS} inputs and outputs")
        if not outputs and (symbolic or _checks_only(target)):
            continue  # sizes at run time, and checks of them: every use of one is a Symbol
        if not target.startswith("torch.ops.aten."):
            raise NotTaken(f"{target}: an op that may do anything with its inputs")
        short = target.removeprefix("torch.ops.aten.")
        label = _str(node.get("name") or (outputs[0] if outputs else short))
        if not outputs:
            raise NotTaken(f"{target}: an op without outputs")
        yield Call(short, label, args, tuple(outputs), reads, by_keyword)


def _checks_only(target: str) -> bool:
    return target.startswith((
        "torch.ops.aten._assert_", "torch.ops.aten.sym_constrain_range", "torch.ops.aten._assert_tensor_metadata",
    ))  # fmt: skip


def _reads(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, Ref):
            yield value.name
        elif type(value) is list:
            yield from _reads(value)


def _argument(argument: Any, dtypes: Mapping[int, str]) -> Any:
    """An argument as a plain value, a Ref, a Symbol, a Code, or a list of these."""
    kind, value = _union(argument)
    if kind == "as_none":
        return None
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    if kind in _LISTS:
        return [_SCALARS[_LISTS[kind]](one) for one in value]
    if kind in ("as_optional_tensor", "as_sym_int", "as_sym_bool", "as_sym_float"):
        return _argument_of_union(value)
    if kind in ("as_optional_tensors", "as_sym_ints", "as_sym_bools", "as_sym_floats"):
        return [_argument_of_union(one) for one in value]
    if kind == "as_scalar_type":
        return Code(kind, dtypes.get(_int(value), f"dtype {value}"))
    if kind in ("as_memory_format", "as_layout"):
        return Code(kind, _int(value))
    if kind == "as_device":
        return Code(kind, str(value)[:80])
    raise NotTaken(f"an argument of the kind {kind}")


def _argument_of_union(value: Any) -> Any:
    """A value that may be a name or a number, as lists with symbolic sizes hold it."""
    kind, inner = _union(value)
    if kind == "as_none":
        return None
    if kind == "as_name":
        return Symbol(_str(inner))
    return _SCALARS[kind](inner)


def _union(value: Any) -> tuple[str, Any]:
    """The one entry of a tagged union."""
    if type(value) is not dict or len(value) != 1:
        raise TypeError("a union with more or less than one value")
    return next(iter(value.items()))


def _int(value: Any) -> int:
    if type(value) is not int or not -_INT64 <= value < _INT64:
        raise TypeError("an integer that is none")
    return value


def _float(value: Any) -> float:
    if type(value) is str and value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    if type(value) not in (int, float):
        raise TypeError("a number that is none")
    return float(value)


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError("a truth value that is none")
    return value


def _str(value: Any) -> str:
    if type(value) is not str or not value or len(value) > 4096:
        raise TypeError("a name that is none")
    return value


def _ref(value: Any) -> Ref:
    return Ref(_str(value["name"]))


_SCALARS = {
    "as_int": _int, "as_float": _float, "as_bool": _bool, "as_string": _str, "as_tensor": _ref,
}  # fmt: skip
_LISTS = {
    "as_ints": "as_int", "as_floats": "as_float", "as_bools": "as_bool", "as_strings": "as_string",
    "as_tensors": "as_tensor",
}  # fmt: skip


def _check_order(given: set[str], calls: tuple[Call, ...], outputs: tuple[str, ...]) -> None:
    """Raise NotTaken unless every name is made once, before it is read."""
    known = set(given)
    for call in calls:
        for name in call.reads:
            if name not in known:
                raise NotTaken(f"{call.label} reads {name}, which nothing before it makes")
        for name in call.outputs:
            if name in known:
                raise NotTaken(f"{name} is made twice")
            known.add(name)
    for name in outputs:
        if name not in known:
            raise NotTaken(f"{name}: an output that nothing makes")
    if any("/" in name for name in known):
        raise NotTaken("a name with a slash")


WRITERS = frozenset(["_batch_norm_with_update", "_cummax_helper", "_cummin_helper", "_flash_attention_forward_no_dropout_inplace", "_fused_moving_avg_obs_fq_helper", "fused_moving_avg_obs_fake_quant", "_native_batch_norm_legit", "record_stream", "rrelu_with_noise", "set_data", "retain_grad", "batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "instance_norm", "__iand__", "__ilshift__", "__ior__", "__irshift__", "__ixor__"])
"""Ops that write into an input (normalizations where they train) and are not named for it."""


_PARTS = frozenset(
    ("chunk.default", "split.Tensor", "split_with_sizes.default", "unbind.int", "unsafe_chunk.default", "unsafe_split.Tensor")
)
"""Ops whose outputs are parts of their input that share no number with each other."""


def may_write(call: Call) -> bool:
    """Whether an op that nobody translated may write into one of its inputs, by what ATen's schemas say."""
    return call.by_keyword or call.target.partition(".")[0] in WRITERS


def functional(program: Program, pure: frozenset[str], views: frozenset[str]) -> Program:
    """The program without ops that write into their input, each replaced by the function of its name.

    pure: ops whose outputs are new; views: those whose outputs may share their input's numbers. A
    write is unseen if its target was made by a pure op, was read before by pure ops only, and is read
    by nobody later. A part of what a pure op made and nobody else reads is like what one made: parts do not
    overlap. Raises NotTaken for any other.
    """
    makers: dict[str, Call] = {}
    readers = Counter(name for call in program.calls for name in call.reads)
    before: dict[str, list[Call]] = {}
    calls = []
    for call in program.calls:
        writes = _writes(call.target)
        if call.target == "detach_.default":  # it changes what a gradient sees, no number
            call = replace(call, target="detach.default")
        elif writes is not None:
            _check_unseen(program, call, writes, makers, before, readers, pure, views)
            call = replace(call, target=writes)
        for name in call.reads:
            before.setdefault(name, []).append(call)
        makers.update(dict.fromkeys(call.outputs, call))
        calls.append(call)
    return replace(program, calls=tuple(calls))


def _writes(target: str) -> str | None:
    """For an op that writes ("relu_.default"), its function's name; None for others. ATen marks them."""
    name, _, overload = target.partition(".")
    if "out" in overload.split("_"):
        raise NotTaken(f"{target}: an op that writes where it is told")
    return f"{name[:-1]}.{overload}" if name.endswith("_") and not name.endswith("__") else None


def _check_unseen(
    program: Program, call: Call, function: str, makers: Mapping[str, Call], before: Mapping[str, list[Call]],
    readers: Mapping[str, int], pure: frozenset[str], views: frozenset[str],
) -> None:  # fmt: skip
    target = call.args.get("self", call.args.get("input"))
    name = target.name if isinstance(target, Ref) else ""
    maker, seen = makers.get(name), before.get(name, [])
    own = sum(read == name for read in call.reads)
    if maker is not None and maker.target in _PARTS:
        whole = maker.args.get("self", maker.args.get("tensor"))
        base = whole.name if isinstance(whole, Ref) else ""
        alone = readers[base] == 1 and base not in program.outputs
        maker = makers.get(base) if alone else None
    fine = (
        function in pure
        and function not in views
        and maker is not None
        and maker.target in pure
        and all(one.target in pure for one in seen)
        and readers[name] == own + sum(sum(read == name for read in one.reads) for one in {id(o): o for o in seen}.values())
        and name not in program.outputs
    )
    if not fine:
        raise NotTaken(f"{call.label} writes into a tensor that may be read elsewhere ({call.target})")
