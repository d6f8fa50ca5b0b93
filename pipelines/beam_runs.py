"""Running Beam so that a user sees one line where a runner shows a traceback."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transforms import progress
from vqgan.errors import UserError

RUNNER = "FnApiRunner"  # Beam's own default tries to download a runner at every start


def run_pipeline(build: Callable[[], Any], beam_args: Sequence[str], images: int, quiet: bool) -> None:
    """Runs one transform from a pipeline's root to its end, with progress.

    Args:
      build: makes the transform; called when Beam is imported, so that it may import Beam itself.
      beam_args: flags for Beam.
      images: how many there are to be done, for the progress.
      quiet: show none.

    Raises:
      UserError: what a worker raised for the user.
    """
    with quiet_imports():
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        transform = build()
    args = list(beam_args)
    if not any(arg.split("=")[0] == "--runner" for arg in args):
        args.append(f"--runner={RUNNER}")
    shown = progress.Progress(images, quiet=quiet)
    progress.show(shown)
    try:
        with answering(), beam.Pipeline(options=PipelineOptions(args)) as pipeline:
            pipeline | transform
    finally:
        progress.show(None)
        shown.close()


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


class _AlreadyAnswered(logging.Filter):
    """Drops a runner's traceback of what the user is told in one line anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return error is None or not (user_error_of(error) or isinstance(error, KeyboardInterrupt))


_ALREADY_ANSWERED = _AlreadyAnswered()


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Importing Beam installs a root log handler and warns of clients that nobody asked for."""
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
    """The UserError that a worker raised, out of what a runner made of it.

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
