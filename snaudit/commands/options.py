"""What the commands' options are called, may be, and say. Defaults stand in the commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

MEASURING, SHOWING, LIMITS, WRITING = "Measuring", "Output", "Limits", "Writing"


class Norm(StrEnum):
    l2 = "l2"
    linf = "linf"
    l1 = "l1"


class Method(StrEnum):
    auto = "auto"
    svd = "svd"
    certificate = "certificate"
    lanczos = "lanczos"
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


class Capped(StrEnum):
    operator = "operator"
    matrix = "matrix"
    folded = "folded"


class How(StrEnum):
    scale = "scale"
    normalize = "normalize"
    clip = "clip"
    soft = "soft"


class Accept(StrEnum):
    computed = "computed"
    estimated = "estimated"
    assumed = "assumed"


class Undecided(StrEnum):
    fail = "fail"
    warn = "warn"


def option(panel: str, *names: str, help: str, **more: Any) -> Any:
    """A Typer option in a panel of the help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


MODEL_HELP = "A model file, or a folder that holds one."
WHICH_HELP = "Only layers whose name matches (*, ?, or a dotted part); repeatable."
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", show_default=False, help=MODEL_HELP)]

# measuring
Key = Annotated[
    str | None, option(MEASURING, "--key", metavar="KEY", help="Entry of a nested checkpoint to take.")
]
NormChoice = Annotated[
    Norm, option(MEASURING, "--norm", help="Norm of the layers' and the network's bounds.")
]
MethodChoice = Annotated[
    Method, option(MEASURING, "--method", help="How to enclose a norm; auto picks the best that fits.")
]
Rtol = Annotated[
    float | None,
    option(MEASURING, "--rtol", metavar="X", show_default=False,
           help="Narrow norms of convolutions to this relative width, however long it takes."),
]  # fmt: skip
Iterations = Annotated[
    int, option(MEASURING, "--iterations", min=1, help="Steps of the power-iteration estimate.")
]
Seed = Annotated[int, option(MEASURING, "--seed", min=0, help="Seed of all random starts.")]
DeviceChoice = Annotated[
    Device, option(MEASURING, "--device", help="Where to compute; cuda needs torch.")
]
WitnessSeconds = Annotated[
    float,
    option(MEASURING, "--witness-seconds", metavar="S", min=0.0, max=1e6,
           help="Processor time to seek a pair that the network stretches; 0: do not run the model."),
]  # fmt: skip
Replay = Annotated[
    Path | None,
    option(MEASURING, "--replay", metavar="FILE", show_default=False,
           help="Run the pair saved by --witness instead of seeking one."),
]  # fmt: skip
Threads = Annotated[
    int | None,
    option(MEASURING, "--threads", min=1, metavar="N", show_default=False,
           help="Layers measured at once; default: OMP_NUM_THREADS, else the cores there are."),
]  # fmt: skip
Spectrum = Annotated[bool, option(MEASURING, "--spectrum", help="All singular values, in the JSON.")]
InputSize = Annotated[
    list[str] | None,
    option(MEASURING, "--input-size", metavar="SIZE", show_default=False,
           help="Of a graph's input: N,N,… or NAME=N for a symbolic dimension or an integer; repeatable. Tighter, for this size only."),
]  # fmt: skip
InputRange = Annotated[
    list[str] | None,
    option(MEASURING, "--input-range", metavar="RANGE", show_default=False,
           help="Box of inputs for the network's bound: LO,HI, name=LO,HI or FILE.npz; repeatable."),
]  # fmt: skip
OfOutput = Annotated[
    str | None,
    option(MEASURING, "--of-output", metavar="NAME", show_default=False,
           help="The network's bound of this output alone; default: all, jointly."),
]  # fmt: skip
FromInput = Annotated[
    str | None,
    option(MEASURING, "--from-input", metavar="NAME", show_default=False,
           help="The network's bound with respect to this input alone, all others held fixed."),
]  # fmt: skip
Architecture = Annotated[
    str | None,
    option(MEASURING, "--architecture", metavar="MODULE:NAME", show_default=False,
           help="Code that makes a checkpoint's module, which gives it a graph. Runs that code; needs torch."),
]  # fmt: skip
ArchitectureArgs = Annotated[
    str | None,
    option(MEASURING, "--architecture-args", metavar="JSON", show_default=False,
           help="What that code is called with: a JSON object or list."),
]  # fmt: skip
AllowCode = Annotated[
    bool,
    option(MEASURING, "--allow-code", show_default=False,
           help="DANGER: run the code in a TorchScript file, where its graph cannot be read without. It can do what you "
                "can; the process has limits but is no sandbox. Needs torch."),
]  # fmt: skip
Layers = Annotated[
    list[str] | None,
    option(MEASURING, "--layers", metavar="PATTERN", show_default=False, help=WHICH_HELP),
]
Skip = Annotated[
    list[str] | None,
    option(MEASURING, "--skip", metavar="PATTERN", show_default=False,
           help="Not the layers whose name matches; repeatable."),
]  # fmt: skip

