"""Composition over whole graphs: against dense Jacobians and random pairs; gaps, shortcuts, control flow."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import composed, function_of, gain, jacobian, make_model, norms_of, random_dag, read, size
from onnx import TensorProto, helper, numpy_helper

from snaudit import joint, lipschitz
from snaudit.bound import NORMS, Grade, Norm, at_most, exactly
from snaudit.lipschitz import Shortcut
from snaudit.rules.interface import CONSTANT, Value
from snaudit.rules.pointwise import GELU_TANH

ROUNDING = 1e-9
DIFFERENCES = 1e-6
"""Relative errors of a linear map's columns, and of central differences, in float64."""
RNG = np.random.default_rng(5)
W = RNG.standard_normal((4, 4))


def node(op: str, inputs: str, outputs: str = "y", domain: str = "", **attributes) -> onnx.NodeProto:
    """A node from space-separated names ("-" for an absent input), called after its first output."""
    names = ["" if name == "-" else name for name in inputs.split()]
    outs = outputs.split()
    return helper.make_node(op, names, outs, name=f"at {outs[0]}", domain=domain, **attributes)


def places(found: lipschitz.Composition) -> list[tuple[str, str, str]]:
    return [(gap.code, gap.where, gap.op) for gap in found.gaps]


@pytest.mark.parametrize("seed", range(24))
def test_a_random_linear_dag_against_its_jacobian(seed: int) -> None:
    model, norms = random_dag(seed, linear=True)
    function, n = function_of(model)
    matrix = jacobian(function, np.zeros(n), 0.5)
    for norm in NORMS:
        found = composed(model, norm, norms)
        assert not found.gaps
        assert gain(matrix, norm) <= found.bound.upper * (1 + ROUNDING)


@pytest.mark.parametrize("seed", range(24))
def test_a_random_dag_against_pairs_and_jacobians(seed: int) -> None:
    model, norms = random_dag(100 + seed, linear=False)
    function, n = function_of(model)
    rng = np.random.default_rng(seed)
    points = [rng.standard_normal(n) * scale for scale in (0.1, 1.0, 3.0)]
    matrices = [jacobian(function, x, 1e-6) for x in points]
    for norm in NORMS:
        found = composed(model, norm, norms)
        assert not found.gaps and found.bound.bounded
        truth = max(gain(matrix, norm) for matrix in matrices)
        for x in points:
            y = x + rng.standard_normal(n) * rng.choice([1e-3, 1.0])
            truth = max(truth, size(function(x) - function(y), norm) / size(x - y, norm))
        assert truth <= found.bound.upper * (1 + DIFFERENCES)


@pytest.mark.parametrize("seed", range(16))
def test_an_unknown_op_on_the_path_always_ends_the_bound(seed: int) -> None:
    model, norms = random_dag(200 + seed, linear=bool(seed % 2))
    rng = np.random.default_rng(seed)
    reached = _reached(model)
    victim = str(rng.choice(sorted(reached)))
    for other in model.graph.node:
        for index, name in enumerate(other.input):
            if name == victim:
                other.input[index] = "odd"
    op = str(rng.choice(["Mystery", "LpNormalization", "Round"]))
    position = next(i for i, n in enumerate(model.graph.node) if victim in n.output) + 1
    model.graph.node.insert(position, node(op, victim, "odd", "own" if op == "Mystery" else ""))
    for norm in NORMS:
        found = composed(model, norm, norms)
        assert not found.bound.bounded and not found.outputs[0][1].bounded
        assert found.gaps
        if op != "Round":
            others = {gap.code for gap in found.gaps if gap.where != "at odd"}
            assert found.gaps[0].where == "at odd" and others <= {"unknown-shape"}, "only what breaks it"
            assert op == "Mystery" or not others


