"""Constraints on a live torch module, cheap enough for every training step.

    for batch in data:
        loss(module(batch)).backward()
        optimizer.step()
        snaudit.constrain_(module, max_sigma=1.0)

Each call does one step of power iteration from where the last call left off (Miyato, Kataoka,
Koyama & Yoshida, *Spectral normalization for GANs*, ICLR 2018; Gouk et al., *Regularisation of neural
networks by enforcing Lipschitz continuity*, Machine Learning 110, 2021) and changes the weights in
place. Power iteration sees σ from below: between two proofs the cap holds about, not certainly.
`prove` closes the gap when it matters: at the end, or before a checkpoint is kept.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from snaudit.bound import Bound
from snaudit.errors import ConstraintError, UsageError
from snaudit.watched import Watched, flat, operator_of, orthonormal, random_like, unflat, unit, weights_of, wide

if TYPE_CHECKING:
    import torch
    from torch import nn

How = Literal["scale", "normalize", "clip"]
Measure = Literal["operator", "matrix"]
_FIRST = 30
"""Steps of the first call, when nothing is known of the singular vectors."""
_ROUNDING = 1e-6
"""What the estimate itself may be off by in single precision: no reason to touch a weight again."""
_BLOCK = 4
"""Singular vectors that a clip follows."""
_SURE = 0.02
"""A triplet is cut only where ‖Wᵀu − σv‖ is below this part of σ."""


@dataclass(slots=True)
class Constraint:
    """Keeps σ ≤ max_sigma for the weights of a module, in place, step by step.

    how: "scale" the whole weight where σ exceeds the cap, "normalize" always, "clip" only the
    singular values above the cap (of matrices; up to four in a call, as far as they are settled).
    measure: "operator" takes a convolution as the operator that it applies, "matrix" its reshaped
    kernel, as `torch.nn.utils.spectral_norm` does. layers, skip: parts of the names of weights.
    iterations: steps of power iteration in each call.

    Watched are Linear, convolutions of 1 to 3 dimensions, plain and transposed, the matrices of RNN,
    LSTM and GRU, and each of q, k, v of MultiheadAttention; embeddings and Bilinear are not. The
    vectors live here, not in the module's state_dict. Nothing is read back from a GPU in `step`.

    Raises UsageError for options that do not exist, for a module without a weight to watch, for a
    pattern that matches none, and for a weight that a parametrization computes (constrain its
    module's own parameter, or skip it).
    """

    module: nn.Module
    max_sigma: float = 1.0
    how: How = "scale"
    measure: Measure = "operator"
    layers: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    iterations: int = 1
    seed: int = 0
    _watched: list[Watched] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if not hasattr(self.module, "named_modules"):
            raise UsageError(f"a torch module is needed, not {type(self.module).__name__}")
        if not isinstance(self.max_sigma, (int, float)):
            raise UsageError(f"max_sigma must be a number, not {self.max_sigma!r}")
        if not (self.max_sigma > 0 and math.isfinite(self.max_sigma)):
            raise UsageError(f"max_sigma must be a positive number, not {self.max_sigma}")
        if self.how not in ("scale", "normalize", "clip"):
            raise UsageError(f"how must be scale, normalize or clip, not {self.how!r}")
        if self.measure not in ("operator", "matrix"):
            raise UsageError(f"measure must be operator or matrix, not {self.measure!r}")
        if self.iterations < 1:
            raise UsageError(f"iterations must be at least 1, not {self.iterations}")
        self._watched = list(_chosen(self.module, self.layers, self.skip))
        clipped = [w.name for w in self._watched if w.convolution]
        if self.how == "clip" and self.measure == "operator" and clipped:
            raise UsageError(f"{clipped[0]}: a step clips matrices only; how='scale', or measure='matrix'")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the weights that are kept under the cap."""
        return tuple(watched.name for watched in self._watched)

    def step(self) -> None:
        """Bring each weight about under the cap, in place. For after `optimizer.step()`."""
        import torch

        with torch.no_grad():
            for watched in self._watched:
                self._apply(watched)

    def estimates(self) -> dict[str, float]:
        """σ of each weight as power iteration sees it from below, after one more step of it."""
        import torch

        with torch.no_grad():
            return {watched.name: float(self._sigma(watched)) for watched in self._watched}

    def prove(self, enforce: bool = True) -> dict[str, Bound]:
        """The proved enclosure of each weight's σ; with `enforce`, first scaled until upper ≤ max_sigma.

        It runs on the CPU in float64, over the numbers as they are stored. Raises ConstraintError
        where a weight is not finite, or no scale in its dtype brings it under the cap.
        """
        found = {}
        for watched in self._watched:
            bound = self._enclosed(watched)
            if enforce and bound.bounded and bound.upper > self.max_sigma:
                bound = self._scaled_under(watched, bound)
            if not bound.bounded or (enforce and bound.upper > self.max_sigma):
                raise ConstraintError(
                    f"{watched.name}: {bound.upper:.6g} by {bound.method}: not under {self.max_sigma:.6g}"
                )
            found[watched.name] = bound
        return found

    def _scaled_under(self, watched: Watched, bound: Bound) -> Bound:
        """The bound once the weight is scaled until it is proved for the rounded numbers."""
        import torch

        weight = watched.weight
        whole, factor, step = weight.detach().double(), self.max_sigma / bound.upper, 2.0**-40
        for _ in range(40):
            with torch.no_grad():
                weight.copy_((whole * factor).to(weight.dtype))
            bound = self._enclosed(watched)
            if bound.upper <= self.max_sigma:
                break
            factor *= min(1 - step, self.max_sigma / bound.upper)
            step *= 2
        return bound

    def _apply(self, watched: Watched) -> None:
        import torch

        weight = watched.weight
        if self.how == "clip":
            lefts, sigmas, rights, sure = self._block(watched)
            over = torch.where(sure, torch.clamp(sigmas - self.max_sigma, min=0.0), torch.zeros_like(sigmas))
            weight.sub_(unflat((lefts * over) @ rights.mT, watched, weight.shape))
            return
        sigma = self._sigma(watched)
        ratio = self.max_sigma / torch.clamp(sigma, min=torch.finfo(sigma.dtype).tiny)
        least = self.max_sigma * (1 + _ROUNDING) if self.how == "scale" else 0.0
        weight.mul_(torch.where(sigma > least, ratio, torch.ones_like(ratio)).to(weight.dtype))

    def _sigma(self, watched: Watched) -> torch.Tensor:
        """σ from below after the steps: ‖Av‖ for the vector that is kept."""
        import torch

        if self.how == "clip":
            return self._block(watched)[1].max()
        weight = wide(watched.weight)
        forward, adjoint, shape = self._maps(watched, weight)
        steps, vector = self.iterations, watched.vector
        if vector is None:
            steps, vector = max(steps, _FIRST), random_like(shape, self.seed, weight)
        vector = vector.to(weight)
        for _ in range(steps):
            vector = unit(adjoint(forward(vector)))
        watched.vector = vector
        return torch.linalg.vector_norm(forward(vector))

    def _block(self, watched: Watched) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(U, σ, V, which are settled): the largest singular triplets, by orthogonal iteration.

        The last column starts anew in each call: a singular value that was cut to the cap keeps its
        vector, and from exactly there power iteration would not find the next one above the cap.
        """
        import torch

        weight = flat(wide(watched.weight), watched)
        steps, kept = self.iterations + 2, watched.vector
        fresh = random_like((weight.shape[1], min(_BLOCK, *weight.shape)), self.seed + watched.calls, weight)
        if kept is None:
            steps, kept = _FIRST, fresh
        watched.calls += 1
        block = torch.cat([kept[:, :-1].to(weight), fresh[:, -1:]], dim=1)
        for _ in range(steps):
            block = orthonormal(weight.mT @ (weight @ orthonormal(block)))
        image = weight @ block
        sigmas = torch.linalg.vector_norm(image, dim=0)
        lefts = image / torch.clamp(sigmas, min=torch.finfo(sigmas.dtype).tiny)
        off = torch.linalg.vector_norm(weight.mT @ lefts - block * sigmas, dim=0)
        order = torch.argsort(sigmas, descending=True)
        watched.vector = block[:, order]
        return lefts, sigmas, block, off <= _SURE * sigmas

    def _maps(self, watched: Watched, weight: torch.Tensor) -> tuple[Any, Any, tuple[int, ...]]:
        """(A, Aᵀ, shape of A's input)."""
        if watched.convolution and self.measure == "operator":
            return operator_of(watched.owner, weight)
        matrix = flat(weight, watched)
        return (lambda v: matrix @ v), (lambda y: matrix.mT @ y), (matrix.shape[1],)

    def _enclosed(self, watched: Watched) -> Bound:
        from snaudit import sigma
        from snaudit.linear import Convolution, Dense

        weight = watched.weight.detach().double().cpu()
        if watched.convolution and self.measure == "operator":
            owner = watched.owner
            return sigma.measure(
                Convolution(weight.numpy(), owner.stride, owner.dilation, owner.groups, owner.transposed)
            )
        return sigma.measure(Dense(flat(weight, watched).numpy()))


_KEPT: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], Constraint]] = weakref.WeakKeyDictionary()


