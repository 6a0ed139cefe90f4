"""Convolutions: the operator at a size against onnxruntime, the norm over all sizes against two truths."""

from __future__ import annotations

import math

import makers
import mpmath
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snaudit import sigma
from snaudit.bound import Bound, Grade
from snaudit.factorizing import completes
from snaudit.linear import Convolution, Dense, Located
from snaudit.sigma import fourier
from snaudit.sigma.interface import Options
from snaudit.sigma.search import Search
from snaudit.symbol import hermitian, images, symbol_of, taps_first, witness_down

LAPACK = 1e-12  # relative error allowed to the float64 SVDs that serve as truth
geometries = pytest.mark.parametrize("geometry", makers.GEOMETRIES, ids=makers.name_of)
SIZES = {1: ((15,), (24,)), 2: ((7, 8),), 3: ((4, 5, 5),)}


def columns_of(located: Located) -> np.ndarray:
    """The operator's matrix by onnxruntime: each unit vector through Conv or ConvTranspose."""
    c = located.convolution
    pads = [p[0] for p in located.padding] + [p[1] for p in located.padding]
    attributes = {"strides": c.stride, "dilations": c.dilation, "group": c.groups, "pads": pads}
    channels = c.kernel.shape[0] if c.transposed else c.kernel.shape[1] * c.groups
    units = np.eye(channels * math.prod(located.size), dtype=np.float32).reshape(-1, channels, *located.size)
    if c.transposed:
        attributes["output_padding"] = located.output_padding
    node = onnx.helper.make_node("ConvTranspose" if c.transposed else "Conv", ["x", "w"], ["y"], **attributes)
    real = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info(n, real, a.shape) for n, a in (("x", units), ("w", c.kernel))],
        [onnx.helper.make_tensor_value_info("y", real, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (images,) = session.run(None, {"x": units, "w": c.kernel.astype(np.float32)})
    assert images.shape[2:] == located.output_size
    return images.reshape(len(units), -1).T.astype(np.float64)


def top(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix, 2))


@geometries
@pytest.mark.parametrize("padding", [(1, 2), (0, 0)])
def test_the_operator_at_a_size_is_the_one_that_runs(geometry: tuple, padding: tuple[int, int]) -> None:
    conv = makers.convolution(geometry)
    size = SIZES[conv.axes][0]
    located = conv.at(size, [padding] * conv.axes, [s - 1 for s in conv.stride] if conv.transposed else ())
    matrix = columns_of(located)
    assert located.shape == matrix.shape
    assert np.array_equal(located.dense(), matrix)
    y = np.random.default_rng(0).standard_normal(matrix.shape[0])
    assert located.rmatvec(y) == pytest.approx(matrix.T @ y, rel=1e-12, abs=1e-12)


@geometries
@pytest.mark.parametrize("rtol", [1e-2, 1e-5])
def test_the_norm_over_all_sizes_is_enclosed(geometry: tuple, rtol: float) -> None:
    conv = makers.convolution(geometry, seed=1)
    bound = sigma.measure(conv, options=Options(rtol=rtol))
    below, above = makers.aliased_sup(conv, {1: 4096, 2: 120, 3: 26}[conv.axes])
    assert bound.grade is Grade.PROVED
    assert below * (1 - LAPACK) <= bound.upper
    assert bound.lower <= above * (1 + LAPACK)
    assert bound.upper <= bound.lower * (1 + rtol)
    assert bound.upper <= above * (1 + rtol)


@geometries
def test_every_size_stays_below_and_large_ones_come_near(geometry: tuple) -> None:
    conv = makers.convolution(geometry, seed=2)
    upper = sigma.measure(conv).upper
    for size in SIZES[conv.axes]:
        for padding in (0, 1, (3, 0)):
            assert top(conv.at(size, [padding] * conv.axes).dense()) <= upper * (1 + LAPACK)
    if conv.axes == 1:
        degree = conv.dilation[0] * (conv.kernel.shape[2] - 1) / conv.stride[0]
        long = conv.at((400 if not conv.transposed else 200,), [conv.kernel.shape[2] - 1])
        reached = top(long.dense())
        assert upper <= reached * (1.001 + (math.pi * degree / min(long.size[0], long.output_size[0])) ** 2)


@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-6])
@pytest.mark.parametrize("stride", [1, 2])
def test_positive_kernels_have_a_known_norm(stride: int, rtol: float) -> None:
    """A depthwise blur: sup at ω = 0, √Σ_ρ(Σ_q w[s·q+ρ])² over phases ρ: the ends are held to `rtol` itself."""
    kernel = np.random.default_rng(0).uniform(0.5, 1.5, (8, 1, 3, 3))
    conv = Convolution(kernel, (stride, stride), (1, 1), 8)
    phases = [kernel[:, 0, i::stride, j::stride].sum(axis=(1, 2)) for i in range(stride) for j in range(stride)]
    truth = float(np.sqrt(np.sum(np.square(phases), axis=0)).max())
    bound = sigma.measure(conv, options=Options(rtol=rtol))
    assert bound.lower <= truth * (1 + LAPACK)
    assert truth * (1 - LAPACK) <= bound.upper <= truth * (1 + rtol)
    assert bound.lower >= truth * (1 - rtol)
    naive = float(np.linalg.norm(conv.matrix().dense(), 2))
    assert sigma.measure(conv.matrix()).upper == pytest.approx(naive, rel=1e-8)


