"""Attention in its other forms: rotary embeddings, grouped queries, cross-attention, tokens on a box that is not around
zero. Each bound is above every Jacobian that a search finds, and not by ranges alone."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import Function, composed, fold, function_of, jacobian, make_model, read
from onnx import helper

import snaudit
from snaudit import attention as attention_of
from snaudit import rotations, sigma, tokens
from snaudit.bound import Grade
from snaudit.linear import Dense
from snaudit.ranges import enclosing

N, D, DH = 3, 4, 4
"""Tokens, their width, and that of a head."""


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    given = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, given, outputs.split(), name=f"at {outputs.split()[0]}", **attributes)


def climbed(function: Function, low: np.ndarray, high: np.ndarray, rng: np.random.Generator, rounds: int = 25) -> float:
    """The largest Jacobian norm found inside the box: from corners, the middle and random points, moves that help."""
    step = 1e-5 * float((high - low).max())
    low, high = low + step, high - step

    def at(x: np.ndarray) -> float:
        return float(np.linalg.norm(jacobian(function, x, step), 2))

    starts = [np.where(rng.random(low.size) < 0.5, low, high), rng.uniform(low, high), 0.5 * low + 0.5 * high]
    best = 0.0
    for x in starts:
        value, reach = at(x), 1.0
        for _ in range(rounds):
            move = rng.standard_normal(x.size) * (rng.random(x.size) < rng.choice([0.1, 0.5, 1.0])) * reach
            y = np.clip(x + move * (high - low), low, high)
            new = at(y)
            x, value, reach = (y, new, min(1.5 * reach, 2.0)) if new > value else (x, value, max(0.9 * reach, 1e-3))
        best = max(best, value)
    return best


def tables(rng: np.random.Generator, interleaved: bool) -> dict[str, np.ndarray]:
    angles = np.arange(N)[:, None] / 10.0 ** np.arange(DH // 2)[None, :] + rng.uniform(0, 1)
    wide = np.repeat(angles, 2, axis=1) if interleaved else np.concatenate([angles, angles], axis=1)
    ends = {"zero": [0], "one": [1], "half": [DH // 2], "end": [DH], "last": [-1], "two": [2], "shape": [1, 2, N, DH]}
    return {"cos": np.cos(wide)[None, None], "sin": np.sin(wide)[None, None]} | {k: np.array(v) for k, v in ends.items()}


def rotated(name: str, kind: str) -> list[onnx.NodeProto]:
    """`name`r from `name`: by halves, or by pairs (GPT-J)."""
    a, b = f"{name}a", f"{name}b"
    if kind == "interleaved":
        parts = [node("Slice", f"{name} zero end last two", a), node("Slice", f"{name} one end last two", b),
                 node("Neg", b, f"{b}n"), node("Unsqueeze", f"{b}n last", f"{b}u"), node("Unsqueeze", f"{a} last", f"{a}u"),
                 node("Concat", f"{b}u {a}u", f"{name}pair", axis=-1), node("Reshape", f"{name}pair shape", f"{name}h")]  # fmt: skip
    else:
        parts = [node("Slice", f"{name} zero half last", a), node("Slice", f"{name} half end last", b),
                 node("Neg", b, f"{b}n"), node("Concat", f"{b}n {a}", f"{name}h", axis=-1)]  # fmt: skip
    return [*parts, node("Mul", f"{name} cos", f"{name}c"), node("Mul", f"sin {name}h", f"{name}s"),
            node("Add", f"{name}c {name}s", f"{name}r")]  # fmt: skip


def projected(name: str, source: str) -> list[onnx.NodeProto]:
    return [node("MatMul", f"{source} W{name}", f"{name}1"), node("Add", f"{name}1 b{name}", f"{name}2"),
            node("Reshape", f"{name}2 split{name}", f"{name}3"), node("Transpose", f"{name}3", name, perm=[0, 2, 1, 3])]  # fmt: skip


def attention(kind: str, query: str, memory: str, rng: np.random.Generator, scale: float) -> tuple[list, dict]:
    """(nodes from two values to y, constants): two heads of queries, two or one of keys and values."""
    grouped = kind == "grouped"
    heads = {"q": 2, "k": 1 if grouped else 2, "v": 1 if grouped else 2}
    constants = {f"W{p}": rng.standard_normal((D, h * DH)) * scale for p, h in heads.items()}
    constants |= {f"b{p}": rng.standard_normal(h * DH) * scale for p, h in heads.items()}
    constants |= {f"split{p}": np.array([1, N, h, DH]) for p, h in heads.items()}
    constants |= tables(rng, kind == "interleaved") | {"root": np.array(2.0)}
    constants |= {"wide": np.array([1, 1, 2, N, DH]), "pair": np.array([1, 2, N, DH]), "axis2": np.array([2])}
    nodes = [*projected("q", query), *projected("k", memory), *projected("v", memory if kind != "apart" else "z")]
    q, k, v = "qkv"
    if kind in ("halves", "interleaved"):
        nodes += [*rotated("q", kind), *rotated("k", kind)]
        q, k = "qr", "kr"
    if grouped:
        for name in "kv":
            nodes += [node("Unsqueeze", f"{name} axis2", f"{name}u"), node("Expand", f"{name}u wide", f"{name}e"),
                      node("Reshape", f"{name}e pair", f"{name}g")]  # fmt: skip
        k, v = "kg", "vg"
    nodes += [node("Transpose", k, "kt", perm=[0, 1, 3, 2]), node("MatMul", f"{q} kt", "s0"), node("Div", "s0 root", "s"),
              node("Softmax", "s", "w", axis=-1), node("MatMul", f"w {v}", "y")]  # fmt: skip
    used = {i for n in nodes for i in n.input}
    return nodes, {k: v for k, v in constants.items() if k in used}


FORMS = {"plain": ("x", "x"), "halves": ("x", "x"), "interleaved": ("x", "x"), "grouped": ("x", "x"), "cross": ("x", "z"),
         "apart": ("x", "x")}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", FORMS)
def test_no_jacobian_on_a_box_is_above(kind: str, seed: int) -> None:
    """Boxes around zero and off it, small and large; sharp and flat softmaxes."""
    rng = np.random.default_rng(seed)
    nodes, constants = attention(kind, *FORMS[kind], rng, 10.0 ** rng.uniform(-0.5, 0.4))
    inputs = {name: (1, N, D) for name in ("x", "z") if any(name in n.input for n in nodes)}
    middle = np.repeat(rng.standard_normal((1, 1, D)), N, axis=1) * (seed % 2)
    radius = 10.0 ** rng.uniform(-1.5, 0.5)
    box = {name: (middle - radius, middle + radius) for name in inputs}
    model = make_model(nodes, inputs, constants, opset=18)
    found = composed(model, box=box)
    assert not found.gaps and "attention" in [name for name, _ in found.contributions]
    low, high = (np.concatenate([box[name][i].ravel() for name in inputs]) for i in (0, 1))
    seen = climbed(function_of(model)[0], low, high, rng)
    assert seen <= found.bound.upper * (1 + 1e-5)
    assert found.bound.upper <= 60 * seen
    if radius < 0.1 and kind == "plain":
        assert found.bound.upper <= 2.0 * seen  # all keys count alike: no √n


@pytest.mark.parametrize("kind", FORMS)
def test_after_norms_there_is_a_bound_everywhere(kind: str) -> None:
    rng = np.random.default_rng(7)
    nodes, constants = attention(kind, "u", {"x": "u", "z": "t"}[FORMS[kind][1]], rng, 0.6)
    nodes = [n for n in nodes]
    for n in nodes:
        n.input[:] = ["t" if name == "z" else name for name in n.input]
    norms = [node("LayerNormalization", "x gamma beta", "u", epsilon=0.05)]
    if kind in ("cross", "apart"):
        norms.append(node("LayerNormalization", "z gamma", "t", epsilon=0.05))
    inputs = {name: (1, N, D) for name in ("x", "z")[: len(norms)]}
    constants |= {"gamma": rng.uniform(0.5, 1.5, D), "beta": rng.standard_normal(D)}
    model = make_model(norms + nodes, inputs, constants, opset=18)
    found = composed(model)
    assert not found.gaps and "attention" in [name for name, _ in found.contributions]
    count = N * D * len(inputs)
    seen = max(climbed(function_of(model)[0], *(np.full(count, s * r) for s in (-1, 1)), rng, 15) for r in (0.2, 2.0))
    assert seen <= found.bound.upper * (1 + 1e-5)
    assert found.bound.upper <= 400 * seen


def test_attention_that_looks_at_one_token_of_the_memory_attains_its_bound() -> None:
    """Cross-attention with keys that do not matter: √n times the norm of the values' matrix, of the memory alone."""
    rng = np.random.default_rng(1)
    nodes, constants = attention("cross", "x", "z", rng, 1.0)
    constants["Wk"][:] = 0.0
    constants["bk"][:] = 0.0
    mask = np.where(np.arange(N) == 0, 0.0, -1e9) * np.ones((N, 1))
    nodes = [*nodes[:-2], node("Add", "s mask", "sm"), node("Softmax", "sm", "w", axis=-1), nodes[-1]]
    model = make_model(nodes, {"x": (1, N, D), "z": (1, N, D)}, constants | {"mask": mask}, opset=18)
    found = composed(model, box={"x": (-1.0, 1.0), "z": (-1.0, 1.0)}).bound.upper
    per_head = [np.linalg.norm(constants["Wv"][:, h * DH : (h + 1) * DH], 2) for h in (0, 1)]
    assert found == pytest.approx(np.sqrt(N) * np.linalg.norm(per_head), rel=1e-6)


