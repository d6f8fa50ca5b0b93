"""Finding examples with the same bytes before any work."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from transforms.sharded.rejects import DUPLICATE
from transforms.sources.base import Entry, Loader, Source
from vqgan.faults import raise_machine_fault

WINDOW = 64  # examples read ahead


def mark_duplicates(source: Source, table: pa.Table, threads: int) -> pa.Table:
    """Gives every example whose bytes occur under a lesser key an error that names that key.

    Reads the whole source once. Examples that cannot be read are left as they are; they become
    rejects later, with their reason.

    Args:
      source: where the entries come from.
      table: entries in the source's order, of :data:`transforms.sharded.plan.ENTRY_SCHEMA`.
      threads: readers.
    """
    digests = list(_digests(source, table, threads))
    keys = table.column("key").to_pylist()
    first: dict[bytes, str] = {}
    for key, digest in zip(keys, digests, strict=True):
        if digest is not None:
            first[digest] = min(key, first.get(digest, key))
    errors = [
        f"{DUPLICATE}{first[digest]}" if digest is not None and first[digest] != key else error
        for key, digest, error in zip(keys, digests, table.column("error").to_pylist(), strict=True)
    ]
    position = table.schema.get_field_index("error")
    return table.set_column(position, table.schema.field("error"), pa.array(errors, pa.string()))


def _digests(source: Source, table: pa.Table, threads: int) -> Iterator[bytes | None]:
    """sha256 of each entry's bytes, in order; None for what cannot be read."""
    entries = [Entry(**row) for row in table.to_pylist()]
    loaders = source.read([entry for entry in entries if entry.error is None])
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[bytes | None] | None] = deque()
        for entry in entries:
            pending.append(pool.submit(_digest, next(loaders)) if entry.error is None else None)
            if len(pending) > WINDOW:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())


def _digest(load: Loader) -> bytes | None:
    try:
        return hashlib.sha256(load().data).digest()
    except Exception as error:
        raise_machine_fault(error, "the input cannot be read in search of duplicates")
        return None


def _result(future: Future[bytes | None] | None) -> bytes | None:
    return None if future is None else future.result()
