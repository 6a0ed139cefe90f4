"""Bounds by frequencies: tori against what onnxruntime computes of the zero-padded network for any slopes,
symbols against dense matrices of the tori, bounds against the largest Jacobian, what must be refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import function_of, make_model, read
from onnx import helper

import snaudit
from snaudit import cuts, sections, sigma, wave_cuts, waves
from snaudit.bound import Grade
from snaudit.enclosed import Enclosed
from snaudit.linear import Dense
from snaudit.sections import Effort, Section, Unit as Neurons, certificate as dense
from snaudit.waves import certificate, multipliers, transformed
from snaudit.waves.grid import grid
from snaudit.waves.interface import Kernel, Moved, Torus, Unit, Value
from snaudit.waves.recursion import Recursion, activated, folded, symmetric
from snaudit.waves.stages import stages_of
from snaudit.waves.symbols import frequencies

EFFORT = Effort(lambda matrix: sigma.measure(Dense(matrix)))
ROUNDING = 1e-9
SINGLE = 2e-5
"""What onnxruntime loses in float32."""


def node(op: str, inputs: str, output: str = "y", domain: str = "", **attributes) -> onnx.NodeProto:
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, output.split(), name=f"at {output}", domain=domain, **attributes)


def _made(nodes: list[onnx.NodeProto], sizes: list[int], shapes: dict[str, tuple[int, ...]], seed: int) -> onnx.ModelProto:
    """Weights of random entries; those named v… are positive (variances), those named i… integers."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        if name[0] == "i":
            weights[name] = np.array(shape)
            continue
        array = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        weights[name] = np.abs(array) + 0.5 if name[0] == "v" else array
    return make_model(nodes, {"x": ["n", *sizes]}, weights, dtype="float32")


def residual(seed: int) -> onnx.ModelProto:
    """A stem, BatchNorm, a block with a strided shortcut, one with an identity, means, a dense head."""
    nodes = [
        node("Conv", "x w1", "a1", pads=[1] * 4), node("BatchNormalization", "a1 g b m v", "a2"), node("Relu", "a2", "r1"),
        node("Conv", "r1 w2", "a3", pads=[1] * 4, strides=[2, 2]), node("Relu", "a3", "r2"),
        node("Conv", "r2 w3", "a4", pads=[1] * 4), node("Conv", "r1 w4", "s1", strides=[2, 2]), node("Add", "a4 s1", "t1"),
        node("Relu", "t1", "r3"), node("Conv", "r3 w5", "a5", pads=[1] * 4), node("Tanh", "a5", "r4"),
        node("Sub", "r3 r4", "t2"), node("Sigmoid", "t2", "r5"), node("GlobalAveragePool", "r5", "p"),
        node("Flatten", "p", "f"), node("Gemm", "f w6", "d1", transB=1), node("LeakyRelu", "d1", "r6", alpha=0.2),
        node("Gemm", "r6 w7 c", "y", transB=1, alpha=0.7),
    ]  # fmt: skip
    shapes = {"w1": (3, 2, 3, 3), "g": (3,), "b": (3,), "m": (3,), "v": (3,), "w2": (4, 3, 3, 3), "w3": (4, 4, 3, 3),
              "w4": (4, 3, 1, 1), "w5": (4, 4, 3, 3), "w6": (3, 4), "w7": (2, 3), "c": (2,)}  # fmt: skip
    return _made(nodes, [2, 7, 6], shapes, seed)


