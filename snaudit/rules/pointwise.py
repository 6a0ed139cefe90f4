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
from snaudit.curves import Curve, curve_of, periodic, power, raised, two_slopes
from snaudit.rules.interface import (
    Row,
    Step,
    Unbounded,
    Value,
    jumping,
    through,
    within,
)

GELU_ERF, GELU_TANH, SILU, MISH, ERF = (
    ends[1] for ends in (slopes.GELU_ERF, slopes.GELU_TANH, slopes.SILU, slopes.MISH, slopes.ERF)
)
"""Suprema of |φ'|, rounded up."""


def _slope(step: Step, slope: float) -> tuple[Value, ...]:
    if not all(math.isfinite(value) for value in _numbers(step)) or not math.isfinite(slope):
        raise Unbounded("an attribute is not finite", "repair the attribute", "bad-attribute")
    alone = not step.has(1)  # FastGelu adds a bias first
    curve = curve_of(step.node.op_type, step.attribute) if alone else None
    return (_through_slope(step, abs(slope), curve),)


def _through_slope(step: Step, slope: float, curve: Curve | None, index: int = 0) -> Value:
    """The input through a function with slopes up to `slope`, or up to what its curve has on the range
    in which the input lies, where that is less. (On a box of inputs the segment between two of them stays
    within the range, so the mean value theorem needs the slopes there only.)"""
    one, value = step.range(index), step.data(index)
    least = slope if curve is None or not one.known else curve.steepest(one)
    if least < slope:
        return within(through(value, at_most(least, "slope on a range")), one)
    return through(value, at_most(slope, "slope"))


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
    one = step.range(0)
    if found.count == 1 and one.known:
        least = two_slopes(slopes).steepest(one)
        if least < max(1.0, largest):
            return (within(through(value, at_most(least, "slope on a range")), one),)
    return (through(value, at_most(max(1.0, largest), "slope")),)


def on_a_range(step: Step) -> tuple[Value, ...]:
    """sup|f'| on the range in which its input lies times the input's; without one, no constant."""
    curve = curve_of(step.node.op_type, step.attribute)
    assert curve is not None
    return (_needing(step, curve),)


def _needing(step: Step, curve: Curve, index: int = 0) -> Value:
    if math.isinf(curve.steepest(step.range(index))):
        known = step.range(index).known
        where = "on the range of its argument" if known else "while the range of its argument is not known"
        raise Unbounded(
            f"the slope of {step.node.op_type} has no limit {where}",
            "state an input range (--input-range) that keeps its argument within limits and away from poles",
            "needs-range",
        )
    return _through_slope(step, math.inf, curve, index)


def tangent(step: Step) -> tuple[Value, ...]:
    """1/cos² at the end of a range within one branch, times the input's; without a range, no constant."""
    one = step.range(0)
    low, high = float(one.low.min()), float(one.high.max())
    if not -1.57 <= low <= high <= 1.57:
        raise Unbounded("the tangent has poles", "state a range within ±1.57 for its argument", "needs-range")
    slope = up(1.0 / math.cos(max(-low, high)) ** 2 * (1.0 + 1e-9))
    return (within(through(step.data(), at_most(slope, "slope on a range")), one),)


def wave(step: Step) -> tuple[Value, ...]:
    """sup|cos| (Sin) or sup|sin| (Cos) on the input's range, at most 1, times the input's."""
    slope = periodic(step.node.op_type, step.range(0))[1]
    value = through(step.data(), at_most(slope, "slope"))
    return (within(value, step.range(0)) if slope < 1.0 else value,)


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
    """The input's own: clipping to constant bounds is a projection; 0 where it never lies between them."""
    one = step.range(0)
    low, high = (step.constant(i) if step.opset >= 11 and step.has(i) else None for i in (1, 2))
    below = low is not None and low.size == 1 and float(one.high.max()) <= float(low.ravel()[0])
    above = high is not None and high.size == 1 and float(one.low.min()) >= float(high.ravel()[0])
    if step.varying == (0,) and one.known and (below or above):
        return (within(through(step.data(), at_most(0.0, "clipped")), one),)
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


def raising(step: Step) -> tuple[Value, ...]:
    """x^p for a constant p: sup|p·x^(p−1)| on the range in which x lies, times its own; a^x for a constant
    a > 0: sup|ln a·a^x|. p = 1 needs no range; any other power's slope grows with its argument, or at zero.
    """
    exponent, base = step.constant(1), step.constant(0)
    if step.varying == (0,) and exponent is not None and exponent.size == 1:
        number = float(exponent.ravel()[0])
        if number == 1.0:
            return (through(step.data(), at_most(1.0, "slope")),)
        if 0.0 < abs(number) < 100.0:
            return (_needing(step, power(number)),)
    number = math.nan if step.varying != (1,) or base is None or base.size != 1 else float(base.ravel()[0])
    if 0.0 < number < math.inf:
        return (_needing(step, raised(number), 1),)
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
    ),
    *_rows(wave, "1", "slopes in [−1, 1]", "Sin", "Cos"),
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
    Row("Pow", raising, "sup|p·x^(p−1)|", "slope on a range", "constant exponent; a range, unless it is 1"),
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
        on_a_range,
        "sup|f'|",
        "mean value theorem",
        "Exp",
        "Sinh",
        "Cosh",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Asin",
        "Acos",
        "Acosh",
        "Atanh",
        condition="a range of its argument",
    ),
    Row("Tan", tangent, "1/cos²", "mean value theorem", "a range of its argument"),
    *_rows(
        _needs_range("it jumps at each multiple of the divisor", "take the remainder outside of the model"),
        "∞",
        "step function",
        "Mod",
    ),
)
