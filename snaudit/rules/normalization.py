"""Normalizations. With running statistics they are affine; with the input's own they are not.

For y = Γ·u/√(v + ε), u = x − mean(x) (or x itself, for RMS), v = ‖u‖²/d, the Jacobian is
J = Γ·(P − ẑẑᵀ/d)/√(v + ε), ẑ = u/√(v + ε), ‖ẑ‖² = d·t with t = v/(v + ε) ∈ [0, 1).
"""

from __future__ import annotations

import math

import numpy as np

from snaudit.bound import Bound, Norm, at_most, root_up, up
from snaudit.gains import diagonal, outward
from snaudit.rules.interface import Row, Step, Unbounded, Value, through

_STATISTICS = "normalizes with the statistics of its own input in training mode"

DEFAULT_EPSILON = float(np.float32(1e-5))
"""What ONNX's attribute default is in its own type: a little below 1e-5."""


def _constant(step: Step, index: int, what: str) -> np.ndarray:
    array = step.constant(index)
    if array is None:
        raise Unbounded(
            f"{what} is no known constant", "store it as a constant of the model", "unknown-constant"
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise Unbounded(f"{what} is not finite", "repair the weights", "bad-constant")
    return array


def batch_normalization(step: Step) -> tuple[Value, ...]:
    """max|γ|/√(var + ε) times the input's: a diagonal map, so exact in l2, l1 and linf.

    In inference only. In training mode (training_mode = 1; before opset 7 is_test = 0; more than one
    output in use before opset 14) the batch's own statistics enter, and there is no rule.
    """
    used = any(o.uses() or o.is_graph_output() for o in step.node.outputs[1:])
    trains = step.attribute("training_mode", 0) if step.opset >= 14 else used
    if step.opset < 7:
        trains = used or not step.attribute("is_test", 0)
    if trains:
        raise Unbounded(f"BatchNormalization {_STATISTICS}", "export the model in eval mode", "training-mode")
    scale, variance = _constant(step, 1, "the scale"), _constant(step, 4, "the variance")
    _constant(step, 2, "the shift"), _constant(step, 3, "the mean")
    floor = variance + float(step.attribute("epsilon", DEFAULT_EPSILON))
    if (floor <= 0).any():
        raise Unbounded("var + ε is not positive", "repair the running variance", "bad-constant")
    gain = diagonal(np.abs(scale) / np.sqrt(floor), (), step.norm)
    value = through(step.data(), at_most(outward(gain.upper, 8), "scale"))
    return (value,) + (value,) * (len(step.node.outputs) - 1)


def _epsilon(step: Step, default: float) -> float:
    epsilon = float(step.attribute("epsilon", default))
    if not epsilon > 0:
        raise Unbounded("with ε = 0 a normalization has no Lipschitz constant", "use ε > 0", "no-constant")
    return epsilon


def normalized(largest: float, epsilon: float, size: int | None, centred: bool, norm: Norm) -> Bound:
    """max|γ|/√ε in l2, and in l1 and linf max|γ|/√ε·max_t √(1−t)·(a + b·t), b = (√d − 1)/2.

    Row i of P − ẑẑᵀ/d has absolute sum at most a + (|ẑᵢ|(‖ẑ‖₁ − |ẑᵢ|) − ẑᵢ²)/d with a = 2(1 − 1/d)
    centred, 1 otherwise. With ẑᵢ² = d·t·cos²φ and Cauchy–Schwarz on the others, the last term is at
    most t·max_φ(√(d−1)·sinφ·cosφ − cos²φ) = t(√d − 1)/2. The matrix is symmetric: l1 is the same.
    The maximum over t of √(1−t)(a + bt) is at t = (2b − a)/(3b), or at 0. Not always attained.
    """
    if norm == "l2":
        return at_most(outward(largest / math.sqrt(epsilon)), "1/√ε")
    if size is None:
        raise Unbounded(
            f"the number of entries it normalizes is not known (needed in {norm})",
            "give its axes fixed sizes",
            "unknown-shape",
        )
    a = 2.0 * (1.0 - 1.0 / size) if centred else 1.0
    b = (math.sqrt(size) - 1.0) / 2.0
    t = max(0.0, (2.0 * b - a) / (3.0 * b)) if b else 0.0
    shape = math.sqrt(1.0 - t) * (a + b * t)
    return at_most(outward(largest / math.sqrt(epsilon) * shape, 16), "1/√ε")


def layer_normalization(step: Step) -> tuple[Value, ...]:
    """‖diag(γ)P‖/√ε times the input's in l2, P = I − 11ᵀ/d; exact, attained at constant input.

    J = ΓM/√(v+ε), M = P − ẑẑᵀ/d. M has eigenvalues in [0, 1] and vanishes on 1, so M² ⪯ P and
    ‖ΓM‖² = ‖ΓM²Γ‖ ≤ ‖ΓPΓ‖ = ‖ΓP‖², with equality at v = 0, where the root is smallest too.
    l1 and linf: see `normalized`. The mean and the inverse deviation (outputs 2, 3) are not bounded.
    """
    if any(o.uses() or o.is_graph_output() for o in step.node.outputs[1:]):
        raise Unbounded("its mean or deviation is used as a value", "use its first output only", "no-rule")
    epsilon = _epsilon(step, DEFAULT_EPSILON)
    scale = _constant(step, 1, "the scale")
    size = normalized_size(step)
    value = step.data()
    centred = step.node.op_type == "LayerNormalization"
    if centred and step.norm == "l2" and size is not None and _covers(step, scale):
        gain = at_most(outward(projected(scale.ravel()) / math.sqrt(epsilon)), "‖diag(γ)P‖/√ε")
    else:
        gain = normalized(float(np.abs(scale).max(initial=0.0)), epsilon, size, centred, step.norm)
    return (through(value, gain),) * len(step.node.outputs)


def _covers(step: Step, scale: np.ndarray) -> bool:
    """Whether the scale has one entry for each normalized position (it may vary over rows instead)."""
    shape = step.shape(0) or ()
    own = scale.shape
    while own and own[0] == 1:
        own = own[1:]
    wanted = tuple(shape[step.attribute("axis", -1) :])
    while wanted and wanted[0] == 1:
        wanted = wanted[1:]
    return own == wanted


def normalized_size(step: Step) -> int | None:
    shape = step.shape(0)
    if shape is None:
        return None
    sizes = shape[step.attribute("axis", -1) :]
    return None if None in sizes else math.prod(sizes)


def projected(scale: np.ndarray) -> float:
    """An upper bound of ‖diag(γ)P‖₂, P = I − 11ᵀ/d, tight to rounding.

    ‖ΓP‖² = λmax(PΓ²P) ≤ λ iff λI − Γ² is positive semidefinite on 1⊥. For λ strictly between the two
    largest γ², γ₁² > λ > γ₂², Γ² − λ has one positive eigenvalue, and by the inertia of the bordered
    matrix that holds iff Σᵢ 1/(λ − γᵢ²) ≤ 0. Bisect λ; the last test has a margin for its rounding.
    """
    squares = np.sort(np.nextafter(np.square(scale.astype(np.float64)), np.inf))[::-1]
    if squares.size == 0:
        return 0.0
    largest, rest = float(squares[0]), squares[1:]
    if rest.size == 0:
        return root_up(largest)  # one entry: the map is zero, but not in floating point
    low, high = float(rest[0]), largest
    margin = 1.0 + (rest.size + 16) * 2.0**-52
    for _ in range(80):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        holds = float(np.sum(1.0 / (middle - rest))) * margin <= 1.0 / (largest - middle)
        low, high = (low, middle) if holds else (middle, high)
    return root_up(high)


def instance_normalization(step: Step) -> tuple[Value, ...]:
    """max|γ|/√ε times the input's in l2, attained at constant input; l1 and linf as `normalized`.

    Each channel of each image is normalized by itself: block diagonal, blocks γ_c(P − ẑẑᵀ/d)/√(v+ε).
    """
    epsilon = _epsilon(step, DEFAULT_EPSILON)
    scale = _constant(step, 1, "the scale")
    shape = step.shape(0)
    size = None if shape is None or None in shape[2:] else math.prod(shape[2:])
    gain = normalized(float(np.abs(scale).max(initial=0.0)), epsilon, size, True, step.norm)
    return (through(step.data(), gain),)


def group_normalization(step: Step) -> tuple[Value, ...]:
    """max|γ|/√ε times the input's in l2 (γ for each channel, or each group in opset 18).

    Blocks are the groups of each image: ‖Γ(P − ẑẑᵀ/d)‖ ≤ max|γ|. l1 and linf as `normalized`.
    """
    epsilon = _epsilon(step, DEFAULT_EPSILON)
    scale = _constant(step, 1, "the scale")
    shape, groups = step.shape(0), step.attribute("num_groups")
    size = None if shape is None or None in shape[1:] else math.prod(shape[1:]) // int(groups)
    gain = normalized(float(np.abs(scale).max(initial=0.0)), epsilon, size, True, step.norm)
    return (through(step.data(), gain),)


def local_response_normalization(step: Step) -> tuple[Value, ...]:
    """bias^(−β)·(1 + 2βc·s) times the input's, c = β^β/(β+1)^(β+1), s by the norm; not attained.

    yᵢ = xᵢ·sᵢ^(−β), sᵢ = bias + (α/n)Σ_{j∈w(i)} xⱼ²: J = D − M, ‖D‖ ≤ bias^(−β) and
    |M_ij| = 2β(α/n)|xᵢxⱼ|sᵢ^(−β−1). Off the diagonal (α/n)|xᵢxⱼ| ≤ (sᵢ − bias)/2, and
    (s − bias)/s^(β+1) ≤ c·bias^(−β). Row sums: |xᵢ|‖x_w‖₁ ≤ ‖x_w‖²(1 + √n)/2; column sums: at most
    one diagonal entry and n − 1 others. l2 takes √(rows·columns).
    """
    alpha, beta = float(step.attribute("alpha", 1e-4)), float(step.attribute("beta", 0.75))
    bias, size = float(step.attribute("bias", 1.0)), int(step.attribute("size"))
    if not (alpha >= 0 and beta >= 0 and bias > 0 and size > 0):
        raise Unbounded(
            "LRN with a negative or zero parameter has no constant", "use bias > 0", "no-constant"
        )
    rows, columns = (1.0 + math.sqrt(size)) / 2.0, 1.0 + (size - 1) / 2.0
    sums = {"linf": rows, "l1": columns, "l2": math.sqrt(rows * columns)}[step.norm]
    peak = beta**beta / (beta + 1.0) ** (beta + 1.0)
    gain = bias**-beta * (1.0 + (2.0 * beta * peak * sums if alpha else 0.0))
    return (through(step.data(), at_most(up(outward(gain, 64)), "row and column sums")),)


def unbounded_near_zero(step: Step) -> tuple[Value, ...]:
    """None: x/‖x‖ turns arbitrarily fast near zero."""
    raise Unbounded(
        f"{step.node.op_type} divides by a norm or deviation that may vanish",
        "add a constant ε under the root, or state a floor on the norm",
        "needs-range",
    )


ROWS: tuple[Row, ...] = (
    Row("BatchNormalization", batch_normalization, "max|γ|/√(var+ε)", "diagonal map", "inference mode"),
    Row("LayerNormalization", layer_normalization, "‖diag(γ)P‖/√ε", "Jacobian at constant input", "ε > 0"),
    Row("RMSNormalization", layer_normalization, "max|γ|/√ε", "Jacobian at zero", "ε > 0"),
    Row("SimplifiedLayerNormalization", layer_normalization, "max|γ|/√ε", "Jacobian at zero", "ε > 0"),
    Row("InstanceNormalization", instance_normalization, "max|γ|/√ε", "block diagonal", "ε > 0"),
    Row("GroupNormalization", group_normalization, "max|γ|/√ε", "block diagonal", "ε > 0"),
    Row("LRN", local_response_normalization, "bias^(−β)(1 + 2βc·s)", "row and column sums", "bias > 0"),
    Row("LpNormalization", unbounded_near_zero, "∞", "x/‖x‖ at zero"),
    Row("MeanVarianceNormalization", unbounded_near_zero, "∞", "x/σ(x) at constant input"),
)
