"""How commands end: without a place to print, with nothing made, with a mistake of the user's or of ours."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.options.settings import DTYPES
from transforms.images.crops import FILTERS
from transforms.sharded.run import exit_code
from transforms.sources.base import KINDS
from transforms.sources.registry import SOURCES
from vqgan.errors import UserError

ROOT = Path(__file__).parents[2]
Vqgan = Callable[..., Any]


def run(shell: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A shell command in which ``vqgan`` is ours; nothing of it goes to this process's standard output."""
    line = f'vqgan() {{ "{sys.executable}" -m pipelines.cli "$@"; }}; {shell}'
    environment = {**os.environ, **variables}
    return subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment
    )


# Printing


@pytest.mark.parametrize("command", ["inspect tiny", "inspect tiny --json", "--help", "tokenize --help"])
@pytest.mark.parametrize(("where", "why"), [(">&-", "Bad file descriptor"), ("> /dev/full", "No space left")])
def test_standard_output_that_takes_nothing(command: str, where: str, why: str) -> None:
    done = run(f"vqgan {command} {where}")
    assert done.returncode == 74
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("vqgan: cannot print")
    assert why in done.stderr


def test_verify_prints_nowhere(finished: Path) -> None:
    done = run(f"vqgan verify {finished}/out > /dev/full")
    assert (done.returncode, len(done.stderr.splitlines())) == (74, 1), done.stderr


