"""LipSDP-Neuron: one multiplier for each neuron; found by a covariance recursion, proved by one matrix.

Every neuron obeys (δw − αδz)(βδz − δw) ≥ 0. With p = (w − αz)/(β − α), whose slopes lie in [0, 1], that is
p(z − p) ≥ 0. For multipliers Λ ≥ 0 and ρ > 0 with
    Q(x, p) = ‖x‖² + Σ_k p_kᵀΛ_k(p_k − z_k) − ‖y‖²/ρ ≥ 0 for all x, p,
‖y‖² ≤ ρ(‖x‖² − Σ p_kᵀΛ_k(z_k − p_k)) ≤ ρ‖x‖² (Fazlyab, Robey, Hassani, Morari & Pappas, *Efficient and
accurate estimation of Lipschitz constants for deep neural networks*, NeurIPS 2019; one multiplier for each
neuron: the slope restriction holds for each by itself, also after their couplings were refuted by Pauli,
Koch, Berberich, Kohler & Allgöwer 2022).

The least ρ for given Λ, by elimination in the order in which the network runs (`Recursion`): let S be the
inverse of the form's Schur complement on the state s of which all later z and y are functions; S = I at
first. A unit z = Hs with form sᵀS⁻¹s + pᵀΛp − pᵀΛHs has the joint inverse
    P = (Λ − ¼ΛΓΛ)⁻¹, Γ = HSHᵀ;  Cov(s, p) = ½SHᵀΛP;  Cov(s) = S + ¼SHᵀΛPΛHS,
positive definite exactly if λmax(Λ^½ΓΛ^½) < 4. The next state Es + Fw, w = (β−α)p + αHs, has with
d = Λ^½, R = (I − ¼dΓd)⁻¹, Ē = E + FαH, F̄ = F(β−α) the covariance
    ĒSĒᵀ + URUᵀ, U = ½ĒSHᵀd + F̄d⁻¹,
and at the end ρ = λmax(YSYᵀ).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snaudit.sections.interface import Section

_RANK = 1e-12
_MARGIN = 1e-6
_SMALL = 700


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One unit: z = read·s; the next state is keep·s + made·p. keep None: zero; made a vector: diagonal."""

    read: np.ndarray
    keep: np.ndarray | None
    made: np.ndarray


@dataclass(slots=True, eq=False)
class Trace:
    """What the way back needs of one stage."""

    covariance: np.ndarray
    image: np.ndarray
    gamma: np.ndarray
    inverse: np.ndarray
    sides: np.ndarray | None


