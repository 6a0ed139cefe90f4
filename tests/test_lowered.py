"""onnxruntime's own ops written as ONNX's: the same function, op by op and file by file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from graphs import make_model, session_of
from onnx import helper

import snaudit
from snaudit.errors import UnreadableModel
from snaudit.formats.onnx_graph import with_shapes
from snaudit.kernels import fitting
from snaudit.lowered import ROWS, evaluated, for_evaluation, lowered, stand_in
from snaudit.lowered.interface import MICROSOFT, NCHWC, Call
from snaudit.precision import in_precision

RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


@dataclass(frozen=True)
class Case:
    """One node on inputs of these shapes and these constants. reads: its inputs in order, where "" is left out.

    truth: what it computes, where onnxruntime has no kernel for it. left: the ops that may stay.
    """

    op: str
    inputs: dict[str, tuple[int, ...]]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    reads: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    opset: int = 17
    domain: str = MICROSOFT
    kinds: dict[str, str] = field(default_factory=dict)
    truth: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        text = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}-{self.opset}[{len(self.constants)}]({text})"[:100]

    def model(self) -> onnx.ModelProto:
        reads = self.reads.split(",") if self.reads else [*self.inputs, *self.constants]
        node = helper.make_node(self.op, reads, list(self.outputs), name="node", domain=self.domain, **self.attributes)
        named = [name for name in self.outputs if name]
        return model_of([node], self.inputs, self.constants, named, self.opset, self.kinds)

    def feed(self, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            name: rng.integers(0, 3, shape).astype(self.kinds[name])
            if name in self.kinds
            else rng.standard_normal(shape).astype(np.float32)
            for name, shape in self.inputs.items()
        }


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Any],
    constants: dict[str, np.ndarray],
    outputs: list[str],
    opset: int = 17,
    kinds: dict[str, str] = {},
) -> onnx.ModelProto:
    made = make_model(nodes, inputs, constants, outputs, opset, "float32", {k: "int64" for k in kinds})
    for value in made.graph.input:
        if value.name in kinds:
            value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kinds[value.name]))
    made.opset_import.append(helper.make_opsetid(NCHWC, 1))
    return made


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    lowered(copy, lambda other: with_shapes(other, []))
    return copy


def ops_of(model: onnx.ModelProto) -> set[tuple[str, str]]:
    return {(node.domain, node.op_type) for node in model.graph.node}


def case(op: str, inputs: dict[str, tuple[int, ...]], constants: dict[str, Any] = {}, **settings: Any) -> Case:
    own = {key: settings.pop(key) for key in list(settings) if key in Case.__dataclass_fields__}
    return Case(op, inputs, {k: np.asarray(v) for k, v in constants.items()}, attributes=settings, **own)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / np.sqrt(2.0)))


def group_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, groups: int, silu: bool, last: bool) -> np.ndarray:
    x = np.moveaxis(x, -1, 1) if last else x
    parts = x.reshape(len(x), groups, -1)
    normal = (parts - parts.mean(-1, keepdims=True)) / np.sqrt(parts.var(-1, keepdims=True) + 0.01)
    y = normal.reshape(x.shape) * gamma[:, None, None] + beta[:, None, None]
    y = y / (1.0 + np.exp(-y)) if silu else y
    return np.moveaxis(y, 1, -1) if last else y


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


IMAGE, KERNEL, BIAS = {"x": (1, 3, 6, 5)}, random(4, 3, 3, 2), random(4)
SIGNS = {"Relu": {}, "Tanh": {}, "Sigmoid": {}, "LeakyRelu": {"alpha": 0.3}, "HardSigmoid": {"alpha": 0.3, "beta": 0.4}}
GAMMA, BETA = random(8), random(8)
TOKENS = {"x": (2, 5, 8)}
HWC = {"x": (2, 4, 3, 8)}
CHW = {"x": (2, 8, 4, 3)}


def nhwc_convolution(x: np.ndarray, z: np.ndarray | None = None, activation: str = "") -> np.ndarray:
    """Through onnxruntime's own FusedConv, transposed here."""
    inputs = {"x": (1, 3, 6, 5)} | ({} if z is None else {"z": (1, 4, 4, 4)})
    reads = "x,w,b" + ("" if z is None else ",z")
    settings = {"activation": activation} if activation else {}
    own = case("FusedConv", inputs, {"w": KERNEL, "b": BIAS}, reads=reads, **settings)
    feed = {"x": np.moveaxis(x, -1, 1)} | ({} if z is None else {"z": np.moveaxis(z, -1, 1)})
    return np.moveaxis(session_of(own.model()).run(None, feed)[0], 1, -1)


