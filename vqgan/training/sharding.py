"""How a training run lies on its devices: batches cut over all of them, the state on each or cut over some.

Compiled functions see whole arrays, so losses, batch statistics and codebook averages are those of the
whole batch, whatever the number of devices; XLA puts in the communication.

The mesh has two axes. Batches are cut over both. A state is the same along ``data``; along ``fsdp`` its
arrays may be cut too (fully-sharded data parallelism, ZeRO, arXiv 1910.02054): each device then keeps a
share of parameters, averages and moments, and a step gathers weights while it computes.
"""

import contextlib
import math
import os
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vqgan.engines.choice import expects_accelerator
from vqgan.errors import UserError
from vqgan.functional import Arrays
from vqgan.training.loop_config import LoopConfig

T = TypeVar("T")
AXIS = "data"
FSDP_AXIS = "fsdp"
BATCH = PartitionSpec((AXIS, FSDP_AXIS))


def use_cpu_devices(config: LoopConfig) -> None:
    """Has JAX take a processor for several devices, each of which computes a part of a batch.

    XLA cuts each operation for all cores, which keeps few of them busy where a model is small: two devices on
    two cores take a step in two thirds of the time (``benchmarks/train_step.py``). Where JAX has begun to
    compute in this process, or ``XLA_FLAGS`` say how many there are, that stays.

    Args:
      config: its ``cpu_devices`` are as many, also where there are fewer cores, so that results do not depend
        on these; None changes nothing. Where they do not divide what is computed at once, they are fewer.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if config.cpu_devices is not None and not chosen and not expects_accelerator():
        with contextlib.suppress(RuntimeError):  # JAX has begun
            jax.config.update(
                "jax_num_cpu_devices", math.gcd(config.cpu_devices, config.batch_size // config.accumulate)
            )


def data_mesh(fsdp: int = 1) -> Mesh:
    """Builds the mesh of all devices, in rows of ``fsdp`` that share one copy of the state.

    Raises:
      UserError: ``fsdp`` does not divide the number of devices, or JAX runs on several hosts, which the
        loader and the checkpoints do not know yet.
    """
    if jax.process_count() > 1:
        raise UserError(f"training runs on one host with any number of devices, not on {jax.process_count()}")
    devices = np.array(jax.devices())
    if fsdp < 1 or len(devices) % fsdp:
        raise UserError(
            f"train.fsdp is {fsdp}: it must divide the number of devices, and there are {len(devices)}"
        )
    return Mesh(devices.reshape(-1, fsdp), (AXIS, FSDP_AXIS))


def replicate(tree: T, mesh: Mesh) -> T:
    """Puts the arrays of a pytree whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(batch: np.ndarray, mesh: Mesh) -> jax.Array:
    """Puts a batch on the devices, cut along its first axis."""
    return jax.device_put(batch, NamedSharding(mesh, BATCH))


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns for each array of a pytree (abstract or not) how it lies on the devices.

    It is cut along its largest axis that the ``fsdp`` axis of the mesh divides, the first of equals; an
    array without such an axis is the same everywhere.
    """
    parts = mesh.shape[FSDP_AXIS]
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _cut(leaf.shape, parts)), tree)


def _cut(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    divisible = [axis for axis, size in enumerate(shape) if size >= parts and size % parts == 0]
    if parts == 1 or not divisible:
        return PartitionSpec()
    chosen = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(FSDP_AXIS if axis == chosen else None for axis in range(len(shape))))


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises a UserError for a batch that cannot be cut evenly."""
    parts = mesh.size * accumulate
    if batch_size % parts:
        raise UserError(
            f"train.batch_size is {batch_size}: it must be divisible by {parts}, the number of devices "
            "times train.accumulate"
        )


def gathered(params: Arrays, mesh: Mesh) -> Arrays:
    """Returns parameters as a computation takes them: whole on every device, however they are kept.

    Without this, XLA might cut activations along features where weights are cut, which costs more
    communication than the weights do.
    """
    if mesh.shape[FSDP_AXIS] == 1:
        return params
    whole = NamedSharding(mesh, PartitionSpec())
    return {name: jax.lax.with_sharding_constraint(value, whole) for name, value in params.items()}