def test_the_extremal_polynomial_of_riesz_lemma() -> None:
    """(1 + z^m)/2: |p| = |cos(mω/2)| attains the grid's factor; its norm is 1, reached at ω = 0."""
    for taps in (2, 3, 9, 40):
        kernel = np.zeros((1, 1, taps))
        kernel[0, 0, [0, -1]] = 0.5
        for sign in (1.0, -1.0):
            kernel[0, 0, -1] = 0.5 * sign
            bound = sigma.measure(Convolution(kernel, (1,), (1,)), options=Options(rtol=1e-4))
            assert bound.lower <= 1.0 <= bound.upper <= 1.0 + 1e-4


def test_a_flat_symbol_where_no_cell_can_be_dropped() -> None:
    """An orthogonal shift: ‖F(ω)‖ = 1 everywhere, so the grid alone must carry the proof."""
    kernel = np.zeros((6, 6, 3, 3))
    kernel[:3, :, 1, 1], kernel[3:, :, 2, 0] = np.split(np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0], 2)
    bound = sigma.measure(Convolution(kernel, (1, 1), (1, 1)))
    assert bound.lower <= 1 + 1e-12
    assert 1 - 1e-12 <= bound.upper <= 1 + 1e-3
    assert "grid" in bound.method


def no_climb(self: Search, group: int, point: np.ndarray, modulus: np.ndarray) -> float:
    """Sees nothing at all."""
    return 0.0


def one_step(self: Search, group: int, point: np.ndarray, modulus: np.ndarray) -> float:
    """Sees the frequency that it is sent to, and does not move on."""
    h = hermitian(self.symbol, np.array([group]), point[None], modulus)[0]
    values, vectors = np.linalg.eigh(h)
    u = vectors[:, -1].astype(complex)
    seen = witness_down(self.symbol, point, modulus, u, images(self.symbol, group, u))
    self.lower = max(self.lower, seen)
    return float(values[-1])


@pytest.mark.parametrize("climb", [no_climb, one_step])
@pytest.mark.parametrize("budget", [0.0, 3.0, None], ids=["grid", "branch", "unlimited"])
def test_the_upper_end_does_not_rest_on_finding_the_peak(
    monkeypatch: pytest.MonkeyPatch, budget: float | None, climb: object
) -> None:
    """With a search that neither climbs nor ranks, the inflation from the grid alone carries the proof."""
    monkeypatch.setattr(Search, "climb", climb)
    monkeypatch.setattr(Search, "estimates", lambda self, groups, points, modulus: np.zeros(len(groups)))
    sines = np.zeros((1, 1, 8))
    sines[0, 0, [0, -1]] = 0.5, -0.5  # |sin(7ω/2)|: its peaks lie off most grids
    assert sigma.measure(Convolution(sines, (1,), (1,)), options=Options(rtol=0.2, budget=budget)).upper >= 1.0
    for seed in range(12):
        conv = makers.convolution((((1, 1, 4, 4), (1, 1), (1, 1), 1, False), makers.GEOMETRIES[0])[seed % 2], seed)
        below, _ = makers.aliased_sup(conv, 100)
        for rtol in (0.3, 0.1, 0.03):
            assert sigma.measure(conv, options=Options(rtol=rtol, budget=budget)).upper >= below * (1 - LAPACK)


