"""Prepared TensorFlow Datasets, read without TensorFlow."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import pyarrow as pa

from transforms.sources.base import Entry, Loader, SourceConfig
from transforms.sources.containers import list_containers, read_containers
from transforms.sources.example_proto import Layout, infer_fields
from transforms.sources.locating import Location

_ADDRESS = re.compile(
    r"tfds:(?P<name>\w+)(/(?P<config>[^/:\[]+))?(:(?P<version>[^/]+))?/(?P<split>[^/?]+)"
    r"(\?data_dir=(?P<data_dir>.+))?"
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SAMPLE_RECORDS = 64
_BATCH_RECORDS = 16
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
_NO_LABEL = -1
"""What data sets store where a class is not known, in test splits for example."""


class Prepared(NamedTuple):
    """What the metadata of a prepared data set says.

    Attributes:
      location: its folder, with the files of the split.
      file_format: ``tfrecord`` or ``array_record``.
      records: by file, the ranges of records that belong to the split.
      lengths: by file, how many records it has.
      images: names of the image features.
      labels: names of the classes of each ClassLabel feature.
    """

    location: Location
    file_format: str
    records: dict[str, list[range]]
    lengths: dict[str, int]
    images: tuple[str, ...]
    labels: dict[str, list[str]]


Names = list[str]


@dataclasses.dataclass(frozen=True)
class TFDSSource:
    """Images of one split of a data set that TFDS has prepared, in TFRecord or ArrayRecord files.

    The input is ``tfds:NAME[/CONFIG][:VERSION]/SPLIT[?data_dir=FOLDER]``. The split may be a part, as
    in ``train[:10%]``. Without a version the newest is taken; without a folder, ``$TFDS_DATA_DIR`` or
    ``~/tensorflow_datasets``. Nothing is ever downloaded or prepared.

    The image is the only Image feature (or the one named ``image``), the class the only ClassLabel.
    The key is ``<file>#<record>``, and does not depend on the part of the split.
    """

    config: SourceConfig

    shuffles = False
    options = frozenset({"image_column", "label_column", "columns"})

    def fields(self) -> list[pa.Field]:
        """The further features, with types inferred from the first records.

        Raises:
          UserError: there is no such feature.
        """
        if not self.config.columns:
            return []
        return infer_fields(self.config.input, self.config.columns, self._sample())

    def class_names(self) -> Names | None:
        """Names of the classes in the order of their numbers; None if labels are no ClassLabel."""
        prepared = load_metadata(self.config.input)
        return prepared.labels.get(self._label(prepared) or "")

    def list(self) -> Iterator[Entry]:
        """An entry for each record: its byte offset (TFRecord) or number (ArrayRecord).

        Raises:
          UserError: there is no such data set, version or split.
        """
        prepared = load_metadata(self.config.input)
        self._layout(prepared)
        listing = _list_array_records if prepared.file_format == "array_record" else _list_tfrecords
        return list_containers(prepared.location, functools.partial(listing, prepared))

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """A loader for each entry, in any order."""
        prepared = load_metadata(self.config.input)
        reading = _read_array_records if prepared.file_format == "array_record" else _read_tfrecords
        layout = dataclasses.replace(self._layout(prepared), fields=tuple(self.fields()))
        return read_containers(prepared.location, entries, functools.partial(reading, prepared, layout))

    def _layout(self, prepared: Prepared) -> Layout:
        image = self.config.image_column or _choose_image(self.config.input, prepared.images)
        return Layout((image,), self._label(prepared), no_label=_NO_LABEL)

    def _label(self, prepared: Prepared) -> str | None:
        only = next(iter(prepared.labels)) if len(prepared.labels) == 1 else None
        return self.config.label_column or only

    def _sample(self) -> Iterator[bytes]:
        """The first records of the first file that can be read."""
        prepared = load_metadata(self.config.input)
        for found in prepared.location.walk():
            entries = [Entry(found.key, found.file)]
            del entries
        return iter(())


def load_metadata(text: str) -> Prepared:
    """What is prepared for an input.

    Raises:
      UserError: the address is wrong, nothing of the kind is there, or a package is not installed.
    """
    raise NotImplementedError


def _tfds() -> ModuleType:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise _not_installed(error) from error
    return tensorflow_datasets
