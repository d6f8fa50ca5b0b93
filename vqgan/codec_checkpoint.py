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
import os
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import vqgan.folders as folders
from vqgan.config import ModelConfig
from vqgan.config_json import from_dict, to_dict
from vqgan.errors import UserError
from vqgan.folders import weights_sha256
from vqgan.model.parameters import check_codec_size, codec_parameter_shapes
from vqgan.model_card import render_codec_card
from vqgan.presets import PRETRAINED_DIR, pretrained_names

if TYPE_CHECKING:
    from flax import nnx

    from vqgan.importers.import_codec import ImportedCodec

FOLDER = folders.FolderKind("codec", "codec.json", 1)
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

    def require_decoder(self, otherwise: str = "give a codec of the same tokens that has one") -> None:
        """Checks, before anything is written, that images can be made.

        Args:
          otherwise: what to do where they cannot.

        Raises:
          UserError: the codec has no decoder.
        """
        if not self.config.has_decoder:
            raise UserError(f"codec {self.path}: it makes tokens but has no decoder for images; {otherwise}")


def resolve_codec(path_or_name: str | os.PathLike[str]) -> Path | None:
    """Finds the folder of a codec given by path or by the name of one that comes with the package.

    Returns:
      None for what may be a checkpoint of another code base.

    Raises:
      UserError: there is nothing of that name.
    """
    from vqgan.downloads import is_hub
    from vqgan.importers.source import fetch_checkpoint, split_source

    path = Path(path_or_name)
    for folder in (path, path / "codec"):  # of a codec, or of the run that has trained it
        if (folder / "codec.json").is_file():
            return folder
    if str(path_or_name) in pretrained_names():
        return PRETRAINED_DIR / str(path_or_name)
    if is_hub(str(path_or_name)) and "?" not in str(path_or_name):
        folder = fetch_checkpoint(str(path_or_name))
        return folder if (folder / "codec.json").is_file() else None
    if (path / "checkpoints").is_dir() and (path / "config.json").is_file():
        raise UserError(
            f"codec {path}: this run has exported no codec yet; it does so at its first evaluation "
            "(train.evaluate_every)"
        )
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
    path = resolve_codec(path_or_name)
    if path is None:
        return _foreign_info(str(path_or_name))
    fields = folders.read_document(FOLDER, path)
    where = f"{path}/{FOLDER.document}"
    config = from_dict(ModelConfig, fields.value("config"), where)
    check_codec_size(config, where)
    return CodecInfo(
        path=path,
        fingerprint=fields.text("fingerprint"),
        decoder_sha256=fields.text("decoder_sha256"),
        card=fields.mapping("card", {}),
        files=fields.sizes("files", {}),
        quantizer_sha256=fields.text("quantizer_sha256", ""),
        config=config,
    )


def _foreign_info(source: str) -> CodecInfo:
    """Tells what ``codec.json`` would say of a foreign checkpoint; NumPy converts it, without JAX."""
    from vqgan.importers.import_codec import import_cached, local_file

    found = import_cached(source)
    fingerprint, decoder_sha256 = _foreign_sums(found)
    return CodecInfo(
        path=local_file(source),
        config=found.config,
        fingerprint=fingerprint,
        decoder_sha256=decoder_sha256,
        card={"origin": dict(found.origin)},
        source=source,
    )


def codec_fingerprint(config: ModelConfig, encoder: Weights, quantizer: Weights) -> str:
    """Returns the sha256 over the configuration and the weights that determine tokens.

    Dropout acts in training only and is left out; so are the decoder's weights: two codecs with
    the same fingerprint give the same tokens.
    """
    return folders.config_fingerprint(to_dict(config), to_dict(ModelConfig()), encoder, quantizer)


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
    if set(weights) != set(PARTS):
        raise ValueError(f"expected the parts {PARTS}, got {sorted(weights)}")
    path = Path(path).absolute()
    folders.check_place(FOLDER, path)
    stored = {
        part: {name: np.asarray(value).astype(storage, copy=False) for name, value in weights[part].items()}
        for part in PARTS
    }
    info = CodecInfo(
        path=path,
        config=config,
        fingerprint=codec_fingerprint(config, stored["encoder"], stored["quantizer"]),
        decoder_sha256=weights_sha256(stored["decoder"]),
        card=dict(card or {}),
        quantizer_sha256=weights_sha256(stored["quantizer"]),
    )
    shapes = codec_parameter_shapes(config)
    parts = {part: stored[part] for part in PARTS if shapes[part]}  # Orbax takes no empty tree
    readme = render_codec_card(info.card, config, info.fingerprint)
    return dataclasses.replace(info, files=folders.write_folder(FOLDER, path, parts, _document(info), readme))


