"""Writes a codec as a checkpoint of another code base: those of :mod:`vqgan.importers.export_formats`.

In safetensors the configuration stands in the file's metadata as well, so that importing it again gives the
same codec, fingerprint included, whatever the format itself can say.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqgan.config import ModelConfig
from vqgan.config_json import to_dict
from vqgan.errors import UserError
from vqgan.extras import require_extra
from vqgan.folders import new_folder
from vqgan.importers.export_formats import FORMATS, ExportFormat, lacking
from vqgan.importers.layout import KeyLayout, parse_parameter

USED_CODES = "quantize.codebook_used"
"""What LlamaGen's training counts in, and its strict loading asks for."""
_USED_CODES = 65536


def export_checkpoint(
    folder: str,
    to: str,
    config: ModelConfig,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    card: Mapping[str, Any],
) -> Path:
    """Writes ``config.json`` and the weights into a folder, which is there whole or not at all.

    Args:
      folder: where to; it must not exist yet, or be empty.
      to: one of :data:`vqgan.importers.export_formats.FORMATS`.
      config: architecture.
      weights: parameters by part and our names.
      card: the codec's card, kept in the metadata.

    Returns:
      The folder.

    Raises:
      UserError: the format cannot express the architecture, or there is something in the folder already.
    """
    form, path = FORMATS[to], Path(folder)
    if form.file.endswith(".safetensors"):
        require_extra("import", "export", "safetensors")
    if config.quantizer == "ema":  # the averages act in training only
        config = dataclasses.replace(config, quantizer="nearest")
    if missing := lacking(to, config):
        raise UserError(f"--to {to} cannot express this codec: {', '.join(missing)}")
    with new_folder(path) as new:
        tensors = _tensors(form, config, weights)
        if to == "llamagen":
            tensors[USED_CODES] = np.zeros(_USED_CODES, np.float32)
        _write_weights(new / form.file, tensors, {"config": to_dict(config), "card": dict(card)})
        (new / "config.json").write_text(json.dumps(form.native(config), indent=2) + "\n")
        if form.loading:
            (new / "README.md").write_text(f"A VQGAN for {to}. In this folder:\n\n{form.loading}\n")
    return path


def _write_weights(file: Path, tensors: dict[str, np.ndarray], document: Mapping[str, Any]) -> None:
    if file.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(tensors, file, metadata={"format": "pt", "vqgan": json.dumps(document)})
    else:
        from flax.serialization import msgpack_serialize

        file.write_bytes(msgpack_serialize(_nested(tensors)))


def _nested(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Turns dotted names into dictionaries of dictionaries."""
    tree: dict[str, Any] = {}
    for name, value in tensors.items():
        *parents, leaf = name.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return tree


def _tensors(
    form: ExportFormat, config: ModelConfig, weights: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    layout = form.layout(config)
    named = {name: value for part in weights.values() for name, value in part.items()}
    return {
        _foreign_name(name, layout, config): (
            _for_torch(name, value, linear=form.linear_attention)
            if layout.from_torch
            else np.ascontiguousarray(value, np.float32)
        )
        for name, value in named.items()
    }


def _foreign_name(name: str, layout: KeyLayout, config: ModelConfig) -> str:
    candidates = layout.names(parse_parameter(name), len(config.ch_mult), config.num_res_blocks)
    if config.quantizer == "gumbel" and name == "codebook":
        return candidates[1]
    if config.attention == "linear" and "attention" in name and ".out." in name:
        return candidates[1]
    return candidates[0]


def _for_torch(name: str, value: np.ndarray, *, linear: bool) -> np.ndarray:
    if name.endswith(".kernel"):
        if value.ndim == 2:  # the Gumbel projection is a 1x1 convolution there
            value = value[None, None]
        attention = "attention" in name
        value = value[0, 0].T if linear and attention else value.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(value, np.float32)
