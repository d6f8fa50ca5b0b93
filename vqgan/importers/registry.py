"""Recognises a foreign checkpoint by its contents and converts it."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgan.config import ModelConfig
from vqgan.documents import parse_document
from vqgan.errors import UserError
from vqgan.importers import diffusers, latent_diffusion, llamagen, lwm, maskgit, published, taming, vqgan_jax
from vqgan.importers.base import Fields, Imported, Layout, Options
from vqgan.importers.configs import find_native
from vqgan.importers.containers import READERS, describe_unknown, sniff, subtrees
from vqgan.importers.convert import convert, infer_config
from vqgan.importers.locating import find_weights
from vqgan.importers.other_models import explain_other_model, is_prior_part
from vqgan.importers.pickle_objects import PickleError
from vqgan.importers.source import parse_source
from vqgan.importers.tensors import Tensor
from vqgan.importers.torch_pickle import flatten
from vqgan.parameters import parameter_count

# A new format is one file and one line here. taming's layout stands for latent-diffusion's as well.
LAYOUTS: tuple[Layout, ...] = (
    taming.LAYOUT,
    llamagen.LAYOUT,
    diffusers.LAYOUT,
    vqgan_jax.LAYOUT,
    lwm.LAYOUT,
    maskgit.LAYOUT,
)
# Members of a checkpoint that hold a model's weights, the likeliest first.
_MEMBERS = ("state_dict", "model", "params", "module", "generator", "vqgan")
_STEP_NAMES = ("global_step", "steps", "step")
# Where a checkpoint holds several models with the same keys, the image tokenizer is this one.
_FIRST_STAGE = "first_stage_model."


@dataclass(frozen=True)
class _Model:
    """The recognised part of a file."""

    layout: Layout
    tensors: Mapping[str, Tensor]
    member: str
    prefix: str
    others: tuple[str, ...]


def looks_foreign(path: Path) -> bool:
    """Whether a file, or a file in a folder, is a container that may hold a foreign checkpoint."""
    try:
        return sniff(find_weights(path)) is not None
    except (UserError, OSError):
        return False


def import_checkpoint(source: str) -> Imported:
    """Reads and converts a foreign checkpoint.

    Args:
      source: a file or folder, with options behind it as in
        ``model.ckpt?input_range=0,1&weights=ema`` (see :mod:`vqgan.importers.source`).

    Raises:
      UserError: it is not recognised, damaged, hostile, or does not fit its configuration.
    """
    path, options = parse_source(source)
    file = find_weights(path)
    try:
        container = sniff(file)
        if container is None:
            raise UserError(f"{file}: not a checkpoint that we know: {describe_unknown(file)}")
        tree = READERS[container](file)
        model = _recognise(file, container, tree, options)
        return _import(file, container, model, tree, options)
    except PickleError as error:
        raise UserError(f"{file}: the checkpoint is damaged ({error}); download or copy it again") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


def _import(file: Path, container: str, model: _Model, tree: Any, options: Options) -> Imported:
    where = str(file)
    native = find_native(file, options.config)
    layout = model.layout
    is_taming = layout is taming.LAYOUT
    if is_taming and latent_diffusion.is_latent_diffusion(model.tensors, native):
        layout = latent_diffusion.LAYOUT
    exported = _exported_fields(tree, where)
    known = exported if exported is not None else layout.native(native) if native is not None else {}
    if options.attn_resolutions is not None:  # with the levels that have attention, they tell the resolution
        known = known | {"attn_resolutions": options.attn_resolutions}
    config = _with_options(infer_config(model.tensors, layout, known, where), options)
    found = published.find(options.name, file, layout.name, parameter_count(config))
    if found is not None:
        known |= found[1].fields
        config = _with_options(infer_config(model.tensors, layout, known, where), options)
    # LlamaGen's averaged weights are a member of their own; latent-diffusion's are twins in the same one.
    ema = options.weights == "ema" and model.member != "ema"
    if ema and not any(name.startswith(layout.ema_prefix or "\0") for name in model.tensors):
        raise UserError(f"{where}: it has no averaged weights; drop weights=ema")
    weights = convert(model.tensors, layout, config, where, ema=ema)
    origin = {
        "format": layout.name if exported is None else f"vqgan export in the keys of {layout.name}",
        "file": file.name,
        "sha256": _sha256(file),
        "container": container,
        "weights": options.weights,
        **_part(model),
        **({"published_name": found[0]} if found else {}),
        **({"configuration": native.path.name} if native is not None and known else {}),
        **_training_step(tree),
    }
    return Imported(config, weights, origin)


def _recognise(file: Path, container: str, tree: Any, options: Options) -> _Model:
    """The layout whose marker some part of the file bears."""
    members = ("ema", *_MEMBERS) if options.weights == "ema" else (*_MEMBERS, "ema")
    seen: list[str] = []
    for member, subtree in subtrees(tree, members):
        tensors = flatten(subtree)
        for layout in LAYOUTS:
            prefixes = sorted(_prefixes(tensors, layout.marker))
            if prefixes:
                return _take(file, layout, tensors, prefixes, member)
        seen = seen or list(tensors)
    raise UserError(f"{file}: {explain_other_model(container, seen)}")


def _prefixes(tensors: Mapping[str, Tensor], marker: str) -> set[str]:
    """What stands before the marker, where the model is a part of another one or wrapped."""
    found = {name.removesuffix(marker) for name in tensors if name.endswith(marker)}
    return {prefix for prefix in found if not prefix or prefix.endswith(".")}


def _take(
    file: Path, layout: Layout, tensors: Mapping[str, Tensor], prefixes: list[str], member: str
) -> _Model:
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
    return _Model(layout, inside, member, prefix, tuple(others))


def _exported_fields(tree: Any, where: str) -> Fields | None:
    """The configuration that our own export leaves in a file's metadata."""
    metadata = tree.get("__metadata__") if isinstance(tree, dict) else None
    if not isinstance(metadata, dict) or "vqgan" not in metadata:
        return None
    text = metadata["vqgan"]
    refusal = UserError(f"{where}: the metadata of our own export is damaged; export it again")
    if not isinstance(text, str):
        raise refusal
    return parse_document(text.encode("utf-8", "surrogatepass"), lambda reason: refusal).mapping("config")


def _with_options(config: ModelConfig, options: Options) -> ModelConfig:
    """The user's word comes last."""
    given: Fields = {}
    if options.input_range is not None:
        given["input_range"] = options.input_range
    sides = config.attn_resolutions
    if options.resolution is not None:
        # The levels with attention stay what they are; their sides scale with the resolution.
        sides = tuple(side * options.resolution // config.resolution for side in sides)
        given |= {"resolution": options.resolution, "attn_resolutions": sides}
    if options.attn_resolutions is not None:
        given["attn_resolutions"] = options.attn_resolutions
    return dataclasses.replace(config, **given)


def _part(model: _Model) -> dict[str, Any]:
    """Which part of a larger checkpoint is used, for the message."""
    part = ".".join(name for name in (model.member, model.prefix.rstrip(".")) if name)
    found: dict[str, Any] = {"part": part} if part else {}
    if model.prefix and model.others:
        found["unused_parts"] = list(model.others)
    return found


def _training_step(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {}
    for name in _STEP_NAMES:
        if type(tree.get(name)) is int:
            return {"training_step": tree[name]}
    return {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
