"""Flags of ``vqgan tokenize``, and telling Beam's flags from mistakes."""

import argparse
import difflib
import os
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.settings import DTYPES
from transforms.images.config import DecodeConfig
from transforms.images.crops import FILTERS, RESIZES, VIEWS, Geometry
from transforms.sources.base import KINDS, SourceConfig
from vqgan.errors import UserError
from vqgan.extras import require_extra

if TYPE_CHECKING:
    from pipelines.tokenize_images import TokenizeConfig


def add_tokenize_flags(parser: argparse.ArgumentParser) -> None:
    """Adds every flag of ``vqgan tokenize``."""
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


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how an input is read."""
    group = parser.add_argument_group("input")
    add = group.add_argument
    add("--input-kind", choices=sorted(KINDS), help="do not recognise the input, take it for this")
    add("--folder-labels", action="store_true", help="names of first-level subfolders are classes")
    add("--image-column", help="column or feature with the image or its path")
    add("--key-column", help="column or feature with a unique key")
    add("--label-column", help="column or feature with the class, a number or a name")
    add("--whole-names", action="store_true", help="tar: names of a sample agree up to the last dot")
    add("--columns", default="", help="further columns to pass through, separated by commas")


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


def source_config(args: argparse.Namespace) -> SourceConfig:
    """The source that these flags describe."""
    return SourceConfig(
        input=args.input,
        kind=args.input_kind,
        folder_labels=args.folder_labels,
        whole_names=args.whole_names,
        image_column=args.image_column,
        key_column=args.key_column,
        label_column=args.label_column,
        columns=tuple(name for name in args.columns.split(",") if name),
    )


def tokenize_config(args: argparse.Namespace) -> "TokenizeConfig":
    """The settings that these flags describe.

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


def check_flags(unknown: Sequence[str], parser: argparse.ArgumentParser, beam: bool) -> None:
    """Refuses flags that neither ``parser`` nor, where ``beam`` is set, Beam knows.

    Raises:
      UserError: names the nearest known flag.
    """
    if not unknown:
        return
    known = set(parser._option_string_actions)
    beam_parser = _beam_parser() if beam else None
    if beam_parser is not None:
        known |= set(beam_parser._option_string_actions)
    previous_was_flag = False
    for token in unknown:
        name = token.split("=")[0]
        if token.startswith("--"):
            if name not in known:
                near = difflib.get_close_matches(name, sorted(known), n=1)
                hint = f"did you mean {near[0]}?" if near else f"see {parser.prog} --help"
                raise UserError(f"unknown flag {name}: {hint}")
        elif not (previous_was_flag and beam):
            raise UserError(f"unexpected argument {token!r}: {_expanded(token, known, parser)}")
        previous_was_flag = token.startswith("--") and "=" not in token
    if beam_parser is not None:
        _check_runner(beam_parser.parse_known_args(unknown)[0].runner)


def _expanded(token: str, known: Set[str], parser: argparse.ArgumentParser) -> str:
    """What to do about a stray argument; a file is one of many that the shell has put for a pattern."""
    flag = next((name for name in ("--input", "--data") if name in known), None)
    if flag is None or not os.path.exists(token):
        return f"see {parser.prog} --help"
    pattern = os.path.join(os.path.dirname(token), f"*{os.path.splitext(token)[1]}")
    return f"the shell expands patterns; quote them, as in {flag} '{pattern}'"


def _beam_parser() -> Any:
    """A parser of all of Beam's flags, which raises UserError for a wrong value."""
    from pipelines.beam_runs import quiet_imports

    with quiet_imports():
        from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    def refuse(message: str) -> NoReturn:
        raise UserError(message)

    parser = _BeamArgumentParser(add_help=False, conflict_handler="resolve", allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    parser.error = refuse  # type: ignore[method-assign]
    return parser


def _check_runner(name: str | None) -> None:
    from apache_beam.runners import create_runner

    from pipelines.beam_runs import RUNNER

    if name is not None and "dataflow" in name.lower():
        require_extra("gcp", f"--runner {name}")  # which Beam would miss after the plan is written
    try:
        create_runner(name or RUNNER)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--runner {name}: {error}") from error
