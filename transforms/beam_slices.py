"""The graph that every pipeline over slices runs, and the Beam wrappers in it.

The graph is linear and carries slice numbers and summaries only, never pixels, so every runner gives
the same bytes::

    Impulse -> slice numbers -> Reshuffle -> make slice -> sum -> report -> manifest
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from transforms import progress
from transforms.inference import load_codec
from transforms.manifest import SliceTotals, Totals
from transforms.slices import Progress
from transforms.summary import FinishedSlice

if TYPE_CHECKING:
    from vqgan.codec import Codec


class MakeSlice(beam.DoFn):
    """Slice number to the summary of its finished slice.

    Args:
      job: what workers need to know; it names ``codec``, ``batch_size`` and ``dtype``.
      make: makes a slice, or keeps it where a former run has finished it, given the job, the number of the
        slice, the codec, and whom to tell of images and rejects that are done.
    """

    def __init__(self, job: Any, make: Callable[[Any, int, "Codec", Progress], FinishedSlice]):
        super().__init__()
        self._job = job
        self._make = make
        self._images = Metrics.counter("vqgan", "images")
        self._rejects = Metrics.counter("vqgan", "rejects")

    def setup(self) -> None:
        self._codec = load_codec(self._job.codec, self._job.batch_size, self._job.dtype)

    def process(self, number: int) -> Iterator[FinishedSlice]:
        yield self._make(self._job, number, self._codec, self._report)

    def _report(self, images: int, rejects: int) -> None:
        self._images.inc(images)
        self._rejects.inc(rejects)
        progress.report(images, rejects)


class SumSummaries(beam.CombineFn):
    """Summaries of slices to their sum; ``empty`` makes a sum of none."""

    def __init__(self, empty: Callable[[], SliceTotals] = Totals):
        super().__init__()
        self._empty = empty

    def create_accumulator(self) -> SliceTotals:
        return self._empty()

    def add_input(self, accumulator: SliceTotals, summary: FinishedSlice) -> SliceTotals:
        accumulator.add(summary)
        return accumulator

    def merge_accumulators(self, accumulators: Any) -> SliceTotals:
        merged = self._empty()
        for accumulator in accumulators:
            merged.merge(accumulator)
        return merged

    def extract_output(self, accumulator: SliceTotals) -> SliceTotals:
        return accumulator


def over_slices(
    root: Any, slices: int, make: MakeSlice, total: SumSummaries, finish: Callable[[Any], Mapping[str, Any]]
) -> Any:
    """The graph from a pipeline's root to one manifest.

    Args:
      root: of the pipeline.
      slices: how many there are.
      make: makes one slice.
      total: sums their summaries.
      finish: publishes the manifest of a sum, and gives it back.
    """
    return (
        root
        | "Start" >> beam.Impulse()
        | "SliceNumbers" >> beam.FlatMap(_numbers, slices)
        | "Spread" >> beam.Reshuffle()
        | "MakeSlice" >> beam.ParDo(make)
        # Without the default for empty inputs, whose side input would make the graph branch.
        | "Sum" >> beam.CombineGlobally(total).without_defaults()
        | "Finish" >> beam.Map(finish)
    )


def _numbers(_: bytes, slices: int) -> Iterator[int]:
    yield from range(slices)
