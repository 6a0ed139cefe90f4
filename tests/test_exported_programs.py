"""Exported programs: the translated graph computes what the program computes, and nothing is guessed."""

from __future__ import annotations

import copy
import inspect
import json
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snaudit
from snaudit import formats
from snaudit.errors import ModelError, UnreadableModel
from snaudit.formats import exported, exported_graph
from snaudit.formats.exported_program import WRITERS
from snaudit.model import Model

G = torch.Generator().manual_seed(0)
SINGLE = 2e-5
"""What two float32 evaluations of a few layers may differ by, relative to the largest entry."""


class Function(nn.Module):
    """A module of a function, with the parameters that it uses."""

    def __init__(self, function: Callable[..., Any], **weights: torch.Tensor | nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, value in weights.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, torch.Tensor) else value)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self, *inputs)


def saved(module: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module.eval(), inputs, **options), path)
    return path


def outputs_of(model: Model, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    assert model.graph is not None, model.notes
    proto = ir.serde.serialize_model(model.graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {node.name: x.numpy() for node, x in zip(session.get_inputs(), inputs, strict=True)})


def agree(module: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, **options: Any) -> Model:
    """Nothing is left opaque, and onnxruntime computes what torch does."""
    model = formats.read(saved(module, inputs, path, **options))
    assert not any("not translated" in note for note in model.notes), model.notes
    with torch.no_grad():
        wanted = module(*inputs)
    wanted = [wanted] if isinstance(wanted, torch.Tensor) else list(wanted)
    found = outputs_of(model, inputs)
    assert len(found) == len(wanted)
    for at, (mine, its) in enumerate(zip(found, wanted, strict=True)):
        assert mine.shape == tuple(its.shape), at
        scale = max(1.0, float(its.abs().max()))
        assert np.abs(mine - its.numpy()).max() <= SINGLE * scale, at
    return model


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=G)


def test_pointwise_ops(tmp_path: Path) -> None:
    functions = [
        torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.neg, torch.abs, torch.erf, torch.sin, torch.cos, F.selu,
        F.hardswish, F.mish, F.silu, F.gelu, F.softplus, F.hardtanh, F.relu6, F.hardsigmoid, F.elu, F.celu, F.leaky_relu,
        lambda x: F.gelu(x, approximate="tanh"), lambda x: F.leaky_relu(x, 0.3), lambda x: F.elu(x, 0.7),
        lambda x: F.celu(x, 1.3), lambda x: F.hardtanh(x, -0.3, 0.6), lambda x: x.clamp(min=-0.2),
        lambda x: x.clamp(max=0.4), lambda x: torch.log(x.abs() + 2.0), lambda x: torch.sqrt(x * x + 1.0),
        lambda x: torch.reciprocal(x.exp() + 1), lambda x: x.softmax(-1), lambda x: x.softmax(1), lambda x: x.log_softmax(2),
        lambda x: x + 2, lambda x: 3 - x, lambda x: x / 3.0, lambda x: torch.sub(x, x.tanh(), alpha=0.5),
        lambda x: torch.add(x, x.relu(), alpha=2), lambda x: torch.maximum(x, -x), lambda x: torch.minimum(x, x * 2),
        lambda x: (x.abs() + 1) ** 1.5, lambda x: F.dropout(x, 0.5, False), lambda x: x.contiguous().clone().detach(),
        lambda x: F.layer_norm(x, (4, 5)), lambda x: x.to(torch.float64).to(torch.float32),
    ]  # fmt: skip
    net = Function(lambda m, x: (*(f(x) for f in functions), F.prelu(x, m.a), m.n(x)), a=rand(3).abs(), n=nn.LayerNorm(5))
    agree(net, (rand(2, 3, 4, 5),), tmp_path / "m.pt2")


