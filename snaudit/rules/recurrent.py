"""LSTM, GRU and RNN over a known number of steps.

Every rule follows the Jacobian of the whole sequence: for changes δx_s of the input at step s it keeps
non-negative rows with ‖dh_t‖ ≤ ⟨η_t, δ⟩, ‖dc_t‖ ≤ ⟨κ_t, δ⟩, δ = (‖dx_1‖, …, ‖dx_T‖, ‖dh_0‖, ‖dc_0‖). Where a
step gives ‖dh_t‖² ≤ Σ_j⟨u_j, δ⟩², the row √(Σ_j u_j²) will do (Minkowski). Y stacks all dh_t, so its constant
is at most ‖(η_t)_t‖₂; Y_h's is ‖η_T‖₂. Directions are stacked; examples of a batch never meet.

A row of slopes [p, q] on two changes a, b: ‖p∘a + q∘b‖ ≤ ‖(a, b)‖ where p² + q² ≤ 1 in
each entry (Cauchy–Schwarz), which is how gates that cannot both be steep are taken together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from snaudit import joint
from snaudit.bound import Grade, at_most, root_sum_squares_up
from snaudit.gains import non_negative
from snaudit.ranges import Range
from snaudit.rounding import SAFE, TINY, U, frobenius_up
from snaudit.rules.interface import SURROGATE, Row, Step, Unbounded, Value, through, within

_SLACK = 1.0 + 2.0**-30
"""More than what a row's entry can lose: each step rounds it less than 32 times, over at most 2¹⁵ steps."""
_LONGEST = 2048
"""Steps up to which the gains from every step to every other are kept."""
_SOLVED = 512
"""Steps up to which the norm of the gains is sought as an eigenvalue; beyond, Hölder's bound does."""
_REACH = ((math.sqrt(5.0) - 1.0) / 2.0) ** 2.5 * (1.0 + 2.0**-40)
"""√ of the maximum of r²(1 − r)/(1 + r), at r = (√5 − 1)/2: then r² + (v·r(1 − r))² ≤ 1 for v = 1/_REACH."""
_SLOPES = {"tanh": 1.0, "relu": 1.0, "sigmoid": 0.25, "softsign": 1.0, "softplus": 1.0}
_DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_QUANTIZED = "DynamicQuantizeLSTM"


@dataclass(slots=True)
class _Sizes:
    """Upper bounds of norms, each with the least grade of all that were measured."""

    step: Step
    grade: Grade = Grade.PROVED

    def of(self, matrix: np.ndarray, relative: float = 0.0) -> float:
        """‖M‖ from above for every M whose entries are within `relative` of the matrix's."""
        found = self.step.measure(np.ascontiguousarray(matrix))
        self.grade = min(self.grade, found.grade)
        if not found.bounded:
            raise Unbounded(
                f"no finite norm of a recurrent weight is known ({found.method})", "repair the weights", "bad-constant"
            )
        if not relative:
            return found.upper
        return (found.upper + relative * SAFE * frobenius_up(matrix)) * (1.0 + 4 * U) + TINY


@dataclass(frozen=True, slots=True)
class _Direction:
    """One direction's weights in float64: gates in the op's order, each (hidden, ·)."""

    w: tuple[np.ndarray, ...]
    r: tuple[np.ndarray, ...]
    recurrent_bias: tuple[np.ndarray, ...]
    peepholes: tuple[np.ndarray, ...]
    slope: float


@dataclass(frozen=True, slots=True)
class _Case:
    """How a run starts and how long it is: sup|h₀|, sup|c₀|, steps, and GRU's linear_before_reset."""

    hidden: float
    cell: float
    length: int
    linear_first: bool


_Table = tuple[np.ndarray, np.ndarray]
"""(η, κ), each (steps, steps + 2): the last two columns are for h₀ and c₀."""


