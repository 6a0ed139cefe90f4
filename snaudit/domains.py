"""The two domains whose ops are known. An op of any other domain is unknown, whatever its name."""

from __future__ import annotations

from typing import Any

MICROSOFT = "com.microsoft"
KEPT, REMEDY = "snaudit.kept", "snaudit.remedy"
"""Keys of a node's metadata: why it could not be written as ops that have rules, and what helps."""


def plain(domain: str) -> str:
    """The domain as tables have it: ONNX's own, which has two names, is ""."""
    return "" if domain == "ai.onnx" else domain


def is_default(node: Any) -> bool:
    """Whether a node's op is one of ONNX's own."""
    return node.domain in ("", "ai.onnx")


def is_known(node: Any) -> bool:
    """Whether a node's op is one of ONNX's own or of onnxruntime's."""
    return is_default(node) or node.domain == MICROSOFT
