"""Finished slices of images, their sum, and the manifest of a decoded data set."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from transforms.decoding.index import Index, IndexRow, index_name, open_index
from transforms.decoding.plan import TokenInput
from transforms.sharded.manifest import by_name, common_parts
from transforms.sharded.plan import Plan
from transforms.sharded.summary import (
    FileSummary,
    FinishedSlice,
    SliceTotals,
    describe_file,
    summarize_rejects,
)
from vqgan import filesystems
from vqgan.manifest import IMAGES_KIND

STAT_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class ImageSlice(FinishedSlice):
    """One finished slice of pictures.

    Attributes:
      archive: name, bytes and sha256 of its tar, in the form ``tar``.
      image_bytes: size of all encoded pictures.
    """

    archive: Mapping[str, Any] | None
    image_bytes: int


@dataclasses.dataclass
class ImageTotals(SliceTotals):
    """Sum of slices of pictures.

    Attributes:
      archives: JSON entry of each tar.
      image_bytes: size of all encoded pictures.
    """

    archives: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    image_bytes: int = 0

    def add(self, summary: ImageSlice) -> None:
        """Adds one slice."""
        super().add(summary)
        if summary.archive is not None:
            self.archives.append({**summary.archive, "rows": summary.images})
        self.image_bytes += summary.image_bytes


def summarize_images(
    output: str, number: int, slices: int, container: str, seconds: float | None
) -> ImageSlice:
    """Reads a slice's index, every page of it, and its rejects.

    Raises:
      UserError: the index is damaged.
    """
    name = index_name(number, slices, container)
    with open_index(output, name) as index:
        metadata, rows = index.metadata, index.rows
        image_bytes = sum(row.bytes for row, _ in index.read())
    reject_file, reasons = summarize_rejects(output, number, slices, metadata.rejects)
    return ImageSlice(
        number=number,
        planned=metadata.planned,
        images=metadata.images,
        shard=describe_file(output, name, rows),
        reject_file=reject_file,
        reject_reasons=reasons,
        seconds=seconds,
        archive=metadata.archive,
        image_bytes=image_bytes,
    )


def lost_images(output: str, index: Index) -> list[str]:
    """Files of an index that are gone or of another size; of a tar, also of other contents."""
    archive = index.metadata.archive
    if archive is not None:
        path = filesystems.join(output, archive["name"])
        if not filesystems.exists(path):
            return [archive["name"]]
        return (
            [archive["name"]] if describe_file(output, archive["name"], 0).sha256 != archive["sha256"] else []
        )
    if index.metadata.container != "files":
        return []
    return [row.file for rows in _chunks(index) for row in _lost(output, rows)]


def _chunks(index: Index) -> Iterator[list[IndexRow]]:
    rows: list[IndexRow] = []
    for row, _ in index.read():
        rows.append(row)
        if len(rows) == STAT_CHUNK:
            yield rows
            rows = []
    yield rows


def _lost(output: str, rows: list[IndexRow]) -> list[IndexRow]:
    sizes = filesystems.sizes_of(output, [row.file for row in rows])
    return [row for row, size in zip(rows, sizes, strict=True) if size != row.bytes]


def build_image_manifest(
    plan: Plan,
    totals: ImageTotals,
    codec: Mapping[str, Any],
    tokens: TokenInput,
    metadata: FileSummary | None = None,
) -> dict[str, Any]:
    """The manifest as JSON data.

    Args:
      plan: the plan that was carried out.
      totals: of all its slices.
      codec: JSON data about the codec, for readers.
      tokens: what the pictures were made of.
      metadata: ``metadata.jsonl``, where the pictures are files.

    Raises:
      UserError: the slices do not add up to the plan.
    """
    described = [] if metadata is None else [dataclasses.asdict(metadata)]
    files = [*totals.shards, *totals.archives, *described]
    separate = totals.image_bytes if plan.identity["form"]["container"] == "files" else 0
    return {
        **common_parts(plan, totals, codec, tokens.grid),
        "kind": IMAGES_KIND,
        "tokens": tokens._asdict(),
        "codebook": {"size": codec["config"]["codebook_size"]},
        "archives": by_name(totals.archives),
        "metadata": described,
        "storage": {
            "bytes": sum(entry["bytes"] for entry in files) + separate,
            "image_bytes": totals.image_bytes,
            "bytes_per_image": totals.image_bytes / totals.images if totals.images else 0.0,
        },
    }
