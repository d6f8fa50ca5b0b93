"""Rejects files: every field survives, whatever the message."""

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from transforms.sharded import rejects
from transforms.sharded.rejects import RejectRow, one_line, reject_of_error, reject_of_plan
from transforms.sources import Entry


def test_round_trip(tmp_path: Path) -> None:
    rows = [
        RejectRow("a/ä.jpg", "decode", "OSError", "it is cut off", 2**33, "0" * 64),
        RejectRow("", "read", "FileNotFoundError", "no such file", None, None),
    ]
    path = str(tmp_path / "rejects.parquet")
    rejects.write_rejects(path, rows)
    assert rejects.read_rejects(path) == rows
    assert pq.read_schema(path).equals(rejects.REJECT_SCHEMA)
    assert [entry.name for entry in tmp_path.iterdir()] == ["rejects.parquet"]


def test_from_error() -> None:
    row = reject_of_error("k", "decode", "OSError", "two\n\tlines ", b"data")
    assert row == RejectRow("k", "decode", "OSError", "two lines", 4, hashlib.sha256(b"data").hexdigest())
    empty = reject_of_error("k", "read", "EmptyFile", "", b"")
    assert (empty.size, empty.sha256) == (0, hashlib.sha256(b"").hexdigest())
    assert reject_of_error("k", "read", "OSError", "x", None)[4:] == (None, None)


def test_from_plan() -> None:
    assert reject_of_plan(Entry("k", "f", size=9, error="cut off")) == RejectRow(
        "k", "plan", "Damaged", "cut off", 9, None
    )
    assert reject_of_plan(Entry("k", "f", error="same bytes as a"))[2:5] == (
        "Duplicate",
        "same bytes as a",
        None,
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\r\nb\x0bc\u2028d", "a b c d"),
        ("  ", ""),
        ("\udce9t\ud800", "\\udce9t\\ud800"),
        ("x" * 501, "x" * 499 + "…"),
        ("x" * 500, "x" * 500),
    ],
)
def test_one_line(text: str, line: str) -> None:
    assert one_line(text) == line
