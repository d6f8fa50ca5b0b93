"""``vqgan tokenize``, ``decode``, ``verify`` and ``browse``: images to tokens and back; a look at both."""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.flags import add_command, add_source_flags, check_flags, source_config
from pipelines.settings import DTYPES
from transforms.decoding.image_format import EXTENSIONS, FORMATS
from transforms.images.config import TRUNCATED, DecodeConfig
from transforms.images.crops import FILTERS, RESIZES, VIEWS, Geometry
from vqgan.errors import UserError

if TYPE_CHECKING:
    from pipelines.tokenize_images import TokenizeConfig


def add_tokenize(commands: Any) -> None:
    """Adds ``vqgan tokenize``."""
    summary = "Turn an image corpus into Parquet token shards. Further flags go to Apache Beam."
    parser = add_command(commands, "tokenize", summary, _tokenize)
    add = parser.add_argument
    kinds = "folder, glob, list, tar, zip, Parquet, Arrow, TFRecord, URI or tfds:NAME/SPLIT"
    add("--input", required=True, help=kinds)
    add("--output", required=True, help="folder or URI of the data set")
    add(
        "--codec",
        required=True,
        help="codec folder, checkpoint of another code base, hf://owner/name, or tiny",
    )
    add_source_flags(parser)
    _add_image_flags(parser)
    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--slice-size", type=int, default=4096, help="images per shard, at most (4096)")
    add("--batch-size", type=int, default=32, help="images per device call (32)")
    add("--dtype", choices=DTYPES, default="float32", help="type that convolutions compute in")
    add("--threads", type=int, default=os.cpu_count() or 1, help="readers and decoders (one per core)")
    add("--dedupe", action="store_true", help="reject images whose bytes occur under another key")
    add("--max-reject-rate", type=float, help="stop when a larger share of a slice is rejected, 0 to 1")
    add("--no-report", action="store_true", help="do not write report.html")
    add("--dry-run", action="store_true", help="plan, encode a few batches, estimate; write nothing")
    add("--quiet", action="store_true", help="print errors only")


def _add_image_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images")
    geometry, decode = Geometry(), DecodeConfig()
    add = group.add_argument
    add("--image-size", type=int, help="side of the encoded square in pixels (the codec's resolution)")
    add("--resize", choices=RESIZES, default=geometry.resize)
    add("--filter", choices=sorted(FILTERS), default=geometry.filter)
    add("--views", choices=VIEWS, default=geometry.views)
    add("--crop-range", type=float, default=geometry.crop_range, help="ten-crop: side before cropping / size")
    add("--random-crops", type=int, default=geometry.random_crops, help="random-crops: views per image")
    add("--min-crop", type=float, default=geometry.min_crop, help="random-crops: least share of a side")
    add("--seed", type=int, default=geometry.seed, help="random-crops: seed")
    add("--min-side", type=int, default=decode.min_side, help="reject images with a shorter side")
    add("--max-area", type=int, default=decode.max_area, help="reject images of more pixels")
    add("--max-aspect", type=float, default=decode.max_aspect, help="reject images longer by this factor")
    add("--max-pixels", type=int, default=decode.max_pixels, help="decompression-bomb limit in pixels")
    add("--max-bytes", type=int, default=decode.max_bytes, help="largest file in bytes")
    add("--no-jpeg-draft", action="store_true", help="decode large JPEGs at full size before resizing")
    add("--on-truncated", choices=TRUNCATED, default=decode.on_truncated, help="JPEGs that lack pixels")


