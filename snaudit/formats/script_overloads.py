"""Which overload of an ATen op a call in TorchScript's code means, and how many tensors it makes.

The code names ops without their overloads; torch tells them by the kinds of their arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snaudit.formats.aten_calls import Claim, Ref
from snaudit.formats.exported_graph import TRANSLATORS
from snaudit.formats.exported_program import NotTaken

_ONLY = {
    "add": "add.Tensor", "sub": "sub.Tensor", "mul": "mul.Tensor", "div": "div.Tensor", "rsub": "rsub.Scalar",
    "flatten": "flatten.using_ints", "transpose": "transpose.int", "slice": "slice.Tensor", "select": "select.int",
    "unbind": "unbind.int", "unflatten": "unflatten.int", "softmax": "softmax.int", "log_softmax": "log_softmax.int",
    "to": "to.dtype", "lstm": "lstm.input", "gru": "gru.input", "rnn_tanh": "rnn_tanh.input",
    "rnn_relu": "rnn_relu.input", "movedim": "movedim.int", "index": "index.Tensor", "conv_transpose2d": "conv_transpose2d.input", "conv_transpose3d": "conv_transpose3d.input",
}  # fmt: skip
_MADE = {
    "lstm.input": 3, "gru.input": 2, "rnn_tanh.input": 2, "rnn_relu.input": 2, "max.dim": 2, "min.dim": 2, "topk.default": 2, "lstm_cell.default": 2,
    "sort.default": 2, "native_layer_norm.default": 3, "native_batch_norm.default": 3, "native_group_norm.default": 3,
    "max_pool1d_with_indices.default": 2, "max_pool2d_with_indices.default": 2, "max_pool3d_with_indices.default": 2,
    "adaptive_max_pool1d.default": 2, "adaptive_max_pool2d.default": 2, "adaptive_max_pool3d.default": 2,
    "_native_batch_norm_legit_no_training.default": 3, "_native_multi_head_attention.default": 2,
}  # fmt: skip
"""Outputs of ops that return a tuple."""


def target_of(op: str, args: list[Any], keywords: Mapping[str, Any]) -> str:
    """The op with its overload, as ATen's schemas name it."""
    second = args[1] if len(args) > 1 else next((keywords[key] for key in ("dim", "other") if key in keywords), None)
    if op in _ONLY:
        return _ONLY[op]
    if op in ("conv1d", "conv2d", "conv3d"):
        return f"{op}.padding" if len(args) > 4 and type(args[4]) is str else f"{op}.default"
    if op == "split" and type(second) is list:
        return "split_with_sizes.default"
    if op in ("max", "min") and isinstance(second, int):
        return f"{op}.dim"
    if op in ("mean", "sum") and second is not None:
        return f"{op}.dim" if op == "mean" else "sum.dim_IntList"
    if op == "squeeze":
        return "squeeze.default" if second is None else "squeeze.dim" if type(second) is int else "squeeze.dims"
    if op == "pow":
        return "pow.Tensor_Tensor" if isinstance(second, Ref) else "pow.Tensor_Scalar"
    if op in ("eq", "ne", "lt", "le", "gt", "ge", "masked_fill"):
        last = args[-1] if args else None
        return f"{op}.{'Tensor' if isinstance(last, Ref) else 'Scalar'}"
    if op in ("max", "min") and isinstance(second, Ref):
        return f"{op}.other"
    if op in ("var", "std"):
        return f"{op}.correction" if "correction" in keywords else f"{op}.{'default' if type(second) is bool or second is None else 'dim'}"
    if op == "eye":
        return "eye.m" if type(second) is int or "m" in keywords else "eye.default"
    if op == "where":
        return "where.self" if len(args) == 3 else "where.default"
    if op == "arange":
        return f"arange.{('default', 'start', 'start_step')[min(sum(type(one) in (int, float) for one in args), 3) - 1]}"
    if op.startswith("upsample_"):
        return f"{op}.{'vec' if type(args[-1]) is list or (len(args) == 3 and args[1] is None) else 'default'}"
    if op in ("bitwise_and", "bitwise_or"):
        return f"{op}.Tensor"
    if op == "norm":
        return "norm.ScalarOpt_dim" if len(args) > 2 else "norm.Scalar"
    found = [target for target in TRANSLATORS if target.partition(".")[0] == op]
    default = f"{op}.default"
    if default in found or not found:
        return default
    return found[0] if len(found) == 1 else default


def count_of(target: str, named: Mapping[str, Any], claims: Mapping[str, Claim], taken: int) -> int | None:
    """How many tensors a call makes; None for one that is no list. Unknown ops: as many as are taken."""
    if target in _MADE:
        return _MADE[target]
    parts = {"unsafe_chunk.default": _chunks, "unsafe_split.Tensor": _split, "split.Tensor": _split, "split_with_sizes.default": _listed, "chunk.default": _chunks, "unbind.int": _unbound}
    if target in parts:
        return parts[target](named, claims)
    if target in TRANSLATORS:
        return None
    return taken or None


def _size(named: Mapping[str, Any], claims: Mapping[str, Claim]) -> int:
    tensor, axis = named.get("self"), named.get("dim", 0)
    shape = claims[tensor.name].shape if isinstance(tensor, Ref) and tensor.name in claims else ()
    size = shape[axis] if type(axis) is int and -len(shape) <= axis < len(shape) else None
    if size is None:
        raise NotTaken("it parts what is of unknown size")
    return size


def _split(named: Mapping[str, Any], claims: Mapping[str, Claim]) -> int:
    return -(-_size(named, claims) // max(1, named["split_size"]))


def _listed(named: Mapping[str, Any], claims: Mapping[str, Claim]) -> int:
    return len(named["split_sizes"])


def _chunks(named: Mapping[str, Any], claims: Mapping[str, Claim]) -> int:
    size = _size(named, claims)
    return -(-size // max(1, -(-size // max(1, named["chunks"]))))


def _unbound(named: Mapping[str, Any], claims: Mapping[str, Claim]) -> int:
    return _size(named, claims)
