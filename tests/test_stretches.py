"""Linear stretches: the folded operator against the dense Jacobian that onnxruntime computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import snaudit
from snaudit.bound import Grade

FLOAT = onnx.TensorProto.FLOAT


def jacobian(model: onnx.ModelProto, shape: tuple[int, ...]) -> np.ndarray:
    """The linear part of an affine model, column by column: f(eᵢ) − f(0)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(x: np.ndarray) -> np.ndarray:
        return session.run(None, {"x": x.astype(np.float32).reshape(shape)})[0].astype(np.float64).ravel()

    size = int(np.prod(shape))
    zero = run(np.zeros(size))
    return np.stack([run(row) - zero for row in np.eye(size)], axis=1)


def build(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: tuple[int, ...]) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    last = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, list(shape))],
        [helper.make_tensor_value_info(last, FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def batch_norm(name: str, value: str, channels: int, rng: np.random.Generator, weights: dict[str, np.ndarray]) -> onnx.NodeProto:
    for part in ("gamma", "beta", "mean"):
        weights[f"{name}_{part}"] = rng.standard_normal(channels) * 2
    weights[f"{name}_var"] = rng.uniform(0.01, 4, channels)
    inputs = [value, *(f"{name}_{part}" for part in ("gamma", "beta", "mean", "var"))]
    return helper.make_node("BatchNormalization", inputs, [name], epsilon=1e-3)


def convolution(kind: str, groups: int, rng: np.random.Generator, weights: dict[str, np.ndarray]) -> tuple[onnx.NodeProto, int]:
    """A convolution of 4 channels, and how many it makes."""
    out = 6
    shape = (4, out // groups, 3, 3) if kind == "ConvTranspose" else (out, 4 // groups, 3, 3)
    weights["w"] = rng.standard_normal(shape)
    node = helper.make_node(kind, ["a", "w"], ["c"], group=groups, strides=[2, 1], pads=[1, 1, 1, 1])
    return node, out


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("before", [False, True])
def test_convolutions_with_scalings_around(tmp_path: Path, kind: str, groups: int, before: bool) -> None:
    rng = np.random.default_rng(groups + 2 * before)
    weights: dict[str, np.ndarray] = {"shift": rng.standard_normal((6, 1, 1)), "scale": rng.standard_normal((1, 6, 1, 1))}
    node, out = convolution(kind, groups, rng, weights)
    first = batch_norm("a", "x", 4, rng, weights) if before else helper.make_node("Identity", ["x"], ["a"])
    nodes = [
        first,
        node,
        helper.make_node("Add", ["c", "shift"], ["d"]),
        batch_norm("e", "d", out, rng, weights),
        helper.make_node("Mul", ["e", "scale"], ["y"]),
    ]
    shape = (1, 4, 9, 9)
    model = build(nodes, weights, shape)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    report = snaudit.audit(tmp_path / "m.onnx")
    true = np.linalg.norm(jacobian(model, shape), 2)
    bound = report.network.bound
    assert bound.grade is Grade.PROVED
    assert true <= bound.upper * (1 + 1e-5)
    assert bound.upper <= true * 1.25, "the stretch is one operator: what is left is the size of the input"


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_matrices_with_scalings_around(tmp_path: Path, op: str) -> None:
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((5, 7)), "s": rng.standard_normal(7) * 3, "b": rng.standard_normal(7)}
    options = {"alpha": -2.0} if op == "Gemm" else {}
    nodes = [
        helper.make_node(op, ["x", "w"], ["c"], **options),
        helper.make_node("Sub", ["b", "c"], ["d"]),
        batch_norm("e", "d", 7, rng, weights),
        helper.make_node("Div", ["e", "s"], ["y"]),
    ]
    model = build(nodes, weights, (1, 5))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    true = np.linalg.norm(jacobian(model, (1, 5)), 2)
    bound = snaudit.audit(tmp_path / "m.onnx").network.bound
    assert true <= bound.upper * (1 + 1e-5) and bound.upper <= true * (1 + 1e-5)


def test_a_value_that_is_used_elsewhere_is_not_swallowed(tmp_path: Path) -> None:
    """conv → BN with the conv's output used again: the shortcut ends at the BN, the branch keeps its own."""
    rng = np.random.default_rng(2)
    weights = {"w": rng.standard_normal((3, 3, 1, 1))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        batch_norm("e", "c", 3, rng, weights),
        helper.make_node("Add", ["c", "e"], ["y"]),
    ]
    model = build(nodes, weights, (1, 3, 2, 2))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    true = np.linalg.norm(jacobian(model, (1, 3, 2, 2)), 2)
    bound = snaudit.audit(tmp_path / "m.onnx").network.bound
    assert true <= bound.upper * (1 + 1e-5)


def ratio(model: onnx.ModelProto, shape: tuple[int, ...]) -> float:
    return float(np.linalg.norm(jacobian(model, shape), 2))


def bound_of(model: onnx.ModelProto, folder: Path) -> float:
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return snaudit.audit(folder / "m.onnx").network.bound.upper


def test_a_bias_that_varies_is_a_second_way_in(tmp_path: Path) -> None:
    weights = {"w": np.eye(3), "big": np.array([100.0])}
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["c"]),
        helper.make_node("Gemm", ["x", "w", "c"], ["y"], alpha=0.5),
    ]
    model = build(nodes, weights, (2, 3))
    assert ratio(model, (2, 3)) <= bound_of(model, tmp_path) * (1 + 1e-5)


def test_a_scaling_that_copies_channels_is_no_stretch(tmp_path: Path) -> None:
    """A grey image, scaled for three channels, before a convolution."""
    weights = {"s": np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1), "w": np.array([1.0, 1.0, 1.0]).reshape(1, 3, 1, 1)}
    nodes = [helper.make_node("Mul", ["x", "s"], ["c"]), helper.make_node("Conv", ["c", "w"], ["y"])]
    model = build(nodes, weights, (1, 1, 4, 4))
    assert ratio(model, (1, 1, 4, 4)) <= bound_of(model, tmp_path) * (1 + 1e-5)


@pytest.mark.parametrize(("activation", "wanted"), [("LeakyRelu", 10.0), ("Relu6", np.inf)])
def test_an_activation_inside_a_fused_op_counts(tmp_path: Path, activation: str, wanted: float) -> None:
    weights = {"w": np.eye(3), "s": np.array([2.0])}
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["c"]),
        helper.make_node("FusedGemm", ["c", "w"], ["y"], domain="com.microsoft", activation=activation, activation_alpha=5.0),
    ]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 3])],
        initializers,
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    assert bound_of(model, tmp_path) == pytest.approx(wanted, rel=1e-6) and bound_of(model, tmp_path) >= wanted
