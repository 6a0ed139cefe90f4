"""A size that the network refuses has no bound: each format says which weight refuses it, and by how much."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from snaudit import formats
from snaudit.errors import UsageError

NETS = {
    "conv": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), (1, 3, 6, 6), (1, 5, 6, 6), "0.weight takes 3 channels, and is given 5"),
    "groups": (nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)), (1, 4, 6), (1, 6, 6), "0.weight takes 4 channels, and is given 6"),
    "turned": (nn.Sequential(nn.ConvTranspose1d(3, 4, 3)), (1, 3, 6), (1, 4, 6), "0.weight takes 3 channels, and is given 4"),
    "linear": (nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (1, 6), (1, 7), "0.weight takes 6 features, and is given 7"),
    "rows": (nn.Sequential(nn.Linear(6, 4), nn.ReLU()), (1, 2, 6), (1, 2, 7), "0.weight takes 6 features, and is given 7"),
    "norm": (nn.Sequential(nn.BatchNorm1d(3), nn.Conv1d(3, 2, 1)), (1, 3, 6), (1, 4, 6), "0.weight takes 3 channels, and is given 4"),
}  # fmt: skip


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_torchscript_says_which_weight_refuses(name: str, trace: bool, tmp_path: Path) -> None:
    net, right, wrong, told = NETS[name]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        net.eval()
        made = torch.jit.trace(net, torch.zeros(right), check_trace=False) if trace else torch.jit.script(net)
        made.save(str(tmp_path / "m.pt"))
    assert formats.read(tmp_path / "m.pt", None, (",".join(map(str, right)),)).graph is not None
    with pytest.raises(UsageError, match=re.escape(told)):
        formats.read(tmp_path / "m.pt", None, (",".join(map(str, wrong)),))


def _stored(path: Path, op: str, shapes: list[tuple[int, ...]], rank: int, **more: object) -> Path:
    """One op whose input's sizes are all open."""
    held = [numpy_helper.from_array(np.ones(shape, np.float32), f"w{at}") for at, shape in enumerate(shapes)]
    node = helper.make_node(op, ["x", *(one.name for one in held)], ["y"], **more)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [f"n{at}" for at in range(rank)])
    graph = helper.make_graph([node], "g", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


OPEN = {
    "Conv": ([(4, 3, 3)], {"group": 2}, (1, 6, 8), (1, 3, 8), "w0 takes 6 channels, and is given 3"),
    "ConvTranspose": ([(4, 3, 3)], {}, (1, 4, 8), (1, 3, 8), "w0 takes 4 channels, and is given 3"),
    "Gemm": ([(5, 4)], {"transB": 1}, (1, 4), (1, 5), "w0 takes 4 features, and is given 5"),
    "MatMul": ([(5, 4)], {}, (2, 3, 5), (2, 3, 4), "w0 takes 5 features, and is given 4"),
    "BatchNormalization": ([(3,)] * 4, {}, (1, 3, 6), (1, 4, 6), "w0 takes 3 channels, and is given 4"),
    "InstanceNormalization": ([(3,)] * 2, {}, (1, 3, 6), (1, 4, 6), "w0 takes 3 channels, and is given 4"),
    "LayerNormalization": ([(3,)], {}, (2, 3), (2, 4), "w0 takes 3 features, and is given 4"),
    "LSTM": ([(1, 8, 3), (1, 8, 2)], {"hidden_size": 2}, (7, 1, 3), (7, 1, 4), "w0 takes 3 features, and is given 4"),
    "Add": ([(3, 1)], {}, (1, 3, 8), (1, 5, 8), "1x5x8 and 3x1, which do not go together"),
}  # fmt: skip


@pytest.mark.parametrize("op", OPEN)
def test_an_open_dimension_is_held_to_its_weight(op: str, tmp_path: Path) -> None:
    shapes, more, right, wrong, told = OPEN[op]
    path = _stored(tmp_path / "m.onnx", op, shapes, len(right), **more)
    assert formats.read(path, None, (",".join(map(str, right)),)).graph is not None
    with pytest.raises(UsageError, match=re.escape(told)):
        formats.read(path, None, (",".join(map(str, wrong)),))


def test_a_convolution_says_how_many_axes_it_takes(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()).save(str(tmp_path / "m.pt"))
    model = formats.read(tmp_path / "m.pt", None, ("1,3",))
    assert model.graph is None and any("takes an input of 4 axes, and is given one of 2" in note for note in model.notes)
