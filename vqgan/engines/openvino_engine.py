"""A codec's networks run by OpenVINO on the processor; the quantizer stays JAX's, in float32.

Graphs come from :mod:`vqgan.engines.openvino_graph`. So distances, ties and code vectors are the same
whichever engine runs, and every quantizer works. One request runs at a time, on all cores; others wait in
OpenVINO's queue, so a caller may start several.
"""

import threading
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from vqgan.codec_checkpoint import CodecInfo, Weights, load_weights, module_state
from vqgan.config import ModelConfig
from vqgan.engines.choice import check_variant
from vqgan.engines.openvino_graph import decoder_graph, encoder_graph, import_openvino
from vqgan.errors import UserError
from vqgan.model.vqgan import denormalize, network_range
from vqgan.quantizers import make_quantizer

if TYPE_CHECKING:
    from openvino import CompiledModel, Core, Model

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class PendingResult:
    """A request that was started, and what is to be made of its result; ``np.asarray`` waits for it."""

    def __init__(self, request: Any, finish: Callable[[np.ndarray], jax.Array]) -> None:
        self._request = request
        self._finish = finish
        self._result: np.ndarray | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._result is None:
            self._request.wait()
            self._result = np.asarray(self._finish(self._request.get_output_tensor().data))
            self._request = None  # with its memory
        return np.asarray(self._result, dtype)


class OpenVINOEngine:
    """Runs encoder and decoder of one codec; see :class:`vqgan.engines.choice.Engine`.

    Weights are read at the first call that needs them, and a graph is compiled for each new shape of a batch.

    Args:
      info: of the codec.
      config: its architecture, as it is for inference.
      dtype: type that convolutions compute in, float32 or bfloat16.
      count: called with every compilation.

    Raises:
      UserError: a variant that has no graph, another dtype, or one that the processor does not compute in.
    """

    def __init__(
        self, info: CodecInfo, config: ModelConfig, dtype: DTypeLike, count: Callable[[], None]
    ) -> None:
        name = jnp.dtype(dtype).name
        if name not in PRECISIONS:
            raise UserError(f"dtype {name}: the engine openvino computes in {' or '.join(PRECISIONS)}")
        check_variant(config)
        self._count = count
        self._info = info
        self._config = config
        self._precision = PRECISIONS[name]
        self._lock = threading.Lock()
        self._compiled: dict[tuple[str, tuple[int, ...]], CompiledModel] = {}

    def encode(self, images: np.ndarray, count: int) -> PendingResult:
        """Starts encoding the whole batch."""
        weights, quantizer = self._encoder
        run = self._run(encoder_graph, weights, images)
        return PendingResult(run, lambda latents: quantizer.tokens(jnp.asarray(latents)))

    def decode(self, tokens: np.ndarray, count: int) -> PendingResult:
        """Starts decoding the whole batch."""
        weights, quantizer = self._decoder
        run = self._run(decoder_graph, weights, np.asarray(quantizer.lookup(jnp.asarray(tokens)), np.float32))
        return PendingResult(run, lambda images: _levels(images, self._config))

    def _run(self, build: Callable[..., "Model"], weights: Weights, batch: np.ndarray) -> Any:
        """Starts a request over a copy of ``batch``."""
        request = self._network(build, weights, batch.shape).create_infer_request()
        request.set_input_tensor(import_openvino().Tensor(np.ascontiguousarray(batch)))
        request.start_async()
        return request

    def _network(
        self, build: Callable[..., "Model"], weights: Weights, shape: tuple[int, ...]
    ) -> "CompiledModel":
        with self._lock:
            key = (build.__name__, shape)
            if key not in self._compiled:
                self._count()
                graph = build(self._config, weights, shape)
                self._compiled[key] = self._core.compile_model(graph, "CPU", self._settings())
            return self._compiled[key]

    def _settings(self) -> dict[str, Any]:
        return {
            # Said aloud: where a processor has bfloat16, OpenVINO takes it by default.
            "INFERENCE_PRECISION_HINT": self._precision,
            "PERFORMANCE_HINT": "LATENCY",
            # Threads that read images, and other workers of the machine, share its cores.
            "ENABLE_CPU_PINNING": False,
        }

    @cached_property
    def _core(self) -> "Core":
        core = import_openvino().Core()
        if self._precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UserError(
                "this processor does not compute in bfloat16, for want of AVX-512-BF16 and AMX; "
                "leave out --dtype"
            )
        return core

    @cached_property
    def _encoder(self) -> tuple[Weights, "JittedQuantizer"]:
        loaded = load_weights(self._info, ("encoder", "quantizer"))
        return loaded["encoder"], JittedQuantizer(self._config, self._info, loaded["quantizer"])

    @cached_property
    def _decoder(self) -> tuple[Weights, "JittedQuantizer"]:
        self._info.require_decoder()
        loaded = load_weights(self._info, ("quantizer", "decoder"))
        return loaded["decoder"], JittedQuantizer(self._config, self._info, loaded["quantizer"])


class JittedQuantizer:
    """The two directions of a codec's quantizer, compiled by JAX.

    Attributes:
      tokens: float32 latents ``[B, h, w, D]`` to int32 ``[B, h, w]``.
      lookup: tokens to float32 code vectors ``[B, h, w, D]``.
    """

    def __init__(self, config: ModelConfig, info: CodecInfo, weights: Weights) -> None:
        abstract = nnx.eval_shape(lambda: make_quantizer(config, rngs=nnx.Rngs(0)))
        graph = nnx.graphdef(abstract)
        state = jax.device_put(module_state(abstract, weights, f"codec {info.path}, quantizer"))
        self.tokens = partial(jax.jit(lambda state, latents: nnx.merge(graph, state).tokens(latents)), state)
        self.lookup = partial(jax.jit(lambda state, tokens: nnx.merge(graph, state).lookup(tokens)), state)


@partial(jax.jit, static_argnums=1)
def _levels(images: jax.Array, config: ModelConfig) -> jax.Array:
    return denormalize(images, network_range(config))
