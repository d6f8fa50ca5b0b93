"""``vqgan train``, ``evaluate``, ``import`` and ``export``: commands that make and measure codecs."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from pipelines.flags import STOPPED, add_command, add_source_flags, check_flags, source_config


def add_train(commands: Any) -> None:
    """Adds ``vqgan train``."""
    summary = "Train a VQGAN on images; the same command goes on where a run stopped."
    parser = add_command(commands, "train", summary, _train)
    flag = parser.add_argument
    flag("--data", dest="input", required=True, help="images, in any form that tokenize reads")
    flag("--output", required=True, help="folder of the run; the best codec is its subfolder codec")
    flag("--preset", default="tiny", help="named configuration (tiny)")
    flag(
        "--set", action="append", default=[], metavar="A.B=V", help="change a field, such as train.steps=1000"
    )
    flag("--validation", help="validation images; by default one in data.holdout of --data")
    flag("--init", metavar="CODEC", help="start from this codec, its codebook included")
    flag("--license", default="unspecified", help="licence of the codec, for its card")
    flag("--push", metavar="OWNER/NAME", help="upload the codec to the Hugging Face Hub at the end")
    flag("--wandb", metavar="PROJECT", help="also log to Weights & Biases")
    flag("--quiet", action="store_true", help="print errors only")
    add_source_flags(parser)


def _train(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.pushing import check_can_push, push
    from pipelines.training_codec import TrainRequest, run_codec_training

    check_flags(unknown, args.parser, beam=False)
    source = source_config(args)
    request = TrainRequest(
        source=source,
        output=args.output,
        preset=args.preset,
        settings=tuple(args.set),
        validation=dataclasses.replace(source, input=args.validation) if args.validation else None,
        init=args.init,
        license=args.license,
        wandb_project=args.wandb,
        quiet=args.quiet,
    )
    if args.push:
        check_can_push(args.push)
    if not run_codec_training(request):
        return STOPPED
    if args.push:
        print(push(f"{args.output}/codec", args.push))
    return 0


def add_evaluate(commands: Any) -> None:
    """Adds ``vqgan evaluate``."""
    parser = add_command(commands, "evaluate", "Measure how well codecs reconstruct images.", _evaluate)
    flag = parser.add_argument
    flag("--codec", action="append", required=True, help="as tokenize takes it; again for each to compare")
    flag("--data", dest="input", required=True, help="images, in any form that tokenize reads")
    flag("--output", help="folder for evaluation.json, evaluation.csv and report.html")
    flag("--image-size", type=int, help="side of the square in pixels (the codecs' resolution)")
    flag("--split", default="all", help="all, or of vqgan train: train, validation (all)")
    flag("--holdout", type=int, default=10, help="of a split: one in this many images is for validation (10)")
    flag("--limit", type=int, help="at most this many images, a sample by a hash of their keys")
    flag("--metrics", help="some of psnr,ssim,l1,lpips-alex,lpips-vgg,frechet (all that are available)")
    flag("--features", help="network of the Fréchet distance: efficientnet-lite0 (default) or inception")
    flag("--features-weights", help="its weights file; for inception, pytorch-fid's gives FID")
    flag("--lpips-heads", help="LPIPS heads in torch's layout, such as vgg.pth")
    flag("--lpips-backbone", help="torchvision's classifier below them")
    flag("--batch-size", type=int, default=32, help="images per device call (32)")
    flag("--threads", type=int, default=os.cpu_count() or 1, help="readers and decoders (one per core)")
    flag("--json", action="store_true", help="print JSON")
    flag("--quiet", action="store_true", help="no progress")
    add_source_flags(parser)


def _evaluate(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.evaluating import EvaluateConfig, evaluate
    from pipelines.evaluation_metrics import MetricChoice
    from pipelines.evaluation_report import format_results, results_as_json

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
    results = evaluate(config)
    print(results_as_json(results).rstrip() if args.json else format_results(results))
    return 0


def add_import(commands: Any) -> None:
    """Adds ``vqgan import``."""
    summary = "Convert a checkpoint of another code base to a codec folder."
    parser = add_command(commands, "import", summary, _import)
    flag = parser.add_argument
    flag("source", help="checkpoint file or folder, or hf://owner/name[/file][@revision]")
    flag("--output", required=True, help="folder of the codec")
    flag("--input-range", help="pixel values for 0 and 255 that the model expects, such as 0,1")
    flag("--resolution", help="side in pixels that it was trained at")
    flag("--attn-resolutions", help="sides of the levels with attention, such as 16,32")
    flag("--weights", choices=("raw", "ema"), help="averaged weights, where the file has both (raw)")
    flag("--name", help="published name that it must be, such as vqgan_imagenet_f16_16384")
    flag("--config", help="its native configuration file, if that lies elsewhere")


def _import(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.importing import import_codec

    check_flags(unknown, args.parser, beam=False)
    names = ("input_range", "resolution", "attn_resolutions", "weights", "name", "config")
    print(import_codec(args.source, args.output, {name: getattr(args, name) for name in names}))
    return 0


def add_export(commands: Any) -> None:
    """Adds ``vqgan export``."""
    parser = add_command(commands, "export", "Write a codec's weights for torch users.", _export)
    parser.add_argument("codec", help="codec folder or name, or a checkpoint of another code base")
    parser.add_argument("output", metavar="DIR", help="folder to write")
    parser.add_argument("--to", required=True, choices=("safetensors", "diffusers"), help="format")


def _export(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.importing import export_codec

    check_flags(unknown, args.parser, beam=False)
    print(export_codec(args.codec, args.output, args.to))
    return 0
