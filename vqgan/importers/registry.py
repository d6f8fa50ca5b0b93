"""The foreign formats that are known, and which of them a file holds, by its contents.

Also checkpoints that have been published, by name: what their files do not say, and how large they are.
"""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqgan.errors import UserError
from vqgan.importers.containers import subtrees
from vqgan.importers.formats import (
    chameleon,
    cosmos,
    diffusers,
    latent_diffusion,
    llamagen,
    lwm,
    maskgit,
    seed_voken,
    taming,
    titok,
    var,
    vqgan_jax,
)
from vqgan.importers.layout import Fields, KeyLayout, NativeConfig, declared_classes
from vqgan.importers.pickle_constructors import flatten_tensors
from vqgan.importers.tensors import Tensor

# A new format is one file in formats/ and one line here. Of those that share a marker, the first that takes a
# file is meant; those whose marker is of their own come before others whose marker they have as well.
LAYOUTS: tuple[KeyLayout, ...] = (
    titok.LAYOUT,
    var.LAYOUT,
    cosmos.LAYOUT,
    diffusers.MOVQ,
    maskgit.TORCH_LAYOUT,
    seed_voken.OPEN_MAGVIT2,
    seed_voken.IBQ,
    chameleon.JANUS,
    chameleon.CHAMELEON,
    latent_diffusion.LAYOUT,
    taming.LAYOUT,
    llamagen.JANUS,
    llamagen.LAYOUT,
    diffusers.LAYOUT,
    vqgan_jax.LAYOUT,
    lwm.LAYOUT,
    maskgit.LAYOUT,
)
# Members of a checkpoint that hold a model's weights, the likeliest first, where several hold one.
_MEMBERS = ("state_dict", "model", "params", "generator", "vqgan")
# Where a checkpoint holds several models with the same keys, the image tokenizer is this one.
_FIRST_STAGE = "first_stage_model"
# What torch puts into names: of compiled, distributed and checkpointed modules.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# Words in the names of averaged weights, and of what is trained beside a tokenizer and is no part of it.
_AVERAGED = {"swa", "avg", "average", "averaged", "averages", "shadow", "polyak"}
_BESIDE = {
    "loss", "losses", "criterion", "disc", "discriminator", "discriminators", "lpips", "perceptual", "percep",
    "vgg", "optimizer", "optimizers", "optim", "scheduler", "scaler",
}  # fmt: skip
_EXAMPLES = 5


@dataclass(frozen=True)
class ForeignModel:
    """The recognised part of a file.

    Attributes:
      layout: how its parameters are named.
      tensors: parameters by their names in that layout.
      prefix: what stood before their names, members of the checkpoint included; empty or with a dot behind.
      others: first parts of the names beside that prefix, and of what is under it and not needed.
      averaged: whether it is averaged weights.
    """

    layout: KeyLayout
    tensors: Mapping[str, Tensor]
    prefix: str
    others: tuple[str, ...]
    averaged: bool = False


def recognise_model(file: Path, container: str, tree: Any, weights: str) -> ForeignModel:
    """Finds the part of a file whose parameters bear the marker of a layout, whatever it is called.

    Args:
      file: for errors.
      container: its kind, for errors.
      tree: its contents.
      weights: ``raw`` or ``ema``: which is taken where there are both.

    Raises:
      UserError: none is found, there are several, or the model has no codebook.
    """
    tensors = _unwrapped(file, flatten_tensors(tree))
    found: dict[str, KeyLayout] = {}
    for layout in LAYOUTS:
        for prefix in _prefixes(tensors, layout.marker):
            found.setdefault(prefix, layout)
    if not found:
        raise UserError(f"{file}: {explain_other_model(container, _names_in_member(tree))}")
    prefix = _choose(file, sorted(found), weights)
    return _take(file, found[prefix], tensors, prefix, found, tree)


def _unwrapped(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Takes torch's wrappers out of all names."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        short = ".".join(part for part in parts[:-1] if part not in _WRAPPERS)
        short = f"{short}.{parts[-1]}" if short else parts[-1]
        if short in found:
            raise UserError(f"{file}: it holds {short} with a wrapper and without; save the model on its own")
        found[short] = tensor
    return found


def _prefixes(tensors: Mapping[str, Tensor], marker: str) -> set[str]:
    """Finds what stands before the marker, where the model is a part of something."""
    found = {name.removesuffix(marker) for name in tensors if name.endswith(marker)}
    return {prefix for prefix in found if not prefix or prefix.endswith(".")}


def _choose(file: Path, prefixes: list[str], weights: str) -> str:
    """Chooses between models: trained weights unless averaged ones are asked for or are all there is."""
    averaged = [prefix for prefix in prefixes if is_averaged(prefix)]
    trained = [prefix for prefix in prefixes if prefix not in averaged]
    pool = averaged if averaged and (weights == "ema" or not trained) else trained
    if len(pool) == 1 or "" in pool:
        return pool[0]
    stages = [prefix for prefix in pool if prefix.split(".")[-2] == _FIRST_STAGE]
    members = [[prefix for prefix in pool if prefix.split(".")[0] == name] for name in _MEMBERS]
    for likely in (stages, *members):
        if len(likely) == 1:
            return likely[0]
    names = ", ".join(prefix.rstrip(".") for prefix in pool)
    raise UserError(f"{file}: it holds several VQGANs ({names}); save the one that you mean on its own")


def is_averaged(prefix: str) -> bool:
    """Tells whether a prefix is that of averaged weights: ``state_dict_ema.``, ``emaModel.``, ``swa.``."""
    return any(
        word in _AVERAGED or word.startswith("ema") or (word.endswith("ema") and word != "schema")
        for word in _words(prefix)
    )


def _words(name: str) -> set[str]:
    """Splits names such as ``params_ema`` and ``modelEma`` into words."""
    return set(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z\d])(?=[A-Z])", "_", name).lower()))


