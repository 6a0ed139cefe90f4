"""Exported programs (.pt2, as torch.export.save writes them since PyTorch 2.7): their tensors.

`data/weights/NAME_weights_config.json` says for each tensor of model NAME which record holds its
storage and how it views it; `data/constants/` likewise. The program itself is left alone.
"""

from __future__ import annotations

import json
from typing import Any

from snaudit.errors import EmptyModel, UnsupportedModel
from snaudit.formats.archive import Archive
from snaudit.formats.checkpoint import Choice
from snaudit.formats.storage import dtype_of
from snaudit.formats.views import EXPANDED_LIMIT, View, is_index, is_layout
from snaudit.model import LeftOut

_STRIDED = 7
_MAX_JSON = 1 << 26

DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32",
    35: "uint64",
}
"""torch's export schema's ScalarType."""

_BESIDE = {"data/aotinductor/": "compiled code and its tensors", "data/sample_inputs/": "example inputs"}


def tensors(archive: Archive, root: str, big: bool) -> Choice:
    """The weights and constants of all the models of an archive; of several, under their names."""
    path = archive.source.path
    if root + "archive_format" not in archive:
        raise UnsupportedModel(path, "an exported program of a PyTorch before 2.7; save it anew")
    if archive.load(root + "archive_format", 16) != b"pt2":
        archive.fail("it is a pt2 archive of an unknown format")
    choice = Choice()
    configs = []
    for folder in ("weights", "constants"):
        start, end = f"{root}data/{folder}/", f"_{folder}_config.json"
        configs += [(folder, name, name.removeprefix(start).removesuffix(end)) for name in archive.records
                    if name.startswith(start) and name.endswith(end)]
    several = len({model for _, _, model in configs}) > 1
    for folder, name, model in configs:
        for tensor, entry in _config(archive, name):
            full = f"{model}.{tensor}" if several else tensor
            _add(choice, archive, f"{root}data/{folder}/", full, entry, big)
    for place, what in _BESIDE.items():
        found = [name for name in archive.records if name.startswith(root + place)]
        if found:
            choice.left_out.append(LeftOut(place.rstrip("/"), f"{what}: {len(found)} records", tensors=0))
    if not configs:
        raise UnsupportedModel(path, "a pt2 archive of compiled code only; audit what it was compiled from")
    if not choice.tensors and not choice.left_out:
        raise EmptyModel(path, "it holds no tensors")
    return choice


def program(archive: Archive, root: str) -> bytes | None:
    """The JSON of the one model of an archive; None where there is none, or several."""
    start = f"{root}models/"
    found = [name for name in archive.records if name.startswith(start) and name.endswith(".json")]
    return archive.load(found[0], _MAX_JSON) if len(found) == 1 else None


def _config(archive: Archive, name: str) -> list[tuple[str, Any]]:
    """The (tensor, description) entries of a config record."""
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            archive.fail(f"record {name!r} names something twice")
        return dict(pairs)

    try:
        config = json.loads(archive.load(name, _MAX_JSON), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        archive.fail(f"record {name!r} is not JSON")
    if type(config) is not dict or type(config.get("config")) is not dict:
        archive.fail(f"record {name!r} does not describe tensors")
    return list(config["config"].items())


def _add(choice: Choice, archive: Archive, folder: str, name: str, entry: Any, big: bool) -> None:
    meta = entry["tensor_meta"]
    if entry["use_pickle"] or meta is None:
        reason = "it is pickled: a tensor subclass or a custom object"
        choice.left_out.append(LeftOut(name, reason, meta is not None))
        return
    if meta["layout"] != _STRIDED or meta["dtype"] not in DTYPES:
        choice.left_out.append(LeftOut(name, "it is sparse, quantized, or of a dtype that is not read", True))
        return
    shape, strides = (tuple(_number(n) for n in meta[key]) for key in ("sizes", "strides"))
    offset = _number(meta["storage_offset"])
    record = archive.records.get(folder + entry["path_name"])
    if not is_layout(shape, strides) or not is_index(offset):
        choice.left_out.append(LeftOut(name, "its shape is symbolic", True))
        return
    view = View(folder + entry["path_name"], DTYPES[meta["dtype"]], offset, shape, strides, big)
    width = dtype_of(view.dtype).itemsize
    if view.size and (record is None or view.stop * width > record.size or record.size % width):
        archive.fail(f"tensor {name!r} does not fit its record {view.storage!r}")
    if view.size > max(record.size // width if record else 0, EXPANDED_LIMIT):
        choice.left_out.append(LeftOut(name, f"it expands few stored numbers to {view.size}", True))
        return
    if name in choice.tensors:
        archive.fail(f"two tensors are called {name!r}")
    choice.tensors[name] = view


def _number(value: Any) -> Any:
    return value["as_int"] if set(value) == {"as_int"} else None
