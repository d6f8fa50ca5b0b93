"""``vqgan push``: its flags, and what they run."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import command


def add(commands: Any) -> None:
    """Adds ``vqgan push``."""
    parser = command(commands, "push", "Upload a codec to the Hugging Face Hub, with its card.", _run)
    flag = parser.add_argument
    flag("codec", help="codec folder or name, or the folder of the run that trained it")
    flag("repository", metavar="OWNER/NAME", help="repository; created if it is not there")
    flag("--revision", help="branch (the repository's main one)")
    flag("--private", action="store_true", help="if the repository is created, make it private")
    flag("--message", help="of the commit")


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options import check_flags
    from pipelines.pushing import push_codec

    check_flags(unknown, args.parser, beam=False)
    options = {"revision": args.revision, "private": args.private, "message": args.message}
    print(push_codec(args.codec, args.repository, **options))
    return 0
