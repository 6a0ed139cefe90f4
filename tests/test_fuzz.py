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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import corpus_onnx
import ml_dtypes
import numpy as np
import onnx
import pytest
import safetensors
from containers import NONE, Member, legacy, legacy_storage, mapping, storage, tensor, text, torch_members, view, zipped
from corpus import matrix
from corpus_safetensors import entry, file_of
from forked import FORBIDDEN
from onnx import TensorProto, helper, numpy_helper

from snaudit import formats, pipeline
from snaudit.errors import EmptyModel, ModelError

MUTANTS = int(os.environ.get('FZ', 400))
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
    body = {"a.weight": tensor(W), "b.weight": view(shared, (3, 4), (1, 3)), "b.tied": view(shared, (2, 2), (3, 1), 4)}
    return mapping({"state_dict": mapping(body), "epoch": text("3")}), {"0": W.tobytes(), "1": OTHER.tobytes()}


def _onnx_branches() -> bytes:
    def branch(weight: np.ndarray, tag: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node("Gemm", ["x", f"w_{tag}"], [f"o_{tag}"], transB=1)], tag, [],
                                 [helper.make_tensor_value_info(f"o_{tag}", 1, None)], [numpy_helper.from_array(weight, f"w_{tag}")])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch(W, "t"), else_branch=branch(W + 1, "e"))
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", 1, [1, 4])],
                              [helper.make_tensor_value_info("y", 1, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def _seeds() -> dict[str, bytes]:
    body, records = _torch_body()
    n = W.nbytes
    two = {"__metadata__": {"format": "pt"}, "a": entry([3, 4], 0, n), "b": entry([4, 3], n, 2 * n)}
    mixed = {"a": entry([3, 4], 0, 24, "BF16"), "i": entry([3], 24, 36, "I32"), "e": entry([0, 4], 36, 36), "f": entry([2, 2], 36, 40, "F8_E4M3")}
    half = TensorProto(name="w", dims=(5, 7), data_type=TensorProto.FLOAT16, int32_data=range(0, 35 * 300, 300))
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
    """A damaged copy; `other` is what spliced parts come from. A zip is often repacked around a damaged member."""
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
                del out[at:at + span]
            case 5:
                out[at:at] = out[at:at + span]
            case 6:
                start = rng.randrange(len(other) or 1)
                out[at:at + rng.choice((0, span))] = other[start:start + span]
            case 7:
                out[at:at + 4] = struct.pack("<I", rng.choice(WIDE) & 0xFFFFFFFF)
            case 8:
                out[at:at + 8] = struct.pack("<Q", rng.choice(WIDE))
            case 9:
                digits = [i for i, byte in enumerate(out) if 48 <= byte <= 57]
                if digits:
                    i = rng.choice(digits)
                    out[i:i + 1] = rng.choice((b"0", b"9", b"-1", b"1e9", b"99999999999999999999", b"1.0", b"true"))
            case 10:
                where = rng.randrange(len(out))
                out[at:at + span], out[where:where + span] = out[where:where + span], out[at:at + span]
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
        if event in FORBIDDEN or event == "compile" or (isinstance(path, (str, bytes)) and not os.fsdecode(path).startswith(root)):
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
    assert MUTANTS // 100 <= accepted < MUTANTS, f"{accepted} of {MUTANTS} accepted: the mutants are too weak or too strong"
    assert compared >= accepted // 4 or kind == "legacy", f"only {compared} of {accepted} compared"


_VALUES: dict[str, list[object]] = {
    "INT": [0, 1, -1, 2, 7, 1 << 62, -(1 << 63)], "FLOAT": [0.0, 0.5, -1.0, float("nan"), float("inf"), 1e-300],
    "STRING": ["SAME_UPPER", "SAME_LOWER", "VALID", "", "\x1b[31m", "linear", "DCR", "bidirectional", "sum"],
    "INTS": [[0], [1, 1], [2, 2], [-1, 3], [3, 3], [1, 1, 1, 1], [2, 2, 2, 2], [1 << 40] * 2, [0, 0], [-1], []],
    "FLOATS": [[0.5, 2.0], [float("nan")]], "STRINGS": [["Relu", "Tanh"], ["x"]],
    "TENSOR": [numpy_helper.from_array(W), numpy_helper.from_array(np.zeros((0,), np.int64)), numpy_helper.from_array(np.ones(1, np.float32))],
}


def _attribute(rng: random.Random, name: str, kind: str) -> onnx.AttributeProto:
    kind = kind if kind in _VALUES and rng.random() < 0.97 else rng.choice(list(_VALUES))
    value = rng.choice(_VALUES[kind])
    return helper.make_attribute(name, value, attr_type=onnx.AttributeProto.INTS if value == [] else None)


def _nonsense(rng: random.Random) -> onnx.ModelProto:
    """A model of three random ops with attributes and inputs of any kind."""
    constants = {"w": W, "v": W[0], "s": np.float32(2), "k": matrix(rows=6, columns=12).reshape(6, 3, 2, 2), "i": np.array([0, 1]),
                 "j": np.array(-1), "huge": np.array([1 << 40, 1 << 40]), "e": np.zeros((0, 4), np.float32), "nan": np.float32(np.nan),
                 "t": np.array(["a"], dtype=object), "b": np.array(True), "d": W.astype(np.float64), "q": W.astype(np.int8)}
    made, nodes = ["x"], []
    for number in range(3):
        schema = rng.choice(_SCHEMAS)
        wanted = rng.randint(schema.min_input, max(schema.min_input, min(schema.max_input, 4)))
        ins = [rng.choice((made[-1], made[-1], *constants, *made)) if rng.random() < 0.97 else "" for _ in range(wanted)]
        outs = rng.randint(max(1, schema.min_output), max(1, min(schema.max_output, 3)))
        node = helper.make_node(schema.name, ins, [f"n{number}", *(f"n{number}_{i}" for i in range(1, outs))])
        node.attribute.extend(_attribute(rng, name, a.type.name) for name, a in schema.attributes.items() if a.required or rng.random() < 0.4)
        nodes.append(node)
        made += list(node.output)
    nodes.append(helper.make_node("Gemm", ["x", "w"], ["out"], transB=1))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, rng.choice(([2, 4], ["n", 4], [1, 3, 8, 8], None)))],
                              [helper.make_tensor_value_info(name, 1, None) for name in ("out", f"n{number}")],
                              [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", rng.choice((7, 11, 13, 17, 21)))], ir_version=8)


_SCHEMAS = sorted((s for s in onnx.defs.get_all_schemas() if s.domain == ""), key=lambda s: s.name)


def test_nodes_without_sense(tmp_path: Path, watch: dict[str, Any]) -> None:
    """Any op with any attributes and inputs: a report or a refusal, within bounds, for every graph."""
    rng = random.Random("snaudit nonsense")
    path = tmp_path / "audited"
    accepted = 0
    for number in range(MUTANTS * 3):
        model = _nonsense(rng)
        path.write_bytes(model.SerializeToString())
        signal.setitimer(signal.ITIMER_REAL, SLOWEST)
        try:
            accepted += loaded(path) is not None
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error} from graph {number}: {onnx.printer.to_text(model)}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert accepted > MUTANTS