def test_moves_and_sums(tmp_path: Path) -> None:
    functions = [
        lambda x: x.reshape(12, 20), lambda x: x.view(2, -1), lambda x: x.flatten(1), lambda x: x.flatten(1, 2),
        lambda x: x.flatten(), lambda x: x.unflatten(1, (2, 3)), lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.transpose(1, -1), lambda x: x[0, 0].t(), lambda x: x.unsqueeze(-1), lambda x: x[:1].squeeze(0),
        lambda x: x.squeeze(), lambda x: x[:, 1:5:2], lambda x: x[..., -2:], lambda x: x[:, -1], lambda x: torch.cat([x, x * 2], 1),
        lambda x: torch.stack([x, x * 2], -1), lambda x: torch.cat(x.split(4, 1)[::-1], 1), lambda x: torch.cat(x.chunk(4, 1)[1:], 1),
        lambda x: torch.cat(x.split([1, 3, 2], 1)[1:], 1), lambda x: x.unbind(2)[1] - x.unbind(2)[3], lambda x: x[:, :1].expand(2, 6, 4, 5),
        lambda x: x.repeat(1, 2, 1, 1), lambda x: F.pad(x, (1, 2, 0, 3)), lambda x: F.pad(x, (1, 0), value=2.0),
        lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"),
        lambda x: x.mean(), lambda x: x.mean((2, 3)), lambda x: x.mean(1, keepdim=True), lambda x: x.sum(-1), lambda x: x.sum(),
        lambda x: x.amax((1, 2)), lambda x: x.amin(1), lambda x: torch.linalg.vector_norm(x, dim=1),
        lambda x: F.pixel_shuffle(x[:, :4], 2),
    ]  # fmt: skip
    agree(Function(lambda m, x: tuple(f(x) for f in functions)), (rand(2, 6, 4, 5),), tmp_path / "m.pt2")


def test_layers(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    modules: dict[str, nn.Module] = {
        "a": nn.Conv2d(6, 4, 3), "b": nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=3, bias=False),
        "c": nn.Conv2d(6, 2, 3, padding="same", dilation=2), "d": nn.Conv2d(6, 2, (1, 3), padding="valid"),
        "e": nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1), "f": norm, "g": nn.BatchNorm2d(6, affine=False),
        "h": nn.InstanceNorm2d(6, affine=True), "i": nn.GroupNorm(3, 6), "j": nn.MaxPool2d(2), "k": nn.MaxPool2d(3, 2, 1),
        "l": nn.AvgPool2d(2), "m": nn.AvgPool2d(3, 1, 1, count_include_pad=False), "n": nn.AdaptiveAvgPool2d(1),
        "o": nn.AdaptiveAvgPool2d((4, 2)), "p": nn.AdaptiveMaxPool2d(1), "q": nn.Linear(8, 3), "r": nn.MaxPool2d(2, 2, ceil_mode=True),
    }  # fmt: skip
    for name in "hi":
        nn.init.normal_(modules[name].weight, generator=G)
        nn.init.normal_(modules[name].bias, generator=G)
    net = Function(lambda m, x: tuple(getattr(m, name)(x) for name in modules), **modules)
    model = agree(net, (rand(2, 6, 8, 8),), tmp_path / "m.pt2")
    assert {"a.weight", "e.weight", "q.weight"} <= {layer.name for layer in snaudit.audit(tmp_path / "m.pt2").layers}
    assert all(value.meta.get("tensor") is not None for value in model.graph.graph.initializers.values())


def test_products_and_attention(tmp_path: Path) -> None:
    def forward(m: Any, x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = x[0]
        return (
            x @ m.w, torch.bmm(x, x.transpose(1, 2)), torch.addmm(m.b, flat, m.w, beta=0.5, alpha=2.0), torch.mm(flat, m.w),
            torch.einsum("bij, jk -> bik", x, m.w), F.scaled_dot_product_attention(x, x * 0.5, x + 1), m.lin(flat), m.lin(x),
            F.linear(x, m.w.t()), m.table(ids), m.layer(x), m.conv(x), F.scaled_dot_product_attention(x, x, x, scale=0.3),
        )  # fmt: skip

    torch.manual_seed(0)
    net = Function(
        forward, w=rand(8, 4), b=rand(4), lin=nn.Linear(8, 5), table=nn.Embedding(7, 3), conv=nn.Conv1d(6, 2, 3, padding=1),
        layer=nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True),
    )  # fmt: skip
    agree(net, (rand(2, 6, 8), torch.tensor([[1, 2], [6, 0]])), tmp_path / "m.pt2")


