"""What reports show: safe at any width, never rounded to the unsafe side, JSON to the letter."""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import HOSTILE, broken, computed, encoder, everything, layer, network, report
from rich.cells import cell_len

from snaudit.bound import UNBOUNDED, Bound, Grade
from snaudit.findings import Finding, Gap, LeftOut, Point, Report, Verdict, Witness
from snaudit.names import printable
from snaudit.numerals import at_least, at_most, near, short_of, size
from snaudit.report import REPORTS, View
from snaudit.report.jsonreport import failure
from snaudit.report.page import elide
from snaudit.report.runs import fold, wrapper_of
from snaudit.report.table import bar, verdict_of

GAINS = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)


def table(made: Report, width: int = 80, **view: Any) -> str:
    return REPORTS["table"].render(made, View(width=width, **view))


def strict(text: str) -> Any:
    """The parsed JSON; NaN and Infinity, which json would take, are errors."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in JSON")

    assert text.isascii()
    return json.loads(text, parse_constant=refuse)


# numbers


@given(GAINS, st.integers(3, 6))
def test_shown_ends_enclose_the_number(x: float, digits: int) -> None:
    low, high = float(at_least(x, digits)), float(at_most(x, digits))
    assert low <= x <= high or math.isinf(high)  # a text above the largest float reads back as inf
    if 1e-300 < x < 1e300:
        assert high - low <= 1.001 * 10.0 ** (1 - digits) * x
        assert low <= float(near(x, digits)) <= high


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        (0.0, "0"), (1.0, "1.0000"), (12.345601, "12.346"), (99999.9, "1e+05"), (320000.0, "3.2e+05"),
        (0.0012345, "0.0012345"), (0.00012345, "1.2345e-04"), (5e-324, "4.9407e-324"),
        (math.inf, "unbounded"),
    ],
)  # fmt: skip
def test_numbers_as_shown(x: float, shown: str) -> None:
    assert at_most(x) == shown


def test_short_forms() -> None:
    assert [size(999), size(44_700_000), size(2_000_000_000)] == ["999 bytes", "44.7 MB", "2.0 GB"]
    assert [short_of(0.97, 1.0), short_of(1.0, 1.0), short_of(0.0, 1.0)] == ["-3.0%", "0.0%", "-100%"]
    assert short_of(math.nan, 1.0) == short_of(1.0, math.inf) == short_of(0.0, 0.0) == ""
    assert [bar(0.0, 4), bar(0.001, 4), bar(0.5, 4), bar(1.0, 4)] == ["    ", "▌   ", "██  ", "████"]


# names


@given(st.text())
def test_printable_is_visible_and_settled(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and printable(shown) == shown
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in shown)
    assert len(printable(text, 20)) <= 20


def test_printable_keeps_what_is_readable_and_tells_twins_apart() -> None:
    assert printable("层.0 [weight] é \\n") == "层.0 [weight] é \\n"
    assert printable("a\x1b[31m\u202e") == "a\\x1b[31m\\u202e"
    assert len({printable(name) for name in ("ab", "a\u200bb", "a\ufe0fb", "a\u3164b", "a\u00adb")}) == 5


@given(st.text(alphabet="ab層.é", max_size=40), st.integers(1, 30))
def test_elide_keeps_both_ends(text: str, room: int) -> None:
    shown = elide(text, room)
    assert cell_len(shown) <= room
    assert shown == text if cell_len(text) <= room else "…" in shown


# folding


def test_alike_layers_fold_to_the_worst() -> None:
    runs = fold(encoder())
    labels = {run.label: run for run in runs}
    assert len(runs) == 5
    dense = labels["module.encoder.layer.[0–11].intermediate.dense.weight"]
    assert len(dense.members) == 12 and dense.worst.sigma.upper == 123456.789 and dense.where == "7"
    assert sum(len(run.members) for run in runs) == len(encoder())
    assert len(fold(encoder(), unfold=True)) == len(encoder())


def test_what_differs_in_more_than_numbers_does_not_fold() -> None:
    names = ("b.0.a", "b.1.a", "b.2.a")
    assert len(fold(layer(name) for name in names)) == 1
    assert len(fold(layer(name, uses=i) for i, name in enumerate(names))) == 3
    assert len(fold(layer(name, dtype=f"float{name[2]}") for name in names)) == 3
    assert len(fold(layer(name) for name in ("x1", "x2"))) == 2
    run = fold([layer(f"l{i}.h{j}", i * 10.0 + j) for i in (1, 4) for j in (0, 1, 2)])[0]
    assert (run.label, run.where) == ("l[1…4].h[0–2]", "4, 2")


def test_an_unbounded_member_is_the_worst() -> None:
    run = fold([layer("a.0", 99.0), broken("a.1"), layer("a.2", 3.0)])[0]
    assert run.worst.name == "a.1"


def test_wrapper_only_if_shared_by_all() -> None:
    assert wrapper_of(["module._orig_mod.a", "module._orig_mod.b"]) == "module._orig_mod."
    assert wrapper_of(["module.a", "b"]) == wrapper_of([]) == ""


# the table


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("rows", ["folded", "all", "none"])
@pytest.mark.parametrize("width", [0, 1, 40, 60, 80, 100, 140, 200, 400])
def test_the_table_keeps_to_its_width(width: int, rows: str, unicode: bool) -> None:
    """Only findings and the verdict run over: one fact, one line."""
    text = table(everything(), width, rows=rows, unicode=unicode)
    single = ("error ", "warning ", "note  ", "FAIL")
    body = [line for line in text.splitlines() if not line.startswith(single)]
    assert max(map(cell_len, body)) <= max(width, 40)
    assert unicode or text.isascii()
    assert text.splitlines()[-1].startswith("FAIL: 1 limit violated")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_on_a_terminal_findings_and_the_verdict_wrap_too(width: int) -> None:
    render = REPORTS["table"].render
    text = render(everything(), View(width=width, terminal=True))
    assert max(map(cell_len, text.splitlines())) <= width
    assert "".join(text.split()) == "".join(render(everything(), View(width=width)).split())


def test_what_is_left_out_is_counted_in_tensors() -> None:
    """An entry that stands for many counts as many; one without any is no tensor."""
    left = (
        LeftOut("fc.bias", "a vector"), LeftOut("norm.weight", "a vector"),
        LeftOut("optimizer", "the optimizer's state: 12 tensors, 300 numbers", tensors=12),
        LeftOut("samples", "example inputs: 2 records", tensors=0),
    )  # fmt: skip
    flat = " ".join(table(replace(everything(), left_out=left)).split())
    assert (
        "; 14 tensors left out (2× a vector; optimizer: the optimizer's state: 12 tensors, 300 numbers); "
        "1 entry without tensors (samples: example inputs: 2 records)"
    ) in flat


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_says_everything(width: int) -> None:
    text = table(everything(), width)
    flat = " ".join(text.split())
    for said in (
        "44.7 MB", "sha256 abababababab…", "11,689,512 parameters", "float32 ×60", "common prefix module.",
        "encoder.layer.[0–11].intermediate.dense.weight ×12", "worst", "unbounded", "30522×768", "×2",
        "coverage: 39 of 40 matrices audited; 41 tensors left out (40× a vector; 1× int8 weights)",
        "holds for all (module.stem.convolution.weight)", "no finite bound is known", "201 gaps",
        "200× MatMul [/layer.0/attention/MatMul, /layer.1/attention/MatMul, /layer.2/attention/MatMul, …]",
        "clip its input away from 0", "warning module.head.weight: 3 NaN", "(ignored: known)",
        "error module.embed.weight: σ is at least 31.4, above the limit 1",
    ):  # fmt: skip
        assert said in flat, said
    wide = width == 200
    assert ("[2.1000, 3.7001]" in text) is wide and ("≤3.701" in text) is not wide
    assert ("computed" in text) is wide and "-3.0%" in text


def test_all_unfolds_layers_and_gaps() -> None:
    text = table(everything(), 80, rows="all")
    assert all(f"layer.{i}.attention.self.query" in text for i in range(12))
    assert all(f"/layer.{i}/attention/MatMul" in text for i in range(200))


def test_order_is_by_sigma_or_as_in_the_file() -> None:
    made = report(layer("small", 1.0), layer("large", 9.0), broken("nan"))
    by_sigma, as_filed = table(made), table(made, order="order")
    assert by_sigma.index("nan ") < by_sigma.index("large ") < by_sigma.index("small ")
    assert as_filed.index("small ") < as_filed.index("large ") < as_filed.index("nan ")


def test_upper_ends_are_rounded_up() -> None:
    made = report(layer(sigma=2.00001, norm=computed(1.00001, 3.00001)), network=network(1000.001))
    text = table(made)
    assert "2.0000" in text, "a number known to more digits than are shown is rounded to nearest"
    assert "≤3.0001" in text and "at most 1000.1" in text
    assert "network bound 1000.1 (COMPUTED)" in text.splitlines()[-1]


def test_grades_and_assumptions_stand_in_words() -> None:
    sentence = "the layers run one after another with 1-Lipschitz activations"
    made = report(network=network(12.0, Grade.ASSUMED, assumptions=(sentence,)))
    text = " ".join(table(made, 200).split())
    assert "ASSUMED: rests on an assumption that nobody checked" in text and f"assuming: {sentence}" in text
    both = network(12.0, methods=(*network().methods, *network().methods))
    assert table(report(network=both)).count("by product: ") == 2


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "1 matrix, largest σ 2.0000 (fc.weight); network bound 12.500 (COMPUTED)"),
        ({"layers": (broken(), broken("b"))}, "2 matrices, no finite σ for 2 (bad.weight, …); network"),
        ({"network": network(math.inf), "gaps": (Gap("c", "w", "o", "r", ""),)},
         "no finite network bound (1 gap)"),
        ({"verdict": Verdict.PASS}, "PASS: every limit holds; 1 matrix"),
        ({"verdict": Verdict.UNDECIDED, "findings": (Finding("r", "warning", "w", "m", None, 1.0),)},
         "UNDECIDED: 1 undecided; 1 matrix"),
        ({"layers": ()}, "no matrix shown"),
    ],
)  # fmt: skip
def test_the_last_line(changes: dict[str, Any], line: str) -> None:
    made = replace(report(), **changes)
    assert line in table(made).splitlines()[-1]
    assert ": ".join(filter(None, verdict_of(made))) == table(made).splitlines()[-1]


def hostile_report() -> Report:
    layers = tuple(
        layer(name, float(i + 2), op=name, dtype=name, notes=(name,), used_by=(name,))
        for i, name in enumerate(HOSTILE)
    )
    made = report(
        *layers,
        network=network(9.0, assumptions=HOSTILE, contributions=tuple((name, 2.0) for name in HOSTILE)),
        gaps=tuple(Gap(name, name, name, name, name) for name in HOSTILE),
        findings=tuple(Finding(name, "error", name, name, 1.0, 0.5, True, name) for name in HOSTILE),
    )
    card = replace(made.model, path=HOSTILE[0], format=HOSTILE[1], notes=HOSTILE, dtypes=((HOSTILE[3], 1),))
    return replace(made, model=card)


@pytest.mark.parametrize("rows", ["folded", "all"])
@pytest.mark.parametrize("width", [1, 80, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_hostile_names_are_shown_and_never_acted_on(width: int, unicode: bool, rows: str) -> None:
    text = table(hostile_report(), width, unicode=unicode, rows=rows)
    assert all(line.isprintable() for line in text.split("\n"))
    assert unicode or text.isascii()
    for name in (name for name in HOSTILE if len(name) < 30 and (unicode or name.isascii())):
        assert f"error   {printable(name)}: {printable(name)} (ignored: " in text
    findings = [line for line in text.split("\n") if line.startswith("error   ")]
    assert len(findings) == len(HOSTILE)


def test_colour_is_ours_alone() -> None:
    assert "\x1b" not in table(everything())
    text = table(hostile_report(), colour=True)
    assert "\x1b[" in text and "\x1b[31mred" not in text and "[red]markup[/red]" in text


# CSV


def test_csv_has_a_row_for_each_layer_and_no_formulas() -> None:
    made = hostile_report()
    text = REPORTS["csv"].render(replace(made, layers=(*made.layers, broken())), View())
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(HOSTILE) + 1
    assert all(line.isprintable() for line in text.split("\n"))
    names = {row["name"] for row in rows}
    assert {"'=HYPERLINK(\"x\")", "'@SUM(1)", "'+1", "'-2+3", "'\\t=1", "'\\rcell", "bad.weight"} <= names
    for row in rows:
        assert not any((row[key] or " ")[0] in "=+-@\t\r" for key in ("name", "op", "dtype", "norm_method"))
    bad = next(row for row in rows if row["name"] == "bad.weight")
    assert (bad["norm_upper"], bad["norm_bounded"], bad["frobenius"]) == ("", "false", "")
    assert float(next(row for row in rows if row["name"] == "[/]")["sigma_upper"]) == 4.0


# JSON


def test_json_to_the_letter() -> None:
    """The promise of schema snaudit.report/1: keys may be added, none may go or change its meaning."""
    made = report(
        layer("fc.weight", 2.0, norm=Bound(1.5, math.inf, Grade.PROVED, "r0"), used_by=("Gemm_0",)),
        gaps=(Gap("no-rule", "n", "Log", "why", "how"),),
        findings=(Finding("max-sigma", "error", "fc.weight", "m", math.inf, 1.0),),
        verdict=Verdict.FAIL,
    )
    made = replace(made, network=replace(made.network, contributions=(("fc.weight", 2.0),)))
    point = Point("x", (1,), bytes(8), b"\1" * 8)
    made = replace(made, network=replace(made.network, witness=Witness("l2", 0.0625, 9, 0.5, "ascent", (point,))))
    assert strict(REPORTS["json"].render(made, View())) == {
        "schema": "snaudit.report/1",
        "snaudit": {"version": "0.1.0"},
        "model": {
            "path": "model.pt", "format": "pytorch", "sha256": "ab" * 32, "parameters": 11_689_512,
            "graph": False, "tensors": 62, "dtypes": {"float32": 60, "int64": 2}, "notes": [],
            "files": [{"path": "model.pt", "size": 44_700_000, "sha256": "ab" * 32}],
        },
        "settings": {
            "norm": "l2", "device": "cpu", "dtype": "float64", "method": "auto", "iterations": 20, "seed": 0,
            "input_range": None, "input_size": None, "of_output": None, "from_input": None, "key": None,
            "architecture": None, "architecture_args": None, "allow_code": False, "rtol": None, "spectrum": False,
            "witness_seconds": 0.0,
        },
        "layers": [{
            "name": "fc.weight", "op": "Linear", "shape": [64, 32], "dtype": "float32", "matrix": [64, 32],
            "uses": 1,
            "sigma": {"lower": 2.0, "upper": 2.0, "grade": "computed", "method": "svd", "bounded": True},
            "power": {"estimate": 1.94, "iterations": 20, "converged": False, "probability_below_0.9_sigma": None},
            "norm": {"lower": 1.5, "upper": None, "grade": "proved", "method": "r0", "bounded": False},
            "frobenius": 6.0, "stable_rank": 9.0, "spectrum": None, "condition": None, "finite": True,
            "used_by": ["Gemm_0"], "notes": [], "why": {"sigma": "", "norm": ""},
        }],
        "network": {
            "norm": "l2",
            "lower": 0.0, "upper": 12.5, "bounded": True, "grade": "computed", "method": "product",
            "methods": [{"name": "product", "lower": 0.0, "upper": 12.5, "bounded": True, "grade": "computed",
                         "method": "product", "seconds": 0.25}],
            "assumptions": [],
            "outputs": [{"name": "y", "lower": 0.0, "upper": 12.5, "bounded": True, "grade": "computed",
                         "method": "product", "assumes": []}],
            "contributions": [{"name": "fc.weight", "factor": 2.0, "bounded": True}],
            "composition": None,
            "sections": [],
            "levers": [],
            "notes": [],
            "partials": [],
            "witness": {
                "found": True, "ratio": 0.0625, "evaluations": 9, "seconds": 0.5, "method": "ascent",
                "inputs": [{"name": "x", "shape": [1]}], "note": "",
            },
        },
        "left_out": [],
        "gaps": [{"code": "no-rule", "where": "n", "op": "Log", "reason": "why", "remedy": "how"}],
        "findings": [{"rule": "max-sigma", "severity": "error", "where": "fc.weight", "message": "m",
                      "value": None, "limit": 1.0, "bounded": False, "ignored": False, "reason": None}],
        "verdict": "fail",
        "error": None,
    }  # fmt: skip


def test_json_survives_everything() -> None:
    document = strict(REPORTS["json"].render(hostile_report(), View()))
    assert [item["name"] for item in document["layers"]] == list(HOSTILE)
    document = strict(REPORTS["json"].render(everything(), View()))
    assert document["layers"][-1]["norm"]["upper"] is document["layers"][-1]["frobenius"] is None
    assert document["layers"][-1]["finite"] is False and document["findings"][0]["bounded"] is False
    assert document["network"]["upper"] is None and len(document["gaps"]) == 201
    odd = layer(spectrum=(math.nan, 1.0), condition=math.inf)
    odd = strict(REPORTS["json"].render(report(odd), View()))["layers"][0]
    assert (odd["spectrum"], odd["condition"], odd["finite"]) == ([None, 1.0], None, False)


def test_a_failure_has_the_keys_of_a_report() -> None:
    document = strict(failure("a\udc80.pt", "unreadable-model", "truncated", 2))
    assert document.keys() == strict(REPORTS["json"].render(report(), View())).keys()
    assert document["model"]["path"] == "a\udc80.pt"
    assert document["error"] == {"kind": "unreadable-model", "message": "truncated", "exit": 2}


def test_unbounded_stays_unbounded_everywhere() -> None:
    made = report(broken(), network=replace(network(math.inf), bound=UNBOUNDED))
    for name in REPORTS:
        text = REPORTS[name].render(made, View()).lower()
        assert "nan" not in text and "inf" not in text
