"""The tokenize pipeline as Beam transforms: thin wrappers around :mod:`transforms.slices`.

The graph is linear and carries slice numbers and summaries only, never pixels, so every runner gives
the same bytes::

    Impulse -> slice numbers -> Reshuffle -> make shard -> sum -> report -> manifest
"""

from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from transforms import progress
from transforms.inference import load_codec
from transforms.manifest import Totals, build_manifest
from transforms.plan import Plan
from transforms.slices import Job, make_shard
from transforms.summary import SliceSummary
from transforms.verifying import measure_agreement
from vqgan.manifest import write_manifest

AGREEMENT_SAMPLE = 64
"""Images encoded once more in float32 where the run computes in another type."""


class TokenizeCorpus(beam.PTransform):
    """From the pipeline's root to one manifest, with all shards written on the way.

    Args:
      job: the plan and how to carry it out.
      plan: the plan itself, for the manifest.
      write_report: also write ``report.html``.
    """

    def __init__(self, job: Job, plan: Plan, write_report: bool = True):
        super().__init__()
        self._job = job
        self._plan = plan
        self._write_report = write_report

    def expand(self, root: Any) -> Any:
        """The linear graph from the root to the manifest."""
        return (
            root
            | "Start" >> beam.Impulse()
            | "SliceNumbers" >> beam.FlatMap(_numbers, self._job.slices)
            | "Spread" >> beam.Reshuffle()
            | "MakeShard" >> beam.ParDo(MakeShard(self._job))
            # Without the default for empty inputs, whose side input would make the graph branch.
            | "Sum" >> beam.CombineGlobally(SumSummaries()).without_defaults()
            | "Finish" >> beam.Map(finish, self._job, self._plan, self._write_report)
        )


class MakeShard(beam.DoFn):
    """Slice number to the summary of its finished shard."""

    def __init__(self, job: Job):
        super().__init__()
        self._job = job
        self._images = Metrics.counter("vqgan", "images")
        self._rejects = Metrics.counter("vqgan", "rejects")

    def setup(self) -> None:
        self._codec = load_codec(self._job.codec, self._job.batch_size, self._job.dtype)

    def process(self, number: int) -> Iterator[SliceSummary]:
        yield make_shard(self._job, number, self._codec, self._report)

    def _report(self, images: int, rejects: int) -> None:
        self._images.inc(images)
        self._rejects.inc(rejects)
        progress.report(images, rejects)


class SumSummaries(beam.CombineFn):
    """Slice summaries to their :class:`~transforms.manifest.Totals`."""

    def create_accumulator(self) -> Totals:
        return Totals()

    def add_input(self, accumulator: Totals, summary: SliceSummary) -> Totals:
        accumulator.add(summary)
        return accumulator

    def merge_accumulators(self, accumulators: Any) -> Totals:
        merged = Totals()
        for accumulator in accumulators:
            merged.merge(accumulator)
        return merged

    def extract_output(self, accumulator: Totals) -> Totals:
        return accumulator


def finish(totals: Totals, job: Job, plan: Plan, with_report: bool) -> Mapping[str, Any]:
    """Writes the report and, last, the manifest; gives the manifest back.

    Both are published whole under fixed names, so a retry of this step does no harm.
    """
    codec = load_codec(job.codec, job.batch_size, job.dtype)
    described = {
        "name": job.codec,
        "fingerprint": codec.fingerprint,
        "config": plan.identity["codec"]["config"],
        "card": dict(codec.info.card),
    }
    grid = codec.config.grid(job.geometry.image_size, job.geometry.image_size)
    manifest = build_manifest(plan, totals, described, grid)
    if job.dtype != "float32":
        exact = load_codec(job.codec, job.batch_size, "float32")
        manifest["agreement_with_float32"] = measure_agreement(job, exact, AGREEMENT_SAMPLE)._asdict()
    if with_report:
        from transforms.report import write_report

        write_report(job, manifest, codec)
    write_manifest(job.output, manifest)
    return manifest


def _numbers(_: bytes, slices: int) -> Iterator[int]:
    yield from range(slices)