@pytest.mark.parametrize("seed", range(4))
def test_a_small_image_network_against_pairs_and_jacobians(seed: int) -> None:
    """Convolution, norm, pooling with overlap, a residual, resizing, a concatenation, and a head."""
    rng = np.random.default_rng(seed)
    weights = {
        "k1": rng.standard_normal((3, 2, 3, 3)),
        "k2": rng.standard_normal((3, 3, 3, 3)),
        "g": rng.standard_normal(3),
        "b": np.zeros(3),
        "v": rng.uniform(0.2, 2, 3),
        "w": rng.standard_normal((54, 5)) / 9,
        "r": np.array([]),
        "to": np.array([1, 3, 3, 3]),
    }
    nodes = [
        node("Conv", "x k1", "a", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a g b b v", "n"),
        node("Relu", "n", "h"),
        node("Conv", "h k2", "c", pads=[1, 1, 1, 1]),
        node("Add", "c h", "s"),
        node("Tanh", "s", "t"),
        node("MaxPool", "t", "p", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Resize", "t r - to", "u", mode="linear"),
        node("Concat", "p u", "j", axis=1),
        node("Flatten", "j", "f"),
        node("Gemm", "f w", "y", alpha=0.5),
    ]
    model = make_model(nodes, {"x": [1, 2, 5, 5]}, weights, dtype="float32")
    norms = {"y": norms_of(weights["w"].astype("float32"))}
    for name, kernel, channels in (("a", "k1", 2), ("c", "k2", 3)):
        alone = node("Conv", f"x {kernel}", "y", pads=[1, 1, 1, 1])
        single = make_model([alone], {"x": [1, channels, 5, 5]}, {kernel: weights[kernel]}, dtype="float32")
        function, n = function_of(single)
        matrix = jacobian(function, np.zeros(n), 0.5)
        norms[name] = {norm: gain(matrix, norm) * (1 + 1e-5) for norm in NORMS}
    function, n = function_of(model)
    for norm in NORMS:
        found = composed(model, norm, norms)
        assert (
            not found.gaps and {"layer a", "layer c", "layer y", "at n"} <= dict(found.contributions).keys()
        )
        for scale in (0.1, 1.0, 5.0):
            x, move = rng.standard_normal((2, n))
            ratio = size(function(x + scale * move) - function(x), norm) / size(scale * move, norm)
            assert ratio <= found.bound.upper * (1 + 1e-3)
        assert gain(jacobian(function, rng.standard_normal(n), 0.01), norm) <= found.bound.upper


def _reached(model: onnx.ModelProto) -> set[str]:
    """The intermediate values that the output depends on and that depend on an input, but the output."""
    makers = {name: n for n in model.graph.node for name in n.output}
    stack, seen = list(makers[model.graph.output[0].name].input), set()
    while stack:
        name = stack.pop()
        if name in makers and name not in seen:
            seen.add(name)
            stack += makers[name].input
    return seen


def test_all_gaps_are_found_and_only_those_that_count() -> None:
    nodes = [
        node("Exp", "x", "a"),
        node("Relu", "a", "b"),
        node("Mystery", "b", "c", "own"),
        node("Mul", "c x", "d"),
        node("Log", "x", "unused"),
        node("Add", "d x", "y"),
    ]
    found = composed(make_model(nodes, {"x": [2, 3]}))
    assert places(found) == [
        ("needs-range", "at a", "Exp"),
        ("no-rule", "at c", "Mystery"),
        ("product", "at d", "Mul"),
    ]
    assert not found.bound.bounded and all(gap.reason and gap.remedy for gap in found.gaps)


def test_a_bound_beyond_float64_is_a_logarithm() -> None:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "y")]
    model = make_model(nodes, {"x": [1, 4]}, {"w": W})
    found = composed(model, "l2", dict.fromkeys("ay", dict.fromkeys(NORMS, 1e200)))
    assert not found.gaps and not found.bound.bounded and found.bound.known
    assert 400.0 <= found.bound.log10_upper <= 400.0 + 1e-9
    shrunk = composed(model, "l2", {"a": dict.fromkeys(NORMS, 1e200), "y": dict.fromkeys(NORMS, 1e-100)})
    assert shrunk.bound.upper == pytest.approx(1e100, rel=1e-9)


def test_a_deep_graph_does_not_hit_the_recursion_limit() -> None:
    count = 3000
    nodes = [node("Relu", f"t{i}", f"t{i + 1}") for i in range(count)]
    found = composed(make_model(nodes, {"t0": [2]}, outputs=[f"t{count}"]))
    assert found.bound == exactly(1.0, found.bound.method) and not found.gaps


