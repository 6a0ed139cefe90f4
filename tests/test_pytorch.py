"""PyTorch files: every tensor bit for bit as torch reads it, patches that change nothing else."""

from __future__ import annotations

import argparse
import io
import os
import random
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from containers import mapping, storage, torch_file, view
from torch import nn

from snaudit.errors import EmptyModel, ModelError, RefusedModel, UnreadableModel, UnsupportedModel, UsageError
from snaudit.formats.pytorch import PT2, TORCH_LEGACY, TORCH_ZIP, TORCHSCRIPT
from snaudit.formats.source import Source
from snaudit.model import Model

ALL = (TORCHSCRIPT, PT2, TORCH_ZIP, TORCH_LEGACY)
BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def read(path: Path, key: str | None = None) -> Model:
    source = Source(path)
    (known,) = (f for f in ALL if f.sniff(source))
    model = known.read(source, key)
    assert model.format == known.name
    return model


def save(value: object, path: Path, legacy: bool = False, protocol: int = 2) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return path


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def torch_bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def assert_same(model: Model, expected: dict[str, torch.Tensor]) -> None:
    assert list(model.tensors) == list(expected)
    for name, tensor in model.tensors.items():
        array = tensor.load()
        assert tensor.shape == array.shape == tuple(expected[name].shape), name
        assert str(array.dtype) == tensor.dtype == str(expected[name].dtype).removeprefix("torch."), name
        assert bits(array) == torch_bits(expected[name]), name


def patched(model: Model, changes: dict[str, np.ndarray], target: Path) -> Path:
    (known,) = (f for f in ALL if f.name == model.format)
    (result,) = known.patch(model, changes, target)
    assert result.name is None
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        result.write(fd)
    finally:
        os.close(fd)
    return target


UNTYPED = ("e4m3", "e5m2", "uint16")


def weights(legacy: bool = False) -> dict[str, torch.Tensor]:
    """Tensors of all kinds; for legacy files without those that torch cannot read back from there."""
    return {name: tensor for name, tensor in _weights().items() if not legacy or name not in UNTYPED}


def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    base, flat = torch.randn(6, 10), torch.randn(60)
    signalling = torch.tensor([0x7F800001, 0x7FC00002, 0x00000001, -1], dtype=torch.int32).view(torch.float32)
    return {
        "plain.weight": torch.randn(4, 3),
        "transposed.weight": base.t(),
        "tied.weight": base,
        "sliced.weight": base[1:5, ::3],
        "flat.0": flat[3:27].view(4, 6),
        "flat.1": flat[30:54].view(6, 4).t(),
        "conv.weight": torch.randn(2, 3, 3, 3).to(memory_format=torch.channels_last),
        "expanded": torch.arange(3.0).expand(5, 3),
        "odd.weight": signalling.view(2, 2),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "parameter": nn.Parameter(torch.randn(2, 2)),
        "half": torch.randn(3, 3).half(),
        "bf16": torch.randn(3, 5).bfloat16(),
        "e4m3": torch.randn(3, 5).to(torch.float8_e4m3fn),
        "e5m2": torch.randn(3, 5).to(torch.float8_e5m2).t(),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "complex": torch.randn(2, 2, dtype=torch.complex64),
        "int8": torch.arange(4, dtype=torch.int8),
        "uint16": torch.arange(4).to(torch.uint16),
        "long": torch.arange(4),
        "bool": torch.tensor([True, False]),
    }


@BOTH
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_tensor_is_as_torch_reads_it(tmp_path: Path, legacy: bool, protocol: int) -> None:
    state = weights()
    path = save(OrderedDict(state), tmp_path / "m.pt", legacy, protocol)
    model = read(path)
    assert_same(model, state)
    if protocol == 2 and not legacy:  # the only one that torch reads without running code
        assert_same(model, torch.load(path, weights_only=True))
    assert not model.left_out and not model.notes
    assert model.files[0].size == path.stat().st_size


