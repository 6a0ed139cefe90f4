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
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from snaudit.commands import sink
from snaudit.errors import SnauditError, SoundnessError, UsageError
from snaudit.version import VERSION

INTERNAL_ERROR = 4
_DEBUG = "SNAUDIT_DEBUG"


class Norm(StrEnum):
    l2 = "l2"
    linf = "linf"
    l1 = "l1"


class Method(StrEnum):
    auto = "auto"
    svd = "svd"
    certificate = "certificate"
    power = "power"


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"
    auto = "auto"


class Order(StrEnum):
    sigma = "sigma"
    order = "order"


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


class OutcomeFormat(StrEnum):
    table = "table"
    json = "json"


class Measure(StrEnum):
    operator = "operator"
    matrix = "matrix"


class Accept(StrEnum):
    computed = "computed"
    estimated = "estimated"
    assumed = "assumed"


class Undecided(StrEnum):
    fail = "fail"
    warn = "warn"


_MEASURING, _SHOWING, _LIMITS, _WRITING = "Measuring", "Output", "Limits", "Writing"

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", show_default=False, help="A model file, or a folder that holds one.")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="Entry of a nested checkpoint to audit.", rich_help_panel=_MEASURING),
]
NormOption = Annotated[
    Norm, typer.Option("--norm", help="Norm of the layers' and the network's bounds.", rich_help_panel=_MEASURING)
]
MethodOption = Annotated[
    Method,
    typer.Option("--method", help="How to enclose a norm; auto picks the best that fits.",
                 rich_help_panel=_MEASURING),
]  # fmt: skip
IterationsOption = Annotated[
    int, typer.Option("--iterations", min=1, help="Steps of the power-iteration estimate.", rich_help_panel=_MEASURING)
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of all random starts.", rich_help_panel=_MEASURING)]
DeviceOption = Annotated[
    Device, typer.Option("--device", help="Where to compute; cuda needs torch.", rich_help_panel=_MEASURING)
]
LayersOption = Annotated[
    list[str] | None,
    typer.Option("--layers", metavar="PATTERN", show_default=False, rich_help_panel=_MEASURING,
                 help="Only layers whose name matches (*, ?, or a dotted part); repeatable."),
]  # fmt: skip
SkipOption = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="PATTERN", show_default=False, rich_help_panel=_MEASURING,
                 help="Not the layers whose name matches; repeatable."),
]  # fmt: skip
AllOption = Annotated[
    bool, typer.Option("--all", help="List every layer and every gap, without folding.", rich_help_panel=_SHOWING)
]
SortOption = Annotated[
    Order, typer.Option("--sort", help="Largest σ first, or the file's order.", rich_help_panel=_SHOWING)
]
FormatOption = Annotated[Format, typer.Option("--format", help="Form of the report.", rich_help_panel=_SHOWING)]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", show_default=False, rich_help_panel=_SHOWING,
                 help="Write the report to FILE instead of stdout."),
]  # fmt: skip

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
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("inspect")
def _inspect(
    model: ModelArgument,
    key: KeyOption = None,
    norm: NormOption = Norm.l2,
    method: MethodOption = Method.auto,
    iterations: IterationsOption = 20,
    seed: SeedOption = 0,
    device: DeviceOption = Device.cpu,
    spectrum: Annotated[
        bool, typer.Option("--spectrum", help="All singular values, in the JSON.", rich_help_panel=_MEASURING)
    ] = False,
    layers: LayersOption = None,
    every: AllOption = False,
    sort: SortOption = Order.sigma,
    format: FormatOption = Format.table,
    output: OutputOption = None,
) -> int:
    """Show σ of every weight matrix, every layer's norm, and the network's Lipschitz bound."""

    def work() -> int:
        sink.check_output(output, model)
        from snaudit.commands.auditing import Wish, inspect

        wish = Wish(model, format.value, output, sort.value, "all" if every else "folded")
        settings = _settings(key, norm, method, iterations, seed, device) | {"spectrum": spectrum}
        return inspect(wish, settings, tuple(layers or ()))

    return _run(Request(str(model), format == Format.json, output), work)


@app.command("constrain")
def _constrain(
    max_sigma: Annotated[
        float,
        typer.Option("--max-sigma", metavar="S", show_default=False, rich_help_panel=_LIMITS,
                     help="The cap that no chosen layer may exceed."),
    ],
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", show_default=False,
                       help=r"Default: `model` in \[tool.snaudit] of pyproject.toml, else the folder's only model."),
    ] = None,
    measure: Annotated[
        Measure,
        typer.Option("--measure", rich_help_panel=_LIMITS,
                     help="Cap the layer as the operator it applies, or its reshaped weight matrix."),
    ] = Measure.operator,
    normalize: Annotated[
        bool, typer.Option("--normalize", rich_help_panel=_LIMITS, help="Bring all to the cap, also from below.")
    ] = False,
    key: KeyOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.cpu,
    layers: LayersOption = None,
    skip: SkipOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", show_default=False, rich_help_panel=_WRITING,
                     help="The new model; default MODEL.constrained.EXT."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=_WRITING, help="Replace OUT if it exists.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=_WRITING, help="Show the table, write nothing.")
    ] = False,
    format: Annotated[
        OutcomeFormat, typer.Option("--format", rich_help_panel=_SHOWING, help="Form of the summary.")
    ] = OutcomeFormat.table,
) -> int:  # fmt: skip
    """Write a copy of the model in which no layer stretches more than the cap."""

    def work() -> int:
        from snaudit.commands.constraining import constrain

        settings = {"key": key, "seed": seed, "device": device.value}
        options = {
            "normalize": normalize, "measure": measure.value, "layers": tuple(layers or ()),
            "skip": tuple(skip or ()), "force": force, "dry_run": dry_run,
        }  # fmt: skip
        return constrain(model, output, max_sigma, settings, options, format == OutcomeFormat.json)

    return _run(Request(None if model is None else str(model), format == OutcomeFormat.json), work)