def combination_of(nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: tuple[int, ...]) -> Any:
    graph = read(make_model(nodes, {"x": shape}, constants, opset=18))
    return rotations.combination(graph.graph.outputs[0], tokens._MOVES, fold, tokens._numbers)


@pytest.mark.parametrize("kind", ["halves", "interleaved", "partial", "any"])
def test_the_norm_of_a_rotation_is_that_of_its_matrix(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    constants = tables(rng, kind == "interleaved")
    nodes = rotated("x", kind)
    if kind == "partial":
        nodes = [node("Split", "w", "x p", axis=-1, num_outputs=2), *nodes, node("Concat", "xr p", "y", axis=-1)]
        for n in nodes:
            n.input[:] = ["x" if name == "w" else "half of x" if name == "x" else name for name in n.input]
            n.output[:] = ["half of x" if name == "x" else name for name in n.output]
    if kind == "any":
        constants["cos"] = rng.standard_normal((1, 1, N, DH))
    nodes[-1].output[0] = "y"
    shape = (1, 2, N, 2 * DH) if kind == "partial" else (1, 2, N, DH)
    used = {i for n in nodes for i in n.input}
    constants = {k: v for k, v in constants.items() if k in used}
    one = combination_of(nodes, constants, shape)
    matrix = np.zeros((one.numbers[0].size,) * 2)
    for numbers, factors in zip(one.numbers, one.factors, strict=True):
        np.add.at(matrix, (np.arange(numbers.size), numbers.ravel()), factors.ravel())
    function, count = function_of(make_model(nodes, {"x": shape}, constants, opset=18))
    x = rng.standard_normal(count)
    np.testing.assert_allclose(matrix @ x, function(x), rtol=1e-12)
    truth = np.linalg.norm(matrix, 2)
    found = rotations.norm_up(one)
    assert truth <= found * (1 + 1e-14)
    assert found <= truth * (1.5 if kind == "any" else 1 + 1e-12)
    monkeypatch.setattr(rotations, "_PAIRS", 1)
    assert truth <= rotations.norm_up(one) * (1 + 1e-14)


def test_sums_of_sums_do_not_grow_without_end() -> None:
    """Of twelve doublings each entry would be 4096 terms."""
    nodes = [node("Add", f"y{k} y{k}", f"y{k + 1}") for k in range(12)]
    nodes[0].input[:], nodes[-1].output[:] = ["x", "x"], ["y"]
    assert len(combination_of(nodes, {}, (1, N, DH)).numbers) <= 4


@pytest.mark.parametrize("how", ["Concat", "Slice"])
def test_what_is_read_twice_is_looked_at_once(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty-two values that are read twice each have 2²² ways back; and what a walk may write has an end."""
    nodes, last = [], "x"
    for k in range(11):
        if how == "Concat":
            nodes += [node("Neg", last, f"n{k}"), node("Sub", f"{last} n{k}", f"y{k}")]
        else:
            nodes += [node("Split", last, f"a{k} b{k}", axis=-1, num_outputs=2), node("Concat", f"a{k} b{k}", f"y{k}", axis=-1)]
        last = f"y{k}"
    nodes[-1].output[0] = "y"
    asked = []

    def counting(value: ir.Value) -> np.ndarray | None:
        asked.append(value)
        return tokens._numbers(value)

    graph = read(make_model(nodes, {"x": (1, N, DH)}, {}, opset=18))
    rotations.combination(graph.graph.outputs[0], tokens._MOVES, fold, counting)
    assert len(asked) < 100
    monkeypatch.setattr(rotations, "_ENTRIES", 0)
    assert rotations.combination(graph.graph.outputs[0], tokens._MOVES, fold, counting).root is not graph.graph.inputs[0]


def test_what_is_no_turn_of_whole_slices_is_no_rotation() -> None:
    """Half of a turned slice, one turned across tokens, and one that is turned and then shifted: other bounds hold."""
    rng = np.random.default_rng(9)
    nodes, constants = attention("halves", "x", "x", rng, 0.7)
    constants |= {"back": np.array([2, 0, 1]), "shift": rng.standard_normal((1, 1, N, DH))}
    changed = {
        "half of it": [("kt", [node("Slice", "kr zero half last", "kj"), node("Slice", "qr zero half last", "qj"),
                               node("Transpose", "kj", "kt", perm=[0, 1, 3, 2])]), ("s0", [node("MatMul", "qj kt", "s0")])],
        "across tokens": [("qs", [node("Gather", "qh back", "qg", axis=2), node("Mul", "sin qg", "qs")])],
        "shifted": [("s0", [node("Add", "qr shift", "qm"), node("MatMul", "qm kt", "s0")])],
    }  # fmt: skip
    for why, edits in changed.items():
        made = list(nodes)
        for target, instead in edits:
            made = [new for one in made for new in (instead if one.output[0] == target else (one,))]
        used = {i for n in made for i in n.input}
        model = make_model(made, {"x": (1, N, D)}, {k: v for k, v in constants.items() if k in used}, opset=18)
        ends = [tokens.trace(v, fold) for v in read(model).graph.node("at s0").inputs]
        assert why == "half of it" or ends[0].turned is None, why
        found = composed(model, box={"x": (-1.0, 1.0)}).bound.upper
        seen = climbed(function_of(model)[0], np.full(N * D, -1.0), np.full(N * D, 1.0), rng, 15)
        assert seen <= found * (1 + 1e-5), why


@pytest.mark.parametrize("values", ["z", "t"])
def test_the_queries_part_is_attained(values: str) -> None:
    """One query between two opposite keys: o = tanh(s·x), whose slope at zero is s·‖z‖²."""
    nodes = [node("Transpose", "z", "kt", perm=[0, 1, 3, 2]), node("MatMul", "x kt", "s0"), node("Mul", "s0 scale", "s"),
             node("Softmax", "s", "w", axis=-1), node("MatMul", f"w {values}", "y")]  # fmt: skip
    shapes = {"x": (1, 1, 1, 1), "z": (1, 1, 2, 1), "t": (1, 1, 2, 1)}
    graph = read(make_model(nodes, shapes, {"scale": np.array(0.7)}, opset=18))
    box = {"x": enclosing(-0.1, 0.1), "z": enclosing(-2.0, 2.0), "t": enclosing(-2.0, 2.0)}
    finder = attention_of.Finder(
        fold, lambda m: sigma.measure(Dense(m)), lambda v: box[v.name], lambda v: v.name == "scale", 18
    )
    (found,) = finder.at(graph.graph.outputs[0].producer())
    parts = {source.name: bound.upper for (source,), bound in found.parts}
    assert set(parts) == {"x", "z", values}
    assert 0.7 * 4.0 <= parts["x"] <= 0.7 * 4.0 * (1 + 1e-9)


def test_no_key_has_more_weight_than_one_against_all_others() -> None:
    for columns, logit in ((2, 0.1), (5, 1.0), (100, 3.0), (7, 800.0)):
        heads = SimpleNamespace(masked=False)
        most = attention_of._most(heads, SimpleNamespace(columns=columns), logit)
        truth = 1.0 / (1.0 + (columns - 1) * math.exp(-2.0 * logit))
        assert truth <= most <= truth * (1 + 1e-11)
        assert attention_of._most(SimpleNamespace(masked=True), SimpleNamespace(columns=columns), logit) == 1.0


def llama_of(torch: Any) -> Any:
    """A pre-norm block: RMSNorm, four heads of queries over two of keys and values, rotated, causal; a SwiGLU MLP."""
    nn, functional = torch.nn, torch.nn.functional
    width, heads, groups, size, length = 8, 4, 2, 2, 4

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(width) + 0.5)

        def forward(self, x: Any) -> Any:
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-2))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Norm(), Norm()
            shapes = {"q": (width, width), "k": (width, groups * size), "v": (width, groups * size), "o": (width, width),
                      "gate": (width, 12), "up": (width, 12), "down": (12, width)}  # fmt: skip
            for name, shape in shapes.items():
                setattr(self, name, nn.Linear(*shape, bias=False))
            angle = torch.outer(torch.arange(length).float(), torch.ones(size // 2))
            self.register_buffer("cos", torch.cat([angle, angle], -1).cos())
            self.register_buffer("sin", torch.cat([angle, angle], -1).sin())

        def turned(self, x: Any) -> Any:
            half = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)
            return x * self.cos + half * self.sin

        def forward(self, x: Any) -> Any:
            u = self.first(x)
            q, k, v = (p(u).view(1, length, -1, size).transpose(1, 2) for p in (self.q, self.k, self.v))
            q, k = self.turned(q), self.turned(k)
            k, v = (z[:, :, None].expand(1, groups, 2, length, size).reshape(1, heads, length, size) for z in (k, v))
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.o(y.transpose(1, 2).reshape(1, length, width))
            u = self.second(x)
            return x + self.down(functional.silu(self.gate(u)) * self.up(u))

    torch.manual_seed(0)
    return Block().eval(), torch.zeros(1, length, width)


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.filterwarnings("ignore")
def test_a_block_with_rotations_groups_and_gates_from_torch_is_bounded_end_to_end(opset: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    block, example = llama_of(torch)
    path = tmp_path / "block.onnx"
    torch.onnx.export(block, (example,), path, opset_version=opset, dynamo=True, verbose=False, external_data=False)
    report = snaudit.audit(path)
    names = [name for name, _ in report.network.contributions]
    assert not report.gaps and report.network.bound.grade is Grade.PROVED
    assert "attention" in names and "gate" in names
    block = block.double()
    best = 0.0
    for scale in (0.01, 0.1, 1.0):
        for seed in range(4):
            torch.manual_seed(seed)
            x = torch.randn(example.shape, dtype=torch.float64) * scale
            matrix = torch.autograd.functional.jacobian(block, x).reshape(example.numel(), -1)
            best = max(best, float(torch.linalg.matrix_norm(matrix, 2)))
    assert best <= report.network.bound.upper <= 500 * best


def attending(middle: list[onnx.NodeProto], end: str, inputs: dict[str, Any], **weights: np.ndarray) -> onnx.ModelProto:
    """Written-out attention of x over itself (or over z, where that is an input), `middle` between logits and softmax."""
    memory = "z" if "z" in inputs else "x"
    eyes = {"Wq": 0.1 * np.eye(2), "Wk": 0.1 * np.eye(2), "Wv": np.eye(2)}
    nodes = [node("MatMul", "x Wq", "q"), node("MatMul", f"{memory} Wk", "k"), node("MatMul", f"{memory} Wv", "v"),
             node("Transpose", "k", "kt", perm=[0, 2, 1]), node("MatMul", "q kt", "l"), *middle,
             node("Softmax", end, "p", axis=-1), node("MatMul", "p v", "y")]  # fmt: skip
    return make_model(nodes, inputs, eyes | weights)


MASKS = {
    "added": ([node("Add", "l M", "m")], {"M": np.random.default_rng(0).standard_normal((25, 2, 2))}),
    "put in": ([node("Where", "M l inf", "m")], {"M": np.broadcast_to(np.tril(np.ones((2, 2), bool)), (25, 2, 2)).copy(), "inf": np.array(-np.inf)}),
}  # fmt: skip


@pytest.mark.parametrize("case", MASKS)
def test_a_mask_that_copies_the_logits_is_counted(case: str) -> None:
    middle, weights = MASKS[case]
    model = attending(middle, "m", {"x": (1, 2, 2)}, **weights)
    bound = composed(model, box={"x": (-1.0, 1.0)}).bound
    function, count = function_of(model)
    assert climbed(function, -np.ones(count), np.ones(count), np.random.default_rng(1), 5) <= bound.upper
    plain = attending([node("Add", "l M", "m")], "m", {"x": (1, 2, 2)}, M=np.zeros((1, 2, 2)))
    assert composed(plain, box={"x": (-1.0, 1.0)}).bound.upper < 1.6  # one of the logits' own shape is still seen past


@pytest.mark.parametrize(("first", "second", "finite"), [("A", "B", False), ("?", "?", False), ("A", "A", True)])
def test_memories_of_another_number_of_examples_may_be_copied(first: str, second: str, finite: bool) -> None:
    """With one example of z for a hundred of x, each entry of z acts a hundred times."""
    model = attending([], "l", {"x": (first, 1, 2), "z": (second, 3, 2)})
    bound = composed(model, box={"x": (-0.1, 0.1), "z": (-0.1, 0.1)}).bound
    assert bound.known == finite and (not finite or bound.upper < 1.1)


def test_a_number_of_keys_that_count_is_a_mask() -> None:
    """nonpad_kv_seqlen = 1: one key has all the weight, and √8 is attained."""
    inputs = {"x": (1, 8, 4)}
    eyes = {"Wq": 0.1 * np.eye(4), "Wk": 0.1 * np.eye(4), "Wv": np.eye(4), "L": np.array([1])}
    nodes = [*(node("MatMul", f"x W{a}", a) for a in "qkv"),
             node("Attention", "q k v _ _ _ L", "y", q_num_heads=1, kv_num_heads=1)]  # fmt: skip
    bound = composed(make_model(nodes, inputs, eyes, opset=24), box={"x": (-0.01, 0.01)}).bound
    assert math.sqrt(8.0) <= bound.upper
