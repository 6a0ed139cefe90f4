"""What torch's pickles call: tensors are rebuilt as views of storages, all else as inert values.

The table at the foot is the allow list. What torch.save writes for a tensor and is not a plain
strided one becomes `Unread`, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from snaudit.errors import UnreadableModel
from snaudit.formats.pickles import Call, Global, Opaque
from snaudit.formats.storage import dtype_of
from snaudit.formats.views import EXPANDED_LIMIT, View, is_index, is_layout
from snaudit.names import printable


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage as the pickle tells it: `count` elements of `dtype`, or bytes where it is untyped.

    start, stop: the part of it that is meant, in elements (legacy files have views of storages).
    reason: why its elements cannot be read, or "".
    """

    key: str
    dtype: str
    count: int
    start: int = 0
    stop: int = 0
    reason: str = ""

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.count * (dtype_of(self.dtype).itemsize if self.dtype else 1)


@dataclass(frozen=True, slots=True)
class Unread:
    """A tensor, or what holds one, that is not audited, and why; its shape where that is known."""

    reason: str
    shape: tuple[int, ...] | None = None
    is_tensor: bool = True

    @property
    def missed(self) -> bool:
        """Whether it may be a weight matrix all the same."""
        return self.is_tensor and (self.shape is None or len(self.shape) > 1)


@dataclass(frozen=True, slots=True)
class Number:
    """A number that stands in the pickle itself and not in a storage: a quantized tensor's scale."""

    value: float
    shape: tuple[int, ...] = ()
    size: int = 1


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized tensor as what it is made of: its codes, scale, zero point and, if it has one for each
    channel, the channels' axis; by name."""

    parts: tuple[tuple[str, View | Number], ...]