def test_more_pointwise_ops(tmp_path: Path) -> None:
    functions = [
        torch.square, torch.rsqrt, torch.log1p, torch.atan, torch.asinh, torch.sinh, torch.cosh, F.logsigmoid, F.softshrink,
        F.hardshrink, lambda x: F.softshrink(x, 0.2), lambda x: F.glu(x, 1), lambda x: F.glu(x), lambda x: x.clamp_min(0.7),
        lambda x: x.clamp_max(0.9), lambda x: x**x, lambda x: torch.addcmul(x, x, x, value=0.5),
        lambda x: torch.addcdiv(x, x, x + 1, value=0.3), lambda x: torch.max(x, 1 - x), lambda x: torch.min(x, 1 - x),
        lambda x: torch.where(x > 1, x, -x), lambda x: torch.where(x <= 1, x, 2.0), lambda x: torch.where((x < 1) | (x >= 1.5), 0.0, x),
        lambda x: x.masked_fill(x == x, 3.0), lambda x: x.masked_fill(~(x != 1.0) & (x > 0), 3.0), torch.floor, torch.sign,
        lambda x: F.rms_norm(x, (4, 6), eps=1e-3), lambda x: x + torch.zeros_like(x) + torch.ones_like(x) * torch.full_like(x, 0.5),
        lambda x: x + torch.arange(6) * 1.0 + torch.arange(1, 7).to(x.dtype) + torch.arange(0, 12, 2).to(torch.float32),
        lambda x: x * x.new_ones(6) + x.new_zeros((4, 1)), lambda x: x + torch.full((1,), 2.0) + torch.zeros(6) + torch.ones(4, 1),
        lambda x: F.hardtanh(x).type_as(x), lambda x: x.tril() + x.triu(1), torch.tan, torch.ceil, torch.round,
    ]  # fmt: skip
    net = Function(lambda m, x: (*(f(x) for f in functions), F.rms_norm(x, (6,), m.w, 1e-5)), w=rand(6))
    agree(net, (rand(2, 4, 4, 6).abs() + 0.3,), tmp_path / "m.pt2")


def test_more_moves_and_sums(tmp_path: Path) -> None:
    functions = [
        lambda x: x.var(), lambda x: x.var(1), lambda x: x.std((2, 3), unbiased=False), lambda x: torch.var(x, 2, correction=0, keepdim=True),
        lambda x: x.std(), lambda x: x.max(), lambda x: x.min(), lambda x: x.max(1)[0], lambda x: x.min(2, keepdim=True)[0],
        lambda x: x.max(1)[1].to(x.dtype), lambda x: x.argmax(3).to(x.dtype), lambda x: x.topk(2, 1)[0], lambda x: x.topk(3, -1, largest=False)[0],
        lambda x: x.logsumexp((1, 2)), lambda x: x.norm(dim=1), lambda x: x.norm(p=1, dim=2, keepdim=True), lambda x: F.normalize(x, dim=1),
        lambda x: x.cumsum(2), lambda x: x.flip((1, 3)), lambda x: x.roll(2, 1), lambda x: x.roll(-1, 3), lambda x: x.narrow(1, 2, 3), lambda x: x.movedim(1, 3),
        lambda x: x.swapaxes(1, 2), lambda x: x.mT, lambda x: x.view_as(x.reshape(2, 6, 20)[..., :]).reshape(2, 6, 4, 5),
        lambda x: x[:, :1].expand_as(x), lambda x: x.index_select(1, torch.tensor([5, 0, 0])), lambda x: x[:, torch.tensor([1, 1, 4])],
        lambda x: x.gather(1, torch.zeros(2, 3, 4, 5, dtype=torch.int64) + 2), lambda x: F.pixel_unshuffle(x, 1),
        lambda x: F.pixel_unshuffle(x[:, :, :, :4], 2), lambda x: F.interpolate(x, scale_factor=2.0), lambda x: F.interpolate(x, size=(8, 10)),
        lambda x: F.interpolate(x, size=(2, 5)), lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
        lambda x: F.interpolate(x, size=(7, 7), mode="bilinear", align_corners=True), lambda x: F.interpolate(x, size=(3, 9), mode="bicubic"),
        lambda x: F.interpolate(x[0], scale_factor=3.0), lambda x: F.interpolate(x[0], size=8, mode="linear"),
        lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), lambda x: F.max_pool2d(x, 2, 2, 1, ceil_mode=True),
        lambda x: torch.einsum("bchw,bdhw->bcd", x, x), lambda x: torch.einsum("...hw,...kw->...hk", x, x), lambda x: torch.einsum("bchw,bchw", x, x),
        lambda x: torch.baddbmm(x[:, 0], x[:, 1, :, :4], x[:, 2], beta=0.5, alpha=2.0),
    ]  # fmt: skip
    agree(Function(lambda m, x: tuple(f(x) for f in functions)), (rand(2, 6, 4, 5),), tmp_path / "m.pt2")


