"""Functions of one entry at a time, and Softmax's family.

An entrywise function with |φ(s) − φ(t)| ≤ L|s − t| gives ‖φ(x) − φ(y)‖ ≤ L‖x − y‖ in l2, l1 and
linf alike, and L = sup|φ'| is attained in all three (change one entry, at the steepest point).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from snaudit import slopes
from snaudit.bound import at_most, root_up, up
from snaudit.broadcasting import dims, spread
from snaudit.gains import copies
from snaudit.rules.interface import Row, Step, Unbounded, Value, jumping, through

GELU_ERF, GELU_TANH, SILU, MISH, ERF = (
    ends[1] for ends in (slopes.GELU_ERF, slopes.GELU_TANH, slopes.SILU, slopes.MISH, slopes.ERF)
)
"""Suprema of |φ'|, rounded up."""


def _slope(step: Step, slope: float) -> tuple[Value, ...]:
    if not all(math.isfinite(value) for value in _numbers(step)) or not math.isfinite(slope):
        raise Unbounded("an attribute is not finite", "repair the attribute", "bad-attribute")
    return (through(step.data(), at_most(abs(slope), "slope")),)


def _numbers(step: Step) -> list[float]:
    return [a.value for a in step.node.attributes.values() if isinstance(a.value, float)]


def _fixed(slope: float) -> Callable[[Step], tuple[Value, ...]]:
    """A rule for a function whose steepest slope is `slope`, whatever its attributes."""

    def rule(step: Step) -> tuple[Value, ...]:
        return _slope(step, slope)

    rule.__doc__ = f"The input's constant times {slope:.7g}, the largest |φ'|; attained."
    return rule


def leaky_relu(step: Step) -> tuple[Value, ...]:
    """max(1, |alpha|) times the input's: the slopes are 1 and alpha."""
    return _slope(step, max(1.0, abs(step.attribute("alpha", 0.01))))


def prelu(step: Step) -> tuple[Value, ...]:
    """max(1, max|slope|) times the input's, for a constant slope.

    The standard forbids a slope that copies x by broadcasting, but runtimes do it: its copies count.
    """
    slopes = step.constant(1)
    value = step.data()
    if slopes is None:
        raise Unbounded("its slope is no known constant", "store the slope as a constant", "unknown-constant")
    largest = float(np.abs(slopes.astype(np.float64)).max(initial=1.0))
    if not math.isfinite(largest):
        raise Unbounded("its slope is not finite", "repair the weights", "bad-constant")
    found = spread(dims(step.node.inputs[0]), [slopes.shape])
    if found.count is None and step.norm != "linf":
        reason = "whether its slope copies its input by broadcasting is not known"
        raise Unbounded(reason, "give the input fixed sizes", "unknown-shape")
    value = through(value, copies(found.count or 1, step.norm))
    return (through(value, at_most(max(1.0, largest), "slope")),)


def elu(step: Step) -> tuple[Value, ...]:
    """max(1, |alpha|) times the input's: alpha·eˣ for x < 0 has slopes between 0 and alpha."""
    return _slope(step, max(1.0, abs(step.attribute("alpha", 1.0))))


def selu(step: Step) -> tuple[Value, ...]:
    """|gamma|·max(1, |alpha|) times the input's: gamma·x for x > 0, gamma·alpha·(eˣ − 1) below."""
    alpha = step.attribute("alpha", 1.67326319217681884765625)
    gamma = step.attribute("gamma", 1.05070102214813232421875)
    return _slope(step, up(abs(gamma) * max(1.0, abs(alpha))))


def celu(step: Step) -> tuple[Value, ...]:
    """The input's own: for any alpha > 0 the slopes e^(x/alpha) at x < 0 lie in [0, 1]."""
    if not step.attribute("alpha", 1.0) > 0:
        raise Unbounded("Celu with alpha ≤ 0 grows like an exponential", "use alpha > 0", "no-constant")
    return _slope(step, 1.0)


def hard_sigmoid(step: Step) -> tuple[Value, ...]:
    """|alpha| times the input's (0.2 by default): a line of slope alpha, clipped."""
    return _slope(step, step.attribute("alpha", float(np.float32(0.2))))


def gelu(step: Step) -> tuple[Value, ...]:
    """1.1289041 (erf form) or 1.1289931 (tanh form) times the input's; attained near x = √2."""
    return _slope(step, GELU_TANH if step.attribute("approximate", "none") == "tanh" else GELU_ERF)


def swish(step: Step) -> tuple[Value, ...]:
    """1.0998393 times the input's for x·σ(alpha·x), for any alpha ≠ 0: g(alpha·x)/alpha has g's slopes."""
    return _slope(step, SILU)