def test_the_inflation_is_needed_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """|cos(mω/2)| peaks midway between the points of a grid of 3m: there |p| = cos(π/6), times 1/cos(π/6)."""
    monkeypatch.setattr(Search, "climb", one_step)
    for m in (2, 4, 8):
        monkeypatch.setattr(fourier, "_grid_sizes", lambda degree, width: 3 * degree)
        cosines = np.zeros((1, 1, 1, m + 1))
        cosines[..., 0], cosines[..., -1] = 0.5, 0.5
        kernels, kept = taps_first(cosines, 0)
        search = Search(symbol_of(kernels, kept), kept, 1e-6, 0)
        upper, how = fourier._grid(search, 1e-6)
        assert 1.0 <= upper <= 1.0 + 1e-5
        assert how == f"grid {3 * m}"


def test_a_narrow_peak_between_the_coarse_points() -> None:
    """High degree, one sharp maximum at a frequency that no grid holds, in one group of many."""
    rng = np.random.default_rng(4)
    kernel = 0.02 * rng.standard_normal((32, 1, 65))
    kernel[17, 0] = np.cos(1.2345678 * np.arange(65)) / 32.5
    bound = sigma.measure(Convolution(kernel, (1,), (1,), 32))
    omega = 1.2345678 + np.linspace(-0.01, 0.01, 4001)
    truth = float(np.abs(np.exp(1j * omega[:, None] * np.arange(65)) @ kernel[17, 0]).max())
    assert truth * (1 - 1e-12) <= bound.upper <= truth * 1.001
    assert bound.lower >= truth * 0.999


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    axes = draw(st.integers(1, 2))
    small = st.integers(1, 3)
    groups = draw(small)
    kernel = (groups * draw(small), draw(small), *(draw(st.integers(1, 4)) for _ in range(axes)))
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(-2, 3, kernel).astype(float)
    stride, dilation = (tuple(draw(small) for _ in range(axes)) for _ in range(2))
    return Convolution(values, stride, dilation, groups, draw(st.booleans()))


@given(convolutions())
@settings(max_examples=80, deadline=None)
def test_whatever_the_attributes(conv: Convolution) -> None:
    """Sound at a size, tight against the aliased truth; l1 and linf exact once the input is large."""
    bound = sigma.measure(conv, options=Options(rtol=1e-2))
    below, above = makers.aliased_sup(conv, 512 if conv.axes == 1 else 48)
    assert below * (1 - LAPACK) <= bound.upper <= (above + 1e-300) * 1.01
    assert bound.lower <= above * (1 + LAPACK)
    matrix = conv.at((14,) if conv.axes == 1 else (11, 11), [(12, 12)] * conv.axes if not conv.transposed else ()).dense()
    assert top(matrix) <= bound.upper * (1 + LAPACK)
    for norm, axis in (("linf", 1), ("l1", 0)):
        sums = sigma.measure(conv, norm)
        assert sums.lower == sums.upper >= np.abs(matrix).sum(axis=axis).max()


