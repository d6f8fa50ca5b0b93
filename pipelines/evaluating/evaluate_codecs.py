"""``vqgan evaluate``: how good codecs are, measured on the images of a source.

Images take the way that ``vqgan tokenize`` takes: the same sources, limits, crop and resize, decoded by
threads ahead of the device. Pixels are in memory for a few batches; what grows with the source is the list
of its entries and a few numbers for each image.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.evaluating.evaluation_metrics import (
    FRECHET,
    LoadedMetrics,
    MetricChoice,
    Scores,
    common_channels,
    load_metrics,
    merge_optional,
    summarise,
)
from pipelines.evaluating.evaluation_report import (
    ExamplePair,
    choose_examples,
    per_image_csv,
    render_evaluation,
    results_as_json,
    short_names,
)
from pipelines.evaluating.protocols import Protocol
from pipelines.options.settings import check_at_least_one
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sharded.batching import fitted_batch_size, load_codec
from transforms.sharded.manifest import versions
from transforms.sharded.progress import Progress
from transforms.sharded.rejects import RejectRow
from transforms.sharded.slices import check_keys, collect, entries_of
from transforms.sources import Source, SourceConfig, open_source
from transforms.tokenizing.shard import Batch, Item, SourceImages, batches, read_and_decode
from vqgan import filesystems, publishing
from vqgan.codec_checkpoint import CodecInfo, read_info
from vqgan.config_json import RUN_FILE
from vqgan.data.splits import is_validation, key_hash
from vqgan.engines.agreement import SAMPLE, TokenAgreement, compare_tokens
from vqgan.engines.choice import EngineChoice, resolve_engine
from vqgan.errors import UserError
from vqgan.image_sizes import ImageSize, describe_size
from vqgan.metrics.frechet import FeatureStatistics
from vqgan.processor import available_cores

SPLITS = ("all", "train", "validation")
CHUNK = 4096
"""Entries that a source is asked for at once."""
REJECTS_LISTED = 100


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """All settings of an evaluation.

    Attributes:
      source: where images come from.
      codecs: paths or names; all see the same images.
      image_size: side in pixels, or height and width; None for the codecs' resolution.
      split: ``all``, or the part that ``vqgan train`` learns from or validates on.
      holdout: one in this many images is for validation, as ``vqgan train`` was told.
      limit: at most this many images, chosen by a hash of their keys; None for all.
      choice: which metrics.
      batch_size: images per device call.
      threads: readers and decoders.
      output: folder or URI for the results; None to write nothing.
      quiet: no progress.
      engine: what runs the codecs' networks.
      colour: what becomes of colour images where codecs take grey.
      protocol: fixes how images become squares, and how many there are.
    """

    source: SourceConfig
    codecs: tuple[str, ...]
    image_size: ImageSize | None = None
    split: str = "all"
    holdout: int = 10
    limit: int | None = None
    choice: MetricChoice = dataclasses.field(default_factory=MetricChoice)
    batch_size: int = 32
    threads: int = dataclasses.field(default_factory=available_cores)
    output: str | None = None
    quiet: bool = False
    engine: str = "jax"
    colour: str = DecodeConfig.colour
    protocol: Protocol | None = None

    def __post_init__(self) -> None:
        check_at_least_one(self, ("holdout", "limit", "batch_size", "threads"))
        if self.split not in SPLITS:
            raise UserError(f"--split {self.split}: known are {', '.join(SPLITS)}")
        if self.output == "":
            raise UserError("--output is empty: give a folder")
        repeated = [name for name, count in Counter(self.codecs).items() if count > 1]
        if repeated or not self.codecs:
            raise UserError(f"--codec {' '.join(repeated)}: give one codec, or several different ones")


def run_evaluation(config: EvaluateConfig, record: bytes = b"") -> dict[str, Any]:
    """Measures codecs and, where ``config.output`` is set, writes the results.

    Args:
      config: all settings.
      record: the settings as a file, for the output.

    Returns:
      ``reference`` (which images), ``codecs`` (each with its ``metrics``), ``skipped`` (metrics and
      why), ``notes``, ``rejects`` and ``versions``, as JSON data.

    Raises:
      UserError: no codec, no usable image, or a metric asked for by name that is not available.
    """
    infos = [read_info(name) for name in config.codecs]
    images = _source_images(config, infos)
    for info in infos:
        info.require_decoder("give one that has one to measure reconstructions")
        info.config.grid(*images.geometry.shape)
    engine = resolve_engine(config.engine, *(info.config for info in infos))
    source = open_source(images.source)
    source.fields()
    metrics = load_metrics(config.choice, images.geometry.image_size, images.decode.channels)
    entries = select(collect(source.list(), source.fields()), config)
    if config.protocol is not None:
        config.protocol.check_run(metrics.network, len(entries), config.source.input)
    if config.output is not None:
        publishing.make_folder(config.output)
    config = dataclasses.replace(config, batch_size=fitted_batch_size(config.batch_size, [len(entries)]))
    evaluation = CodecEvaluation(config, images, engine, metrics, source)
    evaluation.measure(entries)
    results = evaluation.results()
    results["citations"] = config.protocol.describe(results) if config.protocol else []
    if config.output is not None:
        if record:
            publishing.write_bytes(filesystems.join(config.output, RUN_FILE), record)
        page = render_evaluation(results, evaluation.examples(entries))
        table = per_image_csv(config.codecs, evaluation.keys, evaluation.scores)
        _write(config.output, "evaluation.csv", table)
        _write(config.output, "report.html", page)
        _write(config.output, "evaluation.json", results_as_json(results))
    return results


def _write(folder: str, name: str, text: str) -> None:
    publishing.write_bytes(filesystems.join(folder, name), text.encode("utf-8", "backslashreplace"))


def _source_images(config: EvaluateConfig, infos: list[CodecInfo]) -> SourceImages:
    """Returns what is read, and how it is decoded."""
    channels = common_channels([info.config.channels for info in infos])
    image_size, protocol = _image_size(config, infos), config.protocol
    if protocol is not None:
        channels.require_rgb(f"--protocol {protocol.name}")
    return SourceImages(
        source=dataclasses.replace(config.source, arrays=not channels.is_rgb),
        decode=protocol.decode if protocol else DecodeConfig(colour=config.colour, channels=channels),
        geometry=protocol.geometry if protocol else Geometry(image_size=image_size),
        batch_size=config.batch_size,
        threads=config.threads,
    )


def _image_size(config: EvaluateConfig, infos: list[CodecInfo]) -> ImageSize:
    if config.image_size is not None:
        return config.image_size
    sizes = {info.config.resolution for info in infos}
    if len(sizes) > 1:
        raise UserError(
            f"these codecs are for {', '.join(map(str, sorted(sizes)))} pixels: give --image-size, "
            "since metrics at different sizes cannot be compared"
        )
    return sizes.pop()


def select(entries: pa.Table, config: EvaluateConfig) -> pa.Table:
    """Selects the entries of the split, and of them no more than the limit, in the order of the source.

    The split is that of ``vqgan train``, see :mod:`vqgan.data.splits`. The limit keeps those whose
    hashes are lowest: a random sample that does not depend on the order of files.
    Raises UserError where keys occur twice, or nothing is left.
    """
    if not len(entries):
        raise UserError(f"{config.source.input}: there are no images in it")
    check_keys(entries)
    keys = entries.column("key").to_pylist()
    chosen = np.ones(len(keys), bool)
    if config.split != "all":
        held = [is_validation(key, config.holdout) for key in keys]
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


class CodecEvaluation:
    """Codecs, and what has been measured of them.

    Attributes:
      config: as given.
      images: what is read, and how it is decoded.
      engine: what runs the codecs' networks.
      metrics: those that are measured.
      chosen: number of entries that were to be measured.
      keys: of the images that were, in the order of per-image metrics.
      rejects: of those that could not be.
      reference: statistics of the originals' features.
      codecs: in the order of ``config.codecs``.
      scores: of each codec.
      agreements: of each codec's tokens with JAX's, where another engine runs it.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        images: SourceImages,
        engine: EngineChoice,
        metrics: LoadedMetrics,
        source: Source,
    ):
        from vqgan.codec import Codec

        self.config, self.images, self.engine, self.metrics = config, images, engine, metrics
        settings: dict[str, Any] = {"batch_size": config.batch_size, "engine": engine}
        self.codecs = [Codec.load(name, **settings) for name in config.codecs]
        self.agreements: list[TokenAgreement | None] = [None] * len(self.codecs)
        self.scores = [Scores(metrics, codec.config.codebook_size) for codec in self.codecs]
        self.chosen = 0
        self.keys: list[str] = []
        self.rejects: list[RejectRow] = []
        self.reference: FeatureStatistics | None = None
        self._source = source

    def measure(self, entries: pa.Table) -> None:
        """Encodes, decodes and compares every entry. Raises UserError where not one of them is usable."""
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
        """Yields entries in order, decoded or rejected."""
        for start in range(0, len(entries), CHUNK):
            chunk = entries_of(entries.slice(start, CHUNK))
            yield from read_and_decode(self.images, self._source, chunk)

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
        self.reference = merge_optional(self.reference, self.metrics.features(batch.pixels, count))
        for number, (codec, scores) in enumerate(zip(self.codecs, self.scores, strict=True)):
            tokens = np.asarray(codec.encode_batch(batch.pixels))
            if not codec.engine.is_jax and self.agreements[number] is None:
                few = slice(0, min(count, SAMPLE))
                exact = load_codec(self.config.codecs[number], SAMPLE, "float32")
                self.agreements[number] = compare_tokens(exact, batch.pixels[few], tokens[few])
            scores.add(batch.pixels, np.asarray(codec.decode_batch(tokens)), tokens, count, pool)

    def examples(self, entries: pa.Table) -> list[tuple[str, list[ExamplePair]]]:
        """Returns groups of images to look at, with their titles.

        They are read and reconstructed once more; whatever can no longer be read is left out.
        """
        groups = [choose_examples(scores) for scores in self.scores]
        keys = {self.keys[row] for group in groups for rows in group.values() for row in rows}
        chosen = entries.filter(pc.is_in(entries.column("key"), pa.array(sorted(keys), pa.string())))
        originals = {item.rows[0].key: item.pixels[0] for item in self.read(chosen) if isinstance(item, Item)}
        return [
            (f"{label}: {title}", self._reconstruct(number, rows, originals))
            for number, (label, group) in enumerate(zip(short_names(self.config.codecs), groups, strict=True))
            for title, rows in group.items()
        ]

    def _reconstruct(
        self, number: int, rows: list[int], originals: Mapping[str, np.ndarray]
    ) -> list[ExamplePair]:
        """Reconstructs images by one codec."""
        codec, values = self.codecs[number], self.scores[number].per_image
        rows = [row for row in rows if self.keys[row] in originals]
        if not rows:
            return []
        keys = [self.keys[row] for row in rows]
        images = np.stack([originals[key] for key in keys])  # (N, H, W, C)
        captions = [", ".join(f"{name} {values[name][row]:.4g}" for name in values) for row in rows]
        return list(map(ExamplePair, keys, images, codec.decode(codec.encode(images)), captions))

    def results(self) -> dict[str, Any]:
        """Returns everything that was found, as :func:`run_evaluation` does."""
        reference = self._describe_reference()
        skipped = dict(self.metrics.skipped)
        if self.reference is not None and self.reference.count < 2:
            skipped[FRECHET] = "frechet: a covariance needs at least 2 images"
        codecs = [self._describe_codec(number, _in_words(reference)) for number in range(len(self.codecs))]
        return {
            "reference": reference,
            "codecs": codecs,
            "skipped": skipped,
            "notes": [note for codec in codecs for note in _notes(codec)],
            "rejects": [row._asdict() for row in self.rejects[:REJECTS_LISTED]],
            "versions": versions(),
            **self.engine.identity(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _describe_reference(self) -> dict[str, Any]:
        """Says which images, how many of them, and how they were cropped."""
        config, geometry = self.config, self.images.geometry
        reasons = Counter(f"{row.stage}: {row.error}" for row in self.rejects)
        return {
            "data": config.source.input,
            "split": config.split,
            "holdout": None if config.split == "all" else config.holdout,
            "limit": config.limit,
            "chosen": self.chosen,
            "images": len(self.keys),
            "rejects": len(self.rejects),
            "reject_reasons": dict(reasons.most_common()),
            "image_size": geometry.image_size,
            "resampling": f"{geometry.resize}, {geometry.filter}",
            "preprocessing": self.images.preprocessing(),
        }

    def _describe_codec(self, number: int, reference_set: str) -> dict[str, Any]:
        codec = self.codecs[number]
        metrics = summarise(self.scores[number], self.metrics, self.reference)
        agreement = self.agreements[number]
        return {
            "codec": self.config.codecs[number],
            "fingerprint": codec.fingerprint,
            "downsampling": codec.config.downsampling,
            "codebook_size": codec.config.codebook_size,
            "resolution": codec.config.resolution,
            "metrics": {name: {**metric, "reference_set": reference_set} for name, metric in metrics.items()},
            **({} if agreement is None else {"agreement_with_jax": dataclasses.asdict(agreement)}),
        }


def _in_words(reference: Mapping[str, Any]) -> str:
    """Returns the reference set in a few words, which stand beside every metric."""
    split = reference["split"]
    if reference["holdout"]:
        split += f" (1 of {reference['holdout']} for validation)"
    if reference["limit"]:
        split += f", sample of {reference['limit']}"
    size = describe_size(reference["image_size"])
    return f"{reference['data']}, {split}, {size} px, {reference['resampling']}"


def _notes(codec: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a reader has to know about single metrics."""
    for name, metric in codec["metrics"].items():
        if metric.get("equal_images"):
            yield (
                f"{codec['codec']}, {name}: {metric['equal_images']} of {metric['images']} reconstructions "
                "equal their originals; the mean is over the others"
            )
        if metric.get("biased"):
            yield (
                f"{codec['codec']}, {name}: {metric['images']} images are too few for "
                f"{metric['dimension']} features (singular covariances); the metric is biased, compare it "
                "over the same images only"
            )