CONVOLUTIONS = [
    *(
        case("FusedConv", IMAGE, {"w": KERNEL, "b": BIAS}, activation=name, pads=[1, 0, 1, 2], strides=[1, 2],
             **({"activation_params": list(given.values())} if given else {}))
        for name, given in SIGNS.items()
    ),
    *(
        case("FusedConv", IMAGE, {"w": KERNEL}, activation="Clip", activation_params=[-0.5, 1.0], opset=opset)
        for opset in (9, 17)
    ),
    case("FusedConv", IMAGE | {"z": (1, 4, 4, 4)}, {"w": KERNEL, "b": BIAS}, reads="x,w,b,z", activation="Relu"),
    case("FusedConv", IMAGE | {"z": (1, 4, 4, 4)}, {"w": KERNEL}, reads="x,w,,z"),
    case("FusedConv", {"x": (1, 4, 9)}, {"w": random(4, 2, 3)}, group=2, dilations=[2], activation="Tanh"),
    case("NhwcConv", {"x": (1, 6, 5, 3)}, {"w": KERNEL, "b": BIAS}, truth=nhwc_convolution),
    case("NhwcConv", {"x": (1, 6, 5, 3)}, {"w": KERNEL.transpose(0, 2, 3, 1), "b": BIAS}, kernel_shape=[3, 2],
         truth=nhwc_convolution),
    case("NhwcFusedConv", {"x": (1, 6, 5, 3), "z": (1, 4, 4, 4)}, {"w": KERNEL, "b": BIAS}, reads="x,w,b,z",
         activation="Relu", truth=lambda x, z: nhwc_convolution(x, z, "Relu")),
]  # fmt: skip
GEMMS = [
    *(
        case("FusedGemm", {"x": (3, 4)}, {"w": random(4, 5), "c": random(5)}, activation=name, alpha=0.5, beta=2.0,
             **{f"activation_{k}": v for k, v in given.items()})
        for name, given in (SIGNS | {"Elu": {"alpha": 0.7}, "Softplus": {}}).items()
    ),
    case("FusedGemm", {"x": (4, 3)}, {"w": random(5, 4)}, activation="Relu", transA=1, transB=1),
    case("FusedMatMulActivation", {"x": (2, 3, 4)}, {"w": random(2, 5, 4)}, activation="LeakyRelu", transB=1, alpha=0.5,
         activation_alpha=0.1, truth=lambda x: (lambda y: np.where(y > 0, y, 0.1 * y))(x @ GEMMS[-1].constants["w"].swapaxes(1, 2) / 2)),
]  # fmt: skip
PRODUCTS = [
    *(
        case("FusedMatMul", {"x": (2, 3, 4, 4), "z": (2, 3, 4, 4)}, alpha=0.25, transA=a, transB=b)
        for a in (0, 1) for b in (0, 1)
    ),
    *(
        case("FusedMatMul", {"x": (4, 4, 4), "z": (4, 4, 4)}, transA=a, transB=b, transBatchA=c, transBatchB=d)
        for a, b, c, d in ((0, 0, 1, 0), (1, 0, 1, 0), (0, 1, 0, 1), (1, 1, 1, 1), (0, 0, 1, 1))
    ),
    case("FusedMatMul", {"x": (2, 3, 2, 5), "z": (3, 2, 5, 4)}, transBatchA=1, alpha=-2.0),
    case("FusedMatMul", {"x": (2, 4)}, {"w": random(5, 4)}, transB=1),
    case("FusedMatMul", {"x": (2, 1, 4, 3), "z": (3, 5, 4)}, transA=1, transB=1),
    case("FusedMatMul", {"x": (4, 3), "z": (2, 4, 5)}, transA=1),
    case("FusedMatMul", {"x": (3, 4)}, {"w": random(4)}, alpha=3.0),
    case("TransposeMatMul", {"x": (4, 2)}, {"w": random(4, 5)}, transA=1, alpha=0.5),
]  # fmt: skip
NORMALIZED = [
    case("SkipLayerNormalization", TOKENS | {"z": (2, 5, 8)}, {"g": GAMMA, "b": BETA}, epsilon=0.01),
    case("SkipLayerNormalization", TOKENS | {"z": (1, 5, 8)}, {"g": GAMMA}, epsilon=0.01, opset=11),
    case("SkipLayerNormalization", TOKENS | {"z": (5, 8)}, {"g": GAMMA, "b": BETA, "c": BIAS.repeat(2)},
         outputs=("y", "", "", "s")),
    case("SkipSimplifiedLayerNormalization", TOKENS | {"z": (2, 5, 8)}, {"g": GAMMA, "c": BETA}, epsilon=0.01,
         outputs=("y", "", "", "s")),
    case("SkipSimplifiedLayerNormalization", TOKENS | {"z": (2, 5, 8)}, {"g": GAMMA}),
    *(
        case("EmbedLayerNormalization", {"i": (2, 5), "t": (2, 5), "m": (2, 5)} | more,
             {"w": random(9, 8), "p": random(7, 8), "s": random(3, 8), "g": GAMMA, "b": BETA}, reads=reads, epsilon=0.01,
             mask_index_type=1, outputs=outputs, kinds=dict.fromkeys("itmn", "int32"), opset=opset)
        for more, reads, outputs, opset in (
            ({}, "i,t,w,p,s,g,b", ("y", "", "e"), 17),
            ({"n": (2, 5)}, "i,,w,p,,g,b,,n", ("y", ""), 11),
        )
    ),
    *(
        case("GroupNorm", HWC if last else CHW, {"g": GAMMA, "b": BETA}, groups=4, activation=silu, channels_last=last,
             epsilon=0.01, truth=lambda x, last=last, silu=silu: group_norm(x, GAMMA, BETA, 4, silu, last))
        for last in (0, 1) for silu in (0, 1)
    ),
    *(
        case("SkipGroupNorm", (HWC if last else CHW) | {"z": (2, 1, 1, 8) if last else (2, 8, 4, 3)},
             {"g": GAMMA, "b": BETA, "c": BETA}, reads="x,g,b,z,c", groups=2, activation=1, channels_last=last,
             epsilon=0.01, outputs=("y", "s"), truth=lambda x, z, last=last: skipped(x, z, last))
        for last in (0, 1)
    ),
]  # fmt: skip


