"""Telling what kind of source an input is: by names of many files, by first bytes of one; and opening it."""

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.sources import names
from transforms.sources.base import Source, SourceConfig, error_reason
from transforms.sources.columnar import ArrowSource, ParquetSource
from transforms.sources.columns import has_images
from transforms.sources.folder import FolderSource, metadata_files
from transforms.sources.lists import ListSource
from transforms.sources.locations import Found, Location, locate, open_file, to_key
from transforms.sources.names import DECOMPRESSION_ERRORS, decompressing
from transforms.sources.records import TFRecordSource, parse_header
from transforms.sources.tar import TarSource
from transforms.sources.tfds import TFDSSource, check_address
from transforms.sources.zip import ZipSource
from vqgan.errors import UserError

SOURCES: dict[str, type[Any]] = {
    "folder": FolderSource,
    "list": ListSource,
    "tar": TarSource,
    "zip": ZipSource,
    "parquet": ParquetSource,
    "arrow": ArrowSource,
    "tfrecord": TFRecordSource,
    "tfds": TFDSSource,
}
"""Kind to class. A class takes a SourceConfig, and names in ``options`` the fields that it can use."""

_OPTIONS = ("folder_labels", "image_column", "key_column", "label_column", "columns", "whole_names")


def open_source(config: SourceConfig) -> Source:
    """Returns the source for an input, checked as far as a look at the names allows.

    Raises:
      UserError: there is no such input or kind, or an option does not apply to it.
    """
    if config.kind is not None and config.kind not in SOURCES:
        raise UserError(f"unknown kind of source {config.kind!r}; known are {', '.join(SOURCES)}")
    kind = config.kind or recognise(config.input, config.arrays)
    _check_options(config, kind)
    _check_input(config, kind)
    source: Source = SOURCES[kind](config)
    return source


def _check_input(config: SourceConfig, kind: str) -> None:
    if kind == "tfds":
        check_address(config.input)
    else:
        locate(config.input).check()


def _check_options(config: SourceConfig, kind: str) -> None:
    given = [name for name in _OPTIONS if getattr(config, name)]
    usable = SOURCES[kind].options
    if kind == "folder" and given and next(metadata_files(locate(config.input)), None) is None:
        usable = frozenset({"folder_labels"})  # columns are those of metadata beside the images
    idle = [name for name in given if name not in usable]
    if idle:
        raise UserError(
            f"{config.input}: {', '.join(idle)} cannot be used with a source of kind {kind!r}; leave it out"
        )


TFDS_PREFIX = "tfds:"
_SAMPLE = 1000
_HEADS = 8
_ALMOST_ALL = 0.9
_HEAD_BYTES = 512
_NAMED_AT_MOST = 3


def recognise(text: str, arrays: bool = False) -> str:
    """Returns the name in the registry for what lies at ``text``, where NumPy's arrays may be images.

    Raises:
      UserError: nothing is there, or it is something that no source reads.
    """
    if text.startswith(TFDS_PREFIX):
        return "tfds"
    location = locate(text)
    location.check()
    sample = _sample(location)
    if arrays and all(names.is_array(file.name) or names.is_image(file.name) for file in sample):
        return "folder"
    single = len(sample) == 1 and _is_single(location, sample[0])
    kind = _kind_of_file(location, sample[0]) if single else _kind_of_many(location, sample)
    if kind == "array_record":
        raise UserError(
            f"{text}: ArrayRecord files say nothing about what their records hold; "
            "give the prepared data set as tfds:NAME/SPLIT?data_dir=FOLDER"
        )
    return kind


def left_out(text: str, kind: str) -> str | None:
    """Returns one line on the files beside the containers that are not read as such; None without any.

    Args:
      text: the input.
      kind: what it was taken for. Only the first files are looked at.
    """
    if kind not in names.CONTAINERS:
        return None
    found = itertools.islice(locate(text).walk(), _SAMPLE)
    others = [
        file.key for file in found if names.container_kind(file.name) != kind or names.is_sidecar(file.parts)
    ]
    if not others or (len(others) == 1 and _is_single(locate(text), None)):
        return None
    more = f" and {len(others) - _NAMED_AT_MOST} more" if len(others) > _NAMED_AT_MOST else ""
    return f"{text}: taken for {kind} files; beside them are {', '.join(others[:_NAMED_AT_MOST])}{more}"


def _is_single(location: Location, found: Found | None) -> bool:
    if location.globs.patterns or len(location.names) != 1 or location.names == ((),):
        return False
    return found is None or location.names == (found.parts,)


def _sample(location: Location) -> list[Found]:
    """Returns the first files; mere sidecars only where there is nothing else."""
    found = list(itertools.islice(location.walk(), _SAMPLE))
    return [file for file in found if not names.is_sidecar(file.parts)] or found


def _kind_of_many(location: Location, sample: list[Found]) -> str:
    """Chooses containers if most files are some, whatever lies beside them; else images."""
    images = sum(names.is_image(file.name) for file in sample)
    counts = Counter(_kind_by_name(file.name) for file in sample)
    del counts[None]
    if counts.total() > images:
        return _kind_of_containers(location, sample, counts)
    if sample and not images and not counts:
        return _kind_by_heads(location, sample)
    return "folder"


