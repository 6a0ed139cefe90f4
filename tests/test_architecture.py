"""A checkpoint with its code: the graph is the code's, the weights are the checkpoint's, and nothing else runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from architectures import Net, Tied
from graphs import make_model
from onnx import helper
from safetensors.torch import save_file
from torch import nn

import snaudit
from snaudit import exporting
from snaudit.cli import main
from snaudit.errors import UnsupportedModel, UsageError
from snaudit.exporting import Failure, loaded
from snaudit.model import Tensor

CODE = Path(__file__).parent / "architectures.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "codeof.py").write_text(CODE.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(kind: type[nn.Module], **options: int) -> nn.Module:
    torch.manual_seed(0)
    return kind(**options)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    arrays = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    return {name: Tensor(name, a.shape, str(a.dtype), name, lambda a=a: a) for name, a in arrays.items()}


def test_the_codes_graph_and_the_files_weights(folder: Path) -> None:
    net = made(Net, width=6).double()
    net.norm.running_var.uniform_(0.5, 2.0)
    net = net.float().eval()
    torch.save({"module." + name: value for name, value in net.state_dict().items()}, "w.pt")
    code = (
        "import sys, json, snaudit\n"
        "r = snaudit.audit('w.pt', architecture='codeof:Net', architecture_args='{\"width\": 6}', "
        "input_size=('1,2,6,6',), witness_seconds=1)\n"
        "n, w = r.network, r.network.witness\n"
        "print(json.dumps([[l.name for l in r.layers], r.model.format, r.model.files[0].sha256, r.model.notes,"
        " n.bound.upper, n.bound.lower, n.bound.grade.name, n.assumptions, 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    names, kind, sha, notes, upper, lower, grade, assumptions, loaded_torch = json.loads(done.stdout)
    assert names == ["module.conv.weight", "module.head.weight"] and kind == "torch + architecture"
    assert sha == snaudit.load("w.pt").files[0].sha256 and grade == "PROVED" and not loaded_torch
    assert any("'module.'" in note for note in notes) and any("within" in note for note in notes)
    assert any("eval mode" in text for text in assumptions)
    jacobians = [torch.autograd.functional.jacobian(net.double(), x).reshape(3, -1) for x in
                 torch.randn(40, 1, 2, 6, 6, dtype=torch.float64)]
    steepest = max(float(torch.linalg.matrix_norm(j, 2)) for j in jacobians)
    assert steepest <= upper <= 6 * steepest and 0.0 < lower <= upper
    assert not list(Path(tempfile.gettempdir()).glob("snaudit-*/model.onnx"))


def test_named_inputs_integers_ties_and_narrow_weights(folder: Path) -> None:
    weight = made(Tied).embed.weight.detach().bfloat16()
    save_file({"embed.weight": weight}, "w.safetensors")
    report = snaudit.audit(
        folder, architecture="codeof:Tied", input_size=("tokens=1,4", "image=1,4,5"), seed=3
    )
    assert {layer.name.partition("#")[0] for layer in report.layers} == {"embed.weight"}
    assert report.model.format == "safetensors + architecture" and report.network.bound.bounded
    assert any("tokens" in note and "integers" in note for note in report.model.notes)
    top = np.linalg.norm(weight.double().numpy(), 2)
    assert any(layer.sigma.lower <= top * (1 + 1e-12) and layer.sigma.upper >= top for layer in report.layers)
    assert top * 0.99 < report.network.bound.upper < 2 * top


def test_a_crash_is_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(made(Net).state_dict(), "w.pt")
    assert main(["inspect", "w.pt", "--architecture", "codeof:crash", "--input-size", "1,2,6,6"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "signal 6" in err


@pytest.mark.parametrize(
    "options, said",
    [
        ({"architecture": "codeof:Net"}, "needs --input-size"),
        ({"architecture": "codeof"}, "PACKAGE.MODULE:NAME"),
        ({"architecture": "os; x:y", "input_size": ("1",)}, "PACKAGE.MODULE:NAME"),
        ({"architecture": "codeof:Net", "architecture_args": "{", "input_size": ("1",)}, "not JSON"),
        ({"architecture": "codeof:Net", "architecture_args": "3", "input_size": ("1",)}, "JSON object"),
        ({"architecture_args": "{}", "input_size": ("1",)}, "needs --architecture"),
    ],
)
def test_options_that_say_nothing(folder: Path, options: dict, said: str) -> None:
    torch.save(made(Net).state_dict(), "w.pt")
    with pytest.raises(UsageError, match=said):
        snaudit.audit("w.pt", **options)


def test_a_file_with_a_graph_needs_no_code(folder: Path) -> None:
    onnx.save(make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 2)}, {}), "m.onnx")
    with pytest.raises(UsageError, match="graph of its own"):
        snaudit.audit("m.onnx", architecture="codeof:Net", input_size=("1,2",))


@pytest.mark.parametrize(
    "name, args, said",
    [("Nothing", [], "Nothing"), ("Net", [1, 2, 3], "TypeError"), ("torch.zeros", [2], "Tensor, not a torch.nn"),
     ("os.getcwd", [], "str, not a torch.nn")],
)  # fmt: skip
def test_code_that_makes_no_module(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, args: list, said: str
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(Failure, match=said) as caught:
        exporting.made({"module": "codeof", "name": name, "args": args, "kwargs": {}})
    assert caught.value.usage
    sys.modules.pop("codeof", None)


def test_without_the_exporter_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(Failure, match="pip install"):
        exporting.carried_out({})


def test_weights_that_fit_are_loaded_under_either_prefix() -> None:
    want, net = made(Net), made(Net)
    given = {f"a.b.{name}": tensor for name, tensor in tensors_of(want).items()}
    with torch.no_grad():
        for value in net.parameters():
            value.zero_()
    names, notes = loaded(net, given)
    assert names["conv.weight"] == "a.b.conv.weight" and "'a.b.'" in notes[0]
    wrapped = nn.ModuleDict({"inner": made(Net)})
    names, notes = loaded(wrapped, {k: v for k, v in tensors_of(want).items() if "num_batches" not in k})
    assert names["inner.conv.weight"] == "conv.weight" and "'inner.'" in notes[0]
    for holder in (net, wrapped["inner"]):
        assert all(torch.equal(a, b) for a, b in zip(holder.parameters(), want.parameters(), strict=True))


@pytest.mark.parametrize("change, said", [("drop", "conv.weight is missing"), ("add", "more is unexpected"),
                                          ("shape", r"head.bias is \[4\], the module's \[3\]")])  # fmt: skip
def test_weights_that_do_not_fit_are_named(change: str, said: str) -> None:
    given = tensors_of(made(Net))
    if change == "drop":
        del given["conv.weight"]
    else:
        name = "more" if change == "add" else "head.bias"
        given[name] = Tensor(name, (4,), "float32", name, lambda: np.ones(4, np.float32))
    with pytest.raises(Failure, match=said) as caught:
        loaded(made(Net), given)
    assert not caught.value.usage


def test_ties_and_rounding_are_told() -> None:
    given = tensors_of(made(Tied))
    wide = given["embed.weight"].load().astype(np.float64) + 1e-12
    both = {name: Tensor(name, wide.shape, "float64", name, lambda: wide) for name in given}
    with pytest.raises(Failure, match="tied"):
        loaded(made(Tied), both | {"out.weight": given["out.weight"]})
    _, notes = loaded(made(Tied), {"embed.weight": both["embed.weight"]})
    assert "rounded" in notes[0]
    narrow = given["embed.weight"].load().astype(ml_dtypes.bfloat16)
    one = Tensor("embed.weight", narrow.shape, "bfloat16", "p", lambda: narrow)
    assert loaded(made(Tied), {"embed.weight": one})[1] == []


def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 3)}, {}, dtype="float32"), path)
    x = torch.tensor([[-1.0, 2.0, 3.0]])
    assert "within" in exporting.compared(path, [x], [torch.relu(x)])
    for other in (x, torch.relu(x)[0], torch.relu(x) * 1.01, torch.full((1, 3), torch.nan)):
        with pytest.raises(Failure, match="exported graph"):
            exporting.compared(path, [x], [other])


def test_misfits_reach_the_command_line(folder: Path) -> None:
    torch.save(made(Net, width=3).state_dict(), "w.pt")
    with pytest.raises(UnsupportedModel, match="do not fit it: conv.weight is"):
        snaudit.audit("w.pt", architecture="codeof:Net", input_size=("1,2,6,6",))
