"""How tokens are drawn from a prior. Imports the standard library and the package's errors only."""

import dataclasses
import math

from vqgan.errors import UserError
from vqgan.prior.config import MASK_SCHEDULES

GUIDANCE_SCHEDULES = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class MaskedSamplingConfig:
    """Parallel decoding of a masked prior (MaskGIT, arXiv 2202.04200, section 3.2).

    Attributes:
      steps: passes in which all tokens are filled in.
      schedule: share of tokens still hidden by the share of steps done.
      choice_temperature: of the Gumbel noise added to the confidence by which tokens are kept; it falls
        linearly to 0 at the last step. 0 always keeps the most confident.
    """

    steps: int = 12
    schedule: str = "cosine"
    choice_temperature: float = 4.5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"sampling.masked.steps is {self.steps}: it must be at least 1")
        if self.schedule not in MASK_SCHEDULES:
            raise UserError(
                f"sampling.masked.schedule is {self.schedule!r}: give one of {', '.join(MASK_SCHEDULES)}"
            )
        if not 0 <= self.choice_temperature < math.inf:
            raise UserError(
                f"sampling.masked.choice_temperature is {self.choice_temperature}: it must be at least 0"
            )


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn.

    >>> from vqgan import Prior, SamplingConfig
    >>> config = SamplingConfig(top_p=0.95, guidance=3.0, guidance_schedule="cosine")
    >>> Prior.load("prior/").sample(2, labels="dog", config=config).dtype
    dtype('int32')

    Raises:
      UserError: a value out of range.

    Attributes:
      temperature: the logits are divided by it; 0 takes the most probable token.
      top_k: only the k most probable tokens are drawn; 0 for all.
      top_p: only the most probable tokens are drawn, as few as reach this probability together
        (arXiv 1904.09751); 1 for all.
      guidance: scale s of classifier-free guidance (arXiv 2207.12598): logits without class and text plus
        s times their difference to those with them; 1 for none.
      guidance_schedule: ``constant``, or rising from 1 to ``guidance`` along the sequence.
      guidance_from: share of the sequence (of the steps, in a masked prior) before which there is no
        guidance.
      guidance_until: share of the sequence from which on there is none.
      masked: settings of masked priors only.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    guidance_schedule: str = "constant"
    guidance_from: float = 0.0
    guidance_until: float = 1.0
    masked: MaskedSamplingConfig = dataclasses.field(default_factory=MaskedSamplingConfig)

    def __post_init__(self) -> None:
        for name in ("temperature", "guidance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"sampling.{name} is {getattr(self, name)}: it must be at least 0")
        if self.top_k < 0:
            raise UserError(f"sampling.top_k is {self.top_k}: give a number of tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p is {self.top_p}: it must lie in (0, 1]")
        if self.guidance_schedule not in GUIDANCE_SCHEDULES:
            raise UserError(
                f"sampling.guidance_schedule is {self.guidance_schedule!r}: give one of "
                f"{', '.join(GUIDANCE_SCHEDULES)}"
            )
        if not 0 <= self.guidance_from <= self.guidance_until <= 1:
            raise UserError(
                f"sampling.guidance_from is {self.guidance_from} and guidance_until {self.guidance_until}: "
                "shares lie between 0 and 1, from before until"
            )

    @property
    def truncates(self) -> bool:
        """Tells whether improbable tokens are left out."""
        return self.top_k > 0 or self.top_p < 1

    @property
    def is_guided(self) -> bool:
        """Tells whether logits without a class are needed too."""
        return self.guidance != 1 and self.guidance_from < self.guidance_until
