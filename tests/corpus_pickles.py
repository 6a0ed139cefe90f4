"""Rules 4 and 5: pickles that would run code, bombs, and storages and views that lie."""

from __future__ import annotations

import pickle
import struct
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
from containers import (
    BUILD, FALSE, MARK, NEWOBJ, NONE, PERSID, TRUE, Member, call, integer, ints, items, legacy, legacy_storage,
    mapping, name, pickled, stack_name, storage, tensor, text, torch_file, torch_members, view, zipped,
)
from corpus import Case, audited, canary, either, matrix, refused

W = matrix()
RECORDS = {"0": W.tobytes()}
HELD = storage("0", W.size)


def cases(folder: Path) -> list[Case]:
    return [*_code(folder), *_bombs(folder), *_beside(folder), *_views(folder), *_storages(folder),
            *_legacy(folder), *_saved_by_torch(folder)]


def _code(folder: Path) -> list[Case]:
    """Files whose tensors depend on a call that must not happen."""
    touch = text(canary(folder.parent, "pickle"))
    path_arg = text(str(folder.parent / "canary" / "opened"))
    good = tensor(W)
    code = text(f"open({str(folder.parent / 'canary' / 'eval')!r}, 'w')")
    payloads = {
        "os.system": call(name("os", "system"), touch),
        "posix.system": call(name("posix", "system"), touch),
        "stack_global": call(stack_name("posix", "system"), touch),
        "eval": call(name("builtins", "eval"), code),
        "py2_eval": call(name("__builtin__", "eval"), code),
        "exec": call(name("builtins", "exec"), code),
        "open": call(name("io", "open"), path_arg, text("w")),
        "numpy_tofile": call(name("numpy", "save"), path_arg, good),
        "dotted": call(stack_name("torch", "os.system"), touch),
        "dotted_global": call(name("torch", "os.system"), touch),
        "dotted_dunder": call(stack_name("torch._utils", "_rebuild_tensor_v2.__globals__"), touch),
        "inst": MARK + touch + b"iposix\nsystem\n",
        "obj": MARK + name("posix", "system") + touch + b"o",
        "newobj": name("subprocess", "Popen") + items(touch) + NEWOBJ,
        "newobj_ex": name("subprocess", "Popen") + items(touch) + b"}" + b"\x92",
        "ext1": call(b"\x82\x01", touch),
        "ext4": call(b"\x84\x01\x00\x00\x00", touch),
        "getattr": call(call(name("builtins", "getattr"), name("os", "path"), text("os.system")), touch),
        "partial": call(call(name("functools", "partial"), name("posix", "system"), touch)),
        "torch_load": call(name("torch", "load"), path_arg),
        "unserialize": call(name("torch.jit._script", "unpack_script_module"), path_arg),
        "runpy": call(name("runpy", "_run_code"), code, mapping({})),
        "unknown": call(name("some.lab", "Weights"), good),
        "reduce_on_tensor": call(good, touch),
        "reduce_on_string": call(text("system"), touch),
        "build_setstate": good + mapping({"__setstate__": name("posix", "system")}) + BUILD + touch + BUILD,
        "build_dict_globals": name("collections", "OrderedDict") + items(touch) + BUILD,
    }
    found = []
    for tag, payload in payloads.items():
        reason = {"unknown": r"some\.lab\.Weights", "os.system": r"(os|posix)\.system", "eval": r"builtins\.eval"}.get(tag)
        path = torch_file(folder / f"code_{tag}.pt", mapping({"weight": payload}), RECORDS)
        found.append(refused("4", path, reason))
        if tag in ("os.system", "inst", "obj", "newobj", "ext1", "eval"):
            whole = torch_file(folder / f"code_root_{tag}.pt", payload, RECORDS)
            found.append(refused("4", whole, reason))
            old = folder / f"code_legacy_{tag}.pt"
            old.write_bytes(legacy(mapping({"weight": payload}), b"]", b""))
            found.append(refused("4", old, reason))
            bare = folder / f"code_bare_{tag}.pkl"
            bare.write_bytes(pickled(payload))
            found.append(refused("4", bare))
    first = folder / "code_before_magic.pt"
    first.write_bytes(pickled(payloads["os.system"]) + legacy(mapping({"weight": good}), b"]", b""))
    keyed = torch_file(folder / "code_as_key.pt", b"}" + payloads["os.system"] + good + b"s", RECORDS)
    hooks = call(name("torch._utils", "_rebuild_tensor_v2"), HELD, integer(0), ints(W.shape), ints((7, 1)), FALSE,
                 payloads["os.system"])
    in_hooks = torch_file(folder / "code_in_hooks.pt", mapping({"weight": hooks}), RECORDS)
    in_shape = call(name("torch._utils", "_rebuild_tensor_v2"), HELD, integer(0), payloads["eval"], ints((7, 1)),
                    FALSE, NONE)
    in_pid = items(text("storage"), payloads["os.system"], text("0"), text("cpu"), integer(35)) + PERSID
    return found + [
        refused("4", first), either("4", keyed, None), either("4", in_hooks, {"weight": W}),
        refused("4", torch_file(folder / "code_in_shape.pt", mapping({"weight": in_shape}), RECORDS)),
        refused("4", torch_file(folder / "code_in_pid.pt", mapping({"weight": view(in_pid, W.shape, (7, 1))}), RECORDS)),
    ]


