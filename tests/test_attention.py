"""Attention as exporters write it and as ops: above every Jacobian that a search finds, and not by ranges alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Function, composed, fold, function_of, jacobian, make_model, read, stated
from onnx import helper

import snaudit
from snaudit import attention, sigma
from snaudit.bound import Grade
from snaudit.enclosed import Enclosed
from snaudit.linear import Dense

NODES = dict[str, Any]


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    given = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, given, outputs.split(), name=f"at {outputs.split()[0]}", domain=domain, **attributes)


def weights_of(rng: np.random.Generator, n: int, d: int, h: int, scale: float) -> NODES:
    return {
        "Wqkv": rng.standard_normal((d, 3 * d)) * scale, "bqkv": rng.standard_normal(3 * d) * scale,
        "Wo": rng.standard_normal((d, d)), "gamma": rng.uniform(0.5, 1.5, d), "beta": rng.standard_normal(d) * 0.3,
        "five": np.array([1, n, 3, h, d // h]), "flat": np.array([1, n, d]), "root": np.array(np.sqrt(d // h)),
        "axis": np.array([0]), "causal": np.where(np.tril(np.ones((n, n))) > 0, 0.0, -np.inf),
        "bias": rng.standard_normal((h, n, n)), "two": np.array(2.0), "mean_axes": np.array([-1]),
        "epsilon": np.array(0.05),
    }  # fmt: skip


def core(mask: str | None = None, first: str = "u") -> list[onnx.NodeProto]:
    """One packed projection, heads by Reshape and Split, scaled after the product; to y of (1, heads, n, d/heads)."""
    nodes = [
        node("MatMul", f"{first} Wqkv", "m"), node("Add", "m bqkv", "p"), node("Reshape", "p five", "r"),
        node("Transpose", "r", "t", perm=[2, 0, 3, 1, 4]), node("Split", "t", "q3 k3 v3", axis=0, num_outputs=3),
        *(node("Squeeze", f"{name}3 axis", name) for name in "qkv"),
        node("Transpose", "k", "kt", perm=[0, 1, 3, 2]), node("MatMul", "q kt", "s0"), node("Div", "s0 root", "s1"),
        node("Add", f"s1 {mask}", "s2") if mask else node("Identity", "s1", "s2"),
        node("Softmax", "s2", "w", axis=-1), node("MatMul", "w v", "y"),
    ]  # fmt: skip
    return nodes


def after_norm(kind: str) -> list[onnx.NodeProto]:
    """u from x by a LayerNorm, an RMSNorm, or a LayerNorm written out."""
    if kind == "LayerNormalization":
        return [node(kind, "x gamma beta", "u", epsilon=0.05)]
    if kind == "RMSNormalization":
        return [node(kind, "x gamma", "u", epsilon=0.05)]
    return [
        node("ReduceMean", "x mean_axes", "mean"), node("Sub", "x mean", "c"), node("Pow", "c two", "c2"),
        node("ReduceMean", "c2 mean_axes", "var"), node("Add", "var epsilon", "ve"), node("Sqrt", "ve", "sd"),
        node("Div", "c sd", "core"), node("Mul", "core gamma", "g"), node("Add", "g beta", "u"),
    ]  # fmt: skip


def model_of(nodes: list[onnx.NodeProto], weights: NODES, shape: tuple[Any, ...], first: str = "x", **more: Any) -> Any:
    used = {name for one in nodes for name in one.input}
    return make_model(nodes, {first: shape}, {k: v for k, v in weights.items() if k in used}, **more)


def climbed(function: Function, start: np.ndarray, rng: np.random.Generator, limit: float | None, rounds: int) -> float:
    """The largest Jacobian norm found by moves that are kept where they help, in the box if there is one."""
    def at(x: np.ndarray) -> float:
        return float(np.linalg.norm(jacobian(function, x, 1e-5), 2))

    best, x, step = at(start), start, 1.0
    for _ in range(rounds):
        move = rng.standard_normal(len(x)) * (rng.random(len(x)) < rng.choice([0.1, 0.5, 1.0])) * step
        y = x + move * (limit or np.abs(x).max())
        y = y if limit is None else np.clip(y, -limit, limit)
        found = at(y)
        best, x, step = (found, y, min(step * 1.5, 2.0)) if found > best else (best, x, max(step * 0.9, 1e-3))
    return best


def taken(model: onnx.ModelProto, **settings: Any) -> float:
    """The upper end of a graph that ends in an attention, whose shortcut is the one that counts."""
    found = composed(model, **settings)
    assert not found.gaps and found.bound.grade is Grade.PROVED
    assert "attention" in [name for name, _ in found.contributions], found.contributions
    return found.bound.upper


@pytest.mark.parametrize("seed", range(48))
def test_no_jacobian_on_a_ball_of_tokens_is_above(seed: int) -> None:
    """Tokens in a box, whose corners are on the ball: sizes, heads, masks and sharpness by the seed."""
    rng = np.random.default_rng(seed)
    n, d, h = int(rng.integers(2, 6)), int(rng.choice([2, 4])), int(rng.choice([1, 2]))
    limit, scale = 10.0 ** rng.uniform(-1.0, 0.5), 10.0 ** rng.uniform(-0.7, 0.5)
    mask = [None, "causal", "bias"][seed % 3]
    model = model_of(core(mask), weights_of(rng, n, d, h, scale), (1, n, d), "u", opset=18)
    found = composed(model, box={"u": (np.array(-limit), np.array(limit))})
    function, count = function_of(model)
    starts = [np.sign(rng.standard_normal(count)) * limit, rng.uniform(-limit, limit, count), np.zeros(count)]
    seen = max(climbed(function, one, rng, limit, 25) for one in starts)
    assert seen <= found.bound.upper * (1 + 1e-5)
    alone = attention_alone(model, limit)
    assert seen <= alone * (1 + 1e-5)
    assert alone <= 30 * seen


def attention_alone(model: onnx.ModelProto, limit: float) -> float:
    """The attention's own bound on the box, without what ranges give otherwise."""
    graph = read(model)
    (source,) = graph.graph.inputs
    box = stated({"u": (np.array(-limit), np.array(limit))})["u"]
    finder = attention.Finder(
        fold, lambda m: sigma.measure(Dense(m)), lambda v: box, lambda v: v.producer() is None and v is not source, 18
    )
    (found,) = finder.at(graph.graph.outputs[0].producer())
    assert found.source is source and found.output is graph.graph.outputs[0]
    return found.bound.upper


