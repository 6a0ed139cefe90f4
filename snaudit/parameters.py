"""Layers of a bare checkpoint: what parameter names and shapes say.

A name is a convention, not a promise: what it cannot say (stride, groups, which way a kernel is
stored) is said in the layer's notes, and the numbers are chosen to hold for every choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from snaudit import quantized_parameters
from snaudit.forms import Form, LowRankPair, Plain, SpectralNorm, WeightNorm
from snaudit.layers import Extraction, Geometry, Layer
from snaudit.model import LeftOut, Tensor

UNKNOWN_GEOMETRY = "stride, dilation and groups are not in a checkpoint: the norm's upper end holds for all"

_RECURRENT = re.compile(r"weight_(ih|hh|hr)(_l\d+(_reverse)?)?$")
_PACKED = re.compile(r"(in_proj_weight|in_proj\.weight|qkv\.weight|qkv_proj\.weight|Wqkv\.weight)$")
_EMBEDDING = re.compile(
    r"(^|\.)(embed|embed_tokens|embed_positions|\w*embeddings?|\w*_emb(ed)?|emb|wte|wpe)(\.\d+)?(\.weight|\.table)?$",
    re.IGNORECASE,
)
_ADDED = re.compile(
    r"(^|[._])(pos|pos_emb\w*|pos_enc\w*|positional_encoding|positional_embedding|position_embedding|cls_token|dist_token|mask_token"
    r"|class_embedding|class_token|relative_position_bias_table|pe)$"
)
_NORMALIZATION = re.compile(r"(^|[._])((batch|layer|group|instance|rms)?_?norm\w*|ln\w*|bn\w*)\.", re.IGNORECASE)
_LORA = re.compile(r"(?P<base>.*)\.lora_(?P<which>A|B|down|up)(?P<adapter>\.[^.]+)?\.weight$")
_EXPERTS = re.compile(r"expert", re.IGNORECASE)
_STORED_IN_OUT = re.compile(r"(^|\.)(h|transformer\.h|layers?)\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")


@dataclass(slots=True)
class _Reading:
    """What is known so far: tensors not yet explained, layers by the file's order, what is left out."""

    tensors: Mapping[str, Tensor]
    open: dict[str, Tensor]
    layers: list[Layer] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def take(self, *names: str) -> None:
        for name in names:
            self.open.pop(name, None)

    def leave_out(self, name: str, reason: str, missed: bool = False) -> None:
        self.take(name)
        self.left_out.append(LeftOut(name, reason, missed))


def extract_from_tensors(tensors: Mapping[str, Tensor]) -> Extraction:
    """All layers that the names and shapes of a checkpoint's tensors tell, in the file's order."""
    reading = _Reading(tensors, dict(tensors))
    _quantized(reading)
    _leave_out_what_is_not_real(reading)
    for name in tensors:
        for find in (_weight_norm, _spectral_norm, _low_rank):
            if name in reading.open:
                find(reading, name)
    scales = tuple(_scales(reading))
    for name, tensor in list(reading.open.items()):
        reason = _why_no_matrix(name, tensor, tensors)
        if reason:
            reading.leave_out(name, reason, missed=len(tensor.shape) > 5)
        else:
            reading.take(name)
            reading.layers.extend(_plain(name, tensor))
    order = {name: index for index, name in enumerate(tensors)}
    reading.layers.sort(key=lambda layer: min(order[tensor.name] for tensor in layer.form.tensors))
    layers = _merge_aliases([_with_recurrent_kind(layer, reading.layers) for layer in reading.layers])
    return Extraction(layers, tuple(reading.left_out), scales, tuple(_broken_chain(layers, scales)))


def _quantized(reading: _Reading) -> None:
    """Take the quantized weights: codes with their scales, or the reason why they are not read."""
    for found in list(quantized_parameters.find(reading.tensors)):
        for name in found.taken[1:]:
            reading.leave_out(name, "belongs to a quantized weight")
        if found.form is None:
            reading.leave_out(found.taken[0], found.reason, missed=True)
            continue
        reading.take(found.taken[0])
        for layer in _named(found.name, found.form, (found.note,)):
            reading.layers.append(replace(layer, flipped=layer.flipped != found.flipped))


