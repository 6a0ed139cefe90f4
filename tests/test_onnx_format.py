"""ONNX: every tensor against onnx's own reader, patches against onnx and onnxruntime, lies refused."""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from snaudit.errors import ModelError, UnreadableModel, UnsupportedModel
from snaudit.formats.interface import Patched
from snaudit.formats.onnx import ONNX
from snaudit.formats.protobuf import encoded
from snaudit.formats.source import Source
from snaudit.model import Model

FLOAT = TensorProto.FLOAT
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
REAL = ("silero_vad", "rapidocr_onnxruntime", "speechmos", "text2tashkeel", "imwatermark")


def read(path: Path) -> Model:
    source = Source(path)
    assert ONNX.sniff(source)
    return ONNX.read(source, None)


def write(files: tuple[Patched, ...], target: Path) -> Path:
    for file in files:
        place = target if file.name is None else target.parent / file.name
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        file.write(fd)
        os.close(fd)
    return target


def make(
    nodes: Sequence[onnx.NodeProto], tensors: Sequence[TensorProto] = (), shape: Sequence[object] = ("n", 4), **more: object
) -> onnx.ModelProto:
    """A model from x to y."""
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, ["p", "q"])], list(tensors),
    )  # fmt: skip
    more.setdefault("opset_imports", [helper.make_opsetid("", 17)])
    return helper.make_model(graph, ir_version=10, **more)


