"""One way to compute σ₁ of all matrices of a file, in a process of its own: {name: [σ₁, rows, columns]}.

    python benchmarks/sides.py SIDE MODEL

Each way is what people write today: read the file with its own library, take every tensor of two or
more axes as a matrix with its first axis as rows, in the stored dtype unless the name says float64.
`reference` is the truth that the others are compared with.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The floating-point matrices of a file as numpy arrays, one after another."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  it is no dict
                yield from _matrix(name, file.get_tensor(name))
    elif path.suffix == ".onnx":
        yield from _of_graph(path)
    else:
        for name, tensor in tensors(path):
            yield name, tensor.numpy()


def tensors(path: Path) -> Iterator:
    """The floating-point matrices of a file as torch tensors, one after another."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no dict
                yield from _matrix(name, file.get_tensor(name))
    elif path.suffix == ".onnx":
        for name, matrix in _of_graph(path):
            yield name, torch.from_numpy(matrix.copy())
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, tensor in state.get("state_dict", state).items():
            if torch.is_tensor(tensor) and tensor.is_floating_point():
                yield from _matrix(name, tensor)


def _matrix(name: str, tensor) -> Iterator:
    if len(tensor.shape) >= 2 and 0 not in tensor.shape:
        yield name, tensor.reshape(tensor.shape[0], -1)


def _of_graph(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            stored.append((node.output[0], node.attribute[0].t))
    for name, tensor in stored:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f":
            yield from _matrix(name, values)


def proved(path: Path) -> Iterator:
    """snaudit's own upper end of σ₁ and nothing else of it: no hash, no operators, no network."""
    from snaudit import sigma
    from snaudit.linear import Dense

    for name, matrix in arrays(path):
        bound = sigma.measure(Dense(matrix.astype(np.float64)))
        if bound.grade.name != "PROVED":
            raise SystemExit(f"{name}: {bound}")
        yield name, bound.upper, matrix


def svdvals(path: Path) -> Iterator:
    """torch.linalg.svdvals in the stored dtype."""
    import torch

    for name, matrix in tensors(path):
        yield name, torch.linalg.svdvals(matrix)[0], matrix


def svdvals64(path: Path) -> Iterator:
    """torch.linalg.svdvals in float64."""
    import torch

    for name, matrix in tensors(path):
        yield name, torch.linalg.svdvals(matrix.double())[0], matrix


def matrix_norm(path: Path) -> Iterator:
    """torch.linalg.matrix_norm(ord=2) in the stored dtype."""
    import torch

    for name, matrix in tensors(path):
        yield name, torch.linalg.matrix_norm(matrix, ord=2), matrix


def svds(path: Path, dtype: str | None = None) -> Iterator:
    """scipy.sparse.linalg.svds(k=1), ARPACK's Lanczos; of matrices of less than 2 rows or columns, ‖·‖₂."""
    from scipy.sparse.linalg import svds as lanczos

    for name, matrix in arrays(path):
        w = matrix if dtype is None else matrix.astype(dtype)
        if min(w.shape) < 2:
            yield name, np.linalg.norm(w), matrix
        else:
            yield name, lanczos(w, k=1, return_singular_vectors=False, random_state=0)[0], matrix


def svds64(path: Path) -> Iterator:
    """The same in float64."""
    return svds(path, "float64")


def gram(path: Path, dtype: str | None = None) -> Iterator:
    """√λmax of WᵀW on the shorter side, by eigvalsh, in the stored dtype."""
    for name, matrix in arrays(path):
        w = matrix if dtype is None else matrix.astype(dtype)
        square = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
        yield name, np.sqrt(np.linalg.eigvalsh(square)[-1]), matrix


def gram64(path: Path) -> Iterator:
    """The same in float64."""
    return gram(path, "float64")


def weightwatcher(path: Path) -> Iterator:
    """weightwatcher's analyze() with its defaults, of a module with these weights; sv_max of each layer.

    It takes a convolution apart into its k×k slices and rescales them, which is another number than σ of
    the reshaped kernel: those are left out of the comparison, not out of the work. It skips what is
    too large (max_N) or too small (min_evals) for its fits, and does what else it does: those fits.
    """
    import logging

    import torch
    import weightwatcher as ww
    from safetensors.torch import load_file

    logging.disable(logging.WARNING)
    holder = torch.nn.Module()
    shapes = {}
    for name, weight in load_file(path).items():
        if weight.ndim == 4:
            layer = torch.nn.Conv2d(*weight.shape[1::-1], weight.shape[2:], bias=False)
        else:
            layer = torch.nn.Linear(*weight.shape[::-1], bias=False)
        layer.weight.data = weight
        holder.add_module(name.replace(".", "_"), layer)
        shapes[name.replace(".", "_")] = (name, weight)
    details = ww.WeightWatcher(model=holder).analyze()
    for row in details.itertuples():
        name, weight = shapes[row.longname]
        if weight.ndim == 2 and np.isfinite(row.sv_max):
            yield name, row.sv_max, weight


def reference(path: Path) -> dict[str, list[float]]:
    """σ₁ by a Rayleigh quotient in long double, with its error: {name: [σ₁, what float64
    loses of it, relative error, rows, columns]}.

    v: the top eigenvector of the float64 Gram matrix; θ = ‖Wv‖²/‖v‖², r = WᵀWv − θv in long double;
    |λ₁ − θ| ≤ ‖r‖²/gap (Kato–Temple) with the gap to the next eigenvalue in float64, or ‖r‖ where that
    is less. With x87's 64-bit significand its own rounding is about 1e-18.
    """
    found = {}
    for name, matrix in arrays(path):
        w = matrix.astype(np.float64)
        w = w if w.shape[0] >= w.shape[1] else w.T
        values, vectors = np.linalg.eigh(w.T @ w)
        v = vectors[:, -1].astype(np.longdouble)
        v /= np.sqrt(v @ v)
        image, back = [], np.zeros(w.shape[1], np.longdouble)
        for start in range(0, len(w), 4096):
            rows = w[start : start + 4096].astype(np.longdouble)
            image.append(rows @ v)
            back += rows.T @ image[-1]
        square = np.sum(np.concatenate(image) ** 2)
        residual = float(np.sqrt(np.sum((back - square * v) ** 2)))
        gap = float(values[-1] - values[-2]) if len(values) > 1 else math.inf
        error = min(residual, residual**2 / gap if gap > 0 else residual) / 2  # relative: σ, not σ²
        sigma = np.sqrt(square)
        relative = error / float(square) if square > 0 else 0.0
        low = float(sigma - np.longdouble(float(sigma)))  # the part that float64 cannot hold
        found[name] = [float(sigma), low, relative, *matrix.shape]
    return found


SIDES = {
    side.__name__: side
    for side in (proved, svdvals, svdvals64, matrix_norm, svds, svds64, gram, gram64, weightwatcher)
}

if __name__ == "__main__":
    side, file = sys.argv[1], Path(sys.argv[2])
    if side == "reference":
        print(json.dumps(reference(file)))
    else:
        print(json.dumps({name: [float(value), *matrix.shape] for name, value, matrix in SIDES[side](file)}))
