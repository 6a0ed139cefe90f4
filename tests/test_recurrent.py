"""LSTM, GRU and RNN over a known length: above every Jacobian that onnxruntime shows, and near the worst."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Function, composed, function_of, jacobian, make_model
from onnx import helper

import snaudit
from snaudit.rules import recurrent
from snaudit.rules.interface import SURROGATE

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
T, INPUTS, HIDDEN = 4, 3, 2


def network(
    op: str,
    seed: int = 0,
    outputs: str = "Y",
    scale: float = 1.0,
    sizes: tuple[Any, int, int] = (T, INPUTS, HIDDEN),
    states: bool = False,
    lens: Any = None,
    peepholes: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """One node over X of (steps, 1, inputs), its outputs those named."""
    rng = np.random.default_rng(seed)
    steps, n, h = sizes
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[op] * h
    weights: dict[str, Any] = {
        "W": rng.standard_normal((directions, rows, n)) * scale,
        "R": rng.standard_normal((directions, rows, h)) * scale,
        "B": rng.standard_normal((directions, 2 * rows)),
    }
    inputs = ["X", "W", "R", "B", "", "", "", ""]
    if states:
        weights |= {"h": rng.standard_normal((directions, 1, h)), "c": rng.standard_normal((directions, 1, h)) * 2}
        inputs[5:7] = ["h", "c" if op == "LSTM" else ""]
    if lens is not None:
        weights["lens"] = np.array(lens, np.int32)
        inputs[4] = "lens"
    if peepholes:
        weights["P"] = rng.standard_normal((directions, 3 * h))
        inputs[7] = "P"
    while not inputs[-1]:
        inputs.pop()
    names = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    names = [name if name in outputs.split() else "" for name in names]
    layout = attributes.get("layout", 0)
    shape = (1, steps, n) if layout else (steps, 1, n)
    node = helper.make_node(op, inputs, names, name="node", hidden_size=h, **attributes)
    shapes = {"X": shape}
    kept = [name for name in names if name]
    return make_model([node], shapes, weights, kept, opset=17, dtype="float32")


def steepest(function: Function, n: int, seed: int, rounds: int = 12) -> float:
    """The largest singular value of a Jacobian found: at random points of many sizes, then moved uphill."""
    rng = np.random.default_rng(seed)
    points = [rng.standard_normal(n) * 10.0 ** rng.uniform(-1.5, 0.8) for _ in range(rounds)]
    value = lambda x: float(np.linalg.norm(jacobian(function, x, 1e-2), 2))  # noqa: E731
    best, at = max(((value(x), x) for x in points), key=lambda pair: pair[0])
    for k in range(2 * rounds):
        x = at + rng.standard_normal(n) * (1.0 if k % 2 else 0.2)
        found = value(x)
        best, at = (found, x) if found > best else (best, at)
    return best


CASES = [
    ("LSTM", {}),
    ("LSTM", {"direction": "reverse", "outputs": "Y_h"}),
    ("LSTM", {"direction": "bidirectional", "outputs": "Y Y_c"}),
    ("LSTM", {"outputs": "Y_c", "states": True}),
    ("LSTM", {"outputs": "Y Y_h Y_c", "peepholes": True}),
    ("LSTM", {"clip": 0.7, "states": True}),
    ("LSTM", {"lens": [3], "outputs": "Y_h"}),
    ("GRU", {"linear_before_reset": 1}),
    ("GRU", {"linear_before_reset": 0, "states": True, "outputs": "Y Y_h"}),
    ("GRU", {"linear_before_reset": 1, "states": True, "direction": "bidirectional"}),
    ("GRU", {"direction": "bidirectional", "lens": [3], "outputs": "Y_h"}),
    ("RNN", {}),
    ("RNN", {"activations": ["Relu"], "direction": "reverse"}),
    ("RNN", {"direction": "bidirectional", "outputs": "Y Y_h"}),
]


@pytest.mark.parametrize("scale", [0.3, 1.5])
@pytest.mark.parametrize(("op", "settings"), CASES, ids=lambda v: str(v).replace("'", ""))
def test_no_jacobian_is_above_the_bound(op: str, settings: dict[str, Any], scale: float) -> None:
    for seed in range(2):
        model = network(op, seed, scale=scale, **settings)
        upper = composed(model).bound.upper
        function, n = function_of(model)
        seen = steepest(function, n, seed)
        assert seen <= upper * (1 + 3e-3), (seen, upper)
        assert np.isfinite(upper)


@pytest.mark.parametrize(("op", "settings"), CASES, ids=lambda v: str(v).replace("'", ""))
def test_a_single_unit_is_searched_harder(op: str, settings: dict[str, Any]) -> None:
    """With one unit the bound is near enough for a search to reach a wrong constant."""
    for seed in range(6):
        model = network(op, seed, sizes=(3, 1, 1), scale=1.0 + seed % 3, **settings)
        function, n = function_of(model)
        assert steepest(function, n, seed, 20) <= composed(model).bound.upper * (1 + 3e-3)


def attained(op: str, gate: int, biases: list[float], hidden: int = 2, steps: int = 1, **settings: Any) -> float:
    """Upper over seen at zero input, where only gate `gate` has weights and the biases hold the others open."""
    rng = np.random.default_rng(5)
    model = network(op, sizes=(steps, 3, hidden), **settings)
    weights = {one.name: one for one in model.graph.initializer}
    w = np.zeros((1, GATES[op], hidden, 3))
    w[0, gate] = rng.standard_normal((hidden, 3))
    b = np.zeros((1, 2 * GATES[op], hidden))
    b[0, : GATES[op]] = np.array(biases)[:, None]
    r = np.zeros((1, GATES[op], hidden, hidden))
    if op == "RNN":
        r[:] = 0.8 * np.eye(hidden)
    for name, array in (("W", w), ("R", r), ("B", b)):
        shape = tuple(weights[name].dims)
        weights[name].CopyFrom(onnx.numpy_helper.from_array(array.reshape(shape).astype(np.float32), name))
    function, n = function_of(model)
    return composed(model).bound.upper / float(np.linalg.norm(jacobian(function, np.zeros(n), 1e-2), 2))


def test_steepest_settings_attain_the_bound() -> None:
    ratios = [
        attained("LSTM", 3, [12.0, 12.0, 12.0, 0.0], outputs="Y_c", steps=4),  # biases of i, o, f, g
        attained("LSTM", 3, [12.0, 12.0, 0.0, 0.0]),
        attained("LSTM", 0, [0.0, 12.0, 0.0, 12.0], outputs="Y_c"),
        *(attained("GRU", 2, [-12.0, 0.0, 0.0], linear_before_reset=before) for before in (0, 1)),
        attained("RNN", 0, [0.0], steps=6),
    ]
    assert 1.0 - 5e-4 < min(ratios) and max(ratios) < 1.01, ratios


def test_slopes_of_gates_share_a_unit_ball() -> None:
    """The three inequalities that `_lstm` and `_gru` rest on, on a fine grid; each is tight or nearly so."""
    r = np.linspace(0.0, 1.0, 20001)
    together = r**2 + (r * (1 - r)) ** 2 / recurrent._REACH**2
    assert 1.0 - 1e-6 < together[1:-1].max() <= 1.0
    i, s = np.meshgrid(r[::50], r[::50])
    assert (16 * s * (i * (1 - i)) ** 2 + (i * (1 - s)) ** 2).max() <= 1.0
    for high in (1.0, 2.5, 10.0):
        w = (1.0 + high) / np.sqrt(8.0)
        for n in r[::500]:
            row = r**2 + ((1 - r) * (1 - n * n)) ** 2 + ((high + n) * r * (1 - r) / w) ** 2
            assert row.max() <= 1.0 + 1e-15
    assert (((1 + 1) * r * (1 - r) / 0.59) ** 2 + r**2).max() > 1.0  # w may not be much less


def test_long_sequences_and_states_that_vary() -> None:
    short, long = (composed(network("RNN", sizes=(steps, 2, 2), scale=0.4)).bound.upper for steps in (500, 700))
    assert short <= long < 3 * short  # from 512 steps on by Hölder's bound
    assert composed(network("RNN", sizes=(3000, 2, 2))).gaps[0].code == "recurrent"
    assert composed(network("LSTM", sizes=(1500, 2, 2), scale=3.0)).gaps[0].code == "overflow"
    for op, settings in (("LSTM", {}), ("GRU", {}), ("RNN", {})):
        model = network(op, 3, states=True, outputs="Y Y_h", **settings)
        kept = [one for one in model.graph.initializer if one.name not in ("h", "c")]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        states = ("h", "c") if op == "LSTM" else ("h",)
        for name in states:
            model.graph.input.append(helper.make_tensor_value_info(name, 1, [1, 1, HIDDEN]))
        box = {name: (np.array(-1.5), np.array(1.5)) for name in states}
        found = composed(model, box=box)
        assert (op != "RNN") == (composed(model).gaps != ())
        function, n = function_of(model)
        rng = np.random.default_rng(1)
        for _ in range(30):
            x = rng.standard_normal(n)
            x[T * INPUTS :] = rng.uniform(-1.5, 1.5, n - T * INPUTS)
            assert np.linalg.norm(jacobian(function, x, 1e-2), 2) <= found.bound.upper * (1 + 3e-3)


def test_what_has_no_constant_is_refused() -> None:
    for op, settings in (
        ("LSTM", {"sizes": (None, 3, 2)}),
        ("LSTM", {"sizes": ("steps", 3, 2), "lens": None}),
        ("LSTM", {"input_forget": 1}),
        ("GRU", {"activations": ["Relu", "Tanh"]}),
        ("RNN", {"activations": ["Affine"]}),
    ):
        (gap,) = composed(network(op, **settings)).gaps
        assert gap.where == "node" and gap.op == op and gap.reason and gap.remedy
    assert composed(network("LSTM"), "linf").gaps and not composed(network("LSTM")).gaps
    assert np.isfinite(composed(network("LSTM", sizes=("steps", 3, 2), lens=[3])).bound.upper)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("columns", [False, True])
def test_a_dynamically_quantized_lstm_is_the_lstm_of_its_real_weights(direction: str, columns: bool, tmp_path: Path) -> None:
    """Same bound, ASSUMED since it rounds its input and state; and those weights are what onnxruntime computes with."""
    rng = np.random.default_rng(3)
    count, steps, n, h = 1 + (direction == "bidirectional"), 3, 5, 4
    weights: dict[str, np.ndarray] = {"B": (rng.standard_normal((count, 8 * h)) / 4).astype(np.float32)}
    real = {}
    for name, inputs in (("W", n), ("R", h)):
        shape = (count, 4 * h) if columns else (count,)
        scale = rng.uniform(0.002, 0.006, shape).astype(np.float32)
        codes = rng.integers(-128, 128, (count, inputs, 4 * h)).astype(np.int8)
        zero = np.zeros(shape, np.int8) if columns else np.full(shape, 3, np.int8)
        grid = (count, 1, 4 * h) if columns else (count, 1, 1)
        real[name] = ((codes - zero.reshape(grid).astype(float)) * scale.reshape(grid)).transpose(0, 2, 1)
        weights |= {name: codes, f"{name}s": scale, f"{name}z": zero}
    node = helper.make_node("DynamicQuantizeLSTM", ["X", "W", "R", "B", "", "", "", "", "Ws", "Wz", "Rs", "Rz"], ["Y", "Y_h"],
                            domain="com.microsoft", hidden_size=h, direction=direction)  # fmt: skip
    plain = helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y", "Y_h"], hidden_size=h, direction=direction)
    made = {}
    for one, arrays in ((node, weights), (plain, real | {"B": weights["B"]})):
        made[one.op_type] = make_model([one], {"X": (steps, 1, n)}, arrays, ("Y", "Y_h"), dtype="float32")
    own, other = made["DynamicQuantizeLSTM"], made["LSTM"]
    own.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    x = rng.standard_normal(steps * n)
    assert np.abs(function_of(own)[0](x) - function_of(other)[0](x)).max() < 0.03
    bounds = []
    for model in (own, other):
        onnx.save(model, tmp_path / "m.onnx")
        bounds.append(snaudit.audit(tmp_path / "m.onnx").network)
    assert bounds[0].bound.upper == pytest.approx(bounds[1].bound.upper, rel=1e-6)  # the plain one's weights are float32
    assert bounds[0].bound.grade is snaudit.Grade.ASSUMED and SURROGATE in bounds[0].assumptions
    assert any("not known" in sentence for sentence in bounds[0].assumptions)  # what rounding adds


@pytest.mark.parametrize("fill", [None, 0.5, -2.0])
@pytest.mark.parametrize("way", ["filled", "expanded"])
def test_a_state_of_open_size_is_bounded_by_what_fills_it(fill: float | None, way: str, tmp_path: Path) -> None:
    """The state of a batch of any size, all entries one number: the bound is that of the stored state."""
    rng = np.random.default_rng(1)
    weights: dict[str, Any] = {"w": rng.standard_normal((1, 9, 4)), "r": rng.standard_normal((1, 9, 3))}
    gru = helper.make_node("GRU", ["x", "w", "r", "", "", "h"], ["y"], hidden_size=3)
    stored = make_model([gru], {"x": (5, 1, 4)}, weights | {"h": np.full((1, 1, 3), fill or 0.0)}, dtype="float32")
    value = {} if fill is None else {"value": helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [fill])}
    made = [
        helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "one"], ["b"]),
        helper.make_node("Concat", ["first", "b", "last"], ["sizes"], axis=0),
    ]  # fmt: skip
    if way == "filled":
        made += [helper.make_node("ConstantOfShape", ["sizes"], ["h"], **value)]
    else:
        weights["number"] = np.full((1, 1, 1), fill or 0.0)
        made += [helper.make_node("Expand", ["number", "sizes"], ["e"]), helper.make_node("Identity", ["e"], ["h"])]
    weights |= {"one": np.array([1]), "first": np.array([1]), "last": np.array([3])}
    open_ = make_model([*made, gru], {"x": (5, "batch", 4)}, weights, dtype="float32")
    bounds = []
    for model in (stored, open_):
        onnx.save(model, tmp_path / "m.onnx")
        report = snaudit.audit(tmp_path / "m.onnx", witness_seconds=0)
        assert not report.gaps, report.gaps
        bounds.append(report.network.bound.upper)
    assert bounds[0] == bounds[1]


def test_a_length_that_is_open_in_a_branch_names_the_if(tmp_path: Path) -> None:
    """Sizes alone may not settle it: an integer that the If asks for does."""
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((1, 9, 4)), "r": rng.standard_normal((1, 9, 3)), "rate": np.array(8)}
    gru = helper.make_node("GRU", ["x", "w", "r"], ["h"], hidden_size=3)
    body = helper.make_graph([gru], "t", [], [onnx.ValueInfoProto(name="h")])
    nodes = [helper.make_node("Equal", ["sr", "rate"], ["same"]), helper.make_node("If", ["same"], ["y"], then_branch=body, else_branch=body)]
    model = make_model(nodes, {"x": ("n", 1, 4), "sr": ()}, weights, dtype="float32", kinds={"sr": "int64"})
    onnx.save(model, tmp_path / "m.onnx")
    gap = snaudit.audit(tmp_path / "m.onnx", witness_seconds=0).gaps[0]
    assert gap.code == "recurrent" and "the If around it" in gap.remedy and "--input-size" in gap.remedy
    onnx.save(make_model([gru], {"x": ("n", 1, 4)}, weights, ["h"], dtype="float32"), tmp_path / "m.onnx")
    (gap,) = snaudit.audit(tmp_path / "m.onnx", witness_seconds=0).gaps
    assert gap.code == "recurrent" and gap.remedy == "give the input's size with --input-size"
