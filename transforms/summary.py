"""What one finished slice holds, read back from its files.

Reading back serves new and kept shards alike and proves that what was written can be read.
"""

import dataclasses
import hashlib
from collections import Counter

import numpy as np

from transforms import rejects
from vqgan import filesystems
from vqgan.shards import open_shard, rejects_name, shard_name

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


@dataclasses.dataclass(frozen=True)
class SliceSummary(FinishedSlice):
    """One finished slice of tokens.

    Attributes:
      token_bytes: size of the token column.
      histogram: ``[K]`` how often each code occurs.
    """

    token_bytes: int
    histogram: np.ndarray


def summarize(output: str, number: int, slices: int, seconds: float | None) -> SliceSummary:
    """Reads a slice's shard and rejects.

    Raises:
      UserError: the shard is damaged.
    """
    name = shard_name(number, slices)
    with open_shard(filesystems.join(output, name), name) as shard:
        metadata = shard.metadata
        histogram = np.zeros(metadata.codebook_size, np.int64)
        for batch in shard.batches():  # all columns, though only tokens are counted: damage must not pass
            histogram += np.bincount(shard.tokens(batch).reshape(-1), minlength=len(histogram))
        rows, token_bytes = shard.rows, shard.token_bytes()
    reject_file, reasons = summarize_rejects(output, number, slices, metadata.rejects)
    return SliceSummary(
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


def summarize_rejects(
    output: str, number: int, slices: int, expected: int
) -> tuple[FileSummary | None, Counter[str]]:
    """The rejects file of a slice, and how often each reason occurs; None where no rejects are expected."""
    if not expected:
        return None, Counter()
    name = rejects_name(number, slices)
    rows = rejects.read(filesystems.join(output, name))
    return describe_file(output, name, len(rows)), Counter(f"{row.stage}: {row.error}" for row in rows)


def describe_file(output: str, name: str, rows: int) -> FileSummary:
    """Size and sha256 of a file of a data set, with its known number of rows."""
    filesystem, inner = filesystems.resolve(filesystems.join(output, name))
    digest, size = hashlib.sha256(), 0
    with filesystem.open_input_stream(inner) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileSummary(name=name, rows=rows, bytes=size, sha256=digest.hexdigest())
