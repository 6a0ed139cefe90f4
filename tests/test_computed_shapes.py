"""Sizes that the graph computes from constants are known, and only those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import make_model
from onnx import NodeProto, helper

import snaudit
from snaudit import formats

N = helper.make_node
KERNEL = np.random.default_rng(5).standard_normal((3, 1, 4))
NUMBERS = {
    "zero": np.array(0), "one": np.array(1), "two": np.array(2), "ones": np.array([1]), "zeros": np.array([0]),
    "three": np.array([3]), "axis": np.array([0]), "kernel": KERNEL, "rows": np.array([2, 2]), "flat": np.array([-1]),
    "back": np.array([-1]), "far": np.array([-(2**62)]), "pads": np.array([2, 1], np.int64), "table": np.ones((4, 2)),
}  # fmt: skip


def padded(pads: str) -> list[NodeProto]:
    """A convolution behind a Pad, in the way in which an exporter writes F.pad(x, (2, 1))."""
    return [
        N("Shape", ["pads"], ["count"]),
        N("Gather", ["count", "zero"], ["given"]),
        N("Mul", ["two", "three"], ["sides"]),
        N("Sub", ["sides", "given"], ["missing"]),
        N("ConstantOfShape", ["missing"], ["none"], value=helper.make_tensor("v", onnx.TensorProto.INT64, [1], [0])),
        N("Concat", ["pads", "none"], ["all"], axis=0),
        N("Constant", [], ["pairs"], value_ints=[-1, 2]),
        N("Reshape", ["all", "pairs"], ["table0"]),
        N("Slice", ["table0", "back", "far", "axis", "back"], ["turned"]),
        N("Transpose", ["turned"], ["sided"], perm=[1, 0]),
        N("Reshape", ["sided", "flat"], ["listed"]),
        N("Pad", ["x", pads], ["padded"]),
        N("Conv", ["padded", "kernel"], ["c"]),
    ]


def branch(name: str, nodes: list[NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=output)])


def squeezed(size: int, inner: str = "inner") -> list[NodeProto]:
    """torch.squeeze(x, 1) behind an If on the size of that axis, then a product."""
    return [
        N("Shape", ["x"], ["shape"]),
        N("Gather", ["shape", "one"], ["size"]),
        N("Equal", ["size", "one"], ["is_one"]),
        N("If", ["is_one"], ["s"],
          then_branch=branch("t", [N("Squeeze", ["x", "ones"], [inner])], inner),
          else_branch=branch("e", [N("Identity", ["x"], [f"{inner}_too"])], f"{inner}_too")),
        N("MatMul", ["s", "table"], ["y"]),
    ]  # fmt: skip


def read(tmp_path: Path, nodes: list[NodeProto], shape: tuple[Any, ...], outputs: tuple[str, ...] = ("c",)) -> Any:
    path = tmp_path / "m.onnx"
    onnx.save(make_model(nodes, {"x": shape}, NUMBERS, outputs), path)
    return path, {o.name: o.shape for n in formats.read(path).graph.graph for o in n.outputs}


def test_a_pad_of_computed_widths_has_the_bound_of_a_pad_of_stored_ones(tmp_path: Path) -> None:
    path, shapes = read(tmp_path, padded("listed"), (1, 1, 8))
    assert shapes["c"] == [1, 3, 8]
    plain = tmp_path / "plain.onnx"
    widths = {**NUMBERS, "listed": np.array([0, 0, 2, 0, 0, 1])}
    onnx.save(make_model([*padded("listed")[-2:]], {"x": (1, 1, 8)}, widths, ("c",)), plain)
    bound, other = (snaudit.audit(p).network.bound for p in (path, plain))
    assert bound == other
    columns = [np.concatenate([np.correlate(np.pad(x, (2, 1)), k[0]) for k in KERNEL]) for x in np.eye(8)]
    exact = np.linalg.norm(columns, 2)
    assert exact <= bound.upper <= exact * (1 + 1e-6)


@pytest.mark.parametrize(("size", "shape"), [(1, [1, 2]), (5, [1, 5, 2])])
def test_the_branch_that_runs_gives_the_shape(tmp_path: Path, size: int, shape: list[int]) -> None:
    path, shapes = read(tmp_path, squeezed(size), (1, size, 4), ("y",))
    assert shapes["y"] == shape
    bound = snaudit.audit(path).network.bound
    assert bound.upper == pytest.approx(8**0.5, rel=1e-9)


def test_sizes_of_open_inputs_stay_open(tmp_path: Path) -> None:
    """Nothing is concluded from a Shape that is not fixed, and open sizes get no names that others have."""
    _, shapes = read(tmp_path, padded("listed"), (1, 1, "n"))
    assert list(shapes["c"])[:2] == [1, 3] and not isinstance(shapes["c"][2], int)
    _, shapes = read(tmp_path, squeezed(1), (1, "m", 4), ("y",))
    assert shapes["y"] is None or not all(isinstance(d, int) for d in shapes["y"])


def test_a_branch_with_names_of_the_graph_stays_an_if(tmp_path: Path) -> None:
    """Names that a branch shares with the graph outside: no size is taken from a mixture of both."""
    nodes = [*squeezed(1, inner="size2"), N("ReduceSum", ["x", "back"], ["size2"], keepdims=0)]
    path = tmp_path / "m.onnx"
    onnx.save(make_model(nodes, {"x": (1, 1, 4)}, NUMBERS, ("y", "size2")), path)
    try:
        model = formats.read(path)
    except snaudit.errors.ModelError:
        return  # refused as a whole is fine, too
    shapes = {o.name: o.shape for n in model.graph.graph for o in n.outputs}
    assert shapes["size2"] == [1, 1]


def test_branches_beside_each_other_may_share_names(tmp_path: Path) -> None:
    """The first If is settled, the second is not, and both call what they make "h": a size of one is none of the other."""
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])
    choice = helper.make_tensor_value_info("choice", onnx.TensorProto.BOOL, [])
    sizes = helper.make_tensor_value_info("sizes", onnx.TensorProto.INT64, [2])
    nodes = [
        N("If", ["yes"], ["a"], then_branch=branch("t1", [N("Relu", ["x"], ["h"])], "h"),
          else_branch=branch("e1", [N("Neg", ["x"], ["g"])], "g")),
        N("If", ["choice"], ["b"], then_branch=branch("t2", [N("Expand", ["x", "sizes"], ["h"])], "h"),
          else_branch=branch("e2", [N("Neg", ["x"], ["n"]), N("Expand", ["n", "sizes"], ["h"])], "h")),
        N("MatMul", ["b", "W"], ["y"]), N("MatMul", ["a", "W"], ["z"]),
    ]  # fmt: skip
    held = [onnx.numpy_helper.from_array(np.array(True), "yes"), onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32), "W")]
    graph = helper.make_graph(nodes, "g", [x, choice, sizes], [onnx.ValueInfoProto(name=n) for n in "yz"], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    outputs = {output.name: output.bound for output in snaudit.audit(tmp_path / "m.onnx").network.outputs}
    assert outputs["z"].upper == pytest.approx(1.0, rel=1e-6)
    assert not outputs["y"].known or outputs["y"].upper >= 5**0.5  # sizes = (5, 3) copies x five times
