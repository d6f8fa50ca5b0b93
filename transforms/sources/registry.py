"""The known kinds of sources, and the one for an input."""

from typing import Any

from transforms.sources.arrow import ArrowSource
from transforms.sources.base import Source, SourceConfig
from transforms.sources.folder import FolderSource
from transforms.sources.lists import ListSource
from transforms.sources.locations import locate
from transforms.sources.metadata import metadata_files
from transforms.sources.parquet import ParquetSource
from transforms.sources.recognising import recognise
from transforms.sources.tar import TarSource
from transforms.sources.tfds import TFDSSource, check_address
from transforms.sources.tfrecord import TFRecordSource
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
    """The source for an input, checked as far as a look at the names allows.

    Raises:
      UserError: there is no such input or kind, or an option does not apply to it.
    """
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
    usable = SOURCES[kind].options
    if kind == "folder" and given and next(metadata_files(locate(config.input)), None) is None:
        usable = frozenset({"folder_labels"})  # columns are those of metadata beside the images
    idle = [name for name in given if name not in usable]
    if idle:
        raise UserError(
            f"{config.input}: {', '.join(idle)} cannot be used with a source of kind {kind!r}; leave it out"
        )
