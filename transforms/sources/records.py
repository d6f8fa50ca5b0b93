"""Files of serialised Examples: TFRecord and ArrayRecord behind one small interface.

A record of a TFRecord file is its length (8 bytes, little-endian), a masked CRC-32C of these bytes (4 bytes),
the data, and a masked CRC-32C of the data (4 bytes).
"""

import dataclasses
import functools
import itertools
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import google_crc32c
import pyarrow as pa

from transforms.sources.base import Entry, Example, Loader, error_reason
from transforms.sources.example_proto import FeatureLayout, infer_fields, parse_example
from transforms.sources.locations import Found, LocatedSource, Location, open_file
from transforms.sources.reading import (
    DamagedFileError,
    Window,
    container_files,
    list_containers,
    read_containers,
    read_exact,
)
from vqgan.errors import UserError
from vqgan.extras import require_extra

HEADER_BYTES = 12
FOOTER_BYTES = 4
_MASK_DELTA = 0xA282EAD8


def masked_crc(data: bytes) -> int:
    """Returns the checksum that the format stores: a rotated and shifted CRC-32C."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """Frames ``data`` as one record."""
    length = struct.pack("<Q", len(data))
    return b"".join(
        (length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data)))
    )


def parse_header(header: bytes) -> int | None:
    """Returns the length that a record's first 12 bytes state, or None if they are not such a header."""
    if len(header) < HEADER_BYTES:
        return None
    length, crc = struct.unpack_from("<QI", header)
    return int(length) if masked_crc(header[:8]) == crc else None


def scan(file: pa.NativeFile) -> Iterator[tuple[int, int]]:
    """Yields offset and length of each record's data, from the headers alone.

    Raises:
      DamagedFileError: a header is damaged or missing, or the last record is cut off; what came before has
        been yielded.
    """
    window = Window(file)
    position = 0
    while position < window.size:
        header = window.read(position, HEADER_BYTES)
        length = parse_header(header)
        if length is None:
            raise DamagedFileError(position, _header_problem(header))
        if length > window.size - position - HEADER_BYTES - FOOTER_BYTES:
            raise DamagedFileError(position, f"the last record of {length:,} bytes is cut off")
        yield position + HEADER_BYTES, length
        position += HEADER_BYTES + length + FOOTER_BYTES


def read_record(file: pa.NativeFile, offset: int, length: int) -> bytes:
    """Returns the data of the record whose data starts at ``offset``. Safe from several threads.

    Raises:
      ValueError: it is cut off, or its checksum does not match.
    """
    framed = read_exact(file, offset, length + FOOTER_BYTES)
    data = framed[:length]
    if masked_crc(data) != int.from_bytes(framed[length:], "little"):
        raise ValueError(f"the record at byte {offset - HEADER_BYTES:,} is damaged: wrong checksum")
    return data


def _header_problem(header: bytes) -> str:
    if len(header) < HEADER_BYTES:
        return "the file ends within a record's header"
    return "the checksum of a record's length does not match"


Read = Callable[[], bytes]
"""Gives the bytes of one record, or raises what is wrong with it; runs in any thread."""

_SAMPLE_RECORDS = 64
_BATCH_RECORDS = 16
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


class RecordFormat(Protocol):
    """How records lie in a file. ``path`` is that of the open ``file``, for libraries that want it."""

    def positions(self, file: pa.NativeFile, path: str | bytes) -> Iterator[tuple[int, int]]:
        """Returns offset and size of each record, as entries have them. Raises DamagedFileError."""
        ...

    def reads(self, file: pa.NativeFile, path: str | bytes, entries: Sequence[Entry]) -> Iterator[Read]:
        """Returns the records of some entries, in their order.

        Raises DamagedFileError if there are none at all.
        """
        ...


class TFRecords:
    """TFRecord files. An entry's offset is that of the record's data in bytes, its size theirs."""

    def positions(self, file: pa.NativeFile, path: str | bytes) -> Iterator[tuple[int, int]]:
        """Finds them from the headers alone."""
        return scan(file)

    def reads(self, file: pa.NativeFile, path: str | bytes, entries: Sequence[Entry]) -> Iterator[Read]:
        """Reads that take place in the threads of their callers."""
        return (functools.partial(read_record, file, entry.offset, entry.size) for entry in entries)


class ArrayRecords:
    """ArrayRecord files, on local disks. An entry's offset is the number of the record."""

    def positions(self, file: pa.NativeFile, path: str | bytes) -> Iterator[tuple[int, int]]:
        """Finds them from the index at the file's end."""
        return ((number, -1) for number in range(_open_array_record(path).num_records()))

    def reads(self, file: pa.NativeFile, path: str | bytes, entries: Sequence[Entry]) -> Iterator[Read]:
        """Reads small batches ahead of what is asked for."""
        reader = _open_array_record(path)
        for start in range(0, len(entries), _BATCH_RECORDS):
            yield from _read_batch(
                reader, [entry.offset for entry in entries[start : start + _BATCH_RECORDS]]
            )


def read_examples(
    layout: FeatureLayout,
    form: RecordFormat,
    location: Location,
    file: pa.NativeFile,
    entries: Sequence[Entry],
) -> Iterator[Loader]:
    """Yields loaders for entries of one file."""
    for read in form.reads(file, location.path(entries[0].file), entries):
        yield functools.partial(_load, layout, read)


