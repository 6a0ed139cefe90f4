"""Rewriting keeps its promise: the cap holds for the bytes on disk, all else is bit-equal, twice is
once, and the module or runtime that loads the file computes what was promised."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from graphs import make_model
from onnx import helper, numpy_helper
from torch import nn

import snaudit
from snaudit.cli import main
from snaudit.constraints import default_target
from snaudit.errors import ConstraintError, UsageError, WriteError

CAP = 0.75


def torch_state(dtype: torch.dtype = torch.float32) -> OrderedDict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    big = torch.randn(6, 5, generator=generator).to(dtype)
    flat = torch.randn(40, generator=generator).to(dtype)
    return OrderedDict(
        {
            "a.weight": big,
            "a.bias": torch.randn(6, generator=generator).to(dtype),
            "tied.weight": big,
            "turned.weight": torch.randn(7, 4, generator=generator).to(dtype).t(),
            "view.weight": flat[4:28].view(4, 6),
            "small.weight": torch.full((3, 3), 0.01, dtype=dtype),
            "conv.weight": torch.randn(4, 3, 3, 3, generator=generator).to(dtype),
            "steps": torch.arange(6).reshape(2, 3),
        }
    )


def save_zip(path: Path, dtype: torch.dtype) -> None:
    torch.save({"epoch": 3, "state_dict": torch_state(dtype), "optimizer": {"state": {}}}, path)


def save_legacy(path: Path, dtype: torch.dtype) -> None:
    torch.save(torch_state(dtype), path, _use_new_zipfile_serialization=False)


def save_safetensors(path: Path, dtype: torch.dtype) -> None:
    state = {name: value.clone().contiguous() for name, value in torch_state(dtype).items()}
    safetensors.torch.save_file(state, path, {"format": "pt"})


def save_npz(path: Path, dtype: torch.dtype) -> None:
    as_numpy = torch.float32 if dtype is torch.bfloat16 else dtype
    np.savez(path, **{n: v.to(as_numpy if v.is_floating_point() else v.dtype).numpy() for n, v in torch_state(dtype).items()})


def onnx_model(dtype: torch.dtype, constants: bool = False) -> onnx.ModelProto:
    """conv → relu → two matmuls that share a weight, in initializers or in Constant nodes."""
    kind = {torch.float32: np.float32, torch.float16: np.float16, torch.float64: np.float64}[dtype]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    rng = np.random.default_rng(5)
    weights = {
        "k": rng.standard_normal((4, 2, 3, 3)).astype(kind),
        "w": (rng.standard_normal((4, 4)) * 2).astype(kind),
        "b": rng.standard_normal(4).astype(kind),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    if constants:
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in initializers] + nodes
        initializers = []
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", element, ["n", 2, 8, 8])],
        [helper.make_tensor_value_info("y", element, ["n", 4])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def save_onnx(path: Path, dtype: torch.dtype) -> None:
    path.write_bytes(onnx_model(dtype).SerializeToString())


def save_onnx_constants(path: Path, dtype: torch.dtype) -> None:
    path.write_bytes(onnx_model(dtype, constants=True).SerializeToString())


def save_onnx_external(path: Path, dtype: torch.dtype) -> None:
    onnx.save_model(
        onnx_model(dtype), path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0
    )


SAVERS = {
    "zip.pt": save_zip,
    "legacy.pt": save_legacy,
    "plain.safetensors": save_safetensors,
    "arrays.npz": save_npz,
    "init.onnx": save_onnx,
    "const.onnx": save_onnx_constants,
    "external.onnx": save_onnx_external,
}
HALVES = [("zip.pt", torch.bfloat16), ("zip.pt", torch.float16), ("legacy.pt", torch.bfloat16),
          ("plain.safetensors", torch.bfloat16), ("plain.safetensors", torch.float8_e4m3fn),
          ("init.onnx", torch.float16), ("const.onnx", torch.float16)]  # fmt: skip
CASES = [(name, torch.float32) for name in SAVERS] + HALVES


def save(folder: Path, name: str, dtype: torch.dtype) -> Path:
    path = folder / name
    SAVERS[name](path, dtype)
    return path


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.load() for name, tensor in snaudit.load(path).tensors.items()}


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("measure", ["operator", "matrix"])
def test_the_cap_holds_on_disk_and_nothing_else_moves(tmp_path: Path, name, dtype, measure) -> None:
    path = save(tmp_path, name, dtype)
    before = digests(tmp_path)
    outcome = snaudit.constrain(path, max_sigma=CAP, measure=measure)
    target = Path(outcome.target)
    assert target == default_target(path) and outcome.written
    assert before.items() <= digests(tmp_path).items(), "the input and all beside it are untouched"
    old, new = arrays(path), arrays(target)
    assert list(old) == list(new)
    changed = set()
    for change in outcome.changes:
        assert change.after.upper <= CAP
        assert change.changed == (change.before.upper > CAP)
        if change.changed:
            least = {torch.bfloat16: 0.98, torch.float16: 0.995, torch.float8_e4m3fn: 0.8}.get(dtype, 0.998)
            shared = change.name.startswith(("a.", "tied", "w"))
            assert change.after.upper >= CAP * (least if not shared else least * 0.99)
            changed.add(change.name)
    for layer in snaudit.audit(target).layers:
        kernel = new[layer.name].astype(np.float64)
        assert np.linalg.norm(kernel.reshape(len(kernel), -1), 2) <= (CAP if layer.op != "Conv2d" or measure == "matrix" else 9)
        bound = layer.norm if measure == "operator" else layer.sigma
        assert bound.upper <= CAP
    for key, array in old.items():
        if key not in changed and key != "tied.weight":
            assert array.tobytes() == new[key].tobytes(), key
    if "tied.weight" in new:
        assert new["tied.weight"].tobytes() == new["a.weight"].tobytes()


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_twice_is_once(tmp_path: Path, name, dtype) -> None:
    path = save(tmp_path, name, dtype)
    once = Path(snaudit.constrain(path, max_sigma=CAP).target)
    again = snaudit.constrain(once, tmp_path / f"again{path.suffix}", max_sigma=CAP)
    assert not any(change.changed for change in again.changes)
    if name == "external.onnx":
        assert arrays(once).keys() == arrays(Path(again.target)).keys()
        for key, array in arrays(once).items():
            assert array.tobytes() == arrays(Path(again.target))[key].tobytes()
    else:
        assert once.read_bytes() == Path(again.target).read_bytes()


@pytest.mark.parametrize("name", ["zip.pt", "plain.safetensors", "init.onnx"])
def test_normalize_brings_all_to_the_cap(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, name, torch.float32)
    outcome = snaudit.constrain(path, max_sigma=2.0, normalize=True)
    for layer in snaudit.audit(outcome.target).layers:
        assert 2.0 * 0.99 <= layer.norm.upper <= 2.0


def test_normalize_says_which_matrices_no_factor_brings_up(tmp_path: Path) -> None:
    weights = {"a.weight": torch.eye(3), "b.weight": torch.zeros(3, 3)}
    safetensors.torch.save_file(weights, tmp_path / "m.safetensors")
    outcome = snaudit.constrain(tmp_path / "m.safetensors", max_sigma=2.0, normalize=True, dry_run=True)
    assert "not normalized, because all entries are zero (1): b.weight" in outcome.notes
    assert not any("zero" in note for note in snaudit.constrain(tmp_path / "m.safetensors", dry_run=True).notes)


def test_torch_loads_what_was_written(tmp_path: Path) -> None:
    path = save(tmp_path, "zip.pt", torch.float32)
    target = snaudit.constrain(path, max_sigma=CAP).target
    loaded = torch.load(target, weights_only=True)
    assert loaded["epoch"] == 3 and list(loaded) == ["epoch", "state_dict", "optimizer"]
    state = loaded["state_dict"]
    assert state["a.weight"].data_ptr() == state["tied.weight"].data_ptr()
    assert state["turned.weight"].stride() == (1, 4)
    assert torch.linalg.matrix_norm(state["a.weight"].double(), 2) <= CAP


def test_normed_modules_compute_the_constrained_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def build() -> nn.Module:
        return nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)),
            nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4)),
        )

    module = build()
    module(torch.randn(3, 6))
    torch.save(module.state_dict(), tmp_path / "m.pt")
    outcome = snaudit.constrain(tmp_path / "m.pt", max_sigma=0.5)
    assert [change.changed for change in outcome.changes] == [True, True]
    other = build()
    other.load_state_dict(torch.load(outcome.target, weights_only=True))
    other.eval()
    for part in other:
        norm = torch.linalg.matrix_norm(part.weight.detach().double(), 2).item()
        assert abs(norm - 0.5) < 1e-5


def test_onnx_outputs_are_compared(tmp_path: Path) -> None:
    path = save(tmp_path, "init.onnx", torch.float32)
    outcome = snaudit.constrain(path, max_sigma=CAP)
    (change,) = outcome.outputs
    assert change.name == "y" and 0.1 < change.max_relative < 2
    assert not [note for note in outcome.notes if "not compared" in note]


def test_patterns_skip_and_dry_run(tmp_path: Path) -> None:
    path = save(tmp_path, "zip.pt", torch.float32)
    outcome = snaudit.constrain(path, max_sigma=CAP, skip=("conv",), dry_run=True)
    assert not outcome.written and not Path(outcome.target).exists()
    assert "conv.weight" not in {change.name for change in outcome.changes}
    outcome = snaudit.constrain(path, max_sigma=CAP, layers=("conv",))
    assert [change.name for change in outcome.changes] == ["conv.weight"]
    with pytest.raises(WriteError, match="--force"):
        snaudit.constrain(path, max_sigma=CAP)
    snaudit.constrain(path, path, max_sigma=CAP, force=True)
    assert all(layer.norm.upper <= CAP for layer in snaudit.audit(path).layers)


@pytest.mark.parametrize("cap", [0.0, -1.0, math.nan, math.inf])
def test_caps_that_are_none(tmp_path: Path, cap: float) -> None:
    path = save(tmp_path, "zip.pt", torch.float32)
    with pytest.raises(UsageError, match="positive"):
        snaudit.constrain(path, max_sigma=cap)


def test_a_weight_that_is_not_finite_stops_it(tmp_path: Path) -> None:
    torch.save({"w": torch.tensor([[1.0, math.nan], [0.0, 2.0]])}, tmp_path / "nan.pt")
    before = digests(tmp_path)
    with pytest.raises(ConstraintError, match="1 NaN"):
        snaudit.constrain(tmp_path / "nan.pt", max_sigma=1.0)
    assert digests(tmp_path) == before


def test_file_mode_and_links_are_kept(tmp_path: Path) -> None:
    path = save(tmp_path, "plain.safetensors", torch.float32)
    path.chmod(0o640)
    target = Path(snaudit.constrain(path, max_sigma=CAP).target)
    assert target.stat().st_mode & 0o777 == 0o640
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    snaudit.constrain(path, link, max_sigma=CAP, force=True)
    assert link.is_symlink() and all(layer.norm.upper <= CAP for layer in snaudit.audit(path).layers)


def test_shards_keep_their_modes_and_folders_their_meaning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = {"a": {"a.weight": torch.randn(4, 4)}, "b": {"b.weight": torch.randn(4, 4)}}
    for name, part in parts.items():
        safetensors.torch.save_file(part, tmp_path / f"model-{name}.safetensors")
        (tmp_path / f"model-{name}.safetensors").chmod(0o600)
    index = {"metadata": {}, "weight_map": {key: f"model-{name}.safetensors" for name, part in parts.items() for key in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors.index.json").chmod(0o644)
    outcome = snaudit.constrain(tmp_path, max_sigma=CAP)
    assert any("files that belong to it" in note for note in outcome.notes)
    new = [path for path in tmp_path.iterdir() if ".constrained" in path.name]
    assert sorted(path.stat().st_mode & 0o777 for path in new) == [0o600, 0o600, 0o644]
    assert all(layer.norm.upper > CAP for layer in snaudit.audit(tmp_path).layers), "the folder still means the model"
    assert all(layer.norm.upper <= CAP for layer in snaudit.audit(outcome.target).layers)


def test_what_is_not_capped_is_said(tmp_path: Path) -> None:
    state = {"fc.weight": torch.ones(4, 4), "q.weight": torch.ones(4, 4, dtype=torch.int8)}
    torch.save({"state_dict": state, "ema": {"fc.weight": torch.ones(4, 4)}}, tmp_path / "m.pt")
    notes = " ".join(snaudit.constrain(tmp_path / "m.pt", max_sigma=CAP).notes)
    assert "q.weight" in notes and "ema" in notes
    assert snaudit.check(tmp_path / "m.constrained.pt", max_sigma=CAP).verdict is snaudit.Verdict.UNDECIDED


def test_a_cap_below_the_dtype_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.eye(3, dtype=torch.float16)}, tmp_path / "m.pt")
    before = digests(tmp_path)
    with pytest.raises(ConstraintError, match="float16"):
        snaudit.constrain(tmp_path / "m.pt", max_sigma=1e-30)
    assert digests(tmp_path) == before


@pytest.mark.parametrize("other", ["pytorch_model.bin", "model.onnx", "other.safetensors"])
def test_a_folder_of_several_models_is_none(tmp_path: Path, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A model must not pass for another that lies beside it; what training stores beside a model is none."""
    safetensors.torch.save_file({"w": torch.eye(2)}, tmp_path / "model.safetensors")
    (tmp_path / "optimizer.pt").touch()
    assert main(["check", str(tmp_path), "--max-sigma", "3"]) == 0
    assert "the model in this folder: model.safetensors" in capsys.readouterr().out
    index = tmp_path / "odd.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"w": "model.safetensors"}}))
    (tmp_path / "left-00001-of-00002.safetensors").touch()
    assert [layer.name for layer in snaudit.audit(tmp_path).layers] == ["w"], "an index with its shards is one model"
    index.unlink()
    (tmp_path / "left-00001-of-00002.safetensors").unlink()
    (tmp_path / other).write_bytes((tmp_path / "model.safetensors").read_bytes())
    for line in (["check", str(tmp_path), "--max-sigma", "3"], ["constrain", str(tmp_path), "--max-sigma", "3"]):
        assert main(line) == 2
        error = capsys.readouterr().err
        assert "several model files in this folder, name one: " in error and other in error and "model.safetensors" in error


