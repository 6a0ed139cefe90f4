"""The network's lower end: a pair of inputs that was run, sought in a process of its own.

A model's graph is data, but a runtime that runs it may crash, hang or fill the memory: `Seeker` lets
a child do that, under limits, and takes whatever goes wrong there for "no witness", with the reason.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from snaudit.bound import Bound, Grade
from snaudit.children import Child, ChildFailed, Limits
from snaudit.errors import SoundnessError, UsageError
from snaudit.findings import Gap, NetworkResult, Point, Settings, Witness
from snaudit.formats import read
from snaudit.model import Model

_MEMORY = 6 << 30
_GRACE = 20.0
"""Wall-clock seconds that a child has besides twice its processor time: it starts, and others run."""


class Seeker:
    """A search that runs while the audit does. `witness()` waits for it; `close()` ends it."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.settings = settings
        self.child: Child | None = None
        self.note: str | None = None
        """Why nothing was started; None also where nothing was asked for."""
        wanted = settings.witness_seconds > 0.0 or settings.replay is not None
        if not wanted or model.runnable is None:
            return
        seconds = settings.witness_seconds or 60.0
        request: dict[str, Any] = {
            "path": str(model.runnable.absolute()),
            "norm": settings.norm,
            "seed": settings.seed,
            "seconds": seconds,
            "box": settings.input_range,
            "focus": {"of": settings.of_output, "only": settings.from_input},
            "sizes": settings.input_size or () if model.format == "onnx" else (),  # others are written with them
        }
        if settings.replay is not None:
            request |= stored_pair(settings.replay)
        size = sum(file.size for file in model.files)
        try:
            self.child = Child("snaudit.seeking", request, Limits(_MEMORY + 16 * size, 2.0 * seconds + 5.0))
        except ChildFailed as error:
            self.note = f"the model was not run: {error}"

    def __enter__(self) -> Seeker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child, if it still runs."""
        if self.child is not None:
            self.child.close()
            self.child = None

    def witness(self) -> Witness | None:
        """What was found, or why nothing was; None where nothing was sought."""
        if self.note is not None:
            return _none(self.settings, self.note)
        if self.child is None:
            return None
        try:
            found, raw = self.child.answer(2.0 * (self.settings.witness_seconds or 60.0) + _GRACE)
        except ChildFailed as error:
            late = "the search did not end in time"
            return _none(self.settings, late if error.late else f"the model was run, and {error}")
        return _read(self.settings, found, raw)


def _none(settings: Settings, note: str) -> Witness:
    return Witness(settings.norm, note=note)


def _read(settings: Settings, found: dict[str, Any], raw: bytes) -> Witness:
    if "note" in found:
        return _none(settings, found["note"])
    shapes = [tuple(shape) for shape in found["shapes"]]
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
    x, y = np.frombuffer(raw, np.float64).reshape(2, -1)
    points = tuple(
        Point(name, shape, x[a:b].tobytes(), y[a:b].tobytes())
        for name, shape, a, b in zip(found["names"], shapes, ends, ends[1:], strict=False)
    )
    method = f"{found.get('found', 'replayed pair')}, {found['how']}"
    return Witness(settings.norm, found["lower"], found["evaluations"], found["seconds"], method, points)


def stored(witness: Witness) -> bytes:
    """The pair as an npz file: `x:NAME` and `y:NAME` for each real input, `lower` and `norm`."""
    arrays: dict[str, Any] = {"lower": np.float64(witness.lower), "norm": np.frombuffer(witness.norm.encode(), np.uint8)}
    for point in witness.points:
        for which, raw in (("x", point.x), ("y", point.y)):
            arrays[f"{which}:{point.name}"] = np.frombuffer(raw, np.float64).reshape(point.shape)
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def stored_pair(path: Path) -> dict[str, dict[str, Any]]:
    """{"x": {input: numbers}, "y": …} of an npz file that `stored` wrote. Raises UsageError."""
    tensors = read(path, None).tensors
    found: dict[str, dict[str, Any]] = {"x": {}, "y": {}}
    for name, tensor in tensors.items():
        which, colon, rest = name.partition(":")
        if colon and which in found:
            found[which][rest] = tensor.float64().tolist()
    if not found["x"] or found["x"].keys() != found["y"].keys():
        raise UsageError(f"{path} holds no pair of points (x:NAME and y:NAME for each input)")
    return found


def joined(
    network: NetworkResult, gaps: tuple[Gap, ...], witness: Witness | None
) -> tuple[NetworkResult, tuple[Gap, ...]]:
    """The network's result with its lower end.

    A pair above an upper end that rests on a theorem is our bug: SoundnessError. One above an
    assumed or estimated upper end refutes it: then no bound is known.
    """
    if witness is None or witness.lower == 0.0:
        return replace(network, witness=witness), gaps
    bound = network.bound
    if witness.lower <= bound.upper:
        lower = max(bound.lower, witness.lower)
        return replace(network, witness=witness, bound=replace(bound, lower=lower)), gaps
    if bound.grade >= Grade.COMPUTED:
        raise SoundnessError(
            f"a pair of inputs stretches {witness.lower!r} times ({witness.method}), and {bound.method} "
            f"says at most {bound.upper!r}"
        )
    reason = f"a pair of inputs stretches {witness.lower:.5g} times, more than the {bound.upper:.5g} that was assumed"
    gap = Gap("refuted", "the network", "graph", reason, "see what the bound assumes")
    above = Bound(witness.lower, float("inf"), bound.grade, bound.method)
    return replace(network, witness=witness, bound=above), (*gaps, gap)


