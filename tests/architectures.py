"""Code that a user may name with --architecture; it is copied beside the checkpoints of the tests."""

from __future__ import annotations

import os
import torch
from torch import nn
print("code that prints is no trouble")


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, width, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width * 16, 3)
        self.register_buffer("scale", torch.full((1, 3), 0.5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.embed(tokens) + image))


def crash() -> None:
    os.abort()
