"""Configuration of stage 2's training, one frozen dataclass for each concern. No JAX is imported here."""

import dataclasses

from vqgan.data.token_batches import VIEWS
from vqgan.errors import UserError
from vqgan.prior.config import ObjectiveConfig, PriorConfig, check_objective
from vqgan.training.config import LoopConfig, OptimizerConfig, check_choice, check_least

FIGURES = ("loss", "bits")
FITTED = ("codebook_size", "grid", "classes", "condition_codebook_size", "condition_grid")
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
        check_choice("train", self, "best", FIGURES)


@dataclasses.dataclass(frozen=True)
class TokenDataConfig:
    """Which rows of the token sets are trained on.

    Attributes:
      holdout: hold back one picture in this many, by a hash of its key, with all its views; 0 for none.
      validation_limit: most held-back rows that are used, evenly spaced.
      views: ``all`` takes every view in each epoch, ``one`` draws one of each picture.
      memory_mib: a token set that takes more is read from disk while training goes on.
      samples: pictures that are sampled at each evaluation, if the codec can be opened; 0 for none.
    """

    holdout: int = 20
    validation_limit: int = 4096
    views: str = "all"
    memory_mib: int = 4096
    samples: int = 16

    def __post_init__(self) -> None:
        check_least("data", self, ("holdout", "samples"), 0)
        check_least("data", self, ("validation_limit", "memory_mib"), 1)
        check_choice("data", self, "views", VIEWS)
        if self.holdout == 1:
            raise UserError("data.holdout is 1: all would be held back; give 0 for none, or 2 and more")


@dataclasses.dataclass(frozen=True)
class PriorTrainConfig:
    """Everything that a run of stage 2 depends on, beside the data itself; ``config.json`` of a run.

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
