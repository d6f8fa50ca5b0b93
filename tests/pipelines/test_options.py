"""Settings declared once: help of all commands, keywords, files for ``--config``, and completion."""

import argparse
import inspect
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines import cli
from pipelines.completion import render_completion
from pipelines.flags import SHELLS, CommandParser
from pipelines.model_options import SampleOptions, TrainOptions, TrainPriorOptions
from pipelines.options import Options, field_docs, read_settings, render_settings, takes
from pipelines.run_options import DecodeOptions, EvaluateOptions, TokenizeOptions
from tests.conftest import Refused
from vqgan.training.codec.config import CODEC_TRAINING_PRESETS
from vqgan.training.prior.config import FITTED, PRIOR_TRAINING_PRESETS

from .conftest import Vqgan

ALL = (TokenizeOptions, DecodeOptions, EvaluateOptions, TrainOptions, TrainPriorOptions, SampleOptions)


def commands() -> dict[str, argparse.ArgumentParser]:
    parser = cli.build_parser()
    return dict(
        next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction)).choices
    )


def shown_flags() -> Iterator[tuple[str, argparse.ArgumentParser, argparse.Action]]:
    for name, parser in commands().items():
        assert isinstance(parser, CommandParser)
        parser.fill()
        for action in parser._actions:
            if action.option_strings and action.help is not argparse.SUPPRESS and action.dest != "help":
                yield name, parser, action


# Help


def test_every_option_has_help_and_says_what_holds_without_it() -> None:
    checked = 0
    for name, parser, action in shown_flags():
        text = parser._get_formatter()._get_help_string(action) or ""  # type: ignore[attr-defined]
        assert text.split("(")[0].strip(), f"{name} {action.option_strings}: no help"
        assert text.endswith("(required)") or "(default: " in text, f"{name} {action.option_strings}: {text}"
        checked += 1
    assert checked > 120


def test_one_word_for_one_thing() -> None:
    """What commands share is called alike: images, results, codecs; and no flag means two things."""
    flags: dict[str, set[str]] = {}
    for name, _, action in shown_flags():
        for flag in action.option_strings:
            flags.setdefault(flag, set()).add(name)
    assert not {"--data", "--images", "--out", "--out-dir", "--model", "--source"} & flags.keys()
    assert {"tokenize", "train", "evaluate", "verify", "demo"} <= flags["--input"]
    writing = {"tokenize", "decode", "train", "train-prior", "sample", "evaluate", "export", "import", "demo"}
    assert writing <= flags["--output"]
    runs = {"tokenize", "decode", "train", "train-prior", "sample", "evaluate"}
    assert flags["--config"] == runs


