"""Configuration of a codec's training, one frozen dataclass for each concern, and the presets.

No JAX is imported here.
"""

import dataclasses

from vqgan.config import CODEBOOK_QUANTIZERS, MOST_RESOLUTION, QUANTIZERS, UNTRAINED_QUANTIZERS, ModelConfig
from vqgan.discriminators.architecture import DiscriminatorConfig
from vqgan.errors import UserError
from vqgan.image_sizes import ImageSize, check_image_size, describe_size, shape_of_size, simplified_size
from vqgan.model.parameters import check_codec_size
from vqgan.presets import PRESETS
from vqgan.training.loop_config import LoopConfig, OptimizerConfig, check_choice, check_least

PERCEPTUAL_NETWORKS = ("vgg", "alex")
WEIGHTS = ("l1", "l2", "perceptual", "perceptual_alex", "codebook", "commitment", "divergence", "entropy")
LEAST_SIDE = {"vgg": 16, "alex": 31}  # of an image, in pixels, for LPIPS
ADVERSARIAL_LOSSES = ("hinge", "vanilla", "non-saturating")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How training images are cropped and split.

    Attributes:
      crop_size: side of a training crop in pixels, or its height and width, as 64x96.
      validation_size: of validation images, likewise, centre-cropped and resized; the crop's if None.
      flip: mirror half of the crops.
      holdout: keep one image in this many for validation, by a hash of its key; 0 for none.
      validation_limit: most validation images that are used.
      max_short_side: larger images are reduced to this shorter side when they are read.
      threads: threads that decode and crop.
      cache_mib: memory for decoded images.
      max_rejects: share of the images that may be unusable before the run stops.
      colour: what becomes of colour images where ``model.channels`` wants grey: ``reject``, or ``grey``.
    """

    crop_size: ImageSize = 256
    validation_size: ImageSize | None = None
    flip: bool = True
    holdout: int = 10
    validation_limit: int = 1000
    max_short_side: int = 640
    threads: int = 4
    cache_mib: int = 1024
    max_rejects: float = 0.1
    colour: str = dataclasses.field(default="reject", metadata={"left_out": "reject"})

    def __post_init__(self) -> None:
        check_least("data", self, ("validation_limit", "threads"), 1)
        check_least("data", self, ("holdout", "cache_mib"), 0)
        check_choice("data", self, "colour", ("reject", "grey"))
        for name in ("crop_size", "validation_size"):
            if (size := getattr(self, name)) is not None:
                check_image_size(f"data.{name}", size, MOST_RESOLUTION)
                object.__setattr__(self, name, simplified_size(size))
        if self.max_short_side < max(shape_of_size(self.crop_size)):
            raise UserError(
                f"data.max_short_side is {self.max_short_side}: it must be at least data.crop_size, "
                f"{describe_size(self.crop_size)}"
            )
        if not 0 <= self.max_rejects <= 1:
            raise UserError(f"data.max_rejects is {self.max_rejects}: it must lie in [0, 1]")

    @property
    def evaluated_size(self) -> ImageSize:
        """Side in pixels of validation images, or their height and width."""
        return self.crop_size if self.validation_size is None else self.validation_size


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the losses that the autoencoder minimises.

    Attributes:
      l1: mean absolute difference, of images in [-1, 1].
      l2: mean squared difference.
      perceptual: LPIPS (arXiv 1801.03924); 0 trains without it and needs no weights of it.
      perceptual_network: ``vgg``, or ``alex``, which costs a tenth.
      perceptual_alex: LPIPS over AlexNet beside that over VGG, for a tenth of its cost; 0 for none.
      perceptual_heads: file of LPIPS heads in torch's layout; the default ones are fetched if None.
      perceptual_backbone: file of the network in torchvision's layout, with ``perceptual_heads``.
      codebook: the quantizer's losses altogether.
      commitment: beta of arXiv 1711.00937, equation 3.
      legacy: beta on the codebook's term instead, as the first release of taming-transformers had it.
      divergence: in place of ``commitment`` for the ``gumbel`` quantizer, whose loss is its choices' KL
        divergence from an even use; the usual weight is far smaller.
      entropy: entropy loss of the quantizer (arXiv 2310.05737, equation 6).
      entropy_temperature: temperature of its softmax over codes.
    """

    l1: float = 1.0
    l2: float = 0.0
    perceptual: float = 1.0
    perceptual_network: str = "vgg"
    perceptual_alex: float = 0.0
    perceptual_heads: str | None = None
    perceptual_backbone: str | None = None
    codebook: float = 1.0
    commitment: float = 0.25
    legacy: bool = False
    divergence: float = 5e-4
    entropy: float = 0.0
    entropy_temperature: float = 0.01

    def __post_init__(self) -> None:
        check_least("loss", self, WEIGHTS, 0)
        check_choice("loss", self, "perceptual_network", PERCEPTUAL_NETWORKS)
        if not self.entropy_temperature > 0:
            raise UserError(f"loss.entropy_temperature is {self.entropy_temperature}: it must be above 0")
        if not self.l1 + self.l2 + self.perceptual > 0:
            raise UserError("loss.l1, l2 and perceptual are all 0: nothing draws images to their originals")
        if self.perceptual_alex and not (self.perceptual and self.perceptual_network == "vgg"):
            raise UserError(
                f"loss.perceptual_alex is {self.perceptual_alex}: it goes beside LPIPS over vgg; set "
                "loss.perceptual and loss.perceptual_network=vgg, or perceptual_network=alex alone"
            )
        if (self.perceptual_heads is None) != (self.perceptual_backbone is None):
            raise UserError("loss.perceptual_heads and loss.perceptual_backbone go together: give both")