def _leave_out_what_is_not_real(reading: _Reading) -> None:
    for name, tensor in list(reading.open.items()):
        if tensor.is_real:
            continue
        kind = "complex" if tensor.dtype.startswith("complex") else "integers or booleans"
        narrow = tensor.dtype.startswith(("complex", "int4", "int8", "uint4", "uint8"))
        acts = len(tensor.shape) > 1 and (narrow or name.endswith("weight"))
        reading.leave_out(name, f"{kind} ({tensor.dtype})", missed=acts)
        if acts:
            for ending in ("_scale", "_scales", "_zero_point", "_scale_inv"):
                if f"{name}{ending}" in reading.open:
                    reading.leave_out(f"{name}{ending}", "belongs to integer weights")


def _weight_norm(reading: _Reading, name: str) -> None:
    if name.endswith("_g"):
        other, base = f"{name[:-2]}_v", name[:-2]
    elif name.endswith(".original0") and ".parametrizations." in name:
        other = f"{name[:-1]}1"
        base = name.removesuffix(".original0").replace(".parametrizations.", ".", 1)
    elif name.endswith(".original0") and name.startswith("parametrizations."):
        other, base = f"{name[:-1]}1", name.removesuffix(".original0").removeprefix("parametrizations.")
    else:
        return
    magnitude, direction = reading.open.get(name), reading.open.get(other)
    if magnitude is None or direction is None or not _is_magnitude(magnitude.shape, direction.shape):
        return
    reading.take(name, other)
    form = WeightNorm(magnitude, direction)
    if len(direction.shape) < 2:
        reading.left_out.append(LeftOut(base, "a vector"))
        return
    reading.layers.extend(_named(base, form, ("weight_norm: g·v/‖v‖",)))


def _is_magnitude(g: tuple[int, ...], v: tuple[int, ...]) -> bool:
    if np.prod(g) == 1:
        return True
    return len(g) == len(v) and all(a in (1, b) for a, b in zip(g, v, strict=True))


def _spectral_norm(reading: _Reading, name: str) -> None:
    if name.endswith("_orig"):
        base = name[:-5]
        left, right = reading.open.get(f"{base}_u"), reading.open.get(f"{base}_v")
    elif name.endswith(".original") and "parametrizations." in name:
        stem = name.removesuffix(".original")
        base = re.sub(r"(^|\.)parametrizations\.", r"\1", stem, count=1)
        left, right = reading.open.get(f"{stem}.0._u"), reading.open.get(f"{stem}.0._v")
    else:
        return
    original = reading.open[name]
    if left is None:
        if name.endswith(".original"):
            reading.take(name)
            note = "behind a parametrization that is not known here: this is the parameter before it"
            reading.layers.extend(_named(name, Plain(original), (note,)))
        return
    dims = [d for d, length in enumerate(original.shape) if (length,) == left.shape]
    if len(original.shape) < 2 or not dims:
        return
    dims = _spectral_dims(original.shape, dims, right)
    if len(dims) > 1:
        dims = _aligned(original, left, right, dims) or dims
    unsure = ""
    if len(dims) > 1:
        unsure = "which axis spectral_norm divides along cannot be told from u and v: the first is assumed"
    reading.take(name, left.name, *(() if right is None else (right.name,)))
    if base in reading.open:
        reading.leave_out(base, f"recomputed from {name} on loading")
    form = SpectralNorm(original, left, right, dims[0])
    notes = ("spectral_norm: W/(uᵀWv) with the stored u, v", *([unsure] if unsure else []))
    for layer in _named(base, form, notes):
        if layer.geometry is not None and dims[0] == 1:  # torch divides only transposed ones along axis 1
            layer = replace(
                layer, op=layer.op.replace("Conv", "ConvTranspose"), geometry=replace(layer.geometry, transposed=True)
            )
        reading.layers.append(replace(layer, assumption=unsure))


