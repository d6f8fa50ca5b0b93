"""Whole runs through the command line: what comes out, and what becomes of bad input."""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import tokenize_images
from pipelines.runners.engine_errors import user_error_of
from pipelines.tokenize_images import TokenizeConfig, plan_tokenize
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sharded import rejects
from transforms.sharded.beam_graph import MakeSlice, RunJob
from transforms.sources import Entry, SourceConfig
from transforms.sources.folder import FolderSource
from vqgan import faults
from vqgan.errors import UserError
from vqgan.shards import rejects_name, shard_name

ROOT = Path(__file__).parents[2]
HOSTILE = Path(__file__).parents[1] / "testdata" / "hostile"
Vqgan = Callable[..., Any]
Manifest = Callable[[Path], dict[str, Any]]


def shards(folder: Path) -> dict[str, bytes]:
    found = [path for name in ("data", "rejects") for path in (folder / name).glob("*.parquet")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def everything(folder: Path) -> dict[str, tuple[int, str]]:
    """Time of change and sha256 of every file."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows_of(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("data/tokens-*.parquet"))])


def rejects_of(folder: Path) -> dict[str, rejects.RejectRow]:
    rows = [
        row for path in folder.glob("rejects/rejects-*.parquet") for row in rejects.read_rejects(str(path))
    ]
    found = {row.key: row for row in rows}
    assert len(found) == len(rows)
    return found


def jpeg(seed: int, size: tuple[int, int] = (40, 36)) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


def test_a_run(tokenize: Vqgan, vqgan: Vqgan, few: Path, tmp_path: Path, manifest: Manifest) -> None:
    out = tmp_path / "out"
    assert tokenize(few, "--report").code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "data", "manifest.json", "plan", "report.html")
    ]
    assert sorted(path.name for path in (out / "data").iterdir()) == [
        f"tokens-0000{number}-of-00003.parquet" for number in range(3)
    ]
    table = rows_of(out)
    assert sorted(table.column("key").to_pylist()) == sorted(path.name for path in few.iterdir())
    assert table.schema.field("tokens").type == pa.list_(pa.uint16(), 256)
    assert manifest(out)["counts"] == {"planned": 10, "images": 10, "rejects": 0, "rows": 10, "tokens": 2560}
    assert vqgan("verify", out).code == 0


def test_a_finished_run_again(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    tokenize(few, "--report")
    before = everything(tmp_path / "out")
    again = tokenize(few, "--report")
    assert (again.code, again.err) == (0, "")
    assert everything(tmp_path / "out") == before


def test_a_finished_run_again_says_so(vqgan: Vqgan, few: Path, codec_path: str, tmp_path: Path) -> None:
    argv = [
        "tokenize",
        "--input",
        few,
        "--output",
        tmp_path / "out",
        "--codec",
        codec_path,
        "--batch-size",
        "4",
    ]
    first = vqgan(*argv)
    assert first.code == 0
    assert "10 images in 1 slice," in first.err
    again = vqgan(*argv)
    assert again.code == 0
    assert "is complete (10 images, 10 rows, 0 rejects, 1 shard," in again.line


def change_file(folder: Path) -> None:
    (folder / "new.jpg").write_bytes(jpeg(1))


def change_size(folder: Path) -> None:
    path = min(folder.iterdir())
    path.write_bytes(path.read_bytes() + b"\0")


def remove(folder: Path) -> None:
    min(folder.iterdir()).unlink()


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("change", "flags", "names"),
    [
        (change_file, (), "input.entries: 10, now 11"),
        (remove, (), "input.entries: 10, now 9"),
        (change_size, (), "input.sha256"),
        (nothing, ("--image-size", 48), "preprocessing.geometry.image_size: 32, now 48"),
        (nothing, ("--filter", "bicubic"), "preprocessing.geometry.filter: lanczos, now bicubic"),
        (nothing, ("--resize", "pad"), "preprocessing.geometry.resize: center-crop, now pad"),
        (nothing, ("--views", "hflip"), "preprocessing.geometry.views: none, now hflip"),
        (nothing, ("--min-side", 33), "preprocessing.decode.min_side: 1, now 33"),
        (nothing, ("--slice-size", 5), "slice_size: 4, now 5"),
        (nothing, ("--dtype", "bfloat16"), "dtype: float32, now bfloat16"),
        (nothing, ("--dedupe",), "dedupe: false, now true"),
        (nothing, ("--codec", "OTHER"), "codec.fingerprint: "),
    ],
)
def test_another_run_is_refused(
    tokenize: Vqgan,
    few: Path,
    tmp_path: Path,
    other_codec: str,
    complete: bool,
    change: Callable[[Path], None],
    flags: tuple[Any, ...],
    names: str,
) -> None:
    assert tokenize(few).code == 0
    if not complete:
        (tmp_path / "out" / "manifest.json").unlink()
        (tmp_path / "out" / "data" / "tokens-00001-of-00003.parquet").unlink()
    before = everything(tmp_path / "out")
    change(few)
    refused = tokenize(few, *(other_codec if flag == "OTHER" else flag for flag in flags))
    assert refused.code == 2
    assert "belongs to another run" in refused.line
    assert names in refused.line
    assert everything(tmp_path / "out") == before


def test_shards_without_a_plan_are_not_touched(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    tokenize(few)
    shutil.rmtree(tmp_path / "out" / "plan")
    before = everything(tmp_path / "out")
    assert "there is something else in it, such as README.md, and no plan" in tokenize(few).line
    assert everything(tmp_path / "out") == before


def test_a_folder_of_something_else_is_not_touched(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("mine")
    before = everything(tmp_path / "out")
    assert "something else in it, such as report.html" in tokenize(few).line
    assert everything(tmp_path / "out") == before


def test_a_truncated_shard_of_a_finished_run_is_made_again(
    tokenize: Vqgan, few: Path, tmp_path: Path
) -> None:
    tokenize(few)
    shard = min((tmp_path / "out").glob("data/tokens-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000])
    assert tokenize(few).code == 0
    assert shard.read_bytes() == whole


@pytest.mark.parametrize("name", [shard_name(1, 3), rejects_name(1, 3)])
def test_a_lost_file_of_a_finished_run_is_made_again(
    tokenize: Vqgan, vqgan: Vqgan, few: Path, tmp_path: Path, name: str
) -> None:
    for path in sorted(few.iterdir())[::2]:
        path.write_bytes(b"no image" + path.read_bytes())
    tokenize(few)
    before = everything(tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    assert vqgan("verify", tmp_path / "out").code == 1
    assert tokenize(few).code == 0
    after = everything(tmp_path / "out")
    assert {name: digest for name, (_, digest) in after.items() if name != "manifest.json"} == {
        name: digest for name, (_, digest) in before.items() if name != "manifest.json"
    }
    assert vqgan("verify", tmp_path / "out").code == 0


@pytest.mark.parametrize("threads", [1, 7])
def test_threads(tokenize: Vqgan, finished: Path, few: Path, tmp_path: Path, threads: int) -> None:
    tokenize(few)
    tokenize(few, "--threads", threads, output=tmp_path / "again")
    assert shards(tmp_path / "again") == shards(tmp_path / "out")


def test_listing_order_and_mount_point(
    tokenize: Vqgan, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: Manifest
) -> None:
    tokenize(few)
    listed = FolderSource.list

    def shuffled(source: FolderSource) -> Iterator[Entry]:
        entries = list(listed(source))
        random.Random(3).shuffle(entries)
        yield from entries

    monkeypatch.setattr(FolderSource, "list", shuffled)
    moved = tmp_path / "a" / "deeper" / "mount"
    shutil.copytree(few, moved)
    monkeypatch.chdir(moved.parent)
    tokenize("mount", output=tmp_path / "again")
    assert shards(tmp_path / "again") == shards(tmp_path / "out")
    assert manifest(tmp_path / "again")["plan_hash"] == manifest(tmp_path / "out")["plan_hash"]
    assert tokenize("mount").code == 0  # the same run: it may be continued from another mount point


def test_file_uris(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    tokenize(few)
    assert tokenize(f"file://{few}", "--report", output=f"file://{tmp_path}/remote").code == 0
    assert shards(tmp_path / "remote") == shards(tmp_path / "out")
    assert (tmp_path / "remote" / "report.html").exists()


def test_object_store(tokenize: Vqgan, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server", reason="S3 IS NOT TESTED: moto is not installed")
    pafs = pytest.importorskip("pyarrow.fs")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            monkeypatch.setenv(f"AWS_{name}", "testing")
        query = f"?scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
        pafs.FileSystem.from_uri(f"s3://bucket/{query}")[0].create_dir("bucket")
        assert tokenize(few, output=f"s3://bucket/out{query}").code == 0
    finally:
        server.stop()


# Bad input.


def files_below(path: Path) -> list[Path]:
    return sorted(path.rglob("*")) if path.exists() else []


def test_nothing_to_do(tokenize: Vqgan, tmp_path: Path, few: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "there are no images in it" in tokenize(tmp_path / "empty").line
    missing = tokenize(tmp_path / "few2")
    assert (missing.code, "did you mean" in missing.line) == (2, True)
    assert "No such file" in tokenize(tmp_path / "nowhere" / "x").line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "a.jpg", "a.tfrecord"])
def test_empty_source_file(tokenize: Vqgan, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    result = tokenize(tmp_path / name)
    if result.code == 2:
        assert name in result.line
        return
    (reject,) = rejects_of(tmp_path / "out").values()
    assert reject.stage in ("plan", "read")


@pytest.mark.parametrize("pattern", ["", "/*", "/**", "/o*", "/{out,x}"])
def test_output_inside_the_input(tokenize: Vqgan, few: Path, pattern: str) -> None:
    (few / "out").mkdir()
    (few / "x").mkdir()
    before = files_below(few)
    for scheme in ("", "file://"):
        result = tokenize(f"{scheme}{few}{pattern}", output=few / "out")
        assert (result.code, "lies inside the input" in result.line) == (2, True)
    assert files_below(few) == before


def test_output_inside_the_input_through_a_link(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(few)
    assert "lies inside the input" in tokenize(few, output=tmp_path / "link" / "out").line
    assert "lies inside the input" in tokenize(tmp_path / "link", output=few).line


def test_output_beside_what_a_glob_takes(tokenize: Vqgan, few: Path) -> None:
    for _ in range(2):
        assert tokenize(f"{few}/*.jpg", output=few / "out").code == 0


def test_no_output(vqgan: Vqgan, few: Path, codec_path: str) -> None:
    result = vqgan("tokenize", "--input", few, "--output", "", "--codec", codec_path)
    assert (result.code, "--output is empty" in result.line) == (2, True)


def test_output_is_a_file(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        result = tokenize(few, output=output)
        assert (result.code, str(output) in result.line) == (2, True)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_output_that_cannot_be_made(tokenize: Vqgan, few: Path) -> None:
    assert tokenize(few, output="/proc/none").code == 2
    assert "cannot open this location" in tokenize(few, output="what://x").line


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_output_without_permission(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "no permission" in tokenize(few, output=tmp_path / "locked" / "out").line
    assert "no permission" in tokenize(few, output=tmp_path / "locked").line


def test_permission_error(
    tokenize: Vqgan, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vqgan.publishing._sync", refuse)
    result = tokenize(few)
    assert result.code == 2
    assert "no permission to write there" in result.line
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_damaged_codec(tokenize: Vqgan, few: Path, tmp_path: Path, codec_path: str) -> None:
    shutil.copytree(codec_path, tmp_path / "codec")
    shutil.rmtree(tmp_path / "codec" / "quantizer")
    result = tokenize(few, "--codec", tmp_path / "codec")
    assert result.code == 2
    assert "is missing, expected" in result.line
    (tmp_path / "codec" / "codec.json").write_text("{")
    assert "codec.json cannot be read" in tokenize(few, "--codec", tmp_path / "codec").line
    assert "nothing there" in tokenize(few, "--codec", tmp_path / "none").line


def test_swapped_weights(
    tokenize: Vqgan, few: Path, tmp_path: Path, codec_path: str, other_codec: str
) -> None:
    """Weights of another codec under this codec's name would make tokens that nobody can decode."""
    shutil.copytree(codec_path, tmp_path / "codec")
    shutil.copytree(f"{other_codec}/encoder", tmp_path / "codec" / "encoder", dirs_exist_ok=True)
    result = tokenize(few, "--codec", tmp_path / "codec")
    assert result.code == 2
    assert str(tmp_path / "codec") in result.line
    assert not list((tmp_path / "out").glob("data/tokens-*"))


def test_duplicate_keys_are_refused_before_any_work(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    paths = [str(path) for path in sorted(few.iterdir())]
    (tmp_path / "list.txt").write_text("\n".join([*paths, paths[3]]))
    result = tokenize(tmp_path / "list.txt")
    assert result.code == 2
    assert "1 keys occur more than once" in result.line
    assert paths[3] in result.line
    assert not (tmp_path / "out").exists()


def test_unreadable_files_are_rejects(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in few.iterdir())
    (few / names[0]).unlink()
    (few / names[0]).symlink_to(tmp_path / "nowhere")
    (few / names[1]).write_bytes(b"")
    (few / names[2]).write_bytes((few / names[2]).read_bytes()[:400])
    os.mkfifo(few / "pipe.jpg")
    assert tokenize(few).code == 0
    found = rejects_of(tmp_path / "out")
    assert {key: row.stage for key, row in found.items()} == {
        names[0]: "plan",
        names[1]: "read",
        names[2]: "decode",
        "pipe.jpg": "plan",
    }
    assert sorted(rows_of(tmp_path / "out").column("key").to_pylist()) == names[3:]


def vanish(prepared: Any, beam_args: Any, folder: Path, run: Any) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    run(prepared, beam_args)


def test_everything_vanishes_between_plan_and_run(
    tokenize: Vqgan, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "saved"
    shutil.copytree(few, saved)
    pipeline = tokenize_images._run_pipeline
    with monkeypatch.context() as patch:
        patch.setattr(faults, "PAUSES", (0.0,))
        patch.setattr(tokenize_images, "_run_pipeline", lambda p, args: vanish(p, args, few, pipeline))
        result = tokenize(few, "--slice-size", 10)
    assert result.code == 2
    assert "cannot be read (No such file or directory); restore it, then run the same command" in result.line
    assert not list((tmp_path / "out").rglob("rejects-*"))
    shutil.rmtree(few)
    shutil.copytree(saved, few)
    assert tokenize(few, "--slice-size", 10).code == 0
    assert rows_of(tmp_path / "out").num_rows == 10


def test_reject_rate(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    for path in sorted(few.iterdir())[:5]:
        path.write_bytes(b"no image")
    stopped = tokenize(few, "--max-reject-rate", 0.1)
    assert stopped.code == 2
    assert "images were rejected, more than the 10% allowed" in stopped.line
    assert "--max-reject-rate" in stopped.line
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert tokenize(few, "--max-reject-rate", 1).code == 0
    assert (rows_of(tmp_path / "out").num_rows, len(rejects_of(tmp_path / "out"))) == (5, 5)


# Containers.


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tar(path: Path, images: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, (key, data) in enumerate(images.items()):
            add(tar, f"{key}.jpg", data)
            add(tar, f"{key}.cls", str(number).encode())
            add(tar, f"{key}.txt", f"caption of {key}".encode())


def test_webdataset(tokenize: Vqgan, tmp_path: Path) -> None:
    images = {f"{number:03}": jpeg(number) for number in range(9)}
    images["004"] = b"garbage"
    write_tar(tmp_path / "a.tar", images)
    assert tokenize(tmp_path / "a.tar", "--columns", "txt").code == 0
    table = rows_of(tmp_path / "out")
    keys = [f"a.tar/{key}" for key in images if key != "004"]
    assert table.column("key").to_pylist() == keys  # containers keep their order
    assert table.column("label").to_pylist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert table.column("txt").to_pylist() == [f"caption of {key[-3:]}" for key in keys]
    assert table.schema.field("txt").type == pa.string()
    assert {key: row.stage for key, row in rejects_of(tmp_path / "out").items()} == {"a.tar/004": "decode"}


def test_truncated_tar(tokenize: Vqgan, vqgan: Vqgan, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{number:03}": jpeg(number) for number in range(9)})
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: len(data) // 2])
    assert tokenize(tmp_path / "a.tar").code == 0
    table, lost = rows_of(tmp_path / "out"), rejects_of(tmp_path / "out")
    assert 3 <= table.num_rows <= 5
    assert lost
    assert {row.stage for row in lost.values()} <= {"plan", "read"}
    assert vqgan("verify", tmp_path / "out").code == 0


def test_parquet(tokenize: Vqgan, vqgan: Vqgan, tmp_path: Path) -> None:
    values = [jpeg(number) for number in range(10)]
    values[2], values[5], values[7] = None, b"garbage", b""
    schema = pa.schema(
        [
            pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            pa.field("id", pa.int64()),
            pa.field("caption", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("label", pa.int64()),
        ]
    )
    columns = {
        "image": [{"bytes": value, "path": None} for value in values],
        "id": list(range(100, 110)),
        "caption": [None, *"bcdefghij"],
        "score": [n / 4 for n in range(10)],
        "tags": [["x"] * n for n in range(10)],
        "label": [n % 3 for n in range(10)],
    }
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "a.parquet", row_group_size=4)
    flags = ("--key-column", "id", "--label-column", "label", "--columns", "caption,score,tags")
    assert tokenize(tmp_path / "a.parquet", *flags).code == 0
    table, lost = rows_of(tmp_path / "out"), rejects_of(tmp_path / "out")
    assert {key: row.stage for key, row in lost.items()} == {"102": "read", "105": "decode", "107": "read"}
    kept = [n for n in range(10) if n not in (2, 5, 7)]
    assert table.column("key").to_pylist() == [str(100 + n) for n in kept]
    for name in ("caption", "score", "tags"):
        assert table.schema.field(name).type == schema.field(name).type
        assert table.column(name).to_pylist() == [columns[name][n] for n in kept]
    assert table.column("label").to_pylist() == [n % 3 for n in kept]
    assert table.schema.field("label").type == pa.int32()
    assert vqgan("verify", tmp_path / "out").code == 0


def test_a_column_of_ours_is_refused(tokenize: Vqgan, tmp_path: Path) -> None:
    table = pa.table({"image": [jpeg(1)], "tokens": [1], "width": [2]})
    pq.write_table(table, tmp_path / "a.parquet")
    result = tokenize(tmp_path / "a.parquet", "--columns", "width")
    assert result.code == 2
    assert "'width': a shard has its own column" in result.line
    assert "no column nope" in tokenize(tmp_path / "a.parquet", "--columns", "nope").line


def test_labels_from_folders(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(few.iterdir())):
        target = few / ["cat", "dog", "ant"][number % 3] / path.name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    assert tokenize(few, "--folder-labels").code == 0
    labels = {"ant": 0, "cat": 1, "dog": 2}
    table = rows_of(tmp_path / "out")
    for row in table.select(["key", "label"]).to_pylist():
        assert row["label"] == labels[row["key"].split("/")[0]]
    assert Counter(table.column("label").to_pylist()) == {0: 3, 1: 4, 2: 3}


# Views, filters, duplicates.


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (("--views", "hflip"), 2),
        (("--views", "ten-crop", "--crop-range", 1.25), 10),
        (("--views", "random-crops", "--random-crops", 3), 3),
    ],
)
def test_views(
    tokenize: Vqgan, few: Path, tmp_path: Path, flags: tuple[Any, ...], count: int, manifest: Manifest
) -> None:
    assert tokenize(few, *flags).code == 0
    rows = rows_of(tmp_path / "out").to_pylist()
    assert len(rows) == 10 * count
    assert len({(row["key"], row["view"]) for row in rows}) == 10 * count
    assert [row["view"] for row in rows] == list(range(count)) * 10
    for row in rows:
        left, top, right, bottom = row["crop"]
        assert 0 <= left < right <= row["width"]
        assert 0 <= top < bottom <= row["height"]
    if count == 2:
        assert [row["mirrored"] for row in rows] == [False, True] * 10
        assert all(a["crop"] == b["crop"] for a, b in zip(rows[::2], rows[1::2], strict=True))
        assert all(a["tokens"] != b["tokens"] for a, b in zip(rows[::2], rows[1::2], strict=True))
    if count == 10:
        assert [row["mirrored"] for row in rows] == ([False] * 5 + [True] * 5) * 10
    assert manifest(tmp_path / "out")["counts"]["rows"] == 10 * count
    assert manifest(tmp_path / "out")["counts"]["images"] == 10


def test_filters(tokenize: Vqgan, photos: Path, tmp_path: Path) -> None:
    assert tokenize(photos, "--max-aspect", 2, "--min-side", 34, "--slice-size", 40).code == 0
    reasons = Counter((row.stage, row.error) for row in rejects_of(tmp_path / "out").values())
    assert reasons == {("filter", "TooSmall"): 20}  # 33x33 and 90x32
    assert rows_of(tmp_path / "out").num_rows == 20


def test_dedupe(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in few.iterdir())
    shutil.copy(few / names[4], few / "zzz.jpg")
    shutil.copy(few / names[4], few / "000.jpg")
    assert tokenize(few, "--dedupe").code == 0
    found = rejects_of(tmp_path / "out")
    assert {key: (row.error, row.message) for key, row in found.items()} == {
        names[4]: ("Duplicate", "same bytes as 000.jpg"),
        "zzz.jpg": ("Duplicate", "same bytes as 000.jpg"),
    }
    assert "000.jpg" in rows_of(tmp_path / "out").column("key").to_pylist()
    assert tokenize(few, output=tmp_path / "with").code == 0
    assert rows_of(tmp_path / "with").num_rows == 12


# Hostile images.


def check_hostile(tokenize: Vqgan, vqgan: Vqgan, folder: Path, out: Path) -> tuple[int, int]:
    planned = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert tokenize(folder, "--slice-size", 50, "--max-pixels", 20_000_000, output=out).code == 0
    rows, lost = rows_of(out).column("key").to_pylist(), rejects_of(out)
    assert len(rows) == len(set(rows))
    assert not set(rows) & lost.keys()
    assert set(rows) | lost.keys() == planned
    assert all("\n" not in row.message and row.message and row.error for row in lost.values())
    assert vqgan("verify", out).code == 0
    return len(rows), len(lost)


def test_hostile_images(tokenize: Vqgan, vqgan: Vqgan, tmp_path: Path) -> None:
    rows, lost = check_hostile(tokenize, vqgan, HOSTILE, tmp_path / "out")
    assert min(rows, lost) > 10


@pytest.mark.skipif(
    "VQGAN_HOSTILE_IMAGES" not in os.environ,
    reason="NOT RUN: name a folder of hostile images in VQGAN_HOSTILE_IMAGES",
)
def test_more_hostile_images(tokenize: Vqgan, vqgan: Vqgan, tmp_path: Path) -> None:
    folder = Path(os.environ["VQGAN_HOSTILE_IMAGES"])
    rows, lost = check_hostile(tokenize, vqgan, folder, tmp_path / "out")
    print(f"{rows} rows and {lost} rejects of {folder}")


# The manifest.


def test_manifest_agrees_with_the_files(finished: Path, manifest: Manifest) -> None:
    out = finished / "out"
    found = manifest(out)
    for entry in (*found["shards"], *found["rejects"]):
        data = (out / entry["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
        assert pq.ParquetFile(out / entry["name"]).metadata.num_rows == entry["rows"]
    assert {entry["name"] for entry in (*found["shards"], *found["rejects"])} == set(shards(out))
    counts = found["counts"]
    assert counts == {"planned": 41, "images": 40, "rejects": 1, "rows": 40, "tokens": 40 * 256}
    assert found["reject_reasons"] == {"decode: UnidentifiedImageError": 1}


def test_histogram_agrees_with_duckdb(finished: Path, manifest: Manifest) -> None:
    found = manifest(finished / "out")["codebook"]
    query = f"""
        SELECT code, count(*) FROM (
            SELECT unnest(tokens) AS code FROM read_parquet('{finished}/out/data/*.parquet')
        ) GROUP BY code
    """
    counted = dict(duckdb.sql(query).fetchall())
    assert [counted.get(code, 0) for code in range(64)] == found["histogram"]
    share = np.array([count for count in found["histogram"] if count]) / sum(found["histogram"])
    entropy = float(-(share * np.log2(share)).sum())
    assert found["entropy_bits"] == pytest.approx(entropy)
    assert found["perplexity"] == pytest.approx(2**entropy)
    assert found["used"] == len(share)


def test_manifest_is_last(
    tokenize: Vqgan, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: Manifest
) -> None:
    """When the report fails there is no manifest; the same command makes the rest, and no shard again."""

    def fail(*_: Any) -> None:
        raise UserError("no report today")

    with monkeypatch.context() as patch:
        patch.setattr("transforms.tokenizing.job.write_token_report", fail)
        result = tokenize(few, "--report")
    assert (result.code, "no report today" in result.line) == (2, True)
    of_run = ("progress.json", "progress/")  # which go when the manifest is there
    before = {k: v for k, v in everything(tmp_path / "out").items() if not k.startswith(of_run)}
    assert "manifest.json" not in before
    assert sum(name.startswith("data/tokens-") for name in before) == 3
    assert tokenize(few, "--report").code == 0
    after = everything(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    kept = manifest(tmp_path / "out")
    assert kept["throughput"]["images"] == 10  # by the run before
    tokenize(few, "--report", output=tmp_path / "new")
    new = manifest(tmp_path / "new")
    assert new["throughput"]["images"] == 10
    times = ("throughput", "finished", "versions")
    assert {n: v for n, v in kept.items() if n not in times} == {
        n: v for n, v in new.items() if n not in times
    }


# The pipeline itself.


LAUNCHER = """
import sys
from pipelines.cli import build_parser
from pipelines.tokenize_images import plan_tokenize
from pipelines.options.flags import check_flags, given_options
from pipelines.options.run_options import TokenizeOptions
args, unknown = build_parser().parse_known_args(sys.argv[1:])
check_flags(unknown, args.parser, beam=True)
prepared = plan_tokenize(TokenizeOptions(**given_options(TokenizeOptions, args)).config())
import pickle
from transforms.sharded.beam_graph import RunJob
pickle.dumps(prepared.job)
loaded = {"jax", "jaxlib", "flax", "orbax", "tensorflow", "torch"} & set(sys.modules)
assert prepared.plan.slices == 3, prepared.plan.slices
print(sorted(loaded))
"""


def test_launcher_loads_no_jax(few: Path, codec_path: str, tmp_path: Path) -> None:
    argv = [
        "tokenize",
        "--input",
        few,
        "--output",
        tmp_path / "out",
        "--codec",
        codec_path,
        "--slice-size",
        4,
    ]
    command = [sys.executable, "-c", LAUNCHER, *map(str, argv), "--runner=FnApiRunner"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "out").exists()


def config_of(source: Path, output: Path, codec: str, **changes: Any) -> TokenizeConfig:
    settings: dict[str, Any] = {"slice_size": 4, "batch_size": 4, "report": False, "quiet": True, **changes}
    source_config = SourceConfig(str(source))
    return TokenizeConfig(
        source_config, str(output), codec, Geometry(image_size=32), DecodeConfig(), **settings
    )


def graph(prepared: Any) -> Any:
    pipeline = beam.Pipeline(runner="FnApiRunner")
    pipeline | RunJob(prepared.job, prepared.plan)
    return pipeline.to_runner_api()


def test_graph_is_small_and_linear(tmp_path: Path, codec_path: str, few: Path) -> None:
    sizes = []
    for count in (10, 10_000):
        paths = [f"some/longer/path/to/image-{number}.jpg" for number in range(count)]
        (tmp_path / f"{count:05}.txt").write_text("\n".join(["path", *paths]))
        source = tmp_path / f"{count:05}.txt"
        prepared = plan_tokenize(config_of(source, tmp_path / "out", codec_path))
        assert prepared.plan.entries >= count
        proto = graph(prepared)
        sizes.append(len(proto.SerializeToString()))
    assert abs(sizes[0] - sizes[1]) < 200
    assert sizes[0] < 100_000
    leaves = [t for t in proto.components.transforms.values() if not t.subtransforms]
    assert all(len(transform.inputs) <= 1 for transform in leaves)
    assert all(len(transform.outputs) == 1 for transform in leaves)


def test_job_and_transform_can_be_pickled(few: Path, tmp_path: Path, codec_path: str) -> None:
    prepared = plan_tokenize(config_of(few, tmp_path / "out", codec_path))
    assert pickle.loads(pickle.dumps(prepared.job)) == prepared.job
    transform = pickle.loads(pickle.dumps(RunJob(prepared.job, prepared.plan)))
    assert transform._job == prepared.job
    assert transform._plan.hash == prepared.plan.hash
    assert pickle.loads(pickle.dumps(MakeSlice(prepared.job)))._job == prepared.job


def test_prepare_writes_nothing(few: Path, tmp_path: Path, codec_path: str) -> None:
    plan_tokenize(config_of(few, tmp_path / "out", codec_path))
    assert not (tmp_path / "out").exists()


# Errors of workers.


def chained(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a: b"), "a: b"),
        (UserError("a: b [while running 'X/MakeShard-ptransform-1']"), "a: b"),
        (chained(RuntimeError("outer"), UserError("inner")), "inner"),
        (chained(RuntimeError("1"), chained(ValueError("2"), UserError("3 [while running 'x y']"))), "3"),
        (
            RuntimeError(
                'Traceback (most recent call last):\n  File "x"\nvqgan.errors.UserError: no room\n\nDuring '
                "handling...\nvqgan.errors.UserError: no room left [while running 'A/B']\n\n"
            ),
            "no room left",
        ),
        (RuntimeError("nothing of ours"), None),
        (chained(RuntimeError("x"), KeyError("y")), None),
    ],
)
def test_user_error_of(error: BaseException, line: str | None) -> None:
    found = user_error_of(error)
    assert (None if found is None else str(found)) == line


def test_other_errors_of_workers_are_not_hidden(
    tokenize: Vqgan, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("transforms.tokenizing.job.write_shard", broken)
    with pytest.raises(Exception, match="a bug"):
        tokenize(few)


def test_agreement_of_bfloat16_is_measured_and_stored(vqgan: Vqgan, photos: Path, tmp_path: Path) -> None:
    flags = ["--codec", "tiny", "--image-size", 64, "--dtype", "bfloat16", "--batch-size", 8, "--no-report"]
    result = vqgan("tokenize", "--input", photos, "--output", tmp_path / "out", *flags)
    assert result.code == 0, result.err
    agreement = json.loads((tmp_path / "out" / "manifest.json").read_text())["agreement_with_float32"]
    assert agreement["images"] == 40
    assert 0.9 < agreement["share"] <= 1
    assert f"{agreement['share']:.2%} of the tokens of 40 images are those of float32" in result.err