@pytest.mark.parametrize("decomposed", [False, True])
def test_recurrences_and_masked_attention(tmp_path: Path, decomposed: bool) -> None:
    torch.manual_seed(0)
    cells = {
        "a": nn.LSTM(4, 3, batch_first=True), "b": nn.LSTM(4, 3, num_layers=2, bidirectional=True), "c": nn.GRU(4, 3, bidirectional=True),
        "d": nn.RNN(4, 3, nonlinearity="relu", num_layers=2), "e": nn.RNN(4, 3, bias=False), "f": nn.GRU(4, 3, batch_first=True, bias=False),
    }  # fmt: skip

    def forward(m: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = []
        for name in cells:
            y, ends = getattr(m, name)(x)
            found += [y, *(ends if isinstance(ends, tuple) else (ends,))]
        mask = torch.ones(5, 5).tril() > 0
        found += [
            F.scaled_dot_product_attention(x, x, x, is_causal=True), F.scaled_dot_product_attention(x, x, x, attn_mask=mask),
            F.scaled_dot_product_attention(x, x, x, attn_mask=torch.arange(25.0).reshape(5, 5) / 9), m.g(x[:, 0])[0], m.h(x),
        ]  # fmt: skip
        return tuple(found)

    net = Function(forward, **cells, g=nn.LSTMCell(4, 3), h=nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))).eval()
    x = rand(2, 5, 4)
    if not decomposed:
        agree(net, (x,), tmp_path / "m.pt2")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, (x,)).run_decompositions(), tmp_path / "m.pt2")
    model = formats.read(tmp_path / "m.pt2")
    assert model.graph is not None, model.notes
    if not any("not translated" in note for note in model.notes):
        for mine, its in zip(outputs_of(model, (x,)), net(x), strict=True):
            assert np.abs(mine - its.detach().numpy()).max() < 1e-5


def test_a_recurrence_is_bounded_as_its_onnx_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = nn.LSTM(4, 3, batch_first=True).eval(), (rand(1, 5, 4),)
    saved(net, x, tmp_path / "m.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, x, tmp_path / "m.onnx", dynamo=True, optimize=False, verbose=False)
    mine, its = (snaudit.audit(tmp_path / name).network.bound for name in ("m.pt2", "m.onnx"))
    assert mine.grade.name == "PROVED" and mine.upper == pytest.approx(its.upper, rel=1e-6)
    jacobian = torch.cat([j.reshape(-1, 20) for j in torch.autograd.functional.jacobian(lambda v: (net(v)[0], *net(v)[1]), x[0])])
    assert float(torch.linalg.matrix_norm(jacobian, 2)) <= mine.upper


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.norm, self.act, self.drop = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.first(x)))
        y = self.norm(self.second(x))
        y += x
        return self.head(self.drop(self.act(y).mean((2, 3))))


