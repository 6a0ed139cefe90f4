"""Makers of ONNX graphs, what onnxruntime computes of them, and what `compose` says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper, numpy_helper
from onnx_ir.passes.common import ShapeInferencePass

from snaudit import lipschitz, sigma
from snaudit.bound import NORMS, Bound, Norm, at_most
from snaudit.linear import Dense
from snaudit.lipschitz import Composition, Shortcut
from snaudit.ranges import Range, enclosing

Function = Callable[[np.ndarray], np.ndarray]
KINDS = {
    "float64": onnx.TensorProto.DOUBLE,
    "float32": onnx.TensorProto.FLOAT,
    "int64": onnx.TensorProto.INT64,
}


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    weights: Mapping[str, Any] = {},
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    dtype: str = "float64",
    kinds: Mapping[str, str] = {},
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model; real weights take `dtype`, integers and booleans stay as they are."""

    def stored(array: Any) -> np.ndarray:
        array = np.asarray(array)
        return array.astype(dtype) if array.dtype.kind == "f" else array

    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(n, KINDS[kinds.get(n, dtype)], list(s)) for n, s in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(stored(array), name) for name, array in weights.items()],
    )
    imports = [
        helper.make_opsetid("", opset),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid("own", 1),
    ]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def function_of(model: onnx.ModelProto, fixed: Mapping[str, np.ndarray] = {}) -> tuple[Function, int]:
    """(f, n): the model as a map from R^n to all its outputs, flattened; `fixed` are other inputs."""
    session = session_of(model)
    shapes = {
        i.name: (i.shape, np.float64 if "double" in i.type else np.float32)
        for i in session.get_inputs()
        if i.name not in fixed
    }
    sizes = [int(np.prod(shape)) for shape, _ in shapes.values()]
    ends = np.cumsum([0, *sizes])

    def function(x: np.ndarray) -> np.ndarray:
        feed = {
            name: x[a:b].reshape(shape).astype(kind)
            for (name, (shape, kind)), a, b in zip(shapes.items(), ends, ends[1:], strict=False)
        }
        return np.concatenate([y.astype(np.float64).ravel() for y in session.run(None, {**feed, **fixed})])

    return function, int(ends[-1])


def jacobian(function: Function, x: np.ndarray, step: float) -> np.ndarray:
    """The Jacobian at x by central differences."""
    moves = np.eye(len(x)) * step
    return np.stack([(function(x + e) - function(x - e)) / (2 * step) for e in moves], axis=1)


def size(array: np.ndarray, norm: Norm) -> float:
    """The norm of a vector."""
    return float(np.linalg.norm(array.ravel(), {"l2": 2, "l1": 1, "linf": np.inf}[norm]))


def gain(matrix: np.ndarray, norm: Norm) -> float:
    """The operator norm of a matrix."""
    return float(np.linalg.norm(matrix, {"l2": 2, "l1": 1, "linf": np.inf}[norm])) if matrix.size else 0.0


def fold(value: ir.Value) -> np.ndarray | None:
    """The array of an initializer or of a Constant node."""
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        return node.attributes["value"].as_tensor().numpy()
    return None


def read(model: onnx.ModelProto) -> ir.Model:
    """The graph as `compose` takes it, with the shapes that ONNX infers."""
    graph = ir.from_proto(model)
    try:
        ShapeInferencePass()(graph)
    except Exception as error:  # ops that are not ONNX's
        assert "Inference" in type(error).__name__ or "schema" in str(error).lower(), error
    return graph


def composed(
    model: onnx.ModelProto,
    norm: Norm = "l2",
    operators: Mapping[str, Mapping[Norm, float]] = {},
    shortcuts: Callable[[dict[str, ir.Value]], list[Shortcut]] = lambda values: [],
    box: Mapping[str, tuple[Any, Any]] = {},
) -> Composition:
    """`compose` of a model; `operators` by the name of the node's first output, `box` by the input's."""
    graph = read(model)
    values = {v.name: v for v in graph.graph.inputs}
    values |= {o.name: o for n in ir.traversal.RecursiveGraphIterator(graph.graph) for o in n.outputs}
    norms: dict[ir.Value, Bound] = {
        values[name]: at_most(table[norm], "given") for name, table in operators.items() if name in values
    }
    names = {values[name]: f"layer {name}" for name in operators if name in values}
    measure = lambda matrix: sigma.measure(Dense(matrix), norm)  # noqa: E731
    return lipschitz.compose(graph, norm, norms, names, shortcuts(values), fold, stated(box), measure)


