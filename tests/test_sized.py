"""Convolutions at one input size: every padding, against torch's layers, onnxruntime and dense SVDs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from snaudit import sigma
from snaudit.bound import Grade
from snaudit.linear import MODES, Convolution, Located
from snaudit.sigma import sized

LAPACK = 1e-12  # relative error allowed to the float64 SVDs that serve as truth
ANY = tuple(MODES)


def top(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix, 2))


def drawn(rng: np.random.Generator, mode: str) -> Located:
    """A convolution of any geometry at a small size; redrawn where it is not possible."""
    while True:
        axes, transposed = int(rng.integers(1, 4)), mode == "zeros" and rng.random() < 0.5
        groups, outputs, inputs = rng.integers(1, 4, 3)
        numbers = [rng.integers(1, high, axes).tolist() for high in (5 if axes < 3 else 3, (0, 24, 8, 5)[axes], 4, 4)]
        kernel, size, stride, dilation = numbers
        pads = rng.integers(0, 5, (axes, 2)).tolist()
        outside = rng.integers(0, 2, (axes, 2)).tolist() if rng.random() < 0.3 and not transposed else []
        extra = rng.integers(0, 2, axes).tolist() if transposed else []
        weight = rng.standard_normal((groups * outputs, inputs, *kernel))
        weight = np.abs(weight) if rng.random() < 0.3 else weight
        conv = Convolution(weight, tuple(stride), tuple(dilation), int(groups), transposed)
        try:
            return conv.at(size, [tuple(p) for p in pads], extra, mode, [tuple(p) for p in outside])
        except ValueError:
            continue


@pytest.mark.parametrize("mode", ANY)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_operator_is_torch_s_layer(mode: str, axes: int) -> None:
    rng = np.random.default_rng(axes)
    kind = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[axes - 1]
    for stride, dilation, groups, pad in ((1, 1, 1, 1), (2, 1, 2, 2), (3, 2, 2, 1), (2, 3, 1, 0))[: 6 - axes]:
        kernel = rng.integers(1, (0, 4, 4, 3)[axes], axes).tolist()
        size = rng.integers(*((7, 9) if axes < 3 else (4, 5)), axes).tolist()
        layer = kind(2 * groups, 2 * groups, kernel, stride, pad, dilation, groups, False, mode).double()
        weight = layer.weight.detach().numpy()
        located = Convolution(weight, (stride,) * axes, (dilation,) * axes, groups).at(size, [pad] * axes, (), mode)
        units = torch.eye(located.shape[1], dtype=torch.float64).reshape(-1, 2 * groups, *size)
        truth = layer(units).detach().reshape(len(units), -1).numpy().T
        assert located.dense() == pytest.approx(truth, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("mode", ANY)
def test_adjoints(mode: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        located = drawn(rng, mode)
        x, y = (rng.standard_normal(n) for n in located.shape[::-1])
        matrix = located.dense()
        assert located.matvec(x) == pytest.approx(matrix @ x, rel=1e-12, abs=1e-12)
        assert located.rmatvec(y) == pytest.approx(matrix.T @ y, rel=1e-12, abs=1e-12)
        assert y @ located.matvec(x) == pytest.approx(located.rmatvec(y) @ x, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("mode", ANY)
@pytest.mark.parametrize("by", ["theorem", "matrix"])
def test_the_norm_at_a_size_is_enclosed(monkeypatch: pytest.MonkeyPatch, mode: str, by: str) -> None:
    if by == "theorem":
        monkeypatch.setattr(sized, "_DENSE_ORDER", 0)
    rng = np.random.default_rng(len(mode))
    gaps = []
    for _ in range(100):
        located = drawn(rng, mode)
        truth = top(located.dense())
        bound = sigma.measure(located)
        assert bound.grade is Grade.PROVED
        assert bound.lower <= truth * (1 + LAPACK) and truth <= bound.upper * (1 + LAPACK), located
        assert bound.lower >= truth * 0.98
        if truth:
            gaps.append(bound.upper / truth - 1.0)
    assert max(gaps) <= 1e-6 or by == "theorem"
    assert np.median(gaps) <= {"zeros": 0.05, "circular": 0.2, "reflect": 0.7, "replicate": 1.6}[mode]


@pytest.mark.parametrize("taps", [[1.0, 1.0, 1.0], [-1.0, 2.0, -1.0], [1.0, 0.5, 1.0], [1.0, -3.0, 1.0]])
@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_three_symmetric_taps_are_exact(monkeypatch: pytest.MonkeyPatch, taps: list[float], size: int) -> None:
    """Toeplitz tridiagonals have eigenvalues b + 2a·cos(πj/(n+1)): what the anti-periodic grid meets."""
    monkeypatch.setattr(sized, "_DENSE_ORDER", 0)
    monkeypatch.setattr(sized, "_NEAR", 0.0)
    located = Convolution(np.array([[taps]]), (1,), (1,)).at((size,), (1,))
    truth = float(np.abs(taps[1] + 2 * taps[0] * np.cos(np.pi * np.arange(1, size + 1) / (size + 1))).max())
    bound = sigma.measure(located)
    assert truth * (1 - 1e-12) <= bound.upper
    assert bound.upper <= truth * (1 + 1e-4) or (size < 3 and taps != [1.0, 1.0, 1.0])


def test_a_wide_layer_on_a_small_map_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smooth kernel: within 0.2% of the layer itself, where all sizes together are 5% above it."""
    monkeypatch.setattr(sized, "_DENSE_ORDER", 0)
    rng = np.random.default_rng(0)
    peaked = rng.standard_normal((12, 1)) @ rng.standard_normal((1, 12))
    bump = np.array([0.5, 1.0, 0.5])
    kernel = 0.2 * rng.standard_normal((12, 12, 3, 3)) + peaked[:, :, None, None] * np.outer(bump, bump)
    conv = Convolution(kernel, (1, 1), (1, 1))
    located = conv.at((8, 8), (1, 1))
    truth, bound = top(located.dense()), sigma.measure(located)
    assert truth * (1 - LAPACK) <= bound.upper <= truth * 1.002
    assert sigma.measure(conv).upper >= truth * 1.05


