"""Which of two models is the better one: by a figure, and by which end of it is good."""

import math

from vqgan.errors import UserError

HIGHER_IS_BETTER = {
    "psnr": True,
    "perplexity": True,
    "used_codes": True,
    "l1": False,
    "lpips": False,
    "loss": False,
    "bits": False,
}
"""Figures that a run can choose its best model by."""


def check_figure(name: str) -> None:
    """Raises a UserError for a name that is no known figure."""
    if name not in HIGHER_IS_BETTER:
        raise UserError(f"train.best is {name!r}: give one of {', '.join(sorted(HIGHER_IS_BETTER))}")


def is_better(name: str, value: float, than: float | None) -> bool:
    """Whether ``value`` of the figure is strictly better; anything finite beats None, NaN beats nothing."""
    if not math.isfinite(value):
        return False
    if than is None:
        return True
    return value > than if HIGHER_IS_BETTER[name] else value < than
