"""A part of the package in a process of its own: its answer, its limits, and whatever becomes of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from snaudit.children import Child, ChildFailed, Limits

CODE = """
import os, sys
def answer(request):
    print("said")
    kind = request["kind"]
    if kind == "memory": bytearray(1 << 33)
    if kind == "time":
        while True: pass
    if kind == "sleep": __import__("time").sleep(60)
    if kind == "crash": os.abort()
    if kind == "leave": sys.exit(3)
    if kind == "chatter":
        for _ in range(20_000): print("x" * 10_000)
        raise ValueError("hoarse")
    if kind == "flood": [os.write(fd, b"x" * (1 << 20)) for fd in range(3, 9) if os.path.exists(f"/proc/self/fd/{fd}") for _ in range(80)]
    if kind == "no answer": [os.write(fd, b"[}" + bytes([10])) for fd in range(3, 9) if os.path.exists(f"/proc/self/fd/{fd}")]
    if kind == "orphan":
        import subprocess
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        return {"left": left.pid}, b""
    return {"isolated": bool(sys.flags.isolated)}, request["kind"].encode()
"""


@pytest.fixture(autouse=True)
def _working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "works").mkdir()
    (tmp_path / "works" / "kinds.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "works"), *sys.path])
    (tmp_path / "json.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)


def test_its_answer_and_nothing_else_comes_back() -> None:
    with Child("kinds", {"kind": "right\nbytes"}) as child:
        assert child.answer(60) == ({"isolated": True}, b"right\nbytes")
    assert not Path("ran").exists(), "a module beside the model was imported"


@pytest.mark.parametrize(
    ("kind", "limits", "word"),
    [
        ("memory", Limits(memory=1 << 32), "MemoryError"),
        ("time", Limits(seconds=1), "signal"),
        ("crash", Limits(), "signal 6"),
        ("leave", Limits(), "status 3"),
        ("flood", Limits(), "more than 64 MiB"),
        ("no answer", Limits(), "not JSON"),
    ],
)
def test_what_goes_wrong_there_is_a_reason_here(kind: str, limits: Limits, word: str) -> None:
    with Child("kinds", {"kind": kind}, limits, heard=True) as child:
        with pytest.raises(ChildFailed, match=word) as caught:
            child.answer(60)
    assert not caught.value.late


def test_what_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with Child("kinds", {"kind": "sleep"}) as child, pytest.raises(ChildFailed, match=r"within 0\.2 s") as caught:
        child.answer(0.2)
    assert caught.value.late and child.process.returncode is not None
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ChildFailed, match="no process could be started"):
        Child("kinds", {})


def test_of_what_it_prints_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with Child("kinds", {"kind": "chatter"}, heard=True) as child:
        with pytest.raises(ChildFailed, match="hoarse"):
            child.answer(60)
        assert len(child._said) <= 1 << 16 < 20_000 * 10_000


def test_what_it_started_ends_with_it() -> None:
    with Child("kinds", {"kind": "orphan"}) as child:
        left = child.answer(60)[0]["left"]
    state = Path(f"/proc/{left}/stat")
    for _ in range(500):
        if not state.exists() or state.read_text().split(") ")[1][0] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("it still runs")
