"""ATen's LSTM, GRU and RNN as ONNX's: layer by layer, gates in ONNX's order."""

from __future__ import annotations

from functools import partial
from typing import Any

from snaudit.formats.aten_calls import (
    Untranslated,
    Writer,
    flag,
    integer,
    number,
    tensors,
)
from snaudit.formats.aten_pointwise import Translator

_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where ONNX's gates (i o f c; z r h) stand in torch's weights (i f g o; r z n)."""


def _reordered(w: Writer, op: str, weight: Any, hidden: int) -> Any:
    """The weight or bias with its gates in ONNX's order, with an axis for the direction in front."""
    if w.size(weight, 0) != len(_ORDER[op]) * hidden:
        raise Untranslated("gates of another number")
    parts = weight
    if op != "RNN":
        gates = [w.fresh("gate") for _ in _ORDER[op]]
        w.add("Split", [weight, w.ints([hidden] * len(gates))], gates, axis=0)
        parts = w.add("Concat", [gates[at] for at in _ORDER[op]], axis=0)
    return w.add("Unsqueeze", [parts, w.ints([0])])


def _layer(
    w: Writer, op: str, x: Any, states: list[Any], weights: list[Any], hidden: int, directions: int, more: dict[str, Any]
) -> list[str]:
    """One layer in all its directions: Y, Y_h and, for an LSTM, Y_c."""
    each = len(weights) // directions
    joined: list[Any] = []
    for kind in range(2):
        own = [_reordered(w, op, weights[d * each + kind], hidden) for d in range(directions)]
        joined.append(own[0] if directions == 1 else w.add("Concat", own, axis=0))
    bias = None
    if each == 4:
        pairs = [
            w.add("Concat", [_reordered(w, op, weights[d * 4 + kind], hidden) for kind in (2, 3)], axis=1)
            for d in range(directions)
        ]
        bias = pairs[0] if directions == 1 else w.add("Concat", pairs, axis=0)
    made = [w.fresh(name) for name in ("Y", "Y_h", "Y_c")[: 1 + len(states)]]
    way = "bidirectional" if directions == 2 else "forward"
    w.add(op, [x, *joined, bias, None, *states], made, hidden_size=hidden, direction=way, **more)
    return made


def _recurrent(
    op: str, function: str, w: Writer, input: Any, hx: Any, params: Any, has_biases: Any, num_layers: Any, dropout: Any,
    train: Any, bidirectional: Any, batch_first: Any,
) -> None:  # fmt: skip
    first = tensors(hx)
    weights, layers, directions = tensors(params), integer(num_layers), 1 + flag(bidirectional)
    each = 4 if flag(has_biases) else 2
    if flag(train) and number(dropout):
        raise Untranslated("a dropout in training mode: the network is random")
    if layers < 1 or len(weights) != layers * directions * each or w.rank(input) != 3:
        raise Untranslated("a recurrence with projections, or without a batch axis")
    hidden = w.size(weights[1], 1)
    kinds = {w.real(one) for one in (input, *first, *weights)}
    if len(kinds) != 1 or any((w.rank(one), w.size(one, 0)) != (3, layers * directions) for one in first):
        raise Untranslated("states of another form")
    x: Any = w.add("Transpose", [input], perm=[1, 0, 2]) if flag(batch_first) else input
    more: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" else {}
    more |= {"activations": [function] * directions} if op == "RNN" else {}
    last: list[list[str]] = [[] for _ in first]
    for layer in range(layers):
        at = [w.ints([layer * directions]), w.ints([(layer + 1) * directions]), w.ints([0])]
        states = [w.add("Slice", [one, *at]) for one in first]
        own = weights[layer * directions * each : (layer + 1) * directions * each]
        y, *ends = _layer(w, op, x, states, own, hidden, directions, more)
        x = w.add("Reshape", [w.add("Transpose", [y], perm=[0, 2, 1, 3]), w.ints([0, 0, directions * hidden])])
        for found, end in zip(last, ends, strict=True):
            found.append(end)
    w.add("Transpose" if batch_first else "Identity", [x], w.outputs[:1], **({"perm": [1, 0, 2]} if batch_first else {}))
    for found, output in zip(last, w.outputs[1:], strict=True):
        w.add("Concat", found, [output], axis=0)


def _lstm(
    w: Writer, input: Any, hx: Any, params: Any, has_biases: Any, num_layers: Any, dropout: Any, train: Any,
    bidirectional: Any, batch_first: Any,
) -> None:  # fmt: skip
    if type(hx) is not list or len(hx) != 2:
        raise Untranslated("an LSTM without its two states")
    _recurrent("LSTM", "", w, input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)


def _simple(
    op: str, function: str, w: Writer, input: Any, hx: Any, params: Any, has_biases: Any, num_layers: Any, dropout: Any,
    train: Any, bidirectional: Any, batch_first: Any,
) -> None:  # fmt: skip
    _recurrent(
        op, function, w, input, [hx], params, has_biases, num_layers, dropout, train, bidirectional, batch_first
    )


def _gru_cell(w: Writer, input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> None:
    """One step of a GRU: a sequence of length 1."""
    if w.rank(input) != 2 or w.rank(hx) != 2 or (b_ih is None) != (b_hh is None):
        raise Untranslated("a cell of another form")
    if len({w.real(one) for one in (input, hx, w_ih, w_hh)}) != 1:
        raise Untranslated("operands of two dtypes")
    x, h = (w.add("Unsqueeze", [one, w.ints([0])]) for one in (input, hx))
    weights = [w_ih, w_hh] if b_ih is None else [w_ih, w_hh, b_ih, b_hh]
    end = _layer(w, "GRU", x, [h], weights, w.size(w_hh, 1), 1, {"linear_before_reset": 1})[1]
    w.last("Squeeze", [end, w.ints([0])])


def _cell(w: Writer, input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> None:
    """One step of an LSTM: a sequence of length 1."""
    states = tensors(hx)
    if len(states) != 2 or w.rank(input) != 2 or (b_ih is None) != (b_hh is None):
        raise Untranslated("a cell of another form")
    hidden = w.size(w_hh, 1)
    if len({w.real(one) for one in (input, *states, w_ih, w_hh)}) != 1:
        raise Untranslated("operands of two dtypes")
    x, h, c = (w.add("Unsqueeze", [one, w.ints([0])]) for one in (input, *states))
    weights = [w_ih, w_hh] if b_ih is None else [w_ih, w_hh, b_ih, b_hh]
    _, *ends = _layer(w, "LSTM", x, [h, c], weights, hidden, 1, {})
    for end, output in zip(ends, w.outputs, strict=True):
        w.add("Squeeze", [end, w.ints([0])], [output])


RECURRENT: dict[str, Translator] = {
    "lstm.input": _lstm,
    "gru.input": partial(_simple, "GRU", ""),
    "rnn_tanh.input": partial(_simple, "RNN", "Tanh"),
    "rnn_relu.input": partial(_simple, "RNN", "Relu"),
    "lstm_cell.default": _cell,
    "gru_cell.default": _gru_cell,
}
