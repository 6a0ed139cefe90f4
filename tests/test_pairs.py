"""The bound of one output with respect to one input, all other inputs held fixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import composed, function_of, gain, jacobian, make_model, read
from onnx import helper

import snaudit
from snaudit import cli
from snaudit.bound import NORMS
from snaudit.errors import UsageError
from snaudit.policy import Limits
from snaudit.witness import stored

INPUTS = {"x": 4, "z": 3, "u": 4}
DIFFERENCES = 1e-5


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name=f"at {output}", **attributes)


def network(seed: int, linear: bool) -> onnx.ModelProto:
    """A random DAG from three inputs to two outputs: sums, concatenations, shared weights, and, if it is not
    linear, activations, gates by functions of bounded range, and masks of one input on another."""
    rng = np.random.default_rng(seed)
    widths = dict(INPUTS)
    weights: dict[str, np.ndarray] = {"zero": np.zeros(1)}
    nodes: list[onnx.NodeProto] = []

    def emit(op: str, args: str, columns: int, **attributes: Any) -> str:
        nodes.append(node(op, args, f"t{len(nodes)}", **attributes))
        widths[f"t{len(nodes) - 1}"] = columns
        return f"t{len(nodes) - 1}"

    def project(value: str) -> str:
        weight = f"w{widths[value]}" if rng.random() < 0.5 else f"c{len(weights)}"
        weights.setdefault(weight, rng.standard_normal((widths[value], 5)))
        return emit("MatMul", f"{value} {weight}", 5)

    def grow() -> None:
        value, other = (str(v) for v in rng.choice(sorted(widths), 2))
        kind = rng.integers(4 if linear else 8)
        if kind == 0:
            project(value)
        elif kind == 1:
            emit(str(rng.choice(["Add", "Sub"])), f"{project(value)} {project(other)}", 5)
        elif kind == 2:
            emit("Concat", f"{value} {other}", widths[value] + widths[other], axis=1)
        elif kind == 3:
            weights[f"s{len(nodes)}"] = rng.standard_normal(widths[value])
            emit("Mul", f"{value} s{len(nodes)}", widths[value])
        elif kind == 4:
            emit(str(rng.choice(["Relu", "Tanh", "LeakyRelu", "Sin"])), value, widths[value])
        elif kind == 5:
            emit("Mul", f"{emit('Tanh', project(value), 5)} {emit('Sigmoid', project(other), 5)}", 5)
        elif kind == 6:
            held = str(rng.choice(["z", "u"]))
            nodes.append(node("Greater", f"{project(held)} zero", f"mask{len(nodes)}"))
            emit("Where", f"mask{len(nodes) - 1} {project(value)} {project(other)}", 5)
        else:
            positive = emit("Exp", emit("Tanh", project(str(rng.choice(["z", "u"]))), 5), 5)
            emit("Div", f"{emit('Tanh', project(value), 5)} {positive}", 5)

    for _ in range(8):
        grow()
    values = list(widths)
    ends = {"p": values[-1], "q": values[len(values) // 2]}
    for name, value in ends.items():
        together = emit("Add", f"{project(value)} {project('x')}", 5)
        nodes.append(node("Identity", together, name))
    return make_model(nodes, {name: [1, n] for name, n in INPUTS.items()}, weights, ["p", "q"])


def block(model: onnx.ModelProto, output: str, name: str, at: np.ndarray, step: float) -> np.ndarray:
    """The Jacobian of one output in one input, at a point of all inputs."""
    whole = jacobian(function_of(model)[0], at, step)
    starts = dict(zip(INPUTS, np.cumsum([0, *INPUTS.values()]), strict=False))
    rows = {"p": slice(0, 5), "q": slice(5, 10)}[output]
    return whole[rows, starts[name] : starts[name] + INPUTS[name]]


def bound(path: Path, output: str | None, name: str | None, **settings: Any) -> float:
    return snaudit.audit(path, of_output=output, from_input=name, **settings).network.bound.upper


@pytest.fixture
def saved(tmp_path: Path):
    def save(model: onnx.ModelProto) -> Path:
        onnx.save(model, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return save


@pytest.mark.parametrize("seed", range(8))
def test_a_linear_pair_has_the_norm_of_its_block(seed: int, saved) -> None:
    model = network(seed, linear=True)
    path = saved(model)
    for output in ("p", "q"):
        for name in INPUTS:
            truth = block(model, output, name, np.zeros(11), 0.5)
            assert gain(truth, "l2") <= bound(path, output, name) <= gain(truth, "l2") * (1 + 1e-6) + 1e-12
            for norm in ("l1", "linf"):
                assert gain(truth, norm) <= bound(path, output, name, norm=norm) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_a_pair_is_never_below_its_sampled_jacobians(seed: int, saved) -> None:
    model = network(100 + seed, linear=False)
    path, rng = saved(model), np.random.default_rng(seed)
    points = [rng.standard_normal(11) * scale for scale in (0.1, 1.0, 3.0)]
    wholes, found = {norm: bound(path, None, None, norm=norm) for norm in NORMS}, []
    for output in ("p", "q"):
        for name in INPUTS:
            blocks = [block(model, output, name, at, 1e-6) for at in points]
            for norm in NORMS:
                one = bound(path, output, name, norm=norm)
                assert max(gain(b, norm) for b in blocks) <= one * (1 + DIFFERENCES) + 1e-7
                assert one <= wholes[norm] * (1 + 1e-9)
                found.append(one)
    assert min(found) < np.inf


def test_a_mask_jumps_with_its_own_input_only(saved) -> None:
    rng = np.random.default_rng(3)
    w, v = rng.standard_normal((2, 4, 4))
    nodes = [
        node("Greater", "z zero", "mask"),
        node("MatMul", "x w", "a"), node("MatMul", "x v", "b"),
        node("Where", "mask a b", "y"),
    ]  # fmt: skip
    path = saved(make_model(nodes, {"x": [1, 4], "z": [1, 4]}, {"w": w, "v": v, "zero": np.zeros(1)}))
    assert bound(path, None, "z") == np.inf == bound(path, None, None)
    rows = [gain(np.where((np.arange(16)[i] >> np.arange(4)) & 1, w, v), "l2") for i in range(16)]
    assert max(rows) <= bound(path, None, "x") <= np.hypot(gain(w, "l2"), gain(v, "l2")) * (1 + 1e-9)


def test_a_product_with_what_is_held_needs_its_range(saved) -> None:
    weights = {"w": np.eye(3) * 2.0}
    nodes = [node("MatMul", "x w", "a"), node("Mul", "a z", "y")]
    path = saved(make_model(nodes, {"x": [1, 3], "z": [1, 3]}, weights))
    report = snaudit.audit(path, from_input="x")
    assert not report.network.bound.known and report.gaps[0].where == "at y"
    ranged = snaudit.audit(path, from_input="x", input_range=("z=-1,7",)).network
    assert 14.0 <= ranged.bound.upper <= 14.0 * (1 + 1e-9)
    assert any("z lies in [-1, 7]" in sentence for sentence in ranged.assumptions)
    assert bound(path, None, "z", input_range=("x=-1,1",)) == pytest.approx(2.0)


def test_what_is_held_in_a_matrix_or_a_divisor_counts_by_its_range(saved) -> None:
    """x·B(z)/d(z): B's rows and d's distance from zero follow from tanh and exp."""
    rng = np.random.default_rng(5)
    w = rng.standard_normal((4, 4))
    nodes = [
        node("MatMul", "z w", "zw"), node("Tanh", "zw", "B"), node("MatMul", "x B", "m"),
        node("Exp", "B", "e"), node("ReduceMean", "e", "d", axes=[0], keepdims=1), node("Div", "m d", "y"),
    ]  # fmt: skip
    model = make_model(nodes, {"x": [2, 4], "z": [4, 4]}, {"w": w})
    path, rng = saved(model), np.random.default_rng(6)
    truth = 0.0
    for scale in (0.1, 1.0, 10.0):
        z = rng.standard_normal((4, 4)) * scale
        function, n = function_of(model, {"z": z})
        truth = max(truth, gain(jacobian(function, np.zeros(n), 0.5), "l2"))
    assert truth <= bound(path, None, "x") <= 4.0 * np.e * (1 + 1e-9)


def loop(*nodes: onnx.NodeProto, state: str) -> list[onnx.NodeProto]:
    """A Loop of `count` steps over a (1, 3) state `a`, next in `next`, which puts out `out`, stacked in `y`."""

    def info(name: str, kind: int = onnx.TensorProto.DOUBLE, shape: tuple = (1, 3)) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    flag = onnx.TensorProto.BOOL
    body = helper.make_graph(
        [*nodes, node("Identity", "cond", "go")], "body",
        [info("i", onnx.TensorProto.INT64, ()), info("cond", flag, ()), info("a")],
        [info("go", flag, ()), info("next"), info("out")],
    )  # fmt: skip
    return [node("Loop", f"count true {state}", "last y", body=body)]


STEPS = {"count": np.array(3), "true": np.array(True), "hundred": np.full((1, 3), 100.0)}


def test_a_state_that_a_loop_shifts_out_leaves_no_range_behind() -> None:
    """s ← 100: from the second step on the factor is a constant, not the sigmoid that it was."""
    inside = node("Identity", "a", "c"), node("Identity", "hundred", "next"), node("Mul", "c x", "out")
    model = make_model([node("Sigmoid", "x", "s"), *loop(*inside, state="s")], {"x": [1, 3]}, STEPS)
    function, n = function_of(model)
    truth = gain(jacobian(function, np.zeros(n), 1e-6), "l2")
    found = composed(model, box={"x": (-1.0, 1.0)})
    assert truth > 99.0 and found.bound.upper >= truth * (1 - 1e-6)
    assert [gap.code for gap in found.gaps] == ["needs-range"]


def test_a_factor_that_shrinks_from_step_to_step_has_no_range_of_its_last(saved) -> None:
    """a ← a/100 from 100·z, and a + z as the factor, z held in [0, 1]: at the first step up to 101."""
    inside = node("Mul", "a small", "next"), node("Add", "a z", "c"), node("Mul", "c x", "out")
    nodes = [node("MatMul", "x i3", "unused"), node("Mul", "z hundred", "s"), *loop(*inside, state="s")]
    weights = STEPS | {"small": np.full((1, 3), 0.01), "i3": np.eye(3)}
    model = make_model(nodes, {"x": [1, 3], "z": [1, 3]}, weights)
    function, n = function_of(model, {"z": np.ones((1, 3))})
    truth = gain(jacobian(function, np.zeros(n), 1e-6), "l2")
    assert truth > 99.0 and bound(saved(model), None, "x", input_range=("z=0,1",)) >= truth * (1 - 1e-6)


def test_a_held_batch_of_another_size_does_not_pass_for_one_entry(saved) -> None:
    """x of one row plus z of M rows copies x M times: no section adds them row by row without a word."""
    rng = np.random.default_rng(7)
    weights = {"w": rng.standard_normal((3, 3)), "v": rng.standard_normal((3, 3))}
    nodes = [node("MatMul", "x w", "a"), node("Add", "a z", "b"), node("MatMul", "b v", "y")]
    path = saved(make_model(nodes, {"x": ["N", 3], "z": ["M", 3]}, weights))
    said = snaudit.audit(path, from_input="x").network.assumptions
    assert any("N and M" in sentence for sentence in said)
    path = saved(make_model(nodes, {"x": ["N", 3], "z": ["N", 3]}, weights))
    assert len(snaudit.audit(path, from_input="x").network.assumptions) == 1
    truth = gain((weights["w"] @ weights["v"]).T, "l2")
    assert truth <= bound(path, None, "x") <= truth * (1 + 1e-6)


HELD = {
    "places": ("Greater z zero m; Cast m i to=7; GatherElements x i y axis=1", [1, 6]),
    "masks": ("Greater z zero m; Where m x zero y", [3, 4]),
    "logits": ("Greater z zero m; MatMul x w a; Where m a low b; Softmax b y", [1, 4]),
    "a slope": ("Tanh z t; PRelu x t y", [1, 4]),
    "a scale": ("LayerNormalization x z y", [4]),
    "weights": ("Softmax z t; Unsqueeze x first u; MatMul t u v; Squeeze v first y", [1, 4, 1]),
    "a divisor": ("Sigmoid z s; Exp s e; Div x e y", [3, 4]),
    "what x divides": ("Tanh z q; Tanh x s; Exp s e; Div q e y", [3, 4]),
    "a sign": ("Sign z s; MatMul x w a; Mul a s y", [3, 4]),
    "a minimum": ("Abs z t; Min t two u; Mul x u y", [1, 4]),
    "a count": ("ReduceMax z c keepdims=1; Abs c d; Ceil d e; Cast e i to=7; Concat i four s axis=0; Expand x s y", [1]),
    "rows": ("Add x z a; Relu a b; MatMul b w c; Sub c z d; Relu d e; MatMul e w y", [5, 4]),
}  # fmt: skip
"""Graphs in which what is held decides places, masks, slopes, scales, divisors, copies; z's shape."""


