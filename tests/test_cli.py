"""The command line: exit statuses, one line for each error, valid JSON, and output that arrives or not."""

from __future__ import annotations

import inspect as reflection
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import ROOT
from reports import HOSTILE, computed, everything, network, report

from snaudit import cli, constraints, pipeline
from snaudit.bound import Grade
from snaudit.constraints import Change, Outcome
from snaudit.errors import ConstraintError, RefusedModel, SoundnessError, UnreadableModel
from snaudit.findings import Settings
from snaudit.outputs import OutputChange
from snaudit.policy import decide

COMMANDS = typer.main.get_command(cli.app).commands


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("COLUMNS", "NO_COLOR", "SNAUDIT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A pipeline that returns `report` (judged) or raises `error`, and remembers what it was asked."""
    state: dict[str, Any] = {"report": report(), "error": None}

    def fake(path: Path, settings: Any, limits: Any = None, progress: Any = None, only: Any = ()) -> Any:
        state.update(path=path, settings=settings, limits=limits, only=only)
        if progress is not None:
            progress(0, 2, "\x1b[31m")
        if state["error"] is not None:
            raise state["error"]
        findings, verdict = decide(state["report"].layers, state["report"].network, limits)
        return replace(state["report"], findings=state["report"].findings + findings, verdict=verdict)

    monkeypatch.setattr(pipeline, "audit", fake)
    return state


def run(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = cli.main(args)
    out, err = capfd.readouterr()
    return code, out, err


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert text.isascii()
    return json.loads(text, parse_constant=refuse)


# help and usage


def python(*code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False, **options
    )


@pytest.mark.parametrize(
    "args",
    [["--help"], ["check", "--help"], ["check", "m.pt"], ["inspect", "--norm", "l3", "m"], ["--version"]],
)
def test_help_and_usage_errors_import_nothing_heavy(args: list[str]) -> None:
    heavy = ("numpy", "torch", "onnx", "onnx_ir", "onnxruntime", "ml_dtypes", "scipy")
    done = python("-c", f"import sys; from snaudit.cli import main; main({args!r})\n"
                        f"print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)")  # fmt: skip
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_is_quick() -> None:
    """CPU seconds, the best of several: other work on the machine is not our slowness."""
    spent = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python("-m", "snaudit", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.3


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("frob",), "no such command 'frob'"),
        (("inspect",), "missing argument 'MODEL'"),
        (("inspect", "m", "--norm", "l3"), "'--norm'"),
        (("inspect", "m", "--iterations", "0"), "'--iterations'"),
        (("inspect", "m", "--nope"), "no such option"),
        (("check", "m"), "check needs a limit"),
        (("check", "m", "--max-sigma", "nan"), "must be a finite number"),
        (("check", "m", "--max-lipschitz", "-1"), "must be a finite number"),
        (("check", "m", "--x\x1b[31m"), "\\x1b[31m"),
        (("constrain", "m"), "--max-sigma, --max-lipschitz or both"),
        (("inspect", "m", "-o", "/nowhere/at/all"), "its folder does not exist"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_usage_error_is_one_line(
    capfd: pytest.CaptureFixture[str], args: tuple[str, ...], said: str, as_json: bool
) -> None:
    code, out, err = run(capfd, *args, *(["--format", "json"] if as_json else []))
    if as_json and "-o" not in args:
        document = strict(out)
        assert document["error"]["exit"] == 2 and document["error"]["kind"] == "usage-error"
    else:
        assert out == ""
    assert code == 2
    assert err.startswith("snaudit: ") and err.count("\n") == 1 and said in err and err[:-1].isprintable()


def test_no_command_is_no_success(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd) == (2, "", "snaudit: missing command; see `snaudit --help`\n")


def test_version_and_help(capfd: pytest.CaptureFixture[str]) -> None:
    from snaudit.version import VERSION

    assert run(capfd, "--version") == (0, f"snaudit {VERSION}\n", "")
    code, out, err = run(capfd, "constrain", "--help")
    assert (code, err) == (0, "") and "[tool.snaudit]" in out and "--max-sigma" in out


def test_defaults_are_those_of_the_library() -> None:
    """The command line cannot import Settings before it knows that it must: so they are held equal here."""
    for command in (cli._inspect, cli._check, cli._constrain):
        for name, parameter in reflection.signature(command).parameters.items():
            if name == "witness_seconds":  # the library runs no model unasked
                assert (parameter.default, Settings().witness_seconds) == (cli.WITNESS_SECONDS, 0.0)
            elif name in Settings.__dataclass_fields__:
                assert parameter.default == getattr(Settings(), name), (command, name)
    options = reflection.signature(constraints.constrain).parameters
    for name, parameter in reflection.signature(cli._constrain).parameters.items():
        if name in options and options[name].default is not reflection.Parameter.empty and name in (
            "how", "normalize", "measure", "force", "dry_run"
        ):
            assert parameter.default == options[name].default, name


# verdicts


@pytest.mark.parametrize("form", ["table", "json", "csv"])
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--max-sigma", "2"), 0),
        (("--max-sigma", "1.9"), 1),
        (("--max-lipschitz", "13"), 0),
        (("--max-lipschitz", "12"), 3),
        (("--max-lipschitz", "12", "--undecided", "warn"), 0),
        (("--max-sigma", "1", "--max-lipschitz", "12", "--undecided", "warn"), 1),
        (("--max-sigma", "1", "--max-lipschitz", "12"), 1),
    ],
)
def test_check_exits_with_its_verdict(
    capfd: pytest.CaptureFixture[str], audit: dict[str, Any], args: tuple[str, ...], code: int, form: str
) -> None:
    got, out, err = run(capfd, "check", "m.pt", *args, "--format", form)
    assert got == code
    if "warn" in args and code == 0:
        assert "let through by --undecided warn" in err
    if form == "json":
        expected = "fail" if code == 1 else "undecided" if "12" in args else "pass"
        assert strict(out)["verdict"] == expected
    said = out if form == "table" else err
    if code == 1:
        assert len(re.findall(r"fc.weight: operator norm is at least 2.0000, above the limit", said)) == 1
        assert "FAIL: 1 limit violated" in said
    assert ("PASS" in said) == (code == 0 and "warn" not in args)


def test_assumed_bounds_pass_only_when_accepted(
    capfd: pytest.CaptureFixture[str], audit: dict[str, Any]
) -> None:
    audit["report"] = report(network=network(2.0, Grade.ASSUMED))
    base = ("check", "m.pt", "--max-lipschitz", "3")
    accepted = ((), ("--accept", "estimated"), ("--accept", "assumed"))
    assert [run(capfd, *base, *more)[0] for more in accepted] == [3, 3, 0]


def test_a_nan_weight_never_passes(capfd: pytest.CaptureFixture[str], audit: dict[str, Any]) -> None:
    audit["report"] = everything()
    assert run(capfd, "check", "m.pt", "--max-sigma", "1e9")[0] == 3
    assert run(capfd, "inspect", "m.pt")[0] == 0


def test_options_arrive(capfd: pytest.CaptureFixture[str], audit: dict[str, Any]) -> None:
    args = ("--norm", "linf", "--method", "svd", "--iterations", "7", "--seed", "3", "--key", "ema")
    run(capfd, "inspect", "m.pt", *args, "--layers", "a*", "--layers", "b", "--spectrum", "--witness-seconds", "5")
    expected = Settings("linf", "cpu", "float64", "svd", 7, 3, spectrum=True, key="ema", witness_seconds=5.0)
    assert audit["settings"] == expected
    assert (audit["only"], audit["limits"], audit["path"]) == (("a*", "b"), None, Path("m.pt"))
    more = ("--max-sigma", "5", "--measure", "matrix", "--layers", "fc", "--skip", "fc.*")
    run(capfd, "check", "m.pt", *args, *more)
    limits = audit["limits"]
    assert (limits.max_sigma, limits.max_lipschitz, limits.measure) == (5.0, None, "matrix")
    assert (limits.required, limits.layers, limits.skip) == (Grade.COMPUTED, ("fc",), ("fc.*",))


# errors


@pytest.mark.parametrize("command", [("inspect",), ("check", "--max-sigma", "1")])
@pytest.mark.parametrize(
    ("error", "code", "kind", "line"),
    [
        (UnreadableModel("m\x1b[2J.pt", "cut off\nin the middle"), 2, "unreadable-model",
         "snaudit: m\\x1b[2J.pt: cut off\\nin the middle"),
        (RefusedModel("m.pt", "would call f"), 2, "refused-model", "snaudit: m.pt: would call f"),
        (SoundnessError("two proofs"), 4, "internal-error", "a bug in snaudit"),
        (ZeroDivisionError("oops"), 4, "internal-error", "ZeroDivisionError: oops"),
        (RecursionError(), 4, "internal-error", "RecursionError"),
        (SystemExit(0), 4, "internal-error", "SystemExit"),
        (MemoryError(), 2, "out-of-memory", "not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted", "interrupted"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_an_error_is_one_line_and_its_status(
    capfd: pytest.CaptureFixture[str], audit: dict[str, Any], command: tuple[str, ...], error: BaseException,
    code: int, kind: str, line: str, form: str,
) -> None:  # fmt: skip
    audit["error"] = error
    got, out, err = run(capfd, command[0], "m.pt", *command[1:], "--format", form)
    assert got == code
    assert err.startswith("snaudit: ") and line in err and err.count("\n") == 1 and "Traceback" not in err
    if form == "json":
        document = strict(out)
        assert document["error"]["kind"] == kind and document["error"]["exit"] == code
        assert document["model"]["path"] == "m.pt" and document["layers"] == []
        assert document["verdict"] is None
    else:
        assert out == ""


def test_debug_shows_the_traceback(
    capfd: pytest.CaptureFixture[str], audit: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    audit["error"] = ZeroDivisionError("oops")
    monkeypatch.setenv("SNAUDIT_DEBUG", "1")
    code, _, err = run(capfd, "inspect", "m.pt")
    assert code == 4 and "Traceback" in err


# output


def test_piped_output_is_plain_and_as_wide_as_asked(
    capfd: pytest.CaptureFixture[str], audit: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    audit["report"] = everything()
    texts = {}
    for columns in (None, "80", "200", "0", "1", "-5", "x", "9" * 30):
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns is not None:
            monkeypatch.setenv("COLUMNS", columns)
        code, texts[columns], err = run(capfd, "inspect", "m.pt")
        assert (code, err) == (0, "") and "\x1b" not in texts[columns]
    assert texts[None] == texts["0"] == texts["-5"] == texts["x"] == texts["9" * 30]
    assert len({texts[None], texts["80"], texts["200"], texts["1"]}) == 4
    assert "[2.1000, 3.7001]" in texts["200"]


def test_output_file_is_whole_and_stdout_empty(
    capfd: pytest.CaptureFixture[str], audit: dict[str, Any], tmp_path: Path
) -> None:
    target = tmp_path / "r.json"
    target.write_text("old")
    target.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(target)
    code, out, err = run(capfd, "check", "m.pt", "--max-sigma", "1", "--format", "json", "-o", str(link))
    assert (code, out) == (1, "") and "written to" in err and "fc.weight: operator norm" in err
    assert strict(target.read_text())["verdict"] == "fail"
    assert link.is_symlink() and stat.S_IMODE(target.stat().st_mode) == 0o640
    audit["error"] = UnreadableModel("m.pt", "truncated")
    code, out, _ = run(capfd, "check", "m.pt", "--max-sigma", "1", "--format", "json", "-o", str(link))
    assert (code, out, strict(target.read_text())["error"]["exit"]) == (2, "", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "r.json"]


def test_output_never_replaces_the_model_or_a_device(
    capfd: pytest.CaptureFixture[str], audit: dict[str, Any], tmp_path: Path
) -> None:
    model = tmp_path / "m.pt"
    model.write_bytes(b"weights")
    code, _, err = run(capfd, "inspect", "m.pt", "-o", "m.pt")
    assert code == 2 and "is the model itself" in err and model.read_bytes() == b"weights"
    assert run(capfd, "inspect", "m.pt", "-o", "/dev/null")[0] == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    code, _, err = run(capfd, "inspect", "m.pt", "-o", "/dev/full")
    assert code == 2 and err == "snaudit: /dev/full: No space left on device\n"
    assert run(capfd, "inspect", "m.pt", "-o", str(tmp_path))[0] == 2


def driven(body: str, *args: str, shell: str = "") -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own, over a pipeline made of `body`."""
    code = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from dataclasses import replace\n"
        "from reports import report, everything, layer, HOSTILE\n"
        "from snaudit import cli, pipeline\n"
        "from snaudit.policy import decide\n"
        "def audit(path, settings, limits=None, progress=None, only=()):\n"
        f"    {body}\n"
        "    findings, verdict = decide(made.layers, made.network, limits)\n"
        "    return replace(made, findings=findings, verdict=verdict)\n"
        "pipeline.audit = audit\n"
        f"sys.exit(cli.main({list(args)!r}))"
    )
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {shell}', sys.executable, code],
        capture_output=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip


BIG = "made = replace(report(), layers=tuple(layer(f'a{i}', dtype=str(i)) for i in range(3000)))"


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_a_reader_that_leaves_changes_nothing(form: str) -> None:
    """The status stays the verdict's, and stderr stays as quiet as it was."""
    done = driven(BIG, "check", "m", "--max-lipschitz", "12", "--format", form, "--all", shell="| head -c 10")
    assert done.returncode == 3 and b"Traceback" not in done.stderr and b"Broken" not in done.stderr
    done = driven(BIG, "inspect", "m", "--format", form, shell="| true")
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_into_a_closed_pipe_is_no_finding() -> None:
    for args in (("--help",), ("--version",)):
        done = driven("made = report()", *args, shell="| true")
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("args", [("inspect", "m"), ("inspect", "m", "--format", "json"), ("--version",)])
@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
def test_a_full_or_closed_stdout_is_one_line(args: tuple[str, ...], where: str) -> None:
    done = driven("made = report()", *args, shell=where)
    if args == ("--version",) and where == ">&-":
        assert done.returncode == 0 and b"Traceback" not in done.stderr
        return
    assert done.returncode == 2
    assert done.stderr.startswith(b"snaudit: stdout") and done.stderr.count(b"\n") == 1


def test_a_closed_stderr_does_not_hurt() -> None:
    done = driven("made = report()", "check", "m", "--max-sigma", "1", "--format", "json", shell="2>&-")
    assert done.returncode == 1 and json.loads(done.stdout)["verdict"] == "fail"


def test_an_ascii_terminal_gets_ascii() -> None:
    body = "made = replace(everything(), layers=everything().layers + tuple(layer(n) for n in HOSTILE))"
    for encoding in ("ascii:strict", "latin-1:strict"):
        done = driven(f"{body}; sys.stdout.reconfigure(encoding={encoding.split(':')[0]!r}, errors='strict')",
                      "inspect", "m", "--all")  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii() and b"sigma" in done.stdout


def on_a_terminal(**environment: str) -> bytes:
    """All that a slow inspect writes to a terminal that is both its stdout and its stderr."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from reports import everything\n"
        "from snaudit import cli, pipeline\n"
        "from snaudit.commands import sink\n"
        "sink._QUIET_SECONDS = 0.0\n"
        "def audit(path, settings, limits, progress, only):\n"
        "    progress(1, 3, '\\x1b[2J[red]name')\n"
        "    return everything()\n"
        "pipeline.audit = audit\n"
        "sys.exit(cli.main(['inspect', 'm']))"
    )
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower, cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment},
    )  # fmt: skip
    os.close(follower)
    parts = []
    with open(leader, "rb", buffering=0) as terminal:
        try:
            while part := terminal.read(65536):
                parts.append(part)
        except OSError:  # how a terminal says that its last writer has gone
            pass
    assert process.wait(timeout=30) == 0
    return b"".join(parts)


def test_on_a_terminal_there_is_progress_and_colour_unless_unwanted() -> None:
    seen = on_a_terminal()
    assert b"1/3" in seen and b"\\x1b[2J[red]name" in seen and b"\x1b[2J" not in seen
    report_of = seen[seen.index(b"model.pt") - 8 :]
    assert b"\x1b[1m" in report_of and b"FAIL" in report_of
    quiet = on_a_terminal(NO_COLOR="1")
    assert b"\x1b" not in quiet[quiet.rindex(b"model.pt\r") :]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_one_line(tmp_path: Path, signum: int, code: int) -> None:
    started = tmp_path / "started"
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from snaudit import cli, pipeline\n"
        "def audit(*a, **k):\n"
        f"    Path({str(started)!r}).touch()\n"
        "    time.sleep(60)\n"
        "pipeline.audit = audit\n"
        "sys.exit(cli.main(['check', 'm', '--max-sigma', '1', '--format', 'json']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    until = time.monotonic() + 30
    while not started.exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.count(b"\n") == 1 and err.startswith(b"snaudit: interrupted")
    assert strict(out.decode())["error"] == {
        "kind": "interrupted", "message": err.decode().removeprefix("snaudit: ").strip(), "exit": code,
    }  # fmt: skip


# constrain


@pytest.fixture
def rewriting(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A constrain that remembers what it was asked, and returns an outcome or raises `error`."""
    state: dict[str, Any] = {"error": None}

    def fake(path: Path, target: Path | None = None, max_sigma: float = 1.0, **options: Any) -> Outcome:
        state.update(path=path, target=target, max_sigma=max_sigma, **options)
        if state["error"] is not None:
            raise state["error"]
        changes = tuple(
            Change(name, "Conv", "float16", "operator", computed(2, 3.00001), computed(0.9, 1), 0.25, True)
            for name in HOSTILE
        ) + (Change("kept", "Linear", "float16", "operator", computed(0.5), computed(0.5), 0.0, False),)
        return Outcome(str(path), "out.pt", not options["dry_run"], "operator", max_sigma, changes,
                       ("a [bold]note[/]\x1b[31m",), (OutputChange("y\x1b", 0.5, float("nan")),))  # fmt: skip

    monkeypatch.setattr(constraints, "constrain", fake)
    return state


def test_constrain_shows_what_changed(capfd: pytest.CaptureFixture[str], rewriting: dict[str, Any]) -> None:
    code, out, err = run(capfd, "constrain", "m.pt", "--max-sigma", "1.0")
    assert (code, err) == (0, "") and all(line.isprintable() for line in out.split("\n"))
    counts = f"{len(HOSTILE)} of {len(HOSTILE) + 1} scaled to 1, 1 left bit for bit"
    assert out.splitlines()[-1] == f"{counts}; written to out.pt"
    assert "[red]markup[/red]" in out and "3.0001" in out and "25.00%" in out and "operator norm ≤ 1" in out
    code, out, _ = run(capfd, "constrain", "m.pt", "--max-sigma", "1", "--dry-run", "--format", "json")
    document = strict(out)
    assert code == 0 and document["schema"] == "snaudit.constrain/1" and document["written"] is False
    assert [change["name"] for change in document["changes"]] == [*HOSTILE, "kept"]
    assert document["outputs"] == [
        {"name": "y\x1b", "max_relative": 0.5, "mean_relative": None, "on": "random input", "top1_agreement": None, "rows": 0}
    ]


def test_constrain_options_arrive(capfd: pytest.CaptureFixture[str], rewriting: dict[str, Any]) -> None:
    run(capfd, "constrain", "--max-sigma", "0.5", "m.pt", "-o", "n.pt", "--how", "clip", "--normalize", "--measure", "matrix",
        "--layers", "a", "--skip", "b", "--force", "--key", "k")  # fmt: skip
    expected = {
        "path": Path("m.pt"), "target": Path("n.pt"), "max_sigma": 0.5, "how": "clip", "normalize": True,
        "measure": "matrix", "layers": ("a",), "skip": ("b",), "force": True, "dry_run": False,
        "settings": Settings(key="k"),
    }  # fmt: skip
    assert {key: rewriting[key] for key in expected} == expected


def test_constrain_finds_the_only_model(
    capfd: pytest.CaptureFixture[str], rewriting: dict[str, Any], tmp_path: Path
) -> None:
    command = ("constrain", "--max-sigma", "1")
    code, _, err = run(capfd, *command)
    assert code == 2 and "none in this folder" in err and err.count("\n") == 1
    (tmp_path / "notes.txt").touch()
    for name in ("model.pt", "model.constrained.pt", "model.balanced.pt"):
        (tmp_path / name).touch()
    assert run(capfd, *command)[0] == 0 and rewriting["path"] == Path("model.pt")
    (tmp_path / "other\x1b.onnx").touch()
    code, out, err = run(capfd, *command, "--format", "json")
    assert code == 2 and "holds 2: model.pt, other\\x1b.onnx" in err
    assert strict(out)["error"]["exit"] == 2
    (tmp_path / "pyproject.toml").write_text('[tool.snaudit]\nmodel = "weights/best.pt"\n')
    assert run(capfd, *command)[0] == 0 and rewriting["path"] == Path("weights/best.pt")
    assert run(capfd, *command, "given.pt")[0] == 0 and rewriting["path"] == Path("given.pt")
    for wrong in ("[tool.snaudit]\nmodel = 3", "[tool", '[tool.snaudit]\nmodel = ""'):
        (tmp_path / "pyproject.toml").write_text(wrong)
        code, _, err = run(capfd, *command)
        assert code == 2 and "pyproject.toml" in err and err.count("\n") == 1


def test_constrain_errors(capfd: pytest.CaptureFixture[str], rewriting: dict[str, Any]) -> None:
    rewriting["error"] = ConstraintError("fc: holds NaN")
    assert run(capfd, "constrain", "m.pt", "--max-sigma", "1")[::2] == (2, "snaudit: fc: holds NaN\n")


# the README


def test_the_readme_knows_every_command_option_and_status() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        assert f"snaudit {name}" in readme
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--") and option != "--help":
                    assert option in readme, f"{name} {option}"
    for code in range(5):
        assert re.search(rf"^\|\s*`?{code}`?\s*\|", readme, re.MULTILINE), f"no row for exit status {code}"


def test_a_report_replaces_a_report_and_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = Path(__file__).parent.parent / "sample_models"
    model = tmp_path / "model.safetensors"
    model.write_bytes((samples / "known.safetensors").read_bytes())
    args = ["inspect", str(model), "--format", "json", "-o"]
    for _ in range(2):
        assert cli.main([*args, str(tmp_path / "report.json")]) == 0
    for name in ("pnet.pt", "box_blur.onnx"):
        other = tmp_path / name
        other.write_bytes((samples / name).read_bytes())
        assert cli.main([*args, str(other)]) == 2
        assert "is a model file: a report does not replace it" in capsys.readouterr().err
        assert other.read_bytes() == (samples / name).read_bytes()
