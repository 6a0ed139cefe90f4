"""A corpus of hostile, damaged and merely unusual model files, each with what must become of it.

`make(folder)` writes it, seeded, and returns its cases; `python tests/corpus.py FOLDER` does that
by hand and lists them. Each rule of reading (1–9) has a file that breaks it and an odd one that
must still be audited right. Payloads are harmless: all they could do is to create a file in
`folder/canary`, which must stay empty.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SEED = 20


@dataclass(frozen=True)
class Case:
    """A file and its fate.

    expect    "audited" (exit 0), "refused" (exit 2), or "either": both are right, but an audit must
              then be a true one
    stderr_contains  a regular expression for the reason, if refused
    matrices  how many layers the audit must list, sigma their true largest singular values
    says      a regular expression that the JSON report must match, if audited
    nonfinite names of layers that must be unbounded
    rule      the rule of reading that the case is about: "1" … "9"
    """

    name: str
    path: Path
    expect: str
    exit_code: int | None
    stderr_contains: str | None
    matrices: int | None
    sigma: dict[str, float] | None
    rule: str
    says: str | None = None
    nonfinite: tuple[str, ...] = ()


def refused(rule: str, path: Path, reason: str | None = None) -> Case:
    return Case(path.name, path, "refused", 2, reason, None, None, rule)


def audited(
    rule: str,
    path: Path,
    weights: dict[str, np.ndarray] | None,
    says: str | None = None,
    nonfinite: tuple[str, ...] = (),
) -> Case:
    """`weights`: the matrices as they must be understood; all of them, and no other."""
    sigma = None if weights is None else {k: top(w) for k, w in weights.items()}
    count = None if weights is None else len(weights) + len(nonfinite)
    return Case(path.name, path, "audited", 0, None, count, sigma, rule, says, nonfinite)


def either(rule: str, path: Path, weights: dict[str, np.ndarray] | None, reason: str | None = None) -> Case:
    sigma = None if weights is None else {k: top(w) for k, w in weights.items()}
    return Case(path.name, path, "either", None, reason, None, sigma, rule, reason)


def top(weight: np.ndarray) -> float:
    """The largest singular value of the matrix that a weight is reshaped to, by LAPACK in float64."""
    if weight.size == 0:
        return 0.0
    matrix = np.asarray(weight, dtype=np.float64).reshape(weight.shape[0], -1)
    return float(np.linalg.svd(matrix, compute_uv=False)[0])


def matrix(seed: int = SEED, rows: int = 5, columns: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def canary(folder: Path, tag: str) -> str:
    """A shell command that leaves a trace, if anything ever runs it."""
    return f"touch {folder / 'canary' / tag}"


def make(folder: Path) -> list[Case]:
    """Write all files under the folder; returns their cases, with unique names."""
    import corpus_files
    import corpus_onnx
    import corpus_onnx_tensors
    import corpus_pickles
    import corpus_safetensors
    import corpus_saved
    import corpus_storages
    import corpus_zips

    (folder / "canary").mkdir(parents=True)
    cases: list[Case] = []
    for part in (
        corpus_files,
        corpus_zips,
        corpus_pickles,
        corpus_storages,
        corpus_saved,
        corpus_safetensors,
        corpus_onnx,
        corpus_onnx_tensors,
    ):
        place = folder / part.__name__.removeprefix("corpus_")
        place.mkdir()
        cases += part.cases(place)
    names = [case.name for case in cases]
    doubled = {n for n in names if names.count(n) > 1}
    assert not doubled, f"cases of one name: {doubled}"
    return cases


if __name__ == "__main__":
    for case in make(Path(sys.argv[1]).resolve()):
        print(f"rule {case.rule}  {case.expect:8} {ascii(case.name)}")