def save(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def weight(seed: int = 3, shape: tuple[int, ...] = (4, 4)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def held(graph: onnx.GraphProto) -> Iterator[tuple[str, np.ndarray]]:
    """Every initializer and Constant as onnx reads it, in all bodies."""
    for tensor in graph.initializer:
        yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from held(attribute.g)
            elif node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], numpy_helper.to_array(attribute.t)
            elif node.op_type == "Constant":
                dtype = np.float32 if "float" in attribute.name else np.int64
                yield node.output[0], np.asarray(helper.get_attribute_value(attribute), dtype)


def assert_as_onnx_reads(path: Path, model: Model) -> None:
    """Bit for bit, in the file's order; names unique, and the given ones but where two are equal."""
    graph = onnx.load(path).graph
    truth = sorted((name, a.dtype.name, a.shape, a.tobytes()) for name, a in held(graph))
    fills = {node.output[0] for node in _nodes(graph) if node.op_type == "ConstantOfShape"}
    ours = sorted(
        (name.split("/")[-1] if name not in {t[0] for t in truth} else name, t.dtype, t.shape, t.load().tobytes())
        for name, t in model.tensors.items() if name.split("#")[0].split("/")[-1] not in fills and name not in fills
    )  # fmt: skip
    assert [t[1:] for t in sorted(ours, key=lambda t: t[1:])] == [t[1:] for t in sorted(truth, key=lambda t: t[1:])]
    assert len(model.tensors) == len(ours) + sum(n.op_type == "ConstantOfShape" for n in _nodes(graph))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


@pytest.mark.parametrize("package", REAL)
def test_real_models_are_read_as_onnx_reads_them(models: Path, package: str) -> None:
    paths = sorted((models / package).rglob("*.onnx"))
    assert paths
    for path in paths:
        model = read(path)
        assert_as_onnx_reads(path, model)
        attached = [v for v in _values(model) if "tensor" in v.meta]
        assert {v.meta["tensor"].name for v in attached} | _loose(model) >= set(model.tensors)
        assert [v.name for v in model.graph.graph.inputs if v.name in model.tensors] == []


def _values(model: Model) -> Iterator[ir.Value]:
    graphs = {model.graph.graph}
    for node in ir.traversal.RecursiveGraphIterator(model.graph.graph):
        graphs.add(node.graph)
        yield from node.outputs
    for graph in graphs:
        yield from graph.initializers.values()


def _loose(model: Model) -> set[str]:
    """Tensors of nodes that fill a shape that is not stored."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph.graph)
    return {node.meta["tensor"].name for node in nodes if "tensor" in node.meta}


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda path: path.stem)
def test_light_models_weights_are_what_their_nodes_make(path: Path) -> None:
    model = read(path)
    for node in ir.traversal.RecursiveGraphIterator(model.graph.graph):
        if node.op_type == "ConstantOfShape":
            tensor = node.outputs[0].meta["tensor"]
            shape, fill = node.inputs[0].meta["tensor"].load(), node.attributes["value"].value.numpy()
            array = tensor.load()
            assert array.shape == tensor.shape == tuple(shape) and array.base is not None
            assert (array == fill).all() and array.dtype == fill.dtype
    convs = [n for n in model.graph.graph if n.op_type == "Conv"]
    assert convs and all("tensor" in n.inputs[1].meta and n.outputs[0].shape is not None for n in convs)


def encodings() -> dict[str, tuple[TensorProto, np.ndarray]]:
    """One tensor in each way of writing it, and what it is."""
    rng, found = np.random.default_rng(5), {}
    real = rng.standard_normal((4, 4))
    big = rng.standard_normal((60, 61))
    for tag, array in (("small", real), ("big", big)):
        for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
            value = array.astype(dtype)
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            bits = value.view(f"u{value.dtype.itemsize}").ravel().tolist() if value.dtype.itemsize < 4 else None
            field = {4: "float_data", 8: "double_data"}.get(value.dtype.itemsize, "int32_data")
            listed = TensorProto(name="w", dims=value.shape, data_type=kind, **{field: bits or value.ravel().tolist()})
            raw = TensorProto(name="w", dims=value.shape, data_type=kind, raw_data=value.tobytes())
            found |= {f"{tag}_{value.dtype.name}_{field}": (listed, value), f"{tag}_{value.dtype.name}_raw": (raw, value)}
        for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint32, np.uint64, np.bool_):
            info = None if dtype is np.bool_ else np.iinfo(dtype)
            value = rng.integers(*((0, 1) if info is None else (info.min, info.max)), array.shape, np.int64 if info is None else dtype, True)
            value = value.astype(dtype)
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            field = {np.int64: "int64_data", np.uint64: "uint64_data", np.uint32: "uint64_data"}.get(dtype, "int32_data")
            listed = TensorProto(name="w", dims=value.shape, data_type=kind, **{field: (value * 1 if info is None else value).ravel().tolist()})
            found[f"{tag}_{value.dtype.name}_{field}"] = (listed, value)
    for name in ("int4", "uint4", "float4_e2m1fn"):
        dtype = np.dtype(getattr(ml_dtypes, name))
        value = rng.integers(0, 7, (3, 5)).astype(np.int8).astype(dtype)
        bits = np.append(value.ravel().view(np.uint8) & 15, 0).astype(np.uint8)
        packed = (bits[0::2] | bits[1::2] << 4).astype(np.uint8)
        kind = getattr(TensorProto, {"float4_e2m1fn": "FLOAT4E2M1"}.get(name, name.upper()))
        found[f"{name}_raw"] = (TensorProto(name="w", dims=(3, 5), data_type=kind, raw_data=packed.tobytes()), value)
        found[f"{name}_int32"] = (TensorProto(name="w", dims=(3, 5), data_type=kind, int32_data=packed.tolist()), value)
    return found


ENCODINGS = encodings()


@pytest.mark.parametrize("tag", ENCODINGS)
def test_every_encoding_is_read_and_patched(tmp_path: Path, tag: str) -> None:
    """The patch of numbers whose varints have another length moves the whole file, and only moves it."""
    tensor, truth = ENCODINGS[tag]
    neighbour = numpy_helper.from_array(weight(8, (9, 150)), "neighbour")
    nested = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor), helper.make_node("Identity", ["x"], ["r"])],
                               "body", [], [helper.make_tensor_value_info("r", FLOAT, None)], [neighbour])
    choose = helper.make_node("If", ["cond"], ["y"], then_branch=nested, else_branch=nested, name="choose")
    condition = numpy_helper.from_array(np.asarray(True), "cond")
    path = save(tmp_path / "m.onnx", make([choose], [condition, tensor], producer_name="p" * 300))
    model = read(path)
    names = ["w", "choose.then_branch/c", "choose.else_branch/c"]
    bodies = [f"choose.{branch}_branch/{name}" for branch in ("else", "then") for name in ("c", "neighbour")]
    assert list(model.tensors) == [*bodies, "cond", "w"]
    for name in names:
        found = model.tensors[name].load()
        assert found.dtype == truth.dtype and found.shape == truth.shape and found.tobytes() == truth.tobytes()
    change = truth.ravel()[::-1].reshape(truth.shape).copy()
    if truth.dtype.kind != "b":
        change.ravel()[:4] = np.asarray([0, 1, 2, 3]).astype(truth.dtype)
    target = write(ONNX.patch(model, {names[1]: change, "w": change}, tmp_path / "out.onnx"), tmp_path / "out.onnx")
    after = read(target)
    for name in model.tensors:
        wanted = change if name in names[:2] else model.tensors[name].load()
        assert after.tensors[name].load().tobytes() == wanted.tobytes(), name
    expected = onnx.load(path)
    loaded = onnx.load(target)
    for proto in (expected, loaded):  # equal but for the numbers
        for t in (proto.graph.initializer[1], *(n.attribute[0].t for b in proto.graph.node[0].attribute if b.name == "then_branch" for n in b.g.node[:1])):
            for field in ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data"):
                t.ClearField(field)
    assert loaded == expected
    again = write(ONNX.patch(after, {names[1]: truth, "w": truth}, tmp_path / "back.onnx"), tmp_path / "back.onnx")
    assert again.read_bytes() == path.read_bytes()


def test_plain_constants_and_unpacked_numbers_are_read_and_patched(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["a"], value_float=2.5), helper.make_node("Constant", [], ["b"], value_floats=[1.0, -2.0]),
        helper.make_node("Constant", [], ["i"], value_int=-7), helper.make_node("Constant", [], ["k"], value_ints=[1, 1 << 40, -1]),
        helper.make_node("Mul", ["x", "a"], ["y"]),
    ]  # fmt: skip
    path = save(tmp_path / "m.onnx", make(nodes))
    model = read(path)
    assert_as_onnx_reads(path, model)
    changes = {"a": np.float32(0.5).reshape(()), "b": np.asarray([3, 4], np.float32), "i": np.asarray(1 << 50), "k": np.asarray([-5, 2, 300])}
    loaded = dict(held(onnx.load(write(ONNX.patch(model, changes, tmp_path / "o.onnx"), tmp_path / "o.onnx")).graph))
    assert {k: v.tolist() for k, v in loaded.items()} == {k: v.tolist() for k, v in changes.items()}


def test_numbers_that_are_not_packed_are_read_and_patched(tmp_path: Path) -> None:
    """One float a field, as protobuf may write any repeated number."""
    tensor = b"\x08\x02\x08\x01\x10\x01\x42\x01w" + b"".join(b"\x25" + np.float32(v).tobytes() for v in (1.5, -3.0))
    proto = make([helper.make_node("Mul", ["x", "w"], ["y"])])
    graph = proto.graph.SerializeToString() + encoded(5, tensor)
    proto.ClearField("graph")
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString() + encoded(7, graph))
    model = read(path)
    assert model.tensors["w"].load().tolist() == [[1.5], [-3.0]]
    target = write(ONNX.patch(model, {"w": np.asarray([[8], [9]], np.float32)}, tmp_path / "u.onnx"), tmp_path / "u.onnx")
    assert numpy_helper.to_array(onnx.load(target).graph.initializer[0]).tolist() == [[8.0], [9.0]]


def test_a_fill_is_patched_by_its_one_number(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.asarray([3, 4]), "shape")
    value = numpy_helper.from_array(np.asarray([2.0], np.float32))
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["w"], value=value), helper.make_node("ConstantOfShape", ["shape"], ["z"]),
             helper.make_node("Gemm", ["x", "w"], ["p"], transB=1), helper.make_node("Gemm", ["x", "z"], ["q"], transB=1),
             helper.make_node("Add", ["p", "q"], ["y"])]  # fmt: skip
    model = read(save(tmp_path / "m.onnx", make(nodes, [shape])))
    assert np.array_equal(model.tensors["w"].load(), np.full((3, 4), 2, np.float32))
    assert np.array_equal(model.tensors["z"].load(), np.zeros((3, 4), np.float32))
    half = np.full((3, 4), 0.5, np.float32)
    target = write(ONNX.patch(model, {"w": half}, tmp_path / "o.onnx"), tmp_path / "o.onnx")
    assert np.array_equal(read(target).tensors["w"].load(), half)
    half[0, 0] = 1
    with pytest.raises(UnsupportedModel, match="one number"):
        ONNX.patch(model, {"w": half}, tmp_path / "p.onnx")[0].write(os.open(os.devnull, os.O_WRONLY))
    with pytest.raises(UnsupportedModel, match="no bytes"):
        ONNX.patch(model, {"z": np.zeros((3, 4), np.float32)}, tmp_path / "p.onnx")


def outside(name: str, array: np.ndarray, location: str, **entries: object) -> TensorProto:
    tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
                         data_location=TensorProto.EXTERNAL)  # fmt: skip
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.fixture
def scattered(tmp_path: Path) -> Path:
    """Weights in two files beside the model, one of them with a checksum; w and tied are one tensor."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    first, second = weight(1).tobytes() + weight(2).tobytes(), weight(4).tobytes()
    (folder / "a.bin").write_bytes(b"head" * 2 + first)
    (folder / "sub" / "b.bin").write_bytes(second)
    sha = hashlib.sha1((folder / "a.bin").read_bytes()).hexdigest()
    tensors = [
        outside("w", weight(1), "a.bin", offset=8, length=64, checksum=sha), outside("tied", weight(1), "a.bin", offset=8, length=64, checksum=sha),
        outside("v", weight(2), "a.bin", offset=72, checksum=sha), outside("u", weight(4), "sub/b.bin"),
    ]  # fmt: skip
    nodes = [helper.make_node("MatMul", [a, b], [c]) for a, b, c in (("x", "w", "1"), ("1", "v", "2"), ("2", "u", "3"), ("3", "tied", "y"))]
    return save(folder / "m.onnx", make(nodes, tensors))


def run(path: Path) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.eye(4, dtype=np.float32)})[0]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_external_data_stays_external_and_its_file_whole(tmp_path: Path, scattered: Path, elsewhere: bool) -> None:
    model = read(scattered)
    assert model.tensors["w"].place == model.tensors["tied"].place != model.tensors["v"].place
    assert {file.path.name for file in model.files} == {"m.onnx", "a.bin", "b.bin"}
    before = {path: path.read_bytes() for path in scattered.parent.rglob("*") if path.is_file()}
    folder = tmp_path / "out" if elsewhere else scattered.parent
    folder.mkdir(exist_ok=True)
    change = weight(1) / 3
    target = folder / "m.constrained.onnx"
    files = ONNX.patch(model, {"w": change, "tied": change}, target)
    assert len(files) == (3 if elsewhere else 2)
    after = read(write(files, target))
    truth = {"w": change, "tied": change, "v": weight(2), "u": weight(4)}
    assert {n: t.load().tobytes() for n, t in after.tensors.items()} == {n: a.tobytes() for n, a in truth.items()}
    onnx.checker.check_model(str(target))
    exact = np.eye(4) @ change.astype(float) @ weight(2) @ weight(4) @ change
    assert np.allclose(run(target), exact, rtol=1e-4, atol=1e-5)
    assert before == {path: path.read_bytes() for path in before}
    with pytest.raises(UnsupportedModel, match="otherwise"):
        for file in ONNX.patch(model, {"w": change, "tied": weight(1)}, tmp_path / "m3.onnx"):
            file.write(os.open(os.devnull, os.O_WRONLY))


