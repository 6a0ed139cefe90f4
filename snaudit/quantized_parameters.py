"""Quantized weights of a bare checkpoint: codes and scales that lie beside each other under known names.

Only layouts that the names and shapes settle are read; of any other the reason is told, and the weight stays
unread. A narrow float with a scale beside it is codes, too: its own numbers are not the weight's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from snaudit.dequantized import Dequantized
from snaudit.model import Tensor
from snaudit.packing import AWQ, Packing

_NARROW = ("int8", "uint8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_BLOCK = 128
"""DeepSeek's block of a `weight_scale_inv`, along both axes; only config.json names others."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized weight under its name: its form, or why it is not read. `taken` are the tensors that are
    explained with it; `flipped` as a Layer's."""

    name: str
    form: Dequantized | None
    reason: str
    taken: tuple[str, ...]
    note: str = ""
    flipped: bool = False


def find(tensors: Mapping[str, Tensor]) -> Iterator[Quantized]:
    """All quantized weights whose scales lie beside them."""
    for name, tensor in tensors.items():
        if len(tensor.shape) < 2:
            continue
        if name.endswith("qweight") and tensor.dtype == "int32":
            yield _words(name.removesuffix("qweight"), tensors)
        elif name.endswith("weight_packed") and tensor.dtype == "int32":
            yield _packed(name.removesuffix("_packed"), tensors)
        elif name.endswith(".int_repr") or name == "int_repr":
            yield _of_torch(name.removesuffix("int_repr"), tensors)
        elif tensor.dtype in _NARROW:
            found = _beside(name, tensors)
            if found is not None:
                yield found


def _beside(name: str, tensors: Mapping[str, Tensor]) -> Quantized | None:
    """Codes of a byte each, with a scale named after them."""
    base = name.removesuffix("weight")
    codes = tensors[name]
    if name.endswith("weight") and codes.dtype == "int8" and f"{base}SCB" in tensors:
        return _bitsandbytes(name, base, tensors)
    stem = name.removesuffix("._data")
    if stem != name and f"{stem}._scale" in tensors:
        return _scaled(stem, name, f"{stem}._scale", None, tensors, "quanto: data·scale")
    if f"{name}_scale_inv" in tensors:
        return _in_blocks(name, tensors)
    if f"{name}_scale" in tensors:
        zero = f"{name}_zero_point" if f"{name}_zero_point" in tensors else None
        found = _scaled(name, name, f"{name}_scale", zero, tensors, "quantized: (q − zero point)·scale")
        extra = [f"{name}{ending}" for ending in ("_g_idx", "_scale_2", "_shape") if f"{name}{ending}" in tensors]
        return found if not extra else Quantized(name, None, f"quantized, with {extra[0]}", found.taken)
    if codes.dtype.startswith("float8") and (other := _unknown_scale(name, base, tensors)):
        return Quantized(name, None, f"quantized; how {other} scales it is not known", (name, other))
    return None


def _of_torch(base: str, tensors: Mapping[str, Tensor]) -> Quantized:
    """A quantized tensor of torch: (q − zero point)·scale, one of each or one for each channel. A single scale
    is a number in the pickle, which cannot be rewritten."""
    parts = ("int_repr", "scale", "zero_point", "axis")
    taken = tuple(n for part in parts if (n := f"{base}{part}") in tensors)
    name, codes = base.removesuffix(".") or "tensor", tensors[f"{base}int_repr"]
    if len(taken) < 3:
        return Quantized(name, None, "quantized, without its scale", taken)
    scale, zero = tensors[taken[1]], tensors[taken[2]]
    axis = int(tensors[taken[3]].load()) if len(taken) > 3 else 0
    own = (codes.shape[axis],) if 0 <= axis < len(codes.shape) else None
    grid = tuple(n if i == axis else 1 for i, n in enumerate(codes.shape)) if len(taken) > 3 else None
    fits = all(part.shape == (own if grid else ()) for part in (scale, zero))
    if not fits or (len(taken) > 3 and own is None):
        return Quantized(name, None, "quantized, with a scale that does not fit it", taken)
    grid = grid or (1,) * len(codes.shape)
    held = tuple(tensors[n] for n in taken)
    form = Dequantized(codes, scale, zero, held, codes.shape, grid, grid, handle=scale if scale.shape else None)
    return Quantized(name, form, "", taken, "quantized: (q − zero point)·scale")


