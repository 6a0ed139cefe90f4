"""safetensors, single and sharded: read against the reference library, patched, and lied to."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from snaudit.errors import ModelError, RefusedModel, UnreadableModel, UnsupportedModel
from snaudit.formats.interface import Patched
from snaudit.formats.safetensors import SAFETENSORS, SHARDED
from snaudit.formats.source import Source
from snaudit.model import Model


def raw_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(files: tuple[Patched, ...], target: Path) -> None:
    for file in files:
        place = target if file.name is None else target.parent / file.name
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        file.write(fd)
        os.close(fd)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        "z": rng.standard_normal((3, 4)).astype(np.float32),
        "half": rng.standard_normal((2, 2)).astype(np.float16),
        "brain": rng.standard_normal(5).astype(ml_dtypes.bfloat16),
        "ids": rng.integers(-9, 9, (7,)),
        "empty": np.zeros((0, 3), np.float64),
        "scalar": np.asarray(2.5, np.float64),
        "мир": np.asarray([True, False]),
    }


def sharded(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    """An index over two shards, with keys in an order that is neither's."""
    names = list(arrays)
    place = {name: f"m-{1 + i % 2:05d}-of-00002.safetensors" for i, name in enumerate(reversed(names))}
    for shard in sorted(set(place.values())):
        save_file({name: arrays[name] for name in names if place[name] == shard}, folder / shard)
    index = folder / "m.safetensors.index.json"
    text = json.dumps({"metadata": {"total_size": 99.0, "m-00001": 1}, "weight_map": place}, indent=3, ensure_ascii=False)
    index.write_text(text, encoding="utf-8")
    return index


def equal(model: Model, arrays: dict[str, np.ndarray]) -> bool:
    loaded = {name: tensor.load() for name, tensor in model.tensors.items()}
    return set(loaded) == set(arrays) and all(
        loaded[n].dtype == a.dtype and loaded[n].shape == a.shape and loaded[n].tobytes() == a.tobytes()
        for n, a in arrays.items()
    )


def test_every_tensor_is_read_bit_for_bit(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "m.bin"
    save_file(arrays, path, metadata={"format": "pt"})
    assert SAFETENSORS.sniff(Source(path)) and not SHARDED.sniff(Source(path))
    model = SAFETENSORS.read(Source(path), None)
    assert equal(model, arrays)
    assert len({tensor.place for tensor in model.tensors.values()}) == len(arrays)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_float8_is_exact_in_float64(tmp_path: Path, dtype: str) -> None:
    path = raw_file(tmp_path / "m", {"w": entry(dtype, [256], 0, 256)}, bytes(range(256)))
    tensor = SAFETENSORS.read(Source(path), None).tensors["w"]
    names = {"F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu"}
    truth = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, names.get(dtype, f"float8_{dtype[3:].lower()}")))
    assert tensor.is_real and np.array_equal(tensor.float64(), truth.astype(np.float64), equal_nan=True)