@pytest.mark.parametrize("name", HELD)
def test_whatever_is_held_the_bound_holds(name: str, saved) -> None:
    text, shape = HELD[name]
    rng, nodes = np.random.default_rng(9), []
    for part in text.split("; "):
        op, *names = part.split()
        attributes = dict(word.split("=") for word in names if "=" in word)
        args = [word for word in names if "=" not in word]
        nodes.append(node(op, " ".join(args[:-1]), args[-1], **{k: int(v) for k, v in attributes.items()}))
    weights = {"w": rng.standard_normal((4, 4)), "zero": np.zeros(1), "low": np.array(-60.0), "two": np.array(2.0),
               "four": np.array([4]), "first": np.array([0]), "i4": np.eye(4)}  # fmt: skip
    used = {word for one in nodes for word in one.input} | {"i4"}
    nodes.append(node("MatMul", "x i4", "unused"))
    model = make_model(nodes, {"x": [1, 4], "z": shape}, {n: a for n, a in weights.items() if n in used})
    path, truth = saved(model), dict.fromkeys(NORMS, 0.0)
    for scale in (0.1, 1.0, 5.0, 30.0):
        function, n = function_of(model, {"z": rng.standard_normal(shape) * scale})
        for at in (rng.standard_normal(n), 3.0 * rng.standard_normal(n)):
            found = jacobian(function, at, 1e-6)
            truth = {norm: max(most, gain(found, norm)) for norm, most in truth.items()}
    for norm in NORMS:
        assert truth[norm] <= bound(path, None, "x", norm=norm) * (1 + DIFFERENCES)