def _take(
    file: Path,
    layout: KeyLayout,
    tensors: Mapping[str, Tensor],
    prefix: str,
    found: Collection[str],
    tree: Any,
) -> ForeignModel:
    """Takes what is under a prefix, but for other models there and what is no part of a model."""
    beside = {_next_part(other, prefix) for other in found if other != prefix}
    beside |= _members_beside(tree, prefix, layout.marker)
    inside, others = {}, set()
    for name, tensor in tensors.items():
        part = _next_part(name, prefix)
        if name.startswith(prefix) and part not in beside and not _words(part) & _BESIDE:
            inside[name.removeprefix(prefix)] = tensor
        else:
            others.add(part)
    layout = _by_names(layout, inside)
    has_codebook = any(name.startswith(("quantize.", "quantizer.")) for name in inside)
    if not has_codebook and layout.fields.get("quantizer") != "lfq":
        raise UserError(
            f"{file}: a {layout.name} autoencoder without a codebook (KL): it has no tokens; give a VQ model"
        )
    prepared = inside if layout.prepare is None else layout.prepare(inside)
    return ForeignModel(layout, prepared, prefix, tuple(sorted(others)), is_averaged(prefix))


def _next_part(name: str, prefix: str) -> str:
    """Returns the first part of a name in which it differs from a prefix: what stands beside, or under it."""
    parts = name.split(".")
    common = zip(parts, prefix.split(".")[:-1], strict=False)
    return parts[
        min(sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], common)), len(parts) - 1)
    ]


def _members_beside(tree: Any, prefix: str, marker: str) -> set[str]:
    """Finds mappings that stand beside a state dict's dotted names: an optimizer's state, another model."""
    for part in prefix.split(".")[:-1]:
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
    names = tree if isinstance(tree, dict) else {}
    if not any(isinstance(name, str) and name.endswith(marker) for name in names):
        return set()
    return {str(name) for name, value in names.items() if isinstance(value, dict)}


def _names_in_member(tree: Any) -> list[str]:
    """Returns the names in the likeliest member, for an error."""
    named = (list(flatten_tensors(subtree)) for _, subtree in subtrees(tree, _MEMBERS))
    return next((names for names in named if names), [])


def layout_by_names(model: ForeignModel) -> KeyLayout:
    """Tells formats with the same marker apart by the names of all parameters."""
    return _by_names(model.layout, model.tensors)


def layout_by_class(model: ForeignModel, native: NativeConfig) -> KeyLayout | None:
    """Tells formats with the same marker apart by the class that a configuration names, else by names.

    Returns:
      None where it names a class that none of them reads.
    """
    declared = declared_classes(native)
    if not declared:
        return layout_by_names(model)
    fitting = _fitting(model.layout, model.tensors)
    takes = (layout.classes is None or all(map(layout.classes.fullmatch, declared)) for layout in fitting)
    return next((layout for layout, taken in zip(fitting, takes, strict=True) if taken), None)


def unknown_class(model: ForeignModel, native: NativeConfig) -> UserError:
    """Says that a configuration names a class that no format with these parameters has."""
    declared = " and ".join(f"{name:.80}" for name in declared_classes(native))
    fitting = ", ".join(layout.name for layout in _fitting(model.layout, model.tensors))
    return UserError(
        f"{native.path}: it names {declared}, which we do not know for a file with such parameters "
        f"({fitting}); give the file's own configuration with config=PATH, or move this one away"
    )


def _by_names(layout: KeyLayout, tensors: Mapping[str, Tensor]) -> KeyLayout:
    return next(other for other in _fitting(layout, tensors) if other.unnamed(tensors.keys()))


def _fitting(layout: KeyLayout, tensors: Mapping[str, Tensor]) -> list[KeyLayout]:
    """Lists the layouts with the same marker that these names fit."""
    return [other for other in LAYOUTS if other.marker == layout.marker and other.fits(tensors.keys())]


def explain_other_model(container: str, names: Sequence[str]) -> str:
    """Explains why a readable file is no codec, with what was seen in it."""
    if not names:
        return f"a {container} file without tensors; give a checkpoint of a VQGAN"
    shown = ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")
    if any(_is_transformer(name) for name in names):
        return (
            f"a transformer prior ({len(names)} tensors: {shown}) without its first stage: it models tokens "
            "and cannot make them; give the VQGAN checkpoint that it was trained with (vqgan import-prior "
            "reads a prior of taming-transformers or LlamaGen itself)"
        )
    return (
        f"a {container} file whose {len(names)} tensors are those of no VQGAN that we know; it has {shown}; "
        f"known: {', '.join(dict.fromkeys(layout.name for layout in LAYOUTS))}"
    )


def _is_transformer(name: str) -> bool:
    parts = name.removeprefix("module.").split(".")
    return parts[0] in ("transformer", "tok_emb", "tok_embeddings", "gpt") or (
        parts[0] == "blocks" and "attn" in parts
    )


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
