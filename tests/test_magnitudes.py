"""Magnitudes written out: their bound is what the Jacobian attains, in every norm, and only where it is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from graphs import composed, function_of, gain, jacobian, make_model
from onnx import NodeProto, helper

from snaudit.bound import NORMS, Grade, Norm

N = helper.make_node
RNG = np.random.default_rng(29)
WEIGHTS = {"two": np.array(2.0), "half": np.array(0.5), "eps": np.array(1e-9), "minus": np.array(-1e-9), "one": 1.0}
HALVES = [N("Split", ["x"], ["a", "b"], axis=1)]


def squares(first: str = "a", second: str = "b") -> list[NodeProto]:
    return [N("Pow", [first, "two"], ["aa"]), N("Mul", [second, second], ["bb"]), N("Add", ["aa", "bb"], ["s"])]


CASES: dict[str, tuple[list[NodeProto], dict[Norm, float]]] = {
    "halves of one value": (
        [*HALVES, *squares(), N("Sqrt", ["s"], ["y"])],
        {"l2": 1.0, "l1": 1.0, "linf": 2**0.5},
    ),
    "with an epsilon, as a power": (
        [*HALVES, *squares(), N("Add", ["eps", "s"], ["t"]), N("Pow", ["t", "half"], ["y"])],
        {"l2": 1.0, "l1": 1.0, "linf": 2**0.5},
    ),
    "clipped from below": (
        [*HALVES, *squares(), N("Clip", ["s", "eps"], ["t"]), N("Max", ["t", "eps"], ["u"]), N("Sqrt", ["u"], ["y"])],
        {"l2": 1.0, "l1": 1.0, "linf": 2**0.5},
    ),
    "one value twice": (
        [*squares("x", "x"), N("Sqrt", ["s"], ["y"])],
        {"l2": 2**0.5, "l1": 2**0.5, "linf": 2**0.5},
    ),
    "smooth absolute value": (
        [N("Mul", ["x", "x"], ["s"]), N("Add", ["s", "eps"], ["t"]), N("Sqrt", ["t"], ["y"])],
        {"l2": 1.0, "l1": 1.0, "linf": 1.0},
    ),
    "sum over an axis": (
        [N("Mul", ["x", "x"], ["s"]), N("ReduceSum", ["s"], ["t"], axes=[1], keepdims=0), N("Sqrt", ["t"], ["y"])],
        {"l2": 1.0, "l1": 1.0, "linf": 2.0},
    ),
    "mean over an axis": (
        [N("Pow", ["x", "two"], ["s"]), N("ReduceMean", ["s"], ["t"], axes=[-1]), N("Sqrt", ["t"], ["y"])],
        {"l2": 3**-0.5, "l1": 3**-0.5, "linf": 1.0},
    ),
    "sum of squares of all": (
        [N("ReduceSumSquare", ["x"], ["s"]), N("Relu", ["s"], ["t"]), N("Sqrt", ["t"], ["y"])],
        {"l2": 1.0, "l1": 1.0, "linf": float("inf")},
    ),
}


def steepest(function: Callable[[np.ndarray], np.ndarray], size: int, norm: Norm) -> float:
    points = [RNG.standard_normal(size) * scale for scale in (0.3, 1.0, 30.0) for _ in range(20)]
    points += [np.repeat(RNG.choice([-1.0, 1.0], size // 3), 3) for _ in range(20)] + [np.ones(size)]
    points += [np.eye(size)[i] * 0.7 + 1e-2 for i in range(size)]
    return max(gain(jacobian(function, x, 1e-6), norm) for x in points)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", CASES)
def test_a_magnitude_has_the_constant_that_is_attained(case: str, norm: Norm) -> None:
    nodes, constants = CASES[case]
    model = make_model(nodes, {"x": (1, 4, 3)}, WEIGHTS, opset=12)
    bound = composed(model, norm).bound
    assert bound.grade is Grade.PROVED
    seen = steepest(*function_of(model), norm)
    assert seen <= bound.upper * (1 + 1e-6), (seen, bound)
    if np.isfinite(constants[norm]):
        assert bound.upper == pytest.approx(constants[norm], rel=1e-9)
        assert seen >= 0.99 * bound.upper


@pytest.mark.parametrize("limits, bounded", [({"min": 1e-9}, True), ({"min": -1.0}, False), ({"max": 2.0}, False)])
def test_limits_were_attributes_before_opset_11(limits: dict[str, float], bounded: bool) -> None:
    nodes = [*HALVES, *squares(), N("Clip", ["s"], ["t"], **limits), N("Sqrt", ["t"], ["y"])]
    bound = composed(make_model(nodes, {"x": (1, 4, 3)}, WEIGHTS, opset=10)).bound
    assert bound.known is bounded and (not bounded or bound.upper == pytest.approx(1.0))


NONE: dict[str, list[NodeProto]] = {
    "a difference": [*HALVES, *squares()[:2], N("Sub", ["aa", "bb"], ["s"]), N("Sqrt", ["s"], ["y"])],
    "less an epsilon": [*HALVES, *squares(), N("Add", ["s", "minus"], ["t"]), N("Relu", ["t"], ["u"]), N("Sqrt", ["u"], ["y"])],
    "a product": [*HALVES, N("Mul", ["a", "b"], ["s"]), N("Sqrt", ["s"], ["y"])],
    "a square and no square": [*HALVES, N("Mul", ["a", "a"], ["aa"]), N("Add", ["aa", "b"], ["s"]), N("Sqrt", ["s"], ["y"])],
    "a cube": [N("Pow", ["x", "three"], ["s"]), N("Sqrt", ["s"], ["y"])],
    "another root": [*HALVES, *squares(), N("Pow", ["s", "third"], ["y"])],
}  # fmt: skip


@pytest.mark.parametrize("case", NONE)
def test_what_is_no_magnitude_stays_a_gap(case: str) -> None:
    weights = {**WEIGHTS, "three": np.array(3.0), "third": np.array(1 / 3)}
    found = composed(make_model(NONE[case], {"x": (1, 4, 3)}, weights, opset=12))
    assert not found.bound.known
    assert found.gaps


@pytest.mark.parametrize("shapes", [((2, 3), (1, 3)), ((2, 3), (3,)), ((1, 4), (5, 1))])
def test_a_magnitude_that_broadcasts_counts_the_copies_or_has_no_bound(shapes: Sequence[tuple[int, ...]]) -> None:
    model = make_model([*squares(), N("Sqrt", ["s"], ["y"])], dict(zip("ab", shapes, strict=True)), WEIGHTS)
    bound = composed(model).bound
    assert not bound.known or bound.upper >= steepest(*function_of(model), "l2") * (1 - 1e-6)


def test_unlike_dynamic_sizes_leave_it_assumed() -> None:
    model = make_model([*squares(), N("Sqrt", ["s"], ["y"])], {"a": (1, "m"), "b": (1, "n")}, WEIGHTS)
    found = composed(model)
    assert found.bound.grade is Grade.ASSUMED
    assert any("m and n" in sentence for sentence in found.assumptions)


def test_a_held_gap_before_a_magnitude_stays_one() -> None:
    """What feeds the square has no constant: the shortcut does not make it finite."""
    nodes = [N("Exp", ["x"], ["e"]), N("Mul", ["e", "e"], ["s"]), N("Sqrt", ["s"], ["y"])]
    found = composed(make_model(nodes, {"x": (1, 4)}, WEIGHTS))
    assert not found.bound.known
    assert [gap.op for gap in found.gaps] == ["Exp"]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_every_square_counts(order: str) -> None:
    """√((Vz)² + (Wx)²) with V a thousand times W."""
    nodes = [N("MatMul", ["z", "V"], ["a"]), N("MatMul", ["x", "W"], ["b"]), *squares(*order), N("Sqrt", ["s"], ["y"])]
    norms: dict[str, dict[Norm, float]] = {"a": dict.fromkeys(NORMS, 1000.0), "b": dict.fromkeys(NORMS, 1.0)}
    model = make_model(nodes, {"x": (1, 2), "z": (1, 2)}, {**WEIGHTS, "V": 1000.0 * np.eye(2), "W": np.eye(2)})
    assert composed(model, operators=norms).bound.upper == pytest.approx(1000.0)