def recurrent(step: Step) -> tuple[Value, ...]:
    """The gains, over a known number of steps, of X and of initial states that vary; l2 only.

    Each direction's recursion is `_lstm`, `_gru` or `_rnn`. Only the default activations (RNN: any of tanh, relu,
    sigmoid, softsign, softplus); clipping what enters them never raises a slope. No constant for coupled gates
    (input_forget). Loose over many steps: each step is taken at its steepest.
    """
    op = _kind(step)
    if step.norm != "l2":
        raise Unbounded(f"{op} has a rule in l2 only", "use --norm l2", "no-rule")
    if any(i in step.varying for i in (1, 2, 3, 7)):
        raise Unbounded(f"a weight of {op} depends on the network's input", "make it a constant", "varying-parameter")
    if step.attribute("input_forget", 0):
        raise Unbounded(f"{op} with coupled gates (input_forget) has no rule", "export separate gates", "no-rule")
    length = _length(step)
    directions = _directions(step)
    hidden, cell = (_start(step, slot) for slot in (5, 6))
    case = _Case(hidden[0], cell[0], length, bool(step.attribute("linear_before_reset", 0)))
    sizes = _Sizes(step)
    with np.errstate(all="ignore"):  # gains beyond the floats are infinite
        tables = [_STEPS[op](one, case, sizes) for one in directions]
        found = tuple(_output(step, tables, index, sizes.grade) for index in range(len(step.node.outputs)))
    return tuple(within(value, *hidden[1], *cell[1]) for value in found)


def quantized(step: Step) -> tuple[Value, ...]:
    """As `recurrent`, of the LSTM with the real weights (q − z)·s that the codes stand for, where no activation
    is rounded (onnxruntime rounds x_t and h_{t−1} at each step); what that adds is not followed."""
    if step.errors:
        reason = "what rounding at each step of DynamicQuantizeLSTM adds is not followed"
        raise Unbounded(reason, "audit the model before quantization", "quantized")
    found = recurrent(step)
    return tuple(
        replace(value, lip=replace(value.lip, grade=Grade.ASSUMED), assumes=(*value.assumes, SURROGATE), part=None)
        for value in found
    )


def _output(step: Step, tables: list[_Table], index: int, grade: Grade) -> Value:
    """Output `index` (Y, Y_h, Y_c) as a function of X and of the initial states, from each direction's table.

    Examples may end at any step where sequence_lens is given: the largest over steps then.
    """
    length = len(tables[0][0])
    columns = {0: slice(0, length), 5: slice(length, length + 1), 6: slice(length + 1, length + 2)}
    parts = []
    for slot in (slot for slot in columns if slot in step.varying):
        gains = [table[index == 2][:, columns[slot]] for table in tables]
        if step.has(4):
            each = [_norm(g) if index == 0 else max(_norm(row[None]) for row in g) for g in gains]
            upper = root_sum_squares_up(each)
        else:
            if slot == 0:
                gains = [g[:, ::-1] if _is_backward(step, i) else g for i, g in enumerate(gains)]
            upper = _norm(np.concatenate([g if index == 0 else g[-1:] for g in gains]))
        parts.append(through(step.inputs[slot], at_most(upper, "step by step", grade)))
    return joint.add(parts, step.norm)


def _norm(gains: np.ndarray) -> float:
    """‖G‖₂ from above for non-negative gains; ∞ where one is."""
    largest = float(gains.max(initial=0.0))
    if not math.isfinite(largest):
        return math.inf
    if largest == 0.0:
        return 0.0
    exponent = math.frexp(largest)[1]
    scaled = np.ldexp(gains, -exponent) * _SLACK + 1e-12  # positive, so that nothing underflows in a product
    if max(scaled.shape) <= _SOLVED:
        upper = non_negative(scaled, "l2").upper
    else:
        sums = (float(scaled.sum(axis=axis).max()) for axis in (0, 1))
        upper = min(frobenius_up(scaled), SAFE * math.sqrt(math.prod(sums)))
    try:
        return math.ldexp(upper, exponent)
    except OverflowError:
        return math.inf


