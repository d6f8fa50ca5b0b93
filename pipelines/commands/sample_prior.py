"""``vqgan sample``: its flags, and what they run."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import command
from vqgan.errors import UserError


def add(commands: Any) -> None:
    """Adds ``vqgan sample``."""
    from vqgan.prior.config import MASK_SCHEDULES
    from vqgan.prior.sampling.config import GUIDANCE_SCHEDULES, MaskedSamplingConfig, SamplingConfig

    parser = command(commands, "sample", "Draw new token grids from a prior, and their pictures.", _run)
    flag = parser.add_argument
    flag("--prior", required=True, help="folder of a prior, or of its run, or hf://owner/name")
    flag("--count", type=int, required=True, help="number of samples, all classes together")
    flag("--output", required=True, help="folder or URI of the token data set")
    flag("--codec", help="renders the pictures (the codec that the prior names)")
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


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.given_tokens import GivenTokens
    from pipelines.options import check_flags
    from pipelines.sample_prior import run
    from pipelines.sampling_plan import SampleConfig
    from vqgan.prior.sampling.config import MaskedSamplingConfig, SamplingConfig

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
    guidance = ("guidance", "guidance_schedule", "guidance_from", "guidance_until")
    settings = SamplingConfig(
        masked=MaskedSamplingConfig(args.steps, args.mask_schedule, args.choice_temperature),
        **{name: getattr(args, name) for name in ("temperature", "top_k", "top_p", *guidance)},
    )
    plain = ("prior", "output", "count", "codec", "seed", "condition", "batch_size", "slice_size", "dtype")
    config = SampleConfig(
        classes=tuple(args.classes),
        settings=settings,
        grid=None if grid is None else (grid[0], grid[1]),
        given=given,
        pictures=not args.no_pictures,
        quiet=args.quiet,
        **{name: getattr(args, name) for name in plain},
    )
    run(config)
    return 0


def _numbers(flag: str, text: str, separator: str, count: int) -> list[int]:
    """Whole numbers of a flag such as ``32x32``."""
    parts = text.split(separator)
    if len(parts) != count or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"{flag} {text}: give {count} whole numbers with {separator!r} between them")
    return [int(part) for part in parts]
