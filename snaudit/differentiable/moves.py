"""Ops that move entries: shapes, slices, gathers, scatters, padding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from snaudit.differentiable.interface import Call, Given, Row, Tensor, axes_of, integers


def reshape(call: Call, x: Given, shape: Given) -> Tensor:
    sizes = integers(shape)
    if not call.get("allowzero", 0):
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(call: Call, x: Given) -> Tensor:
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def squeeze(call: Call, x: Given, *axes: Given) -> Tensor:
    found = axes_of(call, (x, *axes), x.ndim)
    found = [i for i, n in enumerate(x.shape) if n == 1] if found is None else found
    return x.reshape([n for i, n in enumerate(x.shape) if i not in found])


def unsqueeze(call: Call, x: Given, *axes: Given) -> Tensor:
    given = call.get("axes")
    found = integers(axes[0]) if given is None else [int(a) for a in given]
    rank = x.ndim + len(found)
    places = {a % rank for a in found}
    sizes = iter(x.shape)
    return x.reshape([1 if i in places else next(sizes) for i in range(rank)])


def transpose(call: Call, x: Given) -> Tensor:
    return x.permute(call.get("perm", list(range(x.ndim))[::-1]))


def expand(call: Call, x: Given, shape: Given) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))


def tile(call: Call, x: Given, repeats: Given) -> Tensor:
    return x.repeat(integers(repeats))


def concat(call: Call, *xs: Given) -> Tensor:
    return torch.cat(xs, call.get("axis", 1))


def split(call: Call, x: Given, *sizes: Given) -> tuple[Tensor, ...]:
    axis = call.get("axis", 0)
    parts = integers(sizes[0]) if sizes and sizes[0] is not None else call.get("split")
    if parts is None:
        size = -(-x.shape[axis] // (call.get("num_outputs") or call.outputs))
        return torch.split(x, size, axis)
    return torch.split(x, list(parts), axis)


def cut(call: Call, x: Given, *rest: Given) -> Tensor:
    """Slice: starts, ends, axes and steps are attributes or inputs."""
    if call.opset < 10:
        starts, ends, axes, steps = call.get("starts"), call.get("ends"), call.get("axes"), None
    else:
        starts, ends, axes, steps = (
            integers(rest[i]) if len(rest) > i and rest[i] is not None else None for i in range(4)
        )
    assert starts is not None and ends is not None
    axes = range(len(starts)) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        places = range(x.shape[axis])[slice(start, end if end > -(1 << 62) else None, step)]
        if step == 1:
            x = x.narrow(axis, places.start if len(places) else 0, len(places))
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def gather(call: Call, x: Given, index: Given) -> Tensor:
    axis = call.get("axis", 0) % x.ndim
    places = torch.where(index < 0, index + x.shape[axis], index).to(torch.int64)
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def gather_elements(call: Call, x: Given, index: Given) -> Tensor:
    axis = call.get("axis", 0)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index).to(torch.int64))


def _columns(x: Tensor, index: Tensor, skipped: int) -> tuple[Tensor, ...]:
    """The index's last axis as one index array for each axis of x; negative ones count from the end."""
    sizes = torch.tensor(x.shape[skipped : skipped + index.shape[-1]])
    return tuple(torch.where(index < 0, index + sizes, index).to(torch.int64).unbind(-1))


def gather_nd(call: Call, x: Given, index: Given) -> Tensor:
    batch = call.get("batch_dims", 0)
    if batch == 0:
        return x[_columns(x, index, 0)]
    heads = x.shape[:batch]
    flat, places = x.reshape(-1, *x.shape[batch:]), index.reshape(-1, *index.shape[batch:])
    found = torch.stack([one[_columns(one, at, 0)] for one, at in zip(flat, places, strict=True)])
    return found.reshape(*heads, *found.shape[1:])


def scatter_nd(call: Call, x: Given, index: Given, updates: Given) -> Tensor:
    kind = call.get("reduction", "none")
    if kind not in ("none", "add"):
        raise call.refuse(f"the reduction {kind}")
    return x.index_put(_columns(x, index, 0), updates.to(x.dtype), accumulate=kind == "add")


