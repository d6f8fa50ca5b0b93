"""Folders with weights, of codecs and of priors: there whole or not at all, and checked when read.

Such a folder holds a JSON document, which says what the folder is, and arrays stored by Orbax. It is written
beside its place and renamed at the end. Writing arrays loads JAX and Orbax, reading them TensorStore alone.
"""

import contextlib
import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vqgan.documents import Fields, parse_document
from vqgan.errors import UserError, first_line
from vqgan.publishing import FREE_SPACE, NO_FOLDER, sync_folder, sync_tree, temporary_name

Arrays = dict[str, np.ndarray]
"""Named arrays, such as the parameters of a model by dotted name."""

MOST_DOCUMENT_BYTES = 16 << 20
MOST_EXPANSION = 100  # bytes of numbers for each byte of a file: constants compress further, weights do not
FREE_BYTES = 64 << 20  # that anything may claim

NOT_OF_TOKENS = ("dropout", "has_decoder", "decoder_ch", "decoder_added_blocks")
"""Fields of a configuration that a fingerprint leaves out; others of the decoder have always been in it."""

FULL = ("No space left", "File too large", "quota exceeded", "Permission denied", "Read-only file system")
"""How a system says that nothing can be written."""


class FolderKind(NamedTuple):
    """What a folder holds.

    Attributes:
      name: for messages.
      document: name of its JSON document; a folder with it is one of this kind.
      version: of the document's format.
    """

    name: str
    document: str
    version: int


# Writing


def check_place(kind: FolderKind, path: Path) -> None:
    """Refuses to write to a place where something else is.

    Raises:
      UserError: a file, or a folder that is neither empty nor of this kind.
    """
    if path.exists() and not (path / kind.document).is_file() and (path.is_file() or any(path.iterdir())):
        raise UserError(
            f"{kind.name} {path}: there is something else than a {kind.name}; name a folder of its own"
        )


@contextlib.contextmanager
def staging(kind: FolderKind, path: Path) -> Iterator[Path]:
    """Makes a folder beside ``path`` to write into. It is removed at the end, unless it was renamed by then.

    Raises:
      UserError: the disk is full, or the place cannot be written to.
    """
    folder = path.with_name(temporary_name(path.name))
    try:
        folder.mkdir(parents=True)
        yield folder
    except NotADirectoryError as error:
        raise UserError(f"{path}: {NO_FOLDER}; name another place") from error
    except Exception as error:
        if not cannot_write(error):
            raise
        raise UserError(
            f"{kind.name} {path}: cannot be written ({first_line(error)[:200]}); {FREE_SPACE}"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cannot_write(error: Exception) -> bool:
    """Returns whether an error says that a place cannot be written to, and is no mistake of ours.

    TensorStore reports a full disk, a quota, a limit of file sizes or missing permissions as a ValueError.
    """
    return isinstance(error, OSError) or any(sign in str(error) for sign in FULL)


def replace_folder(new: Path, path: Path) -> None:
    """Renames ``new`` to ``path``; a folder that was there goes only once the new one is on the disk."""
    sync_tree(new)
    if not path.exists():
        new.rename(path)
        sync_folder(path.parent)
        return
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex}.old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(old)


def recover_folder(path: Path) -> None:
    """Puts back a folder whose replacement was killed between two renames, and removes what that left."""
    former = sorted(path.parent.glob(f".{path.name}.*.old"), key=lambda old: old.stat().st_mtime)
    if former and not path.exists():
        former.pop().rename(path)
    for leftover in (*former, *path.parent.glob(f".{path.name}.*.tmp")):
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Makes a folder to write files of another program into; it takes its place when the block ends well.

    Raises:
      UserError: there is something at ``path`` already, the disk is full, or it cannot be written to.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; give a new folder")
    others = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if others:
        raise UserError(f"{path}: there is something else in it, such as {others[0]}; give a new folder")
    with staging(FolderKind("folder", "", 0), path) as folder:
        yield folder
        replace_folder(folder, path)


def write_document(kind: FolderKind, folder: Path, fields: Mapping[str, Any]) -> None:
    """Writes the JSON document, with the format's version first."""
    (folder / kind.document).write_text(json.dumps({"version": kind.version, **fields}, indent=2) + "\n")


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Stores named arrays, at least one, as an Orbax item in a folder that is not there yet."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(dict(arrays)))
    # For file systems without a rename, and it names the temporary folder in which this was written.
    (folder / "commit_success.txt").unlink(missing_ok=True)


