"""Rule 4: pickles that would run code, bombs, foreign things beside the tensors."""

from __future__ import annotations

import struct
from pathlib import Path

from containers import (
    BUILD,
    FALSE,
    MARK,
    NEWOBJ,
    NONE,
    PERSID,
    Member,
    call,
    integer,
    ints,
    items,
    legacy,
    mapping,
    name,
    pickled,
    stack_name,
    storage,
    tensor,
    text,
    torch_file,
    torch_members,
    view,
    zipped,
)
from corpus import Case, audited, canary, either, matrix, refused

W = matrix()
RECORDS = {"0": W.tobytes()}
HELD = storage("0", W.size)


def cases(folder: Path) -> list[Case]:
    return [*_code(folder), *_bombs(folder), *_beside(folder)]


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
        reason = {
            "unknown": r"some\.lab\.Weights",
            "os.system": r"(os|posix)\.system",
            "eval": r"builtins\.eval",
        }.get(tag)
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
    hooks = call(
        name("torch._utils", "_rebuild_tensor_v2"),
        HELD,
        integer(0),
        ints(W.shape),
        ints((7, 1)),
        FALSE,
        payloads["os.system"],
    )
    in_hooks = torch_file(folder / "code_in_hooks.pt", mapping({"weight": hooks}), RECORDS)
    in_shape = call(
        name("torch._utils", "_rebuild_tensor_v2"),
        HELD,
        integer(0),
        payloads["eval"],
        ints((7, 1)),
        FALSE,
        NONE,
    )
    in_pid = items(text("storage"), payloads["os.system"], text("0"), text("cpu"), integer(35)) + PERSID
    return found + [
        refused("4", first),
        either("4", keyed, None),
        either("4", in_hooks, {"weight": W}),
        refused("4", torch_file(folder / "code_in_shape.pt", mapping({"weight": in_shape}), RECORDS)),
        refused(
            "4",
            torch_file(
                folder / "code_in_pid.pt", mapping({"weight": view(in_pid, W.shape, (7, 1))}), RECORDS
            ),
        ),
    ]


def _bombs(folder: Path) -> list[Case]:
    """Few bytes that claim much memory, time or depth."""
    good = text("weight") + tensor(W)
    deep, doubling = (
        100_000,
        b"]q\x00"
        + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)),
    )
    claims = {
        "bytearray_6gb": call(name("builtins", "bytearray"), integer(6 << 30)),
        "bytes_6gb": call(
            name("_codecs", "encode"), call(name("builtins", "bytes"), integer(6 << 30)), text("latin1")
        ),
        "list_of_range": call(name("builtins", "list"), call(name("builtins", "range"), integer(1 << 40))),
        "ordered_dict_of_pairs": call(name("collections", "OrderedDict"), text("x" * 99)),
        "size_1e12": call(name("torch", "Size"), call(name("builtins", "range"), integer(10**12))),
        "numpy_zeros": call(
            name("numpy.core.multiarray", "_reconstruct"),
            name("numpy", "ndarray"),
            ints((1 << 33,)),
            text("b"),
        ),
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
    harmless = {
        "numpy_zeros",
        "frame",
        "ordered_dict_of_pairs",
        "list_of_range",
        "size_1e12",
        "bytes_6gb",
        "bytearray_6gb",
        "binput_huge",
        "decimal_long",
        "decimal_int",
        "appends_to_tensor",
        "setitem_on_string",
        "unhashable_key",
    }
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
        "many_nones": MARK + NONE * 300_000 + b"t",
        "many_pops": (NONE + b"0") * 1_000_000 + NONE,
        "duplicated_stack": NONE + b"2" * 200_000 + b"0" * 200_000,
        "many_memos": (NONE + b"\x940") * 200_000 + NONE,
    }
    for tag, payload in beside.items():
        path = torch_file(folder / f"bomb_{tag}.pt", b"}" + MARK + good + text("x") + payload + b"u", RECORDS)
        sound = tag.startswith("cycle")
        found.append((audited if sound else either)("4", path, {"weight": W}))
    root = torch_file(
        folder / "cycle_of_state_dicts.pt", b"}q\x05" + MARK + good + text("model") + b"h\x05u", RECORDS
    )
    inner = b"}q\x05" + MARK + good + b"u"
    nested = inner
    for _ in range(300):
        nested = b"}" + text("model") + nested + b"s"
    nothing_left = folder / "bomb_no_stop.pt"
    nothing_left.write_bytes(zipped(Member("a/data.pkl", b"\x80\x02}"), Member("a/data/0", W.tobytes())))
    after = folder / "bomb_after_stop.pt"
    after.write_bytes(
        zipped(
            Member("a/data.pkl", pickled(b"}" + good + b"s") + b"cos\nsystem\n"),
            *torch_members(b"", RECORDS, root="a")[1:],
        )
    )
    names = mapping({f"n{i}": tensor(W) for i in range(4_000)})
    return found + [
        audited("4", root, {"weight": W}),
        either("4", torch_file(folder / "nested_300_deep.pt", nested, RECORDS), {"weight": W}),
        refused("4", nothing_left),
        either("4", after, {"weight": W}),
        audited("4", torch_file(folder / "one_tensor_under_4000_names.pt", names, RECORDS), None),
    ]


def _beside(folder: Path) -> list[Case]:
    """Foreign things that merely sit beside the tensors: a note, and the audit."""
    run = call(name("posix", "system"), text(canary(folder.parent, "beside")))
    spoof = call(name("argparse", "Namespace")) + mapping({"lr": integer(1), "evil": run}) + BUILD
    config = (
        name("omegaconf.dictconfig", "DictConfig")
        + b")"
        + NEWOBJ
        + mapping({"_content": mapping({})})
        + BUILD
    )
    state = mapping({"weight": tensor(W)})

    def put(tag: str, value: bytes) -> Path:
        return torch_file(
            folder / f"beside_{tag}.pt", mapping({"state_dict": state, "hparams": value}), RECORDS
        )

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
