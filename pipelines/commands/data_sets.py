"""``vqgan tokenize``, ``decode``, ``verify`` and ``browse``: images to tokens and back; a look at both."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.flags import CommandParser, add_command, add_options, check_flags, given_options
from vqgan.errors import UserError, counted

if TYPE_CHECKING:
    from pipelines.tokenize_images import TokenizeConfig
    from transforms.sources.base import SourceConfig


def add_tokenize(commands: Any) -> None:
    """Adds ``vqgan tokenize``."""
    summary = "Turn an image corpus into Parquet token shards. Further flags go to Apache Beam."
    add_command(commands, "tokenize", summary, _tokenize, _add_tokenize_flags)


def _add_tokenize_flags(parser: CommandParser) -> None:
    from pipelines.run_options import TokenizeOptions

    add_options(parser, TokenizeOptions)
    help = "plan, encode a few batches, estimate; write nothing"
    parser.add_argument("--dry-run", action="store_true", help=help)


def _tokenize(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    check_flags(unknown, args.parser, beam=True)
    if args.dry_run:
        from pipelines.dry_run import estimate

        for name, value in estimate(tokenize_config(args)).items():
            print(f"{name}: {value}")
        return 0
    from pipelines.run_options import TokenizeOptions
    from pipelines.runs import tokenize
    from transforms.sharded.run import exit_code

    made = tokenize(**given_options(TokenizeOptions, args, unknown))
    return exit_code(made.output, made.manifest, "rows")


def tokenize_config(args: argparse.Namespace) -> "TokenizeConfig":
    """Returns the settings that these flags describe.

    Raises:
      UserError: a value out of range, or no such codec.
    """
    from pipelines.run_options import TokenizeOptions

    return TokenizeOptions(**given_options(TokenizeOptions, args)).config()


def add_decode(commands: Any) -> None:
    """Adds ``vqgan decode``."""
    summary = "Turn a token data set, tokenized or sampled, into images. Further flags go to Apache Beam."
    add_command(commands, "decode", summary, _decode, _add_decode_flags)


def _add_decode_flags(parser: CommandParser) -> None:
    from pipelines.run_options import DecodeOptions

    add_options(parser, DecodeOptions)


def _decode(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    if any(token.split("=")[0] == "--views" for token in unknown):
        raise UserError(
            "--views is a flag of tokenize, which makes them; here it is --first-view-only, or none"
        )
    check_flags(unknown, args.parser, beam=True)
    from pipelines.run_options import DecodeOptions
    from pipelines.runs import decode
    from transforms.sharded.run import exit_code

    made = decode(**given_options(DecodeOptions, args, unknown))
    return exit_code(made.output, made.manifest, "images")


def add_verify(commands: Any) -> None:
    """Adds ``vqgan verify``."""
    summary = "Check a data set against its manifest and plan."
    add_command(commands, "verify", summary, _verify, _add_verify_flags)


def _add_verify_flags(parser: CommandParser) -> None:
    from pipelines.run_options import SourceOptions

    flag = parser.add_argument
    flag("path", help="data set: folder, URI, or hf://datasets/owner/name")
    flag("--codec", help="re-encode a sample with this codec and compare; needs --input")
    flag("--input", help="where the images came from")
    flag("--sample", type=int, default=64, help="images to re-encode")
    flag("--min-agreement", type=float, default=0.999, help="least share of equal tokens")
    add_options(parser, SourceOptions, config=False)


def _verify(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.inspecting import verify_data_set
    from transforms.tokenizing.replay import check_agreement

    check_flags(unknown, args.parser, beam=False)
    if (args.codec is None) != (args.input is None):
        raise UserError("--codec and --input go together: give both to re-encode a sample")
    problems, summary = verify_data_set(args.path)
    print(summary)
    if args.codec is not None and not problems:
        agreement = check_agreement(args.path, _source(args), args.codec, args.sample)
        print(f"{counted(agreement.images, 'image')} re-encoded: {agreement.share:.4%} of tokens agree")
        if agreement.share < args.min_agreement:
            problems.append(f"agreement {agreement.share:.4%} is below {args.min_agreement:.2%}")
    for problem in problems:
        print(f"problem: {problem}")
    print("ok" if not problems else counted(len(problems), "problem"))
    return 1 if problems else 0


def _source(args: argparse.Namespace) -> "SourceConfig":
    from pipelines.run_options import SourceOptions

    return SourceOptions(**given_options(SourceOptions, args)).source(args.input)


def add_browse(commands: Any) -> None:
    """Adds ``vqgan browse``."""
    summary = "Show a token data set, tokenized or sampled, in a web browser on this machine."
    add_command(commands, "browse", summary, _browse, _add_browse_flags)


def _add_browse_flags(parser: CommandParser) -> None:
    from pipelines.run_options import SourceOptions

    flag = parser.add_argument
    flag("path", help="finished token data set: folder, URI, or hf://datasets/owner/name")
    flag("--input", help="where the images came from, to show the originals")
    flag("--codec", help="codec that made the tokens, as tokenize takes it (default: the one that they name)")
    flag("--port", type=int, default=0, help="of 127.0.0.1; 0 for any that is free")
    add_options(parser, SourceOptions, config=False)


def _browse(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.browse_server import BrowseServer, open_site

    check_flags(unknown, args.parser, beam=False)
    source = None if args.input is None else _source(args)
    server = BrowseServer(open_site(args.path, source, args.codec), args.port)
    print(f"{server.site.browser.rows:,} rows of {args.path}: {server.url} (Ctrl-C ends)", flush=True)
    server.serve()
    return 0
