"""Rules 4 and 5: unusual files that torch.save itself writes."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from containers import FALSE, call, integer, ints, items, mapping, name, storage, tensor, torch_file
from corpus import Case, audited, either, matrix, refused

W = matrix()
RECORDS = {"0": W.tobytes()}


def cases(folder: Path) -> list[Case]:
    t = torch.from_numpy(W)
    net = torch.nn.Sequential(torch.nn.Linear(7, 5))
    weight = net[0].weight.detach().numpy()

    def put(tag: str, value: object, old: bool = False) -> Path:
        path = folder / f"torch_{tag}{'_legacy' if old else ''}.pt"
        torch.save(value, path, _use_new_zipfile_serialization=not old)
        return path

    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 7)).sum().backward()
    optimizer.step()
    weight = net[0].weight.detach().numpy().copy()
    e4, e5 = t.to(torch.float8_e4m3fn), t.to(torch.float8_e5m2)
    sub = (t * 1e-7).to(torch.float16)
    wide = torch.stack([t, t * 2])
    found = []
    for old in (False, True):
        found += [
            audited("5", put("plain", {"fc.weight": t, "fc.bias": t[:, 0].clone()}, old), {"fc.weight": W}),
            audited("5", put("tied", {"a.weight": t, "b.weight": t}, old), None),
            audited("5", put("transposed", {"fc.weight": t.t()}, old), {"fc.weight": W.T}),
            audited(
                "5", put("row_of_stack", {"fc.weight": wide[1, :, ::2]}, old), {"fc.weight": 2 * W[:, ::2]}
            ),
            audited(
                "4",
                put("namespace", {"model": {"fc.weight": t}, "args": Namespace(lr=1, path=Path("x"))}, old),
                {"fc.weight": W},
                "Namespace",
            ),
            audited(
                "4",
                put(
                    "optimizer",
                    {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3},
                    old,
                ),
                {"0.weight": weight},
            ),
            audited("4", put("list", [{"fc.weight": t}], old), None),
            refused("4", put("module", net, old), r"torch\.nn\.modules\.container\.Sequential|Linear"),
            audited(
                "5",
                put("bf16", {"fc.weight": t.bfloat16()}, old),
                {"fc.weight": t.bfloat16().double().numpy()},
            ),
            refused("9", put("no_tensor", {"lr": 0.1, "x": [1, 2]}, old)),
            refused("9", put("only_vectors", {"bias": t[0].clone()}, old)),
            refused("9", put("empty_dict", {}, old)),
        ]
    sparse = torch.eye(4).to_sparse()
    scheme = items(name("torch", "per_tensor_affine"), b"G" + struct.pack(">d", 0.1), integer(0))
    quantized = call(
        name("torch._utils", "_rebuild_qtensor"),
        storage("1", 35, "QInt8Storage"),
        integer(0),
        ints((5, 7)),
        ints((7, 1)),
        scheme,
        FALSE,
        call(name("collections", "OrderedDict")),
    )
    strings = OrderedDict([("fc.weight", t), ("version", "1"), ("flag", True), ("size", torch.Size([3]))])
    dangling = {
        "fc.weight": torch.nn.Parameter(t),
        "buffer": torch.nn.Parameter(t[0].clone(), requires_grad=False),
    }
    plain_pickle = folder / "plain_pickle.pkl"
    plain_pickle.write_bytes(pickle.dumps({"a": 1}))
    numpy_pickle = folder / "numpy_pickle.pkl"
    numpy_pickle.write_bytes(pickle.dumps({"weight": W}))
    found += _programs(folder, net)
    return found + [
        audited("5", put("fp8_e4m3", {"fc.weight": e4}), {"fc.weight": e4.double().numpy()}),
        audited("5", put("fp8_e5m2", {"fc.weight": e5}), {"fc.weight": e5.double().numpy()}),
        audited("5", put("fp16_subnormal", {"fc.weight": sub}), {"fc.weight": sub.double().numpy()}),
        audited(
            "5",
            put("float64_tiny", {"fc.weight": t.double() * 1e-300}),
            {"fc.weight": W.astype(np.float64) * 1e-300},
        ),
        audited("4", put("parameters", dangling), {"fc.weight": W}),
        audited("4", put("ordered", strings), {"fc.weight": W}),
        audited("5", put("sparse_beside", {"fc.weight": t, "mask": sparse}), {"fc.weight": W}, "sparse"),
        audited(
            "5",
            torch_file(
                folder / "quantized_beside.pt",
                mapping({"fc.weight": tensor(W), "q": quantized}),
                RECORDS | {"1": bytes([2]) * 35},
            ),
            {"fc.weight": W, "q": np.full((5, 7), 0.2)},
            "quanti|qint8|QInt8",
        ),
        audited(
            "5",
            put("meta_beside", {"fc.weight": t, "m": torch.empty(3, 4, device="meta")}),
            {"fc.weight": W},
            "meta",
        ),
        audited(
            "5",
            put("complex_beside", {"fc.weight": t, "c": torch.ones(3, 4, dtype=torch.complex64)}),
            {"fc.weight": W},
            "complex",
        ),
        audited(
            "5",
            put("bool_beside", {"fc.weight": t, "mask": torch.ones(3, 4, dtype=torch.bool)}),
            {"fc.weight": W},
        ),
        either("5", put("only_sparse", {"mask": sparse}), None),
        refused("4", plain_pickle),
        refused("4", numpy_pickle),
        either(
            "4", put("ema", {"model": {"fc.weight": t}, "model_ema": {"fc.weight": t * 2}}), {"fc.weight": W}
        ),
    ]


def _programs(folder: Path, net: torch.nn.Module) -> list[Case]:
    """Exported programs, whole and with a JSON that is none."""
    whole = folder / "program.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, (torch.ones(2, 7),)), whole)
    truth = {"0.weight": net[0].weight.detach().numpy().copy()}
    found = [audited("3", whole, truth, "its code was not run")]
    texts = {"deep": b"[" * 200_000, "list": b"[]", "number": b'{"schema_version": {"major": 1' + b"0" * 9000 + b"}}",
             "empty": b"", "hollow": b'{"schema_version": {"major": 8}}'}  # fmt: skip
    for tag, text in texts.items():
        found.append(refused("3", _with_program(whole, folder / f"program_{tag}.pt2", text), "program"))
    many = b"[" + b"{}," * 3_000_000 + b"0]"
    found.append(audited("3", _with_program(whole, folder / "program_many.pt2", many), truth, "two million"))
    return found


def _with_program(whole: Path, target: Path, text: bytes) -> Path:
    with zipfile.ZipFile(whole) as given, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in given.infolist():
            own = entry.filename.endswith("models/model.json")
            made.writestr(entry.filename, text if own else given.read(entry))
    return target
