"""What is accepted as an image. Imports the standard library and the package's errors only."""

import dataclasses

from vqgan.channels import RGB, ChannelsConfig
from vqgan.errors import UserError

TRUNCATED = ("reject", "decode")
COLOUR = ("reject", "grey")


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """What is accepted as an image. Sizes are those of the file, in pixels.

    Attributes:
      max_pixels: largest width times height, checked before pixels are allocated.
      max_bytes: largest encoded file.
      min_side: smallest width and height.
      max_area: largest width times height worth keeping; unlike ``max_pixels``, a matter of taste.
      max_aspect: largest ratio of the longer to the shorter side.
      jpeg_draft: let the JPEG decoder reduce large images by 2, 4 or 8 while it decodes. Much faster;
        pixels differ slightly from a full decode, crop boxes do not.
      on_truncated: what becomes of a JPEG that lacks pixels: ``reject`` it, or ``decode`` what is there; the
        rest is grey, or coarse if it is progressive. Written down only where it is not ``reject``, so
        that data sets made before it existed can be resumed.
      colour: what becomes of a colour image where grey is wanted: ``reject`` it, or make it ``grey``.
      channels: of the codec, where they are not RGB.
    """

    max_pixels: int = 178_956_970
    max_bytes: int = 1 << 29
    min_side: int = 1
    max_area: int | None = None
    max_aspect: float | None = None
    jpeg_draft: bool = True
    on_truncated: str = dataclasses.field(default="reject", metadata={"left_out": "reject"})
    colour: str = dataclasses.field(default="reject", metadata={"left_out": "reject"})
    channels: ChannelsConfig = dataclasses.field(default=RGB, metadata={"left_out": RGB})

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_bytes", "min_side", "max_area"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"decode.{name} is {value}: it must be at least 1")
        if self.on_truncated not in TRUNCATED:
            raise UserError(
                f"decode.on_truncated is {self.on_truncated!r}: give one of {', '.join(TRUNCATED)}"
            )
        if self.colour not in COLOUR:
            raise UserError(f"decode.colour is {self.colour!r}: give one of {', '.join(COLOUR)}")
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise UserError(f"decode.max_aspect is {self.max_aspect}: longer over shorter side is at least 1")
