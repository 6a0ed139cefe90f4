"""balance leaves the function bit for bit, evens the norms out, and keeps off what it must not scale."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, helper, numpy_helper

import snaudit
from snaudit import cli
from snaudit.errors import ConstraintError, UnsupportedModel, WriteError

Arrays = dict[str, np.ndarray]


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def model(nodes: list[onnx.NodeProto], arrays: Arrays, shape: list[int], outputs: str = "y") -> ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(next(iter(arrays.values())).dtype)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs.split()],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return made


def deep() -> ModelProto:
    """Every kind of step between affine layers of very unlike norms."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[tuple[int, ...], float]] = {
        "k1": ((4, 2, 3, 3), 30), "b1": ((4,), 1), "gamma": ((4,), 1), "beta": ((4,), 1), "mean": ((4,), 1),
        "k2": ((4, 3, 2, 2), 0.02), "b2": ((6,), 1), "slope": ((6, 1, 1), 1), "w3": ((7, 6), 1), "b3": ((7,), 1),
        "w4": ((5, 7), 5), "b4": ((5,), 1), "w5": ((5, 3), 0.3), "b5": ((3,), 1),
    }  # fmt: skip
    arrays = {name: (size * rng.standard_normal(shape)).astype(np.float32) for name, (shape, size) in shapes.items()}
    arrays |= {"var": rng.uniform(0.5, 2, 4).astype(np.float32), "two": np.array(2, np.float32)}
    nodes = [
        node("Conv", "x k1 b1", "a", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a gamma beta mean var", "n"),
        node("Relu", "n", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Mul", "two p", "m"),
        node("ConvTranspose", "m k2 b2", "c", group=2, strides=[2, 2]),
        node("PRelu", "c slope", "s"),
        node("GlobalAveragePool", "s", "q"),
        node("Flatten", "q", "f"),
        node("Gemm", "f w3 b3", "g", transB=1, alpha=0.5, beta=2.0),
        node("LeakyRelu", "g", "l", alpha=0.1),
        node("Transpose", "w4", "w4t"),
        node("MatMul", "l w4t", "h"),
        node("Sub", "b4 h", "i"),
        node("Abs", "i", "j"),
        node("MatMul", "j w5", "o"),
        node("Add", "o b5", "y"),
    ]
    return model(nodes, arrays, [2, 2, 8, 8])


def outputs_of(made: ModelProto | bytes, seed: int) -> list[bytes]:
    raw = made if isinstance(made, bytes) else made.SerializeToString()
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}[given.type]
    x = (3 * np.random.default_rng(seed).standard_normal(given.shape)).astype(dtype)
    return [array.tobytes() for array in session.run(None, {given.name: x})]


def test_the_function_is_the_same_and_the_norms_are_near(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(deep().SerializeToString())
    done = snaudit.balance(path)
    (chain,) = done.chains
    assert [layer.name for layer in chain] == ["k1", "k2", "w3", "w4", "w5"] and done.layers == 5
    assert sum(layer.exponent for layer in chain) == 0 and [o.max_relative for o in done.outputs] == [0.0]
    for layer in chain:
        assert layer.after.upper == pytest.approx(math.ldexp(layer.before.upper, layer.exponent), rel=1e-6)
    before, after = ([end.upper for end in ends] for ends in zip(*((c.before, c.after) for c in chain), strict=True))
    assert max(before) / min(before) > 100 and max(after) / min(after) <= 2.02
    written = {layer.name: layer.norm.upper for layer in snaudit.audit(done.target).layers}
    assert [written[layer.name] for layer in chain] == after
    for seed in range(3):
        assert outputs_of(path.read_bytes(), seed) == outputs_of(Path(done.target).read_bytes(), seed)
    again = snaudit.balance(done.target, tmp_path / "again.onnx")
    assert Path(again.target).read_bytes() == Path(done.target).read_bytes()
    assert not any(layer.exponent for layer in again.chains[0])


def rows(count: int, seed: int = 0) -> Arrays:
    """count square weights of falling size, and as many biases."""
    rng = np.random.default_rng(seed)
    weights = {f"w{i}": (10.0 ** (2 - i) * rng.standard_normal((4, 4))).astype(np.float32) for i in range(count)}
    return weights | {f"b{i}": rng.standard_normal(4).astype(np.float32) for i in range(count)}


def plain(middle: list[onnx.NodeProto], last: str = "m") -> tuple[list[onnx.NodeProto], Arrays]:
    return [node("Gemm", "x w0 b0", "a"), *middle, node("Gemm", f"{last} w1 b1", "y")], rows(2)


def branch() -> tuple[list[onnx.NodeProto], Arrays]:
    """One body of an If reads the value between two layers."""
    arrays = rows(2) | {"yes": np.array([True])}
    bodies = {
        f"{name}_branch": helper.make_graph(
            [node("Identity", source, f"{name}_out")], name, [], [helper.make_tensor_value_info(f"{name}_out", 1, None)]
        )
        for name, source in (("then", "m"), ("else", "x"))
    }
    nodes = [
        node("Gemm", "x w0 b0", "a"), node("Relu", "a", "m"), node("Gemm", "m w1 b1", "c"),
        helper.make_node("If", ["yes"], ["d"], **bodies), node("Add", "c d", "y"),
    ]  # fmt: skip
    return nodes, arrays


CASES: dict[str, Callable[[], tuple[list[onnx.NodeProto], Arrays]]] = {
    "Sigmoid": lambda: plain([node("Sigmoid", "a", "m")]),
    "Clip": lambda: plain([node("Constant", "", "z", value_float=0.0), node("Constant", "", "six", value_float=6.0),
                           node("Clip", "a z six", "m")]),
    "1/x": lambda: plain([node("Constant", "", "z", value_float=1.0), node("Div", "z a", "m")]),
    "squared": lambda: plain([node("Mul", "a a", "m")]),
    "read twice": lambda: plain([node("Relu", "a", "r"), node("Add", "r a", "m")]),
    "shared bias": lambda: (
        [node("Gemm", "x w0 b0", "a"), node("Relu", "a", "m"), node("Gemm", "m w1 b0", "y")],
        {name: array for name, array in rows(2).items() if name != "b1"},
    ),
    "shared weight": lambda: (
        [node("Gemm", "x w0 b0", "a"), node("Relu", "a", "m"), node("Gemm", "m w0 b1", "c"),
         node("Relu", "c", "d"), node("Gemm", "d w1", "e"), node("MatMul", "e w1", "y")],
        rows(2),
    ),
    "weight added": lambda: (
        [node("Gemm", "x w0 b0", "a"), node("Relu", "a", "m"), node("Gemm", "m w1 b1", "c"), node("Transpose", "w1", "t"),
         node("Add", "c t", "y")],
        rows(2),
    ),
    "padded by ones": lambda: (
        [node("Conv", "x k0", "a"), node("Pad", "a p one", "m"), node("Conv", "m k1", "y")],
        {"k0": np.full((2, 1, 1), 9, np.float32), "k1": np.full((2, 2, 1), 0.01, np.float32),
         "p": np.array([0, 0, 1, 0, 0, 1]), "one": np.array(1, np.float32)},
    ),
    "read in a body": branch,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_chain_stays_bit_for_bit(tmp_path: Path, name: str) -> None:
    nodes, arrays = CASES[name]()
    shape = [4, 1, 5] if name.startswith("padded") else [4, 4]
    path = tmp_path / "m.onnx"
    path.write_bytes(model(nodes, arrays, shape).SerializeToString())
    done = snaudit.balance(path)
    assert done.chains == () and Path(done.target).read_bytes() == path.read_bytes()


def test_an_output_ends_a_chain_and_what_callers_may_replace_is_said(tmp_path: Path) -> None:
    nodes, arrays = plain([node("Relu", "a", "m")])
    (tmp_path / "m.onnx").write_bytes(model(nodes, arrays, [4, 4], "y a").SerializeToString())
    assert snaudit.balance(tmp_path / "m.onnx", dry_run=True).chains == ()
    made = model(nodes, arrays, [4, 4])
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    assert len(snaudit.balance(tmp_path / "m.onnx", dry_run=True).chains) == 1
    made.graph.input.append(helper.make_tensor_value_info("w1", 1, [4, 4]))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    assert any("a caller may override" in note for note in snaudit.balance(tmp_path / "m.onnx", dry_run=True).notes)


def test_what_the_dtype_cannot_hold_stays(tmp_path: Path) -> None:
    nodes, arrays = plain([node("Relu", "a", "m")])
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    halves["w0"] = np.full((4, 4), 300, np.float16)
    halves["w0"][0, 0] = 3e-7  # half of this subnormal number is no float16
    (tmp_path / "m.onnx").write_bytes(model(nodes, halves, [4, 4]).SerializeToString())
    done = snaudit.balance(tmp_path / "m.onnx")
    assert any("w0 does not hold 2^-" in note for note in done.notes)
    assert Path(done.target).read_bytes() == (tmp_path / "m.onnx").read_bytes()
    halves["w0"][0, 0] = 1
    (tmp_path / "m.onnx").write_bytes(model(nodes, halves, [4, 4]).SerializeToString())
    done = snaudit.balance(tmp_path / "m.onnx", force=True)
    assert [layer.exponent for layer in done.chains[0]] != [0, 0] and done.outputs[0].max_relative == 0.0


def test_what_underflows_is_not_written(tmp_path: Path) -> None:
    """2⁻¹⁶⁰·x is zero in float32, and 2¹⁶⁰ times it, too; evened out nothing underflows, and it is x."""
    sizes = dict(zip(("w0", "w1", "w2", "w3"), (-100, -60, 100, 60), strict=True))
    arrays = {name: np.ldexp(np.eye(4, dtype=np.float32), size) for name, size in sizes.items()}
    nodes = [node("MatMul", f"{a} {w}", b) for a, w, b in zip("xabc", sizes, "abcy", strict=True)]
    path = tmp_path / "m.onnx"
    path.write_bytes(model(nodes, arrays, [4, 4]).SerializeToString())
    with pytest.raises(ConstraintError, match="underflows"):
        snaudit.balance(path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_refusals_and_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "bare.npz", w=np.ones((3, 3)))
    with pytest.raises(UnsupportedModel, match="needs a graph"):
        snaudit.balance(tmp_path / "bare.npz")
    path = tmp_path / "m.onnx"
    path.write_bytes(deep().SerializeToString())
    assert cli.main(["balance", str(path), "--dry-run", "--format", "json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["schema"] == "snaudit.balance/1" and shown["written"] is False and len(shown["chains"][0]) == 5
    assert cli.main(["balance", str(path)]) == 0
    out = capfd.readouterr().out
    assert "outputs bit for bit the same, on random input: y" in out and "5 in 1 chains, of 5 in all; written to" in out
    with pytest.raises(WriteError, match="--force"):
        snaudit.balance(path)
