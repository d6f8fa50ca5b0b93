"""``vqgan evaluate``: how good codecs are, measured on the pictures of a source.

Pictures take the way that ``vqgan tokenize`` takes: the same sources, limits, crop and resize, decoded by
threads ahead of the device. Pixels are in memory for a few batches; what grows with the source is the list
of its entries and a few numbers for each image.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import evaluation_page, evaluation_results, scoring
from pipelines.scoring import Instruments, MetricChoice, Scores
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.plan import check_keys, collect
from transforms.progress import Progress
from transforms.rejects import RejectRow
from transforms.slices import Batch, Item, Job, batches, read_and_decode
from transforms.sources import Entry, Source, SourceConfig, open_source
from vqgan import filesystems
from vqgan.codec_checkpoint import CodecInfo, read_info
from vqgan.data.splitting import is_held_back, key_hash
from vqgan.errors import UserError
from vqgan.metrics.frechet import FeatureStatistics

SPLITS = ("all", "train", "validation")
CHUNK = 4096
"""Entries that a source is asked for at once."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """All settings of an evaluation.

    Attributes:
      source: where pictures come from.
      codecs: paths or names; all see the same pictures.
      image_size: side in pixels; None for the codecs' resolution.
      split: ``all``, or the part that ``vqgan train`` learns from or holds back.
      holdout: one in this many pictures is held back, as ``vqgan train`` was told.
      limit: at most this many pictures, chosen by a hash of their keys; None for all.
      choice: which metrics.
      batch_size: images per device call.
      threads: readers and decoders.
      output: folder or URI for the results; None to write nothing.
      quiet: no progress.
    """

    source: SourceConfig
    codecs: tuple[str, ...]
    image_size: int | None = None
    split: str = "all"
    holdout: int = 10
    limit: int | None = None
    choice: MetricChoice = dataclasses.field(default_factory=MetricChoice)
    batch_size: int = 32
    threads: int = os.cpu_count() or 1
    output: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("holdout", "limit", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: it must be at least 1")
        if self.split not in SPLITS:
            raise UserError(f"--split {self.split}: known are {', '.join(SPLITS)}")
        if self.output == "":
            raise UserError("--output is empty: give a folder")
        repeated = [name for name, count in Counter(self.codecs).items() if count > 1]
        if repeated or not self.codecs:
            raise UserError(f"--codec {' '.join(repeated)}: give one codec, or several different ones")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measures codecs and, where ``config.output`` is set, writes the results.

    Returns:
      ``reference`` (which pictures), ``codecs`` (each with its ``figures``), ``skipped`` (metrics and
      why), ``notes``, ``rejects`` and ``versions``, as JSON data.

    Raises:
      UserError: no codec, no usable picture, or a metric asked for by name that cannot be had.
    """
    infos = [read_info(name) for name in config.codecs]
    job = _job(config, _image_size(config, infos))
    for info in infos:
        info.config.grid(job.geometry.image_size, job.geometry.image_size)
    source = open_source(config.source)
    source.fields()
    instruments = scoring.load_instruments(config.choice, job.geometry.image_size)
    if config.output is not None:
        filesystems.make_folder(config.output)
    entries = select(collect(source.list()), config)
    run = Run(config, job, instruments, source)
    run.measure(entries)
    result = evaluation_results.describe(run)
    if config.output is not None:
        pages = evaluation_page.render_page(run, result, entries)
        _write(config.output, "evaluation.csv", evaluation_results.per_image_csv(run))
        _write(config.output, "report.html", pages)
        _write(config.output, "evaluation.json", evaluation_results.as_json(result))
    return result


def _write(folder: str, name: str, text: str) -> None:
    filesystems.write_bytes(filesystems.join(folder, name), text.encode("utf-8", "backslashreplace"))


def _job(config: EvaluateConfig, image_size: int) -> Job:
    """The settings of reading and decoding, in the form that :mod:`transforms.slices` takes."""
    return Job(
        output="",
        source=config.source,
        decode=DecodeConfig(),
        geometry=Geometry(image_size=image_size),
        codec="",
        batch_size=config.batch_size,
        dtype="float32",
        threads=config.threads,
        plan_hash="",
        slices=1,
    )


