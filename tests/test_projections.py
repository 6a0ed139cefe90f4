"""Clipping: the nearest matrix under the cap, kernels that keep their support, and files that keep both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_constrain import CAP, CASES, arrays, save
from torch import nn
from torch.nn.utils import parametrizations

import snaudit
from snaudit import projections, sigma
from snaudit.errors import ConstraintError, UsageError
from snaudit.linear import BlockDiagonal, Convolution, Dense, LowRank

RNG = np.random.default_rng(7)


def clipped(matrix: np.ndarray, cap: float) -> np.ndarray:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u * np.minimum(s, cap)) @ vh


@pytest.mark.parametrize("shape", [(7, 7), (30, 5), (5, 30), (1, 9), (9, 1)])
@pytest.mark.parametrize("size", [1.0, 1e-140, 1e140])
def test_a_clip_is_the_projection(shape: tuple[int, int], size: float) -> None:
    matrix = RNG.standard_normal(shape) * size
    top = np.linalg.norm(matrix / size, 2) * size
    for cap in (0.3 * top, 0.9 * top, 1e-9 * top):
        got = projections.bring_under(Dense(matrix), cap, "clip").dense()
        assert np.abs(got / size - clipped(matrix / size, cap / size)).max() <= 1e-12 * top / size
    assert projections.bring_under(Dense(matrix), 1.01 * top, "clip").dense() is not None
    assert np.array_equal(projections.bring_under(Dense(matrix), 1.01 * top, "clip").dense(), matrix)


def test_soft_is_its_formula() -> None:
    matrix = RNG.standard_normal((12, 9))
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    got = projections.bring_under(Dense(matrix), 2.0, "soft").dense()
    assert np.abs(got - (u * (s / (1 + (s / 2.0) ** 4) ** 0.25)) @ vh).max() < 1e-12


def test_stacks_and_products() -> None:
    blocks = RNG.standard_normal((3, 6, 4))
    got = projections.bring_under(BlockDiagonal(blocks), 1.5, "clip")
    assert isinstance(got, BlockDiagonal)
    assert np.abs(got.blocks - np.stack([clipped(block, 1.5) for block in blocks])).max() < 1e-12
    pair = LowRank(RNG.standard_normal((20, 3)), RNG.standard_normal((3, 11)))
    near = projections.bring_under(pair, 4.0, "clip")
    assert isinstance(near, LowRank) and near.left.shape == (20, 3)
    assert np.abs(near.dense() - clipped(pair.dense(), 4.0)).max() < 1e-11


KERNELS = {
    "3x3": Convolution(RNG.standard_normal((8, 6, 3, 3)), (1, 1), (1, 1)),
    "strided": Convolution(RNG.standard_normal((8, 4, 5, 3)), (2, 2), (1, 1)),
    "strided and dilated": Convolution(RNG.standard_normal((4, 4, 3)), (2,), (3,)),
    "grouped": Convolution(RNG.standard_normal((8, 2, 3, 3)), (1, 1), (1, 1), 4),
    "depthwise": Convolution(RNG.standard_normal((9, 1, 3, 3)), (1, 1), (2, 2), 9),
    "transposed": Convolution(RNG.standard_normal((6, 4, 4, 4)), (2, 2), (1, 1), 1, True),
    "1-D": Convolution(RNG.standard_normal((6, 6, 7)), (1,), (1,)),
    "3-D": Convolution(RNG.standard_normal((3, 4, 2, 3, 2)), (1, 2, 1), (1, 1, 1)),
    "patches": Convolution(RNG.standard_normal((6, 3, 4, 4)), (4, 4), (1, 1)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_clipped_kernel_moves_less_than_a_scaled_one(name: str) -> None:
    """The clip, with the scale that its certificate still asks for, against the scale alone."""
    conv = KERNELS[name]
    cap = sigma.measure(conv).upper / 2
    assert np.array_equal(projections.bring_under(conv, 100 * cap, "clip").kernel, conv.kernel) or np.allclose(
        projections.bring_under(conv, 100 * cap, "clip").kernel, conv.kernel, atol=1e-13
    )
    near = projections.bring_under(conv, cap, "clip")
    assert near.kernel.shape == conv.kernel.shape and near.stride == conv.stride
    after = sigma.measure(near).upper
    assert after <= 1.12 * cap, "what is left over the cap is little"
    moved = np.linalg.norm(near.kernel * min(1.0, cap / after) - conv.kernel) / np.linalg.norm(conv.kernel)
    assert moved < 0.45 < 0.5, "a scale to half moves a kernel by half of itself"


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("how", ["clip", "soft"])
def test_the_cap_holds_on_disk_and_twice_is_once(tmp_path: Path, name, dtype, how) -> None:
    path = save(tmp_path, name, dtype)
    outcome = snaudit.constrain(path, max_sigma=CAP, how=how)
    plain = snaudit.constrain(path, tmp_path / f"scaled{path.suffix}", max_sigma=CAP)
    assert any(change.changed for change in outcome.changes)
    for layer in snaudit.audit(outcome.target).layers:
        assert layer.norm.upper <= CAP
    for change, scaled in zip(outcome.changes, plain.changes, strict=True):
        assert change.changed == scaled.changed
        if dtype is torch.float32 and how == "clip" and change.name != "small.weight":
            assert change.relative_change <= scaled.relative_change * 1.0001
    old, new = arrays(path), arrays(Path(outcome.target))
    for key in ("a.bias", "b", "small.weight", "steps"):
        if key in old:
            assert old[key].tobytes() == new[key].tobytes()
    again = snaudit.constrain(outcome.target, tmp_path / f"again{path.suffix}", max_sigma=CAP, how=how)
    assert not any(change.changed for change in again.changes)


def test_normed_and_packed_modules_hold_the_clipped_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def build() -> nn.ModuleDict:
        return nn.ModuleDict(
            {
                "wn": parametrizations.weight_norm(nn.Linear(6, 5)),
                "sn": parametrizations.spectral_norm(nn.Linear(5, 4)),
                "attention": nn.MultiheadAttention(8, 2),
            }
        )

    modules = build()
    path = tmp_path / "m.pt"
    torch.save(modules.state_dict(), path)
    before = {k: modules[k].weight.detach().double().numpy() for k in ("wn",)}
    snaudit.constrain(path, max_sigma=0.4, how="clip")
    other = build()
    other.load_state_dict(torch.load(tmp_path / "m.constrained.pt", weights_only=True))
    other.eval()
    for name in ("wn", "sn"):
        assert abs(np.linalg.norm(other[name].weight.detach().double().numpy(), 2) - 0.4) < 1e-5
    assert np.abs(other["wn"].weight.detach().double().numpy() - clipped(before["wn"], 0.4)).max() < 1e-6
    packed = modules["attention"].in_proj_weight.detach().double().numpy()
    new = other["attention"].in_proj_weight.detach().double().numpy()
    for start in (0, 8, 16):
        assert np.abs(new[start : start + 8] - clipped(packed[start : start + 8], 0.4)).max() < 1e-6


def test_what_cannot_be_clipped_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.eye(3)}, tmp_path / "m.pt")
    with pytest.raises(UsageError, match="one of"):
        snaudit.constrain(tmp_path / "m.pt", how="clop")
    with pytest.raises(UsageError, match="normalize"):
        snaudit.constrain(tmp_path / "m.pt", how="clip", normalize=True)
    pair = {"c.lora_up.weight": torch.randn(6, 2, 1, 1), "c.lora_down.weight": torch.randn(2, 4, 3, 3)}
    torch.save(pair, tmp_path / "lora.pt")
    with pytest.raises(ConstraintError, match="scale"):
        snaudit.constrain(tmp_path / "lora.pt", max_sigma=0.1, how="clip")
    assert not (tmp_path / "lora.constrained.pt").exists()
