"""Files as onnxruntime's optimizers write them: the bound of the model that they were, and true of what they compute."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import make_model, session_of, size
from onnx import helper

import snaudit
from snaudit.bound import NORMS, Norm

LEVELS = onnxruntime.GraphOptimizationLevel
RNG = np.random.default_rng(7)


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 2 else shape[0])


def node(op: str, reads: str, made: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, reads.split(), made.split(), name=f"{op} {made}", **attributes)


def convolutions() -> onnx.ModelProto:
    """Convolutions with fused activations, a residual, pooling and a head. Eight channels settle a block."""
    pads, c, d = {"pads": [1, 1, 1, 1]}, 8, 4
    nodes = [
        node("Conv", "x w0 b0", "c0", **pads), node("Relu", "c0", "r0"),
        node("Conv", "r0 w1", "c1", **pads), node("LeakyRelu", "c1", "r1", alpha=0.3),
        node("Conv", "r1 w2", "c2", **pads), node("Add", "c2 r0", "a2"), node("Relu", "a2", "r2"),
        node("MaxPool", "r2", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p w3", "c3", group=c, **pads), node("Clip", "c3 low high", "r3"),
        node("Conv", "r3 w4", "c4"), node("Sigmoid", "c4", "r4"), node("AveragePool", "r4", "q", kernel_shape=[2, 2]),
        node("Flatten", "q", "f"), node("Gemm", "f w5 b5", "g", transB=1), node("Tanh", "g", "h"), node("Gemm", "h w6", "y"),
    ]  # fmt: skip
    weights = {
        "w0": weight(c, 3, 3, 3), "b0": weight(c, 1)[:, 0], "w1": weight(c, c, 3, 3), "w2": weight(c, c, 3, 3) / 2,
        "w3": weight(c, 1, 3, 3), "w4": weight(d, c, 1, 1), "w5": weight(6, d), "b5": weight(6, 1)[:, 0],
        "w6": weight(6, 4), "low": np.array(-1.0), "high": np.array(2.0),
    }  # fmt: skip
    return make_model(nodes, {"x": (1, 3, 4, 4)}, weights, dtype="float32")


def perceptron() -> onnx.ModelProto:
    """Gemms with fused activations, GELU written out, transposed and scaled products."""
    nodes = [
        node("Gemm", "x w0 b0", "g0"), node("Relu", "g0", "r0"), node("Gemm", "r0 w1 b1", "g1", transB=1),
        node("LeakyRelu", "g1", "r1", alpha=0.2), node("MatMul", "r1 w2", "m2"), node("Add", "m2 b2", "a2"),
        node("Div", "a2 root", "d2"), node("Erf", "d2", "e2"), node("Add", "e2 one", "f2"), node("Mul", "a2 f2", "h2"),
        node("Mul", "h2 half", "k2"), node("Transpose", "w3", "t3", perm=[1, 0]), node("MatMul", "k2 t3", "m3"),
        node("Mul", "m3 third", "s3"), node("Transpose", "s3", "t4", perm=[1, 0]), node("MatMul", "w4 t4", "y"),
    ]  # fmt: skip
    weights = {
        "w0": weight(5, 7), "b0": weight(7, 1)[:, 0], "w1": weight(6, 7), "b1": weight(6, 1)[:, 0], "w2": weight(6, 8),
        "b2": weight(8, 1)[:, 0], "w3": weight(5, 8), "w4": weight(4, 5), "root": np.array(np.sqrt(2.0)),
        "one": np.array(1.0), "half": np.array(0.5), "third": np.array(0.3),
    }  # fmt: skip
    return make_model(nodes, {"x": (3, 5)}, weights, dtype="float32")


def normalized(reads: str, made: str, epsilon: float = 0.1) -> onnx.NodeProto:
    return node("LayerNormalization", reads, made, axis=-1, epsilon=epsilon)


WIDTH, TOKENS, HEADS = 8, 4, 2


def attended(source: str, made: str, i: int) -> Iterator[onnx.NodeProto]:
    """Self-attention as torch exports it, from one layer's weights."""
    for part in "qkv":
        yield node("MatMul", f"{source} w{part}{i}", f"{part}m{i}")
        yield node("Add", f"b{part}{i} {part}m{i}", f"{part}b{i}")
        yield node("Reshape", f"{part}b{i} split", f"{part}r{i}")
        yield node("Transpose", f"{part}r{i}", f"{part}t{i}", perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3])
    yield node("MatMul", f"qt{i} kt{i}", f"l{i}")
    yield node("Div", f"l{i} scale", f"ls{i}")
    yield node("Softmax", f"ls{i}", f"p{i}", axis=-1)
    yield node("MatMul", f"p{i} vt{i}", f"o{i}")
    yield node("Transpose", f"o{i}", f"ot{i}", perm=[0, 2, 1, 3])
    yield node("Reshape", f"ot{i} whole", f"or{i}")
    yield node("MatMul", f"or{i} wo{i}", f"om{i}")
    yield node("Add", f"bo{i} om{i}", made)