@pytest.mark.parametrize("decomposed", [False, True])
def test_writing_in_place_and_the_bound_of_the_onnx_export(tmp_path: Path, decomposed: bool) -> None:
    torch.manual_seed(0)
    net, x = Residual().eval(), (rand(1, 2, 6, 6),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(net, x)
        path = tmp_path / "m.pt2"
        torch.export.save(program.run_decompositions() if decomposed else program, path)
        torch.onnx.export(net, x, tmp_path / "m.onnx", dynamo=True, optimize=False, verbose=False)
    model = formats.read(path)
    found = outputs_of(model, x)[0]
    assert np.abs(found - net(*x).detach().numpy()).max() < 1e-5
    (report, other) = (snaudit.audit(file, witness_seconds=0.5) for file in (path, tmp_path / "m.onnx"))
    mine, its = (next(m for m in r.network.methods if "composition" in m.name) for r in (report, other))
    assert mine.bound.upper == pytest.approx(its.bound.upper, rel=1e-6) and mine.bound.grade == its.bound.grade
    assert 0.0 < report.network.bound.lower <= report.network.bound.upper <= mine.bound.upper
    jacobian = torch.autograd.functional.jacobian(net.double(), x[0].double()).reshape(3, -1)
    assert float(torch.linalg.matrix_norm(jacobian, 2)) <= report.network.bound.upper


@pytest.mark.parametrize(
    "name, forward, said",
    [
        ("it was read before as a view", lambda m, x: (lambda y, v: F.relu(y, inplace=True) + v.t())(*(lambda y: (y, y.t()))(m.f(x))), "writes into"),
        ("it is an input", lambda m, x: m.f(x.relu_()), ""),
        ("a part is written", lambda m, x: (lambda y: (y[:, :2].fill_(0.0), y)[1])(m.f(x)), ""),
    ],
)  # fmt: skip
def test_what_is_written_where_others_read_is_not_taken(tmp_path: Path, name: str, forward: Any, said: str) -> None:
    path = saved(Function(forward, f=nn.Linear(4, 4)), (rand(4, 4),), tmp_path / "m.pt2")
    model = formats.read(path)
    assert model.graph is None and any("its graph is not read" in note and said in note for note in model.notes)


def test_training_mode_is_not_taken(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train(), (rand(2, 1, 5, 5),))
        torch.export.save(program, tmp_path / "m.pt2")
    model = formats.read(tmp_path / "m.pt2")
    assert model.graph is None and any("its graph is not read" in note for note in model.notes)


def test_an_op_without_translation_is_a_gap_with_its_name(tmp_path: Path) -> None:
    net = Function(lambda m, x: (m.b(m.a(x).cumprod(1)), m.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    report = snaudit.audit(saved(net, (rand(1, 4),), tmp_path / "m.pt2"), witness_seconds=0.2)
    assert not report.network.bound.bounded
    gap = next(gap for gap in report.gaps if "cumprod" in gap.op)
    assert "there is no translation" in gap.reason and "torch.onnx.export" in gap.remedy
    assert [output.bound.bounded for output in report.network.outputs] == [False, True]
    assert any("cumprod" in note for note in report.model.notes)


def test_an_unknown_constant_op_is_no_bound(tmp_path: Path) -> None:
    net = Function(lambda m, x: m.a(x) * m.w.cumprod(0), a=nn.Linear(4, 4), w=rand(4))
    report = snaudit.audit(saved(net, (rand(1, 4),), tmp_path / "m.pt2"))
    assert not report.network.bound.bounded or report.network.bound.upper >= 0.0 and report.network.bound.grade.name == "ASSUMED"


def test_open_sizes_are_bound_by_input_size(tmp_path: Path) -> None:
    net = Function(lambda m, x: m.lin(m.conv(x).flatten(2).transpose(1, 2)), conv=nn.Conv2d(1, 2, 3), lin=nn.Linear(2, 3))
    sizes = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=4)},)
    wrapped = nn.Sequential(net)
    path = tmp_path / "m.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(wrapped, (rand(2, 1, 6, 5),), dynamic_shapes={"input": sizes[0]})
        torch.export.save(program, path)
    model = formats.read(path, None, ("1,1,9,5",))
    x = rand(1, 1, 9, 5)
    assert np.abs(outputs_of(model, (x,))[0] - wrapped(x).detach().numpy()).max() < 1e-5
    free = formats.read(path)
    assert free.graph is not None and not isinstance(free.graph.graph.inputs[0].shape[0], int)


def test_constrain_patches_the_program(tmp_path: Path) -> None:
    path = saved(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (rand(1, 4),), tmp_path / "m.pt2")
    target = tmp_path / "out.pt2"
    snaudit.constrain(path, target, max_sigma=0.5)
    assert all(layer.norm.upper <= 0.5 for layer in snaudit.audit(target).layers)
    assert snaudit.audit(target).network.bound.upper <= 0.25


# ATen's schemas, as torch tells them


