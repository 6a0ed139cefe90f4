"""Rule 7: external data that climbs or lies, and each element type in each of its encodings."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from corpus import Case, audited, either, matrix, refused
from corpus_onnx import gemm, put_model
from onnx import TensorProto

W = matrix()
FLOAT = TensorProto.FLOAT


def cases(folder: Path) -> list[Case]:
    return [*_external(folder), *_kinds(folder)]


def outside(location: str, **entries: object) -> TensorProto:
    """The weight with its bytes in another file."""
    held = TensorProto(name="w", dims=(5, 7), data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        held.external_data.add(key=key, value=str(value))
    return held


def _external(folder: Path) -> list[Case]:
    secret = folder / "secret.bin"
    secret.write_bytes(W.tobytes())

    def put(tag: str, held: TensorProto, data: bytes | None = W.tobytes()) -> Path:
        place = folder / f"external_{tag}"
        place.mkdir()
        if data is not None:
            (place / "w.bin").write_bytes(data)
        return put_model(place, f"external_{tag}", gemm(held))

    def keyed(*pairs: tuple[str, str]) -> TensorProto:
        held = outside("w.bin")
        for key, value in pairs:
            held.external_data.add(key=key, value=value)
        return held

    with_raw = outside("w.bin")
    with_raw.raw_data = W.tobytes()
    no_location = outside("w.bin")
    del no_location.external_data[:]
    broken = {
        "climbs": outside("../secret.bin"),
        "climbs_inside": outside("x/../../secret.bin"),
        "absolute": outside(str(secret)),
        "backslash": outside("..\\secret.bin"),
        "nul": outside("w.bin\0x"),
        "empty_location": outside(""),
        "dot": outside("."),
        "missing": outside("absent.bin"),
        "newline": outside("a\nb\x1b[31m"),
        "no_location": no_location,
        "twice": keyed(("location", "v.bin")),
        "offset_beyond": outside("w.bin", offset=141),
        "offset_negative": outside("w.bin", offset=-4),
        "offset_text": outside("w.bin", offset="x"),
        "offset_huge": outside("w.bin", offset=1 << 70),
        "length_short": outside("w.bin", length=136),
        "length_long": outside("w.bin", length=144),
        "length_negative": outside("w.bin", length=-1),
        "offset_twice": keyed(("offset", "0"), ("offset", "4")),
        "checksum_wrong": outside("w.bin", checksum="0" * 40),
        "and_raw": with_raw,
        "underscored": outside("w.bin", offset="1_0"),
        "name_too_long": outside("n" * 5000),
        "url": outside("https://example.org/w.bin"),
        "proc": outside("/proc/self/mem", length=140),
        "the_model_itself": outside("external_the_model_itself.onnx", offset=10**6),
    }
    found = [refused("7", put(tag, held)) for tag, held in broken.items()]
    for tag, target in (
        ("link_out", secret),
        ("link_to_device", "/dev/zero"),
        ("link_loop", "w.bin"),
        ("link_dangling", "absent"),
    ):
        path = put(tag, outside("w.bin"), None)
        os.symlink(target, path.parent / "w.bin")
        found.append(refused("7", path))
    linked_folder = put("folder_link_out", outside("sub/secret.bin"), None)
    os.symlink("..", linked_folder.parent / "sub")
    pipe, short = put("fifo", outside("w.bin"), None), put("short", outside("w.bin"), W.tobytes()[:-1])
    os.mkfifo(pipe.parent / "w.bin")
    is_folder = put("folder", outside("w.bin"), None)
    (is_folder.parent / "w.bin").mkdir()
    found += [refused("7", p) for p in (linked_folder, pipe, short, is_folder)]
    cache = folder / "cache"
    for part in ("blobs", "snapshots/1"):
        (cache / part).mkdir(parents=True)
    put_model(cache / "blobs", "m", gemm(outside("w.bin")))
    (cache / "blobs/w").write_bytes(W.tobytes())
    os.symlink("../../blobs/m.onnx", cache / "snapshots/1/external_cached.onnx")
    os.symlink("../../blobs/w", cache / "snapshots/1/w.bin")
    digest = hashlib.sha1(W.tobytes()).hexdigest()
    return found + [
        audited("7", cache / "snapshots/1/external_cached.onnx", {"w": W}),
        audited("7", put("plain", outside("w.bin")), {"w": W}),
        audited(
            "7",
            put("with_offset", outside("w.bin", offset=8, length=140), b"12345678" + W.tobytes() + b"end"),
            {"w": W},
        ),
        audited("7", put("with_checksum", outside("w.bin", checksum=digest)), {"w": W}),
        either("7", put("unknown_key", outside("w.bin", flavour="x")), {"w": W}),
    ]


def _kinds(folder: Path) -> list[Case]:
    """Each element type in each of its encodings."""
    half, brain, e4 = W.astype(np.float16), W.astype(ml_dtypes.bfloat16), W.astype(ml_dtypes.float8_e4m3fn)

    def listed(kind: int, **fields: object) -> onnx.ModelProto:
        return gemm(TensorProto(name="w", dims=(5, 7), data_type=kind, **fields))

    def raw(kind: int, array: np.ndarray) -> onnx.ModelProto:
        return listed(kind, raw_data=array.tobytes())

    return [
        audited(
            "7",
            put_model(
                folder,
                "half_in_int32",
                listed(TensorProto.FLOAT16, int32_data=half.view(np.uint16).ravel().tolist()),
            ),
            {"w": half},
        ),
        audited(
            "7",
            put_model(
                folder,
                "brain_in_int32",
                listed(TensorProto.BFLOAT16, int32_data=brain.view(np.uint16).ravel().tolist()),
            ),
            {"w": brain},
        ),
        audited(
            "7",
            put_model(
                folder,
                "fp8_in_int32",
                listed(TensorProto.FLOAT8E4M3FN, int32_data=e4.view(np.uint8).ravel().tolist()),
            ),
            {"w": e4},
        ),
        audited(
            "7", put_model(folder, "float_in_list", listed(FLOAT, float_data=W.ravel().tolist())), {"w": W}
        ),
        audited(
            "7",
            put_model(folder, "double_in_list", listed(TensorProto.DOUBLE, double_data=W.ravel().tolist())),
            {"w": W},
        ),
        audited("7", put_model(folder, "half_raw", raw(TensorProto.FLOAT16, half)), {"w": half}),
        audited("7", put_model(folder, "brain_raw", raw(TensorProto.BFLOAT16, brain)), {"w": brain}),
        audited("7", put_model(folder, "fp8_raw", raw(TensorProto.FLOAT8E4M3FN, e4)), {"w": e4}),
        either(
            "7", put_model(folder, "integers_only", listed(TensorProto.INT32, int32_data=range(35))), None
        ),
        either("7", put_model(folder, "four_bits", listed(TensorProto.INT4, raw_data=bytes(18))), None),
        either("7", put_model(folder, "strings", listed(TensorProto.STRING, string_data=[b"x"] * 35)), None),
    ]