@BOTH
def test_tied_tensors_share_a_place_and_others_do_not(tmp_path: Path, legacy: bool) -> None:
    w = torch.randn(4, 4)
    state = {"a": w, "b": w, "c": nn.Parameter(w), "t": w.t(), "d": w.clone()}
    model = read(save(state, tmp_path / "m.pt", legacy))
    places = {name: tensor.place for name, tensor in model.tensors.items()}
    assert places["a"] == places["b"] == places["c"]
    assert len(set(places.values())) == 3


def halved(model: Model, names: list[str]) -> dict[str, np.ndarray]:
    arrays = {name: model.tensors[name].load() for name in names}
    return {name: (a.astype(np.float32) * np.float32(0.5)).astype(a.dtype) for name, a in arrays.items()}


CHANGED = ["plain.weight", "tied.weight", "flat.0", "flat.1", "conv.weight", "bf16", "e5m2", "half"]


@BOTH
@pytest.mark.parametrize("crc", [True, False])
def test_a_patch_changes_the_named_values_and_nothing_else(tmp_path: Path, legacy: bool, crc: bool) -> None:
    torch.serialization.set_crc32_options(crc)
    try:
        path = save({"model": weights(legacy), "optimizer": {"state": {0: {"exp_avg": torch.randn(3, 3)}}}},
                    tmp_path / "m.pt", legacy)
    finally:
        torch.serialization.set_crc32_options(True)
    before = path.read_bytes()
    model = read(path)
    assert any("checksums" in note for note in model.notes) == (not crc and not legacy)
    changes = halved(model, [name for name in CHANGED if name in model.tensors])
    after = patched(model, changes, tmp_path / "out.pt")
    assert path.read_bytes() == before
    assert after.stat().st_size == len(before)
    was, now = torch.load(path, weights_only=True), torch.load(after, weights_only=True)
    adam, same_adam = (x["optimizer"]["state"][0]["exp_avg"] for x in (was, now))
    assert torch_bits(adam) == torch_bits(same_adam)
    shared = {"transposed.weight", "sliced.weight"}  # views of tied.weight's storage: they follow it
    for name, tensor in was["model"].items():
        expected = torch_bits(tensor / 2 if name in shared else tensor)
        assert torch_bits(now["model"][name]) == (bits(changes[name]) if name in changes else expected), name
        assert now["model"][name].stride() == tensor.stride()
    assert_same(read(after), now["model"])
    if not legacy:
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(after) as new:
            assert new.namelist() == old.namelist() and (not crc or new.testzip() is None)
            assert [i.header_offset for i in new.infolist()] == [i.header_offset for i in old.infolist()]
            if crc:
                changed = [name for name in old.namelist() if old.read(name) != new.read(name)]
                assert len(changed) == len(CHANGED) - 1  # two views of one flat storage


