"""Tar archives in the layout of webdataset."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from transforms.sources.base import Entry, Example, Loader
from transforms.sources.locations import Found, LocatedSource, open_file, to_key
from transforms.sources.names import IMAGE_EXTENSIONS, RARE_EXTENSIONS
from transforms.sources.reading import (
    DamagedFileError,
    container_files,
    failing,
    list_containers,
    read_containers,
    read_exact,
    to_label,
)
from transforms.sources.tar_format import Member, Stream, decompressed, members, open_archive
from vqgan.errors import UserError

LABEL_EXTENSION = "cls"
_GROUPS_LOOKED_AT = 1000
_NAMED_AT_MOST = 10
_LEADING = re.compile(r"^(\./|/)+")
_NUMBERS = re.compile(r"\d+(\.\d+)*")
_IMAGE = "\0image"
"""Stands for the image among the parts of an example, where companions go by their extension."""

Range = tuple[int, int]
"""Offset and size of a member's contents."""


class Group(NamedTuple):
    """Consecutive members that differ only in what follows the first dot of their base name.

    Attributes:
      key: the common part of their names.
      parts: contents of each by extension (in lower case): ``jpg``, ``cls``, ``seg.png``.
      problem: why none of it can be taken (a link, say).
    """

    key: str
    parts: dict[str, Range]
    problem: str | None = None


@dataclasses.dataclass(frozen=True)
class TarSource(LocatedSource):
    """Images in tar archives, grouped with their companions by webdataset's rule.

    The image of a group is its member with a plain image extension, so that ``a.seg.png`` beside
    ``a.jpg`` is a companion. Without a plain one, a single compound one (``a.2024.jpg``) is the image;
    ``image_column`` names another extension. Several compound ones that are told apart by numbers
    (``2024.05.01.jpg``, ``2024.05.02.jpg``) are images of their own. ``a.cls`` (or the extension in
    ``label_column``) holds the class as a decimal number. Further ``columns`` are extensions (``txt``,
    ``json``), whose text is passed through. Hidden members (``.name``) are left out, and folders.

    The key is ``<archive below the root>/<name up to the first dot>``, or up to the last one with
    ``whole_names``. An archive that is damaged is read up to there. Nothing is ever unpacked to disk.

    Archives that are not compressed are read by random access; compressed ones from their start.
    """

    shuffles = False
    options = frozenset({"image_column", "label_column", "columns", "whole_names"})

    def fields(self) -> list[pa.Field]:
        """Returns a string column for each extension asked for.

        Raises:
          UserError: none of the first groups has such a member.
        """
        if self.config.columns:
            self._check_columns()
        return [pa.field(name, pa.string()) for name in self.config.columns]

    def class_names(self) -> None:
        """Gives None: classes are numbers here."""

    def list(self) -> Iterator[Entry]:
        """Returns an entry for each group; ``offset`` counts in the decompressed archive."""
        return list_containers(self.location, "tar", self._list_one)

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """Returns a loader for each entry. Entries of a compressed archive should be in its order."""
        return read_containers(self.location, entries, self._read_one)

    @property
    def _companions(self) -> frozenset[str]:
        return frozenset({*self.config.columns, self.config.label_column or LABEL_EXTENSION})

    def _list_one(self, file: pa.NativeFile, found: Found) -> Iterator[Entry]:
        if file.size() == 0:
            raise DamagedFileError(0, "the file is empty")
        found_members = members(open_archive(file))
        for group in groups(found_members, self._companions, self.config.whole_names):
            for part in _apart(group) if self.config.image_column is None else [group]:
                yield self._entry(part, found)

    def _entry(self, group: Group, found: Found) -> Entry:
        key = f"{found.key}/{to_key(group.key)}"
        try:
            image = _image_extension(group, self.config.image_column)
        except ValueError as error:
            return Entry(key, found.file, error=str(error))
        companions = {name: group.parts[name] for name in sorted(self._companions) if name in group.parts}
        offset, size = group.parts[image]
        return Entry(key, found.file, offset, size, members=json.dumps(companions) if companions else None)

    def _read_one(self, file: pa.NativeFile, entries: Sequence[Entry]) -> Iterator[Loader]:
        stream = decompressed(file)
        if stream is not None:
            yield from self._read_stream(file, stream, entries)
            return
        for entry in entries:
            yield functools.partial(self._load, file, entry)

    def _read_stream(self, file: pa.NativeFile, stream: Stream, entries: Sequence[Entry]) -> Iterator[Loader]:
        """Reads each entry's bytes before its loader is handed out: a stream has one position only."""
        for entry in entries:
            ranges = sorted(_ranges(entry).items(), key=lambda item: item[1])
            if ranges[0][1][0] < stream.position:
                stream = decompressed(file) or stream
            try:
                parts = {name: stream.read_exact(*where) for name, where in ranges}
            except ValueError as error:
                yield failing(error)
                continue
            yield functools.partial(self._example, parts)

    def _load(self, file: pa.NativeFile, entry: Entry) -> Example:
        return self._example({name: read_exact(file, *where) for name, where in _ranges(entry).items()})

    def _example(self, parts: dict[str, bytes]) -> Example:
        extension = self.config.label_column or LABEL_EXTENSION
        label = _label(parts[extension], extension) if extension in parts else None
        columns = {name: _text(parts[name], name) if name in parts else None for name in self.config.columns}
        return Example(parts[_IMAGE], label, columns)

    def _check_columns(self) -> None:
        location = self.location
        for found in container_files(location, "tar"):
            seen: set[str] = set()
            try:
                with open_file(location, found.file) as file:
                    parts = groups(members(open_archive(file)), whole_names=self.config.whole_names)
                    for group in itertools.islice(parts, _GROUPS_LOOKED_AT):
                        seen.update(*(part.parts for part in _numbered(group)))
            except (OSError, ValueError):
                pass
            missing = set(self.config.columns) - seen
            if seen and missing:
                raise UserError(
                    f"{self.config.input}: no members with extension {', '.join(sorted(missing))} in "
                    f"{found.key}; there are {', '.join(sorted(seen))}"
                )
            if seen:
                return


