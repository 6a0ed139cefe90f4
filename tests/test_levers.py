"""Where the bound comes from: the layers that would lower it most, the sections, what stayed outside."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import gain, make_model
from onnx import helper
from reports import report

import snaudit
from snaudit import cli
from snaudit.bound import Bound, Grade, Norm, at_most, chain, stacked, total
from snaudit.findings import Lever, Report
from snaudit.levers import levers
from snaudit.report import REPORTS, View


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name=f"at {output}", **attributes)


def saved(folder: Path, nodes: list, inputs: dict, weights: dict, outputs: tuple = ("y",)) -> Path:
    path = folder / "model.onnx"
    onnx.save(make_model(nodes, inputs, weights, outputs, dtype="float32"), path)
    return path


def of_norm(rng: np.random.Generator, shape: tuple[int, int], norm: float) -> np.ndarray:
    weight = rng.standard_normal(shape)
    return weight * (norm / gain(weight, "l2"))


def by_hand(report: Report, path: Path, folder: Path, name: str, norm_of: Norm = "l2") -> float:
    """The composition's bound of the file with one weight divided by its norm: everything measured again."""
    model = onnx.load(path)
    (norm,) = (layer.norm.upper for layer in report.layers if layer.name == name)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) / np.float32(norm), name))
    onnx.save(model, folder / "changed.onnx")
    return snaudit.audit(folder / "changed.onnx", norm=norm_of).network.composition.upper


def tangle(rng: np.random.Generator) -> tuple[list, dict]:
    """A residual block, a weight that is used twice, one that stands alone on a branch, and a last layer."""
    norms = {"first": 3.0, "branch": 6.0, "shared": 1.7, "last": 2.0, "small": 0.5}
    weights = {name: of_norm(rng, (6, 6), norm) for name, norm in norms.items()}
    nodes = [
        node("MatMul", "x first", "a"), node("Sin", "a", "b"),
        node("MatMul", "b branch", "c"), node("Sin", "c", "d"), node("Add", "b d", "e"),
        node("MatMul", "e shared", "f"), node("Softmax", "f", "g", axis=-1), node("MatMul", "g shared", "h"),
        node("Softmax", "h", "i", axis=-1), node("MatMul", "i last", "j"), node("MatMul", "j small", "y"),
    ]  # fmt: skip
    return nodes, weights


def test_levers_are_what_composing_the_changed_file_gives(tmp_path: Path) -> None:
    nodes, weights = tangle(np.random.default_rng(1))
    path = saved(tmp_path, nodes, {"x": [1, 6]}, weights)
    report = snaudit.audit(path, norm="linf")
    network, norms = report.network, {layer.name: layer.norm.upper for layer in report.layers}
    falls = {name: network.composition.upper / by_hand(report, path, tmp_path, name, "linf") for name in weights}
    best = sorted(falls, key=lambda name: -falls[name])[:3]
    assert [lever.name for lever in network.levers] == best
    for lever in network.levers:
        assert 10.0**lever.log10_fall == pytest.approx(falls[lever.name], rel=1e-6)
    elasticities = {"first": 1.0, "last": 1.0, "shared": 2.0, "branch": norms["branch"] / (1.0 + norms["branch"])}
    assert {lever.name: pytest.approx(lever.elasticity) for lever in network.levers}.items() <= elasticities.items()


def test_a_lever_that_all_ways_pass_lowers_what_sections_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    weights = {name: of_norm(rng, (8, 8), norm) for name, norm in (("a", 3.0), ("b", 5.0), ("c", 0.9), ("d", 2.0))}
    nodes = [
        node("MatMul", "x a", "h1"), node("Relu", "h1", "h2"), node("MatMul", "h2 b", "h3"), node("Relu", "h3", "h4"),
        node("MatMul", "h4 c", "h5"), node("Relu", "h5", "h6"), node("MatMul", "h6 d", "y"),
    ]  # fmt: skip
    path = saved(tmp_path, nodes, {"x": [1, 8]}, weights)
    network = snaudit.audit(path).network
    assert network.bound.upper < 0.9 * network.composition.upper
    assert [(lever.name, lever.whole) for lever in network.levers] == [("b", True), ("a", True), ("d", True)]
    assert network.levers[0].bound.upper == pytest.approx(network.bound.upper / 5.0, rel=1e-6)
    (section,) = network.sections
    assert (section.start, section.end, section.taken) == ("x", "y", True)
    assert section.bound.method == network.bound.method and section.bound.upper == network.bound.upper
    shares = [name for name, _ in network.factors]
    assert shares == ["a", "b", "c", "d"] and [name for name, _ in network.contributions] == ["x to y"]


