"""Bounds of sections as a whole: against the largest Jacobian over all slopes, the exact norm of linear
networks, and what onnxruntime computes; certificates that must fail; ops against their runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mpmath
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import function_of, jacobian, make_model, random_dag, read
from onnx import helper

import snaudit
from snaudit import cuts, sections, sigma, slopes
from snaudit.bound import Grade, at_most
from snaudit.confined import Box
from snaudit.enclosed import Enclosed, product, scaled, total
from snaudit.linear import Dense
from snaudit.rules.interface import Step
from snaudit.rules.pointwise import ROWS
from snaudit.sections import Effort, Section, Unit, certificate
from snaudit.sections.interface import Blocks
from snaudit.sections.multipliers import best_closed, minimize
from snaudit.sections.narrowing import narrowed
from snaudit.sections.sector import Recursion

DIFFERENCES = 1e-6
"""Relative error of central differences in float64."""
EFFORT = Effort(lambda matrix: sigma.measure(Dense(matrix)))


def node(op: str, inputs: str, output: str = "y", domain: str = "", **attributes) -> onnx.NodeProto:
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, output.split(), name=f"at {output}", domain=domain, **attributes)


def random_section(seed: int, sizes: tuple[int, ...], low: float, high: float, dense: bool = False) -> Section:
    """A chain, or (dense) a DAG in which every unit reads all units before it and the input."""
    rng = np.random.default_rng(seed)

    def blocks(k: int, rows: int) -> dict[int, Enclosed]:
        reads = range(k + 1) if dense else (k,)
        return {j: Enclosed(rng.standard_normal((rows, sizes[j])) / np.sqrt(sizes[j])) for j in reads}

    count = len(sizes) - 2
    units = tuple(
        Unit(blocks(k, sizes[k + 1]), np.full(sizes[k + 1], low), np.full(sizes[k + 1], high)) for k in range(count)
    )
    return Section(sizes[0], units, blocks(count, sizes[-1]))


def jacobian_at(section: Section, at: list[np.ndarray]) -> np.ndarray:
    """The section's Jacobian for given slopes of all its functions."""
    reach = [np.eye(section.inputs)]
    for row, slope in zip(section.rows, [*at, None], strict=True):
        z = sum(m.centre @ reach[j] for j, m in row.items())
        reach.append(z if slope is None else slope[:, None] * z)
    return reach[-1]


def steepest(section: Section, seed: int, starts: int = 6) -> float:
    """The largest ‖J‖ found over slopes in [low, high]: single flips from random corners on."""
    rng, best = np.random.default_rng(seed), 0.0
    for _ in range(starts):
        at = [np.where(rng.random(u.size) < 0.5, u.low, u.high) for u in section.units]
        value = np.linalg.norm(jacobian_at(section, at), 2)
        improved = True
        while improved:
            improved = False
            for unit, slope in zip(section.units, at, strict=True):
                for i in range(unit.size):
                    kept, slope[i] = slope[i], unit.low[i] + unit.high[i] - slope[i]
                    new = np.linalg.norm(jacobian_at(section, at), 2)
                    improved |= bool(new > value * (1 + 1e-12))
                    slope[i], value = (slope[i], new) if new > value else (kept, value)
        best = max(best, float(value))
    return best


SLOPES = {"relu": (0.0, 1.0), "leaky": (0.1, 1.0), "silu": slopes.SILU, "abs": (-1.0, 1.0), "falling": (-1.5, -0.5)}


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kind", SLOPES)
def test_no_method_is_below_the_steepest_slopes(kind: str, dense: bool) -> None:
    for seed in range(4):
        section = random_section(seed, (3, 6, 5, 4, 2), *SLOPES[kind], dense)
        truth = steepest(section, seed, 3)
        found = {m.name: m.measure(section, EFFORT) for m in sections.METHODS}
        for name, bound in found.items():
            assert bound.grade is Grade.PROVED and bound.bounded, name
            assert truth <= bound.upper, name
        search, closed = found["LipSDP, first-order search"], found["LipSDP, closed form"]
        assert search.upper <= min(closed.upper, found["|W| bound"].upper) * (1 + 1e-8)
        assert search.upper <= 1.7 * truth  # not vacuous: a corner of slopes is near


