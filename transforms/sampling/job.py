"""Sampling as a sharded job. It runs on one host without Beam: the devices of the host are the workers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from transforms.sampling.shard import (
    SampleTask,
    SamplingModel,
    first_tokens,
    restore_images,
    write_image_list,
    write_samples,
)
from transforms.sharded.batching import measure_pixel_agreement
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
from vqgan.engines.agreement import SAMPLE
from vqgan.engines.choice import JAX_ENGINE, EngineChoice
from vqgan.shards import shard_name


@dataclasses.dataclass(frozen=True)
class SampleJob(ShardedJob):
    """Tokens drawn from a prior to shards; see :class:`ShardedJob`.

    Attributes:
      task: the plan and how to carry it out.
      load: loads prior and codec.
      codec: JSON data about the codec, for readers.
      write_grid: writes the image grid of the first samples; None for none.
      engine: what runs the codec's networks.
    """

    task: SampleTask
    load: Callable[[], SamplingModel]
    codec: Mapping[str, Any]
    write_grid: Callable[[], None] | None = None
    engine: EngineChoice = JAX_ENGINE

    def load_model(self) -> SamplingModel:
        return self.load()

    def shard_name(self, number: int) -> str:
        return shard_name(number, self.task.slices)

    def is_whole(self, number: int) -> bool:
        return is_of_plan(self.task.output, number, self.task.slices, self.task.plan_hash)

    def write(self, number: int, model: SamplingModel, progress: ProgressCallback) -> None:
        write_samples(self.task, number, model, progress)

    def restore(self, number: int, model: SamplingModel) -> None:
        if model.codec is not None:
            restore_images(self.task, number, model.codec)

    def summarize(self, number: int, seconds: float | None) -> TokenSlice:
        return summarize_tokens(self.task.output, number, self.task.slices, seconds)

    def empty_totals(self) -> TokenTotals:
        return TokenTotals()

    def finish(self, totals: TokenTotals, plan: Plan) -> dict[str, Any]:
        """Publishes the image grid, the list of images, the card and, last, the manifest."""
        manifest = build_token_manifest(plan, totals, self.codec, self.task.metadata.grid)
        if self.write_grid is not None:
            self.write_grid()
            write_image_list(self.task)
            manifest |= self._agreement()
        publish_token_manifest(self.task.output, manifest)
        return manifest

    def _agreement(self) -> dict[str, Any]:
        """Returns how far the images of another engine are JAX's, as a part of the manifest."""
        if self.engine.is_jax:
            return {}
        tokens = first_tokens(self.task, SAMPLE)
        compared = measure_pixel_agreement(self.codec["name"], "float32", self.engine, tokens)
        return {"agreement_with_jax": dataclasses.asdict(compared)}
