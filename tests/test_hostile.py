"""Every file of the corpus goes through the command line, under limits on memory and time.

Asserted of each: the exit status, one printable line on stderr for a refusal and none for an audit,
valid JSON on stdout in either case, true σ for what is audited, and that no payload ever ran.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pytest
from corpus import Case
from forked import Forker, Outcome

from snaudit import formats
from snaudit.errors import ModelError

LINE = re.compile(r"snaudit: (?P<path>.+?): (?P<reason>.+)\n", re.DOTALL)
MEMORY = 400 << 20
"""What a run may need beyond the interpreter: no file of the corpus holds more than 20 MB."""
LONGEST = 10.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def cases(folder: Path) -> list[Case]:
    return corpus.make(folder)


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with Forker() as running:
        yield running


def fault(case: Case, outcome: Outcome, folder: Path) -> str | None:
    """What is wrong with the outcome, or None."""
    fired = os.listdir(folder / "canary")
    if fired:
        for name in fired:
            (folder / "canary" / name).unlink()
        return f"CODE RAN: {fired}"
    if outcome.seconds > LONGEST or outcome.peak > MEMORY:
        return f"took {outcome.seconds:.1f} s and {outcome.peak >> 20} MiB"
    if outcome.code != case.exit_code and not (case.expect == "either" and outcome.code in (0, 2)):
        return f"exit {outcome.code}, not {case.exit_code}: {outcome.err[-300:].decode(errors='replace')}"
    try:
        report = json.loads(
            outcome.out.decode("ascii"),
            parse_constant=lambda text: pytest.fail(f"{case.name}: JSON has {text}"),
        )
    except ValueError as error:
        return f"stdout is no JSON: {error}"
    return _refusal_fault(case, outcome, report) if outcome.code == 2 else _audit_fault(case, outcome, report)


def _refusal_fault(case: Case, outcome: Outcome, report: dict[str, Any]) -> str | None:
    try:
        line = outcome.err.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"stderr is no UTF-8: {error}"
    found = LINE.fullmatch(line)
    if not found or line.count("\n") != 1 or not line[:-1].isprintable():
        return f"stderr is not one printable line: {line[-300:]!a}"
    if len(line) > 1000 + len(str(case.path)) * 4:
        return f"a line of {len(line)} characters"
    if (
        str(case.path).isascii()
        and str(case.path).isprintable()
        and not line.startswith(f"snaudit: {str(case.path.parent)[:150]}")
    ):
        return f"the line does not name the file: {line!a}"
    if case.stderr_contains and not re.search(case.stderr_contains, line):
        return f"{case.stderr_contains!r} is not in {line!a}"
    return (
        None
        if report["error"]["exit"] == 2 and not report["layers"]
        else "the JSON does not tell the refusal"
    )


def _audit_fault(case: Case, outcome: Outcome, report: dict[str, Any]) -> str | None:
    if outcome.err:
        return f"audited, but stderr has {outcome.err[:300]!a}"
    layers = {layer["name"]: layer for layer in report["layers"]}
    if not layers:
        return "audited, and no layer listed"
    if case.matrices is not None and len(layers) != case.matrices:
        return f"{len(layers)} layers, not {case.matrices}: {list(layers)[:9]!a}"
    for name in case.nonfinite:
        layer = layers.get(name)
        if layer is None or layer["sigma"]["upper"] is not None or layer["norm"]["bounded"]:
            return f"{name} is not unbounded"
    for name, truth in (case.sigma or {}).items():
        if name not in layers:
            return f"no layer {name!a}, only {list(layers)[:9]!a}"
        wrong = _wrong(layers[name], truth)
        if wrong:
            return f"{name}: {wrong}"
    if case.says and not re.search(case.says, json.dumps(report, ensure_ascii=False)):
        return f"{case.says!r} is not in the report: {report.get('left_out')!a} {report['findings']!a}"
    return None


def _wrong(layer: dict[str, Any], truth: float) -> str | None:
    """What is wrong with the layer's enclosure of σ; LAPACK's own error allowed for."""
    lower, upper = layer["sigma"]["lower"], layer["sigma"]["upper"]
    slack = 64 * np.finfo(np.float64).eps * truth
    if upper is None or not lower <= truth + slack or not truth <= upper + slack:
        return f"σ = {truth!r} is not in [{lower}, {upper}]"
    return f"[{lower}, {upper}] is loose" if upper > truth * (1 + 1e-6) + 5e-324 else None


def test_corpus(cases: list[Case], forker: Forker, folder: Path) -> None:
    wrong = {}
    for case in cases:
        found = fault(case, forker.run("inspect", case.path, "--format", "json"), folder)
        if found:
            wrong[case.name] = f"rule {case.rule}, {case.expect}: {found}"
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(
        f"{ascii(name)}  {what}" for name, what in wrong.items()
    )


def test_corpus_is_what_it_says(cases: list[Case]) -> None:
    """Each rule of reading is broken by one file and kept by an odd one; few fates are left open."""
    for rule in "123456789":
        assert {"audited", "refused"} <= {c.expect for c in cases if c.rule == rule} | (
            {"refused"} if rule == "8" else set()
        ), rule
    assert sum(c.expect == "either" for c in cases) < len(cases) / 5


def test_a_bad_model_never_passes_a_gate(cases: list[Case], forker: Forker, folder: Path) -> None:
    bad = [c for c in cases if c.expect == "refused"][::9]
    assert len(bad) > 30
    for case in bad:
        outcome = forker.run(
            "check",
            case.path,
            "--max-sigma",
            "1e300",
            "--max-lipschitz",
            "1e300",
            "--accept",
            "assumed",
            "--undecided",
            "warn",
        )
        assert outcome.code == 2 and outcome.err.count(b"\n") == 1, (case.name, outcome)
        capped = forker.run("constrain", case.path, "--max-sigma", "1", "-o", folder / "never.pt")
        assert capped.code == 2 and not (folder / "never.pt").exists(), (case.name, capped)
    assert not os.listdir(folder / "canary")


def test_nan_never_passes_a_gate(cases: list[Case], forker: Forker) -> None:
    sick = [c for c in cases if c.nonfinite]
    assert len(sick) >= 2
    for case in sick:
        assert forker.run("check", case.path, "--max-sigma", "1e300").code in (1, 3), case.name


@pytest.mark.parametrize("form", ["table", "csv"])
def test_names_cannot_act(cases: list[Case], forker: Forker, form: str) -> None:
    """Names of tensors, files, nodes and members reach a terminal or a sheet as printable text only."""
    odd = [c for c in cases if c.rule == "9" and c.expect != "refused"]
    assert len(odd) > 20
    for case in odd:
        outcome = forker.run("inspect", case.path, "--format", form, "--all")
        if case.expect == "either" and outcome.code == 2:
            continue
        assert outcome.code == 0, (case.name, outcome.err)
        lines = outcome.out.decode("utf-8").replace("\r\n", "\n").split("\n")
        assert all(line.isprintable() for line in lines), [ascii(x) for x in lines if not x.isprintable()]
        if form == "csv":
            cells = [cell.strip('"') for line in lines for cell in line.split(",")]
            assert not [c for c in cells if c[:1] in ("=", "+", "@") or re.match(r"-\D", c)], case.name


def test_markup_in_names_is_shown(cases: list[Case], forker: Forker) -> None:
    case = next(c for c in cases if c.name == "st_names.safetensors")
    shown = forker.run("inspect", case.path, "--all").out.decode()
    assert "[red]w[/red]" in shown and "[/]" in shown


@pytest.mark.parametrize("name", ["good.pt", "code_os.system.pt", "cut_at_9.onnx", "zero.pt"])
def test_a_real_process_does_the_same(cases: list[Case], forker: Forker, name: str) -> None:
    case = next(c for c in cases if c.name == name)
    done = subprocess.run(
        [sys.executable, "-m", "snaudit", "inspect", str(case.path)],
        capture_output=True,
        timeout=60,
        env=dict(os.environ),  # without what readline has put into this process's own environment
    )
    forked = forker.run("inspect", case.path)
    assert (done.returncode, done.stdout, done.stderr) == (forked.code, forked.out, forked.err)
    assert done.returncode == case.exit_code


@pytest.mark.parametrize(
    "name",
    [
        "zip_reordered.pt",
        "torch_plain_legacy.pt",
        "st_plain.safetensors",
        "npz_plain.npz",
        "float_in_list.onnx",
        "external_plain.onnx",
    ],
)
def test_a_file_that_shrinks_under_the_reader(cases: list[Case], tmp_path: Path, name: str) -> None:
    """Between opening and loading the file is cut: an error, no SIGBUS and no zeros for weights."""
    case = next(c for c in cases if c.name == name)
    copies = [tmp_path / p.name for p in case.path.parent.iterdir() if p.name in (case.path.name, "w.bin")]
    for copy in copies:
        copy.write_bytes((case.path.parent / copy.name).read_bytes())
    model = formats.read(tmp_path / name)
    held = {tensor.name: tensor for tensor in model.tensors.values()}
    for copy in copies:
        os.truncate(copy, 3)
    for tensor in held.values():
        try:
            tensor.load()
        except ModelError as error:
            assert str(error).count("\n") == 0
        else:
            assert name == "float_in_list.onnx", "weights were loaded from a file that no longer holds them"
