"""Prepared TensorFlow Datasets, read without TensorFlow."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import pyarrow as pa

from transforms.sources.base import Entry, Loader, Names, SourceConfig
from transforms.sources.containers import list_containers, read_containers
from transforms.sources.example_proto import Layout, infer_fields
from transforms.sources.locating import Found
from transforms.sources.reading import DamagedError
from transforms.sources.records import ArrayRecords, RecordFormat, TFRecords, read_examples, sample
from transforms.sources.tfds_metadata import Prepared, load_metadata
from vqgan.errors import UserError

_FORMATS: dict[str, RecordFormat] = {"tfrecord": TFRecords(), "array_record": ArrayRecords()}
_NO_LABEL = -1
"""What data sets store where a class is not known, in test splits for example."""


@dataclasses.dataclass(frozen=True)
class TFDSSource:
    """Images of one split of a data set that TFDS has prepared, in TFRecord or ArrayRecord files.

    The input is ``tfds:NAME[/CONFIG][:VERSION]/SPLIT[?data_dir=FOLDER]``. The split may be a part, as
    in ``train[:10%]``. Without a version the newest is taken; without a folder, ``$TFDS_DATA_DIR`` or
    ``~/tensorflow_datasets``. Nothing is ever downloaded or prepared.

    The image is the only Image feature, or the one named ``image``; the class the only ClassLabel. The
    key is ``<file>#<record>``, and does not depend on the part of the split.
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
        prepared = load_metadata(self.config.input)
        records = sample(prepared.location, _FORMATS[prepared.file_format], prepared.records)
        return infer_fields(self.config.input, self.config.columns, records)

    def class_names(self) -> Names | None:
        """Names of the classes in the order of their numbers; None if labels are no ClassLabel."""
        prepared = load_metadata(self.config.input)
        return prepared.labels.get(self._label(prepared) or "")

    def list(self) -> Iterator[Entry]:
        """An entry for each record.

        Raises:
          UserError: there is no such data set, version or split, or the choice of image is open.
        """
        prepared = load_metadata(self.config.input)
        self._image(prepared)
        return list_containers(prepared.location, functools.partial(_list_one, prepared))

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """A loader for each entry, in any order."""
        prepared = load_metadata(self.config.input)
        layout = Layout((self._image(prepared),), self._label(prepared), tuple(self.fields()), _NO_LABEL)
        form = _FORMATS[prepared.file_format]
        read_one = functools.partial(read_examples, layout, form, prepared.location)
        return read_containers(prepared.location, entries, read_one)

    def _image(self, prepared: Prepared) -> str:
        if self.config.image_column:
            return self.config.image_column
        if "image" in prepared.images or len(prepared.images) == 1:
            return "image" if "image" in prepared.images else prepared.images[0]
        there = ", ".join(prepared.images) or "none"
        raise UserError(f"{self.config.input}: name the image with image_column; image features: {there}")

    def _label(self, prepared: Prepared) -> str | None:
        only = next(iter(prepared.labels)) if len(prepared.labels) == 1 else None
        return self.config.label_column or only


def _list_one(prepared: Prepared, file: pa.NativeFile, found: Found) -> Iterator[Entry]:
    ranges, length = prepared.records[found.name], prepared.lengths[found.name]
    stop = max(wanted.stop for wanted in ranges)
    form = _FORMATS[prepared.file_format]
    positions = iter(form.positions(file, prepared.location.path(found.file)))
    count = 0
    for number, (offset, size) in enumerate(itertools.islice(positions, stop)):
        count += 1
        if any(number in wanted for wanted in ranges):
            yield Entry(f"{found.key}#{number}", found.file, offset, size)
    if count < stop or (stop == length and next(positions, None) is not None):
        raise DamagedError(file.size(), f"not the {length:,} records that the metadata speak of")
