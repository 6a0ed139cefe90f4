"""constrain and reports that are interrupted or cannot be written: the old file or the whole new one.

Real signals at many moments, a limit on file size, folders that may not be written to, full
devices, closed pipes. After each: the input is bit-identical, the target is absent, old, or the
whole new model, and no temporary file is left (a SIGKILL may leave one).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import corpus_onnx
import corpus_onnx_tensors
import numpy as np
import onnx
import pytest
from containers import mapping, tensor, torch_file
from corpus import matrix
from corpus_safetensors import entry, file_of
from forked import Forker, Outcome
from onnx import numpy_helper

KINDS = ("torch.pt", "plain.safetensors", "sharded.safetensors.index.json", "external.onnx")
CAP = ("--max-sigma", "0.5", "--force")
MOMENTS = 16
"""Moments of a run, evenly spread, at which a signal is sent; for each kind, target and signal."""


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with Forker() as running:
        yield running


def model(folder: Path, kind: str) -> Path:
    """A model of this kind whose σ is far above the cap, alone in the folder with the files it needs."""
    folder.mkdir(exist_ok=True)
    path, weight = folder / kind, matrix(rows=40, columns=500)
    n = weight.nbytes
    if kind == "torch.pt":
        return torch_file(path, mapping({"weight": tensor(weight)}), {"0": weight.tobytes()})
    if kind == "plain.safetensors":
        path.write_bytes(file_of({"weight": entry([40, 500], 0, n)}, weight.tobytes()))
    elif kind == "external.onnx":
        (folder / "w.bin").write_bytes(matrix().tobytes())
        path.write_bytes(corpus_onnx.gemm(corpus_onnx_tensors.outside("w.bin")).SerializeToString())
    else:
        for name in ("a", "b"):
            (folder / f"{name}.safetensors").write_bytes(
                file_of({name: entry([40, 500], 0, n)}, weight.tobytes())
            )
        path.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    return path


def content(folder: Path) -> dict[str, str]:
    """The folder's files by name, with their SHA-256."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def told(outcome: Outcome) -> None:
    """A failure is one line, without a traceback; a run that a signal ended early may be silent."""
    text = outcome.err.decode()
    assert text.count("\n") <= 1 and (not text or text.startswith("snaudit: ")), text
    assert "Traceback" not in text and outcome.code != 4, (outcome.code, text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", ["absent", "old", "itself"])
def test_signals_at_many_moments(tmp_path: Path, forker: Forker, kind: str, state: str) -> None:
    def prepared(name: str) -> tuple[Path, Path]:
        folder = tmp_path / name
        source = model(folder, kind)
        target = source if state == "itself" else folder / f"out{''.join(source.suffixes)}"
        if state == "old":
            target.write_bytes(b"the old file")
        return source, target

    source, target = prepared("whole")
    before = content(source.parent)
    whole = forker.run("constrain", source, *CAP, "-o", target)
    assert whole.code == 0, whole.err
    after = content(target.parent)
    assert after != before
    codes = set()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
        for moment in range(MOMENTS):
            source, target = prepared(f"{signum}-{moment}")
            outcome = forker.run(
                "constrain", source, *CAP, "-o", target, kill=(signum, 1.1 * whole.seconds * moment / MOMENTS)
            )
            left = content(source.parent)
            parts = [name for name in left if ".part" in name]
            if signum == signal.SIGKILL:
                left = {
                    name: digest for name, digest in left.items() if name in before or name == target.name
                }
                kept = {**before, **after}  # what the copy replaced may stay behind when nothing can be caught
                finished = left == {name: kept[name] for name in left} and target.name in left
                assert left == before or finished, (moment, outcome)
            else:
                told(outcome)
                assert not parts, (signum, moment, outcome)
                assert left in (before, after), (signum, moment, outcome, sorted(left))
                if outcome.code == 0:
                    assert left == after
            codes.add(outcome.code)
    assert codes & {143, -15} and codes & {130, -2} and codes & {129, -1} and -9 in codes, codes


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_on_file_size(tmp_path: Path, forker: Forker, kind: str) -> None:
    """The disk takes only so many bytes: one line, exit 2, nothing half."""
    sizes = 0
    for limit in (0, 1, 100, 141, 700, 20_000, 79_000):
        source = model(tmp_path / str(limit), kind)
        before = content(source.parent)
        largest = max(p.stat().st_size for p in source.parent.iterdir())
        outcome = forker.run("constrain", source, *CAP, "-o", source.parent / "out.x", file_size=limit)
        if limit >= largest:
            continue
        sizes += 1
        told(outcome)
        assert outcome.code == 2 and outcome.err, outcome
        assert content(source.parent) == before
    assert sizes >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_may_not_be_written_to(tmp_path: Path, forker: Forker, kind: str) -> None:
    source = model(tmp_path / "in", kind)
    locked = tmp_path / "locked"
    locked.mkdir()
    os.chmod(locked, 0o555)
    for target in (
        locked / "out.x",
        tmp_path / "absent" / "out.x",
        *([] if kind.startswith("sharded") else [tmp_path / "in"]),  # a folder is what shards may go to
        source / "below_a_file",
        tmp_path / ("n" * 300),
    ):
        before = content(source.parent)
        outcome = forker.run("constrain", source, *CAP, "-o", target, powerless=True)
        told(outcome)
        assert outcome.code == 2 and outcome.err, (target, outcome)
        assert content(source.parent) == before and not list(locked.iterdir())


def test_what_must_not_be_replaced(tmp_path: Path, forker: Forker) -> None:
    source = model(tmp_path / "in", "plain.safetensors")
    old = tmp_path / "old.safetensors"
    old.write_bytes(b"old")
    os.mkfifo(tmp_path / "pipe")
    before = content(source.parent)
    for target, options in (
        (old, ()),
        (source, ()),
        (tmp_path / "pipe", ("--force",)),
        (Path("/dev/full"), ("--force",)),
        (Path("/dev/null"), ("--force",)),
        (tmp_path, ("--force",)),
    ):
        outcome = forker.run("constrain", source, "--max-sigma", "0.5", "-o", target, *options)
        told(outcome)
        assert outcome.code == 2 and outcome.err.count(b"\n") == 1, (target, outcome)
    assert content(source.parent) == before and old.read_bytes() == b"old"
    dry = forker.run("constrain", source, "--max-sigma", "0.5", "--dry-run")
    assert dry.code == 0 and content(source.parent) == before


@pytest.mark.parametrize("command", ["constrain", "inspect", "refused"])
def test_a_file_that_the_model_needs_is_no_target(tmp_path: Path, forker: Forker, command: str) -> None:
    for kind, part in (("external.onnx", "w.bin"), ("sharded.safetensors.index.json", "b.safetensors")):
        source = model(tmp_path / kind, kind)
        options = CAP if command == "constrain" else ("--format", "json")
        if command == "refused":
            with (source.parent / part).open("ab") as file:
                file.truncate(100)
        before = content(source.parent)
        os.symlink(part, source.parent / "alias")
        for name in (part, "alias"):
            outcome = forker.run(
                "constrain" if command == "constrain" else "inspect",
                source,
                *options,
                "-o",
                source.parent / name,
            )
            told(outcome)
            assert outcome.code == 2, (kind, name, outcome)
        (source.parent / "alias").unlink()
        assert content(source.parent) == before


def test_links_as_target(tmp_path: Path, forker: Forker) -> None:
    """A symbolic link stays and its file is replaced; another name of a hard-linked file keeps the old."""
    source = model(tmp_path / "in", "plain.safetensors")
    before = content(source.parent)
    real, link, hard, twin = (tmp_path / name for name in ("real.st", "link.st", "hard.st", "twin.st"))
    real.write_bytes(b"old")
    os.chmod(real, 0o640)
    twin.write_bytes(b"old")
    os.symlink("real.st", link)
    os.link(twin, hard)
    os.symlink("nowhere.st", tmp_path / "dangling.st")
    for target in (link, hard, tmp_path / "dangling.st"):
        assert forker.run("constrain", source, *CAP, "-o", target).code == 0
    assert link.is_symlink() and not real.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert real.read_bytes() == hard.read_bytes() == (tmp_path / "nowhere.st").read_bytes() != b"old"
    assert twin.read_bytes() == b"old" and content(source.parent) == before
    in_link = tmp_path / "model_link.st"
    os.symlink(source, in_link)
    assert forker.run("constrain", in_link, *CAP, "-o", in_link).code == 0
    assert in_link.is_symlink() and source.read_bytes() == real.read_bytes()


def test_a_hard_linked_input_as_target(tmp_path: Path, forker: Forker) -> None:
    source = model(tmp_path / "in", "torch.pt")
    twin = tmp_path / "in" / "twin.pt"
    os.link(source, twin)
    before = source.read_bytes()
    assert forker.run("constrain", source, *CAP, "-o", twin).code == 0
    assert source.read_bytes() == before != twin.read_bytes()


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_reports_that_cannot_be_written(tmp_path: Path, forker: Forker, form: str) -> None:
    source = model(tmp_path / "in", "plain.safetensors")
    before = content(source.parent)
    kept = tmp_path / "in" / "report"
    kept.write_text("old report")
    for target, options in (
        (Path("/dev/full"), {}),
        (tmp_path, {}),
        (tmp_path / "absent" / "r", {}),
        (source, {}),
        (tmp_path / ("n" * 300), {}),
        (kept, {"file_size": 20}),
    ):
        outcome = forker.run("inspect", source, "--format", form, "-o", target, **options)
        told(outcome)
        assert outcome.code == 2 and outcome.err.count(b"\n") == 1, (target, outcome)
    assert kept.read_text() == "old report"
    kept.unlink()
    assert content(source.parent) == before


def test_a_failure_is_reported_where_the_report_was_to_go(tmp_path: Path, forker: Forker) -> None:
    report = tmp_path / "report.json"
    source = model(tmp_path / "in", "plain.safetensors")
    for path, code in ((tmp_path / "absent.pt", 2), (source, 0), (tmp_path / "absent.pt", 2)):
        assert forker.run("inspect", path, "--format", "json", "-o", report).code == code
        assert (json.loads(report.read_text()).get("error") is None) == (code == 0)


@pytest.mark.parametrize("form", ["table", "json"])
def test_stdout_that_does_not_take_it(tmp_path: Path, form: str) -> None:
    """A full device is an error in one line; a reader that went away is none; nothing hides a refusal."""
    source = model(tmp_path / "in", "plain.safetensors")
    command = [sys.executable, "-m", "snaudit", "inspect", "--format", form]
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*command, source], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 2 and re.fullmatch(rb"snaudit: .*[Nn]o space.*\n", done.stderr), done
    for path, code in ((source, 0), (tmp_path / "absent.pt", 2)):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run([*command, path], stdout=writing, stderr=subprocess.PIPE, timeout=60)
        os.close(writing)
        assert done.returncode == code and done.stderr.count(b"\n") == (code == 2), done