def test_the_search_gains_what_it_promises() -> None:
    """Seeded nets: against the product of norms, LipLT and the closed forms, in that order."""
    for sizes, factors in (((60,) * 6, (0.21, 0.5, 0.8)), ((5, *(50,) * 6, 5), (0.08, 0.33, 0.7))):
        section = random_section(0, sizes, 0.0, 1.0)
        norms = [sigma.measure(Dense(next(iter(row.values())).centre)).upper for row in section.rows]
        others = [float(np.prod(norms)), *(m.measure(section, EFFORT).upper for m in sections.METHODS[:1])]
        others.append(sections.METHODS[2].measure(section, EFFORT).upper)
        found = sections.METHODS[3].measure(section, EFFORT).upper
        assert all(found < factor * other for factor, other in zip(factors, others, strict=True))


def test_weights_without_cancellation_are_bounded_exactly() -> None:
    """With entries ≥ 0 and slopes in [0, 1] the steepest slopes are all 1: the norm of the plain product."""
    for dense in (False, True):
        section = random_section(5, (4, 7, 6, 3), 0.0, 1.0, dense)
        units = tuple(Unit(positive(u.blocks), u.low, u.high) for u in section.units)
        section = Section(4, units, positive(section.output))
        truth = float(np.linalg.norm(jacobian_at(section, [u.high for u in units]), 2))
        for method in (sections.METHODS[1], sections.METHODS[3]):
            assert truth * (1 - 1e-12) <= method.measure(section, EFFORT).upper <= truth * (1 + 1e-5), method.name
        assert truth <= sections.METHODS[0].measure(section, EFFORT).upper


def positive(blocks: Blocks) -> Blocks:
    return {j: Enclosed(np.abs(m.centre)) for j, m in blocks.items()}


def test_the_slopes_are_used_and_not_a_factor_of_them() -> None:
    """silu(x + a) − silu(x + b): slopes [0, 1] times sup|φ'| would give 1.1, and the truth is 1.1997."""
    ones, zero = Enclosed(np.ones((2, 1))), np.zeros(2)
    unit = Unit({0: ones}, zero + slopes.SILU[0], zero + slopes.SILU[1])
    section = Section(1, (unit,), {1: Enclosed(np.array([[1.0, -1.0]]))})
    for method in sections.METHODS:
        assert method.measure(section, EFFORT).upper >= 1.19967
    assert sections.METHODS[3].measure(section, EFFORT).upper <= 1.1998


@pytest.mark.parametrize("kind", SLOPES)
def test_a_bound_a_little_too_low_has_no_certificate(kind: str) -> None:
    section = random_section(1, (4, 8, 8, 3), *SLOPES[kind], dense=True)
    recursion = Recursion(section)
    start = np.log(np.concatenate(best_closed(section, recursion, EFFORT)[1]))
    squared, logs, _ = minimize(recursion.descend, start, 200)
    best = np.split(np.exp(logs), np.cumsum(recursion.sizes)[:-1])
    proved = certificate.prove(section, best, squared)
    assert np.sqrt(squared) <= proved <= np.sqrt(squared) * (1 + 1e-7)
    assert np.isinf(certificate.prove(section, best, squared * (1 - 2e-3)))
    assert np.isinf(certificate.prove(section, [100 * m for m in best], squared))
    for seed in range(5):  # wherever the multipliers come from: a true bound or none
        rng = np.random.default_rng(seed)
        other = [m * rng.uniform(0.5, 1.0, m.size) for m in best]
        assert certificate.prove(section, other, squared * 0.97) > steepest(section, seed, 1)


