"""Token data sets open only if they are what their manifest says, and give rows as they were written."""

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vqgan.data import row_groups
from vqgan.data.splits import is_validation
from vqgan.data.tokens import TokenSet, all_batches, open_tokens
from vqgan.errors import UserError
from vqgan.shards import METADATA_KEY, shard_name

ROWS, L = 26, 6
EVERYTHING = ("key", "view", "crop", "mirrored", "width", "label", "caption")


def expected_tokens(codes: int = 1024) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(0, codes, (ROWS, L))
    tokens[:, 0] = np.arange(ROWS)
    return tokens


@pytest.fixture(params=[1024, 0], ids=["memory", "disk"])
def memory_mib(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_what_a_set_says(write_tokens: Any) -> None:
    path = str(write_tokens())
    tokens = open_tokens(path)
    assert len(tokens) == ROWS
    assert (tokens.path, tokens.grid, tokens.codebook_size) == (path, (2, 3), 1024)
    assert tokens.fingerprint == json.loads(Path(path, "manifest.json").read_text())["codec"]["fingerprint"]
    assert tokens.codec["name"] == "tiny"
    assert tokens.preprocessing == {"size": 16}
    assert (tokens.classes, tokens.class_names) == (7, ("cat", "dog"))
    assert tokens.histogram.dtype == np.int64
    assert tokens.histogram.tolist() == np.bincount(expected_tokens().reshape(-1), minlength=1024).tolist()


def test_rows_as_written(write_tokens: Any, memory_mib: int) -> None:
    tokens = open_tokens(str(write_tokens()), columns=EVERYTHING, memory_mib=memory_mib)
    assert tokens.in_memory == (memory_mib > 0)
    numbers = np.array([25, 0, 13, 0, 11, 12])  # in all shards, one twice
    batch = tokens.take(numbers)
    assert (batch.tokens.dtype, batch.labels.dtype) == (np.int32, np.int32)
    np.testing.assert_array_equal(batch.tokens, expected_tokens()[numbers])
    assert batch.labels.tolist() == (numbers % 7).tolist()
    found = batch.columns
    assert list(found) == list(EVERYTHING)
    assert found["key"] == [f"image-{number // 2:04d}.jpg" for number in numbers]
    assert found["view"].tolist() == (numbers % 2).tolist()
    assert found["crop"].tolist() == [[row, row + 1, row + 100, row + 200] for row in numbers]
    assert found["mirrored"].tolist() == (numbers % 2 == 1).tolist()
    assert found["width"].tolist() == (640 + numbers).tolist()
    assert found["label"] == (numbers % 7).tolist()  # a list: it may have gaps
    assert found["caption"] == [None if row % 3 == 0 else f"Bild {row}" for row in numbers]
    assert [isinstance(values, np.ndarray) for values in found.values()] == [
        False,
        True,
        True,
        True,
        True,
        False,
        False,
    ]


def test_no_such_row(write_tokens: Any, memory_mib: int) -> None:
    tokens = open_tokens(str(write_tokens()), memory_mib=memory_mib)
    for number in (-1, 26):
        with pytest.raises(IndexError, match="of 26"):
            tokens.take(np.array([3, number]))


def test_rows_without_a_class(write_tokens: Any, memory_mib: int) -> None:
    folder = write_tokens(labels=lambda row: [None, -5, 3][row % 3])
    tokens = open_tokens(str(folder), memory_mib=memory_mib)
    assert tokens.take(np.arange(6)).labels.tolist() == [-1, -1, 3, -1, -1, 3]
    assert tokens.classes == 4
    for name, label in (("plain", None), ("unknown", -5)):
        assert open_tokens(str(write_tokens(name, labels=lambda row, label=label: label))).classes == 0


def test_largest_label_without_statistics(write_tokens: Any) -> None:
    folder = write_tokens(labels=lambda row: row if row < 20 else None)
    path = folder / shard_name(1, 3)
    table, footer = pq.read_table(path), pq.read_metadata(path).metadata[METADATA_KEY]
    with pq.ParquetWriter(path, table.schema, write_statistics=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA_KEY: footer})
    record(folder, lambda manifest: manifest["shards"][1].update(bytes=path.stat().st_size))
    assert open_tokens(str(folder)).classes == 20  # rows 12 to 19 are in that shard


