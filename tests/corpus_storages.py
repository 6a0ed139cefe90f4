"""Rule 5: storages, views and legacy files that lie about where their numbers are."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from containers import (
    FALSE,
    NONE,
    PERSID,
    TRUE,
    call,
    integer,
    items,
    legacy,
    legacy_storage,
    mapping,
    name,
    storage,
    text,
    torch_file,
    view,
)
from corpus import Case, audited, either, matrix, refused

W = matrix()
RECORDS = {"0": W.tobytes()}
HELD = storage("0", W.size)


def cases(folder: Path) -> list[Case]:
    return [*_views(folder), *_storages(folder), *_legacy(folder)]


def _views(folder: Path) -> list[Case]:
    def put(tag: str, value: bytes, records: dict[str, bytes] = RECORDS) -> Path:
        return torch_file(folder / f"view_{tag}.pt", mapping({"weight": value}), records)

    broken = {
        "beyond_by_one": view(HELD, (5, 7), (7, 1), 1),
        "stride_negative": view(HELD, (5, 7), (-7, 1), 28),
        "stride_huge": view(HELD, (5, 7), (1 << 62, 1)),
        "stride_wraps": view(HELD, (5, 7), ((1 << 64) + 7, 1)),
        "offset_negative": view(HELD, (4, 7), (7, 1), -7),
        "offset_huge": view(HELD, (1, 1), (1, 1), 1 << 63),
        "shape_negative": view(HELD, (-5, -7), (7, 1)),
        "shape_huge": view(HELD, (1 << 40, 1 << 40), (1, 1)),
        "rank_mismatch": view(HELD, (5, 7), (1,)),
        "shape_bool": view(HELD, (5, 7), (7, 1)).replace(integer(5), TRUE, 1),
        "shape_float": view(HELD, (5, 7), (7, 1)).replace(integer(7), b"G" + struct.pack(">d", 7.0), 1),
        "shape_string": view(HELD, (5, 7), (7, 1)).replace(integer(7), text("7"), 1),
        "shape_none": call(
            name("torch._utils", "_rebuild_tensor_v2"), HELD, integer(0), NONE, NONE, FALSE, NONE
        ),
        "too_few_arguments": call(name("torch._utils", "_rebuild_tensor_v2"), HELD),
        "of_a_string": view(text("0"), (5, 7), (7, 1)),
        "expanded_giant": view(HELD, (1 << 18, 1 << 18), (0, 0)),
        "expanded_160gb": view(HELD, (200_000, 200_000), (0, 0)),
        "hundred_dimensions": view(HELD, (1,) * 5000, (0,) * 5000),
    }
    big = np.arange(40, dtype=np.float32)
    backing = {"0": big.tobytes()}
    held = storage("0", 40)
    found = [
        refused("5", put(tag, value))
        for tag, value in broken.items()
        if "expanded" not in tag and "hundred" not in tag
    ]
    found += [
        either("5", put(tag, broken[tag]), None)
        for tag in ("expanded_giant", "expanded_160gb", "hundred_dimensions")
    ]
    tail = storage("0", 35)
    return found + [
        audited("5", put("transposed", view(HELD, (7, 5), (1, 7))), {"weight": W.T}),
        audited(
            "5",
            put("strided", view(held, (3, 4), (12, 2), 3), backing),
            {"weight": np.lib.stride_tricks.as_strided(big[3:], (3, 4), (48, 8))},
        ),
        audited(
            "5",
            put("overlapping_windows", view(held, (8, 9), (3, 1), 2), backing),
            {"weight": np.lib.stride_tricks.as_strided(big[2:], (8, 9), (12, 4))},
        ),
        either("5", put("expanded_row", view(tail, (4, 7), (0, 1))), {"weight": np.tile(W[0], (4, 1))}),
        audited("5", put("exactly_to_the_end", view(HELD, (4, 7), (7, 1), 7)), {"weight": W[1:]}),
        either("5", put("zero_size_out_of_bounds", view(HELD, (0, 7), (7, 1), 99)), None),
        either(
            "5",
            torch_file(
                folder / "view_wide_offset.pt",
                mapping({"weight": view(HELD, (5, 7), (7, 1)), "bias": view(HELD, (5,), (1,), 30)}),
                RECORDS,
            ),
            {"weight": W},
        ),
    ]


def _storages(folder: Path) -> list[Case]:
    def put(tag: str, value: bytes, records: dict[str, bytes] = RECORDS, **keywords: str) -> Path:
        return torch_file(folder / f"storage_{tag}.pt", mapping({"weight": value}), records, **keywords)

    def at(count: int, key: str = "0", kind: str = "FloatStorage", device: str = "cpu") -> bytes:
        return view(storage(key, count, kind, device), W.shape, (7, 1))

    text_pid = items(text("0"), b"P0\n")
    short_pid = items(text("storage"), name("torch", "FloatStorage"), text("0")) + PERSID
    other_pid = (
        items(text("module"), name("torch", "FloatStorage"), text("0"), text("cpu"), integer(35)) + PERSID
    )
    broken = {
        "longer_than_record": (at(36), RECORDS),
        "shorter_than_record": (at(35), {"0": W.tobytes() + b"\0\0\0\0"}),
        "record_truncated": (at(35), {"0": W.tobytes()[:-1]}),
        "count_negative": (at(-35), RECORDS),
        "count_huge": (at(1 << 63), RECORDS),
        "count_1e30": (at(10**30), RECORDS),
        "record_missing": (at(35, "1"), RECORDS),
        "key_climbs": (at(35, "../../data/0"), RECORDS),
        "key_nul": (at(35, "0\0"), RECORDS),
        "kind_unknown": (at(35, kind="SecretStorage"), RECORDS),
        "wrong_kind": (at(35, kind="DoubleStorage"), RECORDS),
        "pid_text": (view(text_pid, W.shape, (7, 1)), RECORDS),
        "pid_short": (view(short_pid, W.shape, (7, 1)), RECORDS),
        "pid_not_storage": (view(other_pid, W.shape, (7, 1)), RECORDS),
        "pid_of_nothing": (view(PERSID, W.shape, (7, 1)), RECORDS),
        "pid_integer": (view(integer(0) + PERSID, W.shape, (7, 1)), RECORDS),
    }
    half = W.astype(np.float16)
    swapped = {"0": W.astype(">f4").tobytes()}
    two = mapping({"weight": at(35), "other": view(storage("0", 70, "HalfStorage"), (10, 7), (7, 1))})
    ints_only = mapping({"weight": view(storage("0", 35, "IntStorage"), W.shape, (7, 1))})
    return [
        *(refused("5", put(tag, value, records)) for tag, (value, records) in broken.items()),
        audited("5", put("on_cuda", at(35, device="cuda:7")), {"weight": W}),
        either("5", put("device_garbage", at(35, device="\x1b[2J")), {"weight": W}),
        audited("5", put("half", at(35, kind="HalfStorage"), {"0": half.tobytes()}), {"weight": half}),
        audited("5", put("big_endian", at(35), swapped, order="big"), {"weight": W}),
        refused("5", put("order_unknown", at(35), RECORDS, order="middle")),
        either("5", torch_file(folder / "storage_of_two_kinds.pt", two, RECORDS), None),
        refused("9", torch_file(folder / "integers_only.pt", ints_only, RECORDS)),
    ]


def _legacy(folder: Path) -> list[Case]:
    body = mapping({"weight": view(storage("7", 35, tail=NONE), W.shape, (7, 1))})
    key = b"]" + text("7") + b"a"
    data = legacy_storage(W)
    view_body = mapping(
        {
            "weight": view(
                items(
                    text("storage"),
                    name("torch", "FloatStorage"),
                    text("7"),
                    text("cpu"),
                    integer(35),
                    items(text("v"), integer(7), integer(28)),
                )
                + PERSID,
                (4, 7),
                (7, 1),
            )
        }
    )
    wrong = struct.pack("<q", 34) + W.tobytes()
    files = {
        "keys_empty": legacy(body, b"]", data),
        "keys_other": legacy(body, b"]" + text("8") + b"a", data),
        "keys_twice": legacy(body, b"]" + text("7") + b"a" + text("7") + b"a", data + data),
        "keys_extra": legacy(body, b"]" + text("7") + b"a" + text("8") + b"a", data + data),
        "keys_no_list": legacy(body, text("7"), data),
        "count_wrong": legacy(body, key, wrong),
        "count_negative": legacy(body, key, struct.pack("<q", -35) + W.tobytes()),
        "count_huge": legacy(body, key, struct.pack("<q", 1 << 62) + W.tobytes()),
        "no_storage": legacy(body, key, b""),
        "truncated": legacy(body, key, data[:-3]),
        "magic_wrong": legacy(body, key, data, magic=0x1950A86A20F9469CFC6D),
        "pickle_truncated": legacy(body, key, b"")[:60],
    }
    found = []
    for tag, content in files.items():
        path = folder / f"legacy_{tag}.pt"
        path.write_bytes(content)
        found.append(refused("5", path))
    for tag, content, weight in (
        ("plain", legacy(body, key, data), W),
        ("storage_view", legacy(view_body, key, data), W[1:]),
        ("big_endian_host", legacy(body, key, struct.pack("<q", 35) + W.tobytes(), order=TRUE), W),
    ):
        path = folder / f"legacy_sound_{tag}.pt"
        path.write_bytes(content)
        found.append((either if tag == "storage_view" else audited)("5", path, {"weight": weight}))
    trailing = folder / "legacy_trailing.pt"
    trailing.write_bytes(legacy(body, key, data) + b"junk")
    return [*found, either("5", trailing, {"weight": W})]
