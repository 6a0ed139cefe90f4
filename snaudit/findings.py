"""The values that leave the house: Report and its parts. Plain data, no behaviour, no arrays."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from pathlib import Path

from snaudit import box
from snaudit.bound import NORMS, Bound, Norm
from snaudit.errors import UsageError
from snaudit.factories import factory_of
from snaudit.model import FileRead, LeftOut
from snaudit.sigma.interface import Options, PowerEstimate
from snaudit.sizes import sizes_of


class Verdict(enum.Enum):
    """PASS: upper ≤ limit at the required grade. FAIL: lower > limit. UNDECIDED: neither is known."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Gap:
    """A place where the network's bound ends: no rule, no constant, or a missing fact.

    code is one of a fixed vocabulary (kebab-case); where is the node's name, op its type.
    """

    code: str
    where: str
    op: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something the user must see: a violated limit, a NaN in a weight, an odd file."""

    rule: str
    severity: str
    """"error" | "warning" | "note"."""
    where: str
    message: str
    value: float | None = None
    limit: float | None = None
    ignored: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One matrix with its numbers.

    sigma is of the (reshaped) weight matrix; norm of the layer as the operator that it applies.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    matrix: tuple[int, int]
    uses: int
    sigma: Bound
    power: PowerEstimate | None
    norm: Bound
    frobenius: float
    stable_rank: float | None
    used_by: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    spectrum: tuple[float, ...] | None = None
    condition: float | None = None
    aliases: tuple[str, ...] = ()
    """All stored names of the weight, where there are several."""
    why: tuple[str, str] = ("", "")
    """Why sigma, and why norm, were measured as they were."""


@dataclass(frozen=True, slots=True)
class OutputResult:
    """The bound of one output of the network with respect to all its real inputs."""

    name: str
    bound: Bound
    assumes: tuple[str, ...] = ()
    """What this bound takes for granted beyond what all of the network's do."""


@dataclass(frozen=True, slots=True)
class MethodResult:
    """What one way of bounding the whole network gave."""

    name: str
    bound: Bound
    seconds: float


@dataclass(frozen=True, slots=True)
class PartialResult:
    """The bound between two cuts of a network with gaps: from inputs or gaps, jointly, to a gap or output."""

    start: tuple[str, ...]
    end: str
    bound: Bound


@dataclass(frozen=True, slots=True)
class SectionResult:
    """A stretch between two cuts that was bounded as one: the least bound of all methods.

    taken: whether the network's bound rests on it, rather than on the norms of its parts
    """

    start: str
    end: str
    bound: Bound
    taken: bool
    assumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lever:
    """A layer, and what the bound would be if this layer's norm alone were 1.

    elasticity: by how many percent the composition over the graph grows with one percent of the norm
    bound: what it would be, ESTIMATED, as ranges are taken where the weights are as they are; log10_fall: log₁₀ of how many times less that is
    whole: whether that is the network's bound; else the composition's, where sections have a lesser one
    """

    name: str
    norm: float
    elasticity: float
    bound: Bound
    log10_fall: float
    whole: bool = True

    @property
    def is_passed_once(self) -> bool:
        """Whether the composition is proportional to the norm: all ways pass the layer, each once."""
        return abs(self.elasticity - 1.0) < 1e-9 and abs(self.log10_fall - math.log10(self.norm)) < 1e-9