def _unknown_scale(name: str, base: str, tensors: Mapping[str, Tensor]) -> str | None:
    """A tensor that seems to scale the weight, under a name of no known layout."""
    names = (f"{name}_scales", f"{base}scales", f"{base}scale", f"{name}.scale", f"{base}scale_weight")
    return next((n for n in names if n in tensors and name.endswith("weight")), None)


def _scaled(
    name: str, codes: str, scale: str, zero: str | None, tensors: Mapping[str, Tensor], note: str
) -> Quantized:
    taken = (codes, scale, *((zero,) if zero else ()))
    q, s, z = tensors[codes], tensors[scale], tensors[zero] if zero else None
    grid, zero_grid = _grid(s.shape, q.shape), _grid(z.shape, q.shape) if z is not None else ()
    if grid is None or zero_grid is None or not s.is_real:
        reason = f"quantized; its scale of shape {list(s.shape)} fits its shape {list(q.shape)} in no known way"
        return Quantized(name, None, reason, taken)
    blocks = tuple(-(-need // have) for need, have in zip(q.shape, grid, strict=True))
    form = Dequantized(q, s, z, tuple(tensors[n] for n in taken), q.shape, grid, zero_grid, blocks, handle=s)
    return Quantized(name, form, "", taken, note)


def _grid(own: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """One scale for all, one for each output, or one for each group of equal size along the last axis."""
    if all(size == 1 for size in own):
        return (1,) * len(shape)
    if own == shape[:1]:
        return (shape[0], *(1,) * (len(shape) - 1))
    if len(own) == len(shape) and all(have in (1, need) for have, need in zip(own[:-1], shape[:-1], strict=True)):
        return own if own[-1] >= 1 and shape[-1] % own[-1] == 0 else None
    return None


def _bitsandbytes(name: str, base: str, tensors: Mapping[str, Tensor]) -> Quantized:
    """LLM.int8(): q·SCB/127, one SCB for each output (Dettmers et al. 2022)."""
    q, scale = tensors[name], tensors[f"{base}SCB"]
    layout = f"{base}weight_format"
    taken = (name, scale.name, *((layout,) if layout in tensors else ()))
    if layout in tensors and np.any(tensors[layout].load() != 0):
        return Quantized(name, None, "quantized by bitsandbytes, in tiles for one kind of device", taken)
    if len(q.shape) != 2 or scale.size != q.shape[0] or not scale.is_real:
        return Quantized(name, None, "quantized by bitsandbytes; its SCB does not fit it", taken)
    form = Dequantized(q, scale, None, (q, scale), q.shape, (q.shape[0], 1), handle=scale, divisor=127.0)
    return Quantized(name, form, "", taken, "bitsandbytes: q·SCB/127")


def _in_blocks(name: str, tensors: Mapping[str, Tensor]) -> Quantized:
    """DeepSeek's fp8: q·weight_scale_inv, one for each block of 128 × 128."""
    q, scale = tensors[name], tensors[f"{name}_scale_inv"]
    taken = (name, scale.name)
    if len(q.shape) != 2 or scale.shape != tuple(-(-n // _BLOCK) for n in q.shape) or not scale.is_real:
        return Quantized(name, None, "quantized in blocks of another size than 128 × 128", taken)
    form = Dequantized(q, scale, None, (q, scale), q.shape, scale.shape, blocks=(_BLOCK, _BLOCK), handle=scale)
    return Quantized(name, form, "", taken, "fp8 in blocks of 128 × 128: q·weight_scale_inv")


def _packed(name: str, tensors: Mapping[str, Tensor]) -> Quantized:
    """compressed-tensors: words along the inputs, low bits first, codes stored plus 2^(bits − 1)."""
    words, scale, shape = (tensors.get(f"{name}_{part}") for part in ("packed", "scale", "shape"))
    beside = ("packed", "scale", "shape", "zero_point", "g_idx")
    taken = tuple(f"{name}_{part}" for part in beside if f"{name}_{part}" in tensors)
    no = Quantized(name, None, "packed integers whose layout its tensors do not settle", taken)
    if scale is None or shape is None or len(taken) > 3 or shape.size != 2 or not scale.is_real:
        return no
    rows, columns = (int(n) for n in shape.load().ravel())
    bits = next((b for b in (4, 8) if words.shape == (rows, -(-columns * b // 32))), None)
    grid = _grid(scale.shape, (rows, columns)) if min(rows, columns) > 0 else None
    if bits is None or grid is None:
        return no
    blocks = (1, -(-columns // grid[1]))
    form = Dequantized(
        words, scale, None, (words, scale, shape), (rows, columns), grid, (), blocks, None,
        Packing(bits, 1, middle=True), scale,
    )  # fmt: skip
    return Quantized(name, form, "", taken, f"compressed-tensors: {bits}-bit codes in words of 32 bits")


def _words(base: str, tensors: Mapping[str, Tensor]) -> Quantized:
    """GPTQ (words along the inputs) or AWQ's GEMM version (words along the outputs) of (inputs, outputs)."""
    name = f"{base}qweight"
    taken = tuple(n for part in ("qweight", "qzeros", "scales", "g_idx") if (n := f"{base}{part}") in tensors)
    words, zeros, scale = (tensors.get(f"{base}{part}") for part in ("qweight", "qzeros", "scales"))
    no = Quantized(name, None, "packed integers whose layout its tensors do not settle", taken)
    if zeros is None or scale is None or zeros.dtype != "int32" or len(scale.shape) != 2 or not scale.is_real:
        return no
    groups, outputs = scale.shape
    if len(words.shape) != 2 or len(zeros.shape) != 2 or zeros.shape[0] != groups or not zeros.shape[1]:
        return no
    if words.shape[1] * 8 == outputs and zeros.shape[1] * 8 == outputs and f"{base}g_idx" not in tensors:
        return _awq(name, words, zeros, scale, taken) or no
    if words.shape[1] != outputs:
        return no
    return _gptq(name, words, zeros, scale, tensors.get(f"{base}g_idx"), taken)


def _awq(name: str, words: Tensor, zeros: Tensor, scale: Tensor, taken: tuple[str, ...]) -> Quantized | None:
    if words.shape[0] % scale.shape[0]:
        return None
    whole, block = (words.shape[0], scale.shape[1]), words.shape[0] // scale.shape[0]
    form = Dequantized(
        words, scale, zeros, (words, scale, zeros), whole, scale.shape, scale.shape, (block, 1), None, AWQ, scale
    )
    return Quantized(name, form, "", taken, "AWQ (GEMM): (q − zero)·scale", flipped=True)


def _gptq(
    name: str, words: Tensor, zeros: Tensor, scale: Tensor, index: Tensor | None, taken: tuple[str, ...]
) -> Quantized:
    """(q − z)·s. AutoGPTQ stores z less one, its second version z itself, and no tensor says which; for
    symmetric codes z is the middle, 2^(bits − 1), so that what is stored tells."""
    groups, outputs = scale.shape
    bits, odd = divmod(32 * zeros.shape[1], outputs)
    if odd or bits not in (2, 4, 8):
        return Quantized(name, None, "packed integers of an unusual width", taken)
    inputs = words.shape[0] * 32 // bits
    if index is not None:
        held = index.load().ravel()
        if held.size != inputs or held.min(initial=0) < 0 or held.max(initial=0) >= groups:
            return Quantized(name, None, "packed integers whose g_idx does not fit them", taken)
    elif inputs % groups:
        return Quantized(name, None, "packed integers whose groups are not of one size", taken)
    stored = np.unique(Packing(bits, 0).zeros(zeros.load(), (groups, outputs)))
    middle = 1 << bits - 1
    if stored.size != 1 or stored[0] not in (middle - 1, middle):
        reason = "GPTQ with zero points of which the file does not tell whether they are stored less one"
        return Quantized(name, None, reason, taken)
    packing = Packing(bits, 0, offset=middle - int(stored[0]))
    parts = (words, scale, zeros, *((index,) if index is not None else ()))
    form = Dequantized(
        words, scale, zeros, parts, (inputs, outputs), scale.shape, scale.shape, (max(1, inputs // groups), 1),
        index, packing, scale,
    )  # fmt: skip
    return Quantized(name, form, "", taken, f"GPTQ: {bits}-bit codes, (q − {middle})·scale", flipped=True)
