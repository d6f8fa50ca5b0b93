"""Telling what an input is by looking at it."""

import itertools
import re

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.sources.columns import holds_images
from transforms.sources.locations import Found, Location, locate, open_file
from transforms.sources.records import parse_header
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
_SIDECAR_NAME = re.compile(
    r"\.(json|jsonl|txt|md|rst|ya?ml|csv|tsv|html?|idx|crc)$|^_SUCCESS$", re.IGNORECASE
)
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")


def is_sidecar(name: str) -> bool:
    """Whether a file beside containers only describes them: ``dataset_info.json``, ``README.md``."""
    return _SIDECAR_NAME.search(name) is not None


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
