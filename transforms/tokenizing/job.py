"""Tokenizing as a sharded job, and the finding of examples with the same bytes before its work."""

import dataclasses
import hashlib
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from transforms.sharded.batching import load_codec
from transforms.sharded.job import ProgressCallback, ShardedJob, plain_local_paths
from transforms.sharded.plan import Plan
from transforms.sharded.rejects import DUPLICATE
from transforms.sharded.slices import entries_of
from transforms.sources.base import Loader, Source
from transforms.tokenizing.manifest import (
    TokenSlice,
    TokenTotals,
    build_token_manifest,
    is_of_plan,
    publish_token_manifest,
    summarize_tokens,
)
from transforms.tokenizing.replay import measure_agreement, measure_token_agreement
from transforms.tokenizing.report import REPORT_BATCH_SIZE, write_token_report
from transforms.tokenizing.shard import TokenizeTask, is_outdated, write_shard
from vqgan.codec_checkpoint import read_info
from vqgan.faults import raise_machine_fault
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
        task = self.task
        return load_codec(task.codec, task.batch_size, task.dtype, task.engine)

    def local_paths(self) -> tuple[str, ...]:
        source = "" if self.task.source.kind == "tfds" else self.task.source.input
        return plain_local_paths(self.task.codec, source)

    def shard_name(self, number: int) -> str:
        return shard_name(number, self.task.slices, self.task.part)

    def is_whole(self, number: int) -> bool:
        """Checks as well that no reject has passed."""
        task = self.task
        whole = is_of_plan(task.output, number, task.slices, task.plan_hash, task.part)
        return whole and not is_outdated(task, number)

    def write(self, number: int, model: Any, progress: ProgressCallback) -> None:
        write_shard(self.task, number, model, progress)

    def summarize(self, number: int, seconds: float | None) -> TokenSlice:
        task = self.task
        return summarize_tokens(task.output, number, task.slices, seconds, task.part)

    def empty_totals(self) -> TokenTotals:
        return TokenTotals()

    def finish(self, totals: TokenTotals, plan: Plan) -> dict[str, Any]:
        """Publishes the report, the card and, last, the manifest."""
        task, info = self.task, read_info(self.task.codec)
        described = {
            "name": task.codec_name or task.codec,
            "fingerprint": info.fingerprint,
            "config": plan.identity["codec"]["config"],
            "card": dict(info.card),
        }
        grid = info.config.grid(*task.geometry.shape)
        manifest = build_token_manifest(plan, totals, described, grid)
        if task.dtype != "float32":
            exact = load_codec(task.codec, task.batch_size, "float32", task.engine)
            agreement = measure_agreement(task, exact, AGREEMENT_SAMPLE)
            manifest["agreement_with_float32"] = agreement._asdict()
        if not task.engine.is_jax and (compared := measure_token_agreement(task)):
            manifest["agreement_with_jax"] = dataclasses.asdict(compared)
        self.report(manifest)
        publish_token_manifest(task.output, manifest)
        return manifest

    def report(self, manifest: Mapping[str, Any]) -> None:
        """Publishes the report, where one is wanted."""
        if self.with_report:
            task = self.task
            codec = load_codec(task.codec, REPORT_BATCH_SIZE, task.dtype, task.engine)
            write_token_report(task, manifest, codec)


WINDOW = 64  # examples read ahead


def mark_duplicates(source: Source, table: pa.Table, threads: int, known: Collection[str] = ()) -> pa.Table:
    """Gives every example whose bytes occur under a known or a lesser key an error that names that key.

    Reads the whole source once. Examples that cannot be read are left as they are; they become
    rejects later, with their reason.

    Args:
      source: where the entries come from.
      table: entries in the source's order, of :data:`transforms.sharded.slices.ENTRY_SCHEMA`.
      threads: readers.
      known: keys that go before all others.
    """
    digests = list(_digests(source, table, threads))
    keys = table.column("key").to_pylist()
    first: dict[bytes, str] = {}
    for key, digest in zip(keys, digests, strict=True):
        if digest is not None:
            first[digest] = min(key, first.get(digest, key), key=lambda each: (each not in known, each))
    errors = [
        f"{DUPLICATE}{first[digest]}" if digest is not None and first[digest] != key else error
        for key, digest, error in zip(keys, digests, table.column("error").to_pylist(), strict=True)
    ]
    position = table.schema.get_field_index("error")
    field = table.schema.field(position)
    return table.set_column(position, field, pa.array(errors, field.type))


def _digests(source: Source, table: pa.Table, threads: int) -> Iterator[bytes | None]:
    """Yields sha256 of each entry's bytes, in order; None for what cannot be read."""
    entries = entries_of(table)
    loaders = source.read([entry for entry in entries if entry.error is None])
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[bytes | None] | None] = deque()
        for entry in entries:
            pending.append(pool.submit(_digest, next(loaders)) if entry.error is None else None)
            if len(pending) > WINDOW:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())


def _digest(load: Loader) -> bytes | None:
    try:
        return hashlib.sha256(load().data).digest()
    except Exception as error:  # noqa: BLE001 - what cannot be read is like nothing else
        raise_machine_fault(error, "the input cannot be read in search of duplicates")
        return None


def _result(future: Future[bytes | None] | None) -> bytes | None:
    return None if future is None else future.result()
