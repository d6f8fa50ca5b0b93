"""What one finished slice holds, read back from its files, and the sum over many.

Reading back serves new and kept shards alike and proves that what was written can be read.
"""

import dataclasses
import hashlib
from collections import Counter
from typing import Any, Self

from transforms.sharded import rejects
from vqgan import filesystems
from vqgan.errors import UserError
from vqgan.manifest import AGAIN
from vqgan.shards import rejects_name

CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class FileSummary:
    """One file of a data set.

    Attributes:
      name: in the data set's folder.
      rows: number of rows.
      bytes: size.
      sha256: of its bytes.
    """

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class FinishedSlice:
    """One finished slice, whatever it holds.

    Attributes:
      number: of the slice.
      planned: entries in the plan.
      images: those that were made.
      shard: the Parquet file whose presence says that the slice is finished.
      reject_file: the rejects, or None where there are none.
      reject_reasons: how often each ``stage: error`` occurs.
      seconds: time it took to make, or None where a former run had made it.
    """

    number: int
    planned: int
    images: int
    shard: FileSummary
    reject_file: FileSummary | None
    reject_reasons: Counter[str]
    seconds: float | None

    @property
    def rejects(self) -> int:
        """Number of rejects."""
        return 0 if self.reject_file is None else self.reject_file.rows


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

    def merge(self, other: Self) -> None:
        """Adds all that another sum of the same kind holds; None stands for what was not counted yet."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            known = [value for value in (mine, theirs) if value is not None]
            setattr(self, field.name, known[0] + known[1] if len(known) == 2 else (known or [None])[0])


def summarize_rejects(
    output: str, number: int, slices: int, expected: int, part: int = 0
) -> tuple[FileSummary | None, Counter[str]]:
    """Returns the rejects file of a slice, and how often each reason occurs; None where none are expected.

    Raises:
      UserError: the file is damaged, or has another number of rows.
    """
    if not expected:
        return None, Counter()
    name = rejects_name(number, slices, part)
    rows = rejects.read_rejects(filesystems.join(output, name))
    if len(rows) != expected:
        raise UserError(f"{name}: {len(rows)} rows, but its shard says {expected}; {AGAIN}")
    return describe_file(output, name, len(rows)), Counter(f"{row.stage}: {row.error}" for row in rows)


def describe_file(output: str, name: str, rows: int) -> FileSummary:
    """Returns the size and sha256 of a file of a data set, with its known number of rows."""
    filesystem, inner = filesystems.resolve(filesystems.join(output, name))
    digest, size = hashlib.sha256(), 0
    with filesystem.open_input_stream(inner) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileSummary(name=name, rows=rows, bytes=size, sha256=digest.hexdigest())
