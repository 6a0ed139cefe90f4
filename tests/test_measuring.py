"""What lies between a stored weight and its bound: unknown geometry, a node's own factor, weights
that are computed from others and rounded on the way."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import snaudit
from snaudit.bound import Grade


def norm_of(jacobian: np.ndarray, norm: str) -> float:
    order = {"l2": 2, "l1": 1, "linf": np.inf}[norm]
    return float(np.linalg.norm(jacobian, order))


def jacobian_of(apply, shape: tuple[int, ...]) -> np.ndarray:
    basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    return torch.stack([apply(row[None]).reshape(-1) for row in basis], dim=1).numpy()


READINGS = [
    (lambda x, w: torch.nn.functional.conv2d(x, w, padding=2), (3, 7, 7)),
    (lambda x, w: torch.nn.functional.conv2d(x, w, stride=2, padding=1), (3, 9, 8)),
    (lambda x, w: torch.nn.functional.conv2d(x, w, dilation=2, padding=3), (3, 9, 8)),
    (lambda x, w: torch.nn.functional.conv2d(x, w, groups=2, padding=1), (6, 6, 6)),
    (lambda x, w: torch.nn.functional.conv_transpose2d(x, w, stride=1), (4, 6, 6)),
    (lambda x, w: torch.nn.functional.conv_transpose2d(x, w, stride=2, groups=2, padding=1), (4, 5, 6)),
]


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
def test_a_bare_kernel_is_bounded_for_every_reading_of_it(tmp_path: Path, norm: str) -> None:
    generator = torch.Generator().manual_seed(4)
    for index, kernel in enumerate((torch.randn(4, 3, 3, 3, generator=generator), torch.ones(4, 3, 3, 3))):
        path = tmp_path / f"{index}.pt"
        torch.save({"w": kernel}, path)
        (layer,) = snaudit.audit(path, norm=norm).layers
        truths = [norm_of(jacobian_of(lambda x, a=apply: a(x, kernel.double()), size), norm) for apply, size in READINGS]
        assert max(truths) <= layer.norm.upper * (1 + 1e-9)
        assert layer.norm.lower <= min(truths) * (1 + 1e-9), "the lower end holds for each of them, too"
        assert layer.norm.upper <= max(truths) * (1.6 if norm == "l2" else 2.1)


@pytest.mark.parametrize("alpha", [5.0, -0.5])
def test_the_factor_of_a_gemm_counts(tmp_path: Path, alpha: float) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], alpha=alpha)],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    report = snaudit.audit(path)
    sigma = np.linalg.norm(weight.astype(np.float64), 2)
    (layer,) = report.layers
    assert layer.sigma.lower <= sigma * (1 + 1e-12) and layer.sigma.upper <= sigma * (1 + 1e-8)
    for bound in (layer.norm, report.network.bound):
        assert abs(alpha) * sigma <= bound.upper * (1 + 1e-12) <= abs(alpha) * sigma * (1 + 1e-7)
    outcome = snaudit.constrain(path, max_sigma=0.5)
    changed = snaudit.load(outcome.target).tensors["w"].float64()
    assert abs(alpha) * np.linalg.norm(changed, 2) <= 0.5 * (1 + 1e-12)


def test_a_low_rank_kernel_encloses_the_rounding_of_its_product(tmp_path: Path) -> None:
    up = torch.tensor([[1.0, 1.0, -1.0]], dtype=torch.float64).reshape(1, 3, 1, 1)
    down = torch.tensor([1e30, 1.0, 1e30], dtype=torch.float64).reshape(3, 1, 1, 1)  # B·A is 1, fl(B·A) is 0
    torch.save({"c.lora_A.weight": down, "c.lora_B.weight": up}, tmp_path / "l.pt")
    (layer,) = snaudit.audit(tmp_path / "l.pt").layers
    for bound in (layer.sigma, layer.norm):
        assert bound.lower <= 1.0 <= bound.upper


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_low_rank_kernel_costs_no_width(tmp_path: Path, norm: str) -> None:
    """The rounding of the product is added in the norm that is asked for, whatever method measured it."""
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(300, 2, 1, 1, dtype=torch.float64, generator=generator)
    down = torch.randn(2, 200, 1, 1, dtype=torch.float64, generator=generator)
    torch.save({"c.lora_A.weight": down, "c.lora_B.weight": up}, tmp_path / "l.pt")
    (layer,) = snaudit.audit(tmp_path / "l.pt", norm=norm).layers
    product = (up.flatten(1) @ down.flatten(1)).numpy()
    truth = max(norm_of(product, norm), norm_of(product.T, norm))
    assert truth * (1 - 1e-12) <= layer.norm.upper <= truth * (1 + 1e-8)


def test_a_cancelling_spectral_norm_is_enclosed_or_unbounded(tmp_path: Path) -> None:
    weight = torch.tensor([[2.0**40, 0.625 * 2.0**-12], [0.0, 2.0**40]], dtype=torch.float64)
    u, v = torch.tensor([1.0, -1.0], dtype=torch.float64), torch.tensor([1.0, 1.0], dtype=torch.float64)
    torch.save({"fc.weight_orig": weight, "fc.weight_u": u, "fc.weight_v": v}, tmp_path / "s.pt")
    (layer,) = snaudit.audit(tmp_path / "s.pt").layers
    exact = Fraction(weight[0, 1].item())  # uᵀWv = w00 + w01 − w11
    truth = float(np.linalg.norm(weight.numpy(), 2)) / float(exact)
    assert layer.sigma.lower <= truth <= layer.sigma.upper


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("make", [torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.spectral_norm])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_a_square_kernel_is_read_along_the_axis_that_u_and_v_show(tmp_path: Path, make, kind) -> None:
    torch.manual_seed(1)
    module = make(kind(4, 4, 3).double())
    with torch.no_grad():
        module.weight if hasattr(module, "parametrizations") else None
        for _ in range(3):
            module(torch.randn(1, 4, 8, 8).double())
        module.eval()(torch.randn(1, 4, 8, 8).double())
    torch.save(module.state_dict(), tmp_path / "m.pt")
    (layer,) = snaudit.audit(tmp_path / "m.pt").layers
    weight = module.weight.detach().numpy()
    turned = kind is torch.nn.ConvTranspose2d
    assert layer.op == kind.__name__
    truth = np.linalg.norm((weight.swapaxes(0, 1) if turned else weight).reshape(4, -1), 2)
    assert layer.sigma.grade is Grade.PROVED
    assert layer.sigma.lower <= truth * (1 + 1e-9) and truth <= layer.sigma.upper * (1 + 1e-9)


def test_u_and_v_that_fit_both_axes_and_neither_leave_an_assumption(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        "c.weight_orig": torch.randn(4, 4, 3, generator=generator),
        "c.weight_u": torch.randn(4, generator=generator),
        "c.weight_v": torch.randn(12, generator=generator),
    }
    torch.save(state, tmp_path / "m.pt")
    (layer,) = snaudit.audit(tmp_path / "m.pt").layers
    assert layer.sigma.grade is Grade.ASSUMED and layer.norm.grade is Grade.ASSUMED
    assert any("assumed" in note for note in layer.notes)
    report = snaudit.check(tmp_path / "m.pt", max_sigma=1e9)
    assert report.verdict is snaudit.Verdict.UNDECIDED


def test_a_chain_is_bounded_by_its_product_and_attains_it(tmp_path: Path) -> None:
    """Aligned top directions and a BatchNorm: the bound of a bare checkpoint is the chain's own norm."""
    state = {
        "a.weight": torch.diag(torch.tensor([3.0, 0.5])),
        "bn.weight": torch.tensor([2.0, 0.1]),
        "bn.bias": torch.zeros(2),
        "bn.running_mean": torch.zeros(2),
        "bn.running_var": torch.tensor([4.0, 1.0]),
        "b.weight": torch.diag(torch.tensor([0.25, 0.1])),
    }
    torch.save(state, tmp_path / "m.pt")
    bound = snaudit.audit(tmp_path / "m.pt").network.bound
    assert bound.grade is Grade.ASSUMED
    assert 0.75 <= bound.upper <= 0.75 * (1 + 1e-8)