class Rebuilder:
    """The calls and persistent ids of one torch file; `storages` and `views` are what they told.

    `prefix` goes before a storage's key: two pickles of a file may have storages of equal keys.
    """

    def __init__(self, path: Path, prefix: str = "", big: bool = False, legacy: bool = False) -> None:
        self.path, self.prefix, self.big, self.legacy = path, prefix, big, legacy
        self.storages: dict[str, Storage] = {}
        self.views: list[View] = []
        self.calls: dict[str, Call] = {name: getattr(self, call) for name, call in CALLS.items()}
        self.calls |= {name: partial(_unread, *why) for name, why in UNREAD.items()}

    def fail(self, reason: str) -> Any:
        raise UnreadableModel(self.path, reason)

    def persistent(self, name: Any) -> Any:
        """The storage (or, in legacy files, the module) that a persistent id stands for."""
        if type(name) is tuple and len(name) == 4 and name[0] == "module" and self.legacy:
            return name[1]  # the class of a pickled module, with its source beside it
        if type(name) is not tuple or len(name) != 5 + self.legacy or name[0] != "storage":
            self.fail("the pickle names a storage in no known way")
        kind, key, _, count = name[1:5]
        if type(kind) is not Global or type(key) is not str or not is_index(count):
            self.fail("the pickle names a storage in no known way")
        dtype, reason = STORAGES.get(kind.name, "?"), ""
        if dtype == "?" or kind.module.partition(".")[0] != "torch":
            reason = f"its storage is a {printable(str(kind), 120)}"
            reason = SUB_BYTE if kind.name in SUB_BYTE_STORAGES else reason
            dtype = ""
        key = self.prefix + key
        told = Storage(key, dtype, count, 0, count, reason)
        if self.storages.setdefault(key, told) != told:
            self.fail(f"storage {key!r} is described in two ways")
        return self._part(told, name[5]) if self.legacy and name[5] is not None else told

    def _part(self, storage: Storage, view: Any) -> Storage:
        if type(view) is not tuple or len(view) != 3 or not all(is_index(n) for n in view[1:]):
            self.fail(f"storage {storage.key!r} has a malformed view")
        _, start, count = view
        if start + count > storage.count:
            self.fail(f"a view of storage {storage.key!r} reaches past its end")
        return Storage(storage.key, storage.dtype, storage.count, start, start + count, storage.reason)

    def tensor(self, arguments: tuple[Any, ...]) -> Any:
        """(storage, offset, shape, strides, requires_grad, hooks[, metadata])"""
        return self._view(arguments, None, arguments[6] if len(arguments) > 6 else None)

    def tensor_of(self, arguments: tuple[Any, ...]) -> Any:
        """(storage, offset, shape, strides, requires_grad, hooks, dtype[, metadata])"""
        dtype = arguments[6] if len(arguments) > 6 else None
        if type(dtype) is not Global or dtype.module != "torch":
            self.fail("a tensor in the pickle has no dtype")
        return self._view(arguments, dtype.name, arguments[7] if len(arguments) > 7 else None)

    def _view(self, arguments: tuple[Any, ...], dtype: str | None, metadata: Any) -> Any:
        if len(arguments) < 4 or type(arguments[0]) is not Storage:
            return self._no_view(arguments)
        storage, offset, shape, strides = arguments[:4]
        if not is_index(offset) or not is_layout(shape, strides):
            self.fail(f"a tensor in storage {storage.key!r} has a malformed shape, stride or offset")
        reason = storage.reason
        if dtype is None:
            dtype = storage.dtype
        elif storage.dtype and dtype != storage.dtype:
            self.fail(f"a tensor in storage {storage.key!r} has another dtype than its storage")
        if not reason and dtype not in DTYPES:
            reason = f"its dtype is {printable(dtype, 60) or 'untyped'}"
            reason = SUB_BYTE if dtype.startswith(("float4", "int", "uint")) else reason
        if reason:
            return Unread(reason, shape)
        width = dtype_of(dtype).itemsize
        if self.big and not storage.dtype and width > 1:
            return Unread("the byte order of an untyped storage in a big-endian file is ambiguous", shape)
        scale = 1 if storage.dtype else width
        stop, whole = storage.stop // scale, storage.count // scale
        if storage.start % scale:
            self.fail(f"a view of storage {storage.key!r} starts within a number")
        view = View(storage.key, dtype, storage.start // scale + offset, shape, strides, self.big)
        if view.size and view.stop > stop:
            self.fail(f"a tensor of shape {shape} reaches past the end of its storage {storage.key!r}")
        if view.size > max(whole, EXPANDED_LIMIT):
            return Unread(f"it expands {whole} stored numbers to {view.size}", shape)
        if metadata is not None and getattr(metadata, "entries", True):
            return Unread("it is a lazily conjugated or negated view", shape)
        self.views.append(view)
        return view

    def quantized(self, arguments: tuple[Any, ...]) -> Any:
        """(storage, offset, shape, strides, (scheme, scale, zero point[, axis]), requires_grad, hooks)"""
        if len(arguments) < 5 or type(arguments[4]) is not tuple:
            self.fail("a quantized tensor in the pickle has no scale")
        codes = self._view(arguments[:4], None, None)
        scheme, *parameters = arguments[4]
        named = str(scheme) if type(scheme) is Global else ""
        if type(codes) is not View or named not in QUANTIZED or len(parameters) != QUANTIZED[named]:
            unknown = Unread(f"it is quantized in a way that is not read ({printable(named, 60)})")
            return codes if type(codes) is not View else Unread(unknown.reason, codes.shape)
        found = [part if type(part) is View else _number(part) for part in parameters]
        if None in found:
            self.fail("a quantized tensor in the pickle has a malformed scale")
        return Quantized(tuple(zip(("int_repr", "scale", "zero_point", "axis"), (codes, *found), strict=False)))

    def _no_view(self, arguments: tuple[Any, ...]) -> Any:
        if arguments and type(arguments[0]) is Opaque:
            return Opaque(arguments[0].callee, [*arguments])
        return self.fail("a tensor in the pickle has no storage")

    def same(self, arguments: tuple[Any, ...]) -> Any:
        """The first argument as it is: a parameter is its data, a typed list its list."""
        return arguments[0] if arguments else self.fail("a parameter in the pickle has no data")

    def subclass(self, arguments: tuple[Any, ...]) -> Any:
        """(function, class, arguments, state), which torch writes for tensors of other classes."""
        if len(arguments) != 4 or type(arguments[2]) is not tuple:
            self.fail("a tensor in the pickle has a malformed class")
        function, kind, inner, _ = arguments
        if str(function) not in self.calls or type(function) is not Global:
            return Opaque(str(function) if type(function) is Global else "an object", [*arguments])
        value = self.calls[str(function)](inner)
        plain = type(kind) is Global and str(kind) in PLAIN_CLASSES
        if plain or type(value) is not View:
            return value
        return Unread(f"it is of the tensor subclass {printable(str(kind), 120)}", value.shape)

    def size(self, arguments: tuple[Any, ...]) -> Any:
        """torch.Size, a tuple."""
        return tuple(arguments[0]) if arguments and type(arguments[0]) in (tuple, list) else ()

    def moved(self, arguments: tuple[Any, ...]) -> Any:
        """(data, dtype, device, requires_grad): the data, unless the loader would convert it."""
        if len(arguments) != 4 or type(arguments[1]) is not Global:
            self.fail("a tensor in the pickle has no dtype")
        data, dtype = arguments[0], arguments[1].name
        if type(data) is View and data.dtype != dtype:
            return Unread(f"it is stored as {data.dtype} and loaded as {printable(dtype, 60)}", data.shape)
        return data

    def numpy_array(self, arguments: tuple[Any, ...]) -> Any:
        """A numpy array, whose bytes are in the pickle itself."""
        return Opaque(NUMPY_ARRAY, [])

    def inert(self, arguments: tuple[Any, ...]) -> Any:
        """A value of which nothing is needed: a device, a number of numpy's, encoded bytes."""
        return Opaque("inert", [*arguments])


def _number(value: Any) -> Number | None:
    return Number(float(value)) if type(value) in (int, float) and abs(value) < 2**63 else None


def _unread(reason: str, index: int, arguments: tuple[Any, ...]) -> Unread:
    """An unread tensor whose shape is argument `index`, if that is one."""
    shape = arguments[index] if len(arguments) > index else None
    return Unread(reason, shape if is_layout(shape, shape) else None)


QUANTIZED = {
    "torch.per_tensor_affine": 2, "torch.per_tensor_symmetric": 2, "torch.per_channel_affine": 3,
    "torch.per_channel_symmetric": 3,
}  # fmt: skip
"""Schemes of (codes − zero point)·scale, with the number of their parameters."""
NUMPY_ARRAY = "numpy.ndarray"
INSIDE_PICKLE = "it is a numpy array inside the pickle"
SUB_BYTE = "its elements are smaller than a byte"

DTYPES = frozenset((
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float8_e8m0fnu", "complex64", "complex128", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool",
))

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
    "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64",
    "QInt8Storage": "int8", "QUInt8Storage": "uint8", "QInt32Storage": "int32", "UntypedStorage": "",
}
SUB_BYTE_STORAGES = ("QUInt4x2Storage", "QUInt2x4Storage")

