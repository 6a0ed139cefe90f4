"""What names and shapes of a checkpoint tell: against the weights that torch's modules compute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from snaudit.forms import NOTHING
from snaudit.layers import Layer, select
from snaudit.errors import UsageError
from snaudit.linear import LowRank
from snaudit.model import Tensor
from snaudit.parameters import extract_from_tensors


def tensors_of(state: Mapping[str, torch.Tensor]) -> dict[str, Tensor]:
    """Tensors in memory, of equal place where torch's storage, shape and strides are equal."""

    def one(name: str, value: torch.Tensor) -> Tensor:
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride())
        array = value.detach().clone().numpy()
        return Tensor(name, tuple(value.shape), str(value.dtype).removeprefix("torch."), place, lambda: array)

    return {name: one(name, value) for name, value in state.items()}


def layers_of(module: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, Layer]:
    state = module.state_dict() if isinstance(module, nn.Module) else module
    return {layer.name: layer for layer in extract_from_tensors(tensors_of(state)).layers}


def put(module: nn.Module, changed: Mapping[str, np.ndarray]) -> None:
    state = module.state_dict()
    module.load_state_dict({n: torch.from_numpy(changed[n]) if n in changed else v for n, v in state.items()})


def test_plain_kinds_and_what_is_no_matrix() -> None:
    module = nn.ModuleDict(
        {
            "fc": nn.Linear(5, 3),
            "c1": nn.Conv1d(4, 6, 3),
            "c2": nn.Conv2d(4, 6, 3),
            "c3": nn.Conv3d(4, 6, 3),
            "bn": nn.BatchNorm2d(6),
            "ln": nn.LayerNorm((4, 5)),
            "embed": nn.Embedding(7, 3),
            "rnn": nn.LSTM(5, 4, bidirectional=True),
            "prelu": nn.PReLU(6),
        }
    )
    state = dict(module.state_dict()) | {"position_ids": torch.arange(12).reshape(3, 4)}
    extraction = extract_from_tensors(tensors_of(state))
    kinds = {layer.name: layer.op for layer in extraction.layers}
    assert kinds == {
        "fc.weight": "Linear", "c1.weight": "Conv1d", "c2.weight": "Conv2d", "c3.weight": "Conv3d",
        "embed.weight": "Embedding", "rnn.weight_ih_l0": "LSTM", "rnn.weight_hh_l0": "LSTM",
        "rnn.weight_ih_l0_reverse": "LSTM", "rnn.weight_hh_l0_reverse": "LSTM",
    }  # fmt: skip
    explained = {item.name for item in extraction.left_out} | set(kinds)
    assert explained == set(state), "every tensor is a layer or left out with a reason"
    assert [layer.name for layer in extraction.layers if not layer.in_chain] == ["embed.weight"]


