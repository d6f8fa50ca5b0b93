"""The tokenize pipeline as Beam transforms: thin wrappers around :mod:`transforms.slices`.

What both directions share of the graph is in :mod:`transforms.beam_slices`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import apache_beam as beam

from transforms.beam_slices import MakeSlice, SumSummaries, over_slices
from transforms.inference import load_codec
from transforms.manifest import Totals, build_manifest, finish_tokens
from transforms.plan import Plan
from transforms.slices import Job, make_shard
from transforms.verifying import measure_agreement
from vqgan.codec_checkpoint import read_info

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
        finishing = functools.partial(finish, job=self._job, plan=self._plan, with_report=self._write_report)
        make = MakeSlice(self._job, make_shard)
        return over_slices(root, self._job.slices, make, SumSummaries(Totals), finishing)


def finish(totals: Totals, job: Job, plan: Plan, with_report: bool) -> Mapping[str, Any]:
    """Writes the report, the card and, last, the manifest; gives the manifest back.

    All are published whole under fixed names, so a retry of this step does no harm.
    """
    info = read_info(job.codec)
    described = {
        "name": job.codec,
        "fingerprint": info.fingerprint,
        "config": plan.identity["codec"]["config"],
        "card": dict(info.card),
    }
    grid = info.config.grid(job.geometry.image_size, job.geometry.image_size)
    manifest = build_manifest(plan, totals, described, grid)
    if job.dtype != "float32":
        exact = load_codec(job.codec, job.batch_size, "float32")
        manifest["agreement_with_float32"] = measure_agreement(job, exact, AGREEMENT_SAMPLE)._asdict()
    if with_report:
        from transforms.report import write_report

        write_report(job, manifest, load_codec(job.codec, job.batch_size, job.dtype))
    finish_tokens(job.output, manifest)
    return manifest
