"""The foreign formats that are known, and which of them a file holds, by its contents.

Also checkpoints that have been published, by name: what their files do not say, and how large they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqgan.errors import UserError
from vqgan.importers.containers import subtrees
from vqgan.importers.formats import (
    cosmos,
    diffusers,
    latent_diffusion,
    llamagen,
    lwm,
    maskgit,
    taming,
    var,
    vqgan_jax,
)
from vqgan.importers.layout import Fields, KeyLayout, NativeConfig
from vqgan.importers.pickle_constructors import flatten_tensors
from vqgan.importers.tensors import Tensor

# A new format is one file in formats/ and one line here. taming's stands for latent-diffusion's as well.
# Those whose markers are of their own come before those whose names they share otherwise.
LAYOUTS: tuple[KeyLayout, ...] = (
    var.LAYOUT,
    cosmos.LAYOUT,
    diffusers.MOVQ,
    taming.LAYOUT,
    llamagen.LAYOUT,
    diffusers.LAYOUT,
    vqgan_jax.LAYOUT,
    lwm.LAYOUT,
    maskgit.LAYOUT,
)
# Members of a checkpoint that hold a model's weights, the likeliest first.
_MEMBERS = ("state_dict", "model", "params", "module", "generator", "vqgan")
# Where a checkpoint holds several models with the same keys, the image tokenizer is this one.
_FIRST_STAGE = "first_stage_model."
# First parts of names in Net2Net and diffusion checkpoints, beside those of the image tokenizer.
_PRIOR_PARTS = {
    "transformer", "cond_stage_model", "first_stage_model", "model", "model_ema", "denoise_fn", "permuter",
    "loss", "logvar", "cond_ids", "scale_factor", "lvlb_weights", "betas",
}  # fmt: skip
# The noise schedule of a diffusion model: alphas_cumprod, sqrt_recip_alphas_cumprod, posterior_variance, ...
_SCHEDULE = ("alphas_", "sqrt_", "log_one_minus_", "posterior_")
_EXAMPLES = 5


@dataclass(frozen=True)
class ForeignModel:
    """The recognised part of a file.

    Attributes:
      layout: how its parameters are named.
      tensors: parameters by their names in that layout.
      member: of the checkpoint that holds them; empty for the whole.
      prefix: what stood before their names.
      others: first parts of the names beside that prefix.
    """

    layout: KeyLayout
    tensors: Mapping[str, Tensor]
    member: str
    prefix: str
    others: tuple[str, ...]


def recognise_model(file: Path, container: str, tree: Any, weights: str) -> ForeignModel:
    """Finds the layout whose marker some part of the file bears.

    Args:
      file: for errors.
      container: its kind, for errors.
      tree: its contents.
      weights: ``raw`` or ``ema``: which member comes first where there are both.

    Raises:
      UserError: none is found, or the model has no codebook.
    """
    members = ("ema", *_MEMBERS) if weights == "ema" else (*_MEMBERS, "ema")
    seen: list[str] = []
    for member, subtree in subtrees(tree, members):
        tensors = flatten_tensors(subtree)
        for layout in LAYOUTS:
            prefixes = sorted(_prefixes(tensors, layout.marker))
            if prefixes:
                return _take(file, layout, tensors, prefixes, member)
        seen = seen or list(tensors)
    raise UserError(f"{file}: {explain_other_model(container, seen)}")


def refine_layout(model: ForeignModel, native: NativeConfig | None) -> KeyLayout:
    """Tells latent-diffusion's files from taming's, whose markers are the same."""
    if model.layout is taming.LAYOUT and latent_diffusion.is_latent_diffusion(model.tensors, native):
        return latent_diffusion.LAYOUT
    return model.layout


def _prefixes(tensors: Mapping[str, Tensor], marker: str) -> set[str]:
    """Finds what stands before the marker, where the model is a part of another one or wrapped."""
    found = {name.removesuffix(marker) for name in tensors if name.endswith(marker)}
    return {prefix for prefix in found if not prefix or prefix.endswith(".")}


def _take(
    file: Path, layout: KeyLayout, tensors: Mapping[str, Tensor], prefixes: list[str], member: str
) -> ForeignModel:
    if len(prefixes) == 1 or "" in prefixes:
        prefix = prefixes[0]
    elif _FIRST_STAGE in prefixes:
        prefix = _FIRST_STAGE
    else:
        raise UserError(
            f"{file}: it holds several VQGANs ({', '.join(prefixes)}); save the one that you mean on its own"
        )
    inside = {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}
    others = sorted({name.split(".")[0] for name in tensors if not name.startswith(prefix)})
    if prefix and not all(is_prior_part(name) for name in others):
        inside |= {n: t for n, t in tensors.items() if not n.startswith(prefix) and not is_prior_part(n)}
    if not any(name.startswith(("quantize.", "quantizer.")) for name in inside):
        raise UserError(
            f"{file}: a {layout.name} autoencoder without a codebook (KL): it has no tokens; give a VQ model"
        )
    prepared = inside if layout.prepare is None else layout.prepare(inside)
    return ForeignModel(layout, prepared, member, prefix, tuple(others))


def is_prior_part(name: str) -> bool:
    """Tells whether a parameter belongs to the model around a first stage (transformer, diffusion model)."""
    first = name.split(".")[0]
    return first in _PRIOR_PARTS or first.startswith(_SCHEDULE)


def explain_other_model(container: str, names: Sequence[str]) -> str:
    """Explains why a readable file is no codec, with what was seen in it."""
    if not names:
        return f"a {container} file without tensors; give a checkpoint of a VQGAN"
    shown = ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")
    if any(_is_transformer(name) for name in names):
        return (
            f"a transformer prior ({len(names)} tensors: {shown}) without its first stage: it models tokens "
            "and cannot make them; give the VQGAN checkpoint that it was trained with (vqgan import-prior "
            "reads a prior of taming-transformers itself)"
        )
    return (
        f"a {container} file whose {len(names)} tensors are those of no VQGAN that we know; it has {shown}; "
        "known: taming-transformers, latent-diffusion, llamagen, diffusers, vqgan-jax, lwm, maskgit, movq, "
        "var, cosmos-di, titok"
    )


def _is_transformer(name: str) -> bool:
    parts = name.removeprefix("module.").split(".")
    return parts[0] in ("transformer", "tok_emb", "gpt") or (parts[0] == "blocks" and "attn" in parts)


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