def test_no_bit_of_a_footer_ends_the_process(write_tokens: Any) -> None:
    """Some make pyarrow abort where it is asked for a chunk's metadata before it has read the chunk."""
    folder = write_tokens()
    path = folder / shard_name(1, 3)
    whole = path.read_bytes()
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    refusals = 0
    for bit in range(700):  # in the first row group are some
        damaged = bytearray(whole)
        damaged[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            open_tokens(str(folder), columns=["key"])
        except UserError:
            refusals += 1
    assert refusals > 50


def test_large_codebooks(write_tokens: Any, memory_mib: int) -> None:
    tokens = open_tokens(str(write_tokens(codes=70_000)), memory_mib=memory_mib)
    np.testing.assert_array_equal(tokens.take(np.arange(ROWS)).tokens, expected_tokens(70_000))
    assert expected_tokens(70_000).max() >= 1 << 16


def test_shards_may_be_empty(write_tokens: Any, memory_mib: int) -> None:
    tokens = open_tokens(str(write_tokens(sizes=(0, 26, 0))), columns=["caption"], memory_mib=memory_mib)
    np.testing.assert_array_equal(tokens.take(np.arange(ROWS)).tokens, expected_tokens())
    assert len(tokens.images.counts) == 13
    half = open_tokens(tokens.path, holdout=3, memory_mib=memory_mib)
    assert 0 < len(half) < ROWS
    np.testing.assert_array_equal(
        half.take(np.arange(len(half))).tokens, expected_tokens()[first_tokens(half)]
    )


def first_tokens(tokens: TokenSet) -> np.ndarray:
    """The numbers that the rows were written under."""
    return tokens.take(np.arange(len(tokens))).tokens[:, 0]


def test_memory_is_what_decides(write_tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqgan.data.tokens._MIB", 1)
    path = str(write_tokens())
    assert open_tokens(path, memory_mib=ROWS * (2 * L + 4)).in_memory
    assert not open_tokens(path, memory_mib=ROWS * (2 * L + 4) - 1).in_memory
    assert not open_tokens(path, columns=["key"], memory_mib=ROWS * (2 * L + 4)).in_memory


def test_few_row_groups_stay_in_memory(write_tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "ROW_GROUPS_KEPT", 2)
    tokens = open_tokens(str(write_tokens()), memory_mib=0)
    read: list[int] = []
    plain = row_groups.read_group
    monkeypatch.setattr(
        row_groups, "read_group", lambda c, s, group, *rest: read.append(group) or plain(c, s, group, *rest)
    )
    tokens.take(np.array([0, 1, 6, 2]))  # groups 0 and 1 of the first shard
    tokens.take(np.array([7, 0]))
    assert read == [0, 1]
    tokens.take(np.array([10]))
    tokens.take(np.array([0, 6]))
    assert read == [0, 1, 2, 0, 1]


def test_threads_share_what_is_read(write_tokens: Any) -> None:
    tokens = open_tokens(str(write_tokens()), memory_mib=0)
    numbers = [np.random.default_rng(seed).integers(0, ROWS, 9) for seed in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda rows: tokens.take(rows).tokens, numbers))
    for rows, batch in zip(numbers, found, strict=True):
        np.testing.assert_array_equal(batch, expected_tokens()[rows])


def in_threads(count: int, call: Any) -> list[Any]:
    """Calls with 0 to ``count - 1``, all at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def test_row_groups_are_read_side_by_side(write_tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = open_tokens(str(write_tokens()), memory_mib=0)
    plain, together = row_groups.read_group, threading.Barrier(3, timeout=60)

    def read(*args: Any) -> Any:
        together.wait()  # until three threads are reading
        return plain(*args)

    monkeypatch.setattr(row_groups, "read_group", read)
    found = in_threads(3, lambda number: tokens.take(np.array([12 * number])).tokens)
    np.testing.assert_array_equal(np.concatenate(found), expected_tokens()[[0, 12, 24]])


def test_a_row_group_at_hand_is_not_waited_for(write_tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = open_tokens(str(write_tokens()), memory_mib=0)
    tokens.take(np.array([0]))
    plain, reading, done = row_groups.read_group, threading.Event(), threading.Event()

    def read(*args: Any) -> Any:
        reading.set()
        assert done.wait(60), "the other thread waits, too"
        return plain(*args)

    monkeypatch.setattr(row_groups, "read_group", read)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(tokens.take, np.array([12]))
        assert reading.wait(60)
        assert tokens.take(np.array([1])).tokens[0, 0] == 1
        done.set()
        assert slow.result().tokens[0, 0] == 12


def both_sides(path: str, holdout: int, memory_mib: int) -> tuple[TokenSet, TokenSet]:
    return tuple(  # type: ignore[return-value]
        open_tokens(path, columns=["key"], holdout=holdout, validation=back, memory_mib=memory_mib)
        for back in (False, True)
    )


def test_views_of_an_image_are_held_back_together(write_tokens: Any, memory_mib: int) -> None:
    training, validation = both_sides(str(write_tokens()), 3, memory_mib)
    expected = np.array([is_validation(f"image-{row // 2:04d}.jpg", 3) for row in range(ROWS)])
    assert 0 < expected.sum() < ROWS
    for half, rows in ((training, np.flatnonzero(~expected)), (validation, np.flatnonzero(expected))):
        assert len(half) == len(rows)
        batch = half.take(np.arange(len(half)))
        np.testing.assert_array_equal(batch.tokens, expected_tokens()[rows])
        assert batch.columns["key"] == [f"image-{row // 2:04d}.jpg" for row in rows]
        counted = np.bincount(expected_tokens()[rows].reshape(-1), minlength=1024)
        assert half.histogram.tolist() == counted.tolist()
        assert half.classes == 7
        assert half.images.counts.tolist() == [2] * (len(rows) // 2)


def test_nothing_held_back(write_tokens: Any, refused: Any) -> None:
    path = str(write_tokens())
    none = open_tokens(path, validation=True)
    assert len(none) == 0
    assert none.histogram.tolist() == [0] * 1024
    assert list(all_batches(none, 4)) == []
    with refused("nothing to train on: all 26 rows are for validation, as one image in 1 is"):
        open_tokens(path, holdout=1)
    assert len(open_tokens(path, holdout=1, validation=True)) == ROWS
    with refused("nothing to train on: it has no rows"):
        open_tokens(str(write_tokens("empty", sizes=(0, 0))))
    with refused("one image in -2 to hold back"):
        open_tokens(path, holdout=-2)


def test_all_batches(write_tokens: Any, memory_mib: int, refused: Any) -> None:
    batches = list(all_batches(open_tokens(str(write_tokens()), memory_mib=memory_mib), 10))
    assert [len(batch.tokens) for batch in batches] == [10, 10, 6]
    np.testing.assert_array_equal(np.concatenate([batch.tokens for batch in batches]), expected_tokens())
    with refused("a batch of 0 rows"):
        next(all_batches(open_tokens(str(write_tokens("other"))), 0))


def test_images_whose_views_are_apart(write_tokens: Any) -> None:
    folder = write_tokens(sizes=(6,), group_rows=6)
    keys = ["b", "a", "b", "c", "a", "b"]
    replace_column(folder, shard_name(0, 1), "key", pa.array(keys), nullable=False)
    images = open_tokens(str(folder)).images
    assert images.rows.tolist() == [0, 2, 5, 1, 4, 3]
    assert images.counts.tolist() == [3, 2, 1]


def record(folder: Path, change: Any) -> None:
    """Changes the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_column(folder: Path, name: str, column: str, values: pa.Array, nullable: bool = True) -> None:
    """Writes a shard anew with other values, and its size into the manifest."""
    path = folder / name
    footer = pq.read_metadata(path).metadata[METADATA_KEY]
    table = pq.read_table(path)
    index = table.schema.get_field_index(column)
    table = table.set_column(index, pa.field(column, values.type, nullable), values)
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA_KEY: footer})
    sizes = {"bytes": path.stat().st_size}
    record(folder, lambda manifest: [e.update(sizes) for e in manifest["shards"] if e["name"] == name])


