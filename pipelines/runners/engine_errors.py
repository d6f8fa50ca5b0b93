"""One line for the user out of what engines and Beam's runners make of an error."""

import contextlib
import logging
import re
from collections.abc import Iterator

from transforms.sharded.worker import place_of
from vqgan.errors import UserError, first_line, printable

CONTINUES = "the same command continues, and keeps what is finished"
_OURS = re.compile(r"No module named '(vqgan|transforms|pipelines|apache_beam)[.']")
_ERROR_LINE = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Failure|Worker)\b.*$", re.MULTILINE)
_DETAILS = re.compile(r'details = "(.*)"')  # of gRPC's errors


@contextlib.contextmanager
def answering(in_process: bool = True) -> Iterator[None]:
    """Raises what a worker raised for the user, out of what a runner made of it.

    Args:
      in_process: the workers are threads of this process. What else they raise is a mistake of ours, and
        passes as it is; from elsewhere it is one line, behind which the engine's own words are the cause.

    Raises:
      UserError: the worker's, or the engine's.
      KeyboardInterrupt: Ctrl-C, which runners wrap as well.
    """
    try:
        yield
    except Exception as error:
        if str(error).startswith("KeyboardInterrupt"):
            raise KeyboardInterrupt from None
        found = user_error_of(error)
        if in_process and found is None:
            raise
        raise found if found and in_process else engine_error(error, found) from error


def engine_error(error: BaseException, found: UserError | None) -> UserError:
    """Returns one line for what an engine has failed with: which slice and worker, why, what to do.

    Args:
      error: the engine's.
      found: what the worker raised for the user, if it did.
    """
    text = _whole_text(error)
    place = place_of(text)
    where = f"{place[0]} on worker {place[1]}: " if place else ""
    if found is not None:
        return UserError(f"{where}{found}" if CONTINUES in str(found) else f"{where}{found}; {CONTINUES}")
    return UserError(f"{where}{_reason(text, error)}; {CONTINUES}")


def _reason(text: str, error: BaseException) -> str:
    """Returns the line of an engine's text that says most."""
    if absent := _OURS.search(text):
        return (
            f"a worker has no package {absent[1]}: install vqgan-pipelines in the same version where workers "
            "run, or give --setup_file=./setup.py"
        )
    details, lines = _DETAILS.findall(text), _ERROR_LINE.findall(text)
    reason = (details or lines or [first_line(error)])[-1]
    said = printable(re.sub(r" \[while running .*$", "", reason))[:300].rstrip(". ")
    return f"the engine has failed ({said})"


def _whole_text(error: BaseException) -> str:
    """Returns what an error and those that it was raised from say, their notes included."""
    texts: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        said = f"{type(seen).__name__}: {seen}"
        texts.insert(0, "\n".join([said, *getattr(seen, "__notes__", ())]))
        seen = seen.__cause__ or seen.__context__
    return "\n".join(texts)


class _AlreadyAnswered(logging.Filter):
    """Drops a runner's traceback of what the user is told in one line anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            return not (user_error_of(error) or isinstance(error, KeyboardInterrupt))
        # A job server's log, as text: the error that follows says what matters of it.
        of_server = record.name.startswith(
            ("PrismRunner", "SdkWorker@", "apache_beam.utils.subprocess_server")
        )
        return not (of_server or "Traceback (most recent call last)" in record.getMessage())


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
