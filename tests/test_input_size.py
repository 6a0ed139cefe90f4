"""Graphs whose input size is fixed, by themselves or by --input-size: norms and bounds for that size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graphs import function_of, make_model
from onnx import helper, numpy_helper

import snaudit
from snaudit import sigma
from snaudit.bound import Grade
from snaudit.cli import main
from snaudit.errors import UsageError
from snaudit.linear import Convolution

SINGLE = 2e-6  # float32 inference of the runtime that gives the truth
RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 2, 3, 3))


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return path


def matrix_of(model: onnx.ModelProto) -> np.ndarray:
    """The matrix of a model that is affine, by onnxruntime."""
    function, n = function_of(model)
    return np.stack([function(unit) - function(np.zeros(n)) for unit in np.eye(n)], axis=1)


def model_of(nodes: list[onnx.NodeProto], weights: Mapping[str, np.ndarray], shape: tuple = (1, 2, 6, 5)) -> onnx.ModelProto:
    return make_model(nodes, {"x": shape}, weights, dtype="float32", opset=19)


def conv(source: str = "x", out: str = "y", op: str = "Conv", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, [source, "w"], [out], name=f"n{out}", **attributes)


SINGLES = {
    "pads": {"pads": [1, 0, 2, 1]},
    "same upper": {"auto_pad": "SAME_UPPER", "strides": [2, 1]},
    "same lower": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "valid dilated": {"auto_pad": "VALID", "dilations": [2, 1]},
    "transposed": {"op": "ConvTranspose", "strides": [2, 2], "pads": [1, 1, 0, 0], "output_padding": [1, 0]},
}


@pytest.mark.parametrize("name", SINGLES)
@pytest.mark.parametrize("norm, order", [("l2", 2), ("linf", np.inf), ("l1", 1)])
def test_one_node_at_its_size(tmp_path: Path, name: str, norm: str, order: float) -> None:
    weight = W.transpose(1, 0, 2, 3) if name == "transposed" else W
    model = model_of([conv(**SINGLES[name])], {"w": weight})  # type: ignore[arg-type]
    report = snaudit.audit(saved(tmp_path, model), norm=norm)
    truth = float(np.linalg.norm(matrix_of(model), order))
    (layer,) = report.layers
    assert layer.norm.grade is Grade.PROVED and "at 6×5" in layer.norm.method or norm != "l2"
    for bound in (layer.norm, report.network.bound):
        assert truth * (1 - SINGLE) <= bound.upper <= truth * (1 + SINGLE)
    assert layer.norm.lower <= truth * (1 + SINGLE)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("scaled", [False, True])
def test_pad_and_convolution_are_one_operator(tmp_path: Path, mode: str, scaled: bool) -> None:
    weights = {"w": W, "p": np.array([0, 0, 2, 1, 0, 0, 1, 2]), "s": RNG.uniform(0.2, 3.0, (4, 1, 1))}
    nodes = [helper.make_node("Pad", ["x", "p"], ["q"], mode=mode), conv("q", "t" if scaled else "y", pads=[1, 0, 0, 1])]
    nodes += [helper.make_node("Mul", ["t", "s"], ["y"])] if scaled else []
    model = model_of(nodes, weights)
    truth = float(np.linalg.norm(matrix_of(model), 2))
    bound = snaudit.audit(saved(tmp_path, model)).network.bound
    assert bound.grade is Grade.PROVED
    assert truth * (1 - SINGLE) <= bound.upper <= truth * (1 + SINGLE)


def test_pads_that_do_not_go_with_the_convolution(tmp_path: Path) -> None:
    """Channels padded, entries cropped: the ops' own rules, and sound."""
    for pads in ([0, 1, 1, 0, 0, 0, 1, 0], [0, 0, -1, 1, 0, 0, 1, 1]):
        channels = 2 + pads[1]
        weights = {"w": RNG.standard_normal((4, channels, 3, 3)), "p": np.array(pads)}
        model = model_of([helper.make_node("Pad", ["x", "p"], ["q"], mode="edge"), conv("q")], weights)
        bound = snaudit.audit(saved(tmp_path, model)).network.bound
        assert bound.upper >= np.linalg.norm(matrix_of(model), 2) * (1 - SINGLE)


def test_one_weight_at_two_sizes(tmp_path: Path) -> None:
    """The layer has the larger norm, each node its own."""
    square = RNG.standard_normal((2, 2, 3, 3))
    nodes = [conv(out="a", pads=[1] * 4, strides=[2, 2]), conv("a", "y", strides=[2, 2], pads=[1] * 4)]
    report = snaudit.audit(saved(tmp_path, model_of(nodes, {"w": square}, (1, 2, 9, 9))))
    (layer,) = report.layers
    ends = [sigma.measure(Convolution(square.astype(np.float32).astype(float), (2, 2), (1, 1)).at((n, n), (1, 1))) for n in (9, 5)]
    assert layer.norm.upper == max(end.upper for end in ends)
    assert "of 2 sizes" in layer.norm.method
    product = ends[0].upper * ends[1].upper
    assert report.network.methods[0].bound.upper == pytest.approx(product, rel=1e-12)
    assert report.network.bound.upper < product, "the two without anything between are one map"


OPEN = ("batch", 2, "height", "width")


