"""Sections of a network between cuts, and the ways to bound one as a whole."""

from __future__ import annotations

from snaudit.sections import absolute, multipliers, transformed
from snaudit.sections.interface import Effort, Method, Section, Unit

METHODS: tuple[Method, ...] = (
    transformed.METHOD,
    absolute.METHOD,
    multipliers.CLOSED_FORM,
    multipliers.SEARCH,
)

__all__ = ["METHODS", "Effort", "Method", "Section", "Unit"]