@geometries
def test_l1_and_linf_are_reached_by_a_large_input(geometry: tuple) -> None:
    conv = makers.convolution(geometry, seed=3)
    reach = [d * (k - 1) + 1 for k, d in zip(conv.kernel.shape[2:], conv.dilation, strict=True)]
    if conv.transposed:
        located = conv.at([-(-r // s) + s + 1 for r, s in zip(reach, conv.stride, strict=True)])
    else:
        located = conv.at([r + s for r, s in zip(reach, conv.stride, strict=True)], [(r, r) for r in reach])
    matrix = np.abs(located.dense())
    for norm, axis in (("linf", 1), ("l1", 0)):
        bound = sigma.measure(conv, norm)
        assert bound.grade is Grade.PROVED
        truth = max(math.fsum(line) for line in np.moveaxis(matrix, axis, 1))
        assert bound.lower <= truth * (1 + 1e-15)
        assert truth <= bound.upper <= truth * (1 + 1e-15)


def test_a_constant_symbol_is_a_matrix_problem() -> None:
    """1×1, and patches with k = s: σ of the reshaped kernel, to the certificate's width."""
    rng = np.random.default_rng(0)
    for shape, stride in (((5, 4, 1, 1), 1), ((5, 3, 4, 4), 4), ((5, 3, 2, 2), 3), ((5, 3, 4, 4), 8)):
        conv = Convolution(rng.standard_normal(shape), (stride, stride), (1, 1))
        bound = sigma.measure(conv)
        assert bound.method == "certificate"
        with mpmath.workdps(40):
            truth = makers.exact_sigma(conv.matrix().dense())
            assert bound.lower <= truth <= bound.upper <= truth * (1 + 1e-8)


def test_stride_one_in_one_group_bounds_every_geometry() -> None:
    """What a bare checkpoint leaves open: each stride, dilation, grouping, direction lies below."""
    kernel = np.random.default_rng(0).standard_normal((4, 2, 3, 4))
    bare = sigma.measure(Convolution(kernel, (1, 1), (1, 1))).upper
    for stride in ((1, 1), (2, 1), (2, 2), (3, 4)):
        for dilation in ((1, 1), (2, 1), (2, 3)):
            for groups in (1, 2, 4):
                for transposed in (False, True):
                    other = sigma.measure(Convolution(kernel, stride, dilation, groups, transposed))
                    assert other.lower <= bare


def test_scales_and_zeros() -> None:
    kernel = np.random.default_rng(0).standard_normal((3, 2, 3))
    base = sigma.measure(Convolution(kernel, (1,), (1,)))
    for exponent in (-1000, -500, 500, 1000):
        bound = sigma.measure(Convolution(np.ldexp(kernel, exponent), (1,), (1,)))
        assert math.ldexp(bound.upper, -exponent) == pytest.approx(base.upper, rel=1e-3)
        assert math.ldexp(bound.lower, -exponent) <= base.upper
    assert sigma.measure(Convolution(np.zeros((3, 2, 3)), (1,), (1,))) == Bound(0.0, 0.0, Grade.PROVED, "exact")
    spread = kernel * 10.0 ** -np.arange(0, 90, 5).reshape(kernel.shape)
    below, above = makers.aliased_sup(Convolution(spread, (1,), (1,)), 2048)
    bound = sigma.measure(Convolution(spread, (1,), (1,)))
    assert below * (1 - LAPACK) <= bound.upper <= above * 1.001


@pytest.mark.parametrize("shape", [(1, 2, 3, 5), (2, 3, 2, 3, 2), (1, 4, 3, 2, 2, 3), (2, 5, 2, 7)])
def test_the_symbol_and_its_error_against_50_digits(shape: tuple[int, ...]) -> None:
    """‖computed H(ω) − H(ω)‖ ≤ lost, witnesses at most ‖F(ω)ᴴu‖/‖u‖, in exact arithmetic on the floats."""
    rng = np.random.default_rng(0)
    kernels = rng.standard_normal(shape)
    tables, kept = taps_first(kernels, 0)
    axes = len(shape) - 3
    modulus = np.array([7, 30, 1 << 30][:axes])
    for single in (False, True):
        symbol = symbol_of(tables, kept, single)
        with mpmath.workdps(50):
            for _ in range(3):
                point = rng.integers(0, modulus)
                h = np.tril(hermitian(symbol, np.array([0]), point[None], modulus)[0]).astype(complex)
                h += np.tril(h, -1).conj().T
                f = mpmath.zeros(*tables.shape[2:])
                for q, tap in enumerate(symbol.taps):
                    turn = mpmath.fsum(mpmath.mpf(int(j * t)) / int(n) for j, t, n in zip(point, tap, modulus, strict=True))
                    f += mpmath.expjpi(2 * turn) * mpmath.matrix(tables[0, q].tolist())
                error = mpmath.norm(f * f.H - mpmath.matrix(h.tolist()))
                assert error <= symbol.lost
                assert single == (error > 1e-9)
                u = rng.standard_normal(len(h)) + 1j * rng.standard_normal(len(h))
                exact_u = mpmath.matrix(u.tolist())
                quotient = mpmath.norm(f.H * exact_u) / mpmath.norm(exact_u)
                seen = witness_down(symbol, point, modulus, u, images(symbol, 0, u))
                assert seen <= quotient <= seen * (1 + 1e-12)
        assert symbol.lost < (1e-5 if single else 1e-13) * symbol.kappa**2


@pytest.mark.parametrize("order", [17, 65, 100, 192])
@pytest.mark.parametrize("kind", [np.complex64, np.complex128])
def test_a_factorization_that_completes_proves_what_it_says(order: int, kind: type) -> None:
    """Matrices with λmin a little below zero: none that completes lies lower than the loss says."""
    rng = np.random.default_rng(order)
    unit = 2.0**-24 if kind is np.complex64 else 2.0**-53
    completed_below_zero = 0
    for spread in (1.0, 1e-3, 1e-6):
        q = np.linalg.qr(rng.standard_normal((order, order)) + 1j * rng.standard_normal((order, order)))[0]
        for deep in (-1e4, -100.0, -10.0, -1.0, 0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 1e4):
            values = np.geomspace(spread, 1.0, order)
            values[0] = -deep * unit
            h = (0.5 * np.eye(order) - (q * values) @ q.conj().T).astype(kind)
            exact = 0.5 * np.eye(order) - np.tril(h).astype(complex)
            exact = np.tril(exact) + np.tril(exact, -1).conj().T
            depth = -float(np.linalg.eigvalsh(exact)[0])
            done, lost = completes(np.stack([h, h]), 0.5)
            assert done[0] == done[1]
            assert not done[0] or depth <= lost + 1e-14
            assert done[0] or deep >= -100.0
            assert lost <= 1e3 * order * unit
            completed_below_zero += bool(done[0] and depth > 0.0)
    if kind is np.complex64 and order > 64:
        assert completed_below_zero


@pytest.mark.parametrize("name", ["random", "orthogonal", "one rank", "huge tap", "graded", "peak between"])
def test_single_precision_encloses_wide_layers(name: str) -> None:
    """Orders that are factorized in single precision, against a fine grid of float64 SVDs."""
    rng = np.random.default_rng(3)
    kernel = rng.standard_normal((72, 72, 3))
    if name == "orthogonal":
        kernel = np.zeros((72, 72, 3))
        kernel[:36, :, 0], kernel[36:, :, 2] = np.split(np.linalg.qr(rng.standard_normal((72, 72)))[0], 2)
    elif name == "one rank":
        kernel = np.multiply.outer(np.outer(rng.standard_normal(72), rng.standard_normal(72)), [1.0, -2.0, 0.5])
        kernel += 1e-7 * rng.standard_normal(kernel.shape)
    elif name == "huge tap":
        kernel[5, 7, 1] = 1e6
    elif name == "graded":
        kernel *= np.geomspace(1.0, 1e-12, 72)[:, None, None] * 1e-150
    elif name == "peak between":
        turns = np.cos(1.2345 * np.arange(3))
        kernel = 0.01 * kernel + np.multiply.outer(np.linalg.qr(rng.standard_normal((72, 72)))[0], turns)
    conv = Convolution(kernel, (1,), (1,))
    omega = np.linspace(0.0, math.pi, 301)
    stack = np.einsum("oiq,wq->woi", kernel, np.exp(1j * omega[:, None] * np.arange(3)))
    truth = float(np.linalg.norm(stack, 2, axis=(1, 2)).max())
    for rtol in (0.1, 0.01, 1e-3, 1e-7):
        bound = sigma.measure(conv, options=Options(rtol=rtol, budget=None if rtol > 1e-4 else 0.05))
        assert truth * (1 - LAPACK) <= bound.upper
        assert bound.lower <= truth * 1.0001
        if rtol > 1e-4:
            assert bound.upper <= bound.lower * (1 + rtol)


def test_a_wide_layer_ends_within_its_work_cap() -> None:
    """192→192 3×3, random and so flat: the cap widens the enclosure, never past 2%, and it stays sound."""
    kernel = np.random.default_rng(0).standard_normal((192, 192, 3, 3))
    bound = sigma.measure(Convolution(kernel, (1, 1), (1, 1)), options=Options(rtol=1e-4))
    assert bound.lower < bound.upper <= bound.lower * 1.02
    transform = np.fft.fft2(kernel[::-1], s=(9, 9), axes=(2, 3)).transpose(2, 3, 0, 1)[:5]
    seen = float(np.linalg.norm(transform, 2, axis=(2, 3)).max())
    assert seen * (1 - LAPACK) <= bound.upper <= seen * 1.1


def test_wrong_geometries_are_refused() -> None:
    kernel = np.ones((4, 2, 3))
    for stride, dilation, groups in (((1, 1), (1,), 1), ((0,), (1,), 1), ((1,), (1,), 3), ((1,), (0,), 1)):
        with pytest.raises(ValueError, match="stride"):
            Convolution(kernel, stride, dilation, groups)
    conv = Convolution(kernel, (1,), (1,), 2)
    with pytest.raises(ValueError, match="leaves an output"):
        conv.at((2,))
    with pytest.raises(ValueError, match="negative padding"):
        conv.at((5,), [(-1, 0)])
    assert isinstance(conv.matrix(), Dense)
    assert conv.matrix().shape == (4, 6)