def _spectral_dims(shape: tuple[int, ...], dims: list[int], right: Tensor | None) -> list[int]:
    """The axes that both u and v fit (torch takes 1 for transposed convolutions, else 0)."""
    if right is None:
        return dims
    return [d for d in dims if (int(np.prod(shape)) // max(1, shape[d]),) == right.shape] or dims


def _aligned(original: Tensor, left: Tensor, right: Tensor | None, dims: list[int]) -> list[int]:
    """The one axis along which u is parallel to W·v, as torch leaves them; empty if not just one is."""
    if right is None:
        return []
    weight, u, v = original.float64(), left.float64(), right.float64()
    found = []
    for d in dims:
        image = np.moveaxis(weight, d, 0).reshape(weight.shape[d], -1) @ v
        size = float(np.linalg.norm(image) * np.linalg.norm(u))
        if size > 0 and np.isfinite(size) and abs(float(u @ image)) > 0.999 * size:
            found.append(d)
    return found if len(found) == 1 else []


def _low_rank(reading: _Reading, name: str) -> None:
    match = _LORA.match(name)
    if match is None or match["which"] in ("B", "up"):
        return
    other = {"A": "B", "down": "up"}[match["which"]]
    up_name = f"{match['base']}.lora_{other}{match['adapter'] or ''}.weight"
    down, up = reading.open[name], reading.open.get(up_name)
    if up is None or len(down.shape) < 2 or len(up.shape) < 2:
        return
    if int(np.prod(up.shape[1:])) != down.shape[0]:
        return
    reading.take(name, up_name)
    geometry = None
    if len(down.shape) > 2:
        ones = (1,) * (len(down.shape) - 2)
        geometry = Geometry(ones, ones, known=False)
    note = "the product B·A, without the factor alpha/r, which the weights do not hold"
    reading.layers.append(
        Layer(
            f"{match['base']}.lora{match['adapter'] or ''}",
            "LoRA",
            LowRankPair(up, down),
            geometry,
            used_by=(name,),
            in_chain=False,
            notes=(note,),
        )
    )


def _scales(reading: _Reading) -> Iterator[tuple[str, float | None]]:
    """Normalization layers with their gain: max|γ|/√var for running statistics (ε ≥ 0 only lowers
    it), None for those that normalise what they are given (their gain rests on an ε that no
    checkpoint holds)."""
    for name, tensor in list(reading.open.items()):
        if name.endswith("running_var"):
            base = name.removesuffix("running_var")
            gamma = reading.tensors.get(f"{base}weight")
            variance = tensor.float64()
            with np.errstate(all="ignore"):
                gain = 1.0 / np.sqrt(variance)
                if gamma is not None and gamma.shape == tensor.shape and gamma.is_real:
                    gain = np.abs(gamma.float64()) * gain
            largest = float(np.max(gain, initial=0.0)) * (1 + 1e-15)
            yield base.rstrip("."), largest if np.isfinite(gain).all() else None
        elif name.endswith(("weight", "scale", "gamma")) and _NORMALIZATION.search(name):
            if f"{name.rsplit('.', 1)[0]}.running_var" not in reading.tensors and len(tensor.shape) == 1:
                yield name.rsplit(".", 1)[0], None


def _why_no_matrix(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> str | None:
    """Why a real tensor is no linear map of the network; None where it is one."""
    if len(tensor.shape) < 2:
        return "a vector or scalar (bias, norm scale, statistic)"
    if len(tensor.shape) > 5:
        return f"{len(tensor.shape)} axes: no known kind of layer"
    last = name.rsplit(".", 1)[-1]
    if last in ("bias", "masked_bias", "attn_mask") or last.startswith("bias_") or last.endswith("_bias"):
        return "a bias or mask: added, not applied"
    if last.startswith(("running_", "num_batches")):
        return "a statistic"
    if _ADDED.search(name):
        return "added to activations, not applied to them"
    bias = tensors.get(f"{name.removesuffix('weight')}bias") if name.endswith("weight") else None
    if bias is not None and bias.shape == tensor.shape:
        return "an elementwise scale (its bias has the same shape)"
    return None


def _plain(name: str, tensor: Tensor) -> Iterator[Layer]:
    """The layers of a tensor that is a weight as it stands; packed ones are taken apart."""
    shape = tensor.shape
    if len(shape) == 2 and _PACKED.search(name) and shape[0] == 3 * shape[1]:
        yield from _parts(name, tensor, 0, "Attention")
    elif len(shape) == 2 and name.endswith("c_attn.weight") and shape[1] == 3 * shape[0]:
        yield from _parts(name, tensor, 1, "Attention")
    else:
        yield from _named(name, Plain(tensor))


def _parts(name: str, tensor: Tensor, axis: int, op: str) -> Iterator[Layer]:
    width = tensor.shape[axis] // 3
    for part, letter in enumerate("qkv"):
        index = (slice(None),) * axis + (slice(part * width, (part + 1) * width),)
        yield Layer(f"{name}[{letter}]", op, Plain(tensor, index), flipped=axis == 1, used_by=(name,))


def _named(name: str, form: Form, notes: tuple[str, ...] = ()) -> Iterator[Layer]:
    """The layer of a weight of known form: its kind from the name, else from the number of axes."""
    shape = form.shape
    if name.endswith("kernel") and isinstance(form, Plain) and len(shape) > 2:  # flax: spatial axes first
        form = replace(form, order=(len(shape) - 1, len(shape) - 2, *range(len(shape) - 2)))
        shape = form.shape
    make = Layer(name, "Linear", form, used_by=(name,), notes=notes)
    if _RECURRENT.search(name):
        yield replace(make, op="RNN")
    elif len(shape) == 2 and _EMBEDDING.search(name):
        yield replace(make, op="Embedding", flipped=True, in_chain=False)
    elif len(shape) == 2:
        yield replace(make, flipped=name.endswith("kernel") or bool(_STORED_IN_OUT.search(name)))
    elif len(shape) == 3 and _EXPERTS.search(name):
        note = "stacked experts: the largest over the slices"
        yield replace(make, op="Experts", stacked=True, notes=(*notes, note))
    else:
        ones = (1,) * (len(shape) - 2)
        geometry = Geometry(ones, ones, known=False)
        yield replace(make, op=f"Conv{len(ones)}d", geometry=geometry, notes=(*notes, UNKNOWN_GEOMETRY))


def _with_recurrent_kind(layer: Layer, layers: list[Layer]) -> Layer:
    """LSTM, GRU or RNN by the number of gates: its recurrent matrix is [gates·hidden, hidden]."""
    if layer.op != "RNN":
        return layer
    recurrent = layer.name.replace("weight_ih", "weight_hh")
    shape = next((other.shape for other in layers if other.name == recurrent), layer.shape)
    gates = shape[0] // shape[1] if shape[1] and recurrent.count("weight_hh") else 1
    return replace(layer, op={4: "LSTM", 3: "GRU"}.get(gates, "RNN"))


def _merge_aliases(layers: list[Layer]) -> tuple[Layer, ...]:
    """One layer for all names of the same stored weight; `used_by` keeps the names."""
    merged: dict[object, Layer] = {}
    for layer in layers:
        form = layer.form
        index = str(getattr(form, "index", ""))
        key = (type(form), tuple(tensor.place for tensor in form.tensors), index)
        first = merged.get(key)
        if first is None:
            merged[key] = layer
        else:
            kept = first if first.in_chain else layer  # an embedding tied to the output layer is one
            merged[key] = replace(kept, name=first.name, used_by=first.used_by + layer.used_by)
    return tuple(merged.values())


def _broken_chain(
    layers: tuple[Layer, ...], scales: tuple[tuple[str, float | None], ...]
) -> Iterator[str]:
    """What in the file shows that the layers are no chain of 1-Lipschitz steps."""
    unknown = sum(gain is None for _, gain in scales)
    if unknown:
        yield f"{unknown} normalization layers whose ε is not in the file are left out of the product"
    if any(layer.op in ("LSTM", "GRU", "RNN") for layer in layers):
        yield "recurrent matrices are applied once for each step, not once"
    if any(layer.op == "Attention" for layer in layers):
        yield "attention multiplies activations with each other: it has no constant without a range"
    embeddings = sum(layer.op == "Embedding" and not layer.in_chain for layer in layers)
    if embeddings:
        yield f"the chain starts behind the embeddings ({embeddings} left out of the product)"
    if any(layer.op == "LoRA" for layer in layers):
        yield "LoRA products are added to their base matrix and are left out of the product"