@dataclass(frozen=True, slots=True)
class Point:
    """One input's part of the two points of a witness: float64 numbers, as bytes."""

    name: str
    shape: tuple[int, ...]
    x: bytes = field(repr=False)
    y: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Witness:
    """Two points between which the network was run: ‖f(x) − f(y)‖/‖x − y‖ is at least `lower`.

    A lower of 0 says that there is none, and `note` why. seconds: of processor time.
    """

    norm: Norm
    lower: float = 0.0
    evaluations: int = 0
    seconds: float = 0.0
    method: str = ""
    points: tuple[Point, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """The whole network's bound (all outputs jointly, all real inputs jointly)."""

    bound: Bound
    outputs: tuple[OutputResult, ...] = ()
    methods: tuple[MethodResult, ...] = ()
    assumptions: tuple[str, ...] = ()
    contributions: tuple[tuple[str, float], ...] = ()
    """(layer name, factor) for each factor of the bound that a layer brings."""
    witness: Witness | None = None
    """What the bound's lower end rests on; None where none was sought."""
    partials: tuple[PartialResult, ...] = ()
    composition: Bound | None = None
    """By the norms of the parts alone, without sections; None where there is no graph."""
    factors: tuple[tuple[str, float], ...] = ()
    """(name, factor) of each layer and op in the composition."""
    besides: tuple[tuple[str, float], ...] = ()
    """Those of them that are no layer's: norms, softmaxes, scales."""
    sections: tuple[SectionResult, ...] = ()
    levers: tuple[Lever, ...] = ()
    notes: tuple[str, ...] = ()
    """What kept the bound from being tighter."""
    scope: str = ""
    """The output, and the input, that the bound is about, in words; "": all outputs, all real inputs."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the audit was asked to do."""

    norm: Norm = "l2"
    device: str = "cpu"
    dtype: str = "float64"
    method: str = "auto"
    iterations: int = 20
    seed: int = 0
    rtol: float | None = None
    """The relative width to which norms are narrowed, however long it takes; None: to 1e-3, as far as
    a budget of time allows."""
    spectrum: bool = False
    key: str | None = None
    input_size: tuple[str, ...] | None = None
    """Sizes of the graph's inputs, as `sizes` reads them."""
    architecture: str | None = None
    """PACKAGE.MODULE:NAME of code that makes the checkpoint's module; it is run."""
    architecture_args: str | None = None
    """What it is called with: a JSON object or list."""
    allow_code: bool = False
    """Whether a TorchScript file may be run for its graph, where that cannot be read from its code."""
    input_range: tuple[float, float] | tuple[str, ...] | None = None
    """The box of inputs that the network's bound is about: (low, high) for all, or specifications as
    `--input-range` takes them."""
    of_output: str | None = None
    """The one output that the network's bound is about; None: all, jointly."""
    from_input: str | None = None
    """The one real input that varies; all others are held fixed. None: all, jointly."""
    witness_seconds: float = 0.0
    """Processor time for a search for the network's lower end; 0: the model is not run."""
    replay: Path | None = None
    """An npz file with a pair of points to run instead of a search."""
    threads: int | None = None
    """How many layers are measured at once; None: as many as there are cores."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(f"norm must be one of {', '.join(NORMS)}, not {self.norm!r}")
        if self.iterations < 0 or self.seed < 0:
            raise UsageError("iterations and seed must not be negative")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, not {self.threads}")
        if self.rtol is not None and not 0 < self.rtol < 1:
            raise UsageError(f"rtol must lie between 0 and 1, not {self.rtol}")
        if not 0.0 <= self.witness_seconds <= 1e6:
            raise UsageError(f"witness_seconds must lie between 0 and 1e6, not {self.witness_seconds}")
        sizes_of(self.input_size or ())
        if self.architecture is not None:
            factory_of(self.architecture, self.architecture_args)
        elif self.architecture_args is not None:
            raise UsageError("--architecture-args needs --architecture")
        if self.allow_code and self.architecture is not None:
            raise UsageError("--allow-code is for TorchScript files, --architecture for checkpoints: give one of them")
        if self.input_range is not None:
            box.check(self.input_range)

    @property
    def width(self) -> float:
        """The relative width that is aimed at."""
        return Options().rtol if self.rtol is None else self.rtol


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The file that the numbers are about."""

    path: str
    format: str
    files: tuple[FileRead, ...]
    tensors: int
    parameters: int
    dtypes: tuple[tuple[str, int], ...]
    """(dtype, number of tensors), most frequent first."""
    graph: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All that an audit found. None of its parts hides another."""

    model: ModelCard
    settings: Settings
    layers: tuple[LayerResult, ...]
    network: NetworkResult
    left_out: tuple[LeftOut, ...] = ()
    gaps: tuple[Gap, ...] = ()
    findings: tuple[Finding, ...] = ()
    verdict: Verdict | None = None
