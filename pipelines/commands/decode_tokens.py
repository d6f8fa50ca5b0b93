"""``vqgan decode``: its flags, and what they run."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import command


def add(commands: Any) -> None:
    """Adds ``vqgan decode``."""
    from pipelines.settings import DTYPES
    from transforms.rendering.forms import EXTENSIONS, FORMATS, VIEWS

    summary = "Turn a token data set, tokenized or sampled, into pictures. Further flags go to Apache Beam."
    parser = command(commands, "decode", summary, _run)
    flag = parser.add_argument
    flag("--tokens", required=True, help="finished token data set: folder, URI, or hf://datasets/owner/name")
    flag("--output", required=True, help="folder or URI of the pictures")
    flag("--codec", help="codec that made the tokens, as tokenize takes it (the one that they name)")
    flag(
        "--format", choices=FORMATS, default="png", help="a file for each picture, or archives of them (png)"
    )
    flag("--image-format", choices=sorted(EXTENSIONS), help="of pictures in tar and parquet (png)")
    flag("--quality", type=int, help="of webp and jpeg, 1 to 100 (90 and 95)")
    flag("--views", choices=VIEWS, default="all", help="rows to decode: all, or the first view of each image")
    flag("--limit", type=int, help="decode no more rows than this, the first ones")
    flag("--batch-size", type=int, default=32, help="grids of tokens per device call (32)")
    flag("--dtype", choices=DTYPES, default="float32", help="type that convolutions compute in")
    flag("--threads", type=int, default=os.cpu_count() or 1, help="encoders of pictures (one per core)")
    flag("--no-report", action="store_true", help="do not write report.html")
    flag("--quiet", action="store_true", help="print errors only")


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.decode_tokens import DecodeTokensConfig, form_of, run
    from pipelines.options import check_flags
    from pipelines.planned_runs import code_of

    check_flags(unknown, args.parser, beam=True)
    config = DecodeTokensConfig(
        tokens=args.tokens,
        output=args.output,
        codec=args.codec,
        form=form_of(args.format, args.image_format, args.quality),
        views=args.views,
        limit=args.limit,
        batch_size=args.batch_size,
        dtype=args.dtype,
        threads=args.threads,
        report=not args.no_report,
        quiet=args.quiet,
    )
    return code_of(config.output, run(config, unknown), "images")