@pytest.mark.parametrize("norm", NORMS)
def test_disjoint_inputs_combine_tighter(norm: Norm) -> None:
    weights = {"u": 3.0 * np.eye(2), "v": 4.0 * np.eye(2)}
    norms = {"a": norms_of(weights["u"]), "b": norms_of(weights["v"])}
    branches = [node("MatMul", "x u", "a"), node("MatMul", "z v", "b")]
    for op, expected in (
        ("Concat", {"l2": 4, "l1": 4, "linf": 4}),
        ("Add", {"l2": 5, "l1": 4, "linf": 7}),
        ("Max", {"l2": 4, "l1": 4, "linf": 4}),
    ):
        last = node(op, "a b", "y", **({"axis": 1} if op == "Concat" else {}))
        model = make_model([*branches, last], {"x": [1, 2], "z": [1, 2]}, weights)
        found = composed(model, norm, norms)
        assert found.bound.upper == pytest.approx(expected[norm], rel=1e-9)
        assert found.assumptions == ("the real inputs x, z vary together: one norm over all of them",)
        function, n = function_of(model)
        truth = gain(jacobian(function, RNG.standard_normal(n), 1e-6), norm)
        assert truth <= found.bound.upper * (1 + DIFFERENCES)
        assert op == "Max" or truth >= found.bound.upper * (1 - DIFFERENCES)


def test_groups_of_overlapping_sources() -> None:
    a, b, c = (Value(exactly(float(k)), frozenset(s)) for k, s in ((3, "p"), (4, "q"), (12, "pr")))
    for norm, stacked, summed in (
        ("l2", (9 + 144) ** 0.5, (225 + 16) ** 0.5),
        ("l1", 15, 15),
        ("linf", 12, 19),
    ):
        assert joint.stack((a, b, c, CONSTANT), norm).lip.upper == pytest.approx(stacked, rel=1e-12)
        assert joint.add((a, b, c), norm).lip.upper == pytest.approx(summed, rel=1e-12)
    assert joint.add((), "l2") == CONSTANT and joint.stack((CONSTANT,), "l1") == CONSTANT
    bridge = Value(exactly(1.0), frozenset("pq"))
    assert joint.stack((a, b, bridge), "l2").lip.upper == pytest.approx(26**0.5, rel=1e-12), (
        "all share through it"
    )


def test_several_outputs_count_together() -> None:
    nodes = [node("MatMul", "x w", "a"), node("Neg", "x", "b"), node("Shape", "x", "c")]
    found = composed(make_model(nodes, {"x": [1, 4]}, {"w": W}, ["a", "b", "c"]), "l2", {"a": norms_of(W)})
    top = np.linalg.norm(W, 2)
    assert [name for name, _ in found.outputs] == ["a", "b", "c"]
    assert (
        found.bound.upper == pytest.approx(np.hypot(top, 1.0), rel=1e-9) and found.outputs[2][1].upper == 0.0
    )
    assert any("3 outputs" in text for text in found.assumptions)
    assert ("layer a", pytest.approx(top)) in found.contributions


@pytest.mark.parametrize(("op", "outputs"), [("ArgMax", "k"), ("Sign", "k"), ("TopK", "v k")])
def test_steps_are_fine_where_they_are_not_used(op: str, outputs: str) -> None:
    args = "x two" if op == "TopK" else "x"
    weights = {"w": W, "two": np.array([2])}
    step = node(op, args, outputs)
    inner = [step, node("MatMul", "x w", "y")]
    assert composed(make_model(inner, {"x": [1, 4]}, weights), "l2", {"y": norms_of(W)}).bound.bounded
    used = [
        step,
        node("Cast", "k", "f", to=TensorProto.DOUBLE),
        node("Mul", "f f", "g"),
        node("Add", "g x", "y"),
    ]
    found = composed(make_model(used, {"x": [1, 4]}, weights))
    where = step.name
    assert places(found) == [("step", "at y", "Add")] and where in found.gaps[0].reason
    shown = composed(make_model([step, node("Neg", "x")], {"x": [1, 4]}, weights, ["y", "k"]))
    assert not shown.bound.bounded and shown.outputs[0][1].upper == 1.0 and not shown.outputs[1][1].bounded
    assert [gap.where for gap in shown.gaps] == [where]
    switched = [step, node("Cast", "k", "c", to=TensorProto.BOOL), node("Where", "c x x", "y")]
    assert [gap.op for gap in composed(make_model(switched, {"x": [1, 4]}, weights)).gaps] == ["Where"]
    if op == "ArgMax":
        gathered = composed(make_model([step, node("Gather", "x k")], {"x": [1, 4]}, weights))
        assert places(gathered) == [("step", "at y", "Gather")]
        looked_up = composed(
            make_model([step, node("Gather", "w k", "g"), node("Add", "g x")], {"x": [1, 4]}, weights)
        )
        assert places(looked_up) == [("step", "at y", "Add")]


