"""Dask as an engine, driven without Beam: a task for each slice, on whichever worker is free.

Beam's own DaskRunner does not do for this graph: it has no translation of ``Impulse``, drops ``Reshuffle``,
so that all slices end up in the one partition that their numbers came from, and knows no metrics. What Beam
adds here is little, as the graph is linear: the numbers of slices, one function of each, and a sum. The flags
are those of Beam's runner.
"""

import argparse
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from transforms.sharded import progress
from transforms.sharded.job import ShardedJob
from transforms.sharded.plan import Plan
from transforms.sharded.summary import FinishedSlice
from transforms.sharded.worker import RunSettings, finish_job, make_reported, open_model
from vqgan.errors import UserError, first_line
from vqgan.extras import require_extra

CONNECT_SECONDS = 10
QUEUED_PER_THREAD = 4
"""Tasks given to the scheduler ahead, so that no worker waits, and a million slices are no million tasks."""
LEAST_QUEUED = 64


@dataclass(frozen=True)
class DaskOptions:
    """Where Dask's scheduler is.

    Attributes:
      address: ``HOST:PORT``, or a URI such as ``tls://HOST:PORT``.
      scheduler_file: that Dask's scheduler has written, instead of an address.
      timeout: of the connection, in seconds.
      name: of the client, in the scheduler's log.
    """

    address: str | None = None
    scheduler_file: str | None = None
    timeout: float = CONNECT_SECONDS
    name: str | None = None

    @classmethod
    def of_flags(cls, flags: Sequence[str]) -> "DaskOptions":
        """Reads the flags.

        Raises:
          UserError: a wrong value, or neither address nor file.
        """
        given = make_dask_parser().parse_known_args(list(flags))[0]
        options = cls(
            given.dask_client_address, given.dask_scheduler_file, given.timeout, given.dask_client_name
        )
        if (options.address is None) == (options.scheduler_file is None):
            raise UserError(
                "--runner DaskRunner: give --dask_client_address=HOST:8786 or --dask_scheduler_file=FILE"
            )
        return options

    def check(self) -> None:
        """Connects once.

        Raises:
          UserError: nothing answers, or the extra is missing.
        """
        with connected(self):
            pass


def make_dask_parser() -> argparse.ArgumentParser:
    """Makes a parser of the flags of Beam's DaskRunner, which raises UserError for a wrong value."""

    def refuse(message: str) -> NoReturn:
        raise UserError(message)

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = refuse  # type: ignore[method-assign]
    for name in ("dask_client_address", "dask_scheduler_file", "dask_client_name"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--dask_connection_timeout", dest="timeout", type=float, default=CONNECT_SECONDS)
    # Of bags, which are not used here: every slice is a task of its own.
    for name in ("dask_connection_limit", "dask_npartitions", "dask_partition_size"):
        parser.add_argument(f"--{name}", type=int)
    return parser


@contextlib.contextmanager
def connected(options: DaskOptions) -> Iterator[Any]:
    """Opens a client of the scheduler for as long as the block lasts.

    Raises:
      UserError: no scheduler answers, or the extra is missing.
    """
    require_extra("dask", "--runner DaskRunner")
    from distributed import Client

    where = options.address or options.scheduler_file
    try:
        client = Client(
            address=options.address,
            scheduler_file=options.scheduler_file,
            timeout=options.timeout,
            name=options.name,
            set_as_default=False,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"--runner DaskRunner: no scheduler answers at {where} ({first_line(error)}); start it with dask "
            "scheduler, or correct the address"
        ) from error
    with client:
        yield client


def run_on_dask(job: ShardedJob, plan: Plan, settings: RunSettings, options: DaskOptions) -> None:
    """Makes all slices on Dask's workers, then the manifest on one of them.

    A slice whose worker dies is given to another one by the scheduler.

    Args:
      job: what to do.
      plan: its plan.
      settings: of the run, for workers.
      options: where Dask is.

    Raises:
      UserError: a worker's, or no scheduler answers.
      Exception: whatever else a worker raised, or the scheduler says of workers that died.
    """
    with connected(options) as client:
        totals = job.empty_totals()
        for done in _make_all(client, job, settings):
            totals.add(done)
        client.submit(finish_job, totals, job, plan, settings, pure=False).result()


def _make_all(client: Any, job: ShardedJob, settings: RunSettings) -> Iterator[FinishedSlice]:
    """Yields finished slices, in the order in which they end, with a bounded number of tasks under way."""
    from distributed import as_completed

    numbers = iter(range(job.task.slices))

    def submit(number: int) -> Any:
        return client.submit(
            _make, job, number, settings, pure=False, key=f"slice-{number}-{settings.attempt}"
        )

    threads = sum(client.nthreads().values())
    ahead = max(LEAST_QUEUED, QUEUED_PER_THREAD * threads)
    first = [submit(number) for number in itertools.islice(numbers, ahead)]
    under_way = as_completed(first, loop=client.loop)
    for future in under_way:
        yield future.result()
        future.release()
        number = next(numbers, None)
        if number is not None:
            under_way.add(submit(number))


def _make(job: ShardedJob, number: int, settings: RunSettings) -> FinishedSlice:
    return make_reported(job, number, open_model(job, settings), settings.attempt, progress.report)
