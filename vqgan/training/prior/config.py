"""Configuration of a prior's training, one frozen dataclass for each concern, and the presets.

Codebook, grid and classes are those of the tokens that a prior is trained on. No JAX is imported here.
"""

import dataclasses

from vqgan.data import VIEW_CHOICES
from vqgan.errors import UserError
from vqgan.prior.config import TEXT_SIZES, ObjectiveConfig, PriorConfig, check_objective
from vqgan.training.loop_config import LoopConfig, OptimizerConfig, check_choice, check_least

PRIOR_METRICS = ("loss", "bits")
FITTED = ("codebook_size", "grid", "classes", "condition_codebook_size", "condition_grid", *TEXT_SIZES)
"""Fields of ``model`` that follow from the token set."""


@dataclasses.dataclass(frozen=True)
class PriorLoopConfig(LoopConfig):
    """Lengths, intervals and precision, and how the state lies on the devices.

    Attributes:
      fsdp: devices that share one copy of parameters, averages and optimizer moments, each keeping a part;
        1 keeps a copy on every device. It divides the number of devices.
    """

    best: str = "loss"
    fsdp: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("train", self, ("fsdp",), 1)
        check_choice("train", self, "best", PRIOR_METRICS)


@dataclasses.dataclass(frozen=True)
class TokenDataConfig:
    """Which rows of the token sets are trained on.

    Attributes:
      holdout: keep one image in this many for validation, by a hash of its key, with all its views; 0 for
        none.
      validation_limit: most validation rows that are used, evenly spaced.
      views: ``all`` takes every view in each epoch, ``one`` draws one of each image.
      memory_mib: a token set that takes more is read from disk while training goes on.
      samples: images that are sampled at each evaluation, if the codec can be opened; 0 for none.
    """

    holdout: int = 20
    validation_limit: int = 4096
    views: str = "all"
    memory_mib: int = 4096
    samples: int = 16

    def __post_init__(self) -> None:
        check_least("data", self, ("holdout", "samples"), 0)
        check_least("data", self, ("validation_limit", "memory_mib"), 1)
        check_choice("data", self, "views", VIEW_CHOICES)
        if self.holdout == 1:
            raise UserError(
                "data.holdout is 1: all would be kept for validation; give 0 for none, or 2 and more"
            )


@dataclasses.dataclass(frozen=True)
class PriorTrainConfig:
    """Everything that a prior's training depends on, beside the data itself; ``config.json`` of a run.

    The optimizer's defaults are those of the GPT family, as LlamaGen has them (arXiv 2406.06525).
    """

    model: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    train: PriorLoopConfig = dataclasses.field(default_factory=PriorLoopConfig)
    data: TokenDataConfig = dataclasses.field(default_factory=TokenDataConfig)
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(b1=0.9, b2=0.95, weight_decay=0.05, clip_norm=1.0)
    )
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        check_objective(self.objective, self.model.kind)


def _adam(learning_rate: float, warmup_steps: int, b2: float = 0.95, decay: float = 0.05) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        final_share=0.1,
        b1=0.9,
        b2=b2,
        weight_decay=decay,
        clip_norm=1.0,
    )


# About a million parameters with 1,024 codes; minutes on two CPU cores.
_TINY = PriorTrainConfig(
    model=PriorConfig(layers=4, heads=4, width=128, dropout=0.1),
    train=PriorLoopConfig(
        steps=600, batch_size=16, ema_decay=0.99, log_every=10, evaluate_every=100, save_every=100, patience=3
    ),
    optimizer=_adam(1e-3, 50),
)

# About seven million; one accelerator.
_SMALL = PriorTrainConfig(
    model=PriorConfig(layers=8, heads=8, width=256, dropout=0.1),
    train=PriorLoopConfig(steps=20_000, batch_size=64, ema_decay=0.999, dtype="bfloat16", patience=3),
    optimizer=_adam(6e-4, 500),
)


def _llamagen(layers: int, width: int, heads: int, hidden: int, remat: bool = False) -> PriorTrainConfig:
    """Builds a run of the sizes, batch, dropout and optimizer of arXiv 2406.06525, section 3.1 and table 1.

    It is 300 epochs of ImageNet. The warm-up and the fall at the end are ours: the paper's rate is constant.
    """
    return PriorTrainConfig(
        model=PriorConfig(layers=layers, heads=heads, width=width, hidden=hidden, dropout=0.1),
        train=PriorLoopConfig(
            steps=1_500_000, batch_size=256, ema_decay=0.9999, dtype="bfloat16", remat=remat,
            log_every=100, evaluate_every=10_000, save_every=5_000,
        ),
        optimizer=_adam(1e-4, 5_000),
        objective=ObjectiveConfig(class_dropout=0.1),
    )  # fmt: skip


# The class-conditional ImageNet prior of arXiv 2012.09841: layers, width and heads are those of its
# released model (1.4 billion parameters, as the paper's appendix lists it). Input tokens are all kept, as
# there; batch, rate and length are ours. The paper trains every label, so no class is dropped.
_TAMING_IMAGENET = PriorTrainConfig(
    model=PriorConfig(block="gpt", layers=48, heads=24, width=1536),
    train=PriorLoopConfig(
        steps=1_000_000, batch_size=256, ema_decay=0.0, dtype="bfloat16", remat=True,
        log_every=100, evaluate_every=10_000, save_every=5_000,
    ),
    optimizer=_adam(1e-4, 5_000, decay=0.01),
    objective=ObjectiveConfig(class_dropout=0.0, keep=1.0),
)  # fmt: skip

# arXiv 2202.04200, section 4.1: layers, width, hidden width, dropout, label smoothing, batch; heads, rate,
# moments and decay are those of its released configuration (the text says 8 heads). Its blocks normalise
# after each branch, ours before.
_MASKGIT = PriorTrainConfig(
    model=PriorConfig(
        kind="masked", block="gpt", layers=24, heads=16, width=768, hidden=3072, dropout=0.1
    ),
    train=PriorLoopConfig(
        steps=1_500_000, batch_size=256, ema_decay=0.9999, dtype="bfloat16",
        log_every=100, evaluate_every=10_000, save_every=5_000,
    ),
    optimizer=_adam(1e-4, 5_000, b2=0.96, decay=0.045),
    objective=ObjectiveConfig(label_smoothing=0.1),
)  # fmt: skip

PRIOR_TRAINING_PRESETS: dict[str, PriorTrainConfig] = {
    "tiny": _TINY,
    "small": _SMALL,
    "llamagen-b": _llamagen(12, 768, 12, 2048),
    "llamagen-l": _llamagen(24, 1024, 16, 2816),
    "llamagen-xl": _llamagen(36, 1280, 20, 3584, remat=True),
    "taming-imagenet": _TAMING_IMAGENET,
    "maskgit": _MASKGIT,
}
"""Named training runs."""