def schemas() -> dict[str, Any]:
    found = {}
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("aten::"):
            found[f"{schema.name[6:]}.{schema.overload_name or 'default'}"] = schema
    return found


def test_translators_have_the_arguments_of_their_ops() -> None:
    known = schemas()
    for target, translator in exported_graph.TRANSLATORS.items():
        schema = known[target]
        parameters = list(inspect.signature(translator).parameters.values())[1:]
        names = [parameter.name.rstrip("_") for parameter in parameters]
        for argument in schema.arguments:
            assert argument.name in names or (argument.name == "other" and "mat2" in names) or argument.has_default_value(), target
        for parameter in parameters:
            argument = next((a for a in schema.arguments if a.name == parameter.name.rstrip("_")), None)
            if argument is None:
                assert parameter.default is not inspect.Parameter.empty, (target, parameter.name)
                continue
            if parameter.default is not inspect.Parameter.empty and argument.has_default_value():
                default = argument.default_value
                if parameter.name == "memory_format" or (parameter.default, default) == (None, []):
                    continue  # the one is of no meaning for the numbers, the other means all axes
                default = default[0] if isinstance(default, list) and default and len(set(default)) == 1 else default
                assert parameter.default == default or parameter.default == argument.default_value, (target, parameter.name)


def test_translators_have_their_arguments_in_the_order_of_the_schema() -> None:
    """TorchScript's code names no argument that can be told by its place."""
    known = schemas()
    for target, translator in exported_graph.TRANSLATORS.items():
        mine = [name.rstrip("_") for name in list(inspect.signature(translator).parameters)[1:]]
        its = [argument.name for argument in known[target].arguments if not argument.kwarg_only]
        if target != "to.dtype":  # whose overloads are told apart where the code is read
            assert len(mine) >= len(its) and all(a == b or (a, b) == ("other", "mat2") for a, b in zip(mine, its)), (target, mine, its)


def test_views_and_writers_are_those_of_aten() -> None:
    known = schemas()
    for target in exported_graph.PURE:
        assert not any(value.alias_info for value in (*known[target].arguments, *known[target].returns)), target
    for target, schema in known.items():
        written = [a for a in schema.arguments if a.alias_info and a.alias_info.is_write and "Tensor" in str(a.type)]
        name, _, overload = target.partition(".")
        named = name.endswith("_") and not name.endswith("__")
        told = "out" in overload.split("_") or all(a.kwarg_only for a in written)
        if written and not named and not told and "[" not in str(written[0].type) and "Dict" not in str(written[0].type):
            assert name in WRITERS, target


# Hostile programs


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = Function(
        lambda m, x: torch.cat(m.b(F.relu(m.a(x), inplace=True).flatten(1)).split(2, 1), 0), a=nn.Conv2d(1, 2, 3), b=nn.Linear(18, 4)
    )
    return saved(net, (rand(1, 1, 5, 5),), tmp_path_factory.mktemp("program") / "m.pt2")


def parts(path: Path) -> tuple[Model, Any]:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        return formats.read(path), json.loads(archive.read(name))


def translate(model: Model, document: Any) -> exported_graph.Translated:
    return exported_graph.translated(model.path, json.dumps(document).encode(), model.tensors, exported.DTYPES)


def graph_in(document: Any) -> Any:
    return document["graph_module"]["graph"]