def _lstm(one: _Direction, case: _Case, sizes: _Sizes) -> _Table:
    """(η, κ) with |c_{t−1}| ≤ C = sup|c₀| + t − 1, since |c_t| ≤ |c_{t−1}| + 1.

    dc_t = f∘dc + c∘f'∘a_f + g∘i'∘a_i + i∘g'∘a_g (a: the gates' changes before activation, W dx + R dh). With
    g' = 1 − g², (4g·i(1 − i))² + (i(1 − g²))² is convex in g² and at most 1 at both ends: the last two terms are
    at most ‖(a_i/4, a_g)‖; the first, |c∘f'| ≤ C/4. In one: √(1 + C²/16)·‖(a_f, a_i/4, a_g)‖ (Cauchy–Schwarz).
    dh_t = tanh(c)∘o'∘a_o + o∘(1 − tanh²c)∘dc_t: by the same lines at most ‖(a_o/4, dc_t)‖. Peepholes P add
    P∘dc to what enters a gate.
    """

    def parts(m: tuple[np.ndarray, ...]) -> tuple[float, float, float, float]:
        i, o, f, g = m
        inner = np.concatenate([i / 4.0, g])  # a power of two: exact
        return sizes.of(f), sizes.of(inner), sizes.of(np.concatenate([f, inner])), sizes.of(o)

    ways = [parts(m) for m in (one.w, one.r)]
    p_i, p_o, p_f = (float(np.abs(p).max(initial=0.0)) for p in one.peepholes)
    eta, kappa = _rows(case)
    h, c = _first(case)
    for t in range(case.length):
        reach = (case.cell + t) / 4.0
        gain_x, gain_h = (
            min(reach * forget + inner, math.sqrt(1.0 + reach * reach) * both) for forget, inner, both, _ in ways
        )
        c = (1.0 + reach * p_f + p_i / 4.0) * c + gain_h * h
        c[t] += gain_x
        out = (ways[1][3] * h + p_o * c) / 4.0
        out[t] += ways[0][3] / 4.0
        h = np.hypot(out, c)
        eta[t], kappa[t] = h, c
    return eta, kappa


def _gru(one: _Direction, case: _Case, sizes: _Sizes) -> _Table:
    """(η, κ = 0), with |h| ≤ H = max(1, sup|h₀|): each h_t lies between h_{t−1} and n.

    dh_t = z∘dh + (1 − z)(1 − n²)∘a_n + (h − n)z(1 − z)∘a_z is at most ‖(dh, a_n, w·a_z)‖ for w = (1 + H)/√8:
    the squares of the slopes sum to at most 1, since (1 − z)(1 − n²)² ≤ 1 − z and (1 + H)²z²(1 − z)/w² ≤ 2z.
    a_n = W_n dx + R_n(r∘dh + h∘r'∘a_r), and ‖r∘dh + h∘r(1 − r)∘a_r‖ ≤ ‖(dh, v·a_r)‖ for v = H·_REACH.
    With linear_before_reset, a_n = W_n dx + r∘(R_n dh) + (R_n h + b)∘r'∘a_r: v_k = (H·‖R_n,k‖₁ + |b_k|)·_REACH.
    """
    (wz, wr, wn), (rz, rr, rn) = one.w, one.r
    high = max(1.0, case.hidden)
    w = (1.0 + high) / math.sqrt(8.0) * (1.0 + 8 * U)
    eta, kappa = _rows(case)
    h, _ = _first(case)
    into = sizes.of(np.concatenate([wn, w * wz]), 2 * U)
    update, new = w * sizes.of(rz), sizes.of(rn)
    reach = _REACH * high * np.ones(len(rn))
    if case.linear_first:
        reach = _REACH * (high * np.abs(rn).sum(axis=1) + np.abs(one.recurrent_bias[2])) * _SLACK
    reset_x, reset_h = (sizes.of(reach[:, None] * m, 2 * U) for m in (wr, rr))
    for t in range(case.length):
        reset = reset_h * h
        reset[t] += reset_x
        inner = np.hypot(new * h, reset) if case.linear_first else new * np.hypot(h, reset)
        change = np.hypot(inner, update * h)
        change[t] += into
        h = np.hypot(h, change)
        eta[t] = h
    return eta, kappa


