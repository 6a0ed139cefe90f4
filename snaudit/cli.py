"""The command line: parse, call, exit. Nothing heavy is imported before a command runs.

Exit status: 0 fine · 1 a limit is violated · 2 no verdict (usage, configuration, an unreadable,
refused or empty model, a write that failed) · 3 undecided · 4 an internal error. An interrupted run
ends with 128 + the signal's number.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from snaudit.commands import options as opt
from snaudit.commands import sink
from snaudit.errors import SnauditError, SoundnessError, UsageError
from snaudit.interrupts import Interrupted, interrupt_behind, signals_raise
from snaudit.version import VERSION

INTERNAL_ERROR = 4
WITNESS_SECONDS = 2.0
_DEBUG = "SNAUDIT_DEBUG"
_PARSER_ERROR = typer.BadParameter.__mro__[2]  # ClickException, which newer Typers keep to themselves


app = typer.Typer(
    name="snaudit",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Know, prove and limit how much a neural network can stretch its input.",
    epilog="Exit status: 0 fine · 1 a limit is violated · 2 usage, or a file that cannot be read or "
    "holds nothing to audit · 3 undecided · 4 an internal error.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"snaudit {VERSION}")
        raise typer.Exit()


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


@app.command("inspect")
def _inspect(
    model: opt.ModelArgument,
    key: opt.Key = None,
    norm: opt.NormChoice = opt.Norm.l2,
    method: opt.MethodChoice = opt.Method.auto,
    rtol: opt.Rtol = None,
    iterations: opt.Iterations = 20,
    seed: opt.Seed = 0,
    device: opt.DeviceChoice = opt.Device.cpu,
    threads: opt.Threads = None,
    input_size: opt.InputSize = None,
    architecture: opt.Architecture = None,
    architecture_args: opt.ArchitectureArgs = None,
    allow_code: opt.AllowCode = False,
    witness_seconds: opt.WitnessSeconds = WITNESS_SECONDS,
    replay: opt.Replay = None,
    input_range: opt.InputRange = None,
    of_output: opt.OfOutput = None,
    from_input: opt.FromInput = None,
    spectrum: opt.Spectrum = False,
    layers: opt.Layers = None,
    every: opt.Every = False,
    sort: opt.Sort = opt.Order.sigma,
    format: opt.FormatChoice = opt.Format.table,
    output: opt.Output = None,
    witness: opt.WitnessFile = None,
) -> int:
    """Show σ of every weight matrix, every layer's norm, and the network's Lipschitz bound."""

    def work() -> int:
        sink.check_output(output, model)
        sink.check_witness(witness, output)
        from snaudit.commands.auditing import Wish, inspect

        wish = Wish(model, format.value, output, sort.value, "all" if every else "folded", witness)
        settings = _settings(key, norm, method, rtol, iterations, seed, device, threads, input_size) | {
            "architecture": architecture,
            "architecture_args": architecture_args,
            "allow_code": allow_code,
            "spectrum": spectrum,
            "witness_seconds": witness_seconds,
            "replay": replay,
            **_box(input_range),
            "of_output": of_output,
            "from_input": from_input,
        }
        return inspect(wish, settings, tuple(layers or ()))

    return _run(Request(str(model), format == opt.Format.json, output), work)


@app.command("constrain")
def _constrain(
    model: opt.ModelOrNone = None,
    max_sigma: opt.Cap = None,
    max_lipschitz: opt.NetworkCap = None,
    measure: opt.CapMeasure = opt.Capped.operator,
    how: opt.HowChoice = opt.How.scale,
    normalize: opt.Normalize = False,
    key: opt.Key = None,
    seed: opt.Seed = 0,
    device: opt.DeviceChoice = opt.Device.cpu,
    threads: opt.Threads = None,
    input_size: opt.InputSize = None,
    layers: opt.Layers = None,
    skip: opt.Skip = None,
    output: opt.Target = None,
    force: opt.Force = False,
    dry_run: opt.DryRun = False,
    data: opt.Data = None,
    report: opt.KeptReport = None,
    format: opt.OutcomeChoice = opt.OutcomeFormat.table,
) -> int:
    """Write a copy of the model in which no layer stretches more than the cap."""

    def work() -> int:
        if max_sigma is None and max_lipschitz is None:
            raise UsageError("constrain needs a limit: --max-sigma, --max-lipschitz or both")
        from snaudit.commands.constraining import constrain

        settings = {"key": key, "seed": seed, "device": device.value, "threads": threads}
        settings["input_size"] = tuple(input_size) if input_size else None
        options = {
            "max_lipschitz": max_lipschitz,
            "how": how.value,
            "normalize": normalize,
            "measure": measure.value,
            "layers": tuple(layers or ()),
            "skip": tuple(skip or ()),
            "force": force,
            "dry_run": dry_run,
            "data": data,
        }
        return constrain(model, output, max_sigma, settings, options, format == opt.OutcomeFormat.json, report)

    return _run(Request(None if model is None else str(model), format == opt.OutcomeFormat.json), work)


@app.command("balance")
def _balance(
    model: opt.ModelArgument,
    seed: opt.Seed = 0,
    device: opt.DeviceChoice = opt.Device.cpu,
    threads: opt.Threads = None,
    output: opt.BalancedTarget = None,
    force: opt.Force = False,
    dry_run: opt.DryRun = False,
    format: opt.OutcomeChoice = opt.OutcomeFormat.table,
) -> int:
    """Write a copy of the model that computes the same, with the norms of its layers evened out."""

    def work() -> int:
        from snaudit.commands.evening import balance

        settings = {"seed": seed, "device": device.value, "threads": threads}
        return balance(model, output, settings, force, dry_run, format == opt.OutcomeFormat.json)

    return _run(Request(str(model), format == opt.OutcomeFormat.json), work)


@app.command("check")
def _check(
    model: opt.ModelArgument,
    max_sigma: opt.MaxSigma = None,
    max_lipschitz: opt.MaxLipschitz = None,
    measure: opt.LimitMeasure = opt.Measure.operator,
    accept: opt.AcceptChoice = opt.Accept.computed,
    undecided: opt.UndecidedChoice = opt.Undecided.fail,
    layers: opt.Layers = None,
    skip: opt.Skip = None,
    key: opt.Key = None,
    norm: opt.NormChoice = opt.Norm.l2,
    method: opt.MethodChoice = opt.Method.auto,
    rtol: opt.Rtol = None,
    iterations: opt.Iterations = 20,
    seed: opt.Seed = 0,
    device: opt.DeviceChoice = opt.Device.cpu,
    threads: opt.Threads = None,
    input_size: opt.InputSize = None,
    architecture: opt.Architecture = None,
    architecture_args: opt.ArchitectureArgs = None,
    allow_code: opt.AllowCode = False,
    witness_seconds: opt.WitnessSeconds = WITNESS_SECONDS,
    replay: opt.Replay = None,
    input_range: opt.InputRange = None,
    of_output: opt.OfOutput = None,
    from_input: opt.FromInput = None,
    every: opt.Every = False,
    sort: opt.Sort = opt.Order.sigma,
    format: opt.FormatChoice = opt.Format.table,
    output: opt.Output = None,
    witness: opt.WitnessFile = None,
) -> int:
    """Judge the model against limits: exit 0 if all hold, 1 if one is violated, 3 if undecided."""

    def work() -> int:
        if max_sigma is None and max_lipschitz is None:
            raise UsageError("check needs a limit: --max-sigma, --max-lipschitz or both")
        sink.check_output(output, model)
        sink.check_witness(witness, output)
        from snaudit.commands.auditing import Wish, check

        wish = Wish(model, format.value, output, sort.value, "all" if every else "none", witness)
        limits = {
            "max_sigma": max_sigma,
            "max_lipschitz": max_lipschitz,
            "measure": measure.value,
            "layers": tuple(layers or ()),
            "skip": tuple(skip or ()),
        }
        settings = _settings(key, norm, method, rtol, iterations, seed, device, threads, input_size) | {
            "architecture": architecture,
            "architecture_args": architecture_args,
            "allow_code": allow_code,
            "witness_seconds": witness_seconds,
            "replay": replay,
            **_box(input_range),
            "of_output": of_output,
            "from_input": from_input,
        }
        return check(wish, settings, limits, accept.value, undecided == opt.Undecided.warn)

    return _run(Request(str(model), format == opt.Format.json, output), work)


@app.command("explain")
def _explain(
    topic: Annotated[str, typer.Argument(help="What to explain: ops, the table of ops with a rule, or one op by its name.")],
    format: opt.FormatChoice = opt.Format.table,
) -> int:
    """Show the table of ops that have a rule: since which opset, on which condition, with which constant, and why."""

    def work() -> int:
        from snaudit.commands import explaining

        return explaining.ops(format.value, None if topic == "ops" else topic)

    return _run(Request(None, format == opt.Format.json), work)


def _box(asked: list[str] | None) -> dict[str, Any]:
    return {"input_range": tuple(asked) if asked else None}


def _settings(
    key: str | None,
    norm: opt.Norm,
    method: opt.Method,
    rtol: float | None,
    iterations: int,
    seed: int,
    device: opt.Device,
    threads: int | None,
    input_size: list[str] | None,
) -> dict[str, Any]:
    return {
        "key": key,
        "norm": norm.value,
        "method": method.value,
        "rtol": rtol,
        "iterations": iterations,
        "seed": seed,
        "device": device.value,
        "input_size": tuple(input_size) if input_size else None,
        "threads": threads,
    }


@dataclass(frozen=True, slots=True)
class Request:
    """What an error report needs to know of a run."""

    model: str | None = None
    as_json: bool = False
    output: Path | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    sink.keep_standard_streams_open()
    try:
        with signals_raise():
            return _run(Request(None, _asks_for_json(args)), lambda: _parse_and_call(args))
    except Interrupted as error:  # it came while an end was being made
        _, message, code = _explained(error)
        sink.tell(message)
        return code


def _parse_and_call(args: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(args=args, prog_name="snaudit", standalone_mode=False)
    except _PARSER_ERROR as error:
        raise UsageError(_usage_of(error)) from error
    except SystemExit:  # how the parser leaves when the reader of its help went away
        code = 0
    except OSError as error:  # a command's own errors end in its `_run`: this is help that did not arrive
        sink.give_up_stdout(error)
        code = 0
    sink.settle()
    return code if isinstance(code, int) else 0


def _usage_of(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "snaudit"
    message = " ".join(str(error.format_message()).split()).rstrip(".").replace("Value error, ", "")
    return f"{message[:1].lower()}{message[1:]}; see `{path} --help`"


def _asks_for_json(args: list[str]) -> bool:
    return bool(re.search(r"(^|\0)--format(=|\0)json(\0|$)", "\0".join(args)))


def _run(request: Request, work: Callable[[], int]) -> int:
    """The status of `work`; an error becomes one line on stderr (and, where asked for, JSON)."""
    try:
        return work()
    except BaseException as error:  # an exit or interrupt from below included: none may read as a pass
        kind, message, code = _explained(error)
        if os.environ.get(_DEBUG):
            traceback.print_exc()
    sink.tell(message)
    if request.as_json:
        from snaudit.report import jsonreport

        text = jsonreport.failure(request.model, kind, message, code)
        try:
            if request.output is None:
                sink.emit(text)
            elif sink.may_replace(request.output):
                sink.write_file(request.output, text)
        except (SnauditError, OSError):
            pass  # the line on stderr has gone out, and the status tells the rest
    return code


def _explained(error: BaseException) -> tuple[str, str, int]:
    """(kind, one-line message, exit status) of what ended a run."""
    interrupt = interrupt_behind(error)
    if interrupt is not None:
        signum = getattr(interrupt, "signum", 2)
        return "interrupted", f"interrupted ({interrupt or 'SIGINT'}); no half-written file is left", 128 + signum
    if isinstance(error, SnauditError) and not isinstance(error, SoundnessError):
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(error).__name__).lower()
        return kind, str(error), error.exit_code
    if isinstance(error, MemoryError):
        return "out-of-memory", "not enough memory for this model", 2
    what = str(error) if isinstance(error, SoundnessError) else f"{type(error).__name__}: {error}"
    message = f"internal error (a bug in snaudit, please report it with what {_DEBUG}=1 prints): {what}"
    return "internal-error", message, INTERNAL_ERROR
