"""One node of an op as other opsets write it: what is an attribute in one is an input in another."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from op_cases import Case

OLDEST = 7
"""Older opsets get a note, and their ops may mean something else."""
_AXES_SINCE = {"ReduceSum": 13, "Squeeze": 13, "Unsqueeze": 13}
_MOVED = {
    "Clip": (11, ("min", "max")), "Pad": (11, ("pads", "value")), "Slice": (10, ("starts", "ends", "axes", "steps")),
    "TopK": (10, ("k",)), "Split": (13, ("split",)), "Dropout": (12, ("ratio",)), "Upsample": (9, ("scales",)),
}  # fmt: skip
"""The opset from which these attributes are inputs, in this order."""


def versions() -> dict[str, tuple[int, ...]]:
    """{op: the opsets from OLDEST on in which its schema changed, or it came}; a deprecated op ends there."""
    found: dict[str, set[int]] = defaultdict(set)
    for schema in onnx.defs.get_all_schemas_with_history():
        gone = schema.deprecated and schema.name != "GroupNormalization"  # whose opset 18 was taken back, and is read
        if schema.domain == "" and not gone:
            found[schema.name].add(max(OLDEST, schema.since_version))
    return {op: tuple(sorted(all_)) for op, all_ in found.items()}


def at_opset(one: Case, opset: int) -> Case | None:
    """The case's node as that opset writes it; None where it has no such form."""
    slots = _MOVED.get(one.op)
    if one.op.startswith("Reduce") or one.op in _AXES_SINCE:
        slots = (_AXES_SINCE.get(one.op, 18), ("axes",))
    if slots is None or one.data:
        return replace(one, opset=opset)
    since, names = slots
    held: dict[str, Any] = {name: one.attributes[name] for name in names if name in one.attributes}
    held |= {name: value for name, value in zip(names, one.constants, strict=False) if value is not None}
    rest = {name: value for name, value in one.attributes.items() if name not in names}
    if one.op == "Split" and opset >= 18 and "split" not in held:
        rest["num_outputs"] = one.outputs
    if opset >= since:
        return replace(one, opset=opset, attributes=rest, constants=_inputs(one, names, held))
    if set(held) - {*names} or "steps" in held or len(one.constants) > len(names):
        return None
    single = one.op in ("Clip", "TopK", "Dropout")
    given = {name: _plain(value, single or name == "value") for name, value in held.items()}
    return replace(one, opset=opset, constants=(), attributes={**rest, **given})


def _inputs(one: Case, names: tuple[str, ...], held: dict[str, Any]) -> tuple[Any, ...]:
    made: list[Any] = []
    for name in names:
        value = held.get(name)
        real = name in ("min", "max", "value", "ratio", "scales")
        array = None if value is None else np.asarray(value, None if real else np.int64)
        array = np.asarray([value]) if name == "k" and np.ndim(value) == 0 else array
        made.append(array.astype(np.float32) if name in ("ratio", "scales") and array is not None else array)
    made += list(one.constants[len(names) :])
    while made and made[-1] is None:
        made.pop()
    return tuple(made)


def _plain(value: Any, single: bool) -> Any:
    array = np.asarray(value)
    if single:
        return array.reshape(-1)[0].item()
    return array.reshape(-1).tolist()
