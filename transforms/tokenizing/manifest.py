"""Finished slices of tokens, their sum, and the manifest of a token data set, tokenized or sampled."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from transforms.sharded.manifest import common_parts
from transforms.sharded.plan import Plan
from transforms.sharded.summary import FinishedSlice, SliceTotals, describe_file, summarize_rejects
from vqgan import filesystems, publishing
from vqgan.dataset_card import CARD_FILE, render_dataset_card
from vqgan.manifest import write_manifest
from vqgan.metrics.codebook_usage import codebook_usage
from vqgan.shards import open_shard, shard_name


@dataclasses.dataclass(frozen=True)
class TokenSlice(FinishedSlice):
    """One finished slice of tokens.

    Attributes:
      token_bytes: size of the token column.
      histogram: ``[K]`` how often each code occurs.
    """

    token_bytes: int
    histogram: np.ndarray


@dataclasses.dataclass
class TokenTotals(SliceTotals):
    """Sum of slices of tokens.

    Attributes:
      token_bytes: size of all token columns.
      histogram: ``[K]`` how often each code occurs, or None before the first slice.
    """

    token_bytes: int = 0
    histogram: np.ndarray | None = None

    def add(self, summary: TokenSlice) -> None:
        """Adds one slice."""
        super().add(summary)
        self.token_bytes += summary.token_bytes
        counts = summary.histogram
        self.histogram = counts if self.histogram is None else self.histogram + counts


def is_of_plan(output: str, number: int, slices: int, plan_hash: str, part: int = 0) -> bool:
    """Checks that a shard is this slice of a plan. Raises UserError or OSError where it cannot be read."""
    with open_shard(filesystems.join(output, shard_name(number, slices, part))) as shard:
        metadata = shard.metadata
        found = (metadata.plan_hash, metadata.slice_number, metadata.slices)
        return found == (plan_hash, number, slices)


def summarize_tokens(
    output: str, number: int, slices: int, seconds: float | None, part: int = 0
) -> TokenSlice:
    """Reads a slice's shard and rejects.

    Raises:
      UserError: the shard is damaged.
    """
    name = shard_name(number, slices, part)
    with open_shard(filesystems.join(output, name), name) as shard:
        metadata = shard.metadata
        histogram = np.zeros(metadata.codebook_size, np.int64)
        for batch in shard.batches():  # all columns, though only tokens are counted: damage must not pass
            histogram += np.bincount(shard.tokens(batch).reshape(-1), minlength=len(histogram))
        rows, token_bytes = shard.rows, shard.token_bytes()
    reject_file, reasons = summarize_rejects(output, number, slices, metadata.rejects, part)
    return TokenSlice(
        number=number,
        planned=metadata.planned,
        images=metadata.images,
        shard=describe_file(output, name, rows),
        reject_file=reject_file,
        reject_reasons=reasons,
        token_bytes=token_bytes,
        histogram=histogram,
        seconds=seconds,
    )


def build_token_manifest(
    plan: Plan, totals: TokenTotals, codec: Mapping[str, Any], grid: tuple[int, int]
) -> dict[str, Any]:
    """Builds the manifest as JSON data; arguments and errors are those of :func:`common_parts`."""
    parts = common_parts(plan, totals, codec, grid)
    histogram = totals.histogram if totals.histogram is not None else np.zeros(0, np.int64)
    parts["counts"]["tokens"] = int(histogram.sum())
    return parts | token_statistics(histogram, totals.shards, totals.token_bytes)


def token_statistics(
    histogram: np.ndarray, shards: Iterable[Mapping[str, Any]], token_bytes: int
) -> dict[str, Any]:
    """Returns what a manifest says of codebook and storage.

    Args:
      histogram: ``[K]`` how often each code occurs.
      shards: JSON entries of all shards.
      token_bytes: size of their token columns.
    """
    usage, tokens = codebook_usage(histogram), int(histogram.sum())
    return {
        "codebook": {
            "size": len(histogram),
            "used": usage.used,
            "entropy_bits": usage.entropy,
            "perplexity": usage.perplexity,
            "histogram": histogram.tolist(),
        },
        "storage": {
            "bytes": sum(entry["bytes"] for entry in shards),
            "token_bytes": token_bytes,
            "bits_per_token": 8 * token_bytes / tokens if tokens else 0.0,
        },
    }


def publish_token_manifest(output: str, manifest: Mapping[str, Any]) -> None:
    """Publishes the card of a token data set and, last, its manifest."""
    card = render_dataset_card(manifest)
    publishing.write_bytes(filesystems.join(output, CARD_FILE), card.encode(errors="replace"))
    write_manifest(output, manifest)
