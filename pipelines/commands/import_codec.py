"""``vqgan import``: its flags, and what they run."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import command


def add(commands: Any) -> None:
    """Adds ``vqgan import``."""
    summary = "Convert a checkpoint of another code base to a codec folder."
    parser = command(commands, "import", summary, _run)
    flag = parser.add_argument
    flag("source", help="checkpoint file or folder, or hf://owner/name[/file][@revision]")
    flag("--output", required=True, help="folder of the codec")
    flag("--input-range", help="pixel values for 0 and 255 that the model expects, such as 0,1")
    flag("--resolution", help="side in pixels that it was trained at")
    flag("--attn-resolutions", help="sides of the levels with attention, such as 16,32")
    flag("--weights", choices=("raw", "ema"), help="averaged weights, where the file has both (raw)")
    flag("--name", help="published name that it must be, such as vqgan_imagenet_f16_16384")
    flag("--config", help="its native configuration file, if that lies elsewhere")


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.importing import import_codec
    from pipelines.options import check_flags

    check_flags(unknown, args.parser, beam=False)
    names = ("input_range", "resolution", "attn_resolutions", "weights", "name", "config")
    print(import_codec(args.source, args.output, {name: getattr(args, name) for name in names}))
    return 0