def test_what_is_not_supported_is_left_out_by_name(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    header = {"four": entry("F4", [3, 2], 0, 3), "ok": entry("F32", [1], 3, 7), "new": entry("F99", [5], 7, 8)}
    model = SAFETENSORS.read(Source(raw_file(tmp_path / "m", header, bytes(8))), None)
    assert list(model.tensors) == ["ok"]
    assert [(item.name, "F" in item.reason) for item in model.left_out] == [("four", True), ("new", True)]


def test_patch_changes_only_the_bytes_of_changed_tensors(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path, target = tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    save_file(arrays, path, metadata={"b": "1", "a": "2"})
    model = SAFETENSORS.read(Source(path), None)
    changes = {"z": arrays["z"] * 3, "brain": arrays["brain"] * arrays["brain"]}
    write(SAFETENSORS.patch(model, changes, target), target)
    assert equal(SAFETENSORS.read(Source(target), None), {**arrays, **changes})
    assert np.array_equal(load_file(target)["z"], changes["z"])
    old, new = path.read_bytes(), target.read_bytes()
    differing = {i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b}
    ranges = [range(t.place[1], t.place[1] + t.load().nbytes) for n, t in model.tensors.items() if n in changes]
    assert differing and all(any(i in part for part in ranges) for i in differing)


def test_patch_refuses_a_file_that_changed_and_arrays_of_another_kind(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    path, target = tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    save_file(arrays, path)
    model = SAFETENSORS.read(Source(path), None)
    with pytest.raises(ValueError, match="not what is stored"):
        write(SAFETENSORS.patch(model, {"z": arrays["z"].astype(np.float64)}, target), target)
    target.unlink()
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(UnreadableModel, match="changed since"):
        write(SAFETENSORS.patch(model, {"z": arrays["z"]}, target), target)


def test_sharded_is_read_and_patched_whole(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    index = sharded(tmp_path, arrays)
    assert SHARDED.sniff(Source(index)) and not SAFETENSORS.sniff(Source(index))
    model = SHARDED.read(Source(index), None)
    assert equal(model, arrays)
    assert list(model.tensors) == list(json.loads(index.read_text("utf-8"))["weight_map"])
    assert [file.path.name for file in model.files] == [index.name, *sorted(p.name for p in tmp_path.glob("*.safetensors"))]
    target = tmp_path / "m.constrained.safetensors.index.json"
    changes = {"half": arrays["half"] / 2, "z": -arrays["z"]}
    write(SHARDED.patch(model, changes, target), target)
    assert equal(SHARDED.read(Source(target), None), {**arrays, **changes})
    assert target.read_text("utf-8") == index.read_text("utf-8").replace('"m-0', '"m.constrained-0').replace(
        '"m.constrained-00001":', '"m-00001":'
    )
    again = SHARDED.patch(model, changes, target)  # its shards' names are taken now
    assert [file.name for file in again[1:]] == [f"m.constrained-2-0000{i}-of-00002.safetensors" for i in (1, 2)]


def test_shards_of_a_link_cache_are_read_and_other_links_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    blobs, snapshot, outside = tmp_path / "blobs", tmp_path / "snapshots", tmp_path / "outside"
    for folder in (blobs, snapshot, outside):
        folder.mkdir()
    for number, path in enumerate(sorted(sharded(snapshot, arrays).parent.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..") / "blobs" / str(number))
    index = snapshot / "m.safetensors.index.json"
    assert equal(SHARDED.read(Source(index), None), arrays)
    shard = snapshot / "m-00001-of-00002.safetensors"
    shard.resolve().rename(outside / "shard")
    shard.unlink()
    shard.symlink_to(outside / "shard")
    with pytest.raises(RefusedModel, match="leads out"):
        SHARDED.read(Source(index), None)


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("U8", [1], 8, 9)}

BROKEN: dict[str, tuple[object, bytes, int | None, str]] = {
    "hole": ({"a": entry("F32", [2], 0, 8), "b": entry("U8", [1], 9, 10)}, bytes(10), None, "hole"),
    "overlap": ({"a": entry("F32", [2], 0, 8), "b": entry("U8", [1], 7, 8)}, bytes(8), None, "overlaps"),
    "trailing": (GOOD, bytes(10), None, "no tensor covers"),
    "truncated": (GOOD, bytes(8), None, "truncated"),
    "long header": (GOOD, bytes(9), 9999, "truncated"),
    "huge header": (GOOD, bytes(9), 100_000_001, "100 MB"),
    "duplicate key": (b'{"a":1,"a":1}', b"", None, "twice"),
    "duplicate field": (b'{"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"1", None, "twice"),
    "negative": ({"a": entry("F32", [-1], 0, 4)}, bytes(4), None, "malformed"),
    "float size": ({"a": entry("F32", [1.0], 0, 4)}, bytes(4), None, "no integer"),  # type: ignore[list-item]
    "boolean size": ({"a": entry("F32", [True], 0, 4)}, bytes(4), None, "malformed"),
    "huge size": ({"a": entry("F32", [10**30], 0, 4)}, bytes(4), None, "20 digits"),
    "overflow": ({"a": entry("F32", [2**40, 2**40, 0], 0, 0)}, b"", None, "claims more"),
    "size and bytes": ({"a": entry("F32", [3], 0, 8)}, bytes(8), None, "8 bytes for 3"),
    "backwards": ({"a": entry("F99", [3], 8, 0)}, bytes(8), None, "before it begins"),
    "nested": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", None, "nested|entry"),
    "metadata": ({"__metadata__": {"a": 1}, **GOOD}, bytes(9), None, "__metadata__"),
    "surrogate": (b'{"\\ud800":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"1", None, "JSON"),
    "not UTF-8": (b'{"\xff":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"1", None, "JSON"),
    "extra field": ({"a": {**entry("U8", [1], 0, 1), "x": 1}}, b"1", None, "entry"),
    "nan": (b'{"a":NaN}', b"", None, "no integer"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_with_one_line(tmp_path: Path, case: str) -> None:
    header, data, length, reason = BROKEN[case]
    source = Source(raw_file(tmp_path / "m", header, data, length))
    assert SAFETENSORS.sniff(source)
    with pytest.raises(UnreadableModel, match=reason) as caught:
        SAFETENSORS.read(source, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shard", "error"),
    [("../x", RefusedModel), ("/etc/passwd", RefusedModel), ("a/b", RefusedModel), ("..", RefusedModel),
     ("", RefusedModel), ("a\0b", RefusedModel), ("missing", UnreadableModel), ("pickle.bin", UnsupportedModel)],
)  # fmt: skip
def test_a_shard_is_a_plain_safetensors_file_beside_the_index(
    tmp_path: Path, shard: str, error: type[ModelError]
) -> None:
    (tmp_path / "pickle.bin").write_bytes(b"PK\3\4" + bytes(20))
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(error):
        SHARDED.read(Source(index), None)


@pytest.mark.parametrize("change", [{"ids": "m-00001-of-00002.safetensors"}, {"ghost": "m-00002-of-00002.safetensors"}, None])
def test_index_and_shards_agree_both_ways(tmp_path: Path, arrays: dict[str, np.ndarray], change: dict[str, str] | None) -> None:
    index = sharded(tmp_path, arrays)
    content = json.loads(index.read_text("utf-8"))
    if change is None:
        del content["weight_map"]["ids"]
    else:
        content["weight_map"].update(change)
        other = {"m-00001-of-00002.safetensors": "m-00002-of-00002.safetensors"}
        if "ids" in change and json.loads(index.read_text("utf-8"))["weight_map"]["ids"] == change["ids"]:
            content["weight_map"]["ids"] = other[change["ids"]]
    index.write_text(json.dumps(content))
    with pytest.raises(UnreadableModel, match="ghost|ids"):
        SHARDED.read(Source(index), None)


def test_mutants_raise_nothing_but_model_errors(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    save_file(arrays, tmp_path / "m.safetensors")
    originals = ((tmp_path / "m.safetensors").read_bytes(), sharded(tmp_path, arrays).read_bytes())
    rng, refused, path = random.Random(11), 0, tmp_path / "mutant"
    for round_ in range(1500):
        known, mutant = (SAFETENSORS, SHARDED)[round_ % 2], bytearray(originals[round_ % 2])
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(min(len(mutant), 700))
            kind = rng.randrange(4)
            if kind == 0:
                mutant[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                mutant[at] = rng.choice(b'"{}[],:0129-\\\xff')
            elif kind == 2:
                del mutant[at : at + rng.randint(1, 9)]
            else:
                mutant[at:at] = mutant[at : at + rng.randint(1, 9)]
        path.write_bytes(mutant)
        source = Source(path)
        try:
            if known.sniff(source):
                for tensor in known.read(source, None).tensors.values():
                    assert tensor.load().shape == tensor.shape
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error)
        source.close()
    assert refused > 500