# output
Every = Annotated[bool, option(SHOWING, "--all", help="List every layer and every gap, nothing folded.")]
Sort = Annotated[Order, option(SHOWING, "--sort", help="Largest σ first, or the file's order.")]
FormatChoice = Annotated[Format, option(SHOWING, "--format", help="Form of the report.")]
OutcomeChoice = Annotated[OutcomeFormat, option(SHOWING, "--format", help="Form of the summary.")]
Output = Annotated[
    Path | None,
    option(SHOWING, "--output", "-o", metavar="FILE", show_default=False,
           help="Write the report to FILE instead of stdout."),
]  # fmt: skip
WitnessFile = Annotated[
    Path | None,
    option(SHOWING, "--witness", metavar="FILE", show_default=False,
           help="Write the pair behind the network's lower end to an npz file."),
]  # fmt: skip

# limits
Cap = Annotated[
    float | None,
    option(LIMITS, "--max-sigma", metavar="S", show_default=False,
           help="The cap that no chosen layer may exceed."),
]  # fmt: skip
NetworkCap = Annotated[
    float | None,
    option(LIMITS, "--max-lipschitz", metavar="L", show_default=False,
           help="Change the chosen layers as little as brings the network's bound to L."),
]  # fmt: skip
CapMeasure = Annotated[
    Capped,
    option(LIMITS, "--measure",
           help="Cap the operator that a layer applies, its reshaped weight, or the operator with the scales "
                "around it (BatchNorm, Mul)."),
]  # fmt: skip
HowChoice = Annotated[
    How,
    option(LIMITS, "--how",
           help="scale the whole weight; normalize: also from below; clip only the singular values above "
                "the cap; soft: a smooth clip."),
]  # fmt: skip
Normalize = Annotated[bool, option(LIMITS, "--normalize", help="Short for --how normalize.")]
MaxSigma = Annotated[
    float | None,
    option(LIMITS, "--max-sigma", metavar="S", show_default=False, help="No layer may stretch more."),
]
MaxLipschitz = Annotated[
    float | None,
    option(LIMITS, "--max-lipschitz", metavar="L", show_default=False,
           help="The network as a whole may not stretch more."),
]  # fmt: skip
LimitMeasure = Annotated[
    Measure,
    option(LIMITS, "--measure", help="What --max-sigma limits: the operator, or the reshaped weight."),
]
AcceptChoice = Annotated[
    Accept,
    option(LIMITS, "--accept",
           help="The least grade that may pass; assumed passes all that is below its limit."),
]  # fmt: skip
UndecidedChoice = Annotated[
    Undecided, option(LIMITS, "--undecided", help="What a limit neither proved nor violated does.")
]

# writing
ModelOrNone = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help=r"Default: `model` in \[tool.snaudit] of pyproject.toml, else the folder's only model.",
    ),
]
Target = Annotated[
    Path | None,
    option(WRITING, "--output", "-o", metavar="OUT", show_default=False,
           help="The new model; default MODEL.constrained.EXT."),
]  # fmt: skip
Data = Annotated[
    Path | None,
    option(SHOWING, "--data", metavar="FILE", show_default=False,
           help="Compare a graph's outputs on this input, too: npz by input name, or the only input's npy."),
]  # fmt: skip
KeptReport = Annotated[
    Path | None,
    option(SHOWING, "--report", metavar="FILE", show_default=False, help="Also write what changed to a JSON file."),
]
BalancedTarget = Annotated[
    Path | None,
    option(WRITING, "--output", "-o", metavar="OUT", show_default=False,
           help="The new model; default MODEL.balanced.EXT."),
]  # fmt: skip
Force = Annotated[bool, option(WRITING, "--force", help="Replace OUT if it exists.")]
DryRun = Annotated[bool, option(WRITING, "--dry-run", help="Show the table, write nothing.")]
