"""The Parquet contract: schema, footer, bytes, and everything that is not a shard is refused."""

import dataclasses
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan import shards
from vqgan.errors import UserError
from vqgan.shards import (
    METADATA_KEY,
    Shard,
    ShardMetadata,
    ShardWriter,
    open_shard,
    rejects_name,
    shard_name,
    shard_schema,
    smallest_encoding,
    token_dtype,
)

GRID = (2, 3)


def metadata(grid: tuple[int, int] = GRID, codebook_size: int = 1024) -> ShardMetadata:
    return ShardMetadata(
        fingerprint="ab" * 32,
        codec_config={"ch": 16, "ch_mult": [1, 2], "input_range": [-1.0, 1.0]},
        codec_origin={"name": "tiny"},
        grid=grid,
        codebook_size=codebook_size,
        preprocessing={"size": 128, "filter": "lanczos"},
        plan_hash="cd" * 32,
        slice_number=17,
        slices=128,
        planned=40,
    )


def columns(start: int, stop: int) -> dict[str, Any]:
    """Column values of the rows ``start`` to ``stop``, all different from row to row."""
    rows = range(start, stop)
    return {
        "key": [f"folder/ключ-{row:05d}.jpg" for row in rows],
        "view": [row % 3 for row in rows],
        "crop": [[row, row + 1, row + 100, row + 200] for row in rows],
        "mirrored": [row % 2 == 1 for row in rows],
        "width": [640 + row for row in rows],
        "height": [480 + row for row in rows],
        "label": [None if row % 4 == 0 else row for row in rows],
    }


def grids(rows: int, codebook_size: int = 1024, grid: tuple[int, int] = GRID) -> np.ndarray:
    return np.random.default_rng(rows).integers(0, codebook_size, (rows, *grid)).astype(np.int32)


def written(
    tokens: np.ndarray, cuts: Sequence[int] = (), codebook_size: int = 1024, extra: Sequence[pa.Field] = ()
) -> bytes:
    """A shard's bytes; the rows are handed over in chunks that end at ``cuts``."""
    stream = io.BytesIO()
    given = metadata((tokens.shape[1], tokens.shape[2]), codebook_size)
    with ShardWriter(stream, given, extra) as writer:
        for start, stop in zip((0, *cuts), (*cuts, len(tokens)), strict=True):
            others = {field.name: [f"{field.name} {row}" for row in range(start, stop)] for field in extra}
            writer.write({**columns(start, stop), **others}, tokens[start:stop])
        writer.set_counts(images=len(tokens), rejects=3)
    return stream.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.parquet"
    path.write_bytes(written(grids(20)))
    return path


def opened(data: bytes) -> Shard:
    return Shard(io.BytesIO(data), "shard")


def test_names() -> None:
    assert shard_name(17, 128) == "data/tokens-00017-of-00128.parquet"
    assert rejects_name(17, 128) == "rejects/rejects-00017-of-00128.parquet"


@pytest.mark.parametrize(("codes", "kind"), [(2, pa.uint16()), (65_536, pa.uint16()), (65_537, pa.uint32())])
def test_token_dtype(codes: int, kind: pa.DataType) -> None:
    assert pa.from_numpy_dtype(token_dtype(codes)) == kind


@pytest.mark.parametrize(("codes", "kind"), [(1024, pa.uint16()), (262_144, pa.uint32())])
def test_schema(codes: int, kind: pa.DataType) -> None:
    expected = pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("view", pa.uint8(), nullable=False),
            pa.field("tokens", pa.list_(kind, 6), nullable=False),
            pa.field("crop", pa.list_(pa.int32(), 4), nullable=False),
            pa.field("mirrored", pa.bool_(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("label", pa.int32(), nullable=True),
        ]
    )
    assert shard_schema(GRID, codes) == expected
    shard = opened(written(grids(3, codes), codebook_size=codes))
    assert shard.schema.remove_metadata() == expected


def test_key_may_not_be_null() -> None:
    writer = ShardWriter(io.BytesIO(), metadata())
    writer.write({**columns(0, 1), "key": [None]}, grids(1))
    with pytest.raises(pa.ArrowInvalid, match="'key' is declared non-nullable but contains nulls"):
        writer.__exit__(None)


