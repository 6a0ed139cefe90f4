"""Every rule reads every version of its op from the opset on that the table tells: against onnxruntime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import composed, function_of, gain, jacobian
from op_cases import CURVES, RANGED, Case, case
from op_versions import OLDEST, at_opset, versions
from test_rules import KINKED, MEASURED, REFUSED

from snaudit import rules
from snaudit.bound import Norm

ANY = 17
"""The opset of a case that does not say for which it is meant."""
NEWEST = 26
"""The newest opset that this onnxruntime takes."""
VERSIONS = versions()
ELSEWHERE = frozenset("""
    Shape Size EyeLike Attention RotaryEmbedding QuantizeLinear DequantizeLinear QLinearMatMul QLinearConv MatMulInteger
    ConvInteger DynamicQuantizeLinear SimplifiedLayerNormalization
""".split())
"""Ops of no real input, and those that test_attention and test_quantized run."""
NOT_RUN = {("Swish", NEWEST), ("GlobalLpPool", 22), ("GlobalLpPool", NEWEST), ("Scatter", NEWEST), ("Upsample", NEWEST),
           ("GroupNormalization", 21)}  # fmt: skip
"""What onnxruntime has no kernel for; GroupNormalization of 21 has a case of its own shape."""
RNG = np.random.default_rng(5)


def steep(n: int) -> np.ndarray:
    return np.full(n, 0.3)


def gates(count: int) -> tuple[np.ndarray, np.ndarray]:
    return RNG.standard_normal((1, count * 2, 2)), RNG.standard_normal((1, count * 2, 2))


EXTRA = (
    case("Softmax", (2, 3, 4), linear=False, single=True), case("LogSoftmax", (2, 3, 4), linear=False, points=lambda n: np.tile([9.0, 0, 0, 0], 6)),
    case("LogSoftmax", (2, 3, 4), axis=0, linear=False),
    case("GroupNormalization", (1, 4, 3), [0.5, -2.0], np.ones(2), num_groups=2, linear=False, points=steep, epsilon=0.01, opset=18, single=True),
    case("GroupNormalization", (1, 4, 3), [0.5, -2.0, 0.1, 0.1], np.ones(4), num_groups=2, linear=False, points=steep, epsilon=0.01, opset=21, single=True),
    case("BatchNormalization", (2, 3, 2), RNG.standard_normal((3, 2)), *[np.ones((3, 2))] * 2, np.full((3, 2), 0.5), spatial=0, opset=7, single=True),
    *(case(op, (2, 3), np.ones((2, 3)), np.ones((2, 3))) for op in ("Sum", "Mean")),
    case("Min", (2, 3), np.full((2, 3), 9.0), linear=False), case("Max", (2, 3), np.full((2, 3), -9.0), linear=False),
    case("Split", (4, 3), axis=0, outputs=2), case("Squeeze", (1, 3, 1)), case("ReduceSum", (2, 3), keepdims=0),
    case("ReduceSum", (2, 3), noop_with_empty_axes=1, opset=13), case("ReduceL2", (2, 3), noop_with_empty_axes=1, opset=18, linear=False),
    case("ReduceMean", (2, 3, 4), axes=[-1, 0], opset=11), case("TopK", (2, 4), np.array([3]), largest=0, linear=False, outputs=2, opset=11),
    case("Clip", (2, 3), None, np.array(0.4), linear=False), case("Clip", (2, 3), min=-0.2, max=0.3, opset=7, linear=False, single=True),
    *(case("Resize", (1, 1, 4, 6), np.array([1, 1, *by], np.float32), opset=10, mode=how, single=True)
      for how, by in (("linear", (2, 3)), ("linear", (0.5, 0.5)), ("nearest", (0.5, 1.7)))),
    *(case("Upsample", (1, 1, 4, 5), np.array([1, 1, *by], np.float32), opset=9, mode=how, single=True)
      for how, by in (("linear", (2, 3)), ("nearest", (2.5, 3)))),
    case("Slice", (4, 3), np.array([3, 0]), np.array([-5, 3]), np.array([0, 1]), np.array([-1, 2]), opset=10),
    case("Slice", (4, 3), starts=[1, 0], ends=[-1, 2], opset=7), case("Unsqueeze", (2, 3), axes=[-1, 0], opset=11),
    *(case("AveragePool", (1, 1, 6, 6), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, ceil_mode=1, count_include_pad=c, opset=10) for c in (0, 1)),
    case("AveragePool", (1, 1, 6, 6), kernel_shape=[2, 2], dilations=[2, 2], opset=19), case("Dropout", (2, 3), ratio=0.7, opset=7),
    case("LpPool", (1, 1, 4, 4), kernel_shape=[2, 2], p=2, linear=False, opset=7, single=True, points=steep),
    case("Pad", (2, 3), pads=[0, 1, 0, 2], mode="edge", opset=7, single=True), case("CumSum", (2, 3), np.array(1), exclusive=1, reverse=1, opset=11),
    case("LSTM", (3, 1, 2), *gates(4), hidden_size=2, linear=False, single=True, outputs=3),
    case("GRU", (3, 1, 2), *gates(3), hidden_size=2, linear=False, single=True, outputs=2),
    case("RNN", (3, 1, 2), *gates(1), hidden_size=2, linear=False, single=True, outputs=2),
    case("ReduceSumSquare", (2, 3), axes=[1], linear=False, box=(-1, 1)), case("ReduceLogSum", (2, 3), axes=[1], linear=False, box=(0.5, 1)),
)  # fmt: skip
CASES: dict[str, list[tuple[Case, dict[Norm, float]]]] = {}
for _one, _operator in (*((c, {}) for c in (*EXTRA, *CURVES, *RANGED)), *MEASURED):
    if not _one.domain:
        CASES.setdefault(_one.op, []).append((_one, _operator))


def test_since_is_the_opset_that_brought_the_op() -> None:
    first: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            first[schema.name] = min(first.get(schema.name, 99), schema.since_version)
    for row in rules.ROWS:
        assert row.since == (1 if row.domain else max(OLDEST, first.get(row.op, OLDEST))), row.op


def steepest(one: Case) -> tuple[Case, dict[Norm, float]] | None:
    """(the case in the width that onnxruntime has, the largest gain seen in each norm); None: it has no kernel."""
    function = None
    for single in (False, True):
        one = replace(one, single=single or one.single)
        try:
            function, n = function_of(one.model())
            function(np.full(n, 0.6))
            break
        except Exception as error:
            if type(error).__name__ not in ("NotImplemented", "InvalidGraph", "Fail"):
                raise
            function = None
    if function is None:
        return None
    low, high = one.box or (-2.0, 2.0)
    if n > 200:
        x = np.linspace(low, high, n)
        slope = float(np.abs(np.diff(function(x)) / np.diff(x)).max())
        return one, dict.fromkeys(("l2", "linf", "l1"), slope)
    rng = np.random.default_rng(1)
    points = [rng.uniform(low, high, n)] + ([one.points(n)] if one.points and not one.box else [])
    if one.op in KINKED:
        points = [rng.permutation(n) * 0.1 - 1.0]
    step = 0.5 if one.linear else 0.02 if one.single else 1e-6
    jacobians = [jacobian(function, x, step) for x in points]
    return one, {norm: max(gain(matrix, norm) for matrix in jacobians) for norm in ("l2", "linf", "l1")}


@pytest.mark.parametrize("op", sorted({row.op for row in rules.ROWS if not row.domain and ("", row.op) not in REFUSED} - ELSEWHERE))
def test_each_version_of_an_op_is_bounded(op: str) -> None:
    wanted = sorted({v for v in VERSIONS[op] if v <= NEWEST} | {NEWEST})
    done: set[int] = set()
    for given, operator in CASES[op]:
        for version in wanted:
            if version < given.opset and given.opset != ANY and any(given is one for one in EXTRA):
                continue
            one = at_opset(given, version)
            seen = None if one is None else steepest(one)
            if seen is None:
                continue
            one, truth = seen
            for norm in ("l2",) if op in ("LSTM", "GRU", "RNN") else ("l2", "linf"):
                found = composed(one.model(), norm, {"y": operator} if operator else {}, box={"x": one.box} if one.box else {})
                assert not found.gaps, (one.name, found.gaps)
                room = 5e-3 if one.single or op in ("Cast", "CastLike") else 1e-6
                assert truth[norm] <= found.bound.upper * (1 + room), (one.name, norm)
            done.add(version)
    missing = {(op, version) for version in {*wanted} - done}
    assert missing <= NOT_RUN, missing
