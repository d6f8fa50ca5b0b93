"""A toy codec, small photographs, and jobs over them that run without Beam."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines import tokenize_images
from pipelines.tokenize_images import PlannedTokenize, TokenizeConfig
from tests.toy_codec import TOY, toy_weights
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sharded.batching import load_codec
from transforms.sharded.job import make_all
from transforms.sources import SourceConfig
from vqgan import faults, filesystems, publishing
from vqgan.codec import Codec
from vqgan.codec_checkpoint import save_codec
from vqgan.shards import DATA_FOLDER

PHOTOS = sorted((Path(__file__).parents[1] / "testdata" / "photos").glob("*.jpg"))

Configure = Callable[..., TokenizeConfig]
Run = Callable[[TokenizeConfig], dict[str, Any]]


@pytest.fixture(scope="session")
def codec_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a codec with 2x2 pixels a token and 64 codes."""
    path = tmp_path_factory.mktemp("codec") / "toy"
    save_codec(path, TOY, toy_weights(0), card={"origin": {"name": "toy"}})
    return str(path)


@pytest.fixture(scope="session")
def codec(codec_path: str) -> Codec:
    """That codec, the one that runs in this process share."""
    return load_codec(codec_path, 4, "float32")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 different small JPEGs."""
    folder = tmp_path_factory.mktemp("photos")
    for path in PHOTOS:
        with Image.open(path) as image:
            for number, size in enumerate([(48, 40), (36, 64)]):
                image.resize(size).save(folder / f"{path.stem}-{number}.jpg")
    return folder


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another at once."""
    monkeypatch.setattr(faults, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def configure(codec_path: str, tmp_path: Path) -> Configure:
    """Settings of a run over an input; keyword arguments override the rest."""

    def configure(source: Any, **changes: Any) -> TokenizeConfig:
        if not isinstance(source, SourceConfig):
            source = SourceConfig(input=str(source))
        config = TokenizeConfig(
            source=source,
            output=str(tmp_path / "out"),
            codec=codec_path,
            geometry=Geometry(image_size=32),
            decode=DecodeConfig(),
            slice_size=6,
            batch_size=4,
            threads=2,
            report=False,
            quiet=True,
        )
        return dataclasses.replace(config, **changes)

    return configure


def carry_out(prepared: PlannedTokenize, beam_args: Any = ()) -> None:
    """What the Beam pipeline does, in a plain loop."""
    make_all(prepared.job, prepared.plan, lambda images, rejects: None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """A whole run or rerun, with the pipeline as a plain loop in place of Beam."""
    monkeypatch.setattr(tokenize_images, "_run_pipeline", carry_out)
    return lambda config: tokenize_images.run_tokenize(config, [])


@pytest.fixture
def planned() -> Callable[[TokenizeConfig], PlannedTokenize]:
    """A plan written down, ready for its shards to be made one by one."""

    def plan(config: TokenizeConfig) -> PlannedTokenize:
        prepared = tokenize_images.plan_tokenize(config)
        prepared.write_plan()
        publishing.make_folder(filesystems.join(config.output, DATA_FOLDER))
        return prepared

    return plan