def moved(seed: int) -> onnx.ModelProto:
    """Unequal sides, pads and strides; groups, dilation, concatenation, Pad, PReLU, SiLU in parts, a transposed flatten."""
    nodes = [
        node("Pad", "x i1", "p"), node("Conv", "p w1", "a1", strides=[2, 1], dilations=[1, 2], group=2, pads=[0, 2, 1, 1]),
        node("PRelu", "a1 s", "r1"), node("Conv", "r1 w2", "a2", pads=[0, 1, 0, 1]), node("Softplus", "a2", "r2"),
        node("Concat", "r1 r2", "c", axis=1), node("Mul", "c k", "h"), node("Split", "h", "h1 h2", axis=1),
        node("Relu", "h1", "r3"), node("Sigmoid", "h2", "g"), node("Mul", "h2 g", "r4"), node("Add", "r3 r4", "t"),
        node("AveragePool", "t", "q", kernel_shape=[1, 2], strides=[1, 2]), node("Elu", "q", "r5"),
        node("Transpose", "r5", "u", perm=[0, 2, 3, 1]), node("Reshape", "u i2", "f"), node("MatMul", "f w3", "y"),
    ]  # fmt: skip
    shapes = {"i1": (0, 0, 1, 0, 0, 0, 0, 1), "w1": (4, 1, 2, 3), "s": (4, 1, 1), "w2": (4, 4, 1, 3), "k": (1, 8, 1, 1),
              "i2": (0, -1), "w3": (24, 3)}  # fmt: skip
    return _made(nodes, [2, 5, 5], shapes, seed)


def short(seed: int) -> onnx.ModelProto:
    """One axis; LeakyReLU before a padded convolution; unpadded convolutions in a row; strides that leave places over."""
    nodes = [
        node("Conv", "x w1", "a1"), node("Conv", "a1 w2", "a2", strides=[2]), node("LeakyRelu", "a2", "r1", alpha=0.3),
        node("Conv", "r1 w3", "a3", pads=[2, 1]), node("Relu", "a3", "r2"), node("Add", "a3 r2", "t"),
        node("Abs", "t", "r3"), node("Conv", "r3 w4", "a4", strides=[3], pads=[1, 1]), node("Relu", "a4", "r4"),
        node("Flatten", "r4", "f"), node("MatMul", "f w5", "y"),
    ]  # fmt: skip
    shapes = {"w1": (3, 2, 3), "w2": (3, 3, 2), "w3": (4, 3, 4), "w4": (2, 4, 3), "w5": (6, 4)}
    return _made(nodes, [2, 19], shapes, seed)


def deep(seed: int) -> onnx.ModelProto:
    """Three axes, a depthwise kernel, a whole-map kernel at the end."""
    nodes = [
        node("Conv", "x w1", "a1", pads=[1] * 6), node("Relu", "a1", "r1"), node("Conv", "r1 w2", "a2", pads=[1, 0, 1, 0, 1, 0], strides=[1, 2, 1], group=2),
        node("Relu", "a2", "r2"), node("Conv", "r2 w3", "y"),
    ]  # fmt: skip
    return _made(nodes, [1, 3, 3, 3], {"w1": (2, 1, 3, 3, 3), "w2": (2, 1, 3, 2, 2), "w3": (2, 2, 2, 2, 3)}, seed)


NETS = {"residual": residual, "moved": moved, "short": short, "deep": deep}
EVERY = pytest.mark.parametrize("name", NETS)


def whole(model: onnx.ModelProto) -> tuple[wave_cuts.Stretch, Torus]:
    graph = read(model)
    (stretch,) = (s for s in wave_cuts.find_stretches(graph) if s.names[s.output].name == "y")
    torus = stretch.builder.torus(0, stretch.output)
    assert stretch.names[0].name == "x" and torus is not None
    return stretch, torus


def matrix_of(kernel: Kernel, source: tuple[int, ...], target: tuple[int, ...]) -> np.ndarray:
    """The definition: y[m] = Σ_t W_t x[s·m + d·t + f], places modulo the sides."""
    out, inner = kernel.weight.shape[:2]
    found = np.zeros((out, *target, inner * kernel.groups, *source))
    stride = kernel.stride or source
    for m in np.ndindex(*target):
        for t in np.ndindex(*kernel.weight.shape[2:]):
            rows = zip(stride, m, kernel.dilation, t, kernel.offset, source, strict=True)
            place = tuple((s * i + d * j + f) % n for s, i, d, j, f, n in rows)
            for o in range(out):
                first = o // (out // kernel.groups) * inner
                found[(o, *m, slice(first, first + inner), *place)] += kernel.weight[(o, slice(None), *t)]
    return found.reshape(out * math.prod(target), -1)