def test_a_size_makes_the_bound_that_of_the_static_graph(tmp_path: Path) -> None:
    nodes = [conv(pads=[1] * 4)]
    static = snaudit.audit(saved(tmp_path, model_of(nodes, {"w": W})))
    path = saved(tmp_path, model_of(nodes, {"w": W}, OPEN))
    every = snaudit.audit(path)
    for given in (["1,2,6,5"], ["height=6", "width=5"], ["x=3,2,6,5"], ["width=5", "1,2,6,5"]):
        report = snaudit.audit(path, input_size=tuple(given))
        assert report.layers[0].norm == static.layers[0].norm
        assert report.network.bound.upper == static.network.bound.upper < every.network.bound.upper
        assert any("it holds for no other" in text for text in report.network.assumptions)
        assert any("input size given" in text for text in report.model.notes)
    assert not any("size given" in text for text in (*static.network.assumptions, *static.model.notes))


WRONG = {
    "heigth=6": "near it: height",
    "1,2,6": "has 4 axes, not 3",
    "1,3,6,5": "axis 1 of x is 2 in the graph, not 3",
    "height=0": "positive whole numbers",
    "=3": "positive whole numbers",
    "height=6,7": "no symbolic dimension and no input",
}


def rated(kind: int) -> onnx.ModelProto:
    """x times 2 where the rate is 16000, else times 3; under an If."""

    def branch(name: str, factor: float) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", onnx.TensorProto.FLOAT, [], [factor])),
            helper.make_node("Mul", ["x", "c"], ["b"]),
        ]
        return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name="b")])

    asked = numpy_helper.from_array(np.array(16000, helper.tensor_dtype_to_np_dtype(kind)))
    nodes = [
        helper.make_node("Constant", [], ["rate"], value=asked),
        helper.make_node("Equal", ["sr", "rate"], ["same"]),
        helper.make_node("If", ["same"], ["z"], then_branch=branch("t", 2.0), else_branch=branch("e", 3.0)),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, [1, 4]), helper.make_tensor_value_info("sr", kind, [])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, [1, 4])],
                              [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")])  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("kind", [onnx.TensorProto.INT64, onnx.TensorProto.INT32])
def test_an_integer_input_is_given_its_value(tmp_path: Path, kind: int) -> None:
    """As of TorchScript: the branch that runs at that value is the network, for the lower end too."""
    path = saved(tmp_path, rated(kind))
    for given, factor in (((), 3.0), (("sr=16000",), 2.0), (("sr=8000",), 3.0)):
        report = snaudit.audit(path, input_size=given, witness_seconds=0.5)
        assert report.network.bound.upper == pytest.approx(factor, rel=1e-6)
        assert not given or report.network.bound.lower == pytest.approx(factor, rel=1e-3)
    with pytest.raises(UsageError, match="sr is one number of type"):
        snaudit.audit(path, input_size=("sr=1,2",))


@pytest.mark.parametrize("given", WRONG)
def test_sizes_that_make_no_sense(tmp_path: Path, given: str) -> None:
    path = saved(tmp_path, model_of([conv(pads=[1] * 4)], {"w": W}, OPEN))
    with pytest.raises(UsageError, match=WRONG[given]):
        snaudit.audit(path, input_size=(given,))
    with pytest.raises(UsageError, match="cannot be both"):
        snaudit.audit(path, input_size=("height=7", "height=8"))


def test_two_inputs_need_names(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "z"], ["s"]), conv("s", pads=[1] * 4)]
    path = saved(tmp_path, make_model(nodes, {"x": OPEN, "z": OPEN}, {"w": W}, dtype="float32"))
    with pytest.raises(UsageError, match="2 inputs: x, z"):
        snaudit.audit(path, input_size=("1,2,6,5",))
    assert "at 6×5" in snaudit.audit(path, input_size=("x=1,2,6,5",)).layers[0].norm.method


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, model_of([conv(pads=[1] * 4)], {"w": W}, OPEN))
    assert main(["inspect", str(path), "--input-size", "height=6", "--input-size", "width=5", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["input_size"] == ["height=6", "width=5"]
    assert document["layers"][0]["norm"]["method"] == "certificate at 6×5"
    limit = snaudit.audit(path, input_size=("1,2,6,5",)).network.bound.upper
    judged = ["check", str(path), "--max-lipschitz", str(limit * 1.001)]
    assert main([*judged, "--witness-seconds", "0"]) == 3
    assert main([*judged, "--input-size", "1,2,6,5"]) == 0
    torch.save({"w": torch.ones(2, 2, 3, 3)}, tmp_path / "w.pt")
    assert main(["inspect", str(tmp_path / "w.pt"), "--input-size", "1,2,6,5"]) == 2
    assert "needs a graph" in capsys.readouterr().err


def test_the_witness_is_of_that_size(tmp_path: Path) -> None:
    """A pair of a larger size would refute the bound: the runtime is held to the size given."""
    path, pair = saved(tmp_path, model_of([conv(pads=[1] * 4)], {"w": np.abs(W)}, OPEN)), tmp_path / "pair.npz"
    np.savez(pair, **{"x:x": np.ones((1, 2, 40, 40)), "y:x": np.zeros((1, 2, 40, 40))})
    small = snaudit.audit(path, witness_seconds=1.0, input_size=("1,2,6,5",)).network
    assert small.witness is not None and 0.0 < small.witness.lower <= small.bound.upper
    assert [point.shape for point in small.witness.points] == [(1, 2, 6, 5)]
    found = snaudit.audit(path, replay=pair).network
    assert found.witness is not None and small.bound.upper < found.witness.lower <= found.bound.upper
    refused = snaudit.audit(path, replay=pair, input_size=("1,2,6,5",)).network
    assert refused.witness is not None and refused.witness.lower == 0.0 and refused.witness.note