def residuals(rng: np.random.Generator) -> tuple[list, dict, str]:
    """Four blocks x + relu(x·w)."""
    nodes, value = [], "x"
    weights = {f"w{i}": of_norm(rng, (8, 8), 2.0 + i) for i in range(4)}
    for i in range(4):
        nodes += [node("MatMul", f"{value} w{i}", f"m{i}"), node("Relu", f"m{i}", f"r{i}"), node("Add", f"{value} r{i}", f"v{i}")]
        value = f"v{i}"
    return nodes, weights, value


def test_a_lever_beside_a_residual_is_bounded_again_with_its_sections(tmp_path: Path) -> None:
    nodes, weights, value = residuals(np.random.default_rng(3))
    path = saved(tmp_path, nodes, {"x": [1, 8]}, weights, (value,))
    report = snaudit.audit(path)
    network = report.network
    assert network.bound.upper < network.composition.upper == pytest.approx(3.0 * 4.0 * 5.0 * 6.0, rel=1e-5)
    assert [lever.name for lever in network.levers] == ["w3", "w2", "w1"] and all(lever.whole for lever in network.levers)
    for lever in network.levers:
        by_hand(report, path, tmp_path, lever.name)
        changed = snaudit.audit(tmp_path / "changed.onnx").network.bound.upper
        assert changed * (1 - 1e-3) <= lever.bound.upper <= 1.05 * changed
        assert 10.0**-lever.log10_fall == pytest.approx(lever.bound.upper / network.bound.upper)


def test_a_lever_of_the_composition_alone_says_so() -> None:
    lever = Lever("w3", 5.0, 5 / 6, at_most(120.0, ""), math.log10(3.0), whole=False)
    made = report()
    made = replace(made, network=replace(made.network, composition=at_most(360.0, ""), levers=(lever,)))
    assert "with w3 at norm 1, not 5.0000: the composition falls 3 times" in REPORTS["table"].render(made, View())
    (told,) = json.loads(REPORTS["json"].render(made, View()))["network"]["levers"]
    assert told["of"] == "composition" and told["upper"] == 120.0 and told["elasticity"] == 5 / 6


def test_cuts_are_shown_with_the_section_between_them(tmp_path: Path, capsys) -> None:
    rng = np.random.default_rng(4)
    weights = {name: of_norm(rng, (8, 8), 2.0) for name in "abcd"}
    nodes = [
        node("MatMul", "x a", "h1"), node("Relu", "h1", "h2"), node("MatMul", "h2 b", "h3"),
        node("Softmax", "h3", "cut", axis=-1),
        node("MatMul", "cut c", "h5"), node("Relu", "h5", "h6"), node("MatMul", "h6 d", "y"),
    ]  # fmt: skip
    path = saved(tmp_path, nodes, {"x": [1, 8]}, weights)
    network = snaudit.audit(path).network
    assert [(s.start, s.end, s.taken) for s in network.sections] == [("x", "h3", True), ("cut", "y", True)]
    product = math.prod(s.bound.upper for s in network.sections) * 0.5
    assert network.bound.upper == pytest.approx(product, rel=1e-9)
    assert cli.main(["inspect", str(path), "--witness-seconds", "0"]) == 0
    out = capsys.readouterr().out
    assert "  as one, from x to h3: " in out and "  as one, from cut to y: " in out


def test_what_is_too_large_or_open_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    weights = {"k1": rng.standard_normal((4, 3, 3, 3)), "k2": rng.standard_normal((4, 4, 3, 3))}
    nodes = [node("Conv", "x k1", "a"), node("Relu", "a", "b"), node("Conv", "b k2", "c"), node("Softmax", "c", "y")]
    open_ = snaudit.audit(saved(tmp_path, nodes, {"x": [1, 3, "H", "W"]}, weights)).network
    assert len(open_.notes) == 1 and "open size" in open_.notes[0] and open_.notes[0].startswith("2 layers")
    cut = [nodes[0], node("MaxPool", "a", "b", kernel_shape=[2, 2]), *nodes[2:]]
    assert snaudit.audit(saved(tmp_path, cut, {"x": [1, 3, "H", "W"]}, weights)).network.notes == ()
    small = snaudit.audit(saved(tmp_path, nodes, {"x": [1, 3, 9, 9]}, weights)).network
    assert small.notes == () and len(small.sections) == 1