class _Summed(nn.Module):
    """Its bound is finite only where the number of the summed entries is known."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).sum(dim=(2, 3))


@pytest.mark.parametrize("kind", ["dynamic.onnx", "traced.pt"])
def test_limits_are_kept_at_the_input_size_given(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    net, path, target = _Summed().eval(), tmp_path / kind, tmp_path / f"new_{kind}"
    weights = {"w": net.conv.weight.detach().numpy(), "axes": np.array([2, 3])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1] * 4),
        helper.make_node("ReduceSum", ["h", "axes"], ["y"], keepdims=0),
    ]
    if kind == "traced.pt":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(net, torch.ones(1, 2, 6, 5)).save(str(path))
    else:
        onnx.save(make_model(nodes, {"x": (1, 2, "h", "w")}, weights, dtype="float32"), path)
        assert main(["constrain", str(path), "--max-lipschitz", "0.5"]) == 2
        assert "no finite bound" in capsys.readouterr().err
    line = ["constrain", str(path), "--max-lipschitz", "0.5", "--input-size", "1,2,6,5", "-o", str(target)]
    assert main(line) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "(PROVED)" in out and "at the input size given, 1,2,6,5: at no other" in out
    weight = snaudit.load(target).tensors["conv.weight" if kind == "traced.pt" else "w"].load()
    kernel = torch.from_numpy(weight.astype(np.float64))
    jacobian = torch.autograd.functional.jacobian(
        lambda x: torch.nn.functional.conv2d(x, kernel, padding=1).sum(dim=(2, 3)), torch.zeros(1, 2, 6, 5).double()
    ).reshape(3, -1)
    truth = float(torch.linalg.matrix_norm(jacobian, 2))
    bound = snaudit.audit(target, input_size=("1,2,6,5",)).network.bound
    assert truth <= bound.upper <= 0.5 and truth > 0.25
