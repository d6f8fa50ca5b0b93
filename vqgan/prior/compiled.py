"""What samplers of all kinds share: weights on devices, and one compiled loop over a batch of samples.

Any number of samples goes through one fixed batch, which the devices divide among themselves, so that XLA
compiles once for each kind of settings.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from vqgan.errors import UserError
from vqgan.functional import Arrays, take_apart
from vqgan.prior.choosing import guided
from vqgan.prior.config import PriorConfig
from vqgan.prior.request import Request, SampleInputs, full_batches
from vqgan.prior.transformer import Prior

BATCH_AXIS = "batch"
WHOLE: Any = PartitionSpec()
"""Of numbers that every device has."""
ROWS: Any = PartitionSpec(BATCH_AXIS)
"""Of arrays ``[B, ...]``, of which each device has its rows."""
COLUMNS: Any = PartitionSpec(None, BATCH_AXIS)
"""The same for arrays ``[T, B]``."""

N = TypeVar("N")
N_contra = TypeVar("N_contra", contravariant=True)

Weights = Mapping[str, jax.Array | np.ndarray]
"""A prior's weights by dotted name."""


class Loop(Protocol[N_contra]):
    """How the tokens of a batch are sampled; compiled anew for each other value, so it must be hashable."""

    def __call__(self, prior: Prior, inputs: SampleInputs, numbers: N_contra, /) -> jax.Array:
        """int32 ``[B, L]``; other numbers compile nothing anew."""
        ...


@dataclasses.dataclass(frozen=True)
class Kind:
    """What of the settings decides which computation is needed.

    Attributes:
      is_guided: whether logits without a class are computed too, as a second half of the batch.
      truncates: whether improbable tokens are left out.
    """

    is_guided: bool
    truncates: bool

    def halves(self, x: jax.Array) -> jax.Array:
        """``[B, ...]`` for every row of the model's batch: twice, where there is guidance."""
        return jnp.concatenate([x, x]) if self.is_guided else x

    def conditions(
        self, prior: Prior, labels: jax.Array, condition: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Labels ``[B or 2B]``, no class in the second half, and the condition ``[B or 2B, Lc]``."""
        if self.is_guided:
            labels = jnp.concatenate([labels, jnp.full_like(labels, prior.config.classes)])
        return labels, None if condition is None else self.halves(condition)

    def merged(self, logits: jax.Array, scale: jax.Array) -> jax.Array:
        """Logits ``[B or 2B, ..., K]`` of the model's batch to those of the samples, ``[B, ..., K]``."""
        if not self.is_guided:
            return logits
        with_class, without = jnp.split(logits, 2)
        return guided(with_class, without, scale)


class CompiledPrior(Generic[N]):
    """A prior's weights on devices, with a compiled function for each loop. Samplers derive from it.

    Attributes:
      kind: of the priors that a sampler takes.
      manner: how it samples, in the words of a refusal.
      layout: how the numbers of its loops are divided among devices.
      config: the prior's.
      batch_size: samples per device call, a multiple of the number of devices.
      compilations: how often a function was traced and compiled for another kind of settings.
    """

    kind: ClassVar[str]
    manner: ClassVar[str]
    layout: ClassVar[Any]

    def __init__(
        self,
        config: PriorConfig,
        params: Weights,
        *,
        batch_size: int = 16,
        dtype: DTypeLike = jnp.float32,
        devices: list[jax.Device] | None = None,
    ):
        """Takes a prior's weights.

        Args:
          config: the prior's.
          params: its weights by dotted name; none, if :meth:`replace_params` is to bring them.
          batch_size: samples per device call; rounded up to a multiple of the number of devices.
          dtype: type of activations and of a cache. Logits are float32.
          devices: devices to split a batch over; all local ones by default.

        Raises:
          UserError: a prior of another kind, or a batch size below 1.
        """
        if config.kind != self.kind:
            raise UserError(f"this prior is {config.kind}: it is not sampled {self.manner}")
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: it must be at least 1")
        devices = devices or jax.local_devices()
        config = dataclasses.replace(config, dropout=0.0)  # its random state acts in training only
        self.config = config
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        self.compilations = 0
        self._dtype = jnp.dtype(dtype)
        self._mesh = Mesh(np.array(devices), (BATCH_AXIS,))
        self._structure = take_apart(lambda: Prior(config, dtype=dtype, rngs=nnx.Rngs(0)))
        self._compiled = jax.jit(self._split, static_argnames="loop")
        self.replace_params(params)

    def replace_params(self, params: Weights) -> None:
        """Takes other weights of the same prior, as training goes on; nothing is compiled anew."""
        self._params: Arrays = {}  # the former ones go first: there may not be room for both
        cast = {name: self._cast(name, value) for name, value in params.items()}
        self._params = jax.device_put(cast, NamedSharding(self._mesh, WHOLE))

    def release(self) -> None:
        """Lets go of the weights, and of the memory they take. What is compiled stays, for when
        :meth:`replace_params` brings others."""
        self._params = {}

    def _run(
        self, loop: Loop[N], config: PriorConfig, request: Request, numbers: Callable[[SampleInputs], N]
    ) -> np.ndarray:
        """Samples a checked request batch by batch.

        Args:
          loop: how.
          config: of the prior, with the grids of the request.
          request: what.
          numbers: those of the draws for a batch.

        Returns:
          int32 ``[B, *config.grid]``.

        Raises:
          ValueError: the weights were released.
        """
        if not self._params:
            raise ValueError("this sampler has no weights: give it some with replace_params")
        parts = [np.zeros((0, config.length), np.int32)]
        for inputs, count in full_batches(config, request, self.batch_size):
            if (inputs.known >= 0).all():
                parts.append(inputs.known[:count])
            else:
                parts.append(
                    np.asarray(self._compiled(self._params, inputs, numbers(inputs), loop=loop))[:count]
                )
        return np.concatenate(parts).reshape(-1, *config.grid)

    def _split(self, params: Arrays, inputs: SampleInputs, numbers: N, *, loop: Loop[N]) -> jax.Array:
        """The loop compiled, each device working on its share of the batch."""
        self.compilations += 1  # Python runs here only while tracing
        split = jax.shard_map(
            partial(self._bound, loop),
            mesh=self._mesh,
            in_specs=(WHOLE, ROWS, self.layout),
            out_specs=ROWS,
            check_vma=False,
        )
        tokens: jax.Array = split(params, inputs, numbers)
        return tokens

    def _bound(self, loop: Loop[N], params: Arrays, inputs: SampleInputs, numbers: N) -> jax.Array:
        return loop(self._structure.bind(params, {}), inputs, numbers)

    def _cast(self, name: str, value: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        """Matrices in the type that layers would cast them to at each token."""
        return value.astype(self._dtype) if name.endswith(".kernel") else value
