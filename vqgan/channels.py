"""How many channels a codec's images have, and which values of a source and of the network their levels are.

Between files and networks a sample is a level of 256, whatever its depth in the file: a codec's own error
is a few levels to dozens of them, and rounding adds 0.3. Of deeper samples the range says which values the
levels are spread over. Only the standard library is imported here, as in :mod:`vqgan.config`.
"""

import dataclasses
import math

from vqgan.errors import UserError

MOST_CHANNELS = 16

Range = tuple[float, float]
"""Lower and upper end."""


@dataclasses.dataclass(frozen=True)
class ChannelsConfig:
    """The channels of a codec's images; the default is RGB.

    Attributes:
      count: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; up to 16, in the order of the file.
      ranges: values of the source that become levels 0 and 255, a pair for each channel or one for all; what
        lies beyond is clipped. Without them, all that unsigned whole numbers hold: 0 and 65535 of 16 bits.
      input_ranges: values of the network for levels 0 and 255, likewise; without, ``model.input_range``.
    """

    count: int = 3
    ranges: tuple[Range, ...] = ()
    input_ranges: tuple[Range, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_CHANNELS:
            raise UserError(f"model.channels.count is {self.count}: it must lie in 1 to {MOST_CHANNELS}")
        for name in ("ranges", "input_ranges"):
            pairs = tuple((float(low), float(high)) for low, high in getattr(self, name))  # as JSON has them
            object.__setattr__(self, name, pairs * self.count if len(pairs) == 1 else pairs)
            if len(pairs) not in (0, 1, self.count):
                raise UserError(
                    f"model.channels.{name} has {len(pairs)} pairs: give one, or one for each of the "
                    f"{self.count} channels"
                )
            if wrong := [list(pair) for pair in pairs if not 0 < pair[1] - pair[0] < math.inf]:
                raise UserError(f"model.channels.{name} has {wrong[0]}: give the lower value first")

    @property
    def is_rgb(self) -> bool:
        """Tells whether images are RGB as any picture's: over white, and grey repeated."""
        return self.count == 3 and not self.ranges

    def of_files(self) -> "ChannelsConfig":
        """Returns what reading files depends on: all but the network's values."""
        return dataclasses.replace(self, input_ranges=())

    @property
    def has_perception(self) -> bool:
        """Tells whether networks that were trained on photographs see such images: RGB, or grey repeated."""
        return self.count in (1, 3)

    def require_perception(self, what: str, advice: str) -> None:
        """Checks that networks that were trained on photographs see such images.

        Raises:
          UserError: neither 1 channel nor 3.
        """
        if not self.has_perception:
            raise UserError(
                f"{what}: its network takes 1 or 3 channels, and images have {self.count}; {advice}"
            )

    def require_rgb(self, what: str) -> None:
        """Checks that images are RGB as any picture's, where nothing else is supported.

        Raises:
          UserError: they have other channels, or ranges.
        """
        if not self.is_rgb:
            raise UserError(f"{what}: only RGB without ranges is supported, and images are {self.describe()}")

    def describe(self) -> str:
        """Returns the channels in a few words."""
        return {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGBA"}.get(self.count, f"{self.count} channels")


RGB = ChannelsConfig()