def test_an_embedding_is_held_beside_a_chosen_input(saved) -> None:
    rng = np.random.default_rng(8)
    weights = {"table": rng.uniform(-3, 3, (9, 4)), "w": rng.standard_normal((4, 4))}
    nodes = [node("Gather", "table ids", "e"), node("MatMul", "x w", "a"), node("Mul", "a e", "y")]
    path = saved(make_model(nodes, {"x": [1, 4], "ids": [1]}, weights, kinds={"ids": "int64"}))
    truth = max(gain((weights["w"] * row).T, "l2") for row in weights["table"])
    most = np.abs(weights["table"]).max() * gain(weights["w"].T, "l2")
    assert truth <= bound(path, None, "x") <= most * (1 + 1e-9)
    assert bound(path, None, None) == np.inf


def test_an_output_that_does_not_depend_on_the_input_does_not_move(saved) -> None:
    nodes = [node("MatMul", "x w", "p"), node("MatMul", "z w", "q")]
    model = make_model(nodes, {"x": [1, 2], "z": [1, 2]}, {"w": np.eye(2)}, ["p", "q"])
    path = saved(model)
    assert bound(path, "p", "z") == 0.0 and bound(path, "p", "x") == 1.0
    random = make_model([*nodes, node("RandomNormalLike", "z", "n"), node("Add", "p n", "r")],
                        {"x": [1, 2], "z": [1, 2]}, {"w": np.eye(2)}, ["r"])  # fmt: skip
    assert bound(saved(random), "r", "x") == np.inf
    assert read(random)


