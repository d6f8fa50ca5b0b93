"""``vqgan verify``: its flags, and what they run."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import command
from vqgan.errors import UserError


def add(commands: Any) -> None:
    """Adds ``vqgan verify``."""
    parser = command(commands, "verify", "Check a data set against its manifest and plan.", _run)
    flag = parser.add_argument
    flag("path", help="data set: folder, URI, or hf://datasets/owner/name")
    flag("--codec", help="re-encode a sample with this codec and compare; needs --input")
    flag("--input", help="where the images came from")
    flag("--sample", type=int, default=64, help="images to re-encode (64)")
    flag("--min-agreement", type=float, default=0.999, help="least share of equal tokens (0.999)")
    from pipelines.options import add_source_flags

    add_source_flags(parser)


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options import check_flags, source_config
    from transforms.verifying import check_agreement, verify

    check_flags(unknown, args.parser, beam=False)
    if (args.codec is None) != (args.input is None):
        raise UserError("--codec and --input go together: give both to re-encode a sample")
    problems, summary = verify(args.path)
    print(summary)
    if args.codec is not None and not problems:
        agreement = check_agreement(args.path, source_config(args), args.codec, args.sample)
        print(f"{agreement.images} images re-encoded: {agreement.share:.4%} of tokens agree")
        if agreement.share < args.min_agreement:
            problems.append(f"agreement {agreement.share:.4%} is below {args.min_agreement:.2%}")
    for problem in problems:
        print(f"problem: {problem}")
    print("ok" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0