def test_standard_error_that_is_closed() -> None:
    done = run("vqgan inspect nothing-here 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    both = run("vqgan inspect tiny >&- 2>&-")
    assert (both.returncode, both.stdout, both.stderr) == (74, "", "")


def test_a_mistake_goes_before_a_closed_output() -> None:
    done = run("vqgan inspect nothing-here >&-")
    assert done.returncode == 2
    assert done.stderr.startswith("vqgan inspect: nothing-here: nothing there")


def test_characters_that_the_terminal_lacks(finished: Path, tmp_path: Path) -> None:
    name = tmp_path / "caf\u00e9"
    name.symlink_to(finished / "out")
    done = run(f"vqgan inspect '{name}'", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "caf\\xe9" in done.stdout


# Mistakes


def test_a_traceback_on_demand() -> None:
    plain = run("vqgan inspect nothing-here", VQGAN_TRACEBACK="0")
    assert len(plain.stderr.splitlines()) == 1
    for shown in (
        run("vqgan inspect nothing-here", VQGAN_TRACEBACK="1"),
        run("vqgan inspect nothing-here --traceback"),
    ):
        assert shown.returncode == 2
        assert shown.stderr.startswith("Traceback (most recent call last):")
        assert shown.stderr.splitlines()[-1] == plain.stderr.splitlines()[0]
        assert "inspecting.py" in shown.stderr


def test_the_traceback_of_a_worker(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    (few / "broken.jpg").write_bytes(b"no image")
    flags = ("--max-reject-rate", 0)
    assert tokenize(few, *flags).line.startswith("vqgan tokenize: ")
    shown = tokenize(few, *flags, "--traceback")
    assert shown.code == 2
    assert "_check_rejects" in shown.err


def test_a_mistake_of_ours_keeps_its_traceback(vqgan: Vqgan, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("pipelines.inspecting.describe", broken)
    with pytest.raises(KeyError) as caught:
        vqgan("inspect", "tiny")
    assert caught.value.__notes__ == [
        "vqgan inspect: a mistake of vqgan's own; please report it with the lines above"
    ]


def test_a_message_of_many_lines_is_one(vqgan: Vqgan, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise UserError("one\ntwo")

    monkeypatch.setattr("pipelines.inspecting.describe", refuse)
    assert vqgan("inspect", "tiny").line == "vqgan inspect: one two"


def test_help_tells_of_both(vqgan: Vqgan) -> None:
    text = " ".join(vqgan("--help").out.split())
    assert "VQGAN_TRACEBACK=1, or --traceback" in text
    assert "Exit codes: 0 well" in text


# Nothing made


def test_only_rejects(tokenize: Vqgan, vqgan: Vqgan, tmp_path: Path, manifest: Any) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(folder / "small.png")
    for _ in range(2):  # made, and found finished
        result = tokenize(folder, "--min-side", 16)
        assert (result.code, result.out) == (1, "")
        assert result.line.startswith(f"{tmp_path}/out: no rows were made: all 4 were rejected, ")
        assert "(3), " in result.line
        assert result.line.endswith("(1)")
    assert manifest(tmp_path / "out")["counts"]["rejects"] == 4
    assert vqgan("verify", tmp_path / "out").code == 0
    flags = ("--codec", "tiny", "--quiet", "--no-report")
    assert vqgan("decode", "--tokens", tmp_path / "out", "--output", tmp_path / "images", *flags).code != 0


def test_why_nothing_was_made(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {f"decode: E{number}": number for number in range(1, 6)}
    counts = {"rows": 0, "images": 0, "rejects": 15}
    assert exit_code("out", {"counts": counts, "reject_reasons": reasons}, "rows") == 1
    assert capsys.readouterr().err == (
        "out: no rows were made: all 15 were rejected, decode: E5 (5), decode: E4 (4), decode: E3 (3), "
        "2 other reasons\n"
    )
    counts = {"rows": 0, "images": 0, "rejects": 0}
    assert exit_code("out", {"counts": counts, "reject_reasons": {}}, "images") == 1
    assert capsys.readouterr().err == "out: no images were made: there was nothing to do\n"
    assert exit_code("out", {"counts": {"rows": 1}, "reject_reasons": {"x: y": 1}}, "rows") == 0


def test_input_without_images(tokenize: Vqgan, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".hidden.jpg").write_bytes(b"")
    result = tokenize(tmp_path / "in")
    assert result.code == 2
    assert "there are no images in it (no files but hidden ones" in result.line


def test_a_pattern_that_the_shell_expanded(vqgan: Vqgan, few: Path) -> None:
    first, *others = sorted(few.glob("*.jpg"))
    tail = ("--output", few.parent / "out", "--codec", "tiny")
    result = vqgan("tokenize", "--input", first, *others, *tail)
    assert result.code == 2
    assert result.line == (
        f"vqgan tokenize: unexpected argument '{others[0]}': the shell expands patterns; quote them, as in "
        f"--input '{few}/*.jpg'"
    )
    trained = vqgan("train", "--input", first, *others, "--output", few.parent / "run")
    assert trained.line.endswith(f"--input '{few}/*.jpg'")
    assert "see vqgan inspect --help" in vqgan("inspect", first, *others).line


# What a parser loads


COMMANDS = (
    *("tokenize", "inspect", "verify", "import", "export", "train", "evaluate", "push", "train-prior"),
    *("sample", "decode", "import-prior", "demo"),
)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_loads_no_arrays(command: tuple[str, ...]) -> None:
    program = (
        "import sys\nfrom pipelines import cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'pyarrow', 'PIL', 'jax', 'flax', 'apache_beam', 'tqdm'} & sys.modules.keys()\n"
        "print('loaded', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines()[0].startswith(f"usage: {' '.join(['vqgan', *command])}")
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_names_known_to_the_parser_are_those_of_the_code() -> None:
    assert set(KINDS) == set(SOURCES)
    assert DTYPES == ("float32", "bfloat16")
    resampling = Image.Resampling
    assert FILTERS == {
        "lanczos": resampling.LANCZOS,
        "bicubic": resampling.BICUBIC,
        "box": resampling.BOX,
        "adm": resampling.BICUBIC,
    }


def test_manifest_of_a_finished_output_is_checked(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    assert tokenize(few).code == 0
    path = tmp_path / "out" / "manifest.json"
    document = json.loads(path.read_text())
    document["shards"][0]["bytes"] = None
    path.write_text(json.dumps(document))
    result = tokenize(few)
    assert result.code == 2
    assert "manifest.json: damaged ('shards.0.bytes' is null, expected a whole number" in result.line
