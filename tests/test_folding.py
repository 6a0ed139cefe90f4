"""Constants of a graph: each op against onnxruntime, bounds on what a small file may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from snaudit import folding
from snaudit.model import Tensor

RNG = np.random.default_rng(23)


def real(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def ints(*values: int, dtype: type = np.int64) -> np.ndarray:
    return np.asarray(values, dtype)


def scalar(value: float, dtype: type = np.float32) -> np.ndarray:
    return np.asarray(value, dtype)


@dataclass(frozen=True)
class Case:
    op: str
    inputs: Sequence[np.ndarray | None]
    attributes: dict[str, object] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 21
    rtol: float = 0.0


A, B, ROW = real(3, 4), real(3, 4), real(4)
QUANTIZED = RNG.integers(-128, 128, (6, 4)).astype(np.int8)
CASES = [
    *(Case(op, [A, ROW]) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")),
    *(Case(op, [A.astype(np.float16), ROW.astype(np.float16)]) for op in ("Add", "Mul", "Div")),
    *(Case(op, [np.abs(A)], rtol=3e-7) for op in ("Sqrt", "Reciprocal", "Exp", "Log")),
    *(Case(op, [A]) for op in ("Neg", "Abs", "Floor", "Ceil", "Identity", "Flatten", "Transpose")),
    Case("Equal", [ints(1, 2, 3), ints(1, 5, 3)]), Case("Sum", [A, B, A]), Case("Max", [A, B, ROW]),
    Case("And", [A > 0, B > 0]), Case("Or", [A > 0, B > 0]), Case("Xor", [A > 0, B > 0]), Case("Not", [A > 0]), Case("Where", [A > 0, A, ROW]),
    Case("Div", [ints(7, -7, 7, -7), ints(2, 2, 3, 4)]), Case("Div", [ints(-7, dtype=np.int32), ints(2, dtype=np.int32)]),
    Case("Mod", [ints(7, -7, 7, -7), ints(3, 3, -3, -3)]), Case("Mod", [A, B], {"fmod": 1}),
    Case("Pow", [np.abs(A), scalar(2.0)], rtol=3e-7), Case("Pow", [ints(2, 3), ints(5, 2)]), Case("Pow", [np.abs(A), ints(3)], rtol=3e-7),
    *(Case("Cast", [A * 9], {"to": to}) for to in (TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)),
    Case("Cast", [ints(-3, 300)], {"to": TensorProto.FLOAT}), Case("CastLike", [ints(1, 2), scalar(0.5)]),
    Case("Reshape", [A, ints(0, 2, -1)]), Case("Reshape", [A, ints(-1)]), Case("Reshape", [real(0, 3), ints(3, 0)], {"allowzero": 1}),
    Case("Flatten", [real(2, 3, 4)], {"axis": 2}), Case("Flatten", [real(2, 3, 4)], {"axis": -1}), Case("Flatten", [A], {"axis": 0}),
    Case("Transpose", [real(2, 3, 4)], {"perm": [2, 0, 1]}), Case("Squeeze", [real(1, 3, 1)]), Case("Squeeze", [real(1, 3, 1), ints(-1)]),
    Case("Squeeze", [real(1, 3, 1)], {"axes": [0]}, opset=11), Case("Unsqueeze", [A, ints(0, -1)]), Case("Unsqueeze", [A], {"axes": [1]}, opset=11),
    Case("Concat", [A, B, A], {"axis": -1}), Case("Gather", [A, ints(2, -1)]), Case("Gather", [A, np.asarray(1)], {"axis": 1}),
    Case("Gather", [A, np.asarray([[0, 1], [2, 2]])], {"axis": 0}),
    Case("Slice", [A, ints(1), ints(1 << 60)]), Case("Slice", [A, ints(-1, 0), ints(-(1 << 60), 3), ints(1, 0), ints(-1, 2)]),
    Case("Slice", [A, ints(-9), ints(2), ints(0)]), Case("Slice", [A, ints(5), ints(-5), ints(-1), ints(-2)]),
    Case("Slice", [A, ints(3), ints(-9), ints(1), ints(-3)]), Case("Slice", [A], {"starts": [1], "ends": [3], "axes": [1]}, opset=9),
    Case("Split", [real(7, 2)], {"num_outputs": 3}, outputs=3), Case("Split", [A, ints(1, 3)], {"axis": 1}, outputs=2),
    Case("Split", [A], {"axis": 1, "split": [3, 1]}, outputs=2, opset=11), Case("Split", [A], {"axis": 1}, outputs=2, opset=11),
    Case("Expand", [ROW, ints(2, 1, 4)]), Case("Expand", [real(3, 1), ints(1, 4)]), Case("Tile", [A, ints(2, 3)]),
    Case("Range", [np.asarray(3), np.asarray(-5), np.asarray(-3)]), Case("Range", [scalar(0.5), scalar(2.1), scalar(0.5)]), Case("Range", [np.asarray(3), np.asarray(1), np.asarray(1)]),
    Case("ConstantOfShape", [ints(2, 3)], {"value": numpy_helper.from_array(ints(7))}), Case("ConstantOfShape", [ints(2, 3)]),
    Case("Shape", [A]), Case("Shape", [real(2, 3, 4)], {"start": 1, "end": -1}), Case("Size", [A]), Case("Dropout", [A]), Case("Dropout", [A, scalar(0.3)]),
    *(Case(f"Reduce{name}", [real(2, 3, 4), ints(0, -1)], rtol=1e-6) for name in ("Sum", "Prod", "Max", "Min", "Mean")),
    Case("ReduceSum", [A], {"keepdims": 0}, rtol=1e-6), Case("ReduceSum", [A], {"noop_with_empty_axes": 1}), Case("ReduceProd", [ints(3, 4, 5)], {"keepdims": 0}),
    Case("ReduceMean", [A], {"axes": [1]}, opset=13, rtol=1e-6), Case("MatMul", [A, real(4, 2)], rtol=1e-5), Case("MatMul", [real(2, 3, 4), real(4, 2)], rtol=1e-5),
    Case("DequantizeLinear", [QUANTIZED, scalar(0.3), np.asarray(5, np.int8)]), Case("DequantizeLinear", [QUANTIZED, np.abs(real(4)), RNG.integers(-9, 9, 4).astype(np.int8)]),
    Case("DequantizeLinear", [QUANTIZED, np.abs(real(6))], {"axis": 0}), Case("DequantizeLinear", [QUANTIZED.view(np.uint8), scalar(0.3), np.asarray(128, np.uint8)]),
    Case("DequantizeLinear", [QUANTIZED, np.abs(real(3, 4)), RNG.integers(-9, 9, (3, 4)).astype(np.int8)], {"axis": 0, "block_size": 2}),
    Case("DequantizeLinear", [QUANTIZED, scalar(0.3, np.float16)]), Case("DequantizeLinear", [RNG.integers(-9, 9, 4).astype(np.int32), scalar(0.3)]),
    Case("QuantizeLinear", [A * 50, scalar(0.3)]), Case("QuantizeLinear", [A, scalar(0.01), np.asarray(5, np.int8)]),
    Case("QuantizeLinear", [np.asarray([0.5, 1.5, 2.5, -0.5, 300, -300], np.float32), scalar(1.0), np.asarray(3, np.uint8)]),
    Case("QuantizeLinear", [A, np.abs(real(4)) + 0.1, RNG.integers(-9, 9, 4).astype(np.int16)]),
    Case("QuantizeLinear", [A, np.abs(real(3)) + 0.1], {"axis": 0}),
]  # fmt: skip


def graph(nodes: Sequence[onnx.NodeProto], arrays: dict[str, np.ndarray], opset: int = 21) -> tuple[onnx.ModelProto, ir.Model]:
    """The model whose outputs are the last node's, and the same as the reader hands it over."""
    outputs = [helper.make_empty_tensor_value_info(name) for name in nodes[-1].output]
    held = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    proto = helper.make_model(
        helper.make_graph(list(nodes), "g", [], outputs, held),
        opset_imports=[helper.make_opsetid("", opset)], ir_version=10,
    )  # fmt: skip
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for name, value in model.graph.initializers.items():
        array = arrays[name]
        value.meta["tensor"] = Tensor(name, array.shape, array.dtype.name, name, lambda array=array: array)
    return proto, model


