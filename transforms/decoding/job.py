"""Decoding as a sharded job."""

import dataclasses
from typing import Any

from transforms.decoding.index import index_name, open_index
from transforms.decoding.manifest import (
    ImageSlice,
    ImageTotals,
    build_image_manifest,
    lost_images,
    summarize_images,
    write_image_card,
    write_metadata,
)
from transforms.decoding.report import write_image_report
from transforms.decoding.shard import DecodeTask, first_grids, write_images
from transforms.sharded.batching import load_codec, measure_pixel_agreement
from transforms.sharded.job import ProgressCallback, ShardedJob, plain_local_paths
from transforms.sharded.manifest import by_name
from transforms.sharded.plan import Plan
from vqgan.codec_checkpoint import read_info
from vqgan.config_json import to_dict
from vqgan.engines.agreement import SAMPLE
from vqgan.manifest import write_manifest


@dataclasses.dataclass(frozen=True)
class DecodeJob(ShardedJob):
    """Shards of tokens to images; see :class:`ShardedJob`. The shard of a slice is its index.

    Attributes:
      task: the plan and how to carry it out.
      with_report: also write ``report.html``.
    """

    task: DecodeTask
    with_report: bool = True

    def load_model(self) -> Any:
        task = self.task
        return load_codec(task.codec, task.batch_size, task.dtype, task.engine)

    def local_paths(self) -> tuple[str, ...]:
        return plain_local_paths(self.task.codec, self.task.tokens.path)

    def shard_name(self, number: int) -> str:
        return index_name(number, self.task.slices, self.task.form.container)

    def is_whole(self, number: int) -> bool:
        with open_index(self.task.output, self.shard_name(number)) as index:
            metadata = index.metadata
            found = (metadata.plan_hash, metadata.slice_number, metadata.slices)
            wanted = (self.task.plan_hash, number, self.task.slices)
            return found == wanted and not lost_images(self.task.output, index)

    def write(self, number: int, model: Any, progress: ProgressCallback) -> None:
        write_images(self.task, number, model, progress)

    def summarize(self, number: int, seconds: float | None) -> ImageSlice:
        task = self.task
        return summarize_images(task.output, number, task.slices, task.form.container, seconds)

    def empty_totals(self) -> ImageTotals:
        return ImageTotals()

    def finish(self, totals: ImageTotals, plan: Plan) -> dict[str, Any]:
        """Publishes what lies beside the images: list, card, report and, last, the manifest."""
        task, info = self.task, read_info(self.task.codec)
        described = {
            "name": task.codec_name or task.codec,
            "fingerprint": info.fingerprint,
            "decoder_sha256": info.decoder_sha256,
            "config": to_dict(info.config),
            "card": dict(info.card),
        }
        metadata = None
        if task.form.container == "files":
            metadata = write_metadata(task.output, [entry["name"] for entry in by_name(totals.shards)])
        manifest = build_image_manifest(plan, totals, described, task.tokens, metadata)
        if not task.engine.is_jax and len(tokens := first_grids(task, SAMPLE)):
            compared = measure_pixel_agreement(task.codec, task.dtype, task.engine, tokens)
            manifest["agreement_with_jax"] = dataclasses.asdict(compared)
        write_image_card(task.output, manifest)
        if self.with_report:
            write_image_report(task.output, manifest)
        write_manifest(task.output, manifest)
        return manifest