def constrain_(
    module: nn.Module,
    max_sigma: float = 1.0,
    how: How = "scale",
    *,
    measure: Measure = "operator",
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    proved: bool = False,
) -> nn.Module:
    """The module itself, its weights brought about under the cap in place: for every training step.

    The vectors of the power iteration are kept from call to call, outside the module, and forgotten
    with it. proved=True ends with the certificate: after it σ ≤ max_sigma is a theorem about the
    numbers in the module (see `Constraint.prove`; embeddings and biases are not touched).
    Raises UsageError, and ConstraintError with `proved`.
    """
    if not hasattr(module, "named_modules"):
        raise UsageError(f"a torch module is needed, not {type(module).__name__}")
    key = (max_sigma, how, measure, tuple(layers), tuple(skip))
    kept = _KEPT.setdefault(module, {})
    if key not in kept or any(watched.held() is None for watched in kept[key]._watched):
        kept[key] = Constraint(weakref.proxy(module), max_sigma, how, measure, tuple(layers), tuple(skip))
    kept[key].step()
    if proved:
        kept[key].prove()
    return module


def _chosen(module: nn.Module, layers: tuple[str, ...], skip: tuple[str, ...]) -> Iterator[Watched]:
    from torch.nn.utils import parametrize

    every = list(weights_of(module))
    for pattern in (*layers, *skip):
        if not any(_matches(watched.name, pattern) for watched in every):
            names = ", ".join(watched.name for watched in every[:5])
            raise UsageError(f"no weight matches {pattern!r}; there are {names or 'none'}")
    found = False
    for watched in every:
        if layers and not any(_matches(watched.name, pattern) for pattern in layers):
            continue
        if any(_matches(watched.name, pattern) for pattern in skip):
            continue
        computed = parametrize.is_parametrized(watched.owner, watched.attribute)
        if computed or watched.attribute not in watched.owner._parameters:
            raise UsageError(f"{watched.name} is computed by a parametrization; skip it, or remove that first")
        found = True
        yield watched
    if not found:
        raise UsageError("the module has no weight to constrain")


def _matches(name: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern) or f".{pattern}." in f".{name}."