@pytest.mark.parametrize("dense", [False, True])
def test_a_narrowed_input_changes_nothing_but_the_size(dense: bool) -> None:
    section = random_section(4, (60, 6, 5, 3), 0.0, 1.0, dense)
    narrow = narrowed(section)
    assert narrow.inputs == (14 if dense else 6)
    rng = np.random.default_rng(0)
    for _ in range(20):
        at = [rng.uniform(u.low, u.high) for u in section.units]
        wide, slim = (np.linalg.norm(jacobian_at(s, at), 2) for s in (section, narrow))
        assert wide <= slim * (1 + 1e-13) and slim <= wide * (1 + 1e-8)
    joint = [np.concatenate([row[0].centre for row in s.rows if 0 in row]) for s in (section, narrow)]
    with mpmath.workdps(60):
        grams = [mpmath.matrix(a) * mpmath.matrix(a).T for a in joint]
        assert min(mpmath.eigsy(grams[1] - grams[0], eigvals_only=True)) >= 0
    zero = Section(60, section.units[:0], {0: Enclosed(np.zeros((3, 60)))})
    assert narrowed(zero) is zero


def test_the_certificate_counts_the_radius_of_its_blocks() -> None:
    section = random_section(2, (4, 8, 8, 3), 0.0, 1.0)
    recursion = Recursion(section)
    _, multipliers, squared = best_closed(section, recursion, EFFORT)
    sharp = certificate.prove(section, multipliers, squared)

    def blurred(blocks: dict, size: float) -> dict:
        return {j: Enclosed(m.centre, np.full(m.shape, size)) for j, m in blocks.items()}

    for size, least in ((1e-12, 0.0), (1e-6, 1e-8), (1e-1, np.inf)):
        units = tuple(Unit(blurred(u.blocks, size), u.low, u.high) for u in section.units)
        wide = certificate.prove(Section(4, units, blurred(section.output, size)), multipliers, squared)
        assert wide >= sharp * (1 + least)
        assert np.isinf(wide) == np.isinf(least)
    for place in range(3):  # each block's own radius counts: as much as its worst matrix needs
        rows = [blurred(row, 1e-5) if k == place else row for k, row in enumerate(section.rows)]
        units = tuple(Unit(row, u.low, u.high) for row, u in zip(rows, section.units, strict=False))
        assert certificate.prove(Section(4, units, rows[-1]), multipliers, squared) >= sharp * (1 + 1e-7)


def test_the_gradient_is_that_of_the_function() -> None:
    for dense in (False, True):
        section = random_section(3, (7, 5, 6, 3), -0.1, 1.1, dense)
        recursion = Recursion(section)
        logs = np.log(np.concatenate(best_closed(section, recursion, EFFORT)[1])) - 0.2
        _, _, slope = recursion.descend(logs)
        move = np.random.default_rng(0).standard_normal(logs.size) * 1e-5
        difference = recursion.descend(logs + move)[1] - recursion.descend(logs - move)[1]
        assert difference == pytest.approx(2 * float(slope @ move), rel=1e-6)


def test_less_effort_gives_a_bound_between_and_none_of_it_none() -> None:
    section = random_section(0, (5, *(30,) * 5, 5), 0.0, 1.0)
    closed, search = sections.METHODS[2].measure, sections.METHODS[3].measure
    found = [search(section, Effort(EFFORT.norm, work)).upper for work in (3e10, 1e8, 1.5e7)]
    assert found[0] < found[1] < found[2] <= closed(section, Effort(EFFORT.norm, 1.5e7)).upper
    assert closed(section, EFFORT).upper < 1.001 * closed(section, Effort(EFFORT.norm, 1e7)).upper < np.inf
    for method in (closed, search, sections.METHODS[0].measure):
        assert np.isinf(method(section, Effort(EFFORT.norm, 1e3)).upper)


def test_enclosed_products_hold_the_exact_ones() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal((5, 5)) * 10.0 ** rng.integers(-8, 8, (5, 5)) for _ in range(3))
    factors = rng.standard_normal(5)
    alone = product(Enclosed(a), Enclosed(b))
    with mpmath.workdps(60):
        exact = mpmath.matrix(a) * mpmath.matrix(b) - mpmath.matrix(alone.centre)
        assert (np.array(exact.apply(abs).tolist(), dtype=float) <= alone.radius).all()
    found = total(scaled(product(product(Enclosed(a), Enclosed(b)), Enclosed(c)), factors), Enclosed(b), -1.0)
    with mpmath.workdps(60):
        exact = mpmath.diag([mpmath.mpf(f) for f in factors]) * mpmath.matrix(a) * mpmath.matrix(b) * mpmath.matrix(c)
        error = np.array((exact - mpmath.matrix(b) - mpmath.matrix(found.centre)).apply(abs).tolist(), dtype=float)
    assert (error <= found.radius).all() and error.max() > 0
    assert (found.radius <= 1e-13 * (np.abs(factors)[:, None] * (np.abs(a) @ np.abs(b) @ np.abs(c)) + np.abs(b))).all()


