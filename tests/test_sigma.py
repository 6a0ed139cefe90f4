"""Every way to enclose σ₁ of a matrix, held to 50-digit arithmetic and to matrices of known σ."""

from __future__ import annotations

import math
from dataclasses import replace

import makers
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from snaudit import rounding, sigma
from snaudit.arrays import top_eigenpair
from snaudit.bound import Bound, Grade
from snaudit.errors import UsageError
from snaudit.linear import BlockDiagonal, Convolution, Dense, LowRank
from snaudit.sigma import certificate, lanczos, power
from snaudit.sigma.interface import Options

WIDTH = 1e-8  # what the certificate promises, relative
SMALL = makers.small_matrices()


def assert_encloses(bound: Bound, truth: mpmath.mpf, width: float = WIDTH) -> None:
    """lower ≤ truth ≤ upper exactly, and no wider than `width` (or a few subnormals)."""
    assert mpmath.mpf(bound.lower) <= truth
    assert truth <= mpmath.mpf(bound.upper)
    if truth < 1.7e308:
        assert bound.upper - bound.lower <= width * bound.upper + 1e-322


@pytest.mark.parametrize("name", SMALL)
def test_certificate_encloses_the_50_digit_sigma(name: str) -> None:
    with mpmath.workdps(50):
        truth = makers.exact_sigma(SMALL[name])
        for matrix in (SMALL[name], SMALL[name].T, np.asfortranarray(SMALL[name])):
            bound = sigma.measure(Dense(matrix))
            assert bound.grade is Grade.PROVED
            assert_encloses(bound, truth)


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.floats(-1e300, 1e300)))
@settings(max_examples=60, deadline=None)
def test_certificate_encloses_whatever_the_entries(matrix: np.ndarray) -> None:
    with mpmath.workdps(50):
        assert_encloses(sigma.measure(Dense(matrix)), makers.exact_sigma(matrix))


@pytest.mark.parametrize("gap", [10.0**-k for k in range(1, 15)])
def test_large_matrices_of_known_sigma(gap: float) -> None:
    """H·diag(d), order 256 (beyond LAPACK's share, so Lanczos): σ₁ = 16·max d, at every gap."""
    rng = np.random.default_rng(1)
    d = np.concatenate([[1.0, 1.0 - gap], rng.uniform(0.0, 1.0 - gap, 254)])
    for factor in (1.0, 2.0**-500, 2.0**500, 1e-310):
        bound = sigma.measure(Dense(makers.with_spectrum(rng.permutation(d)) * factor))
        truth = 16.0 * factor
        slack = 1e-308 if factor < 1e-300 else 0.0  # such entries are rounded themselves
        assert bound.grade is Grade.PROVED
        assert bound.lower - slack <= truth <= bound.upper + slack
        assert bound.upper <= truth * (1 + WIDTH) + slack


def test_a_top_vector_that_no_iteration_sees_is_still_enclosed() -> None:
    """Twenty power steps stay 15% low, and so does Lanczos; the certificate notices."""
    seed = 0
    matrix = makers.hidden_from(seed, 200, 0.85)
    assert sigma.power_estimate(Dense(matrix), 20, seed).estimate < 0.9
    assert top_eigenpair(matrix, seed)[0] < 0.9
    bound = sigma.measure(Dense(matrix), options=Options(seed=seed))
    truth = float(np.linalg.eigvalsh(matrix)[-1])
    assert bound.upper >= truth - 1e-14
    assert bound.upper <= 1.0 + 1e-7
    assert bound.grade is Grade.PROVED


def test_shapes_of_the_wild() -> None:
    """Tall, wide and square against LAPACK; the widths are those of the docstring."""
    rng = np.random.default_rng(3)
    for shape in ((20000, 8), (8, 20000), (5000, 70), (300, 400), (1, 5000), (5000, 1)):
        matrix = rng.standard_normal(shape)
        value = float(np.linalg.svd(matrix, compute_uv=False)[0])
        bound = sigma.measure(Dense(matrix))
        assert bound.lower <= value * (1 + 1e-13)
        assert value * (1 - 1e-13) <= bound.upper <= value * (1 + WIDTH / 2)
        assert bound.lower >= value * (1 - WIDTH / 2)