def groups(
    found: Iterator[Member], companions: frozenset[str] = frozenset(), whole_names: bool = False
) -> Iterator[Group]:
    """Yields groups of consecutive members; a second member of the same extension begins a new group.

    With ``whole_names``, an extension is what follows the last dot, not the first.

    Where damage follows a group that lacks one of the ``companions`` that earlier groups had, the
    companion may be what was lost: the group then bears a problem.

    Raises:
      DamagedFileError: as ``found`` does, after the last group.
    """
    group = Group("", {})
    usual: set[str] = set()
    try:
        for member in found:
            key, extension = _split(member.name, whole_names)
            if member.is_folder or not key:
                continue
            if group.parts and (key != group.key or extension in group.parts or member.problem):
                yield group
                usual |= companions & group.parts.keys()
                group = Group("", {})
            if member.problem:
                yield Group(f"{key}.{extension}", {}, member.problem)
                continue
            group = Group(key, {**group.parts, extension: (member.data, member.size)})
    except DamagedFileError:
        lost = usual - group.parts.keys()
        yield from [group._replace(problem=_lost(lost)) if lost else group] if group.parts else []
        raise
    if group.parts:
        yield group


def _lost(extensions: set[str]) -> str:
    return f"the archive is damaged just where .{', .'.join(sorted(extensions))} should follow"


def _split(name: str, whole: bool) -> tuple[str, str]:
    """Returns the name up to the first (or last) dot of its base name, and the rest in lower case.

    No name if hidden.
    """
    name = _LEADING.sub("", name)
    slash = name.rfind("/") + 1
    if whole and not name.startswith(".", slash):
        base, dot, extension = name[slash:].rpartition(".")
        base, extension = (base, extension) if dot else (extension, "")
    else:
        base, _, extension = name[slash:].partition(".")
    return (name[:slash] + base if base else ""), extension.lower()


