"""The settings of ``vqgan verify``, ``retry``, ``merge``, ``browse``, ``import``, ``push`` and other tools.

These commands leave no file of their settings: what they write, if anything, is another tool's, goes to the
Hub, or has a fingerprint of its contents. Imports configurations and the standard library alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar

from pipelines.options.declarations import Options, PathLike, flag, read_image_size, read_paths, split_numbers
from pipelines.options.run_options import BeamOptions, CompilingOptions, SourceOptions, optional_path
from vqgan.engines.choice import ENGINES
from vqgan.errors import UserError
from vqgan.image_sizes import ImageSize

EXPORT_FORMATS = ("safetensors", "diffusers", "llamagen", "vqgan-jax", "onnx", "llama", "gpt2")
IMPORTED_WEIGHTS = ("raw", "ema")
_TOLD = "what the checkpoint tells"
_AS_MADE = "as the data set was made"


def read_condition_grid(value: Any) -> tuple[int, int]:
    """Reads height and width in tokens, from a text or a list; without one both sides are 0.

    Raises:
      UserError: it is anything else.
    """
    if value is None:
        return 0, 0
    text = "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    sides = split_numbers(text.lower(), "x", 2)
    if sides is None:
        raise UserError(f"--condition-grid is {text!r}: give height and width in tokens, such as 16x16")
    return sides[0], sides[1]


def read_list(value: Any) -> str | None:
    """Reads items separated by commas, from a text, a number or a list, as a text; None stays None."""
    if value is None:
        return None
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolOptions(Options):
    """Settings of a command that leaves none of them behind."""

    title: ClassVar[str] = ""
    leaves_file: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions(ToolOptions, CompilingOptions, SourceOptions):
    """Settings of ``vqgan verify``, beside those of its input.

    Attributes:
      path: data set: folder, URI, or hf://datasets/owner/name
      repair: make shards again that are gone or damaged, with the settings of plan/run.yaml
      codec: re-encode a sample with this codec and compare; needs --input
      input: where the images came from
      sample: images to re-encode
      min_agreement: least share of equal tokens, by the engine that made them
      engine: runs the codec's networks
    """

    path: PathLike = field(metadata=flag(positional=True))
    repair: bool = False
    codec: PathLike | None = None
    input: PathLike | None = None
    sample: int = 64
    min_agreement: float = 0.999
    engine: str | None = field(
        default=None, metadata=flag(choices=ENGINES, shown="the one that made the tokens")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryOptions(ToolOptions, BeamOptions):
    """Settings of ``vqgan retry``; all others are those that the data set was made with.

    Attributes:
      path: finished token data set with its plan/run.yaml: folder or URI
      input: where the images lie now
      codec: where the codec lies now
      batch_size: images per device call
      threads: readers and decoders
      quiet: print errors only
    """

    path: PathLike = field(metadata=flag(positional=True))
    input: PathLike | None = field(default=None, metadata=flag(shown=_AS_MADE))
    codec: PathLike | None = field(default=None, metadata=flag(shown=_AS_MADE))
    batch_size: int | None = field(default=None, metadata=flag(shown=_AS_MADE))
    threads: int | None = field(default=None, metadata=flag(shown=_AS_MADE))
    quiet: bool = False

    def given(self) -> dict[str, Any]:
        """Returns the settings that take the place of those of the data set."""
        names = ("input", "codec", "batch_size", "threads", "quiet")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeOptions(ToolOptions):
    """Settings of ``vqgan merge``.

    Attributes:
      paths: finished token data sets of one codec and preprocessing: folders or URIs, two or more
      output: folder or URI of the joined data set
      quiet: print errors only
    """

    paths: Sequence[PathLike] = field(
        metadata=flag(
            positional=True,
            many=True,
            metavar="DATA_SET",
            read=lambda value: read_paths("DATA_SET", value),
        )
    )
    output: PathLike
    quiet: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrowseOptions(ToolOptions, SourceOptions):
    """Settings of ``vqgan browse``, beside those of its input.

    Attributes:
      path: finished token data set: folder, URI, or hf://datasets/owner/name
      input: where the images came from, to show the originals
      codec: codec that made the tokens, as tokenize takes it
      port: of 127.0.0.1; 0 for any that is free
    """

    path: PathLike = field(metadata=flag(positional=True))
    input: PathLike | None = None
    codec: PathLike | None = field(default=None, metadata=flag(shown="the one that they name"))
    port: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportCodecOptions(ToolOptions):
    """Settings of ``vqgan import``.

    Attributes:
      source: checkpoint file or folder, or hf://owner/name[/file][@revision]
      output: folder of the codec
      input_range: pixel values for 0 and 255 that the model expects, such as 0,1
      resolution: side in pixels that it was trained at
      attn_resolutions: sides of the levels with attention, such as 16,32
      weights: averaged weights, where the file has both
      name: published name that it must be, such as vqgan_imagenet_f16_16384
      native_config: its own configuration file
      scales: sides of the grids of a multi-scale tokenizer, from coarse to fine, such as 1,2,4,8,16
    """

    source: PathLike = field(metadata=flag(positional=True))
    output: PathLike
    input_range: str | None = field(default=None, metadata=flag(read=read_list, shown=_TOLD))
    resolution: int | None = field(default=None, metadata=flag(shown=_TOLD))
    attn_resolutions: str | None = field(default=None, metadata=flag(read=read_list, shown=_TOLD))
    weights: str | None = field(default=None, metadata=flag(choices=IMPORTED_WEIGHTS, shown="raw"))
    name: str | None = field(default=None, metadata=flag(shown=_TOLD))
    native_config: PathLike | None = field(default=None, metadata=flag(shown="beside it"))
    scales: str | None = field(default=None, metadata=flag(read=read_list, shown=_TOLD))

    def of_source(self) -> Mapping[str, str | None]:
        """Returns what the name of the source takes behind its question mark; None for what was not given."""
        return {
            "input_range": self.input_range,
            "resolution": None if self.resolution is None else str(self.resolution),
            "attn_resolutions": self.attn_resolutions,
            "weights": self.weights,
            "name": self.name,
            "config": optional_path(self.native_config),
            "scales": self.scales,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportPriorOptions(ToolOptions):
    """Settings of ``vqgan import-prior``.

    Attributes:
      source: checkpoint of a Net2NetTransformer or of a GPT of LlamaGen: file, folder, or hf://owner/name[/file][@revision]
      codec: codec whose tokens it was trained on; may be the same checkpoint
      image_size: of the images it was trained on, in pixels: side of a square, or HEIGHTxWIDTH as 256x384
      output: folder of the prior
      heads: attention heads, n_head; known of LlamaGen's published sizes
      classes: number of classes, for a class-conditional prior
      condition_codes: codes of the condition's tokens; 0 without one
      condition_grid: height and width of the condition's tokens, such as 16x16
      native_config: its own configuration file

    Raises:
      UserError: a value out of range, or two that contradict each other.
    """

    source: PathLike = field(metadata=flag(positional=True))
    codec: PathLike
    image_size: ImageSize = field(metadata=flag(read=read_image_size, metavar="HxW"))
    output: PathLike
    heads: int | None = field(default=None, metadata=flag(shown="as the configuration beside it says"))
    classes: int = 0
    condition_codes: int = 0
    condition_grid: tuple[int, int] = field(
        default=(0, 0), metadata=flag(read=read_condition_grid, metavar="HxW", shown="none")
    )
    native_config: PathLike | None = field(default=None, metadata=flag(shown="beside it"))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, least in (("heads", self.heads, 1), ("classes", self.classes, 0)):
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}: it must be at least {least}")
        if (self.condition_codes > 0) != (min(self.condition_grid) > 0):
            raise UserError("--condition-codes and --condition-grid belong together; give both, or neither")
        if self.condition_codes and self.classes:
            raise UserError("--classes and --condition-codes exclude each other: the original knows either")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(ToolOptions):
    """Settings of ``vqgan export``.

    Attributes:
      codec: codec folder or name, or a foreign checkpoint; for llama and gpt2 the folder of a prior
      output: folder to write
      to: format
    """

    codec: PathLike = field(metadata=flag(positional=True, metavar="CODEC"))
    output: PathLike = field(metadata=flag(metavar="DIR"))
    to: str = field(metadata=flag(choices=EXPORT_FORMATS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushOptions(ToolOptions):
    """Settings of ``vqgan push``.

    Attributes:
      path: folder of a codec, of a prior, of the run that trained it, or of a token data set
      repository: of the Hub; created if it is not there
      revision: branch
      private: if the repository is created, make it private
      message: of the commit
    """

    path: PathLike = field(metadata=flag(positional=True))
    repository: str = field(metadata=flag(positional=True, metavar="OWNER/NAME"))
    revision: str | None = field(default=None, metadata=flag(shown="the repository's main one"))
    private: bool = False
    message: str | None = field(default=None, metadata=flag(shown="what is uploaded"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions(ToolOptions, CompilingOptions):
    """Settings of ``vqgan demo``.

    Attributes:
      output: folder for everything
      input: your own images
    """

    output: PathLike = "demo-output"
    input: PathLike | None = field(default=None, metadata=flag(shown="photographs that come along"))
