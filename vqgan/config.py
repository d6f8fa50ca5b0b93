"""Configuration of the model: what a codec's networks and quantizer are, and what must hold of it.

Only the standard library is imported here, so that a launcher can read and check a configuration
without loading JAX. How it is written and read is in :mod:`vqgan.config_json`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from vqgan.channels import RGB, ChannelsConfig
from vqgan.errors import UserError
from vqgan.image_sizes import describe_pixels, describe_size, sizes_that_fit
from vqgan.token_layouts import GRID, SCALES, SEQUENCE, ScalesConfig, ViTConfig

QUANTIZERS = (
    "nearest", "cosine", "gumbel", "ema", "fsq", "lfq", "inner_product", "nearest_unit", "scales",
)  # fmt: skip
# Quantizers that choose the nearest code: placing and reviving codes and the rotation trick are for them.
CODEBOOK_QUANTIZERS = ("nearest", "cosine", "ema")
UNTRAINED_QUANTIZERS = ("inner_product", "nearest_unit", "scales")  # of published codecs, which are imported
ATTENTIONS = ("full", "linear")
FSQ_BOUNDS = ("tan", "atanh")
SPATIAL_NORM_GROUPS = 32
# What a configuration may ask for, checked before anything is made of it: it may come from a stranger.
MOST_LEVELS = 16
MOST_BLOCKS = 1000  # residual blocks of all levels, on both sides together; parameters are listed one by one
MOST_RESOLUTION = 1 << 14
MOST_PARAMETERS = 10_000_000_000
_MOST_VALUES = 64  # of a list


def _added(default: Any) -> Any:
    """Declares a field of a later release; at its default it is not written: codecs stay as they were."""
    return dataclasses.field(default=default, metadata={"left_out": default})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of a VQGAN, in the terms of *Taming Transformers* (arXiv 2012.09841).

    Attributes:
      resolution: side in pixels that the levels of ``attn_resolutions`` refer to. The model itself
        is convolutional and takes any height and width divisible by :attr:`downsampling`.
      ch: channels at the highest resolution.
      ch_mult: multiple of ``ch`` at each level; one level per entry, halved in between.
      num_res_blocks: residual blocks per encoder level (a decoder level has one more).
      attn_resolutions: sides, at ``resolution``, whose levels get self-attention.
      mid_attention: self-attention between the two middle residual blocks.
      z_channels: channels that the encoder ends in.
      double_z: the encoder ends in ``2 * z_channels`` (a Gaussian's mean and log-variance).
      embed_dim: length of one code vector.
      codebook_size: number of codes.
      dropout: rate inside the residual blocks, training only.
      resamp_with_conv: resample with a learned convolution, otherwise by pooling and repetition.
      norm_groups: groups of each group normalisation.
      input_range: pixel values that the network expects for uint8 0 and 255.
      quantizer: rule from latents to tokens: ``nearest`` code, nearest by angle (``cosine``: latents
        and codes are normalised), or the largest logit of a learned projection (``gumbel``). ``ema`` is
        ``nearest`` with a codebook that follows moving averages in training. ``fsq`` and ``lfq`` have no
        codebook: each dimension is rounded to one of its ``fsq_levels``, or is one bit, its sign.
        ``inner_product`` takes the code with the largest inner product, and ``nearest_unit`` is ``nearest``
        with codes that are normalised where they are decoded; both are for imported codecs.
      attention: ``full``, or ``linear`` in the number of positions (as latent-diffusion offers).
      clip_output: the decoder's result is clipped to ``input_range``.
      quant_conv: 1x1 convolutions stand before and after the quantizer.
      bias: residual blocks and the encoder's first convolution have biases.
      shortcut_from_branch: a block's shortcut convolution reads its second convolution, not its input.
      pool_downsample: halve by averaging even where ``resamp_with_conv`` is set.
      mid_blocks: residual blocks at the lowest resolution, on either side.
      decoder_res_blocks: residual blocks per decoder level; one more than the encoder's if None.
      encoder_out_kernel: side of the encoder's last convolution.
      stem_channels: channels of the encoder's first convolution; ``ch`` if None.
      fsq_levels: for ``fsq``, levels of each of the ``embed_dim`` dimensions. Their product is the
        codebook's size.
      has_decoder: off for a codec of which only the encoder and the codebook are known, so that it makes
        tokens but no images.
      symmetric_downsample: the encoder's halving convolutions are padded on all sides, not on two.
      depth_to_space: double height and width by a convolution that gives each pixel the channels of four,
        and a rearrangement of these, not by repetition.
      adaptive_norm: each decoder level begins with a normalisation whose scale and shift follow from the
        standard deviation and the mean of the image's codes.
      fsq_bound: how ``fsq`` bounds latents: ``tan``, as its paper does, or ``atanh``, by which a latent of
        zero stays zero.
      quant_conv_kernel: side of the convolutions around the quantizer.
      spatial_norm: the decoder's normalisations, of 32 groups, are scaled and shifted at each position by
        the code there (MoVQ, arXiv 2209.09002).
      haar_patch: side in pixels of the patches whose Haar wavelets are the channels that the networks see
        in place of pixels; 1 for none.
      halvings: number of levels, from the first, that halve height and width; all but the last if None.
      decoder_attn_levels: levels of the decoder with self-attention, where 0 has the highest resolution;
        those of the encoder if None.
      decoder_ch: channels of the decoder at the highest resolution; ``ch`` if None. Tokens depend neither
        on it nor on ``decoder_added_blocks``.
      decoder_added_blocks: residual blocks that each decoder level has beyond ``decoder_res_blocks``; fewer
        where it is negative.
      scales: for quantizer ``scales``, the token grids, from coarse to fine, on which what is left of the
        latents is quantized.
      vit: transformers that stand in the place of the convolutional encoder and decoder, for codecs whose
        tokens are a sequence.
      channels: what an image consists of, with the range of values of each channel.
    """

    resolution: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    mid_attention: bool = True
    z_channels: int = 256
    double_z: bool = False
    embed_dim: int = 256
    codebook_size: int = 1024
    dropout: float = 0.0
    resamp_with_conv: bool = True
    norm_groups: int = 32
    input_range: tuple[float, float] = (-1.0, 1.0)
    quantizer: str = "nearest"
    attention: str = "full"
    clip_output: bool = False
    quant_conv: bool = True
    bias: bool = True
    shortcut_from_branch: bool = False
    pool_downsample: bool = False
    mid_blocks: int = 2
    decoder_res_blocks: int | None = None
    encoder_out_kernel: int = 3
    stem_channels: int | None = None
    fsq_levels: tuple[int, ...] = ()
    has_decoder: bool = _added(True)
    symmetric_downsample: bool = _added(False)
    depth_to_space: bool = _added(False)
    adaptive_norm: bool = _added(False)
    fsq_bound: str = _added("tan")
    quant_conv_kernel: int = _added(1)
    spatial_norm: bool = _added(False)
    haar_patch: int = _added(1)
    halvings: int | None = _added(None)
    decoder_attn_levels: tuple[int, ...] | None = _added(None)
    decoder_ch: int | None = _added(None)
    decoder_added_blocks: int = _added(0)
    scales: ScalesConfig | None = dataclasses.field(default=None, metadata={"left_out": None})
    vit: ViTConfig | None = dataclasses.field(default=None, metadata={"left_out": None})
    channels: ChannelsConfig = dataclasses.field(default=RGB, metadata={"left_out": RGB})

    def __post_init__(self) -> None:
        for name in ("ch_mult", "attn_resolutions", "fsq_levels"):
            if len(getattr(self, name)) > _MOST_VALUES:
                raise UserError(f"model.{name} has {len(getattr(self, name))} values: at most {_MOST_VALUES}")
        for name in ("resolution", "ch", "num_res_blocks", "z_channels", "embed_dim", "norm_groups"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise UserError(f"model.ch_mult is {list(self.ch_mult)}: give one positive multiple per level")
        if len(self.ch_mult) > MOST_LEVELS:
            raise UserError(f"model.ch_mult has {len(self.ch_mult)} levels: at most {MOST_LEVELS}")
        if self.resolution > MOST_RESOLUTION:
            raise UserError(f"model.resolution is {self.resolution}: at most {MOST_RESOLUTION}")
        if self.codebook_size < 2:
            raise UserError(f"model.codebook_size is {self.codebook_size}: a codebook needs at least 2 codes")
        if self.codebook_size > 1 << 31:
            raise UserError(f"model.codebook_size is {self.codebook_size}: tokens are int32, at most 2**31")
        self._check_variants()
        self._check_grid_of_codes()
        self._check_layout()
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout is {self.dropout}: it must lie in [0, 1)")
        if not -math.inf < self.input_range[0] < self.input_range[1] < math.inf:
            raise UserError(f"model.input_range is {list(self.input_range)}: give the lower value first")
        if self.resolution % self.downsampling:
            raise UserError(
                f"model.resolution is {self.resolution}: it must be divisible by {self.downsampling}, "
                f"the downsampling of {len(self.ch_mult)} levels"
            )
        for groups in {self.norm_groups, SPATIAL_NORM_GROUPS if self.spatial_norm else 1}:
            for width in {self.stem, *(ch * n for ch in (self.ch, self.decoder_width) for n in self.ch_mult)}:
                if width % groups:
                    raise UserError(
                        f"model.norm_groups is {groups}: it must divide every width, and {width} is one"
                    )

    def _check_variants(self) -> None:
        for name, known in (("quantizer", QUANTIZERS), ("attention", ATTENTIONS), ("fsq_bound", FSQ_BOUNDS)):
            if getattr(self, name) not in known:
                raise UserError(f"model.{name} is {getattr(self, name)!r}: give one of {', '.join(known)}")
        if min(self.mid_blocks, self.decoder_blocks, self.stem, self.decoder_width) < 1:
            raise UserError("model.mid_blocks, decoder_res_blocks, stem_channels, decoder_ch: at least 1")
        blocks = len(self.ch_mult) * (self.num_res_blocks + self.decoder_blocks) + 2 * self.mid_blocks
        if blocks > MOST_BLOCKS:
            raise UserError(
                f"model.mid_blocks is {self.mid_blocks}, num_res_blocks {self.num_res_blocks} and "
                f"decoder_res_blocks {self.decoder_blocks}: at {len(self.ch_mult)} levels these are {blocks} "
                f"residual blocks, at most {MOST_BLOCKS}"
            )
        for name in ("encoder_out_kernel", "quant_conv_kernel"):
            if getattr(self, name) not in (1, 3):
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be 1 or 3")
        if not self.quant_conv and not self.z_channels == self.embed_dim and self.vit is None:
            raise UserError("model.quant_conv is off: z_channels and embed_dim must then be equal")
        if not self.quant_conv and self.double_z:
            raise UserError("model.quant_conv is off: double_z needs it")
        if self.depth_to_space and not self.resamp_with_conv:
            raise UserError("model.depth_to_space is on: resamp_with_conv must be, too")

    def _check_layout(self) -> None:
        """Checks patches, levels that halve, and tokens that are no grid."""
        if self.haar_patch not in (1, 2, 4, 8, 16):
            raise UserError(f"model.haar_patch is {self.haar_patch}: it must be 1, 2, 4, 8 or 16")
        levels = range(len(self.ch_mult))
        if self.halvings is not None and self.halvings not in levels:
            raise UserError(f"model.halvings is {self.halvings}: it must be 0 to {len(self.ch_mult) - 1}")
        if any(level not in levels for level in self.decoder_attn_levels or ()):
            raise UserError(
                f"model.decoder_attn_levels is {list(self.decoder_attn_levels or ())}: no such level"
            )
        if (self.scales is None) == (self.quantizer == "scales"):
            raise UserError("model.scales and quantizer scales belong together; give both, or neither")
        if self.vit is None:
            return
        if self.quantizer not in ("nearest", "cosine") or self.quant_conv or self.haar_patch > 1:
            raise UserError("model.vit goes with quantizer nearest or cosine, without quant_conv and patches")
        self.channels.require_rgb("model.vit")
        self.vit.check_patches(self.resolution, len(self.ch_mult))

    def _check_grid_of_codes(self) -> None:
        """Checks ``fsq`` and ``lfq``, where dimension and size follow from the grid."""
        levels = list(self.fsq_levels)
        if self.quantizer != "fsq" and levels:
            raise UserError(f"model.fsq_levels is {levels}: leave it empty, or set model.quantizer to fsq")
        # The codebook has at most 2**31 codes, so this never shifts by a huge number.
        if self.quantizer == "lfq" and (self.embed_dim > 31 or self.codebook_size != 1 << self.embed_dim):
            raise UserError(
                f"model.codebook_size is {self.codebook_size}: for quantizer lfq it must be 2**embed_dim, "
                f"and embed_dim is {self.embed_dim}"
            )
        if self.quantizer != "fsq":
            return
        if not levels or min(levels) < 2:
            raise UserError(f"model.fsq_levels is {levels}: quantizer fsq needs at least 2 levels in each")
        if len(levels) != self.embed_dim:
            raise UserError(
                f"model.embed_dim is {self.embed_dim}: it must be {len(levels)}, as fsq_levels is {levels}"
            )
        if math.prod(levels) != self.codebook_size:
            raise UserError(
                f"model.codebook_size is {self.codebook_size}: it must be {math.prod(levels)}, "
                f"the product of fsq_levels {levels}"
            )

    @property
    def stem(self) -> int:
        """Returns the channels after the encoder's first convolution."""
        return self.ch if self.stem_channels is None else self.stem_channels

    @property
    def decoder_blocks(self) -> int:
        """Returns the residual blocks of one decoder level."""
        blocks = self.num_res_blocks + 1 if self.decoder_res_blocks is None else self.decoder_res_blocks
        return blocks + self.decoder_added_blocks

    @property
    def decoder_width(self) -> int:
        """Returns the decoder's channels at the highest resolution."""
        return self.ch if self.decoder_ch is None else self.decoder_ch

    @property
    def learned_downsampling(self) -> bool:
        """Tells whether the encoder halves by a convolution."""
        return self.resamp_with_conv and not self.pool_downsample

    @property
    def halved_levels(self) -> int:
        """Returns how many levels halve height and width."""
        return len(self.ch_mult) - 1 if self.halvings is None else self.halvings

    @property
    def downsampling(self) -> int:
        """Returns pixels per token along one side (the ``f`` of f16); with ``vit``, of patches."""
        return self.haar_patch * 2**self.halved_levels if self.vit is None else self.vit.patch

    @property
    def layout(self) -> str:
        """Returns how tokens lie: one of :data:`vqgan.token_layouts.LAYOUTS`."""
        if self.vit is not None:
            return SEQUENCE
        return GRID if self.scales is None else SCALES

    @property
    def length(self) -> int | None:
        """Returns the tokens of every image where the layout is no grid, else None."""
        if self.vit is not None:
            return self.vit.tokens
        return None if self.scales is None else self.scales.length

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the token grid ``(h, w)`` of an image of ``height`` by ``width`` pixels.

        Tokens that are no grid are one row of ``L``, and images of one size alone have them.

        Raises:
          UserError: a side is not divisible by the downsampling, or is not that size.
        """
        shown = describe_pixels((height, width))
        if self.length is not None:
            side = self.image_shape((1, self.length))[0]
            if (height, width) != (side, side):
                raise UserError(f"images of {shown} do not fit this codec: it takes {side}x{side} alone")
            return 1, self.length
        f = self.downsampling
        if height % f or width % f or height < f or width < f:
            near = " or ".join(map(describe_size, sizes_that_fit(height, width, f)))
            raise UserError(
                f"images of {shown} do not fit this codec: both sides must be multiples of {f} pixels, "
                f"such as {near}"
            )
        return height // f, width // f

    def image_shape(self, grid: Sequence[int]) -> tuple[int, int]:
        """Returns height and width in pixels of the image that a token grid ``(h, w)`` stands for."""
        if self.vit is not None:
            return self.resolution, self.resolution
        if self.scales is not None:
            return (self.scales.sides[-1] * self.downsampling,) * 2
        return grid[0] * self.downsampling, grid[1] * self.downsampling
