"""What a gate lets through: never an estimate, an assumption, a gap, or what was not measured."""

from __future__ import annotations

import math

import pytest
from reports import broken, computed, layer, network

from snaudit.bound import UNBOUNDED, Bound, Grade
from snaudit.errors import UsageError
from snaudit.findings import Verdict
from snaudit.model import LeftOut
from snaudit.policy import Limits, decide, judge

PASS, FAIL, UNDECIDED = Verdict.PASS, Verdict.FAIL, Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("lower", "upper", "verdict"),
    [
        (0.0, 0.5, PASS),
        (0.5, 1.0, PASS),
        (1.0, 1.0, PASS),
        (1.0, math.nextafter(1.0, 2.0), UNDECIDED),
        (0.0, math.inf, UNDECIDED),
        (math.nextafter(1.0, 2.0), 2.0, FAIL),
        (5.0, math.inf, FAIL),
    ],
)
@pytest.mark.parametrize("grade", Grade)
@pytest.mark.parametrize("required", Grade)
def test_judge(lower: float, upper: float, verdict: Verdict, grade: Grade, required: Grade) -> None:
    """A pass needs the grade; a violation was seen, whatever the grade of the upper end."""
    expected = UNDECIDED if verdict is PASS and grade < required else verdict
    assert judge(Bound(lower, upper, grade, "m"), 1.0, required) is expected


def test_an_unknown_bound_passes_no_limit_at_all() -> None:
    assert judge(UNBOUNDED, math.inf, Grade.ASSUMED) is UNDECIDED
    assert judge(computed(0.5), math.nan) is UNDECIDED


@pytest.mark.parametrize("grade", [Grade.ASSUMED, Grade.ESTIMATED])
def test_low_grades_pass_only_when_accepted(grade: Grade) -> None:
    net = network(0.5, grade)
    findings, verdict = decide((layer(),), net, Limits(max_lipschitz=1.0))
    assert verdict is UNDECIDED
    assert f"only {grade.name}" in findings[0].message
    assert f"--accept {grade.name.lower()}" in findings[0].message
    assert decide((layer(),), net, Limits(max_lipschitz=1.0, required=grade)) == ((), PASS)


def test_an_estimate_from_below_is_no_pass() -> None:
    estimated = layer(sigma=0.5, norm=Bound(0.5, 0.5, Grade.ESTIMATED, "power"))
    assert decide((estimated,), network(), Limits(max_sigma=1.0))[1] is UNDECIDED


def test_one_finding_for_each_violated_limit_naming_layer_value_and_limit() -> None:
    layers = (layer("a", 0.5), layer("b", 2.0), layer("c", 3.25), layer("d", 1.0, norm=computed(0.9, 1.5)))
    findings, verdict = decide(layers, network(40.0), Limits(max_sigma=1.0, max_lipschitz=50.0))
    assert verdict is FAIL
    assert [(f.where, f.severity, f.value, f.limit) for f in findings] == [
        ("b", "error", 2.0, 1.0), ("c", "error", 3.25, 1.0), ("d", "warning", 1.5, 1.0),
    ]  # fmt: skip
    assert findings[1].message == "operator norm is at least 3.2500, above the limit 1"
    assert "at most 1.5000, nothing above the limit 1 was seen, at least 0.90000 was" in findings[2].message


def test_value_and_limit_never_look_equal() -> None:
    barely = math.nextafter(1.0, 2.0)
    findings, _ = decide((layer(sigma=barely),), network(), Limits(max_sigma=1.0))
    shown = findings[0].message.split("at least ")[1].split(",")[0]
    assert 1.0 < float(shown) <= barely


def test_nan_weights_do_not_pass_a_sigma_limit() -> None:
    findings, verdict = decide((layer("a", 0.5), broken("b")), network(), Limits(max_sigma=1e300))
    assert verdict is UNDECIDED
    assert [f.where for f in findings] == ["b"] and findings[0].value is None


def test_what_was_not_measured_does_not_pass() -> None:
    limits = Limits(max_sigma=10.0)
    harmless, quantized = LeftOut("bias", "a vector"), LeftOut("q.weight", "int8 weights", missed=True)
    assert decide((layer(),), network(), limits, (harmless,)) == ((), PASS)
    findings, verdict = decide((layer(),), network(), limits, (harmless, quantized))
    assert verdict is UNDECIDED and findings[0].where == "q.weight" and "int8 weights" in findings[0].message
    assert decide((layer(),), network(), Limits(max_sigma=10.0, layers=("fc*",)), (quantized,)) == ((), PASS)
    assert decide((), network(), limits)[1] is UNDECIDED


def test_measure_and_patterns() -> None:
    conv = layer("conv.weight", 1.0, norm=computed(2.0, 3.0))
    fc = layer("fc.weight", 9.0)
    both = (conv, fc)
    assert decide(both, network(), Limits(max_sigma=1.5, measure="matrix", layers=("conv",)))[1] is PASS
    assert decide(both, network(), Limits(max_sigma=1.5, layers=("conv.*",)))[1] is FAIL
    assert decide(both, network(), Limits(max_sigma=3.0, skip=("fc.weight",)))[1] is PASS
    with pytest.raises(UsageError, match="no layer matches 'cnv"):
        decide(both, network(), Limits(max_sigma=3.0, layers=("cnv",)))


def test_verdict_order_and_no_limit() -> None:
    net = network(math.inf)
    assert decide((layer(sigma=2.0),), net, Limits(max_sigma=1.0, max_lipschitz=5.0))[1] is FAIL
    assert decide((layer(sigma=0.5),), net, Limits(max_sigma=1.0, max_lipschitz=5.0))[1] is UNDECIDED
    assert decide((layer(),), net, Limits()) == ((), None)
    assert decide((layer(),), net, None) == ((), None)


@pytest.mark.parametrize("limit", [-1.0, math.nan, math.inf])
def test_limits_are_finite_and_not_negative(limit: float) -> None:
    with pytest.raises(UsageError):
        Limits(max_sigma=limit)
    with pytest.raises(UsageError):
        Limits(max_lipschitz=limit)


def test_a_name_that_is_near_none_is_answered_with_some_that_there_are() -> None:
    both = (layer("conv1.weight", 1.0), layer("fc.weight", 9.0))
    for shown, layers in (("conv1.weight, fc.weight", both), ("fc.weight, fc.weight, fc.weight, fc.weight, …", both[1:] * 5)):
        with pytest.raises(UsageError) as error:
            decide(layers, network(), Limits(max_sigma=3.0, layers=("zzz",)))
        assert str(error.value) == f"no layer matches 'zzz'; it has {shown}"