def single(case: Case) -> tuple[onnx.ModelProto, ir.Model]:
    names = [f"i{k}" if array is not None else "" for k, array in enumerate(case.inputs)]
    node = helper.make_node(case.op, names, [f"o{k}" for k in range(case.outputs)], **case.attributes)
    return graph([node], dict(zip(names, case.inputs, strict=True)), case.opset)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)
def test_an_op_folds_to_what_onnxruntime_computes(case: Case) -> None:
    proto, model = single(case)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for value, truth in zip(model.graph.outputs, session.run(None, {}), strict=True):
        assert folding.is_constant(value)
        array = folding.evaluate(value)
        assert array.dtype == truth.dtype and array.shape == truth.shape
        if case.rtol:
            assert np.allclose(array, truth, rtol=case.rtol, atol=0)
        else:
            assert array.tobytes() == truth.tobytes()


def test_every_op_of_the_table_is_tested() -> None:
    assert set(folding.OPS) == {case.op for case in CASES} | {"Constant"}


def test_big_weights_are_judged_without_being_loaded_and_folded_as_small_ones() -> None:
    """W is too large to be remembered: `is_constant` must come to the same answer from stand-ins."""
    loads = []
    w, scale = RNG.integers(-128, 128, (100, 90)).astype(np.int8), np.abs(real(90))
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["d"]), helper.make_node("Cast", ["d"], ["c"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT), helper.make_node("Transpose", ["f"], ["t"]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]), helper.make_node("Mul", ["r", "two"], ["m"]),
        helper.make_node("Split", ["m"], ["s0", "s1"], axis=0, num_outputs=2),
    ]  # fmt: skip
    arrays = {"w": w, "scale": scale, "shape": ints(30, 3, 100), "two": scalar(2.0)}
    _, model = graph(nodes, arrays)
    value = model.graph.initializers["w"]
    value.meta["tensor"] = Tensor("w", w.shape, "int8", "w", lambda: loads.append(1) or w)
    second = model.graph.outputs[1]
    assert folding.is_constant(second) and not loads
    assert {t.name for t in folding.roots(second)} == {"w", "scale", "shape", "two"} and not loads
    truth = ((w * scale).astype(np.float16).astype(np.float32).T.reshape(30, 3, 100) * np.float32(2))[15:]
    assert np.array_equal(folding.evaluate(second), truth) and len(loads) == 1
    assert np.array_equal(folding.evaluate(second, {"scale": scale * 2}), (
        (w * (scale * 2)).astype(np.float16).astype(np.float32).T.reshape(30, 3, 100) * np.float32(2))[15:])  # fmt: skip
    assert np.array_equal(folding.evaluate(second), truth)
    with pytest.raises(ValueError, match="limit"):
        folding.evaluate(second, limit_bytes=1000)


