"""Examples with the same bytes: the least key stays, the others name it."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from transforms.sharded.slices import collect
from transforms.sources import Entry, Example
from transforms.tokenizing import job
from transforms.tokenizing.job import mark_duplicates


class MemorySource:
    """Examples from a dictionary; a missing one cannot be read."""

    shuffles = True

    def __init__(self, contents: dict[str, bytes]):
        self.contents = contents
        self.read_keys: list[str] = []

    def fields(self) -> list[pa.Field]:
        return []

    def list(self) -> Iterator[Entry]:
        yield from (Entry(key, key) for key in self.contents)

    def read(self, entries: Sequence[Entry]) -> Iterator[Any]:
        for entry in entries:
            self.read_keys.append(entry.key)
            yield lambda key=entry.key: Example(self.contents[key], None, {})


def errors(source: MemorySource, entries: Sequence[Entry], threads: int = 3) -> dict[str, str | None]:
    marked = mark_duplicates(source, collect(entries), threads)
    assert marked.column("key").to_pylist() == [entry.key for entry in entries]
    return dict(zip(marked.column("key").to_pylist(), marked.column("error").to_pylist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_the_least_key_stays_whatever_the_order(seed: int) -> None:
    source = MemorySource({"d": b"1", "b": b"1", "c": b"2", "a": b"3", "e": b"1", "f": b"2"})
    entries = [Entry(key, key) for key in source.contents]
    random.Random(seed).shuffle(entries)
    assert errors(source, entries) == {
        "a": None,
        "b": None,
        "c": None,
        "d": "same bytes as b",
        "e": "same bytes as b",
        "f": "same bytes as c",
    }


def test_unreadable_and_damaged_examples_stay_as_they_are() -> None:
    source = MemorySource({"a": b"1", "c": b"1"})
    entries = [Entry("x", "x"), Entry("y", "y"), Entry("a", "a", error="damaged"), Entry("c", "c")]
    assert errors(source, entries) == {"x": None, "y": None, "a": "damaged", "c": None}
    assert source.read_keys == ["x", "y", "c"]


def test_more_examples_than_the_window() -> None:
    count = 3 * job.WINDOW
    source = MemorySource({f"{number:04}": bytes([number % 50]) for number in range(count)})
    found = errors(source, list(source.list()), threads=4)
    assert sum(error is None for error in found.values()) == 50
    assert all(error == f"same bytes as {int(key) % 50:04}" for key, error in found.items() if error)


def test_nothing_else_changes() -> None:
    source = MemorySource({"a": b"1", "b": b"1"})
    table = collect([Entry("b", "f", 1, 2, 3, "{}", None), Entry("a", "g", 4, 5)])
    marked = mark_duplicates(source, table, 1)
    assert marked.schema == table.schema
    assert marked.drop_columns("error") == table.drop_columns("error")
