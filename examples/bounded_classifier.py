"""Train a small classifier with and without a cap on σ, and draw what the cap does.

    python examples/bounded_classifier.py [PLOT.png]

Two interleaved spirals with label noise, made on the spot. Without a cap the layers' σ grow for as
long as training goes on; with `snaudit.constrain_` after each step they stay at the cap, and the
network's Lipschitz bound with them. Needs torch; matplotlib for the plot (without it, a table only).
"""

from __future__ import annotations

import math
import sys

import torch
from torch import nn

import snaudit

CAP = 4.0
STEPS = 600
EVERY = 20


def spirals(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (count, 2) on two spirals, and labels of which a tenth is wrong."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    angle = 0.5 + 2.5 * math.pi * torch.rand(count, generator=generator).sqrt()
    radius = angle / (3 * math.pi)
    turned = angle + math.pi * labels
    points = torch.stack([radius * turned.cos(), radius * turned.sin()], dim=1)
    points += 0.03 * torch.randn(points.shape, generator=generator)
    wrong = torch.rand(count, generator=generator) < 0.1
    return points, labels ^ wrong.long()


def classifier() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )


def train(cap: float | None) -> tuple[list[float], list[float], float]:
    """(largest σ, product of all σ) along the way, proved, and the accuracy on fresh points."""
    module = classifier()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    points, labels = spirals(400, 0)
    largest, products = [], []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            bounds = snaudit.Constraint(module).prove(enforce=False).values()
            largest.append(max(bound.upper for bound in bounds))
            products.append(math.prod(bound.upper for bound in bounds))
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(points), labels).backward()
        optimizer.step()
        if cap is not None:
            snaudit.constrain_(module, cap, proved=step == STEPS - 1)
    fresh, truth = spirals(2000, 1)
    return largest, products, float((module(fresh).argmax(1) == truth).float().mean())


def main() -> None:
    runs = {"free": train(None), f"σ ≤ {CAP:g}": train(CAP)}
    print(f"{'':10} {'largest σ':>10} {'∏ σ':>12} {'accuracy':>9}")
    for name, (largest, products, accuracy) in runs.items():
        print(f"{name:10} {largest[-1]:10.3f} {products[-1]:12.1f} {accuracy:9.1%}")
    if len(sys.argv) > 1:
        try:
            from matplotlib import pyplot
        except ImportError:
            print("no plot: matplotlib is not installed")
            return
        steps = range(0, STEPS + 1, EVERY)
        _, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5))
        for name, (largest, products, _accuracy) in runs.items():
            left.plot(steps, largest, label=name)
            right.semilogy(steps, products, label=name)
        left.set(title="largest σ of the layers", xlabel="step")
        right.set(title="product of the σ: a Lipschitz bound", xlabel="step")
        left.legend()
        pyplot.tight_layout()
        pyplot.savefig(sys.argv[1], dpi=120)
        print(f"drawn to {sys.argv[1]}")


if __name__ == "__main__":
    main()
