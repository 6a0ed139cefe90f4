"""Corners of graphs in which a bound was once too low: each against what onnxruntime computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import snaudit
from snaudit import folding, lipschitz
from snaudit.bound import Grade
from snaudit.extraction import extract
from snaudit.measuring import Meter
from snaudit.policy import judge

DOUBLE = onnx.TensorProto.DOUBLE


def model_of(nodes, inputs, weights=(), opset: int = 17, output_type: int = DOUBLE) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, DOUBLE, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(nodes[-1].output[0], output_type, None)],
        [numpy_helper.from_array(np.asarray(array, dtype=np.float64), name) for name, array in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def network_of(model: onnx.ModelProto, folder: Path) -> lipschitz.Composition:
    """The composition alone: some of these graphs hold no matrix to audit."""
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    read = snaudit.load(folder / "m.onnx")
    layers = extract(read).layers
    norms = {output: Meter(snaudit.Settings()).measure(layer).norm for layer in layers for output in layer.outputs}

    def fold(value):
        return folding.evaluate(value) if folding.is_constant(value) else None

    return lipschitz.compose(read.graph, "l2", norms, {}, (), fold)


def run(model: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0].astype(np.float64)


def stretch(model: onnx.ModelProto, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.linalg.norm(run(model, x=x) - run(model, x=y)) / np.linalg.norm(x - y))


def test_a_count_of_what_is_not_zero_jumps(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Cast", ["r"], ["r32"], to=onnx.TensorProto.FLOAT),
        helper.make_node("NonZero", ["r32"], ["z"]),
        helper.make_node("Size", ["z"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=DOUBLE),
        helper.make_node("Add", ["a", "f"], ["y"]),
    ]
    model = model_of(nodes, [("x", [1, 3])], [("w", np.eye(3))])
    below, above = np.full((1, 3), -1e-7), np.full((1, 3), 1e-7)
    assert stretch(model, below, above) > 1e6
    assert not network_of(model, tmp_path).bound.bounded


def test_the_shape_of_an_input_of_known_rank_is_constant(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Reshape", ["x", "s"], ["y"]),
    ]
    assert network_of(model_of(nodes, [("x", ["n", 3])]), tmp_path).bound.upper == 1.0


def test_a_layer_norm_scale_that_varies_over_rows(tmp_path: Path) -> None:
    scale = np.array([[1.0], [0.0], [0.0], [0.0]])
    node = helper.make_node("LayerNormalization", ["x", "scale"], ["y"], axis=-1, epsilon=1.0)
    model = model_of([node], [("x", [4, 4])], [("scale", scale)])
    x = np.zeros((4, 4))
    y = x.copy()
    y[0] = np.array([1, -1, 1, -1]) * 1e-5
    truth = stretch(model, x, y)
    assert truth > 0.99
    assert truth <= network_of(model, tmp_path).bound.upper * (1 + 1e-6)


def test_default_epsilon_is_a_float32(tmp_path: Path) -> None:
    names = [("s", [1.0]), ("b", [0.0]), ("m", [0.0]), ("v", [0.0])]
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])
    model = model_of([node], [("x", [1, 1, 2])], names)
    truth = 1.0 / np.sqrt(float(np.float32(1e-5)))
    upper = network_of(model, tmp_path).bound.upper
    assert truth <= upper <= truth * (1 + 1e-12)


def test_sizes_that_only_happen_to_be_equal_are_an_assumption(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [("x", [3, "m"]), ("w", [3, "k"])])
    network = network_of(model, tmp_path)
    assert network.bound.grade is Grade.ASSUMED and any("dynamic sizes" in text for text in network.assumptions)
    assert judge(network.bound, 2.0) is snaudit.Verdict.UNDECIDED
    spread = run(model, x=np.ones((3, 1)), w=np.zeros((3, 50))) - run(model, x=np.zeros((3, 1)), w=np.zeros((3, 50)))
    assert np.linalg.norm(spread) / np.sqrt(3) > 2, "at other sizes it stretches more"


@pytest.mark.parametrize("pads", [[0, 0], [1, 1]])
def test_a_window_longer_than_its_axis_still_reads_it(tmp_path: Path, pads: list[int]) -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], dilations=[5], pads=pads)
    model = model_of([node], [("x", [1, 1, 3])])
    x = np.array([[[3.0, 1.0, 2.0]]])
    try:
        truth = stretch(model, x, x + 1e-3 * np.ones_like(x)) if run(model, x=x).size else 0.0
    except Exception as error:
        assert "onnxruntime" in type(error).__module__  # it does not run at all
        truth = 0.0
    assert truth <= network_of(model, tmp_path).bound.upper


def test_ceil_mode_with_auto_pad_has_no_bound(tmp_path: Path) -> None:
    node = helper.make_node(
        "AveragePool", ["x"], ["y"], kernel_shape=[2], dilations=[2], auto_pad="SAME_UPPER", ceil_mode=1
    )
    assert not network_of(model_of([node], [("x", [1, 1, 5])], opset=19), tmp_path).bound.bounded


def test_a_matrix_times_a_vector(tmp_path: Path) -> None:
    vector = np.array([3.0, 4.0])
    model = model_of([helper.make_node("MatMul", ["x", "v"], ["y"])], [("x", [1, 5, 2])], [("v", vector)])
    assert 5.0 <= network_of(model, tmp_path).bound.upper <= 5.0 * (1 + 1e-9)


def split_and_join(branches: list[str], join: str) -> onnx.ModelProto:
    """x split into two pieces, an op on each, joined again."""
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["p0", "p1"], axis=1),
        *(helper.make_node("MatMul", [f"p{i}", branch], [f"q{i}"]) for i, branch in enumerate(branches)),
        helper.make_node(join, ["q0", "q1"], ["y"], **({"axis": 1} if join == "Concat" else {})),
    ]
    rng = np.random.default_rng(3)
    weights = [("w0", rng.standard_normal((3, 3))), ("w1", rng.standard_normal((3, 3)))]
    model = model_of(nodes, [("x", [1, 6])], weights)
    model.graph.initializer.append(numpy_helper.from_array(np.array([3, 3]), "sizes"))
    return model


@pytest.mark.parametrize("branches", [["w0", "w1"], ["w0", "w0"]])
@pytest.mark.parametrize("join", ["Concat", "Add"])
def test_pieces_of_one_value_count_once(tmp_path: Path, branches: list[str], join: str) -> None:
    model = split_and_join(branches, join)
    jacobian = np.stack([run(model, x=row[None])[0] for row in np.eye(6)], axis=1)
    truth = np.linalg.norm(jacobian, 2)
    upper = network_of(model, tmp_path).bound.upper
    assert truth <= upper * (1 + 1e-9)
    if join == "Concat":
        assert upper <= truth * (1 + 1e-7), "block diagonal: the larger block"
    else:
        assert upper <= truth * 1.45


def test_a_piece_that_is_used_twice_counts_twice(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["p0", "p1"], axis=1),
        helper.make_node("Neg", ["p0"], ["n0"]),
        helper.make_node("Concat", ["p0", "p1", "n0"], ["y"], axis=1),
    ]
    model = model_of(nodes, [("x", [1, 6])])
    model.graph.initializer.append(numpy_helper.from_array(np.array([3, 3]), "sizes"))
    upper = network_of(model, tmp_path).bound.upper
    assert np.sqrt(2) <= upper <= np.sqrt(2) * (1 + 1e-12)


def audit_of(model: onnx.ModelProto, folder: Path) -> snaudit.Report:
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return snaudit.check(folder / "m.onnx", max_sigma=2.0, max_lipschitz=1e4)


def test_the_size_of_what_data_resizes_jumps(tmp_path: Path) -> None:
    """Upsample by scales that depend on the input, then count: a step function."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Reshape", ["f", "flat"], ["r"]),
        helper.make_node("Relu", ["r"], ["p"]),
        helper.make_node("Add", ["p", "one"], ["scales"]),
        helper.make_node("Upsample", ["f", "scales"], ["u"], mode="nearest"),
        helper.make_node("Size", ["u"], ["n"]),
        helper.make_node("Cast", ["n"], ["c"], to=DOUBLE),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    model = model_of(nodes, [("x", [1, 2])], opset=9)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "one"))
    assert stretch(model, np.full((1, 2), 0.99), np.full((1, 2), 1.01)) > 30
    assert not network_of(model, tmp_path).bound.bounded