def write_folder(
    kind: FolderKind,
    path: Path,
    parts: Mapping[str, Mapping[str, np.ndarray]],
    fields: Mapping[str, Any],
    readme: str,
) -> dict[str, int]:
    """Writes a whole folder beside its place and renames it; one of this kind that was there is replaced.

    Args:
      kind: what the folder is; its place was checked by :func:`check_place`.
      path: where to.
      parts: named arrays, at least one each, by the subfolder that holds them.
      fields: of the JSON document, which gets the sizes of the parts' files as ``files``, too.
      readme: text of ``README.md``.

    Returns:
      The sizes of the parts' files in bytes, by their paths in the folder.

    Raises:
      UserError: the disk is full, or the place cannot be written to.
    """
    with staging(kind, path) as folder:
        for part, arrays in parts.items():
            write_arrays(folder / part, arrays)
        files = folder_sizes(folder)
        (folder / "README.md").write_text(readme)
        write_document(kind, folder, {**fields, "files": files})
        replace_folder(folder, path)
    return files


def folder_sizes(folder: Path) -> dict[str, int]:
    """Returns the size in bytes of every file, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


# Reading


def read_document(kind: FolderKind, path: Path) -> Fields:
    """Reads the JSON document of a folder; reading a field that is missing or of another type raises, too.

    Raises:
      UserError: damaged, or of another format version.
    """

    def refuse(reason: str) -> UserError:
        return UserError(
            f"{kind.name} {path}: {kind.document} cannot be read ({reason}); copy the {kind.name} again"
        )

    try:
        size = (path / kind.document).stat().st_size
        if size > MOST_DOCUMENT_BYTES:
            raise refuse(f"its {size:,} bytes are more than {MOST_DOCUMENT_BYTES:,}")
        data = (path / kind.document).read_bytes()
    except OSError as error:
        raise refuse(error.strerror or first_line(error)) from error
    fields = parse_document(data, refuse)
    version = fields.integer("version")
    if version != kind.version:
        raise UserError(
            f"{kind.name} {path}: {kind.document} has format version {version}, this release "
            f"reads {kind.version}; upgrade vqgan-pipelines"
        )
    return fields


def read_arrays(
    kind: FolderKind, path: Path, part: str, sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> Arrays:
    """Reads named arrays in a subfolder, as float32. What they claim to be is checked before they are read.

    Args:
      kind: what the folder is.
      path: the folder.
      part: name of the subfolder.
      sizes: of the folder's files as they were written; a file that is not in it is not checked.
      shapes: by name, as the configuration has them.

    Raises:
      UserError: they are missing, damaged or of other shapes.
    """
    _check_sizes(kind, path, part, sizes)
    folder = (path / part).absolute()
    try:
        _check_claims(folder, shapes)
        return _read_stored(folder, shapes)
    except UserError as error:
        raise UserError(
            f"{kind.name} {path}: the weights in {part}/ do not fit {kind.document}: {error}; "
            f"copy the {kind.name} again"
        ) from error
    except Exception as error:  # JSON and TensorStore raise many types for a damaged folder.
        raise UserError(
            f"{kind.name} {path}: the weights in {part}/ cannot be read ({type(error).__name__}); "
            f"copy the {kind.name} again"
        ) from error


def _read_stored(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Reads what Orbax has stored, without Orbax: loading that takes longer than most weights do.

    A file ``_METADATA`` has the names; the arrays are in TensorStore's OCDBT, a Zarr array under each name.
    """
    import tensorstore

    stored = json.loads((folder / "_METADATA").read_bytes())
    keys = [[str(key["key"]) for key in each["key_metadata"]] for each in stored["tree_metadata"].values()]
    _check_names({".".join(parts) for parts in keys}, shapes)
    base = {"driver": "file", "path": f"{folder}/"}
    form = {"driver": "zarr3" if stored.get("use_zarr3") else "zarr"}
    context = tensorstore.Context()  # one for all, or each would read the database's index
    opening = {
        name: tensorstore.open(
            {**form, "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}},
            open=True,
            context=context,
        )
        for name in shapes
    }
    arrays = {name: future.result() for name, future in opening.items()}
    for name, array in arrays.items():
        _check_shape(name, array, shapes[name])
    reading = {name: array.read() for name, array in arrays.items()}
    return {name: np.asarray(future.result(), np.float32) for name, future in reading.items()}


def _check_claims(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compares what the configuration asks for with what the files can hold."""
    sizes = folder_sizes(folder)
    check_expansion(4 * sum(map(math.prod, shapes.values())), sum(sizes.values()))
    largest = max((size for name, size in sizes.items() if name.startswith("_")), default=0)
    if largest > MOST_DOCUMENT_BYTES:
        raise UserError(f"their description has {largest:,} bytes, at most {MOST_DOCUMENT_BYTES:,}")


def check_expansion(claimed: int, stored: int) -> None:
    """Refuses files that would fill far more memory than files with trained weights can.

    Args:
      claimed: bytes of the numbers in memory.
      stored: bytes of the files.

    Raises:
      UserError: more than :data:`MOST_EXPANSION` for each; the message has no place in it.
    """
    if claimed > max(FREE_BYTES, MOST_EXPANSION * stored):
        raise UserError(f"{claimed:,} bytes of weights are claimed by files of {stored:,}")


def _check_names(names: Set[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compares the names of the arrays with those of the configuration."""
    wrong = sorted(names ^ shapes.keys())
    if wrong:
        raise UserError(f"{wrong[0]:.80} is {'missing' if wrong[0] in shapes else 'unknown'}")


def _check_shape(name: str, array: Any, expected: tuple[int, ...]) -> None:
    """Compares what is said of an array with the configuration, without reading it."""
    if array.shape != expected:
        raise UserError(f"{name} is {list(array.shape)}, expected {list(expected)}")
    # A chunk is read whole, so it must not be larger than its array either.
    chunk = array.chunk_layout.read_chunk.shape or ()
    if math.prod(chunk) > max(1, math.prod(expected)):
        raise UserError(f"{name} has chunks of {list(chunk)}")


def check_sum(kind: FolderKind, path: Path, recorded: str, found: str) -> None:
    """Compares the sum of the weights with the recorded one.

    Raises:
      UserError: they differ.
    """
    if recorded != found:
        raise UserError(
            f"{kind.name} {path}: weights and {kind.document} do not belong together "
            f"(recorded {recorded[:12]}, found {found[:12]}); copy the {kind.name} again"
        )


def weights_sha256(*parts: Mapping[str, np.ndarray], prefix: bytes = b"") -> str:
    """Returns the sha256 over names, shapes and float32 little-endian values, in the order of the names."""
    digest = hashlib.sha256(prefix)
    for weights in parts:
        for name in sorted(weights):
            value = np.ascontiguousarray(weights[name], dtype="<f4")
            digest.update(f"{name}{list(value.shape)}".encode())
            digest.update(value.reshape(-1).data)  # without a copy
    return digest.hexdigest()


def config_fingerprint(
    fields: Mapping[str, Any], defaults: Mapping[str, Any], *weights: Mapping[str, np.ndarray]
) -> str:
    """Returns the sha256 over a model's configuration and weights, by which it is known.

    Dropout acts in training only and is left out, and whether there is a decoder, or how large it is, says
    nothing of tokens. So are fields at their default: one that is added in a later release does not change
    the fingerprint of what does not use it.

    Args:
      fields: the configuration as JSON data.
      defaults: the same of a configuration in which nothing was set.
      weights: parts that count, in their order.
    """
    # A field that is not among the defaults is one that is left out at its own.
    counting = {name: value for name, value in fields.items() if name not in NOT_OF_TOKENS}
    changed = {name: value for name, value in counting.items() if value != defaults.get(name)}
    prefix = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()
    return weights_sha256(*weights, prefix=prefix)


def _check_sizes(kind: FolderKind, path: Path, part: str, sizes: Mapping[str, int]) -> None:
    """Finds a missing or truncated file before Orbax does, whose background tasks print tracebacks."""
    for name, size in sizes.items():
        file = path / name
        if name.startswith(f"{part}/") and not (file.is_file() and file.stat().st_size == size):
            found = f"{file.stat().st_size} bytes" if file.is_file() else "missing"
            if (path / kind.document).is_file() and read_document(kind, path).sizes("files", {}) != sizes:
                raise UserError(
                    f"{kind.name} {path}: it was replaced while it was being read, as a training does with "
                    "its best one; run this again, or give a copy of it"
                )
            raise UserError(
                f"{kind.name} {path}: {name} is {found}, expected {size} bytes; copy the {kind.name} again"
            )