def test_overlapping_views_of_a_file_are_not_patched(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(200))
    tensors = [outside("w", weight(), "a.bin", offset=0), outside("v", weight(), "a.bin", offset=32)]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["1"]), helper.make_node("MatMul", ["1", "v"], ["y"])]
    model = read(save(tmp_path / "m.onnx", make(nodes, tensors)))
    with pytest.raises(UnsupportedModel, match="shares some"):
        ONNX.patch(model, {"w": weight()}, tmp_path / "o.onnx")


def test_the_graph_believes_no_claimed_shape(tmp_path: Path) -> None:
    """Inner values and outputs get the shapes that follow from the inputs, whatever the file says."""
    proto = make([helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
                 [numpy_helper.from_array(weight(), "w")], (2, 4))  # fmt: skip
    proto.graph.value_info.append(helper.make_tensor_value_info("h", FLOAT, [77, 77]))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [88]))
    model = read(save(tmp_path / "m.onnx", proto))
    assert [list(v.shape) for n in model.graph.graph for v in n.outputs] == [[2, 4], [2, 4]]


def test_functions_are_put_where_they_are_called(tmp_path: Path) -> None:
    body = [helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(weight())), helper.make_node("MatMul", ["a", "k"], ["b"])]
    function = helper.make_function("lab", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    calls = [helper.make_node("F", ["x"], ["m"], domain="lab"), helper.make_node("F", ["m"], ["y"], domain="lab")]
    proto = make(calls, functions=[function], opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("lab", 1)])
    model = read(save(tmp_path / "m.onnx", proto))
    products = [node for node in model.graph.graph if node.op_type == "MatMul"]
    assert len(products) == 2 and list(model.tensors) == ["k"]
    assert all(node.inputs[1].meta["tensor"] is model.tensors["k"] for node in products)
    write(ONNX.patch(model, {"k": weight() * 2}, tmp_path / "o.onnx"), tmp_path / "o.onnx")
    assert np.allclose(run(tmp_path / "o.onnx"), 4 * weight().astype(float) @ weight(), rtol=1e-4, atol=1e-5)


