"""A codec's networks run by JAX: the engine that every codec has, and the only one with more than tokens.

A batch is split over the devices, or over the cores of a processor (:mod:`vqgan.engines.cores`). Weights are
read, and programs compiled, at the first call that needs them; so an encoder never loads decoder weights, nor
the other way round.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from vqgan.codec_checkpoint import PARTS, CodecInfo, load_weights, module_state
from vqgan.codec_functions import CodecFunctions, abstract_parts, inference_config, merge_parts
from vqgan.engines.choice import PendingArray
from vqgan.engines.cores import CoreProgram
from vqgan.model.vqgan import denormalize, network_range, normalize
from vqgan.quantizers import Quantizer

BATCH_AXIS = "batch"


class DeviceProgram:
    """A function of weights and a batch, jitted so that each device works on its share of the batch.

    Attributes:
      function: jitted.
      weights: its first argument, on all devices.
    """

    def __init__(self, function: Callable[[Any, jax.Array], Any], weights: Any, mesh: Mesh) -> None:
        self.weights = weights
        self._split = NamedSharding(mesh, PartitionSpec(BATCH_AXIS))
        self.function = jax.jit(
            jax.shard_map(
                function,
                mesh=mesh,
                in_specs=(PartitionSpec(), PartitionSpec(BATCH_AXIS)),
                out_specs=PartitionSpec(BATCH_AXIS),
                check_vma=False,
            )
        )

    def __call__(self, batch: np.ndarray, pixels: int, count: int) -> Any:
        """Starts computing all of a batch and returns at once; arguments are those of ``CoreProgram``."""
        return self.function(self.weights, jax.device_put(batch, self._split))


Program = CoreProgram | DeviceProgram


class JAXEngine:
    """Runs the parts of one codec on full batches; results are still being computed when they are given.

    Methods take a full batch, and how many images of it, from the first, are wanted: results have at least
    these.

    Args:
      info: of the codec.
      dtype: type that convolutions compute in.
      devices: that a batch is split over.
      count: called with every compilation.
    """

    def __init__(
        self, info: CodecInfo, dtype: DTypeLike, devices: Sequence[jax.Device], count: Callable[[], None]
    ) -> None:
        self._info, self._dtype, self._count = info, dtype, count
        self._config = inference_config(info.config)
        self._on_cores = len(devices) == 1 and devices[0].platform == "cpu"
        self._mesh = Mesh(np.array(devices), (BATCH_AXIS,))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())

    def encode(self, images: np.ndarray, count: int) -> PendingArray:
        """Turns uint8 images ``[B, H, W, 3]`` into int32 tokens ``[B, h, w]``, or ``[B, L]``."""
        tokens: PendingArray = self.encoder(images, math.prod(images.shape[1:3]), count)
        return tokens

    def encode_with_margins(self, images: np.ndarray, count: int) -> tuple[PendingArray, PendingArray]:
        """Encodes, and tells how clear each token is; see :meth:`vqgan.quantizers.Quantizer.margins`."""
        tokens, margins = self._margin_encoder(images, math.prod(images.shape[1:3]), count)
        return tokens, margins

    def encode_with_latents(self, images: np.ndarray, count: int) -> tuple[PendingArray, PendingArray]:
        """Encodes to tokens and to the float32 latents ``[B, h, w, D]`` that they were made of."""
        tokens, latents = self._latent_encoder(images, math.prod(images.shape[1:3]), count)
        return tokens, latents

    def decode(self, tokens: np.ndarray, count: int) -> PendingArray:
        """Turns int32 tokens into uint8 images ``[B, H, W, 3]``."""
        images: PendingArray = self.decoder(tokens, self._pixels(tokens.shape[1:]), count)
        return images

    def quantize(self, latents: np.ndarray, count: int) -> PendingArray:
        """Turns float32 latents into int32 tokens."""
        tokens: PendingArray = self._quantizer(latents, self._pixels(latents.shape[1:-1]), count)
        return tokens

    def lookup(self, tokens: np.ndarray, count: int) -> PendingArray:
        """Turns int32 tokens into float32 code vectors."""
        codes: PendingArray = self._lookup(tokens, self._pixels(tokens.shape[1:]), count)
        return codes

    def _pixels(self, grid: Sequence[int]) -> int:
        """Returns the number of pixels of the image that a token grid, or sequence, stands for."""
        return math.prod(self._config.image_shape(grid))

    def codebook(self) -> np.ndarray:
        """Returns the vectors of all codes, float32 ``[K, D]``."""
        modules = abstract_parts(self._config, self._dtype, ["quantizer"])
        quantizer: Quantizer = merge_parts(modules, self._weights(modules))["quantizer"]
        return np.array(quantizer.code_vectors(self._config.codebook_size), np.float32)

    def functions(self, value_range: tuple[float, float]) -> CodecFunctions:
        """Returns the codec as pure functions, with the weights on all devices."""
        names = PARTS if self._config.has_decoder else PARTS[:2]
        modules = abstract_parts(self._config, self._dtype, names)
        weights = jax.device_put(load_weights(self._info, names), self._replicated)
        return CodecFunctions(self._config, weights, value_range, modules)

    @cached_property
    def encoder(self) -> Program:
        """What :meth:`encode` runs."""
        return self._encoding(lambda quantizer, z: quantizer.tokens(z))

    @cached_property
    def _margin_encoder(self) -> Program:
        return self._encoding(lambda quantizer, z: (quantizer.tokens(z), quantizer.margins(z)))

    @cached_property
    def _latent_encoder(self) -> Program:
        return self._encoding(lambda quantizer, z: (quantizer.tokens(z), z.astype(jnp.float32)))

    @cached_property
    def decoder(self) -> Program:
        """What :meth:`decode` runs."""
        self._info.require_decoder()
        return self._program(
            ("quantizer", "decoder"),
            lambda parts, tokens: denormalize(
                parts["decoder"](parts["quantizer"].lookup(tokens)), network_range(self._config)
            ),
        )

    @cached_property
    def _quantizer(self) -> Program:
        return self._program(("quantizer",), lambda parts, latents: parts["quantizer"].tokens(latents))

    @cached_property
    def _lookup(self) -> Program:
        return self._program(("quantizer",), lambda parts, tokens: parts["quantizer"].lookup(tokens))

    def _encoding(self, choose: Callable[[Quantizer, jax.Array], Any]) -> Program:
        def encode(parts: dict[str, Any], images: jax.Array) -> Any:
            pixels = normalize(images, network_range(self._config))
            return choose(parts["quantizer"], parts["encoder"](pixels))

        return self._program(("encoder", "quantizer"), encode)

    def _program(self, names: Sequence[str], run: Callable[[dict[str, Any], jax.Array], Any]) -> Program:
        """Makes a program of ``run`` over the parts of these names."""
        modules = abstract_parts(self._config, self._dtype, names)

        def function(weights: Any, batch: jax.Array) -> Any:
            self._count()  # Python runs here only while tracing
            return run(merge_parts(modules, weights), batch)

        weights = self._weights(modules)
        return (
            CoreProgram(function, weights) if self._on_cores else DeviceProgram(function, weights, self._mesh)
        )

    def _weights(self, modules: dict[str, Any]) -> Any:
        loaded = load_weights(self._info, modules)
        states = {
            name: module_state(module, loaded[name], f"codec {self._info.path}, {name}")
            for name, module in modules.items()
        }
        return jax.device_put(states, self._replicated)
