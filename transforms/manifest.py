"""The manifest: written last, from what the shards hold. Its presence means that a data set is complete."""

import dataclasses
import datetime
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from transforms.plan import Plan
from transforms.summary import SliceSummary
from vqgan import filesystems
from vqgan.dataset_card import CARD_FILE, render_dataset_card
from vqgan.errors import UserError
from vqgan.manifest import FORMAT_VERSION, write_manifest
from vqgan.metrics.codebook_usage import codebook_usage

PACKAGES = ("vqgan-pipelines", "apache-beam", "jax", "jaxlib", "flax", "numpy", "pyarrow", "pillow")


@dataclasses.dataclass
class SliceTotals:
    """Sum of many slices' summaries, whatever they hold; order of adding does not matter.

    Attributes:
      shards: JSON entry of each shard.
      rejects: JSON entry of each rejects file.
      planned, images, rows: over all slices.
      reasons: how often each reason for a reject occurs.
      new_images: images of slices made in this run.
      seconds: workers' time for them.
    """

    shards: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    rejects: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    planned: int = 0
    images: int = 0
    rows: int = 0
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    new_images: int = 0
    seconds: float = 0.0

    def add(self, summary: Any) -> None:
        """Adds one slice."""
        self.shards.append(dataclasses.asdict(summary.shard))
        if summary.reject_file is not None:
            self.rejects.append(dataclasses.asdict(summary.reject_file))
        if summary.seconds is not None:
            self.new_images += summary.images
            self.seconds += summary.seconds
        self.planned += summary.planned
        self.images += summary.images
        self.rows += summary.shard.rows
        self.reasons.update(summary.reject_reasons)

    def merge(self, other: Any) -> None:
        """Adds all that another sum holds."""
        self.shards += other.shards
        self.rejects += other.rejects
        self.planned += other.planned
        self.images += other.images
        self.rows += other.rows
        self.reasons.update(other.reasons)
        self.new_images += other.new_images
        self.seconds += other.seconds


@dataclasses.dataclass
class Totals(SliceTotals):
    """Sum of slices of tokens.

    Attributes:
      token_bytes: size of all token columns.
      histogram: ``[K]`` how often each code occurs, or None before the first slice.
    """

    token_bytes: int = 0
    histogram: np.ndarray | None = None

    def add(self, summary: SliceSummary) -> None:
        """Adds one slice."""
        super().add(summary)
        self.token_bytes += summary.token_bytes
        self.histogram = _add(self.histogram, summary.histogram)

    def merge(self, other: "Totals") -> None:
        """Adds all that another sum holds."""
        super().merge(other)
        self.token_bytes += other.token_bytes
        self.histogram = _add(self.histogram, other.histogram)


def total(summaries: Iterable[SliceSummary]) -> Totals:
    """Sum of these slices."""
    totals = Totals()
    for summary in summaries:
        totals.add(summary)
    return totals


def build_manifest(
    plan: Plan, totals: Totals, codec: Mapping[str, Any], grid: tuple[int, int]
) -> dict[str, Any]:
    """The manifest as JSON data.

    Args:
      plan: the plan that was carried out.
      totals: of all its slices.
      codec: JSON data about the codec, for readers.
      grid: ``(h, w)`` of each row.

    Raises:
      UserError: the shards do not add up to the plan.
    """
    check_complete(plan, totals)
    histogram = totals.histogram if totals.histogram is not None else np.zeros(0, np.int64)
    usage = codebook_usage(histogram)
    tokens = int(histogram.sum())
    rejected = sum(entry["rows"] for entry in totals.rejects)
    return {
        "version": FORMAT_VERSION,
        "plan_hash": plan.hash,
        "identity": plan.identity,
        "codec": dict(codec),
        "grid": list(grid),
        "counts": {
            "planned": totals.planned,
            "images": totals.images,
            "rejects": rejected,
            "rows": totals.rows,
            "tokens": tokens,
        },
        "shards": by_name(totals.shards),
        "rejects": by_name(totals.rejects),
        "reject_reasons": reasons(totals),
        "codebook": {
            "size": len(histogram),
            "used": usage.used,
            "entropy_bits": usage.entropy,
            "perplexity": usage.perplexity,
            "histogram": histogram.tolist(),
        },
        "storage": {
            "bytes": sum(entry["bytes"] for entry in totals.shards),
            "token_bytes": totals.token_bytes,
            "bits_per_token": 8 * totals.token_bytes / tokens if tokens else 0.0,
        },
        "throughput": throughput(totals),
        "versions": versions(),
        "finished": now(),
    }


def finish_tokens(output: str, manifest: Mapping[str, Any]) -> None:
    """Publishes the card of a token data set and, last, its manifest."""
    card = render_dataset_card(manifest)
    filesystems.write_bytes(filesystems.join(output, CARD_FILE), card.encode(errors="replace"))
    write_manifest(output, manifest)


def check_complete(plan: Plan, totals: SliceTotals) -> None:
    """Refuses sums that are not those of the whole plan.

    Raises:
      UserError: the shards do not add up to the plan.
    """
    if len(totals.shards) != plan.slices or totals.planned != plan.entries:
        raise UserError(
            f"{len(totals.shards)} shards of {totals.planned} entries do not make the plan's "
            f"{plan.slices} of {plan.entries}; run the same command again"
        )


def by_name(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """JSON entries of files in the order of their names."""
    return sorted(entries, key=lambda entry: entry["name"])


def reasons(totals: SliceTotals) -> dict[str, int]:
    """How often each reason for a reject occurs, the commonest first."""
    return dict(sorted(totals.reasons.items(), key=lambda item: (-item[1], item[0])))


def throughput(totals: SliceTotals) -> dict[str, Any]:
    """Speed of what was made in this run."""
    return {
        "images": totals.new_images,
        "worker_seconds": round(totals.seconds, 3),
        "images_per_second": round(totals.new_images / totals.seconds, 3) if totals.seconds else 0.0,
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that made the tokens."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _add(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