@pytest.mark.parametrize("row", [row for row in ROWS if row.op != "PRelu"], ids=lambda row: f"{row.domain}.{row.op}")
def test_the_rules_gain_is_that_of_the_slopes(row) -> None:
    """One source: the gain of an op's rule is the larger end of its slope interval."""
    attributes = {"Celu": {"alpha": 2.0}, "Elu": {"alpha": 1.5}, "ThresholdedRelu": {"alpha": 0.0}}.get(row.op, {})
    attributes |= {"bias": 0.5} if row.op == "Shrink" else {}
    made = ir.from_proto(node(row.op, "x", domain=row.domain, **attributes))
    step = Step(made, (snaudit_value(),), "l2", 20)
    ends = slopes.interval(row.domain, row.op, step.attribute)
    if ends is not None:
        assert row.rule(step)[0].lip.upper == max(abs(ends[0]), abs(ends[1]))


def snaudit_value():
    from snaudit.rules.interface import Value

    return Value(at_most(1.0, "x"), frozenset({"x"}))


def test_the_lower_ends_of_the_slopes() -> None:
    """Against the minima of φ' to 30 digits: at most one float below."""
    root = mpmath.sqrt(2)
    cubic = lambda x: mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)
    functions = {
        slopes.SILU: (lambda x: x / (1 + mpmath.exp(-x)), -2.4),
        slopes.GELU_ERF: (lambda x: x * (1 + mpmath.erf(x / root)) / 2, -1.414),
        slopes.GELU_TANH: (lambda x: x * (1 + mpmath.tanh(cubic(x))) / 2, -1.41),
        slopes.MISH: (lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))), -2.26),
    }
    with mpmath.workdps(30):
        for (low, _), (function, near) in functions.items():
            flat = mpmath.findroot(lambda x, f=function: mpmath.diff(f, x, 2), near)
            assert -5e-16 < low - mpmath.diff(function, flat) < 0


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    return path


@pytest.mark.parametrize("seed", [s for s in range(24) if s % 3])
def test_a_linear_network_of_one_input_is_bounded_by_its_exact_norm(seed: int, tmp_path: Path) -> None:
    model, _ = random_dag(seed, linear=True)
    function, n = function_of(model)
    truth = float(np.linalg.norm(jacobian(function, np.zeros(n), 0.5), 2))
    found = snaudit.audit(saved(model, tmp_path)).network.bound
    assert found.grade is Grade.PROVED
    assert truth <= found.upper * (1 + 1e-9) and found.upper <= truth * (1 + 1e-7)


@pytest.mark.parametrize("seed", range(12))
def test_a_random_network_is_not_below_its_jacobians(seed: int, tmp_path: Path) -> None:
    """Residuals, concatenations, splits, shared weights, activations; with a hole: no number."""
    model, _ = random_dag(300 + seed, linear=False)
    function, n = function_of(model)
    rng = np.random.default_rng(seed)
    points = [rng.standard_normal(n) * scale for scale in (0.03, 0.1, 0.3, 1.0, 3.0)]
    truth = max(float(np.linalg.norm(jacobian(function, x, 1e-6), 2)) for x in points)
    network = snaudit.audit(saved(model, tmp_path)).network
    assert truth <= network.bound.upper * (1 + DIFFERENCES)
    assert network.bound.upper <= network.methods[0].bound.upper
    assert min(m.bound.upper for m in network.methods) >= network.bound.upper
    end = model.graph.node[-1].input[0]
    model.graph.node.insert(len(model.graph.node) - 1, node("Round", end, "stepped"))
    model.graph.node[-1].input[0] = "stepped"
    assert not snaudit.audit(saved(model, tmp_path)).network.bound.bounded


