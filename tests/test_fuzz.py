"""Seeded mutants of small sound files of every format: each is read rightly or refused, nothing else.

Only a ModelError may come out; nothing may run, nothing outside the folder may be opened, time and
memory are bounded. What survives is compared with another library's reading of the same bytes,
where that library accepts them: two readers must not see two models.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import signal
import struct
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpus_onnx
import numpy as np
import onnx
import pytest
from containers import (
    NONE,
    Member,
    legacy,
    legacy_storage,
    mapping,
    storage,
    tensor,
    text,
    torch_members,
    view,
    zipped,
)
from corpus import matrix
from corpus_safetensors import entry, file_of
from forked import FORBIDDEN, OWN_LIBRARIES
from onnx import TensorProto, helper, numpy_helper
from references import REFERENCES

from snaudit import formats, pipeline
from snaudit.errors import EmptyModel, ModelError

MUTANTS = 400
"""For each of the eleven seeds."""
SLOWEST = 3.0
GROWTH = 600 << 20
W, OTHER = matrix(rows=3, columns=4), matrix(seed=5, rows=4, columns=3)
TINY = [0, 1, 2, 3, 0x7F, 0x80, 0xFF]
WIDE = [0, 1, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def _npz(method: int) -> bytes:
    members = []
    for name, array in (("a", W), ("b", np.asfortranarray(OTHER.astype(">f8"))), ("c", np.arange(4))):
        buffer = io.BytesIO()
        np.save(buffer, array)
        members.append(Member(f"{name}.npy", buffer.getvalue(), method=method))
    return zipped(*members)


def _torch_body() -> tuple[bytes, dict[str, bytes]]:
    shared = storage("1", 12)
    body = {
        "a.weight": tensor(W),
        "b.weight": view(shared, (3, 4), (1, 3)),
        "b.tied": view(shared, (2, 2), (3, 1), 4),
    }
    return mapping({"state_dict": mapping(body), "epoch": text("3")}), {
        "0": W.tobytes(),
        "1": OTHER.tobytes(),
    }


def _onnx_branches() -> bytes:
    def branch(weight: np.ndarray, tag: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Gemm", ["x", f"w_{tag}"], [f"o_{tag}"], transB=1)],
            tag,
            [],
            [helper.make_tensor_value_info(f"o_{tag}", 1, None)],
            [numpy_helper.from_array(weight, f"w_{tag}")],
        )

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch(W, "t"), else_branch=branch(W + 1, "e"))
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", 1, [1, 4]),
        ],
        [helper.make_tensor_value_info("y", 1, None)],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def _seeds() -> dict[str, bytes]:
    body, records = _torch_body()
    n = W.nbytes
    two = {"__metadata__": {"format": "pt"}, "a": entry([3, 4], 0, n), "b": entry([4, 3], n, 2 * n)}
    mixed = {
        "a": entry([3, 4], 0, 24, "BF16"),
        "i": entry([3], 24, 36, "I32"),
        "e": entry([0, 4], 36, 36),
        "f": entry([2, 2], 36, 40, "F8_E4M3"),
    }
    half = TensorProto(
        name="w", dims=(5, 7), data_type=TensorProto.FLOAT16, int32_data=range(0, 35 * 300, 300)
    )
    listed = TensorProto(name="w", dims=(5, 7), data_type=1, float_data=[float(i) for i in range(35)])
    held = view(storage("7", 12, tail=NONE), (3, 4), (4, 1))
    return {
        "torch": zipped(*torch_members(body, records)),
        "torch_deflated": _deflated(torch_members(body, records)),
        "legacy": legacy(mapping({"a": held}), b"]" + text("7") + b"a", legacy_storage(W)),
        "npz": _npz(0),
        "npz_deflated": _npz(8),
        "safetensors": file_of(two, W.tobytes() + OTHER.tobytes()),
        "safetensors_mixed": file_of(mixed, bytes(range(40))),
        "onnx_raw": corpus_onnx.gemm().SerializeToString(),
        "onnx_half": corpus_onnx.gemm(half).SerializeToString(),
        "onnx_list": corpus_onnx.gemm(listed).SerializeToString(),
        "onnx_branches": _onnx_branches(),
    }


def _deflated(members: list[Member]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for m in members:
            archive.writestr(m.name, m.data)
    return buffer.getvalue()


def mutant(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A damaged copy, spliced with parts of `other`. A zip is often repacked around a damaged member."""
    if data[:4] == b"PK\3\4" and rng.random() < 0.7:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [Member(name, archive.read(name)) for name in archive.namelist()]
        chosen = rng.randrange(len(members)) if rng.random() < 0.5 else 0
        content = damaged(rng, members[chosen].data, members[rng.randrange(len(members))].data)
        members[chosen] = Member(members[chosen].name, content)
        if rng.random() < 0.1:
            members.insert(rng.randrange(len(members)), members[rng.randrange(len(members))])
        return zipped(*members)
    return damaged(rng, data, other)


