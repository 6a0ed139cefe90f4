"""The network's lower end: never above the truth, near it, and whatever a graph does to its runtime."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import composed, function_of, gain, jacobian, make_model, random_dag, size
from onnx import helper, numpy_helper
from op_cases import RESIZED

import snaudit
from snaudit import cli, evaluating, pipeline, running, seeking, witness
from snaudit.bound import NORMS, Bound, Grade, Norm
from snaudit.errors import SoundnessError
from snaudit.findings import NetworkResult, Settings, Witness

ROUNDING = 1e-12
"""Relative error of a norm that LAPACK computes, and of a small dense Jacobian of a linear map."""
ROOT = Path(__file__).parent.parent
PNET = ROOT / "sample_models" / "pnet.onnx"
BLUR = ROOT / "sample_models" / "box_blur.onnx"


def node(op: str, inputs: str, outputs: str = "y", **attributes) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"at {outputs}", **attributes)


def sought(model: onnx.ModelProto | bytes, folder: Path, norm: Norm = "l2", **more) -> dict:
    """What the search answers on a model, here in this process."""
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    request = {"path": str(path), "norm": norm, "seed": 0, "seconds": 20.0, **more}
    found, raw = seeking.answer(request)
    return found | {"points": np.frombuffer(raw).reshape(2, -1)} if raw else found


@pytest.mark.parametrize("seed", range(40))
def test_a_random_linear_dag_has_its_constant_seen(seed: int, tmp_path: Path) -> None:
    model, _ = random_dag(seed, linear=True)
    function, n = function_of(model)
    matrix = jacobian(function, np.zeros(n), 0.5)
    norm = NORMS[seed % 3]
    truth = gain(matrix, norm)
    assert 0.999 * truth < sought(model, tmp_path, norm)["lower"] <= truth * (1 - ROUNDING)


@pytest.mark.parametrize("seed", range(40))
def test_a_random_dag_is_never_seen_above_its_bound(seed: int, tmp_path: Path) -> None:
    model, norms = random_dag(300 + seed, linear=False)
    function, n = function_of(model)
    norm = NORMS[seed % 3]
    found = sought(model, tmp_path, norm)
    assert found["lower"] <= composed(model, norm, norms).bound.upper
    x, y = found["points"]
    ratio = size(function(x) - function(y), norm) / size(x - y, norm)
    assert ratio * (1 - 1e-3) < found["lower"] <= ratio
    rng = np.random.default_rng(seed)
    seen = max(gain(jacobian(function, rng.standard_normal(n) * s, 1e-6), norm) for s in (0.1, 1.0, 3.0))
    assert found["lower"] > 0.9 * seen


def test_every_kernel_and_an_image_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strides, dilations, groups, padding, ceil mode and the old softmax, as one function of an image.

    Without torch, so that the reference implementation computes them."""
    monkeypatch.setitem(sys.modules, "torch", None)
    rng = np.random.default_rng(1)
    weights = {
        "k": rng.standard_normal((4, 2, 3, 3)),
        "d": rng.standard_normal((4, 1, 2, 2)),
        "g": rng.standard_normal(4), "b": rng.standard_normal(4), "v": rng.uniform(0.5, 2.0, 4),
        "w": rng.standard_normal((80, 6)) / 9,
    }  # fmt: skip
    nodes = [
        node("Conv", "x k", "a", pads=[1, 2, 1, 1], strides=[2, 1]),
        node("BatchNormalization", "a g b b v", "n"),
        node("LeakyRelu", "n", "h"),
        node("Conv", "h d", "c", group=4, dilations=[2, 1]),
        node("MaxPool", "c", "m", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
        node("AveragePool", "m", "p", kernel_shape=[2, 2], pads=[1, 0, 1, 1]),
        node("Flatten", "p", "f"),
        node("Gemm", "f w", "z"),
        node("Softmax", "z", "s", axis=0),
        node("Concat", "z s", "y", axis=1),
    ]
    model = make_model(nodes, {"x": [1, 2, 12, 9]}, weights, dtype="float32", opset=11)
    for norm in NORMS:
        found = sought(model, tmp_path, norm)
        assert "reference" in found["how"] and "gradients: torch" in found["found"], "no convolution in double"
        function, n = function_of(model)
        x, y = found["points"]
        ratio = size(function(x) - function(y), norm) / size(x - y, norm)
        assert 0.999 * ratio < found["lower"] < ratio * 1.0001
        best = max(gain(jacobian(function, p, 1e-2), norm) for p in np.random.default_rng(2).standard_normal((3, n)))
        assert found["lower"] > 0.8 * best


def test_a_large_convolution_is_seen_by_waves(tmp_path: Path) -> None:
    """27,648 entries: far more than directions. The circulant symbol bounds the zero-padded operator."""
    kernel = np.random.default_rng(3).standard_normal((4, 3, 3, 3)).astype(np.float32)
    model = make_model([node("Conv", "x k", pads=[1, 1, 1, 1])], {"x": [1, 3, 96, 96]}, {"k": kernel}, dtype="float32")
    symbol = np.fft.fft2(kernel.astype(np.float64), (98, 98)).transpose(2, 3, 0, 1)
    truth = float(np.linalg.svd(symbol, compute_uv=False).max())
    found = sought(model, tmp_path, evaluations=400)
    assert 0.7 * truth < found["lower"] < truth


def test_rounding_that_hides_in_a_graph_costs_tightness_only(tmp_path: Path) -> None:
    """(x + 2^k) − 2^k is x in real arithmetic; in floats it is x rounded to a grid that grows with k."""
    for k in range(0, 127, 6):
        weights = {"c": np.float32(2.0**k), "one": np.ones((1, 1))}
        nodes = [node("Add", "x c", "a"), node("Sub", "a c", "b"), node("MatMul", "b one")]
        model = make_model(nodes, {"x": [1, 1]}, weights, dtype="float32")
        for norm in NORMS:
            assert sought(model, tmp_path, norm, evaluations=300).get("lower", 0.0) <= 1.0


def test_an_evaluator_that_errs_costs_tightness_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model([node("MatMul", "x w")], {"x": [1, 3]}, {"w": np.diag([1.0, 2.0, 3.0])})
    right = evaluating.Network.precise
    monkeypatch.setattr(evaluating.Network, "precise", lambda self, x: right(self, x) * 1.01)
    assert 2.9 < sought(model, tmp_path)["lower"] < 3.0
    monkeypatch.setattr(evaluating.Network, "precise", lambda self, x: right(self, x) * 3.0)
    assert sought(model, tmp_path).get("lower", 0.0) < 3.0


def test_coordinates_that_a_runtime_rounds(tmp_path: Path) -> None:
    """Resizing computes its weights from coordinates, in float32 even for float64 data. Where runtime and
    reference round a coordinate to different neighbours there is no witness."""
    seen = []
    for one in RESIZED:
        lower = sought(one.model(), tmp_path, "l1", evaluations=200).get("lower", 0.0)
        upper = composed(one.model(), "l1").bound.upper
        assert lower <= upper, one.name
        seen.append(lower > 0.9 * upper)
    assert sum(seen) > 0.6 * len(seen)


def test_types_inputs_and_outputs(tmp_path: Path) -> None:
    """float16 with casts, an integer input that stays, two real inputs and outputs jointly, external
    shapes, constants in all their forms."""
    nodes = [
        node("Constant", "", "two", value_float=2.0),
        node("Cast", "x", "wide", to=onnx.TensorProto.FLOAT),
        node("Cast", "wide", "narrow", to=onnx.TensorProto.FLOAT16),
        node("Cast", "narrow", "wider", to=onnx.TensorProto.FLOAT),
        node("Mul", "wider two", "y"),
        node("Gather", "z i", "w", axis=0),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["batch", 3]),
         helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [4]),
         helper.make_tensor_value_info("i", onnx.TensorProto.INT64, [2])],
        [onnx.ValueInfoProto(name="y"), onnx.ValueInfoProto(name="w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    for norm, truth in (("l2", 2.0), ("linf", 2.0), ("l1", 2.0)):
        found = sought(model, tmp_path, norm)
        assert 0.999 * truth < found["lower"] <= truth and found["names"] == ["x", "z"]
        points = found["points"][:, :3]
        assert np.array_equal(points, points.astype(np.float32))
    i8 = make_model([node("Gather", "t i")], {"i": [2]}, {"t": np.eye(3)}, kinds={"i": "int64"})
    assert sought(i8, tmp_path)["note"] == "the graph has no real-valued input"


@pytest.mark.parametrize("op", ["RandomNormalLike", "QuantizeLinear", "Exp", "Unknown"])
def test_what_has_no_witness_says_so(op: str, tmp_path: Path) -> None:
    weights = {"s": np.float32(0.1), "z": np.zeros((), np.int8), "e": np.full((1, 3), 3e38)}
    nodes = {
        "RandomNormalLike": [node(op, "x", "r"), node("Add", "x r")],
        "QuantizeLinear": [node(op, "x s z", "q"), node("DequantizeLinear", "q s z")],
        "Exp": [node("Add", "x e", "r"), node(op, "r")],
        "Unknown": [node(op, "x")],
    }[op]
    model = make_model(nodes, {"x": [1, 3]}, weights, dtype="float32")
    found = sought(model, tmp_path)
    word = {"RandomNormalLike": "random", "QuantizeLinear": "rounds", "Exp": "finite", "Unknown": "onnxruntime"}[op]
    assert "lower" not in found and word in found["note"]


def test_a_box_is_kept(tmp_path: Path) -> None:
    """x ↦ x² on [−1, 3]: slope 6 at the end of the box, any slope outside."""
    model = make_model([node("Mul", "x x")], {"x": [1, 2]})
    found = sought(model, tmp_path, box=[-1.0, 3.0])
    assert found["points"].min() >= -1.0 and found["points"].max() <= 3.0
    assert 5.5 < found["lower"] <= 6.0


def test_the_search_repeats_itself() -> None:
    settings = Settings(witness_seconds=30.0)
    first, second = (pipeline.audit(BLUR, settings).network.witness for _ in range(2))
    assert first is not None and second is not None and first.points
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)
    assert first.points == second.points
    assert pipeline.audit(BLUR).network.witness is None, "the library runs no model unasked"


def test_replay_and_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = tmp_path / "pair.npz"
    common = ["--format", "json", "--witness-seconds", "20"]
    assert cli.main(["inspect", str(BLUR), *common, "--witness", str(pair)]) == 0
    network = json.loads(capsys.readouterr().out)["network"]
    assert 8.0 < network["lower"] == network["witness"]["ratio"] <= 9.0 < network["upper"]
    stored = np.load(pair)
    assert stored["lower"] == network["lower"] and stored["x:x"].shape == stored["y:x"].shape
    assert cli.main(["inspect", str(BLUR), "--format", "json", "--replay", str(pair)]) == 0
    again = json.loads(capsys.readouterr().out)["network"]
    assert again["lower"] == network["lower"] and again["witness"]["evaluations"] == 4
    assert cli.main(["check", str(BLUR), *common, "--max-lipschitz", "8"]) == 1
    assert "at least 8." in capsys.readouterr().err
    assert cli.main(["check", str(BLUR), *common, "--max-lipschitz", "9"]) == 3
    assert cli.main(["check", str(BLUR), "--witness-seconds", "0", "--max-lipschitz", "8"]) == 3
    capsys.readouterr()
    assert cli.main(["inspect", str(PNET), "--replay", str(pair)]) == 0
    assert "no lower end: the pair holds no" in capsys.readouterr().out
    for argument, value in (("--replay", PNET), ("--witness", PNET), ("--witness", tmp_path / "no" / "f")):
        assert cli.main(["inspect", str(BLUR), argument, str(value)]) == 2


def test_a_pair_above_a_proved_bound_is_our_bug(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    composition = pipeline.network_of

    def too_low(*arguments):
        network, gaps = composition(*arguments)
        return replace(network, bound=replace(network.bound, upper=8.0)), gaps

    monkeypatch.setattr(pipeline, "network_of", too_low)
    assert cli.main(["inspect", str(BLUR), "--witness-seconds", "20"]) == 4
    assert "bug in snaudit" in capsys.readouterr().err


def test_a_pair_refutes_an_assumption_and_only_that() -> None:
    seen = Witness("l2", 5.0, 1, 0.0, "seen")

    def network(upper: float, grade: Grade) -> NetworkResult:
        return NetworkResult(Bound(0.0, upper, grade, "m"))

    for grade in (Grade.ASSUMED, Grade.ESTIMATED):
        found, gaps = witness.joined(network(4.0, grade), (), seen)
        assert found.bound.lower == 5.0 and not found.bound.bounded and gaps[0].code == "refuted"
    for grade in (Grade.COMPUTED, Grade.PROVED):
        with pytest.raises(SoundnessError):
            witness.joined(network(4.0, grade), (), seen)
        assert witness.joined(network(5.0, grade), (), seen)[0].bound.lower == 5.0
    none = Witness("l2", note="why")
    assert witness.joined(network(4.0, Grade.PROVED), (), none)[0].bound.lower == 0.0


def bomb(kind: str) -> onnx.ModelProto:
    """A small file that asks its runtime for a terabyte, or for a day."""
    weights = {"w": np.eye(3), "one": np.ones((1, 3))}
    if kind == "memory":
        weights |= {"n": np.array([1 << 20, 1 << 18, 3])}
        nodes = [node("MatMul", "x w", "h"), node("Expand", "h n", "big"), node("ReduceSum", "big", "s"),
                 node("Add", "h s")]  # fmt: skip
        return make_model(nodes, {"x": [1, 3]}, weights, dtype="float32")
    body = helper.make_graph(
        [node("Identity", "more", "again"), node("Tanh", "state", "next")], "body",
        [helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
         helper.make_tensor_value_info("more", onnx.TensorProto.BOOL, []),
         helper.make_tensor_value_info("state", onnx.TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("again", onnx.TensorProto.BOOL, []),
         helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, [1, 3])],
    )  # fmt: skip
    weights |= {"n": np.array(1 << 60), "yes": np.array(True)}
    nodes = [node("MatMul", "x w", "h"), node("Loop", "n yes h", "y", body=body)]
    return make_model(nodes, {"x": [1, 3]}, weights, dtype="float32")


@pytest.mark.parametrize("kind", ["memory", "time"])
def test_a_bomb_goes_off_in_the_child(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.onnx"
    path.write_bytes(bomb(kind).SerializeToString())
    monkeypatch.setattr(witness, "_GRACE", 2.0)
    found = pipeline.audit(path, Settings(witness_seconds=0.5)).network.witness
    assert found is not None and found.lower == 0.0 and found.note


def test_the_child_takes_no_module_from_where_it_stands(tmp_path: Path) -> None:
    for name in ("numpy", "onnx", "onnxruntime", "json", "snaudit"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()")
    (tmp_path / "model.onnx").write_bytes(BLUR.read_bytes())
    program = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from snaudit.cli import main; sys.exit(main())"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "inspect", "model.onnx", "--witness-seconds", "20"],
        cwd=tmp_path, env=environment, check=False, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert "the constant lies between 8." in done.stdout, done.stderr
    assert not (tmp_path / "ran").exists()



@pytest.mark.parametrize(("op", "place"), [("Erf", 3.0), ("Gelu", -4.5), ("HardSwish", 3.5)])
def test_a_saturated_curve_raises_no_false_alarm(tmp_path: Path, op: str, place: float) -> None:
    """Where a curve is flat and its value cancelled, float32 steps inside an evaluator would look like a slope."""
    value = {"Erf": math.erf(place), "Gelu": place * 0.5 * math.erfc(-place / math.sqrt(2)), "HardSwish": place}[op]
    nodes = [helper.make_node(op, ["x"], ["e"]), helper.make_node("Sub", ["e", "c"], ["s"]), helper.make_node("MatMul", ["s", "w"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 4])], [helper.make_tensor_value_info("y", 1, [1, 4])],
        [numpy_helper.from_array(np.float32(value), "c"), numpy_helper.from_array(np.diag([1e3, 500, 333, 200]).astype(np.float32), "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "m.onnx")
    box = (f"x={place - 0.02},{place + 0.02}",)
    bound = snaudit.audit(tmp_path / "m.onnx", input_range=box, witness_seconds=20).network.bound
    assert bound.lower <= bound.upper and bound.bounded


def test_a_runtimes_message_keeps_what_matters() -> None:
    """Of a long message the end is kept, in whole words, and what stands before every message goes."""
    where = "/onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:91 onnxruntime::ReshapeHelper::ReshapeHelper"
    why = "input_shape_size == requested_shape_size was false. The input tensor cannot be reshaped to {3,7}"
    full = f"[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Reshape node. Name:'r' Status Message: {where}"
    assert running.short(RuntimeError(f"{full}(const onnxruntime::TensorShape&, bool) {why}\n")) == f"Reshape node. Name:'r' {why}"
    long = running.short(RuntimeError("word " * 100 + "the reason"))
    assert long.startswith("… word ") and long.endswith(" word the reason") and len(long) <= 202
