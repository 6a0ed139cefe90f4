"""extract(model): all its layers, from the graph where there is one, else from names and shapes."""

from __future__ import annotations

from snaudit.layers import Extraction
from snaudit.model import Model
from snaudit.parameters import extract_from_tensors


def extract(model: Model) -> Extraction:
    """All linear maps of a model, and all that is none, each with a reason."""
    if model.graph is None:
        return extract_from_tensors(model.tensors)
    from snaudit.nodes import extract_from_graph

    return extract_from_graph(model.graph, model.tensors)
