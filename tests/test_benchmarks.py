"""The benchmarks' rivals are what their papers say, and their truth is one: else every ratio is idle."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import mpmath
import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).parent.parent


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("rivals")


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("sides")


def dense(kernel: np.ndarray, n: int, dilation: int, circular: bool) -> np.ndarray:
    """The stride-1 convolution of an n×n input, entry by entry: outputs where the input is, or zero."""
    outputs, inputs, *taps = kernel.shape
    matrix = np.zeros((outputs, n, n, inputs, n, n))
    for y, x, s, t in itertools.product(range(n), range(n), range(taps[0]), range(taps[1])):
        v, u = y + dilation * s, x + dilation * t
        if circular or max(v, u) < n:
            matrix[:, y, x, :, v % n, u % n] += kernel[:, :, s, t]
    return matrix.reshape(outputs * n * n, inputs * n * n)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (4, 2, 2, 3)])
def test_the_grid_is_exact_for_circular_padding_and_iteration_reaches_it(rivals, shape, dilation) -> None:
    kernel = np.random.default_rng(sum(shape)).standard_normal(shape)
    layer = rivals.Layer("", kernel, (5, 5), dilation=(dilation, dilation))
    true = np.linalg.norm(dense(kernel, 5, dilation, circular=True), 2)
    assert rivals.fourier_grid(layer) == pytest.approx(true, rel=1e-12)
    assert true <= rivals.gram_circular(layer, steps=12) * (1 + 1e-12) <= true * 1.001


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (4, 2, 2, 3)])
def test_the_published_bounds_hold_and_are_not_vacuous(rivals, shape) -> None:
    kernel = np.random.default_rng(sum(shape)).standard_normal(shape)
    layer = rivals.Layer("", kernel, (8, 8))
    true = np.linalg.norm(dense(kernel, 12, 1, circular=False), 2)
    iterated = [rivals.gram_zero_padded(layer, steps) for steps in (1, 3, 5)]
    assert true <= iterated[2] <= iterated[1] <= iterated[0] and iterated[2] <= true * 1.1
    bounds = rivals.four_bounds(layer), rivals.scaled_naive(layer)
    assert true <= bounds[0] <= bounds[1] <= true * np.sqrt(shape[2] * shape[3]) * 1.1
    assert rivals.naive(layer) == pytest.approx(np.linalg.norm(kernel.reshape(len(kernel), -1), 2))


def test_groups_are_maximised(rivals) -> None:
    kernel = np.random.default_rng(3).standard_normal((6, 2, 3, 3))
    whole = rivals.Layer("", kernel, (6, 6), groups=3)
    parts = [rivals.Layer("", kernel[2 * g : 2 * g + 2], (6, 6)) for g in range(3)]
    for way in (rivals.four_bounds, rivals.fourier_grid, rivals.gram_circular, rivals.gram_zero_padded):
        assert way(whole) == pytest.approx(max(way(part) for part in parts), rel=0.02)


def test_the_truth_has_more_digits_than_float64(sides, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    weights = {"tall": rng.standard_normal((9, 5)), "wide": rng.standard_normal((4, 2, 3))}
    weights["zero"] = np.zeros((2, 2))
    weights = {name: weight.astype(np.float32) for name, weight in weights.items()}
    path = tmp_path / "m.safetensors"
    save_file(weights, path)
    found = sides.reference(path)
    assert found["zero"][:2] == [0.0, 0.0]
    for name in ("tall", "wide"):
        matrix = weights[name].reshape(len(weights[name]), -1).astype(float)
        with mpmath.workdps(40):
            true = max(mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False))
            value = mpmath.mpf(found[name][0]) + mpmath.mpf(found[name][1])
            assert abs(value - true) <= true * mpmath.mpf(2) ** -60
        assert found[name][3:] == list(matrix.shape)


def test_the_page_has_a_place_for_every_section() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for section in ("matrices", "convolutions", "memory", "startup"):
        assert page.count(f"<!-- {section}: begin -->") == page.count(f"<!-- {section}: end -->") == 1
