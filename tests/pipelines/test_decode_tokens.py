"""``vqgan decode`` through the command line: what comes out, what is refused, and runs that were killed."""

import dataclasses
import json
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from pipelines import decode_tokens
from pipelines.decode_tokens import DecodeTokensConfig
from tests.faulty import KILLS, MORTAL_PROGRAM, contents
from transforms.decoding.index import index_folder
from transforms.sharded.beam_graph import MakeSlice, RunJob
from transforms.sharded.plan import Plan

ROOT = Path(__file__).parents[2]
Vqgan = Callable[..., Any]


@pytest.fixture
def decode(vqgan: Vqgan, finished: Path, tmp_path: Path) -> Vqgan:
    """Runs ``vqgan decode`` over the finished data set with small batches; later flags override."""

    def decode(*flags: Any) -> Any:
        where = ["--tokens", finished / "out", "--output", tmp_path / "images"]
        report = [] if "--report" in flags else ["--no-report"]
        rest = [flag for flag in flags if flag != "--report"]
        return vqgan("decode", *where, "--batch-size", 4, "--threads", 2, "--quiet", *report, *rest)

    return decode


def test_a_run(decode: Vqgan, vqgan: Vqgan, finished: Path, tmp_path: Path, manifest: Any) -> None:
    output = tmp_path / "images"
    result = decode("--report")
    assert (result.code, result.err) == (0, "")
    assert sorted(path.name for path in output.iterdir()) == [
        *("README.md", "images", "index", "manifest.json", "plan", "report.html"),
    ]
    assert sorted(path.name for path in (output / "index").iterdir()) == [
        f"images-0000{number}-of-00004.parquet" for number in range(4)
    ]
    made, tokens = manifest(output), manifest(finished / "out")
    assert made["counts"] == {"planned": 40, "images": 40, "rejects": 0, "rows": 40}
    assert made["tokens"]["plan_hash"] == tokens["plan_hash"]
    assert made["codec"]["fingerprint"] == tokens["codec"]["fingerprint"]
    assert len(list((output / "images").iterdir())) == 40 + 1
    assert len((output / "images" / "metadata.jsonl").read_text().splitlines()) == 40
    page = (output / "report.html").read_text()
    assert page.count("<img ") == 24
    assert "40 images from tokens" in page
    verified = vqgan("verify", output)
    assert (verified.code, verified.out.splitlines()[-1]) == (0, "ok")
    inspected = vqgan("inspect", output, "--json")
    assert inspected.code == 0, inspected.err
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert decode("--report").code == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_images_can_be_tokenized_again(decode: Vqgan, tokenize: Vqgan, tmp_path: Path, manifest: Any) -> None:
    """The Parquet form is a source like any other."""
    assert decode("--format", "parquet", "--limit", 13).code == 0
    source = tmp_path / "images" / "data" / "images-*.parquet"
    again = tokenize(str(source), "--image-column", "image", "--key-column", "file", "--image-size", 32)
    assert again.code == 0, again.err
    assert manifest(tmp_path / "out")["counts"]["images"] == 13


def test_the_file_that_describes_images_is_no_image(
    decode: Vqgan, tokenize: Vqgan, tmp_path: Path, manifest: Any
) -> None:
    assert decode("--limit", 5).code == 0
    assert tokenize(tmp_path / "images" / "images", "--image-size", 32).code == 0
    counts = manifest(tmp_path / "out")["counts"]
    assert (counts["planned"], counts["images"], counts["rejects"]) == (5, 5, 0)


@pytest.mark.parametrize(("container", "form"), [("files", "png"), ("tar", "tar"), ("parquet", "parquet")])
def test_unfinished(decode: Vqgan, vqgan: Vqgan, tmp_path: Path, container: str, form: str) -> None:
    output = tmp_path / "images"
    assert decode("--format", form, "--limit", 17).code == 0
    (output / "manifest.json").unlink()
    (output / index_folder(container) / "images-00001-of-00002.parquet").unlink()
    described = json.loads(vqgan("inspect", output, "--json").out)
    assert (described["kind"], described["shards"]) == ("unfinished images", "1 of 2")