def rezipped(path: Path, target: Path) -> Path:
    """The archive as a common zip tool would make it: all records deflated, with data descriptors or not."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return target


def test_deflated_archives_are_read_and_patched(tmp_path: Path) -> None:
    path = rezipped(save(weights() | {"zeros": torch.zeros(100, 100)}, tmp_path / "m.pt"), tmp_path / "z.pt")
    model = read(path)
    assert_same(model, torch.load(path, weights_only=True))
    noise = np.random.default_rng(1).standard_normal((100, 100)).astype(np.float32)
    changes = halved(model, CHANGED) | {"zeros": noise}
    after = patched(model, changes, tmp_path / "out.pt")
    assert after.stat().st_size > path.stat().st_size  # noise does not deflate: what follows it moved
    now = torch.load(after, weights_only=True)
    assert_same(read(after), now)
    assert torch_bits(now["zeros"]) == bits(changes["zeros"])
    assert torch_bits(now["double"]) == bits(model.tensors["double"].load())
    with zipfile.ZipFile(after) as new:
        assert new.testzip() is None


@BOTH
def test_overlapping_views_are_not_both_changed(tmp_path: Path, legacy: bool) -> None:
    w = torch.randn(6, 6)
    path = save({"all": w, "part": w[1:3], "left": w[:, :3], "right": w[:, 3:], "again": w,
                 "wide": torch.ones(3).expand(4, 3)}, tmp_path / "m.pt", legacy)
    model = read(path)
    for names in (["all", "part"], ["left", "part"]):
        with pytest.raises(UnsupportedModel, match=f"'{names[0]}' and '{names[1]}' overlap"):
            patched(model, halved(model, names), tmp_path / "no.pt")
    with pytest.raises(UnsupportedModel, match="'wide' has elements that share"):
        patched(model, halved(model, ["wide"]), tmp_path / "no.pt")
    with pytest.raises(UnsupportedModel, match="'again' and 'all' are one tensor"):
        ones = np.ones((6, 6), np.float32)
        patched(model, {"all": ones, "again": ones * 0}, tmp_path / "no.pt")
    interleaved = halved(model, ["left", "right"])
    now = torch.load(patched(model, interleaved, tmp_path / "yes.pt"), weights_only=True)
    assert torch_bits(now["all"]) == torch_bits(w / 2)


def test_a_patch_of_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = save({"w": torch.ones(3, 3)}, tmp_path / "m.pt")
    model = read(path)
    changes = halved(model, ["w"])
    save({"w": torch.zeros(3, 3)}, path)
    with pytest.raises(UnreadableModel, match="changed"):
        patched(model, changes, tmp_path / "out.pt")


def test_big_endian_archives(tmp_path: Path) -> None:
    state = {
        "w": torch.randn(3, 4).t(), "h": torch.randn(5).bfloat16(),
        "c": torch.randn(3, dtype=torch.complex64),
        "b": torch.tensor([True, False]), "e": torch.randn(4).to(torch.float8_e5m2),
    }
    path, swapped = save(state, tmp_path / "m.pt"), tmp_path / "big.pt"
    widths = {"0": 4, "1": 2, "2": 4, "3": 1, "4": 1}
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(swapped, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if "/data/" in name:
                data = np.frombuffer(data, f"<u{widths[name[-1]]}").byteswap().tobytes()
            new.writestr(name, b"big" if name.endswith("byteorder") else data)
    model = read(swapped)
    assert_same(model, torch.load(swapped, weights_only=True))
    assert_same(model, state)
    after = patched(model, halved(model, ["w", "h"]), tmp_path / "out.pt")
    assert_same(read(after), state | {"w": state["w"] / 2, "h": state["h"] / 2})
    assert torch_bits(torch.load(after, weights_only=True)["w"]) == torch_bits(state["w"] / 2)


class Mine(torch.Tensor):
    """A tensor of another class."""


# Which of the tensors are the weights

SD = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}
ADAM = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.1}]}
GAN = {"generator": SD, "discriminator": {"d.weight": torch.ones(3, 3)}, "optim_g": ADAM, "epoch": 1}
PLAIN = ["fc.weight", "fc.bias"]

CHOICES = {
    "flat": (SD, PLAIN, [], ""),
    "state_dict": ({"state_dict": SD, "optimizer_states": [ADAM], "epoch": 2, "best": torch.tensor(0.1)},
                   PLAIN, ["optimizer_states", "best"], "'state_dict'"),
    "two deep": ({"model": {"state_dict": SD, "ema": SD}}, PLAIN, ["model"], "'model.state_dict'"),
    "unknown name": ({"my_net": SD, "lr": 0.1}, PLAIN, [], "'my_net'"),
    "model and ema": ({"model": SD, "model_ema": SD}, PLAIN, ["model_ema"], "'model'"),
    "only ema": ({"params_ema": SD, "iter": torch.tensor(3)}, PLAIN, ["iter"], "'params_ema'"),
    "gan": (GAN, [*(f"generator.{n}" for n in PLAIN), "discriminator.d.weight"], ["optim_g"], "together"),
    "list": ([SD, SD], [f"{i}.{n}" for i in (0, 1) for n in PLAIN], [], "together"),
    "nested": ({"enc": {"l1": SD, "l2": SD}}, [f"l{i}.{n}" for i in (1, 2) for n in PLAIN], [], "'enc'"),
    "ldm's ema": (SD | {"model_ema.fcweight": torch.ones(2, 3)}, PLAIN, ["model_ema.fcweight"], ""),
    "a layer named ema": (SD | {"ema.weight": torch.ones(9, 9)}, [*PLAIN, "ema.weight"], [], ""),
    "optimizer only": (ADAM, [], ["state"], ""),
    "one tensor": (torch.ones(2, 2), ["tensor"], [], ""),
    "odd keys": ({1: torch.ones(2, 2), (1, 2): torch.ones(1)}, ["1", "<tuple>"], [], ""),
    "named alike": ({"a.b": torch.ones(1), "a": {"b": torch.ones(2)}}, ["a.b", "a.b#2"], [], ""),
    "opaque beside": ({"model": SD, "args": argparse.Namespace(x=torch.ones(2, 2))}, PLAIN, ["args"],
                      "argparse.Namespace"),
    "storage": ({"model": SD, "s": torch.UntypedStorage(4)}, PLAIN, ["s"], ""),
}


@BOTH
@pytest.mark.parametrize("case", CHOICES)
def test_the_weights_are_found_and_the_rest_is_accounted_for(tmp_path: Path, case: str, legacy: bool) -> None:
    value, names, left, note = CHOICES[case]
    model = read(save(value, tmp_path / "m.pt", legacy))
    assert list(model.tensors) == names
    assert [x.name for x in model.left_out] == left
    assert note in " ".join(model.notes)


@BOTH
def test_a_key_chooses_and_a_wrong_one_lists_the_keys(tmp_path: Path, legacy: bool) -> None:
    path = save(GAN, tmp_path / "m.pt", legacy)
    model = read(path, "discriminator")
    assert list(model.tensors) == ["d.weight"]
    assert {x.name for x in model.left_out} == {"generator", "optim_g"}
    assert "exp_avg" in read(path, "optim_g.state.0").tensors
    assert "generator.fc.weight" in read(path, ".").tensors
    with pytest.raises(UsageError, match="possible keys: generator, discriminator, optim_g, optim_g.state"):
        read(path, "nothing")


@BOTH
def test_what_only_foreign_code_can_build_is_refused_and_named(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "m.pt"
    for value, named in ((nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
                         ({"model": nn.Linear(2, 2), "epoch": 1}, "torch.nn.modules.linear.Linear"),
                         (argparse.Namespace(lr=1), "argparse.Namespace")):
        with pytest.raises(RefusedModel, match=rf"{named}.*model.state_dict\(\)") as caught:
            read(save(value, path, legacy))
        assert "\n" not in str(caught.value)
    mixed = {"net": SD, "model": nn.Linear(2, 2)}
    model = read(save(mixed, path, legacy))
    assert list(model.tensors) == PLAIN and "Linear" in model.left_out[0].reason
    with pytest.raises(EmptyModel):
        read(save({"epoch": 3}, path, legacy))


def test_tensors_that_are_not_plain_are_left_out_with_the_reason(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save(SD | {
            "sparse": torch.eye(3).to_sparse(), "meta": torch.empty(2, 2, device="meta"),
            "conjugated": torch.ones(2, 2, dtype=torch.complex64).conj(), "array": np.ones((2, 2)),
            "huge": torch.ones(1).expand(2000, 2000), "mine": torch.ones(2, 2).as_subclass(Mine),
        }, tmp_path / "m.pt")
    model = read(path)
    assert list(model.tensors) == PLAIN
    reasons = {x.name: x.reason for x in model.left_out}
    for name, words in (("sparse", "sparse"), ("meta", "meta"),
                        ("array", "numpy"), ("conjugated", "conjugated"),
                        ("huge", "expands 1 stored numbers to 4000000"),
                        ("mine", "subclass test_pytorch.Mine")):
        assert words in reasons[name]
    assert all(x.missed for x in model.left_out)
    packed = view(storage("0", 8, "QUInt4x2Storage"), (4, 2), (2, 1))
    path = torch_file(tmp_path / "n.pt", mapping({"q": packed}), {"0": b"1234"})
    (nibbles,) = read(path).left_out
    assert "smaller than a byte" in nibbles.reason and nibbles.missed


# Archives with code in them


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.Conv1d(1, 2, 3))
        self.head = nn.Linear(4, 3)
        self.head.weight = self.body[0].weight
        self.register_buffer("scale", torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) + self.body[0](x) * self.scale + torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scripted") / "m.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; its files live on
        torch.manual_seed(0)
        torch.jit.trace(Net(), torch.ones(2, 4)).save(path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        torch.export.save(torch.export.export(Net(), (torch.ones(2, 4),)), path)
    return path


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """The state dict as torch reads it; this does run the file's code, which these tests made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".pt2":
            return dict(torch.export.load(path).state_dict)
        return dict(torch.jit.load(path).state_dict())