@pytest.mark.parametrize("seed", range(4))
def test_low_rank_products_without_forming_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank = (1, 3, 6, 2)[seed]
    left, right = rng.standard_normal((5, rank)), rng.standard_normal((rank, 6))
    with mpmath.workdps(50):
        product = mpmath.matrix(left.tolist()) * mpmath.matrix(right.tolist())
        truth = max(mpmath.svd_r(product, compute_uv=False))
        assert_encloses(sigma.measure(LowRank(left, right)), truth)
        huge = sigma.measure(LowRank(left * 2.0**600, right * 2.0**-700))
        assert_encloses(huge, truth * mpmath.mpf(2) ** -100)
        assert_encloses(sigma.measure(LowRank(left, right), options=Options(method="svd")), truth)


def test_low_rank_with_cancellation_stays_sound() -> None:
    """B·A = 0 by cancellation: the upper end is rounding of ‖B‖‖A‖, and no less than 0."""
    left, right = np.array([[1.0, -1.0]] * 3) / 3, np.ones((2, 4)) / 7
    bound = sigma.measure(LowRank(left, right))
    assert bound.lower == 0.0
    assert bound.upper < 1e-14
    assert sigma.measure(LowRank(np.zeros((3, 2)), right)) == Bound(0.0, 0.0, Grade.PROVED, "exact")


def test_what_rounding_makes_up_is_never_a_lower_end() -> None:
    """B·A is rounding noise, of norm 1e-16: what floating point sees of it may lie above it."""
    with mpmath.workdps(50):
        for seed in range(20):
            a, b, *x = np.random.default_rng(seed).standard_normal(8).tolist()
            left, right = np.array([[a, -b]]), np.array([np.multiply(b, x), np.multiply(a, x)])
            product = mpmath.matrix(left.tolist()) * mpmath.matrix(right.tolist())
            for method in ("auto", "power"):
                bound = sigma.measure(LowRank(left, right), "l2", Options(method=method))
                assert bound.lower <= mpmath.norm(product)
                assert mpmath.norm(product) <= bound.upper or bound.grade is Grade.ESTIMATED


def test_a_stack_has_the_norm_of_its_largest_block() -> None:
    rng = np.random.default_rng(5)
    for count, rows, columns in ((1, 3, 4), (40, 3, 5), (4, 80, 90), (7, 1, 4), (7, 4, 1)):
        blocks = rng.standard_normal((count, rows, columns))
        blocks[count // 2] *= 3.0
        value = float(np.linalg.svd(blocks, compute_uv=False).max())
        bound = sigma.measure(BlockDiagonal(blocks))
        assert bound.lower <= value * (1 + 1e-13)
        assert value * (1 - 1e-13) <= bound.upper <= value * (1 + WIDTH)
        assert bound.lower >= value * (1 - WIDTH)
        assert sigma.measure(Dense(BlockDiagonal(blocks).dense())).lower == pytest.approx(value, rel=1e-8)


def test_exact_where_it_can_be() -> None:
    assert sigma.measure(Dense(SMALL["permutation"])) == Bound(7.0, 7.0, Grade.PROVED, "exact")
    assert sigma.measure(Dense(np.zeros((4, 5)))).upper == 0.0
    for shape in ((0, 3), (3, 0), (0, 0)):
        assert sigma.measure(Dense(np.zeros(shape))) == Bound(0.0, 0.0, Grade.PROVED, "empty")
        assert sigma.singular_values(np.zeros(shape)).shape == (0,)
    assert sigma.measure(BlockDiagonal(np.zeros((0, 2, 2)))).upper == 0.0
    assert sigma.measure(Convolution(np.zeros((0, 3, 3, 3)), (1, 1), (1, 1))).upper == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_entries_that_are_not_finite_have_no_bound(bad: float, norm: str) -> None:
    array = np.ones((2, 2, 3))
    array[1, 0, 1] = bad
    for map in (Dense(array[1]), BlockDiagonal(array), LowRank(array[0], array[1].T), Convolution(array, (1,), (1,))):
        bound = sigma.measure(map, norm)
        assert (bound.lower, bound.upper, bound.method) == (0.0, math.inf, "not finite")
    assert math.isnan(sigma.power_estimate(Dense(array[1]), 5, 0).estimate)
    assert np.isnan(sigma.singular_values(array[1])).all()


def test_the_choice_says_why_and_refuses_unknown_names() -> None:
    dense, conv = Dense(np.ones((2, 3))), Convolution(np.ones((2, 3, 3)), (1,), (1,))
    patch = Convolution(np.ones((2, 3, 4)), (4,), (1,))
    assert [sigma.choose(m)[0].name for m in (dense, conv, patch)] == ["certificate", "fourier", "certificate"]
    assert sigma.choose(dense, "linf")[0].name == "sums"
    method, why = sigma.choose(conv, "l2", Options(method="svd"))
    assert (method.name, why) == ("fourier", "svd does not apply to Convolution in l2")
    with pytest.raises(UsageError, match="unknown method 'exact': auto, certificate"):
        sigma.measure(dense, options=Options(method="exact"))
    with pytest.raises(UsageError, match="unknown device 'tpu'"):
        sigma.measure(dense, options=Options(device="tpu"))


def test_every_method_grades_itself_and_agrees() -> None:
    matrix = np.random.default_rng(0).standard_normal((30, 20))
    made = {m.name: sigma.measure(Dense(matrix), "l2", Options(method=m.name)) for m in sigma.METHODS}
    value = float(np.linalg.svd(matrix, compute_uv=False)[0])
    for method in sigma.METHODS:
        bound = made[method.name]
        assert bound.lower <= value * (1 + 1e-12)
        assert bound.upper >= value * (1 - 1e-12) or bound.grade is Grade.ESTIMATED
        if method.fits(Dense(matrix), "l2"):
            assert bound.grade is method.grade
    assert made["svd"].upper - made["svd"].lower < 1e-11
    assert made["power"].grade is Grade.ESTIMATED and made["power"].upper < value
    assert made["power"].lower >= 0.98 * value


def test_where_no_certificate_is_had_the_svd_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise np.linalg.LinAlgError

    matrix = np.random.default_rng(0).standard_normal((9, 9))
    monkeypatch.setattr(np.linalg, "cholesky", never)
    bound = sigma.measure(Dense(matrix))
    assert (bound.grade, bound.method) == (Grade.COMPUTED, "svd (no certificate)")
    assert bound.upper == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e150, 1e-150, 1e300, 1e-310])
