"""Captions from columns of Parquet, in every form that is taken."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan.data.captions import read_captions
from vqgan.errors import UserError


def write(
    folder: Path, values: list[Any], kind: pa.DataType, keys: list[str] | None = None, **names: str
) -> str:
    path = folder / "captions.parquet"
    keys = keys or [f"k{number}" for number in range(len(values))]
    pq.write_table(pa.table({names.get("key", "key"): keys, "caption": pa.array(values, kind)}), path)
    return f"{path}:caption"


FLOAT = pa.float32()
ONE = [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (pa.list_(pa.list_(FLOAT, 2)), [ONE, None, ONE[:1]], {"k0": [ONE], "k2": [ONE[:1]]}),
        (pa.list_(pa.list_(FLOAT)), [ONE, [], ONE[:1]], {"k0": [ONE], "k2": [ONE[:1]]}),
        (pa.large_list(pa.list_(pa.float64(), 2)), [ONE], {"k0": [ONE]}),
        (pa.list_(pa.list_(pa.float16(), 2)), [[[1, 2]]], {"k0": [ONE[:1]]}),
        (pa.list_(FLOAT), [ONE[0], None, ONE[1]], {"k0": [[ONE[0]]], "k2": [[ONE[1]]]}),
        (
            pa.list_(pa.list_(pa.list_(FLOAT, 2))),
            [[ONE, ONE[:1]], [], [ONE[1:]]],
            {"k0": [ONE, ONE[:1]], "k2": [ONE[1:]]},
        ),
    ],
)
def test_vectors(tmp_path: Path, kind: pa.DataType, values: list[Any], expected: dict[str, Any]) -> None:
    found = read_captions(write(tmp_path, values, kind), vectors=True)
    shown = {key: [found[n].tolist() for n in numbers] for key, numbers in found.numbers.items()}  # type: ignore[union-attr]
    assert shown == expected
    assert found.width == 2
    assert found.longest == max(len(caption) for captions in expected.values() for caption in captions)


def test_texts_in_lists_and_in_rows_of_one_key(tmp_path: Path) -> None:
    found = read_captions(
        write(tmp_path, [["a", "b"], None, ["", "c"]], pa.list_(pa.string())), vectors=False
    )
    assert found.texts == ["a", "b", "c"]
    assert dict(found.numbers) == {"k0": [0, 1], "k2": [2]}
    rows = write(tmp_path, ["a", "b", None], pa.string(), ["x", "x", "y"], key="id")
    found = read_captions(rows, vectors=False)
    assert dict(found.numbers) == {"x": [0, 1]}
    assert found.longest == 0


def test_categories_are_texts(tmp_path: Path) -> None:
    found = read_captions(
        write(tmp_path, ["a", "b", "a", None], pa.dictionary(pa.int8(), pa.string())), vectors=False
    )
    assert found.texts == ["a", "b", "a"]


def test_keys_that_are_missing_or_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"key": ["x", None], "caption": ["a", "b"]}), path)
    assert dict(read_captions(f"{path}:caption", vectors=False).numbers) == {"x": [0]}
    for keys, kind in [([{"a": 1}], "struct<a: int64>"), ([b"\xff"], "binary")]:
        pq.write_table(pa.table({"key": keys, "caption": ["a"]}), path)
        with pytest.raises(UserError, match=f"its column key is {kind} and no text .* give the keys"):
            read_captions(f"{path}:caption", vectors=False)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=5))
def test_any_ragged_captions(tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]]) -> None:
    """Each caption is found as it was written, whatever is empty around it."""
    if not sum(map(sum, lengths)):
        return
    count = iter(range(100))
    values = [[[[float(next(count)), 0.5] for _ in range(t)] for t in row] for row in lengths]
    address = write(tmp_path_factory.mktemp("any"), values, pa.list_(pa.list_(pa.list_(FLOAT, 2))))
    found = read_captions(address, vectors=True)
    for number, row in enumerate(values):
        expected = [caption for caption in row if caption]
        assert [np.asarray(found[n]).tolist() for n in found.numbers.get(f"k{number}", ())] == expected


def test_the_sum_is_of_what_it_says(tmp_path: Path) -> None:
    first = read_captions(write(tmp_path, ["a", "b"], pa.string()), vectors=False).sha256
    assert read_captions(write(tmp_path, ["a", "b"], pa.string()), vectors=False).sha256 == first
    assert read_captions(write(tmp_path, ["a", "c"], pa.string()), vectors=False).sha256 != first


@pytest.mark.parametrize(
    ("kind", "values", "vectors", "message"),
    [
        (pa.string(), ["a"], True, "this column is string; captions as vectors are"),
        (pa.list_(FLOAT, 1), [[1.0]], False, "captions as texts are string or"),
        (pa.list_(pa.list_(FLOAT)), [[[1.0], [1.0, 2.0]]], True, "vectors of 1 and of 2 numbers"),
        (pa.list_(pa.list_(FLOAT)), [[[1.0, float("nan")]]], True, "missing or not finite"),
        (pa.list_(FLOAT), [[], []], True, "vectors of no numbers"),
        (pa.string(), [None, "", "  "], False, "no caption in it"),
        (pa.list_(pa.list_(FLOAT, 2)), [None, []], True, "no caption in it"),
    ],
)
def test_refused(tmp_path: Path, kind: pa.DataType, values: list[Any], vectors: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_captions(write(tmp_path, values, kind), vectors=vectors)


def test_refused_files(tmp_path: Path) -> None:
    address = write(tmp_path, ["a"], pa.string())
    with pytest.raises(UserError, match="no column text; it has key, caption"):
        read_captions(address.replace(":caption", ":text"), vectors=False)
    with pytest.raises(UserError, match="name the column, too"):
        read_captions(str(tmp_path / "captions.parquet"), vectors=False)
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_captions(str(tmp_path / "nothing.parquet:caption"), vectors=False)
    with pytest.raises(UserError, match="no column key"):
        read_captions(write(tmp_path, ["a"], pa.string(), key="name"), vectors=False)
