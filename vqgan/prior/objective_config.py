"""How a prior is trained to predict tokens. Imports the standard library and the package's errors only."""

import dataclasses

from vqgan.errors import UserError
from vqgan.prior.sampling_config import MASK_SCHEDULES


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What the training loss does to its inputs and targets.

    Attributes:
      class_dropout: probability that a sample is trained as one without a class, which guidance needs
        (arXiv 2207.12598, section 3.2). Nothing changes in a prior without classes.
      keep: probability that an input token stays; the others become random codes, while the targets stay
        as they are (``pkeep`` in the reference implementation of arXiv 2012.09841). 1 keeps all.
        Autoregressive priors only.
      label_smoothing: share of each target that is spread over all codes (arXiv 1512.00567, section 7);
        MaskGIT trains with 0.1.
      mask_schedule: share of hidden tokens by a uniform number (arXiv 2202.04200, section 3.3). Masked
        priors only.
    """

    class_dropout: float = 0.1
    keep: float = 1.0
    label_smoothing: float = 0.0
    mask_schedule: str = "cosine"

    def __post_init__(self) -> None:
        for name in ("class_dropout", "keep"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"objective.{name} is {getattr(self, name)}: it must lie in [0, 1]")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"objective.label_smoothing is {self.label_smoothing}: it must lie in [0, 1)")
        if self.mask_schedule not in MASK_SCHEDULES:
            raise UserError(
                f"objective.mask_schedule is {self.mask_schedule!r}: give one of {', '.join(MASK_SCHEDULES)}"
            )


def check_objective(config: ObjectiveConfig, kind: str) -> None:
    """Checks that a prior of this kind can be trained so.

    Raises:
      UserError: input tokens are to be replaced in a masked prior, which hides them instead.
    """
    if kind == "masked" and config.keep < 1:
        raise UserError(
            f"objective.keep is {config.keep}: a masked prior hides tokens, it replaces none: leave it 1"
        )
