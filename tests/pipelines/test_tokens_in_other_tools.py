"""A token data set is a folder that other tools open with one call; all of them see the same rows."""

import importlib.util
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest

from vqgan.data.token_batches import token_batches
from vqgan.data.tokens import all_batches, open_tokens

EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_tokens.py"
ROWS = 22
Table = dict[tuple[str, int], list[int]]
LoadDataset = Callable[..., Any]


@pytest.fixture(scope="module")
def tokens(labelled: Path) -> Path:
    """The data set, as ``vqgan tokenize`` has left it."""
    return labelled


@pytest.fixture(scope="module")
def ours(tokens: Path) -> Table:
    """What our own reader gives."""
    (batch,) = all_batches(open_tokens(str(tokens), columns=("key", "view")), 100)
    rows = zip(batch.columns["key"], batch.columns["view"], batch.tokens, strict=True)
    found = table(rows)
    assert len(found) == ROWS
    assert len({tuple(row) for row in found.values()}) > ROWS // 2, "tokens tell rows apart"
    return found


def table(rows: Iterable[tuple[Any, Any, Any]]) -> Table:
    """Rows of any tool by key and view; none of them twice."""
    listed = [((str(key), int(view)), [int(token) for token in tokens]) for key, view, tokens in rows]
    assert len(dict(listed)) == len(listed)
    return dict(listed)


def columns(frame: Any) -> Table:
    return table(zip(frame["key"], frame["view"], frame["tokens"], strict=True))


def test_datasets(tokens: Path, ours: Table, load_dataset: LoadDataset, loading: Any) -> None:
    loaded = load_dataset(tokens)
    assert list(loaded) == ["train"]
    assert loaded["train"].num_rows == ROWS
    assert columns(loaded["train"].to_dict()) == ours
    length = loaded["train"].features["tokens"].length
    assert loaded["train"].features["tokens"] == loading.List(loading.Value("uint16"), length=length)
    assert set(loaded["train"]["label"]) == {0, 1}
    assert loaded["train"].with_format("numpy")[:3]["tokens"].shape == (3, length)


def test_datasets_as_a_stream(tokens: Path, ours: Table, load_dataset: LoadDataset) -> None:
    stream = load_dataset(tokens, streaming=True)
    assert list(stream) == ["train"]
    assert table((row["key"], row["view"], row["tokens"]) for row in stream["train"]) == ours


def test_datasets_rejects(tokens: Path, load_dataset: LoadDataset) -> None:
    rejected = load_dataset(tokens, "rejects")["train"]
    assert rejected["key"][:] == ["test/broken.jpg"]
    assert rejected["stage"][:] == ["decode"]


def test_pandas(tokens: Path, ours: Table) -> None:
    frame = pd.read_parquet(tokens / "data")
    assert len(frame) == ROWS
    assert columns(frame) == ours
    assert len(pd.read_parquet(tokens / "rejects")) == 1


def test_pyarrow(tokens: Path, ours: Table) -> None:
    dataset = ds.dataset(tokens / "data")
    assert dataset.count_rows() == ROWS
    assert columns(dataset.to_table().to_pydict()) == ours
    assert ds.dataset(tokens / "rejects").count_rows() == 1


def test_duckdb(tokens: Path, ours: Table) -> None:
    where = f"from '{tokens}/data/*.parquet'"
    assert duckdb.sql(f"select count(*) {where}").fetchall() == [(ROWS,)]
    assert table(duckdb.sql(f"select key, view, tokens {where}").fetchall()) == ours


def test_duckdb_over_the_whole_folder(tokens: Path) -> None:
    """Plan and rejects are Parquet too, with columns of their own; docs/data-format.md says so."""
    everything = f"'{tokens}/**/*.parquet'"
    images, rejected = ROWS // 2, 1
    planned = images + rejected
    assert duckdb.sql(f"select count(*) from {everything}").fetchall() == [(ROWS + planned + rejected,)]
    with pytest.raises(duckdb.InvalidInputException, match="schema mismatch in glob"):
        duckdb.sql(f"select key, tokens from {everything}").fetchall()


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: pl.read_parquet(folder / "*.parquet"),
        lambda folder: pl.scan_parquet(folder / "*.parquet").collect(),
        lambda folder: pl.read_parquet(folder),
    ],
    ids=["read", "scan", "folder"],
)
def test_polars(tokens: Path, ours: Table, read: Callable[[Path], pl.DataFrame]) -> None:
    frame = read(tokens / "data")
    assert frame.height == ROWS
    assert columns(frame) == ours
    (length,) = {len(row) for row in ours.values()}
    assert frame.schema["tokens"] == pl.Array(pl.UInt16, length)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed: its DataLoader was NOT TESTED")


def test_torch_data_loader(tokens: Path, torch: Any) -> None:
    """One round of ``examples/torch_tokens.py`` has every row once."""
    spec = importlib.util.spec_from_file_location("torch_tokens", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    opened = open_tokens(str(tokens))
    loader = torch.utils.data.DataLoader(
        example.Tokens(token_batches([opened], batch_size=11, seed=0)), batch_size=None
    )
    batches = [batch for _, batch in zip(range(2), loader, strict=False)]
    assert {batch.dtype for pair in batches for batch in pair} == {torch.int64}
    found = [
        (label, *row)
        for grids, labels in batches
        for label, row in zip(labels.tolist(), grids.tolist(), strict=True)
    ]
    (expected,) = all_batches(opened, 100)
    rows = np.concatenate([expected.labels[:, None], expected.tokens], axis=1)
    assert sorted(found) == sorted(map(tuple, rows.tolist()))


def test_torch_example(
    tokens: Path, torch: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tokens)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1] == "position: 24"
