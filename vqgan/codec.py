"""The inference face of a VQGAN: uint8 images to token grids and back.

Any number of images goes through one fixed batch, padded at the end, so that XLA compiles once per
image size. The batch is split over all local devices. An encoder never loads decoder weights, nor
the other way round. Another engine can run the networks in JAX's place (:mod:`vqgan.engines.choice`).
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from vqgan.codec_checkpoint import CodecInfo, load_weights, module_state, read_info
from vqgan.config import ModelConfig
from vqgan.engines.choice import JAX_ENGINE, Engine, EngineChoice, PendingArray, resolve_engine
from vqgan.errors import UserError
from vqgan.model.vqgan import TokenDecoder, TokenEncoder, denormalize, normalize
from vqgan.quantizers import Quantizer, make_quantizer
from vqgan.token_layouts import GRID, token_shape

BATCH_AXIS = "batch"


class Codec:
    """Encodes uint8 images to tokens and decodes tokens to uint8 images.

    Use :meth:`Codec.load`. Weights are read at the first call that needs them.

    >>> import numpy as np
    >>> from vqgan import Codec
    >>> codec = Codec.load("tiny")
    >>> tokens = codec.encode(np.zeros((1, 64, 64, 3), np.uint8))
    >>> tokens.shape, tokens.dtype
    ((1, 8, 8), dtype('int32'))
    >>> codec.decode(tokens).shape
    (1, 64, 64, 3)

    Attributes:
      info: what the codec's folder says of it.
      batch_size: images per device call, a multiple of the number of devices.
      compilations: how often a function was traced, or a graph built, and compiled for a new shape.
      engine: what runs the networks.
    """

    def __init__(
        self,
        info: CodecInfo,
        *,
        batch_size: int = 32,
        dtype: DTypeLike = jnp.float32,
        devices: list[jax.Device] | None = None,
        engine: EngineChoice = JAX_ENGINE,
    ):
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: it must be at least 1")
        devices = devices or jax.local_devices()
        self.info = info
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        self.engine = engine
        self.compilations = 0
        self._dtype = dtype
        self._mesh = Mesh(np.array(devices), (BATCH_AXIS,))
        self._batch_sharding = NamedSharding(self._mesh, PartitionSpec(BATCH_AXIS))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self._other = self._open_engine()

    @classmethod
    def load(
        cls,
        path_or_name: str | os.PathLike[str],
        *,
        batch_size: int = 32,
        dtype: DTypeLike = jnp.float32,
        devices: list[jax.Device] | None = None,
        engine: str | EngineChoice = JAX_ENGINE,
    ) -> Self:
        """Opens a codec folder, a codec that comes with the package by its name, or a foreign checkpoint.

        Args:
          path_or_name: folder written by :func:`vqgan.codec_checkpoint.save_codec`, a name (``tiny``), or a
            checkpoint of another code base, which is converted in memory (see :mod:`vqgan.importers`).
          batch_size: images per device call; rounded up to a multiple of the number of devices.
          dtype: type that convolutions compute in. Distances to codes are always float32.
          devices: devices to split a batch over; all local ones by default.
          engine: what runs the networks: ``jax``, ``openvino`` (on the processor; extra ``cpu``), or ``auto``
            for openvino where that is installed and JAX has no accelerator.

        Raises:
          UserError: no codec there, or a damaged one; an engine that is missing or has no graph for it.
        """
        info = read_info(path_or_name)
        chosen = resolve_engine(engine, info.config) if isinstance(engine, str) else engine
        return cls(info, batch_size=batch_size, dtype=dtype, devices=devices, engine=chosen)

    @property
    def config(self) -> ModelConfig:
        """Returns the architecture."""
        return self.info.config

    @property
    def fingerprint(self) -> str:
        """Returns the sha256 over the configuration and the weights that determine tokens."""
        return self.info.fingerprint

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Turns images into token grids.

        Args:
          images: uint8 ``[N, H, W, 3]``, or video ``[N, T, H, W, 3]`` taken frame by frame; sides
            are multiples of the codec's downsampling.

        Returns:
          int32 ``[N, h, w]`` (or ``[N, T, h, w]``) in ``[0, codebook_size)``; ``[N, L]`` of a codec whose
          layout is no grid.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim not in (4, 5) or images.shape[-1] != 3:
            raise ValueError(
                f"images must be uint8 [N, H, W, 3] or [N, T, H, W, 3], got {images.dtype} {images.shape}"
            )
        frames = images.reshape(-1, *images.shape[-3:])
        grid = self.config.grid(*frames.shape[1:3])
        parts = [self.encode_batch(batch) for batch in self._batches(frames)]
        return _join(parts, images.shape[:-3], token_shape(self.config.layout, grid), np.int32)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Turns token grids into images.

        Args:
          tokens: integers ``[N, h, w]``, or video ``[N, T, h, w]``, in ``[0, codebook_size)``. Of a codec
            whose layout is no grid ``[N, L]``, also as one row ``[N, 1, L]``, or video ``[N, T, L]``.

        Returns:
          uint8 ``[N, H, W, 3]`` (or ``[N, T, H, W, 3]``).

        Raises:
          UserError: a token outside the codebook, or a codec without a decoder.
        """
        self.info.require_decoder()
        tokens = np.asarray(tokens)
        tokens = self._without_rows(tokens)
        axes = 2 if self.config.layout == GRID else 1
        if not np.issubdtype(tokens.dtype, np.integer) or tokens.ndim - axes not in (1, 2):
            item = "h, w" if axes == 2 else "L"
            raise ValueError(
                f"tokens must be integers [N, {item}] or [N, T, {item}], got {tokens.dtype} {tokens.shape}"
            )
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.codebook_size:
            raise UserError(
                f"tokens from {tokens.min()} to {tokens.max()} do not fit this codec: "
                f"its codebook has {self.config.codebook_size} codes"
            )
        grids = tokens.reshape(-1, *tokens.shape[-axes:]).astype(np.int32)
        size = (*self.config.image_shape(tokens.shape[-2:]), 3)
        parts = [self.decode_batch(batch) for batch in self._batches(grids)]
        return _join(parts, tokens.shape[:-axes], size, np.uint8)

    def encode_with_margins(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turns images into tokens as JAX finds them, whatever the engine, and tells how clear each is.

        Args:
          images: uint8 ``[N, H, W, 3]``, at least one.

        Returns:
          int32 tokens ``[N, h, w]`` and float32 margins ``[N, h, w]``, as
          :meth:`vqgan.quantizers.Quantizer.margins` gives them.
        """
        function, weights = self._margin_encoder
        batches = (jax.device_put(batch, self._batch_sharding) for batch in self._batches(images))
        parts = [function(weights, batch) for batch in batches]
        tokens, margins = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
        return tokens[: len(images)], margins[: len(images)]

    def encode_batch(self, images: np.ndarray) -> PendingArray:
        """Starts encoding one full batch and returns at once.

        Args:
          images: uint8 ``[batch_size, H, W, 3]``; not to be changed until the result was read.

        Returns:
          int32 ``[batch_size, h, w]``, or ``[batch_size, L]``, still being computed; ``np.asarray`` waits.
        """
        self._check_batch(images)
        if self._other is not None:
            return self._other.encode(images)
        function, weights = self._encoder
        return function(weights, jax.device_put(images, self._batch_sharding))

    def decode_batch(self, tokens: np.ndarray) -> PendingArray:
        """Starts decoding one full batch of tokens, as :meth:`decode` takes them, and returns at once."""
        self._check_batch(tokens)
        tokens = self._without_rows(tokens)
        self._check_length(tokens)
        if self._other is not None:
            return self._other.decode(tokens)
        function, weights = self._decoder
        return function(weights, jax.device_put(tokens, self._batch_sharding))

    def _without_rows(self, tokens: np.ndarray) -> np.ndarray:
        """Turns grids of one row ``[N, 1, L]`` into ``[N, L]``, where tokens are no grid."""
        one_row = self.config.layout != GRID and tokens.ndim == 3 and tokens.shape[1] == 1
        return tokens.reshape(len(tokens), -1) if one_row else tokens

    def _check_length(self, tokens: np.ndarray) -> None:
        """Refuses another number of tokens than all images of a codec have whose layout is no grid."""
        length = self.config.length
        if length is not None and tokens.shape[1:] != (length,):
            raise UserError(f"{tokens.shape[-1]} tokens do not fit this codec: every image has {length}")

    def _check_batch(self, batch: np.ndarray) -> None:
        if len(batch) != self.batch_size:
            raise ValueError(f"a full batch has {self.batch_size} items, got {len(batch)}")

    def _batches(self, items: np.ndarray) -> list[np.ndarray]:
        """Returns views of ``items`` in full batches; the last is padded with zeros."""
        size = self.batch_size
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        if batches and len(batches[-1]) < size:
            missing = size - len(batches[-1])
            batches[-1] = np.pad(batches[-1], [(0, missing)] + [(0, 0)] * (items.ndim - 1))
        return batches

    @cached_property
    def _encoder(self) -> tuple[Any, Any]:
        return self._encoding(lambda quantizer, z: quantizer.tokens(z))

    @cached_property
    def _margin_encoder(self) -> tuple[Any, Any]:
        return self._encoding(lambda quantizer, z: (quantizer.tokens(z), quantizer.margins(z)))

    def _encoding(self, choose: Callable[[Quantizer, jax.Array], Any]) -> tuple[Any, Any]:
        config = _inference(self.config)
        modules = {
            "encoder": _abstract(lambda rngs: TokenEncoder(config, dtype=self._dtype, rngs=rngs)),
            "quantizer": _abstract_quantizer(config),
        }

        def encode(weights: Any, images: jax.Array) -> jax.Array:
            self.compilations += 1  # Python runs here only while tracing
            parts = _merge(modules, weights)
            return choose(parts["quantizer"], parts["encoder"](normalize(images, config.input_range)))

        return self._compile(encode), self._weights(modules)

    @cached_property
    def _decoder(self) -> tuple[Any, Any]:
        self.info.require_decoder()
        config = _inference(self.config)
        modules = {
            "quantizer": _abstract_quantizer(config),
            "decoder": _abstract(lambda rngs: TokenDecoder(config, dtype=self._dtype, rngs=rngs)),
        }

        def decode(weights: Any, tokens: jax.Array) -> jax.Array:
            self.compilations += 1  # Python runs here only while tracing
            parts = _merge(modules, weights)
            return denormalize(parts["decoder"](parts["quantizer"].lookup(tokens)), config.input_range)

        return self._compile(decode), self._weights(modules)

    def _open_engine(self) -> Engine | None:
        """Returns what runs the networks in JAX's place; None for JAX."""
        self.engine.check_installed()
        if self.engine.is_jax:
            return None
        from vqgan.engines.openvino_engine import OpenVINOEngine

        return OpenVINOEngine(self.info, _inference(self.config), self._dtype, self._count)

    def _count(self) -> None:
        self.compilations += 1

    def _compile(self, function: Any) -> Any:
        """Jits ``function(weights, batch)``; each device works on its share of the batch."""
        split = jax.shard_map(
            function,
            mesh=self._mesh,
            in_specs=(PartitionSpec(), PartitionSpec(BATCH_AXIS)),
            out_specs=PartitionSpec(BATCH_AXIS),
            check_vma=False,
        )
        return jax.jit(split)

    def _weights(self, modules: dict[str, Any]) -> Any:
        loaded = load_weights(self.info, modules)
        states = {
            name: module_state(module, loaded[name], f"codec {self.info.path}, {name}")
            for name, module in modules.items()
        }
        return jax.device_put(states, self._replicated)


def _inference(config: ModelConfig) -> ModelConfig:
    """Removes what acts in training only: dropout's random state, the statistics of moving averages."""
    quantizer = "nearest" if config.quantizer == "ema" else config.quantizer
    return dataclasses.replace(config, dropout=0.0, quantizer=quantizer)


class _OneKey:
    """Stands for the random state of weights that nobody draws, whose tracing would take half a second."""

    def __init__(self) -> None:
        self._key = jax.random.key(0)

    def params(self) -> jax.Array:
        """Returns the key of every weight."""
        return self._key


def _abstract(build: Any) -> Any:
    return nnx.eval_shape(lambda: build(_OneKey()))


def _abstract_quantizer(config: ModelConfig) -> Any:
    return _abstract(lambda rngs: make_quantizer(config, rngs=rngs))


def _merge(modules: dict[str, Any], weights: Any) -> dict[str, Any]:
    return {name: nnx.merge(nnx.graphdef(module), weights[name]) for name, module in modules.items()}


def _join(
    parts: Sequence[PendingArray], leading: tuple[int, ...], item: tuple[int, ...], dtype: type
) -> np.ndarray:
    """Joins the results of all batches, without the padding, in the caller's leading shape."""
    if not parts:
        return np.zeros((*leading, *item), dtype)
    count = int(np.prod(leading))
    joined = np.concatenate([np.asarray(part) for part in parts])[:count]
    return joined.reshape(*leading, *item)