def test_shape_arithmetic_carries_no_slope() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n", axis=0),
        node("Concat", "n rest", "t", axis=0),
        node("MatMul", "x w", "h"),
        node("Reshape", "h t", "y"),
    ]
    weights = {"w": W, "zero": np.array([0]), "rest": np.array([2, 2])}
    found = composed(make_model(nodes, {"x": ["n", 4]}, weights), "l2", {"h": norms_of(W)})
    assert not found.gaps and found.bound.upper == pytest.approx(np.linalg.norm(W, 2), rel=1e-9)
    assert found.assumptions == ()


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("RandomNormalLike", {}),
        ("RandomUniformLike", {}),
        ("Bernoulli", {}),
        ("RandomNormal", {"shape": [1, 4]}),
    ],
)
def test_randomness_is_a_gap_even_on_constants(op: str, attributes: dict) -> None:
    nodes = [node(op, "" if "shape" in attributes else "w", "r", **attributes), node("Add", "x r", "y")]
    found = composed(make_model(nodes, {"x": [4, 4]}, {"w": W}))
    assert places(found) == [("random", "at r", op)]
    alone = composed(
        make_model(
            [node("Dropout", "w ratio on", "r"), node("Add", "x r", "y")],
            {"x": [4, 4]},
            {"w": W, "ratio": np.array(0.5), "on": np.array(True)},
        )
    )
    assert places(alone) == [("random", "at r", "Dropout")]


def test_integer_inputs_are_held_and_embeddings_are_where_the_bound_starts() -> None:
    nodes = [
        node("Gather", "table ids", "e"),
        node("Gather", "places order", "p"),
        node("Add", "e p", "h"),
        node("Cast", "mask", "m", to=TensorProto.DOUBLE),
        node("Add", "h m", "k"),
        node("MatMul", "k w", "y"),
    ]
    weights = {
        "table": RNG.standard_normal((9, 4)),
        "places": RNG.standard_normal((3, 4)),
        "w": W,
        "order": np.arange(3),
    }
    inputs = {"ids": [3], "mask": [3, 1]}
    kinds = {"ids": "int64", "mask": "int64"}
    model = make_model(nodes, inputs, weights, kinds=kinds)
    found = composed(model, "l2", {"y": norms_of(W)})
    assert not found.gaps and found.bound.upper == pytest.approx(np.linalg.norm(W, 2), rel=1e-9)
    assert found.assumptions == (
        "the integer inputs ids, mask are held fixed",
        "the bound starts at the output of the embedding at e",
    )
    scaled = make_model([*nodes[:4], node("Mul", "h m", "y")], inputs, weights, kinds=kinds)
    assert places(composed(scaled)) == [("unknown-constant", "at y", "Mul")]
    both = make_model([*nodes[:3], node("Add", "h x", "y")], inputs | {"x": [3, 4]}, weights, kinds=kinds)
    assert composed(both, "l2").bound.upper == pytest.approx(2**0.5), "disjoint: the embedding and x"
    nothing = composed(make_model([node("Add", "ids ids")], {"ids": [3]}, kinds=kinds))
    assert not nothing.bound.bounded and [gap.code for gap in nothing.gaps] == ["no-real-input"]


def branch(name: str, nodes: list[onnx.NodeProto], output: str = "o") -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=output)])


