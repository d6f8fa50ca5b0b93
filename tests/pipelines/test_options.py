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
from pipelines.options.declarations import Options, field_docs, read_settings, render_settings, takes
from pipelines.options.flags import SHELLS, CommandParser, given_options
from pipelines.options.model_options import SampleOptions, TrainOptions, TrainPriorOptions
from pipelines.options.run_options import DecodeOptions, EvaluateOptions, TokenizeOptions
from pipelines.options.tool_options import (
    BrowseOptions,
    DemoOptions,
    ExportOptions,
    ImportCodecOptions,
    ImportPriorOptions,
    MergeOptions,
    PushOptions,
    ToolOptions,
    VerifyOptions,
)
from tests.conftest import Refused
from vqgan.training.codec.config import CODEC_TRAINING_PRESETS
from vqgan.training.prior.config import FITTED, PRIOR_TRAINING_PRESETS

from .conftest import Vqgan

TOOLS: dict[str, type[ToolOptions]] = {
    "verify": VerifyOptions,
    "browse": BrowseOptions,
    "merge": MergeOptions,
    "import": ImportCodecOptions,
    "import-prior": ImportPriorOptions,
    "export": ExportOptions,
    "push": PushOptions,
    "demo": DemoOptions,
}
RUNS = (TokenizeOptions, DecodeOptions, EvaluateOptions, TrainOptions, TrainPriorOptions, SampleOptions)
ALL = (*RUNS, *TOOLS.values())


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
    assert not {"--data", "--out", "--out-dir", "--model", "--source"} & flags.keys()
    assert flags["--images"] == {"sample"}  # writes them or not; an input is called --input
    assert {"tokenize", "train", "evaluate", "verify", "demo"} <= flags["--input"]
    writing = {"tokenize", "decode", "train", "train-prior", "sample", "evaluate", "export", "import", "demo"}
    assert writing <= flags["--output"]
    assert flags["--config"] == commands().keys() - {"inspect", "completion"}  # these have a path, a shell


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
        ({"format": "gif"}, "--format gif: known are png, .*"),
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
        ('seed: 1\nimage_size: 8\n"seed": 2\n', "run.yaml: seed stands there more than once; keep one line"),
        (
            "image_size: wide\n",
            "--image-size 'wide': give the side of a square such as 256, or HEIGHTxWIDTH such as 256x384",
        ),
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


# Files for commands that leave none

OF_TOOLS: list[tuple[str, dict[str, Any], tuple[str, ...], dict[str, Any]]] = [
    (
        "verify",
        {
            "path": "tokens/",
            "codec": "tiny",
            "input": "in",
            "sample": 5,
            "min_agreement": 0.5,
            "columns": ["a"],
        },
        ("--sample", "6", "others/", "--columns", "b"),
        {"path": "others/", "sample": 6, "columns": ("b",)},
    ),
    (
        "browse",
        {"path": "tokens/", "input": "in", "codec": "tiny", "port": 8000, "folder_labels": True},
        ("--no-folder-labels", "--port=0"),
        {"folder_labels": False, "port": 0},
    ),
    (
        "merge",
        {"paths": ["a/", "b/"], "output": "o", "quiet": True},
        ("--no-quiet", "--output", "p", "x/", "y/", "z/"),
        {"paths": ("x/", "y/", "z/"), "output": "p", "quiet": False},
    ),
    (
        "import",
        {"source": "x.ckpt", "output": "o", "resolution": 512, "weights": "ema", "native_config": "x.yaml"},
        ("y.ckpt", "--weights", "raw", "--native-config", "y.yaml"),
        {"source": "y.ckpt", "weights": "raw", "native_config": "y.yaml"},
    ),
    (
        "import-prior",
        {"source": "x", "codec": "c", "image_size": 256, "output": "o", "condition_codes": 9}
        | {"condition_grid": [3, 4], "heads": 2},
        ("--image-size", "64", "--condition-grid", "5x6"),
        {"image_size": 64, "condition_grid": (5, 6)},
    ),
    (
        "export",
        {"codec": "run/", "output": "o", "to": "diffusers"},
        ("--output", "p", "--to", "safetensors", "tiny"),
        {"codec": "tiny", "output": "p", "to": "safetensors"},
    ),
    (
        "push",
        {"path": "run/", "repository": "me/it", "private": True, "message": "first"},
        ("--no-private", "--message", "second", "codec/", "me/other"),
        {"path": "codec/", "repository": "me/other", "private": False, "message": "second"},
    ),
    ("demo", {"output": "o", "input": "photos/"}, ("--input", "others/"), {"input": "others/"}),
]


def given_to(command: str, *flags: Any) -> Options:
    """The settings of a command of TOOLS, as it makes them of its flags."""
    args, unknown = cli.build_parser().parse_known_args([command, *map(str, flags)])
    assert unknown == []
    return TOOLS[command](**given_options(TOOLS[command], args))


