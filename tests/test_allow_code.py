"""--allow-code: a TorchScript file's code is run for its graph, only on demand, and under limits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graphs import make_model
from onnx import helper
from torch import nn

import snaudit
from snaudit import architecture
from snaudit.children import Child, Limits
from snaudit.cli import main
from snaudit.errors import SnauditError, UnsupportedModel, UsageError


class Thresholded(nn.Module):
    """With an op that is not translated, and that torch's exporter knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(nn.functional.threshold(self.first(x), 0.0, 0.0))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lin(x)
        if bool(y.sum() > 0):
            y = y * 2
        return y


class Endless(Branching):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lin(x)
        while bool(y.sum() < 1e30):
            y = y * 0.5
        return y


class Huge(Branching):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lin(x)
        if bool(y.sum() < 1e9):
            y = y + torch.ones([1 << 35])[0]
        return y


def scripted(module: nn.Module, path: Path) -> Path:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module.eval()).save(str(path))
    return path


def test_what_cannot_be_read_is_exported_by_running_it(tmp_path: Path) -> None:
    net = Thresholded()
    path = scripted(net, tmp_path / "m.pt")
    plain = snaudit.audit(path, input_size=("2,3",))
    assert not plain.network.bound.bounded and any("threshold" in gap.op for gap in plain.gaps)
    report = snaudit.audit(path, input_size=("2,3",), allow_code=True)
    assert {layer.name for layer in report.layers} == {"first.weight", "second.weight"}
    assert any("was run (--allow-code)" in note for note in report.model.notes)
    assert any("--allow-code" in one for one in report.network.assumptions)
    jacobian = torch.autograd.functional.jacobian(net.double(), torch.ones(1, 3).double()).reshape(2, 3)
    bound = report.network.bound
    assert bound.grade.name == "PROVED" and float(torch.linalg.matrix_norm(jacobian, 2)) <= bound.upper
    parts = [np.linalg.norm(layer.weight.detach().numpy(), 2) for layer in (net.first, net.second)]
    assert bound.upper <= parts[0] * parts[1] * (1 + 1e-5)


def test_a_branch_on_data_is_a_gap_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = scripted(Branching(), tmp_path / "m.pt")
    line = ["check", str(path), "--input-size", "1,3", "--allow-code", "--max-lipschitz", "9", "--witness-seconds", "0", "--format", "json"]
    assert main(line) == 3
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [gap["op"] for gap in report["gaps"]] == ["If"] and report["settings"]["allow_code"] is True
    assert "warning: --allow-code" in err


@pytest.mark.parametrize("kind, said", [(Endless, "processor time was used up|did not end within"), (Huge, "RuntimeError")])
def test_code_that_does_not_end_or_is_too_large(kind: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "CODE_LIMITS", Limits(memory=8 << 30, seconds=3.5))
    path = scripted(kind(), tmp_path / "m.pt")
    with pytest.raises(SnauditError) as caught:
        snaudit.audit(path, input_size=("1,3",), allow_code=True)
    assert "--allow-code" in str(caught.value) and re.search(said, str(caught.value)) and "\n" not in str(caught.value)


def test_it_is_refused_where_nothing_is_to_be_run(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="needs a graph"):
        snaudit.audit(tmp_path / "w.pt", input_size=("1,2",), allow_code=True)
    path = scripted(nn.Sequential(nn.Linear(3, 2)), tmp_path / "m.pt")
    with pytest.raises(UsageError, match="needs --input-size"):
        snaudit.audit(path, allow_code=True)
    with pytest.raises(UsageError, match="one of them"):
        snaudit.audit(path, allow_code=True, architecture="a:b", input_size=("1,3",))


def test_files_without_code_are_audited_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    onnx.save(make_model([node], {"x": (1, 2)}, {"w": np.eye(2)}, dtype="float32"), tmp_path / "m.onnx")
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    for name in ("m.onnx", "w.pt"):
        assert main(["inspect", str(tmp_path / name), "--allow-code", "--witness-seconds", "0"]) == 0
        out, err = capsys.readouterr()
        assert "nothing in it is to be run, and nothing was" in " ".join(out.split()) and "may be run" not in err
        assert "when it was run" not in out


def test_code_that_was_run_is_assumed_only_where_it_was(tmp_path: Path) -> None:
    path = scripted(nn.Sequential(nn.Linear(3, 2)), tmp_path / "m.pt")
    report = snaudit.audit(path, input_size=("1,3",), allow_code=True)
    assert not any("--allow-code" in one for one in report.network.assumptions)


def test_a_graph_that_is_not_read_has_a_remedy(tmp_path: Path) -> None:
    (note,) = (n for n in snaudit.load(scripted(Branching(), tmp_path / "m.pt")).notes if "its graph" in n)
    assert "--input-size" in note
    notes = snaudit.audit(tmp_path / "m.pt", input_size=("1,3",)).model.notes
    (note,) = (n for n in notes if "its graph is not read: it branches on what it computes" in n)
    assert all(remedy in note for remedy in ("--allow-code", "--architecture", "torch.onnx.export"))


def test_nothing_is_run_where_the_graph_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scripted(nn.Sequential(nn.Linear(3, 2)), tmp_path / "m.pt")
    monkeypatch.setattr(architecture, "Child", None)
    report = snaudit.audit(path, input_size=("1,3",), allow_code=True)
    assert report.network.bound.grade.name == "PROVED" and any("was not needed" in note for note in report.model.notes)


def test_without_the_option_no_code_is_run_and_no_torch_is_imported(tmp_path: Path) -> None:
    path = scripted(Branching(), tmp_path / "m.pt")
    code = (
        "import sys, snaudit.cli\n"
        f"done = snaudit.cli.main(['inspect', {str(path)!r}, '--input-size', '1,3'])\n"
        "print(done, sorted({'torch', 'onnxruntime'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.strip().splitlines()[-1] == "0 []" and "branches on what it computes" in done.stdout.replace("\n ", "")


def test_other_numbers_than_the_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scripted(Branching(), tmp_path / "m.pt")
    monkeypatch.setattr(architecture, "_same", lambda stored, exported: None)
    with pytest.raises(UnsupportedModel, match="would not be this file's"):
        snaudit.audit(path, input_size=("1,3",), allow_code=True)


def test_the_child_inherits_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import os\n\ndef answer(request):\n    fds = os.listdir('/proc/self/fd') if os.path.isdir('/proc/self/fd') else []\n"
    source += "    return {'env': dict(os.environ), 'cwd': os.getcwd(), 'fds': len(fds)}, b''\n"
    (tmp_path / "told.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    with (tmp_path / "told.py").open() as file:
        os.set_inheritable(file.fileno(), True)
        with Child("told", {}, Limits(seconds=20.0), confined_to=str(tmp_path)) as child:
            found, _ = child.answer(60.0)
    assert "SECRET_TOKEN" not in found["env"] and found["env"]["HOME"] == str(tmp_path) and found["fds"] <= 6
    assert Path(found["cwd"]).resolve() == tmp_path.resolve()
