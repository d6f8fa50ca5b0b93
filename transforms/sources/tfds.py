"""PreparedDataset TensorFlow Datasets, found and read without TensorFlow."""

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import fs

from transforms.sources.base import Entry, Loader, Names, SourceConfig, error_reason
from transforms.sources.example_proto import FeatureLayout, infer_fields
from transforms.sources.globs import Globs
from transforms.sources.locations import Found, Location, locate, open_file
from transforms.sources.reading import DamagedFileError, list_containers, read_containers
from transforms.sources.records import (
    ArrayRecords,
    RecordFormat,
    TFRecords,
    read_examples,
    sample_records,
)
from vqgan.errors import UserError
from vqgan.extras import require_extra
from vqgan.filesystems import join

_NAMES = re.compile(r"tfds:(?P<name>\w+)(?:/(?P<config>[^/:\[]+))?(?::(?P<version>[^/]+))?/(?P<split>[^/]+)")
_DATA_DIR = "data_dir="
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_METADATA = (".json", ".txt")  # dataset_info, features, names of classes
_FORMATS: dict[str, RecordFormat] = {"tfrecord": TFRecords(), "array_record": ArrayRecords()}


class Address(NamedTuple):
    """The parts of ``tfds:NAME[/CONFIG][:VERSION]/SPLIT[?data_dir=FOLDER]``."""

    name: str
    config: str | None
    version: str | None
    split: str
    data_dir: str | None


class PreparedDataset(NamedTuple):
    """What the metadata of a prepared data set say.

    Attributes:
      location: its folder, with the files of the split.
      file_format: ``tfrecord`` or ``array_record``.
      records: by file name, the ranges of records that belong to the split.
      lengths: by file name, how many records it has.
      images: names of the image features.
      labels: names of the classes, by name of the ClassLabel feature.
      refused: why a feature cannot be read as an image, by its name.
    """

    location: Location
    file_format: str
    records: dict[str, list[range]]
    lengths: dict[str, int]
    images: tuple[str, ...]
    labels: dict[str, list[str]]
    refused: dict[str, str]


def parse_address(text: str) -> Address:
    """Returns the parts of an input.

    Raises:
      UserError: it has another form.
    """
    # The folder is split off first: its slashes would be taken for those of the names.
    names, mark, query = text.partition("?")
    match, data_dir = _NAMES.fullmatch(names), query.removeprefix(_DATA_DIR)
    if match is None or (mark and (not data_dir or data_dir == query)):
        raise UserError(f"{text}: write it as tfds:NAME[/CONFIG][:VERSION]/SPLIT[?data_dir=FOLDER]")
    return Address(**match.groupdict(), data_dir=data_dir or None)


def check_address(text: str) -> Address:
    """Parses an input as :func:`parse_address` does, once TFDS is known to be installed. Does not import it.

    Raises:
      UserError: it is not, or the input has another form.
    """
    address = parse_address(text)
    require_extra("tfds", text, "tensorflow_datasets", "importlib_resources")
    return address


@functools.lru_cache(maxsize=8)
def load_metadata(text: str) -> PreparedDataset:
    """Returns what is prepared for an input.

    Raises:
      UserError: the input has another form, nothing of the kind is there, or TFDS is not installed.
    """
    address = check_address(text)
    folder = locate(_folder(text, address))
    builder = _builder(text, folder)
    file_format = builder.info.file_format.value
    if file_format not in _FORMATS:
        raise UserError(f"{text}: prepared as {file_format}; prepare it as {' or '.join(_FORMATS)}")
    if file_format == "array_record":
        require_extra("tfds", text, "array_record")
    records, lengths = _split_files(text, builder.info.splits, address.split)
    names = tuple((name,) for name in records)
    location = Location(text, folder.filesystem, folder.root, names, Globs(()))
    return PreparedDataset(location, file_format, records, lengths, *_features(builder.info.features))


def _folder(text: str, address: Address) -> str:
    """Finds where a version of a data set lies: ``DATA_DIR/NAME[/CONFIG]/VERSION``."""
    data_dir = address.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = _below(text, data_dir, address.name, "data set")
    names = _folders(folder)
    configs = [name for name in names if not _VERSION.fullmatch(name)]
    if address.config:
        folder = _below(text, folder, address.config, "configuration")
    elif len(configs) == len(names):
        only = configs[0] if len(configs) == 1 else "(none chosen)"
        folder = _below(text, folder, only, "configuration")
    versions = [name for name in _folders(folder) if _VERSION.fullmatch(name)]
    newest = max(versions, key=_version_order, default="(any)")
    return _below(text, folder, address.version or newest, "version")


def _below(text: str, folder: str, name: str, what: str) -> str:
    names = _folders(folder)
    if name not in names:
        there = ", ".join(names) or "nothing"
        raise UserError(f"{text}: no {what} {name} in {folder}; there is {there}, or name another data_dir")
    return join(folder, name)


def _folders(folder: str) -> list[str]:
    try:
        return [node.name for node in locate(folder).children() if node.is_folder]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error_reason(error)}); check the permissions") from error


def _version_order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _builder(text: str, folder: Location) -> Any:
    tfds = _import_tfds()
    try:
        with _local_metadata(folder) as path, warnings.catch_warnings():
            # TFDS uses protobuf calls that are deprecated; whoever reads data can do nothing about it.
            warnings.simplefilter("ignore", DeprecationWarning)
            return tfds.builder_from_directory(path)
    except Exception as error:  # metadata can be broken in as many ways as there are parsers in TFDS
        raise UserError(
            f"{text}: the metadata in {folder.root} cannot be read ({error_reason(error)}); prepare it again"
        ) from error