@pytest.mark.parametrize(("command", "values", "flags", "changed"), OF_TOOLS)
def test_a_file_of_a_tool(
    command: str, values: dict[str, Any], flags: Any, changed: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(values))
    cls = TOOLS[command]
    options = given_to(command, "--config", path)
    assert options == cls(**values)
    for argv in (("--config", path, *flags), (*flags, "--config", path)):
        assert given_to(command, *argv) == cls(**values | changed)
    path.write_bytes(render_settings(command, options.record()))
    assert cls(**read_settings(cls, path)) == options


def test_all_tools_are_in_the_table() -> None:
    assert [command for command, *_ in OF_TOOLS] == list(TOOLS)


@pytest.mark.parametrize(
    ("command", "text", "says"),
    [
        ("verify", "min_agrement: 1\n", "unknown setting 'min_agrement'; did you mean 'min_agreement'?"),
        ("verify", "path: x\nsample: many\n", "--sample 'many': give a whole number"),
        ("verify", "path: [a, b]\n", "path ['a', 'b']: give a text"),
        ("verify", "sample: 3\n", "the following arguments are required: path"),
        ("verify", "path: x\ncodec: tiny\n", "--codec and --input go together"),
        ("verify", "path: x\ninput_kind: tape\n", "--input-kind tape: known are arrow, folder,"),
        ("browse", "prot: 1\n", "unknown setting 'prot'; did you mean 'port'?"),
        ("browse", "path: no-such-tokens\n", "no-such-tokens: nothing there"),
        ("import", "natve_config: x\n", "unknown setting 'natve_config'; did you mean 'native_config'?"),
        ("import", "source: x\noutput: o\nweights: all\n", "--weights all: known are raw, ema"),
        ("import-prior", "image-sise: 8\n", "unknown setting 'image-sise'; did you mean 'image_size'?"),
        ("import-prior", "source: x\n", "are required: --codec, --image-size, --output"),
        ("import-prior", "condition_grid: [2]\n", "are required: source, --codec, --image-size, --output"),
        ("export", "form: diffusers\n", "unknown setting 'form'"),
        ("export", "codec: tiny\noutput: o\nto: torch\n", "--to torch: known are safetensors, diffusers"),
        ("push", "repositry: a/b\n", "unknown setting 'repositry'; did you mean 'repository'?"),
        ("push", "path: x\n", "the following arguments are required: OWNER/NAME"),
        ("demo", "outptu: o\n", "unknown setting 'outptu'; did you mean 'output'?"),
    ],
)
def test_files_that_tools_refuse(vqgan: Vqgan, tmp_path: Path, command: str, text: str, says: str) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    result = vqgan(command, "--config", tmp_path / "settings.yaml")
    assert (result.code, result.out) == (2, "")
    assert says in result.line


def test_tools_take_no_folder(vqgan: Vqgan, finished: Path) -> None:
    result = vqgan("verify", finished / "out", "--config", finished / "out")
    assert result.line.endswith(f"--config {finished / 'out'}: this is a folder; give a YAML file")


def test_verify_with_a_file(vqgan: Vqgan, finished: Path, tmp_path: Path, codec_path: str) -> None:
    values = {"path": str(finished / "out"), "codec": codec_path, "input": str(finished / "in"), "sample": 3}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(values))
    result = vqgan("verify", "--config", tmp_path / "settings.yaml")
    assert (result.code, "3 images re-encoded: 100.0000%" in result.out) == (0, True)
    again = vqgan("verify", "--config", tmp_path / "settings.yaml", "--sample", 5)
    assert "5 images re-encoded" in again.out


@pytest.mark.parametrize(
    ("command", "function", "text", "expected"),
    [
        (
            "import",
            "pipelines.importing.import_codec",
            "source: x\noutput: o\ninput_range: [0, 1]\nattn_resolutions: 16\nresolution: 512\n",
            ("x", "o", {"input_range": "0,1", "attn_resolutions": "16", "resolution": "512"}),
        ),
        (
            "export",
            "pipelines.importing.export_codec",
            "codec: tiny\noutput: o\nto: diffusers\n",
            ("tiny", "o", "diffusers"),
        ),
        (
            "push",
            "pipelines.pushing.push",
            "path: run/\nrepository: me/it\nprivate: true\n",
            ("run/", "me/it", {"private": True}),
        ),
        ("demo", "pipelines.demo.run_demo", "output: o\n", ("o", None)),
    ],
)
def test_tools_work_with_what_a_file_says(
    vqgan: Vqgan,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    function: str,
    text: str,
    expected: tuple[Any, ...],
) -> None:
    calls: list[tuple[Any, ...]] = []

    def note(*args: Any, **keywords: Any) -> str:
        *plain, last = (*args, keywords) if keywords else args
        given = {name: value for name, value in last.items() if value} if isinstance(last, dict) else last
        calls.append((*plain, given))
        return "done"

    monkeypatch.setattr(function, note)
    (tmp_path / "settings.yaml").write_text(text)
    assert vqgan(command, "--config", tmp_path / "settings.yaml").code == 0
    assert calls == [expected]


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