ACTIVATIONS: dict[str, Callable[[], list[onnx.NodeProto]]] = {
    "Relu": lambda: [node("Relu", "a", "h")],
    "LeakyRelu": lambda: [node("LeakyRelu", "a", "h", alpha=0.3)],
    "PRelu": lambda: [node("PRelu", "a slopes", "h")],
    "Tanh": lambda: [node("Tanh", "a", "h")],
    "Elu": lambda: [node("Elu", "a", "h", alpha=1.5)],
    "HardSwish": lambda: [node("HardSwish", "a", "h")],
    "Abs": lambda: [node("Abs", "a", "h")],
    "Clip": lambda: [node("Clip", "a zero six", "h")],
    "Max": lambda: [node("Max", "zero a", "h")],
    "Mish in parts": lambda: [node("Softplus", "a", "b"), node("Tanh", "b", "c"), node("Mul", "a c", "h")],
    "SiLU in parts": lambda: [node("Sigmoid", "a", "b"), node("Mul", "a b", "h")],
    "negative SiLU": lambda: [node("Sigmoid", "a", "b"), node("Mul", "minus a", "c"), node("Mul", "c b", "h")],
    "GELU in parts": lambda: [
        node("Div", "a root2", "b"),
        node("Erf", "b", "c"),
        node("Add", "c one", "d"),
        node("Mul", "a d", "e"),
        node("Mul", "e half", "h"),
    ],
    "Max of two": lambda: [node("Mul", "a half", "b"), node("Max", "a b", "h")],
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_in_a_residual_network(name: str, tmp_path: Path) -> None:
    """One section, tighter than its product, never below ascended Jacobians of onnxruntime."""
    rng = np.random.default_rng(7)
    weights = {
        "w1": rng.standard_normal((4, 6)), "b1": rng.standard_normal(6), "w2": rng.standard_normal((6, 4)),
        "w3": rng.standard_normal((4, 3)), "slopes": np.linspace(-0.5, 2.0, 6), "zero": np.array(0.0),
        "six": np.array(6.0), "one": np.array(1.0), "half": np.array(0.5), "minus": np.array(-1.0),
        "root2": np.array(np.sqrt(2.0)),
    }  # fmt: skip
    nodes = [node("Gemm", "x w1 b1", "a"), *ACTIVATIONS[name](), node("MatMul", "h w2", "p")]
    nodes += [node("Sub", "x p", "r"), node("Concat", "r x", "k", axis=1), node("Slice", "k from to axes", "s")]
    nodes += [node("Gemm", "s w3", "y")]
    weights |= {"from": np.array([0]), "to": np.array([4]), "axes": np.array([1])}
    used = {i for n in nodes for i in n.input}
    model = make_model(nodes, {"x": ["n", 4]}, {k: v for k, v in weights.items() if k in used}, dtype="float32")
    network = snaudit.audit(saved(model, tmp_path)).network
    assert network.bound.upper < 0.97 * network.methods[0].bound.upper, network.methods
    assert network.bound.method == "LipSDP, first-order search"
    ready = make_model(nodes, {"x": [1, 4]}, {k: v for k, v in weights.items() if k in used}, dtype="float32")
    function, n = function_of(ready)
    best = 0.0
    for _ in range(6):  # hill climbing: the Jacobian of differences in float32
        x = rng.standard_normal(n) * 2
        value = np.linalg.norm(jacobian(function, x, 1e-3), 2)
        for step in (1.0, 0.5, 0.2, 0.1):
            for _ in range(12):
                y = x + step * rng.standard_normal(n)
                new = np.linalg.norm(jacobian(function, y, 1e-3), 2)
                x, value = (y, new) if new > value else (x, value)
        best = max(best, float(value))
    assert best <= network.bound.upper * (1 + 2e-3)
    assert network.bound.upper <= 2.2 * best


@pytest.mark.parametrize("factor", [-2.0, 0.5])
def test_the_slopes_of_an_activation_in_parts_keep_their_sign(factor: float) -> None:
    weights = {"w": np.eye(3), "c": np.array(factor)}
    nodes = [node("MatMul", "x w", "a"), node("Sigmoid", "a", "b"), node("Mul", "c a", "d"), node("Mul", "d b", "h")]
    model = make_model([*nodes, node("MatMul", "h w", "y")], {"x": ["n", 3]}, weights)
    (cut,) = cuts.find_sections(read(model))
    (unit,) = cut.section.units
    low, high = sorted(end * factor for end in slopes.SILU)
    assert (unit.low <= low).all() and (unit.high >= high).all()
    np.testing.assert_allclose((unit.low, unit.high), np.outer((low, high), np.ones(3)), rtol=1e-13)


OPS: list[tuple[onnx.NodeProto, list, dict]] = [
    (node("Gemm", "x w b", transB=1, alpha=0.7), [6], {"w": (3, 6), "b": (3,)}),
    (node("MatMul", "x w"), [2, 6], {"w": (6, 3)}),
    (node("MatMul", "w x"), [4, 3], {"w": (2, 4)}),
    (node("Conv", "x w b", pads=[1, 0, 2, 1], strides=[2, 1]), [2, 5, 4], {"w": (3, 2, 3, 2), "b": (3,)}),
    (node("Conv", "x w", group=2, auto_pad="SAME_LOWER"), [4, 7], {"w": (6, 2, 3)}),
    (node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 3]), [1, 7, 7], {"w": (2, 1, 4, 2)}),
    (node("Conv", "x w", dilations=[2, 1], pads=[2, 0, 1, 1]), [2, 6, 4], {"w": (3, 2, 3, 2)}),
    (node("AveragePool", "x", kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 1]), [2, 5, 4], {}),
    (node("AveragePool", "x", kernel_shape=[3], pads=[1, 1], count_include_pad=1), [2, 5], {}),
    (node("GlobalAveragePool", "x"), [3, 4, 5], {}),
    (node("BatchNormalization", "x g b b v"), [3, 2, 2], {"g": (3,), "b": (3,), "v": (3,)}),
    (node("ReduceMean", "x", axes=[1, -1]), [2, 3, 4], {}),
    (node("ReduceSum", "x a", keepdims=0), [2, 3, 4], {"a": [2]}),
    (node("Reshape", "x to"), [2, 6], {"to": [-1, 4, 3]}),
    (node("Reshape", "x to"), [2, 6], {"to": [0, 3, -1]}),
    (node("Flatten", "x"), [2, 3, 2], {}),
    (node("Squeeze", "x a"), [1, 3], {"a": [1]}),
    (node("Unsqueeze", "x a"), [3], {"a": [1, -1]}),
    (node("Transpose", "x", perm=[0, 3, 1, 2]), [2, 3, 4], {}),
    (node("Slice", "x s e a t"), [6, 5], {"s": [-1, 1], "e": [-9, 5], "a": [1, 2], "t": [-2, 2]}),
    (node("Gather", "x i", axis=2), [2, 5], {"i": [[-1, 0], [2, 2]]}),
    (node("Split", "x s", "p y", axis=1), [5, 2], {"s": [2, 3]}),
    (node("Pad", "x p"), [2, 3], {"p": [0, 1, 0, 0, 0, 2]}),
    (node("Concat", "x x", axis=1), [2, 3], {}),
    (node("Concat", "x c", axis=-2), [2, 3], {"c": (1, 4, 3)}),
    (node("Add", "x x"), [3, 2], {}),
    (node("Sub", "c x"), [3, 1], {"c": (3, 4)}),
    (node("Sum", "x c x"), [3, 2], {"c": (2,)}),
    (node("Mul", "c x"), [3, 1], {"c": (4,)}),
    (node("Div", "x c"), [3, 2], {"c": (2,)}),
    (node("Neg", "x"), [3], {}),
    (node("Dropout", "x"), [3], {}),
    (node("Cast", "x", to=1), [3], {}),
]


