"""Sections of convolutional networks on tori, and the ways to bound one by its frequencies."""

from __future__ import annotations

from snaudit.waves import multipliers, transformed
from snaudit.waves.interface import Method, Torus

METHODS: tuple[Method, ...] = (transformed.METHOD, multipliers.CLOSED_FORM, multipliers.SEARCH)

__all__ = ["METHODS", "Method", "Torus"]