@contextlib.contextmanager
def _local_metadata(folder: Location) -> Iterator[str]:
    """Returns a local folder with the metadata.

    A copy, where TFDS could not reach them without its own libraries.
    """
    if isinstance(folder.filesystem, fs.LocalFileSystem):
        yield folder.root
        return
    with tempfile.TemporaryDirectory(prefix="vqgan-tfds-") as local:
        for node in folder.children():
            if node.name.endswith(_METADATA):
                with open_file(folder, node.name) as file:
                    Path(local, node.name).write_bytes(file.readall())
        yield local


def _import_tfds() -> ModuleType:
    import tensorflow_datasets

    module: ModuleType = tensorflow_datasets
    return module


def _split_files(text: str, splits: Any, split: str) -> tuple[dict[str, list[range]], dict[str, int]]:
    """Maps file names to the ranges of records in a split or part of one, and the numbers of records."""
    try:
        instructions: Sequence[Any] = splits[split].file_instructions
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{text}: no split {split} ({error_reason(error)}); there is {', '.join(splits)}"
        ) from error
    records: dict[str, list[range]] = {}
    lengths: dict[str, int] = {}
    for instruction in instructions:
        name, length = os.path.basename(instruction.filename), instruction.examples_in_shard
        stop = length if instruction.take == -1 else instruction.skip + instruction.take
        records.setdefault(name, []).append(range(instruction.skip, stop))
        lengths[name] = length
    return records, lengths


def _features(features: Any) -> tuple[tuple[str, ...], dict[str, list[str]], dict[str, str]]:
    kinds = _import_tfds().features
    reasons = {name: _why_no_image(feature, kinds) for name, feature in features.items()}
    images = tuple(name for name, feature in features.items() if isinstance(feature, kinds.Image))
    labels = {name: f.names for name, f in features.items() if isinstance(f, kinds.ClassLabel)}
    return images, labels, {name: reason for name, reason in reasons.items() if reason}


def _why_no_image(feature: Any, kinds: Any) -> str | None:
    """Says why the bytes stored for a feature are no image that a decoder shows as the data set means it."""
    if not isinstance(feature, kinds.Image):
        # Text may hold an encoded image; all else is numbers, several examples, or other features.
        return None if isinstance(feature, kinds.Text) else f"it is a {type(feature).__name__}"
    if isinstance(feature, kinds.LabeledImage):
        return "its values are classes of pixels"
    dtype, shape = np.dtype(feature.np_dtype).name, tuple(feature.shape)
    if dtype not in _DTYPES:
        return f"{dtype} is stored as the channels of a PNG, which are not pixels"
    if len(shape) != 3 or shape[-1] not in _CHANNELS:
        return f"an image of shape {shape} has no colours that are known"
    return None


_DTYPES = ("uint8", "uint16")  # stored as they are
_CHANNELS = (1, 3, 4, None)
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
        """Returns the further features, with types inferred from the first records.

        Raises:
          UserError: there is no such feature.
        """
        if not self.config.columns:
            return []
        prepared = load_metadata(self.config.input)
        records = sample_records(prepared.location, _FORMATS[prepared.file_format], prepared.records)
        return infer_fields(self.config.input, self.config.columns, records)

    def class_names(self) -> Names | None:
        """Returns names of the classes in the order of their numbers; None if labels are no ClassLabel."""
        prepared = load_metadata(self.config.input)
        return prepared.labels.get(self._label(prepared) or "")

    def list(self) -> Iterator[Entry]:
        """Returns an entry for each record.

        Raises:
          UserError: there is no such data set, version or split, or the choice of image is open.
        """
        prepared = load_metadata(self.config.input)
        self._image(prepared)
        return list_containers(prepared.location, "tfrecord", functools.partial(_list_one, prepared))

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """Returns a loader for each entry, in any order."""
        prepared = load_metadata(self.config.input)
        layout = FeatureLayout(
            (self._image(prepared),), self._label(prepared), tuple(self.fields()), _NO_LABEL
        )
        form = _FORMATS[prepared.file_format]
        read_one = functools.partial(read_examples, layout, form, prepared.location)
        return read_containers(prepared.location, entries, read_one)

    def _image(self, prepared: PreparedDataset) -> str:
        name = self._image_name(prepared)
        if name in prepared.refused:
            raise UserError(
                f"{self.config.input}: feature {name} is not read as an image, as {prepared.refused[name]}; "
                "name another with image_column, or prepare it as uint8"
            )
        return name

    def _image_name(self, prepared: PreparedDataset) -> str:
        if self.config.image_column:
            return self.config.image_column
        if "image" in prepared.images or len(prepared.images) == 1:
            return "image" if "image" in prepared.images else prepared.images[0]
        there = ", ".join(prepared.images) or "none"
        raise UserError(f"{self.config.input}: name the image with image_column; image features: {there}")

    def _label(self, prepared: PreparedDataset) -> str | None:
        only = next(iter(prepared.labels)) if len(prepared.labels) == 1 else None
        return self.config.label_column or only


def _list_one(prepared: PreparedDataset, file: pa.NativeFile, found: Found) -> Iterator[Entry]:
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
        raise DamagedFileError(file.size(), f"not the {length:,} records that the metadata speak of")
