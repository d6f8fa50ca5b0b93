"""Images in TFRecord files of ``tf.train.Example``, read without TensorFlow."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import pyarrow as pa

from transforms.sources.base import Entry, Loader, SourceConfig
from transforms.sources.example_proto import FeatureLayout, infer_fields, parse_example
from transforms.sources.locations import Found, locate
from transforms.sources.reading import container_files, list_containers, read_containers
from transforms.sources.records import (
    HEADER_BYTES,
    TFRecords,
    parse_header,
    read_examples,
    read_record,
    sample,
    scan,
)
from vqgan.errors import UserError

IMAGE_FEATURES = ("image/encoded", "image")
"""Names under which the image is looked for."""

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
        location = locate(self.config.input)
        files = (found.file for found in container_files(location, "tfrecord"))
        return infer_fields(self.config.input, self.config.columns, sample(location, TFRecords(), files))

    def class_names(self) -> None:
        """None: classes are numbers here."""

    def list(self) -> Iterator[Entry]:
        """An entry for each record: offset and size of the record's data, which is more than its image.

        Raises:
          UserError: a file is compressed as a whole.
        """
        return list_containers(locate(self.config.input), "tfrecord", self._list_one)

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """A loader for each entry, in any order."""
        names = (self.config.image_column,) if self.config.image_column else IMAGE_FEATURES
        layout = FeatureLayout(names, self.config.label_column, tuple(self.fields()))
        location = locate(self.config.input)
        read_one = functools.partial(read_examples, layout, TFRecords(), location)
        return read_containers(location, entries, read_one)

    def _list_one(self, file: pa.NativeFile, found: Found) -> Iterator[Entry]:
        _check_uncompressed(file, found)
        for number, (offset, length) in enumerate(scan(file)):
            entry = Entry(f"{found.key}#{number}", found.file, offset, length)
            yield _with_key(entry, file, self.config.key_column) if self.config.key_column else entry


def _with_key(entry: Entry, file: pa.NativeFile, feature: str) -> Entry:
    """The entry with the key that its record holds."""
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