def test_footer_says_how_tokens_were_sampled() -> None:
    sampled = dataclasses.replace(metadata(), sampling={"prior": "ab", "seed": 7})
    assert ShardMetadata.from_json(sampled.to_json(), "shard") == sampled


def test_footer_round_trip(path: Path) -> None:
    expected = dataclasses.replace(metadata(), images=20, rejects=3)
    with Shard(str(path), "shard") as shard:
        assert shard.metadata == expected
        assert shard.rows == 20
    footer = json.loads(pq.read_metadata(path).metadata[METADATA_KEY])
    assert footer["version"] == 2
    fields = {field.name for field in dataclasses.fields(ShardMetadata)}
    # For tokens drawn from a prior, networks that JAX has not run, tokens of no grid, and latents on demand.
    assert {*footer} == {"version", *fields} - {"sampling", "engine", "layout", "latents"}


def test_footer_is_canonical() -> None:
    one, other = metadata(), metadata()
    turned = dataclasses.replace(other, codec_config=dict(reversed(other.codec_config.items())))
    assert turned.to_json() == one.to_json()


def expected_rows(rows: int) -> list[dict[str, Any]]:
    values = {**columns(0, rows), "tokens": grids(rows).reshape(rows, -1).tolist()}
    return [{name: values[name][row] for name in values} for row in range(rows)]


def test_rows_by_pyarrow(path: Path) -> None:
    assert pq.read_table(path).to_pylist() == [
        {name: row[name] for name in shard_schema(GRID, 1024).names} for row in expected_rows(20)
    ]


def test_rows_by_pandas(path: Path) -> None:
    frame = pd.read_parquet(path)
    assert frame["key"].tolist() == columns(0, 20)["key"]
    np.testing.assert_array_equal(np.stack(frame["tokens"]).reshape(-1, *GRID), grids(20))


def test_rows_by_duckdb(path: Path) -> None:
    query = "select key, tokens, crop, label from read_parquet(?) order by key"
    rows = duckdb.execute(query, [str(path)]).fetchall()
    found = [(key, list(tokens), list(crop), label) for key, tokens, crop, label in rows]
    names = ("key", "tokens", "crop", "label")
    assert found == [tuple(row[name] for name in names) for row in expected_rows(20)]


def test_rows_by_our_reader(path: Path) -> None:
    with Shard(str(path), "shard") as shard:
        batches = list(shard.batches(["key", "tokens"], rows=7))
        tokens = [shard.tokens(batch) for batch in batches]
    assert [batch.num_rows for batch in batches] == [7, 7, 6]
    assert [key for batch in batches for key in batch.column("key").to_pylist()] == columns(0, 20)["key"]
    np.testing.assert_array_equal(np.concatenate(tokens), grids(20))
    assert {array.dtype for array in tokens} == {np.dtype("int32")}


@pytest.mark.parametrize("largest", [65_535, 65_536, 262_143])
def test_large_tokens_survive(largest: int) -> None:
    tokens = np.array([[[0, largest]], [[largest - 1, 1]]], np.int32)
    with opened(written(tokens, codebook_size=largest + 1)) as shard:
        found = np.concatenate([shard.tokens(batch) for batch in shard.batches()])
    np.testing.assert_array_equal(found, tokens)


def test_no_rows() -> None:
    data = written(grids(0))
    with opened(data) as shard:
        assert shard.rows == 0
        assert shard.metadata.rejects == 3
        assert list(shard.batches()) == []
        assert shard.token_bytes() == 0
    assert pq.read_table(io.BytesIO(data)).schema.remove_metadata() == shard_schema(GRID, 1024)


def test_no_write_is_no_rows() -> None:
    stream = io.BytesIO()
    with ShardWriter(stream, metadata()):
        pass
    assert opened(stream.getvalue()).rows == 0


def test_row_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "TOKENS_PER_ROW_GROUP", 30)  # five rows of six tokens
    footer = pq.read_metadata(io.BytesIO(written(grids(23), cuts=(3, 17))))
    assert [footer.row_group(index).num_rows for index in range(footer.num_row_groups)] == [5, 5, 5, 5, 3]


