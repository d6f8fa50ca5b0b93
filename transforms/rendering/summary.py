"""What one finished slice of pictures holds, read back from its files."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from transforms.manifest import SliceTotals
from transforms.rendering.forms import ImageForm
from transforms.rendering.index import Index, IndexRow, open_index
from transforms.rendering.layout import index_name
from transforms.slices import SlicesOfPlan
from transforms.summary import FinishedSlice, describe_file, summarize_rejects
from vqgan import filesystems
from vqgan.errors import UserError

STAT_CHUNK = 1024


class PicturesOfPlan(SlicesOfPlan, Protocol):
    """What a job of decoding tells beside that: the form of the pictures."""

    @property
    def form(self) -> ImageForm: ...


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

    def merge(self, other: "ImageTotals") -> None:
        """Adds all that another sum holds."""
        super().merge(other)
        self.archives += other.archives
        self.image_bytes += other.image_bytes


def summarize_images(job: PicturesOfPlan, number: int, seconds: float | None) -> ImageSlice:
    """Reads a slice's index, every page of it, and its rejects.

    Raises:
      UserError: the index is damaged.
    """
    output, name = job.output, index_name(number, job.slices, job.form.container)
    with open_index(output, name) as index:
        metadata, rows = index.metadata, index.rows
        image_bytes = sum(row.bytes for row, _ in index.read())
    reject_file, reasons = summarize_rejects(output, number, job.slices, metadata.rejects)
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


def finished_images(job: PicturesOfPlan, number: int) -> ImageSlice | None:
    """The slice as a former run of this plan has left it; None where it has to be made."""
    name = index_name(number, job.slices, job.form.container)
    if not filesystems.exists(filesystems.join(job.output, name)):
        return None
    try:
        with open_index(job.output, name) as index:
            if index.metadata.plan_hash != job.plan_hash or lost_pictures(job.output, index):
                return None
        return summarize_images(job, number, seconds=None)
    except (UserError, OSError):
        return None  # damaged since it was written, or its rejects are gone: made again


def lost_pictures(output: str, index: Index) -> list[str]:
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
