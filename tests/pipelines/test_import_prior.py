"""``vqgan import-prior``: a checkpoint of Taming Transformers becomes a prior folder that we can inspect."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipelines.commands import priors
from pipelines.inspecting import describe
from pipelines.options.flags import CommandParser
from vqgan.codec_checkpoint import load_weights, read_info
from vqgan.prior.checkpoint import load_prior_weights, read_prior

Run = Callable[..., str]


@pytest.fixture(scope="module")
def foreign() -> ModuleType:
    """The module that writes torch checkpoints without torch."""
    path = Path(__file__).parents[1] / "vqgan" / "importers" / "foreign.py"
    spec = importlib.util.spec_from_file_location("vqgan_tests_foreign_prior", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """A transformer of one block over 16 tokens of 64 codes."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"tok_emb.weight": (64, 4), "pos_emb": (1, 16, 4)}
    for name in ("ln1", "ln2"):
        shapes |= {f"blocks.0.{name}.weight": (4,), f"blocks.0.{name}.bias": (4,)}
    for name in ("key", "query", "value", "proj"):
        shapes |= {f"blocks.0.attn.{name}.weight": (4, 4), f"blocks.0.attn.{name}.bias": (4,)}
    shapes |= {"blocks.0.mlp.0.weight": (16, 4), "blocks.0.mlp.0.bias": (16,)}
    shapes |= {"blocks.0.mlp.2.weight": (4, 16), "blocks.0.mlp.2.bias": (4,)}
    shapes |= {"ln_f.weight": (4,), "ln_f.bias": (4,), "head.weight": (64, 4)}
    return {
        f"transformer.{name}": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
    }


@pytest.fixture
def source(foreign: ModuleType, tensors: dict[str, np.ndarray], codec_path: str, tmp_path: Path) -> Path:
    """A checkpoint with its first stage's codebook."""
    codebook = load_weights(read_info(codec_path), ["quantizer"])["quantizer"]["codebook"]
    whole = {**tensors, "first_stage_model.quantize.embedding.weight": codebook}
    path = tmp_path / "prior.ckpt"
    foreign.write_torch_zip(path, {"state_dict": whole, "global_step": 5})
    return path


@pytest.fixture
def run(codec_path: str, source: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command; gives what it prints. Later flags override."""

    def run(*flags: Any) -> str:
        parser = CommandParser()
        priors.add_import_prior(parser.add_subparsers())
        common = ["import-prior", source, "--codec", codec_path, "--image-size", 8, "--heads", 2]
        argv = [*common, "--output", tmp_path / "out", *flags]
        args, unknown = parser.parse_known_args([str(argument) for argument in argv])
        assert args.run(args, unknown) == 0
        return capsys.readouterr().out

    return run


def test_import_and_inspect(
    run: Run, codec_path: str, tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    printed = run("--classes", 3)
    info = read_prior(tmp_path / "out")
    assert f"fingerprint  {info.fingerprint}" in printed
    assert "layout       1 layers, 2 heads, width 4" in printed
    assert "note         it knows no sample without a class" in printed
    assert (info.config.grid, info.config.classes, info.config.codebook_size) == ((4, 4), 3, 64)
    assert info.codec.fingerprint == read_info(codec_path).fingerprint
    assert (info.codec.name, info.codec.image_size) == (codec_path, 8)
    assert info.codec.config["codebook_size"] == 64
    assert info.card["origin"]["training_step"] == 5
    table = tensors["transformer.tok_emb.weight"]
    assert np.array_equal(load_prior_weights(info)["token_embedding"], table)
    shown = describe(str(tmp_path / "out"))
    assert (shown["kind"], shown["fingerprint"], shown["classes"]) == ("prior", info.fingerprint, 3)
    # 64 x 4 token, 4 x 4 class, 17 x 4 position rows; 4 attention layers, 2 feed-forward ones, 3 norms; head
    assert shown["parameters"] == 256 + 16 + 68 + 4 * 20 + (80 + 68) + 3 * 8 + 256
    assert json.loads(json.dumps(shown)) == shown


def test_condition_grid(run: Run, tmp_path: Path) -> None:
    run("--condition-codes", 60, "--condition-grid", "3X4", "--image-size", 4)
    config = read_prior(tmp_path / "out").config
    assert (config.condition_codebook_size, config.condition_grid) == (60, (3, 4))
    assert (config.grid, config.start_token, config.prefix) == ((2, 2), False, 12)


def test_settings_from_a_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("classes: 5\ncondition_grid: [0, 0]\n")
    run("--config", file)
    assert read_prior(tmp_path / "out").config.classes == 5
    run("--config", file, "--classes", 3)
    assert read_prior(tmp_path / "out").config.classes == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "prior.json",
        "weights",
    ]


def test_inspecting_the_folder_of_a_run(run: Run, tmp_path: Path) -> None:
    run("--output", tmp_path / "trained" / "prior")
    assert describe(str(tmp_path / "trained"))["path"] == str(tmp_path / "trained" / "prior")


def test_importing_again_replaces_and_gives_the_same(run: Run, tmp_path: Path) -> None:
    first = run()
    assert run() == first
    shutil.copy(tmp_path / "out" / "README.md", tmp_path / "card.md")
    assert "taming-transformers" in (tmp_path / "card.md").read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--image-size", 12), "pos_emb is .* a grid of 6 x 6 tokens needs 36 positions"),
        (("--image-size", 7), "images of 7x7 pixels do not fit this codec"),
        (("--codec", "tiny", "--image-size", 32), "vocabulary is 64|another one than --codec"),
        (("--codec", "nothing"), "codec nothing: nothing there"),
        (("--heads", 0), "--heads is 0: it must be at least 1"),
        (("--condition-codes", 64, "--condition-grid", "2x"), "--condition-grid is '2x': give height and"),
        (("--condition-codes", 64), "--condition-codes and --condition-grid belong together"),
        (
            ("--condition-codes", 64, "--condition-grid", "2x2", "--classes", 3),
            "--classes and --condition-codes exclude each other",
        ),
        (("--condition-codes", 64, "--condition-grid", "2x2"), "needs 19 positions"),
        (("--classes", -1), "--classes is -1: it must be at least 0"),
        (("--image-sise", 8), "image-sise"),
    ],
)
def test_mistakes(run: Run, flags: tuple[Any, ...], says: str, tmp_path: Path, refused: Any) -> None:
    with refused(says):
        run(*flags)
    assert not (tmp_path / "out").exists()


def test_codec_with_another_codebook(run: Run, other_codec: str, refused: Any) -> None:
    with refused(r"another one than --codec \(\[64, 4\]\); give the codec"):
        run("--codec", other_codec)


def test_output_that_is_something_else(run: Run, codec_path: str, tmp_path: Path, refused: Any) -> None:
    shutil.copytree(codec_path, tmp_path / "codec")
    with refused("something else than a prior"):
        run("--output", tmp_path / "codec")