def test_a_big_weight_by_a_shape_that_is_computed_and_remembered() -> None:
    w = real(100, 90)
    nodes = [helper.make_node("Concat", ["a", "a", "b"], ["s"], axis=0), helper.make_node("Reshape", ["w", "s"], ["r"])]
    _, model = graph(nodes, {"w": w, "a": ints(30), "b": ints(10)})
    assert folding.kind_of(model.graph.outputs[0]) == ((30, 30, 10), np.dtype(np.float32))
    assert np.array_equal(folding.evaluate(model.graph.outputs[0]), w.reshape(30, 30, 10))


def test_half_precision_arithmetic_is_rounded_as_stored() -> None:
    w = real(3, 3).astype(ml_dtypes.bfloat16)
    _, model = graph([helper.make_node("Mul", ["w", "w"], ["y"])], {"w": w})
    array = folding.evaluate(model.graph.outputs[0])
    assert array.dtype == ml_dtypes.bfloat16
    assert np.array_equal(array.astype(np.float32), (w.astype(np.float32) ** 2).astype(ml_dtypes.bfloat16).astype(np.float32))


def test_what_depends_on_an_input_or_an_unlisted_op_is_no_constant() -> None:
    nodes = [helper.make_node("Relu", ["w"], ["r"]), helper.make_node("Add", ["w", "x"], ["a"]),
             helper.make_node("Shape", ["a"], ["static"]), helper.make_node("Shape", ["z"], ["dynamic"]), helper.make_node("Identity", ["w"], ["y"])]  # fmt: skip
    proto, _ = graph(nodes, {"w": A})
    proto.graph.input.extend([helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4]), helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4])])
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    values = {output.name: output for node in model.graph for output in node.outputs}
    assert {name for name, value in values.items() if folding.is_constant(value)} == {"static", "y"}
    assert not any(folding.is_constant(value) for value in model.graph.inputs)
    assert folding.evaluate(values["static"]).tolist() == [3, 4] and folding.roots(values["static"]) == ()
    with pytest.raises(ValueError, match="no constant"):
        folding.evaluate(values["a"])


