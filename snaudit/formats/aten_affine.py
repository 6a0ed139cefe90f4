"""ATen's matrix products, convolutions, pools and normalizations by channel as ONNX."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from snaudit.formats.aten_calls import (
    Ref,
    Untranslated,
    Writer,
    absent,
    flag,
    integer,
    integers,
    number,
    tensors,
)
from snaudit.formats.aten_pointwise import Translator
from snaudit.formats.exported_program import NotTaken


def _linear(w: Writer, input: Any, weight: Any, bias: Any = None) -> None:
    if w.real(input) != w.real(weight) or w.rank(weight) != 2:
        raise Untranslated("a linear map of another form")
    if w.rank(input) == 2:
        w.last("Gemm", [input, weight, bias], transB=1)
        return
    product = [input, w.add("Transpose", [weight], perm=[1, 0])]
    if bias is None:
        w.last("MatMul", product)
    else:
        w.last("Add", [w.add("MatMul", product), bias])


def _addmm(w: Writer, self: Any, mat1: Any, mat2: Any, beta: Any = 1, alpha: Any = 1) -> None:
    if len({w.real(one) for one in (self, mat1, mat2)}) != 1 or w.rank(mat1) != 2 or w.rank(mat2) != 2:
        raise Untranslated("operands of other forms")
    w.last("Gemm", [mat1, mat2, self], alpha=number(alpha), beta=number(beta))


def _product(w: Writer, self: Any, other: Any) -> None:
    if w.real(self) != w.real(other):
        raise Untranslated("operands of two dtypes")
    w.last("MatMul", [self, other])


def _mm(w: Writer, self: Any, mat2: Any) -> None:
    _product(w, self, mat2)


def _einsum(w: Writer, equation: Any, tensors_: Any, path: Any = None) -> None:
    absent(path)
    text = equation.replace(" ", "") if type(equation) is str else ""
    terms, arrow, result = text.partition("->")
    if not (terms + result).replace(",", "").replace("...", "").isalpha() or not text.isascii():
        raise Untranslated("an equation of another form")
    if not arrow and (not text.islower() or "." in text):
        raise Untranslated("an equation without arrow")
    operands = tensors(tensors_)
    if len({w.real(one) for one in operands}) != 1:
        raise Untranslated("operands of two dtypes")
    implied = "->" + "".join(sorted(one for one in set(terms) - {","} if terms.count(one) == 1))
    w.last("Einsum", operands, equation=text if arrow else text + implied)


def _attention(
    w: Writer, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: Any = 0.0,
    is_causal: Any = False, scale: Any = None, enable_gqa: Any = False,
) -> None:  # fmt: skip
    ranks, kinds = {w.rank(one) for one in (query, key, value)}, {w.real(one) for one in (query, key, value)}
    if number(dropout_p) or flag(enable_gqa) or len(ranks) != 1 or len(kinds) != 1 or min(ranks) < 3:
        raise Untranslated("an attention with dropout or shared heads")
    factor = number(scale) if scale is not None else 1.0 / np.sqrt(w.size(query, -1))
    order = list(range(min(ranks)))
    order[-2:] = order[-1], order[-2]
    scores = w.add("MatMul", [query, w.add("Transpose", [key], perm=order)])
    scores = w.add("Mul", [scores, w.scalar(float(factor), query)])
    mask = _mask(w, query, key, attn_mask, flag(is_causal))
    scores = scores if mask is None else w.add("Add", [scores, mask])
    weights = w.add("Softmax", [scores], axis=min(ranks) - 1)
    w.last("MatMul", [weights, value])


def _mask(w: Writer, query: Any, key: Any, given: Any, causal: bool) -> Any:
    """What is added to the scores: 0 where a key may be seen, −∞ where not; None for no mask."""
    kind = w.real(query)
    if causal:
        absent(given)
        rows, columns = w.size(query, -2), w.size(key, -2)
        if rows * columns > 1 << 20:
            raise Untranslated("a mask of more than a million numbers")
        return w.constant(np.triu(np.full((rows, columns), -np.inf, kind), 1))
    if given is None or w.dtype(given) == kind:
        return given
    if w.dtype(given) != "bool":
        raise Untranslated("a mask of another dtype")
    return w.add("Where", [given, w.scalar(0.0, query), w.scalar(-np.inf, query)])


def _baddbmm(w: Writer, self: Any, batch1: Any, batch2: Any, beta: Any = 1, alpha: Any = 1) -> None:
    if len({w.real(one) for one in (self, batch1, batch2)}) != 1:
        raise Untranslated("operands of two dtypes")
    product = w.add("Mul", [w.add("MatMul", [batch1, batch2]), w.scalar(alpha, self)])
    if number(beta) == 0.0:
        w.last("Identity", [product])  # torch does not look at what is multiplied by 0
    else:
        w.last("Add", [product, w.add("Mul", [self, w.scalar(beta, self)])])


def _weight_norm(w: Writer, v: Any, g: Any, dim: Any = 0) -> None:
    """v·g/‖v‖, the norm over all axes but one."""
    axis, rank = integer(dim), w.rank(v)
    if w.real(v) != w.real(g) or not 0 <= axis < rank:  # −1 means the norm over all axes
        raise Untranslated("operands of two dtypes, or a norm over all axes")
    norm = w.add("ReduceL2", [v, w.ints([at for at in range(rank) if at != axis])], keepdims=1)
    w.last("Mul", [v, w.add("Div", [g, norm])])


# convolutions


def _convolved(
    w: Writer, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    output_padding: Any = None,
) -> None:  # fmt: skip
    """A convolution over the axes behind the first two; transposed where an output padding is given."""
    axes = w.rank(weight) - 2
    if axes >= 1 and w.rank(input) not in (axes + 1, axes + 2):
        raise NotTaken(f"a convolution takes an input of {axes + 2} axes, and is given one of {w.rank(input)}")
    if axes < 1 or w.rank(input) != axes + 2 or w.real(input) != w.real(weight):
        raise Untranslated("a convolution without a batch axis, or of two dtypes")
    if bias is not None and not isinstance(bias, Ref):
        raise Untranslated("a bias that is no tensor")
    pads = integers(padding, axes)
    if min(pads) < 0:
        raise Untranslated("a negative padding")
    common = {
        "strides": integers(stride, axes), "pads": [*pads, *pads], "dilations": integers(dilation, axes),
        "group": integer(groups), "kernel_shape": [w.size(weight, axis + 2) for axis in range(axes)],
    }  # fmt: skip
    if output_padding is None:
        w.last("Conv", [input, weight, bias], **common)
    else:
        w.last("ConvTranspose", [input, weight, bias], output_padding=integers(output_padding, axes), **common)


def _conv(
    w: Writer, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: Any = 1,
) -> None:  # fmt: skip
    _convolved(w, input, weight, bias, stride, padding, dilation, groups)


def _conv_named(
    w: Writer, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = "valid",
    dilation: Any = 1, groups: Any = 1,
) -> None:  # fmt: skip
    """Padding "valid" (none), or "same", of which an odd one is larger behind."""
    axes = w.rank(weight) - 2
    if padding == "valid":
        _convolved(w, input, weight, bias, stride, 0, dilation, groups)
        return
    total = [d * (w.size(weight, a + 2) - 1) for a, d in enumerate(integers(dilation, axes))]
    if padding != "same" or any(one % 2 for one in total):
        raise Untranslated("a padding of two widths")
    _convolved(w, input, weight, bias, stride, [one // 2 for one in total], dilation, groups)


def _convolution(
    w: Writer, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: Any,
    output_padding: Any, groups: Any,
) -> None:  # fmt: skip
    more = output_padding if flag(transposed) else None
    _convolved(w, input, weight, bias, stride, padding, dilation, groups, more)


def _convolution_tuned(
    w: Writer, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: Any,
    output_padding: Any, groups: Any, benchmark: Any, deterministic: Any, cudnn_enabled: Any, allow_tf32: Any = True,
) -> None:  # fmt: skip
    _convolution(w, input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)


def _conv_transpose(
    w: Writer, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: Any = 1, dilation: Any = 1,
) -> None:  # fmt: skip
    _convolved(w, input, weight, bias, stride, padding, dilation, groups, output_padding)


# pools


def _window(
    w: Writer, axes: int, self: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> dict[str, Any]:
    """A pool's attributes. A window that hangs over, where sizes are rounded up, needs that much more padding."""
    if w.rank(self) != axes + 2:
        raise Untranslated("a pool without a batch axis")
    w.real(self)
    kernel = integers(kernel_size, axes)
    steps = kernel if stride == [] else integers(stride, axes)
    pads, spread = integers(padding, axes), integers(dilation, axes)
    if min(*kernel, *steps, *spread) < 1 or min(pads) < 0:
        raise Untranslated("a window of no size")
    behind = list(pads)
    for axis in range(axes) if flag(ceil_mode) else ():
        size = w.size(self, axis + 2)
        reach = size + 2 * pads[axis] - spread[axis] * (kernel[axis] - 1) - 1
        over = -reach % steps[axis]
        if over and reach + over < size + pads[axis]:  # else the last window starts in the padding, and is none
            behind[axis] += over
    return {"kernel_shape": kernel, "strides": steps, "pads": [*pads, *behind], "dilations": spread}


