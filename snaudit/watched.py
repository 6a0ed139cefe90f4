"""The weights of a live torch module that act as linear maps, and the maps of power iteration on them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snaudit.errors import ConstraintError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(slots=True)
class Watched:
    """One weight: where it hangs, how it acts, and the last right singular vector.

    The owner is held weakly: the table behind `constrain_` must not keep a module alive.
    """

    name: str
    held: weakref.ref[Any]
    attribute: str
    rows: slice | None
    convolution: bool
    vector: Any = None
    calls: int = 0

    @property
    def owner(self) -> Any:
        found = self.held()
        if found is None:
            raise ConstraintError(f"{self.name}: its module is gone")
        return found

    @property
    def weight(self) -> torch.Tensor:
        found = getattr(self.owner, self.attribute)
        return found if self.rows is None else found[self.rows]


def weights_of(module: nn.Module) -> Iterator[Watched]:
    """Every weight that acts as a linear map, each tensor once."""
    from torch import nn

    seen: set[tuple[int, str]] = set()
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for path, part in module.named_modules():
        dot = f"{path}." if path else ""
        held = weakref.ref(part)
        watched: list[Watched] = []
        if isinstance(part, (nn.Linear, *convolutions)):
            watched = [Watched(f"{dot}weight", held, "weight", None, isinstance(part, convolutions))]
        elif isinstance(part, nn.RNNBase):
            names = [n for n, _ in part.named_parameters() if n.startswith("weight")]
            watched = [Watched(f"{dot}{n}", held, n, None, False) for n in names]
        elif isinstance(part, nn.MultiheadAttention):
            watched = list(_packed(dot, part))
        for one in watched:
            tensor = getattr(one.owner, one.attribute)
            mark = id(tensor), str(one.rows)
            if mark not in seen:
                seen.add(mark)
                yield one


def _packed(dot: str, part: nn.MultiheadAttention) -> Iterator[Watched]:
    size, held = part.embed_dim, weakref.ref(part)
    if part.in_proj_weight is None:
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            yield Watched(f"{dot}{name}", held, name, None, False)
        return
    for index, letter in enumerate("qkv"):
        rows = slice(index * size, (index + 1) * size)
        yield Watched(f"{dot}in_proj_weight[{letter}]", held, "in_proj_weight", rows, False)


def flat(weight: torch.Tensor, watched: Watched) -> torch.Tensor:
    """The weight as a matrix with its outputs in front."""
    if watched.convolution and watched.owner.transposed:
        weight = weight.transpose(0, 1)
    return weight.reshape(weight.shape[0], -1)


def unflat(matrix: torch.Tensor, watched: Watched, shape: torch.Size) -> torch.Tensor:
    if watched.convolution and watched.owner.transposed:
        return matrix.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1).to(watched.weight.dtype)
    return matrix.reshape(shape).to(watched.weight.dtype)


def wide(weight: torch.Tensor) -> torch.Tensor:
    """The numbers in at least single precision."""
    import torch

    weight = weight.detach()
    return weight if weight.dtype is torch.float64 else weight.float()


def random_like(shape: tuple[int, ...], seed: int, like: torch.Tensor) -> torch.Tensor:
    import torch

    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def orthonormal(block: torch.Tensor) -> torch.Tensor:
    """The columns made orthonormal one after another (Gram–Schmidt): a QR would wait for the device."""
    import torch

    done: list[torch.Tensor] = []
    for column in block.unbind(dim=1):
        for _ in range(2):  # twice is enough
            for other in done:
                column = column - other * torch.dot(other, column)
        done.append(unit(column))
    return torch.stack(done, dim=1)


def unit(vector: torch.Tensor) -> torch.Tensor:
    import torch

    norm = torch.linalg.vector_norm(vector)
    return vector / torch.clamp(norm, min=torch.finfo(norm.dtype).tiny)


def operator_of(owner: Any, weight: torch.Tensor) -> tuple[Any, Any, tuple[int, ...]]:
    """(A, Aᵀ, input shape) of a convolution with zeros all around an input of a few kernels' width.

    Its norm is at most that over all sizes, and near it: what is measured is the layer for large
    inputs, whatever size it is used at.
    """
    from torch.nn import functional

    axes = weight.ndim - 2
    reach = [d * (k - 1) for d, k in zip(owner.dilation, weight.shape[2:], strict=True)]
    stride = owner.stride
    size = [max(12 if axes < 3 else 5, s * 4, 3 * r) for r, s in zip(reach, stride, strict=True)]
    rows = zip(size, reach, stride, strict=True)
    extra = tuple(n - ((n + r - 1) // s * s - r + 1) for n, r, s in rows)
    down = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[axes]
    raised = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[axes]
    common = {"stride": stride, "padding": tuple(reach), "dilation": owner.dilation, "groups": owner.groups}
    few = [(n + r - 1) // s + 1 for n, r, s in zip(size, reach, stride, strict=True)]
    inputs, outputs = weight.shape[1] * owner.groups, weight.shape[0]

    def forward(x: torch.Tensor) -> torch.Tensor:
        return down(x, weight, **common)

    def adjoint(y: torch.Tensor) -> torch.Tensor:
        return raised(y, weight, output_padding=extra, **common)

    if owner.transposed:
        return adjoint, forward, (1, outputs, *few)
    return forward, adjoint, (1, inputs, *size)
