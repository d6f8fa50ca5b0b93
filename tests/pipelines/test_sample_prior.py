"""``vqgan sample``: what it writes, that seeds decide it, that it goes on, and what it refuses."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from transforms.sharded import job as job_module
from transforms.sharded import progress
from vqgan.codec import Codec
from vqgan.codec_checkpoint import read_info
from vqgan.config_json import to_dict
from vqgan.prior.checkpoint import CodecIdentity, PriorInfo, read_prior, save_prior
from vqgan.prior.config import PriorConfig, prior_parameter_shapes
from vqgan.prior.sampling import sampler as samplers
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import Request
from vqgan.shards import METADATA_KEY

from .conftest import Vqgan

pytestmark = pytest.mark.usefixtures("few_optimizations")

GRID = (4, 4)
NAMES = ("cat", "dog", "fish")


def save_random_prior(
    folder: Path, codec_path: str, kind: str = "autoregressive", classes: int = 3, **more: Any
) -> Path:
    """A prior with random weights, large enough to tell inputs apart; ``more`` as ``save_prior`` takes it."""
    config = PriorConfig(kind=kind, codebook_size=64, grid=GRID, classes=classes, layers=1, heads=2, width=16)
    if words := more.get("words"):
        config = dataclasses.replace(config, text_length=2, text_words=len(words) + 1)
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in prior_parameter_shapes(config).items()
    }
    info = read_info(codec_path)
    codec = CodecIdentity(info.fingerprint, codec_path, to_dict(info.config), 8)
    save_prior(folder, config, weights, codec=codec, class_names=NAMES[:classes], **more)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _compiled_once() -> Iterator[None]:
    """One sampler for all tests of the same prior and batch size: compiling takes most of their time."""
    made: dict[tuple[str, int, str], samplers.PriorSampler] = {}
    load = samplers.load_sampler

    def load_once(info: PriorInfo, *, batch_size: int, dtype: Any) -> samplers.PriorSampler:
        wanted = (info.fingerprint, batch_size, str(dtype))
        if wanted not in made:
            made[wanted] = load(info, batch_size=batch_size, dtype=dtype)
        return made[wanted]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samplers, "load_sampler", load_once)
        yield


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory, codec_path: str) -> Path:
    return save_random_prior(tmp_path_factory.mktemp("prior") / "prior", codec_path)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory, codec_path: str) -> Path:
    return save_random_prior(tmp_path_factory.mktemp("prior") / "masked", codec_path, kind="masked")


@pytest.fixture
def sample(vqgan: Vqgan, prior: Path, tmp_path: Path) -> Vqgan:
    """Runs ``vqgan sample`` with small batches; later flags override."""

    def sample(*flags: Any, output: Any = None) -> Any:
        where = ["--prior", prior, "--output", output or tmp_path / "out"]
        common = ["--count", 10, "--batch-size", 4, "--slice-size", 5, "--quiet"]
        return vqgan("sample", *where, *common, *flags)

    return sample


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("data/*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_what_is_written(
    sample: Vqgan, vqgan: Vqgan, tmp_path: Path, codec_path: str, manifest: Callable[[Path], dict[str, Any]]
) -> None:
    out = tmp_path / "out"
    assert sample("--seed", 7, "--temperature", 0.9, "--top-k", 9).code == 0
    rows = rows_of(out)
    assert [row["seed"] for row in rows] == [*range(7, 17)]
    assert [row["label"] for row in rows] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert len({row["key"] for row in rows}) == 10
    codec = Codec.load(codec_path, batch_size=5)
    images = codec.decode(np.array([row["tokens"] for row in rows]).reshape(-1, *GRID))
    for row, pixels in zip(rows, images, strict=True):
        with Image.open(out / "images" / f"{row['key']}.png") as opened:
            np.testing.assert_array_equal(np.asarray(opened), pixels)
        assert (row["width"], row["height"]) == pixels.shape[1::-1]
    footer = json.loads(pq.read_metadata(out / "data/tokens-00000-of-00002.parquet").metadata[METADATA_KEY])
    assert footer["sampling"]["settings"]["temperature"] == 0.9
    assert footer["sampling"]["settings"]["top_k"] == 9
    assert "masked" not in footer["sampling"]["settings"]  # which this kind does not look at
    assert footer["sampling"]["first_seed"] == 7
    assert footer["fingerprint"] == codec.fingerprint
    assert manifest(out)["counts"]["rows"] == 10
    with Image.open(out / "grid.png") as sheet:
        assert sheet.width == 3 * 8 + 2 * 2  # a column for each class
    verified = vqgan("verify", out)
    assert verified.code == 0, verified
    assert vqgan("inspect", out).code == 0
    assert vqgan("inspect", out / "data/tokens-00000-of-00002.parquet").code == 0


def test_a_seed_decides_on_its_sample(sample: Vqgan, tmp_path: Path) -> None:
    """Whatever the batch, the slices, the neighbours and the number of samples."""
    assert sample("--class", "dog").code == 0
    flags = ["--class", "dog", "--seed", 4, "--count", 3, "--batch-size", 3, "--slice-size", 100]
    assert sample(*flags, "--no-images", output=tmp_path / "few").code == 0
    all_rows, few = rows_of(tmp_path / "out"), rows_of(tmp_path / "few")
    assert [row["tokens"] for row in few] == [row["tokens"] for row in all_rows[4:7]]
    assert len({tuple(row["tokens"]) for row in all_rows}) == 10
    assert not (tmp_path / "few" / "images").exists()
    assert not (tmp_path / "few" / "grid.png").exists()


def test_classes_by_name_and_number(sample: Vqgan, tmp_path: Path) -> None:
    assert sample("--class", "fish", "--class", "1", "--class", "none", "--count", 3).code == 0
    assert [row["label"] for row in rows_of(tmp_path / "out")] == [2, 1, None]


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that say when and how fast."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_goes_on_after_an_interruption(
    sample: Vqgan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sample(output=tmp_path / "whole").code == 0
    made = job_module.make_slice
    numbers: list[int] = []

    def once(job: Any, number: int, *rest: Any) -> Any:
        numbers.append(number)
        if len(numbers) == 2:
            raise KeyboardInterrupt
        return made(job, number, *rest)

    monkeypatch.setattr(job_module, "make_slice", once)
    stopped = sample()
    assert stopped.code == 130
    assert "same command continues" in stopped.line
    first = tmp_path / "out" / "data/tokens-00000-of-00002.parquet"
    stamp = first.stat().st_mtime_ns
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert sample().code == 0
    assert first.stat().st_mtime_ns == stamp
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_run_is_left_alone_and_what_is_lost_made_again(sample: Vqgan, tmp_path: Path) -> None:
    assert sample().code == 0
    before = contents(tmp_path / "out")
    again = sample()
    assert (again.code, contents(tmp_path / "out")) == (0, before)
    for lost in ("data/tokens-00001-of-00002.parquet", "images/seed-0000000003.png", "grid.png"):
        (tmp_path / "out" / lost).unlink()
        assert sample().code == 0
        assert contents(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out" / "images")
    shard = tmp_path / "out" / "data/tokens-00000-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:500])
    assert sample().code == 0
    assert contents(tmp_path / "out") == before


def test_another_run_in_the_same_place(sample: Vqgan) -> None:
    assert sample().code == 0
    refused = sample("--temperature", 0.5)
    assert refused.code == 2
    assert "temperature: 1.0, now 0.5" in refused.line


def test_a_folder_of_something_else_is_not_touched(sample: Vqgan, prior: Path, tmp_path: Path) -> None:
    shutil.copytree(prior, tmp_path / "prior")
    before = contents(tmp_path / "prior")
    refused = sample("--prior", tmp_path / "prior", output=tmp_path / "prior")
    assert refused.code == 2
    assert "something else in it" in refused.line
    assert contents(tmp_path / "prior") == before


def test_a_run_without_a_prior_yet(sample: Vqgan, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    refused = sample("--prior", tmp_path / "run")
    assert (refused.code, "no prior yet" in refused.line) == (2, True)


def test_guidance_changes_samples(sample: Vqgan, tmp_path: Path) -> None:
    assert sample("--no-images").code == 0
    assert sample("--no-images", "--guidance", 3, output=tmp_path / "guided").code == 0
    assert [row["tokens"] for row in rows_of(tmp_path / "out")] != [
        row["tokens"] for row in rows_of(tmp_path / "guided")
    ]


@pytest.fixture
def given(sample: Vqgan, tmp_path: Path) -> Path:
    """Token grids to start from."""
    folder = tmp_path / "given"
    assert sample("--no-images", "--seed", 100, "--count", 4, output=folder).code == 0
    return folder


def grids(folder: Path) -> np.ndarray:
    return np.array([row["tokens"] for row in rows_of(folder)]).reshape(-1, *GRID)


def test_the_upper_half_is_kept(sample: Vqgan, given: Path, tmp_path: Path) -> None:
    assert sample("--given", given, "--keep-rows", 2, "--no-images").code == 0
    start, found = grids(given), grids(tmp_path / "out")
    wanted = start[np.arange(10) % 4]  # from the first row again
    np.testing.assert_array_equal(found[:, :2], wanted[:, :2])
    assert (found[:, 2:] != wanted[:, 2:]).any(axis=(1, 2)).all()


def test_a_region_is_filled_in(sample: Vqgan, masked: Path, given: Path, tmp_path: Path) -> None:
    flags = ["--prior", masked, "--given", given, "--inpaint", "1,1,3,4", "--count", 4, "--steps", 3]
    assert sample(*flags, "--no-images").code == 0
    start, found = grids(given), grids(tmp_path / "out")
    outside = np.ones(GRID, bool)
    outside[1:3, 1:4] = False
    np.testing.assert_array_equal(found[:, outside], start[:, outside])
    assert (found[:, ~outside] != start[:, ~outside]).any(axis=1).all()


def test_a_larger_grid(sample: Vqgan, tmp_path: Path) -> None:
    assert sample("--grid", "6x5", "--count", 2).code == 0
    rows = rows_of(tmp_path / "out")
    assert {len(row["tokens"]) for row in rows} == {30}
    with Image.open(tmp_path / "out" / "images" / f"{rows[0]['key']}.png") as opened:
        assert opened.size == (10, 12)


def test_a_larger_grid_says_how_far_it_is(
    sample: Vqgan, vqgan: Vqgan, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0)
    flags = ("--prior", prior, "--grid", "6x5", "--no-images", "--batch-size", 4, "--slice-size", 5)
    told = vqgan("sample", *flags, "--count", 2, "--output", tmp_path / "told").err.splitlines()
    moves = 6 * 2  # for the first token of each row, and once within each
    assert f"30 tokens an image, by a window of 4x4 that moves for {moves} of them" in "".join(told)
    far = [line.split("; ")[1] for line in told if "; " in line and "of 30 tokens of" in line]
    assert far == [f"{5 * row} of 30 tokens of the next 2 images" for row in range(1, 7)]
    # Two at a time, since there are no more; the same as of batches of four.
    assert sample("--grid", "6x5", "--no-images", "--count", 3).code == 0
    assert rows_of(tmp_path / "told") == rows_of(tmp_path / "out")[:2]


def test_the_trained_grid_is_no_larger_one(sample: Vqgan, masked: Path) -> None:
    assert sample("--prior", masked, "--grid", "4x4", "--count", 2, "--no-images").code == 0


@pytest.fixture
def conditional(vqgan: Vqgan, given: Path, codec_path: str, tmp_path: Path) -> Path:
    """A prior whose condition is a grid like that of ``given``."""
    config = PriorConfig(
        codebook_size=64, grid=GRID, condition_codebook_size=64, condition_grid=GRID, layers=1, heads=2,
        width=16,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    weights = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in prior_parameter_shapes(config).items()
    }
    info = read_info(codec_path)
    codec = CodecIdentity(info.fingerprint, codec_path, to_dict(info.config), 8)
    trained = {"data": {"condition_codec": {"fingerprint": info.fingerprint, "name": codec_path}}}
    save_prior(tmp_path / "conditional", config, weights, codec=codec, card=trained)
    return tmp_path / "conditional"


def test_a_condition_grid(sample: Vqgan, conditional: Path, given: Path, tmp_path: Path) -> None:
    """Sample i is what the prior gives for row i, from the first row again."""
    flags = ["--prior", conditional, "--condition", given, "--no-images"]
    assert sample(*flags).code == 0
    rows = np.arange(10) % 4
    sampler = samplers.load_sampler(read_prior(conditional), batch_size=4, dtype=np.float32)
    wanted = sampler.sample(
        Request(np.arange(10), condition=grids(given).reshape(4, -1)[rows]), SamplingConfig()
    )
    np.testing.assert_array_equal(grids(tmp_path / "out"), wanted)
    other = sampler.sample(
        Request(np.arange(10), condition=grids(given).reshape(4, -1)[rows[::-1]]), SamplingConfig()
    )
    assert (other != wanted).any()


def test_conditions_that_do_not_fit(
    sample: Vqgan, conditional: Path, given: Path, finished: Path, tokenize: Vqgan, photos: Path,
    other_codec: str, tmp_path: Path,
) -> None:  # fmt: skip
    missing = sample("--prior", conditional)
    assert (missing.code, "needs condition grids" in missing.line) == (2, True)
    another_grid = sample("--prior", conditional, "--condition", finished / "out")
    assert (another_grid.code, "16" in another_grid.line) == (2, True)
    made = tokenize(photos, "--codec", other_codec, "--image-size", 8, output=tmp_path / "others")
    assert made.code == 0
    another_codec = sample("--prior", conditional, "--condition", tmp_path / "others")
    assert another_codec.code == 2
    for path in (other_codec, conditional):
        known = read_info(path).fingerprint if path == other_codec else read_prior(path).codec.fingerprint
        assert known[:12] in another_codec.line


def test_guidance_of_a_prior_that_never_saw_no_class(sample: Vqgan, prior: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(prior, moved)
    document = json.loads((moved / "prior.json").read_text())
    document["card"]["training"] = {"objective": {"class_dropout": 0.0}}
    (moved / "prior.json").write_text(json.dumps(document))
    for flags in (["--guidance", 2], ["--class", "none"]):
        refused = sample("--prior", moved, *flags)
        assert refused.code == 2
        assert "class_dropout" in refused.line
    assert sample("--prior", moved, "--class", "cat", "--no-images").code == 0


def test_a_prior_without_classes(vqgan: Vqgan, codec_path: str, tmp_path: Path) -> None:
    prior = save_random_prior(tmp_path / "plain", codec_path, classes=0)
    common = ["sample", "--prior", prior, "--count", 2, "--quiet", "--no-images"]
    assert vqgan(*common, "--output", tmp_path / "out").code == 0
    assert [row["label"] for row in rows_of(tmp_path / "out")] == [None, None]
    for flags, match in ((["--class", "1"], "without classes"), (["--guidance", 2], "without classes")):
        refused = vqgan(*common, "--output", tmp_path / "other", *flags)
        assert refused.code == 2
        assert match in refused.line
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--class", "fsh"], "did you mean fish"),
        (["--class", "3"], "from 0 to 2"),
        (["--count", 0], "--count 0"),
        (["--seed", 2**32 - 9], "--seed"),
        (["--count", 2**32 + 1], "--count 4294967297"),
        (["--top-p", 0], "top_p is 0"),
        (["--grid", "3x8"], "at least that"),
        (["--grid", "3by8"], "whole numbers"),
        (["--keep-rows", 2], "--given"),
        (["--prior", "nowhere"], "nowhere"),
        (["--dtype", "float8"], "--dtype float8"),
        (["--condition", "somewhere"], "without a condition"),
        (["--codec", "tiny"], "tiny"),
        (["--tempratur", 1], "did you mean --temperature"),
    ],
)
def test_refusals(sample: Vqgan, tmp_path: Path, flags: list[Any], match: str) -> None:
    refused = sample(*flags)
    assert refused.code == 2
    assert match in refused.line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ([], "--keep-rows or by --inpaint"),
        (["--keep-rows", 4], "give 1 to 3"),
        (["--inpaint", "0,0,2,2"], "masked prior"),
        (["--inpaint", "0,0,2"], "4 whole numbers"),
    ],
)
def test_refused_starts(sample: Vqgan, given: Path, flags: list[Any], match: str) -> None:
    refused = sample("--given", given, *flags)
    assert refused.code == 2
    assert match in refused.line


def test_tokens_of_another_codec_to_start_from(sample: Vqgan, finished: Path) -> None:
    refused = sample("--given", finished / "out", "--keep-rows", 2)  # of the same codec, on another grid
    assert refused.code == 2
    assert "16" in refused.line


def test_the_codec_of_another_prior(sample: Vqgan, other_codec: str, codec_path: str) -> None:
    refused = sample("--codec", other_codec)
    assert refused.code == 2
    for path in (other_codec, codec_path):
        assert read_info(path).fingerprint[:12] in refused.line


def test_a_damaged_shard_is_made_again(sample: Vqgan, tmp_path: Path) -> None:
    assert sample().code == 0
    before = contents(tmp_path / "out")
    shard = tmp_path / "out" / "data/tokens-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    (tmp_path / "out" / "manifest.json").unlink()
    assert sample().code == 0
    assert contents(tmp_path / "out") == before


def test_images_need_the_named_codec(vqgan: Vqgan, prior: Path, tmp_path: Path, codec_path: str) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(prior, moved)
    document = json.loads((moved / "prior.json").read_text())
    document["codec"]["name"] = str(tmp_path / "gone")
    (moved / "prior.json").write_text(json.dumps(document))
    common = ["sample", "--prior", moved, "--count", 1, "--quiet", "--output", tmp_path / "out"]
    refused = vqgan(*common)
    assert refused.code == 2
    assert "--codec" in refused.line
    assert vqgan(*common, "--codec", codec_path).code == 0