def recover_codec(path: str | os.PathLike[str]) -> None:
    """Puts back a codec whose replacement was killed between two renames, and removes what that left."""
    folders.recover_folder(Path(path).absolute())


def load_weights(info: CodecInfo, parts: Iterable[str]) -> dict[str, Weights]:
    """Reads the named parts as float32 and checks them against the recorded sums.

    The fingerprint covers encoder and codebook together, so it is checked when both are read; a
    codebook read without the encoder has a sum of its own.

    Raises:
      UserError: a part is missing or damaged.
    """
    if info.source is not None:
        return _foreign_parts(info, info.source, parts)
    loaded = _load_parts(info, parts)
    if "encoder" in loaded and "quantizer" in loaded:
        folders.check_sum(
            FOLDER,
            info.path,
            info.fingerprint,
            codec_fingerprint(info.config, loaded["encoder"], loaded["quantizer"]),
        )
    elif "quantizer" in loaded and info.quantizer_sha256:
        folders.check_sum(FOLDER, info.path, info.quantizer_sha256, weights_sha256(loaded["quantizer"]))
    if "decoder" in loaded:
        folders.check_sum(FOLDER, info.path, info.decoder_sha256, weights_sha256(loaded["decoder"]))
    return loaded


def _foreign_parts(info: CodecInfo, source: str, parts: Iterable[str]) -> dict[str, Weights]:
    from vqgan.importers.import_codec import import_cached

    found = import_cached(source)
    for recorded, now in zip((info.fingerprint, info.decoder_sha256), _foreign_sums(found), strict=True):
        folders.check_sum(FOLDER, info.path, recorded, now)
    return {part: found.weights[part] for part in parts}


def _foreign_sums(found: "ImportedCodec") -> tuple[str, str]:
    """Returns fingerprint and decoder's sum of a converted checkpoint, which stays the same in memory."""
    if found not in _sums:
        encoder, quantizer, decoder = (found.weights[part] for part in PARTS)
        _sums[found] = codec_fingerprint(found.config, encoder, quantizer), weights_sha256(decoder)
    return _sums[found]


_sums: "weakref.WeakKeyDictionary[ImportedCodec, tuple[str, str]]" = weakref.WeakKeyDictionary()


def _load_parts(info: CodecInfo, parts: Iterable[str]) -> dict[str, Weights]:
    shapes = codec_parameter_shapes(info.config)
    return {
        part: folders.read_arrays(FOLDER, info.path, part, info.files, shapes[part]) if shapes[part] else {}
        for part in parts
    }


def model_weights(model: Any) -> dict[str, Weights]:
    """Returns the weights of a :class:`vqgan.model.vqgan.VQGAN` by part, as :func:`save_codec` takes them."""
    return {part: module_weights(getattr(model, part)) for part in PARTS}


def module_weights(module: "nnx.Module") -> Weights:
    """Returns the parameters of a module as float32 arrays under dotted names."""
    from flax import nnx

    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): np.asarray(param[...], np.float32) for path, param in flat}


def module_state(abstract: "nnx.Module", weights: Mapping[str, Any], where: str) -> "nnx.State":
    """Fills the state of a module with named weights; names and shapes must agree exactly.

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


def _document(info: CodecInfo) -> dict[str, Any]:
    return {
        "config": to_dict(info.config),
        "fingerprint": info.fingerprint,
        "quantizer_sha256": info.quantizer_sha256,
        "decoder_sha256": info.decoder_sha256,
        "card": info.card,
    }