def test_lost_metadata_is_written_again(decode: Vqgan, tmp_path: Path, manifest: Any) -> None:
    """No image is made for it."""
    assert decode("--limit", 5).code == 0
    path = tmp_path / "images" / "images" / "metadata.jsonl"
    before = path.read_bytes()
    path.unlink()
    assert decode("--limit", 5).code == 0
    assert path.read_bytes() == before
    assert manifest(tmp_path / "images")["throughput"]["images"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quality", "90"], "--quality 90: png loses nothing"),
        (["--format", "jpeg", "--quality", "0"], "--quality 0: it must lie between 1 and 100"),
        (["--format", "png", "--image-format", "webp"], "--image-format webp: is for tar and parquet"),
        (["--limit", "0"], "--limit 0: it must be at least 1"),
        (["--output", ""], "--output is empty"),
        (["--threads", "0"], "--threads 0"),
        (["--batchsize", "3"], "unknown flag --batchsize: did you mean --batch-size?"),
        (["--codec", "no-such-codec"], "codec no-such-codec: nothing there"),
    ],
)
def test_wrong_flags(decode: Vqgan, tmp_path: Path, flags: list[str], message: str) -> None:
    result = decode(*flags)
    assert result.code == 2
    assert message in result.line
    assert not (tmp_path / "images").exists()


def test_wrong_inputs(decode: Vqgan, finished: Path, other_codec: str, copied: Path, tmp_path: Path) -> None:
    ours = json.loads((finished / "out" / "manifest.json").read_text())["codec"]["fingerprint"]
    refused = decode("--codec", other_codec)
    assert refused.code == 2
    assert ours[:12] in refused.line
    assert other_codec in refused.line
    assert "not by" in refused.line
    assert "no token data set there" in decode("--tokens", tmp_path).line
    assert "is the folder of the tokens themselves" in decode("--output", finished / "out").line
    (copied / "manifest.json").unlink()
    assert "not finished" in decode("--tokens", copied).line
    assert not (tmp_path / "images").exists()


def test_images_are_no_tokens(decode: Vqgan, tmp_path: Path) -> None:
    assert decode("--limit", 2).code == 0
    refused = decode("--tokens", tmp_path / "images", "--output", tmp_path / "more")
    assert "holds images already" in refused.line


def test_a_codec_that_is_gone(decode: Vqgan, copied: Path, codec_path: str, manifest: Any) -> None:
    """The data set names the codec's folder of another machine: it has to be given."""
    document = manifest(copied)
    document["codec"]["name"] = "/elsewhere/codec"
    (copied / "manifest.json").write_text(json.dumps(document))
    refused = decode("--tokens", copied)
    assert refused.code == 2
    assert "its codec /elsewhere/codec" in refused.line
    assert "give it with --codec" in refused.line
    assert decode("--tokens", copied, "--codec", codec_path, "--limit", 1).code == 0


def _lose(path: Path) -> None:
    path.unlink()


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _replace(path: Path) -> None:
    shutil.copy(path.with_name(path.name.replace("00002-", "00003-")), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_lose, "missing, though the manifest names it"),
        (_shorten, "bytes, but the manifest says"),
        (_replace, "but the manifest says"),
    ],
)
def test_damaged_shards(
    decode: Vqgan, copied: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    """Found before any work."""
    damage(copied / "data" / "tokens-00002-of-00004.parquet")
    result = decode("--tokens", copied)
    assert result.code == 2
    assert "tokens-00002-of-00004.parquet" in result.line
    assert message in result.line
    assert not (tmp_path / "images").exists()


def test_another_row_count(decode: Vqgan, copied: Path, manifest: Any) -> None:
    document = manifest(copied)
    document["shards"][1]["rows"] += 1
    (copied / "manifest.json").write_text(json.dumps(document))
    assert "00001-of-00004.parquet: rows is" in decode("--tokens", copied).line


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document.pop("grid"),
        lambda document: document.pop("codec"),
        lambda document: document["shards"][0].pop("sha256"),
        lambda document: document.update(grid=3),
    ],
)
def test_damaged_manifest(decode: Vqgan, copied: Path, manifest: Any, damage: Callable[[Any], Any]) -> None:
    document = manifest(copied)
    damage(document)
    (copied / "manifest.json").write_text(json.dumps(document))
    result = decode("--tokens", copied)
    assert result.code == 2
    assert "manifest.json: damaged" in result.line


