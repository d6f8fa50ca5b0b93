"""What has become of the files of an input since it was planned."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from transforms.sharded.plan import read_slices
from transforms.sharded.slices import Slices
from transforms.sources.base import Entry
from transforms.sources.reading import change

_SEEN = ("file", "file_size", "modified")


class InputChanges(NamedTuple):
    """What has become of the files of an input since a plan was written.

    Attributes:
      lines: one for each file that is another now, or gone, or new.
      copied: the files are the same, but every one of several has another time, as after copying a corpus.
    """

    lines: list[str]
    copied: bool


def input_changes(output: str, slices: Slices) -> InputChanges:
    """Compares the files that a plan was made of with those that are there now, by size and time.

    One file of several that has another time has changed, and so has the only one. That all have another
    time, but the sizes that they had, is what copying does.

    Args:
      output: folder with a plan.
      slices: of the plan of the input as it is now.

    Raises:
      UserError: a file of keys is gone or damaged.
    """
    new = dataclasses.replace(slices, entries=slices.entries.select(_SEEN))
    if _is_same(read_slices(output, _SEEN), new):  # slice by slice: a join of all files takes far more memory
        return InputChanges([], False)
    both = _files(pa.concat_tables(read_slices(output, _SEEN)).cast(new.entries.schema)).join(
        _files(new.entries), "file", join_type="full outer", right_suffix="_2"
    )
    sizes = pc.fill_null(pc.not_equal(both.column(_SIZE), both.column(f"{_SIZE}_2")), True)
    times = pc.fill_null(pc.not_equal(both.column(_TIME), both.column(f"{_TIME}_2")), False)
    copied = both.num_rows > 1 and not pc.any(sizes).as_py() and bool(pc.all(times).as_py())
    changed = both.filter(sizes if copied else pc.or_(sizes, times)).sort_by("file")
    return InputChanges([_change(**row) for row in changed.to_pylist()], copied)


def _is_same(old: Iterable[pa.Table], new: Slices) -> bool:
    """Tells whether all slices are of the same files in the same order, with the same sizes and times."""
    pairs = itertools.zip_longest(old, new)
    return all(a is not None and b is not None and a.equals(b.cast(a.schema)) for a, b in pairs)


_SIZE, _TIME = "file_size_max", "modified_max"


def _files(entries: pa.Table) -> pa.Table:
    """Returns each file that was seen, once."""
    there = entries.filter(pc.greater_equal(entries.column("file_size"), 0))
    return there.group_by("file").aggregate([("file_size", "max"), ("modified", "max")])


def _change(
    file: str,
    file_size_max: int | None,
    modified_max: int | None,
    file_size_max_2: int | None,
    modified_max_2: int | None,
) -> str:
    if file_size_max is None or file_size_max_2 is None:
        return f"{file} is {'new' if file_size_max is None else 'not there any more'}"
    seen = Entry("", file, file_size=file_size_max, modified=modified_max)
    return f"{file} has changed since it was planned: {change(seen, file_size_max_2, modified_max_2)}"