def test_no_data_set(tmp_path: Path, write_tokens: Any, refused: Any) -> None:
    with refused("gone: nothing there"):
        open_tokens(str(tmp_path / "gone"))
    folder = write_tokens()
    (folder / "manifest.json").unlink()
    with refused("not a finished data set"):
        open_tokens(str(folder))


def test_images_are_no_tokens(write_tokens: Any, refused: Any) -> None:
    """Their manifest is sound: nobody is told to part with it."""
    folder = write_tokens()
    record(folder, lambda manifest: (manifest.update(kind="images"), manifest["codebook"].pop("histogram")))
    with refused("holds images already; give the token data set that they were made of$"):
        open_tokens(str(folder))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.pop("grid"), r"manifest.json: damaged \(no 'grid'\)"),
        (lambda m: m.update(codec=None), "damaged"),
        (lambda m: m.update(grid=[2, 2]), "contradicts itself about the number of rows"),
        (lambda m: m["counts"].update(rows=25), "contradicts itself"),
        (lambda m: m["shards"][0].update(rows="many"), "damaged"),
        (lambda m: m.update(plan_hash="0" * 64), "plan hash is .*, but the manifest says 0{12};"),
        (
            lambda m: m["codec"].update(fingerprint="0" * 64),
            "codec is [0-9a-f]{12}, but the manifest says 0{12};",
        ),
        (lambda m: m.update(grid=[3, 2]), r"grid is \(2, 3\), but the manifest says \(3, 2\)"),
        (lambda m: m["codebook"]["histogram"].append(0), "codebook size is 1024, but the manifest says 1025"),
        (
            lambda m: m["shards"][2].update(bytes=5),
            "00002-of-00003.parquet: [0-9]+ bytes, but the manifest says 5; restore it, or move it away",
        ),
        (
            lambda m: (m["shards"][0].update(rows=13), m["shards"][1].update(rows=7)),
            "rows is 12, but the manifest says 13",
        ),
    ],
)
def test_manifest_that_disagrees(change: Any, match: str, write_tokens: Any, refused: Any) -> None:
    folder = write_tokens()
    record(folder, change)
    with refused(match):
        open_tokens(str(folder))


