"""What is read back from a finished slice."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.tokenize_images import TokenizeConfig
from transforms.summary import describe_file, summarize
from vqgan.errors import UserError

Configure = Callable[..., TokenizeConfig]
Run = Callable[[TokenizeConfig], dict[str, Any]]


@pytest.fixture
def out(configure: Configure, run: Run, photos: Path, tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number, path in enumerate(sorted(photos.iterdir())[:8]):
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes() if number else b"no image")
    run(configure(tmp_path / "in", slice_size=8))
    return tmp_path / "out"


def test_summary(out: Path) -> None:
    found = summarize(str(out), 0, 1, seconds=1.5)
    (shard,), (rejects,) = out.glob("data/tokens-*"), out.glob("rejects/rejects-*")
    assert found.shard.sha256 == hashlib.sha256(shard.read_bytes()).hexdigest()
    assert found.shard.bytes == shard.stat().st_size
    assert found.reject_file is not None
    assert found.reject_file.name == f"rejects/{rejects.name}"
    assert found.reject_file.sha256 == hashlib.sha256(rejects.read_bytes()).hexdigest()
    assert (found.planned, found.images, found.rejects, found.shard.rows) == (8, 7, 1, 7)
    assert found.reject_reasons == {"decode: UnidentifiedImageError": 1}
    tokens = np.array(pq.read_table(shard).column("tokens").to_pylist()).ravel()
    np.testing.assert_array_equal(found.histogram, np.bincount(tokens, minlength=64))
    assert 0 < found.token_bytes < found.shard.bytes


def test_every_column_is_read(out: Path) -> None:
    """Damage in any column must be seen before a manifest vouches for the file."""
    (path,) = out.glob("data/tokens-*")
    footer = pq.ParquetFile(path).metadata.row_group(0)
    whole = path.read_bytes()
    for column in range(footer.num_columns):
        start = footer.column(column).dictionary_page_offset or footer.column(column).data_page_offset
        data = bytearray(whole)
        data[start : start + 12] = b"\xff" * 12
        path.write_bytes(data)
        with pytest.raises(UserError, match="damaged"):
            summarize(str(out), 0, 1, seconds=None)


def test_large_files_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transforms.summary.CHUNK", 10)
    (tmp_path / "a").write_bytes(b"0123456789" * 10 + b"x")
    found = describe_file(str(tmp_path), "a", 5)
    assert (found.rows, found.bytes) == (5, 101)
    assert found.sha256 == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
