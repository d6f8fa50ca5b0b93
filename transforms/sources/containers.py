"""What the sources with many images in one file share."""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from transforms.sources.base import Entry, Loader
from transforms.sources.locating import Found, Location, open_file
from transforms.sources.reading import DamagedError, by_file, failing, first_line
from transforms.sources.recognising import is_sidecar


def container_files(location: Location) -> Iterator[Found]:
    """The files of an input, without those that only describe others (unless asked for by name)."""
    for found in location.walk():
        if not is_sidecar(found.name) or found.parts in location.names:
            yield found


def list_containers(
    location: Location, list_one: Callable[[pa.NativeFile, Found], Iterator[Entry]]
) -> Iterator[Entry]:
    """The entries of every file in turn.

    Where ``list_one`` raises :class:`DamagedError` or OSError, one entry with an error stands for the
    remainder of that file, and the next file follows.
    """
    for found in container_files(location):
        if found.error:
            yield Entry(found.key or ".", found.file, error=found.error)
            continue
        try:
            with open_file(location, found.file) as file:
                yield from list_one(file, found)
        except DamagedError as error:
            yield damaged(found, error.offset, str(error))
        except OSError as error:
            yield damaged(found, 0, f"cannot be read ({first_line(error)})")


def damaged(found: Found, offset: int, message: str) -> Entry:
    """The entry that stands for all that is lost of a file."""
    return Entry(f"{found.key}/#damaged-at-{offset}", found.file, offset, error=message)


def read_containers(
    location: Location,
    entries: Sequence[Entry],
    read_one: Callable[[pa.NativeFile, Sequence[Entry]], Iterator[Loader]],
) -> Iterator[Loader]:
    """The loaders of the entries, file by file.

    A file is closed when the last loader that refers to it is gone: until then any of them may run.
    """
    for file, group in by_file(entries):
        try:
            opened = open_file(location, file)
        except OSError as error:
            yield from [failing(error)] * len(group)
            continue
        yield from _read_all(read_one(opened, group), len(group))


def _read_all(loaders: Iterator[Loader], count: int) -> Iterator[Loader]:
    """``count`` loaders, the last of which fail where the file turns out to be damaged."""
    given = 0
    try:
        for loader in loaders:
            given += 1
            yield loader
    except DamagedError as error:
        yield from [failing(error)] * (count - given)