PLAIN_CLASSES = frozenset(("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer",
                           "torch.nn.Parameter", "torch.nn.Buffer"))

CALLS = {
    "torch._utils._rebuild_tensor": "tensor",
    "torch._utils._rebuild_tensor_v2": "tensor",
    "torch._utils._rebuild_tensor_v3": "tensor_of",
    "torch._utils._rebuild_qtensor": "quantized",
    "torch._utils._rebuild_parameter": "same",
    "torch._utils._rebuild_parameter_with_state": "same",
    "torch._tensor._rebuild_from_type": "subclass",
    "torch._tensor._rebuild_from_type_v2": "subclass",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "moved",
    "numpy.core.multiarray._reconstruct": "numpy_array",
    "numpy._core.multiarray._reconstruct": "numpy_array",
    "numpy.core.multiarray.scalar": "inert",
    "numpy._core.multiarray.scalar": "inert",
    "numpy.dtype": "inert",
    "torch.Size": "size",
    "torch.device": "inert",
    "torch.serialization._get_layout": "inert",
    "_codecs.encode": "inert",
    "builtins.complex": "inert",
    "builtins.bytearray": "inert",
    "torch.jit._pickle.build_intlist": "same",
    "torch.jit._pickle.build_doublelist": "same",
    "torch.jit._pickle.build_boollist": "same",
    "torch.jit._pickle.build_tensorlist": "same",
    "torch.jit._pickle.restore_type_tag": "same",
}

"""Calls by the name of the Rebuilder's method that answers them."""

UNREAD = {
    "torch._utils._rebuild_sparse_tensor": ("it is sparse", 2),
    "torch._utils._rebuild_sparse_csr_tensor": ("it is sparse", 2),
    "torch._utils._rebuild_nested_tensor": ("it is a nested tensor", 4),
    "torch._utils._rebuild_meta_tensor_no_storage": ("it is on the meta device and has no numbers", 1),
    "torch._utils._rebuild_wrapper_subclass": ("it is a wrapper around other tensors", 2),
    "torch._utils._rebuild_device_tensor_from_numpy": (INSIDE_PICKLE, 4),
    "torch._utils._rebuild_xla_tensor": (INSIDE_PICKLE, 4),
}
"""Calls that make a tensor that is not audited: the reason, and which argument is its shape."""


def is_inert(name: str) -> bool:
    """Whether a global that is merely mentioned says nothing: dtypes, storages, builtin types."""
    module, _, last = name.rpartition(".")
    return (module == "torch" or name in PLAIN_CLASSES or name in ("typing.Any", "numpy.ndarray")
            or (module in ("torch.storage", "torch.cuda") and last.endswith("Storage"))
            or (module == "builtins" and last in ("int", "float", "str", "bool", "bytes", "tuple", "object",
                                                  "long", "unicode", "dict", "list", "set", "frozenset")))
