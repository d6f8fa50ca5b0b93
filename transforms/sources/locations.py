r"""Finding the files of an input: a file, a folder, a glob or a brace range; local or remote.

A POSIX file name is bytes, and need not be text; keys and the plan's Parquet file hold Unicode only.
Two forms bridge the gap, both unambiguous:

* *key*, for people: bytes that are not UTF-8 become ``\xNN``, and a backslash becomes two, so that no
  two names share a key.
* *file*, to open it again: a name that is UTF-8 is written as it is. Any other is written as ``%:`` and
  then percent-escaped bytes (``%:caf%E9.jpg``). A UTF-8 name that itself begins with ``%:`` is escaped
  too, so the marker always means escaping.

Names come from Python's ``os`` functions: a ``str`` whose undecodable bytes are lone surrogates.
"""

import dataclasses
import difflib
import errno
import functools
import os
import re
import stat
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from transforms.sources.base import SourceConfig, error_reason
from transforms.sources.globs import EVERYTHING, Globs, State, expand_braces, is_pattern
from vqgan.errors import UserError, first_line
from vqgan.faults import STORE_ERROR, raise_machine_fault
from vqgan.filesystems import plain_uri, resolve

_UNREACHABLE = "cannot be reached"
_QUERY = re.compile(r"\?\w+=(?:://|[^/])*$")
"""Options at the end of a URI (``s3://bucket/path?region=...``), no glob; one may be a URI itself."""


class Found(NamedTuple):
    """One file of an input.

    Attributes:
      parts: folder names and file name below the root.
      size: bytes, or -1 where the listing does not tell.
      error: why it cannot be read (a broken link, say, or a folder without permission).
      modified: time of its last change in nanoseconds since 1970, or None where the listing does not tell.
    """

    parts: tuple[str, ...]
    size: int = -1
    error: str | None = None
    modified: int | None = None

    @property
    def name(self) -> str:
        """The last part; empty for the root itself."""
        return self.parts[-1] if self.parts else ""

    @property
    def key(self) -> str:
        """Path below the root, for people; see :mod:`transforms.sources.locations`."""
        return to_key("/".join(self.parts))

    @property
    def file(self) -> str:
        """Path below the root, to open it again; see :mod:`transforms.sources.locations`."""
        return to_file("/".join(self.parts))


class Node(NamedTuple):
    """One name in a folder. ``identity`` tells a folder again when a link leads back to it."""

    name: str
    is_folder: bool = False
    size: int = -1
    identity: tuple[int, int] | None = None
    error: str | None = None
    modified: int | None = None


class _Step(NamedTuple):
    """A node that a walk has yet to visit, with the folders above it."""

    node: Node
    parts: tuple[str, ...]
    state: State
    above: tuple[tuple[int, int] | None, ...]


@dataclasses.dataclass(frozen=True)
class Location:
    """A root folder and what to take of it.

    Attributes:
      text: the input as the user wrote it, for messages.
      filesystem: where the root lies.
      root: path of the root folder in that file system.
      names: files or folders below the root, taken by name.
      globs: patterns of further ones.
    """

    text: str
    filesystem: fs.FileSystem
    root: str
    names: tuple[tuple[str, ...], ...]
    globs: Globs

    def walk(self) -> Iterator[Found]:
        """Returns every file that is not hidden, each once, in the order of names; folders are searched.

        Links are followed, except from a folder into one that it lies in. What cannot be read, and
        what is neither file nor folder, is there too, with its error.
        """
        starts = [self._start(parts) for parts in self.names]
        if self.globs.patterns:
            starts.append(_Step(_node(self.filesystem, self.root, ""), (), self.globs.start(), ()))
        found = (file for start in starts for file in self._walk(start))
        return found if len(starts) == 1 else _unique(found)

    def check(self) -> None:
        """Makes sure that there is something here.

        Raises:
          UserError: names of a brace range are missing, or a glob matches nothing.
        """
        starts = [self._start(parts) for parts in self.names]
        missing = [start for start in starts if start.node.error]
        if missing:
            first = "/".join(missing[0].parts)
            raise UserError(
                f"{self.text}: {len(missing)} of {len(starts)} files cannot be found or read, the first is "
                f"{to_key(first)}; correct the range or restore them"
            )
        if self.globs.patterns and next(self.walk(), None) is None:
            raise UserError(f"{self.text}: no file matches; check the pattern and the folder {self.root}")

    def children(self, parts: tuple[str, ...] = ()) -> list[Node]:
        """Returns what lies in a folder below the root, without hidden names, sorted. Raises OSError."""
        return _children(self.filesystem, "/".join((self.root.rstrip("/"), *parts)) or "/")

    def path(self, file: str) -> str | bytes:
        """Returns the path of :attr:`Found.file` in the file system, in the form that pyarrow opens."""
        if isinstance(self.filesystem, fs.LocalFileSystem):
            name = from_file(file)
            return name if name.startswith(b"/") else self._prefix + name
        return f"{self.root.rstrip('/')}/{from_file(file).decode()}"

    @functools.cached_property
    def _prefix(self) -> bytes:
        return os.path.join(os.fsencode(self.root), b"")

    def _start(self, parts: tuple[str, ...]) -> _Step:
        folder = "/".join((self.root.rstrip("/"), *parts[:-1]))
        name = parts[-1] if parts else ""
        return _Step(_node(self.filesystem, folder or "/", name), parts, EVERYTHING, ())

    def _walk(self, start: _Step) -> Iterator[Found]:
        stack = [start]
        while stack:
            step = stack.pop()
            if not step.node.is_folder:
                if step.state is EVERYTHING:
                    yield Found(step.parts, step.node.size, step.node.error, step.node.modified)
            elif step.node.identity is None or step.node.identity not in step.above:
                try:
                    stack.extend(reversed(self._below(step)))
                except OSError as error:
                    raise_machine_fault(
                        error, f"{self.text}: {to_key('/'.join(step.parts))!r} cannot be listed"
                    )
                    yield Found(step.parts, error=f"folder cannot be read ({error_reason(error)})")

    def _below(self, step: _Step) -> list[_Step]:
        above = (*step.above, step.node.identity)
        steps = []
        for child in self.children(step.parts):
            state = self.globs.step(step.state, child.name)
            if state:
                steps.append(_Step(child, (*step.parts, child.name), state, above))
        return steps