@pytest.mark.parametrize("kind", ["scripted", "program"])
def test_torchscript_and_exported_programs(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = request.getfixturevalue(kind)
    expected = loaded(path)
    model = read(path)
    assert "its code was not run" in " ".join(model.notes)
    for name, tensor in expected.items():
        assert bits(model.tensors[name].load()) == torch_bits(tensor)
    constants = [n for n in model.tensors if n not in expected]
    assert any(model.tensors[n].load().tolist() == [1.0, 2.0, 3.0] for n in constants)
    assert {"body.0.weight", "head.weight", "scale"} <= set(model.tensors)
    assert model.tensors["body.0.weight"].place == model.tensors["head.weight"].place
    assert any("example inputs" in x.reason for x in model.left_out)
    changes = halved(model, ["head.weight"])
    now = loaded(patched(model, changes, tmp_path / f"out{path.suffix}"))
    for name, tensor in expected.items():
        tied = name in ("head.weight", "body.0.weight")
        assert torch_bits(now[name]) == torch_bits(tensor / 2 if tied else tensor)


# Hostile and damaged files


@BOTH
def test_a_mutant_is_refused_or_read_as_if_it_were_whole(tmp_path: Path, legacy: bool) -> None:
    """With CRCs, no change of a byte may change a value; legacy files have none, and must just not crash."""
    state = {"a.weight": torch.randn(3, 4), "b.weight": torch.randn(4, 3).t(), "c": torch.ones(2).half()}
    path = save({"model": state, "args": argparse.Namespace(lr=1.0)}, tmp_path / "m.pt", legacy)
    whole, mutant, rng = path.read_bytes(), tmp_path / "mutant.pt", random.Random(11)
    reference = {name: bits(tensor.load()) for name, tensor in read(path).tensors.items()}
    read_well = 0
    for round_ in range(700):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            # most hit the structure: the pickles are at the front, the directory at the end
            edge = rng.randrange(min(900, len(data)))
            at = rng.choice((rng.randrange(len(data)), edge, -1 - edge))
            data[at] = rng.choice((rng.randrange(256), data[at] ^ 1 << rng.randrange(8), 0, 255))
        if round_ % 10 == 0:
            del data[rng.randrange(1, len(data)):]
        mutant.write_bytes(data)
        try:
            source = Source(mutant)
            known = next((f for f in ALL if f.sniff(source)), None)
            model = known.read(source, None) if known else None
            values = {name: bits(tensor.load()) for name, tensor in model.tensors.items()} if model else {}
        except ModelError as error:
            assert "\n" not in str(error) and "\x1b" not in str(error)
            continue
        finally:
            source.close()
        read_well += bool(values)
        assert legacy or not values or values == reference
    assert read_well


def test_a_mutant_pickle_under_right_checksums_is_refused_or_read(tmp_path: Path) -> None:
    """Behind the CRCs: whatever the pickle says, the file is refused or its tensors are what they claim."""
    path = save({"model": _weights(), "args": argparse.Namespace(lr=1.0)}, tmp_path / "m.pt")
    mutant, rng, read_well = tmp_path / "mutant.pt", random.Random(13), 0
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    for _ in range(500):
        data = bytearray(records["m/data.pkl"])
        for _ in range(rng.choice((1, 1, 2, 5))):
            at, length = rng.randrange(len(data)), rng.randrange(1, 20)
            copied = data[(start := rng.randrange(len(data))) : start + length]
            new_bytes = rng.choice((bytes([rng.randrange(256)]), copied, b""))
            data[at : at + rng.choice((0, 1, length))] = new_bytes
        with zipfile.ZipFile(mutant, "w") as new:
            for name, content in records.items():
                new.writestr(name, bytes(data) if name == "m/data.pkl" else content)
        try:
            model = read(mutant)
            for tensor in model.tensors.values():
                assert tensor.load().shape == tensor.shape
                read_well += 1
        except ModelError as error:
            assert "\n" not in str(error) and "\x1b" not in str(error)
    assert read_well


class Canary:
    """Pickles as a call that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@BOTH
def test_nothing_in_a_file_is_called(tmp_path: Path, legacy: bool) -> None:
    fired = tmp_path / "fired"
    model = read(save({"model": SD, "extra": Canary(fired)}, tmp_path / "m.pt", legacy))
    assert list(model.tensors) == PLAIN
    assert any("posix.mkdir" in note or "nt.mkdir" in note for note in model.notes)
    with pytest.raises(RefusedModel, match="mkdir"):
        read(save(Canary(fired), tmp_path / "n.pt", legacy))
    assert not fired.exists()


def test_memory_follows_the_largest_tensor(tmp_path: Path) -> None:
    size = 1 << 20
    path = save({f"{i}": torch.ones(1024, 1024) for i in range(8)}, tmp_path / "m.pt")
    tracemalloc.start()
    try:
        model = read(path)
        for tensor in model.tensors.values():
            tensor.load()
        assert tracemalloc.get_traced_memory()[1] < 4 * size * 3
        tracemalloc.reset_peak()
        patched(model, {"3": np.zeros((1024, 1024), np.float32)}, tmp_path / "out.pt")
        assert tracemalloc.get_traced_memory()[1] < 4 * size * 5
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["mask/WFC3-UVIS.pth", "mask/decam.pth", "inpaint/ACS-WFC-F606W-2-32.pth"])
def test_real_checkpoints_are_as_torch_reads_them(models: Path, name: str) -> None:
    path = models / "learned_models" / name
    assert_same(read(path), torch.load(path, map_location="cpu", weights_only=True))


@pytest.mark.parametrize("name", ["pnet", "rnet", "onet"])
def test_real_legacy_views_are_patched_in_place(models: Path, tmp_path: Path, name: str) -> None:
    path = models / "facenet_pytorch" / "data" / f"{name}.pt"
    model, was = read(path), torch.load(path, weights_only=True)
    assert_same(model, was)
    matrices = [n for n, t in model.tensors.items() if len(t.shape) > 1]
    assert any(not was[n].is_contiguous() for n in matrices)
    now = torch.load(patched(model, halved(model, matrices), tmp_path / "out.pt"), weights_only=True)
    for n, tensor in was.items():
        assert torch_bits(now[n]) == torch_bits(tensor / 2 if n in matrices else tensor)
        assert now[n].stride() == tensor.stride()


def test_other_real_files(models: Path) -> None:
    pesto = read(models / "pesto" / "weights" / "mir-1k_g7.ckpt")
    assert "encoder.fc.weight" in pesto.tensors and "omegaconf.dictconfig.DictConfig" in " ".join(pesto.notes)
    silero = read(models / "silero_vad" / "data" / "silero_vad.jit")
    assert silero.tensors["_model.decoder.rnn.weight_ih"].shape == (512, 128)
    albert = next(models.glob("rxnmapper/models/transformers/*/pytorch_model.bin"))
    assert_same(read(albert), torch.load(albert, map_location="cpu", weights_only=True))
    with pytest.raises(RefusedModel, match="argparse.Namespace"):
        read(albert.with_name("training_args.bin"))


def test_a_tar_and_a_plain_pickle_are_named_for_what_they_are(tmp_path: Path) -> None:
    import pickle
    import tarfile

    path = tmp_path / "m.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"), io.BytesIO(b""))
    with pytest.raises(UnsupportedModel, match="tar archive"):
        read(path)
    path.write_bytes(pickle.dumps({"w": 1}, protocol=4))
    with pytest.raises(UnsupportedModel, match="torch.save did not write"):
        read(path)