def _tokenize(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines import dry_run, tokenize_images
    from transforms.sharded.run import exit_code

    check_flags(unknown, args.parser, beam=True)
    config = tokenize_config(args)
    if args.dry_run:
        for name, value in dry_run.estimate(config).items():
            print(f"{name}: {value}")
        return 0
    return exit_code(config.output, tokenize_images.run_tokenize(config, unknown), "rows")


def tokenize_config(args: argparse.Namespace) -> "TokenizeConfig":
    """Returns the settings that these flags describe.

    Raises:
      UserError: a value out of range, or no such codec.
    """
    from pipelines.tokenize_images import TokenizeConfig

    return TokenizeConfig(
        source=source_config(args),
        output=args.output,
        codec=args.codec,
        geometry=Geometry(
            image_size=_image_size(args),
            resize=args.resize,
            filter=args.filter,
            views=args.views,
            crop_range=args.crop_range,
            random_crops=args.random_crops,
            min_crop=args.min_crop,
            seed=args.seed,
        ),
        decode=DecodeConfig(
            max_pixels=args.max_pixels,
            max_bytes=args.max_bytes,
            min_side=args.min_side,
            max_area=args.max_area,
            max_aspect=args.max_aspect,
            jpeg_draft=not args.no_jpeg_draft,
            on_truncated=args.on_truncated,
        ),
        slice_size=args.slice_size,
        batch_size=args.batch_size,
        dtype=args.dtype,
        threads=args.threads,
        dedupe=args.dedupe,
        max_reject_rate=args.max_reject_rate,
        report=not args.no_report,
        quiet=args.quiet,
    )


def _image_size(args: argparse.Namespace) -> int:
    from vqgan.codec_checkpoint import read_info

    size: int | None = args.image_size
    return read_info(args.codec).config.resolution if size is None else size


def add_decode(commands: Any) -> None:
    """Adds ``vqgan decode``."""
    summary = "Turn a token data set, tokenized or sampled, into images. Further flags go to Apache Beam."
    parser = add_command(commands, "decode", summary, _decode)
    flag = parser.add_argument
    flag("--tokens", required=True, help="finished token data set: folder, URI, or hf://datasets/owner/name")
    flag("--output", required=True, help="folder or URI of the images")
    flag("--codec", help="codec that made the tokens, as tokenize takes it (the one that they name)")
    flag("--format", choices=FORMATS, default="png", help="a file for each image, or archives of them (png)")
    flag("--image-format", choices=sorted(EXTENSIONS), help="of images in tar and parquet (png)")
    flag("--quality", type=int, help="of webp and jpeg, 1 to 100 (90 and 95)")
    flag("--first-view-only", action="store_true", help="decode the first view of each image, not all rows")
    flag("--limit", type=int, help="decode no more rows than this, the first ones")
    flag("--batch-size", type=int, default=32, help="grids of tokens per device call (32)")
    flag("--dtype", choices=DTYPES, default="float32", help="type that convolutions compute in")
    flag("--threads", type=int, default=os.cpu_count() or 1, help="encoders of images (one per core)")
    flag("--no-report", action="store_true", help="do not write report.html")
    flag("--quiet", action="store_true", help="print errors only")


def _decode(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.decode_tokens import DecodeTokensConfig, form_of, run_decode
    from transforms.sharded.run import exit_code

    if any(token.split("=")[0] == "--views" for token in unknown):
        raise UserError(
            "--views is a flag of tokenize, which makes them; here it is --first-view-only, or none"
        )
    check_flags(unknown, args.parser, beam=True)
    config = DecodeTokensConfig(
        tokens=args.tokens,
        output=args.output,
        codec=args.codec,
        form=form_of(args.format, args.image_format, args.quality),
        views="first" if args.first_view_only else "all",
        limit=args.limit,
        batch_size=args.batch_size,
        dtype=args.dtype,
        threads=args.threads,
        report=not args.no_report,
        quiet=args.quiet,
    )
    return exit_code(config.output, run_decode(config, unknown), "images")


def add_verify(commands: Any) -> None:
    """Adds ``vqgan verify``."""
    parser = add_command(commands, "verify", "Check a data set against its manifest and plan.", _verify)
    flag = parser.add_argument
    flag("path", help="data set: folder, URI, or hf://datasets/owner/name")
    flag("--codec", help="re-encode a sample with this codec and compare; needs --input")
    flag("--input", help="where the images came from")
    flag("--sample", type=int, default=64, help="images to re-encode (64)")
    flag("--min-agreement", type=float, default=0.999, help="least share of equal tokens (0.999)")
    add_source_flags(parser)


def _verify(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.inspecting import verify_data_set
    from transforms.tokenizing.replay import check_agreement

    check_flags(unknown, args.parser, beam=False)
    if (args.codec is None) != (args.input is None):
        raise UserError("--codec and --input go together: give both to re-encode a sample")
    problems, summary = verify_data_set(args.path)
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


def add_browse(commands: Any) -> None:
    """Adds ``vqgan browse``."""
    summary = "Show a token data set, tokenized or sampled, in a web browser on this machine."
    parser = add_command(commands, "browse", summary, _browse)
    flag = parser.add_argument
    flag("path", help="finished token data set: folder, URI, or hf://datasets/owner/name")
    flag("--input", help="where the images came from, to show the originals (none)")
    flag("--codec", help="codec that made the tokens, as tokenize takes it (the one that they name)")
    flag("--port", type=int, default=0, help="of 127.0.0.1; 0 for any that is free (0)")
    add_source_flags(parser)


def _browse(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.browse_server import BrowseServer, open_site

    check_flags(unknown, args.parser, beam=False)
    source = None if args.input is None else source_config(args)
    server = BrowseServer(open_site(args.path, source, args.codec), args.port)
    print(f"{server.site.browser.rows:,} rows of {args.path}: {server.url} (Ctrl-C ends)", flush=True)
    server.serve()
    return 0