BAD = {
    "index outside": Case("Gather", [A, ints(3)]), "integer by zero": Case("Div", [ints(1), ints(0)]), "shape of other size": Case("Reshape", [A, ints(5, 5)]),
    "modulo zero": Case("Mod", [ints(1), ints(0)]), "no integer": Case("Cast", [scalar(np.nan)], {"to": TensorProto.INT32}),
    "too large": Case("Cast", [scalar(1e30)], {"to": TensorProto.INT64}), "huge": Case("ConstantOfShape", [ints(10**6, 10**6)]), "huge range": Case("Range", [np.asarray(0), np.asarray(10**12), np.asarray(1)]),
    "huge tile": Case("Tile", [A, ints(10**6, 10**6)]), "huge expand": Case("Expand", [ROW, ints(10**9, 4)]), "step 0": Case("Slice", [A, ints(0), ints(1), ints(0), ints(0)]),
    "split": Case("Split", [A, ints(1, 1)], {"axis": 1}, outputs=2), "negative shape": Case("ConstantOfShape", [ints(-1)]), "axis": Case("Concat", [A, A], {"axis": 7}),
    "training": Case("Dropout", [A, scalar(0.5), np.asarray(True)]), "scales": Case("DequantizeLinear", [QUANTIZED, real(5)]), "endless": Case("Range", [np.asarray(0), np.asarray(1), np.asarray(0)]),
    "no code": Case("QuantizeLinear", [scalar(np.nan), scalar(1.0)]), "no step": Case("QuantizeLinear", [A, scalar(0.0)]),
    "negative power": Case("Pow", [ints(2), ints(-1)]),
}  # fmt: skip


@pytest.mark.parametrize("tag", BAD)
def test_what_onnx_does_not_define_or_is_too_large_is_no_constant(tag: str) -> None:
    case = BAD[tag]
    names = [f"i{k}" for k in range(len(case.inputs))]
    values = [ir.Value(name=name) for name in names]
    for value, array in zip(values, case.inputs, strict=True):
        value.meta["tensor"] = Tensor(value.name, array.shape, array.dtype.name, value.name, lambda array=array: array)
    attributes = [ir.Attr(k, ir.AttributeType.INT, v) for k, v in case.attributes.items()]
    node = ir.Node("", case.op, values, attributes, num_outputs=case.outputs)
    assert not folding.is_constant(node.outputs[0])


def test_deep_chains_need_no_recursion_and_doubling_no_memory() -> None:
    value = ir.Value(name="w")
    value.meta["tensor"] = Tensor("w", (2,), "int64", "w", lambda: ints(1, 2))
    for _ in range(20_000):
        value = ir.Node("", "Neg", [value]).outputs[0]
    assert folding.is_constant(value) and folding.evaluate(value).tolist() == [1, 2]
    for _ in range(60):
        value = ir.Node("", "Concat", [value, value], [ir.Attr("axis", ir.AttributeType.INT, 0)]).outputs[0]
    assert not folding.is_constant(value)
