"""Hand-made reports for the tests of what is shown and judged: no model, no arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from snaudit.bound import UNBOUNDED, Bound, Grade
from snaudit.findings import (
    Finding,
    Gap,
    LayerResult,
    MethodResult,
    ModelCard,
    NetworkResult,
    OutputResult,
    Report,
    Settings,
    Verdict,
)
from snaudit.model import FileRead, LeftOut
from snaudit.sigma.interface import PowerEstimate

HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "[red]markup[/red]",
    "[/]",
    "a\u202eb\u2066c",
    "two\nlines\r\tof\x00text\x9b31m",
    "=HYPERLINK(\"x\")",
    "@SUM(1)",
    "+1",
    "-2+3",
    "\t=1",
    "\rcell",
    "lone\udc80surrogate",
    "zero\u200bwidth\ufe0f\u3164",
    "日本語の層.重み" * 9,
    "x" * 5000,
    "{brace} %s %d \\u0041",
    "\u2028line\u2029sep",
    ":smile:",
    "",
    "9" * 5000,
)


def computed(lower: float, upper: float | None = None, method: str = "svd") -> Bound:
    """A COMPUTED bound."""
    return Bound(lower, lower if upper is None else upper, Grade.COMPUTED, method)


def layer(
    name: str = "fc.weight", sigma: float = 2.0, unbounded: bool = False, **changes: Any
) -> LayerResult:
    """A dense layer of the given σ, or of none."""
    made = LayerResult(
        name=name, op="Linear", shape=(64, 32), dtype="float32", matrix=(64, 32), uses=1,
        sigma=computed(sigma), power=PowerEstimate(sigma * 0.97, 20, False), norm=computed(sigma),
        frobenius=sigma * 3.0, stable_rank=9.0,
    )  # fmt: skip
    return replace(made, **changes, **({"sigma": UNBOUNDED} if unbounded else {}))


def broken(name: str = "bad.weight") -> LayerResult:
    """A layer with NaN in its weight."""
    return layer(
        name, sigma=1.0, norm=UNBOUNDED, power=None, frobenius=math.nan, stable_rank=math.inf, unbounded=True
    )


def network(upper: float = 12.5, grade: Grade = Grade.COMPUTED, **changes: Any) -> NetworkResult:
    """A network bound by one method."""
    bound = Bound(0.0, upper, grade, "product")
    made = NetworkResult(bound, (OutputResult("y", bound),), (MethodResult("product", bound, 0.25),))
    return replace(made, **changes)


def report(*layers: LayerResult, **changes: Any) -> Report:
    """A report on a small file."""
    card = ModelCard(
        path="model.pt", format="pytorch", files=(FileRead(Path("model.pt"), 44_700_000, "ab" * 32),),
        tensors=62, parameters=11_689_512, dtypes=(("float32", 60), ("int64", 2)), graph=False,
    )  # fmt: skip
    made = Report(model=card, settings=Settings(), layers=layers or (layer(),), network=network())
    return replace(made, **changes)


def encoder(depth: int = 12) -> tuple[LayerResult, ...]:
    """The layers of a transformer: three runs of alike layers and two single ones."""
    made = [layer("module.embed.weight", 31.4, op="Embedding", shape=(30522, 768), uses=2)]
    for i in range(depth):
        at = f"module.encoder.layer.{i}"
        made += [
            layer(f"{at}.attention.self.query.weight", 3.0 + i / 10, shape=(768, 768)),
            layer(f"{at}.attention.self.key.weight", 4.0 - i / 100, shape=(768, 768)),
            layer(f"{at}.intermediate.dense.weight", 123456.789 if i == 7 else 5.0, shape=(3072, 768)),
        ]
    made.append(
        layer(
            "module.stem.convolution.weight", 2.0, op="Conv2d", shape=(64, 3, 7, 7),
            norm=computed(2.1, 3.7),
            notes=("stride and groups are not in a checkpoint: the norm's upper end holds for all",),
        )
    )  # fmt: skip
    return tuple(made)


def everything() -> Report:
    """A report in which every part is filled."""
    layers = (*encoder(), broken("module.head.weight"))
    factors = tuple((item.name, item.norm.upper) for item in layers if item.norm.bounded)
    gaps = tuple(
        Gap("no-rule", f"/layer.{i}/attention/MatMul", "MatMul", "a product of two activations", "bound it")
        for i in range(200)
    ) + (Gap("no-constant", "/head/Log", "Log", "no global constant", "clip its input away from 0"),)
    return report(
        *layers,
        network=network(math.inf, assumptions=("the layers run one after another",), contributions=factors),
        left_out=(*(LeftOut(f"bias{i}", "a vector") for i in range(40)), LeftOut("q", "int8 weights", True)),
        gaps=gaps,
        findings=(
            Finding("non-finite", "warning", "module.head.weight", "3 NaN in 2,048 numbers", math.nan),
            Finding(
                "max-sigma", "error", "module.embed.weight",
                "σ is at least 31.4, above the limit 1", 31.4, 1.0,
            ),  # fmt: skip
            Finding("odd", "note", "model.pt", "checksums are all zero", None, None, True, "known"),
        ),
        verdict=Verdict.FAIL,
    )
