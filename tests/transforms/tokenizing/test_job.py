"""The Beam transform: its output, its counters, and any number of slices."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from pipelines.tokenize_images import PlannedTokenize, TokenizeConfig
from transforms.sharded import progress
from transforms.sharded.beam_graph import MakeSlice, RunJob, SumSummaries
from transforms.sharded.job import make_slice
from transforms.sharded.worker import RunSettings
from vqgan.errors import UserError

Configure = Callable[..., TokenizeConfig]
Planned = Callable[[TokenizeConfig], PlannedTokenize]
Run = Callable[[TokenizeConfig], dict[str, Any]]


def note(manifest: Mapping[str, Any], path: Path) -> None:
    with path.open("a") as file:
        file.write(f"{manifest['plan_hash']}\n")


def through_beam(prepared: PlannedTokenize, seen: Path) -> Any:
    """Runs the transform, its output going to ``seen``; gives the pipeline's result."""
    pipeline = beam.Pipeline(runner="FnApiRunner")
    pipeline | RunJob(prepared.job, prepared.plan) | beam.Map(note, seen)
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
    first, second = MakeSlice(job), MakeSlice(job)
    first.setup()
    second.setup()
    assert first._model is second._model


@pytest.mark.parametrize("wanted", [True, False])
def test_workers_keep_programs_where_the_launcher_says_so(
    configure: Configure, planned: Planned, photos: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    calls: list[str] = []
    monkeypatch.setattr("transforms.sharded.worker.enable_compilation_cache", lambda: calls.append("on"))
    prepared = planned(configure(photos))
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        pipeline | RunJob(prepared.job, prepared.plan, RunSettings(compilation_cache=wanted))
    assert bool(calls) == wanted
    worker = pickle.loads(pickle.dumps(MakeSlice(prepared.job, RunSettings(compilation_cache=wanted))))
    calls.clear()
    worker.setup()
    assert calls == (["on"] if wanted else [])


def test_no_weights_are_read_for_the_manifest(
    configure: Configure, planned: Planned, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless there is a report, which shows reconstructions."""
    prepared = planned(configure(photos))
    job, totals = prepared.job, prepared.job.empty_totals()
    codec = job.load_model()
    for number in range(job.task.slices):
        totals.add(make_slice(job, number, codec, lambda images, rejects: None))

    def no_weights(*_: Any) -> Any:
        raise AssertionError("weights are read")

    monkeypatch.setattr("transforms.tokenizing.job.load_codec", no_weights)
    manifest = job.finish(totals, prepared.plan)
    assert manifest["codec"]["fingerprint"] == codec.fingerprint
    assert manifest["grid"] == [16, 16]


def test_no_manifest_from_too_few_shards(configure: Configure, planned: Planned, photos: Path) -> None:
    prepared = planned(configure(photos))
    total = SumSummaries(prepared.job)
    empty = total.extract_output(total.create_accumulator())
    with pytest.raises(UserError, match="0 shards of 0 entries do not make the plan's 4 of 20"):
        prepared.job.finish(empty, prepared.plan)
    assert not (Path(prepared.config.output) / "manifest.json").exists()
