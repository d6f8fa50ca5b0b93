"""The settings of ``vqgan train``, ``train-prior``, ``sample`` and ``complete``.

Those of other runs are in :mod:`pipelines.options.run_options`.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.options.declarations import Options, PathLike, flag, read_numbers, read_paths
from pipelines.options.run_options import CompilingOptions, SourceOptions, optional_path
from vqgan.engines.choice import ENGINES
from vqgan.errors import UserError
from vqgan.prior.config import MASK_SCHEDULES
from vqgan.prior.sampling.config import GUIDANCE_SCHEDULES, MaskedSamplingConfig, SamplingConfig

if TYPE_CHECKING:
    from pipelines.sampling.complete_image import CompleteConfig
    from pipelines.sampling.sample_prior import SampleConfig
    from pipelines.training.training_codec import TrainRequest
    from pipelines.training.training_prior import TrainPriorRequest


CAPTIONS = "FILE.parquet:COLUMN"


def read_set(value: Any) -> tuple[str, ...]:
    """Reads changes of a preset, ``SECTION.FIELD=VALUE`` each, from texts or mappings by section or field.

    Raises:
      UserError: neither.
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if not isinstance(value, Mapping):
        raise UserError(f"--set {value!r}: give SECTION.FIELD=VALUE, or a mapping of such names to values")
    found = []
    for name, item in value.items():
        fields = item.items() if isinstance(item, Mapping) else [("", item)]
        found += [f"{name}{'.' * bool(each)}{each}={_text(inner)}" for each, inner in fields]
    return tuple(found)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions(CompilingOptions):
    """Settings that the training of codecs and of priors share.

    Attributes:
      output: folder of the run; the best model is in a subfolder of it
      preset: named configuration, see below
      set: change a field, such as train.steps=1000; --explain lists them
      license: licence of the model, for its card
      wandb: also log to this project of Weights & Biases
      quiet: print errors only
    """

    output: PathLike = field(metadata=flag(recorded=False))
    preset: str = "tiny"
    set: Mapping[str, Any] | Sequence[str] = field(
        default=(), metadata=flag(read=read_set, metavar="SECTION.FIELD=VALUE", many=True)
    )
    license: str = "unspecified"
    wandb: str | None = field(default=None, metadata=flag(metavar="PROJECT"))
    quiet: bool = field(default=False, metadata=flag(recorded=False))

    @classmethod
    def merge(cls, base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a file's settings with those of the command line.

        Another preset takes the place of all fields of the file; single fields are changed one by one.
        """
        if "preset" in given:
            base = {name: value for name, value in base.items() if name != "set"}
        changes = (*read_set(base.get("set", ())), *read_set(given.get("set", ())))
        return {**base, **given, "set": changes}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(SourceOptions, TrainingOptions):
    """Settings of ``vqgan train``, beside those of its input and of all training.

    Attributes:
      input: images, in any form that tokenize reads
      validation: validation images
      init: start from this codec, its codebook included
      push: upload the codec to the Hugging Face Hub at the end
    """

    title: ClassVar[str] = ""
    input: PathLike = field(metadata=flag(former=("--data",)))
    validation: PathLike | None = field(default=None, metadata=flag(shown="one in data.holdout of --input"))
    init: PathLike | None = field(default=None, metadata=flag(metavar="CODEC", shown="random weights"))
    push: str | None = field(default=None, metadata=flag(metavar="OWNER/NAME", recorded=False))

    def request(self) -> "TrainRequest":
        """Returns the settings as the run takes them."""
        from pipelines.training.training_codec import TrainRequest

        return TrainRequest(
            source=self.source(self.input),
            output=os.fspath(self.output),
            preset=self.preset,
            settings=read_set(self.set),
            validation=None if self.validation is None else self.source(self.validation),
            init=optional_path(self.init),
            license=self.license,
            wandb_project=self.wandb,
            quiet=self.quiet,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainPriorOptions(TrainingOptions):
    """Settings of ``vqgan train-prior``, beside those of all training.

    Attributes:
      tokens: folder or hf://datasets/owner/name; several are mixed, by their weights if they have any
      validation: tokens to validate on
      condition: token data set of the same keys and views that is the condition
      condition_text: captions of the images by their key, as texts
      condition_embeddings: captions as sequences of vectors of any encoder
      unconditional: leave the classes of the data set out
      codec: codec for image grids of samples
    """

    tokens: PathLike | Sequence[PathLike] = field(
        metadata=flag(read=lambda value: read_paths("--tokens", value), metavar="DIR[=WEIGHT]", many=True)
    )
    validation: PathLike | None = field(
        default=None, metadata=flag(metavar="DIR", shown="one image in data.holdout of --tokens")
    )
    condition: PathLike | None = field(default=None, metadata=flag(metavar="DIR"))
    condition_text: str | None = field(default=None, metadata=flag(metavar=CAPTIONS))
    condition_embeddings: str | None = field(default=None, metadata=flag(metavar=CAPTIONS))
    unconditional: bool = False
    codec: PathLike | None = field(default=None, metadata=flag(shown="the one that the tokens name"))

    def request(self) -> "TrainPriorRequest":
        """Returns the settings as the run takes them."""
        from pipelines.training.training_prior import TrainPriorRequest

        return TrainPriorRequest(
            tokens=read_paths("--tokens", self.tokens),
            output=os.fspath(self.output),
            preset=self.preset,
            settings=read_set(self.set),
            validation=optional_path(self.validation),
            condition=optional_path(self.condition),
            codec=optional_path(self.codec),
            unconditional=self.unconditional,
            condition_text=self.condition_text,
            condition_embeddings=self.condition_embeddings,
            license=self.license,
            wandb_project=self.wandb,
            quiet=self.quiet,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawingOptions(Options):
    """How tokens are drawn.

    Attributes:
      temperature: the logits are divided by it; 0 takes the most probable token
      top_k: only the k most probable tokens; 0 for all
      top_p: only tokens of this probability together
      guidance: scale of classifier-free guidance
      guidance_schedule: constant, or rising from 1 to the scale along the sequence
      guidance_from: share of the tokens before which there is no guidance
      guidance_until: share of the tokens from which on there is none
      steps: masked priors: passes in which all tokens are filled in
      mask_schedule: masked priors: share of tokens still hidden by the share of passes done
      choice_temperature: masked priors: noise in the choice of tokens that are kept
    """

    title: ClassVar[str] = "drawing"
    temperature: float = SamplingConfig.temperature
    top_k: int = SamplingConfig.top_k
    top_p: float = SamplingConfig.top_p
    guidance: float = SamplingConfig.guidance
    guidance_schedule: str = field(
        default=SamplingConfig.guidance_schedule, metadata=flag(choices=GUIDANCE_SCHEDULES)
    )
    guidance_from: float = SamplingConfig.guidance_from
    guidance_until: float = SamplingConfig.guidance_until
    steps: int = MaskedSamplingConfig.steps
    mask_schedule: str = field(default=MaskedSamplingConfig.schedule, metadata=flag(choices=MASK_SCHEDULES))
    choice_temperature: float = MaskedSamplingConfig.choice_temperature

    def sampling(self) -> SamplingConfig:
        """Returns the settings as samplers take them.

        Raises:
          UserError: a value out of range.
        """
        guidance = ("guidance", "guidance_schedule", "guidance_from", "guidance_until")
        return SamplingConfig(
            masked=MaskedSamplingConfig(self.steps, self.mask_schedule, self.choice_temperature),
            **{name: getattr(self, name) for name in ("temperature", "top_k", "top_p", *guidance)},
        )


_INPAINT = flag(read=read_numbers("--inpaint", ",", 4), metavar="T,L,B,R")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenOptions(Options):
    """Tokens that samples start from.

    Attributes:
      given: token data set: sample i starts from its row i, from the first again at its end
      keep_rows: rows of the grid that are given, from the top
      inpaint: region of the grid that is sampled anew (masked priors)
      condition: token data set of condition grids, row by row in the same way
      prompt: text in words that the prior was trained on; several are taken in turn
      condition_embeddings: texts as vectors, taken in turn
      grid: a larger grid than trained, by a sliding window
    """

    title: ClassVar[str] = "given tokens"
    given: PathLike | None = field(default=None, metadata=flag(metavar="TOKENS"))
    keep_rows: int | None = None
    inpaint: tuple[int, int, int, int] | None = field(default=None, metadata=_INPAINT)
    condition: PathLike | None = field(default=None, metadata=flag(metavar="TOKENS"))
    prompt: tuple[str, ...] = ()
    condition_embeddings: str | None = field(default=None, metadata=flag(metavar=CAPTIONS))
    grid: tuple[int, int] | None = field(
        default=None, metadata=flag(read=read_numbers("--grid", "x", 2), metavar="HxW", shown="the prior's")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions(CompilingOptions, GivenOptions, DrawingOptions):
    """Settings of ``vqgan sample``, beside how tokens are drawn and what is given.

    Attributes:
      prior: folder of a prior, or of its run, or hf://owner/name
      count: number of samples, all classes together
      output: folder or URI of the token data set
      codec: decodes the images
      classes: name or number, or none; several are taken in turn
      seed: of the first sample; the others follow
      batch_size: samples drawn together
      slice_size: samples per shard, at most
      dtype: type of activations: float32 or bfloat16
      images: write an image of each sample, and a grid of the first ones
      quiet: print errors only
      engine: runs the codec's networks, as for tokenize
    """

    title: ClassVar[str] = ""
    prior: PathLike
    count: int
    output: PathLike = field(metadata=flag(recorded=False))
    codec: PathLike | None = field(default=None, metadata=flag(shown="the one that the prior names"))
    classes: tuple[str, ...] = field(
        default=(), metadata=flag(name="class", shown="all of the prior's, in turn")
    )
    seed: int = 0
    batch_size: int = 16
    slice_size: int = 256
    dtype: str = "float32"
    images: bool = True
    quiet: bool = field(default=False, metadata=flag(recorded=False))
    engine: str = field(default="jax", metadata=flag(choices=ENGINES))

    def config(self) -> "SampleConfig":
        """Returns the settings as the run takes them.

        Raises:
          UserError: a value out of range, or settings of given tokens without such tokens.
        """
        from pipelines.sampling.sample_prior import GivenText, GivenTokens, SampleConfig

        if self.given is None and (self.keep_rows is not None or self.inpaint is not None):
            raise UserError("--keep-rows and --inpaint say what of --given is given: give both")
        given = self.given
        return SampleConfig(
            prior=os.fspath(self.prior),
            output=os.fspath(self.output),
            count=self.count,
            codec=optional_path(self.codec),
            classes=self.classes,
            seed=self.seed,
            settings=self.sampling(),
            grid=self.grid,
            given=None if given is None else GivenTokens(os.fspath(given), self.keep_rows, self.inpaint),
            condition=optional_path(self.condition),
            text=GivenText(self.prompt, self.condition_embeddings),
            batch_size=self.batch_size,
            slice_size=self.slice_size,
            dtype=self.dtype,
            images=self.images,
            quiet=self.quiet,
            engine=self.engine,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompleteOptions(CompilingOptions, DrawingOptions):
    """Settings of ``vqgan complete``, beside how tokens are drawn.

    Attributes:
      image: a picture: path or URI
      prior: folder of a prior, or of its run, or hf://owner/name
      output: file to write: the original, what was given, and the draws side by side; .png, .jpg or .webp
      codec: of the prior's tokens
      keep_rows: rows of the grid of tokens that are given, from the top
      inpaint: region of the grid that is drawn anew (masked priors): top, left, bottom, right
      draws: how many
      classes: name or number; several are taken in turn
      prompt: text in words that the prior was trained on; several are taken in turn
      condition_embeddings: texts as vectors, taken in turn
      seed: of the first draw; the others follow
    """

    title: ClassVar[str] = ""
    leaves_file: ClassVar[bool] = False
    image: PathLike = field(metadata=flag(positional=True))
    prior: PathLike
    output: PathLike
    codec: PathLike | None = field(default=None, metadata=flag(shown="the one that the prior names"))
    keep_rows: int | None = field(default=None, metadata=flag(shown="half of them"))
    inpaint: tuple[int, int, int, int] | None = field(default=None, metadata=_INPAINT)
    draws: int = 4
    classes: tuple[str, ...] = field(default=(), metadata=flag(name="class", shown="no class"))
    prompt: tuple[str, ...] = ()
    condition_embeddings: str | None = field(default=None, metadata=flag(metavar=CAPTIONS))
    seed: int = 0

    def config(self) -> "CompleteConfig":
        """Returns the settings as the run takes them.

        Raises:
          UserError: a value out of range, or two that contradict each other.
        """
        from pipelines.sampling.complete_image import CompleteConfig, GivenText

        return CompleteConfig(
            image=os.fspath(self.image),
            prior=os.fspath(self.prior),
            output=os.fspath(self.output),
            codec=optional_path(self.codec),
            keep_rows=self.keep_rows,
            inpaint=self.inpaint,
            draws=self.draws,
            classes=self.classes,
            text=GivenText(self.prompt, self.condition_embeddings),
            seed=self.seed,
            settings=self.sampling(),
        )
