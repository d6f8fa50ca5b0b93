"""The program: exit codes, one-line errors, and what verify prints."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli
from vqgan.errors import UserError

ROOT = Path(__file__).parents[2]
Vqgan = Callable[..., Any]
COMMANDS = ("tokenize", "inspect", "verify", "train", "demo")


@pytest.mark.parametrize("argv", [("--help",), *((command, "--help") for command in COMMANDS)])
def test_help(vqgan: Vqgan, argv: tuple[str, ...]) -> None:
    result = vqgan(*argv)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("usage: vqgan")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "COMMAND"),
        (("tokenise",), "tokenise"),
        (("tokenize",), "--input, --output, --codec"),
        (("inspect",), "path"),
        (("verify", "x", "--sample", "many"), "--sample: invalid int value: 'many'"),
        (("tokenize", "--input", "x", "--output", "y", "--codec", "z", "--filter", "nearest"), "'nearest'"),
        (("tokenize", "--input", "x", "--output", "y", "--codec", "z", "--threads", "two"), "--threads"),
    ],
)
def test_what_the_parser_refuses(vqgan: Vqgan, argv: tuple[str, ...], says: str) -> None:
    result = vqgan(*argv)
    assert (result.code, result.out) == (2, "")
    assert says in result.line
    assert "--help" in result.line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--imagesize", 32), "unknown flag --imagesize: did you mean --image-size?"),
        (("--codek=x",), "unknown flag --codek: did you mean --codec?"),
        (("--runer=FnApiRunner",), "unknown flag --runer: did you mean --runner?"),
        (("--zzzzzzzzz",), "unknown flag --zzzzzzzzz: see vqgan tokenize --help"),
        (("stray",), "unexpected argument 'stray'"),
        (("--runner=Nowhere",), "--runner Nowhere: "),
        (("--runner=no.such.Runner",), "--runner no.such.Runner: "),
        (("--direct_num_workers=two",), "--direct_num_workers: invalid int value: 'two'"),
        (("--image-size", 0), "image_size is 0"),
        (("--image-size", 33), "33x33"),
        (("--slice-size", 0), "--slice-size 0: it must be at least 1"),
        (("--batch-size", -1), "--batch-size -1"),
        (("--threads", 0), "--threads 0"),
        (("--max-reject-rate", 1.5), "--max-reject-rate 1.5"),
        (("--max-reject-rate", "nan"), "--max-reject-rate nan"),
        (("--crop-range", "nan"), "crop_range"),
        (("--min-side", 0), "min_side"),
        (("--columns", "caption"), "columns cannot be used"),
        (("--input-kind", "tar", "--key-column", "k"), "key_column cannot be used"),
    ],
)
def test_wrong_flags(tokenize: Vqgan, few: Path, tmp_path: Path, flags: tuple[Any, ...], says: str) -> None:
    result = tokenize(few, *flags)
    assert (result.code, result.out) == (2, "")
    assert says in result.line
    assert result.line.startswith("vqgan tokenize: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [("--views", "first"), ("--views=all",)])
def test_decode_has_no_views_to_make(vqgan: Vqgan, finished: Path, tmp_path: Path, flags: Any) -> None:
    result = vqgan("decode", "--tokens", finished / "out", "--output", tmp_path / "images", *flags)
    assert (result.code, result.out) == (2, "")
    assert result.line == (
        "vqgan decode: --views is a flag of tokenize, which makes them; here it is --first-view-only, or none"
    )
    assert not (tmp_path / "images").exists()


def test_flags_of_beam_pass(tokenize: Vqgan, few: Path) -> None:
    assert tokenize(few, "--runner", "FnApiRunner", "--direct_num_workers=1", "--job_name", "x").code == 0


@pytest.mark.parametrize(
    "command", [("inspect", "tiny"), ("verify", "x"), ("demo",), ("train", "--input=x", "--output=y")]
)
def test_flags_of_beam_are_refused_elsewhere(vqgan: Vqgan, command: tuple[str, ...]) -> None:
    result = vqgan(*command, "--runner=FnApiRunner")
    assert (result.code, "unknown flag --runner" in result.line) == (2, True)


def test_interrupt(vqgan: Vqgan, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.inspecting.describe", interrupt)
    result = vqgan("inspect", "tiny")
    assert (result.code, "the same command continues the run" in result.line) == (130, True)


def test_errors_of_users(vqgan: Vqgan, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise UserError(f"{path}: no")

    monkeypatch.setattr("pipelines.inspecting.describe", refuse)
    assert vqgan("inspect", "tiny") == (2, "", "vqgan inspect: tiny: no\n")


def test_reader_that_goes_away() -> None:
    """``vqgan inspect tiny | head -0`` ends without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "pipelines.cli", "inspect", "tiny"]
        done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=120)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_module_runs() -> None:
    command = [sys.executable, "-m", "pipelines.cli", "inspect", "nothing-here"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vqgan inspect: nothing-here: nothing there")
    assert cli.build_parser().prog == "vqgan"


def test_verify(vqgan: Vqgan, finished: Path, codec_path: str) -> None:
    result = vqgan("verify", finished / "out")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "4 shards, 1 rejects file: 41 planned, 40 images, 40 rows, 1 reject",
        "ok",
    ]
    flags = ("--codec", codec_path, "--input", finished / "in", "--sample", 5)
    again = vqgan("verify", finished / "out", *flags)
    assert again.code == 0
    assert "5 images re-encoded: 100.0000% of tokens agree" in again.out


def test_verify_finds_problems(vqgan: Vqgan, copied: Path) -> None:
    path = min(copied.glob("data/tokens-*"))
    path.write_bytes(path.read_bytes()[:-1])
    (copied / "data" / "tokens-00009-of-00010.parquet").write_bytes(b"")
    result = vqgan("verify", copied)
    assert (result.code, result.err) == (1, "")
    assert result.out.splitlines()[-1] == "2 problems"
    assert result.out.count("problem: ") == 2


def test_verify_refuses(
    vqgan: Vqgan, finished: Path, tmp_path: Path, other_codec: str, codec_path: str
) -> None:
    out, source = finished / "out", finished / "in"
    other = vqgan("verify", out, "--codec", other_codec, "--input", source)
    assert other.code == 2
    assert "give the codec that made them" in other.err
    for flags in (("--codec", codec_path), ("--input", source)):
        result = vqgan("verify", out, *flags)
        assert (result.code, "go together" in result.line) == (2, True)
    assert vqgan("verify", out, "--codec", codec_path, "--input", tmp_path / "none").code == 2
    assert "no data set there" in vqgan("verify", tmp_path).line


def test_verify_demands_agreement(vqgan: Vqgan, finished: Path, tmp_path: Path, codec_path: str) -> None:
    (tmp_path / "in").mkdir()
    paths = sorted((finished / "in").glob("*-*.jpg"))
    for path, other in zip(paths, [*paths[4:], *paths[:4]], strict=True):
        (tmp_path / "in" / path.name).write_bytes(other.read_bytes())
    flags = ("--codec", codec_path, "--input", tmp_path / "in")
    result = vqgan("verify", finished / "out", *flags)
    assert result.code == 1
    assert "is below 99.90%" in result.out
    assert vqgan("verify", finished / "out", *flags, "--min-agreement", 0).code == 0
