"""A codec as two ONNX models: images to tokens, tokens to images.

Encoder and decoder come from :mod:`vqgan.model.network_graph`, the quantizer from here. All sizes but the
channels' are open: any batch, any height and width that the codec itself takes. Nothing of a model is run
here, and no torch is needed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from vqgan.config import ModelConfig
from vqgan.engines.choice import unknown_variant
from vqgan.exporters.onnx_graph import GraphValue, ONNXOperations, onnx_refusal
from vqgan.model.layers import GROUP_NORM_EPSILON
from vqgan.model.network_graph import NetworkGraph, Weights
from vqgan.quantizers.lookup_free import digit_places, fsq_bounds

if TYPE_CHECKING:
    from onnx import ModelProto

TOKENS = GraphValue("tokens", np.int32, ("batch", "rows", "columns"))
MOST_BYTES = (1 << 31) - (1 << 20)
"""Of one model: ONNX's files are protocol buffers, which end at 2 GiB."""

_LEAST_SQUARE = 1e-24  # of a length that is divided by, as in vqgan.quantizers.nearest


def encoder_model(
    config: ModelConfig, weights: Mapping[str, Weights], metadata: Mapping[str, str]
) -> "ModelProto":
    """Builds the model from float32 images ``[B, C, H, W]`` in the input range to int32 tokens ``[B, h, w]``.

    Args:
      config: architecture.
      weights: of ``encoder`` and ``quantizer``, by dotted name.
      metadata: texts that the model keeps.

    Raises:
      UserError: a variant that has no graph here, or more weights than a file takes.
    """
    check_onnx(config, weights["encoder"], weights["quantizer"])
    ops, images = ONNXOperations(), _images(config)
    network = NetworkGraph(config, weights["encoder"], ops, GROUP_NORM_EPSILON)
    latents = ops.transpose(network.encode(images.name), (0, 2, 3, 1))
    network.check_used()
    tokens = ops.cast(_TOKENS[config.quantizer](ops, config, weights["quantizer"], latents), np.int32)
    return ops.model(images, TOKENS, tokens, "encoder", metadata)


def decoder_model(
    config: ModelConfig, weights: Mapping[str, Weights], metadata: Mapping[str, str]
) -> "ModelProto":
    """Builds the model from int32 tokens ``[B, h, w]`` to float32 images ``[B, C, H, W]`` in the input range.

    Args:
      config: architecture.
      weights: of ``quantizer`` and ``decoder``, by dotted name.
      metadata: texts that the model keeps.

    Raises:
      UserError: a variant that has no graph here, or more weights than a file takes.
    """
    check_onnx(config, weights["quantizer"], weights["decoder"])
    ops = ONNXOperations()
    network = NetworkGraph(
        dataclasses.replace(config, clip_output=True), weights["decoder"], ops, GROUP_NORM_EPSILON
    )
    codes = _lookup(ops, config, weights["quantizer"], TOKENS.name)  # (B, h, w, D)
    images = network.decode(ops.transpose(codes, (0, 3, 1, 2)))
    network.check_used()
    return ops.model(TOKENS, _images(config), images, "decoder", metadata)


def _images(config: ModelConfig) -> GraphValue:
    return GraphValue("images", np.float32, ("batch", config.channels.count, "height", "width"))


def check_onnx(config: ModelConfig, *parts: Weights) -> None:
    """Checks that there are graphs for all of a configuration, and that a file can hold these weights.

    Raises:
      UserError: not so.
    """
    unknown = unknown_variant(config)
    if unknown is not None:
        raise onnx_refusal(unknown)
    if config.quantizer not in _TOKENS:
        raise onnx_refusal(f"quantizer {config.quantizer}")
    size = sum(4 * values.size for part in parts for values in part.values())
    if size > MOST_BYTES:
        raise onnx_refusal(f"{size / 2**30:.1f} GiB of weights, where a file ends at 2 GiB")


# From latents ``[B, h, w, D]`` to tokens ``[B, h, w]`` of any whole type: the rules of vqgan.quantizers.

_Rule = Callable[[ONNXOperations, ModelConfig, Weights, str], str]


def _nearest(ops: ONNXOperations, config: ModelConfig, weights: Weights, latents: str) -> str:
    """Takes the least of ``|e|^2 - 2 z.e``: the distance but for what all codes share."""
    codebook = weights["codebook"].astype(np.float32)
    if config.quantizer == "cosine":
        codebook, latents = _unit_rows(codebook), _unit_length(ops, latents)
    products = ops.multiply(ops.matmul(latents, _turned(codebook)), np.array(2, np.float32))
    distances = ops.subtract(np.sum(codebook**2, axis=1), products)
    return ops.node("ArgMin", distances, axis=-1, keepdims=0)