def test_a_gate_on_a_pair_says_what_it_is_about(saved, capsys) -> None:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "z v", "b"), node("Add", "a b", "p"), node("Mul", "b b", "q")]
    weights = {"w": np.eye(2), "v": 50.0 * np.eye(2)}
    path = saved(make_model(nodes, {"x": [1, 2], "z": [1, 2]}, weights, ["p", "q"]))
    one = snaudit.check(path, max_lipschitz=2.0, of_output="p", from_input="x")
    assert one.verdict is snaudit.Verdict.PASS
    assert one.network.assumptions[0] == (
        "the input x alone varies; the others are held fixed, at whatever value: z"
    )
    assert [output.name for output in one.network.outputs] == ["p"]
    other = snaudit.check(path, limits=Limits(max_lipschitz=2.0), of_output="p", from_input="z")
    assert other.verdict is snaudit.Verdict.UNDECIDED
    assert "(output p with respect to input z alone)" in other.findings[0].message
    args = ["check", str(path), "--max-lipschitz", "2", "--of-output", "p", "--from-input", "x"]
    assert cli.main(args) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "network bound (l2, output p with respect to input x alone): at most 1.0000, PROVED" in out
    assert cli.main([*args[:-1], "z", "--format", "json", "--witness-seconds", "0"]) == 3
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["of_output"] == "p" and settings["from_input"] == "z"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"of_output": "logits"}, "--of-output: no output 'logits'; there is p"),
        ({"from_input": "w"}, "--from-input: 'w' is no input; there are x, z"),
        ({"from_input": "ids"}, "--from-input: 'ids' is no real-valued input: it is held fixed; there are x, z"),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_those_that_are(asked: dict, said: str, saved) -> None:
    nodes = [node("Gather", "w ids", "e"), node("Sum", "x z e", "p")]
    inputs = {"x": [1, 2], "z": [1, 2], "ids": [1]}
    path = saved(make_model(nodes, inputs, {"w": np.ones((3, 2))}, ["p"], kinds={"ids": "int64"}))
    with pytest.raises(UsageError) as error:
        snaudit.audit(path, **asked)
    assert str(error.value) == said


