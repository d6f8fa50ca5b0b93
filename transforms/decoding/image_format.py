"""The forms in which images are written."""

import dataclasses
import io
from typing import TYPE_CHECKING, Any

from vqgan.errors import UserError

if TYPE_CHECKING:
    import numpy as np


VIEWS = ("all", "first")
FORMATS = ("png", "webp", "jpeg", "tar", "parquet")
"""Of ``vqgan decode``; the first three are a file for each image."""
CONTAINERS = ("files", "tar", "parquet")
EXTENSIONS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
DEFAULT_QUALITY = {"webp": 90, "jpeg": 95}
LARGEST_SIDE = {"png": 1 << 20, "webp": 16383, "jpeg": 65500}
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
      encoding: ``png``, ``webp`` or ``jpeg``.
      quality: of webp and jpeg, 1 to 100; None for the encoding's default. PNG loses nothing.
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
        elif self.encoding == "png":
            raise UserError(
                f"--quality {self.quality}: png loses nothing; leave it out, or choose webp or jpeg"
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

    def encode(self, pixels: "np.ndarray") -> bytes:
        """Returns uint8 ``[H, W, 3]`` as a file's bytes; the same pixels give the same bytes."""
        from PIL import Image

        sink = io.BytesIO()
        image = Image.fromarray(pixels)
        if self.encoding == "png":
            image.save(sink, "PNG", **_PNG)
        elif self.encoding == "webp":
            image.save(sink, "WEBP", quality=self.quality, **_WEBP)
        else:
            image.save(sink, "JPEG", quality=self.quality, **_JPEG)
        return sink.getvalue()