def _bombs(folder: Path) -> list[Case]:
    """Few bytes that claim much memory, time or depth."""
    good = text("weight") + tensor(W)
    deep, doubling = 200_000, b"]q\x00" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1])
                                                  for i in range(60))
    claims = {
        "bytearray_6gb": call(name("builtins", "bytearray"), integer(6 << 30)),
        "bytes_6gb": call(name("_codecs", "encode"), call(name("builtins", "bytes"), integer(6 << 30)), text("latin1")),
        "list_of_range": call(name("builtins", "list"), call(name("builtins", "range"), integer(1 << 40))),
        "ordered_dict_of_pairs": call(name("collections", "OrderedDict"), text("x" * 99)),
        "size_1e12": call(name("torch", "Size"), call(name("builtins", "range"), integer(10**12))),
        "numpy_zeros": call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"),
                            ints((1 << 33,)), text("b")),
        "long4_length": b"\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"\1",
        "long4_negative": b"\x8b" + struct.pack("<i", -5),
        "binbytes8": b"\x8e" + struct.pack("<Q", 1 << 62) + b"x",
        "binunicode8": b"\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"x",
        "bytearray8": b"\x96" + struct.pack("<Q", 1 << 40),
        "frame": b"\x95" + struct.pack("<Q", 1 << 60) + NONE,
        "binput_huge": NONE + b"r" + struct.pack("<I", 0xFFFFFFFF),
        "get_missing": b"h\x07",
        "long_binget_missing": b"j" + struct.pack("<I", 0xFFFFFFF0),
        "decimal_long": b"L" + b"9" * 100_000 + b"L\n",
        "decimal_int": b"I" + b"9" * 1_000_000 + b"\n",
        "pop_empty": b"0" * 40,
        "mark_only": MARK * 9,
        "tuple_without_mark": b"0tt",
        "unknown_opcode": b"\xff",
        "bad_utf8": b"X\2\0\0\0\xff\xfe",
        "appends_to_tensor": tensor(W) + MARK + NONE + b"e",
        "setitem_on_string": text("x") + NONE + NONE + b"s",
        "unhashable_key": b"}]Ns",
    }
    harmless = {"numpy_zeros", "frame", "ordered_dict_of_pairs", "list_of_range", "size_1e12", "bytes_6gb", "bytearray_6gb",
                "binput_huge", "decimal_long", "decimal_int", "appends_to_tensor", "setitem_on_string", "unhashable_key"}
    found = []
    for tag, payload in claims.items():
        path = torch_file(folder / f"bomb_{tag}.pt", b"}" + MARK + good + text("x") + payload + b"u", RECORDS)
        found.append(either("4", path, {"weight": W}) if tag in harmless else refused("4", path))
    beside = {
        "deep_lists": b"]" * deep + b"a" * (deep - 1),
        "deep_tuples": NONE + b"\x85" * deep,
        "deep_dicts": b"}" * 1 + (text("a") + b"}") * deep + b"s" * deep,
        "doubling": doubling,
        "cycle_list": b"]q\x05h\x05a",
        "cycle_dict": b"}q\x05" + text("self") + b"h\x05s",
        "cycle_through_tuple": b"]q\x05h\x05\x85a",
        "million_nones": MARK + NONE * 1_000_000 + b"t",
        "million_pops": (NONE + b"0") * 1_000_000 + NONE,
        "duplicated_stack": NONE + b"2" * 200_000 + b"0" * 200_000,
        "memo_million": (NONE + b"\x940") * 500_000 + NONE,
    }
    for tag, payload in beside.items():
        path = torch_file(folder / f"bomb_{tag}.pt", b"}" + MARK + good + text("x") + payload + b"u", RECORDS)
        sound = tag.startswith("cycle")
        found.append((audited if sound else either)("4", path, {"weight": W}))
    root = torch_file(folder / "cycle_of_state_dicts.pt", b"}q\x05" + MARK + good + text("model") + b"h\x05u", RECORDS)
    inner = b"}q\x05" + MARK + good + b"u"
    nested = inner
    for _ in range(300):
        nested = b"}" + text("model") + nested + b"s"
    nothing_left = folder / "bomb_no_stop.pt"
    nothing_left.write_bytes(zipped(Member("a/data.pkl", b"\x80\x02}"), Member("a/data/0", W.tobytes())))
    after = folder / "bomb_after_stop.pt"
    after.write_bytes(zipped(Member("a/data.pkl", pickled(b"}" + good + b"s") + b"cos\nsystem\n"),
                             *torch_members(b"", RECORDS, root="a")[1:]))
    names = mapping({f"n{i}": tensor(W) for i in range(20_000)})
    return found + [
        audited("4", root, {"weight": W}),
        either("4", torch_file(folder / "nested_300_deep.pt", nested, RECORDS), {"weight": W}),
        refused("4", nothing_left), either("4", after, {"weight": W}),
        audited("4", torch_file(folder / "one_tensor_under_20000_names.pt", names, RECORDS), None),
    ]