def locate(text: str) -> Location:
    """Finds where an input lies. Costs one look at the file system; :meth:`Location.check` does the rest.

    A path that exists is taken as it is, even if its name looks like a pattern. The root is the folder
    itself, the folder of a single file, or the part of a pattern before its first special character.

    Raises:
      UserError: there is no such file or folder, or the location cannot be reached.
    """
    if text.lower().startswith(("http://", "https://", "ftp://")):
        raise UserError(
            f"{text}: nothing is fetched from the web; download it and give the folder; "
            "img2dataset downloads a list of addresses"
        )
    path, query = _split_query(plain_uri(text))
    if "://" not in path:
        path = os.path.abspath(os.path.expanduser(path))
    if is_pattern(path) and ("://" in path or not os.path.lexists(path)):
        return _pattern(text, path, query)
    filesystem, inner = resolve(path + query)
    node = _node(filesystem, inner, "")
    if node.is_folder:
        return Location(text, filesystem, inner, ((),), Globs(()))
    if node.error and node.error.startswith(_UNREACHABLE):
        raise UserError(f"{text}: {node.error}; check the address, the credentials and the network")
    if node.error:
        raise _missing(text, filesystem, inner, node.error)
    root, name = os.path.split(inner)
    return Location(text, filesystem, root, ((name,),), Globs(()))


@dataclasses.dataclass(frozen=True)
class LocatedSource:
    """A source whose input is one location, which is looked for once, at the first need."""

    config: SourceConfig

    @functools.cached_property
    def location(self) -> Location:
        """Where the input lies. Raises UserError if it is not there."""
        return locate(self.config.input)

    def __getstate__(self) -> dict[str, Any]:
        # Another process looks for itself: it may see another file system.
        return {name: value for name, value in self.__dict__.items() if name != "location"}


def open_file(location: Location, file: str) -> pa.NativeFile:
    """Returns a pyarrow file for random access; reading with ``read_at`` is safe from several threads."""
    with plain_errors(location.filesystem):
        return location.filesystem.open_input_file(location.path(file))


def _pattern(text: str, path: str, query: str) -> Location:
    segments = path.split("/")
    first = next(number for number, segment in enumerate(segments) if is_pattern(segment))
    filesystem, root = resolve(("/".join(segments[:first]) or "/") + query)
    paths = [tuple(name.split("/")) for name in expand_braces("/".join(segments[first:]))]
    names = tuple(parts for parts in paths if not is_pattern("".join(parts)))
    globs = tuple(parts for parts in paths if is_pattern("".join(parts)))
    return Location(text, filesystem, root, names, Globs(globs))


def _split_query(text: str) -> tuple[str, str]:
    query = _QUERY.search(text) if "://" in text else None
    return (text[: query.start()], query[0]) if query else (text, "")


def _unique(found: Iterator[Found]) -> Iterator[Found]:
    seen: set[tuple[str, ...]] = set()
    for file in found:
        if file.parts not in seen:
            seen.add(file.parts)
            yield file


