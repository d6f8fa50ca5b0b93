"""The formats in which images are written."""

import dataclasses
import io
from typing import TYPE_CHECKING, Any

from vqgan.channels import ChannelsConfig
from vqgan.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


VIEWS = ("all", "first")
FORMATS = ("png", "webp", "jpeg", "npy", "tar", "parquet")
"""Of ``vqgan decode``; the first four are a file for each image."""
CONTAINERS = ("files", "tar", "parquet")
EXTENSIONS = {"png": "png", "webp": "webp", "jpeg": "jpg", "npy": "npy"}
HELD_CHANNELS = {"png": (1, 2, 3, 4), "webp": (3,), "jpeg": (1, 3)}
"""Channels that the files hold; NumPy's arrays hold any."""
DEFAULT_QUALITY = {"webp": 90, "jpeg": 95}
LARGEST_SIDE = {"png": 1 << 20, "webp": 16383, "jpeg": 65500, "npy": 1 << 30}
# Photographs have few repeated strings for deflate to find: run lengths alone (zlib's strategy 3) give
# the size of level 6 in a fifth of its time.
_PNG: dict[str, Any] = {"compress_level": 1, "compress_type": 3}
_WEBP: dict[str, Any] = {"method": 2}  # half the time of method 4 at its size
_JPEG: dict[str, Any] = {"subsampling": 0}  # colour at full resolution: what the decoder made is kept


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """How images are encoded and where they are put.

    Attributes:
      container: ``files`` (a file each), ``tar`` (WebDataset) or ``parquet`` (a column).
      encoding: ``png``, ``webp``, ``jpeg`` or ``npy``.
      quality: of webp and jpeg, 1 to 100; None for the encoding's default. The others lose nothing.
    """

    container: str = "files"
    encoding: str = "png"
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.container not in CONTAINERS:
            raise UserError(f"container {self.container!r}: known are {', '.join(CONTAINERS)}")
        if self.encoding not in EXTENSIONS:
            raise UserError(f"image format {self.encoding!r}: known are {', '.join(EXTENSIONS)}")
        if self.quality is None:
            object.__setattr__(self, "quality", DEFAULT_QUALITY.get(self.encoding))
        elif self.encoding not in DEFAULT_QUALITY:
            raise UserError(
                f"--quality {self.quality}: {self.encoding} loses nothing; leave it out, or choose webp "
                "or jpeg"
            )
        elif not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: it must lie between 1 and 100")

    @property
    def extension(self) -> str:
        """Of file names, without the dot."""
        return EXTENSIONS[self.encoding]

    def check_size(self, height: int, width: int) -> None:
        """Refuses images that the encoding cannot hold.

        Raises:
          UserError: a side is too long.
        """
        limit = LARGEST_SIDE[self.encoding]
        if max(height, width) > limit:
            raise UserError(f"images of {width}x{height}: {self.encoding} ends at {limit} a side; choose png")

    def check_channels(self, channels: ChannelsConfig) -> None:
        """Refuses images of channels that the encoding does not hold.

        Raises:
          UserError: it holds others.
        """
        held = HELD_CHANNELS.get(self.encoding, (channels.count,))
        if channels.count not in held:
            better = "png or npy" if channels.count in HELD_CHANNELS["png"] else "npy"
            raise UserError(
                f"images of {channels.describe()}: {self.encoding} does not hold them; choose {better}"
            )

    def encode(self, pixels: "np.ndarray") -> bytes:
        """Returns uint8 ``[H, W, C]`` as a file's bytes; the same pixels give the same bytes.

        NumPy's files take any type.
        """
        sink = io.BytesIO()
        if self.encoding == "npy":
            from transforms.images.npy import write_array

            return write_array(pixels)
        image = picture_of(pixels)
        if self.encoding == "png":
            image.save(sink, "PNG", **_PNG)
        elif self.encoding == "webp":
            image.save(sink, "WEBP", quality=self.quality, **_WEBP)
        else:
            image.save(sink, "JPEG", quality=self.quality, **_JPEG)
        return sink.getvalue()


def picture_of(pixels: "np.ndarray") -> "Image.Image":
    """Returns uint8 ``[H, W, C]`` as Pillow's image: grey, grey and alpha, RGB or RGBA, C being 1 to 4."""
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