def _beside(folder: Path) -> list[Case]:
    """Foreign things that merely sit beside the tensors: a note, and the audit."""
    run = call(name("posix", "system"), text(canary(folder.parent, "beside")))
    spoof = call(name("argparse", "Namespace")) + mapping({"lr": integer(1), "evil": run}) + BUILD
    config = name("omegaconf.dictconfig", "DictConfig") + b")" + NEWOBJ + mapping({"_content": mapping({})}) + BUILD
    state = mapping({"weight": tensor(W)})

    def put(tag: str, value: bytes) -> Path:
        return torch_file(folder / f"beside_{tag}.pt", mapping({"state_dict": state, "hparams": value}), RECORDS)

    plain = folder / "beside_protocol4.pt"
    data = b"\x80\x04\x95" + struct.pack("<Q", 9) + mapping({"weight": tensor(W)}) + b"."
    plain.write_bytes(zipped(Member("a/data.pkl", data), *torch_members(b"", RECORDS, root="a")[1:]))
    return [
        either("4", put("call", run), {"weight": W}, r"posix\.system"),
        either("4", put("namespace_with_call", spoof), {"weight": W}, r"posix\.system|Namespace"),
        audited("4", put("config", config), {"weight": W}, r"omegaconf\.dictconfig\.DictConfig"),
        audited("4", put("bare_global", name("some.lab", "Thing")), {"weight": W}, r"some\.lab\.Thing"),
        either("4", put("ansi_global", stack_name("lab\x1b[31m", "x\ny")), {"weight": W}),
        either("4", put("proto0", b"(dS'a'\nI1\nsS'b'\nF2.5\nsV\\u00e9\nI01\nsp9\n"), {"weight": W}),
        either("4", plain, {"weight": W}),
    ]


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
        "shape_none": call(name("torch._utils", "_rebuild_tensor_v2"), HELD, integer(0), NONE, NONE, FALSE, NONE),
        "too_few_arguments": call(name("torch._utils", "_rebuild_tensor_v2"), HELD),
        "of_a_string": view(text("0"), (5, 7), (7, 1)),
        "expanded_giant": view(HELD, (1 << 18, 1 << 18), (0, 0)),
        "expanded_160gb": view(HELD, (200_000, 200_000), (0, 0)),
        "hundred_dimensions": view(HELD, (1,) * 5000, (0,) * 5000),
    }
    big = np.arange(40, dtype=np.float32)
    backing = {"0": big.tobytes()}
    held = storage("0", 40)
    found = [refused("5", put(tag, value)) for tag, value in broken.items() if "expanded" not in tag and "hundred" not in tag]
    found += [either("5", put(tag, broken[tag]), None) for tag in ("expanded_giant", "expanded_160gb", "hundred_dimensions")]
    tail = storage("0", 35)
    return found + [
        audited("5", put("transposed", view(HELD, (7, 5), (1, 7))), {"weight": W.T}),
        audited("5", put("strided", view(held, (3, 4), (12, 2), 3), backing),
                {"weight": np.lib.stride_tricks.as_strided(big[3:], (3, 4), (48, 8))}),
        audited("5", put("overlapping_windows", view(held, (8, 9), (3, 1), 2), backing),
                {"weight": np.lib.stride_tricks.as_strided(big[2:], (8, 9), (12, 4))}),
        either("5", put("expanded_row", view(tail, (4, 7), (0, 1))), {"weight": np.tile(W[0], (4, 1))}),
        audited("5", put("exactly_to_the_end", view(HELD, (4, 7), (7, 1), 7)), {"weight": W[1:]}),
        either("5", put("zero_size_out_of_bounds", view(HELD, (0, 7), (7, 1), 99)), None),
        either("5", torch_file(folder / "view_wide_offset.pt",
                               mapping({"weight": view(HELD, (5, 7), (7, 1)), "bias": view(HELD, (5,), (1,), 30)}), RECORDS),
               {"weight": W}),
    ]


