"""Converts a foreign checkpoint into a codec's configuration and weights; the last one stays in memory."""

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqgan.config import ModelConfig
from vqgan.config_json import typed_fields
from vqgan.documents import parse_document
from vqgan.errors import UserError
from vqgan.folders import check_expansion
from vqgan.importers.containers import READERS, sniff
from vqgan.importers.convert import convert_weights, infer_config
from vqgan.importers.layout import Fields, KeyLayout, NativeConfig, declared_classes
from vqgan.importers.native_config import config_files, natives, resolved_fields, unused_yamls
from vqgan.importers.pickle_objects import PickleError
from vqgan.importers.registry import (
    ForeignModel,
    find_published,
    layout_by_class,
    layout_by_names,
    recognise_model,
    unknown_class,
)
from vqgan.importers.sharded import is_index, is_shard, shard_files
from vqgan.importers.source import ImportOptions, find_weights, other_half, parse_source
from vqgan.importers.tensors import Tensor
from vqgan.importers.text_files import describe_unknown
from vqgan.model.parameters import check_codec_size, codec_parameter_count

_STEP_NAMES = ("global_step", "steps", "step")


@dataclass(frozen=True, eq=False)
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
        model = _recognise(file, container, tree, options)
        return _import(file, container, model, tree, options)
    except PickleError as error:
        raise UserError(f"{file}: the checkpoint is damaged ({error}); download or copy it again") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


def _recognise(file: Path, container: str, tree: Any, options: ImportOptions) -> ForeignModel:
    try:
        return recognise_model(file, container, tree, options.weights or "raw")
    except UserError as error:
        if not is_shard(file):
            raise
        raise UserError(
            f"{error}; by its name it is one of several shards: get the index that says what lies in which"
        ) from error


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
    exported = _exported_fields(tree, where)
    if exported is None:
        layout, native, known = _configured(model, file, options)
    else:
        layout, native, known = layout_by_names(model), None, exported
    model, known, remap = _remapped(model, layout, native, known, where)
    if options.scales is not None:
        if layout.fields.get("quantizer") != "scales":
            raise UserError(
                f"{where}: scales= is for tokenizers of several scales, and this is {layout.name}"
            )
        known = known | {"scales": {"sides": options.scales}}
    if options.attn_resolutions is not None:  # with the levels that have attention, they tell the resolution
        known = known | {"attn_resolutions": options.attn_resolutions}
    config = _architecture(model, layout, known, options, where)
    check_codec_size(config, where)
    found = find_published(options.name, file, layout.name, codec_parameter_count(config))
    if found is not None:
        known |= found[1].fields
        config = _architecture(model, layout, known, options, where)
    _check_size(config, file)
    tensors = model.tensors
    # Averaged weights are a member of their own with most; latent-diffusion's are twins in the same one.
    averages_first = layout.averages_first is not None and layout.averages_first(tensors.keys(), native)
    chosen = "ema" if model.averaged else options.weights or ("ema" if averages_first else "raw")
    if chosen == "ema" and not model.averaged:
        tensors = _averaged(tensors, layout, where)
    with ThreadPoolExecutor(1) as pool:  # the sum is taken while the weights are converted
        digest = pool.submit(_sha256, file)
        weights = convert_weights(tensors, layout, config, where)
    origin = {
        "format": layout.name if exported is None else f"vqgan export in the keys of {layout.name}",
        "file": file.name,
        "sha256": digest.result(),
        **_other_half(file),
        "container": container,
        **({"shards": [path.name for path in shard_files(file)]} if is_index(file) else {}),
        "weights": chosen,
        **_assumed(layout, native, exported),
        **_part(model),
        **remap,
        **({"published_name": found[0]} if found else {}),
        **_configurations(file, native),
        **_training_step(tree),
    }
    return ImportedCodec(config, weights, origin)