def test_missing_shards(write_tokens: Any, refused: Any) -> None:
    folder = write_tokens()
    (folder / shard_name(1, 3)).unlink()
    with refused(r"tokens-00001-of-00003.parquet: missing, .*; restore it, or run the command that wrote"):
        open_tokens(str(folder))


def test_shards_that_are_not_listed_or_are_twice(write_tokens: Any, refused: Any) -> None:
    with refused("some slices of its plan are there twice"):
        open_tokens(str(write_tokens(footer={"slice_number": 0})))
    with refused("number of shards is 4, but the manifest says 3"):
        open_tokens(str(write_tokens("four", footer={"slices": 4})))
    folder = write_tokens("other-plan", footer={"plan_hash": "ab"})
    with refused("plan hash is ab, but"):
        open_tokens(str(folder))


def test_foreign_files(write_tokens: Any, refused: Any) -> None:
    folder = write_tokens()
    path = folder / shard_name(1, 3)
    path.write_bytes(bytes(path.stat().st_size))
    with refused("not a readable Parquet file"):
        open_tokens(str(folder))


def test_another_codec_or_grid(write_tokens: Any, refused: Any) -> None:
    folder = str(write_tokens())
    own = open_tokens(folder).fingerprint
    assert len(open_tokens(folder, fingerprint=own, grid=(2, 3))) == ROWS
    with refused(rf"made by codec {own[:12]} \(tiny\), not by {'ef' * 6} \(f16-1024\);"):
        open_tokens(folder, fingerprint="ef" * 32, codec_name="f16-1024")
    with refused(rf"made by codec {own[:12]} \(tiny\), not by {'ef' * 6};"):
        open_tokens(folder, fingerprint="ef" * 32)
    with refused("its grids have 2 rows of 3 tokens, not 3 rows of 2"):
        open_tokens(folder, grid=(3, 2))


