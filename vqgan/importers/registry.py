"""The foreign formats that are known, and which of them a file holds, by its contents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgan.errors import UserError
from vqgan.importers.containers import subtrees
from vqgan.importers.formats import diffusers, latent_diffusion, llamagen, lwm, maskgit, taming, vqgan_jax
from vqgan.importers.layout import KeyLayout, NativeConfig
from vqgan.importers.pickle_constructors import flatten_tensors
from vqgan.importers.tensors import Tensor

# A new format is one file in formats/ and one line here. taming's stands for latent-diffusion's as well.
LAYOUTS: tuple[KeyLayout, ...] = (
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
    return ForeignModel(layout, inside, member, prefix, tuple(others))


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
        "known: taming-transformers, latent-diffusion, llamagen, diffusers, vqgan-jax, lwm, maskgit"
    )


def _is_transformer(name: str) -> bool:
    parts = name.removeprefix("module.").split(".")
    return parts[0] in ("transformer", "tok_emb", "gpt") or (parts[0] == "blocks" and "attn" in parts)
