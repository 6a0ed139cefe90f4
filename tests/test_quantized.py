"""Integer weights and quantizers: exact real matrices, and ‖f(x) − f(y)‖ ≤ L·‖x − y‖ + δ against onnxruntime."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import function_of, make_model, size
from onnx import TensorProto, helper, numpy_helper

import snaudit
from snaudit import pipeline, rules
from snaudit.bound import NORMS, Grade, Norm
from snaudit.errors import ConstraintError
from snaudit.policy import Limits
from snaudit.rules.quantized import ROWS, SURROGATE

RNG = np.random.default_rng(20)
M = "com.microsoft"


def node(op: str, inputs: str, outputs: str = "y", domain: str = "", **attributes: Any) -> onnx.NodeProto:
    names = [name if name != "_" else "" for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), domain=domain, name=f"{op} {outputs}", **attributes)


def f32(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32)


def codes(*shape: int, kind: str = "int8") -> np.ndarray:
    info = np.iinfo(kind)
    return RNG.integers(info.min, info.max + 1, shape).astype(kind)


@dataclass(frozen=True)
class Case:
    """A graph over x; `real` is the matrix by which it would act on x without rounding, or None."""

    name: str
    nodes: list[onnx.NodeProto]
    weights: dict[str, Any]
    shape: tuple[int, ...]
    real: np.ndarray | None = None
    delta: bool = True
    far: float = 1.0
    expected: dict[Norm, float] | None = None

    def model(self) -> onnx.ModelProto:
        first = node("MatMul", "x0 one", "x")  # a file needs a layer to be audited
        weights = self.weights | {"one": np.eye(self.shape[-1])}
        made = make_model([first, *self.nodes], {"x0": self.shape}, weights, dtype="float32", opset=21)
        made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
        return made


S, T, Z = f32(0.05), f32(0.11), np.uint8(120)
W, WZ = codes(6, 4), np.int8(7)
WS = f32(0.01)
PER = f32(RNG.uniform(0.005, 0.02, 4))
REAL = (W.astype(float) - 7) * float(WS)
COLUMNS = W.astype(float) * PER.astype(float)
BASE = {"s": S, "z": Z, "w": W, "ws": WS, "wz": WZ, "t": T, "tz": np.uint8(128)}
QUANT, BACK = node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "r t tz")
DYNAMIC = node("DynamicQuantizeLinear", "x", "q qs qz")


def size_of(matrix: np.ndarray, norm: Norm) -> float:
    """The norm of x ↦ x·matrix."""
    return float(np.linalg.norm(matrix.T, {"l2": 2, "l1": 1, "linf": np.inf}[norm]))


V, C = codes(6, 6), codes(6, kind="uint8")


def blockwise(bits: int, zeros: bool) -> Case:
    """y = x·Wᵀ for W (5, 40) in blocks of 16, packed here by the documented rule: low bits first."""
    rows, columns, block = 5, 40, 16
    count = -(-columns // block)
    per_byte = 8 // bits
    plain = RNG.integers(0, 1 << bits, (rows, count, block))
    zero = RNG.integers(0, 1 << bits, (rows, count)) if zeros else np.full((rows, count), 1 << bits - 1)
    scales = f32(RNG.uniform(0.01, 0.1, (rows, count)))

    def pack(array: np.ndarray) -> np.ndarray:
        short = -array.shape[-1] % per_byte
        array = np.pad(array, [*((0, 0),) * (array.ndim - 1), (0, short)])
        parts = array.reshape(*array.shape[:-1], -1, per_byte)
        return sum(parts[..., i] << bits * i for i in range(per_byte)).astype(np.uint8)

    real = ((plain - zero[..., None]) * scales.astype(float)[..., None]).reshape(rows, -1)[:, :columns]
    weights = {"b": pack(plain), "bs": scales.ravel()} | ({"bz": pack(zero).ravel()} if zeros else {})
    made = node("MatMulNBits", "x b bs bz" if zeros else "x b bs", domain=M, K=columns, N=rows, bits=bits, block_size=block)
    return Case(f"{bits} bits{' zeros' * zeros}", [made], weights, (2, columns), real.T)


KERNEL = codes(4, 3, 3, 3)


def cases() -> list[Case]:
    qdq = Case("qdq", [QUANT, node("DequantizeLinear", "q s z")], BASE, (2, 6), np.eye(6))
    own = Case("qdq microsoft", [node("QuantizeLinear", "x s z", "q", M), node("DequantizeLinear", "q s z", "y", M)], BASE, (2, 6), np.eye(6))
    dense = node("QLinearMatMul", "q s z w ws wz t tz", "r")
    columns = BASE | {"ws": PER, "wz": np.zeros(4, np.int8)}
    gemm = node("QGemm", "q s z w ws wz _ t tz", "r", M, alpha=0.5)
    floats = node("QGemm", "q s z w ws wz", "y", M, alpha=0.5)
    conv = {"w": KERNEL, "ws": f32(RNG.uniform(0.005, 0.02, 4)), "wz": np.zeros(4, np.int8)}
    return [
        qdq, own,
        Case("matmul", [QUANT, dense, BACK], BASE, (2, 6), REAL),
        Case("columns", [QUANT, dense, BACK], columns, (2, 6), COLUMNS),
        Case("left", [QUANT, node("QLinearMatMul", "w ws wz q s z t tz", "r"), BACK], BASE | {"w": codes(3, 6, kind="uint8"), "wz": np.uint8(9)}, (6, 1)),
        Case("gemm", [QUANT, gemm, BACK], BASE, (2, 6), REAL / 2),
        Case("gemm to floats", [QUANT, floats], BASE, (2, 6), REAL / 2),
        Case("conv", [QUANT, node("QLinearConv", "q s z w ws wz t tz", "r", strides=[2, 1], pads=[1] * 4), BACK], BASE | conv, (1, 3, 5, 5)),
        Case("matmul integer", [DYNAMIC, node("MatMulInteger", "q w qz wz", "i"), node("Cast", "i", "c", to=1), node("Mul", "qs ws", "m"), node("Mul", "c m")], BASE, (2, 6), REAL, delta=False),
        Case("matmul integer columns", [DYNAMIC, node("MatMulInteger", "q w qz wz", "i"), node("Cast", "i", "c", to=1), node("Mul", "c qs", "m"), node("Mul", "ws m")], columns, (2, 6), COLUMNS, delta=False),
        Case("conv integer", [DYNAMIC, node("ConvInteger", "q w qz wz", "i", pads=[1] * 4), node("Cast", "i", "c", to=1), node("Mul", "qs ws", "m"), node("Mul", "c m")], BASE | {"w": KERNEL}, (1, 3, 5, 5), delta=False),
        Case("dynamic matmul", [node("DynamicQuantizeMatMul", "x w ws wz", "y", M)], BASE, (2, 6), REAL, delta=False),
        Case("dynamic identity", [DYNAMIC, node("DequantizeLinear", "q qs qz")], {}, (2, 6), np.eye(6), delta=False),
        Case("to float", [QUANT, node("MatMulIntegerToFloat", "q w s ws z wz", "y", M)], BASE, (2, 6), REAL),
        Case("to float, dynamic", [DYNAMIC, node("MatMulIntegerToFloat", "q w qs ws qz wz", "y", M)], BASE, (2, 6), REAL, delta=False),
        Case("add", [QUANT, node("QLinearMatMul", "q s z v ws wz t tz", "p"), node("QLinearAdd", "q s z p t tz t tz", "r", M), BACK], BASE | {"v": V}, (2, 6), expected={norm: 1 + size_of((V - 7.0) * float(WS), norm) for norm in NORMS}),
        Case("mul", [QUANT, node("QLinearMul", "q s z c ws z t tz", "r", M), BACK], BASE | {"c": C}, (2, 6), far=0.3, expected=dict.fromkeys(NORMS, float(WS) * np.abs(C - 120.0).max())),
        Case("concat", [QUANT, node("QLinearMatMul", "q s z w ws wz t tz", "p"), node("QLinearConcat", "t tz q s z p t tz", "r", M, axis=1), BACK], BASE, (2, 6), np.hstack([np.eye(6), REAL])),
        Case("sigmoid", [QUANT, node("QLinearSigmoid", "q s z u _", "r", M), node("DequantizeLinear", "r u")], BASE | {"u": f32(1 / 256)}, (2, 6), np.eye(6) / 4),
        Case("leaky", [QUANT, node("QLinearLeakyRelu", "q s z t tz", "r", M, alpha=-2.0), BACK], BASE, (2, 6), expected=dict.fromkeys(NORMS, 2.0)),
        Case("softmax", [QUANT, node("QLinearSoftmax", "q s z u low", "r", M, axis=-1, opset=13), node("DequantizeLinear", "r u low")], BASE | {"u": f32(1 / 256), "low": np.uint8(0)}, (2, 6), expected=dict.fromkeys(NORMS, 0.5)),
        Case("average", [QUANT, node("QLinearAveragePool", "q s z t tz", "r", M, kernel_shape=[2, 2], strides=[2, 2]), BACK], BASE, (1, 2, 4, 4), expected={"l2": 1 / 2, "l1": 1 / 4, "linf": 1.0}),
        Case("global average", [QUANT, node("QLinearGlobalAveragePool", "q s z t tz", "r", M), BACK], BASE, (1, 2, 4, 4), expected={"l2": 1 / 4, "l1": 1 / 16, "linf": 1.0}),
        blockwise(4, False), blockwise(4, True), blockwise(8, True), blockwise(2, True),
    ]  # fmt: skip


CASES = cases()


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def audited(model: onnx.ModelProto, folder: Path, norm: Norm = "l2") -> snaudit.Report:
    return snaudit.audit(saved(model, folder), norm=norm)


def delta_of(report: snaudit.Report) -> float | None:
    text = " ".join(report.network.assumptions)
    found = re.search(r"δ = (\S+)", text)
    assert found or "not known" in text or report.network.bound.grade is not Grade.ASSUMED
    return float(found[1].rstrip(",")) if found else None


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_the_bound_and_the_error_hold_for_the_runtime(one: Case, tmp_path: Path) -> None:
    function, n = function_of(one.model())
    rng = np.random.default_rng(3)
    pairs = [(rng.standard_normal((2, n)) * one.far) * np.array([[1], [scale]]) for scale in (1e-3, 0.1, 1, 3)]
    for norm in NORMS:
        report = audited(one.model(), tmp_path, norm)
        network, delta = report.network, delta_of(report)
        assert network.bound.bounded and not report.gaps
        plain = "MatMulNBits" in one.nodes[0].op_type
        assert (network.bound.grade >= Grade.COMPUTED) == plain
        assert (SURROGATE in network.assumptions) != plain
        assert (delta is not None) == (one.delta and not plain)
        for x, y in pairs:
            error = delta or 0.0
            if not one.delta:  # half a step of each quantizer's range, twice, through the network
                reach = max(np.ptp(np.append(v, 0.0)) for v in (x, x + y))
                error = network.bound.upper * reach / 255 * size(np.ones(n), norm) * 1.01
            moved = size(function(x + y) - function(x), norm)
            assert moved <= (network.bound.upper * size(y, norm) + error) * (1 + 1e-5), norm
        truth = report.layers[-1].norm.upper  # a product of a quantized input with the one weight
        if one.real is not None:
            truth = size_of(one.real, norm)
        elif one.expected is not None:
            truth = one.expected[norm]
        slack = 1.5 if one.name == "concat" else 1 + 1e-6  # branches are not stacked as one matrix
        assert truth * (1 - 1e-7) <= network.bound.upper <= truth * slack


def test_every_row_is_run() -> None:
    run = {(n.domain, n.op_type) for one in CASES for n in one.nodes}
    rows = {(row.domain, row.op) for row in ROWS}
    assert rows - run == {(M, "QLinearConv")}  # the same rule as ONNX's
    assert all(rules.lookup(*key) is not None for key in rows)


@pytest.mark.parametrize("norm", NORMS)
def test_the_error_is_attained_and_not_less(norm: Norm, tmp_path: Path) -> None:
    """Entries just on both sides of a tie move by a whole step each: 2·(s/2)·‖1‖ for x = y."""
    one = CASES[0]
    function, n = function_of(one.model())
    report = audited(one.model(), tmp_path, norm)
    x = np.full(n, 2.5 * float(S))
    moved = size(function(x * (1 + 1e-4)) - function(x * (1 - 1e-4)), norm)
    delta = delta_of(report)
    assert delta is not None and 0.99 * delta <= moved <= delta + 1e-3
    loose = size(np.full(n, float(S)), norm)
    assert delta == pytest.approx(loose, rel=1e-4) and delta >= loose * (1 - 1e-7)


def small_network() -> onnx.ModelProto:
    """A convolutional network in float32, with a fixed batch of one."""
    rng = np.random.default_rng(5)
    weights = {
        "k1": rng.standard_normal((4, 3, 3, 3)) * 0.3, "b1": rng.standard_normal(4) * 0.1,
        "k2": rng.standard_normal((4, 4, 3, 3)) * 0.3, "b2": rng.standard_normal(4) * 0.1,
        "w": rng.standard_normal((16, 10)) * 0.3, "to": np.array([1, 16]),
    }  # fmt: skip
    nodes = [
        node("Conv", "x k1 b1", "a", pads=[1] * 4), node("Relu", "a", "b"),
        node("Conv", "b k2 b2", "c", pads=[1] * 4), node("Add", "b c", "d"), node("Relu", "d", "e"),
        node("AveragePool", "e", "f", kernel_shape=[4, 4], strides=[4, 4]), node("Reshape", "f to", "g"),
        node("MatMul", "g w", "h"), node("Sigmoid", "h", "y"),
    ]  # fmt: skip
    made = make_model(nodes, {"x": (1, 3, 8, 8)}, weights, dtype="float32", opset=17)
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 10)))
    return made


class Calibration:
    """Seeded inputs, as onnxruntime's calibration reads them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(6)
        self.inputs = [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(8)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.inputs.pop() if self.inputs else None


def quantized(kind: str, folder: Path) -> onnx.ModelProto:
    """The small network as onnxruntime's own tools quantize it."""
    from onnxruntime import quantization as tools

    plain, path = folder / "plain.onnx", folder / "quantized.onnx"
    plain.write_bytes(small_network().SerializeToString())
    if kind == "dynamic":
        tools.quantize_dynamic(plain, path)
    else:
        form = tools.QuantFormat.QDQ if kind.startswith("qdq") else tools.QuantFormat.QOperator
        tools.quantize_static(plain, path, Calibration(), form, per_channel=kind.endswith("channels"))
    return onnx.load(path)


@pytest.mark.parametrize("kind", ["qdq", "qdq channels", "operators", "operators channels", "dynamic"])
@pytest.mark.filterwarnings("ignore")
def test_networks_that_the_runtime_quantized(kind: str, tmp_path: Path) -> None:
    model = quantized(kind, tmp_path)
    report, plain = audited(model, tmp_path), snaudit.audit(tmp_path / "plain.onnx")
    assert not report.gaps and not any(item.missed for item in report.left_out)
    assert len(report.layers) == len(plain.layers)
    for one, other in zip(report.layers, plain.layers, strict=True):
        assert one.shape == other.shape and one.sigma.upper == pytest.approx(other.sigma.upper, rel=0.03)
        assert one.sigma.grade is Grade.PROVED
    upper, delta = report.network.bound.upper, delta_of(report)
    assert report.network.bound.grade is Grade.ASSUMED
    assert upper == pytest.approx(plain.network.methods[0].bound.upper, rel=0.05), "the composition of each"
    assert (delta is None) == (kind == "dynamic")
    function, n = function_of(model)
    real, _ = function_of(onnx.load(tmp_path / "plain.onnx"))
    rng = np.random.default_rng(7)
    worst = 0.0
    for scale in (1e-3, 0.1, 1.0):
        x, y = rng.standard_normal((2, n))
        moved = size(function(x + y * scale) - function(x), "l2")
        assert moved <= upper * size(y * scale, "l2") + (delta or 0.1)
        worst = max(worst, size(function(x) - real(x), "l2"))
    assert 0.0 < worst < 0.1, "the quantized network is the plain one, nearly"


@pytest.mark.parametrize("kind", ["qdq channels", "operators", "dynamic"])
@pytest.mark.filterwarnings("ignore")
def test_the_scale_of_integer_weights_is_constrained(kind: str, tmp_path: Path) -> None:
    path = saved(quantized(kind, tmp_path), tmp_path)
    target = tmp_path / "capped.onnx"
    changes = snaudit.constrain(path, target, max_sigma=0.5).changes
    assert all(change.changed and change.after.upper <= 0.5 for change in changes)
    report = snaudit.audit(target)
    assert all(0.49 < layer.norm.upper <= 0.5 and layer.norm.grade is Grade.PROVED for layer in report.layers)
    before, after = ({t.name: t for t in onnx.load(p).graph.initializer} for p in (path, target))
    touched = {name for name in before if before[name].SerializeToString() != after[name].SerializeToString()}
    assert touched and all(before[name].data_type == TensorProto.FLOAT for name in touched), "codes stay"
    assert len(touched) == len(changes)


def test_a_scale_that_is_computed_is_refused_by_name(tmp_path: Path) -> None:
    nodes = [node("Mul", "ws two", "wd"), node("DynamicQuantizeMatMul", "x w wd wz", "y", M)]
    one = Case("computed", nodes, BASE | {"two": f32(2.0)}, (2, 6))
    path = saved(one.model(), tmp_path)
    with pytest.raises(ConstraintError, match="^w of node DynamicQuantizeMatMul y: its scale is no stored tensor"):
        snaudit.constrain(path, max_sigma=0.01, layers=("w",))


@pytest.mark.filterwarnings("ignore")
def test_a_gate_passes_on_the_surrogate_only_when_told(tmp_path: Path) -> None:
    path = saved(quantized("qdq", tmp_path), tmp_path)
    assert snaudit.check(path, max_lipschitz=100.0).verdict is snaudit.Verdict.UNDECIDED
    accepting = Limits(max_lipschitz=100.0, required=Grade.ASSUMED)
    assert pipeline.audit(path, limits=accepting).verdict is snaudit.Verdict.PASS


def test_a_quantizer_that_is_no_affine_step_is_a_gap(tmp_path: Path) -> None:
    """A scale that varies, and rounding to 8-bit floats, have no constant here."""
    narrow = onnx.helper.make_tensor("nz", TensorProto.FLOAT8E4M3FN, [], [0.0])
    one = Case("narrow", [node("QuantizeLinear", "x s nz", "q"), node("DequantizeLinear", "q s nz")], {"s": S}, (2, 6))
    model = one.model()
    model.graph.initializer.append(narrow)
    report = audited(model, tmp_path)
    assert not report.network.bound.bounded and {gap.code for gap in report.gaps} == {"step"}
    crossed = [DYNAMIC, node("DynamicQuantizeLinear", "x2", "p ps pz"), node("DequantizeLinear", "q ps qz")]
    two = Case("crossed", [node("Neg", "x", "x2"), *crossed], {}, (2, 6))
    report = audited(two.model(), tmp_path)
    assert not report.network.bound.bounded and "DynamicQuantizeLinear" in {gap.op for gap in report.gaps}


@pytest.mark.parametrize("op", ["Div", "Add", "Mul"])
def test_arithmetic_on_codes_is_a_gap(op: str, tmp_path: Path) -> None:
    """Integer division truncates, sums and products wrap around; what moves codes is exact."""
    moved = [QUANT, node("Transpose", "q", "p"), node(op, "p two", "r"), node("DequantizeLinear", "r s z")]
    report = audited(Case(op, moved, BASE | {"two": np.uint8(2)}, (2, 6)).model(), tmp_path)
    assert not report.network.bound.bounded and {gap.code for gap in report.gaps} == {"step"}
    plain = [QUANT, node("Transpose", "q", "p"), node("Relu", "p", "r"), node("DequantizeLinear", "r s z")]
    report = audited(Case(op, plain, BASE, (2, 6)).model(), tmp_path)
    assert report.network.bound.upper == pytest.approx(1.0) and not report.gaps


def test_weights_and_factors_that_the_graph_quantizes_are_constants(tmp_path: Path) -> None:
    """As quantization-aware training exports them: float weights behind a quantizer and a dequantizer."""
    rng = np.random.default_rng(5)
    weight, factor = rng.standard_normal((4, 3)).astype(np.float32), np.array([0.5, -1.7, 0.9], np.float32)
    step = np.array(0.05, np.float32)
    constants = {"w": weight, "f": factor, "s": step, "t": np.array(0.013, np.float32), "z": np.array(0, np.int8)}
    nodes = [
        node("QuantizeLinear", "w s z", "qw"), node("DequantizeLinear", "qw s z", "dw"),
        node("QuantizeLinear", "f t z", "qf"), node("DequantizeLinear", "qf t z", "df"),
        node("MatMul", "x dw", "m"), node("Mul", "m df", "y"),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in constants.items()])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    report = snaudit.audit(path)
    codes = np.clip(np.rint(weight / step), -128, 127) * np.float64(step)
    scales = np.clip(np.rint(factor / constants["t"]), -128, 127) * np.float64(constants["t"])
    (layer,) = report.layers
    assert layer.name == "w" and layer.sigma.lower <= np.linalg.norm(codes, 2) * (1 + 1e-6) <= layer.sigma.upper * (1 + 2e-6)
    truth = np.linalg.norm(codes * scales, 2)
    assert truth * (1 - 1e-6) <= report.network.bound.upper <= truth * 1.01
    with pytest.raises(ConstraintError):
        snaudit.constrain(path, tmp_path / "capped.onnx", 0.1)