def test_an_if_takes_the_larger_branch_and_sees_outer_values() -> None:
    then = branch("then", [node("MatMul", "x w", "o")])
    other = branch("else", [node("Neg", "x", "o")])
    deciding = {"flag": np.array(True), "no": np.array(False)}
    for condition, expected in (("flag", np.linalg.norm(W, 2)), ("no", 1.0), ("wide", np.linalg.norm(W, 2))):
        size_of = [
            node("Shape", "x", "s"),
            node("ReduceMax", "s", "b", keepdims=0),
            node("Cast", "b", "wide", to=TensorProto.BOOL),
        ]
        chosen = node("If", condition, "i", then_branch=then, else_branch=other)
        model = make_model([*size_of, chosen, node("Neg", "i")], {"x": [4, 4]}, {"w": W} | deciding)
        graph = read(model)
        inner = graph.graph.node("at i").attributes["then_branch"].as_graph().outputs[0]
        from graphs import fold

        found = lipschitz.compose(graph, "l2", {inner: at_most(norms_of(W)["l2"], "given")}, {}, (), fold)
        assert not found.gaps and found.bound.upper == pytest.approx(expected, rel=1e-9), condition


def test_control_flow_that_depends_on_data_is_a_gap() -> None:
    body = branch("then", [node("Neg", "x", "o")])
    nodes = [
        node("ReduceMax", "x", "m", keepdims=0),
        node("Greater", "m zero", "c"),
        node("If", "c", "y", then_branch=body, else_branch=branch("else", [node("Abs", "x", "o")])),
    ]
    found = composed(make_model(nodes, {"x": [4]}, {"zero": np.array(0.0)}))
    assert places(found) == [("control-flow", "at y", "If")]
    loop = helper.make_graph(
        [node("Identity", "go", "go_on"), node("Mul", "x x", "o")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("o", TensorProto.DOUBLE, [4]),
        ],
    )
    captured = make_model(
        [node("Loop", "trips yes", "s", body=loop), node("Add", "s x")],
        {"x": [4]},
        {"trips": np.array(3), "yes": np.array(True)},
    )
    assert places(composed(captured)) == [("product", "at s", "Loop")], (
        "its inputs are constant, its body's are not"
    )


def test_functions_sequences_and_odd_graphs_are_gaps() -> None:
    own = helper.make_function(
        "own", "Relu", ["a"], ["b"], [node("Exp", "a", "b")], [helper.make_opsetid("", 17)]
    )
    found = composed(make_model([node("Relu", "x", "y", "own")], {"x": [4]}, functions=[own]))
    assert places(found) == [("no-rule", "at y", "Relu")]
    packed = [node("SequenceConstruct", "x x", "s"), node("SequenceAt", "s zero", "y")]
    assert [gap.op for gap in composed(make_model(packed, {"x": [4]}, {"zero": np.array(0)})).gaps] == [
        "SequenceConstruct",
        "SequenceAt",
    ]
    unnamed = helper.make_node("Exp", ["x"], ["y"])
    assert places(composed(make_model([unnamed], {"x": [4]}))) == [("needs-range", "y", "Exp")]
    cycle = ir.from_proto(make_model([node("Relu", "x", "a"), node("Add", "a x", "y")], {"x": [4]}))
    cycle.graph.node("at a").replace_input_with(0, cycle.graph.outputs[0])
    looped = lipschitz.compose(cycle, "l2", {}, {})
    assert not looped.bound.bounded and [gap.code for gap in looped.gaps] == ["malformed"]


def test_an_unmeasured_or_infinite_layer_is_a_gap() -> None:
    model = make_model([node("MatMul", "x w", "y")], {"x": [1, 4]}, {"w": W})
    assert places(composed(model)) == [("unmeasured-weight", "at y", "MatMul")]
    infinite = composed(model, "l2", {"y": dict.fromkeys(NORMS, np.inf)})
    assert places(infinite) == [("bad-constant", "at y", "MatMul")]
    both = make_model([node("MatMul", "x z", "y")], {"x": [4, 4], "z": [4, 4]})
    assert places(composed(both)) == [("product", "at y", "MatMul")]


def shortcut(upper: float, grade: Grade = Grade.PROVED, source: str = "x", output: str = "b"):
    return lambda values: [
        Shortcut(values[output], values[source], at_most(upper, "folded", grade), "both layers")
    ]