class Recursion:
    """A section as a walk of states, in plain float64: only a search, nothing here is a proof.

    power: of the Schatten norm that stands for the largest eigenvalue, whose slope jumps, in a search
    """

    def __init__(self, section: Section) -> None:
        self.inputs, self.stages, self.last = _states(section)
        self.sizes = [unit.size for unit in section.units]
        self.power = 30

    @property
    def work(self) -> float:
        """Operations of one `descend`, about."""
        total = 0.0
        for stage in self.stages:
            n, m = stage.read.shape
            total += 8 * n**3 + 6 * n * m * (n + m) + (0 if stage.made.ndim == 1 else 8 * n * n * len(stage.made))
            total += 0 if stage.keep is None else 8 * stage.keep.size * (n + m)
        return total + 10.0 * len(self.last) ** 3 + 1.0

    def seen(self, stage: Stage, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(HS, Γ = HSHᵀ)."""
        image = stage.read @ covariance
        return image, image @ stage.read.T

    def forward(
        self,
        stage: Stage,
        covariance: np.ndarray,
        multiplier: np.ndarray,
        seen: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, Trace]:
        """The next state's covariance. Raises LinAlgError for a multiplier that is too large."""
        d = np.sqrt(multiplier)
        image, gamma = self.seen(stage, covariance) if seen is None else seen
        core = np.eye(len(d)) - 0.25 * (d[:, None] * gamma * d)
        np.linalg.cholesky(core - _MARGIN * np.eye(len(d)))  # what no output sees may go to the very edge
        inverse = np.linalg.inv(core)
        if stage.keep is None and stage.made.ndim == 1:
            side = stage.made / d
            return side[:, None] * inverse * side, Trace(covariance, image, gamma, inverse, None)
        made = np.diag(stage.made) if stage.made.ndim == 1 else stage.made
        sides = made / d
        if stage.keep is not None:
            sides = sides + 0.5 * (stage.keep @ image.T) * d
        after = sides @ inverse @ sides.T
        if stage.keep is not None:
            after = after + stage.keep @ covariance @ stage.keep.T
        return 0.5 * (after + after.T), Trace(covariance, image, gamma, inverse, sides)

    def backward(
        self, stage: Stage, trace: Trace, multiplier: np.ndarray, slope: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(∂/∂covariance, ∂/∂log multiplier), given the slope ∂/∂(next covariance); symmetric."""
        d = np.sqrt(multiplier)
        if trace.sides is None:
            side = stage.made / d
            weighted = side[:, None] * slope * side
            inner = trace.inverse @ weighted @ trace.inverse
            on_d = -2.0 * np.einsum("ij,ij->i", weighted, trace.inverse) / d
            before = np.zeros_like(trace.covariance)
        else:
            made = np.diag(stage.made) if stage.made.ndim == 1 else stage.made
            joint = slope @ trace.sides @ trace.inverse
            inner = trace.inverse @ trace.sides.T @ joint
            on_d = -2.0 * (joint * made).sum(axis=0) / d**2
            before = np.zeros_like(trace.covariance)
            if stage.keep is not None:
                on_d += (joint * (stage.keep @ trace.image.T)).sum(axis=0)
                half = stage.keep.T @ (joint * d) @ stage.read
                before = stage.keep.T @ slope @ stage.keep + 0.5 * (half + half.T)
        on_d += 0.5 * np.einsum("ij,ij,j->i", inner, trace.gamma, d)
        before = before + stage.read.T @ (0.25 * (d[:, None] * inner * d)) @ stage.read
        return before, 0.5 * d * on_d

    def gain(self, covariance: np.ndarray) -> tuple[float, float, np.ndarray]:
        """(ρ, a smooth upper envelope of log ρ, its slope by the last covariance)."""
        values, vectors = np.linalg.eigh(self.last @ covariance @ self.last.T)
        top = max(float(values[-1]), 1e-300)
        weights = np.clip(values / top, 0.0, None) ** (self.power - 1)
        total = float(np.sum(weights * np.clip(values / top, 0.0, None)))
        smooth = np.log(top) + np.log(total) / self.power
        rows = vectors.T @ self.last
        return top, float(smooth), rows.T @ ((weights / (total * top))[:, None] * rows)

    def bound(self, multipliers: list[np.ndarray]) -> float:
        """ρ for these multipliers; infinite where they are too large."""
        covariance = np.eye(self.inputs)
        try:
            for stage, multiplier in zip(self.stages, multipliers, strict=True):
                covariance, _ = self.forward(stage, covariance, multiplier)
            if not np.isfinite(covariance).all():
                return float("inf")
            return self.gain(covariance)[0]
        except np.linalg.LinAlgError:
            return float("inf")

    def descend(self, logs: np.ndarray) -> tuple[float, float, np.ndarray]:
        """(ρ, smoothed log ρ, its gradient) at the logarithms of all multipliers; infinite outside."""
        covariance, traces = np.eye(self.inputs), []
        multipliers = np.split(np.exp(np.clip(logs, -300, 300)), np.cumsum(self.sizes)[:-1])
        try:
            for stage, multiplier in zip(self.stages, multipliers, strict=True):
                covariance, trace = self.forward(stage, covariance, multiplier)
                traces.append(trace)
            top, smooth, slope = self.gain(covariance)
        except np.linalg.LinAlgError:
            return float("inf"), float("inf"), np.zeros_like(logs)
        parts = []
        for stage, trace, multiplier in zip(self.stages[::-1], traces[::-1], multipliers[::-1], strict=True):
            slope, part = self.backward(stage, trace, multiplier, slope)
            parts.append(part)
        return top, smooth, np.concatenate(parts[::-1])


def _states(section: Section) -> tuple[int, list[Stage], np.ndarray]:
    """(size of the first state, the stages, the last readout Y).

    A state is Q·(the live blocks of x, w₁, …), Q an orthonormal basis of the row space of all that is
    read of them later: nothing later changes, and a wide input or a long residual stream shrinks to
    what matters of it.
    """
    rows = [{j: m.centre for j, m in row.items()} for row in section.rows]
    sizes = section.sizes
    live = [sorted({j for row in rows[k:] for j in row if j <= k}) for k in range(len(rows))]
    later = _side_by_side(rows[-1], live[-1], sizes)
    bases = [_basis(later)]
    for k in range(len(rows) - 2, -1, -1):  # all that stage k + 1 keeps, seen on what is live before it
        kept = dict(zip(live[k + 1], np.split(bases[0], _ends(live[k + 1], sizes), axis=1), strict=True))
        wanted = [_side_by_side(rows[k], live[k], sizes), _side_by_side(kept, live[k], sizes)]
        bases.insert(0, _basis(np.concatenate(wanted)))
    stages = []
    for k, unit in enumerate(section.units):
        read = _side_by_side(rows[k], live[k], sizes) @ bases[k].T
        kept = dict(zip(live[k + 1], np.split(bases[k + 1], _ends(live[k + 1], sizes), axis=1), strict=True))
        made = kept.get(k + 1, np.zeros((len(bases[k + 1]), unit.size)))
        keep = _side_by_side(kept, live[k], sizes) @ bases[k].T + (made * unit.low) @ read
        made = made * (unit.high - unit.low)
        square = made.shape[0] == made.shape[1] and np.count_nonzero(made) == np.count_nonzero(np.diag(made))
        stages.append(Stage(read, keep if keep.any() else None, np.diag(made).copy() if square else made))
    return len(bases[0]), stages, _side_by_side(rows[-1], live[-1], sizes) @ bases[-1].T


def _ends(blocks: list[int], sizes: tuple[int, ...]) -> np.ndarray:
    return np.cumsum([sizes[j] for j in blocks])[:-1]


def _side_by_side(row: dict[int, np.ndarray], live: list[int], sizes: tuple[int, ...]) -> np.ndarray:
    count = next(iter(row.values())).shape[0]
    return np.concatenate([row[j] if j in row else np.zeros((count, sizes[j])) for j in live], axis=1)


def _basis(rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the row space, as rows; the identity where it is (almost) everything."""
    count, columns = rows.shape
    if 2 * count < columns or (count < columns and count > _SMALL):
        return np.linalg.qr(rows.T)[0].T
    if min(count, columns) > _SMALL:
        return np.eye(columns)
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    rank = max(1, int((values > _RANK * values[0]).sum()))
    return np.eye(columns) if rank > 0.9 * columns else vectors[:rank]
