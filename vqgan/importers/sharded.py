"""Checkpoints in several files: an index says which tensor lies in which shard.

``model.safetensors.index.json`` and ``pytorch_model.bin.index.json`` hold ``weight_map``, names of tensors
to names of files in the same folder (the layout of transformers and diffusers). Of the shards headers alone
are read; a tensor is read when it is asked for, so a small model costs what it has, whatever lies beside it.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqgan.errors import UserError
from vqgan.importers.pickle_constructors import flatten_tensors
from vqgan.importers.tensors import DamagedError, Tensor
from vqgan.importers.text_files import parse_json, read_text

_MAX_BYTES = 64 << 20  # of an index: some 100 for each tensor
_MAX_SHARDS = 10_000
_FILE_NAME = re.compile(r"[^/\\\0]{1,255}")
_SHARD = re.compile(r"(?P<stem>.+)-\d{4,6}-of-\d{4,6}(?P<suffix>\.\w+)")
_LISTED = 3


def is_index(path: Path) -> bool:
    """Tells whether a JSON file is the index of a checkpoint in shards, or is called like one."""
    if path.suffix != ".json":
        return False
    if ".index." in path.name:
        return True
    try:
        return '"weight_map"' in read_text(path, _MAX_BYTES, "an index")
    except (DamagedError, OSError):
        return False


def is_shard(path: Path) -> bool:
    """Tells whether a file is one of several by its name, such as ``model-00001-of-00002.safetensors``."""
    return _SHARD.fullmatch(path.name) is not None


def read_weight_map(path: Path) -> dict[str, str]:
    """Reads which tensor lies in which file.

    Args:
      path: the index.

    Returns:
      Names of tensors to names of files in the index's folder.

    Raises:
      UserError: it cannot be read, or leads out of its folder.
    """
    try:
        document = parse_json(read_text(path, _MAX_BYTES, "an index"), unique=True)
        found = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(found, dict) or not found:
            raise DamagedError("it has no weight_map")
        for name, file in found.items():
            if not isinstance(file, str):
                raise DamagedError(f"the file of {name:.80} is no name")
            if not _FILE_NAME.fullmatch(file) or file in (".", "..", path.name):
                raise DamagedError(f"it names {file!r:.80}, which is no file beside it")
    except DamagedError as error:
        raise UserError(
            f"{path}: cannot be read as the index of shards ({error}); download or copy it again"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    return found


def shard_files(path: Path) -> list[Path]:
    """Lists the files that hold the tensors of a checkpoint: itself, or the shards of an index.

    Raises:
      UserError: an index that cannot be read, or a shard that is missing.
    """
    if not is_index(path):
        return [path]
    names = sorted(set(read_weight_map(path).values()))
    if len(names) > _MAX_SHARDS:
        raise UserError(
            f"{path}: it names {len(names):,} shards; no checkpoint has more than {_MAX_SHARDS:,}"
        )
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of its {len(names)} shards are missing ({_listed(missing)}); download "
            "or copy all files that it names"
        )
    return [path.parent / name for name in names]


def index_of(shard: Path) -> Path | None:
    """Finds the index beside a shard that names it; None where there is none.

    Raises:
      UserError: an index beside it cannot be read.
    """
    if not is_shard(shard):
        return None
    indexes = sorted(path for path in shard.parent.glob("*.json") if is_index(path))
    return next((path for path in indexes if shard.name in read_weight_map(path).values()), None)


def read_index(path: Path, read: Callable[[Path], Any]) -> dict[str, Tensor]:
    """Joins the shards of an index; no tensor is read.

    Args:
      path: the index.
      read: reads one shard.

    Raises:
      UserError: index or shard cannot be read, a shard or tensor is missing, or a tensor is there twice.
    """
    homes: dict[str, str] = {}
    found: dict[str, Tensor] = {}
    for shard in shard_files(path):
        for name, tensor in flatten_tensors(read(shard)).items():
            if name in found:
                raise UserError(
                    f"{path}: {name:.80} lies in {homes[name]} and in {shard.name}; remove the shard that "
                    "does not belong here"
                )
            found[name], homes[name] = tensor, shard.name
    lost = [
        f"{name:.80} in {file}" for name, file in read_weight_map(path).items() if homes.get(name) != file
    ]
    if lost:
        raise UserError(
            f"{path}: {len(lost)} tensors are not where it says ({_listed(lost)}); index and shards do not "
            "belong together: download or copy all of them again"
        )
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