def test_unknown_columns(write_tokens: Any, refused: Any) -> None:
    folder = str(write_tokens())
    with refused("no column 'captions' besides the tokens; did you mean 'caption'"):
        open_tokens(folder, columns=["captions"])
    with refused("no column 'tokens' besides the tokens; there are key, view"):
        open_tokens(folder, columns=["tokens"])


def test_columns_that_differ_between_shards(write_tokens: Any, refused: Any) -> None:
    folder = write_tokens()
    replace_column(folder, shard_name(1, 3), "caption", pa.array(range(8)))
    assert len(open_tokens(str(folder))) == ROWS
    with refused("00001-of-00003.parquet: its column 'caption' is int64, elsewhere string;"):
        open_tokens(str(folder), columns=["caption"])


def grid_array(tokens: list[list[int | None] | None]) -> pa.Array:
    return pa.array(tokens, pa.list_(pa.uint16(), L))


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ([5, 1, 1024, 3, 4, 5], "token 1024 is outside of a codebook of 1024 codes"),
        ([5, 1, None, 3, 4, 5], "rows without tokens"),
        (None, "damaged"),  # Arrow says so
    ],
)
def test_tokens_that_cannot_be(
    bad: Any, match: str, write_tokens: Any, refused: Any, memory_mib: int
) -> None:
    folder = write_tokens()
    rows = [[row] * L for row in range(8)]
    replace_column(folder, shard_name(1, 3), "tokens", grid_array([*rows[:7], bad]))
    with refused(f"00001-of-00003.parquet: .*{match}"):
        open_tokens(str(folder), memory_mib=memory_mib).take(np.array([0, 12]))


def test_damaged_pages(write_tokens: Any, refused: Any, memory_mib: int) -> None:
    folder = write_tokens()
    path = folder / shard_name(1, 3)
    group = pq.read_metadata(path).row_group(0)
    chunk = next(
        c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith("tokens")
    )
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with refused("00001-of-00003.parquet: damaged .*; restore it, or move it away"):
        open_tokens(str(folder), memory_mib=memory_mib).take(np.array([0, 12]))


def test_shards_that_vanish(write_tokens: Any, refused: Any) -> None:
    folder = write_tokens()
    tokens = open_tokens(str(folder), memory_mib=0)
    shutil.rmtree(folder)
    with refused("00001-of-00003.parquet: cannot be opened"):
        tokens.take(np.array([12]))
    with refused("cannot be opened"):
        _ = tokens.images


def test_rows_without_a_key(write_tokens: Any, refused: Any) -> None:
    folder = write_tokens()
    replace_column(folder, shard_name(1, 3), "key", pa.array(["a"] * 7 + [None]))
    assert len(open_tokens(str(folder))) == ROWS
    with refused("00001-of-00003.parquet: damaged"):
        open_tokens(str(folder), holdout=3)


def test_uris(write_tokens: Any) -> None:
    folder = write_tokens()
    assert len(open_tokens(folder.as_uri(), memory_mib=0).take(np.arange(ROWS)).tokens) == ROWS


def test_needs_neither_jax_nor_grain(write_tokens: Any) -> None:
    program = (
        "import sys\n"
        "from vqgan.data.tokens import open_tokens\n"
        "from vqgan.data.token_batches import token_batches\n"
        f"next(token_batches([open_tokens({str(write_tokens())!r})], 4, 0))\n"
        "print(sorted({'jax', 'grain', 'flax', 'apache_beam'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[]\n", done.stderr