def _numbered(group: Group) -> list[Group]:
    """Returns a group of images that numbers tell apart, taken apart: dates with dots, and the like.

    A companion without such a number belongs to each of them. Any other group stays as it is.
    """
    stems = {name.rpartition(".")[0] for name in group.parts if name.rpartition(".")[2] in IMAGE_EXTENSIONS}
    if (
        len(stems) < 2
        or not group.key[-1:].isdecimal()
        or not all(_NUMBERS.fullmatch(stem) for stem in stems)
    ):
        return [group]
    shared = {name: where for name, where in group.parts.items() if "." not in name}
    return [
        Group(f"{group.key}.{stem}", shared | _parts_of(group, f"{stem}."))
        for stem in dict.fromkeys(name.rpartition(".")[0] for name in group.parts)
        if stem in stems
    ]


def _apart(group: Group) -> list[Group]:
    """Returns the images of a group that has no main one: each by itself, or each with what is wrong."""
    numbered = _numbered(group)
    extensions = [name.rpartition(".") for name in group.parts]
    stems = [stem for stem, dot, ending in extensions if dot and ending in IMAGE_EXTENSIONS]
    has_main = any(not dot and ending in IMAGE_EXTENSIONS for _, dot, ending in extensions)
    if len(numbered) > 1 or len(stems) < 2 or has_main or group.problem:
        return numbered
    there = ", ".join(f".{name}" for name in list(group.parts)[:_NAMED_AT_MOST])
    more = f" and {len(group.parts) - _NAMED_AT_MOST} more" if len(group.parts) > _NAMED_AT_MOST else ""
    problem = (
        f"several images, none of them the main one: {there}{more}; name one with --image-column, "
        "or take each for itself with --whole-names"
    )
    return [Group(f"{group.key}.{stem}", {}, problem) for stem in dict.fromkeys(stems)]


def _parts_of(group: Group, prefix: str) -> dict[str, Range]:
    return {name[len(prefix) :]: where for name, where in group.parts.items() if name.startswith(prefix)}


def _label(data: bytes, extension: str) -> int | None:
    try:
        return to_label(int(data))
    except ValueError as error:
        raise ValueError(
            f"companion .{extension} holds {data[:40]!r}, which is no class number of 32 bits; "
            f"correct it, or take it as text: --columns {extension}, and --label-column for another extension"
        ) from error


def _text(data: bytes, extension: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"companion .{extension} is not UTF-8 (byte {error.start:,}: 0x{data[error.start]:02x}), perhaps "
            f"Latin-1; convert it, or leave {extension} out of --columns"
        ) from error


def _image_extension(group: Group, wanted: str | None) -> str:
    """Returns the extension of a group's image. Raises ValueError where there is none."""
    if group.problem:
        raise ValueError(group.problem)
    there = ", ".join(f".{extension}" if extension else "(no extension)" for extension in group.parts)
    if wanted:
        if wanted not in group.parts:
            raise ValueError(f"no .{wanted} among {there}")
        return wanted
    for extensions in (IMAGE_EXTENSIONS, RARE_EXTENSIONS):
        plain = [extension for extension in extensions if extension in group.parts]
        compound = [name for name in group.parts if name.rpartition(".")[2] in extensions]
        if not plain and len(compound) > 1:
            raise ValueError(
                f"several images, none of them the main one: {there}; name one with --image-column, "
                "or take each for itself with --whole-names"
            )
        if compound:
            return (plain or compound)[0]
    raise ValueError(f"no image among {there}")


def _ranges(entry: Entry) -> dict[str, Range]:
    companions = json.loads(entry.members) if entry.members else {}
    return {_IMAGE: (entry.offset, entry.size), **{name: tuple(where) for name, where in companions.items()}}
