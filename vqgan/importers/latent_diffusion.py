"""latent-diffusion: taming's key layout, with averaged twins of the weights and other attentions.

The twins stand under ``model_ema.`` with the dots taken out of their names. A VQ first stage inside a
diffusion checkpoint has the prefix ``first_stage_model.``.
"""

import dataclasses
from collections.abc import Iterable

from vqgan.importers import taming
from vqgan.importers.base import Native

LAYOUT = dataclasses.replace(taming.LAYOUT, name="latent-diffusion")


def is_latent_diffusion(names: Iterable[str], native: Native | None) -> bool:
    """Tells its files from taming's: by the configuration, else by what taming never writes."""
    if native is not None and "ldm." in str(native.data.get("model", {})):
        return True
    names = list(names)
    has_middle = any(name.startswith("encoder.mid.attn_1.") for name in names)
    return any(name.startswith("model_ema.") or ".to_qkv." in name for name in names) or not has_middle
