"""Converts a foreign checkpoint into a codec's configuration and weights; the last one stays in memory."""

import dataclasses
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqgan.config import ModelConfig
from vqgan.documents import parse_document
from vqgan.errors import UserError
from vqgan.folders import check_expansion
from vqgan.importers.containers import READERS, describe_unknown, sniff
from vqgan.importers.convert import convert_weights, infer_config
from vqgan.importers.layout import Fields, KeyLayout
from vqgan.importers.pickle_objects import PickleError
from vqgan.importers.registry import ForeignModel, find_published, recognise_model, refine_layout
from vqgan.importers.source import ImportOptions, find_native, find_weights, other_half, parse_source
from vqgan.importers.tensors import Tensor
from vqgan.model.parameters import check_codec_size, codec_parameter_count

_STEP_NAMES = ("global_step", "steps", "step")


@dataclass(frozen=True)
class ImportedCodec:
    """A converted checkpoint.

    Attributes:
      config: architecture.
      weights: for encoder, quantizer and decoder, parameters by our names, float32.
      origin: JSON data: format, file, sha256, and what else is known of where it came from.
    """

    config: ModelConfig
    weights: Mapping[str, dict[str, np.ndarray]]
    origin: Mapping[str, Any]


def import_checkpoint(source: str) -> ImportedCodec:
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
        tree = _read_whole(file, container)
        model = recognise_model(file, container, tree, options.weights)
        return _import(file, container, model, tree, options)
    except PickleError as error:
        raise UserError(f"{file}: the checkpoint is damaged ({error}); download or copy it again") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


def _read_whole(file: Path, container: str) -> Any:
    """Reads a file, with the other half of the model where that has a file of its own."""
    tree = READERS[container](file)
    other = other_half(file)
    if other is None or not isinstance(tree, dict):
        return tree
    kind = sniff(other)
    if kind is None:
        raise UserError(f"{other}: not a checkpoint that we know: {describe_unknown(other)}")
    added = READERS[kind](other)
    return {**tree, **added} if isinstance(added, dict) else tree


def _import(
    file: Path, container: str, model: ForeignModel, tree: Any, options: ImportOptions
) -> ImportedCodec:
    where = str(file)
    native = find_native(file, options.config)
    layout = refine_layout(model, native)
    exported = _exported_fields(tree, where)
    known = exported if exported is not None else layout.native(native) if native is not None else {}
    if options.scales is not None:
        known = known | {"scales": {"sides": options.scales}}
    if options.attn_resolutions is not None:  # with the levels that have attention, they tell the resolution
        known = known | {"attn_resolutions": options.attn_resolutions}
    config = _with_options(infer_config(model.tensors, layout, known, where), options)
    check_codec_size(config, where)
    found = find_published(options.name, file, layout.name, codec_parameter_count(config))
    if found is not None:
        known |= found[1].fields
        config = _with_options(infer_config(model.tensors, layout, known, where), options)
    _check_size(config, file)
    tensors = model.tensors
    # LlamaGen's averaged weights are a member of their own; latent-diffusion's are twins in the same one.
    if options.weights == "ema" and model.member != "ema":
        tensors = _averaged(tensors, layout, where)
    weights = convert_weights(tensors, layout, config, where)
    origin = {
        "format": layout.name if exported is None else f"vqgan export in the keys of {layout.name}",
        "file": file.name,
        "sha256": _sha256(file),
        **_other_half(file),
        "container": container,
        "weights": options.weights,
        **_part(model),
        **({"published_name": found[0]} if found else {}),
        **({"configuration": native.path.name} if native is not None and known else {}),
        **_training_step(tree),
    }
    return ImportedCodec(config, weights, origin)


def _check_size(config: ModelConfig, file: Path) -> None:
    """Refuses an architecture that the file cannot hold the weights of, before one is read."""
    other = other_half(file)
    size = file.stat().st_size + (0 if other is None else other.stat().st_size)
    try:
        check_expansion(4 * codec_parameter_count(config), size)
    except UserError as error:
        raise UserError(f"{file}: {error}; get the checkpoint from its publisher") from error


def _averaged(tensors: Mapping[str, Tensor], layout: KeyLayout, where: str) -> Mapping[str, Tensor]:
    found = None if layout.averaged is None else layout.averaged(tensors, where)
    if found is None:
        raise UserError(f"{where}: it has no averaged weights; drop weights=ema")
    return found


def _exported_fields(tree: Any, where: str) -> Fields | None:
    """Reads the configuration that our own export leaves in a file's metadata."""
    metadata = tree.get("__metadata__") if isinstance(tree, dict) else None
    if not isinstance(metadata, dict) or "vqgan" not in metadata:
        return None
    text = metadata["vqgan"]
    refusal = UserError(f"{where}: the metadata of our own export is damaged; export it again")
    if not isinstance(text, str):
        raise refusal
    return parse_document(text.encode("utf-8", "surrogatepass"), lambda reason: refusal).mapping("config")


def _with_options(config: ModelConfig, options: ImportOptions) -> ModelConfig:
    """Applies the user's options, which come last."""
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


def _part(model: ForeignModel) -> dict[str, Any]:
    """Says which part of a larger checkpoint is used, for the message."""
    part = ".".join(name for name in (model.member, model.prefix.rstrip(".")) if name)
    found: dict[str, Any] = {"part": part} if part else {}
    if model.prefix and model.others:
        found["unused_parts"] = list(model.others)
    return found


def _other_half(file: Path) -> dict[str, Any]:
    other = other_half(file)
    return {} if other is None else {"other_file": other.name, "other_sha256": _sha256(other)}


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


# A codec asks for its parts one after the other, so the last import is kept.

_lock = threading.Lock()
_last: tuple[object, ImportedCodec] | None = None


def import_cached(source: str) -> ImportedCodec:
    """Imports as :func:`import_checkpoint` does, converting once while the file stays the same.

    Only the last one is kept: two would be two models in memory.
    """
    global _last
    with _lock:
        key = (source, _signature(source))
        if _last is None or _last[0] != key:
            _last = None  # give the old one's memory back first
            _last = (key, import_checkpoint(source))
        return _last[1]


def local_file(source: str) -> Path:
    """Finds the weights file that a source means."""
    path, _ = parse_source(source)
    return find_weights(path)


def _signature(source: str) -> tuple[object, ...]:
    """Describes the file and what lies beside it; changes whenever one of them does."""
    file = local_file(source)
    beside = sorted(
        (p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in file.parent.iterdir() if p.is_file()
    )
    return (str(file.absolute()), *beside)