def _max_pool(
    axes: int, w: Writer, self: Any, kernel_size: Any, stride: Any = [], padding: Any = 0, dilation: Any = 1,
    ceil_mode: Any = False,
) -> None:  # fmt: skip
    w.last("MaxPool", [self], **_window(w, axes, self, kernel_size, stride, padding, dilation, ceil_mode))


def _avg_pool(
    axes: int, w: Writer, self: Any, kernel_size: Any, stride: Any = [], padding: Any = 0, ceil_mode: Any = False,
    count_include_pad: Any = True, divisor_override: Any = None,
) -> None:  # fmt: skip
    absent(divisor_override)
    window = _window(w, axes, self, kernel_size, stride, padding, 1, ceil_mode)
    if window["pads"][:axes] != window["pads"][axes:]:
        raise Untranslated("an average over a window that hangs over")
    del window["dilations"]
    w.last("AveragePool", [self], count_include_pad=int(flag(count_include_pad)), **window)


def _adaptive(axes: int, whole: str, part: str, w: Writer, self: Any, output_size: Any) -> None:
    """Equal windows: one over all, or as many as divide the size."""
    sizes = integers(output_size, axes)
    w.real(self)
    if w.rank(self) != axes + 2:
        raise Untranslated("a pool without a batch axis")
    if sizes == [1] * axes:
        w.last(whole, [self])
        return
    given = [w.size(self, axis + 2) for axis in range(axes)]
    if min(sizes) < 1 or any(n % m for n, m in zip(given, sizes, strict=True)):
        raise Untranslated("windows of unlike sizes")
    kernel = [n // m for n, m in zip(given, sizes, strict=True)]
    w.last(part, [self], kernel_shape=kernel, strides=kernel)


# normalizations by channel


def _vector(w: Writer, given: Any, like: Any, fill: float) -> Any:
    """A channel's parameters, or what stands for absent ones."""
    if given is not None:
        return given
    return w.filled((w.size(like, 1),), fill, like)


def _batch_norm(
    w: Writer, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: Any,
    momentum: Any, eps: Any, cudnn_enabled: Any = True,
) -> None:  # fmt: skip
    if flag(training) or running_mean is None or running_var is None:
        raise Untranslated("statistics of the batch")
    scale, shift = _vector(w, weight, input, 1.0), _vector(w, bias, input, 0.0)
    w.real(input)
    w.last("BatchNormalization", [input, scale, shift, running_mean, running_var], epsilon=number(eps))


def _batch_norm_still(
    w: Writer, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: Any, eps: Any
) -> None:
    _batch_norm(w, input, weight, bias, running_mean, running_var, False, momentum, eps)


def _instance_norm(
    w: Writer, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, use_input_stats: Any,
    momentum: Any, eps: Any, cudnn_enabled: Any,
) -> None:  # fmt: skip
    if not flag(use_input_stats):
        _batch_norm(w, input, weight, bias, running_mean, running_var, False, momentum, eps)
        return
    absent(running_mean, running_var)
    scale, shift = _vector(w, weight, input, 1.0), _vector(w, bias, input, 0.0)
    w.last("InstanceNormalization", [input, scale, shift], epsilon=number(eps))


def _group_norm(
    w: Writer, input: Any, num_groups: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5,
    cudnn_enabled: Any = True,
) -> None:  # fmt: skip
    """InstanceNormalization of each group's channels in one row, then scale and shift."""
    groups, rank = integer(num_groups), w.rank(input)
    if groups < 1 or rank < 3:
        raise Untranslated("groups of no size")
    rows = w.add("Reshape", [input, w.ints([0, groups, -1])])
    one, zero = (w.filled((groups,), fill, input) for fill in (1.0, 0.0))
    rows = w.add("InstanceNormalization", [rows, one, zero], epsilon=number(eps))
    sizes = [0, *(w.size(input, axis) for axis in range(1, rank))]
    result = w.add("Reshape", [rows, w.ints(sizes)])
    by_channel = w.ints([-1] + [1] * (rank - 2))
    for op, given in (("Mul", weight), ("Add", bias)):
        if given is not None:
            result = w.add(op, [result, w.add("Reshape", [given, by_channel])])
    w.last("Identity", [result])


AFFINE: dict[str, Translator] = {
    "linear.default": _linear,
    "addmm.default": _addmm,
    "mm.default": _mm,
    "bmm.default": _mm,
    "matmul.default": _product,
    "einsum.default": lambda w, equation, tensors, path=None: _einsum(w, equation, tensors, path),
    "scaled_dot_product_attention.default": _attention,
    "conv1d.default": _conv,
    "conv2d.default": _conv,
    "conv3d.default": _conv,
    "conv1d.padding": _conv_named,
    "conv2d.padding": _conv_named,
    "conv3d.padding": _conv_named,
    "convolution.default": _convolution,
    "_convolution.default": _convolution_tuned,
    "baddbmm.default": _baddbmm,
    "dot.default": lambda w, self, tensor: _product(w, self, tensor),
    "vdot.default": lambda w, self, other: _product(w, self, other),
    "mv.default": lambda w, self, vec: _product(w, self, vec),
    "_weight_norm.default": _weight_norm,
    "conv_transpose1d.default": _conv_transpose,
    "conv_transpose2d.input": _conv_transpose,
    "conv_transpose3d.input": _conv_transpose,
    "max_pool1d.default": partial(_max_pool, 1),
    "max_pool2d.default": partial(_max_pool, 2),
    "max_pool3d.default": partial(_max_pool, 3),
    "max_pool2d_with_indices.default": partial(_max_pool, 2),
    "avg_pool1d.default": partial(_avg_pool, 1),
    "avg_pool2d.default": partial(_avg_pool, 2),
    "avg_pool3d.default": partial(_avg_pool, 3),
    "adaptive_avg_pool1d.default": partial(_adaptive, 1, "GlobalAveragePool", "AveragePool"),
    "adaptive_avg_pool2d.default": partial(_adaptive, 2, "GlobalAveragePool", "AveragePool"),
    "adaptive_avg_pool3d.default": partial(_adaptive, 3, "GlobalAveragePool", "AveragePool"),
    "_adaptive_avg_pool2d.default": partial(_adaptive, 2, "GlobalAveragePool", "AveragePool"),
    "adaptive_max_pool2d.default": partial(_adaptive, 2, "GlobalMaxPool", "MaxPool"),
    "batch_norm.default": _batch_norm,
    "native_batch_norm.default": _batch_norm,
    "_native_batch_norm_legit_no_training.default": _batch_norm_still,
    "instance_norm.default": _instance_norm,
    "group_norm.default": _group_norm,
}
