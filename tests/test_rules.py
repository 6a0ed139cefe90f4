"""Every op rule against what onnxruntime computes, in l2, linf and l1: sound everywhere, tight where said.

Linear ops: the dense Jacobian. Others: Jacobians by central differences at random points and at the
worst ones, and random pairs. Ops that onnxruntime has only in float32 get a wider tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import onnx_ir as ir
import pytest
from graphs import composed, fold, function_of, gain, jacobian, norms_of, size
from onnx import TensorProto
from op_cases import ALL, CURVES, LINEAR, OTHERS, RANGED, RESIZED, RNG, Case, case

from snaudit import rules
from snaudit.bound import NORMS, UNBOUNDED, Bound, Grade, Norm, exactly
from snaudit.rules import pointwise, pooling, quantized, recurrent
from snaudit.rules.interface import Step, Unbounded, Value
from snaudit.rules.normalization import projected

DOUBLE, SINGLE = 1e-7, 3e-3
"""Relative errors of central differences with float64 and float32 runtimes."""


KINKED = ("MaxPool", "GlobalMaxPool", "TopK", "ReduceMax", "ReduceMin", "Max", "Min")


def compiled(one: Case) -> tuple[Callable[[np.ndarray], np.ndarray], int, bool]:
    """(f, n, whether in float32): onnxruntime has some ops in one of the two widths only."""
    try:
        return *function_of(one.model()), one.single
    except Exception as error:
        assert type(error).__name__ in ("NotImplemented", "InvalidGraph") and not one.single, error
    return *function_of(replace(one, single=True).model()), True


def dense(
    op: str,
    shape: tuple[int, ...],
    *weights: Any,
    tight: Any = ALL,
    data: int = 0,
    factor: float = 1.0,
    **attributes: Any,
) -> tuple[Case, dict[Norm, float]]:
    """A case with a weight matrix, and the norms of the node's own map without Gemm's alpha."""
    found = case(op, shape, *weights, tight=tight, data=data, **attributes)
    function, n, _ = compiled(found)
    matrix = jacobian(function, np.zeros(n), 0.5)
    return found, {norm: gain(matrix, norm) / factor * (1 + 1e-12) for norm in NORMS}


WEIGHT = RNG.standard_normal((3, 4))
STACK = RNG.standard_normal((2, 3, 4))
KERNEL = RNG.standard_normal((4, 1, 3, 2))


def affine_cases() -> list[tuple[Case, dict[Norm, float]]]:
    slices = {norm: max(norms_of(w)[norm] for w in STACK) for norm in NORMS}
    left = {norm: max(norms_of(w.T)[norm] for w in STACK) for norm in NORMS}
    vector = RNG.standard_normal(3)
    return [
        dense("Gemm", (2, 3), WEIGHT, np.ones(4), alpha=0.5, beta=3.0, factor=0.5),
        dense("Gemm", (3, 2), WEIGHT.T, alpha=-2.0, factor=2.0, transA=1, transB=1),
        dense("Gemm", (4, 2), WEIGHT, data=1),
        (case("Gemm", (4,), np.ones((2, 3)), WEIGHT, data=2, beta=-3.0), {}),
        (case("Gemm", (2, 1), np.ones((2, 3)), WEIGHT, data=2, beta=0.5), {}),
        (case("MatMul", (5, 2, 3), WEIGHT), norms_of(WEIGHT)),
        (case("MatMul", (3,), WEIGHT), norms_of(WEIGHT)),
        (case("MatMul", (2, 3), vector), norms_of(vector[:, None])),
        (case("MatMul", (4, 2), WEIGHT, data=1), norms_of(WEIGHT.T)),
        (case("MatMul", (5, 2, 2, 3), STACK), slices),
        (case("MatMul", (2, 3), STACK, tight=()), slices),
        (case("MatMul", (3,), STACK, tight=()), slices),
        (case("MatMul", (2, 4, 2), STACK, data=1), left),
        (case("MatMul", (4, 2), STACK, data=1, tight=()), left),
        dense("Conv", (1, 2, 5, 5), KERNEL, group=2, strides=[2, 1], pads=[1, 0, 1, 2]),
        dense("Conv", (2, 4, 6), RNG.standard_normal((3, 4, 3)), np.ones(3), auto_pad="SAME_UPPER"),
        dense(
            "ConvTranspose",
            (1, 2, 3, 3),
            RNG.standard_normal((2, 1, 2, 3)),
            strides=[2, 1],
            output_padding=[1, 0],
        ),
    ]


CONTRACTED = [
    dense("Einsum", (2, 3), WEIGHT, equation="bi,io->bo"),
    dense("Einsum", (2, 4), WEIGHT, equation="bo,io->ib"),
    dense("Einsum", (3, 2), WEIGHT, equation="io,ib", data=1),
    dense("Einsum", (5, 2, 3), STACK, equation="...hi,hio->...ho"),
    dense("Einsum", (5, 2, 3), STACK, equation="nhi,hio->hno"),
    dense("Einsum", (5, 2, 3), STACK, equation="nhi,hio->no"),
    dense("Einsum", (3, 3, 2), WEIGHT, equation="iib,io->bo", tight={"l2", "l1", "linf"}),
    dense("Einsum", (2, 3), np.array([1.0, -2.0, 0.5]), equation="bi,i->bi"),
    dense("Einsum", (2, 3), np.array([1.0, -2.0]), equation="bi,o->bio"),
]
SUMMED = [
    (case("Einsum", (3, 3), equation="ij->ji"), {}),
    (case("Einsum", (3, 3), equation="ii->i"), {}),
    (case("Einsum", (2, 3, 4), equation="bij->j"), {}),
    (case("Einsum", (2, 3), equation="ij"), {}),
    (case("Einsum", (3, 3), equation="ii->"), {}),
]
AFFINE = [*affine_cases(), *CONTRACTED, *SUMMED]
MEASURED = [*((c, {}) for c in (*LINEAR, *RESIZED, *OTHERS)), *AFFINE]
REFUSED = frozenset(
    (row.domain, row.op) for row in rules.ROWS if row.constant == "∞"
)  # rows that always refuse or jump
CONSTANT_OPS = frozenset({("", "Shape"), ("", "Size"), ("", "EyeLike")})


def upper_of(one: Case, norm: Norm, operator: dict[Norm, float] = {}) -> Bound:
    found = composed(one.model(), norm, {"y": operator} if operator else {})
    assert not found.gaps, found.gaps
    return found.bound


@pytest.mark.parametrize("one", CURVES, ids=lambda one: one.name)
def test_a_curve_is_as_steep_as_its_constant(one: Case) -> None:
    function, n, single = compiled(one)
    x = np.linspace(-6.0, 6.0, n)
    steepest = np.abs(np.diff(function(x)) / np.diff(x)).max()
    tolerance = 1e-9 if not single and one.op != "Cast" else 4e-4
    for norm in NORMS:
        upper = upper_of(one, norm).upper
        assert steepest <= upper * (1 + tolerance)
        assert steepest >= 0.99 * upper, "the constant is attained"


@pytest.mark.parametrize(("one", "operator"), MEASURED, ids=lambda one: getattr(one, "name", ""))
def test_a_rule_bounds_what_the_runtime_does(one: Case, operator: dict[Norm, float]) -> None:
    function, n, single = compiled(one)
    one = replace(one, single=single)
    rng = np.random.default_rng(1)
    step, tolerance = (0.02, SINGLE) if single and not one.linear else (1e-6, DOUBLE)
    if one.linear:
        step, tolerance = 0.5, 1e-5 if single else 1e-9
    keep = len(function(np.zeros(n)))
    points = [rng.standard_normal(n) * s for s in ((1,) if one.linear else (0.03, 0.3, 1, 3))]
    if one.op in KINKED:  # differences across a kink are no Jacobian
        points = [rng.permutation(n) * 0.1 - 1.0 for _ in range(4)]
    points += [one.points(n)] if one.points else []
    jacobians = [jacobian(function, x, step) for x in points]
    assert jacobians[0].shape == (keep, n)
    for norm in NORMS:
        upper = upper_of(one, norm, operator).upper
        truth = max(gain(matrix, norm) for matrix in jacobians)
        assert truth <= upper * (1 + tolerance), norm
        if norm in one.tight:
            assert upper <= 1.01 * truth, norm
        for scale in (1e-2, 1.0):
            x, y = rng.standard_normal((2, n)) * np.array([[1.0], [scale]])
            ratio = size(function(x + y) - function(x), norm) / size((x + y) - x, norm)
            assert ratio <= upper * (1 + (SINGLE if single else DOUBLE)), norm


@pytest.mark.parametrize("size_", [None, 500])
@pytest.mark.parametrize(
    "one",
    [c for c in (*LINEAR, *OTHERS, *RESIZED) if "Pool" in c.op or c.op == "Resize" and len(c.constants) == 2],
    ids=lambda one: one.name,
)
def test_a_bound_for_any_size_covers_each_size(one: Case, size_: int | None) -> None:
    """With the spatial sizes unknown (or long) the bound is at least that of every small size."""
    long = replace(one, shape=(*one.shape[:2], *[size_] * (len(one.shape) - 2)))
    for norm in NORMS:
        found = composed(long.model(), norm)
        if found.gaps:
            assert {gap.code for gap in found.gaps} == {"unknown-shape"}
            assert (
                "Lp" in one.op
                or "align" in one.name
                or "half_pixel_symmetric" in one.name
                or "1.7" in str(one.constants)
            )
        elif size_ is None or not ("Global" in one.op or "align" in one.name):
            assert found.bound.upper >= upper_of(one, norm).upper * (1 - 1e-6)


def test_every_row_of_the_table_is_exercised() -> None:
    seen = {(c.domain, c.op) for c in (*CURVES, *RANGED, *(one for one, _ in MEASURED))}
    seen |= {("", "ReduceSumSquare"), ("", "ReduceLogSum")}  # tests/test_ranges.py
    rows = {(row.domain, row.op) for row in rules.ROWS}
    assert len(rows) == len(rules.ROWS), "one row for each op"
    elsewhere = {(row.domain, row.op) for row in (*quantized.ROWS, *recurrent.ROWS)}  # test_quantized, test_recurrent
    assert rows - seen - elsewhere - REFUSED - CONSTANT_OPS == set()
    assert not seen & REFUSED
    for row in rules.ROWS:
        assert rules.lookup(row.domain, row.op) is row and row.constant and row.theorem and row.rule.__doc__


@pytest.mark.parametrize(("domain", "op"), sorted(REFUSED))
def test_an_op_without_a_constant_refuses_or_jumps(domain: str, op: str) -> None:
    values = [ir.Value(name=f"v{i}") for i in range(2)]
    node = ir.Node(domain, op, values, num_outputs=1, name="node")
    known = (Value(exactly(1.0), frozenset({"x"})),) * 2
    step = Step(node, known, "l2", 17)
    try:
        results = rules.lookup(domain, op).rule(step)
    except Unbounded as refusal:
        assert str(refusal) and refusal.remedy and refusal.code
    else:
        assert results and all(value.jumps == "node" and value.lip is UNBOUNDED for value in results)


@pytest.mark.parametrize(
    "one",
    [
        case("ThresholdedRelu"),
        case("ThresholdedRelu", alpha=-1.0),
        case("Shrink"),
        case("Shrink", lambd=-0.5, bias=-0.5),
        case("Celu", alpha=-1.0),
        case("Pow", (2, 3), np.array(2.0)),
        case("Pow", (2, 3), np.array(0.5)),
        case("Cast", to=TensorProto.INT64),
        case("Cast", to=TensorProto.FLOAT8E4M3FN, opset=19),
        case("TopK", (2, 4), np.array([3]), sorted=0, outputs=2),
        case("Div", (2, 3), np.array([1.0, 0.0, 2.0])),
        case("Div", (2, 3), np.array(1.0), data=1),
        case("Mul", (2, 3), np.array([np.inf, 1, 1])),
        case("Mul", (2, 3), np.array(np.nan)),
        case("Add", (2, 3), np.array(np.nan)),
        case("Gemm", (2, 3), WEIGHT, np.array([np.nan] * 4)),
        case("Tile", (2, 3), np.array([0, 2**62, 4]), opset=1),
        case("Dropout", (2, 3), np.array(0.5, np.float32), np.array(True)),
        case("Dropout", opset=6),
        case("BatchNormalization", (2, 3), *[np.ones(3)] * 4, training_mode=1, outputs=3),
        case("BatchNormalization", (2, 3), *[np.ones(3)] * 4, opset=6),
        case("BatchNormalization", (2, 3), *[np.ones(3)] * 3, -np.ones(3)),
        case("BatchNormalization", (2, 3), *[np.full(3, np.nan)] * 4),
        case("LayerNormalization", (2, 3), np.ones(3), epsilon=0.0),
        case("LayerNormalization", (2, 3), np.ones(3), epsilon=-1.0),
        case(
            "Resize",
            (1, 1, 4),
            None,
            np.array([1, 1, 2.0]),
            coordinate_transformation_mode="tf_crop_and_resize",
        ),
        case("Resize", (1, 1, 4), None, np.array([1, 1, 2.0]), antialias=1, opset=18),
        case("LRN", (1, 3, 2), size=3, bias=0.0),
        case("ScatterND", (4, 3), np.array([[1], [3]]), np.ones((2, 3)), reduction="add"),
        case("ReduceSum", (2, None)),
        case("LogSoftmax", (2, None)),
        case("GatherND", (2, None), np.array([[0, -1]])),
        case("Tile", (2, 3), opset=1),
        case("MaxPool", (1, 1, 4), kernel_shape=[0]),
        case("MaxPool", (1, 1, 4)),
        case("MatMul", (2, 3), WEIGHT),
        case("Einsum", (2, 3), WEIGHT, equation="bi,io->bo"),
        case("Einsum", (2, 3), WEIGHT, equation="bi,io->b"),
        case("Einsum", (2, 4, 3), np.ones((1, 4)), equation="bij,ij->bi"),
        case("Einsum", (None, 3), equation="bi->i"),
        case("Conv", (1, 1, 4), np.ones((1, 1, 2))),
        case("LogSoftmax", (2, 3), axis=7),
        case("Elu", alpha=float("nan")),
    ],
    ids=lambda one: one.name,
)
def test_settings_without_a_constant_are_refused(one: Case) -> None:
    found = composed(one.model(), "l2")
    assert not found.bound.bounded
    assert [(gap.where, gap.op) for gap in found.gaps] == [("node", one.op)]
    assert found.gaps[0].reason and found.gaps[0].remedy and found.gaps[0].code == found.gaps[0].code.lower()


def test_tabulated_slopes_are_above_the_suprema_to_30_digits() -> None:
    mpmath.mp.dps = 40
    at = mpmath.mpf
    phi = lambda x: mpmath.exp(-x * x / 2) / mpmath.sqrt(2 * mpmath.pi)  # noqa: E731
    k, m = mpmath.sqrt(2 / mpmath.pi), at("0.044715")
    functions = {
        pointwise.GELU_ERF: (lambda x: mpmath.ncdf(x) + x * phi(x), "1.414"),
        pointwise.GELU_TANH: (
            lambda x: mpmath.diff(lambda t: t / 2 * (1 + mpmath.tanh(k * (t + m * t**3))), x),
            "1.41",
        ),
        pointwise.SILU: (lambda x: mpmath.diff(lambda t: t / (1 + mpmath.exp(-t)), x), "2.4"),
        pointwise.MISH: (
            lambda x: mpmath.diff(lambda t: t * mpmath.tanh(mpmath.log(1 + mpmath.exp(t))), x),
            "1.49",
        ),
        pointwise.ERF: (lambda x: mpmath.diff(mpmath.erf, x), "0"),
    }
    for constant, (slope, start) in functions.items():
        top = at(start) if start == "0" else mpmath.findroot(lambda x, s=slope: mpmath.diff(s, x), at(start))
        supremum = slope(top)
        assert supremum <= at(constant) <= supremum * (1 + at(2) ** -51)
    mpmath.mp.dps = 15


@pytest.mark.parametrize("seed", range(6))
def test_the_projected_scale_is_tight_and_above(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 12))
    scale = rng.standard_normal(d) * (10.0 ** rng.uniform(-3, 3, d) if seed % 2 else 1.0)
    scale[d // 2 :] = scale[-1] if seed == 4 else scale[d // 2 :]
    projection = np.eye(d) - 1.0 / d
    truth = np.linalg.norm(scale[:, None] * projection, 2)
    upper = projected(scale)
    assert truth <= upper * (1 + 1e-12)
    assert d == 1 or upper <= truth * (1 + 1e-7)


def test_normalizations_in_linf_and_l1_hold_at_their_steepest() -> None:
    """The row sums are largest away from constant input: search along one spike of growing height."""
    for d, epsilon in ((4, 1.0), (64, 0.1)):
        for op, tight in (("LayerNormalization", 1.6), ("SimplifiedLayerNormalization", 1.6)):
            one = case(op, (1, d), np.ones(d), epsilon=epsilon, linear=False)
            function, n, _ = compiled(one)
            base = np.where(np.arange(d) % 2, 1.0, -1.0)
            worst = 0.0
            for height in (1.0, 3.0, np.sqrt(d)):
                for scale in np.sqrt(epsilon) * np.geomspace(0.1, 3, 9):
                    x = base.copy()
                    x[0] *= height
                    worst = max(worst, gain(jacobian(function, x * scale, 1e-6), "linf"))
            for norm in ("linf", "l1"):
                upper = upper_of(one, norm).upper
                assert worst <= upper * (1 + DOUBLE) and upper <= tight * worst, (op, d, norm)


def test_grades_say_what_is_computed() -> None:
    assert upper_of(RESIZED[0], "l2").grade is Grade.PROVED
    cubic = next(one for one in RESIZED if one.attributes.get("mode") == "cubic")
    assert upper_of(cubic, "l2").grade is Grade.COMPUTED and upper_of(cubic, "l1").grade is Grade.PROVED
    assert fold(ir.Value(name="v")) is None


def test_window_positions_inside_by_counting() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        start, low = (int(v) for v in rng.integers(-12, 12, 2))
        window = range(start, start + int(rng.integers(1, 20)), int(rng.integers(1, 6)))
        high = low + int(rng.integers(0, 15))
        assert list(pooling._inside(window, low, high)) == [j for j in window if low <= j < high]


@pytest.mark.parametrize(
    "one",
    [
        case("MaxPool", (1, 1, None), kernel_shape=[10**9], pads=[10**9 - 1] * 2),
        case("MaxPool", (1, 1, 9), kernel_shape=[10**9]),
        case("AveragePool", (1, 1, None), kernel_shape=[10**9], pads=[10**9 - 1] * 2, count_include_pad=1),
        case("AveragePool", (1, 1, 9), kernel_shape=[10**9], strides=[10**6], pads=[10**9 - 1] * 2),
        case("Tile", (2, 3), np.array([2**62, 4])),
        case("Expand", (1, 3), np.array([2**62, 1, 1])),
        case("Pad", (2, 3), np.array([0, 2**62, 0, 2**62]), mode="edge"),
        case("Pad", (1, 2**40), np.array([0, 5, 0, 5]), mode="reflect"),
    ],
    ids=lambda one: one.name,
)
def test_absurd_sizes_take_no_time_and_no_memory(one: Case) -> None:
    upper = upper_of(one, "l1").upper
    least = {"Tile": 2.0**64, "Expand": 2.0**62, "Pad": 2.0**63}.get(one.op, 1.0)
    assert upper >= (least if one.shape[-1] != 2**40 else 2.0)


@pytest.mark.parametrize(
    ("mode", "pads", "copied"),
    [
        ("reflect", [0, 3, 0, 2], 3),
        ("reflect", [0, 3, 0, 0], 2),
        ("edge", [0, 3, 0, 2], 6),
        ("wrap", [0, 3, 0, 2], 6),
    ],
)
def test_padding_of_an_unknown_size_covers_each_size(mode: str, pads: list[int], copied: int) -> None:
    upper = upper_of(case("Pad", (1, None), np.array(pads), mode=mode, opset=19), "l1").upper
    sizes = [
        upper_of(case("Pad", (1, n), np.array(pads), mode=mode, opset=19), "l1").upper for n in range(1, 9)
    ]
    assert upper == copied and (max(sizes[3:] if mode == "reflect" else sizes) <= upper)
