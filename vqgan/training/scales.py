"""Scales of charts: linear or logarithmic, with ticks at round numbers."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

LOGARITHMIC_FROM = 20.0  # ratio of the ends from which on a scale of positive values is logarithmic
OUTLIERS = 0.5  # percent of raw values on either side that need not be in sight


@dataclasses.dataclass(frozen=True)
class Scale:
    """The range of values that a chart shows.

    Attributes:
      low: value at the lower edge.
      high: value at the upper edge, above ``low``.
      log: logarithmic; both ends are then positive.
    """

    low: float
    high: float
    log: bool

    def position(self, values: np.ndarray) -> np.ndarray:
        """0 at the lower edge, 1 at the upper; on a logarithmic scale 0 for what is not positive."""
        if not self.log:
            return (values - self.low) / (self.high - self.low)
        # NaN stays NaN: it is neither larger nor smaller.
        positive = np.where(values < self.low, self.low, values)
        return np.log(positive / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Round numbers in the range, about four to eight of them."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, 5)


def choose_scale(raw: Sequence[np.ndarray], lines: Sequence[np.ndarray]) -> Scale | None:
    """A scale that holds the whole of the lines, and the raw values but for outliers.

    It is logarithmic where all values are positive and their range is wide; a linear one begins at 0
    where that costs little.

    Args:
      raw: values as they were recorded, NaN for none.
      lines: what is drawn in full.

    Returns:
      None if there is no finite value.
    """
    shown = np.concatenate([values[np.isfinite(values)] for values in lines])
    everything = np.concatenate([values[np.isfinite(values)] for values in raw])
    if not len(shown) or not len(everything):
        return None
    bounds = np.percentile(everything, [OUTLIERS, 100 - OUTLIERS])
    low, high = float(min(shown.min(), bounds[0])), float(max(shown.max(), bounds[1]))
    if everything.min() > 0 and high / low >= LOGARITHMIC_FROM:
        pad = (high / low) ** 0.05
        return Scale(low / pad, high * pad, True)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        return Scale(low - pad, high + pad, False)
    pad = (high - low) * 0.05
    if 0 <= low < 0.3 * high:
        return Scale(0.0, high + pad, False)
    return Scale(low - pad, high + pad, False)


def linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten from ``low`` to ``high``, near ``about`` in number."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from ``low`` to ``high``, with 2 and 5 times them where those are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = math.log10(high / low)
    if decades < 3.5:
        candidates = [m * 10.0**power for power in powers for m in (1, 2, 5)]
    else:
        every = math.ceil(decades / 7)
        candidates = [10.0**power for power in powers if power % every == 0]
    return [tick for tick in candidates if low <= tick <= high]


def label(value: float) -> str:
    """A tick's number, short: ``20k``, ``0.05``, ``1e-5``."""
    size = abs(value)
    for least, factor, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if least <= size < 1e12:
            return f"{value / factor:.6g}{suffix}"
    if 0 < size < 1e-3:
        mantissa, _, power = f"{value:.4e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.6g}".replace("e+", "e")