def test_a_shortcut_is_taken_where_it_is_less() -> None:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a v", "b"), node("Relu", "b", "y")]
    model = make_model(nodes, {"x": [1, 4]}, {"w": W, "v": np.linalg.inv(W)})
    norms = {"a": norms_of(W), "b": norms_of(np.linalg.inv(W))}
    plain = composed(model, "l2", norms)
    short = composed(model, "l2", norms, shortcut(1.5))
    assert plain.bound.upper > 2 and short.bound.upper == 1.5
    assert short.contributions == (("both layers", 1.5),) and len(plain.contributions) == 2
    assert composed(model, "l2", norms, shortcut(1e9)).bound.upper == plain.bound.upper
    estimate = composed(model, "l2", norms, shortcut(1.5, Grade.ESTIMATED))
    assert estimate.bound == plain.bound, "trust is not traded for tightness"


def test_a_shortcut_passes_a_gap_but_not_the_one_before_it() -> None:
    nodes = [node("Exp", "x", "a"), node("Log", "a", "b"), node("Relu", "b", "y")]
    found = composed(make_model(nodes, {"x": [4]}), shortcuts=shortcut(1.0))
    assert not found.gaps and found.bound.upper == 1.0
    behind = [node("Tan", "x", "t"), node("Exp", "t", "a"), node("Log", "a", "b"), node("Relu", "b", "y")]
    found = composed(make_model(behind, {"x": [4]}), shortcuts=shortcut(1.0, source="t"))
    assert places(found) == [("needs-range", "at t", "Tan")]
    also = [*nodes[:2], node("Add", "a b", "y")]
    found = composed(make_model(also, {"x": [4]}), shortcuts=shortcut(1.0))
    assert places(found) == [("needs-range", "at a", "Exp")], "used beside the shortcut too"


