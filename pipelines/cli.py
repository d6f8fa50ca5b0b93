"""The ``vqgan`` program: parses flags, calls one function, prints one-line errors."""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from pipelines.commands import (
    decode_tokens,
    demo,
    evaluate_codecs,
    export_codec,
    import_codec,
    import_prior,
    inspect_path,
    push_codec,
    sample_prior,
    tokenize_images,
    train_prior,
    train_vqgan,
    verify_tokens,
)
from pipelines.standard_streams import Output, OutputError, abandon_output, open_standard_streams
from vqgan import __version__
from vqgan.errors import UserError

TRACEBACK = "VQGAN_TRACEBACK"
UNPRINTED = 74  # sysexits.h: an error of input or output
EPILOG = f"""{TRACEBACK}=1, or --traceback behind any command, shows where an error was raised. Exit codes:
0 well, 1 problems found, nothing made or (with a traceback) a mistake of vqgan's own, 2 something to put
right, 74 nothing can be printed, 130 stopped."""

COMMANDS = (
    tokenize_images,
    inspect_path,
    verify_tokens,
    import_codec,
    export_codec,
    train_vqgan,
    evaluate_codecs,
    push_codec,
    train_prior,
    sample_prior,
    decode_tokens,
    import_prior,
    demo,
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


class _Parser(argparse.ArgumentParser):
    """Complains in one line, without the usage of every flag."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = _Parser(
        prog="vqgan",
        description="Image corpora to VQGAN tokens and back.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vqgan {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
