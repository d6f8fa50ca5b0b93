"""Running Beam so that a user sees one line where a runner shows a traceback; and what flags Beam knows."""

import argparse
import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from transforms.sharded import progress
from transforms.sharded.job import ShardedJob
from transforms.sharded.plan import PLAN_FOLDER, Plan
from vqgan import filesystems
from vqgan.config import RUN_FILE
from vqgan.errors import UserError
from vqgan.extras import require_extra

RUNNER = "FnApiRunner"  # Beam's own default tries to download a runner at every start


def run_job(
    job: ShardedJob, plan: Plan, beam_args: Sequence[str], quiet: bool, compilation_cache: bool = False
) -> None:
    """Runs a sharded job on Beam, with progress.

    Args:
      job: what to do.
      plan: its plan.
      beam_args: flags for Beam.
      quiet: show no progress.
      compilation_cache: workers keep what XLA compiles.

    Raises:
      UserError: what a worker raised for the user.
    """
    with quiet_imports():
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        from transforms.sharded.beam_graph import RunJob
    args = list(beam_args)
    if not any(arg.split("=")[0] == "--runner" for arg in args):
        args.append(f"--runner={RUNNER}")
    shown = progress.Progress(plan.entries, quiet=quiet)
    progress.show(shown)
    try:
        with answering(), plain_labels(), beam.Pipeline(options=PipelineOptions(args)) as pipeline:
            pipeline | RunJob(job, plan, compilation_cache)
    finally:
        progress.show(None)
        shown.close()


def write_record(output: str, record: bytes) -> None:
    """Leaves the settings of a run beside its plan, for ``--config``; the same ones are not written again."""
    path = filesystems.join(output, f"{PLAN_FOLDER}/{RUN_FILE}")
    try:
        written = filesystems.read_bytes(path)
    except OSError:  # not there yet, or no file: writing says what is in the way
        written = b""
    if record and record != written:
        filesystems.write_bytes(path, record)


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Raises what a worker raised for the user, out of what a runner made of it.

    Raises:
      UserError: the worker's.
      KeyboardInterrupt: Ctrl-C, which runners wrap as well.
    """
    try:
        yield
    except Exception as error:
        if str(error).startswith("KeyboardInterrupt"):
            raise KeyboardInterrupt from None
        found = user_error_of(error)
        if found is None:
            raise
        raise found from error


@contextlib.contextmanager
def plain_labels() -> Iterator[None]:
    """Keeps Beam, in a notebook, from naming steps after cells.

    It would import its data frames for that, which fails with pandas 3, and where there is no pandas.
    """
    import apache_beam.pipeline

    beam_pipeline: Any = apache_beam.pipeline
    rename = beam_pipeline.alter_label_if_ipython
    beam_pipeline.alter_label_if_ipython = lambda *_: None
    try:
        yield
    finally:
        beam_pipeline.alter_label_if_ipython = rename


class _AlreadyAnswered(logging.Filter):
    """Drops a runner's traceback of what the user is told in one line anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return error is None or not (user_error_of(error) or isinstance(error, KeyboardInterrupt))


_ALREADY_ANSWERED = _AlreadyAnswered()


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Keeps Beam quiet while it is imported: it adds a log handler and warns of clients nobody asked for."""
    root = logging.getLogger()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in root.handlers:
            handler.addFilter(_ALREADY_ANSWERED)


def user_error_of(error: BaseException) -> UserError | None:
    """Finds the UserError that a worker raised, in what a runner made of it; None where there is none.

    Runners wrap an exception, or send it as text; its one line is found in either.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return UserError(re.sub(r" \[while running '.*'\]$", "", str(seen)))
        found = re.findall(r"vqgan\.errors\.UserError: (.+)", str(seen))
        if found:
            return UserError(re.sub(r" \[while running '.*$", "", found[-1]).strip())
        seen = seen.__cause__ or seen.__context__
    return None


def make_beam_parser() -> argparse.ArgumentParser:
    """Makes a parser of all of Beam's flags, which raises UserError for a wrong value."""
    with quiet_imports():
        from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    def refuse(message: str) -> NoReturn:
        raise UserError(message)

    parser = _BeamArgumentParser(add_help=False, conflict_handler="resolve", allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    parser.error = refuse  # type: ignore[method-assign]
    return parser


def check_runner(name: str | None) -> None:
    """Refuses a runner that Beam does not know, or whose packages are missing.

    Raises:
      UserError: it cannot be made.
    """
    with quiet_imports():
        from apache_beam.runners import create_runner

    if name is not None and "dataflow" in name.lower():
        require_extra("gcp", f"--runner {name}")  # which Beam would miss after the plan is written
    try:
        create_runner(name or RUNNER)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--runner {name}: {error}") from error