def sample_records(location: Location, form: RecordFormat, files: Iterable[str]) -> list[bytes]:
    """Returns the first records of the first file that has any that can be read."""
    for name in files:
        try:
            with open_file(location, name) as file:
                records = _first_records(location, form, name, file)
        except (OSError, ValueError):
            continue
        if records:
            return records
    return []


def _first_records(location: Location, form: RecordFormat, name: str, file: pa.NativeFile) -> list[bytes]:
    path = location.path(name)
    positions = itertools.islice(form.positions(file, path), _SAMPLE_RECORDS)
    entries = [Entry("", name, offset, size) for offset, size in positions]
    return [read() for read in form.reads(file, path, entries)]


def _load(layout: FeatureLayout, read: Read) -> Example:
    return layout.example(read())


def _open_array_record(path: str | bytes) -> Any:
    require_extra("tfds", os.fsdecode(path), "array_record")
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(os.fsdecode(path), _RANDOM_ACCESS)
    except (RuntimeError, UnicodeError) as error:
        raise DamagedFileError(0, f"no whole ArrayRecord file ({error_reason(error)})") from error
    if not reader.ok():
        raise DamagedFileError(0, "no whole ArrayRecord file")
    return reader


def _read_batch(reader: Any, numbers: list[int]) -> list[Read]:
    """Returns one call for all; where it fails, one for each, so that only damaged records do."""
    try:
        return [functools.partial(_give, record) for record in _records(reader, numbers)]
    except ValueError:
        return [_read_one(reader, number) for number in numbers]


def _read_one(reader: Any, number: int) -> Read:
    try:
        return functools.partial(_give, _records(reader, [number])[0])
    except ValueError as error:
        return functools.partial(_raise, error)


def _records(reader: Any, numbers: list[int]) -> list[bytes]:
    try:
        records: list[bytes] = reader.read(numbers)
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"the record is damaged ({error_reason(error)})") from error
    if len(records) != len(numbers):
        raise ValueError(f"only {len(records)} of {len(numbers)} records can be read")
    return records


def _give(record: bytes) -> bytes:
    return record


def _raise(error: ValueError) -> bytes:
    raise error


IMAGE_FEATURES = ("image/encoded", "image")
"""Names under which the image is looked for."""

_GZIP = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class TFRecordSource(LocatedSource):
    """Images in the records of one or many TFRecord files.

    ``image_column``, ``label_column``, ``key_column`` and ``columns`` name features. The key is the
    key feature, else ``<file>#<record>``. Checksums are verified: a record with a wrong one fails
    alone; where a length is wrong, nothing after it can be found, and one entry stands for the rest.
    """

    shuffles = False
    options = frozenset({"image_column", "key_column", "label_column", "columns"})

    def fields(self) -> list[pa.Field]:
        """Returns the further features, with types inferred from the first records.

        Raises:
          UserError: none of them has such a feature.
        """
        if not self.config.columns:
            return []
        location = self.location
        files = (found.file for found in container_files(location, "tfrecord"))
        return infer_fields(
            self.config.input, self.config.columns, sample_records(location, TFRecords(), files)
        )

    def class_names(self) -> None:
        """Gives None: classes are numbers here."""

    def list(self) -> Iterator[Entry]:
        """Gives an entry for each record: offset and size of the record's data, which is more than its image.

        Raises:
          UserError: a file is compressed as a whole.
        """
        return list_containers(self.location, "tfrecord", self._list_one)

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """Returns a loader for each entry, in any order."""
        names = (self.config.image_column,) if self.config.image_column else IMAGE_FEATURES
        layout = FeatureLayout(names, self.config.label_column, tuple(self.fields()))
        location = self.location
        read_one = functools.partial(read_examples, layout, TFRecords(), location)
        return read_containers(location, entries, read_one)

    def _list_one(self, file: pa.NativeFile, found: Found) -> Iterator[Entry]:
        _check_uncompressed(file, found)
        for number, (offset, length) in enumerate(scan(file)):
            entry = Entry(f"{found.key}#{number}", found.file, offset, length)
            yield _with_key(entry, file, self.config.key_column) if self.config.key_column else entry


def _with_key(entry: Entry, file: pa.NativeFile, feature: str) -> Entry:
    """Returns the entry with the key that its record holds."""
    try:
        keys = parse_example(read_record(file, entry.offset, entry.size)).get(feature, [])
    except ValueError as error:
        return entry._replace(error=str(error))
    if len(keys) != 1 or keys[0] == b"":
        return entry._replace(error=f"no key in feature {feature}")
    key = keys[0].decode("utf-8", "backslashreplace") if isinstance(keys[0], bytes) else str(keys[0])
    return entry._replace(key=key)


def _check_uncompressed(file: pa.NativeFile, found: Found) -> None:
    """Tells apart what is compressed from what is damaged: there is no random access to the former."""
    head: bytes = file.read_at(min(HEADER_BYTES, file.size()), 0)
    if head.startswith(_GZIP) and parse_header(head) is None:
        raise UserError(f"{found.key}: a compressed TFRecord file; decompress it with gunzip first")