def _kind_by_name(name: str) -> str | None:
    """Returns a kind of container, or ``unread``."""
    kind, what = names.container_kind(name), names.unread(name)
    if kind is None and what and what[0] not in names.BESIDE_IMAGES:
        return "unread"
    return kind


def _kind_of_containers(location: Location, sample: list[Found], counts: Counter[str | None]) -> str:
    """Returns the kind of the containers. Raises UserError if that is none, or there are several."""
    kind, count = counts.most_common(1)[0]
    if counts.keys() == {"tar", "parquet"} or counts.keys() == {"tfrecord", "parquet"}:
        kind = next(kind for kind in counts if kind != "parquet")
        if _describe_others(location, sample):
            return str(kind)
    elif kind == "unread":
        file = next(file for file in sample if _kind_by_name(file.name) == kind)
        raise _unread(location, file.key, names.unread(file.name))
    elif count >= _ALMOST_ALL * counts.total():
        return str(kind)
    there = ", ".join(f"{number} {kind or ''}" for kind, number in sorted(counts.items(), key=str))
    raise UserError(
        f"{location.text}: holds containers of several kinds ({there}); give those of one kind, "
        f"as in '{location.root.rstrip('/')}/*.{'tar' if 'tar' in counts else 'parquet'}'"
    )


def _describe_others(location: Location, sample: list[Found]) -> bool:
    """Tells whether Parquet files only describe containers of the same names, as img2dataset writes them."""
    by_kind = {
        is_table: [file for file in sample if (names.container_kind(file.name) == "parquet") == is_table]
        for is_table in (True, False)
    }
    stems = {_stem(file) for file in by_kind[False]}
    tables = by_kind[True]
    return all(_stem(file) in stems for file in tables) and not _holds_images(location, tables[0])


def _stem(found: Found) -> tuple[str, ...]:
    return (*found.parts[:-1], names.container_stem(found.name))


def _kind_by_heads(location: Location, sample: Iterable[Found]) -> str:
    """Finds containers whose names tell nothing, if all of the first files are of one kind."""
    files = [file for file in itertools.islice(sample, _HEADS) if not file.error]
    kinds = {_kind_by_head(location, file) for file in files}
    kind = kinds.pop() if len(kinds) == 1 else None
    return kind if kind in names.CONTAINERS else "folder"


def _kind_by_head(location: Location, found: Found) -> str | None:
    try:
        head = _head(location, found)
    except UserError:
        return None
    kind = names.kind_of_head(head)
    if kind is None and parse_header(head) is not None:
        return "tfrecord"
    if kind == "compressed" and _head(location, found, decompressed=True)[257:262] == b"ustar":
        return "tar"
    return kind


def _kind_of_file(location: Location, found: Found) -> str:
    """Decides by the first bytes; by name where they do not tell. What is nothing else is an image."""
    name, head = found.name, _head(location, found)
    named, kind = names.container_kind(name), names.kind_of_head(head)
    if names.is_list_name(name) and kind in (None, "compressed"):
        return "list"
    if kind == "compressed":
        return _kind_of_compressed(location, found)
    if kind == "parquet":
        return "parquet" if _holds_images(location, found) else "list"
    if kind == "zip" and names.unread(name):
        raise _unread(location, name, names.unread(name))
    if kind or named:
        return str(kind or named)
    if parse_header(head) is not None:
        return "tfrecord"
    what = names.unread_head(head) or (None if names.is_image(name) else names.unread(name))
    if what:
        raise _unread(location, name, what)
    return "folder"


def _kind_of_compressed(location: Location, found: Found) -> str:
    """Returns an archive inside a compressed file, or a file named as one."""
    named = names.container_kind(found.name)
    if named == "tar" or _head(location, found, decompressed=True)[257:262] == b"ustar":
        return "tar"
    if named == "tfrecord":
        return named
    raise _unread(location, found.name, ("a compressed file that holds no tar", "decompress it"))


def _unread(location: Location, name: str, what: tuple[str, str] | None) -> UserError:
    described, advice = what or ("of an unknown kind", "convert it")
    where = "" if location.text.endswith(name) else f" ({to_key(name)})"
    return UserError(f"{location.text}{where}: not read, for it is {described}; {advice}")


def _head(location: Location, found: Found, decompressed: bool = False) -> bytes:
    try:
        with open_file(location, found.file) as file:
            if decompressed:
                stream = decompressing(file)
                return _first_bytes(stream) if stream else b""
            head: bytes = file.read_at(min(_HEAD_BYTES, file.size()), 0)
            return head
    except OSError as error:
        raise UserError(
            f"{location.text}: cannot be read ({error_reason(error)}); check the permissions"
        ) from error


def _first_bytes(stream: BinaryIO) -> bytes:
    """Returns what can be decompressed at the start; nothing where that is damaged."""
    try:
        return stream.read(_HEAD_BYTES)
    except DECOMPRESSION_ERRORS:
        return b""


def _holds_images(location: Location, found: Found) -> bool:
    """Tells whether a Parquet file may hold images; a damaged one may, and is then reported as such."""
    try:
        with open_file(location, found.file) as file:
            return any(has_images(kind) for kind in pq.read_schema(file).types)
    except (OSError, ValueError, pa.ArrowException):
        return True
