"""Buckets of aspect ratios: each image of a source goes to the size that its own aspect is nearest to.

The launcher decides, before anything is planned, and reads the source once for it, as it does in search of
duplicates. So a bucket's data set is planned, made, continued and verified like any other, and where an image
went does not depend on workers.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from transforms.images.config import DecodeConfig
from transforms.images.decode import upright_size
from transforms.sharded.batching import in_order
from transforms.sharded.manifest import by_count
from transforms.sharded.plan import read_plan, read_slices
from transforms.sharded.slices import entries_of
from transforms.sources.base import Loader, Source
from vqgan import filesystems
from vqgan.faults import raise_machine_fault
from vqgan.image_sizes import ImageSize, nearest_bucket
from vqgan.manifest import bucket_names, check_parts, read_buckets, read_manifest

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


def planned_keys(output: str) -> pa.Table:
    """Returns ``key`` and ``error`` of all that a data set has planned, of parts that were begun, too.

    Args:
      output: the data set; where there is none, the table is empty.

    Raises:
      UserError: a plan is damaged.
    """
    schema = pa.schema([("key", pa.string()), ("error", pa.string())])
    parts = itertools.takewhile(lambda part: read_plan(output, part) is not None, itertools.count())
    tables = (table for part in parts for table in read_slices(output, schema.names, part))
    return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)])


def describe_buckets(output: str) -> dict[str, Any]:
    """Returns what the manifests below a folder of buckets say, and their sums.

    Raises:
      UserError: ``buckets.json`` or a manifest is damaged.
    """
    document = read_buckets(output) or {"buckets": []}
    manifests, unfinished = dict[str, dict[str, Any]](), []
    for name in bucket_names(output):
        manifest = read_manifest(folder := filesystems.join(output, name))
        if manifest is None:
            unfinished.append(name)
        else:
            check_parts(folder, manifest)
            manifests[name] = manifest
    finished = "data_sets" in document and not unfinished
    return {
        "buckets": document["buckets"],
        **({} if finished else {"unfinished": unfinished}),
        **sum_manifests(manifests),
    }


def sum_manifests(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the counts of each data set by its bucket, and those of all together.

    Args:
      manifests: of the data sets, by the name of their bucket.
    """
    counts, reasons = Counter[str](), Counter[str]()
    for manifest in manifests.values():
        counts.update(manifest["counts"])
        reasons.update(manifest["reject_reasons"])
    return {
        "data_sets": {
            name: {"grid": list(manifest["grid"]), "plan_hash": manifest["plan_hash"], **manifest["counts"]}
            for name, manifest in manifests.items()
        },
        "counts": dict(counts),
        "reject_reasons": by_count(reasons),
    }
