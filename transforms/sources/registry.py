"""The known kinds of sources, and telling which one an input is by looking at it."""

import itertools
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.sources.base import Source, SourceConfig
from transforms.sources.columns import holds_images
from transforms.sources.folder import FolderSource
from transforms.sources.lists import ListSource
from transforms.sources.locations import Found, Location, locate, open_file
from transforms.sources.parquet import ParquetSource
from transforms.sources.reading import is_sidecar
from transforms.sources.records import parse_header
from transforms.sources.tar import TarSource
from transforms.sources.tfds import TFDSSource, check_address
from transforms.sources.tfrecord import TFRecordSource
from vqgan.errors import UserError

TFDS_PREFIX = "tfds:"
_SAMPLE = 1000
_ALMOST_ALL = 0.9
_HEAD_BYTES = 512

_TAR_NAME = re.compile(r"\.(tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$", re.IGNORECASE)
_PARQUET_NAME = re.compile(r"\.(parquet|pq)$", re.IGNORECASE)
_ARRAY_RECORD_NAME = re.compile(r"\.(array_record|arecord)\b", re.IGNORECASE)
_TFRECORD_NAME = re.compile(r"\.tfrecords?\b|-\d{5,}-of-\d{5,}$", re.IGNORECASE)
_LIST_NAME = re.compile(r"\.(csv|tsv|txt|lst)$", re.IGNORECASE)
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")


def container_kind(name: str) -> str | None:
    """The kind of container that a file name stands for; None if it is none."""
    if _TAR_NAME.search(name):
        return "tar"
    if _PARQUET_NAME.search(name):
        return "parquet"
    if _ARRAY_RECORD_NAME.search(name):
        return "array_record"
    return "tfrecord" if _TFRECORD_NAME.search(name) else None


def recognise(text: str) -> str:
    """The name in the registry for what lies at ``text``.

    Raises:
      UserError: nothing is there, or it is something that no source reads.
    """
    if text.startswith(TFDS_PREFIX):
        return "tfds"
    location = locate(text)
    location.check()
    sample = _sample(location)
    single = len(sample) == 1 and _is_single(location, sample[0])
    kind = _kind_of_file(location, sample[0]) if single else _kind_of_many(sample)
    if kind == "array_record":
        raise UserError(
            f"{text}: ArrayRecord files say nothing about what their records hold; "
            "give the prepared data set as tfds:NAME/SPLIT?data_dir=FOLDER"
        )
    return kind


def _is_single(location: Location, found: Found) -> bool:
    return not location.globs.patterns and location.names == (found.parts,)


def _sample(location: Location) -> list[Found]:
    """The first files; mere sidecars only where there is nothing else."""
    found = list(itertools.islice(location.walk(), _SAMPLE))
    return [file for file in found if not is_sidecar(file.name)] or found


def _kind_of_many(sample: list[Found]) -> str:
    """Containers if nearly every file is one of the same kind, else images."""
    kinds = [container_kind(file.name) for file in sample]
    for kind in ("tar", "parquet", "tfrecord", "array_record"):
        if kinds and kinds.count(kind) >= _ALMOST_ALL * len(kinds):
            return kind
    return "folder"


def _kind_of_file(location: Location, found: Found) -> str:
    """By the first bytes; by name where they do not tell. What is nothing else is an image."""
    name = found.name
    head = _head(location, found)
    named = container_kind(name)
    if head.startswith(b"PAR1"):
        return "parquet" if _has_binary_column(location, found) else "list"
    if head[257:262] == b"ustar" or (head.startswith(_COMPRESSED) and named != "tfrecord"):
        return "tar"
    if named:
        return named
    if parse_header(head) is not None:
        return "tfrecord"
    return "list" if _LIST_NAME.search(name) else "folder"


def _head(location: Location, found: Found) -> bytes:
    try:
        with open_file(location, found.file) as file:
            head: bytes = file.read_at(min(_HEAD_BYTES, file.size()), 0)
            return head
    except OSError as error:
        raise UserError(f"{location.text}: cannot be read ({error}); check the permissions") from error


def _has_binary_column(location: Location, found: Found) -> bool:
    """Whether a Parquet file may hold images; a damaged one may, and is then reported as such."""
    try:
        with open_file(location, found.file) as file:
            return any(holds_images(kind) for kind in pq.read_schema(file).types)
    except (OSError, ValueError, pa.ArrowException):
        return True


SOURCES: dict[str, type[Any]] = {
    "folder": FolderSource,
    "list": ListSource,
    "tar": TarSource,
    "parquet": ParquetSource,
    "tfrecord": TFRecordSource,
    "tfds": TFDSSource,
}
"""Kind to class. A class takes a SourceConfig, and names in ``options`` the fields that it can use."""

_OPTIONS = ("folder_labels", "image_column", "key_column", "label_column", "columns")


def open_source(config: SourceConfig) -> Source:
    """The source for an input, checked as far as a look at the names allows.

    Raises:
      UserError: there is no such input or kind, or an option does not apply to it.
    """
    if config.input.startswith(("http://", "https://")):
        raise UserError(f"{config.input}: nothing is fetched from the web; download it and give the folder")
    if config.kind is not None and config.kind not in SOURCES:
        raise UserError(f"unknown kind of source {config.kind!r}; known are {', '.join(SOURCES)}")
    kind = config.kind or recognise(config.input)
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
    idle = [name for name in given if name not in SOURCES[kind].options]
    if idle:
        raise UserError(
            f"{config.input}: {', '.join(idle)} cannot be used with a source of kind {kind!r}; leave it out"
        )