@pytest.mark.parametrize("command", ["train", "train-prior"])
def test_presets_are_listed(vqgan: Vqgan, command: str) -> None:
    presets = {"train": CODEC_TRAINING_PRESETS, "train-prior": PRIOR_TRAINING_PRESETS}[command]
    listed = vqgan(command, "--help").out.partition("presets:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(presets)


def test_former_flags_are_taken(vqgan: Vqgan, tmp_path: Path) -> None:
    said = [
        vqgan("train", flag, tmp_path / "none", "--output", tmp_path / "o").line
        for flag in ("--data", "--input")
    ]
    assert said[0] == said[1]
    assert "nothing there" in said[0] or "none" in said[0]


# --explain


@pytest.mark.parametrize(
    ("command", "presets", "fitted"),
    [("train", CODEC_TRAINING_PRESETS, ()), ("train-prior", PRIOR_TRAINING_PRESETS, FITTED)],
)
def test_explain_has_every_field(vqgan: Vqgan, command: str, presets: Any, fitted: Any) -> None:
    lines = vqgan(command, "--explain").out.splitlines()
    config = presets["tiny"]
    for section in vars(config):
        for name in vars(getattr(config, section)):
            found = [n for n, line in enumerate(lines) if line.startswith(f"  {section}.{name}=")]
            if section == "model" and name in fitted:
                assert found == []
            else:
                assert len(found) == 1, f"{section}.{name}"
                assert lines[found[0] + 1].startswith(" " * 6), f"{section}.{name} has no meaning"
                assert len(lines[found[0] + 1].strip()) > 8


def test_explain_of_a_section_and_a_preset(vqgan: Vqgan) -> None:
    text = vqgan("train", "--preset", "cpu-64", "--set", "loss.l1=3", "--explain", "loss").out
    assert "  loss.l1=3.0  (float)\n      mean absolute difference" in text
    assert "  loss.perceptual_network=alex  (text)\n" in text
    assert "train.steps" not in text
    assert vqgan("train", "--explain", "los").line == (
        "vqgan train: --explain los: there is no such section; did you mean loss?"
    )


# Keywords


@pytest.mark.parametrize("cls", ALL)
def test_every_field_means_something(cls: type[Options]) -> None:
    assert set(inspect.signature(cls).parameters) <= field_docs(cls).keys()


def test_keywords_are_those_of_the_options() -> None:
    @takes(DecodeOptions)
    def decode(options: DecodeOptions) -> DecodeOptions:
        """Gives them back."""
        return options

    assert set(inspect.signature(decode).parameters) == set(inspect.signature(DecodeOptions).parameters)
    made = decode(tokens=Path("t"), output="o", limit=3, beam={"runner": "FlinkRunner", "streaming": True})
    assert (made.tokens, made.limit, made.beam) == ("t", 3, ("--runner=FlinkRunner", "--streaming"))
    with pytest.raises(TypeError, match=r"decode\(\) got an unexpected keyword argument 'ouput'.*'output'"):
        decode(tokens="t", output="o", ouput="p")
    with pytest.raises(TypeError, match=r"decode\(\) is missing the keyword arguments: tokens, output"):
        decode()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"limit": "ten"}, "--limit 'ten': give a whole number"),
        ({"limit": True}, "--limit True: give a whole number"),
        ({"limit": 2.5}, "--limit 2.5: give a whole number"),
        ({"report": "no"}, "--report 'no': give true or false"),
        ({"format": 3}, "--format 3: give a text"),
        ({"beam": "--runner"}, "give names and values"),
    ],
)
def test_wrong_types(values: dict[str, Any], says: str, refused: Refused) -> None:
    with refused(says):
        DecodeOptions(tokens="t", output="o", **values)


def test_texts_and_lists_are_taken_alike() -> None:
    given = SampleOptions(prior="p", output="o", count=1, inpaint="0,1,2,3", grid=[8, 16], classes="cat")
    assert (given.inpaint, given.grid, given.classes) == ((0, 1, 2, 3), (8, 16), ("cat",))
    source = TokenizeOptions(input="i", output="o", codec="c", columns="a, b,")
    assert source.columns == ("a", "b")
    changes = TrainOptions(input="i", output="o", set={"train": {"steps": 3}, "loss.l1": 1e-4}).set
    assert changes == ("train.steps=3", "loss.l1=0.0001")


