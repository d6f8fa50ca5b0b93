"""Modules taken apart into flat dictionaries of arrays, and put together inside compiled functions.

A training state made of plain dictionaries can be sharded, averaged, compared and saved without any
knowledge of the modules behind it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

M = TypeVar("M", bound=nnx.Module)

Arrays = dict[str, jax.Array]
"""Values of a module's variables by dotted name."""

Scalars = dict[str, jax.Array]
"""Scalars of one step by name."""


@dataclasses.dataclass(frozen=True)
class Functional(Generic[M]):
    """The structure of a module, without its values.

    Attributes:
      build: makes a module with random weights.
      graph: what is left of the module without its variables.
      params: abstract parameters.
      others: abstract variables that are neither parameters nor randomness (averages, power iterations).
      random: abstract random streams (of dropout), drawn anew for every call of :meth:`bind`.
    """

    build: Callable[[], M]
    graph: Any
    params: nnx.State
    others: nnx.State
    random: nnx.State

    def initial(self) -> tuple[Arrays, Arrays]:
        """Returns random parameters, and the other variables as they start."""
        return jax.jit(lambda: self.values_of(self.build()))()  # one by one, drawing takes longer

    def initial_others(self) -> Arrays:
        """Returns the other variables alone."""
        return jax.jit(lambda: self.values_of(self.build())[1])()

    def bind(self, params: Arrays, others: Arrays, key: jax.Array | None = None) -> M:
        """Returns the module with these values; its random streams follow from ``key``."""
        key = jax.random.key(0) if key is None else key
        random = [
            (path, variable.replace(_stream(variable, jax.random.fold_in(key, index))))
            for index, (path, variable) in enumerate(nnx.to_flat_state(self.random))
        ]
        params_state, others_state = _filled(self.params, params), _filled(self.others, others)
        module: M = nnx.merge(self.graph, params_state, nnx.from_flat_state(random), others_state)
        return module

    def values_of(self, module: M) -> tuple[Arrays, Arrays]:
        """Returns parameters and other variables of a module, as a call has left them."""
        _, params, _, others = _split(module)
        return _flat(params), _flat(others)


def take_apart(build: Callable[[], M]) -> Functional[M]:
    """Returns the structure of the module that ``build`` makes; nothing is computed."""
    graph, params, random, others = _split(nnx.eval_shape(build))
    return Functional(build, graph, params, others, random)


def _split(module: nnx.Module) -> tuple[Any, nnx.State, nnx.State, nnx.State]:
    graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    params, random, others = states
    return graph, params, random, others


def _flat(state: nnx.State) -> Arrays:
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(state)}


def _filled(abstract: nnx.State, values: Arrays) -> nnx.State:
    flat = nnx.to_flat_state(abstract)
    return nnx.from_flat_state([(path, var.replace(values[".".join(map(str, path))])) for path, var in flat])


def _stream(variable: Any, key: jax.Array) -> jax.Array:
    """Returns the first value of a random stream's key or counter."""
    if jax.dtypes.issubdtype(variable.dtype, jax.dtypes.prng_key):
        return key
    return jnp.zeros(variable.shape, variable.dtype)
