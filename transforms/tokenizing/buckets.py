"""Buckets of aspect ratios: each image of a source goes to the size that its own aspect is nearest to.

The launcher decides, before anything is planned, and reads the source once for it, as it does in search of
duplicates. So a bucket's data set is planned, made, continued and verified like any other, and where an image
went does not depend on workers.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from transforms.images.config import DecodeConfig
from transforms.images.decode import upright_size
from transforms.sharded.batching import in_order
from transforms.sharded.slices import entries_of
from transforms.sources.base import Loader, Source
from vqgan.faults import raise_machine_fault
from vqgan.image_sizes import ImageSize, nearest_bucket

MEASURED_AHEAD = 64


def assign_buckets(
    source: Source, table: pa.Table, buckets: Sequence[ImageSize], decode: DecodeConfig, threads: int
) -> np.ndarray:
    """Returns the bucket of every example; what cannot be read goes to the first, to be rejected there.

    Args:
      source: where the entries come from.
      table: entries in the source's order, of :data:`transforms.sharded.slices.ENTRY_SCHEMA`.
      buckets: sizes, at least one.
      decode: what is accepted as an image.
      threads: readers.

    Returns:
      int64 ``[N]``, positions in ``buckets``.

    Raises:
      MachineError: not the input is at fault.
    """
    entries = entries_of(table)
    loaders = source.read([entry for entry in entries if entry.error is None])
    loads = (next(loaders) if entry.error is None else None for entry in entries)

    def bucket(load: Loader | None) -> int:
        return 0 if load is None else _bucket(load, buckets, decode)

    return np.fromiter(in_order(bucket, loads, threads, MEASURED_AHEAD, "measure"), np.int64, len(entries))


def _bucket(load: Loader, buckets: Sequence[ImageSize], decode: DecodeConfig) -> int:
    try:
        return nearest_bucket(*upright_size(load().data, decode), buckets)
    except Exception as error:  # noqa: BLE001 - the run says what is wrong with it
        raise_machine_fault(error, "the input cannot be read in search of sizes")
        return 0
