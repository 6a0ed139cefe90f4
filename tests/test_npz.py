"""npz files: every array as numpy reads it, patches that change nothing else."""

from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from snaudit.errors import ModelError, UsageError
from snaudit.formats.npz import NPZ
from snaudit.formats.source import Source
from snaudit.model import Model

RNG = np.random.default_rng(3)
ARRAYS = {
    "c": RNG.standard_normal((3, 4)).astype(np.float32),
    "fortran": np.asfortranarray(RNG.standard_normal((3, 4))),
    "big": RNG.standard_normal((2, 3)).astype(">f4"),
    "big_fortran": np.asfortranarray(RNG.standard_normal((2, 3, 2)).astype(">f8")),
    "layer/half": RNG.standard_normal((2, 2)).astype(np.float16),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "vector": np.arange(5),
    "flags": np.array([True, False]),
    "complex": RNG.standard_normal(4).astype(np.complex64),
}
CLOSED = {
    "text": np.array(["a", "bc"]),
    "objects": np.array([{"a": 1}], dtype=object),
    "structured": np.zeros(2, [("a", "f4"), ("b", "i4")]),
    "bf16": np.ones((2, 2), ml_dtypes.bfloat16),
    "dates": np.array(["2020-01-01"], "M8[D]"),
}
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])


def save(path: Path, packed: bool, arrays: dict[str, np.ndarray]) -> Path:
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


def read(path: Path) -> Model:
    source = Source(path)
    assert NPZ.sniff(source)
    return NPZ.read(source, None)


@PACKED
def test_every_array_is_as_numpy_reads_it(tmp_path: Path, packed: bool) -> None:
    model = read(save(tmp_path / "m.npz", packed, ARRAYS | CLOSED))
    assert list(model.tensors) == list(ARRAYS)
    for name, tensor in model.tensors.items():
        array, true = tensor.load(), ARRAYS[name]
        assert array.shape == tensor.shape == true.shape
        assert array.dtype == true.dtype.newbyteorder("=") and str(array.dtype) == tensor.dtype
        assert array.tobytes() == true.astype(array.dtype).tobytes()
    assert {x.name: x.missed for x in model.left_out} == {name: name == "bf16" for name in CLOSED}
    with pytest.raises(UsageError):
        NPZ.read(Source(tmp_path / "m.npz"), "c")


@PACKED
def test_a_patch_changes_the_named_arrays_and_nothing_else(tmp_path: Path, packed: bool) -> None:
    path = save(tmp_path / "m.npz", packed, ARRAYS | CLOSED)
    model = read(path)
    changed = ("c", "fortran", "big", "big_fortran", "layer/half", "scalar")
    changes = {name: (model.tensors[name].load() * 0.5).astype(model.tensors[name].dtype) for name in changed}
    (result,) = NPZ.patch(model, changes, tmp_path / "out.npz")
    fd = os.open(tmp_path / "out.npz", os.O_WRONLY | os.O_CREAT)
    result.write(fd)
    os.close(fd)
    with np.load(path) as was, np.load(tmp_path / "out.npz") as now:
        for name in ARRAYS:
            assert now[name].dtype == was[name].dtype
            assert now[name].flags.f_contiguous == was[name].flags.f_contiguous
            assert np.array_equal(now[name], was[name] * 0.5 if name in changed else was[name])
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "out.npz") as new:
        assert new.testzip() is None and new.namelist() == old.namelist()
        for name in CLOSED:
            assert new.read(f"{name}.npy") == old.read(f"{name}.npy")
    if not packed:
        assert path.stat().st_size == (tmp_path / "out.npz").stat().st_size


@PACKED
def test_a_mutant_is_refused_or_read_as_if_it_were_whole(tmp_path: Path, packed: bool) -> None:
    path = save(tmp_path / "m.npz", packed, {"w": ARRAYS["c"], "f": ARRAYS["fortran"]})
    whole, mutant, rng = path.read_bytes(), tmp_path / "mutant.npz", random.Random(5)
    for round_ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 6))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if round_ % 10 == 0:
            del data[rng.randrange(1, len(data)):]
        mutant.write_bytes(data)
        source = Source(mutant)
        try:
            values = {n: t.load() for n, t in NPZ.read(source, None).tensors.items()}
        except ModelError as error:
            assert "\n" not in str(error)
            continue
        finally:
            source.close()
        assert set(values) == {"w", "f"}
        assert np.array_equal(values["w"], ARRAYS["c"]) and np.array_equal(values["f"], ARRAYS["fortran"])