@pytest.mark.parametrize("make", [nn.utils.weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "build", [lambda: nn.Linear(6, 4), lambda: nn.Conv2d(3, 5, 3), lambda: nn.ConvTranspose1d(3, 4, 5)]
)
def test_weight_norm_is_the_weight_that_the_module_computes(make, dim, build) -> None:
    normed = make(build().double(), dim=dim)
    (layer,) = layers_of(normed).values()
    assert layer.name == "weight"
    assert np.allclose(layer.form.weight(), normed.weight.detach().numpy(), rtol=1e-12)
    changed = layer.form.scaled(0.25)
    assert np.allclose(layer.form.weight(changed), 0.25 * layer.form.weight(), rtol=1e-12)
    put(normed, changed)
    with torch.no_grad():
        normed.eval()(torch.zeros(1, *({2: (6,), 4: (3, 8, 8), 3: (3, 8)}[layer.form.weight().ndim])).double())
    assert np.allclose(normed.weight.detach().numpy(), layer.form.weight(changed), rtol=1e-12)


@pytest.mark.parametrize("make", [nn.utils.spectral_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize(
    "build", [lambda: nn.Linear(6, 4), lambda: nn.Conv2d(3, 5, 3), lambda: nn.ConvTranspose2d(3, 4, 3), lambda: nn.Linear(4, 4)]
)
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_spectral_norm_is_the_weight_that_the_module_computes(make, build) -> None:
    torch.manual_seed(0)
    normed = make(build().double())
    x = torch.randn(2, 6) if isinstance(normed, nn.Linear) and normed.in_features == 6 else torch.randn(2, 4)
    x = (torch.randn(1, 3, 8, 8) if not isinstance(normed, nn.Linear) else x).double()
    for _ in range(3):
        normed.train()(x)
    normed.eval()(x)
    (layer,) = layers_of(normed).values()
    assert layer.name == "weight"
    assert np.allclose(layer.form.weight(), normed.weight.detach().numpy(), rtol=1e-10)
    changed = layer.form.scaled(0.5)
    put(normed, changed)
    normed.eval()(x)
    assert np.allclose(normed.weight.detach().numpy(), 0.5 * layer.form.weight(), rtol=1e-10)


def test_packed_attention_is_three_matrices() -> None:
    attention = nn.MultiheadAttention(6, 2)
    layers = layers_of(attention)
    packed = attention.in_proj_weight.detach().numpy()
    for part, letter in enumerate("qkv"):
        layer = layers[f"in_proj_weight[{letter}]"]
        assert np.array_equal(layer.form.weight(), packed[6 * part : 6 * part + 6].astype(float))
    changed = layers["in_proj_weight[k]"].form.scaled(0.5)["in_proj_weight"]
    assert np.array_equal(changed[:6], packed[:6]) and np.array_equal(changed[12:], packed[12:])
    assert np.array_equal(changed[6:12], packed[6:12] / 2)
    gpt2 = layers_of({"h.0.attn.c_attn.weight": torch.randn(4, 12), "h.0.mlp.c_fc.weight": torch.randn(4, 16)})
    assert [layer.matrix for layer in gpt2.values()] == [(4, 4)] * 3 + [(16, 4)]


def test_low_rank_pairs_are_their_product() -> None:
    down, up = torch.randn(2, 9).double(), torch.randn(7, 2).double()
    layers = layers_of({"q.lora_A.default.weight": down, "q.lora_B.default.weight": up})
    (layer,) = layers.values()
    weight = layer.form.weight()
    assert isinstance(weight, LowRank)
    assert np.allclose(weight.dense(), (up @ down).numpy(), rtol=1e-5)
    assert np.allclose(layer.form.weight(layer.form.scaled(0.25)).dense(), 0.25 * weight.dense(), rtol=1e-6)
    assert (layer.shape, layer.matrix) == ((7, 9), (7, 9))


def test_aliases_are_one_layer_and_duplicates_are_not() -> None:
    shared = torch.randn(5, 3)
    state = {"backbone.head.weight": shared, "head.weight": shared, "copy.weight": shared.clone()}
    layers = layers_of(state)
    assert layers["backbone.head.weight"].used_by == ("backbone.head.weight", "head.weight")
    assert layers["copy.weight"].uses == 1 and len(layers) == 2


def test_flax_kernels_are_turned() -> None:
    kernel = torch.randn(3, 3, 4, 6)
    layers = layers_of({"conv.kernel": kernel, "dense.kernel": torch.randn(4, 7)})
    assert layers["conv.kernel"].shape == (6, 4, 3, 3)
    assert np.array_equal(layers["conv.kernel"].form.weight(), kernel.permute(3, 2, 0, 1).numpy().astype(float))
    changed = layers["conv.kernel"].form.scaled(0.5)
    assert np.array_equal(changed["conv.kernel"], kernel.numpy() / 2)
    matrix, operator = layers["dense.kernel"].maps(NOTHING)
    assert matrix is operator and matrix.shape == (7, 4)


def test_patterns_that_match_nothing_name_what_is_near() -> None:
    layers = tuple(layers_of(nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})).values())
    assert [layer.name for layer in select(layers, ("encoder",))] == ["encoder.weight"]
    with pytest.raises(UsageError, match="leave no layer"):
        select(layers, (), ("*coder.weight",))
    with pytest.raises(UsageError, match="encoder.weight"):
        select(layers, ("encoder.weights",))