def _image_size(config: EvaluateConfig, infos: list[CodecInfo]) -> int:
    if config.image_size is not None:
        return config.image_size
    sizes = {info.config.resolution for info in infos}
    if len(sizes) > 1:
        raise UserError(
            f"these codecs are for {', '.join(map(str, sorted(sizes)))} pixels: give --image-size, "
            "since figures at different sizes cannot be compared"
        )
    return sizes.pop()


def select(entries: pa.Table, config: EvaluateConfig) -> pa.Table:
    """The entries of the split, and of them no more than the limit, in the order of the source.

    The split is that of ``vqgan train``, see :mod:`transforms.splitting`. The limit keeps those whose
    hashes are lowest: a random sample that does not depend on the order of files.

    Raises:
      UserError: keys occur twice, or nothing is left.
    """
    if not len(entries):
        raise UserError(f"{config.source.input}: there are no images in it")
    check_keys(entries)
    keys = entries.column("key").to_pylist()
    chosen = np.ones(len(keys), bool)
    if config.split != "all":
        held = [is_held_back(key, config.holdout) for key in keys]
        chosen = np.array(held) == (config.split == "validation")
    if not chosen.any():
        raise UserError(
            f"{config.source.input}: --split {config.split} with --holdout {config.holdout} leaves none of "
            f"its {len(keys)} images; use --split all"
        )
    rows = np.flatnonzero(chosen)
    if config.limit is not None:
        first = sorted(rows, key=lambda row: key_hash(keys[row]))[: config.limit]
        rows = np.array(sorted(first))
    return entries.take(pa.array(rows))


class Run:
    """Codecs, and what has been measured of them.

    Attributes:
      config: as given.
      job: how pictures are read and decoded.
      instruments: the metrics.
      chosen: number of entries that were to be measured.
      keys: of the images that were, in the order of per-image figures.
      rejects: of those that could not be.
      reference: statistics of the originals' features.
      codecs: in the order of ``config.codecs``.
      scores: of each codec.
    """

    def __init__(self, config: EvaluateConfig, job: Job, instruments: Instruments, source: Source):
        from vqgan.codec import Codec

        self.config, self.job, self.instruments = config, job, instruments
        self.codecs = [Codec.load(name, batch_size=config.batch_size) for name in config.codecs]
        self.scores = [Scores(instruments, codec.config.codebook_size) for codec in self.codecs]
        self.chosen = 0
        self.keys: list[str] = []
        self.rejects: list[RejectRow] = []
        self.reference: FeatureStatistics | None = None
        self._source = source

    def measure(self, entries: pa.Table) -> None:
        """Encodes, decodes and compares every entry.

        Raises:
          UserError: not one of them is usable.
        """
        self.chosen = len(entries)
        progress = Progress(len(entries), quiet=self.config.quiet)
        try:
            with ThreadPoolExecutor(self.config.threads, "measure") as pool:
                items = self._accepted(self.read(entries), progress)
                for batch in batches(items, self.codecs[0].batch_size):
                    self._add(batch, pool)
        finally:
            progress.close()
        if not self.keys:
            first = self.rejects[0]
            raise UserError(
                f"{self.config.source.input}: none of its {len(entries)} images can be used, such as "
                f"{first.key!r} ({first.message}); nothing was measured"
            )

    def read(self, entries: pa.Table) -> Iterator[Item | RejectRow]:
        """Entries in order, decoded or rejected."""
        for start in range(0, len(entries), CHUNK):
            chunk = [Entry(**row) for row in entries.slice(start, CHUNK).to_pylist()]
            yield from read_and_decode(self.job, self._source, chunk)

    def _accepted(self, items: Iterator[Item | RejectRow], progress: Progress) -> Iterator[Item]:
        for item in items:
            if isinstance(item, RejectRow):
                self.rejects.append(item)
                progress(0, 1)
            else:
                progress(1, 0)
                yield item

    def _add(self, batch: Batch, pool: ThreadPoolExecutor) -> None:
        count = len(batch.rows)
        self.keys += [row.key for row in batch.rows]
        self.reference = scoring.merged(self.reference, self.instruments.features(batch.pixels, count))
        for codec, scores in zip(self.codecs, self.scores, strict=True):
            tokens = np.asarray(codec.encode_batch(batch.pixels))
            scores.add(batch.pixels, np.asarray(codec.decode_batch(tokens)), tokens, count, pool)