LIES = {
    "a size": lambda d: graph_in(d)["tensor_values"]["relu_"]["sizes"].__setitem__(2, {"as_int": 4}),
    "a rank": lambda d: graph_in(d)["tensor_values"]["flatten"]["sizes"].append({"as_int": 1}),
    "a dtype": lambda d: graph_in(d)["tensor_values"]["linear"].__setitem__("dtype", 8),
    "a weight's size": lambda d: graph_in(d)["tensor_values"]["p_b_weight"]["sizes"].__setitem__(0, {"as_int": 5}),
    "parts": lambda d: graph_in(d)["tensor_values"]["linear"]["sizes"].__setitem__(1, {"as_int": 3}),
    "order": lambda d: graph_in(d)["nodes"].reverse(),
    "a cycle": lambda d: graph_in(d)["nodes"][0]["inputs"][0]["arg"]["as_tensor"].__setitem__("name", "linear"),
    "twice": lambda d: graph_in(d)["nodes"].append(graph_in(d)["nodes"][0]),
    "a version": lambda d: d["schema_version"].__setitem__("major", 9),
    "another op's home": lambda d: graph_in(d)["nodes"][0].__setitem__("target", "torch.ops.own.conv2d.default"),
    "an op that writes": lambda d: graph_in(d)["nodes"][0].__setitem__("target", "torch.ops.aten.relu.out"),
    "an effect": lambda d: d["graph_module"]["signature"]["output_specs"].__setitem__(
        0, {"buffer_mutation": {"arg": {"name": "cat"}, "buffer_name": "x"}}
    ),
    "a lost weight": lambda d: d["graph_module"]["signature"]["input_specs"][0]["parameter"].__setitem__("parameter_name", "z"),
    "a slash": lambda d: d["graph_module"].update(json.loads(json.dumps(d["graph_module"]).replace('"linear"', '"lin/ear"'))),
    "the inputs' order": lambda d: graph_in(d)["inputs"].reverse(),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_program_that_contradicts_itself_has_no_graph(program: Path, name: str) -> None:
    model, document = parts(program)
    assert translate(model, document).graph is not None
    LIES[name](document)
    found = translate(model, document)
    assert found.graph is None and "its graph is not read" in found.notes[0]


@pytest.mark.parametrize(
    "text",
    [b"", b"[" * 100_000, b"nothing", b"[]", b'{"graph_module": 3, "schema_version": {"major": 8}}', b'{"schema_version": 8}',
     b'{"schema_version": {"major": 1' + b"0" * 5000 + b"}}", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff\xfe\x00"],
)  # fmt: skip
def test_json_that_is_no_program(program: Path, text: bytes) -> None:
    model, _ = parts(program)
    with pytest.raises(UnreadableModel):
        exported_graph.translated(model.path, text, model.tensors, exported.DTYPES)


def test_json_that_would_fill_the_memory_is_left_alone(program: Path) -> None:
    model, _ = parts(program)
    text = b"[" + b"{}," * 2_000_001 + b"0]"
    found = exported_graph.translated(model.path, text, model.tensors, exported.DTYPES)
    assert found.graph is None and "two million" in found.notes[0]


def test_claims_of_size_cost_no_memory(program: Path) -> None:
    """A default for absent parameters is as large as the file claims the input to be."""
    model, document = parts(program)
    graph = graph_in(document)
    graph["tensor_values"]["relu_"]["sizes"][1] = {"as_int": 1 << 40}
    arguments = {"input": {"as_tensor": {"name": "relu_"}}, "num_groups": {"as_int": 1 << 40}}
    graph["nodes"][2] |= {
        "target": "torch.ops.aten.group_norm.default",
        "inputs": [{"name": name, "arg": value, "kind": 1} for name, value in arguments.items()],
    }
    assert translate(model, document).graph is None


def places_in(value: Any) -> list[tuple[Any, Any]]:
    found = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found.append((value, key))
        found += places_in(inner)
    return found


def test_a_mutant_has_a_graph_or_a_reason(program: Path) -> None:
    """Whatever stands in the JSON: a graph, no graph with a note, or a ModelError; all of it soon."""
    model, document = parts(program)
    for node in graph_in(document)["nodes"]:
        node["metadata"] = {}
    values = (None, -1, 1 << 62, 1 << 63, 0.5, True, "", "linear", "x" * 5000, [], {}, [[]], {"as_int": 1 << 40}, {"as_name": "s"},
              [1] * 1000, {"as_tensor": {"name": "x"}}, [{"as_tensor": {"name": "x"}}])  # fmt: skip
    rng, taken = random.Random(5), 0
    for _ in range(600):
        mutant = copy.deepcopy(document)
        for _ in range(rng.randint(1, 2)):
            holder, key = rng.choice(places_in([graph_in(mutant), mutant["graph_module"]["signature"], mutant]))
            if rng.random() < 0.3 and isinstance(holder, dict):
                del holder[key]
            else:
                holder[key] = copy.deepcopy(rng.choice(values))
        try:
            found = translate(model, mutant)
        except ModelError:
            continue
        taken += found.graph is not None
        assert found.graph is not None or found.notes
    assert taken > 50  # much of the JSON says nothing about the function
