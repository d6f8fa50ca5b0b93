"""The Beam transform: its output, its counters, and any number of slices."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from pipelines.tokenize_images import Prepared, TokenizeConfig
from transforms import progress
from transforms.beam_slices import MakeSlice, SumSummaries
from transforms.inference import load_codec
from transforms.manifest import Totals, total
from transforms.slices import make_shard
from transforms.tokenizing import TokenizeCorpus, finish
from vqgan.errors import UserError

Configure = Callable[..., TokenizeConfig]
Planned = Callable[[TokenizeConfig], Prepared]
Run = Callable[[TokenizeConfig], dict[str, Any]]


def note(manifest: Mapping[str, Any], path: Path) -> None:
    with path.open("a") as file:
        file.write(f"{manifest['plan_hash']}\n")


def through_beam(prepared: Prepared, seen: Path) -> Any:
    """Runs the transform, its output going to ``seen``; gives the pipeline's result."""
    pipeline = beam.Pipeline(runner="FnApiRunner")
    pipeline | TokenizeCorpus(prepared.job, prepared.plan, write_report=False) | beam.Map(note, seen)
    result = pipeline.run()
    result.wait_until_finish()
    return result


@pytest.mark.parametrize("size", [1, 7, 100])
def test_same_shards_as_without_beam(
    configure: Configure, planned: Planned, run: Run, photos: Path, tmp_path: Path, size: int
) -> None:
    prepared = planned(configure(photos, slice_size=size))
    shown = progress.Progress(20, quiet=True)
    progress.show(shown)
    try:
        result = through_beam(prepared, tmp_path / "seen")
    finally:
        progress.show(None)
    assert (shown.images, shown.rejects) == (20, 0)
    counters = {metric.key.metric.name: metric.committed for metric in result.metrics().query()["counters"]}
    assert counters["images"] == 20
    assert (tmp_path / "seen").read_text() == f"{prepared.plan.hash}\n"
    plain = run(configure(photos, slice_size=size, output=str(tmp_path / "plain")))
    names = [entry["name"] for entry in plain["shards"]]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert len(names) == -(-20 // size)


def test_one_codec_for_all(configure: Configure, planned: Planned, photos: Path) -> None:
    job = planned(configure(photos)).job
    first, second = MakeSlice(job, make_shard), MakeSlice(job, make_shard)
    first.setup()
    second.setup()
    assert first._codec is second._codec


def test_no_weights_are_read_for_the_manifest(
    configure: Configure, planned: Planned, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless there is a report, which shows reconstructions."""
    prepared = planned(configure(photos))
    job = prepared.job
    codec = load_codec(job.codec, job.batch_size, job.dtype)
    slices = [make_shard(job, number, codec, lambda images, rejects: None) for number in range(job.slices)]

    def no_weights(*_: Any) -> Any:
        raise AssertionError("weights are read")

    monkeypatch.setattr("transforms.tokenizing.load_codec", no_weights)
    manifest = finish(total(slices), job, prepared.plan, with_report=False)
    assert manifest["codec"]["fingerprint"] == codec.fingerprint
    assert manifest["grid"] == [16, 16]


def test_no_manifest_from_too_few_shards(configure: Configure, planned: Planned, photos: Path) -> None:
    prepared = planned(configure(photos))
    empty = SumSummaries().extract_output(Totals())
    with pytest.raises(UserError, match="0 shards of 0 entries do not make the plan's 4 of 20"):
        finish(empty, prepared.job, prepared.plan, with_report=False)
    assert not (Path(prepared.config.output) / "manifest.json").exists()