def _inner_product(ops: ONNXOperations, config: ModelConfig, weights: Weights, latents: str) -> str:
    return ops.node("ArgMax", ops.matmul(latents, _turned(weights["codebook"])), axis=-1, keepdims=0)


def _largest_logit(ops: ONNXOperations, config: ModelConfig, weights: Weights, latents: str) -> str:
    kernel, bias = (weights[f"projection.{leaf}"].astype(np.float32) for leaf in ("kernel", "bias"))
    return ops.node("ArgMax", ops.add(ops.matmul(latents, kernel), bias), axis=-1, keepdims=0)


def _rounded(ops: ONNXOperations, config: ModelConfig, weights: Weights, latents: str) -> str:
    bounds = fsq_bounds(config.fsq_levels, config.fsq_bound)
    shift, scale, offset = (values.astype(np.float32) for values in bounds)
    bounded = ops.subtract(ops.multiply(ops.node("Tanh", ops.add(latents, shift)), scale), offset)
    digits = ops.add(ops.node("Round", bounded), _halves(config).astype(np.float32))
    top = np.array(config.fsq_levels, np.float32) - 1
    bounded = ops.node("Min", ops.node("Max", digits, np.zeros_like(top)), top)
    return _joined(ops, config, bounded)


def _signs(ops: ONNXOperations, config: ModelConfig, weights: Weights, latents: str) -> str:
    return _joined(ops, config, ops.node("Greater", latents, np.array(0, np.float32)))


def _joined(ops: ONNXOperations, config: ModelConfig, digits: str) -> str:
    """Turns digits ``[B, h, w, D]`` into the number that they make."""
    places = np.array(digit_places(_levels(config)), np.int64)
    worth = ops.multiply(ops.cast(digits, np.int64), places)
    return ops.node("ReduceSum", worth, np.array([-1]), keepdims=0)


_TOKENS: Mapping[str, _Rule] = {
    "nearest": _nearest,
    "ema": _nearest,
    "nearest_unit": _nearest,
    "cosine": _nearest,
    "inner_product": _inner_product,
    "gumbel": _largest_logit,
    "fsq": _rounded,
    "lfq": _signs,
}


def _lookup(ops: ONNXOperations, config: ModelConfig, weights: Weights, tokens: str) -> str:
    """Turns tokens ``[B, h, w]`` into code vectors ``[B, h, w, D]``."""
    if config.quantizer not in ("fsq", "lfq"):
        codebook = weights["codebook"].astype(np.float32)
        is_unit = config.quantizer in ("cosine", "nearest_unit")
        return ops.node("Gather", _unit_rows(codebook) if is_unit else codebook, tokens, axis=0)
    levels = np.array(_levels(config), np.int64)
    wide = ops.node("Unsqueeze", ops.cast(tokens, np.int64), np.array([-1]))
    places = np.array(digit_places(_levels(config)), np.int64)
    digits = ops.cast(ops.node("Mod", ops.node("Div", wide, places), levels), np.float32)
    if config.quantizer == "lfq":
        return ops.subtract(ops.multiply(digits, np.array(2, np.float32)), np.array(1, np.float32))
    halves = _halves(config).astype(np.float32)
    return ops.divide(ops.subtract(digits, halves), halves)


def _levels(config: ModelConfig) -> tuple[int, ...]:
    return config.fsq_levels or (2,) * config.embed_dim


def _halves(config: ModelConfig) -> np.ndarray:
    return np.array(config.fsq_levels) // 2


def _turned(codebook: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(codebook.T, np.float32)


def _unit_length(ops: ONNXOperations, latents: str) -> str:
    squares = ops.node("ReduceSum", ops.multiply(latents, latents), np.array([-1]), keepdims=1)
    return ops.divide(latents, ops.sqrt(ops.node("Max", squares, np.array(_LEAST_SQUARE, np.float32))))


def _unit_rows(codebook: np.ndarray) -> np.ndarray:
    squares = np.sum(codebook**2, axis=1, keepdims=True)
    rows: np.ndarray = codebook / np.sqrt(np.maximum(squares, np.float32(_LEAST_SQUARE)))
    return rows