def dense_maps(torus: Torus) -> list[list[tuple[int, np.ndarray]] | Unit]:
    """Every step's maps as dense matrices."""
    found = []
    for number, step in enumerate(torus.steps, start=1):
        if isinstance(step, Unit):
            found.append(step)
            continue
        target, terms = torus.values[number].sides, []
        for i, each in step.terms:
            source = torus.values[i]
            if isinstance(each, Moved):
                choice = np.zeros((len(each.index), source.channels))
                kept = each.index >= 0
                choice[np.flatnonzero(kept), each.index[kept]] = each.factors[kept]
                terms.append((i, np.kron(choice, np.eye(math.prod(target)))))
            else:
                terms.append((i, matrix_of(each, source.sides, target)))
        found.append(terms)
    return found


def through(torus: Torus, maps: list, slopes: dict[int, np.ndarray]) -> np.ndarray:
    """The torus network's matrix for one slope of each unit's entries."""
    values = [np.eye(torus.values[0].channels * math.prod(torus.values[0].sides))]
    for number, step in enumerate(maps, start=1):
        if isinstance(step, Unit):
            values.append(slopes[number][:, None] * values[step.source])
        else:
            values.append(sum(matrix @ values[i] for i, matrix in step))
    return values[-1]


def placed(channels: int, sizes: tuple[int, ...], sides: tuple[int, ...]) -> np.ndarray:
    """Which entries of a torus are the network's, in C order."""
    inside = np.zeros((channels, *sides), dtype=bool)
    inside[(slice(None), *(slice(0, n) for n in sizes))] = True
    return np.flatnonzero(inside)