def test_weights_listed_as_inputs_and_nodes_out_of_order(tmp_path: Path) -> None:
    proto = make([helper.make_node("Relu", ["h"], ["y"]), helper.make_node("MatMul", ["x", "w"], ["h"])], [numpy_helper.from_array(weight(), "w")])
    proto.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [4, 4]))
    model = read(save(tmp_path / "m.onnx", proto))
    assert [node.op_type for node in model.graph.graph] == ["MatMul", "Relu"]
    assert [value.name for value in model.graph.graph.inputs] == ["x"]
    assert any("also inputs" in note for note in model.notes)
    assert model.graph.graph.initializers["w"].meta["tensor"] is model.tensors["w"]


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    proto = make([helper.make_node("MatMul", ["x", "w"], ["y"])], [
        numpy_helper.from_array(weight(), "w"), TensorProto(name="text", dims=[2], data_type=TensorProto.STRING, string_data=[b"a", b"b"]),
        TensorProto(name="complex", dims=[1], data_type=TensorProto.COMPLEX64, float_data=[1, 2])])  # fmt: skip
    proto.graph.sparse_initializer.append(onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.ones(1, np.float32), "sparse"), indices=numpy_helper.from_array(np.asarray([3]), "i"), dims=[5, 7]))  # fmt: skip
    proto.training_info.add().algorithm.CopyFrom(proto.graph)
    model = read(save(tmp_path / "m.onnx", proto))
    assert list(model.tensors) == ["w"]
    assert sorted(item.name for item in model.left_out) == ["complex", "sparse", "text", "training_info"]


