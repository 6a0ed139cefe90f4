"""Self-attention after a norm, or on tokens of known size: one bound from the tokens to what a head gives.

For tokens u_j, ‖u_j‖ ≤ R, a head is o_i = Σ_j p_ij M_v u_j + const, p_i = softmax_j(⟨Aᵀu_i + a, u_j⟩ + mask_ij) with
A = s·M_qᵀM_k, a = s·M_kᵀb_q (what does not depend on j drops out of the softmax: key biases; Σp = 1: value biases).
With E, Cov under p_i and a_i = Aᵀu_i + a, ‖a_i‖ ≤ r = R‖A‖ + ‖a‖,

    do_i = M_v·(E[du] + Cov(u, ⟨a_i, du⟩) + Cov(u)·Aᵀdu_i).

The last term: ‖Cov(u)‖ ≤ R². The first two are Σ_j p_ij(I + w_j a_iᵀ)du_j, w_j = u_j − E[u], and Σ_j p_ij(I + w_j a_iᵀ)
(I + a_i w_jᵀ) = I + ‖a_i‖²Cov(u), so by Cauchy–Schwarz their square is at most (1 + r²R²)·Σ_j p_ij‖du_j‖², hence
√(n(1 + r²R²))·‖dU‖ over n rows. Or: ‖E[du]‖ ≤ ‖dU‖, and for c_j = ⟨v, w_j⟩, Σp_jc_j = 0, so Σ(p_jc_j)² ≤ ½(Σp_j|c_j|)²
≤ ½R²: √n(1 + rR/√2)·‖dU‖. So with k = rR and G = ‖M_v‖ the head has the constant

    G·(√n·min(√(1 + k²), 1 + k/√2) + R²‖A‖).

Without a bound on the tokens there is none: Kim, Papamakarios & Mnih, *The Lipschitz constant of self-attention*, 2021.
After a LayerNorm R = √d and the M's contain its scale; the way from its input has 1/√ε.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from snaudit.domains import is_default
from snaudit import enclosed
from snaudit.bound import Bound, Grade, at_most, root_sum_squares_up, root_up, sum_up, times_up, up
from snaudit.enclosed import Enclosed
from snaudit.gains import outward
from snaudit.heads import Head, Heads, heads_of
from snaudit.matching import Shortcut
from snaudit.patterns import core_of
from snaudit.ranges import Range, along
from snaudit.rounding import TINY, U, cholesky_deficit, frobenius_up, gamma
from snaudit.rules.normalization import DEFAULT_EPSILON
from snaudit.tokens import Fold


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
        """The shortcut that ends at an attention's product of weights and values, if there is one; for l2."""
        heads = heads_of(node, self.fold, self.held, self.opset)
        if heads is None:
            return
        based = self._on_tokens(heads)
        if based is None:
            return
        heads, source, radius, gain, assumes = based
        norms = Norms(self.measure)
        known: dict[bytes, float] = {}
        for head in heads.each:
            if head.key not in known:
                known[head.key] = _constant(heads, head, radius, norms)
        together: dict[int, list[float]] = {}
        for head in heads.each:
            together.setdefault(head.group, []).append(known[head.key])
        upper = max((root_sum_squares_up(part) for part in together.values()), default=0.0)
        if math.isfinite(upper):
            bound = at_most(times_up(upper, gain), "attention", norms.grade)
            yield Shortcut(node.outputs[0], source, bound, "attention", assumes)

    def _on_tokens(self, heads: Heads) -> tuple[Heads, ir.Value, float, float, tuple[str, ...]] | None:
        """(heads as functions of tokens in a ball, where these start, the ball's radius, the gain from there)."""
        source, width = heads.query.source, heads.query.width
        node = source.producer()
        if node is not None and is_default(node) and node.outputs[0] is source:
            normalized = self._after_norm(heads, node)
            if normalized is not None:
                return normalized
            core = core_of(node, self.fold, self.opset)
            if core is not None and source.shape is not None and core[0] in ((-1,), (len(source.shape) - 1,)):
                return heads.centred() if core[1] else heads, source, root_up(float(width)), 1.0, ()
        one = self.ranges(source)
        radius = along(one, -1, width)
        return (heads, source, radius, 1.0, tuple(sorted(one.rests))) if math.isfinite(radius) else None

    def _after_norm(
        self, heads: Heads, node: ir.Node
    ) -> tuple[Heads, ir.Value, float, float, tuple[str, ...]] | None:
        if node.op_type not in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"):
            return None
        axis = node.attributes["axis"].value if "axis" in node.attributes else -1
        epsilon = float(node.attributes["epsilon"].value if "epsilon" in node.attributes else DEFAULT_EPSILON)
        scale = self.fold(node.inputs[1])
        shift = self.fold(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        data, width = node.inputs[0], heads.query.width
        rank = 0 if data.shape is None else len(data.shape)
        if axis not in (-1, rank - 1) or not epsilon > 0.0 or scale is None or scale.size != width:
            return None
        if len(node.inputs) > 2 and node.inputs[2] is not None and (shift is None or shift.size != width):
            return None
        arrays = [a.astype(np.float64).ravel() for a in (scale, shift) if a is not None]
        if not all(np.isfinite(a).all() for a in arrays):
            return None
        part = heads.scaled(arrays[0], arrays[1] if shift is not None else None)
        if node.op_type == "LayerNormalization":
            part = part.centred()
        return part, data, root_up(float(width)), outward(1.0 / math.sqrt(epsilon)), ()


def _constant(heads: Heads, head: Head, radius: float, norms: Norms) -> float:
    """The head's constant on tokens in a ball, as the module's docstring derives it; rounded up."""
    query, offset = heads.query.matrix()[head.query], heads.query.offset()[head.query]
    key, value = heads.key.matrix()[head.key_rows], heads.value.matrix()[head.value]
    if not all(1e-60 < float(np.abs(m.centre).max(initial=0.0)) < 1e60 or not m.centre.any() for m in (query, key, value)):
        return math.inf
    size = abs(heads.scale) * (1.0 + 16 * U)
    bilinear = times_up(norms.of_product(query, key), size)
    turned = Enclosed(np.ascontiguousarray(key.centre.T), None if key.radius is None else key.radius.T.copy())
    tilt = enclosed.product(turned, offset)
    linear = frobenius_up(tilt.centre) + (0.0 if tilt.radius is None else frobenius_up(tilt.radius))
    reach = sum_up([times_up(radius, bilinear), times_up(up(linear), size)])
    k = times_up(radius, reach)
    spread = min(math.hypot(1.0, k), 1.0 + k / math.sqrt(2.0)) * (1.0 + 8 * U)
    inner = sum_up([times_up(root_up(float(head.rows)), spread), times_up(times_up(radius, radius), bilinear)])
    return times_up(norms.of(value), inner)