def test_full_row_groups_leave_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "TOKENS_PER_ROW_GROUP", 30)
    with ShardWriter(io.BytesIO(), metadata()) as writer:
        for start in range(0, 20, 4):
            writer.write(columns(start, start + 4), grids(4))
            assert writer._pending_rows < 5
            assert sum(batch.num_rows for batch in writer._pending) == writer._pending_rows


def test_a_row_larger_than_a_group_is_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "TOKENS_PER_ROW_GROUP", 4)
    assert pq.read_metadata(io.BytesIO(written(grids(3)))).num_row_groups == 3


@settings(max_examples=30)
@given(st.data())
def test_bytes_do_not_depend_on_the_chunks(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 60))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=6)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "TOKENS_PER_ROW_GROUP", data.draw(st.sampled_from([6, 42, 1 << 20])))
        assert written(grids(rows), cuts) == written(grids(rows))


@pytest.mark.parametrize("codes", [1024, 16_384])
def test_bytes_of_many_pages_do_not_depend_on_the_chunks(codes: int) -> None:
    """Long enough for several Parquet pages in a row group; their ends must not follow the chunks."""
    tokens = grids(20_000, codes, (8, 8))
    whole = written(tokens, codebook_size=codes)
    assert written(tokens, cuts=range(37, 20_000, 1037), codebook_size=codes) == whole


def test_refuses_another_codec(path: Path, refused: Any) -> None:
    with Shard(str(path), "tokens-1") as shard:
        shard.require("ab" * 32)
        with refused("tokens-1: its tokens were made by codec abababababab, not by 121212121212"):
            shard.require("12" * 32)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1PAR1", b"not a Parquet file\n" * 9, b"\x00" * 64])
def test_not_parquet(data: bytes, refused: Any) -> None:
    with refused("shard: not a readable Parquet file .*run the command that wrote the data set again"):
        opened(data)


def test_no_such_file(tmp_path: Path, refused: Any) -> None:
    with refused("gone: not a readable Parquet file"):
        Shard(str(tmp_path / "gone"), "gone")
    with refused("gone: cannot be opened"), open_shard(str(tmp_path / "gone")):
        pass


def read_all(data: bytes) -> list[np.ndarray]:
    with opened(data) as shard:
        return [shard.tokens(batch) for batch in shard.batches()]


def test_truncated_anywhere(refused: Any) -> None:
    data = written(grids(20))
    for length in range(0, len(data), 41):
        with refused("shard: not a readable Parquet file"):
            read_all(data[:length])


def test_flipped_bit_is_refused_or_read() -> None:
    """Parquet pages have no sum of their own; whatever happens, no other error comes out."""
    data, rng = written(grids(20)), random.Random(0)
    outcomes: list[str] = []
    for _ in range(400):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            read_all(bytes(damaged))
            outcomes.append("read")
        except UserError as error:
            outcomes.append(str(error))
    assert {"read"} < set(outcomes)
    assert not any("\n" in outcome for outcome in outcomes)


def with_footer(footer: dict[bytes, bytes] | None) -> bytes:
    sink = io.BytesIO()
    table = pq.read_table(io.BytesIO(written(grids(2))))
    pq.write_table(table.replace_schema_metadata(footer), sink)
    return sink.getvalue()


def test_foreign_parquet(refused: Any) -> None:
    with refused("shard: a Parquet file, but not a token shard"):
        opened(with_footer(None))


@pytest.mark.parametrize(
    ("version", "advice"), [(3, "upgrade"), (1, "make the data set again, in a new folder")]
)
def test_other_version(version: Any, advice: str, refused: Any) -> None:
    document = {**json.loads(metadata().to_json()), "version": version, "new": 1}
    with refused(f"format version {version}, this release reads 2; {advice}"):
        opened(with_footer({METADATA_KEY: json.dumps(document).encode()}))


