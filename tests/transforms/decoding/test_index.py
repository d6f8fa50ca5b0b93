"""The index of a slice of images, written and read."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.decoding import index as image_index
from transforms.decoding.index import METADATA_KEY, IndexMetadata, IndexRow, IndexWriter, open_index
from vqgan.errors import UserError

METADATA = IndexMetadata("plan", 1, 3, "parquet", "png", "f" * 64, "d" * 64, planned=5)
ROWS = [IndexRow(f"k{n}", n, None if n == 1 else n, f"k{n}.png", 8, 6, n + 3, f"sum {n}") for n in range(4)]
Refused = Callable[[str], AbstractContextManager[None]]


def write(folder: Path, with_images: bool) -> Path:
    path = folder / "index"
    with path.open("wb") as stream, IndexWriter(stream, METADATA, with_images) as writer:
        for row in ROWS:
            writer.write(row, bytes(row.bytes))
        writer.set_result(images=4, rejects=1, archive=None)
    return path


@pytest.mark.parametrize("with_images", [False, True])
def test_there_and_back(tmp_path: Path, with_images: bool) -> None:
    write(tmp_path, with_images)
    with open_index(str(tmp_path), "index") as index:
        assert index.metadata == dataclasses.replace(METADATA, images=4, rejects=1)
        assert index.rows == 4
        expected = [bytes(row.bytes) if with_images else None for row in ROWS]
        assert list(index.read()) == list(zip(ROWS, expected, strict=True))


def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By rows, and by the bytes of images that are kept."""
    monkeypatch.setattr(image_index, "ROWS_PER_GROUP", 3)
    file = pq.ParquetFile(write(tmp_path, False))
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [3, 1]
    monkeypatch.setattr(image_index, "BYTES_PER_GROUP", 7)  # images of 3, 4, 5 and 6 bytes
    file = pq.ParquetFile(write(tmp_path, True))
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [2, 2]


def test_images_are_not_compressed_again(tmp_path: Path) -> None:
    group = pq.ParquetFile(write(tmp_path, True)).metadata.row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    assert columns["image.bytes"].compression == "UNCOMPRESSED"
    assert not columns["image.bytes"].is_stats_set
    assert columns["key"].compression == "ZSTD"


def test_refused(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "index"
    path.write_bytes(b"PAR1 no more")
    with refused("index: not a readable Parquet file"), open_index(str(tmp_path), "index"):
        pass
    table = pa.table({"key": ["a"]})
    pq.write_table(table, path)
    with refused("index: a Parquet file, but not an index of images"), open_index(str(tmp_path), "index"):
        pass
    for document, message in (
        (
            {**json.loads(METADATA.to_json()), "version": 9},
            "index: format version 9, this release reads 2; up",
        ),
        ({"version": 2}, "damaged footer metadata"),
        (json.loads(METADATA.to_json()), "damaged .no column 'view'"),
    ):
        with pq.ParquetWriter(path, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({METADATA_KEY: json.dumps(document).encode()})
        with refused(message), open_index(str(tmp_path), "index"):
            pass


def damaged_footers() -> Iterator[dict[str, Any]]:
    good = json.loads(METADATA.to_json())
    good["archive"] = {"name": "x.tar", "bytes": 3, "sha256": "s"}
    for name in good:
        yield {other: value for other, value in good.items() if other != name}
        for value in (None, True, -1, 10**400, [], {}, "x"):
            yield {**good, name: value}
    for name in good["archive"]:
        yield {**good, "archive": {**good["archive"], name: None}}
    yield {**good, "stranger": 1}


def test_damaged_footers() -> None:
    """One line for each, or metadata of the right types."""
    refusals = 0
    for document in damaged_footers():
        try:
            found = IndexMetadata.from_json(json.dumps(document).encode(), "index")
        except UserError as error:
            refusals += 1
            message = str(error)
        else:
            message = f"index: {type(found.images).__name__}"
        assert len(message.splitlines()) == 1
        assert message.startswith("index: ")
    assert refusals > 60


def test_a_mistake_of_ours_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise TypeError("ours")

    footer = METADATA.to_json()
    monkeypatch.setattr(IndexMetadata, "__init__", broken)
    with pytest.raises(TypeError, match="ours"):
        IndexMetadata.from_json(footer, "index")
