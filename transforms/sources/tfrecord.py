"""Images in TFRecord files of ``tf.train.Example``, read without TensorFlow."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import pyarrow as pa

from transforms.sources.base import Entry, Example, Loader, SourceConfig
from transforms.sources.containers import container_files, list_containers, read_containers
from transforms.sources.example_proto import Layout, infer_fields, parse_example
from transforms.sources.framing import HEADER_BYTES, parse_header, read_record, scan
from transforms.sources.locating import Found, locate, open_file
from vqgan.errors import UserError

IMAGE_FEATURES = ("image/encoded", "image")
"""Names under which the image is looked for."""

_SAMPLE_RECORDS = 64
_GZIP = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class TFRecordSource:
    """Images in the records of one or many TFRecord files.

    ``image_column``, ``label_column``, ``key_column`` and ``columns`` name features. The key is the
    key feature, else ``<file>#<record>``. Checksums are verified: a record with a wrong one fails
    alone; where a length is wrong, nothing after it can be found, and one entry stands for the rest.
    """

    config: SourceConfig

    shuffles = False
    options = frozenset({"image_column", "key_column", "label_column", "columns"})

    def fields(self) -> list[pa.Field]:
        """The further features, with types inferred from the first records.

        Raises:
          UserError: none of them has such a feature.
        """
        if not self.config.columns:
            return []
        return infer_fields(self.config.input, self.config.columns, self._sample())

    def list(self) -> Iterator[Entry]:
        """An entry for each record: offset and size of the record's data, which is more than its image.

        Raises:
          UserError: a file is compressed as a whole.
        """
        return list_containers(locate(self.config.input), self._list_one)

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """A loader for each entry, in any order."""
        names = (self.config.image_column,) if self.config.image_column else IMAGE_FEATURES
        layout = Layout(names, self.config.label_column, tuple(self.fields()))
        return read_containers(locate(self.config.input), entries, functools.partial(_read_one, layout))

    def _list_one(self, file: pa.NativeFile, found: Found) -> Iterator[Entry]:
        check_uncompressed(file, found)
        for number, (offset, length) in enumerate(scan(file)):
            entry = Entry(f"{found.key}#{number}", found.file, offset, length)
            yield self._with_key(entry, file) if self.config.key_column else entry

    def _with_key(self, entry: Entry, file: pa.NativeFile) -> Entry:
        try:
            features = parse_example(read_record(file, entry.offset, entry.size))
        except ValueError as error:
            return entry._replace(error=str(error))
        values = features.get(self.config.key_column or "", [])
        if len(values) != 1 or values[0] == b"":
            return entry._replace(error=f"no key in feature {self.config.key_column}")
        key = values[0]
        return entry._replace(
            key=key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
        )

    def _sample(self) -> list[bytes]:
        """The first records that can be read."""
        location = locate(self.config.input)
        for found in container_files(location):
            try:
                with open_file(location, found.file) as file:
                    first = itertools.islice(scan(file), _SAMPLE_RECORDS)
                    records = [read_record(file, offset, length) for offset, length in first]
            except (OSError, ValueError):
                continue
            if records:
                return records
        return []


def check_uncompressed(file: pa.NativeFile, found: Found) -> None:
    """Tells apart what is compressed from what is damaged.

    Raises:
      UserError: the file is compressed as a whole, so that records cannot be read at random.
    """
    head: bytes = file.read_at(min(HEADER_BYTES, file.size()), 0)
    if head.startswith(_GZIP) and parse_header(head) is None:
        raise UserError(f"{found.key}: a compressed TFRecord file; decompress it with gunzip first")


def _read_one(layout: Layout, file: pa.NativeFile, entries: Sequence[Entry]) -> Iterator[Loader]:
    for entry in entries:
        yield functools.partial(_load, layout, file, entry)


def _load(layout: Layout, file: pa.NativeFile, entry: Entry) -> Example:
    return layout.example(read_record(file, entry.offset, entry.size))
