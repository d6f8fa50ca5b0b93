"""``vqgan push``: its flags, and what they run."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import command


def add(commands: Any) -> None:
    """Adds ``vqgan push``."""
    summary = "Upload a codec, a prior or a token data set to the Hugging Face Hub, with its card."
    parser = command(commands, "push", summary, _run)
    flag = parser.add_argument
    flag("path", help="folder of a codec, of a prior, of the run that trained it, or of a token data set")
    flag("repository", metavar="OWNER/NAME", help="repository; created if it is not there")
    flag("--revision", help="branch (the repository's main one)")
    flag("--private", action="store_true", help="if the repository is created, make it private")
    flag("--message", help="of the commit")


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options import check_flags
    from pipelines.pushing import push

    check_flags(unknown, args.parser, beam=False)
    options = {"revision": args.revision, "private": args.private, "message": args.message}
    print(push(args.path, args.repository, **options))
    return 0