def scatter(call: Call, x: Given, index: Given, updates: Given) -> Tensor:
    axis, kind = call.get("axis", 0), call.get("reduction", "none")
    places = torch.where(index < 0, index + x.shape[axis], index).to(torch.int64)
    if kind == "none":
        return x.scatter(axis, places, updates.to(x.dtype))
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return x.scatter_reduce(axis, places, updates.to(x.dtype), names[kind])


def pad(call: Call, x: Given, *rest: Given) -> Tensor:
    pads = call.get("pads") if not rest else integers(rest[0])
    fill = call.get("value", 0.0) if len(rest) < 2 or rest[1] is None else float(rest[1])
    axes = range(x.ndim) if len(rest) < 3 or rest[2] is None else [a % x.ndim for a in integers(rest[2])]
    half, mode = len(pads) // 2, call.get("mode", "constant")
    for axis, before, behind in zip(axes, pads[:half], pads[half:], strict=True):
        if mode == "constant":
            flat = [0, 0] * (x.ndim - 1 - axis) + [before, behind]
            x = F.pad(x, flat, value=fill)
        elif before or behind:
            x = x.index_select(axis, _border(x.shape[axis], before, behind, mode))
    return x


def _border(size: int, before: int, behind: int, mode: str) -> Tensor:
    """Which entry stands at each place of a padded axis; negative padding cuts."""
    places = torch.arange(-before, size + behind)
    if mode == "wrap":
        return places % size
    if mode == "edge":
        return places.clamp(0, size - 1)
    period = max(2 * (size - 1), 1)
    return size - 1 - (places % period - (size - 1)).abs()


def depth_to_space(call: Call, x: Given) -> Tensor:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // b**2, h * b, w * b)


def space_to_depth(call: Call, x: Given) -> Tensor:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def triangle(call: Call, x: Given, diagonal: Given = None) -> Tensor:
    k = 0 if diagonal is None else int(diagonal)
    return torch.triu(x, k) if call.get("upper", 1) else torch.tril(x, k)


def reverse_sequence(call: Call, x: Given, lengths: Given) -> Tensor:
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    parts = []
    for one, length in zip(x.unbind(batch), integers(lengths), strict=True):
        axis = time - (batch < time)
        head = one.narrow(axis, 0, length).flip((axis,))
        parts.append(torch.cat([head, one.narrow(axis, length, one.shape[axis] - length)], axis))
    return torch.stack(parts, batch)


def compress(call: Call, x: Given, condition: Given) -> Tensor:
    axis = call.get("axis")
    flat, at = (x.reshape(-1), 0) if axis is None else (x, axis)
    return flat.index_select(at, torch.nonzero(condition).reshape(-1))


def center_crop_pad(call: Call, x: Given, shape: Given) -> Tensor:
    axes = axes_of(call, (), x.ndim) or list(range(x.ndim))
    for axis, size in zip(axes, integers(shape), strict=True):
        n = x.shape[axis]
        if size < n:
            x = x.narrow(axis, (n - size) // 2, size)
        elif size > n:
            before = (size - n) // 2
            x = F.pad(x, [0, 0] * (x.ndim - 1 - axis % x.ndim) + [before, size - n - before])
    return x


ROWS: dict[str, Row] = {
    "CenterCropPad": center_crop_pad, "Compress": compress, "Concat": concat, "DepthToSpace": depth_to_space,
    "Expand": expand, "Flatten": flatten, "Gather": gather, "GatherElements": gather_elements,
    "GatherND": gather_nd, "Pad": pad, "Reshape": reshape, "ReverseSequence": reverse_sequence,
    "Scatter": scatter, "ScatterElements": scatter, "ScatterND": scatter_nd, "Slice": cut,
    "SpaceToDepth": space_to_depth, "Split": split, "Squeeze": squeeze, "Tile": tile, "Transpose": transpose,
    "Trilu": triangle, "Unsqueeze": unsqueeze,
}  # fmt: skip
