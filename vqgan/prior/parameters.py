"""Names and shapes of a prior's parameters, computed from its configuration alone, without JAX.

A test holds this list against the module itself.
"""

import math
from collections.abc import Iterator
from typing import TypeAlias

from vqgan.prior.config import PriorConfig

Shape: TypeAlias = tuple[int, ...]
Named: TypeAlias = Iterator[tuple[str, Shape]]


def parameter_shapes(config: PriorConfig) -> dict[str, Shape]:
    """Dotted name to shape."""
    return dict(_prior(config))


def parameter_count(config: PriorConfig) -> int:
    """Number of parameters."""
    return sum(map(math.prod, parameter_shapes(config).values()))


def _prior(config: PriorConfig) -> Named:
    width = config.width
    yield "token_embedding", (config.vocabulary, width)
    yield "class_embedding", (config.classes + 1, width)
    if config.condition_codebook_size:
        yield "condition_embedding", (config.condition_codebook_size, width)
    if config.block == "gpt":
        yield "position_embedding", (config.prefix + config.length, width)
    for index in range(config.layers):
        yield from _block(f"blocks.{index}", config)
    yield from _norm("norm", config)
    yield "head.kernel", (width, config.codebook_size)


def _block(name: str, config: PriorConfig) -> Named:
    width, hidden = config.width, config.feed_forward_width
    yield from _norm(f"{name}.attention_norm", config)
    for layer in ("query", "key", "value", "out"):
        yield from _linear(f"{name}.attention.{layer}", width, width, config)
    if config.block == "llama":
        for layer in ("query_norm", "key_norm"):
            yield f"{name}.attention.{layer}.scale", (config.head_width,)
    yield from _norm(f"{name}.feed_forward_norm", config)
    for layer in ("gate", "up") if config.block == "llama" else ("up",):
        yield from _linear(f"{name}.feed_forward.{layer}", width, hidden, config)
    yield from _linear(f"{name}.feed_forward.down", hidden, width, config)


def _linear(name: str, inputs: int, outputs: int, config: PriorConfig) -> Named:
    yield f"{name}.kernel", (inputs, outputs)
    if config.block == "gpt":
        yield f"{name}.bias", (outputs,)


def _norm(name: str, config: PriorConfig) -> Named:
    yield f"{name}.scale", (config.width,)
    if config.block == "gpt":
        yield f"{name}.bias", (config.width,)
