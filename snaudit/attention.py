"""Attention after norms, or on tokens of known size: one bound from the tokens to what a head gives.

Queries come from tokens x_i, keys and values from tokens y_j (self-attention: the same), ‖x_i‖ ≤ R, ‖y_j‖ ≤ S. A head is
o_i = Σ_j p_ij M_v y_j + const, p_i = softmax_j(⟨Aᵀx_i + a, y_j⟩ + mask_ij) with A = s·M_qᵀM_k, a = s·M_kᵀb_q (what does
not depend on j drops out of the softmax: key biases; Σp = 1: value biases). With E, Cov under p_i and a_i = Aᵀx_i + a,
‖a_i‖ ≤ r = R‖A‖ + ‖a‖,

    do_i = M_v·(E[dy] + Cov(y, ⟨a_i, dy⟩) + Cov(y)·Aᵀdx_i).

The last term, the queries' part: ‖Cov(y)‖ ≤ S². The first two are Σ_j p_ij(I + w_j a_iᵀ)dy_j, w_j = y_j − E[y], and
Σ_j p_ij(I + w_j a_iᵀ)(I + a_i w_jᵀ) = I + ‖a_i‖²Cov(y), so by Cauchy–Schwarz their square is at most (1 + r²S²)·Σ_j
p_ij‖dy_j‖², hence, with all p_ij ≤ ρ, √(nρ(1 + r²S²))·‖dY‖ over n rows. Or: ‖E[dy]‖² ≤ ρ‖dY‖², and for c_j = ⟨v, w_j⟩,
Σp_jc_j = 0, so Σ(p_jc_j)² ≤ ½(Σp_j|c_j|)² ≤ ½S²: √n(√ρ + rS/√2)·‖dY‖. So with k = rS and G = ‖M_v‖

    keys and values: G·√n·min(√(ρ(1 + k²)), √ρ + k/√2)      queries: G·S²‖A‖.

Logits of m keys that no mask touches differ by 2k at most, so ρ = 1/(1 + (m − 1)e^(−2k)) ≤ 1. As keys and values only
count by differences, y may be counted from any one point: on a box from its middle.

Rotary embeddings turn queries and keys by T_i, T_j of norm ≤ t before they meet: s⟨T_i q_i, T_j k_j⟩. Then a_i depends on
j, as g_ij = s·M_kᵀT_jᵀT_i q_i, ‖g_ij‖ ≤ r = s·t_q t_k‖M_k‖(‖M_q‖R + ‖b_q‖); no sum is zero in the first form, which becomes
√(nρ)(1 + k), the second stays; the queries' part is Cov(y, k̃)·s·T_i M_q dx_i with k̃ within t_k(‖M_k‖S + ‖b_k‖).

Keys and values from different tokens: each term by itself, with ‖Cov(z, k)‖ ≤ sup‖z‖·sup‖k‖.

Without a bound on the tokens there is none: Kim, Papamakarios & Mnih, *The Lipschitz constant of self-attention*, 2021.
After a LayerNorm R = √d and the M's contain its scale; the way from its input has 1/√ε.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from snaudit.domains import is_default
from snaudit import enclosed, gates
from snaudit.bound import Bound, Grade, at_most, root_sum_squares_up, root_up, sum_up, times_up, up
from snaudit.enclosed import Enclosed
from snaudit.gains import outward
from snaudit.heads import Head, Heads, heads_of, on_centred, on_scaled
from snaudit.matching import Shortcut
from snaudit.patterns import core_of
from snaudit.ranges import Range, along, ends_along
from snaudit.rounding import TINY, U, cholesky_deficit, frobenius_up, gamma
from snaudit.rules.normalization import DEFAULT_EPSILON
from snaudit.tokens import Fold, Tokens


@dataclass(slots=True)
class Norms:
    """Upper bounds of norms, and the least grade of all that were measured."""

    measure: Callable[[np.ndarray], Bound]
    grade: Grade = Grade.PROVED

    def of(self, matrix: Enclosed) -> float:
        """‖X‖₂ from above for all enclosed X."""
        found = self.measure(np.ascontiguousarray(matrix.centre))
        self.grade = min(self.grade, found.grade)
        return found.upper if matrix.radius is None else up(found.upper + frobenius_up(matrix.radius))

    def of_product(self, left: Enclosed, right: Enclosed) -> float:
        """‖XᵀY‖₂ from above for all enclosed X (k, m), Y (k, n): ‖LᵀY‖ with LLᵀ ⪰ XXᵀ, which has k rows only.

        fl(XXᵀ) is within γ‖X‖_F² + 2‖X‖_F‖ΔX‖_F + ‖ΔX‖_F² of XXᵀ; the shift covers that and the Cholesky
        factorization's own error (Rump 2006).
        """
        centre, rows = left.centre, len(left.centre)
        size = frobenius_up(centre)
        off = 0.0 if left.radius is None else frobenius_up(left.radius)
        gram = centre @ centre.T
        error = gamma(centre.shape[1] + 2) * size * size + 2.0 * size * off + off * off
        shift = 4.0 * (error + cholesky_deficit(rows, size * size)) + 4.0 * U * size * size + TINY
        try:
            factor = np.linalg.cholesky(gram + shift * np.eye(rows))
        except np.linalg.LinAlgError:
            return times_up(self.of(left), self.of(right))
        return self.of(enclosed.product(Enclosed(np.ascontiguousarray(factor.T)), right))


@dataclass(frozen=True, slots=True)
class Finder:
    """What the search asks of a walk. held: whether a value is constant for the bound."""

    fold: Fold
    measure: Callable[[np.ndarray], Bound]
    ranges: Callable[[ir.Value], Range]
    held: Callable[[ir.Value], bool]
    opset: int

    def at(self, node: ir.Node) -> Iterator[Shortcut]:
        """The shortcut that ends at an attention's product of weights and values, or at a gate, if there is one; for l2."""
        yield from gates.find(node, self.fold, self.measure, self.ranges, self.opset, self._past_norm)
        heads = heads_of(node, self.fold, self.held, self.opset)
        if heads is None:
            return
        parts = (heads.query, heads.key, heads.value)
        balls = {one.source: self._balls(one) for one in parts}
        found: list[tuple[float, dict[ir.Value, float], Norms, set[str]]] = []
        for chosen in itertools.product(*balls.values()):
            ball = dict(zip(balls, chosen, strict=True))
            norms = Norms(self.measure)
            gains = _constants(heads, [ball[one.source] for one in parts], norms)
            assumes = {text for one in ball.values() for text in one.assumes}
            found.append((sum(gains.values()), gains, norms, assumes))
        total, gains, norms, assumes = min(found, key=lambda item: item[0], default=(math.inf, {}, None, ()))
        if math.isfinite(total):
            bounds = [(source, at_most(gain, "attention", norms.grade)) for source, gain in gains.items()]
            (source, bound), *more = bounds
            told = tuple(sorted(assumes))
            yield Shortcut(node.outputs[0], source, bound, "attention", told, more=tuple(more))

    def _balls(self, one: Tokens) -> list[Ball]:
        """The ways to say in which ball the tokens of a part's source lie; empty where nothing bounds them."""
        source, width = one.source, one.width
        node = source.producer()
        if node is not None and is_default(node) and node.outputs[0] is source:
            normalized = self._after_norm(width, node)
            if normalized is not None:
                return [normalized]
            core = core_of(node, self.fold, self.opset)
            if core is not None and source.shape is not None and core[0] in ((-1,), (len(source.shape) - 1,)):
                return [Ball(on_centred if core[1] else _unchanged, source, root_up(float(width)))]
        known = self.ranges(source)
        told = tuple(sorted(known.rests))
        found = [Ball(_unchanged, source, along(known, -1, width), 1.0, told)]
        ends = ends_along(known, -1, width)
        if ends is not None:
            middle = 0.5 * ends[0] + 0.5 * ends[1]
            half = np.maximum(ends[1] - middle, middle - ends[0])
            moved = partial(on_scaled, scale=np.ones(width), shift=middle)
            found.append(Ball(moved, source, frobenius_up(half * (1.0 + 2 * U)), 1.0, told))
        return [one for one in found if math.isfinite(one.radius)]

    def _past_norm(self, one: Tokens) -> tuple[Tokens, ir.Value, float]:
        """(tokens as a function of what the norm at their source makes of its input, that input, the norm's constant)."""
        node = one.source.producer()
        if node is None or not is_default(node) or node.outputs[0] is not one.source:
            return one, one.source, 1.0
        ball = self._after_norm(one.width, node)
        return (one, one.source, 1.0) if ball is None else (ball.change(one), ball.data, ball.gain)

    def _after_norm(self, width: int, node: ir.Node) -> Ball | None:
        if node.op_type not in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"):
            return None
        axis = node.attributes["axis"].value if "axis" in node.attributes else -1
        epsilon = float(node.attributes["epsilon"].value if "epsilon" in node.attributes else DEFAULT_EPSILON)
        scale = self.fold(node.inputs[1])
        shift = self.fold(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        data = node.inputs[0]
        rank = 0 if data.shape is None else len(data.shape)
        if axis not in (-1, rank - 1) or not epsilon > 0.0 or scale is None or scale.size != width:
            return None
        if len(node.inputs) > 2 and node.inputs[2] is not None and (shift is None or shift.size != width):
            return None
        arrays = [a.astype(np.float64).ravel() for a in (scale, shift) if a is not None]
        if not all(np.isfinite(a).all() for a in arrays):
            return None

        def change(one: Tokens) -> Tokens:
            part = on_scaled(one, arrays[0], arrays[1] if shift is not None else None)
            return on_centred(part) if node.op_type == "LayerNormalization" else part

        return Ball(change, data, root_up(float(width)), outward(1.0 / math.sqrt(epsilon)))


@dataclass(frozen=True, slots=True, eq=False)
class Ball:
    """Tokens u = change(ũ) with ‖ũ‖ ≤ radius; ũ is `gain`-Lipschitz in `data`."""

    change: Callable[[Tokens], Tokens]
    data: ir.Value
    radius: float
    gain: float = 1.0
    assumes: tuple[str, ...] = ()


def _unchanged(one: Tokens) -> Tokens:
    return one


def _constants(heads: Heads, balls: list[Ball], norms: Norms) -> dict[ir.Value, float]:
    """The constant of all heads together with respect to each value that a ball starts at; rounded up.

    Heads over the same tokens join as √Σ; those over others of the same sources as the largest.
    """
    query, key, value = (ball.change(part) for ball, part in zip(balls, (heads.query, heads.key, heads.value), strict=True))
    own = replace(heads, query=query, key=key, value=value)
    known: dict[bytes, tuple[float, float, float]] = {}
    together: dict[tuple[int, ir.Value], list[float]] = {}
    for head in heads.each:
        if head.key not in known:
            known[head.key] = _parts(own, head, balls, norms)
        by_source: dict[ir.Value, list[float]] = {}
        for ball, gain in zip(balls, known[head.key], strict=True):
            by_source.setdefault(ball.data, []).append(times_up(gain, ball.gain))
        for source, gains in by_source.items():
            together.setdefault((head.group, source), []).append(sum_up(gains))
    found: dict[ir.Value, float] = {}
    for (_, source), gains in together.items():
        found[source] = max(found.get(source, 0.0), root_sum_squares_up(gains))
    return found


def _parts(heads: Heads, head: Head, balls: list[Ball], norms: Norms) -> tuple[float, float, float]:
    """What queries, keys and values each add to the head's constant, as the module's docstring derives it.

    Where keys and values are of the same tokens, all of theirs stands at the values.
    """
    query, offset = heads.query.matrix()[head.query], heads.query.offset()[head.query]
    key, value = heads.key.matrix()[head.key_rows], heads.value.matrix()[head.value]
    if not all(1e-60 < float(np.abs(m.centre).max(initial=0.0)) < 1e60 or not m.centre.any() for m in (query, key, value)):
        return math.inf, math.inf, math.inf
    x, y, z = (ball.radius for ball in balls)
    turns = [part.turned for part in (heads.query, heads.key) if part.turned is not None]
    paired = heads.key.source is heads.value.source
    scale, size = abs(heads.scale) * (1.0 + 16 * U), norms.of(value)
    if paired and not turns:
        bilinear = times_up(norms.of_product(query, key), scale)
        flipped = Enclosed(np.ascontiguousarray(key.centre.T), None if key.radius is None else key.radius.T.copy())
        tilt = times_up(_length(enclosed.product(flipped, offset)), scale)
        k = times_up(y, sum_up([times_up(x, bilinear), tilt]))
        pull, both = times_up(times_up(y, y), bilinear), sum_up(_spread(heads, head, k, k))
        joint = up(math.sqrt(head.rows * _most(heads, head, k))) * math.hypot(1.0, k) * (1.0 + 8 * U)
        return times_up(size, pull), 0.0, times_up(size, min(joint, both))
    for turn in turns:
        scale = times_up(scale, turn)
    own, other = norms.of(query), norms.of(key)
    asks = times_up(scale, sum_up([times_up(own, x), _length(offset)]))
    fixed = 0.0 if heads.key.turned is None else _length(heads.key.offset()[head.key_rows])
    answers = sum_up([times_up(other, y), fixed])
    values, keys = _spread(heads, head, times_up(times_up(asks, other), z), times_up(asks, answers))
    pull = times_up(times_up(z, answers), times_up(scale, own))
    if paired:
        return times_up(size, pull), 0.0, times_up(size, sum_up([values, keys]))
    return times_up(size, pull), times_up(size, keys), times_up(size, values)


def _spread(heads: Heads, head: Head, k: float, logit: float) -> tuple[float, float]:
    """(√(nρ), √n·k·min(√ρ, 1/√2)): what E[dy] and Cov(y, ⟨a, dy⟩) are at most, logits being up to `logit` each."""
    most = up(math.sqrt(_most(heads, head, logit)))
    rows = root_up(float(head.rows))
    return times_up(rows, most), times_up(times_up(rows, k), min(most, up(math.sqrt(0.5))))


def _most(heads: Heads, head: Head, logit: float) -> float:
    """ρ: the largest weight that one key can have."""
    if heads.masked:
        return 1.0
    others = (head.columns - 1) * math.exp(-2.0 * logit) * (1.0 - 1e-12)
    return min(1.0, (1.0 + 4 * U) / (1.0 + others))


def _length(vector: Enclosed) -> float:
    """The length from above of all enclosed vectors."""
    return up(frobenius_up(vector.centre) + (0.0 if vector.radius is None else frobenius_up(vector.radius)))