@pytest.mark.parametrize("batch", [1, "n"])
@pytest.mark.parametrize("case", OPS, ids=lambda case: f"{case[0].op_type} {OPS.index(case)}")
def test_a_linearized_op_is_what_onnxruntime_computes(case: tuple, batch: int | str) -> None:
    """Entry by entry, at batch 1 and, of an open batch, at two: the same matrix twice, nothing across."""
    made, shape, constants = case
    if made.op_type == "Concat" and constants and batch == "n":
        batch = 1  # a constant has no open batch
    rng = np.random.default_rng(3)
    weights = {
        k: np.array(v) if isinstance(v, list) else rng.uniform(0.5, 2.0, v) for k, v in constants.items()
    }
    nodes = [node("Mul", "x once", "m"), made, node("Add", "y zero", "z")]
    nodes[1].input[:] = ["m" if name == "x" else name for name in made.input]
    extra = {"once": np.array(1.0), "zero": np.array(0.0)}
    model = make_model(nodes, {"x": [batch, *shape]}, weights | extra, ["z"], dtype="float32")
    for node_ in nodes[1:2]:
        node_.input[:] = ["x" if name == "m" else name for name in node_.input]
    walk = cuts._Walk(read(model), 17, Box())
    for step in walk.model.graph:
        data = [v for v in dict.fromkeys(step.inputs) if v is not None and v.const_value is None]
        assert cuts._follow(walk, step, data) is not None, step.op_type
    _, found = walk.known[walk.model.graph.outputs[0]]
    count = 2 if batch == "n" else 1
    ready = make_model([*model.graph.node], {"x": [count, *shape]}, weights | extra, ["z"], dtype="float32")
    function, n = function_of(ready)
    matrix = np.stack([function(e) - function(np.zeros(n)) for e in np.eye(n)], axis=1)
    assert found.batched == (batch == "n")
    np.testing.assert_allclose(matrix, np.kron(np.eye(count), found.blocks[0].centre), rtol=1e-5, atol=1e-6)