def with_slopes(model: onnx.ModelProto, made: dict[str, np.ndarray]) -> np.ndarray:
    """What onnxruntime computes of the network with given slopes instead of its activations, as a matrix."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for k, old in enumerate(copy.graph.node):
        if old.output[0] in made:
            copy.graph.node[k].CopyFrom(node("Mul", f"{old.input[0]} D{old.output[0]}", old.output[0]))
    for name, slope in made.items():
        copy.graph.initializer.append(onnx.numpy_helper.from_array(slope[None].astype(np.float32), f"D{name}"))
    function, n = function_of(copy)
    origin = function(np.zeros(n))
    return np.stack([function(e) - origin for e in np.eye(n)], axis=1)


def random_slopes(stretch: wave_cuts.Stretch, torus: Torus, seed: int) -> tuple[dict[int, np.ndarray], dict[str, np.ndarray]]:
    """(slopes of the torus' units, zero where masked; the network's by the names of what units make)."""
    rng, used = np.random.default_rng(seed), stretch.builder.used(0, stretch.output)
    wide, narrow = {}, {}
    for k, i in enumerate(used):
        step = torus.steps[k - 1] if k else None
        if isinstance(step, Unit):
            value, sides = stretch.builder.values[i], torus.values[k].sides
            ends = np.stack([step.low, step.high])[:, :, None]
            inside = placed(value.channels, value.sizes, sides)
            full = np.zeros(value.channels * math.prod(sides))
            chosen = np.take_along_axis(ends, rng.integers(0, 2, (1, value.channels, math.prod(value.sizes))), axis=0)
            full[inside] = chosen[0].ravel()
            outside = np.ones(full.size, dtype=bool)
            outside[inside] = False
            full[outside] = np.clip(0.0, np.repeat(step.low, math.prod(sides)), np.repeat(step.high, math.prod(sides)))[outside]
            shape = (value.channels,) if len(stretch.names[i].shape) == 2 else (value.channels, *value.sizes)
            wide[k], narrow[stretch.names[i].name] = full, chosen[0].reshape(shape)
    return wide, narrow


@EVERY
@pytest.mark.parametrize("seed", [0, 1])
def test_the_tori_hold_the_zero_padded_network(name: str, seed: int) -> None:
    """For slopes at random ends: the output's places of the torus network, on the source's, are what onnxruntime
    computes of the network; so no slopes of the network exceed the bound."""
    model = NETS[name](seed)
    stretch, torus = whole(model)
    maps, last = dense_maps(torus), stretch.builder.values[stretch.output]
    first = stretch.builder.values[0]
    rows = placed(last.channels, last.sizes, torus.values[-1].sides)
    columns = placed(first.channels, first.sizes, torus.values[0].sides)
    bounds = [method.measure(torus, math.inf).upper for method in waves.METHODS]
    for trial in range(3):
        wide, narrow = random_slopes(stretch, torus, trial)
        assert len(narrow) == sum(n.op_type in ("Relu", "Tanh", "Sigmoid", "LeakyRelu", "PRelu", "Softplus", "Elu", "Abs") for n in model.graph.node)
        inner = through(torus, maps, wide)
        network = with_slopes(model, narrow)
        np.testing.assert_allclose(inner[np.ix_(rows, columns)], network, atol=SINGLE)
        assert np.linalg.norm(inner, 2) <= min(bounds)


def lip_lt(torus: Torus, maps: list) -> float:
    """LipLT of the tori by dense matrices and their SVD."""
    blocks, reach = [{0: np.eye(torus.values[0].channels * math.prod(torus.values[0].sides))}], {0: 1.0}
    total = lambda found: sum(np.linalg.norm(block, 2) * reach[j] for j, block in found.items())  # noqa: E731
    for number, step in enumerate(maps, start=1):
        if isinstance(step, Unit):
            places = math.prod(torus.values[number].sides)
            middle, half = (np.repeat(0.5 * (step.high + sign * step.low), places) for sign in (1, -1))
            reach[number] = total(blocks[step.source])
            found = {j: middle[:, None] * block for j, block in blocks[step.source].items()} | {number: np.diag(half)}
        else:
            found = {}
            for i, matrix in step:
                for j, block in blocks[i].items():
                    found[j] = found.get(j, 0.0) + matrix @ block
        blocks.append(found)
    return float(total(blocks[-1]))


@EVERY
def test_lip_lt_by_frequencies_is_that_of_the_tori(name: str) -> None:
    _, torus = whole(NETS[name](3))
    known = lip_lt(torus, dense_maps(torus))
    assert known * (1 - 1e-12) <= transformed.measure(torus).upper <= known * (1 + ROUNDING)


def dense_section(torus: Torus, maps: list) -> Section:
    """The torus network as the dense methods take it."""
    size = lambda number: torus.values[number].channels * math.prod(torus.values[number].sides)  # noqa: E731
    values, units = [{0: np.eye(size(0))}], []
    for number, step in enumerate(maps, start=1):
        if isinstance(step, Unit):
            ends = (np.repeat(end, math.prod(torus.values[number].sides)) for end in (step.low, step.high))
            units.append(Neurons({j: Enclosed(m) for j, m in values[step.source].items()}, *ends))
            values.append({len(units): np.eye(size(number))})
            continue
        found: dict[int, np.ndarray] = {}
        for i, matrix in step:
            for j, block in values[i].items():
                found[j] = found.get(j, 0.0) + matrix @ block
        values.append(found)
    return Section(size(0), tuple(units), {j: Enclosed(m) for j, m in values[-1].items()})


@EVERY
def test_the_recursion_by_frequencies_is_that_of_the_tori(name: str) -> None:
    """ρ for given multipliers, proved stage by stage, against one dense certificate of the whole torus network with
    the same multiplier at all places: that proves the same ρ, and none that is 1% less."""
    _, torus = whole(NETS[name](4))
    recursion = Recursion(stages_of(torus))
    chosen, squared = multipliers.best_closed(recursion, 2)
    section = dense_section(torus, dense_maps(torus))
    places = [unit.low.size // len(each) for unit, each in zip(section.units, chosen, strict=True)]
    repeated = [np.repeat(each, n) for each, n in zip(chosen, places, strict=True)]
    root = math.sqrt(squared)
    assert root * (1 - 1e-12) <= certificate.prove(recursion, chosen) <= root * (1 + 1e-5)
    assert root <= dense.prove(section, repeated, squared) <= root * (1 + 1e-5)
    assert math.isinf(dense.prove(section, repeated, 0.99 * squared))
    for factor in (0.5, 1.001):  # any multipliers; those that are too large have no proof
        other = [factor * each for each in chosen]
        bound = certificate.prove(recursion, other)
        assert bound == pytest.approx(math.sqrt(recursion.bound(other)), rel=1e-5)
    assert math.isinf(certificate.prove(recursion, [1e3 * each for each in chosen]))


@EVERY
def test_a_covariance_that_is_too_small_has_no_proof(name: str) -> None:
    """1e-6 less than what the recursion gives, at one frequency and in one entry only."""
    _, torus = whole(NETS[name](5))
    recursion = Recursion(stages_of(torus))
    chosen, _ = multipliers.best_closed(recursion, 2)
    covariance, tried = recursion.start(), 0
    for number, (linear, unit) in enumerate(recursion.stages.pairs[:-1]):
        covariance = covariance if linear is None else symmetric(folded(linear, covariance))
        after, _ = activated(unit, covariance, chosen[number])
        diagonal = np.einsum("kii->ki", after)
        diagonal += 1e-9 * diagonal.real
        assert certificate._proved(unit, covariance, chosen[number], after)
        less = after.copy()
        less[-1, -1, -1] *= 1 - 1e-6
        assert not certificate._proved(unit, covariance, chosen[number], less)
        covariance, tried = after, tried + 1
    assert tried == len(chosen) > 0


@EVERY
def test_the_gradient_by_frequencies(name: str) -> None:
    _, torus = whole(NETS[name](6))
    recursion = Recursion(stages_of(torus))
    logs = np.log(np.concatenate(multipliers.best_closed(recursion, 1)[0])) - 0.2
    way = np.random.default_rng(0).standard_normal(len(logs))
    ahead, behind = (recursion.descend(logs + step * way)[1] for step in (1e-5, -1e-5))
    assert recursion.descend(logs)[2] @ way == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)


@EVERY
@pytest.mark.parametrize("seed", [7, 8])
def test_by_frequencies_and_as_matrices(name: str, seed: int) -> None:
    """One multiplier for a channel, on a larger torus, is never better than one for each neuron of the network itself;
    and not far from it."""
    model = NETS[name](seed)
    _, torus = whole(model)
    by_neuron = math.inf
    for cut in cuts.find_sections(read(model)):
        if (cut.source.name, cut.output.name) == ("x", "y"):
            by_neuron = min(method.measure(cut.section, EFFORT).upper for method in sections.METHODS[2:])
    _, closed, searched = (method.measure(torus, math.inf).upper for method in waves.METHODS)
    borders = 3.0 if name == "deep" else 1.8  # that has more of borders than of places within
    assert by_neuron * (1 - 1e-3) <= searched <= min(closed, borders * by_neuron), (by_neuron, searched)


@pytest.mark.parametrize("seed", [8, 9])
def test_a_search_that_ends_at_the_edge_has_a_proof_all_the_same(seed: int) -> None:
    """Its best multipliers of neurons that hardly matter lie where the certificate is singular."""
    (section,) = (cut.section for cut in cuts.find_sections(read(residual(seed))) if cut.output.name == "y")
    closed, searched = (method.measure(section, EFFORT).upper for method in sections.METHODS[2:])
    assert searched < 0.8 * closed


@pytest.mark.parametrize("method", waves.METHODS, ids=lambda method: method.name)
def test_large_stretches_are_taken_apart_where_all_goes_through_one_value(method: waves.Method) -> None:
    stretches = list(wave_cuts.find_stretches(read(residual(0))))
    ((whole_cut, _),) = wave_cuts.affordable(stretches, method.cost, math.inf)
    price = method.cost(whole_cut.torus)
    assert (whole_cut.source.name, whole_cut.output.name) == ("x", "y")
    parts = wave_cuts.affordable(stretches, method.cost, 0.8 * price)
    assert parts and math.fsum(share for _, share in parts) <= 0.8 * price * (1 + 1e-12)
    assert all(math.isfinite(method.measure(cut.torus, share).upper) for cut, share in parts)
    order = [value.name for cut, _ in parts for value in (cut.source, cut.output)]
    assert order != ["x", "y"] and len(set(order)) >= len(order) - len(parts) + 1  # one after another
    assert wave_cuts.affordable(stretches, method.cost, 1.0) == []


def _chain(count: int) -> onnx.ModelProto:
    nodes, last = [], "x"
    for k in range(count):
        nodes += [node("Conv", f"{last} w", f"a{k}", pads=[1] * 4), node("Relu", f"a{k}", "y" if k == count - 1 else f"r{k}")]
        last = f"r{k}"
    return _made(nodes, [1, 3, 3], {"w": (1, 1, 3, 3)}, 0)


def test_however_many_small_layers_the_work_stays_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and stages are counted by their calls too; few sections are built to see what they cost."""
    (stretch,) = wave_cuts.find_stretches(read(_chain(300)))
    prices = wave_cuts._Prices(waves.METHODS[2].cost)
    parts = list(wave_cuts._parts(stretch, prices, 1e10))
    assert 1 < len(parts) < 10 and len(prices.known) < 15 * len(parts)
    assert all(price <= 1e10 for *_, price in parts)
    for method in waves.METHODS:
        assert method.cost(stretch.builder.torus(0, stretch.output)) > 1e9
    monkeypatch.setattr(wave_cuts, "_MOST_BUILT", 0)
    assert wave_cuts.affordable([stretch], waves.METHODS[2].cost, math.inf) == []
    (cut,) = cuts.find_sections(read(_chain(300)))
    blind = Effort(lambda matrix: pytest.fail("tens of thousands of norms"))
    assert not sections.METHODS[0].measure(cut.section, blind).bounded