def differs(kind: str, data: bytes, ours: dict[str, np.ndarray], place: str) -> bool:
    """Whether another library read the same bytes; AssertionError if it saw other numbers in a tensor of ours."""
    theirs = REFERENCES[kind.split("_")[0]](data)
    if theirs is None:
        return False
    for name, array in ours.items():
        if name in theirs:
            mine = np.ascontiguousarray(array)
            other = np.ascontiguousarray(theirs[name])
            assert mine.shape == other.shape, f"{name}: {mine.shape} and {other.shape} in {place}"
            native = mine.astype(mine.dtype.newbyteorder("=")) if mine.dtype.kind != "V" else mine
            assert native.tobytes() == other.astype(other.dtype.newbyteorder("=")).tobytes(), f"{name} in {place}"
    return True


def _safetensors(data: bytes) -> dict[str, np.ndarray] | None:
    try:
        held = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        if "unknown variant" in str(error):  # a dtype it does not know: we list that tensor as left out
            return None
        raise AssertionError(f"safetensors refuses it ({error}), snaudit does not: {data!r}") from error
    kinds = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "F32": np.float32,
             "F16": np.float16, "F64": np.float64, "I32": np.int32, "I8": np.int8, "U8": np.uint8, "I64": np.int64, "I16": np.int16}
    return {name: np.frombuffer(t["data"], kinds[t["dtype"]]).reshape(t["shape"]) for name, t in held.items() if t["dtype"] in kinds}


def _numpy(data: bytes) -> dict[str, np.ndarray] | None:
    found = {}
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            for name in held.files:
                found[name] = held[name]
    except Exception:  # whatever numpy raises, it did not read the file: nothing to compare
        return None
    return found


def _onnx(data: bytes) -> dict[str, np.ndarray] | None:
    def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from graphs(attribute.g)

    try:
        model = onnx.load_model_from_string(data)
        held = [t for graph in graphs(model.graph) for t in graph.initializer]
        return {t.name: numpy_helper.to_array(t) for t in held if [u.name for u in held].count(t.name) == 1}
    except Exception:  # as above
        return None


def _torch(data: bytes) -> dict[str, np.ndarray] | None:
    import torch

    try:
        held = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception:  # as above
        return None
    held = held.get("state_dict", held) if isinstance(held, dict) else {}
    floats = (torch.float32, torch.float64, torch.float16)
    plain = {k: t for k, t in held.items() if isinstance(t, torch.Tensor) and t.layout == torch.strided and t.dtype in floats} \
        if isinstance(held, dict) else {}
    return {str(name): t.numpy() for name, t in plain.items()}


REFERENCES: dict[str, Callable[[bytes], dict[str, np.ndarray] | None]] = {
    "safetensors": _safetensors, "npz": _numpy, "onnx": _onnx, "torch": _torch, "legacy": _torch,
}