def test_power_is_from_below_and_converges(scale: float) -> None:
    matrix = makers.rotated(np.array([1.0, 0.5, 0.3, 0.2]), 0) * scale
    value = float(np.max(sigma.singular_values(matrix)))
    estimates = [sigma.power_estimate(Dense(matrix), k, 4) for k in (0, 1, 2, 60)]
    assert all(e.estimate <= value * (1 + 1e-6) for e in estimates)
    assert sorted(e.estimate for e in estimates) == [e.estimate for e in estimates]
    assert estimates[-1].estimate == pytest.approx(value, rel=1e-9, abs=1e-322)
    assert [e.converged for e in estimates] == [False, False, False, True]
    bound = sigma.measure(Dense(matrix), options=Options(method="power", iterations=60))
    assert value * 0.999 <= bound.lower <= value * (1 + 1e-9)


def test_power_lower_ends_hold_in_50_digits() -> None:
    """Order 4, so that 200 steps reach σ₁ to the last bit and the rounding decides."""
    with mpmath.workdps(50):
        for seed in range(20):
            matrix = np.random.default_rng(seed).standard_normal((4, 4))
            options = Options(method="power", iterations=400, seed=seed)
            assert mpmath.mpf(sigma.measure(Dense(matrix), "l2", options).lower) <= makers.exact_sigma(matrix)


def test_power_on_every_kind_of_map_and_on_nothing() -> None:
    left, right = np.random.default_rng(0).standard_normal((2, 4, 4))
    low, stack = LowRank(left, right), BlockDiagonal(np.stack([left, right]))
    for map in (low, stack):
        value = float(np.linalg.norm(map.dense(), 2))
        assert sigma.power_estimate(map, 500, 0).estimate == pytest.approx(value, rel=1e-6)
        assert sigma.measure(map, "l2", Options(method="power", iterations=500)).lower <= value * (1 + 1e-14)
    assert sigma.power_estimate(Dense(np.zeros((3, 2))), 5, 0).estimate == 0.0
    assert sigma.power_estimate(Dense(np.zeros((0, 2))), 5, 0).estimate == 0.0
    with pytest.raises(TypeError, match="Convolution.matrix"):
        sigma.power_estimate(Convolution(np.ones((2, 2, 3)), (1,), (1,)), 5, 0)


