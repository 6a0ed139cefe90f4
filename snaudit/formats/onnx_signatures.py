"""Whether the nodes of a graph have the attributes, inputs and outputs that their ops have.

onnx's shape inference trusts that they do: it is C++ and dies of a segmentation fault where they do
not. The rules and the layers' readers need not expect it either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import onnx

from snaudit.errors import UnreadableModel

_STRUCTURED = {
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    onnx.AttributeProto.TYPE_PROTO: "tp",
}


def check_signatures(path: Path, proto: onnx.ModelProto) -> None:
    """Raise UnreadableModel for a node of ONNX's own ops that is none of its op's, and for an
    attribute that any node has twice."""
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = _plain(entry.domain)
        versions[domain] = max(entry.version, versions.get(domain, 0))
    bodies = [proto.graph.node, *(function.node for function in proto.functions)]
    for node in (node for body in bodies for node in _all(body)):
        fault = _fault(node, versions.get(_plain(node.domain), 0))
        if fault is not None:
            raise UnreadableModel(path, f"node {node.name or node.op_type}: {fault}")


def _fault(node: onnx.NodeProto, version: int) -> str | None:
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) != len(names):
        return "it has an attribute twice"
    if (node.domain, node.op_type) in _LIKE:
        return _unlike(node, _LIKE[node.domain, node.op_type])
    schema = _schema(node.op_type, _plain(node.domain), version)
    if schema is None:
        return None
    if not schema.min_input <= len(node.input) <= schema.max_input:
        return f"{node.op_type} does not take {len(node.input)} inputs"
    if any(not name and _is_needed(schema, index) for index, name in enumerate(node.input)):
        return "an input that it needs is left out"
    if len(node.output) > schema.max_output or (node.op_type == "Split" and _splits(node) < len(node.output)):
        return f"{node.op_type} does not make {len(node.output)} outputs"
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        if known is not None and attribute.type != known.type.value or not _is_filled(attribute):
            return f"its attribute {attribute.name} is of the wrong kind"
    missing = next((k for k, a in schema.attributes.items() if a.required and k not in names), None)
    return None if missing is None else f"its attribute {missing} is missing"


_MICROSOFT = ("FusedConv", "Conv"), ("QLinearConv", "Conv"), ("FusedGemm", "Gemm"), ("QGemm", "Gemm")
_LIKE = {("com.microsoft", op): like for op, like in _MICROSOFT}
"""onnxruntime's ops whose weights are read, and the op whose attributes they share."""


def _unlike(node: onnx.NodeProto, like: str) -> str | None:
    schema = _schema(like, "", 11)
    for attribute in node.attribute:
        known = None if schema is None else schema.attributes.get(attribute.name)
        if known is not None and attribute.type != known.type.value:
            return f"its attribute {attribute.name} is of the wrong kind"
    return None


def _is_needed(schema: onnx.defs.OpSchema, index: int) -> bool:
    formal = schema.inputs[min(index, len(schema.inputs) - 1)]
    return formal.option == onnx.defs.OpSchema.FormalParameterOption.Single


def _splits(node: onnx.NodeProto) -> int:
    """How many outputs a Split's own attribute says it has."""
    for attribute in node.attribute:
        if attribute.name == "num_outputs":
            return attribute.i
        if attribute.name == "split":
            return len(attribute.ints)
    return len(node.output)


def _all(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _all(body.node)


def _is_filled(attribute: onnx.AttributeProto) -> bool:
    """Whether the message that its type names is there (a number may be left at zero, a list empty)."""
    field = _STRUCTURED.get(attribute.type)
    return field is None or bool(attribute.ref_attr_name) or attribute.HasField(field)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


@cache
def _schema(op: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    """ONNX's own description of an op at an opset; None where this onnx does not know it."""
    newest = {"": onnx.defs.onnx_opset_version(), "ai.onnx.ml": onnx.defs.onnx_ml_opset_version()}.get(
        domain, version
    )
    try:
        return onnx.defs.get_schema(op, min(version, newest), domain)
    except onnx.defs.SchemaError:
        return None