HALF, ROOT2, CUBE, K, ONE = 0.5, float(np.sqrt(2)), 0.044715, float(np.sqrt(2 / np.pi)), 1.0
SCALARS = {
    "half": HALF,
    "root2": ROOT2,
    "cube": CUBE,
    "k": K,
    "one": ONE,
    "three": 3.0,
    "six": 6.0,
    "nil": 0.0,
    "two": 2.0,
    "sixth": 1 / 6,
    "k17": 1.702,
    "slope": 0.2,
    "eps": 1e-2,
}
GELU = [node("Div", "x root2", "a"), node("Erf", "a", "b"), node("Add", "b one", "c")]
TANH = [
    node("Pow", "x three", "a"),
    node("Mul", "cube a", "b"),
    node("Add", "x b", "c"),
    node("Mul", "c k", "d"),
    node("Tanh", "d", "e"),
    node("Add", "one e", "f"),
]
WRITTEN_OUT = {
    "silu": ([node("Sigmoid", "x", "a"), node("Mul", "x a", "y")], 1.0998393, 0.99),
    "quick gelu": (
        [node("Mul", "x k17", "a"), node("Sigmoid", "a", "b"), node("Mul", "x b", "y")],
        1.0998393,
        0.99,
    ),
    "hardswish": ([node("HardSigmoid", "x", "a", alpha=1 / 6), node("Mul", "a x", "y")], 1.5, 0.99),
    "relu6 first": (
        [
            node("Add", "x three", "a"),
            node("Clip", "a nil six", "b"),
            node("Mul", "x b", "c"),
            node("Div", "c six", "y"),
        ],
        1.5,
        0.99,
    ),
    "relu6 gate": (
        [
            node("Add", "x three", "a"),
            node("Clip", "a nil six", "b"),
            node("Mul", "b sixth", "c"),
            node("Mul", "c x", "y"),
        ],
        1.5,
        0.99,
    ),
    "gelu, half last": ([*GELU, node("Mul", "x c", "d"), node("Mul", "d half", "y")], 1.1289042, 0.99),
    "gelu, half first": ([*GELU, node("Mul", "half x", "d"), node("Mul", "d c", "y")], 1.1289042, 0.99),
    "gelu, half inside": ([*GELU, node("Mul", "half c", "d"), node("Mul", "d x", "y")], 1.1289042, 0.99),
    "tanh gelu": ([*TANH, node("Mul", "half x", "g"), node("Mul", "g f", "y")], 1.1290032, 0.99),
    "tanh gelu, products": (
        [node("Mul", "x x", "q"), node("Mul", "x q", "a"), *TANH[1:], node("Mul", "half x", "g"), node("Mul", "g f", "y")],
        1.1290032, 0.99,
    ),
    "mish": ([node("Softplus", "x", "a"), node("Tanh", "a", "b"), node("Mul", "x b", "y")], 1.0884983, 0.99),
    "leaky relu": ([node("Mul", "slope x", "a"), node("Max", "a x", "y")], 1.0, 0.99),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_an_activation_written_out_has_its_own_slope(name: str) -> None:
    nodes, slope, least = WRITTEN_OUT[name]
    lacking = name in ("hardswish", "mish") or "gelu, half" in name  # what onnxruntime has in float32 only
    scalars = {k: np.array(v) for k, v in SCALARS.items()}
    model = make_model(nodes, {"x": [1201]}, scalars, dtype="float32" if lacking else "float64")
    function, n = function_of(model)
    x = np.linspace(-6, 6, n)
    steepest = np.abs(np.diff(function(x)) / np.diff(x)).max()
    rounding = 2e-4 if lacking else DIFFERENCES
    for norm in NORMS:
        found = composed(model, norm)
        assert not found.gaps and found.bound.upper == pytest.approx(slope, rel=1e-6)
        assert least * found.bound.upper <= steepest <= found.bound.upper * (1 + rounding)


@pytest.mark.parametrize(
    ("nodes", "code"),
    [
        ([node("Sigmoid", "z", "a"), node("Mul", "x a")], "product"),
        ([node("Tanh", "x", "a"), node("Mul", "x a")], "product"),
        ([node("Neg", "x", "n"), node("Sigmoid", "n", "a"), node("Mul", "x a")], "product"),
        ([node("Erf", "x", "b"), node("Add", "b two", "c"), node("Mul", "x c")], "product"),
        ([*TANH[:1], node("Mul", "half a", "b"), *TANH[2:], node("Mul", "x f")], "needs-range"),
        ([node("Mul", "x x", "q"), node("Mul", "q q", "a"), *TANH[1:], node("Mul", "x f")], "product"),
        ([node("Mul", "x z", "q"), node("Mul", "x q", "a"), *TANH[1:], node("Mul", "x f")], "product"),
        ([node("Add", "x three", "a"), node("Clip", "a nil", "b"), node("Mul", "x b")], "product"),
        ([node("Add", "x row", "a"), node("Clip", "a nil six", "b"), node("Mul", "x b")], "product"),
    ],
)
def test_what_only_looks_like_an_activation_is_a_product(nodes: list[onnx.NodeProto], code: str) -> None:
    weights = {k: np.array(v) for k, v in SCALARS.items()} | {"row": np.arange(4.0)}
    found = composed(make_model(nodes, {"x": [4], "z": [4]}, weights))
    assert not found.bound.bounded and code in {gap.code for gap in found.gaps}


def layer_norm(square: str, divide: str, twice: bool, centred: bool = True) -> list[onnx.NodeProto]:
    top, below = ("d2", "d") if twice else ("d", "d")
    nodes = [node("ReduceMean", "x", "m", axes=[-1]), node("Sub", "x m", "d"), node("Sub", "x m", "d2")]
    if not centred:
        nodes, top, below = [], "x", "x"
    nodes.append(
        node("Pow", f"{below} two", "q") if square == "Pow" else node("Mul", f"{below} {below}", "q")
    )
    nodes += [node("ReduceMean", "q", "v", axes=[-1]), node("Add", "v eps", "e"), node("Sqrt", "e", "s")]
    if divide == "Div":
        return [*nodes, node("Div", f"{top} s")]
    inverse = node("Reciprocal", "s", "r") if divide == "Reciprocal" else node("Div", "one s", "r")
    return [*nodes, inverse, node("Mul", f"{top} r")]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("divide", ["Div", "Reciprocal", "One"])
@pytest.mark.parametrize(("square", "twice"), [("Pow", False), ("Mul", False), ("Pow", True)])
def test_a_normalization_written_out(square: str, divide: str, twice: bool, centred: bool) -> None:
    nodes = layer_norm(square, divide, twice, centred)
    model = make_model(nodes, {"x": [2, 5]}, {k: np.array(v) for k, v in SCALARS.items()})
    function, n = function_of(model)
    points = [np.zeros(n) + 1e-3 * centred, RNG.standard_normal(n) * 0.1, RNG.standard_normal(n)]
    for norm in NORMS:
        found = composed(model, norm)
        truth = max(gain(jacobian(function, x, 1e-6), norm) for x in points)
        assert not found.gaps and truth <= found.bound.upper * (1 + DIFFERENCES)
        assert norm != "l2" or found.bound.upper <= truth * 1.001


@pytest.mark.parametrize(
    "change", ["other axes", "no epsilon", "negative epsilon", "other value", "keepdims"]
)
def test_what_only_looks_like_a_normalization(change: str) -> None:
    nodes = layer_norm("Pow", "Div", False)
    by_name = {n.output[0]: n for n in nodes}
    if change == "other axes":  # a mean over other axes than the variance's: only u/√(mean(u²)+ε) remains
        by_name["m"].attribute[0].ints[0] = 0
    elif change == "no epsilon":
        by_name["e"].input[1] = "nil"
    elif change == "negative epsilon":
        by_name["e"].input[1] = "minus"
    elif change == "other value":
        by_name["q"].input[0] = "z"
    else:
        by_name["v"].attribute.append(helper.make_attribute("keepdims", 0))
    weights = {k: np.array(v) for k, v in SCALARS.items()} | {"minus": np.array(-1.0)}
    model = make_model(
        nodes, {"x": [5, 5], "z": [5, 5]} if change == "other value" else {"x": [5, 5]}, weights
    )
    found = composed(model)
    if change == "other axes":
        function, n = function_of(model)
        truth = max(
            gain(jacobian(function, RNG.standard_normal(n) * s, 1e-6), "l2") for s in (1e-4, 0.1, 1.0)
        )
        assert truth <= found.bound.upper * (1 + DIFFERENCES) and found.bound.bounded
    else:
        assert not found.bound.bounded and found.gaps


def test_centring_is_a_projection() -> None:
    nodes = [node("ReduceMean", "x", "m", axes=[1]), node("Sub", "x m", "y")]
    model = make_model(nodes, {"x": [2, 5]})
    for norm, expected in (("l2", 1.0), ("l1", 1.6), ("linf", 1.6)):
        assert composed(model, norm).bound.upper == pytest.approx(expected, rel=1e-12)


def test_old_declared_inputs_and_integer_weights_are_constants() -> None:
    """Before IR version 4 initializers are listed among the inputs too: they do not vary."""
    model = make_model([node("MatMul", "x w", "y")], {"x": [1, 4], "w": [4, 4]}, {"w": W}, opset=8)
    found = composed(model, "l2", {"y": norms_of(W)})
    assert found.assumptions == () and found.bound.upper == pytest.approx(np.linalg.norm(W, 2), rel=1e-9)
    assert numpy_helper.to_array(model.graph.initializer[0]).shape == (4, 4)


def test_the_constants_of_tanh_gelu_may_be_off_by_a_millionth() -> None:
    x = np.linspace(-12, 12, 400_001)

    def steepest(k: float, m: float) -> float:
        inner = np.tanh(k * (x + m * x**3))
        return float(np.abs(0.5 * (1 + inner) + 0.5 * x * (1 - inner**2) * k * (1 + 3 * m * x**2)).max())

    assert steepest(K, CUBE) <= GELU_TANH
    for k in (K - 1e-6, K + 1e-6):
        for m in (CUBE - 1e-6, CUBE + 1e-6):
            assert abs(steepest(k, m) - steepest(K, CUBE)) < 5e-6
    off = [node("Mul", "off a", "b") if made.output[0] == "b" else made for made in TANH]
    model = make_model([*off, node("Mul", "x f")], {"x": [4]}, SCALARS | {"off": 0.0448})
    assert not composed(model).bound.bounded