def test_the_same_seed_gives_the_same_numbers() -> None:
    matrix = Dense(np.random.default_rng(2).standard_normal((100, 90)))
    one, two = (sigma.measure(matrix, options=Options(seed=9)) for _ in range(2))
    assert one == two
    assert sigma.power_estimate(matrix, 7, 9) == sigma.power_estimate(matrix, 7, 9)
    other = sigma.measure(matrix, options=Options(seed=10))
    assert max(one.lower, other.lower) <= min(one.upper, other.upper)


def test_singular_values_at_every_scale() -> None:
    base = makers.rotated(np.array([4.0, 2.0, 1.0]), 1)
    for exponent in (-1000, -300, 0, 300, 1000):
        values = sigma.singular_values(np.ldexp(base, exponent))
        assert np.ldexp(values, -exponent) == pytest.approx([4.0, 2.0, 1.0], rel=1e-12)


@pytest.mark.parametrize("complex_", [False, True])
def test_cholesky_loses_no_more_than_is_said(complex_: bool) -> None:
    """The running LAPACK: RᴴR stays within the deficit of A, up to the product's own rounding."""
    rng = np.random.default_rng(0)
    for order in (3, 40, 200):
        square = rng.standard_normal((order, order)) + 1j * complex_ * rng.standard_normal((order, order))
        square = square if complex_ else square.real
        a = square @ square.conj().T
        a = (a + a.conj().T) / 2
        factor = np.linalg.cholesky(a).astype(np.clongdouble if complex_ else np.longdouble)
        apart = np.linalg.norm((factor @ factor.conj().T - a).astype(complex), 2)
        assert apart <= rounding.cholesky_deficit(order, float(np.trace(a).real), complex_)


def test_norms_are_outward() -> None:
    with mpmath.workdps(50):
        for seed in range(20):
            x = np.random.default_rng(seed).standard_normal(50)
            low, high = rounding.norm_enclosed(x)
            truth = mpmath.sqrt(mpmath.fsum(mpmath.mpf(v) ** 2 for v in x))
            assert low <= truth <= high <= low * (1 + 1e-12)


def test_l1_and_linf_are_sums() -> None:
    matrix = np.array([[1.0, -2.0, 3.0], [-4.0, 5.0, 0.5]])
    assert sigma.measure(Dense(matrix), "linf") == Bound(9.5, 9.5, Grade.PROVED, "sums")
    assert sigma.measure(Dense(matrix), "l1") == Bound(7.0, 7.0, Grade.PROVED, "sums")
    assert sigma.measure(BlockDiagonal(np.stack([matrix, 2 * matrix])), "l1").upper == 14.0
    tenths = sigma.measure(Dense(np.full((2, 10), 0.1)), "linf")
    assert tenths.upper == 1.0000000000000002
    assert tenths.lower == 1.0
    for scale in (1e308, 5e-324):
        bound = sigma.measure(Dense(np.full((3, 4), scale)), "linf")
        assert (bound.upper == math.inf) if scale > 1 else bound.lower <= 2e-323 <= bound.upper < 1e-270


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_l1_and_linf_of_products_and_long_rows(norm: str) -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((30, 4)), rng.standard_normal((4, 50))
    axis, order = (0, 1) if norm == "l1" else (1, np.inf)
    with mpmath.workdps(50):
        product = mpmath.matrix(left.tolist()) * mpmath.matrix(right.tolist())
        lines = product.T.tolist() if axis == 0 else product.tolist()
        truth = max(mpmath.fsum(abs(x) for x in line) for line in lines)
        assert_encloses(sigma.measure(LowRank(left, right), norm), truth, 1e-12)
    many = np.ones((3000, 3000)) / 3
    bound = sigma.measure(Dense(many), norm)
    assert bound.lower <= np.linalg.norm(many, order) <= bound.upper <= bound.lower * (1 + 1e-11)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (200, 90)])