def stated(box: Mapping[str, tuple[Any, Any]]) -> dict[str, Range]:
    return {name: enclosing(low, high, frozenset({f"box of {name}"})) for name, (low, high) in box.items()}


def norms_of(weight: np.ndarray) -> dict[Norm, float]:
    """The norms of x ↦ x·W."""
    return {norm: gain(np.asarray(weight, np.float64).T, norm) * (1 + 1e-12) for norm in NORMS}


def random_dag(seed: int, linear: bool, width: int = 5, depth: int = 9) -> tuple[onnx.ModelProto, dict]:
    """A random DAG over [2, n] tensors and the norms of its layers: residuals, concatenations, splits,
    shared weights, two inputs at times; all ops linear, or with activations in between."""
    rng = np.random.default_rng(seed)
    inputs = {"x": [2, width]} | ({"z": [2, 3]} if seed % 3 == 0 else {})
    widths = {name: shape[1] for name, shape in inputs.items()}
    shared = {n: f"w{n}" for n in (3, width)}
    weights: dict[str, np.ndarray] = {name: rng.standard_normal((n, width)) for n, name in shared.items()}
    nodes: list[onnx.NodeProto] = []
    norms: dict[str, dict[Norm, float]] = {}

    def emit(op: str, args: list[str], columns: int, **attributes: Any) -> str:
        name = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, args, [name], name=f"n{len(nodes)}", **attributes))
        widths[name] = columns
        return name

    def constant(array: np.ndarray) -> str:
        weights[f"c{len(weights)}"] = array
        return f"c{len(weights) - 1}"

    def project(value: str) -> str:
        weight = shared.get(widths[value]) if rng.random() < 0.5 else None
        weight = weight or constant(rng.standard_normal((widths[value], width)))
        name = emit("MatMul", [value, weight], width)
        norms[name] = norms_of(weights[weight])
        return name

    def grow() -> None:
        value, other = (str(v) for v in rng.choice(sorted(widths), 2))
        columns = widths[value]
        kind = rng.integers(8 if linear else 15)
        if kind == 0:
            project(value)
        elif kind == 1:
            emit(str(rng.choice(["Add", "Sub"])), [project(value), project(other)], width)
        elif kind == 2:
            emit("Concat", [value, other], columns + widths[other], axis=1)
        elif kind == 3:
            picks = constant(rng.integers(0, columns, 4))
            emit("Gather", [value, picks], 4, axis=1)
        elif kind == 4:
            emit("Mul", [value, constant(rng.standard_normal(columns))], columns)
        elif kind == 5:
            mean = emit("ReduceMean", [value], 1, axes=[1], keepdims=1)
            emit("Sub", [value, mean], columns)
        elif kind == 6:
            emit("Div", [value, constant(rng.uniform(0.5, 2.0, (2, 1)))], columns)
        elif kind == 7:
            emit("Add", [value, project(value)] if columns == width else [value, value], columns)
        elif kind == 8:
            emit("LayerNormalization", [value, constant(rng.standard_normal(columns))], columns, epsilon=0.5)
        elif kind == 9:
            emit(str(rng.choice(["Max", "Min"])), [project(value), project(other)], width)
        else:
            op = str(rng.choice(["Relu", "Tanh", "Sigmoid", "LeakyRelu", "Softmax", "Abs", "Sin"]))
            emit(op, [value], columns)

    for _ in range(depth):
        grow()
    last = nodes[-1].output[0]
    first = emit("Concat", [last, project("x")], widths[last] + width, axis=1)
    return make_model(nodes, inputs, weights, [first]), norms