def _rnn(one: _Direction, case: _Case, sizes: _Sizes) -> _Table:
    """(η, κ = 0): ‖dh_t‖ ≤ s·(‖W‖‖dx_t‖ + ‖R‖‖dh_{t−1}‖), s the activation's largest slope."""
    into, again = one.slope * sizes.of(one.w[0]), one.slope * sizes.of(one.r[0])
    eta, kappa = _rows(case)
    h, _ = _first(case)
    for t in range(case.length):
        h = again * h
        h[t] += into
        eta[t] = h
    return eta, kappa


def _kind(step: Step) -> str:
    return "LSTM" if step.node.op_type == _QUANTIZED else step.node.op_type


def _rows(case: _Case) -> _Table:
    shape = (case.length, case.length + 2)
    return np.zeros(shape), np.zeros(shape)


def _first(case: _Case) -> tuple[np.ndarray, np.ndarray]:
    """The rows of h₀ and c₀ themselves."""
    rows = np.zeros((2, case.length + 2))
    rows[0, case.length] = rows[1, case.length + 1] = 1.0
    return rows[0], rows[1]


def _length(step: Step) -> int:
    """The number of steps: X's size, or the largest of constant sequence_lens. Unbounded if not known."""
    shape = step.shape(0)
    length = None if shape is None else shape[1 if step.attribute("layout", 0) else 0]
    if length is None:
        lens = step.constant(4)
        length = int(lens.max()) if lens is not None and lens.size else None
    if length is None:
        graph, remedy = step.node.graph, "give the input's size with --input-size"
        if graph is not None and not graph.inputs:  # the branch of an If: of one size once the If is settled
            remedy += ", and of an integer input that the If around it asks for the value, as NAME=N"
        raise Unbounded(
            f"{step.node.op_type} needs the sequence length, and the number of steps is not known",
            remedy,
            "recurrent",
        )
    if length > _LONGEST:
        reason = f"{step.node.op_type} over {length} steps: bounds are made for at most {_LONGEST}"
        raise Unbounded(reason, "audit a shorter sequence with --input-size", "recurrent")
    return max(1, length)


def _start(step: Step, slot: int) -> tuple[float, tuple[Range, ...]]:
    """(sup of an initial state's entries, the ranges that it rests on); 0 where there is none."""
    needed = slot == (6 if _kind(step) == "LSTM" else 5) and _kind(step) != "RNN"
    if not step.has(slot) or not needed:
        return 0.0, ()
    constant = None if slot in step.varying else step.constant(slot)
    found = step.range(slot)
    largest = found.largest if constant is None else float(np.abs(constant.astype(np.float64)).max(initial=0.0))
    if not math.isfinite(largest):
        raise Unbounded(
            f"how large {step.node.op_type}'s initial state may be is not known",
            "state an input range (--input-range), or store the state in the model",
            "needs-range",
        )
    return largest, () if constant is not None else (found,)


def _is_backward(step: Step, direction: int) -> bool:
    return direction == 1 or step.attribute("direction", "forward") == "reverse"


