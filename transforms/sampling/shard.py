"""One slice of a sampling plan becomes one token shard and its images.

Plain functions, without Beam: a prior samples on the devices of one host. What is sampled is written down
in the plan, as images are for ``tokenize``: an entry's ``offset`` is its seed, its ``label`` the class.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from transforms.decoding.image_format import picture_of
from transforms.sharded.job import ProgressCallback
from transforms.sharded.plan import read_slice
from transforms.sharded.slices import collect
from transforms.sources.base import Entry
from vqgan import filesystems, publishing
from vqgan.errors import UserError, first_line
from vqgan.manifest import AGAIN
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import UNKNOWN, Request
from vqgan.prior.text import Text
from vqgan.shards import ShardMetadata, ShardWriter, open_shard, shard_name

if TYPE_CHECKING:
    from vqgan.codec import Codec


SEED_FIELD = pa.field("seed", pa.int64(), nullable=False)
IMAGES_FOLDER = "images"
IMAGE_LIST = f"{IMAGES_FOLDER}/metadata.jsonl"
"""Name that ``imagefolder`` looks for beside the images."""
GRID_FILE = "grid.png"


class Guides(NamedTuple):
    """What samples start from or are conditional on: tokens of data sets, and texts.

    Sample i takes row i, from the first row again where there are fewer.

    Attributes:
      known: int32 ``[N, L]``, -1 where to be sampled; None where nothing is given.
      condition: int32 ``[N, Lc]``, tokens of the condition grid; None for a prior without one.
      text: N texts; None where none are given.
    """

    known: np.ndarray | None = None
    condition: np.ndarray | None = None
    text: Text | None = None


@dataclasses.dataclass(frozen=True)
class SampleTask:
    """What is needed to make any shard of a sampling plan.

    Attributes:
      output: folder of the data set.
      metadata: of every shard but for its slice's numbers.
      settings: how tokens are drawn.
      first_seed: of the first sample; the others follow.
      guides: what is given.
      image_size: height and width in pixels.
      batch_size: samples drawn together.
    """

    output: str
    metadata: ShardMetadata
    settings: SamplingConfig
    first_seed: int
    guides: Guides
    image_size: tuple[int, int]
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


class SamplingModel(NamedTuple):
    """What samples are made with.

    Attributes:
      draw: the prior.
      codec: decodes images of the samples; None for none.
    """

    draw: Draw
    codec: "Codec | None"


def sample_entries(count: int, first_seed: int, labels: list[int | None]) -> pa.Table:
    """Returns the plan's entries: ``count`` samples with consecutive seeds, their classes in turn."""
    return collect(
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
    )


def write_samples(task: SampleTask, number: int, model: SamplingModel, progress: ProgressCallback) -> None:
    """Samples the shard of one slice, whose images are in place before it.

    Args:
      task: the plan and how to carry it out.
      number: of the slice.
      model: prior and codec.
      progress: told of what is done.

    Raises:
      UserError: the output cannot be written.
    """
    entries = read_slice(task.output, number)
    metadata = dataclasses.replace(task.metadata, slice_number=number, planned=len(entries))
    with (
        publishing.publish(_shard_path(task, number)) as stream,
        ShardWriter(stream, metadata, [SEED_FIELD]) as writer,
    ):
        for start in range(0, len(entries), task.batch_size):
            batch = entries[start : start + task.batch_size]
            tokens = model.draw(request_of(batch, task), task.settings)
            writer.write(_columns(batch, *task.image_size), tokens)
            if model.codec is not None:
                _write_images(task.output, [entry.key for entry in batch], model.codec.decode(tokens))
            progress(len(batch), 0)
        writer.set_counts(images=len(entries), rejects=0)


def restore_images(task: SampleTask, number: int, codec: "Codec") -> None:
    """Renders the images of a finished shard that are gone or damaged."""
    names = [image_name(entry.key) for entry in read_slice(task.output, number)]
    gone = {name for name in names if not is_whole_image(filesystems.join(task.output, name))}
    if not gone:
        return
    with open_shard(_shard_path(task, number)) as shard:
        for batch in shard.batches(["key", "tokens"], rows=task.batch_size):
            keys = batch.column("key").to_pylist()
            chosen = [index for index, key in enumerate(keys) if image_name(key) in gone]
            if chosen:
                pixels = codec.decode(shard.tokens(batch)[chosen])
                _write_images(task.output, [keys[index] for index in chosen], pixels)


