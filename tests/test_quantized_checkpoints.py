"""Quantized checkpoints: each layout is packed here by its documented rule, and its real matrix is measured."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from containers import (
    FALSE,
    call,
    integer,
    ints,
    items,
    mapping,
    name,
    storage,
    torch_file,
)
from safetensors.torch import save_file

import snaudit
from snaudit.bound import Grade
from snaudit.errors import ConstraintError

RNG = np.random.default_rng(30)
OUT, IN, GROUP = 32, 64, 16
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Saved = dict[str, np.ndarray]


def f16(*shape: int) -> np.ndarray:
    return RNG.uniform(0.01, 0.1, shape).astype(np.float16)


def int8() -> np.ndarray:
    return RNG.integers(-127, 128, (OUT, IN)).astype(np.int8)


def real(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def pack_rows(plain: np.ndarray, bits: int) -> np.ndarray:
    """Words of 32 bits along axis 0, the first code in the lowest bits."""
    per = 32 // bits
    words = np.zeros((plain.shape[0] // per, *plain.shape[1:]), np.uint32)
    for i in range(per):
        words |= plain[i::per].astype(np.uint32) << np.uint32(bits * i)
    return words.view(np.int32)


def pack_awq(plain: np.ndarray) -> np.ndarray:
    words = np.zeros((plain.shape[0], plain.shape[1] // 8), np.uint32)
    for column in range(words.shape[1]):
        for i in range(8):
            words[:, column] |= plain[:, column * 8 + AWQ_ORDER[i]].astype(np.uint32) << np.uint32(4 * i)
    return words.view(np.int32)


def gptq(bits: int, version: int, shuffled: bool) -> tuple[Saved, np.ndarray]:
    plain, scale = RNG.integers(0, 1 << bits, (IN, OUT)), f16(IN // GROUP, OUT)
    index = RNG.permutation(np.arange(IN) // GROUP) if shuffled else np.arange(IN) // GROUP
    zeros = np.full((IN // GROUP, OUT), (1 << bits - 1) - (version == 1))
    held = {
        "fc.qweight": pack_rows(plain, bits), "fc.qzeros": pack_rows(zeros.T, bits).T.copy(),
        "fc.scales": scale, "fc.g_idx": index.astype(np.int32),
    }  # fmt: skip
    return held, ((plain - (1 << bits - 1)) * real(scale)[index]).T


def awq() -> tuple[Saved, np.ndarray]:
    plain, zeros = RNG.integers(0, 16, (IN, OUT)), RNG.integers(0, 16, (IN // GROUP, OUT))
    scale = f16(IN // GROUP, OUT)
    held = {"fc.qweight": pack_awq(plain), "fc.qzeros": pack_awq(zeros), "fc.scales": scale}
    spread = [np.repeat(part, GROUP, 0) for part in (zeros, real(scale))]
    return held, ((plain - spread[0]) * spread[1]).T


def bitsandbytes() -> tuple[Saved, np.ndarray]:
    codes, scale = int8(), RNG.uniform(0.1, 2, OUT).astype(np.float32)
    held = {"fc.weight": codes, "fc.SCB": scale, "fc.weight_format": np.uint8([0])}
    return held, codes * real(scale)[:, None] / 127


def channels(shape: tuple[int, ...], zero: bool = False) -> tuple[Saved, np.ndarray]:
    codes, scale = int8(), f16(*shape)
    held = {"fc.weight": codes, "fc.weight_scale": scale}
    zeros = np.zeros(shape, np.int8)
    if zero:
        zeros = RNG.integers(-100, 100, shape).astype(np.int8)
        held["fc.weight_zero_point"] = zeros
    full = [np.repeat(p, IN // p.shape[1], 1) if p.ndim == 2 else p for p in (real(scale), real(zeros))]
    return held, (codes - full[1]) * full[0]


def deepseek() -> tuple[Saved, np.ndarray]:
    codes = RNG.standard_normal((200, 300)).astype(ml_dtypes.float8_e4m3fn)
    scale = RNG.uniform(0.1, 1, (2, 3)).astype(np.float32)
    spread = np.repeat(np.repeat(real(scale), 128, 0), 128, 1)[:200, :300]
    return {"fc.weight": codes, "fc.weight_scale_inv": scale}, real(codes) * spread


def fp8_scaled() -> tuple[Saved, np.ndarray]:
    codes, scale = RNG.standard_normal((OUT, IN)).astype(ml_dtypes.float8_e4m3fn), np.float32([0.03])
    return {"fc.weight": codes, "fc.weight_scale": scale, "fc.input_scale": np.float32([7])}, real(codes) * real(scale)


def compressed(bits: int) -> tuple[Saved, np.ndarray]:
    plain, scale = RNG.integers(0, 1 << bits, (OUT, IN)), f16(OUT, IN // GROUP)
    held = {
        "fc.weight_packed": pack_rows(plain.T, bits).T.copy(), "fc.weight_scale": scale,
        "fc.weight_shape": np.array([OUT, IN]),
    }  # fmt: skip
    return held, (plain - (1 << bits - 1)) * np.repeat(real(scale), GROUP, 1)


def quanto() -> tuple[Saved, np.ndarray]:
    codes, scale = int8(), f16(OUT, 1)
    return {"fc.weight._data": codes, "fc.weight._scale": scale}, codes * real(scale)


MADE = {
    "gptq": gptq(4, 1, False), "gptq shuffled": gptq(4, 1, True), "gptq second": gptq(4, 2, True),
    "gptq 8 bits": gptq(8, 1, False), "gptq 2 bits": gptq(2, 1, False), "awq": awq(), "bitsandbytes": bitsandbytes(),
    "tensor": channels(()), "one": channels((1,)), "channels": channels((OUT, 1)), "groups": channels((OUT, IN // GROUP)),
    "zero points": channels((OUT, 1), True), "deepseek": deepseek(), "fp8": fp8_scaled(), "compressed": compressed(4),
    "compressed 8 bits": compressed(8), "quanto": quanto(),
}  # fmt: skip


def saved(held: Saved, path: Path) -> Path:
    def tensor(array: np.ndarray) -> torch.Tensor:
        if array.dtype == ml_dtypes.float8_e4m3fn:
            return torch.from_numpy(array.view(np.uint8).copy()).view(torch.float8_e4m3fn)
        return torch.from_numpy(np.array(array))

    save_file({name: tensor(array).contiguous() for name, array in held.items()}, path)
    return path


@pytest.mark.parametrize("name", MADE)
def test_the_real_matrix_is_measured_and_its_scale_constrained(name: str, tmp_path: Path) -> None:
    held, matrix = MADE[name]
    path = saved(held, tmp_path / "model.safetensors")
    report = snaudit.audit(path)
    (layer,) = report.layers
    assert not any(item.missed for item in report.left_out)
    assert (layer.matrix, layer.sigma.grade) == (matrix.shape, Grade.PROVED)
    truth = np.linalg.norm(matrix, 2)
    assert layer.sigma.lower <= truth * (1 + 1e-12) and truth * (1 - 1e-12) <= layer.sigma.upper
    assert layer.sigma.upper <= truth * (1 + 1e-6)
    for norm, order in (("l1", 1), ("linf", np.inf)):  # a transposed reading would show
        (other,) = snaudit.audit(path, norm=norm).layers
        assert other.norm.upper == pytest.approx(np.linalg.norm(matrix, order), rel=1e-9)
    target = tmp_path / "capped.safetensors"
    snaudit.constrain(path, target, max_sigma=truth / 3)
    (capped,) = snaudit.audit(target).layers
    assert truth / 3 * 0.98 <= capped.sigma.upper <= truth / 3
    before, after = ({n: t.load().tobytes() for n, t in snaudit.load(p).tensors.items()} for p in (path, target))
    changed = [n for n in before if before[n] != after[n]]
    assert len(changed) == 1 and changed[0].endswith(("scale", "scales", "SCB", "scale_inv")), "codes stay"


def asymmetric() -> Saved:
    held, _ = gptq(4, 1, False)
    return held | {"fc.qzeros": RNG.integers(0, 1 << 31, held["fc.qzeros"].shape).astype(np.int32)}


UNSETTLED = {
    "whether they are stored less one": asymmetric(),
    "tiles": bitsandbytes()[0] | {"fc.weight_format": np.uint8([1])},
    "fits its shape": channels((OUT, 1))[0] | {"fc.weight_scale": f16(OUT, 5)},
    "another size than 128": deepseek()[0] | {"fc.weight_scale_inv": np.ones((4, 5), np.float32)},
    "do not settle": compressed(4)[0] | {"fc.weight_zero_point": np.zeros((3, 4), np.int32)},
    "with fc.weight_scale_2": fp8_scaled()[0] | {"fc.weight_scale_2": np.float32([2])},
    "g_idx does not fit": gptq(4, 1, False)[0] | {"fc.g_idx": np.full(IN, 99, np.int32)},
    "how fc.weight_scales scales it": {"fc.weight": fp8_scaled()[0]["fc.weight"], "fc.weight_scales": f16(OUT, 1)},
}


@pytest.mark.parametrize("reason", UNSETTLED)
def test_what_is_not_settled_is_missed_and_never_a_number(reason: str, tmp_path: Path) -> None:
    held = UNSETTLED[reason] | {"other.weight": np.eye(3, dtype=np.float32)}
    report = snaudit.audit(saved(held, tmp_path / "model.safetensors"))
    assert [layer.name for layer in report.layers] == ["other.weight"]
    (missed,) = [item for item in report.left_out if item.missed]
    assert reason in missed.reason and missed.name.startswith("fc.")


def test_clipping_integer_weights_is_refused(tmp_path: Path) -> None:
    path = saved(bitsandbytes()[0], tmp_path / "model.safetensors")
    with pytest.raises(ConstraintError, match=r"fc\.weight: integer weights can only be scaled"):
        snaudit.constrain(path, max_sigma=0.1, how="clip")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["tensor", "channels", "other axis"])
def test_quantized_tensors_of_torch(kind: str, legacy: bool, tmp_path: Path) -> None:
    plain = torch.from_numpy(RNG.standard_normal((6, 5)).astype(np.float32))
    if kind == "tensor":
        made = torch.quantize_per_tensor(plain, 0.0371, 3, torch.qint8)
        matrix = (real(made.int_repr().numpy()) - 3) * 0.0371
    else:
        axis = int(kind != "channels")
        scale = torch.from_numpy(RNG.uniform(0.01, 0.05, plain.shape[axis]))
        zero = torch.from_numpy(RNG.integers(0, 200, plain.shape[axis]))
        made = torch.quantize_per_channel(plain, scale, zero, axis, torch.quint8)
        spread = [part.numpy().reshape((-1, 1) if axis == 0 else (1, -1)) for part in (scale, zero)]
        matrix = (real(made.int_repr().numpy()) - spread[1]) * spread[0]
    path, target = tmp_path / "model.pt", tmp_path / "capped.pt"
    torch.save({"fc.weight": made, "fc.bias": torch.ones(6)}, path, _use_new_zipfile_serialization=not legacy)
    report = snaudit.audit(path)
    (layer,) = report.layers
    truth = np.linalg.norm(matrix, 2)
    assert (layer.name, layer.sigma.grade) == ("fc.weight", Grade.PROVED)
    assert layer.sigma.lower <= truth * (1 + 1e-12) and truth <= layer.sigma.upper <= truth * (1 + 1e-6)
    assert not any(item.missed for item in report.left_out)
    if kind == "tensor":
        with pytest.raises(ConstraintError, match="its scale is no stored tensor"):
            snaudit.constrain(path, target, max_sigma=truth / 2)
        return
    snaudit.constrain(path, target, max_sigma=truth / 2)
    back = torch.load(target, weights_only=True)["fc.weight"]
    assert torch.equal(back.int_repr(), made.int_repr())
    assert np.linalg.norm(back.dequantize().numpy(), 2) == pytest.approx(truth / 2, rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_module_of_torch(tmp_path: Path) -> None:
    """Its state dict holds the weight in a tuple under packed parameters."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    made = torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear})
    torch.save(made.state_dict(), tmp_path / "model.pt")
    report = snaudit.audit(tmp_path / "model.pt")
    for layer, place in zip(report.layers, (0, 2), strict=True):
        truth = np.linalg.norm(made[place].weight().dequantize().numpy().astype(float), 2)
        assert layer.sigma.upper == pytest.approx(truth, rel=1e-6)


def test_a_quantized_tensor_of_another_scheme_is_missed(tmp_path: Path) -> None:
    """(codes·scale + offset) of embeddings is no (codes − zero point)·scale."""
    scheme = items(name("torch", "per_channel_affine_float_qparams"), *[integer(1)] * 3)
    nodes = (storage("0", 8, "QInt8Storage"), integer(0), ints((4, 2)), ints((2, 1)), scheme)
    made = call(name("torch._utils", "_rebuild_qtensor"), *nodes, FALSE, call(name("collections", "OrderedDict")))
    path = torch_file(tmp_path / "q.pt", mapping({"q": made}), {"0": b"12345678"})
    (missed,) = snaudit.load(path).left_out
    assert missed.missed and "per_channel_affine_float_qparams" in missed.reason