def _storages(folder: Path) -> list[Case]:
    def put(tag: str, value: bytes, records: dict[str, bytes] = RECORDS, **keywords: str) -> Path:
        return torch_file(folder / f"storage_{tag}.pt", mapping({"weight": value}), records, **keywords)

    def at(count: int, key: str = "0", kind: str = "FloatStorage", device: str = "cpu") -> bytes:
        return view(storage(key, count, kind, device), W.shape, (7, 1))

    text_pid = items(text("0"), b"P0\n")
    short_pid = items(text("storage"), name("torch", "FloatStorage"), text("0")) + PERSID
    other_pid = items(text("module"), name("torch", "FloatStorage"), text("0"), text("cpu"), integer(35)) + PERSID
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
    view_body = mapping({"weight": view(items(text("storage"), name("torch", "FloatStorage"), text("7"), text("cpu"),
                                              integer(35), items(text("v"), integer(7), integer(28))) + PERSID,
                                        (4, 7), (7, 1))})
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
    for tag, content, weight in (("plain", legacy(body, key, data), W), ("storage_view", legacy(view_body, key, data), W[1:]),
                                 ("big_endian_host", legacy(body, key, struct.pack("<q", 35) + W.tobytes(), order=TRUE), W)):
        path = folder / f"legacy_sound_{tag}.pt"
        path.write_bytes(content)
        found.append((either if tag == "storage_view" else audited)("5", path, {"weight": weight}))
    trailing = folder / "legacy_trailing.pt"
    trailing.write_bytes(legacy(body, key, data) + b"junk")
    return [*found, either("5", trailing, {"weight": W})]