def request_of(entries: list[Entry], task: SampleTask) -> Request:
    """Returns what a prior is asked for."""
    seeds = np.array([entry.offset for entry in entries], np.int64)
    labels = np.array([UNKNOWN if entry.label is None else entry.label for entry in entries], np.int32)
    rows = seeds - task.first_seed
    known, condition = (
        None if tokens is None else tokens[rows % len(tokens)]
        for tokens in (task.guides.known, task.guides.condition)
    )
    text = task.guides.text
    text = None if text is None else text.take(rows % len(text.mask))
    return Request(seeds, labels, condition, known, text)


def missing_images(output: str, keys: list[str]) -> list[str]:
    """Returns names of images that should be in the output and are not."""
    names = [image_name(key) for key in keys]
    sizes = filesystems.sizes_of(output, names)
    return [name for name, size in zip(names, sizes, strict=True) if size is None]


def first_tokens(task: SampleTask, count: int) -> np.ndarray:
    """Reads the tokens of the first samples of finished shards, int32 ``[N, h, w]``, N at most ``count``."""
    found: list[np.ndarray] = []
    for number in range(task.slices):
        with open_shard(_shard_path(task, number)) as shard:
            found += [shard.tokens(batch) for batch in shard.batches(["tokens"], rows=count)]
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count]


def write_image_list(task: SampleTask) -> None:
    """Publishes ``metadata.jsonl`` beside the images: what each shows, and its sum.

    Raises:
      UserError: an image is gone, or the output cannot be written.
    """
    with publishing.publish(filesystems.join(task.output, IMAGE_LIST)) as stream:
        for line in image_lines(task.output, task.slices):
            stream.write(line)


def image_lines(output: str, slices: int) -> Iterator[bytes]:
    """Yields the line of each image of finished shards, with its line feed.

    Raises:
      UserError: a shard is damaged, or an image is gone.
    """
    for number in range(slices):
        with open_shard(filesystems.join(output, shard_name(number, slices))) as shard:
            for batch in shard.batches(["key", SEED_FIELD.name, "label"]):
                for row in batch.to_pylist():
                    yield _image_line(output, row)


def _image_line(output: str, row: dict[str, Any]) -> bytes:
    name = image_name(row["key"])
    try:
        data = filesystems.read_bytes(filesystems.join(output, name))
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({first_line(error)}); {AGAIN}") from error
    described = {"file_name": name.removeprefix(f"{IMAGES_FOLDER}/"), **row}
    return json.dumps({**described, "sha256": hashlib.sha256(data).hexdigest()}).encode() + b"\n"


def is_whole_image(path: str) -> bool:
    """Tells whether a PNG is there and every checksum in it is right."""
    try:
        with Image.open(io.BytesIO(filesystems.read_bytes(path)), formats=["PNG"]) as image:
            image.verify()
    except Exception:  # noqa: BLE001 - Pillow raises many types for a damaged file, and this only asks
        return False
    return True


def image_name(key: str) -> str:
    """Names the place of a sample's image in the output."""
    return f"{IMAGES_FOLDER}/{key}.png"


def write_png(path: str, pixels: np.ndarray) -> None:
    """Publishes an image, uint8 ``[H, W, C]``, C being 1 to 4."""
    buffer = io.BytesIO()
    picture_of(pixels).save(buffer, "PNG")
    publishing.write_bytes(path, buffer.getvalue())


def _shard_path(task: SampleTask, number: int) -> str:
    return filesystems.join(task.output, shard_name(number, task.slices))


def _write_images(output: str, keys: list[str], pixels: np.ndarray) -> None:
    for key, image in zip(keys, pixels, strict=True):
        write_png(filesystems.join(output, image_name(key)), image)


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
