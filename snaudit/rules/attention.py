"""Attention and other ops that multiply varying values: no constant by themselves.

Where a norm or a range bounds the tokens, `snaudit.attention` finds one for all of an attention.
"""

from __future__ import annotations

from collections.abc import Callable

from snaudit.rules.interface import Row, Step, Unbounded, Value


def _refusing(reason: str, remedy: str, code: str) -> Callable[[Step], tuple[Value, ...]]:
    def rule(step: Step) -> tuple[Value, ...]:
        raise Unbounded(f"{step.node.op_type} {reason}", remedy, code)

    rule.__doc__ = f"None: it {reason}."
    return rule


attention = _refusing(
    "multiplies queries, keys and values that all depend on the network's input: without a bound on the tokens it "
    "has no constant (Kim, Papamakarios & Mnih 2021)",
    "put a LayerNorm or RMSNorm before it, or state an input range (--input-range); fix the number of tokens",
    "product",
)
gated = _refusing(
    "multiplies two values that both depend on the network's input",
    "bound both factors, or make one of them a constant",
    "product",
)

ROWS: tuple[Row, ...] = (
    Row("Attention", attention, "∞", "attention on a ball (docs/mathematics.md)",
        "finite in l2 as a whole: tokens behind a norm or on a range, constant masks"),
    Row("RotaryEmbedding", gated, "∞", "none yet"),
    Row("SwiGLU", gated, "∞", "none without a range"),
    *(
        Row(op, attention, "∞", "attention on a ball (docs/mathematics.md)",
            "finite in l2 as a whole: tokens behind a norm or on a range, constant masks", domain="com.microsoft")
        for op in ("Attention", "MultiHeadAttention")
    ),
    *(
        Row(op, attention, "∞", "none without a range", domain="com.microsoft")
        for op in ("GroupQueryAttention", "PackedAttention", "QAttention")
    ),
)