def test_sums_of_a_value_with_itself_are_looked_at_once() -> None:
    """Thirty of them have 2³⁰ ways back to the slopes above 0 that are widened before a padded convolution."""
    nodes = [node("Conv", "x w", "a"), node("LeakyRelu", "a", "t0", alpha=0.5)]
    nodes += [node("Add", f"t{k} t{k}", f"t{k + 1}") for k in range(30)]
    nodes += [node("Conv", "t30 w", "b", pads=[1] * 4), node("Relu", "b", "y")]
    stretch, _ = whole(_made(nodes, [2, 5, 5], {"w": (2, 2, 3, 3)}, 0))
    assert [float(v.made.low[0]) for v in stretch.builder.values if isinstance(v.made, Unit)] == [0.0, 0.0]


def test_a_convolutional_network_is_bounded_by_frequencies(tmp_path: Path) -> None:
    """Too large for matrices: the bound is that of a section on tori, and below the composition's."""
    nodes = [node("Conv", "x w0", "a0", pads=[1] * 4), node("Relu", "a0", "r0")]
    for k in (1, 2, 3):
        nodes += [node("Conv", f"r{k - 1} w{k}", f"a{k}", pads=[1] * 4), node("Relu", f"a{k}", f"r{k}")]
    nodes += [node("Flatten", "r3", "f"), node("MatMul", "f v", "y")]
    shapes = {"w0": (4, 3, 3, 3), **{f"w{k}": (4, 4, 3, 3) for k in (1, 2, 3)}, "v": (4 * 16 * 24, 5)}
    path = tmp_path / "model.onnx"
    onnx.save(_made(nodes, [3, 16, 24], shapes, 0), path)
    network = snaudit.audit(path, witness_seconds=0).network
    found = {method.name: method.bound.upper for method in network.methods}
    assert network.bound.upper == min(found.values()) == found[multipliers.SEARCH.name]
    assert network.bound.grade is Grade.PROVED and network.bound.upper < 0.7 * found["composition over the graph"]


