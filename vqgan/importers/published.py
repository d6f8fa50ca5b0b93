"""Checkpoints that have been published, by name: what their files do not say, and how large they are."""

from dataclasses import dataclass, field
from pathlib import Path

from vqgan.errors import UserError
from vqgan.importers.layout import Fields


@dataclass(frozen=True)
class Published:
    """One published model.

    Attributes:
      format: name of its layout.
      parameters: number of parameters of encoder, quantizer and decoder.
      fields: settings that its file does not hold.
      aliases: other names of its file or folder.
    """

    format: str
    parameters: int
    fields: Fields = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


_TAMING, _LDM, _LLAMAGEN = "taming-transformers", "latent-diffusion", "llamagen"

PUBLISHED: dict[str, Published] = {
    "vqgan_imagenet_f16_1024": Published(_TAMING, 72_141_699),
    "vqgan_imagenet_f16_16384": Published(_TAMING, 76_073_859),
    "vqgan_gumbel_f8": Published(_TAMING, 68_995_971, aliases=("vqgan_gumbel_f8_8192",)),
    "vq-f4": Published(_LDM, 55_322_782),
    "vq-f4-noattn": Published(_LDM, 53_219_486),
    "vq-f8": Published(_LDM, 67_717_295),
    "vq-f8-n256": Published(_LDM, 67_652_783),
    "vq-f16": Published(_LDM, 69_593_371),
    "VQ-16": Published(
        _LLAMAGEN,
        71_883_403,
        aliases=(
            "vq_ds16_c2i",
            "vq_ds16_t2i",
        ),
    ),
    "VQ-8": Published(_LLAMAGEN, 70_109_835, aliases=("vq_ds8_c2i",)),
    "dalle-mini/vqgan_imagenet_f16_16384": Published(
        "vqgan-jax",
        76_073_859,
        fields={"input_range": (0.0, 1.0)},
        aliases=("models--dalle-mini--vqgan_imagenet_f16_16384",),
    ),
    "lwm": Published(
        "lwm",
        146_244_675,
        aliases=(
            "LWM-Chat-1M-Jax",
            "LWM-Text-1M-Jax",
        ),
    ),
    "maskgit-256": Published(
        "maskgit",
        54_515_587,
        aliases=(
            "tokenizer_imagenet256",
            "tokenizer_imagenet256_checkpoint",
        ),
    ),
    "maskgit-512": Published(
        "maskgit",
        54_515_587,
        fields={"resolution": 512},
        aliases=(
            "tokenizer_imagenet512",
            "tokenizer_imagenet512_checkpoint",
        ),
    ),
}


def find_published(
    name: str | None, path: Path, format_name: str, parameters: int
) -> tuple[str, Published] | None:
    """Finds the published model that a checkpoint is.

    A name that the user gave must fit. One that only occurs in the path counts where format and number
    of parameters fit as well; otherwise the folder merely bears that name.

    Raises:
      UserError: the given name is unknown, or the file is not that model.
    """
    if name is not None:
        return name, _checked(name, path, format_name, parameters)
    parts = [path.stem, *(part.name for part in path.absolute().parents)][:6]
    for known, entry in PUBLISHED.items():
        fits = entry.format == format_name and entry.parameters == parameters
        if fits and any(part in (known.rpartition("/")[2], *entry.aliases) for part in parts):
            return known, entry
    return None


def _checked(name: str, path: Path, format_name: str, parameters: int) -> Published:
    if name not in PUBLISHED:
        raise UserError(f"{path}: no published model {name!r}; known: {', '.join(PUBLISHED)}")
    entry = PUBLISHED[name]
    if entry.format != format_name:
        raise UserError(f"{path}: {name} is a {entry.format} checkpoint, but this file is {format_name}")
    if entry.parameters != parameters:
        raise UserError(
            f"{path}: {name} has {entry.parameters / 1e6:.2f} M parameters, but this file has "
            f"{parameters / 1e6:.2f} M; drop name={name} or get the published file"
        )
    return entry
