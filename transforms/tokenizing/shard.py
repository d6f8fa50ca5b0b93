"""One slice of the plan becomes one token shard: read, decode, batch, encode, write.

Plain functions, without Beam. Pixels never leave this module's process: reading and decoding run in a
thread pool, ahead of the device by a bounded number of images, and the device works on one batch
while the next is being filled.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from transforms.images.crops import Geometry, View, count_views
from transforms.images.decode import DecodeConfig, Reject, prepare
from transforms.sharded import rejects
from transforms.sharded.batching import fill, in_order, on_device, threads_here
from transforms.sharded.job import ProgressCallback
from transforms.sharded.plan import read_slice
from transforms.sharded.rejects import RejectRow
from transforms.sources import Entry, Loader, Source, SourceConfig, open_source
from transforms.sources.reading import ChangedError
from vqgan import filesystems, publishing
from vqgan.config_json import to_dict
from vqgan.engines.choice import JAX_ENGINE, EngineChoice
from vqgan.errors import UserError, counted
from vqgan.faults import MachineError, machine_error, raise_machine_fault
from vqgan.shards import ShardMetadata, ShardWriter, rejects_name, shard_name

if TYPE_CHECKING:
    from vqgan.codec import Codec


BATCHES_DECODED_AHEAD = 2
"""Batches' worth of images being read and decoded ahead of the one that is filled."""
UNREADABLE_SLICE = 8
"""A slice of at least this many images none of whose files can be opened speaks of a missing input."""
_LOST = {
    error.__name__
    for error in (OSError, FileNotFoundError, NotADirectoryError, PermissionError, TimeoutError)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceImages:
    """Images of a source, and how they become pixels.

    Attributes:
      source: where images come from.
      decode: limits and filters.
      geometry: size, crop and views.
      batch_size: images per device call; so many batches' worth are decoded ahead.
      threads: readers and decoders; None: one per core of the worker.
      settled: rejects, by key, that are to stay as they are.
    """

    source: SourceConfig
    decode: DecodeConfig
    geometry: Geometry
    batch_size: int
    threads: int | None
    settled: Mapping[str, RejectRow] = dataclasses.field(default_factory=dict)

    def preprocessing(self) -> dict[str, Any]:
        """Returns how pixels are made from a source's bytes, as JSON data."""
        return {"decode": to_dict(self.decode), "geometry": to_dict(self.geometry)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedImages(SourceImages):
    """Images that a plan divides into slices: what it takes to make the pixels of any shard, again too.

    Attributes:
      output: folder of the data set.
      slices: number of slices of the plan in it.
      part: of the data set, which the plan is of.
    """

    output: str
    slices: int
    part: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizeTask(PlannedImages):
    """What a worker needs to know to make any shard of a plan.

    Attributes:
      plan_hash: of the plan in ``output``.
      codec: path or name.
      dtype: type that convolutions compute in, ``float32`` or ``bfloat16``.
      max_reject_rate: a slice in which a larger share is rejected stops the run; None: no limit.
      copied: the input's files are copies of those that were planned, with times of their own.
      codec_name: of the codec in the manifest, as the user has written it; empty for ``codec``.
      engine: what runs the codec's networks.
      rejects_expected: a slice with more or fewer rejects stops the run before it is in place; None: any.
      with_latents: rows have the latents beside the tokens.
    """

    plan_hash: str
    codec: str
    dtype: str
    max_reject_rate: float | None = None
    copied: bool = False
    codec_name: str = ""
    engine: EngineChoice = JAX_ENGINE
    rejects_expected: int | None = None
    with_latents: bool = False


class Row(NamedTuple):
    """All of a shard's row but its tokens."""

    key: str
    view: View
    width: int
    height: int
    label: int | None
    columns: dict[str, Any]


class Item(NamedTuple):
    """One example, decoded: a row for each view with its pixels ``[V, S, S, C]``."""

    rows: list[Row]
    pixels: np.ndarray


class Batch(NamedTuple):
    """A full batch of pixels ``[batch_size, S, S, C]``; ``rows`` are the first of them, the rest padding."""

    rows: list[Row]
    pixels: np.ndarray


def write_shard(task: TokenizeTask, number: int, codec: "Codec", progress: ProgressCallback) -> None:
    """Makes the shard of one slice.

    Args:
      task: the plan and how to carry it out.
      number: of the slice.
      codec: the codec that ``task`` names.
      progress: told of what is done.

    Raises:
      UserError: the output cannot be written, or too many images are rejected.
    """
    entries = read_planned(task, number)
    source = open_source(task.source)
    extra = source.fields()
    grid = codec.config.grid(*task.geometry.shape)
    metadata = ShardMetadata(
        fingerprint=codec.fingerprint,
        codec_config=to_dict(codec.config),
        codec_origin=dict(codec.info.card.get("origin", {})),
        grid=grid,
        codebook_size=codec.config.codebook_size,
        preprocessing=task.preprocessing(),
        plan_hash=task.plan_hash,
        slice_number=number,
        slices=task.slices,
        planned=len(entries),
        layout=codec.config.layout,
        latents=codec.latent_shape(grid) if task.with_latents else None,
        **task.engine.identity(),
    )
    with (
        publishing.publish(_shard_path(task, number)) as stream,
        ShardWriter(stream, metadata, extra) as writer,
    ):
        found: list[RejectRow] = []
        decoded = rejects.accepted(read_and_decode(task, source, entries), found, progress)
        items = _reported(decoded, progress)
        for rows, tokens, latents in encode(batches(items, codec.batch_size), codec, task.with_latents):
            writer.write(_columns(rows, extra), tokens, latents)
        _check_rejects(task, number, len(entries), found)
        writer.set_counts(images=len(entries) - len(found), rejects=len(found))
        rejects.publish_rejects(task.output, number, task.slices, found, task.part)


def read_and_decode(images: SourceImages, source: Source, entries: list[Entry]) -> Iterator[Item | RejectRow]:
    """Returns every entry in order, decoded or rejected; a bounded number of them ahead of the caller."""
    open_ones = {entry.key for entry in entries if entry.error is None and entry.key not in images.settled}
    loaders = _loaders(source, [entry for entry in entries if entry.key in open_ones])
    pairs = ((entry, next(loaders) if entry.key in open_ones else None) for entry in entries)
    threads = threads_here(images.threads)
    window = threads + BATCHES_DECODED_AHEAD * max(1, images.batch_size // count_views(images.geometry))
    return in_order(lambda pair: _item(images, *pair), pairs, threads, window, "decode")


def _loaders(source: Source, entries: list[Entry]) -> Iterator[Loader]:
    """Yields the loaders of a source, whose faults would else be taken for the output's."""
    try:
        yield from source.read(entries)
    except UserError:
        raise
    except Exception as error:
        raise_machine_fault(error, "the input cannot be read")
        raise


def load_item(images: SourceImages, entry: Entry, load: Loader) -> Item | RejectRow:
    """Reads and decodes one example; whatever is wrong with it becomes its reject.

    Raises:
      MachineError: not the example is at fault.
      ChangedError: its file has changed since the plan was made.
    """
    try:
        example = load()
    except ChangedError:
        raise
    except Exception as error:  # noqa: BLE001
        raise_machine_fault(error, f"{entry.key!r} cannot be read")
        # Any one example may fail in any way its source knows; none of them may end the run.
        return rejects.reject_of_error(entry.key, "read", type(error).__name__, _reason(error), None)
    try:
        prepared = prepare(example.data, entry.key, images.decode, images.geometry)
    except MachineError as error:
        cause = error.__cause__ or error
        raise machine_error(cause, f"{entry.key!r} cannot be decoded") from cause
    except Reject as reject:
        return rejects.reject_of_error(entry.key, reject.stage, reject.error, str(reject), example.data)
    label = entry.label if entry.label is not None else example.label
    rows = [
        Row(entry.key, view, prepared.width, prepared.height, label, example.columns)
        for view in prepared.views
    ]
    return Item(rows, prepared.pixels)


def batches(items: Iterator[Item], batch_size: int) -> Iterator[Batch]:
    """Returns fixed batches in order; views of one image may fall into two batches. The last is padded."""
    pairs = (pair for item in items for pair in zip(item.rows, item.pixels, strict=True))
    return (Batch(rows, pixels) for rows, pixels in fill(pairs, batch_size))


def is_outdated(task: TokenizeTask, number: int) -> bool:
    """Returns whether a finished slice would have other rejects now, of those whose reason may have passed.

    Raises:
      UserError: the plan or the rejects cannot be read, or the machine is at fault.
      OSError: the rejects cannot be opened.
    """
    path = filesystems.join(task.output, rejects_name(number, task.slices, task.part))
    if not filesystems.exists(path):
        return False
    known = {row.key: row for row in rejects.read_rejects(path) if rejects.may_pass(row)}
    if not known:
        return False
    entries = [entry for entry in read_planned(task, number) if entry.key in known]
    outcomes = read_and_decode(task, open_source(task.source), entries)
    return any(isinstance(found, Item) or found != known[found.key] for found in outcomes)


def read_planned(task: TokenizeTask, number: int) -> list[Entry]:
    """Returns the entries of a slice; files of a copied corpus have other times than those of the plan."""
    entries = read_slice(task.output, number, task.part)
    return [entry._replace(modified=None) for entry in entries] if task.copied else entries


def encode(
    filled: Iterator[Batch], codec: "Codec", with_latents: bool = False
) -> Iterator[tuple[list[Row], np.ndarray, np.ndarray | None]]:
    """Yields rows, int32 tokens ``[rows, h, w]`` and, if wanted, float32 latents ``[rows, h, w, D]``.

    Batch by batch; those ahead are filled meanwhile.
    """
    if with_latents:
        for rows, (tokens, latents) in on_device(filled, codec.encode_batch_with_latents):
            yield rows, tokens, latents
    else:
        for rows, tokens in on_device(filled, codec.encode_batch):
            yield rows, tokens, None


def _item(images: SourceImages, entry: Entry, load: Loader | None) -> Item | RejectRow:
    if load is None:
        return images.settled.get(entry.key) or rejects.reject_of_plan(entry)
    return load_item(images, entry, load)


def _shard_path(task: TokenizeTask, number: int) -> str:
    return filesystems.join(task.output, shard_name(number, task.slices, task.part))


def _reported(items: Iterator[Item], progress: ProgressCallback) -> Iterator[Item]:
    """Yields the same items; an image counts as done when it goes to the device."""
    for item in items:
        progress(1, 0)
        yield item


def _reason(error: Exception) -> str:
    """Returns what an error says, without the path that the system adds.

    Rejects do not depend on the mount point.
    """
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


def _columns(rows: list[Row], extra: list[pa.Field]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "key": [row.key for row in rows],
        "view": [row.view.view for row in rows],
        "crop": [[row.view.left, row.view.top, row.view.right, row.view.bottom] for row in rows],
        "mirrored": [row.view.mirrored for row in rows],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "label": [row.label for row in rows],
    }
    for field in extra:
        columns[field.name] = [row.columns[field.name] for row in rows]
    return columns


def _check_rejects(task: TokenizeTask, number: int, planned: int, found: list[RejectRow]) -> None:
    """Stops the run when too many images fail, or when the input seems to be gone."""
    lost = sum(row.stage == "read" and row.error in _LOST for row in found)
    if planned >= UNREADABLE_SLICE and lost == planned:
        raise UserError(
            f"slice {number}: not one of its {planned} images can be read, such as {found[0].key!r} "
            f"({found[0].message}); "
            "check that the input is still there and run the same command again"
        )
    if task.rejects_expected not in (None, len(found)):
        last = f", such as {found[-1].key!r} ({found[-1].message})" if found else ""
        raise UserError(
            f"slice {number}: {counted(len(found), 'reject')} where there were {task.rejects_expected}"
            f"{last}; give the input that it was made of"
        )
    if task.max_reject_rate is None or len(found) <= task.max_reject_rate * planned:
        return
    first = found[0]
    raise UserError(
        f"slice {number}: {len(found)} of {planned} images were rejected, more than the "
        f"{task.max_reject_rate:.0%} allowed, such as {first.key!r} ({first.message}); "
        "raise --max-reject-rate or fix the input"
    )