def _saved_by_torch(folder: Path) -> list[Case]:
    """Unusual things that torch.save itself writes."""
    import torch

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
            audited("5", put("row_of_stack", {"fc.weight": wide[1, :, ::2]}, old), {"fc.weight": 2 * W[:, ::2]}),
            audited("4", put("namespace", {"model": {"fc.weight": t}, "args": Namespace(lr=1, path=Path("x"))}, old),
                    {"fc.weight": W}, "Namespace"),
            audited("4", put("optimizer", {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, old),
                    {"0.weight": weight}),
            audited("4", put("list", [{"fc.weight": t}], old), None),
            refused("4", put("module", net, old), r"torch\.nn\.modules\.container\.Sequential|Linear"),
            audited("5", put("bf16", {"fc.weight": t.bfloat16()}, old), {"fc.weight": t.bfloat16().double().numpy()}),
            refused("9", put("no_tensor", {"lr": 0.1, "x": [1, 2]}, old)),
            refused("9", put("only_vectors", {"bias": t[0].clone()}, old)),
            refused("9", put("empty_dict", {}, old)),
        ]
    sparse = torch.eye(4).to_sparse()
    scheme = items(name("torch", "per_tensor_affine"), b"G" + struct.pack(">d", 0.1), integer(0))
    quantized = call(name("torch._utils", "_rebuild_qtensor"), storage("1", 35, "QInt8Storage"), integer(0), ints((5, 7)),
                     ints((7, 1)), scheme, FALSE, call(name("collections", "OrderedDict")))
    strings = OrderedDict([("fc.weight", t), ("version", "1"), ("flag", True), ("size", torch.Size([3]))])
    dangling = {"fc.weight": torch.nn.Parameter(t), "buffer": torch.nn.Parameter(t[0].clone(), requires_grad=False)}
    plain_pickle = folder / "plain_pickle.pkl"
    plain_pickle.write_bytes(pickle.dumps({"a": 1}))
    numpy_pickle = folder / "numpy_pickle.pkl"
    numpy_pickle.write_bytes(pickle.dumps({"weight": W}))
    return found + [
        audited("5", put("fp8_e4m3", {"fc.weight": e4}), {"fc.weight": e4.double().numpy()}),
        audited("5", put("fp8_e5m2", {"fc.weight": e5}), {"fc.weight": e5.double().numpy()}),
        audited("5", put("fp16_subnormal", {"fc.weight": sub}), {"fc.weight": sub.double().numpy()}),
        audited("5", put("float64_tiny", {"fc.weight": t.double() * 1e-300}), {"fc.weight": W.astype(np.float64) * 1e-300}),
        audited("4", put("parameters", dangling), {"fc.weight": W}),
        audited("4", put("ordered", strings), {"fc.weight": W}),
        audited("5", put("sparse_beside", {"fc.weight": t, "mask": sparse}), {"fc.weight": W}, "sparse"),
        audited("5", torch_file(folder / "quantized_beside.pt", mapping({"fc.weight": tensor(W), "q": quantized}),
                                RECORDS | {"1": bytes(35)}), {"fc.weight": W}, "quanti|qint8|QInt8"),
        audited("5", put("meta_beside", {"fc.weight": t, "m": torch.empty(3, 4, device="meta")}), {"fc.weight": W}, "meta"),
        audited("5", put("complex_beside", {"fc.weight": t, "c": torch.ones(3, 4, dtype=torch.complex64)}), {"fc.weight": W}, "complex"),
        audited("5", put("bool_beside", {"fc.weight": t, "mask": torch.ones(3, 4, dtype=torch.bool)}), {"fc.weight": W}),
        either("5", put("only_sparse", {"mask": sparse}), None),
        refused("4", plain_pickle), refused("4", numpy_pickle),
        either("4", put("ema", {"model": {"fc.weight": t}, "model_ema": {"fc.weight": t * 2}}), {"fc.weight": W}),
    ]