@pytest.mark.parametrize("norm, axis", [("linf", 1), ("l1", 0)])
@pytest.mark.parametrize("mode", ANY)
def test_the_sums_regard_the_borders(mode: str, norm: str, axis: int) -> None:
    rng = np.random.default_rng(5)
    for _ in range(60):
        located = drawn(rng, mode)
        truth = float(np.abs(located.dense()).sum(axis=axis).max())
        bound = sigma.measure(located, norm)  # type: ignore[arg-type]
        assert bound.lower <= truth * (1 + LAPACK) and truth <= bound.upper * (1 + LAPACK)
        if not located.copies:
            assert bound.upper <= truth * (1 + LAPACK) + 1e-270


def test_scales_and_zeros() -> None:
    kernel = np.random.default_rng(0).standard_normal((3, 2, 3))
    for mode in ANY:
        base = sigma.measure(Convolution(kernel, (1,), (1,)).at((9,), (1,), (), mode))
        for exponent in (-1000, -500, 500, 1000):
            bound = sigma.measure(Convolution(np.ldexp(kernel, exponent), (1,), (1,)).at((9,), (1,), (), mode))
            assert math.ldexp(bound.upper, -exponent) == pytest.approx(base.upper, rel=1e-8)
            assert math.ldexp(bound.lower, -exponent) == pytest.approx(base.lower, rel=1e-8)
    assert sigma.measure(Convolution(0.0 * kernel, (1,), (1,)).at((9,))).upper == 0.0


def test_impossible_paddings_are_refused() -> None:
    conv = Convolution(np.ones((1, 1, 3)), (1,), (1,))
    for size, pad, mode in ((3, 3, "reflect"), (3, 4, "circular"), (3, 1, "mirror")):
        with pytest.raises(ValueError):  # noqa: PT011  three messages
            conv.at((size,), (pad,), (), mode)
    with pytest.raises(ValueError, match="transposed"):
        Convolution(np.ones((1, 1, 3)), (1,), (1,), 1, True).at((4,), (1,), (), "reflect")


def test_zeros_inside_and_outside_count_together() -> None:
    taps = np.array([-2.0, 0.0, 0.0, 0.0, 2.0])
    kernel = np.random.default_rng(0).integers(-4, 5, (1321, 1321)).astype(float)[:, :, None] * taps
    map = Convolution(kernel, (1,), (1,)).at((2,), ((2, 0),), (), "zeros", ((2, 0),))
    assert not sized._is_small(map), "the matrix would settle it"
    bound = sigma.measure(map)
    x = np.random.default_rng(1).standard_normal(map.shape[1])
    for _ in range(5):
        x = map.rmatvec(map.matvec(x))
        x /= np.linalg.norm(x)
    assert float(np.linalg.norm(map.matvec(x))) <= bound.upper


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 2)])
def test_taps_that_meet_nothing_do_not_count(size: tuple[int, int]) -> None:
    """On an input smaller than the kernel most taps see padding only: huge ones there change nothing."""
    rng = np.random.default_rng(3)
    for stride, dilation in ((1, 1), (2, 1), (1, 3), (3, 2)):
        kernel = rng.standard_normal((4, 3, 7, 5))
        pads = tuple((dilation * (k - 1), dilation * (k - 1)) for k in (7, 5))
        conv = Convolution(kernel, (stride,) * 2, (dilation,) * 2)
        whole, reduced = conv.at(size, pads), conv.at(size, pads).without_idle_taps()
        assert np.array_equal(whole.dense(), reduced.dense())
    kernel = rng.standard_normal((40, 40, 3, 3))
    kernel[:, :, [0, 0, 2, 2], [0, 2, 0, 2]] *= 1e6
    bound = sigma.measure(Convolution(kernel, (1, 1), (1, 1)).at((1, 1), (1, 1)))
    assert bound.upper <= np.linalg.norm(kernel[:, :, 1, 1], 2) * (1 + 1e-8)


def test_trimmed_kernels_keep_their_norm() -> None:
    rng = np.random.default_rng(4)
    for stride in (1, 2, 3):
        kernel = np.zeros((3, 2, 9))
        kernel[:, :, 3:6] = rng.standard_normal((3, 2, 3))
        conv = Convolution(kernel, (stride,), (1,))
        assert conv.trimmed().kernel.shape == (3, 2, 3)
        dense = np.linalg.norm(conv.at((60,), (8,)).dense(), 2)
        bound = sigma.measure(conv)
        assert dense <= bound.upper <= dense * 1.01
