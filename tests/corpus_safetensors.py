"""Rule 6: safetensors headers that lie, and sharded indexes that climb or disagree."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
from corpus import Case, audited, either, matrix, refused

W, OTHER = matrix(), matrix(seed=99)
N = W.nbytes


def cases(folder: Path) -> list[Case]:
    return [*_headers(folder), *_odd(folder), *_sharded(folder)]


def file_of(header: object, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file: `header` as JSON (or as raw text), `length` the header length it claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[object], start: object, end: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _headers(folder: Path) -> list[Case]:
    good = {"weight": entry([5, 7], 0, N)}
    raw = json.dumps(good).encode()
    data = W.tobytes()
    twice = b'{"weight":' + json.dumps(good["weight"]).encode()
    two = {"weight": entry([5, 7], 0, N), "other": entry([5, 7], N, 2 * N)}

    def shaped(shape: list[object]) -> dict[str, object]:
        return {"weight": entry(shape, 0, N)}

    def swap(old: bytes, new: bytes) -> bytes:
        assert old in raw
        return raw.replace(old, new, 1)

    contents = {
        "length_beyond": file_of(good, data, 1 << 40),
        "length_all_ones": file_of(good, data, (1 << 64) - 1),
        "length_one_short": file_of(good, data, len(raw) - 1),
        "length_one_long": file_of(good, data, len(raw) + 1),
        "length_zero": file_of(good, data, 0),
        "header_only_brace": file_of(b"{", b""),
        "header_list": file_of([1], data),
        "header_latin1": file_of(raw.replace(b"weight", b"w\xe9ight"), data),
        "header_nul_padding": file_of(raw + b"\0\0", data),
        "header_trailing_text": file_of(raw + b"x", data),
        "duplicate_tensor": file_of(twice + b"," + raw[1:], data),
        "duplicate_escaped": file_of(
            twice + b',"w\\u0065ight":' + json.dumps(good["weight"]).encode() + b"}", data
        ),
        "duplicate_field": file_of(swap(b'"dtype"', b'"dtype": "F16", "dtype"'), data),
        "field_missing": file_of({"weight": {"dtype": "F32", "shape": [5, 7]}}, data),
        "entry_no_object": file_of({"weight": 3}, data),
        "hole": file_of({"weight": entry([5, 7], 4, N + 4)}, b"\0\0\0\0" + data),
        "hole_between": file_of({**two, "other": entry([5, 7], N + 4, 2 * N + 4)}, data + b"\0\0\0\0" + data),
        "overlap": file_of({**two, "other": entry([5, 7], N - 4, 2 * N - 4)}, (data + data)[:-4]),
        "same_bytes_twice": file_of({**two, "other": entry([5, 7], 0, N)}, data),
        "trailing": file_of(good, data + b"\0"),
        "truncated": file_of(good, data[:-1]),
        "no_data": file_of(good, b""),
        "offsets_reversed": file_of({"weight": entry([5, 7], N, 0)}, data),
        "offsets_three": file_of(
            {"weight": {"dtype": "F32", "shape": [5, 7], "data_offsets": [0, N, N]}}, data
        ),
        "offset_negative": file_of({"weight": entry([5, 7], -N, 0)}, data),
        "offset_float": file_of({"weight": entry([5, 7], 0.0, float(N))}, data),
        "offset_bool": file_of({"weight": entry([1], False, True, "U8")}, b"x"),
        "offset_text": file_of({"weight": entry([5, 7], "0", str(N))}, data),
        "offset_2_64": file_of({"weight": entry([5, 7], 1 << 64, (1 << 64) + N)}, data),
        "shape_negative": file_of(shaped([-5, -7]), data),
        "shape_bool": file_of({"weight": entry([True, 7], 0, 28)}, data[:28]),
        "shape_float": file_of(shaped([5.0, 7]), data),
        "shape_none": file_of(shaped([None, 7]), data),
        "shape_huge": file_of(shaped([1 << 62, 1 << 62]), data),
        "shape_wraps": file_of(shaped([(1 << 62) + 5, 4, 7]), data),
        "shape_too_small": file_of(shaped([5, 6]), data),
        "shape_no_list": file_of({"weight": {"dtype": "F32", "shape": 35, "data_offsets": [0, N]}}, data),
        "integer_of_9000_digits": file_of(swap(b"[5, 7]", b"[" + b"9" * 9000 + b"]"), data),
        "number_nan": file_of(swap(b"[5, 7]", b"[NaN, 7]"), data),
        "number_1e999": file_of(swap(b"[5, 7]", b"[1e999, 7]"), data),
        "dtype_other_size": file_of({"weight": entry([5, 7], 0, N, "F16")}, data),
        "dtype_number": file_of({"weight": entry([5, 7], 0, N, 7)}, data),
        "dtype_list": file_of({"weight": entry([5, 7], 0, N, ["F32"])}, data),
        "metadata_list": file_of({"__metadata__": [1], **good}, data),
        "json_nested_100000": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
        "json_nested_objects": file_of(b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b""),
        "header_claims_100mb": file_of(b'{"a":[' + b"1," * 10 + b"1]}", b"", 100 << 20),
    }
    found = []
    for tag, content in contents.items():
        path = folder / f"st_{tag}.safetensors"
        path.write_bytes(content)
        found.append(refused("6", path))
    for cut in (1, 7, 8, 9, 30):
        path = folder / f"st_cut_at_{cut}.safetensors"
        path.write_bytes(file_of(good, data)[:cut])
        found.append(refused("6", path))
    for tag, content in {
        "metadata_numbers": file_of({"__metadata__": {"step": 3}, **good}, data),
        "dtype_unknown": file_of({**good, "q": entry([4], N, N + 2, "F4")}, data + b"xx"),
        "extra_field": file_of({"weight": {**good["weight"], "note": 1}}, data),
    }.items():
        path = folder / f"st_{tag}.safetensors"
        path.write_bytes(content)
        found.append(either("6", path, {"weight": W}))
    return found


def _odd(folder: Path) -> list[Case]:
    import torch
    from safetensors.numpy import save_file
    from safetensors.torch import save_file as save_torch

    t = torch.from_numpy(W)

    def put(tag: str, header: object, data: bytes, name: str = "safetensors") -> Path:
        path = folder / f"st_{tag}.{name}"
        path.write_bytes(file_of(header, data))
        return path

    plain, typed = folder / "st_plain.safetensors", folder / "st_typed.safetensors"
    save_file({"fc.weight": W, "fc.bias": W[:, 0].copy()}, plain, metadata={"format": "pt"})
    kinds = {
        "a.weight": t.bfloat16(),
        "b.weight": t.to(torch.float8_e4m3fn),
        "c.weight": t.to(torch.float8_e5m2),
        "d.weight": t.half(),
        "e.weight": t.double(),
        "ids": torch.ones(3, 4, dtype=torch.int64),
        "mask": torch.ones(3, 4, dtype=torch.bool),
    }
    save_torch(kinds, typed)
    truth = {k: v.double().numpy() for k, v in kinds.items() if k.endswith("weight")}
    backwards = {"weight": entry([5, 7], N, 2 * N), "other.weight": entry([5, 7], 0, N)}
    pad = json.dumps({"weight": entry([5, 7], 0, N)}).encode() + b" " * 40
    zero = {"weight": entry([5, 7], 0, N), "empty": entry([0, 7], N, N), "scalar": entry([], N, N + 4)}
    shapes = {
        "a.weight": [0, 3, 3, 3],
        "b.weight": [4, 0, 3, 3],
        "c.weight": [4, 3, 0, 3],
        "d.weight": [7, 0],
        "e.weight": [0, 0],
        "f.lora_A.weight": [0, 7],
        "f.lora_B.weight": [5, 0],
        "g.weight_g": [0, 1],
        "g.weight_v": [0, 7],
        "h.experts": [0, 4, 5],
        "i.weight_ih_l0": [0, 3],
        "i.weight_hh_l0": [0, 0],
        "j.in_proj_weight": [0, 8],
        "k.parametrizations.weight.original": [0, 4],
        "k.parametrizations.weight.0._u": [0],
        "k.parametrizations.weight.0._v": [4],
    }
    hollow = (
        {"weight": entry([5, 7], 0, N)}
        | {
            k: entry(shape, N, N + 4 * int(np.prod(shape)))
            for k, shape in shapes.items()
            if np.prod(shape) == 0
        }
        | {"k.parametrizations.weight.0._v": entry([4], N, N + 16)}
    )
    bad = W.copy()
    bad[1, 2], bad[3, 3] = np.nan, np.inf
    nan = {"sick.weight": entry([5, 7], 0, N), "weight": entry([5, 7], N, 2 * N)}
    zeros = {"dead.weight": entry([5, 7], 0, N)}
    huge = W.astype(np.float64) * 1e300
    names = {
        "\x1b[31mred\x1b[0m": W,
        "[red]w[/red]": W + 1,
        "[/]": W + 2,
        "=cmd()|'/c calc'!A1": W + 3,
        "a\nb\r\tc": W + 4,
        "\u202egnp.exe": W + 5,
        "nul\0name": W + 6,
        "x" * 10_000: W + 7,
        "<script>alert(1)</script>": W + 8,
        "é漢🙂": W + 9,
        "": W + 10,
        "\x9b31m": W + 11,
        "-v": W + 12,
        "../../etc": W + 13,
    }
    header = {k: entry([5, 7], i * N, (i + 1) * N) for i, k in enumerate(names)}
    surrogate = b'{"\\ud800.weight":' + json.dumps(entry([5, 7], 0, N)).encode() + b"}"
    return [
        audited("6", plain, {"fc.weight": W}),
        audited("6", typed, truth),
        audited(
            "6",
            put("backwards", backwards, OTHER.tobytes() + W.tobytes()),
            {"weight": W, "other.weight": OTHER},
        ),
        audited("6", put("padded", pad, W.tobytes()), {"weight": W}),
        audited("6", put("named_pt", {"weight": entry([5, 7], 0, N)}, W.tobytes(), "pt"), {"weight": W}),
        audited(
            "8", put("zero_size", zero, W.tobytes() + b"\0\0\0\0"), {"weight": W, "empty": np.zeros((0, 7))}
        ),
        audited("8", put("hollow", hollow, W.tobytes() + bytes(16)), None),
        audited(
            "8",
            put("nan_and_inf", nan, bad.tobytes() + W.tobytes()),
            {"weight": W},
            "2 |NaN|nan",
            ("sick.weight",),
        ),
        audited("8", put("all_zero", zeros, bytes(N)), {"dead.weight": np.zeros((5, 7))}),
        either("8", put("huge_values", {"weight": entry([5, 7], 0, 2 * N, "F64")}, huge.tobytes()), None),
        audited("9", put("names", header, b"".join(w.tobytes() for w in names.values())), None),
        either("9", put("surrogate_name", surrogate, W.tobytes()), None),
        refused("9", put("only_metadata", {"__metadata__": {"a": "b"}}, b"")),
        refused("9", put("nothing", {}, b"")),
        refused("9", put("only_integers", {"ids": entry([5, 7], 0, N, "I32")}, W.tobytes())),
    ]


def _sharded(folder: Path) -> list[Case]:
    from safetensors.numpy import save_file

    def shards(
        tag: str, index: dict[str, object], held: dict[str, dict[str, np.ndarray]] | None = None
    ) -> Path:
        place = folder / f"sharded_{tag}"
        place.mkdir()
        parts = (
            {"m-1.safetensors": {"a.weight": W}, "m-2.safetensors": {"b.weight": OTHER}}
            if held is None
            else held
        )
        for name, tensors in parts.items():
            save_file(tensors, place / name)
        path = place / f"{tag}.safetensors.index.json"
        path.write_text(json.dumps(index))
        return path

    good = {"a.weight": "m-1.safetensors", "b.weight": "m-2.safetensors"}
    outside = folder / "outside.safetensors"
    save_file({"b.weight": OTHER}, outside)
    both = {"a.weight": W, "b.weight": OTHER}
    cache = folder / "cache"
    for part in ("blobs", "snapshots/1"):
        (cache / part).mkdir(parents=True)
    for i, (name, tensors) in enumerate(
        {"m-1.safetensors": {"a.weight": W}, "m-2.safetensors": {"b.weight": OTHER}}.items()
    ):
        save_file(tensors, cache / f"blobs/{i}")
        os.symlink(f"../../blobs/{i}", cache / "snapshots/1" / name)
    (cache / "blobs/9").write_text(json.dumps({"metadata": {"total_size": 2 * N}, "weight_map": good}))
    linked = cache / "snapshots/1/cached.safetensors.index.json"
    os.symlink("../../blobs/9", linked)
    away = shards("link_out", {"weight_map": good}, {"m-1.safetensors": {"a.weight": W}})
    os.symlink("/etc/passwd", away.parent / "m-2.safetensors")
    pipe = shards("fifo", {"weight_map": good}, {"m-1.safetensors": {"a.weight": W}})
    os.mkfifo(pipe.parent / "m-2.safetensors")
    itself = shards("itself", {"weight_map": {"a.weight": "itself.safetensors.index.json"}}, {})
    plain = shards("plain", {"metadata": {"total_size": 2 * N}, "weight_map": good})
    doubled = folder / "sharded_duplicate_key"
    doubled.mkdir()
    save_file({"a.weight": W}, doubled / "m-1.safetensors")
    duplicate = doubled / "duplicate_key.index.json"
    duplicate.write_text('{"weight_map": {"a.weight": "m-1.safetensors", "a.weight": "m-2.safetensors"}}')
    deep = folder / "deep.index.json"
    deep.write_text('{"weight_map": ' + "[" * 100_000 + "]" * 100_000 + "}")
    return [
        audited("6", plain, both),
        audited("6", linked, both),
        refused("6", shards("climbs", {"weight_map": {**good, "b.weight": "../outside.safetensors"}})),
        refused("6", shards("absolute", {"weight_map": {**good, "b.weight": str(outside)}})),
        refused("6", shards("subfolder", {"weight_map": {**good, "b.weight": "./m-2.safetensors"}})),
        refused("6", shards("backslash", {"weight_map": {**good, "b.weight": "..\\outside.safetensors"}})),
        refused("6", shards("nul", {"weight_map": {**good, "b.weight": "m-2.safetensors\0"}})),
        refused("6", shards("dots", {"weight_map": {**good, "b.weight": ".."}})),
        refused("6", shards("empty_name", {"weight_map": {**good, "b.weight": ""}})),
        refused("6", shards("shard_missing", {"weight_map": {**good, "c.weight": "m-3.safetensors"}})),
        refused("6", shards("tensor_missing", {"weight_map": {**good, "c.weight": "m-2.safetensors"}})),
        refused(
            "6",
            shards(
                "tensor_extra",
                {"weight_map": {"a.weight": "m-1.safetensors", "b.weight": "m-2.safetensors"}},
                {"m-1.safetensors": {"a.weight": W}, "m-2.safetensors": {"b.weight": OTHER, "c.weight": W}},
            ),
        ),
        refused(
            "6",
            shards(
                "tensor_twice",
                {"weight_map": good},
                {"m-1.safetensors": {"a.weight": W, "b.weight": W}, "m-2.safetensors": {"b.weight": OTHER}},
            ),
        ),
        refused("6", shards("map_is_a_list", {"weight_map": ["m-1.safetensors"]})),
        refused("6", shards("map_holds_numbers", {"weight_map": {"a.weight": 1}})),
        refused("6", shards("map_empty", {"weight_map": {}})),
        refused("6", away),
        refused("6", pipe),
        refused("6", itself),
        refused("6", duplicate),
        refused("6", deep),
    ]
