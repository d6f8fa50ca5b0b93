"""``vqgan train``, ``evaluate``, ``import`` and ``export``: commands that make and measure codecs."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from pipelines.options.flags import (
    STOPPED,
    CommandParser,
    add_command,
    add_explain,
    add_options,
    check_flags,
    given_options,
    preset_and_changes,
)


def add_train(commands: Any) -> None:
    """Adds ``vqgan train``."""
    summary = "Train a VQGAN on images; the same command goes on where a run stopped."
    add_command(commands, "train", summary, _train, _add_train_flags)


def _add_train_flags(parser: CommandParser) -> None:
    from pipelines.options.model_options import TrainOptions

    add_options(parser, TrainOptions)
    add_explain(parser)
    parser.more_help = _presets


def _presets() -> str:
    from pipelines.options.settings import describe_presets
    from vqgan.training.codec.config import CODEC_TRAINING_PRESETS

    return describe_presets(CODEC_TRAINING_PRESETS)


def _train(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    check_flags(unknown, args.parser, beam=False)
    if args.explain is not None:
        from pipelines.options.settings import explain
        from pipelines.training.training_codec import configure_codec_training

        print(explain(configure_codec_training(*preset_and_changes(args)), args.explain))
        return 0
    from pipelines.options.model_options import TrainOptions
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
    from pipelines.options.run_options import EvaluateOptions

    add_options(parser, EvaluateOptions)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _evaluate(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    check_flags(unknown, args.parser, beam=False)
    from pipelines.evaluating.evaluation_report import results_as_json
    from pipelines.options.run_options import EvaluateOptions
    from pipelines.runs import evaluate

    summary = evaluate(**given_options(EvaluateOptions, args))
    print(results_as_json(summary.results).rstrip() if args.json else summary)
    return 0


def add_import(commands: Any) -> None:
    """Adds ``vqgan import``."""
    summary = "Convert a checkpoint of another code base to a codec folder."
    add_command(commands, "import", summary, _import, _add_import_flags)


def _add_import_flags(parser: CommandParser) -> None:
    from pipelines.options.tool_options import ImportCodecOptions

    add_options(parser, ImportCodecOptions)


def _import(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options.tool_options import ImportCodecOptions

    check_flags(unknown, args.parser, beam=False)
    options = ImportCodecOptions(**given_options(ImportCodecOptions, args))
    from pipelines.importing import import_codec

    print(import_codec(os.fspath(options.source), os.fspath(options.output), options.of_source()))
    return 0


def add_export(commands: Any) -> None:
    """Adds ``vqgan export``."""
    summary = "Write a codec or a prior for other programs: ONNX, diffusers, LlamaGen, transformers."
    add_command(commands, "export", summary, _export, _add_export_flags)


def _add_export_flags(parser: CommandParser) -> None:
    from pipelines.options.tool_options import ExportOptions

    add_options(parser, ExportOptions)
    parser.add_argument("former_output", nargs="?", help=argparse.SUPPRESS)


def _export(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options.tool_options import ExportOptions

    check_flags(unknown, args.parser, beam=False)
    if args.former_output is not None and not getattr(args, "output", None):
        args.output = args.former_output
    options = ExportOptions(**given_options(ExportOptions, args))
    from pipelines.importing import export_codec

    print(export_codec(os.fspath(options.codec), os.fspath(options.output), options.to))
    return 0
