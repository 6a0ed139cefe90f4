"""ATen's fused attention and transformer layer, which PyTorch takes where no gradient is asked for, as ONNX."""

from __future__ import annotations

from typing import Any

from snaudit.formats.aten_calls import Ref, Untranslated, Writer, absent, flag, integer, number
from snaudit.formats.aten_pointwise import Translator


def _attended(w: Writer, x: Any, like: Ref, width: int, heads: int, weights: tuple[Any, Any, Any, Any]) -> str:
    """Self-attention of x, which has the rank, sizes and dtype of `like`: softmax(qkᵀ/√d)·v, projected."""
    kinds = {w.real(one) for one in (like, *weights)}
    if len(kinds) != 1 or w.rank(like) != 3 or heads < 1 or width % heads or w.size(like, 2) != width:
        raise Untranslated("heads of another form")
    qkv_weight, qkv_bias, out_weight, out_bias = weights
    batch, length, each = w.size(like, 0), w.size(like, 1), width // heads
    packed = _dense(w, x, qkv_weight, qkv_bias)
    parts = [w.fresh("part") for _ in range(3)]
    w.add("Split", [packed, w.ints([width] * 3)], parts, axis=2)
    split = w.ints([batch, length, heads, each])
    cut = [w.add("Reshape", [part, split]) for part in parts]
    q, v = (w.add("Transpose", [cut[at]], perm=[0, 2, 1, 3]) for at in (0, 2))
    k = w.add("Transpose", [cut[1]], perm=[0, 2, 3, 1])
    scores = w.add("Mul", [w.add("MatMul", [q, k]), w.scalar(each**-0.5, like)])
    mixed = w.add("MatMul", [w.add("Softmax", [scores], axis=3), v])
    joined = w.add("Reshape", [w.add("Transpose", [mixed], perm=[0, 2, 1, 3]), w.ints([batch, length, width])])
    return _dense(w, joined, out_weight, out_bias)


def _dense(w: Writer, x: Any, weight: Any, bias: Any) -> str:
    return w.add("Add", [w.add("MatMul", [x, w.add("Transpose", [weight], perm=[1, 0])]), bias])


def _multi_head(
    w: Writer, query: Any, key: Any, value: Any, embed_dim: Any, num_head: Any, qkv_weight: Any, qkv_bias: Any,
    proj_weight: Any, proj_bias: Any, mask: Any = None, need_weights: Any = True, average_attn_weights: Any = True,
    mask_type: Any = None,
) -> None:  # fmt: skip
    """The first output; the weights, where they are asked for, stay untranslated."""
    absent(mask)
    if not isinstance(query, Ref) or query != key or key != value:
        raise Untranslated("an attention between different tensors")
    weights = (qkv_weight, qkv_bias, proj_weight, proj_bias)
    made = _attended(w, query, query, integer(embed_dim), integer(num_head), weights)
    w.last("Identity", [made])


def _encoder_layer(
    w: Writer, src: Any, embed_dim: Any, num_heads: Any, qkv_weight: Any, qkv_bias: Any, proj_weight: Any, proj_bias: Any,
    use_gelu: Any, norm_first: Any, eps: Any, norm_weight_1: Any, norm_bias_1: Any, norm_weight_2: Any, norm_bias_2: Any,
    ffn_weight_1: Any, ffn_bias_1: Any, ffn_weight_2: Any, ffn_bias_2: Any, mask: Any = None, mask_type: Any = None,
) -> None:  # fmt: skip
    """Attention and a feed-forward net, each with a residual and a LayerNorm before (norm_first) or after it."""
    absent(mask)
    first, second = (norm_weight_1, norm_bias_1), (norm_weight_2, norm_bias_2)
    weights = (qkv_weight, qkv_bias, proj_weight, proj_bias)

    def normed(x: Any, norm: tuple[Any, Any]) -> str:
        return w.add("LayerNormalization", [x, *norm], axis=-1, epsilon=number(eps))

    def attended(x: Any) -> str:
        return _attended(w, x, src, integer(embed_dim), integer(num_heads), weights)

    def fed(x: Any) -> str:
        inner = w.add("Gelu" if flag(use_gelu) else "Relu", [_dense(w, x, ffn_weight_1, ffn_bias_1)])
        return _dense(w, inner, ffn_weight_2, ffn_bias_2)

    if flag(norm_first):
        x = w.add("Add", [src, attended(normed(src, first))])
        w.last("Add", [x, fed(normed(x, second))])
    else:
        x = normed(w.add("Add", [src, attended(src)]), first)
        w.last("LayerNormalization", [w.add("Add", [x, fed(x)]), *second], axis=-1, epsilon=number(eps))


ATTENTION: dict[str, Translator] = {
    "_native_multi_head_attention.default": _multi_head,
    "_transformer_encoder_layer_fwd.default": _encoder_layer,
}