def test_what_mixes_a_batch_or_is_not_finite_ends_a_section(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 4))
    chain = [node("MatMul", "x w", "a"), node("Relu", "a", "b")]
    for breaks in (
        [node("Transpose", "b", "c", perm=[1, 0]), node("MatMul", "c w3", "y")],
        [node("MatMul", "w2 b", "y")],
        [node("ReduceMean", "b", "y", axes=[0])],
        [node("Add", "b rows", "y")],
    ):
        model = make_model([*chain, *breaks], {"x": ["n", 4]}, {"w": w, "w2": w, "w3": w, "rows": w})
        found = {cut.output.name for cut in cuts.find_sections(read(model))}
        assert "y" not in found
    for weights in ({"w": w, "b": np.full(4, np.nan)}, {"w": np.full((4, 4), np.inf), "b": np.zeros(4)}):
        nodes = [node("Gemm", "x w b", "a"), node("Relu", "a", "r"), node("Gemm", "r w b", "y")]
        model = make_model(nodes, {"x": ["n", 4]}, weights, dtype="float32")
        assert not snaudit.audit(saved(model, tmp_path)).network.bound.bounded


def test_sections_multiply_at_cuts(tmp_path: Path) -> None:
    """Two sections with a Softmax between: each has its own bound, and the network the product."""
    rng = np.random.default_rng(1)
    weights = {f"w{i}": rng.standard_normal((8, 8)) for i in range(6)}
    nodes = [node("MatMul", "x w0", "a"), node("Relu", "a", "b"), node("MatMul", "b w1", "c")]
    nodes += [node("Softmax", "c", "d"), node("MatMul", "d w2", "e"), node("Relu", "e", "f"), node("MatMul", "f w3", "y")]
    model = make_model(nodes, {"x": ["n", 8]}, {k: v for k, v in weights.items() if k < "w4"})
    found = {cut.output.name: cut for cut in cuts.find_sections(read(model))}
    assert {name: cut.source.name for name, cut in found.items()} == {"c": "x", "y": "d"}
    parts = [sections.METHODS[3].measure(found[name].section, EFFORT).upper for name in ("c", "y")]
    network = snaudit.audit(saved(model, tmp_path)).network
    assert network.bound.upper == pytest.approx(parts[0] * 0.5 * parts[1], rel=1e-9)


def test_other_norms_are_left_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((8, 8)), "v": rng.standard_normal((8, 8))}
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b v", "y")]
    path = saved(make_model(nodes, {"x": ["n", 8]}, weights), tmp_path)
    assert len(snaudit.audit(path, norm="linf").network.methods) == 1
    names = [method.name for method in snaudit.audit(path).network.methods]
    assert names == ["composition over the graph", *(method.name for method in sections.METHODS)]
