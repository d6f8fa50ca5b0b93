"""What ``vqgan browse`` looks at: rows of a token data set by number, key or class, its codes, its rejects.

Nothing is read before it is asked for, a row group at a time, so a data set may have any number of rows. A
damaged file costs its own rows alone: it is told in one line. Safe from many threads.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.sharded.rejects import RejectRow, read_rejects
from vqgan import filesystems
from vqgan.caching import LatestResults
from vqgan.data.row_groups import flat_tokens
from vqgan.data.token_shards import check_footer, labels_of
from vqgan.errors import UserError, first_line
from vqgan.manifest import check_parts, load_token_manifest
from vqgan.shards import LATENTS, open_shard

ROWS_SCANNED = 1 << 21
"""Rows that one search looks at, at most; the reader of a page goes on from there."""
REJECTS_SCANNED = 1 << 16
MOST_PROBLEMS = 8
"""Files that cannot be read which a search meets before it stops."""
TOKENS_SAMPLED = 1 << 22
"""Tokens that the codes' patches are chosen from, at most."""
GROUPS_SAMPLED = 32
"""Row groups that these come from, at most; they lie evenly in the data set."""
_GROUPS_KEPT = 8
_SHARDS_KEPT = 1024
_MOST_GROUPS = 1 << 20  # of a shard; a cache's number holds both
_OURS = ("key", "view", "tokens", "crop", "mirrored", "width", "height", "label")


class NothingThereError(Exception):
    """There is no such row, code or page."""


class BrowsedRow(NamedTuple):
    """A row as a shard holds it.

    Attributes:
      number: of the row, from 0 through all shards.
      slice_number: of the plan that its shard is.
      part: of the data set, whose plan that is.
      key, view: which row.
      label: its class, or -1.
      tokens: int32 ``[h, w]``.
      crop: left, top, right, bottom in pixels of the source.
      mirrored: whether it shows the box flipped.
      width, height: of the source.
    """

    number: int
    slice_number: int
    part: int
    key: str
    view: int
    label: int
    tokens: np.ndarray
    crop: tuple[int, int, int, int]
    mirrored: bool
    width: int
    height: int


class Query(NamedTuple):
    """What rows are wanted: those whose key contains a text, whatever its case, and those of a class."""

    key: str = ""
    label: int | None = None

    @property
    def is_all(self) -> bool:
        """Returns whether every row is."""
        return not self.key and self.label is None

    def matches(self, table: pa.Table) -> np.ndarray:
        """Returns the numbers of the rows of a table that are wanted, int64."""
        wanted = np.ones(len(table), bool)
        if self.key:
            wanted &= pc.match_substring(table.column("key"), self.key, ignore_case=True).to_numpy()
        if self.label is not None:
            wanted &= labels_of(table.column("label")) == self.label
        return np.flatnonzero(wanted)


class SearchResult(NamedTuple):
    """A page's worth of what was looked for.

    Attributes:
      items: of them.
      after: number of the first row, or reject, that was not looked at; None where all were.
      problems: what could not be read, a line each.
    """

    items: list[Any]
    after: int | None
    problems: list[str]


class CodePlace(NamedTuple):
    """Where a code occurs: number of the row, and of the cell in its grid, row by row."""

    row: int
    cell: int


class CodeSample(NamedTuple):
    """Rows of a data set in which codes are looked for.

    Attributes:
      numbers: of the rows, int64 ``[N]``.
      tokens: theirs, unsigned ``[N, h * w]``.
      firsts: where each code that occurs does so first.
      problems: what could not be read, a line each.
    """

    numbers: np.ndarray
    tokens: np.ndarray
    firsts: Mapping[int, CodePlace]
    problems: list[str]

    def places_of(self, code: int, limit: int) -> list[CodePlace]:
        """Returns the first cell that holds a code of each of the first rows that do, ``limit`` at most."""
        is_code = self.tokens == code
        rows = np.flatnonzero(is_code.any(axis=1))[:limit]
        return [CodePlace(int(self.numbers[row]), int(is_code[row].argmax())) for row in rows]


class ShardLayout(NamedTuple):
    """What a shard's footer tells: a slice of which part, rows of each row group, columns besides ours."""

    slice_number: int
    part: int
    group_rows: tuple[int, ...]
    extra: tuple[str, ...]


