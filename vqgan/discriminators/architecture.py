"""Configuration of a discriminator. Only the standard library is imported here, as in vqgan.config."""

import dataclasses

from vqgan.errors import UserError

KINDS = ("patch", "stylegan")
SMALLEST_STYLEGAN = 8


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Architecture of a discriminator.

    Attributes:
      kind: ``patch``, a logit for each overlapping patch (arXiv 1611.07004), or ``stylegan``, residual
        blocks with blurred downsampling and one logit per image (arXiv 1912.04958).
      channels: width at the highest resolution; it doubles at each halving, up to 8 times.
      layers: halvings of the ``patch`` kind. A patch is 70 pixels wide with 3, 34 with 2, 16 with 1.
      resolution: side of the square images of the ``stylegan`` kind, a power of two. The ``patch`` kind
        takes any size that leaves a patch.
      spectral_norm: divide each kernel by its largest singular value (arXiv 1802.05957). In the
        ``patch`` kind it stands in place of BatchNorm, which would undo the bound.
    """

    kind: str = "patch"
    channels: int = 64
    layers: int = 3
    resolution: int = 256
    spectral_norm: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"discriminator.kind is {self.kind!r}: give one of {', '.join(KINDS)}")
        for name in ("channels", "layers"):
            if getattr(self, name) < 1:
                raise UserError(f"discriminator.{name} is {getattr(self, name)}: it must be at least 1")
        if self.kind == "stylegan":
            self._check_resolution()

    @property
    def least_side(self) -> int:
        """Smallest side in pixels of an image from which the ``patch`` kind gives a logit."""
        return 3 * 2**self.layers

    def _check_resolution(self) -> None:
        side = self.resolution
        if side < SMALLEST_STYLEGAN or side & (side - 1):
            raise UserError(
                f"discriminator.resolution is {side}: the stylegan kind takes a power of two of at least "
                f"{SMALLEST_STYLEGAN}; train on crops of such a size, or choose the patch kind"
            )