def skipped(x: np.ndarray, z: np.ndarray, last: int) -> list[np.ndarray]:
    total = x + z + (BETA if last else BETA[:, None, None])
    return [group_norm(total, GAMMA, BETA, 2, True, bool(last)), total]


def codes(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)


HALF, ZERO = np.float32(0.02), np.uint8(120)
SCALES = {"s": HALF, "z": ZERO}
PLAIN = [
    case("BiasGelu", TOKENS, {"b": BETA}),
    case("FastGelu", TOKENS, {"b": BETA}),
    case("BiasAdd", TOKENS | {"z": (2, 5, 8)}, {"b": BETA}, reads="x,b,z", truth=lambda x, z: x + BETA + z),
    *(
        case("BiasSplitGelu", TOKENS, {"b": BETA}, opset=opset,
             truth=lambda x: (x + BETA)[..., :4] * gelu((x + BETA)[..., 4:]))
        for opset in (13, 18)
    ),
    *(
        case("BiasSoftmax", {"x": (2, 3, 4)}, {"b": bias}, axis=axis, is_inner_broadcast=0,
             truth=lambda x, bias=bias: softmax(x + bias))
        for bias, axis in ((random(2, 1, 4), 2), (random(3, 4), -1))
    ),
    case("Pad", {"x": (2, 3)}, {"p": np.array([1, 0, 0, 2]), "v": np.array(0.5)}),
    case("Pad", {"x": (2, 3)}, {"p": np.array([1, 0, 0, 2])}, mode="reflect"),
    case("Trilu", {"x": (4, 4)}, upper=0),
    case("GatherND", {"x": (3, 4)}, {"i": np.array([[0, 1], [2, 3]])}),
    case("ExpandDims", {"x": (3, 4)}, {"a": np.array(-1, np.int32)}, opset=13),
    case("NhwcMaxPool", {"x": (1, 6, 5, 3)}, kernel_shape=[2, 3], strides=[2, 1], pads=[0, 1, 0, 1], kinds={"x": "uint8"}),
    case("QLinearConv", {"x": (1, 6, 5, 3)}, SCALES | {"w": codes(4, 3, 3, 2), "t": np.float32(0.01), "u": ZERO,
         "v": np.float32(0.5), "q": ZERO}, channels_last=1, kernel_shape=[3, 2], kinds={"x": "uint8"}),
    case("QLinearAveragePool", {"x": (1, 6, 5, 3)}, SCALES | {"t": HALF, "u": ZERO}, channels_last=1, kernel_shape=[2, 2],
         kinds={"x": "uint8"}),
    case("QLinearGlobalAveragePool", {"x": (1, 6, 5, 3)}, SCALES | {"t": HALF, "u": ZERO}, channels_last=1,
         kinds={"x": "uint8"}),
]  # fmt: skip
CASES = [*CONVOLUTIONS, *GEMMS, *PRODUCTS, *NORMALIZED, *PLAIN]


