"""The graph that every sharded job runs, and the Beam wrappers in it.

The graph is linear and carries slice numbers and summaries only, never pixels, so every runner gives
the same bytes::

    Impulse -> slice numbers -> Reshuffle -> make slice -> sum -> report -> manifest
"""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from transforms.sharded import progress
from transforms.sharded.job import ShardedJob
from transforms.sharded.plan import Plan
from transforms.sharded.summary import FinishedSlice, SliceTotals
from transforms.sharded.worker import DEFAULT_SETTINGS, RunSettings, finish_job, make_reported, open_model


class RunJob(beam.PTransform):
    """From the pipeline's root to one manifest, with all shards written on the way.

    Args:
      job: what to do.
      plan: the plan itself, for the manifest.
      settings: of the run, for workers.
    """

    def __init__(self, job: ShardedJob, plan: Plan, settings: RunSettings = DEFAULT_SETTINGS):
        super().__init__()
        self._job = job
        self._plan = plan
        self._settings = settings

    def expand(self, root: Any) -> Any:
        """Builds the linear graph from the root to the manifest."""
        return (
            root
            | "Start" >> beam.Impulse()
            | "SliceNumbers" >> beam.FlatMap(_numbers, self._job.task.slices)
            | "Spread" >> beam.Reshuffle()
            | "MakeSlice" >> beam.ParDo(MakeSlice(self._job, self._settings))
            # Without the default for empty inputs, whose side input would make the graph branch.
            | "Sum" >> beam.CombineGlobally(SumSummaries(self._job)).without_defaults()
            | "Finish" >> beam.Map(finish_job, self._job, self._plan, self._settings)
        )


class MakeSlice(beam.DoFn):
    """Slice number to the summary of its finished slice."""

    def __init__(self, job: ShardedJob, settings: RunSettings = DEFAULT_SETTINGS):
        super().__init__()
        self._job = job
        self._settings = settings
        self._images = Metrics.counter("vqgan", "images")
        self._rejects = Metrics.counter("vqgan", "rejects")

    def setup(self) -> None:
        self._model = open_model(self._job, self._settings)

    def process(self, number: int) -> Iterator[FinishedSlice]:
        yield make_reported(self._job, number, self._model, self._settings.attempt, self._report)

    def _report(self, images: int, rejects: int) -> None:
        self._images.inc(images)
        self._rejects.inc(rejects)
        progress.report(images, rejects)


class SumSummaries(beam.CombineFn):
    """Summaries of slices to their sum."""

    def __init__(self, job: ShardedJob):
        super().__init__()
        self._job = job

    def create_accumulator(self) -> SliceTotals:
        return self._job.empty_totals()

    def add_input(self, accumulator: SliceTotals, summary: FinishedSlice) -> SliceTotals:
        accumulator.add(summary)
        return accumulator

    def merge_accumulators(self, accumulators: Any) -> SliceTotals:
        merged = self._job.empty_totals()
        for accumulator in accumulators:
            merged.merge(accumulator)
        return merged

    def extract_output(self, accumulator: SliceTotals) -> SliceTotals:
        return accumulator


def _numbers(_: bytes, slices: int) -> Iterator[int]:
    yield from range(slices)
