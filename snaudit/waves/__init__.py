"""Sections of convolutional networks on tori, and the ways to bound one by its frequencies."""

from __future__ import annotations

from snaudit.waves import transformed
from snaudit.waves.interface import Method, Torus

METHODS: tuple[Method, ...] = (transformed.METHOD,)

__all__ = ["METHODS", "Method", "Torus"]
