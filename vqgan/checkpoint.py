"""Codec checkpoints: one Orbax item for each part, the configuration and fingerprint beside them.

A codec folder holds::

    codec.json    configuration, fingerprint, sha256 of decoder and codebook, model card
    README.md     the model card for people and the Hub; nothing reads it
    encoder/      weights that turn images into latents        (Orbax)
    quantizer/    the codebook (Orbax); absent for quantizers without weights, such as fsq
    decoder/      weights that turn code vectors into images   (Orbax)

The parts are apart so that a worker that tokenizes reads no decoder, and the other way round.
Reading ``codec.json`` needs neither JAX nor Orbax.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vqgan.card import render_card
from vqgan.config import ModelConfig, from_dict, to_dict
from vqgan.errors import UserError, first_line
from vqgan.parameters import parameter_shapes
from vqgan.presets import PRETRAINED_DIR, pretrained_names

if TYPE_CHECKING:
    from flax import nnx

FORMAT_VERSION = 1
PARTS = ("encoder", "quantizer", "decoder")

Weights = dict[str, np.ndarray]
"""Parameters of one part: dotted name to float32 array."""


@dataclasses.dataclass(frozen=True)
class CodecInfo:
    """What ``codec.json`` says.

    Attributes:
      path: the codec's folder.
      config: architecture.
      fingerprint: sha256 over the configuration and the weights that determine tokens.
      decoder_sha256: sha256 over the weights of the decoder.
      quantizer_sha256: sha256 over the codebook, which decoding reads without the encoder; empty in
        folders written before it was recorded.
      card: what it was trained on and how good it is; free-form JSON.
      files: size in bytes of every file of the parts, by its path in the folder.
      source: for a checkpoint of another code base, the path (and options) to convert it from.
    """

    path: Path
    config: ModelConfig
    fingerprint: str
    decoder_sha256: str
    card: Mapping[str, Any]
    files: Mapping[str, int] = dataclasses.field(default_factory=dict)
    quantizer_sha256: str = ""
    source: str | None = None


def resolve(path_or_name: str | os.PathLike[str]) -> Path | None:
    """The folder of a codec given by path or by the name of one that comes with the package.

    Returns:
      None for what may be a checkpoint of another code base.

    Raises:
      UserError: there is nothing of that name.
    """
    from vqgan.importers.hub import fetch, is_hub
    from vqgan.importers.source import split_source

    path = Path(path_or_name)
    for folder in (path, path / "codec"):  # of a codec, or of the run that has trained it
        if (folder / "codec.json").is_file():
            return folder
    if str(path_or_name) in pretrained_names():
        return PRETRAINED_DIR / str(path_or_name)
    if is_hub(str(path_or_name)) and "?" not in str(path_or_name):
        folder = fetch(str(path_or_name))
        return folder if (folder / "codec.json").is_file() else None
    if is_hub(str(path_or_name)) or Path(split_source(str(path_or_name))[0]).exists():
        return None
    raise UserError(
        f"codec {path_or_name}: nothing there; give a codec folder, a checkpoint of another code base, "
        f"hf://owner/name, or one of: {', '.join(pretrained_names())}"
    )


def read_info(path_or_name: str | os.PathLike[str]) -> CodecInfo:
    """Reads ``codec.json``, which is cheap; a checkpoint of another code base is converted in memory.

    Raises:
      UserError: no codec there, or a damaged or newer ``codec.json``; for a foreign checkpoint see
        :func:`vqgan.importers.import_checkpoint`.
    """
    path = resolve(path_or_name)
    if path is None:
        return _foreign_info(str(path_or_name))
    try:
        data = json.loads((path / "codec.json").read_text())
        if data["version"] != FORMAT_VERSION:
            raise UserError(
                f"codec {path}: codec.json has format version {data['version']}, this release reads "
                f"{FORMAT_VERSION}; upgrade vqgan-pipelines"
            )
        return CodecInfo(
            path=path,
            config=from_dict(ModelConfig, data["config"], where=f"{path}/codec.json"),
            fingerprint=str(data["fingerprint"]),
            decoder_sha256=str(data["decoder_sha256"]),
            card=data.get("card", {}),
            files=dict(data.get("files", {})),
            quantizer_sha256=str(data.get("quantizer_sha256", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"codec {path}: codec.json cannot be read ({error!r}); copy the codec again"
        ) from error


def _foreign_info(source: str) -> CodecInfo:
    """What ``codec.json`` would say of a foreign checkpoint; NumPy does the conversion, without JAX."""
    from vqgan.importers.cache import imported, local_file

    found = imported(source)
    encoder, quantizer, decoder = (found.weights[part] for part in PARTS)
    return CodecInfo(
        path=local_file(source),
        config=found.config,
        fingerprint=fingerprint(found.config, encoder, quantizer),
        decoder_sha256=weights_sha256(decoder),
        card={"origin": dict(found.origin)},
        source=source,
    )


def weights_sha256(*parts: Mapping[str, np.ndarray], prefix: bytes = b"") -> str:
    """sha256 over names, shapes and float32 little-endian values, in the order of the names."""
    digest = hashlib.sha256(prefix)
    for weights in parts:
        for name in sorted(weights):
            value = np.ascontiguousarray(weights[name], dtype="<f4")
            digest.update(f"{name}{list(value.shape)}".encode())
            digest.update(value.tobytes())
    return digest.hexdigest()


def fingerprint(config: ModelConfig, encoder: Weights, quantizer: Weights) -> str:
    """sha256 over the configuration and the weights that determine tokens.

    Dropout acts in training only and is left out; so are the decoder's weights: two codecs with
    the same fingerprint give the same tokens. Fields at their default are left out as well, so that
    a field added in a later release does not change the fingerprint of codecs that do not use it.
    """
    defaults = to_dict(ModelConfig())
    fields = {
        name: value
        for name, value in to_dict(config).items()
        if name != "dropout" and value != defaults[name]
    }
    prefix = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return weights_sha256(encoder, quantizer, prefix=prefix)


def save_codec(
    path: str | os.PathLike[str],
    config: ModelConfig,
    weights: Mapping[str, Weights],
    *,
    card: Mapping[str, Any] | None = None,
    storage: type[np.floating[Any]] = np.float32,
) -> CodecInfo:
    """Writes a codec folder; it is there whole or not at all.

    Args:
      path: folder to create. An existing codec there is replaced once the new one is complete;
        anything else there is refused.
      config: architecture.
      weights: for each of :data:`PARTS`, its parameters.
      card: free-form JSON for the model card.
      storage: type of the stored numbers; ``float16`` halves the size, and the fingerprint is
        that of the rounded values.

    Raises:
      UserError: a file, or a folder that is neither empty nor a codec, is at ``path``.
    """
    import orbax.checkpoint as ocp

    if set(weights) != set(PARTS):
        raise ValueError(f"expected the parts {PARTS}, got {sorted(weights)}")
    path = Path(path).absolute()
    if path.exists() and not (path / "codec.json").is_file() and (path.is_file() or any(path.iterdir())):
        raise UserError(f"codec {path}: there is something else than a codec; name a folder of its own")
    stored = {
        part: {name: np.asarray(value).astype(storage) for name, value in weights[part].items()}
        for part in PARTS
    }
    info = CodecInfo(
        path=path,
        config=config,
        fingerprint=fingerprint(config, stored["encoder"], stored["quantizer"]),
        decoder_sha256=weights_sha256(stored["decoder"]),
        card=dict(card or {}),
        quantizer_sha256=weights_sha256(stored["quantizer"]),
    )
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        staging.mkdir(parents=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            for part in filter(parameter_shapes(config).get, PARTS):  # Orbax takes no empty tree
                checkpointer.save(staging / part, args=ocp.args.PyTreeSave(stored[part]))
        info = dataclasses.replace(info, files=_sizes(staging))
        (staging / "README.md").write_text(render_card(info.card, config, info.fingerprint))
        (staging / "codec.json").write_text(_to_json(info))
        _replace_folder(staging, path)
    except Exception as error:
        # TensorStore reports a full disk as a ValueError.
        if not isinstance(error, OSError) and "No space left" not in str(error):
            raise
        raise UserError(
            f"codec {path}: cannot be written ({first_line(error)[:200]}); free space or check permissions"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return info


def recover_codec(path: str | os.PathLike[str]) -> None:
    """Puts back a codec whose replacement was killed between two renames, and removes what that left."""
    path = Path(path).absolute()
    former = sorted(path.parent.glob(f".{path.name}.*.old"), key=lambda old: old.stat().st_mtime)
    if former and not path.exists():
        former.pop().rename(path)
    for leftover in (*former, *path.parent.glob(f".{path.name}.*.tmp")):
        shutil.rmtree(leftover, ignore_errors=True)


def load_weights(info: CodecInfo, parts: Iterable[str]) -> dict[str, Weights]:
    """Reads the named parts as float32 and checks them against the recorded sums.

    The fingerprint covers encoder and codebook together, so it is checked when both are read; a
    codebook read without the encoder has a sum of its own.

    Raises:
      UserError: a part is missing or damaged.
    """
    loaded = _load_parts(info, parts) if info.source is None else _foreign_parts(info.source, parts)
    if "encoder" in loaded and "quantizer" in loaded:
        _check_sum(info, info.fingerprint, fingerprint(info.config, loaded["encoder"], loaded["quantizer"]))
    elif "quantizer" in loaded and info.quantizer_sha256:
        _check_sum(info, info.quantizer_sha256, weights_sha256(loaded["quantizer"]))
    if "decoder" in loaded:
        _check_sum(info, info.decoder_sha256, weights_sha256(loaded["decoder"]))
    return loaded


def _foreign_parts(source: str, parts: Iterable[str]) -> dict[str, Weights]:
    from vqgan.importers.cache import imported

    return {part: imported(source).weights[part] for part in parts}


def _load_parts(info: CodecInfo, parts: Iterable[str]) -> dict[str, Weights]:
    import orbax.checkpoint as ocp

    loaded: dict[str, Weights] = {}
    shapes = parameter_shapes(info.config)
    for part in parts:
        if not shapes[part]:
            loaded[part] = {}
            continue
        folder = (info.path / part).absolute()
        _check_files(info, part)
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                names = checkpointer.metadata(folder).item_metadata.tree
                args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
                restored = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))
        except Exception as error:  # Orbax and TensorStore raise many types for a damaged folder.
            raise UserError(
                f"codec {info.path}: the weights in {part}/ cannot be read "
                f"({type(error).__name__}); copy the codec again"
            ) from error
        loaded[part] = {name: np.asarray(value, np.float32) for name, value in restored.items()}
    return loaded


def model_weights(model: Any) -> dict[str, Weights]:
    """Weights of each part of a :class:`vqgan.model.VQGAN`, as :func:`save_codec` takes them."""
    return {part: module_weights(getattr(model, part)) for part in PARTS}


def module_weights(module: "nnx.Module") -> Weights:
    """Parameters of a module as float32 arrays under dotted names."""
    from flax import nnx

    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): np.asarray(param[...], np.float32) for path, param in flat}


def module_state(abstract: "nnx.Module", weights: Weights, where: str) -> "nnx.State":
    """State of a module's shape filled with named weights; names and shapes must agree exactly.

    Args:
      abstract: a module built under ``nnx.eval_shape``.
      weights: parameters by dotted name.
      where: what is being loaded, for the error.

    Raises:
      UserError: a missing name, an unknown name or a wrong shape, each listed.
    """
    from flax import nnx

    flat = nnx.to_flat_state(nnx.state(abstract, nnx.Param))
    expected = {".".join(map(str, path)): param for path, param in flat}
    problems = [f"missing {name}" for name in sorted(expected.keys() - weights.keys())]
    problems += [f"unknown {name}" for name in sorted(weights.keys() - expected.keys())]
    problems += [
        f"{name} is {weights[name].shape}, expected {tuple(param.shape)}"
        for name, param in sorted(expected.items())
        if name in weights and tuple(param.shape) != weights[name].shape
    ]
    if problems:
        raise UserError(f"{where}: weights do not fit the configuration: {'; '.join(problems)}")
    filled = [(path, param.replace(weights[".".join(map(str, path))])) for path, param in flat]
    return nnx.from_flat_state(filled)


def _to_json(info: CodecInfo) -> str:
    document = {
        "version": FORMAT_VERSION,
        "config": to_dict(info.config),
        "fingerprint": info.fingerprint,
        "quantizer_sha256": info.quantizer_sha256,
        "decoder_sha256": info.decoder_sha256,
        "card": info.card,
        "files": info.files,
    }
    return json.dumps(document, indent=2) + "\n"


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def _check_files(info: CodecInfo, part: str) -> None:
    """Finds a missing or truncated file before Orbax does, whose background tasks print tracebacks."""
    for name, size in info.files.items():
        file = info.path / name
        if name.startswith(f"{part}/") and not (file.is_file() and file.stat().st_size == size):
            found = f"{file.stat().st_size} bytes" if file.is_file() else "missing"
            raise UserError(
                f"codec {info.path}: {name} is {found}, expected {size} bytes; copy the codec again"
            )


def _check_sum(info: CodecInfo, recorded: str, found: str) -> None:
    if recorded != found:
        raise UserError(
            f"codec {info.path}: weights and codec.json do not belong together "
            f"(recorded {recorded[:12]}, found {found[:12]}); copy the codec again"
        )


def _replace_folder(new: Path, path: Path) -> None:
    """Renames ``new`` to ``path``; a folder that was there goes only once the new one is in place."""
    if not path.exists():
        new.rename(path)
        return
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex}.old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)