BIG = 1000.0 * np.eye(3)
HIDDEN = {
    "Expand": [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "one"], ["b"]),
        helper.make_node("Concat", ["b", "square"], ["e"], axis=0),
        helper.make_node("Expand", ["big", "e"], ["w"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ],
    "Einsum": [helper.make_node("Einsum", ["h", "big", "big"], ["y"], equation="bij,jk,kl->bil")],
    "Where": [
        helper.make_node("Where", ["pick", "big", "small"], ["w"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ],
}


@pytest.mark.parametrize("op", HIDDEN)
def test_a_matrix_that_is_not_measured_keeps_the_gate_open(tmp_path: Path, op: str) -> None:
    nodes = [helper.make_node("MatMul", ["x", "small"], ["h"]), *HIDDEN[op]]
    weights = [("small", np.eye(3) * 0.5), ("big", BIG)]
    model = model_of(nodes, [("x", ["n", 3, 3])], weights)
    for name, values in (("zero", [0]), ("one", [1]), ("square", [3, 3])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    if op == "Where":
        model.graph.input.append(helper.make_tensor_value_info("pick", onnx.TensorProto.BOOL, [1]))
    report = audit_of(model, tmp_path)
    assert report.verdict is snaudit.Verdict.UNDECIDED
    assert any(item.name == "big" and item.missed for item in report.left_out)


def test_a_stretch_does_not_step_over_a_bias_that_is_no_number(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["g"]), helper.make_node("Mul", ["g", "s"], ["y"])]
    weights = [("w", np.eye(3)), ("b", [np.inf, 0.0, 0.0]), ("s", [0.5, 1.0, 1.0])]
    report = audit_of(model_of(nodes, [("x", [1, 3])], weights), tmp_path)
    assert not report.network.bound.bounded and report.verdict is not snaudit.Verdict.PASS


def test_equal_bytes_of_unlike_dtypes_are_two_weights(tmp_path: Path) -> None:
    bits = np.full((2, 2), 0x7000, np.uint16)
    nodes = []
    tensors = []
    for name, kind in (("a", onnx.TensorProto.FLOAT16), ("b", onnx.TensorProto.BFLOAT16)):
        zero = helper.make_tensor(f"{name}0", kind, [2, 2], np.zeros((2, 2), np.uint16).tobytes(), raw=True)
        tensors += [helper.make_tensor(name, kind, [2, 2], bits.tobytes(), raw=True), zero]
        nodes.append(helper.make_node("Add", [name, f"{name}0"], [f"{name}w"]))
    nodes += [helper.make_node("MatMul", ["x", "aw"], ["m"]), helper.make_node("MatMul", ["z", "bw"], ["y"])]
    inputs = [
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, [1, 2]),
        helper.make_tensor_value_info("z", onnx.TensorProto.BFLOAT16, [1, 2]),
    ]
    outputs = [
        helper.make_tensor_value_info("m", onnx.TensorProto.FLOAT16, None),
        helper.make_tensor_value_info("y", onnx.TensorProto.BFLOAT16, None),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    report = audit_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path)
    tops = sorted(layer.sigma.upper for layer in report.layers)
    assert len(tops) == 2 and tops[0] < 2e4 and tops[1] > 1e29


@pytest.mark.parametrize(
    ("before", "weight", "after"),
    [([1e200, 1e-200, 1e-200], 1e200, []), ([1e250], 1e-200, [1e-150]), ([], 1.0, [1e-200, 1e-200, 1e200, 1e200])],
)
def test_scales_that_leave_the_floats_together(tmp_path: Path, before, weight, after) -> None:
    """A product of scales may underflow where the network does not: that stretch is not folded."""
    nodes, weights, value = [], [("w", (np.eye(4) + 1) * weight)], "x"
    for index, factor in enumerate([*before, None, *after]):
        if factor is None:
            nodes.append(helper.make_node("MatMul", [value, "w"], [f"v{index}"]))
        else:
            weights.append((f"s{index}", np.full(4, factor)))
            nodes.append(helper.make_node("Mul", [value, f"s{index}"], [f"v{index}"]))
        value = f"v{index}"
    model = onnx.shape_inference.infer_shapes(model_of(nodes, [("x", [1, 4])], weights))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    exact = 5.0 * float(np.prod([np.longdouble(f) for f in (weight, *before, *after)]))
    assert snaudit.audit(tmp_path / "m.onnx").network.bound.upper >= exact * (1 - 1e-9)


def gain_at(path: Path, points: list[dict[str, np.ndarray]]) -> float:
    """‖f(x) − f(y)‖/‖x − y‖ of two points, by onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = [np.concatenate([y.ravel() for y in session.run(None, point)]) for point in points]
    inputs = [np.concatenate([point[name].ravel() for name in sorted(point)]) for point in points]
    return float(np.linalg.norm(outputs[0] - outputs[1]) / np.linalg.norm(inputs[0] - inputs[1]))


@pytest.mark.parametrize("op", ["Tanh", "Softsign", "Elu", "Gelu", "Erf", "Atan"])
def test_a_curve_far_from_zero_is_as_long_as_it_is(tmp_path: Path, op: str) -> None:
    """‖f(x)‖ ≤ sup|f'|·‖x‖ needs the slopes from zero on, not those of the range alone."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["a"], epsilon=1.0),
        helper.make_node(op, ["a"], ["t"]), helper.make_node("Sigmoid", ["z"], ["s"]),
        helper.make_node("Mul", ["t", "s"], ["p"]), helper.make_node("MatMul", ["p", "w"], ["y"]),
    ]  # fmt: skip
    weights = [("g", np.full(4, 0.5)), ("b", np.full(4, 4.0)), ("w", np.eye(4) * 100)]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xz"],
        [helper.make_tensor_value_info("y", 1, [1, 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "m.onnx")
    x, step = np.array([[0.0, 1.0, 2.0, 3.0]], np.float32), np.full((1, 4), 0.01, np.float32)
    seen = gain_at(tmp_path / "m.onnx", [{"x": x, "z": -step}, {"x": x, "z": step}])
    bound = snaudit.audit(tmp_path / "m.onnx").network.bound
    assert seen <= bound.upper * (1 + 1e-4) and bound.upper < 200


def test_an_axis_that_keeps_its_size_may_be_resampled(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["a"], mode="cubic"),
        helper.make_node("Mul", ["a", "z"], ["p"]), helper.make_node("MatMul", ["p", "w"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 1, 4, 4]), helper.make_tensor_value_info("z", 1, [1, 1, 8, 4])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.array([1, 1, 2, 1.2], np.float32), "scales"), numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    bound = snaudit.audit(tmp_path / "m.onnx", input_range=("x=-1,1", "z=-0.001,0.001")).network.bound
    rng, seen = np.random.default_rng(0), 0.0
    for _ in range(300):
        x = np.sign(rng.standard_normal((1, 1, 4, 4))).astype(np.float32)
        steps = [np.zeros((1, 1, 8, 4), np.float32) for _ in range(2)]
        place = tuple(rng.integers(n) for n in (1, 1, 8, 4))
        steps[0][place], steps[1][place] = -0.001, 0.001
        seen = max(seen, gain_at(tmp_path / "m.onnx", [{"x": x, "z": z} for z in steps]))
    assert 1.4 < seen <= bound.upper


def test_scalars_that_underflow_in_a_pattern(tmp_path: Path) -> None:
    """h·k⁸ · sigmoid(h) / k⁸ is SiLU, whatever k⁸ is in floating point."""
    nodes, weights = [helper.make_node("MatMul", ["x", "w"], ["h0"])], [("w", np.ones((3, 3))), ("k", 2.0**-600)]
    nodes += [helper.make_node("Mul", [f"h{i}", "k"], [f"h{i + 1}"]) for i in range(2)]
    nodes += [helper.make_node("Sigmoid", ["h0"], ["s"]), helper.make_node("Mul", ["h2", "s"], ["g0"])]
    nodes += [helper.make_node("Div", [f"g{i}", "k"], [f"g{i + 1}"]) for i in range(2)]
    assert network_of(model_of(nodes, [("x", [1, 3])], weights), tmp_path).bound.upper >= 3.2995


def test_powers_of_two_that_underflow_in_a_section(tmp_path: Path) -> None:
    k = 2.0**-600
    nodes, weights = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["v0"])], [("w", np.ones((3, 3))), ("k", k)]
    for index, op in enumerate(("Mul", "Mul", "Neg", "Div", "Div")):
        nodes.append(helper.make_node(op, [f"v{index}", *(["k"] if op != "Neg" else [])], [f"v{index + 1}"]))
    nodes.append(helper.make_node("MatMul", ["v5", "w"], ["y"]))
    model = onnx.shape_inference.infer_shapes(model_of(nodes, [("x", [1, 3])], weights))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert snaudit.audit(tmp_path / "m.onnx").network.bound.upper >= 9.0