def test_a_pair_needs_a_graph() -> None:
    path = Path(__file__).parent.parent / "sample_models" / "known.safetensors"
    with pytest.raises(UsageError, match="--from-input needs a model with a graph"):
        snaudit.audit(path, from_input="x")


def test_the_witness_moves_the_input_and_measures_the_output(saved, tmp_path: Path) -> None:
    """z stretches a hundred times more than x, and q ten times more than p."""
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "z v", "b"), node("Add", "a b", "p"), node("Mul", "p ten", "q")]
    w = np.diag([3.0, 1.0])
    weights = {"w": w, "v": 300.0 * np.eye(2), "ten": np.array(10.0)}
    path = saved(make_model(nodes, {"x": [1, 2], "z": [1, 2]}, weights, ["p", "q"], dtype="float32"))
    asked = {"of_output": "p", "from_input": "x", "input_range": ("z=5,6",)}
    found = snaudit.audit(path, witness_seconds=2, **asked).network
    assert 2.99 <= found.bound.lower <= 3.0 <= found.bound.upper <= 3.0 * (1 + 1e-9)
    points = {point.name: [np.frombuffer(raw) for raw in (point.x, point.y)] for point in found.witness.points}
    assert np.array_equal(*points["z"]) and ((points["z"][0] >= 5) & (points["z"][0] <= 6)).all()
    assert not np.array_equal(*points["x"])
    pair = tmp_path / "pair.npz"
    pair.write_bytes(stored(found.witness))
    again = snaudit.audit(path, replay=pair, **asked).network
    assert again.bound.lower == found.bound.lower
    moved = snaudit.audit(path, replay=pair, **(asked | {"from_input": "z", "input_range": None})).network
    assert moved.bound.lower == 0.0 and "the pair moves the input x, which is held fixed" in moved.witness.note
    assert snaudit.audit(path, witness_seconds=2, of_output="q", from_input="x").network.bound.lower > 29.0


def test_constrain_takes_no_pair(saved) -> None:
    path = saved(make_model([node("MatMul", "x w", "y")], {"x": [1, 2]}, {"w": np.eye(2)}))
    with pytest.raises(UsageError, match="constrain takes the network as a whole"):
        snaudit.constrain(path, max_lipschitz=0.5, settings=snaudit.Settings(from_input="x"))