def _refused(nodes: list[onnx.NodeProto], shapes: dict[str, tuple[int, ...]], sizes: list[int]) -> None:
    for stretch in wave_cuts.find_stretches(read(_made(nodes, sizes, shapes, 0))):
        assert (stretch.names[0].name, stretch.names[stretch.output].name) != ("x", "y")


@pytest.mark.parametrize("op", ["Conv", "AveragePool", "Pad", "Reshape", "Transpose", "Concat", "Add", "Mul"])
def test_what_is_not_a_map_of_tori_ends_a_section(op: str) -> None:
    """Two padded convolutions in a row, borders that do not count, copied borders, mixed batches, broadcasting."""
    shapes = {"w": (2, 2, 3, 3), "w2": (2, 2, 3, 3)}
    start = [node("Conv", "x w", "a", pads=[1] * 4)]
    end = [node("Relu", "c", "d"), node("Conv", "d w2", "y", pads=[1] * 4)]
    middle = {
        "Conv": ([node("Conv", "a w2", "c", pads=[1] * 4)], {}),
        "AveragePool": ([node("Relu", "a", "b"), node("AveragePool", "b", "c", kernel_shape=[3, 3], pads=[1] * 4)], {}),
        "Pad": ([node("Relu", "a", "b"), node("Pad", "b i", "c", mode="reflect")], {"i": (0, 0, 1, 1, 0, 0, 1, 1)}),
        "Reshape": ([node("Reshape", "a i", "c")], {"i": (-1, 2, 3, 12)}),
        "Transpose": ([node("Transpose", "a", "c", perm=[0, 1, 3, 2])], {}),
        "Concat": ([node("Concat", "a a", "c", axis=2)], {}),
        "Add": ([node("GlobalAveragePool", "a", "b"), node("Add", "a b", "c")], {}),
        "Mul": ([node("Mul", "a k", "c")], {"k": (1, 2, 6, 6)}),
    }[op]
    _refused([*start, *middle[0], *end], shapes | middle[1], [2, 6, 6])


