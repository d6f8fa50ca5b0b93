"""Three people's paths, as they type them: into torch, a codec and a prior of one's own, a cluster."""

from pathlib import Path

import pytest

from pipelines.options.declarations import read_settings
from pipelines.options.model_options import TrainPriorOptions
from pipelines.options.run_options import TokenizeOptions
from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader
from tests.docs.standins import PRIOR_TRAINING, TRAINING, make_photos
from vqgan.data.tokens import open_tokens

SHORT = "half an hour otherwise"
TORCH = Document("docs/tokens-into-torch.md")
OWN = Document(
    "docs/own-codec-and-prior.md",
    (
        Change('preset="cpu-64"', f'preset="cpu-64", set={list(TRAINING)!r}', SHORT),
        Change('{"train.steps": 1000, "data.holdout": 10}', f"{list(PRIOR_TRAINING)!r}", SHORT),
        Change("count=1000", "count=4", SHORT),
        Change('image_size=64, output="tokens/"', 'image_size=32, output="tokens/"', SHORT),
        Change("prior.sample(16", "prior.sample(10", SHORT),
    ),
)
CLUSTER = Document("docs/cluster-run.md")


def reader_of(document: Document, folder: Path) -> Reader:
    make_photos(folder / "photos")
    return Reader(document, folder)


@pytest.fixture(scope="module")
def torch_reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return reader_of(TORCH, tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="module")
def own_reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return reader_of(OWN, tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def cluster_reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return reader_of(CLUSTER, tmp_path_factory.mktemp("cluster"))


@pytest.mark.parametrize("block", TORCH.blocks, ids=str)
def test_tokens_into_torch(block: Block, torch_reader: Reader, typed: Typed) -> None:
    typed(torch_reader, block)


@pytest.mark.parametrize("block", OWN.blocks, ids=str)
def test_own_codec_and_prior(block: Block, own_reader: Reader, typed: Typed) -> None:
    typed(own_reader, block)


@pytest.mark.parametrize("block", CLUSTER.blocks, ids=str)
def test_cluster_run(block: Block, cluster_reader: Reader, typed: Typed) -> None:
    typed(cluster_reader, block)


def test_where_the_path_into_torch_ends(torch_reader: Reader) -> None:
    """Runs after the blocks, as do the two below."""
    assert torch_reader.names["images"].shape == (8, 64, 64, 3)


def test_where_the_path_to_a_prior_ends(own_reader: Reader) -> None:
    assert own_reader.names["tokens"].counts["images"] == 20
    assert own_reader.names["images"].shape == (10, 32, 32, 3)
    assert len(list((own_reader.folder / "decoded").rglob("*.webp"))) == 4


def test_where_the_path_to_a_cluster_ends(cluster_reader: Reader) -> None:
    again = open_tokens(str(cluster_reader.folder / "once-more"))
    assert len(again) == 20
    assert again.classes == 10
    settings = read_settings(TokenizeOptions, cluster_reader.folder / "cluster.yaml")
    options = TokenizeOptions(**settings, output="gs://bucket/tokens")
    assert "--flink_master=HOST:8081" in options.beam
    assert options.slice_size == 4096


def test_settings_of_the_page_are_known() -> None:
    """What is shortened here is checked as it stands there."""
    options = TrainPriorOptions(
        tokens="tokens/", output="prior/", set={"train.steps": 1000, "data.holdout": 10}
    )
    assert options.set == ("train.steps=1000", "data.holdout=10")
