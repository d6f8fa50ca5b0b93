"""Small token data sets, written without a pipeline."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vqgan import shards
from vqgan.manifest import FORMAT_VERSION
from vqgan.shards import DATA_FOLDER, ShardMetadata, ShardWriter, shard_name

Write = Callable[..., Path]


def token_rows(rows: int, length: int, codes: int) -> np.ndarray:
    """int32 ``[rows, length]``; the first token of a row is its number."""
    tokens = np.random.default_rng(0).integers(0, codes, (rows, length)).astype(np.int32)
    tokens[:, 0] = np.arange(rows)
    return tokens


def columns(rows: range, views: int, labels: Sequence[int | None]) -> dict[str, list[Any]]:
    """Column values of some rows, which differ from row to row."""
    return {
        "key": [f"image-{row // views:04d}.jpg" for row in rows],
        "view": [row % views for row in rows],
        "crop": [[row, row + 1, row + 100, row + 200] for row in rows],
        "mirrored": [row % 2 == 1 for row in rows],
        "width": [640 + row for row in rows],
        "height": [480] * len(rows),
        "label": [labels[row] for row in rows],
        "caption": [None if row % 3 == 0 else f"Bild {row}" for row in rows],
    }


def describe(
    folder: Path, names: Sequence[str], rows: Sequence[int], tokens: np.ndarray, shard: ShardMetadata
) -> dict[str, Any]:
    """The manifest of finished shards, as far as a reader needs it."""
    return {
        "version": FORMAT_VERSION,
        "plan_hash": shard.plan_hash,
        "identity": {"preprocessing": {"size": 16}, "source": {"class_names": ["cat", "dog"]}},
        "codec": {"name": shard.codec_origin["name"], "fingerprint": shard.fingerprint},
        "grid": list(shard.grid),
        "counts": {"rows": sum(rows)},
        "shards": [
            {"name": name, "rows": count, "bytes": (folder / name).stat().st_size}
            for name, count in zip(names, rows, strict=True)
        ],
        "codebook": {"histogram": np.bincount(tokens.reshape(-1), minlength=shard.codebook_size).tolist()},
    }


def write_data_set(
    folder: Path,
    sizes: Sequence[int] = (12, 8, 6),
    *,
    views: int = 2,
    group_rows: int = 5,
    grid: tuple[int, int] = (2, 3),
    codes: int = 1024,
    codec: str = "tiny",
    labels: Callable[[int], int | None] = lambda row: row % 7,
    footer: Mapping[str, Any] | None = None,
    caption: bool = True,
) -> Path:
    """A finished data set with one shard for each of ``sizes``; ``footer`` changes the second one's."""
    (folder / DATA_FOLDER).mkdir(parents=True)
    length = grid[0] * grid[1]
    tokens = token_rows(sum(sizes), length, codes)
    known = [labels(row) for row in range(sum(sizes))]
    metadata = ShardMetadata(
        fingerprint=hashlib.sha256(codec.encode()).hexdigest(),
        codec_config={},
        codec_origin={"name": codec},
        grid=grid,
        codebook_size=codes,
        preprocessing={"size": 16},
        plan_hash=hashlib.sha256(folder.name.encode()).hexdigest(),
        slice_number=0,
        slices=len(sizes),
        planned=0,
    )
    names = [shard_name(number, len(sizes)) for number in range(len(sizes))]
    extra = [pa.field("caption", pa.string())] if caption else []
    start = 0
    for number, size in enumerate(sizes):
        changes = dict(footer or {}) if number == 1 else {}
        shard = dataclasses.replace(metadata, **{"slice_number": number, **changes})
        rows = range(start, start + size)
        with (folder / names[number]).open("wb") as file, pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards, "TOKENS_PER_ROW_GROUP", group_rows * length)
            with ShardWriter(file, shard, extra) as writer:
                if size:
                    writer.write(columns(rows, views, known), tokens[start : start + size].reshape(-1, *grid))
        start += size
    manifest = describe(folder, names, sizes, tokens, metadata)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def write_tokens(tmp_path: Path) -> Write:
    """Writes a finished data set of 26 rows in three shards, or as asked, and gives its folder."""

    def write(name: str = "tokens", sizes: Sequence[int] = (12, 8, 6), **changes: Any) -> Path:
        return write_data_set(tmp_path / name, sizes, **changes)

    return write


@pytest.fixture(scope="session")
def token_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 26 rows that no test changes."""
    return write_data_set(tmp_path_factory.mktemp("sets") / "tokens")


@pytest.fixture(scope="session")
def large_token_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 rows in 100 row groups, likewise."""
    return write_data_set(tmp_path_factory.mktemp("sets") / "large", (400, 350, 250), group_rows=10, views=1)
