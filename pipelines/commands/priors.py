"""``vqgan train-prior``, ``sample`` and ``import-prior``: commands that make priors and draw from them."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.flags import STOPPED, add_command, check_flags
from vqgan.errors import UserError
from vqgan.prior.config import MASK_SCHEDULES
from vqgan.prior.sampling.config import GUIDANCE_SCHEDULES, MaskedSamplingConfig, SamplingConfig


def add_train_prior(commands: Any) -> None:
    """Adds ``vqgan train-prior``."""
    summary = "Train a prior on token data sets; the same command goes on where a run stopped."
    parser = add_command(commands, "train-prior", summary, _train_prior)
    flag = parser.add_argument
    flag(
        "--tokens",
        action="append",
        required=True,
        metavar="DIR[=WEIGHT]",
        help="folder or hf://datasets/owner/name; several are mixed, by their weights if they have any",
    )
    flag("--output", required=True, help="folder of the run; the best prior is its subfolder prior")
    flag("--preset", default="tiny", help="named configuration (tiny)")
    flag(
        "--set", action="append", default=[], metavar="A.B=V", help="change a field, such as train.steps=1000"
    )
    flag(
        "--validation",
        metavar="DIR",
        help="tokens to validate on; by default one image in data.holdout of --tokens",
    )
    flag("--condition", metavar="DIR", help="token data set of the same keys and views that is the condition")
    flag("--unconditional", action="store_true", help="leave the classes of the data set out")
    flag("--codec", help="codec for image grids of samples; by default the one that the data set names")
    flag("--license", default="unspecified", help="licence of the prior, for its card")
    flag("--wandb", metavar="PROJECT", help="also log to Weights & Biases")
    flag("--quiet", action="store_true", help="print errors only")


def _train_prior(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.training_prior import TrainPriorRequest, run_prior_training

    check_flags(unknown, args.parser, beam=False)
    request = TrainPriorRequest(
        tokens=tuple(args.tokens),
        output=args.output,
        preset=args.preset,
        settings=tuple(args.set),
        validation=args.validation,
        condition=args.condition,
        codec=args.codec,
        unconditional=args.unconditional,
        license=args.license,
        wandb_project=args.wandb,
        quiet=args.quiet,
    )
    return 0 if run_prior_training(request) else STOPPED


def add_sample(commands: Any) -> None:
    """Adds ``vqgan sample``."""
    parser = add_command(commands, "sample", "Draw new token grids from a prior, and their images.", _sample)
    flag = parser.add_argument
    flag("--prior", required=True, help="folder of a prior, or of its run, or hf://owner/name")
    flag("--count", type=int, required=True, help="number of samples, all classes together")
    flag("--output", required=True, help="folder or URI of the token data set")
    flag("--codec", help="decodes the images (the codec that the prior names)")
    flag(
        "--class",
        dest="classes",
        action="append",
        default=[],
        help="name or number, or none; again for several, taken in turn (all of the prior's)",
    )
    flag("--seed", type=int, default=0, help="of the first sample; the others follow (0)")
    flag("--batch-size", type=int, default=16, help="samples drawn together (16)")
    flag("--slice-size", type=int, default=256, help="samples per shard, at most (256)")
    flag("--dtype", default="float32", help="type of activations: float32 (default) or bfloat16")
    flag("--no-pictures", action="store_true", help="write token shards only")
    flag("--quiet", action="store_true", help="no progress")
    _add_drawing_flags(parser)
    _add_given_flags(parser)


def _add_drawing_flags(parser: argparse.ArgumentParser) -> None:
    defaults, masked = SamplingConfig(), MaskedSamplingConfig()
    group = parser.add_argument_group("drawing")
    flag = group.add_argument
    flag("--temperature", type=float, default=defaults.temperature, help="0 takes the most probable (1)")
    flag("--top-k", type=int, default=defaults.top_k, help="only the k most probable tokens; 0 for all")
    flag("--top-p", type=float, default=defaults.top_p, help="only tokens of this probability together (1)")
    flag("--guidance", type=float, default=defaults.guidance, help="scale of classifier-free guidance (1)")
    flag("--guidance-schedule", choices=GUIDANCE_SCHEDULES, default=defaults.guidance_schedule)
    flag("--guidance-from", type=float, default=defaults.guidance_from, help="share of the tokens (0)")
    flag("--guidance-until", type=float, default=defaults.guidance_until, help="share of the tokens (1)")
    flag("--steps", type=int, default=masked.steps, help="masked priors: passes (12)")
    flag("--mask-schedule", choices=MASK_SCHEDULES, default=masked.schedule)
    flag(
        "--choice-temperature",
        type=float,
        default=masked.choice_temperature,
        help="masked priors: noise in the choice of tokens that are kept (4.5)",
    )


def _add_given_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("given tokens")
    flag = group.add_argument
    flag(
        "--given",
        metavar="TOKENS",
        help="token data set: sample i starts from its row i, from the first again at its end",
    )
    flag("--keep-rows", type=int, help="rows of the grid that are given, from the top")
    flag("--inpaint", metavar="T,L,B,R", help="region of the grid that is sampled anew (masked priors)")
    flag(
        "--condition", metavar="TOKENS", help="token data set of condition grids, row by row in the same way"
    )
    flag("--grid", metavar="HxW", help="a larger grid than trained, by a sliding window")


def _sample(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.sample_prior import GivenTokens, SampleConfig, run_sample

    check_flags(unknown, args.parser, beam=False)
    if args.given is None and (args.keep_rows is not None or args.inpaint is not None):
        raise UserError("--keep-rows and --inpaint say what of --given is given: give both")
    given = None
    if args.given is not None:
        region = None
        if args.inpaint is not None:
            top, left, bottom, right = _numbers("--inpaint", args.inpaint, ",", 4)
            region = (top, left, bottom, right)
        given = GivenTokens(args.given, args.keep_rows, region)
    grid = None if args.grid is None else _numbers("--grid", args.grid, "x", 2)
    plain = ("prior", "output", "count", "codec", "seed", "condition", "batch_size", "slice_size", "dtype")
    config = SampleConfig(
        classes=tuple(args.classes),
        settings=_sampling_config(args),
        grid=None if grid is None else (grid[0], grid[1]),
        given=given,
        pictures=not args.no_pictures,
        quiet=args.quiet,
        **{name: getattr(args, name) for name in plain},
    )
    run_sample(config)
    return 0


def _sampling_config(args: argparse.Namespace) -> SamplingConfig:
    guidance = ("guidance", "guidance_schedule", "guidance_from", "guidance_until")
    return SamplingConfig(
        masked=MaskedSamplingConfig(args.steps, args.mask_schedule, args.choice_temperature),
        **{name: getattr(args, name) for name in ("temperature", "top_k", "top_p", *guidance)},
    )


def add_import_prior(commands: Any) -> None:
    """Adds ``vqgan import-prior``."""
    summary = "Convert a prior of Taming Transformers to a prior folder."
    parser = add_command(commands, "import-prior", summary, _import_prior)
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


def _import_prior(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.importing import ImportPrior, import_prior

    check_flags(unknown, args.parser, beam=False)
    config = ImportPrior(
        source=args.source,
        codec=args.codec,
        image_size=args.image_size,
        output=args.output,
        heads=args.heads,
        classes=args.classes,
        condition_codes=args.condition_codes,
        condition_grid=_condition_grid(args.condition_grid),
        config=args.config,
    )
    print(import_prior(config))
    return 0


def _condition_grid(text: str | None) -> tuple[int, int]:
    """Reads ``--condition-grid``; without one both sides are 0."""
    if text is None:
        return 0, 0
    sides = _split_numbers(text.lower(), "x", 2)
    if sides is None:
        raise UserError(f"--condition-grid is {text!r}: give height and width in tokens, such as 16x16")
    return sides[0], sides[1]


def _numbers(flag: str, text: str, separator: str, count: int) -> list[int]:
    """Reads the whole numbers of a flag such as ``32x32``."""
    numbers = _split_numbers(text, separator, count)
    if numbers is None:
        raise UserError(f"{flag} {text}: give {count} whole numbers with {separator!r} between them")
    return numbers


def _split_numbers(text: str, separator: str, count: int) -> list[int] | None:
    parts = [part.strip() for part in text.split(separator)]
    return [int(part) for part in parts] if len(parts) == count and all(map(str.isdecimal, parts)) else None
