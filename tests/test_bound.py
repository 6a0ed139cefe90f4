"""The laws of Bound: outward in exact arithmetic, exact where a float is exact, trust only falls."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaudit import bound
from snaudit.bound import UNBOUNDED, Bound, Grade, exactly

sizes = st.floats(0.0, 1e300, allow_nan=False) | st.integers(0, 1000).map(float)
gains = st.floats(0.0, 1e100, allow_nan=False)
grades = st.sampled_from(Grade)


@st.composite
def bounds(draw: st.DrawFn) -> Bound:
    low, high = sorted((draw(gains), draw(gains)))
    return Bound(low, draw(st.sampled_from((high, high, math.inf))), draw(grades), "drawn")


def exact(x: float) -> Fraction:
    return Fraction(x)


@given(sizes, sizes)
def test_a_product_is_rounded_up_and_no_further_than_one_float(a: float, b: float) -> None:
    product = bound.times_up(a, b)
    assert math.isinf(product) or exact(product) >= exact(a) * exact(b)
    assert product <= math.nextafter(math.nextafter(a * b, math.inf), math.inf)


@given(st.lists(sizes, max_size=6))
def test_a_sum_is_rounded_up_and_exact_where_it_is_a_float(terms: list[float]) -> None:
    total, truth = bound.sum_up(terms), sum(map(exact, terms), Fraction(0))
    assert exact(total) >= truth
    assert total == truth or exact(math.nextafter(total, 0.0)) < truth


@given(sizes | st.floats(0.0, 1e-300))
def test_a_root_is_rounded_up(x: float) -> None:
    root = bound.root_up(x)
    assert exact(root) ** 2 >= exact(x)
    assert x == 0 or exact(math.nextafter(math.nextafter(root, 0.0), 0.0)) ** 2 < exact(x)


@pytest.mark.parametrize("x", [*range(64), 2**52, 2**54, 94906265**2])
def test_roots_of_whole_numbers(x: int) -> None:
    """√11 squares back to 11.0 in floating point and still lies below the root: a fixed bug."""
    root = bound.root_up(float(x))
    assert exact(root) ** 2 >= x
    if math.isqrt(x) ** 2 == x and x <= 2**52:
        assert root == math.isqrt(x)


@given(st.lists(sizes | st.floats(0.0, 1e-308), max_size=5))
def test_a_root_of_squares_is_rounded_up_without_overflow(terms: list[float]) -> None:
    root, truth = bound.root_sum_squares_up(terms), sum((exact(t) ** 2 for t in terms), Fraction(0))
    assert math.isinf(root) or exact(root) ** 2 >= truth
    assert root <= max(terms, default=0.0) * math.sqrt(len(terms) or 1) * (1 + 1e-14) + 1e-322


@given(bounds(), st.floats(-1e100, 1e100))
def test_scaling_is_outward(given_: Bound, factor: float) -> None:
    scaled = bound.scaled(given_, factor)
    assert exact(scaled.lower) <= exact(given_.lower) * abs(exact(factor))
    assert not scaled.bounded or exact(scaled.upper) >= exact(given_.upper) * abs(exact(factor))
    assert scaled.bounded == given_.bounded
    assert scaled.grade is given_.grade


@given(bounds(), bounds())
def test_combining_takes_the_least_grade_and_loses_no_infinity(a: Bound, b: Bound) -> None:
    made = [bound.chain(a, b), bound.total((a, b)), *(bound.stacked((a, b), norm) for norm in bound.NORMS)]
    for one in made:
        assert one.grade is min(a.grade, b.grade)
        assert one.lower == 0.0
        assert one.bounded == (a.bounded and b.bounded)
    if a.bounded and b.bounded:
        x, y = exact(a.upper), exact(b.upper)
        product, total, l2, linf, l1 = (exact(one.upper) for one in made)
        assert (product >= x * y, total >= x + y, l2**2 >= x**2 + y**2, linf, l1 >= x + y) == (
            True, True, True, max(x, y), True)  # fmt: skip


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.nan), (math.inf, math.inf)])
def test_what_encloses_nothing_is_no_bound(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="no interval"):
        Bound(*ends, Grade.PROVED, "test")


def test_an_empty_combination_is_zero_and_zero_times_infinity_is_infinite() -> None:
    assert bound.total(()).upper == bound.stacked((), "l2").upper == bound.stacked((), "linf").upper == 0.0
    assert bound.chain(exactly(0.0), UNBOUNDED).upper == math.inf
    assert bound.sum_up([0.1] * 10) == 1.0000000000000002  # the ten floats add to more than one
    assert bound.sum_up([1.0, 1.0]) == 2.0
