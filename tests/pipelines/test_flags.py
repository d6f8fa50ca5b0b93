"""Flags become settings, each of them."""

import dataclasses
from typing import Any

import pytest

from pipelines.cli import build_parser
from pipelines.options.flags import check_flags, given_options
from pipelines.options.run_options import TokenizeOptions
from pipelines.tokenize_images import TokenizeConfig
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from vqgan.errors import UserError


def parse(*flags: str, codec: str = "tiny") -> TokenizeConfig:
    argv = ["tokenize", "--input", "in", "--output", "out", "--codec", codec, *flags]
    args, unknown = build_parser().parse_known_args(argv)
    assert unknown == []
    return TokenizeOptions(**given_options(TokenizeOptions, args)).config()


def test_defaults_are_those_of_the_settings(codec_path: str) -> None:
    config = parse(codec=codec_path)
    assert config.geometry == Geometry(image_size=32)  # the codec's resolution
    assert config.decode == DecodeConfig()
    plain = TokenizeConfig(config.source, "out", codec_path, config.geometry, config.decode)
    assert config == plain


@pytest.mark.parametrize(
    ("flag", "value", "part", "name", "expected"),
    [
        ("--image-size", "64", "geometry", "image_size", 64),
        ("--resize", "pad", "geometry", "resize", "pad"),
        ("--filter", "box", "geometry", "filter", "box"),
        ("--views", "hflip", "geometry", "views", "hflip"),
        ("--crop-range", "1.5", "geometry", "crop_range", 1.5),
        ("--random-crops", "7", "geometry", "random_crops", 7),
        ("--min-crop", "0.25", "geometry", "min_crop", 0.25),
        ("--seed", "9", "geometry", "seed", 9),
        ("--min-side", "5", "decode", "min_side", 5),
        ("--max-area", "6", "decode", "max_area", 6),
        ("--max-aspect", "2.5", "decode", "max_aspect", 2.5),
        ("--max-pixels", "8", "decode", "max_pixels", 8),
        ("--max-bytes", "9", "decode", "max_bytes", 9),
        ("--no-jpeg-draft", None, "decode", "jpeg_draft", False),
        ("--on-truncated", "decode", "decode", "on_truncated", "decode"),
        ("--input-kind", "tar", "source", "kind", "tar"),
        ("--folder-labels", None, "source", "folder_labels", True),
        ("--image-column", "i", "source", "image_column", "i"),
        ("--key-column", "k", "source", "key_column", "k"),
        ("--label-column", "l", "source", "label_column", "l"),
        ("--columns", "a,b,", "source", "columns", ("a", "b")),
        ("--slice-size", "3", None, "slice_size", 3),
        ("--batch-size", "4", None, "batch_size", 4),
        ("--dtype", "bfloat16", None, "dtype", "bfloat16"),
        ("--threads", "5", None, "threads", 5),
        ("--dedupe", None, None, "dedupe", True),
        ("--max-reject-rate", "0.5", None, "max_reject_rate", 0.5),
        ("--no-report", None, None, "report", False),
        ("--quiet", None, None, "quiet", True),
    ],
)
def test_each_flag_sets_one_field(
    flag: str, value: str | None, part: str | None, name: str, expected: Any, codec_path: str
) -> None:
    default = parse(codec=codec_path)
    config = parse(flag, *([] if value is None else [value]), codec=codec_path)
    owner = getattr(config, part) if part else config
    assert getattr(owner, name) == expected
    assert getattr(getattr(default, part) if part else default, name) != expected
    reset = dataclasses.replace(owner, **{name: getattr(getattr(default, part) if part else default, name)})
    assert (dataclasses.replace(config, **{part: reset}) if part else reset) == default


def test_abbreviations_are_not_taken() -> None:
    argv = ["tokenize", "--input", "i", "--output", "o", "--codec", "tiny", "--image", "32"]
    args, unknown = build_parser().parse_known_args(argv)
    assert unknown == ["--image", "32"]
    with pytest.raises(UserError, match="unknown flag --image"):
        check_flags(unknown, args.parser, beam=True)


def test_values_that_look_like_arguments() -> None:
    args, _ = build_parser().parse_known_args(["inspect", "x"])
    check_flags(["--job_name", "x"], args.parser, beam=True)
    for stray in (["--job_name=x", "y"], ["y"], ["--job_name", "x", "y"]):
        with pytest.raises(UserError, match="unexpected argument 'y'"):
            check_flags(stray, args.parser, beam=True)


@pytest.mark.parametrize("field", ["slice_size", "batch_size", "threads"])
def test_settings_are_checked(field: str, codec_path: str) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        dataclasses.replace(parse(codec=codec_path), **{field: 0})
    with pytest.raises(UserError, match="--dtype float16: known are"):
        dataclasses.replace(parse(codec=codec_path), dtype="float16")
