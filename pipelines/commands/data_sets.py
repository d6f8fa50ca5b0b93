"""``vqgan tokenize``, ``decode``, ``verify``, ``retry``, ``merge``, ``browse``: images to tokens and back."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.options.flags import CommandParser, add_command, add_options, check_flags, given_options
from vqgan.errors import UserError, counted
from vqgan.faults import MachineError

if TYPE_CHECKING:
    from pipelines.options.tool_options import VerifyOptions

PROBLEMS_SHOWN = 3


def add_tokenize(commands: Any) -> None:
    """Adds ``vqgan tokenize``."""
    summary = "Turn an image corpus into Parquet token shards. Further flags go to Apache Beam."
    add_command(commands, "tokenize", summary, _tokenize, _add_tokenize_flags)


def _add_tokenize_flags(parser: CommandParser) -> None:
    from pipelines.options.run_options import TokenizeOptions

    add_options(parser, TokenizeOptions)
    help = "plan, encode a few batches, estimate; write nothing"
    parser.add_argument("--dry-run", action="store_true", help=help)


def _tokenize(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    check_flags(unknown, args.parser, beam=True)
    if args.dry_run:
        return _dry_run(args, unknown)
    from pipelines.options.run_options import TokenizeOptions
    from pipelines.runs import tokenize
    from transforms.sharded.run import exit_code

    made = tokenize(**given_options(TokenizeOptions, args, unknown))
    return exit_code(made.output, made.manifest, "rows")


def _dry_run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.dry_run import estimate, estimate_buckets
    from pipelines.inspecting import format_description
    from pipelines.options.run_options import TokenizeOptions

    options = TokenizeOptions(**given_options(TokenizeOptions, args, unknown))
    flags = tuple(options.beam)
    check_flags(flags, args.parser, beam=True)  # those of --config, too
    if options.buckets:
        print(format_description(estimate_buckets(options.config(), options.buckets, flags, options.append)))
        return 0
    for name, value in estimate(options.config(), flags, options.append).items():
        print(f"{name}: {value}")
    return 0


def add_retry(commands: Any) -> None:
    """Adds ``vqgan retry``."""
    summary = "Try the rejects of a token data set again. Further flags go to Apache Beam."
    add_command(commands, "retry", summary, _retry, _add_retry_flags)


def _add_retry_flags(parser: CommandParser) -> None:
    from pipelines.options.tool_options import RetryOptions

    add_options(parser, RetryOptions)


def _retry(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    check_flags(unknown, args.parser, beam=True)
    from pipelines.options.tool_options import RetryOptions
    from pipelines.runs import retry

    retry(**given_options(RetryOptions, args, unknown))
    return 0


def add_merge(commands: Any) -> None:
    """Adds ``vqgan merge``."""
    summary = "Join token data sets of one codec."
    add_command(commands, "merge", summary, _merge, _add_merge_flags)


def _add_merge_flags(parser: CommandParser) -> None:
    from pipelines.options.tool_options import MergeOptions

    add_options(parser, MergeOptions)


def _merge(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options.tool_options import MergeOptions

    check_flags(unknown, args.parser, beam=False)
    options = MergeOptions(**given_options(MergeOptions, args))
    from pipelines.data_sets.merging import merge

    merge([os.fspath(path) for path in options.paths], os.fspath(options.output), options.quiet)
    return 0


def add_decode(commands: Any) -> None:
    """Adds ``vqgan decode``."""
    summary = "Turn a token data set, tokenized or sampled, into images. Further flags go to Apache Beam."
    add_command(commands, "decode", summary, _decode, _add_decode_flags)


def _add_decode_flags(parser: CommandParser) -> None:
    from pipelines.options.run_options import DecodeOptions

    add_options(parser, DecodeOptions)


def _decode(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    if any(token.split("=")[0] == "--views" for token in unknown):
        raise UserError(
            "--views is a flag of tokenize, which makes them; here it is --first-view-only, or none"
        )
    check_flags(unknown, args.parser, beam=True)
    from pipelines.options.run_options import DecodeOptions
    from pipelines.runs import decode
    from transforms.sharded.run import exit_code

    made = decode(**given_options(DecodeOptions, args, unknown))
    return exit_code(made.output, made.manifest, "images")


def add_verify(commands: Any) -> None:
    """Adds ``vqgan verify``."""
    summary = "Check a data set against its manifest and plan."
    add_command(commands, "verify", summary, _verify, _add_verify_flags)


def _add_verify_flags(parser: CommandParser) -> None:
    from pipelines.options.tool_options import VerifyOptions

    add_options(parser, VerifyOptions)


def _verify(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options.tool_options import VerifyOptions

    check_flags(unknown, args.parser, beam=False)
    options = VerifyOptions(**given_options(VerifyOptions, args))
    if not options.repair and (options.codec is None) != (options.input is None):
        raise UserError("--codec and --input go together: give both to re-encode a sample")
    from vqgan.manifest import bucket_names

    if bucket_names(os.fspath(options.path)):
        return _verify_buckets(options)
    said, problems = _verify_one(options)
    for line in (*said, *(f"problem: {problem}" for problem in problems)):
        print(line)
    print("ok" if not problems else counted(len(problems), "problem"))
    return 1 if problems else 0


def _verify_buckets(options: "VerifyOptions") -> int:
    """Prints a line for each bucket, whatever the state of the others."""
    from pipelines.inspecting import missing_buckets
    from vqgan import filesystems
    from vqgan.manifest import bucket_names

    root = os.fspath(options.path)
    missing = missing_buckets(root)
    is_good = not missing
    for name in bucket_names(root):
        if name in missing:
            print(f"{name}: {missing.pop(name)}")
        else:
            is_sound, state = _state(options, filesystems.join(root, name))
            is_good &= is_sound
            print(f"{name}: {state}", flush=True)
    for name, state in missing.items():
        print(f"{name}: {state}")
    return 0 if is_good else 1


def _state(options: "VerifyOptions", path: str) -> tuple[bool, str]:
    """Returns whether one of several data sets is sound, and what is found of it, in one line."""
    try:
        said, problems = _verify_one(dataclasses.replace(options, path=path))
    except MachineError:
        raise
    except UserError as error:
        return False, f"problem: {str(error).removeprefix(f'{path}: ')}"
    shown = [f"problem: {problem}" for problem in problems[:PROBLEMS_SHOWN]]
    if len(problems) > len(shown):
        shown.append(f"{counted(len(problems), 'problem')} in all, see vqgan verify {path}")
    return not problems, "; ".join((*said, *(shown or ["ok"])))


def _verify_one(options: "VerifyOptions") -> tuple[list[str], list[str]]:
    """Returns what was checked, and problems, one line each."""
    from pipelines.inspecting import verify_data_set

    path = os.fspath(options.path)
    repaired = _repair(options) if options.repair else []
    problems, summary = verify_data_set(path)
    said, problems = [summary], [*repaired, *problems]
    if options.codec is not None and options.input is not None and not problems:
        from transforms.tokenizing.replay import check_agreement, replay_engines

        options.use_compilation_cache()
        source = options.source(options.input)
        codec = os.fspath(options.codec)
        made, again = replay_engines(path, codec, options.engine)
        agreement = check_agreement(path, source, codec, options.sample, again)
        said.append(f"{counted(agreement.images, 'image')} re-encoded: {agreement.share:.4%} of tokens agree")
        if again != made:
            said.append(f"re-encoded by {again}, made by {made}: no other agreement is asked for")
        elif agreement.share < options.min_agreement:
            problems.append(f"agreement {agreement.share:.4%} is below {options.min_agreement:.2%}")
    return said, problems


def _repair(options: "VerifyOptions") -> list[str]:
    from pipelines.data_sets.repair import repair

    return repair(os.fspath(options.path), {"input": options.input, "codec": options.codec})


def add_browse(commands: Any) -> None:
    """Adds ``vqgan browse``."""
    summary = "Show a token data set, tokenized or sampled, in a web browser on this machine."
    add_command(commands, "browse", summary, _browse, _add_browse_flags)


def _add_browse_flags(parser: CommandParser) -> None:
    from pipelines.options.tool_options import BrowseOptions

    add_options(parser, BrowseOptions)


def _browse(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options.run_options import optional_path
    from pipelines.options.tool_options import BrowseOptions

    check_flags(unknown, args.parser, beam=False)
    options = BrowseOptions(**given_options(BrowseOptions, args))
    from pipelines.browsing.browse_server import BrowseServer, open_site

    path = os.fspath(options.path)
    source = None if options.input is None else options.source(options.input)
    server = BrowseServer(open_site(path, source, optional_path(options.codec)), options.port)
    print(f"{server.site.browser.rows:,} rows of {path}: {server.url} (Ctrl-C ends)", flush=True)
    server.serve()
    return 0