def test_partial_bounds_reach_the_report(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Nobody", ["a"], ["b"], domain="my"),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(model_of(nodes, [("x", [1, 3])], [("w", np.eye(3) * 2)]).SerializeToString())
    network = snaudit.audit(tmp_path / "m.onnx").network
    assert not network.bound.bounded
    assert any(abs(part.bound.upper - 2.0) < 1e-6 for part in network.partials)


def test_intervals_of_a_table_beside_a_row_stay_small(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "c"], ["b"]),
        helper.make_node("Add", ["b", "r"], ["d"]), helper.make_node("ReduceMax", ["d"], ["y"]),
    ]  # fmt: skip
    weights = [("w", np.ones((3, 1))), ("c", np.ones((30000, 1))), ("r", np.ones((1, 30000)))]
    (tmp_path / "m.onnx").write_bytes(model_of(nodes, [("x", [1, 3])], weights).SerializeToString())
    assert snaudit.audit(tmp_path / "m.onnx", input_range=("-1,1",)).network.bound is not None


def test_an_op_of_another_domain_is_unknown_whatever_its_name(tmp_path: Path) -> None:
    """A Loop's condition through a foreign Identity may end it; a foreign Cast makes no product of codes."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["d"], domain="my.ops"),
            helper.make_node("Mul", ["s", "half"], ["t"]),
        ],
        "body",
        [helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []), helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
         helper.make_tensor_value_info("s", DOUBLE, [1, 3])],
        [helper.make_tensor_value_info("d", onnx.TensorProto.BOOL, []), helper.make_tensor_value_info("t", DOUBLE, [1, 3])],
        [numpy_helper.from_array(np.array(0.5), "half")],
    )  # fmt: skip
    model = model_of([helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)], [("x", [1, 3])])
    model.graph.initializer.append(numpy_helper.from_array(np.array(10), "n"))
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    assert not network_of(model, tmp_path).bound.bounded
    own = onnx.ModelProto()
    own.CopyFrom(model)
    own.graph.node[0].attribute[0].g.node[0].domain = ""
    assert abs(network_of(own, tmp_path).bound.upper - 2.0**-10) < 1e-9