def test_rows_side_by_side_are_no_channels_side_by_side() -> None:
    """The second axis of a transposed map holds its rows; read as channels, the matrix would meet other entries."""
    nodes = [node("Conv", "x w", "a", pads=[1] * 4), node("Relu", "a", "b"), node("Transpose", "b", "t", perm=[0, 2, 1, 3]),
             node("Concat", "t t", "c", axis=1), node("Reshape", "c i", "f"), node("MatMul", "f m", "y")]  # fmt: skip
    graph = read(_made(nodes, [2, 2, 2], {"w": (2, 2, 3, 3), "i": (0, -1), "m": (16, 3)}, 0))
    for made in graph.graph:
        made.outputs[0].shape = None if made.op_type == "Concat" else made.outputs[0].shape  # shapes need not be told
    for stretch in wave_cuts.find_stretches(graph):
        assert (stretch.names[0].name, stretch.names[stretch.output].name) != ("x", "y")


@pytest.mark.parametrize("sides", list(itertools.product([1, 2, 5], [4, 3])))
def test_half_of_the_frequencies_stand_for_all(sides: tuple[int, int]) -> None:
    mine = grid(sides)
    assert len(mine) == frequencies(Value(1, sides))
    places = mine.flat(mine.points)
    assert set(places) | set(mine.opposite(places)) == set(range(math.prod(sides)))
    back = np.where(mine.turned, mine.opposite(places[mine.number]), places[mine.number])
    assert (back == np.arange(math.prod(sides))).all()
