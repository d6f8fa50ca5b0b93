"""What the pickles of torch checkpoints and of plain NumPy dictionaries may construct."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vqgan.importers.pickle_objects import Constructor, Global, PickleError, call, simple_key
from vqgan.importers.tensors import (
    Tensor,
    check_repeats,
    check_shape,
    dtype_named,
    in_memory,
    shown,
    strided_extent,
)

STORAGE_TYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_TORCH_DTYPES = {
    "double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32",
    "short": "int16", "cfloat": "complex64", "cdouble": "complex128",
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file that tensors are views of.

    Attributes:
      dtype: type of the numbers, native byte order.
      size: how many.
      read: ``read(first_byte, byte_count)``, checked against the file.
    """

    dtype: np.dtype[Any]
    size: int
    read: Callable[[int, int], np.ndarray]

    def view_as(self, dtype: np.dtype[Any]) -> "Storage":
        """Views the same bytes as another type."""
        return Storage(dtype, self.size * self.dtype.itemsize // dtype.itemsize, self.read)


def storage_dtype(kind: Any) -> np.dtype[Any]:
    """Returns the number type of a storage class that a persistent id names."""
    name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else kind
    if not isinstance(name, str) or name not in STORAGE_TYPES:
        raise PickleError(f"storage of unknown type {shown(name)}")
    return dtype_named(STORAGE_TYPES[name])


def rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Makes a strided view of a storage, checked against its size; torch's ``_rebuild_tensor_v2``."""
    if not isinstance(storage, Storage):
        raise PickleError("a tensor without storage")
    if not isinstance(strides, (tuple, list)):
        raise PickleError("a tensor without strides")
    shape, strides = check_shape(shape, strides), tuple(strides)
    if type(offset) is not int or not 0 <= offset < 1 << 48:
        raise PickleError(f"a tensor starts at {shown(offset)}")
    extent = strided_extent(shape, strides)
    if offset + extent > storage.size:
        raise PickleError(f"a tensor of shape {shape} reaches beyond its storage of {storage.size} numbers")
    dtype = storage.dtype
    check_repeats(shape, extent, dtype.itemsize)

    def read() -> np.ndarray:
        data = storage.read(offset * dtype.itemsize, extent * dtype.itemsize).view(dtype)
        if extent == 0:
            return np.zeros(shape, dtype)
        steps = tuple(stride * dtype.itemsize for stride in strides)
        return np.lib.stride_tricks.as_strided(data, shape, steps, writeable=False)

    return Tensor(shape, dtype, read)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _gradient: Any, _hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else dtype
    if not isinstance(storage, Storage) or not isinstance(name, str):
        raise PickleError("a tensor without storage or type")
    return rebuild_tensor(storage.view_as(dtype_named(_TORCH_DTYPES.get(name, name))), offset, shape, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _rebuild_from_type(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    if isinstance(function, Global) and function.constructor in _TENSORS and isinstance(arguments, tuple):
        return call(function, arguments)
    raise PickleError("a tensor of an unknown kind")


class DtypeRecord:
    """NumPy's dtype while its pickle is read; ``setstate`` gives the byte order."""

    def __init__(self, name: Any, *_: Any):
        if isinstance(name, Global):
            name = name.name.removeprefix("ml_dtypes.")
        if not isinstance(name, str):
            raise PickleError("a NumPy type without a name")
        self.value = None if name.startswith(("O", "V")) else dtype_named(name)

    def setstate(self, state: Any) -> None:
        """Takes ``(version, byte order, ...)``."""
        if self.value is not None and isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.value = self.value.newbyteorder(">")


class ArrayRecord:
    """NumPy's array while its pickle is read; ``setstate`` gives shape, type and bytes."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray | None = None

    def setstate(self, state: Any) -> None:
        """Takes ``(version, shape, dtype, is Fortran-ordered, bytes)``."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleError("an array without shape, type and bytes")
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray | None:
    """Makes an array over bytes; None for arrays of objects, which hold no weights."""
    if not isinstance(dtype, DtypeRecord):
        raise PickleError("an array without a type")
    if dtype.value is None:
        return None
    shape = check_shape(shape if isinstance(shape, (tuple, list)) else (shape,))
    if isinstance(data, str):
        data = _encode(data)
    if not isinstance(data, (bytes, bytearray)):
        raise PickleError("an array without bytes")
    if len(data) != math.prod(shape) * dtype.value.itemsize:
        raise PickleError(f"an array of shape {shape} has {len(data)} bytes")
    flat = np.frombuffer(data, dtype.value) if data else np.zeros(0, dtype.value)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> ArrayRecord:
    record = ArrayRecord()
    record.array = _array(data, dtype, shape, order if isinstance(order, str) else "C")
    return record


def _scalar(dtype: Any, data: Any = b"") -> Any:
    array = _array(data, dtype, (1,), "C")
    return None if array is None else array[0].item()


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise PickleError("text in an unknown encoding")
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise PickleError(f"text that is not {encoding}") from error


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """Makes a plain dictionary of an OrderedDict, defaultdict, FrozenDict or dict."""
    items = arguments[-1] if arguments and isinstance(arguments[-1], (dict, list)) else {}
    if isinstance(items, dict):
        return dict(items)
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in items):
        raise PickleError("a mapping of something else than pairs")
    return {simple_key(key): value for key, value in items}


def _sequence(items: Any = (), *_: Any) -> Any:
    return tuple(items) if isinstance(items, (tuple, list)) else ()


def _unwrap(value: Any = None, *_: Any) -> Any:
    """Returns what a wrapper around one array (a JAX array, a parameter) holds."""
    return value


def _jax_array(function: Any, arguments: Any, state: Any, *_: Any) -> Any:
    """Rebuilds a pickled JAX array in its NumPy form."""
    known = isinstance(function, Global) and function.constructor in _ARRAYS
    if not known or not isinstance(arguments, tuple):
        raise PickleError("a JAX array of an unknown kind")
    record = call(function, arguments)
    if isinstance(record, ArrayRecord):
        record.setstate(state)
    return record


# What a wrapper may call: never itself, or it would be nested without end.
_TENSORS = (rebuild_tensor, _rebuild_tensor_v3, _rebuild_parameter)
_ARRAYS = (ArrayRecord, _from_buffer)

_NUMPY: dict[str, Constructor] = {"numpy.ndarray": ArrayRecord, "numpy.dtype": DtypeRecord}
for _core in ("numpy.core", "numpy._core"):
    _NUMPY[f"{_core}.multiarray._reconstruct"] = ArrayRecord
    _NUMPY[f"{_core}.multiarray.scalar"] = _scalar
    _NUMPY[f"{_core}.numeric._frombuffer"] = _from_buffer


class ScriptModule(dict[Any, Any]):
    """A module of a TorchScript archive: its attributes by name, without what it does."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def setstate(self, state: Any) -> None:
        """Takes the attributes."""
        if isinstance(state, dict):
            self.update(state)


class _Constructors(dict[str, Constructor]):
    """Functions by the names of globals; every class of a TorchScript archive is a plain module."""

    def get(self, name: str, default: Any = None) -> Any:
        return ScriptModule if name.startswith("__torch__.") else super().get(name, default)


CONSTRUCTORS: Mapping[str, Constructor] = _Constructors(
    {
        **_NUMPY,
        "_codecs.encode": _encode,
        "collections.OrderedDict": _mapping,
        "collections.defaultdict": _mapping,
        "builtins.dict": _mapping,
        "builtins.tuple": _sequence,
        "builtins.list": _sequence,
        "flax.core.frozen_dict.FrozenDict": _mapping,
        "jax._src.array._reconstruct_array": _jax_array,
        "jax.Array": _unwrap,
        "torch.Size": _sequence,
        "torch._utils._rebuild_tensor": rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
        "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
        "torch.nn.parameter.Parameter": _unwrap,
    }
)
"""Every global that a checkpoint may call, with a function that only puts data together."""

MAX_TENSORS = 200_000
MAX_DEPTH = 24
MAX_NAME = 1024


def _key_text(key: Any) -> str:
    """Returns a key as a part of a dotted name."""
    if isinstance(key, (str, bytes)) and len(key) > MAX_NAME:
        raise PickleError(f"a key of {len(key):,} characters")
    return f"<key of type {type(key).__name__}>" if isinstance(key, tuple) else str(key)


def flatten_tensors(tree: Any) -> dict[str, Tensor]:
    """Collects all tensors of nested dictionaries, under dotted names.

    Raises:
      PickleError: it is nested without end or absurdly large.
    """
    found: dict[str, Tensor] = {}
    visited = 0
    pending: list[tuple[str, Any, int]] = [("", tree, 0)]
    while pending:
        name, value, depth = pending.pop()
        if isinstance(value, dict):
            visited += len(value)  # before they are listed: one dictionary may be in many
            if visited > MAX_TENSORS or depth >= MAX_DEPTH:
                raise PickleError("its dictionaries are nested without end")
            prefix = f"{name}." if name else ""
            items = reversed(list(value.items()))
            pending += [(f"{prefix}{_key_text(key)}", item, depth + 1) for key, item in items]
        elif isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, np.ndarray):
            found[name] = in_memory(value)
        elif isinstance(value, ArrayRecord) and value.array is not None:
            found[name] = in_memory(value.array)
    return found