def outputs_of(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return session_of(model).run(None, feed)


@pytest.mark.parametrize("one", CASES, ids=[one.name for one in CASES])
def test_the_written_ops_compute_what_the_op_computes(one: Case) -> None:
    model = one.model()
    written = rewritten(model)
    assert (one.domain, one.op) not in ops_of(written) or one.op.startswith(("FastGelu", "QLinear"))
    assert len(written.graph.node) > 1 or ops_of(written) == {("", one.op)} or one.op.startswith("Fused") or one.op[0] == "T"
    own = [n for n in written.graph.node if n.name == "node"]
    assert len(own) == 1, "one op keeps the node's name"
    for seed in range(3):
        feed = one.feed(seed)
        truth = outputs_of(model, feed) if one.truth is None else one.truth(*feed.values())
        truth = truth if isinstance(truth, list) else [truth]
        for got, wanted in zip(outputs_of(written, feed), truth, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5 if got.dtype.kind == "f" else 0)


def test_each_row_is_run() -> None:
    rows = [(row.domain, row.op) for row in ROWS]
    assert len(set(rows)) == len(rows)
    blocked = {(NCHWC, op) for op in BLOCKED}
    assert set(rows) == {(one.domain, one.op) for one in CASES} | blocked


WIDE = {"w": random(8, 24), "c": random(24)}
EVALUATED = [
    case("Gelu", TOKENS),
    case("FastGelu", TOKENS),
    case("FastGelu", TOKENS, {"b": BETA}),
    case("QuickGelu", TOKENS, alpha=1.5),
    case("QuickGelu", TOKENS),
    case("SimplifiedLayerNormalization", TOKENS, {"g": GAMMA}, domain="", epsilon=0.01, axis=-1),
    case("SimplifiedLayerNormalization", TOKENS, {"g": GAMMA}, domain="", opset=18),
    case("LayerNormalization", TOKENS, {"g": GAMMA, "b": BETA}, domain="", opset=11, epsilon=0.01),
    case("Attention", TOKENS, WIDE, num_heads=2),
    case("Attention", TOKENS, WIDE, num_heads=4, scale=0.3, opset=11),
    case("MultiHeadAttention", TOKENS | {"k": (2, 3, 8), "v": (2, 3, 8)}, {"c": random(24)}, num_heads=2),
    case("MultiHeadAttention", TOKENS | {"k": (2, 5, 8), "v": (2, 5, 8)}, num_heads=4, scale=0.3),
]


@pytest.mark.parametrize("one", [*EVALUATED, *(c for c in CASES if c.truth is None and not c.kinds)], ids=lambda one: one.name)
def test_what_is_written_out_for_evaluation_is_the_same_in_float64(one: Case) -> None:
    model = one.model()
    written = in_precision(model, onnx.TensorProto.DOUBLE)
    for_evaluation(written, lambda other: with_shapes(other, []))
    assert not [op for domain, op in ops_of(written) if domain]
    evaluator = onnx.reference.ReferenceEvaluator(written, new_ops=fitting(written))
    for seed in range(2):
        feed = one.feed(seed)
        got = evaluator.run(None, {name: array.astype(np.float64) for name, array in feed.items()})
        for found, wanted in zip(got, outputs_of(model, feed), strict=True):
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_each_row_for_evaluation_is_run() -> None:
    assert {(row.domain, row.op) for row in evaluated.ROWS} == {(one.domain, one.op) for one in EVALUATED}


# com.microsoft.nchwc, by hand for both widths of a block, as no one processor has both

BLOCKED = ("Conv", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "ReorderInput", "ReorderOutput")


def blocked_kernel(kernel: np.ndarray, block: int, whole: bool) -> np.ndarray:
    """The bytes of a kernel (O, I, H, W) as onnxruntime lays them out, under a shape with its padded channels."""
    outer, inner, *taps = kernel.shape
    more = (-outer % block, -inner % block if whole else 0)
    kernel = np.pad(kernel, [(0, more[0]), (0, more[1]), (0, 0), (0, 0)])
    outer, inner = kernel.shape[:2]
    if not whole:
        return kernel.reshape(outer // block, block, inner, *taps).transpose(0, 2, 3, 4, 1).reshape(kernel.shape)
    parts = kernel.reshape(outer // block, block, inner // block, block, *taps)
    return parts.transpose(0, 2, 4, 5, 3, 1).reshape(kernel.shape)


def nchwc_model(block: int, last: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A net of blocked ops, and the plain one that it stands for; 24 channels settle the block."""
    first, depth, second = random(24, 3, 3, 3) / 3, random(24, 1, 3, 3) / 3, random(20, 24, 1, 1) / 3
    third, shift = random(24, 24, 1, 1) / 5, random(24)
    pads = {"pads": [1, 1, 1, 1]}

    def plain(op: str, reads: str, made: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, reads.split(), [made], name=made, **attributes)

    def own(op: str, reads: str, made: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, reads.split(), [made], name=made, domain=NCHWC, **attributes)

    body = [
        plain("Conv", "x w b", "c0", **pads), plain("Relu", "c0", "c"), plain("MaxPool", "c", "p", kernel_shape=[2, 2], strides=[2, 2]),
        plain("Conv", "p d", "e0", group=24, **pads), plain("Add", "e0 p", "e1"), plain("Sigmoid", "e1", "e"),
        plain("AveragePool", "e", "a", kernel_shape=[2, 2]), plain("Conv", "a v", "o"),
        plain("Conv", "i u", "j"), plain("GlobalMaxPool", "j", "k"), plain("GlobalAveragePool", "j", "l"),
    ]  # fmt: skip
    weights = {"w": first, "b": shift, "d": depth, "v": second, "u": third}
    if last:
        body.append(plain("Transpose", "in", "i", perm=[0, 3, 1, 2]))
        body = [body[-1], *body[:-1]]
    else:
        body.insert(0, plain("Identity", "in", "i"))
    inputs = {"x": (1, 3, 6, 6), "in": (1, 4, 5, 24) if last else (1, 24, 4, 5)}
    truth = model_of(body, inputs, weights, ["o", "k", "l"])
    more = {"channels_last": last} if last else {}
    nodes = [
        own("Conv", "x w b", "c", activation="Relu", **pads), own("MaxPool", "c", "p", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "d", "", "p"], ["e"], domain=NCHWC, group=24, activation="Sigmoid", **pads),
        own("AveragePool", "e", "a", kernel_shape=[2, 2]), own("Conv", "a v", "o0"),
        own("ReorderOutput", "o0", "o", channels=20), own("ReorderInput", "in", "i", **more), own("Conv", "i u", "j"),
        own("GlobalMaxPool", "j", "k0"), own("GlobalAveragePool", "j", "l0"),
        own("ReorderOutput", "k0", "k", channels=24), own("ReorderOutput", "l0", "l", channels=24),
    ]  # fmt: skip
    width = -(-24 // block) * block
    stored = {
        "w": blocked_kernel(first, block, False), "b": np.pad(shift, (0, width - 24)),
        "d": blocked_kernel(np.pad(depth, [(0, width - 24), (0, 0), (0, 0), (0, 0)]), block, False),
        "v": blocked_kernel(second, block, True), "u": blocked_kernel(third, block, True),
    }  # fmt: skip
    next(a for a in nodes[2].attribute if a.name == "group").i = width
    made = model_of(nodes, inputs, stored, ["o", "k", "l"])
    return truth, made


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("block", [8, 16])
def test_blocked_convolutions_are_put_back_into_their_order(block: int, last: int) -> None:
    truth, made = nchwc_model(block, last)
    written = rewritten(made)
    assert not [op for domain, op in ops_of(written) if domain == NCHWC]
    rng = np.random.default_rng(2)
    feed = {v.name: rng.standard_normal([d.dim_value for d in v.type.tensor_type.shape.dim]).astype(np.float32) for v in made.graph.input}
    for got, wanted in zip(outputs_of(written, feed), outputs_of(truth, feed), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def padded_model(beside: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A residual block of 8 channels in blocks of 16, and the plain one. beside: what else reads the first value."""
    first, second, depth = random(8, 3, 3, 3) / 4, random(8, 8, 3, 3) / 8, random(8, 1, 3, 3) / 3
    shift = random(8)
    pads = {"pads": [1, 1, 1, 1]}
    plain = [
        helper.make_node("Conv", ["x", "w", "b"], ["c0"], **pads), helper.make_node("Relu", ["c0"], ["c"]),
        helper.make_node("Conv", ["c", "v", "b"], ["e0"], **pads), helper.make_node("Add", ["e0", "c"], ["e1"]),
        helper.make_node("Relu", ["e1"], ["y"]),
    ]  # fmt: skip
    own = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="c", domain=NCHWC, activation="Relu", **pads),
        helper.make_node("ReorderOutput", ["c"], ["r"], domain=NCHWC, channels=8),
        helper.make_node("Conv", ["r", "v", "b", "c"], ["e"], name="e", domain=NCHWC, activation="Relu", **pads),
        helper.make_node("ReorderOutput", ["e"], ["y"], domain=NCHWC, channels=8),
    ]
    outputs = ["y"]
    if beside == "pool":
        plain.append(helper.make_node("GlobalMaxPool", ["c"], ["z"]))
        own.append(helper.make_node("GlobalMaxPool", ["c"], ["q"], domain=NCHWC))
        own.append(helper.make_node("ReorderOutput", ["q"], ["z"], domain=NCHWC, channels=8))
    elif beside == "depthwise":
        plain += [helper.make_node("Conv", ["y", "d"], ["z0"], group=8, **pads), helper.make_node("Add", ["z0", "c"], ["z"])]
        own.append(helper.make_node("Conv", ["e", "d", "", "c"], ["q"], name="q", domain=NCHWC, group=16, **pads))
        own.append(helper.make_node("ReorderOutput", ["q"], ["z"], domain=NCHWC, channels=8))
    elif beside == "sum":
        plain.append(helper.make_node("ReduceSum", ["c"], ["z"], keepdims=0))
        own.append(helper.make_node("ReduceSum", ["c"], ["z"], keepdims=0))
    outputs += ["z"] if beside else []
    more = [(0, 8), (0, 0), (0, 0), (0, 0)]
    stored = {"w": blocked_kernel(first, 16, False), "v": blocked_kernel(second, 16, False), "b": np.pad(shift, (0, 8))}
    weights = {"w": first, "v": second, "b": shift}
    if beside == "depthwise":
        stored["d"], weights["d"] = blocked_kernel(np.pad(depth, more), 16, False), depth
    inputs = {"x": (1, 3, 5, 6)}
    return model_of(plain, inputs, weights, outputs), model_of(own, inputs, stored, outputs)


@pytest.mark.parametrize(("beside", "kept"), [("", [8, 8]), ("pool", [8, 8]), ("depthwise", [16, 16, 16]), ("sum", [16, 8])])
def test_padding_that_nothing_reads_is_left_out(beside: str, kept: list[int], tmp_path: Path) -> None:
    """Then the bound is that of the plain file; what reads all channels keeps them, a residual's among them."""
    truth, made = padded_model(beside)
    written = rewritten(made)
    inferred = {v.name: v.type.tensor_type.shape.dim for v in with_shapes(written, []).graph.value_info}
    convolutions = [node for node in written.graph.node if node.op_type == "Conv"]
    assert [inferred[node.input[1]][0].dim_value if node.input[1] in inferred else 16 for node in convolutions] == kept
    feed = {"x": np.random.default_rng(2).standard_normal((1, 3, 5, 6)).astype(np.float32)}
    for got, wanted in zip(outputs_of(written, feed), outputs_of(truth, feed), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    if not beside:
        uppers = []
        for model in (truth, made):
            onnx.save(model, tmp_path / "m.onnx")
            uppers.append(snaudit.audit(tmp_path / "m.onnx", witness_seconds=0).network.bound.upper)
        assert uppers[1] == pytest.approx(uppers[0], rel=1e-3)


def test_what_a_body_names_keeps_its_padding() -> None:
    """A branch that reads a blocked value, or gives a value of its own that name, and nodes out of order."""
    from snaudit.lowered.blocked import kept_of

    _, made = padded_model("")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in made.graph.initializer}
    assert kept_of(made.graph, shapes) == {"c": 8, "e": 8}
    for inner in (helper.make_node("Identity", ["c"], ["k"]), helper.make_node("Identity", ["x"], ["c"])):
        body = helper.make_graph([inner], "t", [], [onnx.ValueInfoProto(name=inner.output[0])])
        other = onnx.GraphProto.FromString(made.graph.SerializeToString())
        other.node.append(helper.make_node("If", ["flag"], ["u"], then_branch=body, else_branch=body))
        assert "c" not in kept_of(other, shapes)
    turned = onnx.GraphProto.FromString(made.graph.SerializeToString())
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(turned.node)]
    del turned.node[:]
    turned.node.extend(nodes)
    assert kept_of(turned, shapes) == {}


REFUSED = [
    case("FusedConv", IMAGE, {"w": KERNEL}, activation="HardSwish"),
    case("FusedConv", IMAGE, {"w": KERNEL}, activation="LeakyRelu"),
    case("FusedConv", IMAGE, {"w": KERNEL}, activation="Clip", activation_params=[1.0, 0.0]),
    case("FusedConv", IMAGE, {"w": KERNEL}, activation="HardSigmoid", activation_params=[1.0]),
    case("FusedConv", IMAGE, {"w": KERNEL}, activation="Relu", gain=3.0),
    case("FusedGemm", {"x": (3, 4)}, {"w": random(4, 5), "c": random(5)}, activation="LeakyRelu"),
    case("FusedGemm", {"x": (3, 4)}, {"w": random(4, 5), "c": random(5)}, activation="Elu", activation_beta=1.0),
    case("FusedMatMul", {"x": (3, 4)}, {"w": random(4, 5), "c": random(5)}, reads="x,w,c"),
    case("FusedMatMul", {"x": (2, 4, 3)}, {"w": random(4)}, transA=1),
    case("FusedMatMul", {"x": (3, 4)}, {"w": random(4, 5)}, transBatchA=1),
    case("FusedMatMul", {"x": (3, 2, 4)}, {"w": random(4, 5)}, transBatchA=1),
    case("SkipLayerNormalization", TOKENS | {"z": (2, 5, 8)}, {"g": GAMMA}, outputs=("y", "m")),
    case("SkipLayerNormalization", TOKENS | {"z": (2, 5, 8)}, {"g": GAMMA}, axis=1),
    case("BiasSoftmax", {"x": (2, 3, 4)}, {"b": random(3, 4)}, axis=1, is_inner_broadcast=0),
    case("BiasSoftmax", {"x": (2, 3, 4)}, {"b": random(2, 2)}, axis=2, is_inner_broadcast=1),
    case("GroupNorm", HWC, {"g": GAMMA, "b": BETA}, groups=4, activation=2),
    case("GroupNorm", HWC, {"g": GAMMA, "b": BETA}, activation=0),
    case("Conv", {"x": (1, 3, 6, 5)}, {"w": random(16, 3, 3, 3)}, domain=NCHWC),
    case("NhwcConv", {"x": (1, 6, 5, 3)}, {"w": random(4, 3, 3, 3)}, kernel_shape=[3, 3]),  # either layout
]  # fmt: skip


@pytest.mark.parametrize("one", REFUSED, ids=[one.name for one in REFUSED])
def test_what_is_not_known_to_the_last_attribute_is_a_gap_with_its_reason(one: Case, tmp_path: Path) -> None:
    model = one.model()
    model.graph.node.append(helper.make_node("MatMul", ["y", "last"], ["end"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(random(3, 3).astype(np.float32), "last"))
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name="end"))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    report = snaudit.audit(path)
    assert not report.network.bound.bounded
    (gap,) = [gap for gap in report.gaps if gap.op == one.op]
    assert gap.code == "no-rule" and gap.reason.startswith(f"{one.domain}.{one.op} ") and gap.remedy
    assert "rule for" not in gap.reason


@pytest.mark.parametrize(
    "one",
    [
        case("FusedConv", IMAGE, {"w": KERNEL}, activation="Relu", strides="two"),
        case("FusedConv", IMAGE, {"w": KERNEL}, activation="Unknown", dilations=2),
        case("FusedGemm", {"x": (3, 4)}, {"w": random(4, 5)}, activation="Relu", alpha=[1.0]),
        case("NhwcMaxPool", {"x": (1, 6, 5, 3)}, kernel_shape=[2, 3], auto_pad=3),
    ],
    ids=lambda one: one.name,
)
def test_an_attribute_of_the_wrong_kind_makes_no_graph(one: Case, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(one.model().SerializeToString())
    with pytest.raises(UnreadableModel, match="of the wrong kind"):
        snaudit.audit(tmp_path / "m.onnx")


def test_a_reason_that_the_file_gives_is_not_taken_for_ours() -> None:
    """Our notes stand in a node's metadata; what a file has there under our keys is replaced."""
    from snaudit.domains import KEPT, REMEDY

    model = REFUSED[0].model()
    for key in (KEPT, REMEDY):
        model.graph.node[0].metadata_props.add(key=key, value="all is well")
    (node,) = rewritten(model).graph.node
    assert [(p.key, "HardSwish" in p.value) for p in node.metadata_props] == [(KEPT, True)]


def test_the_rank_that_a_product_needs_is_known_from_the_products_before() -> None:
    """FusedMatMuls in a chain, each of the other's unknown shape, a body's among them."""
    nodes = [
        helper.make_node("FusedMatMul", ["x", "w"], ["a"], domain=MICROSOFT, alpha=0.5),
        helper.make_node("FusedMatMul", ["a", "a"], ["b"], domain=MICROSOFT, transA=1),
        helper.make_node("BiasGelu", ["b", "c"], ["d"], domain=MICROSOFT),
        helper.make_node("FusedMatMul", ["d", "d"], ["y"], domain=MICROSOFT, transB=1),
    ]
    model = model_of(nodes, {"x": (2, 3, 4)}, {"w": random(4, 5), "c": random(5)}, ["y"])
    written = rewritten(model)
    assert {op for domain, op in ops_of(written) if domain} == {"Gelu"}
    feed = {"x": random(2, 3, 4).astype(np.float32)}
    np.testing.assert_allclose(outputs_of(written, feed)[0], outputs_of(model, feed)[0], rtol=1e-4, atol=1e-4)


def test_ranks_known_only_after_what_they_rest_on_was_written_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without stand-ins a round knows the shapes of one product more."""
    monkeypatch.setattr("snaudit.lowered.stand_in", lambda graph: None)
    nodes = [helper.make_node("FusedMatMul", [f"v{i}", f"v{i}"], [f"v{i + 1}"], domain=MICROSOFT, transB=1) for i in range(4)]
    written = rewritten(model_of(nodes, {"v0": (2, 3, 3)}, {}, ["v4"]))
    assert not {op for domain, op in ops_of(written) if domain}


def test_a_moved_batch_stands_in_with_its_shape() -> None:
    """A product whose rank rests on one that moves its batch, in both of the orders that a side may have."""
    for trans in (0, 1):
        attributes = {"transA": trans, "transBatchA": 1, "transBatchB": 1, "transB": trans}
        shapes = [(3, 2, 4), (5, 2, 3)] if trans else [(3, 2, 4), (4, 2, 5)]
        nodes = [
            helper.make_node("FusedMatMul", ["x", "z"], ["a"], domain=MICROSOFT, **attributes),
            helper.make_node("FusedMatMul", ["a", "a"], ["y"], domain=MICROSOFT, transB=1),
        ]
        stood = model_of(nodes, dict(zip("xz", shapes, strict=True)), {}, ["y"])
        stand_in(stood.graph)
        inferred = {v.name: v.type.tensor_type.shape for v in with_shapes(stood, []).graph.value_info}
        rows = 4 if trans else 3
        assert [d.dim_value for d in inferred["a"].dim] == [2, rows, 5]


def test_nodes_of_one_name_are_told_apart_one_after_another() -> None:
    """Each name remembers its next number: the names of a thousand nodes are not tried a thousand times."""

    class Counted(dict[str, int]):
        asked = 0

        def __contains__(self, name: object) -> bool:
            Counted.asked += 1
            return super().__contains__(name)

    call = Call(onnx.NodeProto(), 17, {}, {}, Counted({"n": 2, "n.3": 2}))
    assert [call.fresh("n") for _ in range(3)] == ["n.2", "n.4", "n.5"]
    for _ in range(1000):
        call.fresh("n")
    assert Counted.asked < 3000 and len(call.taken) == 1005


def test_a_second_output_without_a_rule_is_a_gap_of_its_own(tmp_path: Path) -> None:
    """Its node still has a bound, also in the walk that starts anew behind the gap."""
    node = helper.make_node("Gelu", ["x"], ["y", "z"], name="node", domain=MICROSOFT)
    last = helper.make_node("MatMul", ["z", "w"], ["end"])
    model = model_of([node, last], {"x": (2, 3)}, {"w": random(3, 3)}, ["y", "end"])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    report = snaudit.audit(tmp_path / "m.onnx")
    assert [gap.where for gap in report.gaps] == ["node"] and not report.network.bound.bounded


def test_fused_ops_in_the_branches_of_an_if_are_written_there(tmp_path: Path) -> None:
    """They read constants from outside, and one node's name stands in both branches."""
    weight, bias = random(3, 3), random(3)

    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), name, [], [onnx.ValueInfoProto(name=nodes[-1].output[0])])

    fused = helper.make_node("FusedMatMul", ["x", "w"], ["a"], name="n", domain=MICROSOFT, transB=1, alpha=0.5)
    branches = {
        "then_branch": branch("t", fused, helper.make_node("BiasGelu", ["a", "b"], ["c"], name="m", domain=MICROSOFT)),
        "else_branch": branch("e", helper.make_node("FusedGemm", ["x", "w", "b"], ["c"], name="n", domain=MICROSOFT, activation="Relu")),
    }
    nodes = [helper.make_node("If", ["flag"], ["y"], **branches)]
    model = model_of(nodes, {"x": (2, 3), "flag": ()}, {"w": weight, "b": bias}, ["y"], kinds={"flag": "bool"})
    written = rewritten(model)
    for flag in (True, False):
        feed = {"x": random(2, 3).astype(np.float32), "flag": np.array(flag)}
        np.testing.assert_allclose(outputs_of(written, feed)[0], outputs_of(model, feed)[0], rtol=1e-5, atol=1e-5)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    report = snaudit.audit(tmp_path / "m.onnx")
    sigma = np.linalg.norm(weight.astype(np.float32).astype(float), 2)
    assert sigma * (1 - 1e-6) <= report.network.bound.upper <= sigma * 1.001 and len(report.layers) >= 1
