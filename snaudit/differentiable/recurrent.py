"""LSTM, GRU and RNN, step by step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from snaudit.differentiable.interface import Call, Given, Row, Tensor, integers

CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu, "sigmoid": torch.sigmoid, "softplus": F.softplus, "softsign": F.softsign,
    "tanh": torch.tanh,
}  # fmt: skip
_DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(call: Call, x: Given, w: Given, r: Given, *rest: Given) -> tuple[Tensor, ...]:
    """(all hidden states, the last one, and for an LSTM the last cell)."""
    bias, lengths, hidden, cell, peep = (rest[i] if len(rest) > i else None for i in range(5))
    x = x.transpose(0, 1) if call.get("layout", 0) else x
    if lengths is not None and any(n != x.shape[0] for n in integers(lengths)):
        raise call.refuse("sequences of several lengths")
    if call.get("clip") is not None:
        raise call.refuse("clip")
    directions, size = w.shape[0], r.shape[-1]
    curves = [c.lower() for c in call.get("activations", _DEFAULTS[call.op] * directions)]
    unknown = next((c for c in curves if c not in CURVES), None)
    if unknown is not None:
        raise call.refuse(f"the activation {unknown}")
    each = len(curves) // directions
    outs, lasts, cells = [], [], []
    for d in range(directions):
        backward = call.get("direction", "forward") == "reverse" or d == 1
        start = [_start(call, state, d, x, size) for state in (hidden, cell)]
        b = torch.zeros(2 * _GATES[call.op] * size, dtype=x.dtype) if bias is None else bias[d]
        functions = [CURVES[c] for c in curves[d * each : (d + 1) * each]]
        steps = x.flip((0,)) if backward else x
        step = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[call.op]
        found, last = step(call, steps, (w[d], r[d], b, None if peep is None else peep[d]), start, functions)
        outs.append(found.flip((0,)) if backward else found)
        lasts.append(last[0])
        cells.append(last[1])
    y, last, held = torch.stack(outs, 1), torch.stack(lasts), torch.stack(cells)
    if call.get("layout", 0):
        y, last, held = y.permute(2, 0, 1, 3), last.transpose(0, 1), held.transpose(0, 1)
    return (y, last, held)[: 3 if call.op == "LSTM" else 2]


def _start(call: Call, state: Given, d: int, x: Tensor, size: int) -> Tensor:
    if state is None:
        return torch.zeros(x.shape[1], size, dtype=x.dtype)
    return state[:, d] if call.get("layout", 0) else state[d]


def _lstm(call: Call, x: Tensor, held: tuple, start: list, curves: list) -> tuple[Tensor, tuple]:
    w, r, b, peep = held
    f, g, h = curves
    n = r.shape[-1]
    pi, po, pf = (0.0, 0.0, 0.0) if peep is None else torch.split(peep, n)
    state, cell = start
    outs = []
    for row in x @ w.T + b[: 4 * n] + b[4 * n :]:
        i, o, forget, c = torch.split(row + state @ r.T, n, -1)
        i = f(i + pi * cell)
        forget = 1 - i if call.get("input_forget", 0) else f(forget + pf * cell)
        cell = forget * cell + i * g(c)
        state = f(o + po * cell) * h(cell)
        outs.append(state)
    return torch.stack(outs), (state, cell)


def _gru(call: Call, x: Tensor, held: tuple, start: list, curves: list) -> tuple[Tensor, tuple]:
    w, r, b, _ = held
    f, g = curves
    n = r.shape[-1]
    state, outs = start[0], []
    for row in x @ w.T + b[: 3 * n]:
        z, reset, h = torch.split(row, n, -1)
        rz, rr = torch.split(state @ r[: 2 * n].T + b[3 * n : 5 * n], n, -1)
        z, reset = f(z + rz), f(reset + rr)
        if call.get("linear_before_reset", 0):
            h = g(h + reset * (state @ r[2 * n :].T + b[5 * n :]))
        else:
            h = g(h + (reset * state) @ r[2 * n :].T + b[5 * n :])
        state = (1 - z) * h + z * state
        outs.append(state)
    return torch.stack(outs), (state, state)


def _rnn(call: Call, x: Tensor, held: tuple, start: list, curves: list) -> tuple[Tensor, tuple]:
    w, r, b, _ = held
    n = r.shape[-1]
    state, outs = start[0], []
    for row in x @ w.T + b[:n] + b[n:]:
        state = curves[0](row + state @ r.T)
        outs.append(state)
    return torch.stack(outs), (state, state)


ROWS: dict[str, Row] = {"GRU": recurrent, "LSTM": recurrent, "RNN": recurrent}
