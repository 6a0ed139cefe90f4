"""Which output of a graph, with respect to which input, the network's bound is about.

With one input x chosen, all others are constants of a value that nobody knows: the bound is the supremum
over them of the Lipschitz constant in x alone, and holds for each value of them. What is computed from
them alone is such a constant, too: a comparison of them is no step of x, a table that they choose from
starts no bound, but a product with them needs a range.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snaudit.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from snaudit.findings import Settings


_SHOWN = 12


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """The outputs that the bound is about, and the one input that varies; None: all real ones."""

    outputs: tuple[ir.Value, ...]
    only: ir.Value | None = None
    others: tuple[str, ...] = ()
    """The names of the real inputs that are held fixed."""


def pair_of(graph: ir.Graph, settings: Settings) -> Pair:
    """The pair that the settings ask for. Raises UsageError, with the names that there are, for one that is
    not there, and for an input that holds no real numbers."""
    outputs = tuple(graph.outputs)
    if settings.of_output is not None:
        outputs = tuple(v for v in outputs if v.name == settings.of_output)
        if not outputs:
            raise UsageError(f"--of-output: no output {settings.of_output!r}; {_there_are(graph.outputs)}")
    if settings.from_input is None:
        return Pair(outputs)
    inputs = [v for v in graph.inputs if not (v.is_initializer() or v.const_value is not None)]
    real = {v.name: v for v in inputs if v.dtype is None or v.dtype.is_floating_point()}
    if settings.from_input not in real:
        known = any(v.name == settings.from_input for v in inputs)
        what = "is no real-valued input: it is held fixed" if known else "is no input"
        there = _there_are(real.values()) if real else "there is no real input"
        raise UsageError(f"--from-input: {settings.from_input!r} {what}; {there}")
    only = real[settings.from_input]
    return Pair(outputs, only, tuple(name or "?" for name in real if name != only.name))


def scope_of(settings: Settings) -> str:
    """The pair in words; "" where the bound is of all outputs with respect to all inputs."""
    of = "" if settings.of_output is None else f"output {settings.of_output}"
    source = "" if settings.from_input is None else f"with respect to input {settings.from_input} alone"
    return " ".join(part for part in (of, source) if part)


def _there_are(values: Iterable[ir.Value]) -> str:
    names = [value.name or "?" for value in values]
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"there {'are' if len(names) > 1 else 'is'} {shown}"
