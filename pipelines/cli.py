"""The ``vqgan`` program: parses flags, calls one function, prints one-line errors."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from vqgan.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit code (0 well, 1 found problems, 2 a user's mistake)."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    try:
        code: int = args.run(args, unknown)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"vqgan {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vqgan {args.command}: interrupted; the same command continues the run", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (``| head``). Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    """Complains in one line, without the usage of every flag."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = _Parser(prog="vqgan", description="Image corpora to VQGAN tokens and back.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_tokenize(commands)
    _add_inspect(commands)
    _add_verify(commands)
    _add_import(commands)
    _add_export(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_push(commands)
    _add_demo(commands)
    return parser


def _command(commands: Any, name: str, summary: str, run: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.set_defaults(run=run, parser=parser)
    return parser


def _add_tokenize(commands: Any) -> None:
    from pipelines.options import add_tokenize_flags

    summary = "Turn an image corpus into Parquet token shards. Further flags go to Apache Beam."
    add_tokenize_flags(_command(commands, "tokenize", summary, _tokenize))


def _tokenize(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines import dry_run, tokenize_images
    from pipelines.options import check_flags, tokenize_config

    check_flags(unknown, args.parser, beam=True)
    config = tokenize_config(args)
    if args.dry_run:
        for name, value in dry_run.estimate(config).items():
            print(f"{name}: {value}")
    else:
        tokenize_images.run(config, unknown)
    return 0


def _add_inspect(commands: Any) -> None:
    summary = "Describe a codec, a checkpoint of another code base, a data set or one shard."
    parser = _command(commands, "inspect", summary, _inspect)
    parser.add_argument("path", help="codec folder or name, checkpoint, data set folder, or shard")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _inspect(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.inspecting import as_text, describe
    from pipelines.options import check_flags

    check_flags(unknown, args.parser, beam=False)
    description = describe(args.path)
    print(json.dumps(description, indent=2) if args.json else as_text(description))
    return 0


def _add_verify(commands: Any) -> None:
    parser = _command(commands, "verify", "Check a data set against its manifest and plan.", _verify)
    add = parser.add_argument
    add("path", help="data set folder")
    add("--codec", help="re-encode a sample with this codec and compare; needs --input")
    add("--input", help="where the images came from")
    add("--sample", type=int, default=64, help="images to re-encode (64)")
    add("--min-agreement", type=float, default=0.999, help="least share of equal tokens (0.999)")
    from pipelines.options import add_source_flags

    add_source_flags(parser)


def _verify(args: argparse.Namespace, unknown: Sequence[str]) -> int:
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


def _add_import(commands: Any) -> None:
    summary = "Convert a checkpoint of another code base to a codec folder."
    parser = _command(commands, "import", summary, _import)
    add = parser.add_argument
    add("source", help="checkpoint file or folder, or hf://owner/name[/file][@revision]")
    add("--output", required=True, help="folder of the codec")
    add("--input-range", help="pixel values for 0 and 255 that the model expects, such as 0,1")
    add("--resolution", help="side in pixels that it was trained at")
    add("--attn-resolutions", help="sides of the levels with attention, such as 16,32")
    add("--weights", choices=("raw", "ema"), help="averaged weights, where the file has both (raw)")
    add("--name", help="published name that it must be, such as vqgan_imagenet_f16_16384")
    add("--config", help="its native configuration file, if that lies elsewhere")


def _import(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.importing import import_codec
    from pipelines.options import check_flags

    check_flags(unknown, args.parser, beam=False)
    names = ("input_range", "resolution", "attn_resolutions", "weights", "name", "config")
    print(import_codec(args.source, args.output, {name: getattr(args, name) for name in names}))
    return 0


def _add_export(commands: Any) -> None:
    parser = _command(commands, "export", "Write a codec's weights for torch users.", _export)
    parser.add_argument("codec", help="codec folder or name, or a checkpoint of another code base")
    parser.add_argument("output", metavar="DIR", help="folder to write")
    parser.add_argument("--to", required=True, choices=("safetensors", "diffusers"), help="format")


def _export(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.importing import export_codec
    from pipelines.options import check_flags

    check_flags(unknown, args.parser, beam=False)
    print(export_codec(args.codec, args.output, args.to))
    return 0


def _add_train(commands: Any) -> None:
    from pipelines.options import add_source_flags

    summary = "Train a VQGAN on images; the same command goes on where a run stopped."
    parser = _command(commands, "train", summary, _train)
    add = parser.add_argument
    add("--data", dest="input", required=True, help="images, in any form that tokenize reads")
    add("--output", required=True, help="folder of the run; the best codec is its subfolder codec")
    add("--preset", default="tiny", help="named configuration (tiny)")
    add(
        "--set", action="append", default=[], metavar="A.B=V", help="change a field, such as train.steps=1000"
    )
    add("--validation", help="held-back images; by default one in data.holdout of --data")
    add("--init", metavar="CODEC", help="start from this codec, its codebook included")
    add("--license", default="unspecified", help="licence of the codec, for its card")
    add("--push", metavar="OWNER/NAME", help="upload the codec to the Hugging Face Hub at the end")
    add("--wandb", metavar="PROJECT", help="also log to Weights & Biases")
    add("--quiet", action="store_true", help="print errors only")
    add_source_flags(parser)


def _train(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options import check_flags, source_config
    from pipelines.pushing import check_can_push, push_codec
    from pipelines.training import TrainRequest, run

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
    if run(request) and args.push:
        print(push_codec(f"{args.output}/codec", args.push))
    return 0


def _add_evaluate(commands: Any) -> None:
    from pipelines.options import add_source_flags

    parser = _command(commands, "evaluate", "Measure how well codecs reconstruct pictures.", _evaluate)
    add = parser.add_argument
    add("--codec", action="append", required=True, help="as tokenize takes it; again for each to compare")
    add("--data", dest="input", required=True, help="images, in any form that tokenize reads")
    add("--output", help="folder for evaluation.json, evaluation.csv and report.html")
    add("--image-size", type=int, help="side of the square in pixels (the codecs' resolution)")
    add("--split", default="all", help="all, or of vqgan train: train, validation (all)")
    add("--holdout", type=int, default=10, help="of a split: one in this many images is held back (10)")
    add("--limit", type=int, help="at most this many images, a sample by a hash of their keys")
    add("--metrics", help="some of psnr,ssim,l1,lpips-alex,lpips-vgg,frechet (all that can be had)")
    add("--features", help="network of the Fréchet distance: efficientnet-lite0 (default) or inception")
    add("--features-weights", help="its weights file; for inception, pytorch-fid's gives FID")
    add("--lpips-heads", help="LPIPS heads in torch's layout, such as vgg.pth")
    add("--lpips-backbone", help="torchvision's classifier below them")
    add("--batch-size", type=int, default=32, help="images per device call (32)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="readers and decoders (one per core)")
    add("--json", action="store_true", help="print JSON")
    add("--quiet", action="store_true", help="no progress")
    add_source_flags(parser)


def _evaluate(args: argparse.Namespace, unknown: Sequence[str]) -> int:
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


def _add_push(commands: Any) -> None:
    parser = _command(commands, "push", "Upload a codec to the Hugging Face Hub, with its card.", _push)
    add = parser.add_argument
    add("codec", help="codec folder or name, or the folder of the run that trained it")
    add("repository", metavar="OWNER/NAME", help="repository; created if it is not there")
    add("--revision", help="branch (the repository's main one)")
    add("--private", action="store_true", help="if the repository is created, make it private")
    add("--message", help="of the commit")


def _push(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options import check_flags
    from pipelines.pushing import push_codec

    check_flags(unknown, args.parser, beam=False)
    options = {"revision": args.revision, "private": args.private, "message": args.message}
    print(push_codec(args.codec, args.repository, **options))
    return 0


def _add_demo(commands: Any) -> None:
    parser = _command(commands, "demo", "Photographs to tokens and back, with a report to look at.", _demo)
    parser.add_argument("--output", default="demo-output", help="folder for everything (demo-output)")
    parser.add_argument("--input", help="your own images instead of the photographs that come along")


def _demo(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.demo import run
    from pipelines.options import check_flags

    check_flags(unknown, args.parser, beam=False)
    run(args.output, args.input)
    return 0


if __name__ == "__main__":
    sys.exit(main())