def fed(source: str, made: str, i: int) -> Iterator[onnx.NodeProto]:
    """Two layers with GELU between them, written out."""
    yield from [
        node("MatMul", f"{source} wf{i}", f"fm{i}"), node("Add", f"bf{i} fm{i}", f"fa{i}"), node("Div", f"fa{i} root", f"fd{i}"),
        node("Erf", f"fd{i}", f"fe{i}"), node("Add", f"fe{i} one", f"ff{i}"), node("Mul", f"fa{i} ff{i}", f"fg{i}"),
        node("Mul", f"fg{i} half", f"fh{i}"), node("MatMul", f"fh{i} wg{i}", f"fn{i}"), node("Add", f"bg{i} fn{i}", made),
    ]  # fmt: skip


def transformer(words: bool) -> onnx.ModelProto:
    """Two blocks: after an embedding of token ids with the norms behind, or on real tokens with the norms in front."""
    nodes, last = [], "x"
    if words:
        nodes += [node("Gather", "table x", "e"), node("Add", "e places", "ep"), normalized("ep g b", "t")]
        last = "t"
    for i in range(2):
        if words:
            nodes += [*attended(last, f"a{i}", i), node("Add", f"{last} a{i}", f"u{i}"), normalized(f"u{i} g b", f"n{i}")]
            nodes += [*fed(f"n{i}", f"z{i}", i), node("Add", f"n{i} z{i}", f"v{i}"), normalized(f"v{i} g b", f"t{i}")]
        else:
            nodes += [normalized(f"{last} g b", f"n{i}"), *attended(f"n{i}", f"a{i}", i), node("Add", f"{last} a{i}", f"u{i}")]
            nodes += [normalized(f"u{i} g b", f"k{i}"), *fed(f"k{i}", f"z{i}", i), node("Add", f"u{i} z{i}", f"t{i}")]
        last = f"t{i}"
    nodes.append(node("MatMul", f"{last} head", "y"))
    weights: dict[str, np.ndarray] = {
        "g": 1.0 + 0.1 * weight(WIDTH, 1)[:, 0], "b": weight(WIDTH, 1)[:, 0], "head": weight(WIDTH, 3),
        "split": np.array([1, TOKENS, HEADS, WIDTH // HEADS]), "whole": np.array([1, TOKENS, WIDTH]),
        "scale": np.array(np.sqrt(WIDTH / HEADS)), "root": np.array(np.sqrt(2.0)), "one": np.array(1.0), "half": np.array(0.5),
    }  # fmt: skip
    if words:
        weights |= {"table": weight(11, WIDTH), "places": weight(TOKENS, WIDTH)[None]}
    for i in range(2):
        weights |= {f"w{p}{i}": weight(WIDTH, WIDTH) for p in "qkvo"} | {f"b{p}{i}": weight(WIDTH, 1)[:, 0] for p in "qkvo"}
        weights |= {f"wf{i}": weight(WIDTH, 16), f"bf{i}": weight(16, 1)[:, 0]}
        weights |= {f"wg{i}": weight(16, WIDTH), f"bg{i}": weight(WIDTH, 1)[:, 0]}
    shape = (1, TOKENS) if words else (1, TOKENS, WIDTH)
    return make_model(nodes, {"x": shape}, weights, dtype="float32", kinds={"x": "int64"} if words else {})


MODELS = {
    "convolutions": convolutions,
    "perceptron": perceptron,
    "words": lambda: transformer(True),
    "tokens": lambda: transformer(False),
}


@cache
def original(name: str) -> bytes:
    return MODELS[name]().SerializeToString()


def optimized(name: str, way: str, folder: Path) -> tuple[Path, Path]:
    """The files of a model before and after one of onnxruntime's optimizers."""
    before, after = folder / "before.onnx", folder / "after.onnx"
    before.write_bytes(original(name))
    if way == "transformers":
        from onnxruntime.transformers import optimizer

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optimizer.optimize_model(str(before), "bert", num_heads=HEADS, hidden_size=WIDTH, opt_level=0)
        onnx.save(found.model, after)
        return before, after
    save_optimized(before, after, way)
    return before, after


def save_optimized(before: Path, after: Path, way: str) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(LEVELS, f"ORT_ENABLE_{way}")
    options.optimized_model_filepath = str(after)
    onnxruntime.InferenceSession(str(before), options, providers=["CPUExecutionProvider"])


def own_ops(path: Path) -> set[str]:
    return {n.op_type for n in onnx.load(path).graph.node if n.domain.startswith("com.microsoft")}


EXPECTED = {
    ("convolutions", "EXTENDED"): {"FusedConv", "FusedGemm"},
    ("perceptron", "EXTENDED"): {"FusedGemm", "FusedMatMul", "Gelu"},
    ("words", "EXTENDED"): {"SkipLayerNormalization", "FusedMatMul"},
    ("words", "transformers"): {"SkipLayerNormalization", "BiasGelu", "Attention"},
    ("tokens", "EXTENDED"): {"Gelu", "FusedMatMul"},
    ("tokens", "transformers"): {"SkipLayerNormalization", "BiasGelu"},
}
WAYS = [*EXPECTED, ("convolutions", "ALL"), ("tokens", "ALL")]


def pairs(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(x − y, f(x) − f(y)) of a file with one real input."""
    session = session_of(onnx.load(path))
    shape = session.get_inputs()[0].shape
    rng = np.random.default_rng(3)
    for scale in (1.0, 1e-2, 1e-3) * 8:
        x = rng.standard_normal(shape).astype(np.float32)
        y = (x + scale * rng.standard_normal(shape)).astype(np.float32)
        f, g = (session.run(None, {"x": at})[0].astype(np.float64) for at in (x, y))
        yield x.astype(np.float64) - y, f - g


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_an_optimized_model_has_the_bound_of_the_model(name: str, way: str, tmp_path: Path) -> None:
    before, after = optimized(name, way, tmp_path)
    assert own_ops(after) >= EXPECTED.get((name, way), set())
    norms: tuple[Norm, ...] = ("l2",) if name in ("words", "tokens") else NORMS
    for norm in norms:
        reports = [snaudit.audit(path, norm=norm) for path in (before, after)]
        old, new = (report.network.bound for report in reports)
        assert old.bounded and new.bounded, reports[1].gaps
        assert old.grade is new.grade and not reports[1].gaps
        assert 0.85 * old.upper <= new.upper <= 1.3 * old.upper
        sigmas = [sorted(round(layer.sigma.upper, 4) for layer in report.layers if layer.op != "Embedding") for report in reports]
        assert way == "transformers" or sigmas[0] == sigmas[1], "no layer is lost, none is another"
        if name != "words":
            for dx, df in pairs(after):
                assert size(df, norm) <= new.upper * size(dx, norm) * (1 + 1e-5) + 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_stock_encoder_of_two_layers_keeps_its_bound(tmp_path: Path) -> None:
    """Each fused product moves the batch and reads what the one before made: the last shape rests on the first."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
    net = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    torch.onnx.export(net, (torch.zeros(1, 3, 8),), before, opset_version=17, dynamo=False)
    save_optimized(before, after, "EXTENDED")
    fused = [n for n in onnx.load(after).graph.node if n.op_type == "FusedMatMul"]
    assert len(fused) == 4 and all(a.i for n in fused for a in n.attribute if a.name == "transBatchB")
    old, new = (snaudit.audit(path, witness_seconds=0) for path in (before, after))
    assert not new.gaps and 0.99 <= new.network.bound.upper / old.network.bound.upper <= 1.01


def test_a_file_whose_blocks_are_not_settled_says_so(tmp_path: Path) -> None:
    """Channels in sixteens fit blocks of 8 and of 16: no number, and nothing is taken for the kernel."""
    kernel = weight(32, 32, 3, 3)
    nodes = [
        helper.make_node("ReorderInput", ["x"], ["i"], domain="com.microsoft.nchwc"),
        helper.make_node("Conv", ["i", "w"], ["c"], name="conv", domain="com.microsoft.nchwc"),
        helper.make_node("ReorderOutput", ["c"], ["o"], domain="com.microsoft.nchwc", channels=32),
        node("Flatten", "o", "f"), node("MatMul", "f v", "y"),
    ]  # fmt: skip
    model = make_model(nodes, {"x": (1, 32, 3, 3)}, {"w": kernel, "v": weight(32, 2)}, dtype="float32")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    report = snaudit.audit(tmp_path / "m.onnx")
    (gap,) = report.gaps
    assert "8 or 16" in gap.reason and "ORT_ENABLE_EXTENDED" in gap.remedy and gap.where == "conv"
    assert not report.network.bound.bounded and [layer.name for layer in report.layers] == ["v"]
    assert any(item.name == "w" and item.missed for item in report.left_out)


@pytest.mark.parametrize(("name", "way"), [("convolutions", "EXTENDED"), ("convolutions", "ALL"), ("perceptron", "EXTENDED")])
def test_a_constrained_optimized_file_keeps_its_cap_in_what_it_computes(name: str, way: str, tmp_path: Path) -> None:
    _, after = optimized(name, way, tmp_path)
    first = snaudit.audit(after)
    cap = 0.5 * min(layer.norm.upper for layer in first.layers)
    outcome = snaudit.constrain(after, tmp_path / "capped.onnx", cap)
    report = snaudit.audit(outcome.target)
    assert [layer.name for layer in report.layers] == [layer.name for layer in first.layers]
    assert max(layer.norm.upper for layer in report.layers) <= cap
    assert own_ops(outcome.target) == own_ops(after)
    for dx, df in pairs(outcome.target):
        assert size(df, "l2") <= report.network.bound.upper * size(dx, "l2") * (1 + 1e-5) + 1e-6


@pytest.mark.parametrize(("name", "way"), [("perceptron", "EXTENDED"), ("tokens", "transformers")])
def test_an_optimized_file_has_a_lower_end(name: str, way: str, tmp_path: Path) -> None:
    _, after = optimized(name, way, tmp_path)
    network = snaudit.audit(after, witness_seconds=0.5).network
    assert 0.0 < network.bound.lower <= network.bound.upper


def test_an_optimized_file_is_brought_under_a_bound(tmp_path: Path) -> None:
    _, after = optimized("perceptron", "EXTENDED", tmp_path)
    limit = snaudit.audit(after).network.bound.upper / 4
    outcome = snaudit.constrain(after, tmp_path / "low.onnx", max_lipschitz=limit)
    assert snaudit.audit(outcome.target).network.bound.upper <= limit
