"""A prior as the loop trains it: its state, and an update of it."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from vqgan.functional import Arrays, Scalars, take_apart
from vqgan.prior.losses import Objective, training_loss
from vqgan.prior.transformer import PriorTransformer
from vqgan.training import optimizers, sharding
from vqgan.training.prior.config import PriorTrainConfig
from vqgan.training.prior.prior_rows import PriorRows

OBJECTIVE_STREAM = 1 << 20  # far from the numbers of a module's own random streams


class PriorTrainState(NamedTuple):
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
    """A prior, as :class:`vqgan.training.loop.TrainingLoop` trains it.

    All randomness follows from the seed and the number of the step.

    Args:
      config: of the run, its model fitted to the tokens.

    Raises:
      UserError: the devices cannot share the batch or the state as asked.
    """

    def __init__(self, config: PriorTrainConfig):
        self._config = config
        self.mesh = sharding.data_mesh(config.train.fsdp)
        sharding.check_batch_size(config.train.batch_size, config.train.accumulate, self.mesh)
        self.prior = take_apart(functools.partial(build_prior, config))
        self._optimizer = optimizers.make_optimizer(config.optimizer, config.train.steps)
        self._learning_rate = optimizers.make_schedule(config.optimizer, config.train.steps)
        self._shardings = sharding.state_shardings(jax.eval_shape(self._start), self.mesh)
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

    def initial(self) -> PriorTrainState:
        """Returns random weights, and an average equal to them; no device ever holds more than its share."""
        state: PriorTrainState = jax.jit(self._start, out_shardings=self._shardings)()
        return state

    def before_step(
        self, step: int, state: PriorTrainState, batches: Iterator[PriorRows]
    ) -> tuple[PriorTrainState, str | None]:
        """Does nothing between steps."""
        return state, None

    def step(self, step: int, state: PriorTrainState, batch: PriorRows) -> tuple[PriorTrainState, Scalars]:
        """Does one update from ``train.batch_size`` rows."""
        rows = jax.tree.map(lambda leaf: sharding.shard(leaf, self.mesh), batch)
        return self._update(state, rows, np.int32(step))

    def exported(self, state: PriorTrainState) -> Arrays:
        """Returns the averaged weights, where there is an average."""
        return state.average if self._config.train.ema_decay else state.params

    # Compiled.

    def _start(self) -> PriorTrainState:
        params, _ = self.prior.values_of(self.prior.build())
        average = jax.tree.map(jnp.copy, params) if self._config.train.ema_decay else {}
        zeros = (jnp.zeros((), jnp.int32) for _ in range(3))
        return PriorTrainState(params, average, self._optimizer.init(params), *zeros)

    def _whole_step(
        self, state: PriorTrainState, batch: PriorRows, step: jax.Array
    ) -> tuple[PriorTrainState, Scalars]:
        self._compilations += 1  # this line runs when JAX traces, not when the step runs
        train = self._config.train
        key = jax.random.fold_in(jax.random.key(train.seed), step)

        def part(rows: PriorRows, index: jax.Array) -> tuple[Any, tuple[()], jax.Array]:
            own = key if train.accumulate == 1 else jax.random.fold_in(key, index)
            gradients, objective = self._gradients(state.params, rows, own)
            # Parts count by the number of tokens they predict: the result is that of the whole batch.
            return (gradients, objective.loss, objective.scalars), (), objective.weight

        (gradients, loss, scalars), _ = optimizers.accumulate(part, batch, train.accumulate)
        params, optimizer = optimizers.apply_gradients(
            self._optimizer, gradients, state.optimizer, state.params
        )
        norm = optax.tree.norm(gradients)
        new = state._replace(
            params=params,
            average=optimizers.update_average(state.average, params, state.updates, train.ema_decay),
            optimizer=optimizer,
            updates=state.updates + 1,
        )
        chosen = optimizers.skip_if_not_finite((loss, norm), new, state)
        return chosen, {
            "loss": loss,
            **scalars,
            "gradient_norm": norm,
            "learning_rate": self._learning_rate(state.updates),
            "skipped": chosen.skipped,
            "skipped_in_row": chosen.skipped_in_row,
        }

    def _gradients(self, params: Arrays, batch: PriorRows, key: jax.Array) -> tuple[Arrays, Objective]:
        def loss(params: Arrays) -> tuple[jax.Array, Objective]:
            prior = self.prior.bind(sharding.gathered(params, self.mesh), {}, key)
            prior.train()
            own = jax.random.fold_in(key, OBJECTIVE_STREAM)
            objective = training_loss(
                prior, batch.tokens, batch.labels, batch.condition, own, self._config.objective, batch.text
            )
            return objective.loss, objective

        gradients, objective = jax.grad(loss, has_aux=True)(params)
        return jax.lax.with_sharding_constraint(gradients, self._shardings.params), objective


def build_prior(config: PriorTrainConfig) -> PriorTransformer:
    """Builds the model with random weights, in training mode."""
    return PriorTransformer(
        config.model,
        dtype=jnp.dtype(config.train.dtype),
        remat=config.train.remat,
        rngs=nnx.Rngs(config.train.seed),
    )
