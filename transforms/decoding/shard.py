"""One shard of tokens becomes the images of one slice: read, decode, encode, write.

Plain functions, without Beam; the mirror of :mod:`transforms.tokenizing.shard`. The device decodes one batch
while threads encode (and, for single files, write) the images of the batch before; a bounded number of
images is kept, whatever the slice's size.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from transforms.decoding.image_files import EncodedImage, Writer, open_writer
from transforms.decoding.image_format import ImageFormat
from transforms.decoding.index import IndexMetadata, IndexRow, IndexWriter, index_name
from transforms.decoding.plan import Part, TokenInput, read_part, read_parts
from transforms.images.npy import to_values
from transforms.sharded import rejects
from transforms.sharded.batching import fill, in_order, on_device, threads_here
from transforms.sharded.job import ProgressCallback
from transforms.sharded.rejects import RejectRow
from transforms.sharded.summary import describe_file
from vqgan import filesystems, publishing
from vqgan.data.token_shards import check_footer
from vqgan.engines.choice import JAX_ENGINE, EngineChoice
from vqgan.errors import UserError
from vqgan.shards import Shard, open_shard

if TYPE_CHECKING:
    from vqgan.codec import Codec


COLUMNS = ("key", "view", "label", "tokens")


@dataclasses.dataclass(frozen=True)
class DecodeTask:
    """What a worker needs to know to make any slice of a plan.

    Attributes:
      tokens: folder of the token data set.
      output: folder of the images.
      form: how and where they are written.
      views: ``all`` or ``first``.
      codec: path or name.
      batch_size: grids per device call.
      dtype: type that convolutions compute in, ``float32`` or ``bfloat16``.
      threads: encoders (and writers) of images; None: one per core of the worker.
      plan_hash: of the plan in ``output``.
      slices: its number of slices.
      codec_name: of the codec in the manifest, as the user has written it; empty for ``codec``.
      engine: what runs the codec's networks.
    """

    tokens: TokenInput
    output: str
    form: ImageFormat
    views: str
    codec: str
    batch_size: int
    dtype: str
    threads: int | None
    plan_hash: str
    slices: int
    codec_name: str = ""
    engine: EngineChoice = JAX_ENGINE


class TokenRow(NamedTuple):
    """A row of tokens that can be decoded: int32 ``[h, w]``."""

    key: str
    view: int
    label: int | None
    tokens: np.ndarray


def write_images(task: DecodeTask, number: int, codec: "Codec", progress: ProgressCallback) -> None:
    """Makes the images of one slice.

    Args:
      task: the plan and how to carry it out.
      number: of the slice.
      codec: the codec that ``task`` names.
      progress: told of what is done.

    Raises:
      UserError: the shard is not that of the plan, or the output cannot be written.
    """
    part = read_part(task.output, number)
    path = filesystems.join(task.tokens.folder, part.name)
    _check_sum(task.tokens, part)
    metadata = IndexMetadata(
        plan_hash=task.plan_hash,
        slice_number=number,
        slices=task.slices,
        container=task.form.container,
        encoding=task.form.encoding,
        fingerprint=codec.fingerprint,
        decoder_sha256=codec.info.decoder_sha256,
        planned=part.planned,
    )
    name = index_name(number, task.slices, task.form.container)
    found: list[RejectRow] = []
    with (
        publishing.publish(filesystems.join(task.output, name)) as stream,
        IndexWriter(stream, metadata, with_images=task.form.container == "parquet") as index,
        open_shard(path) as shard,
    ):
        check_footer(path, shard.metadata, shard.rows, task.tokens, part.rows)
        shard.require(codec.fingerprint)
        with open_writer(task.output, task.form, number, task.slices) as writer:
            chosen = itertools.islice(chosen_rows(shard, task.views), part.planned)
            rows = rejects.accepted(chosen, found, progress)
            for image in encoded_images(task, rows, codec, writer):
                writer.append(image)
                index.write(image.row, image.data)
                progress(1, 0)
        rejects.publish_rejects(task.output, number, task.slices, found)
        index.set_result(part.planned - len(found), len(found), writer.archive)


def encoded_images(
    task: DecodeTask, rows: Iterator[TokenRow], codec: "Codec", writer: Writer
) -> Iterator[EncodedImage]:
    """Returns rows as images, in order, each placed by ``writer`` already."""

    def encode(pair: tuple[TokenRow, np.ndarray]) -> EncodedImage:
        row, pixels = pair
        is_array = task.form.encoding == "npy"
        data = task.form.encode(to_values(pixels, codec.config.channels) if is_array else pixels)
        height, width = pixels.shape[:2]
        digest = hashlib.sha256(data).hexdigest()
        name = writer.name(row.key, row.view)
        image = EncodedImage(
            IndexRow(row.key, row.view, row.label, name, width, height, len(data), digest), data
        )
        writer.place(image)
        return image

    batches = on_device(fill(((row, row.tokens) for row in rows), codec.batch_size), codec.decode_batch)
    decoded = (pair for done, images in batches for pair in zip(done, images, strict=True))
    threads = threads_here(task.threads)
    return in_order(encode, decoded, threads, threads + codec.batch_size, "encode")


def chosen_rows(shard: Shard, views: str) -> Iterator[TokenRow | RejectRow]:
    """Yields rows of the chosen views in order; what cannot be decoded, and what comes again, is a reject."""
    seen: set[tuple[str, int]] = set()
    for batch in shard.batches(COLUMNS):
        columns = [batch.column(name).to_pylist() for name in ("key", "view", "label")]
        grids, problems = _grids(shard, batch)
        for key, view, label, grid, problem in zip(*columns, grids, problems, strict=True):
            if views == "first" and view != 0:
                continue
            if key is None or view is None:
                problem = ("Missing", "a row without key or view")
            elif problem is None and (key, view) in seen:
                problem = ("Duplicate", "another row has this key and view")
            seen.add((key, view))
            if problem is None:
                yield TokenRow(key, view, label, grid)
            else:
                error, message = problem
                yield rejects.reject_of_error(key or "", "decode", error, f"view {view}: {message}", None)


def first_grids(task: DecodeTask, count: int) -> np.ndarray:
    """Reads the first token grids of a plan that can be decoded, int32 ``[N, h, w]``, N at most ``count``."""
    found: list[np.ndarray] = []
    for part in read_parts(task.output):
        with open_shard(filesystems.join(task.tokens.folder, part.name)) as shard:
            rows = itertools.islice(chosen_rows(shard, task.views), part.planned)
            grids = (row.tokens for row in rows if isinstance(row, TokenRow))
            found += itertools.islice(grids, count - len(found))
        if len(found) == count:
            break
    return np.array(found, np.int32)


Problem = tuple[str, str] | None


def _grids(shard: Shard, batch: pa.RecordBatch) -> tuple[np.ndarray, list[Problem]]:
    """Returns token grids of a batch, int32 ``[rows, h, w]``, and what is wrong with each."""
    flat, size = batch.column("tokens").flatten(), shard.metadata.codebook_size
    shape = (batch.num_rows, *shard.metadata.grid)
    lost = flat.is_null().to_numpy(zero_copy_only=False).reshape(shape)
    grids = flat.fill_null(0).to_numpy().astype(np.int64).reshape(shape)
    problems: list[Problem] = [None] * batch.num_rows
    for row in np.flatnonzero((grids >= size).any(axis=(1, 2))):
        problems[row] = ("OutsideCodebook", f"token {grids[row].max()}: the codebook has {size} codes")
    for row in np.flatnonzero(lost.any(axis=(1, 2))):
        problems[row] = ("Missing", f"{lost[row].sum()} of its tokens are not there")
    return grids.astype(np.int32), problems


def _check_sum(tokens: TokenInput, part: Part) -> None:
    """Refuses a shard whose bytes are not those that the manifest speaks of.

    Raises:
      UserError: it is gone, or another one.
    """
    path = filesystems.join(tokens.folder, part.name)
    if not filesystems.exists(path):
        raise UserError(f"{path}: is gone; restore it and run the same command again")
    found = describe_file(tokens.folder, part.name, part.rows)
    if found.sha256 != part.sha256:
        raise UserError(
            f"{path}: sha256 {found.sha256[:12]}, but the manifest says {part.sha256[:12]}; restore it "
            "and run the same command again"
        )
