"""TorchScript: the graph read from its code computes what torch computes, and its code is never run."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_exported_programs import SINGLE, Residual, outputs_of, rand
from torch import nn
from torch.nn import functional as F

import snaudit
from snaudit import formats
from snaudit.errors import ModelError, UsageError
from snaudit.formats.exported_program import NotTaken
from snaudit.formats.script_values import Num, applied
from snaudit.model import Model

HEAVY = {"torch", "onnxruntime"}


def scripted(module: nn.Module, path: Path, *inputs: Any, trace: bool = True) -> Path:
    with warnings.catch_warnings(), torch.no_grad():  # where torch fuses attention
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; its files live on
        made = torch.jit.trace(module.eval(), inputs, check_trace=False) if trace else torch.jit.script(module.eval())
        made.save(str(path))
    return path


def agree(module: nn.Module, path: Path, *inputs: torch.Tensor, trace: bool = True) -> Model:
    """Nothing is left opaque, and onnxruntime computes what torch does."""
    sizes = tuple(",".join(map(str, x.shape)) for x in inputs)
    model = formats.read(scripted(module, path, *inputs, trace=trace), None, sizes)
    assert model.graph is not None and not any("not translated" in note for note in model.notes), model.notes
    with torch.no_grad():
        wanted = module(*inputs)
    found = outputs_of(model, inputs)
    for mine, its in zip(found, [wanted] if isinstance(wanted, torch.Tensor) else wanted, strict=True):
        assert mine.shape == tuple(its.shape)
        assert np.abs(mine - its.numpy()).max() <= SINGLE * max(1.0, float(its.abs().max()))
    return model


class Attending(nn.Module):
    """A pre-norm block whose heads are cut by the sizes of its input, as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * (d // 2) ** -0.5
        scores = scores.masked_fill(torch.ones(n, n).triu(1) == 1, float("-inf"))
        return x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.heads(y, y, y, need_weights=False)[0]


class Cell(nn.Module):
    """Steps written out, whose gates are parts of one product, written into in place."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(x.size(0), 4)
        for t in range(x.size(1)):
            h = self.cell(x[:, t], h)
        return self.head(h)


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.mid, self.up = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = F.leaky_relu(self.down(x), 0.1)
        y = F.relu(self.mid(F.max_pool2d(skip, 2)))
        y = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.up(torch.cat([y, skip], 1)).clamp(-1.0, 1.0)


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        made = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
        self.cell, self.head = made(3, 4, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Steps(nn.Module):
    """A loop, a list, a condition on a size and a number for an argument: what only scripting keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor, times: int = 3, scale: float = 0.5) -> torch.Tensor:
        seen = [x]
        for i in range(times):
            if i % 2 == 0 and x.size(0) < 10:
                x = self.layers[0](x).relu()
            else:
                x = self.layers[1](x) * scale
            seen.append(x)
        while len(seen) > 3:
            seen.pop()
        return torch.stack(seen, 0).sum(0)


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (1, 2, 6, 6)), "attention": (Attending, (2, 5, 8)), "unet": (Unet, (1, 2, 8, 8)),
    "lstm": (lambda: Recurrent("lstm"), (2, 5, 3)), "gru": (lambda: Recurrent("gru"), (2, 5, 3)),
    "rnn": (lambda: Recurrent("rnn"), (2, 5, 3)), "heads": (Heads, (1, 5, 8)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True), (1, 5, 8)),
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), (3, 4)),
}  # fmt: skip