@pytest.mark.parametrize("kind", ["LayerNormalization", "RMSNormalization", "written out"])
@pytest.mark.parametrize("seed", range(4))
def test_after_a_norm_there_is_a_bound_everywhere(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, d, h = 3, 4, 1 + seed % 2
    shape = (1, n, d) if seed < 3 else ("batch", n, d)
    weights = weights_of(rng, n, d, h, [0.2, 0.6, 1.5, 0.6][seed])
    if seed == 3:
        weights["five"][0] = -1
    model = model_of(after_norm(kind) + core("causal" if seed else None), weights, shape, opset=23)
    upper = taken(model)
    fixed = model_of(after_norm(kind) + core("causal" if seed else None), weights, (1, n, d), opset=23)
    function, count = function_of(fixed)
    starts = [np.zeros(count), rng.standard_normal(count) * 0.2, rng.standard_normal(count) * 2.0]
    seen = max(climbed(function, one + 1e-3 * rng.standard_normal(count), rng, None, 25) for one in starts)
    assert seen <= upper * (1 + 1e-5) and upper <= 400 * seen
    if seed == 3:
        assert upper == pytest.approx(taken(fixed), rel=1e-9)


def test_a_bound_that_is_attained() -> None:
    """All rows look at the first token only, whatever it is: √n times the norm of the values' matrix."""
    rng = np.random.default_rng(0)
    n, d = 4, 4
    weights = weights_of(rng, n, d, 1, 1.0)
    weights["Wqkv"][:, :d] = 0.0
    weights["bqkv"][:d] = 0.0
    weights["causal"] = np.where(np.arange(n) == 0, 0.0, -np.inf) * np.ones((n, 1))
    weights["causal"][np.isnan(weights["causal"])] = 0.0
    model = model_of(core("causal"), weights, (1, n, d), "u", opset=18)
    function, count = function_of(model)
    seen = float(np.linalg.norm(jacobian(function, rng.standard_normal(count), 1e-3), 2))
    assert seen * (1 - 1e-9) <= attention_alone(model, 1.0) <= seen * (1 + 1e-6)


def ops(kind: str, weights: NODES, n: int, d: int, h: int) -> list[onnx.NodeProto]:
    """The same attention as an op, from u."""
    if kind == "ms.Attention":
        return [node("Attention", "u Wqkv bqkv", "y", "com.microsoft", num_heads=h)]
    parts = [node("MatMul", "u Wqkv", "m"), node("Split", "m", "q k v", axis=2, num_outputs=3)]
    if kind == "ms.MultiHeadAttention":
        return [*parts, node("MultiHeadAttention", "q k v bqkv", "y", "com.microsoft", num_heads=h)]
    causal = int(kind.endswith("causal"))
    return [*parts, node("Attention", "q k v", "y", q_num_heads=h, kv_num_heads=h, is_causal=causal)]


@pytest.mark.parametrize("kind", ["Attention", "Attention causal", "ms.Attention", "ms.MultiHeadAttention"])
def test_ops_have_the_bound_of_what_they_stand_for(kind: str) -> None:
    rng = np.random.default_rng(3)
    n, d, h = 3, 4, 2
    weights = weights_of(rng, n, d, h, 0.5)
    if not kind.startswith("ms."):
        weights["bqkv"][:] = 0.0
    model = model_of(after_norm("LayerNormalization") + ops(kind, weights, n, d, h), weights, (1, n, d), opset=23,
                     dtype="float32")  # fmt: skip
    mask = "causal" if kind.endswith("causal") else None
    written = model_of(after_norm("LayerNormalization") + core(mask), weights, (1, n, d), opset=23)
    assert taken(model) == pytest.approx(taken(written), rel=1e-6)
    function, count = function_of(model)
    for _ in range(20):
        x = rng.standard_normal(count) * 10.0 ** rng.uniform(-1, 0.5)
        assert np.linalg.norm(jacobian(function, x, 1e-2), 2) <= taken(model) * (1 + 3e-3)


def edited(nodes: list[onnx.NodeProto], target: str, *instead: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [new for one in nodes for new in (instead if one.output[0] == target else (one,))]


def test_what_is_no_attention_over_tokens_gets_no_shortcut() -> None:
    rng = np.random.default_rng(1)
    n, d = 4, 4
    weights = weights_of(rng, n, d, 2, 0.5) | {"other": rng.standard_normal((n, n)), "back": np.array([3, 2, 1, 0])}
    nodes = after_norm("LayerNormalization") + core()
    assert taken(model_of(nodes, weights, (1, n, d), opset=23))
    broken = {
        "softmax over queries": edited(nodes, "w", node("Softmax", "s2", "w", axis=-2)),
        "values in another order": edited(nodes, "y", node("Gather", "v back", "v2", axis=2), node("MatMul", "w v2", "y")),
        "a product of logits": edited(nodes, "s2", node("Mul", "s1 s1", "s2")),
        "logits scaled one by one": edited(nodes, "s2", node("Mul", "s1 other", "s2")),
        "a mask that varies": edited(nodes, "s2", node("ReduceMean", "u mean_axes", "mu"), node("Add", "s1 mu", "s2")),
        "heads that look at each other": edited(nodes, "t", node("Transpose", "r", "t", perm=[2, 0, 1, 3, 4])),
    }  # fmt: skip
    for why, changed in broken.items():
        found = composed(model_of(changed, weights, (1, n, d), opset=23))
        assert "attention" not in [name for name, _ in found.contributions], why
    assert composed(model_of(core(), weights, (1, n, d), "u", opset=23)).gaps  # no norm, no range


def test_norms_of_products_are_above_and_tight() -> None:
    rng = np.random.default_rng(2)
    for rows, left, right in ((3, 8, 5), (5, 3, 9), (1, 4, 4)):
        x, y = rng.standard_normal((rows, left)), rng.standard_normal((rows, right))
        truth = np.linalg.norm(x.T @ y, 2)
        found = attention.Norms(lambda m: sigma.measure(Dense(m))).of_product(Enclosed(x), Enclosed(y))
        assert truth <= found * (1 + 1e-14) and found <= truth * (1 + 1e-6)


@pytest.mark.parametrize(("kind", "dynamo", "opset"), [("mha", False, 17), ("sdpa", True, 23), ("causal", False, 17)])
@pytest.mark.filterwarnings("ignore")
def test_a_transformer_block_from_torch_is_bounded_end_to_end(kind: str, dynamo: bool, opset: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if dynamo:
        pytest.importorskip("onnxscript")
    block = block_of(torch, kind).eval()
    path, more = tmp_path / "block.onnx", {"external_data": False} if dynamo else {}
    torch.onnx.export(block, (torch.zeros(1, 4, 8),), path, opset_version=opset, dynamo=dynamo, verbose=False, **more)
    report = snaudit.audit(path, witness_seconds=0)
    names = [name for name, _ in report.network.contributions]
    assert report.network.bound.bounded and not report.gaps and "attention" in names
    for seed in range(20):
        torch.manual_seed(seed)
        x = torch.randn(1, 4, 8) * 10.0 ** (seed / 10 - 1.5)
        found = torch.autograd.functional.jacobian(block, x).reshape(32, 32)
        assert float(torch.linalg.matrix_norm(found, 2)) <= report.network.bound.upper * (1 + 1e-5)


def block_of(torch: Any, kind: str) -> Any:
    """x + attention(norm(x)), by nn.MultiheadAttention or by scaled_dot_product_attention."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.out = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)
            self.qkv, self.mha = torch.nn.Linear(8, 24), torch.nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Any) -> Any:
            y = self.norm(x)
            if kind == "mha":
                return x + self.mha(y, y, y, need_weights=False)[0]
            q, k, v = self.qkv(y).reshape(1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            dot = torch.nn.functional.scaled_dot_product_attention
            return x + self.out(dot(q, k, v, is_causal=kind == "causal").transpose(1, 2).reshape(1, 4, 8))

    return Block()