def _directions(step: Step) -> list[_Direction]:
    """The weights of each direction. Unbounded where they are no constants, or the activations have no rule."""
    op, count = _kind(step), _GATES[_kind(step)]
    if step.node.op_type == _QUANTIZED:
        w, r = (_dequantized(step, *slots) for slots in ((1, 8, 9), (2, 10, 11)))
    else:
        w, r = (_weight(step, index, 3) for index in (1, 2))
    size = r.shape[2]
    bias = _weight(step, 3, 2) if step.has(3) else np.zeros((len(w), 2 * count * size))
    peepholes = _weight(step, 7, 2) if step.has(7) else np.zeros((len(w), 3 * size))
    sizes = {w.shape[:2], r.shape[:2], (len(w), count * size)}
    if len(sizes) != 1 or bias.shape != (len(w), 2 * count * size) or peepholes.shape != (len(w), 3 * size):
        raise Unbounded(f"the weights of {op} do not fit together", "repair the model", "malformed")
    slopes = _slopes(step, len(w))
    return [
        _Direction(
            tuple(np.split(w[i], count)),
            tuple(np.split(r[i], count)),
            tuple(np.split(bias[i, count * size :], count)),
            tuple(np.split(peepholes[i], 3)),
            slopes[i],
        )
        for i in range(len(w))
    ]


def _weight(step: Step, index: int, rank: int) -> np.ndarray:
    array = step.constant(index)
    if array is None or array.dtype.kind in "iub":
        raise Unbounded(
            f"a weight of {step.node.op_type} is no floating-point constant", "store it in the model", "unmeasured-weight"
        )
    array = array.astype(np.float64)
    if array.ndim != rank or not np.isfinite(array).all():
        raise Unbounded(f"a weight of {step.node.op_type} is not finite", "repair the weights", "bad-constant")
    return array


def _dequantized(step: Step, codes: int, scale: int, zero: int) -> np.ndarray:
    """(q − z)·s of codes (directions, inputs, 4·hidden), as (directions, 4·hidden, inputs); exact in float64: nine
    bits times a float32. s and z have one entry for each direction, or for each of its columns."""
    q, s, z = (step.constant(index) for index in (codes, scale, zero))
    if q is None or s is None or z is None or q.ndim != 3 or q.dtype not in (np.int8, np.uint8):
        reason = f"a weight of {step.node.op_type} is no constant of 8-bit codes with scale and zero point"
        raise Unbounded(reason, "store all three in the model", "unmeasured-weight")
    grids = [(len(q), 1, -1) if one.shape in ((len(q),), (len(q), q.shape[2])) else None for one in (s, z)]
    if None in grids or s.dtype != np.float32 or not np.isfinite(s).all():
        raise Unbounded(f"a scale of {step.node.op_type} does not fit its codes", "repair the model", "bad-constant")
    real = (q.astype(np.float64) - z.reshape(grids[1]).astype(np.float64)) * s.reshape(grids[0]).astype(np.float64)
    return np.ascontiguousarray(real.transpose(0, 2, 1))


def _slopes(step: Step, directions: int) -> list[float]:
    """Each direction's largest slope (RNN); refuses activations other than the defaults (LSTM, GRU)."""
    op = _kind(step)
    names = [name.decode() if isinstance(name, bytes) else name for name in step.attribute("activations", [])]
    names = [name.lower() for name in names]
    if op == "RNN":
        names = names or ["tanh"] * directions
        found = [_SLOPES.get(name) for name in names]
        if len(found) == directions and None not in found:
            return found
    elif not names or names == _DEFAULTS[op] * directions:
        return [1.0] * directions
    raise Unbounded(f"{op} with the activations {', '.join(names)} has no rule", "use the default ones", "no-rule")


_STEPS: dict[str, Callable[[_Direction, _Case, _Sizes], _Table]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}

ROWS: tuple[Row, ...] = (
    Row("LSTM", recurrent, "‖step-by-step gains‖ (l2 only)", "|c_t| ≤ |c₀| + t; Minkowski", "known sequence length"),
    Row("GRU", recurrent, "‖step-by-step gains‖ (l2 only)", "|h| ≤ max(1, |h₀|); Minkowski", "known sequence length"),
    Row("RNN", recurrent, "‖Σ(s‖R‖)ᵏ·s‖W‖‖ (l2 only)", "Jacobian of each step", "known sequence length"),
    Row(_QUANTIZED, quantized, "‖step-by-step gains‖ (l2 only)", "as LSTM, of the real weights",
        "known sequence length; without rounding", domain="com.microsoft"),
)
