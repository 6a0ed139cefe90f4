"""A node's attributes, as every reader of a graph takes them."""

from __future__ import annotations

from typing import Any


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The attribute's value, bytes as text; `default` where the node does not have it."""
    found = node.attributes.get(name)
    if found is None or found.value is None:
        return default
    return found.value.decode() if isinstance(found.value, bytes) else found.value
