"""Files that hold tensors: what they are by their first bytes, and their contents as a tree."""

import io
import itertools
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqgan.errors import UserError
from vqgan.extras import require_extra
from vqgan.importers.sharded import is_index, read_index
from vqgan.importers.tensors import DamagedError, Tensor, check_shape, dtype_named
from vqgan.importers.text_files import describe_unknown
from vqgan.importers.torch_files import (
    is_torch_legacy,
    is_torch_zip,
    read_plain_pickle,
    read_torch_legacy,
    read_torch_zip,
)

_MAX_ITEMS = 1_000_000
_MAX_HEADER = 16 << 20  # bytes of the JSON in front of a safetensors file: some 100 for each tensor
_HEAD = 512
_PNG = b"\x89PNG"


def sniff(path: Path) -> str | None:
    """Tells the kind of container by the file's contents: a key of :data:`READERS`, or None."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        size = file.seek(0, io.SEEK_END)
    if head[:4] == b"PK\x03\x04":
        return "torch zip" if is_torch_zip(path) or not zipfile.is_zipfile(path) else None
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if is_index(path):
        return "index of shards"
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return "torch legacy" if is_torch_legacy(path) else "pickle"
    if head and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)) and not head.startswith(_PNG):
        return "msgpack"
    return None


def read_safetensors(path: Path) -> dict[str, Any]:
    """Reads the tensors of a safetensors file by name, and its metadata under ``__metadata__``."""
    require_extra("import", str(path), "safetensors")
    with path.open("rb") as start:
        size = int.from_bytes(start.read(8), "little")
        if size > _MAX_HEADER:
            raise _damaged(path, DamagedError(f"its header claims {size:,} bytes"))
        header = start.read(size)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # checks that shapes, types and places go together
            tree: dict[str, Any] = {"__metadata__": file.metadata() or {}}
            names = list(file.keys())
        entries = json.loads(header)
        return tree | {name: _safe_tensor(path, entries[name], 8 + size) for name in names}
    except (SafetensorError, OSError, DamagedError) as error:
        raise _damaged(path, error) from error


def _safe_tensor(path: Path, entry: Mapping[str, Any], start: int) -> Tensor:
    """Describes a tensor by its entry in a header that the library has checked."""
    first, end = entry["data_offsets"]
    dtype = dtype_named(_SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"]))
    shape = check_shape(entry["shape"])

    def read() -> np.ndarray:
        try:
            with path.open("rb") as file:
                file.seek(start + first)
                data = np.fromfile(file, np.uint8, end - first)
        except OSError as error:
            raise _damaged(path, error) from error
        if len(data) != end - first:
            raise _damaged(path, DamagedError("it has become shorter while it was read"))
        return data.view(dtype).reshape(shape)

    return Tensor(shape, dtype, read)


_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "BOOL": "bool", "C64": "complex64",
}  # fmt: skip


def read_msgpack(path: Path) -> Any:
    """Reads a Flax state in msgpack: nested dictionaries of arrays (flax.serialization's extension types)."""
    import msgpack

    size = max(path.stat().st_size, 1)
    try:
        with path.open("rb") as file:
            unpacker = msgpack.Unpacker(
                file,
                raw=False,
                read_size=min(size, 1 << 20),
                max_buffer_size=size,
                max_map_len=_MAX_ITEMS,
                max_array_len=_MAX_ITEMS,
                max_str_len=_MAX_ITEMS,
                object_hook=_counted(),
                list_hook=_counted(),
            )
            tree = unpacker.unpack()
            end = unpacker.tell()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # msgpack has errors of its own beside Python's
        raise _damaged(path, error) from error
    try:
        if end != size:
            raise DamagedError(f"{size - end} bytes too many")
        return _with_arrays(tree)
    except DamagedError as error:
        raise _damaged(path, error) from error


def _counted() -> Callable[[Any], Any]:
    """Returns a hook that ends a file of mappings or lists without end: an empty one is a single byte."""
    numbers = itertools.count(1)

    def hook(made: Any) -> Any:
        if next(numbers) > _MAX_ITEMS:
            raise DamagedError(f"it has more than {_MAX_ITEMS:,} mappings or lists")
        return made

    return hook


def _with_arrays(tree: Any, depth: int = 0) -> Any:
    """Returns the tree with NumPy's arrays for Flax's extension types.

    Changed in place, so each is there once.
    """
    import msgpack

    if isinstance(tree, msgpack.ExtType):
        return _array(tree.data) if tree.code in (1, 3) else None  # an array, a NumPy scalar
    if not isinstance(tree, dict) or depth > 32:
        return tree
    for name in tree:
        tree[name] = _with_arrays(tree[name], depth + 1)
    return _join_chunks(tree) if "__msgpack_chunked_array__" in tree else tree


def _array(data: bytes) -> np.ndarray:
    """Returns an array of shape, name of the type and bytes."""
    import msgpack

    try:
        parts = msgpack.unpackb(data, raw=False, max_array_len=_MAX_ITEMS)
    except Exception as error:  # msgpack has errors of its own beside Python's
        raise DamagedError(f"an array that is none ({error})") from error
    if not isinstance(parts, list) or len(parts) != 3:
        raise DamagedError("an array without shape, type and bytes")
    shape, name, content = parts
    if not isinstance(name, str) or not isinstance(content, bytes):
        raise DamagedError("an array without type and bytes")
    shape, dtype = check_shape(shape), dtype_named(name)
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise DamagedError(f"an array of shape {shape} has {len(content)} bytes")
    flat = np.frombuffer(content, dtype) if content else np.zeros(0, dtype)
    return flat.reshape(shape)


def _join_chunks(tree: Mapping[Any, Any]) -> np.ndarray:
    """Puts an array together that Flax cut because of msgpack's limit of 4 GiB."""
    shape, chunks = (_numbered(tree.get(part)) for part in ("shape", "chunks"))
    if not chunks or not all(isinstance(chunk, np.ndarray) for chunk in chunks):
        raise DamagedError("an array in parts that are none")
    whole = np.concatenate([np.ravel(chunk) for chunk in chunks])
    if whole.size != math.prod(check_shape(shape)):
        raise DamagedError(f"an array of shape {tuple(shape)} has {whole.size} numbers")
    return whole.reshape(check_shape(shape))


def _numbered(items: Any) -> list[Any]:
    """Returns the values of a mapping with the keys 0, 1, ..."""
    if not isinstance(items, dict) or set(items) != set(map(str, range(len(items)))):
        raise DamagedError("an array in parts that are not all there")
    return [items[str(number)] for number in range(len(items))]


def _damaged(path: Path, error: Exception) -> UserError:
    message = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{path}: the checkpoint is damaged ({message}); download or copy it again")


READERS: Mapping[str, Callable[[Path], Any]] = {
    "torch zip": read_torch_zip,
    "torch legacy": read_torch_legacy,
    "pickle": read_plain_pickle,
    "safetensors": read_safetensors,
    "msgpack": read_msgpack,
    "index of shards": lambda path: read_index(path, _read_shard),
}


def _read_shard(path: Path) -> Any:
    kind = sniff(path)
    if kind is None or kind == "index of shards":
        raise UserError(f"{path}: not a shard of a checkpoint: {describe_unknown(path)}")
    return READERS[kind](path)


def subtrees(tree: Any, preferred: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yields the trees that may hold the model, the likeliest first: named members, then the whole."""
    if isinstance(tree, dict):
        for name in preferred:
            if isinstance(tree.get(name), dict):
                yield name, tree[name]
    yield "", tree
