"""Whether the nodes of a graph have the attributes and the number of inputs that their ops have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import onnx

from snaudit.errors import UnreadableModel

_DEFAULT = ("", "ai.onnx")


def check_signatures(path: Path, proto: onnx.ModelProto) -> None:
    """Raise UnreadableModel for an attribute that is given twice or is of another kind than its op's,
    for a wrong number of inputs, and for an If without its parts: the rules then need not expect them.
    """
    version = max((o.version for o in proto.opset_import if o.domain in _DEFAULT), default=0)
    graphs = [proto.graph.node, *(function.node for function in proto.functions)]
    for node in (node for nodes in graphs for node in _all(nodes)):
        where, names = node.name or node.op_type, [attribute.name for attribute in node.attribute]
        if len(set(names)) != len(names):
            raise UnreadableModel(path, f"node {where} has an attribute twice")
        if node.domain not in _DEFAULT:
            continue
        schema = _schema(node.op_type, version)
        kinds = {} if schema is None else {k: int(a.type.value) for k, a in schema.attributes.items()}
        if schema is not None and not schema.min_input <= len(node.input) <= schema.max_input:
            raise UnreadableModel(path, f"node {where}: {node.op_type} has not {len(node.input)} inputs")
        for attribute in node.attribute:
            if attribute.type != kinds.get(attribute.name, attribute.type) or not _is_filled(attribute):
                raise UnreadableModel(path, f"node {where}: its attribute {attribute.name} is of the wrong kind")
        if node.op_type == "If" and not ({"then_branch", "else_branch"} <= set(names) and any(node.input[:1])):
            raise UnreadableModel(path, f"node {where} is an If without a condition or a branch")


def _all(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _all(body.node)


_FIELDS = {"FLOAT": "f", "INT": "i", "STRING": "s", "TENSOR": "t", "GRAPH": "g", "SPARSE_TENSOR": "sparse_tensor", "TYPE_PROTO": "tp"}


def _is_filled(attribute: onnx.AttributeProto) -> bool:
    """Whether the field that its type names is there; a list may be empty, a number left at zero."""
    field = _FIELDS.get(onnx.AttributeProto.AttributeType.Name(attribute.type))
    structured = field in ("t", "g", "sparse_tensor", "tp")
    return bool(attribute.ref_attr_name) or not structured or attribute.HasField(field)


@cache
def _schema(op: str, version: int) -> onnx.defs.OpSchema | None:
    """ONNX's own description of an op at an opset; None where this onnx does not know it."""
    try:
        return onnx.defs.get_schema(op, min(version, onnx.defs.onnx_opset_version()), "")
    except onnx.defs.SchemaError:
        return None
