"""One slice of a sampling plan becomes one token shard and its pictures.

Plain functions, without Beam: a prior samples on the devices of one host. What is sampled is written down
in the plan, as images are for ``tokenize``: an entry's ``offset`` is its seed, its ``label`` the class.
"""

import dataclasses
import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from transforms.plan import ENTRY_SCHEMA, read_slice
from transforms.slices import Progress, finished
from transforms.sources.base import Entry
from transforms.summary import SliceSummary, summarize
from vqgan import filesystems
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import UNKNOWN, Request
from vqgan.shards import ShardMetadata, ShardWriter, open_shard, shard_name

if TYPE_CHECKING:
    from vqgan.codec import Codec

SEED_FIELD = pa.field("seed", pa.int64(), nullable=False)
PICTURES_FOLDER = "pictures"


class Guides(NamedTuple):
    """Tokens that samples start from or are conditional on, from token data sets; sample i takes row i,
    from the first row again where there are fewer.

    Attributes:
      known: int32 ``[N, L]``, -1 where to be sampled; None where nothing is given.
      condition: int32 ``[N, Lc]``, tokens of the condition grid; None for a prior without one.
    """

    known: np.ndarray | None = None
    condition: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class SampleJob:
    """What is needed to make any shard of a sampling plan.

    Attributes:
      output: folder of the data set.
      metadata: of every shard but for its slice's numbers.
      settings: how tokens are drawn.
      first_seed: of the first sample; the others follow.
      guides: what is given.
      picture_size: height and width in pixels.
      batch_size: samples drawn together.
    """

    output: str
    metadata: ShardMetadata
    settings: SamplingConfig
    first_seed: int
    guides: Guides
    picture_size: tuple[int, int]
    batch_size: int

    @property
    def plan_hash(self) -> str:
        """Of the plan in ``output``."""
        return self.metadata.plan_hash

    @property
    def slices(self) -> int:
        """Its number of slices."""
        return self.metadata.slices


Draw = Callable[[Request, SamplingConfig], np.ndarray]
"""Samples a request: int32 ``[B, h, w]``."""


def sample_entries(count: int, first_seed: int, labels: list[int | None]) -> pa.Table:
    """The plan's entries: ``count`` samples with consecutive seeds, their classes in turn."""
    rows = [
        Entry(
            key=f"seed-{seed:010d}",
            file="",
            offset=seed,
            size=0,
            label=labels[index % len(labels)],
            members=None,
            error=None,
        )
        for index, seed in enumerate(range(first_seed, first_seed + count))
    ]
    return pa.Table.from_pylist([row._asdict() for row in rows], ENTRY_SCHEMA)


def make_sampled_shard(
    job: SampleJob, number: int, draw: Draw, codec: "Codec | None", progress: Progress
) -> SliceSummary:
    """Samples the shard of one slice, or keeps it where a former run has finished it.

    Its pictures are in place before the shard appears, which says that the slice is finished.

    Args:
      job: the plan and how to carry it out.
      number: of the slice.
      draw: the prior.
      codec: decodes pictures; None for none.
      progress: told of what is done.

    Raises:
      UserError: the output cannot be written.
    """
    slices = job.metadata.slices
    kept = finished(job, number)
    if kept is not None:
        if codec is not None:
            _mend_pictures(job, number, codec)
        progress(kept.images, 0)
        return kept
    started = time.monotonic()
    entries = read_slice(job.output, number)
    metadata = dataclasses.replace(job.metadata, slice_number=number, planned=len(entries))
    with (
        filesystems.publish(_shard_path(job, number)) as stream,
        ShardWriter(stream, metadata, [SEED_FIELD]) as writer,
    ):
        for start in range(0, len(entries), job.batch_size):
            batch = entries[start : start + job.batch_size]
            tokens = draw(request_of(batch, job), job.settings)
            writer.write(_columns(batch, *job.picture_size), tokens)
            if codec is not None:
                _write_pictures(job.output, [entry.key for entry in batch], codec.decode(tokens))
            progress(len(batch), 0)
        writer.set_counts(images=len(entries), rejects=0)
    return summarize(job.output, number, slices, seconds=time.monotonic() - started)


def request_of(entries: list[Entry], job: SampleJob) -> Request:
    """What a prior is asked for."""
    seeds = np.array([entry.offset for entry in entries], np.int64)
    labels = np.array([UNKNOWN if entry.label is None else entry.label for entry in entries], np.int32)
    rows = seeds - job.first_seed
    known, condition = (
        None if tokens is None else tokens[rows % len(tokens)]
        for tokens in (job.guides.known, job.guides.condition)
    )
    return Request(seeds, labels, condition, known)


def missing_pictures(output: str, keys: list[str]) -> list[str]:
    """Names of pictures that should be in the output and are not."""
    names = [picture_name(key) for key in keys]
    sizes = filesystems.sizes_of(output, names)
    return [name for name, size in zip(names, sizes, strict=True) if size is None]


def first_tokens(job: SampleJob, count: int) -> np.ndarray:
    """The tokens of the first samples of finished shards, int32 ``[N, h, w]`` with N at most ``count``."""
    found: list[np.ndarray] = []
    for number in range(job.slices):
        with open_shard(_shard_path(job, number)) as shard:
            for batch in shard.batches(["tokens"], rows=count):
                found.append(shard.tokens(batch))
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count]


def picture_name(key: str) -> str:
    """Where a sample's picture lies in the output."""
    return f"{PICTURES_FOLDER}/{key}.png"


def write_png(path: str, pixels: np.ndarray) -> None:
    """Publishes a picture, uint8 ``[H, W, 3]``."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    filesystems.write_bytes(path, buffer.getvalue())


def _shard_path(job: SampleJob, number: int) -> str:
    return filesystems.join(job.output, shard_name(number, job.slices))


def _mend_pictures(job: SampleJob, number: int, codec: "Codec") -> None:
    """Renders the pictures of a finished shard that are gone."""
    gone = set(missing_pictures(job.output, [entry.key for entry in read_slice(job.output, number)]))
    if not gone:
        return
    with open_shard(_shard_path(job, number)) as shard:
        for batch in shard.batches(["key", "tokens"], rows=job.batch_size):
            keys = batch.column("key").to_pylist()
            chosen = [index for index, key in enumerate(keys) if picture_name(key) in gone]
            if chosen:
                pixels = codec.decode(shard.tokens(batch)[chosen])
                _write_pictures(job.output, [keys[index] for index in chosen], pixels)


def _write_pictures(output: str, keys: list[str], pixels: np.ndarray) -> None:
    for key, image in zip(keys, pixels, strict=True):
        write_png(filesystems.join(output, picture_name(key)), image)


def _columns(entries: list[Entry], height: int, width: int) -> dict[str, Any]:
    count = len(entries)
    return {
        "key": [entry.key for entry in entries],
        "view": [0] * count,
        "crop": [[0, 0, width, height]] * count,
        "mirrored": [False] * count,
        "width": [width] * count,
        "height": [height] * count,
        "label": [entry.label for entry in entries],
        SEED_FIELD.name: [entry.offset for entry in entries],
    }