@dataclasses.dataclass(frozen=True)
class CodebookConfig:
    """Care of the codebook: against collapse, and what some quantizers learn without gradients.

    Attributes:
      autoencoder_steps: steps without quantization, after which the codebook is placed on the latents by
        k-means; 0 for neither. Quantizers without a codebook of their own quantize from the start.
      revive_every: steps between searches for unused codes, which move onto latents; 0 for never.
      revive_until: share of the run after which no code is moved any more.
      place_again: share of the run after which all codes are placed by k-means once more; 0 for never. Of
        many thousands a good part would otherwise stay where latents once were.
      least_share: a code chosen less often than this share of an even use counts as unused.
      keep_tokens: the decoder alone learns, perhaps one of another size. Encoder and codebook stay those of
        the codec that the run starts from, so that tokens made with it are decoded by the new one.
      rotation: the rotation trick (arXiv 2410.06424) instead of the straight-through estimator.
      ema_decay: decay of the ``ema`` quantizer's averages.
      start_temperature: Gumbel softmax's temperature at the first step.
      final_temperature: its temperature after ``temperature_steps``, on a cosine between them.
      temperature_steps: see above.
    """

    autoencoder_steps: int = 0
    revive_every: int = 100
    revive_until: float = 0.8
    place_again: float = dataclasses.field(default=0.0, metadata={"left_out": 0.0})
    least_share: float = 0.1
    keep_tokens: bool = False
    rotation: bool = False
    ema_decay: float = 0.99
    start_temperature: float = 1.0
    final_temperature: float = 0.0625
    temperature_steps: int = 50_000

    def __post_init__(self) -> None:
        check_least("codebook", self, ("autoencoder_steps", "revive_every"), 0)
        check_least("codebook", self, ("temperature_steps",), 1)
        for name in ("revive_until", "place_again", "least_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"codebook.{name} is {getattr(self, name)}: it must lie in [0, 1]")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"codebook.ema_decay is {self.ema_decay}: it must lie in [0, 1)")
        for name in ("start_temperature", "final_temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"codebook.{name} is {getattr(self, name)}: it must be above 0")


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """The discriminator's part in training; its architecture is ``discriminator``.

    Attributes:
      weight: weight of the adversarial loss; 0 trains without a discriminator.
      start: step at which the discriminator and its loss come in. From step 0 it wrecks reconstructions.
      loss: ``hinge``, ``vanilla`` or ``non-saturating``.
      adaptive: scale the loss to the reconstruction's gradient (arXiv 2012.09841, equation 7).
      ceiling: most that the adaptive weight may be.
      r1: weight of the R1 penalty (arXiv 1801.04406); 0 for none.
      lecam: weight of the LeCAM penalty (arXiv 2104.03310); 0 for none.
      lecam_decay: decay of its averages.
    """

    weight: float = 0.8
    start: int = 10_000
    loss: str = "hinge"
    adaptive: bool = True
    ceiling: float = 1e4
    r1: float = 0.0
    lecam: float = 0.0
    lecam_decay: float = 0.999

    def __post_init__(self) -> None:
        check_least("adversarial", self, ("weight", "start", "ceiling", "r1", "lecam"), 0)
        check_choice("adversarial", self, "loss", ADVERSARIAL_LOSSES)
        if not 0 <= self.lecam_decay < 1:
            raise UserError(f"adversarial.lecam_decay is {self.lecam_decay}: it must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class CodecTrainConfig:
    """Everything that a codec's training depends on, beside the data itself; ``config.json`` of a run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    codebook: CodebookConfig = dataclasses.field(default_factory=CodebookConfig)
    adversarial: AdversarialConfig = dataclasses.field(default_factory=AdversarialConfig)
    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    discriminator_optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(schedule="constant")
    )

    def __post_init__(self) -> None:
        check_codec_size(self.model, "model")
        for name in ("scales", "vit"):
            if getattr(self.model, name) is not None:
                raise UserError(
                    f"model.{name} is set: such codecs are imported, and not trained here; leave it out"
                )
        if self.model.haar_patch > 1:
            raise UserError(
                f"model.haar_patch is {self.model.haar_patch}: codecs of patches are not trained here"
            )
        for size in (self.data.crop_size, self.data.evaluated_size):
            self.model.grid(*shape_of_size(size))
            self._check_perceptual(size)
        self._check_quantizer()
        if self.adversarial.weight:
            self._check_discriminator()
        metrics = ("psnr", "l1", "used_codes", "perplexity", *(("lpips",) if self.loss.perceptual else ()))
        if self.train.best not in metrics:
            raise UserError(
                f"train.best is {self.train.best!r}: this run measures {', '.join(metrics)}; name one of them"
            )

    def _check_perceptual(self, size: ImageSize) -> None:
        network = "alex" if self.loss.perceptual_alex else self.loss.perceptual_network
        least = LEAST_SIDE[network]
        if self.loss.perceptual:
            self.model.channels.require_perception("LPIPS", "set loss.perceptual=0")
        if self.loss.perceptual and min(shape_of_size(size)) < least:
            raise UserError(
                f"images of {describe_size(size)} pixels are too small for LPIPS over {network}, which takes "
                f"{least} or more: enlarge data.crop_size and validation_size, or set loss.perceptual=0"
            )

    def _check_quantizer(self) -> None:
        quantizer, has_codebook = self.model.quantizer, self.model.quantizer in CODEBOOK_QUANTIZERS
        if quantizer in UNTRAINED_QUANTIZERS:
            raise UserError(
                f"model.quantizer is {quantizer!r}: it is for imported codecs and not trained here; take one "
                f"of {', '.join(name for name in QUANTIZERS if name not in UNTRAINED_QUANTIZERS)}"
            )
        if not self.model.has_decoder:
            raise UserError("model.has_decoder is off: a codec is trained with its decoder; leave it on")
        if self.codebook.rotation and not has_codebook:
            raise UserError(
                f"codebook.rotation is on and model.quantizer is {quantizer!r}: the rotation "
                f"trick is for {', '.join(CODEBOOK_QUANTIZERS)}"
            )
        if self.loss.entropy and quantizer in ("gumbel", "fsq"):
            raise UserError(f"loss.entropy is {self.loss.entropy}: model.quantizer {quantizer!r} has none")
        if has_codebook and self.codebook.autoencoder_steps >= self.train.steps:
            raise UserError(
                f"codebook.autoencoder_steps is {self.codebook.autoencoder_steps}: it must be below "
                f"train.steps ({self.train.steps}), or the codebook is never trained"
            )

    def _check_discriminator(self) -> None:
        size, network = self.data.crop_size, self.discriminator
        if network.kind == "stylegan" and network.resolution != size:
            raise UserError(
                f"discriminator.resolution is {network.resolution}: the stylegan kind takes crops of that "
                f"size, and data.crop_size is {describe_size(size)}"
            )
        if network.kind == "patch" and min(shape_of_size(size)) < network.least_side:
            raise UserError(
                f"data.crop_size is {describe_size(size)}: a patch discriminator of {network.layers} layers "
                f"needs {network.least_side} pixels; set discriminator.layers lower"
            )


# Half an hour on two CPU cores: AlexNet as the perceptual network, a small discriminator.
_CPU_64 = CodecTrainConfig(
    model=PRESETS["f4-512"],
    train=LoopConfig(
        steps=2400, batch_size=16, ema_decay=0.995, log_every=25, evaluate_every=200, save_every=200,
        best="lpips", cpu_devices=2,
    ),
    data=DataConfig(crop_size=64, threads=2),
    optimizer=OptimizerConfig(learning_rate=1e-3, b1=0.9, b2=0.99),
    loss=LossConfig(l2=1.0, perceptual=0.5, perceptual_network="alex"),
    codebook=CodebookConfig(autoencoder_steps=200, revive_every=50),
    adversarial=AdversarialConfig(weight=0.25, start=1500, lecam=0.03),
    discriminator=DiscriminatorConfig(channels=32, layers=2),
    discriminator_optimizer=OptimizerConfig(learning_rate=2.5e-4, schedule="constant"),
)  # fmt: skip

_TINY = CodecTrainConfig(
    model=PRESETS["tiny"],
    train=LoopConfig(
        steps=6000,
        batch_size=16,
        ema_decay=0.999,
        log_every=25,
        evaluate_every=500,
        save_every=500,
        cpu_devices=2,
    ),
    data=DataConfig(crop_size=64, validation_size=128, threads=2),
    optimizer=OptimizerConfig(learning_rate=1e-3, b1=0.9, b2=0.99),
    loss=LossConfig(l2=1.0, perceptual=0.0),
    codebook=CodebookConfig(autoencoder_steps=600, revive_every=50),
    adversarial=AdversarialConfig(weight=0.0),
)

# LPIPS over both networks: to go on from another codec, as the shipped one did from tiny. From the start it
# wants many more steps.
_SMALL = CodecTrainConfig(
    model=PRESETS["small"],
    train=LoopConfig(
        steps=1000,
        batch_size=8,
        ema_decay=0.99,
        log_every=25,
        evaluate_every=100,
        save_every=100,
        best="lpips",
        cpu_devices=2,
    ),
    data=DataConfig(crop_size=96, validation_size=128, validation_limit=32, threads=2),
    optimizer=OptimizerConfig(
        learning_rate=5e-4, warmup_steps=20, schedule="cosine", final_share=0.1, b1=0.9, b2=0.99
    ),
    loss=LossConfig(l2=1.0, perceptual=1.0, perceptual_alex=0.5),
    codebook=CodebookConfig(autoencoder_steps=300, revive_every=50),
    adversarial=AdversarialConfig(weight=0.0),
)


def _published(model: ModelConfig) -> CodecTrainConfig:
    """Builds a run as in arXiv 2012.09841, section 3.1 and appendix, for one accelerator or more."""
    return CodecTrainConfig(
        model=model,
        train=LoopConfig(steps=200_000, batch_size=32, dtype="bfloat16", best="lpips"),
        data=DataConfig(crop_size=256, threads=16, max_short_side=640),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000, final_share=0.1),
        codebook=CodebookConfig(autoencoder_steps=1000),
        adversarial=AdversarialConfig(start=20_000),
        discriminator_optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant"),
    )


CODEC_TRAINING_PRESETS: dict[str, CodecTrainConfig] = {
    "cpu-64": _CPU_64,
    "tiny": _TINY,
    "small": _SMALL,
    **{name: _published(model) for name, model in PRESETS.items() if name.startswith(("f8-", "f16-"))},
}
"""Named training runs: an architecture of :mod:`vqgan.config` and how it is trained."""
