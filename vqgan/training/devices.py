"""Data parallelism: the state on every device, each batch cut over all of them.

Compiled functions see whole arrays, so losses, batch statistics and codebook averages are those of the
whole batch, whatever the number of devices; XLA puts in the communication.
"""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqgan.errors import UserError

T = TypeVar("T")
AXIS = "data"


def data_mesh() -> Mesh:
    """All devices along one axis.

    Raises:
      UserError: JAX runs on several hosts, which the loader and the checkpoints do not know yet.
    """
    if jax.process_count() > 1:
        raise UserError(f"training runs on one host with any number of devices, not on {jax.process_count()}")
    return Mesh(np.array(jax.devices()), (AXIS,))


def replicate(tree: T, mesh: Mesh) -> T:
    """Arrays of a pytree, the same on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(batch: np.ndarray, mesh: Mesh) -> jax.Array:
    """A batch cut along its first axis."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises a UserError for a batch that cannot be cut evenly."""
    parts = mesh.size * accumulate
    if batch_size % parts:
        raise UserError(
            f"train.batch_size is {batch_size}: it must be divisible by {parts}, the number of devices "
            "times train.accumulate"
        )
