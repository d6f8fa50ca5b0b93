"""A toy codec, small photographs, and runs of the command line in this process."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from pipelines import cli
from tests.faulty import KILLS
from tests.toy_codec import TOY, toy_weights
from vqgan.codec_checkpoint import save_codec
from vqgan.downloads import fetch_folder
from vqgan.errors import UserError

from .fake_hub import Hub

if TYPE_CHECKING:
    import jax

    from .small_jobs import SmallJobs

PHOTOS = sorted((Path(__file__).parents[1] / "testdata" / "photos").glob("*.jpg"))


class Result(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The only line of errors; more than one fails the test, and so does a traceback."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


Vqgan = Callable[..., Result]

KILLED = """
import os, signal, sys
from pipelines import cli

def watch(event, arguments):
    if event == "os.rename" and os.fsdecode(arguments[1]).endswith(where):
        os.kill(os.getpid(), signal.SIGKILL)

where = sys.argv.pop(1)
sys.addaudithook(watch)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def killed_before() -> Callable[..., None]:
    """Runs a command in a process that SIGKILL ends just before something is renamed to a path."""

    def killed_before(where: str, *argv: Any) -> None:
        command = [sys.executable, "-c", KILLED, where, *map(str, argv)]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        KILLS["launchers"] += 1

    return killed_before


@pytest.fixture(scope="session")
def codec_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a codec with 2x2 pixels a token and 64 codes."""
    path = tmp_path_factory.mktemp("codec") / "toy"
    save_codec(path, TOY, toy_weights(0))
    return str(path)


@pytest.fixture(scope="session")
def other_codec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A codec of the same shape with other weights."""
    path = tmp_path_factory.mktemp("codec") / "other"
    save_codec(path, TOY, toy_weights(1))
    return str(path)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 different small JPEGs."""
    folder = tmp_path_factory.mktemp("photos")
    for path in PHOTOS:
        with Image.open(path) as image:
            for number, size in enumerate([(48, 40), (36, 64), (33, 33), (90, 32)]):
                image.resize(size).save(folder / f"{path.stem}-{number}.jpg")
    return folder


@pytest.fixture
def few(photos: Path, tmp_path: Path) -> Path:
    """A folder of 10 of them, to be changed at will."""
    folder = tmp_path / "few"
    folder.mkdir()
    for path in sorted(photos.iterdir())[::4]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def vqgan(capsys: pytest.CaptureFixture[str]) -> Vqgan:
    """Runs one command in this process."""

    def vqgan(*argv: Any) -> Result:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in argv])
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        return Result(code, *capsys.readouterr())

    return vqgan


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub without a network, in place of its library; for uploads and downloads."""
    made = Hub(tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    fetch_folder.cache_clear()
    yield made
    fetch_folder.cache_clear()


@pytest.fixture
def tokenize(vqgan: Vqgan, codec_path: str, tmp_path: Path) -> Vqgan:
    """Runs ``vqgan tokenize`` with small batches; later flags override."""

    def tokenize(source: Any, *flags: Any, output: Any = None) -> Result:
        common = ["--codec", codec_path, "--slice-size", 4, "--batch-size", 4, "--threads", 2, "--quiet"]
        report = [] if "--report" in flags else ["--no-report"]
        rest = [flag for flag in flags if flag != "--report"]
        where = ["--input", source, "--output", output or tmp_path / "out"]
        return vqgan("tokenize", *where, *common, *report, *rest)

    return tokenize


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, photos: Path, codec_path: str) -> Path:
    """A finished data set of the photographs and one reject, with its images beside it; do not change it."""
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(photos, root / "in")
    (root / "in" / "broken.jpg").write_bytes(b"no image")
    argv = ["tokenize", "--input", root / "in", "--output", root / "out", "--codec", codec_path]
    flags = ["--slice-size", 11, "--batch-size", 4, "--quiet"]
    assert cli.main([str(argument) for argument in (*argv, *flags)]) == 0
    return root


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished data set, to be changed at will."""
    shutil.copytree(finished / "out", tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory, photos: Path, codec_path: str) -> Path:
    """Tokens of 11 photographs in two classes, two views each, in 3 shards, and one reject; do not change it.

    The classes bear the names of splits, which loaders of folders look for.
    """
    root = tmp_path_factory.mktemp("labelled")
    for number, path in enumerate(sorted(photos.iterdir())[:11]):
        folder = root / "in" / ("test" if number % 3 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    (root / "in" / "test" / "broken.jpg").write_bytes(b"no image")
    where = ["--input", root / "in", "--output", root / "tokens", "--codec", codec_path, "--folder-labels"]
    flags = ["--views", "hflip", "--slice-size", 4, "--batch-size", 4, "--no-report", "--quiet"]
    assert cli.main([str(argument) for argument in ("tokenize", *where, *flags)]) == 0
    return root / "tokens"


@pytest.fixture(scope="session")
def small_jobs(photos: Path, codec_path: str, tmp_path_factory: pytest.TempPathFactory) -> "SmallJobs":
    """Jobs over a handful of images; do not change what they read."""
    from .small_jobs import make_small_jobs  # which takes from test modules that take from here

    return make_small_jobs(sorted(photos.iterdir()), codec_path, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def loading(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Hugging Face ``datasets``, with its cache in a temporary folder."""
    import huggingface_hub  # first, so that its own settings stay those of all other tests

    assert huggingface_hub.__version__
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))  # read once, when it is imported
        patch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        import datasets
    return datasets


@pytest.fixture
def load_dataset(loading: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``datasets.load_dataset`` without a network.

    The cache is each test's own: it takes two folders of one name for the same data set.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(loading.config, "HF_HUB_OFFLINE", True)

    def load_dataset(*where: Any, **options: Any) -> Any:
        named = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        return loading.load_dataset(*map(str, where), cache_dir=str(tmp_path / "cache"), **named)

    return load_dataset


@pytest.fixture
def manifest() -> Callable[[Path], dict[str, Any]]:
    """Reads the manifest of a data set."""
    return lambda folder: json.loads((folder / "manifest.json").read_text())


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks whose values can be computed by hand; they need images of 16 pixels at least."""
    import jax.numpy as jnp

    def load_lpips(network: str, heads: Path | None, backbone: Path | None) -> "jax.Array":
        return jnp.float32({"alex": 1, "vgg": 10}[network])

    def distance(weights: "jax.Array", x: "jax.Array", y: "jax.Array") -> "jax.Array":
        if x.shape[1] < 16:
            raise UserError(f"LPIPS: images of {x.shape[1]} pixels are too small; use at least 16x16")
        return weights * jnp.max(jnp.abs(x - y), axis=(1, 2, 3))

    monkeypatch.setattr("vqgan.metrics.lpips.load_lpips", load_lpips)
    monkeypatch.setattr("vqgan.metrics.lpips.distance", distance)
    monkeypatch.setattr("vqgan.features.load_features", lambda name, path: network(name, "a distance"))


def mean_colour(images: np.ndarray) -> np.ndarray:
    return images.mean(axis=(1, 2), dtype=np.float32)


def network(name: str, distance: str) -> Any:
    return SimpleNamespace(name=name, distance=distance, dimension=3, features=mean_colour)
