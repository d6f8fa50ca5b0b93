"""``vqgan tokenize --columns-out latents``: vectors beside tokens, from the plan to the reader."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from vqgan import Codec, open_tokens, shard_columns
from vqgan.shards import open_shard


@pytest.fixture
def arguments(few: Path, codec_path: str) -> list[Any]:
    return ["tokenize", "--input", few, "--codec", codec_path, "--image-size", 32, "--quiet", "--no-report"]


def identity(output: Path) -> Any:
    return json.loads((output / "manifest.json").read_text())["identity"]


def test_latents_lie_beside_the_tokens(
    arguments: list[Any], few: Path, codec_path: str, vqgan: Any, tmp_path: Path
) -> None:
    plain, vectors = tmp_path / "plain", tmp_path / "vectors"
    assert vqgan(*arguments, "--output", plain).code == 0
    with_latents = [*arguments, "--output", vectors, "--columns-out", "latents"]
    assert vqgan(*with_latents).code == 0
    assert identity(vectors) == {**identity(plain), "latents": [16, 16, 4]}
    one, other = (ds.dataset(path / "data").to_table() for path in (plain, vectors))
    assert one.equals(other.drop_columns(["latents"]))  # tokens too

    tokens = open_tokens(str(vectors), columns=["latents"])
    batch = tokens.take(np.arange(len(tokens)))
    stored = batch.columns["latents"]
    assert isinstance(stored, np.ndarray)
    assert (tokens.latent_shape, stored.dtype) == ((16, 16, 4), np.float16)
    codec = Codec.load(codec_path)
    grids = batch.tokens.reshape(-1, 16, 16)
    again = codec.quantize(stored.reshape(-1, *tokens.latent_shape))
    assert np.mean(again == grids) > 0.98  # but for ties that float16 decides
    assert open_tokens(str(plain)).latent_shape is None
    (path,) = (vectors / "data").glob("*.parquet")
    with open_shard(str(path)) as shard:
        read = np.concatenate([shard.latents(part) for part in shard.batches(["latents"])])
    np.testing.assert_array_equal(np.sort(read.reshape(len(read), -1), 0), np.sort(stored, 0))

    assert vqgan("verify", vectors, "--codec", codec_path, "--input", few).code == 0
    before = path.read_bytes()
    assert vqgan(*with_latents).code == 0
    assert path.read_bytes() == before
    assert "belongs to another run (latents: [16, 16, 4], now null)" in vqgan(*with_latents[:-2]).line
    assert "latents: null, now [16, 16, 4]" in vqgan(*arguments, "--output", plain, *with_latents[-2:]).line
    assert "other settings than it was made with (latents" in vqgan(*with_latents[:-2], "--append").line


def test_row_groups_stay_small(
    arguments: list[Any], vqgan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_columns, "LATENT_BYTES_AT_ONCE", 2 * 16 * 16 * 4 * 2)  # of two rows
    output = tmp_path / "vectors"
    assert vqgan(*arguments, "--output", output, "--columns-out", "latents", "--views", "hflip").code == 0
    (path,) = (output / "data").glob("*.parquet")
    footer = pq.read_metadata(path)
    sizes = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    assert len(sizes) > 1
    assert set(sizes) == {2}
    with open_shard(str(path)) as shard:
        assert {batch.num_rows for batch in shard.batches()} == {2}
        assert max(batch.num_rows for batch in shard.batches(["tokens"])) > 2


def test_refusals(arguments: list[Any], vqgan: Any, tmp_path: Path) -> None:
    told = vqgan(*arguments, "--output", tmp_path / "x", "--columns-out", "latens").line
    assert told.endswith("--columns-out latens: known are latents")
    assert not (tmp_path / "x").exists()
