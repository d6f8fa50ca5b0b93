"""One shard becomes the images of one slice: what comes out, what is rejected, what is kept."""

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import decode_tokens
from pipelines.decode_tokens import DecodeTokensConfig, PlannedDecode
from pipelines.tokenize_images import TokenizeConfig
from transforms.decoding.image_files import stored_images
from transforms.decoding.image_format import ImageFormat
from transforms.decoding.index import INDEX_SCHEMA
from transforms.decoding.manifest import ImageTotals
from transforms.images.crops import Geometry
from transforms.sharded import rejects
from transforms.sharded.job import finished_slice, make_all, make_slice
from vqgan.codec import Codec
from vqgan.errors import UserError
from vqgan.shards import METADATA_KEY, Shard

Configure = Callable[..., TokenizeConfig]
Run = Callable[[TokenizeConfig], dict[str, Any]]
Decode = Callable[..., dict[str, Any]]


def carry_out(prepared: PlannedDecode, beam_args: Any = ()) -> None:
    """What the Beam pipeline does, in a plain loop."""
    make_all(prepared.job, prepared.plan, lambda images, rejects: None)


@pytest.fixture
def tokens(configure: Configure, run: Run, photos: Path, tmp_path: Path) -> Path:
    """Two shards of ten photographs, two views each."""
    folder = tmp_path / "in" / "Mixed"
    folder.mkdir(parents=True)
    for path in sorted(photos.iterdir())[:10]:
        shutil.copy(path, folder.parent if path.name < "l" else folder)
    source = dataclasses.replace(configure(folder.parent).source, folder_labels=True)
    run(configure(source, geometry=Geometry(image_size=32, views="hflip")))
    return tmp_path / "out"