def test_each_output_says_what_it_rests_on(tmp_path: Path) -> None:
    """x·tanh(z) needs no range; x·z needs that of both."""
    nodes = [node("MatMul", "x w", "p"), node("Mul", "x z", "q")]
    path = saved(tmp_path, nodes, {"x": [1, 4], "z": [1, 4]}, {"w": np.eye(4)}, ("p", "q"))
    network = snaudit.audit(path, input_range=("x=0,1", "z=0,2")).network
    first, second = network.outputs
    assert first.assumes == () and sorted(text[:12] for text in second.assumes) == ["the input x ", "the input z "]
    assert set(second.assumes) < set(network.assumptions)


def test_factors_that_are_no_layers_are_named(tmp_path: Path, capsys) -> None:
    weights = {"w": 4.0 * np.eye(5), "g": np.ones(5)}
    nodes = [node("MatMul", "x w", "a"), node("LayerNormalization", "a g", "y", epsilon=1e-4)]
    path = saved(tmp_path, nodes, {"x": [1, 5]}, weights)
    assert [name for name, _ in snaudit.audit(path).network.besides] == ["at y"]
    assert cli.main(["inspect", str(path), "--witness-seconds", "0"]) == 0
    part = math.log(100.0) / math.log(400.0)
    assert f"besides the layers: {part:.0%} of the factors above 1, at y 100.0" in capsys.readouterr().out


def test_a_chain_of_a_checkpoint_has_levers_too() -> None:
    path = Path(__file__).parent.parent / "sample_models" / "pnet.pt"
    network = snaudit.audit(path).network
    assert [lever.name for lever in network.levers] == ["conv1.weight", "conv2.weight", "conv3.weight"]
    for lever in network.levers:
        assert lever.bound.upper * lever.norm == pytest.approx(network.bound.upper)


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
@pytest.mark.parametrize("far", [1.0, 1e200])
def test_elasticities_are_the_derivatives_of_the_logarithm(norm: Any, far: float) -> None:
    """Against differences, below and beyond the largest float."""
    at = {"a": 3.0, "b": 0.7, "c": 2.0}

    def bound(**by: float) -> Bound:
        a, b, c = (Bound(0.0, far * at[n] * by.get(n, 1.0), Grade.PROVED, "", rests=((n, 1.0),)) for n in "abc")
        return chain(stacked([chain(a, b), total([c, at_most(far, "")])], norm), chain(a, c))

    found = dict(bound().rests)
    for name in at:
        step = 1e-4
        slope = (bound(**{name: 1 + step}).log10_upper - bound(**{name: 1 - step}).log10_upper) / (2 * step) * math.log(10)
        assert found.get(name, 0.0) == pytest.approx(slope, abs=1e-5)


def test_as_few_compositions_as_settle_it() -> None:
    """Forty layers in a chain: the three largest need three, since no other can do better."""
    bound, norms, tried = at_most(1.0, ""), {}, []
    for i in range(40):
        norms[f"w{i}"] = 2.0 + i
        bound = chain(bound, Bound(0.0, 2.0 + i, Grade.PROVED, "", rests=((f"w{i}", 1.0),)))

    def again(by: Any) -> Bound:
        tried.append(by)
        return at_most(bound.upper * math.prod(by.values()), "")

    assert [lever.name for lever in levers(bound, norms, again)] == ["w39", "w38", "w37"]
    assert len(tried) == 3


def test_what_a_lever_says_is_no_bound(tmp_path: Path) -> None:
    """y = v·tanh(w·x) on a box away from 0: with w at norm 1 the slopes rise, and ranges stay those of the old w."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Tanh", ["a"], ["t"]),
             helper.make_node("MatMul", ["t", "v"], ["y"])]  # fmt: skip
    onnx.save(make_model(nodes, {"x": (1, 1)}, {"w": np.array([[3.0]]), "v": np.array([[1.0]])}), tmp_path / "m.onnx")
    network = snaudit.audit(tmp_path / "m.onnx", input_range=("0.5,1.5",)).network
    assert network.levers and all(lever.bound.grade is Grade.ESTIMATED for lever in network.levers)
    shown = REPORTS["table"].render(snaudit.audit(tmp_path / "m.onnx", input_range=("0.5,1.5",)), View())
    assert "with w at norm 1, not 3.0000: about " in shown