def clip(step: Step) -> tuple[Value, ...]:
    """The input's own: clipping to constant bounds is a projection."""
    return (through(step.data(), at_most(1.0, "slope")),)


def thresholded_relu(step: Step) -> tuple[Value, ...]:
    """The input's own for alpha = 0, which is Relu; any other alpha jumps at x = alpha."""
    if step.attribute("alpha", 1.0) != 0.0:
        raise Unbounded("ThresholdedRelu jumps at its threshold", "use Relu or LeakyRelu", "step")
    return _slope(step, 1.0)


def shrink(step: Step) -> tuple[Value, ...]:
    """The input's own where bias = lambd ≥ 0 (soft shrinkage is continuous); otherwise it jumps."""
    if not step.attribute("lambd", 0.5) == step.attribute("bias", 0.0) >= 0.0:
        raise Unbounded("Shrink jumps at ±lambd unless bias = lambd", "use soft shrinkage", "step")
    return _slope(step, 1.0)


def power(step: Step) -> tuple[Value, ...]:
    """The input's own for the constant exponent 1; a constant for 0; any other power is unbounded."""
    exponent = step.constant(1)
    if step.varying == (0,) and exponent is not None and (exponent == 1).all() and exponent.size == 1:
        return (through(step.data(), at_most(1.0, "slope")),)
    raise Unbounded(
        "a power's slope grows with its argument (or at zero)",
        "state the range of its argument, or use a function of bounded slope",
        "needs-range",
    )


def step_function(step: Step) -> tuple[Value, ...]:
    """Piecewise constant: harmless where its result is not used as a number that depends on data."""
    return (jumping(step),) * len(step.node.outputs)


def _needs_range(reason: str, remedy: str) -> Callable[[Step], tuple[Value, ...]]:
    def rule(step: Step) -> tuple[Value, ...]:
        raise Unbounded(reason, remedy, "needs-range")

    rule.__doc__ = f"None: {reason}."
    return rule


def softmax(step: Step) -> tuple[Value, ...]:
    """½ times the input's, in l2, l1 and linf.

    J = diag(p) − ppᵀ; its row and column sums of absolute values are 2pᵢ(1 − pᵢ) ≤ ½, hence
    ‖J‖₁ = ‖J‖∞ ≤ ½ and ‖J‖₂ ≤ √(‖J‖₁‖J‖∞) ≤ ½ (Gao & Pavel 2017 have 1). Attained for p = (½, ½).
    Before opset 13 the softmax is over all axes from `axis` on: the same constant.
    """
    return (through(step.data(), at_most(0.5, "softmax")),)


def log_softmax(step: Step) -> tuple[Value, ...]:
    """√n (l2), max(1, n − 1) (l1) or 2 (linf) times the input's, for n classes; attained.

    J = I − 1pᵀ. Row sums: 2(1 − pᵢ) ≤ 2. Column sums: 1 + (n − 2)pⱼ ≤ max(1, n − 1). ‖J‖₂² is convex in p,
    so largest at a corner p = eⱼ, where I − 1eⱼᵀ has norm √n (for n ≥ 2).
    """
    value = step.data()
    if step.norm == "linf":
        return (through(value, at_most(2.0, "log-softmax")),)
    count = _softmax_size(step)
    if count is None:
        raise Unbounded("the number of classes is not known", "give its axis a fixed size", "unknown-shape")
    gain = root_up(float(count)) if step.norm == "l2" else float(max(1, count - 1))
    return (through(value, at_most(gain, "log-softmax")),)


def _softmax_size(step: Step) -> int | None:
    shape = step.shape(0)
    if shape is None:
        return None
    axis = step.attribute("axis", -1 if step.opset >= 13 else 1)
    sizes = shape[axis:] if step.opset < 13 else (shape[axis],)
    return None if None in sizes else math.prod(sizes)


def cast(step: Step) -> tuple[Value, ...]:
    """The input's own between floating types: real arithmetic knows no rounding to a narrower one.

    To an integer, a boolean, or a floating type of 8 bits or fewer it is a step function.
    """
    target = step.attribute("to")
    if target is None:  # CastLike: the type of the second input
        kind = step.node.inputs[1].dtype
        if kind is None:
            raise Unbounded("the target type is not known", "use Cast with a stated type", "unknown-type")
        target = int(kind)
    if target in _FLOATS:
        return (through(step.data(), at_most(1.0, "identity")),)
    return (jumping(step),)


