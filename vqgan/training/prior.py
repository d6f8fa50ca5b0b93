"""Stage 2: an update of a prior, and what the loop needs beside it."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqgan.functional import Arrays, Scalars, take_apart
from vqgan.prior.losses import Objective, training_loss
from vqgan.prior.transformer import Prior
from vqgan.training import devices
from vqgan.training.loop import Done, Evaluation
from vqgan.training.optimizers import make_optimizer, make_schedule
from vqgan.training.prior_config import PriorTrainConfig
from vqgan.training.prior_rows import PriorRows

OBJECTIVE_STREAM = 1 << 20  # far from the numbers of a module's own random streams


class PriorState(NamedTuple):
    """What changes while a prior is trained.

    Attributes:
      params: parameters by dotted name.
      average: exponential moving average of them; empty where there is none.
      optimizer: state of the optimizer.
      updates: number of updates that were not skipped.
      skipped: steps whose loss or gradients were not finite.
      skipped_in_row: such steps since the last good one.
    """

    params: Arrays
    average: Arrays
    optimizer: Any
    updates: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array


class PriorLearner:
    """A prior, as :class:`vqgan.training.loop.Loop` trains it.

    All randomness follows from the seed and the number of the step.

    Args:
      config: of the run, its model fitted to the tokens.
      evaluate: parameters (averaged where there is an average) to figures and a sheet.
      export: parameters, progress and figures to a folder.

    Raises:
      UserError: the devices cannot share the batch or the state as asked.
    """

    def __init__(
        self,
        config: PriorTrainConfig,
        evaluate: Callable[[Arrays], Evaluation],
        export: Callable[[Arrays, Done, Mapping[str, float]], None],
    ):
        self._config = config
        self.mesh = devices.data_mesh(config.train.fsdp)
        devices.check_batch_size(config.train.batch_size, config.train.accumulate, self.mesh)
        self._evaluate, self._export = evaluate, export
        self.prior = take_apart(functools.partial(build_prior, config))
        self._optimizer = make_optimizer(config.optimizer, config.train.steps)
        self._learning_rate = make_schedule(config.optimizer, config.train.steps)
        self._shardings = devices.state_shardings(jax.eval_shape(self._start), self.mesh)
        self._compilations = 0
        # The state that a step is given is not needed after it: its memory is used again.
        self._update = jax.jit(
            self._whole_step,
            donate_argnums=0,
            out_shardings=(self._shardings, NamedSharding(self.mesh, PartitionSpec())),
        )

    @property
    def compilations(self) -> int:
        """How often an update was compiled."""
        return self._compilations

    def initial(self) -> PriorState:
        """Random weights, and an average equal to them; no device ever holds more than its share."""
        state: PriorState = jax.jit(self._start, out_shardings=self._shardings)()
        return state

    def before_step(
        self, step: int, state: PriorState, batches: Iterator[PriorRows]
    ) -> tuple[PriorState, str | None]:
        """Nothing happens between steps."""
        return state, None

    def step(self, step: int, state: PriorState, batch: PriorRows) -> tuple[PriorState, Scalars]:
        """One update from ``train.batch_size`` rows."""
        rows = jax.tree.map(lambda leaf: devices.shard(leaf, self.mesh), batch)
        return self._update(state, rows, np.int32(step))

    def evaluate(self, state: PriorState) -> Evaluation:
        """Figures of the averaged weights."""
        return self._evaluate(self._exported(state))

    def export(self, state: PriorState, done: Done, figures: Mapping[str, float]) -> None:
        """Writes the averaged weights as a prior."""
        self._export(self._exported(state), done, figures)

    def _exported(self, state: PriorState) -> Arrays:
        return state.average if self._config.train.ema_decay else state.params

    # Compiled.

    def _start(self) -> PriorState:
        params, _ = self.prior.values_of(self.prior.build())
        average = jax.tree.map(jnp.copy, params) if self._config.train.ema_decay else {}
        zeros = (jnp.zeros((), jnp.int32) for _ in range(3))
        return PriorState(params, average, self._optimizer.init(params), *zeros)

    def _whole_step(self, state: PriorState, batch: PriorRows, step: jax.Array) -> tuple[PriorState, Scalars]:
        self._compilations += 1  # this line runs when JAX traces, not when the step runs
        key = jax.random.fold_in(jax.random.key(self._config.train.seed), step)
        gradients, objective = self._accumulated(state.params, batch, key)
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        scalars = {
            "loss": objective.loss,
            **objective.scalars,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": self._learning_rate(state.updates),
        }
        finite = jnp.isfinite(scalars["loss"]) & jnp.isfinite(scalars["gradient_norm"])
        average = self._averaged(state.average, params, state.updates)
        good = PriorState(
            params, average, optimizer, state.updates + 1, state.skipped, jnp.zeros((), jnp.int32)
        )
        kept = state._replace(skipped=state.skipped + 1, skipped_in_row=state.skipped_in_row + 1)
        chosen = jax.tree.map(lambda a, b: jnp.where(finite, a, b), good, kept)
        return chosen, scalars | {"skipped": chosen.skipped, "skipped_in_row": chosen.skipped_in_row}

    def _averaged(self, average: Arrays, params: Arrays, updates: jax.Array) -> Arrays:
        """Moving average, which follows closely at first (as TensorFlow's ExponentialMovingAverage may)."""
        if not average:
            return average
        decay = jnp.minimum(self._config.train.ema_decay, (1.0 + updates) / (10.0 + updates))
        return optax.incremental_update(params, average, 1 - decay)

    def _accumulated(self, params: Arrays, batch: PriorRows, key: jax.Array) -> tuple[Arrays, Objective]:
        """Gradients and objective of a batch, worked through in parts one after the other.

        Parts count by the number of tokens they predict, so that the result is that of the whole batch.
        """
        parts = self._config.train.accumulate
        if parts == 1:
            return self._gradients(params, batch, key)
        # Every device keeps its rows: part i takes each parts-th one.
        cut = jax.tree.map(
            lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), batch
        )  # (parts, B / parts, ...)

        def one(sums: Any, given: tuple[PriorRows, jax.Array]) -> tuple[Any, None]:
            rows, index = given
            found = self._gradients(params, rows, jax.random.fold_in(key, index))
            weight = found[1].weight
            weighted = (jax.tree.map(lambda leaf: leaf * weight, found), weight)
            return jax.tree.map(jnp.add, sums, weighted), None

        shapes = jax.eval_shape(self._gradients, params, jax.tree.map(lambda leaf: leaf[0], cut), key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), (shapes, shapes[1].weight))
        (sums, weight), _ = jax.lax.scan(one, zeros, (cut, jnp.arange(parts)))
        gradients, objective = jax.tree.map(lambda leaf: leaf / weight, sums)
        return gradients, objective._replace(weight=weight)

    def _gradients(self, params: Arrays, batch: PriorRows, key: jax.Array) -> tuple[Arrays, Objective]:
        def loss(params: Arrays) -> tuple[jax.Array, Objective]:
            prior = self.prior.bind(gathered(params, self.mesh), {}, key)
            prior.train()
            own = jax.random.fold_in(key, OBJECTIVE_STREAM)
            objective = training_loss(
                prior, batch.tokens, batch.labels, batch.condition, own, self._config.objective
            )
            return objective.loss, objective

        gradients, objective = jax.grad(loss, has_aux=True)(params)
        return jax.lax.with_sharding_constraint(gradients, self._shardings.params), objective


def gathered(params: Arrays, mesh: Mesh) -> Arrays:
    """Parameters as a computation takes them: whole on every device, however they are kept.

    Without this, XLA might cut activations along features where weights are cut, which costs more
    communication than the weights do.
    """
    if mesh.shape[devices.FSDP_AXIS] == 1:
        return params
    whole = NamedSharding(mesh, PartitionSpec())
    return {name: jax.lax.with_sharding_constraint(value, whole) for name, value in params.items()}


def build_prior(config: PriorTrainConfig) -> Prior:
    """The model with random weights, in training mode."""
    return Prior(
        config.model,
        dtype=jnp.dtype(config.train.dtype),
        remat=config.train.remat,
        rngs=nnx.Rngs(config.train.seed),
    )
