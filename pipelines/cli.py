"""The ``vqgan`` program: parses flags, calls one function, prints one-line errors."""

import argparse
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from pipelines.commands import codecs, data_sets, general, priors
from pipelines.options.flags import CommandParser
from vqgan import __version__
from vqgan.errors import Postponed, UserError

TRACEBACK = "VQGAN_TRACEBACK"
UNPRINTED = 74  # sysexits.h: an error of input or output
EPILOG = f"""{TRACEBACK}=1, or --traceback behind any command, shows where an error was raised. Exit codes:
0 well, 1 problems found, nothing made or (with a traceback) a mistake of vqgan's own, 2 something to put
right, 74 nothing can be printed, 130 stopped."""

COMMANDS = (
    data_sets.add_tokenize,
    data_sets.add_retry,
    data_sets.add_merge,
    general.add_inspect,
    data_sets.add_verify,
    data_sets.add_browse,
    codecs.add_import,
    codecs.add_export,
    codecs.add_train,
    codecs.add_evaluate,
    general.add_push,
    priors.add_train_prior,
    priors.add_sample,
    priors.add_complete,
    data_sets.add_decode,
    priors.add_import_prior,
    general.add_demo,
    general.add_completion,
)
"""In the order in which the program's help lists them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit code: 0 well, 1 problems found or nothing made, 2 a user's mistake, 74 nothing can be printed,
      130 stopped. A mistake of ours is raised.
    """
    open_standard_streams()
    try:
        with contextlib.redirect_stdout(Output(sys.stdout)) as output:
            try:
                return _run(argv)
            finally:
                output.flush()  # of --help, too, which ends by SystemExit
    except OutputError as error:
        abandon_output()
        if isinstance(error.__cause__, BrokenPipeError):
            return 0  # the reader of our output has gone (``| head``)
        print(f"vqgan: cannot print ({error.__cause__}); what it was to say is lost", file=sys.stderr)
        return UNPRINTED


def _run(argv: Sequence[str] | None) -> int:
    args, unknown = build_parser().parse_known_args(argv)
    try:
        code: int = args.run(args, unknown)
        return code
    except UserError as error:
        if args.traceback or os.environ.get(TRACEBACK, "") not in ("", "0"):
            traceback.print_exc()
        print(f"vqgan {args.command}: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except Postponed as done:
        print(f"vqgan {args.command}: {done}", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print(f"vqgan {args.command}: interrupted; the same command continues the run", file=sys.stderr)
        return 130
    except OutputError:
        raise
    except Exception as error:
        # Python shows it whole: a report of a mistake of ours is worth little without.
        error.add_note(
            f"vqgan {args.command}: a mistake of vqgan's own; please report it with the lines above"
        )
        raise


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser with all commands."""
    parser = CommandParser(
        prog="vqgan",
        description="Image corpora to VQGAN tokens and back.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vqgan {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser


class OutputError(Exception):
    """Standard output takes nothing more; the OSError that says why is its cause."""


class Output:
    """Standard output whose failures cannot be taken for those of any other file."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes like the stream; raises OutputError."""
        return self._guarded(self._stream.write, text)

    def flush(self) -> None:
        """Flushes the stream; raises OutputError."""
        self._guarded(self._stream.flush)

    def _guarded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except OSError as error:
            raise OutputError from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_standard_streams() -> None:
    """Puts streams where the caller has closed some, and lets none fail on a character.

    Without them the next file that is opened would be taken for standard output. What stands in for it
    refuses to be written to, as a closed descriptor does; what is said to a closed standard error is lost.
    """
    if sys.stdout is None:
        sys.stdout = _stand_in(1, os.O_RDONLY)
    if sys.stderr is None:
        sys.stderr = _stand_in(2, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def abandon_output() -> None:
    """Sends what is still in standard output's buffer nowhere; else Python complains once more at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _stand_in(descriptor: int, flags: int) -> TextIO:
    opened = os.open(os.devnull, flags)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    return open(descriptor, "w", encoding="utf-8", closefd=False)


if __name__ == "__main__":
    sys.exit(main())
