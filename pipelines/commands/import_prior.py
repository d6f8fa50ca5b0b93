"""``vqgan import-prior``: its flags, and what they run."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import command


def add(commands: Any) -> None:
    """Adds ``vqgan import-prior``."""
    summary = "Convert a prior of Taming Transformers to a prior folder."
    parser = command(commands, "import-prior", summary, _run)
    flag = parser.add_argument
    flag(
        "source",
        help="checkpoint of a Net2NetTransformer: file, folder, or hf://owner/name[/file][@revision]",
    )
    flag("--codec", required=True, help="codec whose tokens it was trained on; may be the same checkpoint")
    flag("--image-size", required=True, type=int, help="side in pixels of the images it was trained on")
    flag("--heads", type=int, help="attention heads (n_head), where no configuration lies beside the file")
    flag("--classes", type=int, default=0, help="number of classes, for a class-conditional prior (0)")
    flag("--condition-codes", type=int, default=0, help="codes of the condition's tokens (no such condition)")
    flag("--condition-grid", help="height and width of the condition's tokens, such as 16x16")
    flag("--config", help="its native configuration file, if that lies elsewhere")
    flag("--output", required=True, help="folder of the prior")


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.importing_prior import ImportPrior, import_prior, read_grid
    from pipelines.options import check_flags

    check_flags(unknown, args.parser, beam=False)
    config = ImportPrior(
        source=args.source,
        codec=args.codec,
        image_size=args.image_size,
        output=args.output,
        heads=args.heads,
        classes=args.classes,
        condition_codes=args.condition_codes,
        condition_grid=(0, 0) if args.condition_grid is None else read_grid(args.condition_grid),
        config=args.config,
    )
    print(import_prior(config))
    return 0
