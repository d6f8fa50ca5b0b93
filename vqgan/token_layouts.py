"""How the tokens of one image lie, and the configuration of codecs whose tokens are no grid.

A layout is ``grid`` (``h`` rows of ``w``), ``scales`` (grids from coarse to fine, one after the other, each
row by row) or ``sequence`` (one-dimensional, without places in the image). Tokens of the last two are stored
as one row of ``L``. Only the standard library is imported here.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vqgan.documents import Fields
from vqgan.errors import UserError

GRID, SCALES, SEQUENCE = LAYOUTS = ("grid", "scales", "sequence")
MOST_SCALES = 64
_HEAD_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class ScalesConfig:
    """Residual tokens of several scales, as in *Visual Autoregressive Modeling* (arXiv 2404.02905).

    Attributes:
      sides: of the scales' square grids, from coarse to fine; the last is that of the latents.
      convolutions: 3x3 convolutions that smooth the codes, shared among neighbouring scales.
    """

    sides: tuple[int, ...]
    convolutions: int = 4

    def __post_init__(self) -> None:
        sides = list(self.sides)
        if not sides or len(sides) > MOST_SCALES or min(sides) < 1 or sides != sorted(set(sides)):
            raise UserError(
                f"model.scales.sides is {sides[:MOST_SCALES]}: give 1 to {MOST_SCALES} rising numbers"
            )
        if not 1 <= self.convolutions <= MOST_SCALES:
            raise UserError(f"model.scales.convolutions is {self.convolutions}: give 1 to {MOST_SCALES}")

    @property
    def length(self) -> int:
        """Returns the tokens of one image."""
        return sum(side * side for side in self.sides)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Transformers around one-dimensional tokens, as in *An Image is Worth 32 Tokens* (arXiv 2406.07550).

    Encoder and decoder are vision transformers (arXiv 2010.11929) over patches, a class token and latent
    tokens, with heads of 64 channels.

    Attributes:
      tokens: latent tokens, L.
      patch: side in pixels of the encoder's patches.
      encoder_width: channels of the encoder, a multiple of 64.
      encoder_layers: its blocks.
      decoder_patch: side in pixels of the decoder's patches.
      decoder_width: channels of the decoder, a multiple of 64.
      decoder_layers: its blocks.
      mixed_latents: the encoder's latents ``[L, width]`` are read as ``[width, L]`` without transposing, as
        the first published models were trained.
      pixel_codes: codes of a second codebook whose mixture a convolutional decoder turns into pixels; 0 where
        patches become pixels directly.
    """

    tokens: int = 32
    patch: int = 16
    encoder_width: int = 768
    encoder_layers: int = 12
    decoder_patch: int = 16
    decoder_width: int = 768
    decoder_layers: int = 12
    mixed_latents: bool = False
    pixel_codes: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 0 if field.name in ("mixed_latents", "pixel_codes") else 1
            if getattr(self, field.name) < least:
                raise UserError(f"model.vit.{field.name} is {getattr(self, field.name)}: at least {least}")
        for name in ("encoder_width", "decoder_width"):
            if getattr(self, name) % _HEAD_WIDTH:
                raise UserError(
                    f"model.vit.{name} is {getattr(self, name)}: give a multiple of {_HEAD_WIDTH}"
                )

    def check_patches(self, resolution: int, levels: int) -> None:
        """Checks that patches fit an image's side, and the levels of a convolutional decoder the patches.

        Raises:
          UserError: they do not.
        """
        patch = 2 ** (levels - 1) if self.pixel_codes else self.decoder_patch
        if patch != self.decoder_patch or resolution % patch or resolution % self.patch:
            raise UserError(
                f"model.resolution is {resolution}: patches of {self.patch} and {self.decoder_patch} pixels "
                f"must fit it, and the decoder's levels give {patch}"
            )

    @property
    def encoder_heads(self) -> int:
        """Returns the encoder's attention heads."""
        return self.encoder_width // _HEAD_WIDTH

    @property
    def decoder_heads(self) -> int:
        """Returns the decoder's attention heads."""
        return self.decoder_width // _HEAD_WIDTH


def token_shape(layout: str, grid: tuple[int, int]) -> tuple[int, ...]:
    """Returns the shape of one image's tokens: ``(h, w)``, or ``(L,)`` where the layout is no grid."""
    return grid if layout == GRID else grid[1:]


def latent_shape(
    layout: str, grid: tuple[int, int], dimensions: int, scales: ScalesConfig | None
) -> tuple[int, ...]:
    """Returns the shape of one image's latents: ``(h, w, D)``, or ``(L, D)`` of a sequence.

    Args:
      layout: of the tokens.
      grid: of the tokens, as a shard has it.
      dimensions: D, of a code.
      scales: of tokens of several scales, whose latents lie on the grid of the last one.
    """
    places = token_shape(layout, grid) if scales is None else (scales.sides[-1],) * 2
    return (*places, dimensions)


def read_latent_shape(fields: Fields) -> tuple[int, ...] | None:
    """Reads ``latents`` of a footer or an identity, the shape of one row's; None where there are none.

    Raises:
      UserError: not two or three numbers above 0.
    """
    if fields.value("latents", None) is None:
        return None
    found = fields.value("latents")
    sequence = isinstance(found, list) and len(found) == 2
    # Arrow counts the numbers of a row in 31 bits.
    return fields.integers("latents", 2 if sequence else 3, least=1, most=1 << (15 if sequence else 10))


def layout_of(config: Mapping[str, Any]) -> str:
    """Returns the layout of a codec's tokens from its configuration as JSON data."""
    if config.get("vit") is not None:
        return SEQUENCE
    return GRID if config.get("scales") is None else SCALES


def read_token_layout(fields: Fields, config: Mapping[str, Any]) -> str:
    """Reads the layout of a footer or manifest, ``grid`` where it says nothing.

    Args:
      fields: of the document.
      config: of the codec that made the tokens, as JSON data.

    Raises:
      UserError: no layout of that name, or not that of the codec.
    """
    return fields.choice("layout", (layout_of(config),), GRID)


def describe_layout(layout: str, grid: Sequence[int], times: str = " × ") -> str:
    """Returns a layout in words: ``8 × 8 tokens``, ``32 tokens in a sequence``."""
    if layout == GRID:
        return f"{grid[0]}{times}{grid[1]} tokens"
    return f"{grid[1]:,} tokens {'of several scales' if layout == SCALES else 'in a sequence'}"
