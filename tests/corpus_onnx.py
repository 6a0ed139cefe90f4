"""Rule 7: ONNX models that lie, climb, loop or explode, and odd ones that are sound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from corpus import Case, audited, either, matrix, refused
from onnx import TensorProto, helper, numpy_helper

W, OTHER = matrix(), matrix(seed=99)
FLOAT = TensorProto.FLOAT


def cases(folder: Path) -> list[Case]:
    return [
        *_damaged(folder),
        *_tensors(folder),
        *_graphs(folder),
        *_odd(folder),
    ]


def gemm(
    weight: TensorProto | None = None, nodes: Sequence[onnx.NodeProto] = (), opset: int = 17, ir: int = 8
) -> onnx.ModelProto:
    """y = x·wᵀ, the weight an initializer or made by `nodes` under the name w."""
    held = [] if nodes and weight is None else [numpy_helper.from_array(W, "w") if weight is None else weight]
    old = opset < 11  # Gemm then needs its third input
    if old:
        held.append(numpy_helper.from_array(np.zeros(5, np.float32), "bias"))
    body = [
        *nodes,
        helper.make_node("Gemm", ["x", "w", "bias"] if old else ["x", "w"], ["y"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        body,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 7])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 5])],
        held,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def put_model(folder: Path, tag: str, model: onnx.ModelProto | bytes) -> Path:
    path = folder / f"{tag}.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def _damaged(folder: Path) -> list[Case]:
    whole = gemm().SerializeToString()
    found = [
        refused("7", put_model(folder, f"cut_at_{n}", whole[:n]))
        for n in (1, 2, 9, len(whole) // 2, len(whole) - 1)
    ]
    no_ir, no_graph, no_opset, lies = gemm(), gemm(), gemm(), gemm()
    no_ir.ClearField("ir_version")
    no_graph.ClearField("graph")
    no_opset.ClearField("opset_import")
    lies.opset_import[0].version = 1 << 40
    nested = b""
    for _ in range(500):
        nested = b"\x3a" + _varint(len(nested)) + nested
    return found + [
        refused("7", put_model(folder, "no_ir_version", no_ir)),
        refused("7", put_model(folder, "no_graph", no_graph)),
        either("7", put_model(folder, "no_opset", no_opset), {"w": W}),
        either("7", put_model(folder, "opset_2_40", lies), {"w": W}),
        refused("7", put_model(folder, "trailing_junk", whole + b"\xff\xff\xff")),
        refused("7", put_model(folder, "protobuf_of_something_else", b"\x0a\x05hello\x12\x03abc")),
        refused("7", put_model(folder, "length_claims_2gb", b"\x08\x08\x3a\xff\xff\xff\xff\x07")),
        refused("7", put_model(folder, "groups", b"\x08\x08" + b"\x3b" * 50_000)),
        refused("7", put_model(folder, "nested_fields", b"\x08\x08" + nested)),
        either("7", put_model(folder, "graph_twice", whole + b"\x3a\0"), {"w": W}),
    ]


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _tensors(folder: Path) -> list[Case]:
    def raw(
        dims: Sequence[int] = (5, 7), kind: int = FLOAT, data: bytes = W.tobytes(), **extra: object
    ) -> TensorProto:
        return TensorProto(name="w", dims=dims, data_type=kind, raw_data=data, **extra)

    both = raw(float_data=[0.0] * 35)
    segment = raw()
    segment.segment.begin, segment.segment.end = 0, 35
    twice = gemm()
    twice.graph.initializer.append(numpy_helper.from_array(OTHER, "w"))
    also_sparse, also_node = (
        gemm(),
        gemm(nodes=[helper.make_node("Identity", ["x"], ["w"])], weight=numpy_helper.from_array(W, "w")),
    )
    also_sparse.graph.sparse_initializer.append(
        onnx.SparseTensorProto(
            values=numpy_helper.from_array(np.ones(1, np.float32), "w"),
            indices=numpy_helper.from_array(np.array([3]), "i"),
            dims=[5, 7],
        )
    )
    broken = {
        "dims_negative": raw((-5, -7)),
        "dim_negative": raw((-1, 7)),
        "dims_huge": raw((1 << 40, 1 << 40)),
        "dims_wrap": raw(((1 << 62) + 5, 4, 7)),
        "dims_zero_with_data": raw((0, 7)),
        "raw_short": raw(data=W.tobytes()[:-1]),
        "raw_long": raw(data=W.tobytes() + b"\0"),
        "raw_empty": TensorProto(name="w", dims=(5, 7), data_type=FLOAT),
        "two_data_fields": both,
        "segmented": segment,
        "type_undefined": raw(kind=0),
        "type_unknown": raw(kind=999),
        "type_string_raw": raw(kind=TensorProto.STRING),
        "float_data_short": TensorProto(name="w", dims=(5, 7), data_type=FLOAT, float_data=[1.0] * 34),
        "field_of_other_type": TensorProto(name="w", dims=(5, 7), data_type=FLOAT, double_data=[1.0] * 35),
        "half_out_of_range": TensorProto(
            name="w", dims=(5, 7), data_type=TensorProto.FLOAT16, int32_data=[1 << 20] * 35
        ),
        "half_negative": TensorProto(
            name="w", dims=(5, 7), data_type=TensorProto.FLOAT16, int32_data=[-1] * 35
        ),
    }
    constant = helper.make_node("Constant", [], ["w"], value=raw((-5, -7)))
    return [
        *(refused("7", put_model(folder, f"tensor_{tag}", gemm(t))) for tag, t in broken.items()),
        refused("7", put_model(folder, "tensor_in_constant_bad", gemm(nodes=[constant]))),
        refused("7", put_model(folder, "initializer_twice", twice)),
        refused("7", put_model(folder, "initializer_also_sparse", also_sparse)),
        refused("7", put_model(folder, "initializer_also_a_node", also_node)),
        either("7", put_model(folder, "initializer_nameless", _nameless()), None),
    ]


def _nameless() -> onnx.ModelProto:
    model = gemm()
    model.graph.initializer.append(TensorProto(dims=(5, 7), data_type=FLOAT, raw_data=OTHER.tobytes()))
    return model


def _graphs(folder: Path) -> list[Case]:
    """Graphs that are not graphs, or that a careless walk never ends on."""

    def node(op: str, ins: list[str], outs: list[str], **attributes: object) -> onnx.NodeProto:
        return helper.make_node(op, ins, outs, **attributes)

    cyclic = gemm()
    cyclic.graph.node.extend([node("Add", ["y", "b"], ["a"]), node("Relu", ["a"], ["b"])])
    doubled = gemm()
    doubled.graph.node.append(node("Relu", ["x"], ["y"]))
    backwards, dangling = gemm(), gemm()
    backwards.graph.node.insert(0, node("Relu", ["y"], ["z"]))
    dangling.graph.node.append(node("Add", ["y", "nowhere"], ["q"]))
    inner = helper.make_graph(
        [node("Identity", ["x"], ["r"])], "leaf", [], [helper.make_tensor_value_info("r", FLOAT, None)]
    )
    for _ in range(24):
        inner = helper.make_graph(
            [
                node(
                    "If",
                    ["c"],
                    ["r"],
                    then_branch=inner,
                    else_branch=helper.make_graph(
                        [node("Identity", ["x"], ["r"])],
                        "else",
                        [],
                        [helper.make_tensor_value_info("r", FLOAT, None)],
                    ),
                )
            ],
            "level",
            [],
            [helper.make_tensor_value_info("r", FLOAT, None)],
        )
    ifs = gemm()
    ifs.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    shallow = gemm()
    shallow.CopyFrom(ifs)
    shallow.graph.node.extend(inner.node)
    deep = inner.SerializeToString()
    for _ in range(500):
        attribute = b"\x0a\x0bthen_branch" + b"\x32" + _varint(len(deep)) + deep + b"\xa0\x01\x05"
        item = b"\x0a\x01c\x12\x01r\x22\x02If" + b"\x2a" + _varint(len(attribute)) + attribute
        deep = b"\x0a" + _varint(len(item)) + item
    deep_model = b"\x08\x08\x42\x04\x0a\x00\x10\x11\x3a" + _varint(len(deep)) + deep
    recursive, mutual = gemm(), gemm()
    for model, pairs in ((recursive, (("F", "F"),)), (mutual, (("F", "G"), ("G", "F")))):
        model.opset_import.append(helper.make_opsetid("lab", 1))
        model.graph.node.append(node("F", ["y"], ["q"], domain="lab"))
        for name, callee in pairs:
            model.functions.append(
                helper.make_function(
                    "lab",
                    name,
                    ["a"],
                    ["b"],
                    [node(callee, ["a"], ["b"], domain="lab")],
                    [helper.make_opsetid("", 17), helper.make_opsetid("lab", 1)],
                )
            )
    fan = gemm()
    fan.opset_import.append(helper.make_opsetid("lab", 1))
    fan.graph.node.append(node("F0", ["y"], ["q"], domain="lab"))
    for i in range(40):
        body = [node(f"F{i + 1}", ["a"], ["m"], domain="lab"), node(f"F{i + 1}", ["m"], ["b"], domain="lab")]
        fan.functions.append(
            helper.make_function(
                "lab",
                f"F{i}",
                ["a"],
                ["b"],
                body if i < 39 else [node("Relu", ["a"], ["b"])],
                [helper.make_opsetid("", 17), helper.make_opsetid("lab", 1)],
            )
        )
    long = gemm()
    long.graph.node.extend(node("Relu", ["y" if i == 0 else f"r{i}"], [f"r{i + 1}"]) for i in range(5000))
    squares = gemm()
    squares.graph.node.extend(
        node("Concat", [f"s{i}" if i else "y"] * 2, [f"s{i + 1}"], axis=1) for i in range(60)
    )
    return [
        either("7", put_model(folder, "graph_cyclic", cyclic), {"w": W}),
        refused("7", put_model(folder, "graph_name_twice", doubled)),
        either("7", put_model(folder, "graph_backwards", backwards), {"w": W}),
        either("7", put_model(folder, "graph_dangling", dangling), {"w": W}),
        audited("7", put_model(folder, "graph_if_24_deep", shallow), {"w": W}),
        either("7", put_model(folder, "graph_if_500_deep", deep_model), None),
        either("7", put_model(folder, "function_recursive", recursive), {"w": W}),
        either("7", put_model(folder, "function_mutual", mutual), {"w": W}),
        either("7", put_model(folder, "function_doubling", fan), {"w": W}),
        audited("7", put_model(folder, "graph_5000_long", long), {"w": W}),
        audited("7", put_model(folder, "concat_doubling", squares), {"w": W}),
    ]


def _odd(folder: Path) -> list[Case]:
    """Weights in unusual places, and constants that claim to be large."""

    def shaped(*dims: int) -> TensorProto:
        return numpy_helper.from_array(np.array(dims, np.int64), "dims")

    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    fill = helper.make_node("ConstantOfShape", ["dims"], ["w"], value=one)
    filled = gemm(shaped(5, 7), [fill])
    giant, rows = gemm(shaped(10**6, 10**6), [fill]), gemm(shaped(-5, 7), [fill])
    expand = gemm(
        shaped(10**6, 10**6),
        [
            helper.make_node("Constant", [], ["c"], value=one),
            helper.make_node("Expand", ["c", "dims"], ["w"]),
        ],
    )
    tiled = gemm(
        shaped(10**6, 10**6),
        [
            helper.make_node(
                "Constant", [], ["c"], value=numpy_helper.from_array(np.ones((1, 1), np.float32))
            ),
            helper.make_node("Tile", ["c", "dims"], ["w"]),
        ],
    )
    ranged = gemm(
        numpy_helper.from_array(np.array(10**12, np.int64), "end"),
        [
            helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array(0, np.int64))),
            helper.make_node("Constant", [], ["d"], value=numpy_helper.from_array(np.array(1, np.int64))),
            helper.make_node("Range", ["s", "end", "d"], ["r"]),
            helper.make_node("Cast", ["r"], ["w"], to=FLOAT),
        ],
    )
    constant = gemm(nodes=[helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W))])
    passed = gemm(numpy_helper.from_array(W, "v"), [helper.make_node("Identity", ["v"], ["w"])])

    def branch(weight: np.ndarray, tag: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Gemm", ["x", f"w_{tag}"], [f"o_{tag}"], transB=1)],
            tag,
            [],
            [helper.make_tensor_value_info(f"o_{tag}", FLOAT, None)],
            [numpy_helper.from_array(weight, f"w_{tag}")],
        )

    choose = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch(W, "then"), else_branch=branch(OTHER, "else")
    )
    graph = helper.make_graph(
        [choose],
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", FLOAT, ["n", 7]),
        ],
        [helper.make_tensor_value_info("y", FLOAT, None)],
    )
    branches = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    names = gemm(numpy_helper.from_array(W, "w"))
    names.graph.node[0].name, names.graph.node[0].input[1] = "[red]\x1b[2J\n", "[/]\x1b]0;x\x07\u202e=cmd"
    names.graph.initializer[0].name = "[/]\x1b]0;x\x07\u202e=cmd"
    nan = W.copy()
    nan[0, 0] = np.nan
    return [
        either("7", put_model(folder, "constant_of_shape", filled), {"w": np.ones((5, 7))}),
        either("7", put_model(folder, "constant_of_shape_1e12", giant), None),
        either("7", put_model(folder, "constant_of_shape_negative", rows), None),
        either("7", put_model(folder, "expand_1e12", expand), None),
        either("7", put_model(folder, "tile_1e12", tiled), None),
        either("7", put_model(folder, "range_1e12", ranged), None),
        audited("7", put_model(folder, "constant_node", constant), {"w": W}),
        audited("7", put_model(folder, "through_identity", passed), None),
        audited("7", put_model(folder, "if_branches", branches), {"w_then": W, "w_else": OTHER}),
        audited("9", put_model(folder, "odd_names", names), None),
        audited(
            "8",
            put_model(folder, "nan_weight", gemm(numpy_helper.from_array(nan, "w"))),
            {},
            "[Nn]a[Nn]",
            ("w",),
        ),
        audited(
            "8",
            put_model(
                folder, "empty_weight", gemm(numpy_helper.from_array(np.zeros((0, 7), np.float32), "w"))
            ),
            None,
        ),
        audited(
            "8",
            put_model(
                folder, "zero_weight", gemm(numpy_helper.from_array(np.zeros((5, 7), np.float32), "w"))
            ),
            {"w": np.zeros((5, 7))},
        ),
        *(
            audited("7", put_model(folder, f"opset_{n}", gemm(opset=n, ir=min(n, 8))), {"w": W})
            for n in (7, 9, 11, 13, 21)
        ),
        either("7", put_model(folder, "opset_1", gemm(opset=1, ir=3)), {"w": W}),
    ]
