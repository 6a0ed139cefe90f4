"""The export of a module that the user names, in a process of its own: here, and only here, is foreign
code run, because `--architecture` asks for it.

`architecture` starts it and reads its answer: which initializer of the exported graph is which tensor
of the checkpoint, and notes; or {"error", "usage"}.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snaudit import formats
from snaudit.errors import SnauditError
from snaudit.model import Tensor

if TYPE_CHECKING:
    import torch

_SHOWN = 8
_TOLERANCE = 1e-3
"""Relative difference between the module's output and its exported graph's that float32 may explain."""
_REMEDY = 'it needs torch and onnxscript: pip install "snaudit[architecture]"'


class Failure(Exception):
    """The export cannot be made; `usage`: for what the user named, else for what the file holds."""

    def __init__(self, reason: str, usage: bool) -> None:
        super().__init__(reason)
        self.usage = usage


def answer(request: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What the parent gets to know, and no bytes beside."""
    try:
        return carried_out(request), b""
    except Failure as error:
        return {"error": str(error), "usage": error.usage}, b""
    except SnauditError as error:
        return {"error": str(error), "usage": False}, b""


def carried_out(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request that can be met; the graph then stands in its folder. Raises Failure."""
    try:
        import onnxscript  # noqa: F401  torch imports it when it exports
        import torch
    except ImportError as error:
        raise Failure(f"{_REMEDY} ({error})", True) from error
    sys.path.insert(0, os.getcwd())
    module = made(request)
    tensors = formats.read(Path(request["path"]), request["key"]).tensors
    names, notes = loaded(module, tensors)
    module.eval().requires_grad_(False)
    torch.manual_seed(request["seed"])
    args, kwargs, expected, integers = run(module, request["sizes"])
    if integers:
        notes.append(f"taken as integers, since the module does not run on real numbers there: {integers}")
    target = Path(request["folder"]) / "model.onnx"
    exported(module, args, kwargs, target)
    notes.append(compared(target, [*args, *kwargs.values()], expected))
    return {"names": names, "notes": notes}


def made(request: Mapping[str, Any]) -> torch.nn.Module:
    """The module that the named code is, or makes when it is called."""
    import torch

    try:
        found: Any = importlib.import_module(request["module"])
        for part in request["name"].split("."):
            found = getattr(found, part)
        if not isinstance(found, torch.nn.Module):
            found = found(*request["args"], **request["kwargs"])
        elif request["args"] or request["kwargs"]:
            raise Failure("it is a module already and takes no --architecture-args", True)
    except Failure:
        raise
    except Exception as error:  # whatever the user's code raises
        traceback.print_exc()
        raise Failure(said(error), True) from error
    if not isinstance(found, torch.nn.Module):
        raise Failure(f"it gives a {type(found).__name__}, not a torch.nn.Module", True)
    return found


def loaded(
    module: torch.nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, str], list[str]]:
    """({name in the module: name in the checkpoint}, notes); the module then holds the numbers.

    All names and shapes must fit, after a prefix common to one side is taken off. What is tied in
    the module may stand once in the checkpoint; `num_batches_tracked` may be absent.
    """
    import torch

    state = module.state_dict(keep_vars=True)
    if any(value.is_meta for value in state.values()):
        raise Failure("its weights are on the meta device, where nothing can be loaded", True)
    best: tuple[int, list[str], dict[str, str]] | None = None
    for theirs, ours in _prefixes(tensors, state):
        fit = {ours + name.removeprefix(theirs): name for name in tensors}
        wrong = _misfits(state, tensors, fit)
        if best is None or len(wrong) < best[0]:
            best = (len(wrong), wrong, fit)
        if not wrong:
            break
    assert best is not None
    _, wrong, fit = best
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if wrong[_SHOWN:] else ""
        raise Failure(f"the weights do not fit it: {'; '.join(wrong[:_SHOWN])}{more}", False)
    notes = []
    if theirs or ours:
        what = f"without the prefix {theirs!r}" if theirs else f"under the prefix {ours!r}"
        notes.append(f"the file's names are taken {what}")
    with torch.no_grad():
        for own, name in fit.items():
            state[own].copy_(_torch(tensors[name]))
    rounded = [name for own, name in fit.items() if not _equal(state[own].detach(), _torch(tensors[name]))]
    if rounded:
        ties = Counter(id(state[own]) for own in fit)
        tied = [name for own, name in fit.items() if name in rounded and ties[id(state[own])] > 1]
        if tied:
            other = "is tied in it to another tensor, and the file holds other numbers there"
            raise Failure(f"{tied[0]} {other}", False)
        notes.append(f"rounded to the module's dtype, and audited so: {len(rounded)} tensors, {rounded[0]} first")
    holders = {id(state[own]): name for own, name in fit.items()}
    return {own: holders[id(value)] for own, value in state.items() if id(value) in holders} | fit, notes


def _prefixes(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what to take off the file's names, what to put in front of them)."""
    yield "", ""
    yield from ((prefix, "") for prefix in _common(tensors))
    yield from (("", prefix) for prefix in _common(state))


def _common(names: Mapping[str, Any]) -> Iterator[str]:
    """The dotted beginnings that all names have, shortest first."""
    parts = [name.split(".")[:-1] for name in names]
    prefix = ""
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            return
        prefix += column[0] + "."
        yield prefix


def _misfits(state: Mapping[str, Any], tensors: Mapping[str, Tensor], fit: Mapping[str, str]) -> list[str]:
    held = {id(state[own]) for own in fit if own in state}
    missing = [
        own for own, value in state.items()
        if own not in fit and id(value) not in held and own.rpartition(".")[2] != "num_batches_tracked"
    ]  # fmt: skip
    wrong = [f"{own} is missing" for own in missing]
    for own, name in fit.items():
        if own not in state:
            wrong.append(f"{name} is unexpected")
        elif tuple(state[own].shape) != tensors[name].shape:
            wrong.append(f"{name} is {list(tensors[name].shape)}, the module's {list(state[own].shape)}")
    return wrong


def _torch(tensor: Tensor) -> torch.Tensor:
    import torch

    array = np.ascontiguousarray(tensor.load())
    kind = getattr(torch, tensor.dtype)
    flat = torch.frombuffer(bytearray(array.tobytes()), dtype=kind) if array.size else torch.empty(0, dtype=kind)
    return flat.reshape(tensor.shape)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    if not (a.is_floating_point() and b.is_floating_point()):
        return torch.equal(a, b.to(a.dtype)) and torch.equal(a.to(b.dtype), b)
    return torch.equal(a.double().nan_to_num(nan=0.0), b.double().nan_to_num(nan=0.0))


def run(module: torch.nn.Module, sizes: Any) -> tuple[list[Any], dict[str, Any], list[Any], str]:
    """(positional and named inputs on which the module runs, its outputs, the inputs that are integers).

    Inputs are standard normal numbers; where the module refuses them, as an embedding does, zeros of
    int64, for as few inputs as will do.
    """
    import torch

    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    first: Exception | None = None
    which = sorted(itertools.product((False, True), repeat=min(len(sizes), 6)), key=sum)
    for whole in which:
        args, kwargs = [], {}
        for index, (name, shape) in enumerate(sizes):
            integer = index < len(whole) and whole[index]
            value = torch.zeros(shape, dtype=torch.int64) if integer else torch.randn(shape, dtype=dtype)
            if name is None:
                args.append(value)
            else:
                kwargs[name] = value
        try:
            with torch.no_grad():
                outputs = _leaves(module(*args, **kwargs))
        except Exception as error:  # whatever the user's code raises
            if first is None:
                first = error
                traceback.print_exc()
            continue
        integers = [name or f"input {at}" for at, (name, _) in enumerate(sizes) if at < len(whole) and whole[at]]
        return args, kwargs, outputs, ", ".join(integers)
    assert first is not None
    raise Failure(f"it does not run on inputs of these sizes: {said(first)}", True)


def _leaves(value: Any) -> list[Any]:
    """The tensors of a module's output, in the order in which the exporter takes them."""
    import torch

    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def exported(module: torch.nn.Module, args: list[Any], kwargs: dict[str, Any], target: Path) -> None:
    """Write the module's graph, its parameters whole and under their names.

    torch's own optimizer is left out: it folds BatchNormalization and transposes into the weights.
    Only what does not touch a weight (shapes, mostly) is folded.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, tuple(args), kwargs=kwargs, dynamo=True, optimize=False, verbose=False
            )
            _fold(program.model, set(module.state_dict()))
            program.save(str(target))
    except Exception as error:  # torch's exporter raises many kinds
        traceback.print_exc()
        raise Failure(f"torch's ONNX exporter does not take it: {said(error)}", False) from error


def _fold(model: Any, weights: set[str]) -> None:
    from onnx_ir.passes.common import RemoveUnusedNodesPass
    from onnxscript.optimizer import fold_constants

    def wanted(node: Any) -> bool | None:
        touched = any(value is not None and value.name in weights for value in node.inputs)
        return False if touched else None

    fold_constants(model, onnx_shape_inference=True, should_fold=wanted)
    RemoveUnusedNodesPass()(model)


def compared(target: Path, inputs: list[Any], expected: list[Any]) -> str:
    """A note on how the exported graph's outputs agree with the module's. Raises Failure if they do not."""
    from snaudit.running import open_session
    from snaudit.running import run as run_session

    try:
        session = open_session(target)
        feeds = session.get_inputs()
        if len(feeds) != len(inputs):
            return f"the graph uses {len(feeds)} of {len(inputs)} inputs; it was not compared with the module"
        found = run_session(session, {node.name: x.numpy() for node, x in zip(feeds, inputs, strict=True)})
    except Exception as error:  # onnxruntime's errors share no base class
        return f"onnxruntime does not run the exported graph; it was not compared with the module ({said(error)})"
    if len(found) != len(expected):
        raise Failure(f"the exported graph has {len(found)} outputs, the module {len(expected)}", False)
    worst = 0.0
    for mine, its in zip(expected, found, strict=True):
        want, have = mine.double().numpy(), np.asarray(its, np.float64)
        if want.shape != have.shape:
            raise Failure(f"the exported graph gives a {have.shape}, the module a {want.shape}", False)
        worst = max(worst, _apart(want, have))
    if worst > _TOLERANCE:
        raise Failure(f"the exported graph does not compute what the module does (off by {worst:.2g})", False)
    close = f"within {worst:.1g} of its largest entry"
    return f"the exported graph gives the module's output on a random input, {close}"


def _apart(want: np.ndarray, have: np.ndarray) -> float:
    """The largest difference over the largest finite entry; infinity where only one is not finite."""
    with np.errstate(all="ignore"):
        apart = np.where((want == have) | (np.isnan(want) & np.isnan(have)), 0.0, np.abs(want - have))
        scale = np.abs(np.where(np.isfinite(want), want, 0.0)).max(initial=1e-30)
        return float(np.where(np.isfinite(apart), apart / scale, np.inf).max(initial=0.0))


def said(error: Exception) -> str:
    """An error and its cause, in one line."""
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else None
    text = " ".join(str(error).split())[:400]
    return f"{type(error).__name__}: {text}" + (f" ({said(cause)[:300]})" if cause is not None else "")