def _children(filesystem: fs.FileSystem, folder: str) -> list[Node]:
    if isinstance(filesystem, fs.LocalFileSystem):
        with os.scandir(folder) as entries:
            nodes = [_local_node(e.name, e.stat) for e in entries if not e.name.startswith(".")]
    else:
        with plain_errors(filesystem):
            infos = filesystem.get_file_info(fs.FileSelector(folder))
        nodes = [_remote_node(info) for info in infos if not info.base_name.startswith(".")]
    return sorted(nodes, key=lambda node: os.fsencode(node.name))


def _node(filesystem: fs.FileSystem, folder: str, name: str) -> Node:
    """Returns a single name; the folder itself if ``name`` is empty."""
    path = os.path.join(folder, name) if name else folder
    if isinstance(filesystem, fs.LocalFileSystem):
        return _local_node(name, lambda: os.stat(path))
    try:
        with plain_errors(filesystem):
            return _remote_node(filesystem.get_file_info(path))
    except OSError as error:
        return Node(name, error=f"{_UNREACHABLE} ({error_reason(error)})")


def _local_node(name: str, look: Callable[[], os.stat_result]) -> Node:
    try:
        status = look()
    except OSError as error:
        raise_machine_fault(error, f"{to_key(name)!r} cannot be looked at")
        return Node(name, error=f"cannot be read ({error_reason(error)})")
    if stat.S_ISDIR(status.st_mode):
        return Node(name, is_folder=True, identity=(status.st_dev, status.st_ino))
    if stat.S_ISREG(status.st_mode):
        return Node(name, size=status.st_size, modified=status.st_mtime_ns)
    return Node(name, error="neither a file nor a folder")


def _remote_node(info: fs.FileInfo) -> Node:
    if info.type == fs.FileType.NotFound:
        return Node(info.base_name, error="cannot be read (no such file)")
    size = -1 if info.size is None else info.size
    return Node(info.base_name, info.type == fs.FileType.Directory, size, modified=info.mtime_ns)


def _missing(text: str, filesystem: fs.FileSystem, path: str, reason: str) -> UserError:
    """Says what is not there, and the nearest name that is."""
    folder, name = os.path.split(path.rstrip("/"))
    while _node(filesystem, folder, "").error and folder not in ("", "/"):
        folder, name = os.path.split(folder)
    try:
        names = [to_key(node.name) for node in _children(filesystem, folder)]
    except OSError:
        names = []
    nearest = difflib.get_close_matches(name, names, n=1)
    if nearest and name not in names:
        return UserError(f"{text}: no such file or folder; did you mean {folder.rstrip('/')}/{nearest[0]}?")
    return UserError(f"{text}: {reason}; check the path of the input")


_MARKER = "%:"


def to_key(name: str) -> str:
    """Returns the key of a file name: valid Unicode, different for different names."""
    return to_text(name.replace("\\", "\\\\") if "\\" in name else name)


def to_text(name: str) -> str:
    r"""Returns a string as people wrote it, with ``\xNN`` for bytes that are not UTF-8."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def to_file(name: str) -> str:
    """Returns the file name as a string that Parquet can hold; :func:`from_file` turns it back."""
    if name.isascii() and not name.startswith(_MARKER):
        return name
    raw = os.fsencode(name)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return _MARKER + urllib.parse.quote_from_bytes(raw)
    return _MARKER + urllib.parse.quote_from_bytes(raw) if text.startswith(_MARKER) else text


def from_file(file: str) -> bytes:
    """Returns the bytes of the name that :func:`to_file` wrote down."""
    if file.startswith(_MARKER):
        return urllib.parse.unquote_to_bytes(file[len(_MARKER) :])
    return file.encode("utf-8")


_REASONS = {
    "NETWORK_CONNECTION": "no connection to the server",
    "UNAVAILABLE": "no connection to the server, or no credentials",
    "ACCESS_DENIED": "access denied",
    "NO_SUCH_BUCKET": "no such bucket",
}


@contextmanager
def plain_errors(filesystem: fs.FileSystem) -> Iterator[None]:
    """Turns what remote file systems raise into OSErrors of one line; those in Python raise what they like.

    Raises:
      OSError: with what the store says, without the functions that were called.
    """
    try:
        yield
    except OSError as error:
        if "is a directory" in str(error):  # whose text has the path of this machine
            raise IsADirectoryError(errno.EISDIR, "a folder, not a file") from error
        found = STORE_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(_REASONS.get(found[1], found[1].lower().replace("_", " "))) from error
    except Exception as error:
        if not isinstance(filesystem, fs.PyFileSystem):
            raise
        raise OSError(f"{type(error).__name__}: {first_line(error)}") from error