def _configured(
    model: ForeignModel, file: Path, options: ImportOptions
) -> tuple[KeyLayout, NativeConfig | None, Fields]:
    """Finds the configuration that says something of the model; returns layout, configuration and fields."""
    unknown: NativeConfig | None = None
    given = [name for name, value in dataclasses.asdict(options).items() if value is not None]
    for native in natives(file, options.config):
        layout = layout_by_class(model, native)
        if layout is None:
            unknown = unknown or native
            continue
        fields = resolved_fields(layout.native(native), native, given)
        _check_types(fields, native)
        if fields or (layout.classes is not None and declared_classes(native)):
            return layout, native, fields
    if unknown is not None:
        raise unknown_class(model, unknown)
    layout = layout_by_names(model)
    if options.config is not None:
        raise UserError(f"{options.config}: it says nothing of a {layout.name} model; drop config=")
    return layout, None, {}


def _check_types(fields: Fields, native: NativeConfig) -> None:
    """Checks the type of each field, so that an error names the configuration."""
    with _named_in_errors(str(native.path)):
        typed_fields(ModelConfig, fields, where=f"{native.path}: configuration")


@contextlib.contextmanager
def _named_in_errors(where: str) -> Iterator[None]:
    """Puts a file's name in front of errors that lack it."""
    try:
        yield
    except UserError as error:
        raise error if str(error).startswith(where) else UserError(f"{where}: {error}") from error


def _architecture(
    model: ForeignModel, layout: KeyLayout, known: Fields, options: ImportOptions, where: str
) -> ModelConfig:
    """Infers the architecture; what no model can have is an error that names the file."""
    with _named_in_errors(where):
        return _with_options(infer_config(model.tensors, layout, known, where), options)


def _remapped(
    model: ForeignModel, layout: KeyLayout, native: NativeConfig | None, known: Fields, where: str
) -> tuple[ForeignModel, Fields, Fields]:
    """Keeps the used codes where the model has a list of them; returns model, fields and what to say."""
    found = None if layout.remap is None else layout.remap(model.tensors, native, where)
    if found is None:
        return model, known, {}
    tensors, said = found
    if known.get("codebook_size") == said["of"]:
        known = known | {"codebook_size": said["codes"]}
    return dataclasses.replace(model, tensors=tensors), known, {"remap": said}


def _configurations(file: Path, used: NativeConfig | None) -> dict[str, Any]:
    """Says which configuration was used, and which YAML files that lie beside it were not."""
    found: dict[str, Any] = {} if used is None else {"configuration": used.path.name}
    unused = unused_yamls(file, used)
    return found | ({"unused_configurations": unused} if unused else {})


def _check_size(config: ModelConfig, file: Path) -> None:
    """Refuses an architecture that the file cannot hold the weights of, before one is read."""
    files = [*shard_files(file), *filter(None, [other_half(file)])]
    try:
        stored = sum(path.stat().st_size for path in files)
        check_expansion(4 * codec_parameter_count(config), stored)
    except UserError as error:
        raise UserError(f"{file}: {error}; get the checkpoint from its publisher") from error


def _averaged(tensors: Mapping[str, Tensor], layout: KeyLayout, where: str) -> Mapping[str, Tensor]:
    found = None if layout.averaged is None else layout.averaged(tensors, where)
    if found is None:
        raise UserError(f"{where}: it has no averaged weights; take the others with weights=raw")
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


def _assumed(layout: KeyLayout, native: NativeConfig | None, exported: Fields | None) -> dict[str, Any]:
    """Says what was taken for granted, where nothing but names and shapes speaks."""
    if exported is not None or declared_classes(native) or not layout.assumed:
        return {}
    return {"assumed": f"{layout.assumed}; no configuration names the model's class"}


def _part(model: ForeignModel) -> dict[str, Any]:
    """Says which part of a larger checkpoint is used, for the message."""
    found: dict[str, Any] = {"part": model.prefix.rstrip(".")} if model.prefix else {}
    if model.others:
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
    """Describes the file, what lies beside it and its configurations; changes whenever one of them does."""
    file = local_file(source)
    paths = {*file.parent.iterdir(), *config_files(file)}
    beside = sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in paths if p.is_file())
    return (str(file.absolute()), *beside)
