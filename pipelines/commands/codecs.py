"""``vqgan train``, ``evaluate``, ``import`` and ``export``: commands that make and measure codecs."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.flags import (
    STOPPED,
    CommandParser,
    add_command,
    add_explain,
    add_options,
    check_flags,
    given_options,
    preset_and_changes,
)

TOLD = "(default: what the checkpoint tells)"


def add_train(commands: Any) -> None:
    """Adds ``vqgan train``."""
    summary = "Train a VQGAN on images; the same command goes on where a run stopped."
    add_command(commands, "train", summary, _train, _add_train_flags)


def _add_train_flags(parser: CommandParser) -> None:
    from pipelines.model_options import TrainOptions

    add_options(parser, TrainOptions)
    add_explain(parser)
    parser.more_help = _presets


def _presets() -> str:
    from pipelines.settings import describe_presets
    from vqgan.training.codec.config import CODEC_TRAINING_PRESETS

    return describe_presets(CODEC_TRAINING_PRESETS)


def _train(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    check_flags(unknown, args.parser, beam=False)
    if args.explain is not None:
        from pipelines.settings import explain
        from pipelines.training_codec import configure_codec_training

        print(explain(configure_codec_training(*preset_and_changes(args)), args.explain))
        return 0
    from pipelines.model_options import TrainOptions
    from pipelines.runs import train

    summary = train(**given_options(TrainOptions, args))
    if summary.pushed:
        print(summary.pushed)
    return 0 if summary.finished else STOPPED


def add_evaluate(commands: Any) -> None:
    """Adds ``vqgan evaluate``."""
    summary = "Measure how well codecs reconstruct images."
    add_command(commands, "evaluate", summary, _evaluate, _add_evaluate_flags)


def _add_evaluate_flags(parser: CommandParser) -> None:
    from pipelines.run_options import EvaluateOptions

    add_options(parser, EvaluateOptions)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _evaluate(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    check_flags(unknown, args.parser, beam=False)
    from pipelines.evaluation_report import results_as_json
    from pipelines.run_options import EvaluateOptions
    from pipelines.runs import evaluate

    summary = evaluate(**given_options(EvaluateOptions, args))
    print(results_as_json(summary.results).rstrip() if args.json else summary)
    return 0


def add_import(commands: Any) -> None:
    """Adds ``vqgan import``."""
    summary = "Convert a checkpoint of another code base to a codec folder."
    parser = add_command(commands, "import", summary, _import)
    flag = parser.add_argument
    flag("source", help="checkpoint file or folder, or hf://owner/name[/file][@revision]")
    flag("--output", required=True, help="folder of the codec")
    flag("--input-range", help=f"pixel values for 0 and 255 that the model expects, such as 0,1 {TOLD}")
    flag("--resolution", help=f"side in pixels that it was trained at {TOLD}")
    flag("--attn-resolutions", help=f"sides of the levels with attention, such as 16,32 {TOLD}")
    flag("--weights", choices=("raw", "ema"), help="averaged weights, where the file has both (default: raw)")
    flag("--name", help=f"published name that it must be, such as vqgan_imagenet_f16_16384 {TOLD}")
    flag("--native-config", dest="config", help="its own configuration file (default: beside it)")


def _import(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.importing import import_codec

    check_flags(unknown, args.parser, beam=False)
    names = ("input_range", "resolution", "attn_resolutions", "weights", "name", "config")
    print(import_codec(args.source, args.output, {name: getattr(args, name) for name in names}))
    return 0


def add_export(commands: Any) -> None:
    """Adds ``vqgan export``."""
    parser = add_command(commands, "export", "Write a codec's weights for torch users.", _export)
    parser.usage = "%(prog)s CODEC --output DIR --to {safetensors,diffusers}"
    parser.add_argument("codec", metavar="CODEC", help="codec folder or name, or a foreign checkpoint")
    parser.add_argument("former_output", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--output", metavar="DIR", help="folder to write (required)")
    parser.add_argument("--to", required=True, choices=("safetensors", "diffusers"), help="format")


def _export(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.importing import export_codec

    check_flags(unknown, args.parser, beam=False)
    output = args.output or args.former_output
    if output is None:
        args.parser.error("the following arguments are required: --output")
    print(export_codec(args.codec, output, args.to))
    return 0
