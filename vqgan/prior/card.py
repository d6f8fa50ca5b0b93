"""The ``README.md`` of a prior, with the Hub's front matter."""

from collections.abc import Mapping
from typing import Any

from vqgan.config import to_dict
from vqgan.model_card import ModelCard, common_sections, escape, front_matter
from vqgan.prior.config import PriorConfig
from vqgan.prior.parameters import parameter_count

TASK = "unconditional-image-generation"
TAGS = ("vqgan", "image-generation", "transformer", "jax")


def render_prior_card(
    card: Mapping[str, Any], config: PriorConfig, fingerprint: str, codec_name: str, codec_fingerprint: str
) -> str:
    """The ``README.md`` of a prior.

    Args:
      card: ``card`` of ``prior.json``.
      config: the architecture.
      fingerprint: of the prior.
      codec_name: path or name of the codec whose tokens it speaks; may be empty.
      codec_fingerprint: of that codec.
    """
    known = ModelCard.from_json(card)
    title = escape(known.name) or f"VQGAN prior {fingerprint[:12]}"
    codec = f"{escape(codec_name)}, " if codec_name else ""
    sections = [
        front_matter(card, TASK, TAGS),
        f"# {title}\n\n{_summary(config)}\n",
        f"## Codec\n\nIts tokens are those of the codec {codec}fingerprint `{escape(codec_fingerprint)}`.\n",
        *common_sections(known, to_dict(config)),
        f"Fingerprint: `{escape(fingerprint)}`\n",
    ]
    return "\n".join(section for section in sections if section)


def _summary(config: PriorConfig) -> str:
    height, width = config.grid
    kind = "A masked" if config.kind == "masked" else "An autoregressive"
    extras = [f"{config.classes:,} classes"] if config.classes else []
    if config.condition_codebook_size:
        extras.append(f"a condition grid of {' × '.join(map(str, config.condition_grid))} tokens")
    layout = f"{config.layers} layers, {config.heads} heads, width {config.width}"
    return (
        f"{kind} transformer over grids of {height} × {width} tokens of {config.codebook_size:,} codes"
        f"{', with ' + ' and '.join(extras) if extras else ''}: {layout}, "
        f"{parameter_count(config) / 1e6:,.2f} million parameters."
    )