def test_ctrl_c_of_a_real_process(tmp_path: Path) -> None:
    """From start-up on, imports included: 130 (or the signal's own death), at most one line, no file."""
    source = model(tmp_path / "in", "external.onnx")
    before = content(source.parent)
    codes = []
    for moment in (0.15, 0.3, 0.45):
        process = subprocess.Popen(
            [sys.executable, "-m", "snaudit", "constrain", source, *CAP, "-o", source.parent / "out.onnx"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.terminate()
        error = process.communicate(timeout=60)[1]
        codes.append(process.returncode)
        if process.returncode == 0:
            break
        assert process.returncode in (143, -15) and error.count(b"\n") <= 1 and b"Traceback" not in error, (
            process.returncode,
            error,
        )
        assert content(source.parent) == before
    assert codes[0] != 0


def test_the_new_model_is_the_constrained_one(tmp_path: Path, forker: Forker) -> None:
    """What the sweep calls whole is right: σ of what stands on disk is at the cap, by LAPACK."""
    source = model(tmp_path / "in", "external.onnx")
    assert forker.run("constrain", source, *CAP, "-o", tmp_path / "in" / "out.onnx").code == 0
    held = onnx.load(tmp_path / "in" / "out.onnx")
    sigma = np.linalg.svd(
        numpy_helper.to_array(held.graph.initializer[0]).astype(np.float64), compute_uv=False
    )[0]
    assert 0.5 * (1 - 1e-5) <= sigma <= 0.5 * (1 + 1e-12)


def test_a_signal_that_another_thread_takes_waits_too() -> None:
    import os
    import signal
    import threading
    import time

    from snaudit.interrupts import Interrupted, signals_raise, uninterrupted

    stay = threading.Event()
    thread = threading.Thread(target=stay.wait, daemon=True)
    thread.start()
    done = []
    try:
        with signals_raise(), pytest.raises(Interrupted):
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGHUP)  # blocked here, so the other thread takes it
                time.sleep(0.05)
                done.append("the whole block")
            done.append("not beyond it")
    finally:
        stay.set()
        thread.join()
    assert done == ["the whole block"]
