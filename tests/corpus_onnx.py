"""Rule 7: ONNX models that lie, climb, loop or explode, and odd ones that are sound."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from corpus import Case, audited, either, matrix, refused
from onnx import TensorProto, helper, numpy_helper

W, OTHER = matrix(), matrix(seed=99)
FLOAT = TensorProto.FLOAT


def cases(folder: Path) -> list[Case]:
    return [*_damaged(folder), *_tensors(folder), *_external(folder), *_graphs(folder), *_odd(folder), *_kinds(folder)]


def gemm(weight: TensorProto | None = None, nodes: Sequence[onnx.NodeProto] = (), opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    """y = x·wᵀ, the weight an initializer or made by `nodes` under the name w."""
    held = [] if nodes and weight is None else [numpy_helper.from_array(W, "w") if weight is None else weight]
    body = [*nodes, helper.make_node("Gemm", ["x", "w"], ["y"], name="fc", transB=1)]
    graph = helper.make_graph(body, "g", [helper.make_tensor_value_info("x", FLOAT, ["n", 7])],
                              [helper.make_tensor_value_info("y", FLOAT, ["n", 5])], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def _put(folder: Path, tag: str, model: onnx.ModelProto | bytes) -> Path:
    path = folder / f"{tag}.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def _damaged(folder: Path) -> list[Case]:
    whole = gemm().SerializeToString()
    found = [refused("7", _put(folder, f"cut_at_{n}", whole[:n])) for n in (1, 2, 9, len(whole) // 2, len(whole) - 1)]
    no_ir, no_graph, no_opset, lies = gemm(), gemm(), gemm(), gemm()
    no_ir.ClearField("ir_version")
    no_graph.ClearField("graph")
    no_opset.ClearField("opset_import")
    lies.opset_import[0].version = 1 << 40
    nested = b""
    for _ in range(500):
        nested = b"\x3a" + _varint(len(nested)) + nested
    return found + [
        refused("7", _put(folder, "no_ir_version", no_ir)), refused("7", _put(folder, "no_graph", no_graph)),
        either("7", _put(folder, "no_opset", no_opset), {"w": W}), either("7", _put(folder, "opset_2_40", lies), {"w": W}),
        refused("7", _put(folder, "trailing_junk", whole + b"\xff\xff\xff")),
        refused("7", _put(folder, "protobuf_of_something_else", b"\x0a\x05hello\x12\x03abc")),
        refused("7", _put(folder, "length_claims_2gb", b"\x08\x08\x3a\xff\xff\xff\xff\x07")),
        refused("7", _put(folder, "groups", b"\x08\x08" + b"\x3b" * 50_000)),
        refused("7", _put(folder, "nested_fields", b"\x08\x08" + nested)),
        either("7", _put(folder, "graph_twice", whole + b"\x3a\0"), {"w": W}),
    ]


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _tensors(folder: Path) -> list[Case]:
    def raw(dims: Sequence[int] = (5, 7), kind: int = FLOAT, data: bytes = W.tobytes(), **extra: object) -> TensorProto:
        return TensorProto(name="w", dims=dims, data_type=kind, raw_data=data, **extra)

    both = raw(float_data=[0.0] * 35)
    segment = raw()
    segment.segment.begin, segment.segment.end = 0, 35
    twice = gemm()
    twice.graph.initializer.append(numpy_helper.from_array(OTHER, "w"))
    also_sparse, also_node = gemm(), gemm(nodes=[helper.make_node("Identity", ["x"], ["w"])], weight=numpy_helper.from_array(W, "w"))
    also_sparse.graph.sparse_initializer.append(onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.ones(1, np.float32), "w"), indices=numpy_helper.from_array(np.array([3]), "i"), dims=[5, 7]))
    broken = {
        "dims_negative": raw((-5, -7)), "dim_negative": raw((-1, 7)), "dims_huge": raw((1 << 40, 1 << 40)),
        "dims_wrap": raw(((1 << 62) + 5, 4, 7)), "dims_zero_with_data": raw((0, 7)), "raw_short": raw(data=W.tobytes()[:-1]),
        "raw_long": raw(data=W.tobytes() + b"\0"), "raw_empty": TensorProto(name="w", dims=(5, 7), data_type=FLOAT),
        "two_data_fields": both, "segmented": segment, "type_undefined": raw(kind=0), "type_unknown": raw(kind=999),
        "type_string_raw": raw(kind=TensorProto.STRING),
        "float_data_short": TensorProto(name="w", dims=(5, 7), data_type=FLOAT, float_data=[1.0] * 34),
        "field_of_other_type": TensorProto(name="w", dims=(5, 7), data_type=FLOAT, double_data=[1.0] * 35),
        "half_out_of_range": TensorProto(name="w", dims=(5, 7), data_type=TensorProto.FLOAT16, int32_data=[1 << 20] * 35),
        "half_negative": TensorProto(name="w", dims=(5, 7), data_type=TensorProto.FLOAT16, int32_data=[-1] * 35),
    }
    constant = helper.make_node("Constant", [], ["w"], value=raw((-5, -7)))
    return [
        *(refused("7", _put(folder, f"tensor_{tag}", gemm(t))) for tag, t in broken.items()),
        refused("7", _put(folder, "tensor_in_constant_bad", gemm(nodes=[constant]))),
        refused("7", _put(folder, "initializer_twice", twice)),
        refused("7", _put(folder, "initializer_also_sparse", also_sparse)),
        refused("7", _put(folder, "initializer_also_a_node", also_node)),
        either("7", _put(folder, "initializer_nameless", _nameless()), None),
    ]


def _nameless() -> onnx.ModelProto:
    model = gemm()
    model.graph.initializer.append(TensorProto(dims=(5, 7), data_type=FLOAT, raw_data=OTHER.tobytes()))
    return model


def outside(location: str, **entries: object) -> TensorProto:
    """The weight with its bytes in another file."""
    held = TensorProto(name="w", dims=(5, 7), data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        held.external_data.add(key=key, value=str(value))
    return held


def _external(folder: Path) -> list[Case]:
    secret = folder / "secret.bin"
    secret.write_bytes(W.tobytes())

    def put(tag: str, held: TensorProto, data: bytes | None = W.tobytes()) -> Path:
        place = folder / f"external_{tag}"
        place.mkdir()
        if data is not None:
            (place / "w.bin").write_bytes(data)
        return _put(place, f"external_{tag}", gemm(held))

    def keyed(*pairs: tuple[str, str]) -> TensorProto:
        held = outside("w.bin")
        for key, value in pairs:
            held.external_data.add(key=key, value=value)
        return held

    with_raw = outside("w.bin")
    with_raw.raw_data = W.tobytes()
    no_location = outside("w.bin")
    del no_location.external_data[:]
    broken = {
        "climbs": outside("../secret.bin"), "climbs_inside": outside("x/../../secret.bin"), "absolute": outside(str(secret)),
        "backslash": outside("..\\secret.bin"), "nul": outside("w.bin\0x"), "empty_location": outside(""), "dot": outside("."),
        "missing": outside("absent.bin"), "newline": outside("a\nb\x1b[31m"), "no_location": no_location, "twice": keyed(("location", "v.bin")),
        "offset_beyond": outside("w.bin", offset=141), "offset_negative": outside("w.bin", offset=-4), "offset_text": outside("w.bin", offset="x"),
        "offset_huge": outside("w.bin", offset=1 << 70), "length_short": outside("w.bin", length=136), "length_long": outside("w.bin", length=144),
        "length_negative": outside("w.bin", length=-1), "offset_twice": keyed(("offset", "0"), ("offset", "4")),
        "checksum_wrong": outside("w.bin", checksum="0" * 40), "and_raw": with_raw, "underscored": outside("w.bin", offset="1_0"),
        "name_too_long": outside("n" * 5000), "url": outside("https://example.org/w.bin"), "proc": outside("/proc/self/mem", length=140),
        "the_model_itself": outside("external_the_model_itself.onnx", offset=10**6),
    }
    found = [refused("7", put(tag, held)) for tag, held in broken.items()]
    for tag, target in (("link_out", secret), ("link_to_device", "/dev/zero"), ("link_loop", "w.bin"), ("link_dangling", "absent")):
        path = put(tag, outside("w.bin"), None)
        os.symlink(target, path.parent / "w.bin")
        found.append(refused("7", path))
    linked_folder = put("folder_link_out", outside("sub/secret.bin"), None)
    os.symlink("..", linked_folder.parent / "sub")
    pipe, short = put("fifo", outside("w.bin"), None), put("short", outside("w.bin"), W.tobytes()[:-1])
    os.mkfifo(pipe.parent / "w.bin")
    is_folder = put("folder", outside("w.bin"), None)
    (is_folder.parent / "w.bin").mkdir()
    found += [refused("7", p) for p in (linked_folder, pipe, short, is_folder)]
    cache = folder / "cache"
    for part in ("blobs", "snapshots/1"):
        (cache / part).mkdir(parents=True)
    _put(cache / "blobs", "m", gemm(outside("w.bin")))
    (cache / "blobs/w").write_bytes(W.tobytes())
    os.symlink("../../blobs/m.onnx", cache / "snapshots/1/external_cached.onnx")
    os.symlink("../../blobs/w", cache / "snapshots/1/w.bin")
    digest = hashlib.sha1(W.tobytes()).hexdigest()
    return found + [
        audited("7", cache / "snapshots/1/external_cached.onnx", {"w": W}),
        audited("7", put("plain", outside("w.bin")), {"w": W}),
        audited("7", put("with_offset", outside("w.bin", offset=8, length=140), b"12345678" + W.tobytes() + b"end"), {"w": W}),
        audited("7", put("with_checksum", outside("w.bin", checksum=digest)), {"w": W}),
        either("7", put("unknown_key", outside("w.bin", flavour="x")), {"w": W}),
    ]


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
    inner = helper.make_graph([node("Identity", ["x"], ["r"])], "leaf", [], [helper.make_tensor_value_info("r", FLOAT, None)])
    for _ in range(24):
        inner = helper.make_graph([node("If", ["c"], ["r"], then_branch=inner, else_branch=helper.make_graph(
            [node("Identity", ["x"], ["r"])], "else", [], [helper.make_tensor_value_info("r", FLOAT, None)]))],
            "level", [], [helper.make_tensor_value_info("r", FLOAT, None)])
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
            model.functions.append(helper.make_function("lab", name, ["a"], ["b"], [node(callee, ["a"], ["b"], domain="lab")],
                                                        [helper.make_opsetid("", 17), helper.make_opsetid("lab", 1)]))
    fan = gemm()
    fan.opset_import.append(helper.make_opsetid("lab", 1))
    fan.graph.node.append(node("F0", ["y"], ["q"], domain="lab"))
    for i in range(40):
        body = [node(f"F{i + 1}", ["a"], ["m"], domain="lab"), node(f"F{i + 1}", ["m"], ["b"], domain="lab")]
        fan.functions.append(helper.make_function("lab", f"F{i}", ["a"], ["b"], body if i < 39 else [node("Relu", ["a"], ["b"])],
                                                  [helper.make_opsetid("", 17), helper.make_opsetid("lab", 1)]))
    long = gemm()
    long.graph.node.extend(node("Relu", ["y" if i == 0 else f"r{i}"], [f"r{i + 1}"]) for i in range(5000))
    squares = gemm()
    squares.graph.node.extend(node("Concat", [f"s{i}" if i else "y"] * 2, [f"s{i + 1}"], axis=1) for i in range(60))
    return [
        either("7", _put(folder, "graph_cyclic", cyclic), {"w": W}), refused("7", _put(folder, "graph_name_twice", doubled)),
        either("7", _put(folder, "graph_backwards", backwards), {"w": W}), either("7", _put(folder, "graph_dangling", dangling), {"w": W}),
        audited("7", _put(folder, "graph_if_24_deep", shallow), {"w": W}), either("7", _put(folder, "graph_if_500_deep", deep_model), None),
        either("7", _put(folder, "function_recursive", recursive), {"w": W}), either("7", _put(folder, "function_mutual", mutual), {"w": W}),
        either("7", _put(folder, "function_doubling", fan), {"w": W}), audited("7", _put(folder, "graph_5000_long", long), {"w": W}),
        audited("7", _put(folder, "concat_doubling", squares), {"w": W}),
    ]


def _odd(folder: Path) -> list[Case]:
    """Weights in unusual places, and constants that claim to be large."""
    def shaped(*dims: int) -> TensorProto:
        return numpy_helper.from_array(np.array(dims, np.int64), "dims")

    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    fill = helper.make_node("ConstantOfShape", ["dims"], ["w"], value=one)
    filled = gemm(shaped(5, 7), [fill])
    giant, rows = gemm(shaped(10**6, 10**6), [fill]), gemm(shaped(-5, 7), [fill])
    expand = gemm(shaped(10**6, 10**6), [helper.make_node("Constant", [], ["c"], value=one), helper.make_node("Expand", ["c", "dims"], ["w"])])
    tiled = gemm(shaped(10**6, 10**6), [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones((1, 1), np.float32))),
                                        helper.make_node("Tile", ["c", "dims"], ["w"])])
    ranged = gemm(numpy_helper.from_array(np.array(10**12, np.int64), "end"), [
        helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array(0, np.int64))),
        helper.make_node("Constant", [], ["d"], value=numpy_helper.from_array(np.array(1, np.int64))),
        helper.make_node("Range", ["s", "end", "d"], ["r"]), helper.make_node("Cast", ["r"], ["w"], to=FLOAT)])
    constant = gemm(nodes=[helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W))])
    passed = gemm(numpy_helper.from_array(W, "v"), [helper.make_node("Identity", ["v"], ["w"])])

    def branch(weight: np.ndarray, tag: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node("Gemm", ["x", f"w_{tag}"], [f"o_{tag}"], transB=1)], tag, [],
                                 [helper.make_tensor_value_info(f"o_{tag}", FLOAT, None)], [numpy_helper.from_array(weight, f"w_{tag}")])

    choose = helper.make_node("If", ["c"], ["y"], then_branch=branch(W, "then"), else_branch=branch(OTHER, "else"))
    graph = helper.make_graph([choose], "g", [helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                                              helper.make_tensor_value_info("x", FLOAT, ["n", 7])],
                              [helper.make_tensor_value_info("y", FLOAT, None)])
    branches = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    names = gemm(numpy_helper.from_array(W, "w"))
    names.graph.node[0].name, names.graph.node[0].input[1] = "[red]\x1b[2J\n", "[/]\x1b]0;x\x07\u202e=cmd"
    names.graph.initializer[0].name = "[/]\x1b]0;x\x07\u202e=cmd"
    nan = W.copy()
    nan[0, 0] = np.nan
    return [
        either("7", _put(folder, "constant_of_shape", filled), {"w": np.ones((5, 7))}), either("7", _put(folder, "constant_of_shape_1e12", giant), None),
        either("7", _put(folder, "constant_of_shape_negative", rows), None), either("7", _put(folder, "expand_1e12", expand), None),
        either("7", _put(folder, "tile_1e12", tiled), None), either("7", _put(folder, "range_1e12", ranged), None),
        audited("7", _put(folder, "constant_node", constant), {"w": W}), audited("7", _put(folder, "through_identity", passed), None),
        audited("7", _put(folder, "if_branches", branches), {"w_then": W, "w_else": OTHER}),
        audited("9", _put(folder, "odd_names", names), None),
        audited("8", _put(folder, "nan_weight", gemm(numpy_helper.from_array(nan, "w"))), {}, "[Nn]a[Nn]", ("w",)),
        audited("8", _put(folder, "empty_weight", gemm(numpy_helper.from_array(np.zeros((0, 7), np.float32), "w"))), None),
        audited("8", _put(folder, "zero_weight", gemm(numpy_helper.from_array(np.zeros((5, 7), np.float32), "w"))), {"w": np.zeros((5, 7))}),
        *(audited("7", _put(folder, f"opset_{n}", gemm(opset=n, ir=min(n, 8))), {"w": W}) for n in (7, 9, 11, 13, 21)),
        either("7", _put(folder, "opset_1", gemm(opset=1, ir=3)), {"w": W}),
    ]


def _kinds(folder: Path) -> list[Case]:
    """Each element type in each of its encodings."""
    import ml_dtypes

    half, brain, e4 = W.astype(np.float16), W.astype(ml_dtypes.bfloat16), W.astype(ml_dtypes.float8_e4m3fn)

    def listed(kind: int, **fields: object) -> onnx.ModelProto:
        return gemm(TensorProto(name="w", dims=(5, 7), data_type=kind, **fields))

    def raw(kind: int, array: np.ndarray) -> onnx.ModelProto:
        return listed(kind, raw_data=array.tobytes())

    return [
        audited("7", _put(folder, "half_in_int32", listed(TensorProto.FLOAT16, int32_data=half.view(np.uint16).ravel().tolist())), {"w": half}),
        audited("7", _put(folder, "brain_in_int32", listed(TensorProto.BFLOAT16, int32_data=brain.view(np.uint16).ravel().tolist())), {"w": brain}),
        audited("7", _put(folder, "fp8_in_int32", listed(TensorProto.FLOAT8E4M3FN, int32_data=e4.view(np.uint8).ravel().tolist())), {"w": e4}),
        audited("7", _put(folder, "float_in_list", listed(FLOAT, float_data=W.ravel().tolist())), {"w": W}),
        audited("7", _put(folder, "double_in_list", listed(TensorProto.DOUBLE, double_data=W.ravel().tolist())), {"w": W}),
        audited("7", _put(folder, "half_raw", raw(TensorProto.FLOAT16, half)), {"w": half}),
        audited("7", _put(folder, "brain_raw", raw(TensorProto.BFLOAT16, brain)), {"w": brain}),
        audited("7", _put(folder, "fp8_raw", raw(TensorProto.FLOAT8E4M3FN, e4)), {"w": e4}),
        either("7", _put(folder, "integers_only", listed(TensorProto.INT32, int32_data=range(35))), None),
        either("7", _put(folder, "four_bits", listed(TensorProto.INT4, raw_data=bytes(18))), None),
        either("7", _put(folder, "strings", listed(TensorProto.STRING, string_data=[b"x"] * 35)), None),
    ]