@app.command("check")
def _check(
    model: ModelArgument,
    max_sigma: Annotated[
        float | None,
        typer.Option("--max-sigma", metavar="S", show_default=False, rich_help_panel=_LIMITS,
                     help="No layer may stretch more."),
    ] = None,
    max_lipschitz: Annotated[
        float | None,
        typer.Option("--max-lipschitz", metavar="L", show_default=False, rich_help_panel=_LIMITS,
                     help="The network as a whole may not stretch more."),
    ] = None,
    measure: Annotated[
        Measure,
        typer.Option("--measure", rich_help_panel=_LIMITS,
                     help="What --max-sigma limits: the operator norm, or σ of the reshaped weight."),
    ] = Measure.operator,
    accept: Annotated[
        Accept,
        typer.Option("--accept", rich_help_panel=_LIMITS,
                     help="The least grade that may pass; assumed lets everything pass that is below its limit."),
    ] = Accept.computed,
    undecided: Annotated[
        Undecided,
        typer.Option("--undecided", rich_help_panel=_LIMITS, help="What a limit neither proved nor violated does."),
    ] = Undecided.fail,
    layers: LayersOption = None,
    skip: SkipOption = None,
    key: KeyOption = None,
    norm: NormOption = Norm.l2,
    method: MethodOption = Method.auto,
    iterations: IterationsOption = 20,
    seed: SeedOption = 0,
    device: DeviceOption = Device.cpu,
    every: AllOption = False,
    sort: SortOption = Order.sigma,
    format: FormatOption = Format.table,
    output: OutputOption = None,
) -> int:  # fmt: skip
    """Judge the model against limits: exit 0 if all hold, 1 if one is violated, 3 if undecided."""

    def work() -> int:
        if max_sigma is None and max_lipschitz is None:
            raise UsageError("check needs a limit: --max-sigma, --max-lipschitz or both")
        sink.check_output(output, model)
        from snaudit.commands.auditing import Wish, check

        wish = Wish(model, format.value, output, sort.value, "all" if every else "none")
        limits = {
            "max_sigma": max_sigma, "max_lipschitz": max_lipschitz, "measure": measure.value,
            "layers": tuple(layers or ()), "skip": tuple(skip or ()),
        }  # fmt: skip
        settings = _settings(key, norm, method, iterations, seed, device)
        return check(wish, settings, limits, accept.value, undecided == Undecided.warn)

    return _run(Request(str(model), format == Format.json, output), work)


def _settings(
    key: str | None, norm: Norm, method: Method, iterations: int, seed: int, device: Device
) -> dict[str, Any]:
    return {
        "key": key, "norm": norm.value, "method": method.value, "iterations": iterations, "seed": seed,
        "device": device.value,
    }  # fmt: skip


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
    with sink.signals_raise():
        return _run(Request(None, _asks_for_json(args)), lambda: _parse_and_call(args))


def _parse_and_call(args: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(args=args, prog_name="snaudit", standalone_mode=False)
    except typer.BadParameter.__mro__[2] as error:  # ClickException: click is not always typer's own name for it
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
    message = " ".join(str(error.format_message()).split()).rstrip(".")
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
            sink.emit(text) if request.output is None else sink.write_file(request.output, text)
        except (SnauditError, OSError):
            pass  # the line on stderr has gone out, and the status tells the rest
    return code


def _explained(error: BaseException) -> tuple[str, str, int]:
    """(kind, one-line message, exit status) of what ended a run."""
    if isinstance(error, SnauditError) and not isinstance(error, SoundnessError):
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(error).__name__).lower()
        return kind, str(error), error.exit_code
    if isinstance(error, (sink.Interrupted, KeyboardInterrupt)):
        signum = getattr(error, "signum", 2)
        return "interrupted", f"interrupted ({str(error) or 'SIGINT'})", 128 + signum
    if isinstance(error, MemoryError):
        return "out-of-memory", "not enough memory for this model", 2
    what = str(error) if isinstance(error, SoundnessError) else f"{type(error).__name__}: {error}"
    message = f"internal error (a bug in snaudit, please report it with what {_DEBUG}=1 prints): {what}"
    return "internal-error", message, INTERNAL_ERROR
