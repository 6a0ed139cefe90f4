"""What a training step costs with `snaudit.constrain_` beside torch's parametrized spectral_norm.

    python benchmarks/training_overhead.py [--device cuda] [--write]

A DCGAN discriminator and a ResNet-18-like network, each trained for some steps on random images:
bare, with `snaudit.constrain_` (operator and matrix measure), and with
`torch.nn.utils.parametrizations.spectral_norm` on the same layers. The ways take turns in the same
run, and medians and their ratios to the bare step are printed. spectral_norm always normalizes the
reshaped kernel; constrain_ caps the operator by default, which costs a small convolution more.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.utils import parametrizations

from tables import publish

import snaudit

ROUNDS = 12


def discriminator() -> tuple[nn.Module, tuple[int, ...]]:
    """DCGAN's discriminator for 64×64 images (Radford, Metz & Chintala 2016), and its batch."""
    layers: list[nn.Module] = []
    widths = (3, 64, 128, 256, 512)
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(512, 1, 4), nn.Flatten()), (32, 3, 64, 64)


class Block(nn.Module):
    """Two 3×3 convolutions and a way past them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(before, after, 3, stride, 1), nn.Conv2d(after, after, 3, 1, 1)
        self.past = nn.Conv2d(before, after, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.past(x))


def resnet() -> tuple[nn.Module, tuple[int, ...]]:
    """ResNet-18's layers (He et al. 2016) on 32×32 images, and its batch."""
    blocks = [Block(64, 64, 1), Block(64, 64, 1)]
    for before, after in ((64, 128), (128, 256), (256, 512)):
        blocks += [Block(before, after, 2), Block(after, after, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1), *blocks, *head), (32, 3, 32, 32)


def spectral(module: nn.Module) -> nn.Module:
    """The module with spectral_norm on every weight that constrain_ watches."""
    for part in list(module.modules()):
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            parametrizations.spectral_norm(part)
    return module


def stepper(module: nn.Module, shape: tuple[int, ...], device: str, after: Callable[[nn.Module], object]) -> Callable[[], float]:
    """A function that trains one step and returns its seconds."""
    module.to(device).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)
    images = torch.randn(shape, device=device)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        module(images).square().mean().backward()
        optimizer.step()
        after(module)
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    publish("training", "\n".join(rows(given.device)), given.write)


def rows(device: str) -> Iterator[str]:
    """The table's lines."""
    yield "| network | way | ms a step | ratio to bare |\n|---|---|---|---|"
    for name, make in (("DCGAN discriminator", discriminator), ("ResNet-18-like", resnet)):
        torch.manual_seed(0)
        module, shape = make()
        ways = {
            "bare": stepper(copy.deepcopy(module), shape, device, lambda m: None),
            "constrain_, operator": stepper(copy.deepcopy(module), shape, device, snaudit.constrain_),
            "constrain_, matrix": stepper(
                copy.deepcopy(module), shape, device, lambda m: snaudit.constrain_(m, measure="matrix")
            ),
            "torch spectral_norm": stepper(spectral(copy.deepcopy(module)), shape, device, lambda m: None),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for index in range(ROUNDS + 2):
            for way, step in ways.items():
                seconds = step()
                if index >= 2:
                    times[way].append(seconds)
        for way, seen in times.items():
            ratio = statistics.median(a / b for a, b in zip(seen, times["bare"], strict=True))
            yield (f"| {name} | {way} | {1e3 * statistics.median(seen):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