@pytest.mark.parametrize("bomb", ["range", "concat", "fill"])
def test_small_files_cannot_ask_for_much_memory(tmp_path: Path, bomb: str) -> None:
    """Each of these makes onnx's own shape inference, or a careless fold, allocate terabytes."""
    import resource

    end = numpy_helper.from_array(np.asarray(10**12), "end")
    one, nil = (numpy_helper.from_array(np.asarray(v), n) for v, n in ((1, "one"), (0, "nil")))
    pair = numpy_helper.from_array(np.asarray([10**6, 10**6]), "s0")
    nodes = {
        "range": [helper.make_node("Range", ["nil", "end", "one"], ["s"])],
        "concat": [*(helper.make_node("Concat", [f"s{i}"] * 2, [f"s{i + 1}"], axis=0) for i in range(40)), helper.make_node("Identity", ["s40"], ["s"])],
        "fill": [helper.make_node("ConstantOfShape", ["s0"], ["s"], value=numpy_helper.from_array(np.ones(1, np.int64)))],
    }[bomb]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = read(save(tmp_path / "m.onnx", make([*nodes, helper.make_node("Reshape", ["x", "s"], ["y"])], [end, one, nil, pair])))
    from snaudit import folding

    reshape = next(node for node in model.graph.graph if node.op_type == "Reshape")
    assert not folding.is_constant(reshape.inputs[1])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def test_a_lie_about_checksum_or_change_is_found(scattered: Path) -> None:
    model = read(scattered)
    data = scattered.parent / "a.bin"
    data.write_bytes(data.read_bytes()[:-1] + b"\1")
    with pytest.raises(UnreadableModel, match="changed"):
        model.tensors["w"].load()
    with pytest.raises(UnreadableModel, match="SHA-1"):
        read(scattered)


def test_mutants_raise_nothing_but_model_errors(tmp_path: Path, scattered: Path) -> None:
    originals = [(LIGHT / "light_bvlc_alexnet.onnx").read_bytes(), scattered.read_bytes()]
    originals += [make([helper.make_node("Constant", [], ["w"], value=t), helper.make_node("MatMul", ["x", "w"], ["y"])], [t]).SerializeToString()
                  for t in (ENCODINGS["small_float16_int32_data"][0], ENCODINGS["small_float32_float_data"][0])]  # fmt: skip
    rng, refused, sound = random.Random(17), 0, 0
    path = scattered.parent / "mutant"
    for round_ in range(800):
        mutant = bytearray(originals[round_ % len(originals)])
        for _ in range(rng.randint(1, 2)):
            at, kind = rng.randrange(len(mutant)), rng.randrange(6)
            if kind < 4:
                mutant[at] ^= 1 << rng.randrange(8)
            elif kind == 4:
                del mutant[at : at + rng.randint(1, 9)]
            else:
                mutant[at:at] = mutant[at : at + rng.randint(1, 40)]
        path.write_bytes(mutant)
        source = Source(path)
        try:
            if ONNX.sniff(source):
                for tensor in ONNX.read(source, None).tensors.values():
                    if math.prod(tensor.shape) < 1 << 20:
                        assert tensor.load().shape == tensor.shape
                sound += 1
        except ModelError:
            refused += 1
        source.close()
    assert refused > 200 and sound > 20