_FLOATS = {1, 10, 11, 16}  # FLOAT, FLOAT16, DOUBLE, BFLOAT16 of TensorProto.DataType

_ONE = _fixed(1.0)
_RANGE = "state the range of its argument, or use a function of bounded slope"


def _rows(
    rule: Callable[[Step], tuple[Value, ...]], constant: str, theorem: str, *ops: str, condition: str = ""
):
    return tuple(Row(op, rule, constant, theorem, condition) for op in ops)


ROWS: tuple[Row, ...] = (
    *_rows(
        _ONE,
        "1",
        "slopes in [−1, 1]",
        "Relu",
        "Abs",
        "Neg",
        "Tanh",
        "Softplus",
        "Softsign",
        "Atan",
        "Asinh",
        "Sin",
        "Cos",
    ),
    *_rows(_fixed(0.25), "1/4", "σ' = σ(1 − σ)", "Sigmoid"),
    *_rows(_fixed(ERF), "2/√π", "erf' = 2/√π·exp(−x²)", "Erf"),
    *_rows(_fixed(1.5), "3/2", "slopes in [−1/2, 3/2]", "HardSwish"),
    *_rows(_fixed(MISH), "1.0885", "slopes in [−.1126, 1.0885]", "Mish"),
    Row("LeakyRelu", leaky_relu, "max(1, |alpha|)", "two slopes"),
    Row("PRelu", prelu, "max(1, max|slope|)", "two slopes for each channel", "constant slope"),
    Row("Elu", elu, "max(1, |alpha|)", "slopes in [0, max(1, alpha)]"),
    Row("Selu", selu, "|gamma|·max(1, |alpha|)", "slopes in [0, 1.7581]"),
    Row("Celu", celu, "1", "slopes in [0, 1]", "alpha > 0"),
    Row("HardSigmoid", hard_sigmoid, "|alpha|", "a clipped line"),
    Row("Gelu", gelu, "1.1289 (erf), 1.1290 (tanh)", "slopes in [−.129, 1.129]"),
    Row("Gelu", _fixed(GELU_ERF), "1.1289", "slopes in [−.129, 1.129]", domain="com.microsoft"),
    Row(
        "FastGelu",
        _fixed(GELU_TANH),
        "1.1290",
        "slopes in [−.129, 1.129]",
        "constant bias",
        domain="com.microsoft",
    ),
    Row("QuickGelu", swish, "1.0998", "slopes in [−.0998, 1.0998]", domain="com.microsoft"),
    Row("Swish", swish, "1.0998", "slopes in [−.0998, 1.0998]"),
    Row("Clip", clip, "1", "projection", "constant limits"),
    Row("ThresholdedRelu", thresholded_relu, "1", "slopes in [0, 1]", "alpha = 0"),
    Row("Shrink", shrink, "1", "slopes in [0, 1]", "bias = lambd"),
    Row("Pow", power, "1", "identity", "exponent 1"),
    Row("Softmax", softmax, "1/2", "2p(1 − p) ≤ 1/2"),
    Row("LogSoftmax", log_softmax, "√n (l1: max(1, n−1), linf: 2)", "I − 1pᵀ"),
    Row("Cast", cast, "1", "identity in real arithmetic", "to a floating type of 16 bits or more"),
    Row("CastLike", cast, "1", "identity in real arithmetic", "to a floating type of 16 bits or more"),
    *_rows(
        step_function,
        "∞",
        "step function",
        "Sign",
        "Round",
        "Floor",
        "Ceil",
        "Hardmax",
        "Not",
        "And",
        "Or",
        "Xor",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "IsNaN",
        "IsInf",
        "ArgMax",
        "ArgMin",
        "NonZero",
        "OneHot",
        "Unique",
        "NonMaxSuppression",
        "Multinomial",
        condition="its result is not used as data",
    ),
    *_rows(
        _needs_range("the exponential's slope grows with its argument", _RANGE),
        "∞",
        "eˣ",
        "Exp",
        "Sinh",
        "Cosh",
    ),
    *_rows(
        _needs_range(
            "its slope grows without limit near zero", "keep its argument away from zero by a stated range"
        ),
        "∞",
        "1/x",
        "Log",
        "Sqrt",
        "Reciprocal",
    ),
    *_rows(
        _needs_range("its slope grows without limit near the ends of its domain", _RANGE),
        "∞",
        "poles",
        "Tan",
        "Asin",
        "Acos",
        "Acosh",
        "Atanh",
    ),
    *_rows(
        _needs_range("it jumps at each multiple of the divisor", "take the remainder outside of the model"),
        "∞",
        "step function",
        "Mod",
    ),
)