def test_another_plan_is_refused(decode: Vqgan, tmp_path: Path) -> None:
    assert decode("--limit", 2).code == 0
    before = contents(tmp_path / "images")
    for flags, difference in (
        (["--limit", 3], "limit: 2, now 3"),
        (["--limit", 2, "--first-view-only"], "views: all, now first"),
        (["--limit", 2, "--format", "tar"], "form.container: files, now tar"),
        (["--limit", 2, "--dtype", "bfloat16"], "dtype: float32, now bfloat16"),
    ):
        result = decode(*flags)
        assert result.code == 2
        assert "belongs to another run" in result.line
        assert difference in result.line
    assert contents(tmp_path / "images") == before


def test_images_of_format_version_1(decode: Vqgan, vqgan: Vqgan, tmp_path: Path, manifest: Any) -> None:
    """Refused in one line that says what to do, whether they were finished or not."""
    output = tmp_path / "images"
    assert decode("--limit", 2).code == 0
    plan = json.loads((output / "plan" / "plan.json").read_text())
    identity = {**plan["identity"], "version": 1}
    old = Plan(identity, plan["slices"], plan["entries"])
    (output / "plan" / "plan.json").write_text(json.dumps({**dataclasses.asdict(old), "hash": old.hash}))
    (output / "manifest.json").write_text(json.dumps({**manifest(output), "version": 1}))
    advice = "format version 1, this release reads 2; make the data set again, in a new folder"
    for command in (("verify", output), ("inspect", output)):
        refused = vqgan(*command)
        assert (refused.code, refused.line.endswith(advice)) == (2, True)
    assert decode("--limit", 2).line.endswith(advice)
    (output / "manifest.json").unlink()
    assert decode("--limit", 2).line.endswith(advice)
    assert vqgan("inspect", output).line.endswith(advice)


def test_another_decoder_is_another_plan(
    decode: Vqgan, codec_path: str, other_codec: str, tmp_path: Path
) -> None:
    """Same tokens, same fingerprint, other weights in the decoder: other images."""
    mixed = tmp_path / "mixed"
    shutil.copytree(codec_path, mixed)
    document = json.loads((mixed / "codec.json").read_text())
    document["decoder_sha256"] = "f" * 64
    (mixed / "codec.json").write_text(json.dumps(document))
    assert decode("--limit", 2).code == 0
    result = decode("--limit", 2, "--codec", mixed)
    assert "codec.decoder_sha256" in result.line


def config_of(finished: Path, output: Path, **changes: Any) -> DecodeTokensConfig:
    config = DecodeTokensConfig(
        tokens=str(finished / "out"),
        output=str(output),
        batch_size=4,
        threads=2,
        limit=17,
        report=False,
        quiet=True,
    )
    return dataclasses.replace(config, **changes)


def test_job_and_transform_can_be_pickled(finished: Path, tmp_path: Path) -> None:
    prepared = decode_tokens.plan_decode(config_of(finished, tmp_path / "out"))
    assert not (tmp_path / "out").exists(), "preparing writes nothing"
    assert pickle.loads(pickle.dumps(prepared.job)) == prepared.job
    assert len(pickle.dumps(prepared.job)) < 2000, "slices are read by workers, not sent to them"
    assert pickle.loads(pickle.dumps(MakeSlice(prepared.job)))._job == prepared.job
    pipeline = beam.Pipeline(runner="FnApiRunner")
    pipeline | RunJob(prepared.job, prepared.plan)
    leaves = [t for t in pipeline.to_runner_api().components.transforms.values() if not t.subtransforms]
    assert all(len(transform.inputs) <= 1 and len(transform.outputs) == 1 for transform in leaves)


# Killed by the system.


def start(finished: Path, output: Path, files: int) -> int:
    where = ["decode", "--tokens", finished / "out", "--output", output, "--limit", "17"]
    flags = ["--batch-size", "4", "--threads", "2", "--quiet", "--no-report"]
    argv = [sys.executable, "-c", MORTAL_PROGRAM, files, 0, *where, *flags]
    return subprocess.run([*map(str, argv)], cwd=ROOT, timeout=300, check=False).returncode


def test_killed_processes(finished: Path, tmp_path: Path) -> None:
    assert start(finished, tmp_path / "reference", 0) == 0
    output = tmp_path / "run"
    for files in (2, 9, 16):  # at the plan, inside the first slice, inside the second
        assert start(finished, output, files) == -signal.SIGKILL, "it was not killed at work"
        KILLS["launchers"] += 1
    assert list(output.rglob("*.tmp"))
    decode_tokens.run_decode(config_of(finished, output), [])
    assert contents(output) == contents(tmp_path / "reference")