def test_fused_layers_and_cells(tmp_path: Path) -> None:
    """Those whose bound is a gap: attention without a norm before it; those of cells written out are products."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = agree(layer, tmp_path / "m.pt", rand(2, 5, 8))
    assert all(node.domain == "" for node in model.graph.graph)
    agree(Cell(), tmp_path / "m.pt", rand(2, 3, 3))
    agree(Cell(), tmp_path / "m.pt", rand(2, 3, 3), trace=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normed = nn.utils.spectral_norm(nn.Linear(4, 3))
    agree(normed, tmp_path / "m.pt", rand(2, 4))


@pytest.mark.parametrize("trace", [True, False], ids=["traced", "scripted"])
@pytest.mark.parametrize("name", MODULES)
def test_its_graph_computes_what_it_computes(name: str, trace: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape = MODULES[name]
    agree(make(), tmp_path / "m.pt", rand(*shape), trace=trace)


class Making(nn.Module):
    """Tensors of numbers that stand in the code, of which those of the steps may be rounded."""

    def __init__(self, low: float = -1.0, high: float = 1.0, count: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(count, 5)
        self.low, self.high, self.count = low, high, count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x + torch.linspace(self.low, self.high, self.count)) @ torch.eye(5)
        y = y @ torch.tril(torch.ones(5, 5)) @ torch.eye(5, 7)
        return y + torch.tensor([0.1, 2.0, 3.0, 4.0, 5.0, 6.0, 0.7]) * torch.linspace(3.0, 0.0, 7)


class Logarithmic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + torch.logspace(0.0, 1.0, 6)


def test_numbers_in_the_code_are_constants(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for trace in (True, False):
        agree(Making(), tmp_path / "m.pt", rand(3, 5), trace=trace)
    torch.export.save(torch.export.export(Making(), (rand(3, 5),)), tmp_path / "m.pt2")
    graph = formats.read(tmp_path / "m.pt2").graph
    assert graph is not None and all(node.domain == "" for node in graph.graph)


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_numbers_that_machines_round_differently_are_not_known(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    nets = [(Making(0.0, 1.0, 6), 6), (Making(1e9, 1e9 + 1.0, 3), 3), (Making(0.0, 1e-40, 3), 3), (Logarithmic(), 3)]
    for net, size in nets:
        if suffix == ".pt":
            scripted(net, path, trace=False)
        else:
            torch.export.save(torch.export.export(net, (rand(2, size),)), path)
        model = formats.read(path, None, (f"2,{size}",) if suffix == ".pt" else ())
        assert model.graph is not None, model.notes
        unknown = [node.op_type for node in model.graph.graph if node.domain]
        assert unknown == ["logspace.default" if isinstance(net, Logarithmic) else "linspace.default"]


ALIKE = ("residual", "lstm", "gru", "mlp")
"""Those that torch's ONNX exporter writes with the same ops; in others it takes apart what stays whole here."""


@pytest.mark.parametrize("name", MODULES)
def test_its_bound_holds_and_is_that_of_the_onnx_export(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape = MODULES[name]
    net, x = make().eval(), rand(*shape)
    path = scripted(net, tmp_path / "m.pt", x)
    mine = snaudit.audit(path, input_size=(",".join(map(str, shape)),)).network
    assert mine.bound.bounded and mine.bound.grade.name == "PROVED"
    net = net.double()
    points = [x.double() * scale for scale in (0.0, 0.3, 1.0)]
    seen = max(
        float(torch.linalg.matrix_norm(torch.autograd.functional.jacobian(net, p).reshape(-1, x.numel()), 2)) for p in points
    )
    assert 0.0 < seen <= mine.bound.upper
    if name not in ALIKE:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.float(), (x,), tmp_path / "m.onnx", dynamo=True, optimize=False, verbose=False)
    norm = "l2" if name in ("lstm", "gru") else "linf"
    size = ",".join(map(str, shape))
    mine, its = (
        snaudit.audit(tmp_path / file, norm=norm, input_size=sized).network for file, sized in (("m.pt", (size,)), ("m.onnx", None))
    )

    def composed(network: Any) -> float:
        return next((m.bound.upper for m in network.methods if "composition" in m.name), network.bound.upper)

    assert composed(mine) == pytest.approx(composed(its), rel=1e-5)