# Files


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("input: photos/\nimage-size: 64\nmax_reject_rate: 1e-1\nbeam: {runner: FlinkRunner}\n")
    data = read_settings(TokenizeOptions, path)
    options = TokenizeOptions(output="o", codec="tiny", **data)
    assert (options.input, options.image_size, options.max_reject_rate) == ("photos/", 64, 0.1)
    assert options.beam == ("--runner=FlinkRunner",)
    (tmp_path / "set" / "plan").mkdir(parents=True)
    path.rename(tmp_path / "set" / "plan" / "run.yaml")
    assert read_settings(TokenizeOptions, tmp_path / "set") == data


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("imagesize: 3\n", "unknown setting 'imagesize'; did you mean 'image_size'?"),
        ("image_size: [\n", "line 2: this is no YAML"),
        ("- a\n", r"expected NAME: VALUE lines"),
        ("image_size: wide\n", "--image-size 'wide': give a whole number"),
    ],
)
def test_files_that_are_refused(vqgan: Vqgan, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    flags = ("--input", "i", "--output", tmp_path / "o", "--codec", "tiny")
    result = vqgan("tokenize", *flags, "--config", tmp_path / "run.yaml")
    assert (result.code, result.out) == (2, "")
    assert says in result.line


def test_no_file(vqgan: Vqgan, tmp_path: Path) -> None:
    assert "cannot be read" in vqgan("tokenize", "--config", tmp_path / "none.yaml").line
    assert "this folder has no run.yaml" in vqgan("tokenize", "--config", tmp_path).line


def test_flags_win(tmp_path: Path) -> None:
    base = {"preset": "cpu-64", "set": {"train": {"steps": 5}}, "input": "a"}
    merged = TrainOptions.merge(base, {"input": "b", "set": ["train.steps=6"]})
    assert (merged["input"], merged["set"]) == ("b", ("train.steps=5", "train.steps=6"))
    assert TrainOptions.merge(base, {"preset": "tiny"})["set"] == ()
    beam = TokenizeOptions.merge({"beam": {"runner": "a"}}, {"beam": ("--runner=b",)})["beam"]
    assert beam == ("--runner=a", "--runner=b")


words = st.text("abc/é: #'\"-{}0", min_size=1)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "image_size": st.none() | st.integers(1, 512),
            "crop_range": st.floats(1e-7, 1e7),
            "jpeg_draft": st.booleans(),
            "label_column": st.none() | words,
            "columns": st.lists(st.text("abc", min_size=1)).map(tuple),
            "max_reject_rate": st.none() | st.floats(0, 1),
            "beam": st.lists(words.map(lambda word: f"--{word}")).map(tuple),
        },
    ),
    words,
)
def test_settings_survive_a_file(tmp_path_factory: Any, values: dict[str, Any], path: str) -> None:
    options = TokenizeOptions(input=path, output="o", codec="tiny", **values)
    file = tmp_path_factory.getbasetemp() / "settings.yaml"
    file.write_bytes(render_settings("tokenize", options.record()))
    assert TokenizeOptions(output="o", **read_settings(TokenizeOptions, file)) == options


# Completion


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_all_commands_and_flags(vqgan: Vqgan, shell: str) -> None:
    script = vqgan("completion", shell).out
    for name, _, action in shown_flags():
        assert name in script
        for flag in action.option_strings:
            assert (flag.lstrip("-") if shell == "fish" else flag) in script


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        (("to",), ["tokenize"]),
        (("tokenize", "--resiz"), ["--resize"]),
        (("tokenize", "--resize", "p"), ["pad"]),
        (("tokenize", "--input", "p"), []),
        (("completion", "z"), ["zsh"]),
    ],
)
def test_completion_in_bash(tmp_path: Path, line: tuple[str, ...], completed: list[str]) -> None:
    parser = cli.build_parser()
    actions = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    (tmp_path / "script").write_text(render_completion(actions, "bash"))
    words = " ".join(f"'{word}'" for word in ("vqgan", *line))
    program = f"source '{tmp_path}/script'; COMP_WORDS=({words}); COMP_CWORD={len(line)}; _vqgan"
    done = subprocess.run(
        ["bash", "-c", f'{program}; printf "%s\\n" "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == completed
    assert done.stderr == ""


def test_what_a_run_leaves_is_plain_yaml() -> None:
    record = EvaluateOptions(codec=["a", "b"], input="i", metrics="psnr,ssim").record()
    assert yaml.safe_load(render_settings("evaluate", record)) == record
    assert (record["codec"], record["metrics"]) == (["a", "b"], ["psnr", "ssim"])
    assert not {"output", "quiet"} & record.keys()