def test_the_estimate_without_iterating_is_that_of_the_iteration(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    for steps in (0, 1, 7, 20):
        seen = sigma.survey(Dense(matrix), Options(iterations=steps, seed=3)).power
        walked = sigma.power_estimate(Dense(matrix), steps, 3)
        assert seen.estimate == pytest.approx(walked.estimate, rel=1e-12)
        assert (seen.iterations, seen.converged, seen.low_by_tenth) == (steps, walked.converged, walked.low_by_tenth)


def test_the_chance_to_end_low_is_what_is_said() -> None:
    """Over 2000 starts; the bound holds, and is not vacuous."""
    spectrum = np.concatenate([[1.0], np.full(59, 0.895)])
    starts = np.random.default_rng(0).standard_normal((2000, 60)) ** 2
    for steps in (3, 10, 20):
        low = [power.from_quadrature(spectrum**2, w, steps, 60).estimate < 0.9 for w in starts]
        chance = power.chance_low(60, steps)
        assert np.mean(low) <= chance
        assert chance < 0.03 or steps < 20
    assert power.chance_low(60, 0) == 1.0 and power.chance_low(1, 0) == 0.0


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_a_warm_start_is_what_torch_takes_for_sigma(shape: tuple[int, int]) -> None:
    module = torch.nn.Linear(shape[1], shape[0], bias=False).double()
    matrix = module.weight.detach().numpy().copy()
    normed = torch.nn.utils.spectral_norm(module, n_power_iterations=3)
    u = normed.weight_u.numpy().copy()
    normed(torch.zeros(1, shape[1], dtype=torch.float64))  # in training: three rounds from u
    seen = sigma.power_estimate(Dense(matrix), 3, 0, u)
    assert seen.estimate == pytest.approx(matrix[0, 0] / normed.weight[0, 0].item(), rel=1e-12)
    assert seen.low_by_tenth is None
    module = torch.nn.Linear(shape[1], shape[0], bias=False).double()
    matrix = module.weight.detach().numpy().copy()
    newer = torch.nn.utils.parametrizations.spectral_norm(module, n_power_iterations=3)
    v = newer.parametrizations.weight[0]._v.numpy().copy()  # its rounds begin at the other side
    seen = sigma.power_estimate(Dense(matrix.T), 3, 0, v)
    assert seen.estimate == pytest.approx(matrix[0, 0] / newer.weight[0, 0].item(), rel=1e-12)
    with pytest.raises(TypeError, match="no one start"):
        sigma.power_estimate(BlockDiagonal(matrix[None]), 3, 0, u)


@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200])
def test_lanczos_is_from_below_and_its_upper_end_hardly_ever_fails(scale: float) -> None:
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((90, 4)), rng.standard_normal((4, 150))
    maps = [Dense(rng.standard_normal((200, 150)) * scale), Dense(rng.standard_normal((80, 300)) * scale)]
    maps += [LowRank(left * scale, right), BlockDiagonal(rng.standard_normal((3, 40, 30)) * scale)]
    maps.append(Dense(makers.with_spectrum(np.r_[1.0, 1 - 1e-9, np.linspace(0, 0.99, 254)]) * scale))
    for map in maps:
        truth = sigma.measure(map)
        for seed in range(3):
            bound = sigma.measure(map, "l2", Options(method="lanczos", seed=seed))
            assert bound.grade is Grade.ESTIMATED
            assert "fails with probability 1e-12" in bound.method
            assert truth.lower * (1 - 1e-7) <= bound.lower <= truth.upper
            assert truth.lower <= bound.upper <= truth.upper * 1.03
    assert sigma.measure(Dense(np.zeros((3, 4))), "l2", Options(method="lanczos")).upper == 0.0


def test_lanczos_runs_on_any_map_and_never_proves_an_upper_end() -> None:
    conv = Convolution(np.random.default_rng(0).standard_normal((4, 3, 3, 3)), (2, 1), (1, 1)).at((9, 8), (1, 1))
    truth = float(np.linalg.norm(conv.dense(), 2))
    found = lanczos.search(conv)
    assert found.sigma == pytest.approx(truth, rel=1e-9) and truth * (1 - 1e-13) <= found.upper <= truth * 1.01
    hidden = sigma.measure(Dense(makers.hidden_from(0, 200, 0.85)), "l2", Options(method="lanczos", seed=0))
    assert hidden.upper < 0.99 and hidden.grade is Grade.ESTIMATED  # one seed is no random start


def test_the_reason_for_a_method_goes_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = Dense(np.random.default_rng(0).standard_normal((9, 9)))
    assert sigma.survey(matrix).why == "certificate: the best graded method for Dense in l2"
    assert sigma.survey(matrix, Options(method="svd")).why == "svd was asked for"
    monkeypatch.setattr(certificate, "_upper", lambda *_: math.inf)
    assert sigma.survey(matrix).why.startswith("no Cholesky factorization completed, so LAPACK's SVD stands in")


def test_options_are_values() -> None:
    assert replace(Options(), seed=1) == Options(seed=1)