def test_the_graph_costs_no_torch_and_runs_nothing(tmp_path: Path) -> None:
    path = scripted(Unet(), tmp_path / "m.pt", rand(1, 2, 8, 8))
    code = (
        "import sys, snaudit.cli\n"
        f"done = snaudit.cli.main(['check', {str(path)!r}, '--input-size', '1,2,8,8', '--max-lipschitz', '100', "
        "'--witness-seconds', '0'])\n"
        f"print(done, sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.strip().splitlines()[-1] == "0 []", done.stderr + done.stdout


def test_loops_lists_and_numbers_are_followed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Steps().eval(), rand(2, 4)
    path = scripted(net, tmp_path / "m.pt", trace=False)
    for sizes, arguments in ((("2,4",), ()), (("x=2,4", "times=5"), (5,)), (("times=2", "x=2,4", "scale=2"), (2, 2.0))):
        model = formats.read(path, None, sizes)
        assert np.abs(outputs_of(model, (x,))[0] - net(x, *arguments).detach().numpy()).max() < 1e-5
    for wrong in ("y=2,4", "times=2"):
        with pytest.raises(UsageError, match="forward takes x, times, scale"):
            formats.read(path, None, (wrong,))


def test_indices_are_taken_as_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    ids = torch.tensor([[1, 8, 0]])
    path = scripted(net, tmp_path / "m.pt", ids)
    model = formats.read(path, None, ("1,3",))
    assert np.abs(outputs_of(model, (ids,))[0] - net(ids).detach().numpy()).max() < 1e-6
    assert any("as integers: input" in note for note in model.notes)


def test_without_a_size_it_says_how_to_get_a_graph(tmp_path: Path) -> None:
    path = scripted(nn.Sequential(nn.Linear(3, 2)), tmp_path / "m.pt", rand(1, 3))
    report = snaudit.audit(path)
    assert report.network.bound.grade.name == "ASSUMED" and not report.model.graph
    assert any("--input-size" in note for note in report.model.notes)
    with pytest.raises(UsageError, match="--key"):
        formats.read(path, "0", ("1,3",))


def doubled(self: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (given[0] * 2,)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_hooks_run_where_torch_runs_them(tmp_path: Path) -> None:
    """A part's hooks stand in the code that calls it; those of the whole run around its forward, unseen there."""
    net = Outer()
    net.inner.register_forward_pre_hook(doubled)
    agree(net, tmp_path / "m.pt", rand(1, 2), trace=False)
    net.register_forward_pre_hook(doubled)
    model = formats.read(scripted(net, tmp_path / "m.pt", trace=False), None, ("1,2",))
    assert model.graph is None and any("hooks" in note for note in model.notes)


def test_code_that_differs_in_case_only_has_no_graph(tmp_path: Path) -> None:
    path = scripted(nn.Sequential(nn.Linear(3, 2)), tmp_path / "m.pt", rand(1, 3))
    with zipfile.ZipFile(path, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith(".py"))
        archive.writestr(name.replace("code/__torch__", "code/__TORCH__"), archive.read(name))
    model = formats.read(path, None, ("1,3",))
    assert model.graph is None and any("only in case" in note for note in model.notes)


class Restored(nn.Module):
    """Whose numbers are made anew by its own code when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.factor = nn.Linear(2, 2), 1.0
        self.training = False

    @torch.jit.export
    def __getstate__(self) -> tuple[float, bool]:
        return (self.factor, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[float, bool]) -> None:
        self.factor = state[0] + 1.0
        self.training = state[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Holding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.part = nn.Linear(2, 2), Restored()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(self.lin(x))


def test_what_sets_itself_up_has_no_graph(tmp_path: Path) -> None:
    model = formats.read(scripted(Holding(), tmp_path / "m.pt", trace=False), None, ("1,2",))
    assert model.graph is None and any("__setstate__" in note or "is not read" in note for note in model.notes)


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.register_buffer("state", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state = self.lin(x + self.state)[0]
        return self.state


def test_state_is_that_which_is_stored(tmp_path: Path) -> None:
    net, x = Stateful().eval(), rand(1, 2)
    path = scripted(net, tmp_path / "m.pt", trace=False)
    model = formats.read(path, None, ("1,2",))
    assert np.abs(outputs_of(model, (x,))[0] - net(x).detach().numpy()).max() < 1e-6
    assert any("keeps state (state)" in note for note in model.notes)


def test_a_real_one(models: Path) -> None:
    """Silero's voice activity detector: scripted, with two models, state, and a number for an argument."""
    path = models / "silero_vad" / "data" / "silero_vad.jit"
    torch.manual_seed(0)
    x = torch.randn(1, 512) * 0.1
    for rate, size in ((16000, 512), (8000, 256)):
        model = formats.read(path, None, (f"x=1,{size}", f"sr={rate}"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = torch.jit.load(str(path))(x[:, :size], rate).detach().numpy()
        assert np.abs(outputs_of(model, (x[:, :size],))[0] - wanted).max() < 1e-6


# What is not followed


def branching(x: torch.Tensor) -> torch.Tensor:
    if bool(x.sum() > 0):
        x = x * 2
    return x


def endless(x: torch.Tensor) -> torch.Tensor:
    n = 1
    while n > 0:
        n += 1
        if n > 1000:
            n = 1
    return x


def growing(x: torch.Tensor) -> torch.Tensor:
    items = [1]
    for i in range(60):
        items = items + items
    return x * float(len(items))


def folded(x: torch.Tensor) -> list[list[list[int]]]:
    row = [1] * 4000
    rows = [row] * 4000
    return [rows] * 4000


def deep(x: torch.Tensor) -> torch.Tensor:
    n = 3
    for i in range(60):
        n = n * n + 1
    return x * float(n)


def written(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    z = y.t()
    y.mul_(3.0)
    return z + y


def drawn(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.5, True)


REFUSED = {
    "folded": (folded, "returns too much"),
    "branching": (branching, "branches on what it computes"), "endless": (endless, "too many steps"),
    "growing": (growing, "grows too long"), "deep": (deep, "64 bits"), "written": (written, "may be read elsewhere"),
}  # fmt: skip


class Called(nn.Module):
    """A module whose forward is one of the functions above."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.function = torch.jit.script(function)

    def forward(self, x: torch.Tensor):  # type: ignore[no-untyped-def]
        return self.function(self.lin(x))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_followed_has_no_graph_and_a_reason(name: str, tmp_path: Path) -> None:
    function, said = REFUSED[name]
    model = formats.read(scripted(Called(function), tmp_path / "m.pt", trace=False), None, ("3,3",))
    assert model.graph is None and any("its graph is not read" in n and said in n for n in model.notes), model.notes


def test_a_random_network_has_a_gap(tmp_path: Path) -> None:
    path = scripted(Called(drawn), tmp_path / "m.pt", trace=False)
    report = snaudit.audit(path, input_size=("3,3",))
    assert not report.network.bound.bounded and any("dropout" in gap.op for gap in report.gaps)


def test_training_mode_has_no_graph(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()).save(str(tmp_path / "m.pt"))
    model = formats.read(tmp_path / "m.pt", None, ("2,3",))
    assert model.graph is None


def rewritten(path: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


CODE = {
    "deeply nested": b"def f(x: Tensor) -> Tensor:\n  return " + b"(" * 5000 + b"x" + b")" * 5000,
    "a long chain": b"def f(x: Tensor) -> Tensor:\n  return " + b"-" * 100_000 + b"1",
    "a great number": b"def f(x: Tensor) -> Tensor:\n  return " + b"9" * 10_000,
    "a long list": b"def f(x: Tensor) -> Tensor:\n  return [" + b"x," * 1_000_000 + b"]",
    "zeros": b"\0" * 100, "no text": b"\xff\xfe\xfa", "decorated": b"@f\ndef f(x: Tensor) -> Tensor:\n  return x",
    "twice": b"def f(x: Tensor) -> Tensor:\n  return x\ndef f(x: Tensor) -> Tensor:\n  return x",
    "a hostile class, decorated": b"class C(Module):\n  x" + b".b" * 3000 + b" = 1\n@f\ndef f(x: Tensor) -> Tensor:\n  return x",
}  # fmt: skip


@pytest.mark.parametrize("name", CODE)
def test_code_that_is_none(name: str, tmp_path: Path) -> None:
    path = scripted(nn.Sequential(nn.Linear(3, 2)), tmp_path / "m.pt", rand(1, 3))

    def change(record: str, data: bytes) -> bytes:
        return data + b"\n" + CODE[name] if record.endswith(".py") else data

    model = formats.read(rewritten(path, tmp_path / "n.pt", change), None, ("1,3",))
    assert model.graph is None and any("its graph is not read" in note for note in model.notes)


def grown(length: int) -> bytes:
    return b"k = torch.mul([0], %d)\n    for i in range(500):\n      " % length


COSTLY = {
    "contains in a range": (b"t = torch.__contains__(range(9), 1.5)", "a range outside"),
    "any of a range": (b"t = torch.any(range(9))", "a range outside"),
    "least of a range": (b"t = torch.min(range(9))", "a range outside"),
    "greatest of a range": (b"t = torch.max(range(9))", "a range outside"),
    "a range as a list": (b"t = torch.list(range(9))", "a range outside"),
    "a tuple many times": (b"t = torch.mul((1, 2), 9)", "no number, list"),
    "an index of lists": (b"t = torch.__derive_index([1], [1], 9)", "no number"),
    "text by format": (b't = torch.remainder("%9d", 5)', "no number"),
    "lists of lists in order": (b"a = [[1], [1]]\n    t = torch.lt(a, [[1], [1]])", "no number"),
    "the greater list": (b"a = [[1], [1]]\n    t = torch.max(a, [[1], [1]])", "no number"),
    "a list that is inserted into": (b"a = [0]\n    for i in range(9000):\n      torch.insert(a, 0, 1)", "grows too long"),
    "slices": (grown(4000) + b"t = torch.slice(k, 0, 4000, 1)", "too many steps"),
    "slices by index": (grown(4000) + b"t = k[0:4000]", "too many steps"),
    "lists of lists": (grown(4000) + b"t = torch.list(k)", "too many steps"),
    "copies": (grown(4000) + b"t = torch.copy(k)", "too many steps"),
    "a root": (b"t = torch.pow(-1, 0.5)", "a root of"),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTLY)
def test_code_that_costs_more_than_its_steps_has_no_graph(name: str, tmp_path: Path) -> None:
    """At sizes where it would still end: larger ones take hours, or all memory."""
    path = scripted(nn.Linear(3, 2), tmp_path / "m.pt", trace=False)
    code, told = COSTLY[name]

    def change(record: str, data: bytes) -> bytes:
        head, end, tail = data.partition(b"    return ")
        return head + b"    " + code + b"\n" + end + tail if record.endswith(".py") else data

    model = formats.read(rewritten(path, tmp_path / "n.pt", change), None, ("1,3",))
    assert model.graph is None and any(told in note for note in model.notes), model.notes


def test_a_message_does_not_unfold_lists() -> None:
    nested: Any = [1]
    for _ in range(45):
        nested = [nested, nested]
    assert applied("format", ["{} of {}", nested, 3], {}) == "? of 3"


def test_changed_code_has_a_graph_or_a_reason(tmp_path: Path) -> None:
    """Whatever stands in the code: a graph, no graph with a note, or one line of error; and all of it soon."""
    torch.manual_seed(0)
    path = scripted(Residual(), tmp_path / "m.pt", rand(1, 2, 6, 6), trace=False)
    rng, taken = random.Random(7), 0
    pieces = [b"self", b"x", b"None", b"-1", b"0", b"9223372036854775807", b"[]", b"(", b")", b"torch.relu", b"torch.size", b"1.5",
              b"__torch__", b"CONSTANTS.c0", b"while True:\n      pass", b"True", b".forward", b", ", b"ops.prim.NumToTensor"]  # fmt: skip

    def change(record: str, data: bytes) -> bytes:
        if not record.endswith(".py") or rng.random() < 0.5:
            return data
        words = data.split(b" ")
        words[rng.randrange(len(words))] = rng.choice(pieces)
        return b" ".join(words)

    for _ in range(150):
        try:
            model = formats.read(rewritten(path, tmp_path / "n.pt", change), None, ("1,2,6,6",))
        except (ModelError, UsageError):
            continue
        taken += model.graph is not None
        assert model.graph is not None or model.notes
    assert taken > 2


def test_a_tensors_number_by_keyword_is_not_taken() -> None:
    """What an op makes of it would be a plain number: that it was a tensor's would be lost."""
    with pytest.raises(NotTaken, match="by keyword"):
        applied("Int", [], {"value": Num(3)})
