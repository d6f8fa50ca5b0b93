"""The ``vqgan`` program: parses flags, calls one function, prints one-line errors."""

import argparse
import os
import sys
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
from vqgan import __version__
from vqgan.errors import UserError

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
    """Runs one command; gives the exit code (0 well, 1 found problems, 2 a user's mistake, 130 stopped)."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    try:
        code: int = args.run(args, unknown)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"vqgan {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vqgan {args.command}: interrupted; the same command continues the run", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (``| head``). Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    """Complains in one line, without the usage of every flag."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = _Parser(prog="vqgan", description="Image corpora to VQGAN tokens and back.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"vqgan {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
