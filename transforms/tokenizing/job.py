"""Tokenizing as a sharded job."""

import dataclasses
from typing import Any

from transforms.sharded.codec_cache import load_codec
from transforms.sharded.job import ProgressCallback, ShardedJob
from transforms.sharded.plan import Plan
from transforms.tokenizing.manifest import (
    TokenSlice,
    TokenTotals,
    build_token_manifest,
    is_of_plan,
    publish_token_manifest,
    summarize_tokens,
)
from transforms.tokenizing.replay import measure_agreement
from transforms.tokenizing.report import write_token_report
from transforms.tokenizing.shard import TokenizeTask, is_outdated, write_shard
from vqgan.codec_checkpoint import read_info
from vqgan.shards import shard_name

AGREEMENT_SAMPLE = 64
"""Images encoded once more in float32 where the run computes in another type."""


@dataclasses.dataclass(frozen=True)
class TokenizeJob(ShardedJob):
    """Images of a source to shards of tokens; see :class:`ShardedJob`.

    Attributes:
      task: the plan and how to carry it out.
      with_report: also write ``report.html``.
    """

    task: TokenizeTask
    with_report: bool = True

    def load_model(self) -> Any:
        return load_codec(self.task.codec, self.task.batch_size, self.task.dtype)

    def shard_name(self, number: int) -> str:
        return shard_name(number, self.task.slices)

    def is_whole(self, number: int) -> bool:
        """Also checks that rejects which may have passed have not."""
        task = self.task
        whole = is_of_plan(task.output, number, task.slices, task.plan_hash)
        return whole and not is_outdated(task, number)

    def write(self, number: int, model: Any, progress: ProgressCallback) -> None:
        write_shard(self.task, number, model, progress)

    def summarize(self, number: int, seconds: float | None) -> TokenSlice:
        return summarize_tokens(self.task.output, number, self.task.slices, seconds)

    def empty_totals(self) -> TokenTotals:
        return TokenTotals()

    def finish(self, totals: TokenTotals, plan: Plan) -> dict[str, Any]:
        """Publishes the report, the card and, last, the manifest."""
        task, info = self.task, read_info(self.task.codec)
        described = {
            "name": task.codec,
            "fingerprint": info.fingerprint,
            "config": plan.identity["codec"]["config"],
            "card": dict(info.card),
        }
        grid = info.config.grid(task.geometry.image_size, task.geometry.image_size)
        manifest = build_token_manifest(plan, totals, described, grid)
        if task.dtype != "float32":
            exact = load_codec(task.codec, task.batch_size, "float32")
            agreement = measure_agreement(task, exact, AGREEMENT_SAMPLE)
            manifest["agreement_with_float32"] = agreement._asdict()
        if self.with_report:
            write_token_report(task, manifest, self.load_model())
        publish_token_manifest(task.output, manifest)
        return manifest
