"""Rules 1, 2 and 9: what is no file, no model, or a model under a name that hides it."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import socket
import struct
import tarfile
from pathlib import Path

import numpy as np
from containers import mapping, tensor, torch_file
from corpus import Case, audited, matrix, refused
from corpus_safetensors import entry, file_of

W = matrix()


def cases(folder: Path) -> list[Case]:
    return [*_no_files(folder), *_no_models(folder), *_names(folder)]


def _good(path: Path) -> Path:
    return torch_file(path, mapping({"weight": tensor(W)}), {"0": W.tobytes()})


def _no_files(folder: Path) -> list[Case]:
    good = _good(folder / "good.pt")
    empty = folder / "empty.pt"
    empty.touch()
    (folder / "folder.pt").mkdir()
    os.mkfifo(folder / "pipe.pt")
    for target, name in (
        ("/dev/zero", "zero.pt"),
        ("/dev/tty", "tty.pt"),
        ("absent", "dangling.pt"),
        ("loop.pt", "loop.pt"),
        ("good.pt", "link.pt"),
        ("pipe.pt", "link_to_pipe.pt"),
        ("folder.pt", "link_to_folder.pt"),
    ):
        os.symlink(target, folder / name)
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(folder)
        server.bind("socket.pt")
        os.chdir(here)
    held = folder / "folder_with_model"
    held.mkdir()
    (held / "model.safetensors").write_bytes(file_of({"fc.weight": entry([5, 7], 0, W.nbytes)}, W.tobytes()))
    os.link(good, folder / "hard_link.pt")
    sparse = folder / "sparse_8gb.pt"
    with sparse.open("wb") as file:
        file.truncate(8 << 30)
    return [
        audited("1", good, {"weight": W}),
        audited("1", folder / "link.pt", {"weight": W}),
        audited("1", folder / "hard_link.pt", {"weight": W}),
        audited("2", held, {"fc.weight": W}),
        refused("1", empty, "empty"),
        refused("1", folder / "folder.pt"),
        refused("1", folder / "missing.pt", "[Nn]o such file"),
        refused("1", folder / "pipe.pt", "regular file"),
        refused("1", folder / "zero.pt", "regular file"),
        refused("1", folder / "tty.pt"),
        refused("1", folder / "dangling.pt"),
        refused("1", folder / "loop.pt"),
        refused("1", folder / "socket.pt"),
        refused("1", folder / "link_to_pipe.pt"),
        refused("1", folder / "link_to_folder.pt"),
        refused("1", good / "below_a_file.pt"),
        refused("1", folder / ("n" * 300)),
        refused("2", sparse),
    ]


def _no_models(folder: Path) -> list[Case]:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.add(folder / "good.pt", "good.pt")
    random = np.random.default_rng(5).bytes(5000)
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    contents = {
        "lfs.safetensors": (lfs, "[Ll][Ff][Ss]"),
        "lfs.onnx": (lfs, "[Ll][Ff][Ss]"),
        "page.onnx": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML|web page"),
        "page_after_blank.pt": (b"\n  <html><head>", "HTML|web page"),
        "config.json": (b'{"architectures": ["BertModel"], "hidden_size": 768}', None),
        "broken.json": (b'{"weight_map": ', None),
        "brace.json": (b"{", None),
        "json_list.json": (b"[1, 2]", None),
        "words.pt": (b"this is no model\n", None),
        "one_byte.pt": (b"\x80", None),
        "newline.pt": (b"\n", None),
        "good.tar": (tar.getvalue(), None),
        "good.pt.gz": (gzip.compress((folder / "good.pt").read_bytes(), mtime=0), "gzip"),
        "model.gguf": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "GGUF"),
        "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
        "model.tflite": (struct.pack("<I", 28) + b"TFL3" + bytes(60), "TFLite|TensorFlow Lite"),
        "ggml.bin": (b"lmgg" + bytes(60), None),
        "seven.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(60), None),
        "image.png": (b"\x89PNG\r\n\x1a\n" + bytes(60), None),
        "prog.elf": (b"\x7fELF" + bytes(60), None),
        "paper.pdf": (b"%PDF-1.7\n", None),
        "bzip.bz2": (b"BZh91AY&SY" + bytes(20), None),
        "xz.xz": (b"\xfd7zXZ\0" + bytes(20), None),
        "zeros.bin": (bytes(4096), None),
        "ones.bin": (b"\xff" * 4096, None),
        "random.bin": (random, None),
        "zstd.zst": (b"\x28\xb5\x2f\xfd" + bytes(20), None),
        "zip_magic_only.pt": (b"PK\3\4", None),
        "zip_end_only.pt": (b"PK\5\6" + bytes(18), None),
        "utf16.pt": ("version".encode("utf-16"), None),
        "single_npy.npy": (b"\x93NUMPY\1\0", None),
    }
    found = []
    for name, (content, reason) in contents.items():
        path = folder / name
        path.write_bytes(content)
        found.append(refused("2", path, reason))
    return found


def _names(folder: Path) -> list[Case]:
    found = []
    names = [
        "ansi\x1b[31mred.pt",
        "line\nbreak.pt",
        "carriage\rreturn.pt",
        "bidi\u202etp.exe",
        "markup[red]x.pt",
        "[bold]\\[.pt",
        "csi\x9b2J.pt",
        "nbsp\u00a0.pt",
        "日本語.pt",
        "=cmd().pt",
        "spaces in it .pt",
        "no_extension",
        ".hidden",
        "-dash.pt",
        "%s%n.pt",
        "wrong_suffix.onnx",
        "wrong_suffix.safetensors",
        "wrong_suffix.json",
        "file:name.pt",
        os.fsdecode(b"not\xffutf8.pt"),
    ]
    for name in names:
        found.append(audited("9", _good(folder / name), {"weight": W}))
        bad = folder / f"bad_{name}"
        bad.write_bytes(b"no model")
        found.append(refused("9", bad))
    for place, name in (("broken\x1b]0;title\x07", "under_odd_folder.pt"), ("close[", "].pt")):
        (folder / place).mkdir()
        found.append(
            audited("9", Path(shutil.copy(folder / "good.pt", folder / place / name)), {"weight": W})
        )
    return found
