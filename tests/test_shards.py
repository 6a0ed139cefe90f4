"""Models of several files: a folder as the target, links for what stays, and what goes in place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save_file

import snaudit
from snaudit import cli
from snaudit.errors import ConstraintError, WriteError

INDEX = "model.safetensors.index.json"
NAMES = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]


def save(folder: Path) -> dict[str, np.ndarray]:
    """Three shards, of which a cap of 1 touches the first and the last."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {name: (size * rng.standard_normal((4, 4))).astype(np.float32) for name, size in zip("abc", (3, 0.01, 2), strict=True)}
    for (name, array), shard in zip(arrays.items(), NAMES, strict=True):
        save_file({name: array}, folder / shard)
    text = json.dumps({"metadata": {"total_size": 192}, "weight_map": dict(zip(arrays, NAMES, strict=True))}, indent=2)
    (folder / INDEX).write_text(text)
    return arrays


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_takes_the_model_under_its_own_names(tmp_path: Path, made: bool) -> None:
    arrays = save(tmp_path / "in")
    before, out = state(tmp_path / "in"), tmp_path / "out"
    if made:
        out.mkdir()
    assert snaudit.constrain(tmp_path / "in", out, max_sigma=1.0, dry_run=True).target == str(out / INDEX)
    assert out.exists() == made
    outcome = snaudit.constrain(tmp_path / "in", out, max_sigma=1.0)
    assert outcome.target == str(out / INDEX) and sorted(state(out)) == sorted([INDEX, *NAMES])
    assert state(tmp_path / "in") == before and (out / INDEX).read_bytes() == before[INDEX]
    same = [os.path.samefile(out / name, tmp_path / "in" / name) for name in NAMES]
    assert same == [False, True, False], "what stays as it is takes no second copy"
    for (name, array), shard in zip(arrays.items(), NAMES, strict=True):
        found = load_file(out / shard)[name]
        assert np.linalg.norm(found.astype(np.float64), 2) <= 1.0
        assert (found == array).all() == (name == "b")
    with pytest.raises(WriteError, match="--force"):
        snaudit.constrain(tmp_path / "in", out, max_sigma=1.0)


def test_what_fails_leaves_no_folder(tmp_path: Path) -> None:
    save(tmp_path / "in")
    with pytest.raises(ConstraintError):
        snaudit.constrain(tmp_path / "in", tmp_path / "out", max_sigma=1e-60)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    with pytest.raises(WriteError, match="does not exist"):
        snaudit.constrain(tmp_path / "in", tmp_path / "no" / "out", max_sigma=1.0)


def test_a_disk_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in")
    link = os.link

    def fails(source: object, place: object) -> None:
        if ".part" not in str(source):
            raise OSError(1, "Operation not permitted")
        link(source, place)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", fails)
    snaudit.constrain(tmp_path / "in", tmp_path / "out", max_sigma=1.0)
    one, other = (folder / NAMES[1] for folder in (tmp_path / "in", tmp_path / "out"))
    assert one.read_bytes() == other.read_bytes() and not os.path.samefile(one, other)


@pytest.mark.parametrize("named_elsewhere", [False, True])
def test_in_place_removes_what_it_replaced_and_nothing_else(tmp_path: Path, named_elsewhere: bool) -> None:
    folder = tmp_path / "in"
    save(folder)
    (folder / "config.json").write_text("{}")
    (folder / "kept-00001-of-00003.safetensors").write_bytes(b"someone's")
    if named_elsewhere:
        (folder / "ema.json").write_text(json.dumps({"weight_map": {"a": NAMES[0]}}))
    before = state(folder)
    outcome = snaudit.constrain(folder, folder, max_sigma=1.0, force=True)
    after = state(folder)
    gone = {NAMES[2]} if named_elsewhere else {NAMES[0], NAMES[2]}
    assert before.keys() - after.keys() == gone
    assert [name for name in before if name in after and after[name] != before[name]] == [INDEX]
    assert any("removed" in note and NAMES[2] in note for note in outcome.notes)
    assert any("kept" in note and NAMES[0] in note for note in outcome.notes) == named_elsewhere
    assert all(layer.norm.upper <= 1.0 for layer in snaudit.audit(folder).layers)
    assert len(snaudit.load(folder).tensors) == 3
    again = snaudit.constrain(folder, folder, max_sigma=1.0, force=True)
    assert not any(change.changed for change in again.changes) and state(folder) == after, "twice is once"


def test_what_a_cache_of_links_holds_is_never_removed(tmp_path: Path) -> None:
    save(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in (INDEX, *NAMES):
        (tmp_path / "snapshot" / name).symlink_to(Path("..", "blobs", name))
    blobs = state(tmp_path / "blobs")
    snaudit.constrain(tmp_path / "snapshot", tmp_path / "snapshot", max_sigma=1.0, force=True)
    after = state(tmp_path / "blobs")
    assert {name: after[name] for name in NAMES} == {name: blobs[name] for name in NAMES}
    assert all((tmp_path / "snapshot" / name).is_symlink() for name in (INDEX, *NAMES))
    assert all(layer.norm.upper <= 1.0 for layer in snaudit.audit(tmp_path / "snapshot").layers)


def test_external_data_in_place_and_linked(tmp_path: Path) -> None:
    """Data that another model names stays; data that nothing changes is linked into another folder."""
    rng = np.random.default_rng(0)
    weights = {"w": (9 * rng.standard_normal((4, 4))).astype(np.float32), "v": np.eye(4, dtype=np.float32) / 2}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "v"], ["y"])]
    ends = [helper.make_tensor_value_info(name, 1, [4, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(a, n) for n, a in weights.items()])
    for tensor in graph.initializer:
        (tmp_path / f"{tensor.name}.bin").write_bytes(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, f"{tensor.name}.bin")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path, before = tmp_path / "m.onnx", (tmp_path / "v.bin").read_bytes()
    path.write_bytes(made.SerializeToString())
    (tmp_path / "out").mkdir()
    with pytest.raises(WriteError, match="no regular file"):
        snaudit.constrain(path, tmp_path / "out", max_sigma=1.0)
    snaudit.constrain(path, tmp_path / "out" / "m.onnx", max_sigma=1.0)
    assert sum(os.path.samefile(file, tmp_path / "v.bin") for file in (tmp_path / "out").iterdir()) == 1
    (tmp_path / "other.onnx").write_bytes(path.read_bytes())
    snaudit.constrain(path, path, max_sigma=1.0, force=True)
    assert (tmp_path / "w.bin").exists() and (tmp_path / "v.bin").read_bytes() == before
    (tmp_path / "other.onnx").unlink()
    data = {file.name for file in tmp_path.iterdir() if file.is_file()}
    snaudit.constrain(path, path, max_sigma=0.25, force=True)
    left = {file.name for file in tmp_path.iterdir() if file.is_file()}
    assert "w.bin" in left, "this run did not replace it"
    assert "v.bin" not in left and len(data - left) == 2
    assert all(layer.norm.upper <= 0.25 for layer in snaudit.audit(path).layers)


def test_the_command_takes_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in")
    assert cli.main(["constrain", str(tmp_path / "in"), "--max-sigma", "1", "-o", str(tmp_path / "out")]) == 0
    assert "written to" in capfd.readouterr().out and sorted(state(tmp_path / "out")) == sorted([INDEX, *NAMES])