@pytest.mark.parametrize(
    "footer",
    [b"", b"{", b"[]", b"3", b"{}", b"\xff", b'{"version": 2}', b'{"version": 2, "grid": [2]}'],
)
def test_damaged_footer(footer: bytes, refused: Any) -> None:
    with refused("shard: damaged footer metadata"):
        opened(with_footer({METADATA_KEY: footer}))


@pytest.mark.parametrize("name", sorted(json.loads(metadata().to_json()).keys() - {"version"}))
def test_footer_without_a_field(name: str, refused: Any) -> None:
    document = json.loads(metadata().to_json())
    del document[name]
    data = with_footer({METADATA_KEY: json.dumps(document).encode()})
    if name in ("images", "rejects"):
        assert opened(data).metadata == metadata()
        return
    with refused(f"damaged footer metadata .*{name}"):
        opened(data)


@pytest.mark.parametrize("change", [{"grid": [3, 3]}, {"codebook_size": 100_000}])
def test_columns_that_contradict_the_footer(change: dict[str, Any], refused: Any) -> None:
    document = {**json.loads(metadata().to_json()), **change}
    with refused("shard: damaged .column 'tokens' is not of type fixed_size_list"):
        opened(with_footer({METADATA_KEY: json.dumps(document).encode()}))


EXTRA = [pa.field("caption", pa.string()), pa.field("url", pa.large_string())]


def test_extra_columns() -> None:
    table = pq.read_table(io.BytesIO(written(grids(3), extra=EXTRA)))
    assert table.schema.names[-2:] == ["caption", "url"]
    assert table.schema.field("url").type == pa.large_string()
    assert table.column("caption").to_pylist() == ["caption 0", "caption 1", "caption 2"]


@pytest.mark.parametrize("name", shard_schema(GRID, 2).names)
def test_extra_column_of_a_taken_name(name: str, refused: Any) -> None:
    with refused(f"column '{name}': a shard has its own column of this name; leave it out"):
        shard_schema(GRID, 2, [pa.field(name, pa.string())])


def size(tokens: pa.Table, options: dict[str, Any]) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(tokens, sink, **options, **shards.COMPRESSION)
    return int(sink.tell())


def token_table(codes: int) -> pa.Table:
    tokens = pa.array(grids(4000, codes, (8, 8)).reshape(-1).astype(token_dtype(codes)))
    return pa.table({"tokens": pa.FixedSizeListArray.from_arrays(tokens, 64)})


@pytest.mark.parametrize("codes", [256, 1024, 16_384])
def test_smallest_encoding_is_the_smaller(codes: int) -> None:
    table = token_table(codes)
    dictionary = {"use_dictionary": [shards.TOKENS_LEAF]}
    split = {"use_dictionary": False, "column_encoding": {shards.TOKENS_LEAF: "BYTE_STREAM_SPLIT"}}
    sizes = [size(table, options) for options in (dictionary, split)]
    assert size(table, smallest_encoding(table)) == min(sizes)
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize(("codes", "expected"), [(1024, "RLE_DICTIONARY"), (16_384, "BYTE_STREAM_SPLIT")])
def test_encoding_follows_the_codebook(codes: int, expected: str) -> None:
    data = written(grids(4000, codes, (8, 8)), codebook_size=codes)
    group = pq.read_metadata(io.BytesIO(data)).row_group(0)
    by_path = {group.column(index).path_in_schema: group.column(index) for index in range(8)}
    assert expected in by_path["tokens.list.element"].encodings
    assert {column.compression for column in by_path.values()} == {"ZSTD"}


@pytest.mark.parametrize(("codes", "bits"), [(1024, 10), (16_384, 14)])
def test_tokens_take_little_more_than_their_entropy(codes: int, bits: int) -> None:
    tokens = grids(4000, codes, (8, 8))
    with opened(written(tokens, codebook_size=codes)) as shard:
        stored = 8 * shard.token_bytes() / tokens.size
    assert bits - 0.2 < stored < 1.05 * bits


def test_error_inside_the_block_is_the_one_that_is_told() -> None:
    def fail() -> None:
        with ShardWriter(io.BytesIO(), metadata()) as writer:
            writer.write(columns(0, 2), grids(2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
