"""A folder of image files."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import pyarrow as pa

from transforms.sources.base import Entry, Example, Loader, Names, SourceConfig
from transforms.sources.locations import Found, Location, locate, open_file, to_key
from transforms.sources.reading import read_exact
from vqgan.errors import UserError

_METADATA_NAMES = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet"})
"""Files that describe the images beside them, by the convention of Hugging Face's ``imagefolder``."""


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Every file below a folder or matching a glob, or a single file; one image each.

    Whatever its extension, a file is an entry: one that is no image becomes a reject, so nothing goes
    missing silently. Only hidden files and folders (``.name``) are left out, and an ``imagefolder``'s
    ``metadata.jsonl``, ``.csv`` or ``.parquet``. Links are followed, but never back up into a folder that
    holds them.

    The key is the path below the root, with ``/`` and with anything that is not UTF-8 escaped.
    """

    config: SourceConfig

    shuffles = True
    options = frozenset({"folder_labels"})

    def fields(self) -> list[pa.Field]:
        """No further columns: files have none.

        Raises:
          UserError: some were asked for.
        """
        if self.config.columns:
            raise UserError(
                f"{self.config.input}: a folder of images has no columns ({', '.join(self.config.columns)} "
                "asked for); leave them out or use a list of images"
            )
        return []

    def class_names(self) -> Names | None:
        """Names of the classes in the order of their numbers; None without ``folder_labels``.

        Raises:
          UserError: the root has no subfolders, or cannot be read.
        """
        return list(_classes(locate(self.config.input))) if self.config.folder_labels else None

    def list(self) -> Iterator[Entry]:
        """An entry for each file, with its size and, with ``folder_labels``, its class."""
        location = locate(self.config.input)
        classes = _classes(location) if self.config.folder_labels else {}
        for found in location.walk():
            if found.name not in _METADATA_NAMES:
                yield _entry(found, classes)

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """A loader for each entry; each opens, reads and closes its own file."""
        location = locate(self.config.input)
        for entry in entries:
            yield functools.partial(_load, location, entry)


def _entry(found: Found, classes: dict[str, int]) -> Entry:
    label = classes.get(to_key(found.parts[0])) if len(found.parts) > 1 else None
    return Entry(found.key or ".", found.file, size=found.size, label=label, error=found.error)


def _classes(location: Location) -> dict[str, int]:
    try:
        names = [to_key(node.name) for node in location.children() if node.is_folder]
    except OSError as error:
        raise UserError(f"{location.text}: cannot be read ({error}); check the permissions") from error
    if not names:
        raise UserError(f"{location.text}: no subfolders in {location.root} to take classes from")
    return {name: number for number, name in enumerate(names)}


def _load(location: Location, entry: Entry) -> Example:
    with open_file(location, entry.file) as file:
        return Example(read_exact(file, 0, file.size()), entry.label, {})