def damaged(rng: random.Random, data: bytes, other: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            break
        at, span = rng.randrange(len(out)), rng.choice((1, 2, 4, 8, 16, 64))
        match rng.randrange(11):
            case 0 | 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                out[at] = rng.choice(TINY)
            case 3:
                del out[at:]
            case 4:
                del out[at : at + span]
            case 5:
                out[at:at] = out[at : at + span]
            case 6:
                start = rng.randrange(len(other) or 1)
                out[at : at + rng.choice((0, span))] = other[start : start + span]
            case 7:
                out[at : at + 4] = struct.pack("<I", rng.choice(WIDE) & 0xFFFFFFFF)
            case 8:
                out[at : at + 8] = struct.pack("<Q", rng.choice(WIDE))
            case 9:
                digits = [i for i, byte in enumerate(out) if 48 <= byte <= 57]
                if digits:
                    i = rng.choice(digits)
                    out[i : i + 1] = rng.choice(
                        (b"0", b"9", b"-1", b"1e9", b"99999999999999999999", b"1.0", b"true")
                    )
            case 10:
                where = rng.randrange(len(out))
                out[at : at + span], out[where : where + span] = (
                    out[where : where + span],
                    out[at : at + span],
                )
    return bytes(out)


class TooSlow(BaseException):
    pass


@pytest.fixture(scope="module")
def watch() -> Iterator[dict[str, Any]]:
    """While `watch["root"]` is set, an event that reading must not cause is noted in `watch["seen"]`."""
    state: dict[str, Any] = {"root": None, "seen": []}

    def hook(event: str, details: tuple[object, ...]) -> None:
        root = state["root"]
        if root is None:
            return
        path = details[0] if event == "open" else None
        if (
            event in FORBIDDEN
            or event == "compile"
            or (isinstance(path, (str, bytes)) and not os.fsdecode(path).startswith((root, OWN_LIBRARIES)))
        ):
            state["seen"].append(ascii((event, details))[:300])

    def late(signum: int, frame: object) -> None:
        raise TooSlow

    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    sys.addaudithook(hook)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), limits[1]))
    yield state
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.signal(signal.SIGALRM, before)
    state["root"] = None


def loaded(path: Path) -> dict[str, np.ndarray] | None:
    """Every tensor of the file, or None if it is refused. Whatever else goes wrong goes through."""
    try:
        model = formats.read(path)
        held = {name: tensor.load() for name, tensor in model.tensors.items()}
        if path.name == "audited":
            with contextlib.suppress(EmptyModel):
                pipeline.audit(path)
        return held
    except ModelError as error:
        assert str(error).startswith(str(path)), error
        return None


@pytest.mark.parametrize("kind", list(_seeds()))
def test_mutants(kind: str, tmp_path: Path, watch: dict[str, Any]) -> None:
    seeds = _seeds()
    rng = random.Random(f"snaudit {kind}")
    path = tmp_path / "audited"
    path.write_bytes(seeds[kind])
    assert loaded(path), "the seed itself must be read"
    memory, accepted, compared = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, 0
    for number in range(MUTANTS):
        data = mutant(rng, seeds[kind], seeds[rng.choice(list(seeds))])
        path.write_bytes(data)
        place = f"mutant {number} of {kind}: {data.hex() if len(data) < 3000 else data[:3000].hex()}"
        watch["root"] = str(tmp_path)
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, SLOWEST)
        try:
            tensors = loaded(path)
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error} from {place}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            watch["root"] = None
        assert not watch["seen"], f"{watch['seen']} by {place}"
        assert time.monotonic() - started < SLOWEST, place
        if tensors is not None:
            accepted += 1
            compared += differs(kind, data, tensors, place)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < GROWTH >> 10
    assert MUTANTS // 100 <= accepted < MUTANTS, (
        f"{accepted} of {MUTANTS} accepted: the mutants are too weak or too strong"
    )
    assert compared >= accepted // 4 or kind == "legacy", f"only {compared} of {accepted} compared"


def differs(kind: str, data: bytes, ours: dict[str, np.ndarray], place: str) -> bool:
    """Whether another library read the bytes; AssertionError if it saw other numbers in a tensor of ours."""
    theirs = REFERENCES[kind.split("_")[0]](data)
    if theirs is None:
        return False
    for name, array in ours.items():
        if name in theirs:
            mine = np.ascontiguousarray(array)
            other = np.ascontiguousarray(theirs[name])
            assert mine.shape == other.shape, f"{name}: {mine.shape} and {other.shape} in {place}"
            native = mine.astype(mine.dtype.newbyteorder("=")) if mine.dtype.kind != "V" else mine
            assert native.tobytes() == other.astype(other.dtype.newbyteorder("=")).tobytes(), (
                f"{name} in {place}"
            )
    return True
