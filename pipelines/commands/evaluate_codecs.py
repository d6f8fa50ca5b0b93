"""``vqgan evaluate``: its flags, and what they run."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import command


def add(commands: Any) -> None:
    """Adds ``vqgan evaluate``."""
    from pipelines.options import add_source_flags

    parser = command(commands, "evaluate", "Measure how well codecs reconstruct pictures.", _run)
    flag = parser.add_argument
    flag("--codec", action="append", required=True, help="as tokenize takes it; again for each to compare")
    flag("--data", dest="input", required=True, help="images, in any form that tokenize reads")
    flag("--output", help="folder for evaluation.json, evaluation.csv and report.html")
    flag("--image-size", type=int, help="side of the square in pixels (the codecs' resolution)")
    flag("--split", default="all", help="all, or of vqgan train: train, validation (all)")
    flag("--holdout", type=int, default=10, help="of a split: one in this many images is held back (10)")
    flag("--limit", type=int, help="at most this many images, a sample by a hash of their keys")
    flag("--metrics", help="some of psnr,ssim,l1,lpips-alex,lpips-vgg,frechet (all that can be had)")
    flag("--features", help="network of the Fréchet distance: efficientnet-lite0 (default) or inception")
    flag("--features-weights", help="its weights file; for inception, pytorch-fid's gives FID")
    flag("--lpips-heads", help="LPIPS heads in torch's layout, such as vgg.pth")
    flag("--lpips-backbone", help="torchvision's classifier below them")
    flag("--batch-size", type=int, default=32, help="images per device call (32)")
    flag("--threads", type=int, default=os.cpu_count() or 1, help="readers and decoders (one per core)")
    flag("--json", action="store_true", help="print JSON")
    flag("--quiet", action="store_true", help="no progress")
    add_source_flags(parser)


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.evaluating import EvaluateConfig, evaluate
    from pipelines.evaluation_results import as_json, as_text
    from pipelines.options import check_flags, source_config
    from pipelines.scoring import MetricChoice

    check_flags(unknown, args.parser, beam=False)
    metrics = None if args.metrics is None else tuple(name.strip() for name in args.metrics.split(","))
    paths = (args.features, args.features_weights, args.lpips_heads, args.lpips_backbone)
    settings = ("image_size", "split", "holdout", "limit", "batch_size", "threads", "output", "quiet")
    config = EvaluateConfig(
        source=source_config(args),
        codecs=tuple(args.codec),
        choice=MetricChoice(metrics, *paths),
        **{name: getattr(args, name) for name in settings},
    )
    result = evaluate(config)
    print(as_json(result).rstrip() if args.json else as_text(result))
    return 0
