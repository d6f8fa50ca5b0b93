"""The settings of ``vqgan tokenize``, ``decode`` and ``evaluate``: flags, keywords, ``--config``.

Each class makes of them what the run itself takes. Imports configurations and the standard library alone.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.evaluating.protocols import PROTOCOLS
from pipelines.options.declarations import Options, PathLike, flag, read_image_size, read_paths
from pipelines.options.settings import DTYPES
from transforms.decoding.image_format import EXTENSIONS, FORMATS
from transforms.images.config import COLOUR, TRUNCATED, DecodeConfig
from transforms.images.crops import FILTERS, RESIZES, VIEWS, Geometry
from transforms.sources.base import KINDS, SourceConfig
from vqgan.engines.choice import ENGINES
from vqgan.errors import UserError
from vqgan.image_sizes import ImageSize, parse_buckets
from vqgan.processor import available_cores

if TYPE_CHECKING:
    from pipelines.decode_tokens import DecodeTokensConfig
    from pipelines.evaluating.evaluate_codecs import EvaluateConfig
    from pipelines.tokenize_images import TokenizeConfig

ONE_PER_CORE = "one per core"
ONE_PER_CORE_OF_WORKER = "one per core of a worker"


def read_beam_flags(value: Any) -> tuple[str, ...]:
    """Reads flags for Beam: texts, or a mapping of their names to values; True is a flag without a value.

    Raises:
      UserError: neither.
    """
    if isinstance(value, Mapping):
        pairs = [(str(name).lstrip("-"), item) for name, item in value.items() if item is not False]
        return tuple(f"--{name}" if item is True else f"--{name}={item}" for name, item in pairs)
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise UserError(f"beam {value!r}: give names and values, such as runner: FlinkRunner")
    return tuple(value)


def threads_of(value: int | None) -> int:
    """Returns a number of threads, by default one for each core that this process may use."""
    return available_cores() if value is None else value


def optional_path(value: PathLike | None) -> str | None:
    """Returns a path or name as text; None stays None."""
    return None if value is None else os.fspath(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions(Options):
    """How an input is read.

    Attributes:
      input_kind: do not recognise the input, take it for this
      folder_labels: names of first-level subfolders are classes
      image_column: column or feature with the image or its path
      key_column: column or feature with a unique key
      label_column: column or feature with the class, a number or a name
      whole_names: tar: names of a sample agree up to the last dot
      columns: further columns to pass through, separated by commas
    """

    title: ClassVar[str] = "input"
    input_kind: str | None = field(
        default=None, metadata=flag(choices=tuple(sorted(KINDS)), shown="recognised")
    )
    folder_labels: bool = False
    image_column: str | None = field(default=None, metadata=flag(shown="the one with images"))
    key_column: str | None = field(default=None, metadata=flag(shown="keys from file names and rows"))
    label_column: str | None = None
    whole_names: bool = False
    columns: tuple[str, ...] = field(default=(), metadata=flag(separator=","))

    def source(self, path: PathLike) -> SourceConfig:
        """Returns the source at a path that these settings describe."""
        return SourceConfig(
            input=os.fspath(path),
            kind=self.input_kind,
            folder_labels=self.folder_labels,
            whole_names=self.whole_names,
            image_column=self.image_column,
            key_column=self.key_column,
            label_column=self.label_column,
            columns=self.columns,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """How images become squares or rectangles, and which are accepted.

    Attributes:
      image_size: in pixels: side of the square, or HEIGHTxWIDTH, as 256x384 for 256 rows of 384
      buckets: sizes, as 256x256,256x384: each image gets the one nearest to its aspect, a data set for each
      resize: how an image becomes a square, or a rectangle
      filter: of the resampling
      views: rows for each image
      crop_range: ten-crop: side before cropping / size
      random_crops: random-crops: views per image
      min_crop: random-crops: least share of a side
      seed: random-crops: seed
      min_side: reject images with a shorter side
      max_area: reject images of more pixels
      max_aspect: reject images longer by this factor
      max_pixels: decompression-bomb limit in pixels
      max_bytes: largest file in bytes
      jpeg_draft: let the decoder reduce large JPEGs; without, they are decoded at full size before resizing
      on_truncated: JPEGs that lack pixels
      colour: colour images, for a codec of grey ones
    """

    title: ClassVar[str] = "images"
    image_size: ImageSize | None = field(
        default=None, metadata=flag(read=read_image_size, metavar="HxW", shown="the codec's resolution")
    )
    buckets: tuple[ImageSize, ...] = field(
        default=(), metadata=flag(read=lambda value: parse_buckets("--buckets", value), metavar="HxW,HxW")
    )
    resize: str = field(default=Geometry.resize, metadata=flag(choices=RESIZES))
    filter: str = field(default=Geometry.filter, metadata=flag(choices=tuple(sorted(FILTERS))))
    views: str = field(default=Geometry.views, metadata=flag(choices=VIEWS))
    crop_range: float = Geometry.crop_range
    random_crops: int = Geometry.random_crops
    min_crop: float = Geometry.min_crop
    seed: int = Geometry.seed
    min_side: int = DecodeConfig.min_side
    max_area: int | None = field(default=DecodeConfig.max_area, metadata=flag(shown="no limit"))
    max_aspect: float | None = field(default=DecodeConfig.max_aspect, metadata=flag(shown="no limit"))
    max_pixels: int = DecodeConfig.max_pixels
    max_bytes: int = DecodeConfig.max_bytes
    jpeg_draft: bool = DecodeConfig.jpeg_draft
    on_truncated: str = field(default=DecodeConfig.on_truncated, metadata=flag(choices=TRUNCATED))
    colour: str = field(default=DecodeConfig.colour, metadata=flag(choices=COLOUR))

    def geometry(self, image_size: ImageSize) -> Geometry:
        """Returns crop, resize and views for images of a size."""
        names = ("resize", "filter", "views", "crop_range", "random_crops", "min_crop", "seed")
        return Geometry(image_size=image_size, **{name: getattr(self, name) for name in names})

    def decode_config(self) -> DecodeConfig:
        """Returns what is accepted as an image."""
        names = [each.name for each in dataclasses.fields(DecodeConfig) if each.name != "channels"]
        return DecodeConfig(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompilingOptions(Options):
    """Settings of a command that compiles a model.

    Attributes:
      compilation_cache: keep what XLA compiles in the user's cache folder, and take it from there
    """

    title: ClassVar[str] = ""
    compilation_cache: bool = field(default=True, metadata=flag(recorded=False))

    def use_compilation_cache(self) -> None:
        """Switches the cache on in this process, if it is wanted; loads JAX."""
        if self.compilation_cache:
            from vqgan.compilation_cache import enable_compilation_cache

            enable_compilation_cache()


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamOptions(Options):
    """Where a pipeline runs.

    Attributes:
      beam: flags for Apache Beam, such as ``{"runner": "FlinkRunner"}``; on the command line they follow ours
    """

    beam: Mapping[str, Any] | Sequence[str] = field(
        default=(), metadata=flag(read=read_beam_flags, on_command_line=False)
    )

    @classmethod
    def merge(cls, base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a file's settings with those of the command line; of Beam's flags the last one wins."""
        beam = (*read_beam_flags(base.get("beam", ())), *read_beam_flags(given.get("beam", ())))
        return {**base, **given, "beam": beam}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizeOptions(CompilingOptions, SourceOptions, ImageOptions, BeamOptions):
    """Settings of ``vqgan tokenize``, beside those of its input and images.

    Attributes:
      input: folder, glob, list, tar, zip, Parquet, Arrow, TFRecord, URI or tfds:NAME/SPLIT
      output: folder or URI of the data set
      codec: codec folder, checkpoint of another code base, hf://owner/name, or tiny
      slice_size: images per shard, at most
      batch_size: images per device call, at most
      dtype: type that convolutions compute in
      threads: readers and decoders
      dedupe: reject images whose bytes occur under another key
      max_reject_rate: stop when a larger share of a slice is rejected, 0 to 1
      append: add what the input has and a finished output does not, as further shards
      report: write report.html
      quiet: print errors only
      engine: runs the codec's networks; auto: openvino where installed, without an accelerator
      columns_out: what rows have beside tokens: latents, what was quantized, as float16
    """

    title: ClassVar[str] = ""
    input: PathLike
    output: PathLike = field(metadata=flag(recorded=False))
    codec: PathLike
    slice_size: int = 4096
    batch_size: int = 32
    dtype: str = field(default="float32", metadata=flag(choices=DTYPES))
    threads: int | None = field(default=None, metadata=flag(shown=ONE_PER_CORE_OF_WORKER))
    dedupe: bool = False
    max_reject_rate: float | None = field(default=None, metadata=flag(shown="no limit"))
    append: bool = field(default=False, metadata=flag(recorded=False))
    report: bool = True
    quiet: bool = field(default=False, metadata=flag(recorded=False))
    engine: str = field(default="jax", metadata=flag(choices=ENGINES))
    columns_out: tuple[str, ...] = field(default=(), metadata=flag(separator=","))

    def config(self) -> "TokenizeConfig":
        """Returns the settings as the run takes them.

        Raises:
          UserError: a value out of range, or no such codec.
        """
        from pipelines.tokenize_images import TokenizeConfig
        from vqgan.codec_checkpoint import read_info

        if self.buckets and self.image_size is not None:
            raise UserError("--buckets and --image-size do not go together: leave one of them out")
        codec = os.fspath(self.codec)
        size = next(iter(self.buckets), self.image_size)
        size = read_info(codec).config.resolution if size is None else size
        return TokenizeConfig(
            source=self.source(self.input),
            output=os.fspath(self.output),
            codec=codec,
            geometry=self.geometry(size),
            decode=self.decode_config(),
            slice_size=self.slice_size,
            batch_size=self.batch_size,
            dtype=self.dtype,
            threads=self.threads,
            dedupe=self.dedupe,
            max_reject_rate=self.max_reject_rate,
            report=self.report,
            compilation_cache=self.compilation_cache,
            quiet=self.quiet,
            engine=self.engine,
            columns_out=self.columns_out,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeOptions(CompilingOptions, BeamOptions):
    """Settings of ``vqgan decode``.

    Attributes:
      tokens: finished token data set: folder, URI, or hf://datasets/owner/name
      output: folder or URI of the images
      codec: codec that made the tokens, as tokenize takes it
      format: a file for each image, or archives of them
      image_format: of images in tar and parquet
      quality: of webp and jpeg, 1 to 100
      first_view_only: decode the first view of each image, not all rows
      limit: decode no more rows than this, the first ones
      batch_size: grids of tokens per device call, at most
      dtype: type that convolutions compute in
      threads: encoders of images
      report: write report.html
      quiet: print errors only
      engine: runs the codec's networks, as for tokenize
    """

    tokens: PathLike
    output: PathLike = field(metadata=flag(recorded=False))
    codec: PathLike | None = field(default=None, metadata=flag(shown="the one that the tokens name"))
    format: str = field(default="png", metadata=flag(choices=FORMATS))
    image_format: str | None = field(
        default=None, metadata=flag(choices=tuple(sorted(EXTENSIONS)), shown="png")
    )
    quality: int | None = field(default=None, metadata=flag(shown="90 for webp, 95 for jpeg"))
    first_view_only: bool = False
    limit: int | None = field(default=None, metadata=flag(shown="all"))
    batch_size: int = 32
    dtype: str = field(default="float32", metadata=flag(choices=DTYPES))
    threads: int | None = field(default=None, metadata=flag(shown=ONE_PER_CORE_OF_WORKER))
    report: bool = True
    quiet: bool = field(default=False, metadata=flag(recorded=False))
    engine: str = field(default="jax", metadata=flag(choices=ENGINES))

    def config(self) -> "DecodeTokensConfig":
        """Returns the settings as the run takes them.

        Raises:
          UserError: a value out of range, or two that contradict each other.
        """
        from pipelines.decode_tokens import DecodeTokensConfig, form_of

        return DecodeTokensConfig(
            tokens=os.fspath(self.tokens),
            output=os.fspath(self.output),
            codec=optional_path(self.codec),
            form=form_of(self.format, self.image_format, self.quality),
            views="first" if self.first_view_only else "all",
            limit=self.limit,
            batch_size=self.batch_size,
            dtype=self.dtype,
            threads=self.threads,
            report=self.report,
            compilation_cache=self.compilation_cache,
            quiet=self.quiet,
            engine=self.engine,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(CompilingOptions, SourceOptions):
    """Settings of ``vqgan evaluate``, beside those of its input.

    Attributes:
      codec: as tokenize takes it; again for each to compare
      input: images, in any form that tokenize reads
      output: folder for evaluation.json, evaluation.csv and report.html
      image_size: in pixels: side of the square, or HEIGHTxWIDTH, as 256x384 for 256 rows of 384
      split: all, or of vqgan train: train, validation
      holdout: of a split: one in this many images is for validation
      limit: at most this many images, a sample by a hash of their keys
      metrics: some of psnr,ssim,l1,lpips-alex,lpips-vgg,frechet
      features: network of the Fréchet distance: efficientnet-lite0 or inception
      features_weights: its weights file; for inception, pytorch-fid's gives FID
      lpips_heads: LPIPS heads in torch's layout, such as vgg.pth
      lpips_backbone: torchvision's classifier below them
      batch_size: images per device call
      threads: readers and decoders
      quiet: print errors only
      engine: runs the codecs' networks, as for tokenize
      colour: colour images, for codecs of grey ones
      protocol: a published way to measure, which fixes crop, size, images and FID, and gives a line to cite
    """

    title: ClassVar[str] = ""
    codec: PathLike | Sequence[PathLike] = field(
        metadata=flag(read=lambda value: read_paths("--codec", value), many=True)
    )
    input: PathLike = field(metadata=flag(former=("--data",)))
    output: PathLike | None = field(default=None, metadata=flag(shown="nothing is written", recorded=False))
    image_size: ImageSize | None = field(
        default=None, metadata=flag(read=read_image_size, metavar="HxW", shown="the codecs' resolution")
    )
    split: str = "all"
    holdout: int = 10
    limit: int | None = field(default=None, metadata=flag(shown="all"))
    metrics: tuple[str, ...] | None = field(
        default=None, metadata=flag(separator=",", shown="all that are available")
    )
    features: str | None = field(default=None, metadata=flag(shown="efficientnet-lite0"))
    features_weights: PathLike | None = field(default=None, metadata=flag(shown="fetched"))
    lpips_heads: PathLike | None = field(default=None, metadata=flag(shown="fetched"))
    lpips_backbone: PathLike | None = field(default=None, metadata=flag(shown="fetched"))
    batch_size: int = 32
    threads: int | None = field(default=None, metadata=flag(shown=ONE_PER_CORE))
    quiet: bool = field(default=False, metadata=flag(recorded=False))
    engine: str = field(default="jax", metadata=flag(choices=ENGINES))
    colour: str = field(default=DecodeConfig.colour, metadata=flag(choices=COLOUR))
    protocol: str | None = field(default=None, metadata=flag(choices=tuple(PROTOCOLS)))

    def config(self) -> "EvaluateConfig":
        """Returns the settings as the run takes them. Raises UserError where they cannot be."""
        from pipelines.evaluating.evaluate_codecs import EvaluateConfig
        from pipelines.evaluating.evaluation_metrics import MetricChoice

        protocol = None if self.protocol is None else PROTOCOLS[self.protocol]
        image_size, features = protocol.fixed_of(vars(self)) if protocol else (self.image_size, self.features)
        weights = (self.features_weights, self.lpips_heads, self.lpips_backbone)
        return EvaluateConfig(
            source=self.source(self.input),
            codecs=read_paths("--codec", self.codec),
            image_size=image_size,
            split=self.split,
            holdout=self.holdout,
            limit=self.limit,
            choice=MetricChoice(self.metrics, features, *map(optional_path, weights)),
            batch_size=self.batch_size,
            threads=threads_of(self.threads),
            output=optional_path(self.output),
            quiet=self.quiet,
            engine=self.engine,
            colour=self.colour,
            protocol=protocol,
        )