@pytest.fixture
def decode(tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Decode:
    """A whole run or rerun into ``images``, with the pipeline as a plain loop in place of Beam."""
    monkeypatch.setattr(decode_tokens, "_run_pipeline", carry_out)

    def decode(**changes: Any) -> dict[str, Any]:
        config = DecodeTokensConfig(
            tokens=str(tokens),
            output=str(tmp_path / "images"),
            batch_size=4,
            threads=2,
            report=False,
            quiet=True,
        )
        return decode_tokens.run_decode(dataclasses.replace(config, **changes), [])

    return decode


def token_rows(tokens: Path) -> dict[tuple[str, int], np.ndarray]:
    rows = {}
    for path in sorted(tokens.glob("data/*")):
        with Shard(str(path), path.name) as shard:
            for batch in shard.batches():
                keys = zip(batch.column("key").to_pylist(), batch.column("view").to_pylist(), strict=True)
                rows.update(zip(keys, shard.tokens(batch), strict=True))
    return rows


def index_of(output: Path) -> pa.Table:
    paths = sorted(output.glob("*/images-*.parquet"))
    assert {path.parent.name for path in paths} <= {"index", "data"}
    return pa.concat_tables([pq.read_table(path) for path in paths])


def pixels_of(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrites a shard with other rows, and mends the manifest as its maker would have written it."""
    file = pq.ParquetFile(path)
    table, footer = change(file.read()), file.metadata.metadata
    file.close()
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA_KEY: footer[METADATA_KEY]})
    manifest = json.loads((path.parents[1] / "manifest.json").read_text())
    data = path.read_bytes()
    for entry in manifest["shards"]:
        if entry["name"] == f"data/{path.name}":
            entry.update(rows=table.num_rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (path.parents[1] / "manifest.json").write_text(json.dumps(manifest))


def with_tokens(table: pa.Table, change: Callable[[list[Any]], None]) -> pa.Table:
    values = table.column("tokens").to_pylist()
    change(values)
    place = table.schema.get_field_index("tokens")
    field = pa.field("tokens", table.schema.field("tokens").type)
    return table.set_column(place, field, pa.array(values, field.type))


@pytest.mark.parametrize("container", ["files", "tar", "parquet"])
def test_images_are_those_of_the_codec(
    decode: Decode, tokens: Path, tmp_path: Path, codec: Codec, container: str
) -> None:
    manifest = decode(form=ImageFormat(container))
    output, rows = tmp_path / "images", token_rows(tokens)
    assert manifest["counts"] == {"planned": 20, "images": 20, "rejects": 0, "rows": 20}
    found = {
        (row.key, row.view): pixels_of(data)
        for entry in manifest["shards"]
        for row, data in stored_images(str(output), entry["name"])
    }
    assert list(found) == list(rows)
    expected = codec.decode(np.stack(list(rows.values())))
    np.testing.assert_array_equal(np.stack(list(found.values())), expected)
    table = index_of(output)
    assert set(INDEX_SCHEMA.names) <= set(table.column_names)
    assert set(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)) == {(32, 32)}
    assert sum(table["bytes"].to_pylist()) == manifest["storage"]["image_bytes"]
    labels = dict(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True))
    shard_rows = pa.concat_tables([pq.read_table(path) for path in sorted(tokens.glob("data/*"))])
    assert labels == dict(zip(shard_rows["key"].to_pylist(), shard_rows["label"].to_pylist(), strict=True))


def test_files(decode: Decode, tmp_path: Path) -> None:
    decode()
    output = tmp_path / "images"
    table = index_of(output)
    for row in table.to_pylist():
        data = (output / row["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (row["bytes"], row["sha256"])
    files = {str(path.relative_to(output)) for path in (output / "images").rglob("*") if path.is_file()}
    assert files == {*table["file"].to_pylist(), "images/metadata.jsonl"}
    keys = table["key"].to_pylist()
    plain = next(key for key in keys if "/" not in key)
    assert {f"images/{plain}.png", f"images/{plain}~v1.png"} <= files


def test_tar_is_a_webdataset(decode: Decode, tmp_path: Path) -> None:
    manifest = decode(form=ImageFormat("tar", "jpeg", 90))
    samples: dict[str, dict[str, bytes]] = {}
    for entry in manifest["archives"]:
        path = tmp_path / "images" / entry["name"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        with tarfile.open(path) as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                base, _, ending = name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                samples.setdefault(f"{folder}/{base}", {})[ending] = file.read()
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
    assert len(samples) == 20
    for row in index_of(tmp_path / "images").to_pylist():
        folder, _, name = row["file"].rpartition("/")
        sample = samples[f"{folder}/{name.partition('.')[0]}"]
        described = json.loads(sample["json"])
        assert (described["key"], described["view"]) == (row["key"], row["view"])
        assert sample.get("cls") == (None if row["label"] is None else str(row["label"]).encode())
        assert pixels_of(sample["jpg"]).shape == (32, 32, 3)


def test_a_tar_is_read_once(decode: Decode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its rows together look at each member once."""
    entry = decode(form=ImageFormat("tar"))["shards"][0]
    path = str(tmp_path / "images" / entry["name"].replace("index/", "data/").replace(".parquet", ".tar"))
    with tarfile.open(path) as tar:
        names = tar.getnames()
    plain, seen = tarfile.TarFile.__iter__, []

    def members(tar: tarfile.TarFile) -> Any:
        for member in plain(tar):
            seen.append(member.name)
            yield member

    monkeypatch.setattr(tarfile.TarFile, "__iter__", members)
    assert len(list(stored_images(str(tmp_path / "images"), entry["name"]))) == entry["rows"] > 1
    assert seen == names[: len(seen)]


def test_no_weights_are_read_for_the_manifest(
    decode: Decode, tokens: Path, tmp_path: Path, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making the images has read them in other processes."""

    def no_weights(*_: Any) -> Any:
        raise AssertionError("weights are read")

    def elsewhere(prepared: PlannedDecode, beam_args: Any) -> None:
        job, totals = prepared.job, ImageTotals()
        for number in range(job.task.slices):
            totals.add(make_slice(job, number, codec, lambda images, rejects: None))
        with monkeypatch.context() as patch:
            patch.setattr(Codec, "load", no_weights)
            patch.setattr("transforms.sharded.batching._codecs", {})
            dataclasses.replace(job, with_report=True).finish(totals, prepared.plan)

    monkeypatch.setattr(decode_tokens, "_run_pipeline", elsewhere)
    described = decode(limit=2)["codec"]
    assert (described["fingerprint"], described["decoder_sha256"]) == (
        codec.fingerprint,
        codec.info.decoder_sha256,
    )


def test_a_manifest_that_lacks_a_shard(decode: Decode, tokens: Path, tmp_path: Path) -> None:
    """Or its images would be left out without a word."""
    path = tokens / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"].pop()
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"00000-of-00002.parquet: number of shards is 2, but .* says 1; "):
        decode()
    assert not (tmp_path / "images").exists()


def test_parquet_column_as_datasets_reads_it(decode: Decode, tmp_path: Path) -> None:
    decode(form=ImageFormat("parquet", "webp"))
    for path in (tmp_path / "images" / "data").glob("*.parquet"):
        table = pq.read_table(path)
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        assert table.schema.field("image") == pa.field("image", image), "nullable, as its own field is"
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        assert features["image"] == {"_type": "Image"}
        assert sorted(features) == sorted(table.column_names)
        assert features["label"] == {"dtype": "int32", "_type": "Value"}
        for row in table.to_pylist():
            assert hashlib.sha256(row["image"]["bytes"]).hexdigest() == row["sha256"]
            assert row["image"]["path"] == row["file"]


def test_first_views_and_limit(decode: Decode, tokens: Path, tmp_path: Path) -> None:
    assert decode(views="first")["counts"]["images"] == 10
    assert set(index_of(tmp_path / "images")["view"].to_pylist()) == {0}
    limited = decode(limit=13, output=str(tmp_path / "limited"))
    assert (limited["counts"]["images"], len(limited["shards"])) == (13, 2)
    rows = [
        *zip(*(index_of(tmp_path / "limited")[name].to_pylist() for name in ("key", "view")), strict=True)
    ]
    assert rows == list(token_rows(tokens))[:13]
    few = decode(limit=3, views="first", output=str(tmp_path / "few"))
    assert (few["counts"]["images"], len(few["shards"])) == (3, 1)
    assert few["shards"][0]["name"] == "index/images-00000-of-00001.parquet"
    firsts = [key for key, view in token_rows(tokens) if view == 0]
    assert index_of(tmp_path / "few")["key"].to_pylist() == firsts[:3]


def test_rows_that_cannot_be_decoded(decode: Decode, tokens: Path, tmp_path: Path) -> None:
    """They become rejects with their reason; all others are decoded."""
    path = sorted(tokens.glob("data/*"))[0]
    before = list(token_rows(tokens))

    def outside(values: list[Any]) -> None:
        values[1][7] = 64

    rewrite(path, lambda table: with_tokens(pa.concat_tables([table, table.slice(2, 1)]), outside))
    manifest = decode()
    assert manifest["counts"] == {"planned": 21, "images": 19, "rejects": 2, "rows": 19}
    assert manifest["reject_reasons"] == {"decode: Duplicate": 1, "decode: OutsideCodebook": 1}
    (rejected,) = (tmp_path / "images").glob("rejects/*")
    found = rejects.read_rejects(str(rejected))
    assert [row.key for row in found] == [before[1][0], before[2][0]]
    assert found[0].message == f"view {before[1][1]}: token 64: the codebook has 64 codes"
    images = index_of(tmp_path / "images")
    rows = [*zip(images["key"].to_pylist(), images["view"].to_pylist(), strict=True)]
    assert rows == [row for row in before if row != before[1]]


def test_rows_without_tokens(decode: Decode, tokens: Path, codec: Codec, tmp_path: Path) -> None:
    path = sorted(tokens.glob("data/*"))[0]
    rows = token_rows(tokens)

    def lose(values: list[Any]) -> None:
        values[0][:2] = [None, None]
        values[2][3] = None
        values[3][0] = 99

    rewrite(path, lambda table: with_tokens(table, lose))
    manifest = decode(form=ImageFormat("parquet"))
    assert manifest["reject_reasons"] == {"decode: Missing": 2, "decode: OutsideCodebook": 1}
    found = rejects.read_rejects(str(tmp_path / "images" / manifest["rejects"][0]["name"]))
    assert found[0].message.endswith("2 of its tokens are not there")
    name = manifest["shards"][0]["name"]
    row, data = next(stored_images(str(tmp_path / "images"), name))
    second = list(rows)[1]
    assert (row.key, row.view) == second
    np.testing.assert_array_equal(pixels_of(data), codec.decode(rows[second][None])[0])


def test_a_shard_that_changes_after_the_plan(decode: Decode, tokens: Path, tmp_path: Path) -> None:
    """Same size, other bytes: nothing is made of it, and restoring it is enough."""
    path = sorted(tokens.glob("data/*"))[1]
    good = path.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    path.write_bytes(bytes(bad))
    with pytest.raises(UserError, match=r"tokens-00001-of-00002.parquet: sha256 .* restore it"):
        decode()
    assert not (tmp_path / "images" / "manifest.json").exists()
    path.write_bytes(good)
    assert decode()["counts"]["images"] == 20


@pytest.mark.parametrize("container", ["files", "tar", "parquet"])
def test_finished_slices_are_kept_and_lost_images_made_again(
    decode: Decode, tmp_path: Path, container: str
) -> None:
    decode(form=ImageFormat(container))
    output = tmp_path / "images"
    paths = sorted(path for path in output.rglob("images*") if path.is_file())
    paths += [*sorted(output.rglob("*.png")), *output.rglob("metadata.jsonl"), output / "README.md"]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}
    decode(form=ImageFormat(container))
    assert {path: path.stat().st_mtime_ns for path in paths} == {p: m for p, (m, _) in before.items()}
    lost = {
        "files": "images/*.png",
        "tar": "data/images-00001*.tar",
        "parquet": "data/images-00001*.parquet",
    }[container]
    victim = sorted(output.glob(lost))[-1]
    victim.unlink()
    manifest = decode(form=ImageFormat(container))
    assert victim.read_bytes() == before[victim][1]
    assert {path: path.read_bytes() for path in paths} == {path: data for path, (_, data) in before.items()}
    assert manifest["throughput"]["images"] == 10, "one of the two slices was kept"


def test_a_damaged_index_is_made_again(decode: Decode, tmp_path: Path) -> None:
    decode(form=ImageFormat("parquet"))
    output = tmp_path / "images"
    victim = output / "data" / "images-00000-of-00002.parquet"
    good = victim.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 3] ^= 1
    victim.write_bytes(bytes(bad))
    (output / "manifest.json").unlink()
    decode(form=ImageFormat("parquet"))
    assert victim.read_bytes() == good


def test_an_index_of_another_plan_is_not_kept(decode: Decode, tokens: Path, tmp_path: Path) -> None:
    decode()
    config = DecodeTokensConfig(tokens=str(tokens), output=str(tmp_path / "images"), views="first")
    job = decode_tokens.plan_decode(config).job
    assert finished_slice(job, 0) is None
    task = dataclasses.replace(job.task, plan_hash=decode()["plan_hash"])
    assert finished_slice(dataclasses.replace(job, task=task), 0) is not None


def test_one_compilation(decode: Decode, codec: Codec, tmp_path: Path) -> None:
    """Slices of any length go through the one batch that the codec was compiled for."""
    decode()
    before = codec.compilations
    for limit in (1, 4, 7):
        decode(limit=limit, output=str(tmp_path / str(limit)))
    assert codec.compilations == before
