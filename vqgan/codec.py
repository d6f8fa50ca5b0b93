"""The inference face of a VQGAN: uint8 images to token grids and back.

Any number of images goes through one fixed batch, padded at the end, so that XLA compiles once per
image size. The batch is split over all local accelerators, or over the cores of the processor. An encoder
never loads decoder weights, nor the other way round. Another engine can run the networks in JAX's place
(:mod:`vqgan.engines.choice`).
"""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vqgan.codec_checkpoint import CodecInfo, read_info
from vqgan.codec_functions import (
    UNIT_RANGE,
    CodecFunctions,
    check_value_range,
    inference_config,
    to_levels,
)
from vqgan.config import ModelConfig
from vqgan.engines.choice import JAX_ENGINE, Engine, EngineChoice, PendingArray, resolve_engine
from vqgan.engines.jax_engine import JAXEngine
from vqgan.errors import UserError
from vqgan.token_layouts import GRID, SCALES, latent_shape, token_shape


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
        devices = devices or _default_devices()
        self.info = info
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        self.engine = engine
        self.compilations = 0
        self._dtype = dtype
        self._jax = JAXEngine(info, dtype, devices, self._count)
        self._engine = self._open_engine()

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
          devices: devices to split a batch over; by default all local accelerators, or the processor, whose
            cores share a batch.
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

    def encode(self, images: np.ndarray, *, value_range: tuple[float, float] | None = None) -> np.ndarray:
        """Turns images into token grids.

        Args:
          images: uint8 ``[N, H, W, C]``, or video ``[N, T, H, W, C]`` taken frame by frame; sides
            are multiples of the codec's downsampling, C is its channels. Or float, with a ``value_range``.
          value_range: lower and upper end of float images, such as ``(0, 1)``. They are rounded to 8 bits,
            as files hold them, so that one compiled program serves all; :meth:`functions` rounds nothing.

        Returns:
          int32 ``[N, h, w]`` (or ``[N, T, h, w]``) in ``[0, codebook_size)``; ``[N, L]`` of a codec whose
          layout is no grid.

        Raises:
          UserError: values outside of the range.
        """
        images, grid = self._checked_images(images, value_range)
        frames = images.reshape(-1, *images.shape[-3:])
        parts = [self.encode_batch(*batch) for batch in self._batches(frames)]
        return _join(parts, images.shape[:-3], token_shape(self.config.layout, grid), np.int32)

    def latents(self, images: np.ndarray, *, value_range: tuple[float, float] | None = None) -> np.ndarray:
        """Turns images, as :meth:`encode` takes them, into latents: what is quantized.

        Returns:
          float32 ``[N, h, w, D]`` (or ``[N, T, h, w, D]``); ``[N, L, D]`` where tokens are a sequence.
          :meth:`quantize` makes the tokens of them.

        Raises:
          UserError: values outside of the range, or another engine than JAX.
        """
        images, grid = self._checked_images(images, value_range)
        frames = images.reshape(-1, *images.shape[-3:])
        parts = [self.encode_batch_with_latents(*batch)[1] for batch in self._batches(frames)]
        return _join(parts, images.shape[:-3], self.latent_shape(grid), np.float32)

    def latent_shape(self, grid: tuple[int, int]) -> tuple[int, ...]:
        """Returns the shape ``(h, w, D)``, or ``(L, D)``, of an image's latents, given its grid."""
        config = self.config
        return latent_shape(config.layout, grid, config.embed_dim, config.scales)

    def quantize(self, latents: np.ndarray) -> np.ndarray:
        """Turns latents, of any float type and shaped as :meth:`latents` gives them, into tokens.

        Returns:
          int32 ``[N, h, w]``, ``[N, T, h, w]``, or ``[N, L]`` where the layout is no grid.

        Raises:
          ValueError: another shape or type.
        """
        latents = np.asarray(latents)
        axes, dimensions = 3 if self.config.vit is None else 2, self.config.embed_dim
        floating = np.issubdtype(latents.dtype, np.floating)
        if not floating or latents.ndim - axes not in (1, 2) or latents.shape[-1] != dimensions:
            item = f"h, w, {dimensions}" if axes == 3 else f"L, {dimensions}"
            raise ValueError(
                f"latents must be float [N, {item}] or [N, T, {item}], got {latents.dtype} {latents.shape}"
            )
        flat = latents.reshape(-1, *latents.shape[-axes:]).astype(np.float32)
        size, length = latents.shape[-axes:-1], self.config.length
        parts = [self._jax.quantize(*batch) for batch in self._batches(flat)]
        return _join(parts, latents.shape[:-axes], size if length is None else (length,), np.int32)

    @cached_property
    def codebook(self) -> np.ndarray:
        """Returns the vector of each code, float32 ``[K, D]``, as the decoder takes them; read-only.

        Of ``cosine`` they have unit length. ``fsq`` and ``lfq`` learn none: rows are the points of their
        grid, in [-1, 1]. ``scales`` has one codebook for all scales, and sums what they give.
        """
        codes = self._jax.codebook()
        codes.flags.writeable = False
        return codes

    def lookup(self, tokens: np.ndarray) -> np.ndarray:
        """Turns tokens, as :meth:`decode` takes them, into code vectors: rows of :attr:`codebook`.

        Returns:
          float32 ``[N, h, w, D]``, ``[N, T, h, w, D]``, or ``[N, L, D]`` of a sequence. Of ``scales``
          ``[N, h, w, D]``: the sum of what all scales give.

        Raises:
          UserError: a token outside the codebook, or another number of tokens than the codec has.
        """
        tokens, axes = self._checked_tokens(tokens)
        if self.config.layout != SCALES:
            return self.codebook[tokens]
        flat = tokens.reshape(-1, *tokens.shape[-axes:]).astype(np.int32)
        parts = [self._jax.lookup(*batch) for batch in self._batches(flat)]
        return _join(parts, tokens.shape[:-axes], self.latent_shape((1, tokens.shape[-1])), np.float32)

    def functions(self, *, value_range: tuple[float, float] = UNIT_RANGE) -> CodecFunctions:
        """Returns the codec as pure functions of its weights, for ``jit``, ``grad``, ``vmap`` and sharding.

        They are JAX's whatever the engine, and load encoder, codebook and decoder.

        Args:
          value_range: lower and upper end of their float images, such as ``(0, 1)`` or ``(-1, 1)``.

        Raises:
          UserError: no range, or damaged weights.
        """
        return self._jax.functions(check_value_range(value_range))

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Turns token grids into images.

        Args:
          tokens: integers ``[N, h, w]``, or video ``[N, T, h, w]``, in ``[0, codebook_size)``. Of a codec
            whose layout is no grid ``[N, L]``, also as one row ``[N, 1, L]``, or video ``[N, T, L]``.

        Returns:
          uint8 ``[N, H, W, C]`` (or ``[N, T, H, W, C]``).

        Raises:
          UserError: a token outside the codebook, or a codec without a decoder.
        """
        self.info.require_decoder()
        tokens, axes = self._checked_tokens(tokens)
        grids = tokens.reshape(-1, *tokens.shape[-axes:]).astype(np.int32)
        size = (*self.config.image_shape(tokens.shape[-2:]), self.config.channels.count)
        parts = [self.decode_batch(*batch) for batch in self._batches(grids)]
        return _join(parts, tokens.shape[:-axes], size, np.uint8)

    def _checked_images(
        self, images: np.ndarray, value_range: tuple[float, float] | None
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns images as uint8, and the grid of their tokens; raises as :meth:`encode` does."""
        images = np.asarray(images)
        if value_range is not None and np.issubdtype(images.dtype, np.floating):
            images = to_levels(images, value_range)
        channels = self.config.channels.count
        if images.dtype != np.uint8 or images.ndim not in (4, 5) or images.shape[-1] != channels:
            raise ValueError(
                f"images must be uint8 [N, H, W, {channels}] or [N, T, H, W, {channels}], or float with a "
                "value_range, "
                f"got {images.dtype} {images.shape}"
            )
        return images, self.config.grid(*images.shape[-3:-1])

    def _checked_tokens(self, tokens: np.ndarray) -> tuple[np.ndarray, int]:
        """Returns tokens, and how many axes those of one image have; raises as :meth:`decode` does."""
        tokens = self._without_rows(np.asarray(tokens))
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
        if self.config.length is not None and tokens.size:
            self._check_length(tokens.reshape(-1, tokens.shape[-1]))
        return tokens, axes

    def encode_with_margins(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turns images into tokens as JAX finds them, whatever the engine, and tells how clear each is.

        Args:
          images: uint8 ``[N, H, W, C]``, at least one.

        Returns:
          int32 tokens ``[N, h, w]`` and float32 margins ``[N, h, w]``, as
          :meth:`vqgan.quantizers.Quantizer.margins` gives them.
        """
        parts = [self._jax.encode_with_margins(*batch) for batch in self._batches(images)]
        tokens, margins = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
        return tokens[: len(images)], margins[: len(images)]

    def encode_batch(self, images: np.ndarray, count: int | None = None) -> PendingArray:
        """Starts encoding one full batch and returns at once.

        Args:
          images: uint8 ``[batch_size, H, W, C]``; not to be changed until the result was read.
          count: how many of them, from the first, are wanted; by default all.

        Returns:
          int32 ``[N, h, w]``, or ``[N, L]``, still being computed; ``np.asarray`` waits. N is at least
          ``count``: what a device computes in one go is not cut off.
        """
        return self._engine.encode(images, self._checked_count(images, count))

    def encode_batch_with_latents(
        self, images: np.ndarray, count: int | None = None
    ) -> tuple[PendingArray, PendingArray]:
        """Starts encoding one full batch, as :meth:`encode_batch` does, also to float32 latents.

        Raises:
          UserError: another engine than JAX.
        """
        self.engine.require_latents()
        return self._jax.encode_with_latents(images, self._checked_count(images, count))

    def decode_batch(self, tokens: np.ndarray, count: int | None = None) -> PendingArray:
        """Starts decoding one full batch of tokens, as :meth:`decode` takes them, and returns at once.

        ``count`` is that of :meth:`encode_batch`.
        """
        count = self._checked_count(tokens, count)
        tokens = self._without_rows(tokens)
        self._check_length(tokens)
        return self._engine.decode(tokens, count)

    def _without_rows(self, tokens: np.ndarray) -> np.ndarray:
        """Turns grids of one row ``[N, 1, L]`` into ``[N, L]``, where tokens are no grid."""
        one_row = self.config.layout != GRID and tokens.ndim == 3 and tokens.shape[1] == 1
        return tokens.reshape(len(tokens), -1) if one_row else tokens

    def _check_length(self, tokens: np.ndarray) -> None:
        """Refuses another number of tokens than all images of a codec have whose layout is no grid."""
        length = self.config.length
        if length is not None and tokens.shape[1:] != (length,):
            raise UserError(f"{tokens.shape[-1]} tokens do not fit this codec: every image has {length}")

    def _checked_count(self, batch: np.ndarray, count: int | None) -> int:
        """Refuses another batch than a full one; returns how many results of it are wanted."""
        if len(batch) != self.batch_size:
            raise ValueError(f"a full batch has {self.batch_size} items, got {len(batch)}")
        count = len(batch) if count is None else count
        if not 1 <= count <= len(batch):
            raise ValueError(f"count {count}: it must be 1 to {len(batch)}, the size of a batch")
        return count

    def _batches(self, items: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """Returns views of ``items`` in full batches, the last padded with zeros, and how many each has."""
        size = self.batch_size
        batches = [(items[start : start + size], size) for start in range(0, len(items), size)]
        if batches and len(batches[-1][0]) < size:
            last = batches[-1][0]
            padded = np.pad(last, [(0, size - len(last))] + [(0, 0)] * (items.ndim - 1))
            batches[-1] = padded, len(last)
        return batches

    def _open_engine(self) -> Engine:
        """Returns what runs the networks."""
        self.engine.check_installed()
        if self.engine.is_jax:
            return self._jax
        from vqgan.engines.openvino_engine import OpenVINOEngine

        return OpenVINOEngine(self.info, inference_config(self.config), self._dtype, self._count)

    def _count(self) -> None:
        self.compilations += 1


def _default_devices() -> list[jax.Device]:
    devices = jax.local_devices()
    return devices[:1] if devices[0].platform == "cpu" else devices


def _join(
    parts: Sequence[PendingArray], leading: tuple[int, ...], item: tuple[int, ...], dtype: type
) -> np.ndarray:
    """Joins the results of all batches, without the padding, in the caller's leading shape."""
    if not parts:
        return np.zeros((*leading, *item), dtype)
    count = int(np.prod(leading))
    joined = np.concatenate([np.asarray(part) for part in parts])[:count]
    return joined.reshape(*leading, *item)
