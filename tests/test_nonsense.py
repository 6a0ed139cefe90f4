"""Seeded graphs of ops that make no sense together: a report or a refusal for each, and nothing else.

Any op of ONNX's own, with attributes, inputs and shapes of any kind. Nothing may raise, hang or
crash on them: not the reader, not shape inference, not the folding of constants, not a rule.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from corpus import matrix
from onnx import helper, numpy_helper
from test_fuzz import SLOWEST, loaded, watch

__all__ = ["watch"]  # a fixture: its name must be here for pytest to find it

GRAPHS = 1200
W = matrix(rows=3, columns=4)
_VALUES: dict[str, list[object]] = {
    "INT": [0, 1, -1, 2, 7, 1 << 62, -(1 << 63)],
    "FLOAT": [0.0, 0.5, -1.0, float("nan"), float("inf"), 1e-300],
    "STRING": ["SAME_UPPER", "SAME_LOWER", "VALID", "", "\x1b[31m", "linear", "DCR", "bidirectional", "sum"],
    "INTS": [
        [0],
        [1, 1],
        [2, 2],
        [-1, 3],
        [3, 3],
        [1, 1, 1, 1],
        [2, 2, 2, 2],
        [1 << 40] * 2,
        [0, 0],
        [-1],
        [],
    ],
    "FLOATS": [[0.5, 2.0], [float("nan")]],
    "STRINGS": [["Relu", "Tanh"], ["x"]],
    "TENSOR": [
        numpy_helper.from_array(W),
        numpy_helper.from_array(np.zeros((0,), np.int64)),
        numpy_helper.from_array(np.ones(1, np.float32)),
    ],
}


def _attribute(rng: random.Random, name: str, kind: str) -> onnx.AttributeProto:
    kind = kind if kind in _VALUES and rng.random() < 0.97 else rng.choice(list(_VALUES))
    value = rng.choice(_VALUES[kind])
    return helper.make_attribute(name, value, attr_type=onnx.AttributeProto.INTS if value == [] else None)


def _nonsense(rng: random.Random) -> onnx.ModelProto:
    """A model of three random ops with attributes and inputs of any kind."""
    constants = {
        "w": W,
        "v": W[0],
        "s": np.float32(2),
        "k": matrix(rows=6, columns=12).reshape(6, 3, 2, 2),
        "i": np.array([0, 1]),
        "j": np.array(-1),
        "huge": np.array([1 << 40, 1 << 40]),
        "e": np.zeros((0, 4), np.float32),
        "nan": np.float32(np.nan),
        "t": np.array(["a"], dtype=object),
        "b": np.array(True),
        "d": W.astype(np.float64),
        "q": W.astype(np.int8),
    }
    made, nodes = ["x"], []
    for number in range(3):
        schema = rng.choice(_SCHEMAS)
        wanted = rng.randint(schema.min_input, max(schema.min_input, min(schema.max_input, 4)))
        ins = [
            rng.choice((made[-1], made[-1], *constants, *made)) if rng.random() < 0.97 else ""
            for _ in range(wanted)
        ]
        outs = rng.randint(max(1, schema.min_output), max(1, min(schema.max_output, 3)))
        node = helper.make_node(schema.name, ins, [f"n{number}", *(f"n{number}_{i}" for i in range(1, outs))])
        node.attribute.extend(
            _attribute(rng, name, a.type.name)
            for name, a in schema.attributes.items()
            if a.required or rng.random() < 0.4
        )
        nodes.append(node)
        made += list(node.output)
    nodes.append(helper.make_node("Gemm", ["x", "w"], ["out"], transB=1))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, rng.choice(([2, 4], ["n", 4], [1, 3, 8, 8], None)))],
        [helper.make_tensor_value_info(name, 1, None) for name in ("out", f"n{number}")],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", rng.choice((7, 11, 13, 17, 21)))], ir_version=8
    )


_SCHEMAS = sorted((s for s in onnx.defs.get_all_schemas() if s.domain == ""), key=lambda s: s.name)


def test_nodes_without_sense(tmp_path: Path, watch: dict[str, Any]) -> None:
    """Any op with any attributes and inputs: a report or a refusal, within bounds, for every graph."""
    rng = random.Random("snaudit nonsense")
    path = tmp_path / "audited"
    accepted = 0
    for number in range(GRAPHS):
        model = _nonsense(rng)
        path.write_bytes(model.SerializeToString())
        signal.setitimer(signal.ITIMER_REAL, SLOWEST)
        try:
            accepted += loaded(path) is not None
        except BaseException as error:
            raise AssertionError(
                f"{type(error).__name__}: {error} from graph {number}: {onnx.printer.to_text(model)}"
            ) from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert accepted > GRAPHS // 3
