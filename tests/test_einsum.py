"""Einsum with one constant, audited from a file: its layer's norm and the network's bound are the exact ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import function_of, gain, jacobian, make_model
from onnx import helper

import snaudit
from snaudit.bound import NORMS
from snaudit.contractions import Arranged, contraction_of

EQUATIONS = [
    ("bi,io->bo", (2, 3), (3, 4)),
    ("io,bi->bo", (2, 3), (3, 4)),
    ("bsd,dhk->bhsk", (1, 2, 4), (4, 2, 3)),
    ("bhsk,dhk->bsd", (1, 2, 2, 3), (4, 2, 3)),
    ("ehi,eoi->eho", (2, 3, 4), (2, 5, 4)),
    ("...i,oi->...o", (2, 3, 4), (5, 4)),
    ("bij,jo->o", (2, 3, 4), (4, 2)),
]


def saved(path: Path, equation: str, x: tuple[int, ...], c: tuple[int, ...]) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal(c)
    names = ["c", "x"] if equation.startswith("io") else ["x", "c"]
    node = helper.make_node("Einsum", names, ["y"], name="node", equation=equation)
    model = make_model([node], {"x": x}, {"c": weight})
    onnx.save(model, path)
    return model


@pytest.mark.parametrize(("equation", "x", "c"), EQUATIONS)
def test_the_bound_is_exact(tmp_path: Path, equation: str, x: tuple[int, ...], c: tuple[int, ...]) -> None:
    model = saved(tmp_path / "m.onnx", equation, x, c)
    function, n = function_of(model)
    matrix = jacobian(function, np.zeros(n), 0.5)
    for norm in NORMS:
        report = snaudit.audit(tmp_path / "m.onnx", norm=norm)
        (layer,) = report.layers
        assert layer.op == "Einsum" and not report.gaps
        truth = gain(matrix, norm)
        assert truth * (1 - 1e-9) <= report.network.bound.upper <= truth * (1 + 1e-9)


def test_a_constrained_einsum_keeps_its_cap(tmp_path: Path) -> None:
    saved(tmp_path / "m.onnx", *EQUATIONS[3])
    snaudit.constrain(tmp_path / "m.onnx", tmp_path / "out.onnx", max_sigma=0.5)
    (layer,) = snaudit.audit(tmp_path / "out.onnx").layers
    assert 0.49 < layer.sigma.upper <= 0.5


def test_arranged_weights_go_back_to_where_they_came_from() -> None:
    weight = np.arange(24.0).reshape(2, 3, 4)

    class Kept:
        tensors, shape, index = (), (2, 3, 4), ()
        weight = staticmethod(lambda stored: weight)
        replaced = staticmethod(lambda array, stored: {"c": array})

    for equation in ("xab,abc->xac", "xac,abc->xb", "xb,abc->xca"):
        found = contraction_of(equation, 2, 0)
        assert found is not None
        form = Arranged(Kept(), found)
        assert np.array_equal(form.replaced(form.weight())["c"], weight) and form.weight().shape == form.shape
    assert contraction_of("bi,io->b", 2, 0) is None and contraction_of("bi,ii->b", 2, 0) is None
    assert contraction_of("a,b,c->abc", 3, 0) is None

