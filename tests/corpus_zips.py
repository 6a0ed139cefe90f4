"""Rules 3 and 8: archives that mean two things, that lie on sizes, and npz files."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from containers import DEFLATED, NONE, Member, mapping, pickled, tensor, torch_members, zipped
from corpus import Case, audited, canary, either, matrix, refused

W, OTHER = matrix(), matrix(seed=99)
GOOD = torch_members(mapping({"weight": tensor(W)}), {"0": W.tobytes()})
DATA = 2
"""Index of the tensor's record in GOOD."""


def cases(folder: Path) -> list[Case]:
    return [*_damaged(folder), *_two_meanings(folder), *_sizes(folder), *_odd(folder), *_npz(folder)]


def _with(**lies: object) -> list[Member]:
    """GOOD, with the tensor's record changed."""
    return [replace(m, **lies) if i == DATA else m for i, m in enumerate(GOOD)]


def _put(folder: Path, tag: str, content: bytes) -> Path:
    path = folder / f"zip_{tag}.pt"
    path.write_bytes(content)
    return path


def _damaged(folder: Path) -> list[Case]:
    whole = zipped(*GOOD)
    found = []
    for cut in (1, 3, 4, 29, 64, 200, len(whole) // 2, len(whole) - 60, len(whole) - 22, len(whole) - 1):
        found.append(refused("3", _put(folder, f"cut_at_{cut}", whole[:cut])))
    flipped = bytearray(whole)
    flipped[whole.index(W.tobytes()) + 2] ^= 0x40
    pickle_flip = bytearray(whole)
    pickle_flip[whole.index(b"weight")] ^= 0x01
    return found + [
        refused("3", _put(folder, "bit_flip_in_weight", bytes(flipped)), "CRC|checksum"),
        refused("3", _put(folder, "bit_flip_in_pickle", bytes(pickle_flip)), "CRC|checksum"),
        refused("3", _put(folder, "crc_wrong", zipped(*_with(crc=1))), "CRC|checksum"),
        refused("3", _put(folder, "crc_zero_once", zipped(*_with(crc=0))), "CRC|checksum"),
        refused("3", _put(folder, "pickle_missing", zipped(*GOOD[1:]))),
        refused("3", _put(folder, "no_members", zipped())),
        refused("3", _put(folder, "text_only", zipped(Member("readme.txt", b"hello")))),
        refused("3", _put(folder, "torch_in_a_folder", zipped(Member("models/net.pt", whole)))),
        audited(
            "3",
            _put(folder, "crc_all_zero", zipped(*(replace(m, crc=0) for m in GOOD))),
            {"weight": W},
            "CRC|checksum",
        ),
    ]


def _two_meanings(folder: Path) -> list[Case]:
    """Two readers would see two models."""
    twin = replace(GOOD[DATA], data=OTHER.tobytes())
    pickle_twin = replace(GOOD[0], data=pickled(mapping({"weight": tensor(W.T)})))
    inner = zipped(*_with(data=OTHER.tobytes()))
    whole = zipped(*GOOD)
    second_root = torch_members(mapping({"weight": tensor(OTHER)}), {"0": OTHER.tobytes()}, root="b")
    swapped = [
        replace(m, local_name=f"archive/data/{1 - i}")
        for i, m in enumerate((GOOD[DATA], Member("archive/data/1", OTHER.tobytes())))
    ]
    at_same = Member("archive/data/1", W.tobytes(), at=whole.index(b"PK\3\4", 10))
    return [
        refused("3", _put(folder, "duplicate_record", zipped(*GOOD, twin))),
        refused("3", _put(folder, "duplicate_record_first", zipped(GOOD[0], GOOD[1], twin, *GOOD[2:]))),
        refused("3", _put(folder, "duplicate_pickle", zipped(*GOOD, pickle_twin))),
        refused(
            "3",
            _put(folder, "case_twin_of_pickle", zipped(*GOOD[1:], replace(GOOD[0], name="archive/DATA.PKL"))),
        ),
        refused("3", _put(folder, "local_name_differs", zipped(*_with(local_name="archive/data/9")))),
        refused("3", _put(folder, "local_names_swapped", zipped(GOOD[0], GOOD[1], *swapped, GOOD[3]))),
        refused("3", _put(folder, "two_entries_one_record", zipped(*GOOD, at_same))),
        refused("3", _put(folder, "prepended", b"#!/bin/sh\n" + whole)),
        refused("3", _put(folder, "prepended_adjusted", zipped(*GOOD, prefix=b"#!/bin/sh\n"))),
        refused("3", _put(folder, "prepended_archive", whole[:-22] + zipped(*GOOD))),
        either("3", _put(folder, "two_archives", whole + inner), {"weight": OTHER}),
        either("3", _put(folder, "comment_is_an_archive", zipped(*GOOD, comment=inner)), {"weight": W}),
        either("3", _put(folder, "comment", zipped(*GOOD, comment=b"trained on tuesday")), {"weight": W}),
        either("3", _put(folder, "trailing_junk", whole + b"\0" * 100), {"weight": W}),
        either("3", _put(folder, "two_roots", zipped(*GOOD, *second_root)), None),
        refused("3", _put(folder, "marked_as_folder", zipped(*_with(attributes=0x10))), "folder"),
        refused("3", _put(folder, "count_too_small", zipped(*GOOD, count=2))),
        refused("3", _put(folder, "count_too_large", zipped(*GOOD, count=9))),
        refused("3", _put(folder, "directory_shifted", zipped(*GOOD, directory_shift=5))),
        refused("3", _put(folder, "directory_beyond", zipped(*GOOD, directory_shift=1 << 30))),
        refused("3", _put(folder, "entry_beyond", zipped(*GOOD, Member("archive/data/1", b"", at=1 << 31)))),
    ]


def _sizes(folder: Path) -> list[Case]:
    size = W.nbytes
    bomb = _with(data=b"\0" * (64 << 20), method=DEFLATED, declared=size)
    pops = Member("archive/data.pkl", pickled((NONE + b"0") * (2 << 20) + NONE), method=DEFLATED)
    claim = mapping({"weight": tensor(np.zeros((5, 7), np.float32))})
    zip64 = struct.pack("<HHQ", 1, 8, 1 << 40)
    return [
        refused("3", _put(folder, "declared_longer", zipped(*_with(declared=size + 4)))),
        refused("3", _put(folder, "declared_shorter", zipped(*_with(declared=size - 4)))),
        refused("3", _put(folder, "packed_longer", zipped(*_with(packed=size + 40)))),
        refused("3", _put(folder, "packed_4gb", zipped(*_with(packed=0xFFFFFFF0, declared=0xFFFFFFF0)))),
        refused("3", _put(folder, "deflate_bomb", zipped(*bomb))),
        refused(
            "3", _put(folder, "deflate_declared_4gb", zipped(*_with(method=DEFLATED, declared=0xF0000000)))
        ),
        refused(
            "3",
            _put(folder, "deflate_garbage", zipped(*_with(method=DEFLATED, data=W.tobytes(), packed=size))),
        ),
        refused("3", _put(folder, "deflate_short", zipped(*_with(method=DEFLATED, data=b"ab")))),
        refused("3", _put(folder, "pickle_bomb", zipped(pops, *GOOD[1:]))),
        refused(
            "3", _put(folder, "zip64_claims_1tb", zipped(*_with(declared=0xFFFFFFFF, central_extra=zip64)))
        ),
        refused(
            "3", _put(folder, "zip64_extra_missing", zipped(*_with(declared=0xFFFFFFFF, packed=0xFFFFFFFF)))
        ),
        refused("3", _put(folder, "encrypted", zipped(*_with(flags=1)))),
        refused("3", _put(folder, "strong_encryption", zipped(*_with(flags=0x41)))),
        *(
            refused("3", _put(folder, f"method_{m}", zipped(*_with(method=m))))
            for m in (1, 9, 12, 14, 93, 99)
        ),
        either("3", _put(folder, "local_size_differs", zipped(*_with(local_declared=3))), {"weight": W}),
        refused("5", _put(folder, "record_empty", zipped(*torch_members(claim, {"0": b""})))),
    ]


def _odd(folder: Path) -> list[Case]:
    """Unusual archives that are sound."""

    def written(tag: str, method: int, force_zip64: bool = False) -> Path:
        path = folder / f"zip_{tag}.pt"
        with zipfile.ZipFile(path, "w", method) as archive:
            for m in GOOD:
                with archive.open(m.name, "w", force_zip64=force_zip64) as record:
                    record.write(m.data)
        return path

    class Pipe(io.RawIOBase):
        """A sink that cannot seek: zipfile then writes data descriptors after the records."""

        def __init__(self) -> None:
            self.content = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            self.content += data
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for m in GOOD:
            archive.writestr(m.name, m.data)
    symlink = replace(GOOD[3], name="archive/link", data=b"/etc/passwd", attributes=0o120777 << 16)
    climbing = Member("../../outside", b"x")
    return [
        audited("3", written("deflated", zipfile.ZIP_DEFLATED), {"weight": W}),
        audited("3", written("zip64", zipfile.ZIP_STORED, force_zip64=True), {"weight": W}),
        audited("3", _put(folder, "descriptors", bytes(pipe.content)), {"weight": W}),
        audited("3", _put(folder, "reordered", zipped(*GOOD[::-1])), {"weight": W}),
        audited("3", _put(folder, "padded", zipped(*_with(extra=b"FB\x1c\0" + b"Z" * 28))), {"weight": W}),
        audited(
            "3",
            _put(folder, "foreign_member", zipped(*GOOD, Member("archive/.data/notes", b"hello"))),
            {"weight": W},
        ),
        either("3", _put(folder, "symlink_member", zipped(*GOOD, symlink)), {"weight": W}),
        either("3", _put(folder, "climbing_name", zipped(*GOOD, climbing)), {"weight": W}),
        either(
            "3", _put(folder, "ansi_member", zipped(*GOOD, Member("archive/\x1b[2J\n", b"x"))), {"weight": W}
        ),
    ]


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _header(text: str, data: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode() + data


def _npz(folder: Path) -> list[Case]:
    def put(tag: str, *members: Member) -> Path:
        path = folder / f"{tag}.npz"
        path.write_bytes(zipped(*members))
        return path

    def one(tag: str, header: str, data: bytes = W.tobytes(), version: tuple[int, int] = (1, 0)) -> Path:
        return put(tag, Member("weight.npy", _header(header, data, version)))

    class Run:
        def __reduce__(self) -> tuple[object, ...]:
            import os

            return os.system, (canary(folder.parent, "npz"),)

    loaded = io.BytesIO()
    np.save(loaded, np.array([Run()], dtype=object), allow_pickle=True)
    fact = "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 7), }"
    evil = fact.replace("(5, 7)", f"(__import__('os').system({canary(folder.parent, 'header')!r}), 7)")
    broken = {
        "header_code": evil,
        "header_deep": "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 9000 + ")" * 9000 + "}",
        "header_unary": fact.replace("5,", "-" * 9000 + "5,"),
        "header_power": fact.replace("5,", "9**9**9,"),
        "header_strings": fact.replace("'<f4'", "'<' 'f' '4'*10**9"),
        "header_not_a_dict": "[1, 2, 3]",
        "header_key_missing": "{'descr': '<f4', 'shape': (5, 7), }",
        "header_key_extra": fact.replace("}", "'x': 1}"),
        "shape_negative": fact.replace("(5, 7)", "(-5, -7)"),
        "shape_bool": fact.replace("(5, 7)", "(True, 35)").replace("35", "7"),
        "shape_float": fact.replace("(5, 7)", "(5.0, 7)"),
        "shape_huge": fact.replace("(5, 7)", "(1099511627776, 1099511627776)"),
        "shape_longer": fact.replace("(5, 7)", "(6, 7)"),
        "shape_shorter": fact.replace("(5, 7)", "(4, 7)"),
        "shape_text": fact.replace("(5, 7)", "'57'"),
        "dtype_unknown": fact.replace("<f4", "<q9"),
        "dtype_comma": fact.replace("<f4", "f4,f4"),
        "order_text": fact.replace("False", "'no'"),
    }
    utf = _header(fact, W.tobytes(), (3, 0))
    far = W.astype(">f8")
    return [
        *(refused("3", one(tag, header)) for tag, header in broken.items()),
        refused("3", put("npy_truncated", Member("weight.npy", _npy(W)[:-1]))),
        refused("3", put("npy_magic", Member("weight.npy", b"\x94" + _npy(W)[1:]))),
        refused("3", put("npy_empty", Member("weight.npy", b""))),
        refused("3", put("npy_version", Member("weight.npy", _header(fact, W.tobytes(), (9, 0))))),
        refused(
            "3",
            put(
                "npy_header_length",
                Member("weight.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31) + b"{"),
            ),
        ),
        refused("3", put("npz_duplicate", Member("weight.npy", _npy(W)), Member("weight.npy", _npy(OTHER)))),
        refused("4", put("npz_object", Member("weight.npy", loaded.getvalue()))),
        audited(
            "4",
            put("npz_object_beside", Member("weight.npy", _npy(W)), Member("o.npy", loaded.getvalue())),
            {"weight": W},
            "object",
        ),
        audited(
            "3",
            put("npz_plain", Member("weight.npy", _npy(W)), Member("bias.npy", _npy(W[0]))),
            {"weight": W},
        ),
        audited("3", put("npz_fortran", Member("weight.npy", _npy(np.asfortranarray(W)))), {"weight": W}),
        audited("3", put("npz_big_endian", Member("weight.npy", _npy(far))), {"weight": W}),
        audited("3", put("npz_deflated", Member("weight.npy", _npy(W), method=DEFLATED)), {"weight": W}),
        audited("3", put("npz_version3", Member("weight.npy", utf)), {"weight": W}),
        audited(
            "3",
            put("npz_half", Member("weight.npy", _npy(W.astype(np.float16)))),
            {"weight": W.astype(np.float16)},
        ),
        audited(
            "3",
            put("npz_text_beside", Member("weight.npy", _npy(W)), Member("s.npy", _npy(np.array(["a"])))),
            {"weight": W},
        ),
        either(
            "3",
            put(
                "npz_structured",
                Member("weight.npy", _npy(W)),
                Member("r.npy", _npy(np.zeros(3, [("a", "f4"), ("b", "i4")]))),
            ),
            {"weight": W},
        ),
        either("3", one("npy_trailing", fact, W.tobytes() + b"\0"), {"weight": W}),
    ]
