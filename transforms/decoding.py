"""The decode pipeline as Beam transforms: thin wrappers around :mod:`transforms.rendering.slices`.

What both directions share of the graph is in :mod:`transforms.beam_slices`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import apache_beam as beam

from transforms.beam_slices import MakeSlice, SumSummaries, over_slices
from transforms.manifest import by_name
from transforms.plan import Plan
from transforms.rendering.card import write_card
from transforms.rendering.manifest import build_image_manifest
from transforms.rendering.metadata import write_metadata
from transforms.rendering.slices import RenderJob, make_images
from transforms.rendering.summary import ImageTotals
from vqgan.codec_checkpoint import read_info
from vqgan.config import to_dict
from vqgan.manifest import write_manifest


class DecodeTokens(beam.PTransform):
    """From the pipeline's root to one manifest, with all pictures written on the way.

    Args:
      job: the plan and how to carry it out.
      plan: the plan itself, for the manifest.
      write_report: also write ``report.html``.
    """

    def __init__(self, job: RenderJob, plan: Plan, write_report: bool = True):
        super().__init__()
        self._job = job
        self._plan = plan
        self._write_report = write_report

    def expand(self, root: Any) -> Any:
        """The linear graph from the root to the manifest."""
        finishing = functools.partial(
            finish_images, job=self._job, plan=self._plan, with_report=self._write_report
        )
        make = MakeSlice(self._job, make_images)
        return over_slices(root, self._job.slices, make, SumSummaries(ImageTotals), finishing)


def finish_images(totals: ImageTotals, job: RenderJob, plan: Plan, with_report: bool) -> Mapping[str, Any]:
    """Writes what is of the whole and, last, the manifest; gives the manifest back.

    All are published whole under fixed names, so a retry of this step does no harm.
    """
    info = read_info(job.codec)
    described = {
        "name": job.codec,
        "fingerprint": info.fingerprint,
        "decoder_sha256": info.decoder_sha256,
        "config": to_dict(info.config),
        "card": dict(info.card),
    }
    metadata = None
    if job.form.container == "files":
        metadata = write_metadata(job.output, [entry["name"] for entry in by_name(totals.shards)])
    manifest = build_image_manifest(plan, totals, described, job.tokens, metadata)
    write_card(job.output, manifest)
    if with_report:
        from transforms.rendering.report import write_image_report

        write_image_report(job.output, manifest)
    write_manifest(job.output, manifest)
    return manifest
