"""Discriminators: one file each, ``[B, H, W, C]`` images in [-1, 1] to logits.

Their losses are in ``vqgan.losses``, how they are trained in ``vqgan.training.codec``. Importing this package
loads no JAX, so that a launcher can check a configuration.
"""

from typing import TYPE_CHECKING

from vqgan.discriminators.architecture import DiscriminatorConfig

if TYPE_CHECKING:
    from flax import nnx
    from jax.typing import DTypeLike

    from vqgan.discriminators.patch import PatchDiscriminator
    from vqgan.discriminators.stylegan import StyleGANDiscriminator

__all__ = ["DiscriminatorConfig", "make_discriminator"]


def make_discriminator(
    config: DiscriminatorConfig, *, channels: int = 3, dtype: "DTypeLike" = "float32", rngs: "nnx.Rngs"
) -> "PatchDiscriminator | StyleGANDiscriminator":
    """Builds the discriminator that a configuration asks for, in training mode.

    Args:
      config: its architecture.
      channels: of images.
      dtype: type that convolutions compute in. Parameters, statistics and logits are float32.
      rngs: source of the weights.
    """
    from vqgan.discriminators.patch import PatchDiscriminator
    from vqgan.discriminators.stylegan import StyleGANDiscriminator

    kinds: dict[str, type[PatchDiscriminator | StyleGANDiscriminator]] = {
        "patch": PatchDiscriminator,
        "stylegan": StyleGANDiscriminator,
    }
    return kinds[config.kind](config, channels=channels, dtype=dtype, rngs=rngs)
