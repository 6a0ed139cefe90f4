"""The export of a TorchScript file by running it, in a process of its own: here, and only here, torch loads a
model file and so runs the code in it, because `--allow-code` asks for it.

`architecture` starts it, under limits and with an empty environment, and reads its answer.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snaudit.exporting import Failure, compared, run, said

if TYPE_CHECKING:
    import torch

_OPSET = 17
_REMEDY = 'it needs torch: pip install "snaudit[architecture]"'


def answer(request: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What the parent gets to know, and no bytes beside."""
    try:
        return carried_out(request), b""
    except Failure as error:
        return {"error": str(error), "usage": error.usage}, b""


def carried_out(request: Mapping[str, Any]) -> dict[str, Any]:
    """{"names", "notes"} once the graph stands in the request's folder. Raises Failure."""
    try:
        import torch
    except ImportError as error:
        raise Failure(f"{_REMEDY} ({error})", True) from error
    torch.manual_seed(request["seed"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = loaded(request["path"])
    args, kwargs, expected, integers = run(module, request["sizes"])
    notes = [f"taken as integers, since it does not run on real numbers there: {integers}"] if integers else []
    inputs = positional(module, args, kwargs)
    target = Path(request["folder"]) / "model.onnx"
    exported(module, inputs, target)
    notes.append(compared(target, inputs, expected))
    return {"names": {name: name for name in module.state_dict()}, "notes": notes}


def loaded(path: str) -> Any:
    """The module, in eval mode where that can still be told. Raises Failure for what torch does not load."""
    import torch

    try:
        module = torch.jit.load(path, map_location="cpu").eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        return module
    except Exception as error:  # torch raises RuntimeError and others
        traceback.print_exc()
        raise Failure(f"torch does not load it: {said(error)}", False) from error


def positional(module: Any, args: list[torch.Tensor], kwargs: Mapping[str, torch.Tensor]) -> list[Any]:
    """All inputs in the order of forward's arguments, which is how the exporter takes them."""
    names = [argument.name for argument in module.forward.schema.arguments][1:]
    left = {name: value for name, value in zip(names, args, strict=False)} | dict(kwargs)
    given = [name for name in names if name in left]
    if given != names[: len(given)]:
        raise Failure(f"give sizes for the first of forward's arguments ({', '.join(names)}), none left out", True)
    return [left[name] for name in given]


def exported(module: Any, inputs: list[Any], target: Path) -> None:
    """Write the module's graph, its branches and loops kept, its parameters whole and under their names."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module, tuple(inputs), str(target), dynamo=False, opset_version=_OPSET, do_constant_folding=False
            )
    except Exception as error:  # torch's exporter raises many kinds
        traceback.print_exc()
        raise Failure(f"torch's ONNX exporter does not take it: {said(error)}", False) from error