class TokenBrowser:
    """A finished token data set, opened to be looked at.

    Attributes:
      path: as it was given.
      folder: where its files lie.
      manifest: as JSON data.
      grid: ``(h, w)`` of every row.
      layout: of its tokens; other than ``grid`` they are one row.
      rows: how many there are.
      rejects: likewise.
      histogram: int64 ``[K]``, how often each code occurs.
      class_names: of the source, perhaps none.
      is_sampled: whether the tokens were drawn from a prior, so that there are no originals.
      codec_name, fingerprint: of the codec that made the tokens.
    """

    def __init__(self, path: str) -> None:
        """Reads the manifest alone.

        Raises:
          UserError: there is no finished token data set, or its manifest is damaged.
        """
        declared = load_token_manifest(path)
        check_parts(declared.folder, declared.document)
        source = declared.document["identity"].get("source", {})
        self.path, self.folder = path, declared.folder
        self.manifest: Mapping[str, Any] = declared.document
        self.grid, self.layout = declared.grid, declared.layout
        self.histogram = declared.histogram
        self.class_names = tuple(source.get("class_names") or ())
        self.is_sampled = source.get("kind") in (None, "prior")
        self.codec_name, self.fingerprint = declared.codec_name, declared.fingerprint
        self._declared = declared
        self._starts = np.cumsum([0, *(entry["rows"] for entry in declared.entries)])
        self._reject_files: Sequence[Mapping[str, Any]] = declared.document["rejects"]
        self._reject_starts = np.cumsum([0, *(entry["rows"] for entry in self._reject_files)])
        self.rows, self.rejects = int(self._starts[-1]), int(self._reject_starts[-1])
        self._layouts = LatestResults(self._read_layout, _SHARDS_KEPT)
        self._tables = LatestResults(lambda number: self._read(*divmod(number, _MOST_GROUPS)), _GROUPS_KEPT)
        self._sampling = threading.Lock()
        self._sample: CodeSample | None = None

    def row(self, number: int) -> BrowsedRow:
        """Reads a row by number.

        Raises:
          NothingThereError: there is no such row.
          UserError: its shard is gone or damaged.
        """
        shard, group, inside = self._place(number)
        return self._rows(shard, group, np.array([inside]), number - inside, self._layouts(shard))[0]

    def extra_columns(self, number: int) -> dict[str, Any]:
        """Reads what the source passed through for a row. Raises like :meth:`row`."""
        shard, group, inside = self._place(number)
        names = self._layouts(shard).extra
        if not names:
            return {}
        with open_shard(self._path(shard)) as file:
            values = file.row_group(group, names).slice(inside, 1).to_pylist()
        return dict(values[0])

    def find(self, query: Query, start: int, limit: int, most: int = ROWS_SCANNED) -> SearchResult:
        """Looks for rows in order.

        Args:
          query: which ones.
          start: number of the first row to look at.
          limit: rows to find, at most.
          most: rows to look at, at most, or a row group more.

        Returns:
          BrowsedRows, with what could not be read.
        """
        found = SearchResult([], None, [])
        for shard, group, first, rows in self._groups(start):
            if first - start >= most or len(found.problems) == MOST_PROBLEMS:
                return found._replace(after=first)
            try:
                layout = self._layouts(shard)
                chosen = self._matches(query, shard, group, rows)
                chosen = chosen[chosen >= start - first][: limit - len(found.items)]
                found.items.extend(self._rows(shard, group, chosen, first, layout))
            except UserError as error:
                found.problems.append(str(error))
            if len(found.items) == limit:
                after = found.items[-1].number + 1
                return found._replace(after=after if after < self.rows else None)
        return found

    def find_rejects(
        self, reason: str, key: str, start: int, limit: int, most: int = REJECTS_SCANNED
    ) -> SearchResult:
        """Looks for rejects in order, a file of them at a time.

        Args:
          reason: ``stage: error``, or an empty text for all.
          key: that theirs contain, whatever its case; or an empty text.
          start: number of the first reject to look at.
          limit: rejects to find, at most.
          most: rejects to look at, at most, or a file of them more.

        Returns:
          RejectRows, with what could not be read.
        """
        found = SearchResult([], None, [])
        first_file = int(np.searchsorted(self._reject_starts, start, side="right")) - 1
        for index in range(max(0, first_file), len(self._reject_files)):
            first = int(self._reject_starts[index])
            if first - start >= most or len(found.problems) == MOST_PROBLEMS:
                return found._replace(after=first)
            try:
                rows = self._read_rejects(index)
            except UserError as error:
                found.problems.append(str(error))
                continue
            for number, row in enumerate(rows, first):
                if number < start or not _is_wanted(row, reason, key):
                    continue
                if len(found.items) == limit:
                    return found._replace(after=number)
                found.items.append(row)
        return found

    def sample(self) -> CodeSample:
        """Returns the rows in which codes are looked for; they are read once."""
        with self._sampling:
            if self._sample is None:
                self._sample = self._take_sample()
            return self._sample

    def _matches(self, query: Query, shard: int, group: int, rows: int) -> np.ndarray:
        if query.is_all:
            return np.arange(rows)
        with open_shard(self._path(shard)) as file:
            return query.matches(file.row_group(group, ["key", "label"]))

    def _rows(
        self, shard: int, group: int, chosen: np.ndarray, first: int, layout: ShardLayout
    ) -> list[BrowsedRow]:
        """Reads some rows of a row group whose own first row has the number ``first``."""
        if not len(chosen):
            return []
        table, tokens = self._tables(shard * _MOST_GROUPS + group)
        part = table.take(pa.array(chosen))
        labels = labels_of(part.column("label"))
        return [
            BrowsedRow(
                number=first + int(inside),
                slice_number=layout.slice_number,
                part=layout.part,
                key=values["key"],
                view=values["view"],
                label=int(label),
                tokens=tokens[inside].astype(np.int32).reshape(self.grid),
                crop=tuple(values["crop"]),
                mirrored=values["mirrored"],
                width=values["width"],
                height=values["height"],
            )
            for inside, label, values in zip(chosen, labels, part.to_pylist(), strict=True)
        ]

    def _read(self, shard: int, group: int) -> tuple[pa.Table, np.ndarray]:
        """Reads our columns of a row group: without the tokens, and the tokens ``[rows, h * w]``."""
        with open_shard(self._path(shard)) as file:
            table = file.row_group(group, _OURS)
            tokens = flat_tokens(file, table)
        return table.drop_columns(["tokens"]), tokens

    def _read_layout(self, shard: int) -> ShardLayout:
        path = self._path(shard)
        with open_shard(path) as file:
            check_footer(
                path, file.metadata, file.rows, self._declared, self._declared.entries[shard]["rows"]
            )
            groups = [file.footer.row_group(number).num_rows for number in range(file.footer.num_row_groups)]
            extra = tuple(name for name in file.schema.names if name not in (*_OURS, LATENTS))
            part = list(self._declared.parts).index(file.metadata.plan_hash)
            return ShardLayout(file.metadata.slice_number, part, tuple(groups), extra)

    def _groups(self, start: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields shard, row group, number of its first row and rows, from the group of a row on.

        A shard that cannot be read counts as one group.
        """
        for shard in range(max(0, self._shard_of(start)), len(self._declared.entries)):
            first = int(self._starts[shard])
            try:
                sizes = self._layouts(shard).group_rows
            except UserError:
                sizes = (self._declared.entries[shard]["rows"],)
            for group, rows in enumerate(sizes):
                if first + rows > start:
                    yield shard, group, first, rows
                first += rows

    def _place(self, number: int) -> tuple[int, int, int]:
        """Returns shard, row group and place in that group of a row."""
        if not 0 <= number < self.rows:
            raise NothingThereError(f"{self.path}: there is no row {number}")
        shard = self._shard_of(number)
        ends = np.cumsum(self._layouts(shard).group_rows)
        inside = number - int(self._starts[shard])
        group = int(np.searchsorted(ends, inside, side="right"))
        return shard, group, inside - int(ends[group - 1] if group else 0)

    def _shard_of(self, number: int) -> int:
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    def _path(self, shard: int) -> str:
        return filesystems.join(self.folder, self._declared.entries[shard]["name"])

    def _read_rejects(self, index: int) -> list[RejectRow]:
        path = filesystems.join(self.folder, self._reject_files[index]["name"])
        try:
            return read_rejects(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({first_line(error)})") from error

    def _take_sample(self) -> CodeSample:
        length = self.grid[0] * self.grid[1]
        numbers, tokens = [np.zeros(0, np.int64)], [np.zeros((0, length), np.uint16)]
        problems: list[str] = []
        groups = self._sampled_groups(problems)
        most = max(1, TOKENS_SAMPLED // length // max(1, len(groups)))
        for shard, group, first in groups:
            try:
                with open_shard(self._path(shard)) as file:
                    tokens.append(flat_tokens(file, file.row_group(group, ["tokens"]))[:most])
            except UserError as error:
                problems.append(str(error))
            else:
                numbers.append(first + np.arange(len(tokens[-1])))
        together, rows = np.concatenate(tokens), np.concatenate(numbers)
        codes, where = np.unique(together, return_index=True)
        places = [CodePlace(int(rows[i // length]), int(i % length)) for i in where]
        firsts = dict(zip(codes.tolist(), places, strict=True))
        return CodeSample(rows, together, firsts, list(dict.fromkeys(problems)))

    def _sampled_groups(self, problems: list[str]) -> list[tuple[int, int, int]]:
        """Returns shard, row group and number of its first row, of groups that lie evenly."""
        groups = {}
        for number in np.linspace(0, max(0, self.rows - 1), GROUPS_SAMPLED).round().astype(int).tolist():
            try:
                shard, group, inside = self._place(number)
                groups[shard, group] = number - inside
            except UserError as error:
                problems.append(str(error))
            except NothingThereError:
                break  # there are no rows at all
        return [(shard, group, first) for (shard, group), first in groups.items()]


def _is_wanted(row: RejectRow, reason: str, key: str) -> bool:
    return reason in ("", f"{row.stage}: {row.error}") and key.casefold() in row.key.casefold()
