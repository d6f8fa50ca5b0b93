"""``vqgan.Prior``: samples in two lines, the same as the sampler's, and images by the prior's codec."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqgan
from tests.conftest import Refused
from vqgan import Prior, SamplingConfig
from vqgan.codec import Codec
from vqgan.config_json import to_dict
from vqgan.prior.checkpoint import CodecIdentity, class_numbers, read_prior, save_prior
from vqgan.prior.config import PriorConfig
from vqgan.prior.sampling.request import Request
from vqgan.prior.sampling.sampler import load_sampler

NAMES = ("cat", "2", "fish")
GRID = (3, 4)


def save(folder: Path, params: Any, codec: Codec, kind: str = "autoregressive", **fields: Any) -> Path:
    config = PriorConfig(
        kind=kind, codebook_size=32, grid=GRID, layers=1, heads=2, width=16, **{"classes": 3, **fields}
    )
    identity = CodecIdentity(codec.fingerprint, str(codec.info.path), to_dict(codec.config), 8)
    save_prior(folder, config, params(config), codec=identity, class_names=NAMES)
    return folder


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, random_params: Any, toy_codec: Codec) -> Path:
    return save(tmp_path_factory.mktemp("inference") / "prior", random_params, toy_codec)


@pytest.fixture(scope="module")
def prior(path: Path) -> Prior:
    return Prior.load(path, batch_size=4)


def test_samples_are_those_of_the_sampler(prior: Prior, path: Path) -> None:
    tokens = prior.sample(6, labels=["fish", 1], seed=5, top_k=9, guidance=3.0)
    assert (tokens.shape, tokens.dtype) == ((6, *GRID), np.int32)
    request = Request(np.arange(5, 11), np.array([2, 1, 2, 1, 2, 1]))
    settings = SamplingConfig(top_k=9, guidance=3.0)
    np.testing.assert_array_equal(
        tokens, load_sampler(read_prior(path), batch_size=4).sample(request, settings)
    )
    np.testing.assert_array_equal(tokens, prior.sample(6, labels=[2, "2"], seed=5, config=settings))
    np.testing.assert_array_equal(tokens[2:], prior.sample(4, labels=[2, 1], seed=7, config=settings))
    assert not np.array_equal(tokens, prior.sample(6, labels=[2, 1], seed=5, config=settings, top_k=3))


def test_classes(prior: Prior) -> None:
    assert prior.class_names == NAMES
    drawn = prior.sample(4, temperature=0)  # all classes in turn
    np.testing.assert_array_equal(drawn, prior.sample(4, labels=np.array([0, 1, 2, 0]), temperature=0))
    free = prior.sample(2, labels=None, temperature=0)
    np.testing.assert_array_equal(free, prior.sample(2, labels=-1, temperature=0))
    info = prior.info
    # a name of digits is another class than the number
    assert class_numbers(info, ["2", 2, "1", "none", None, -1]) == [1, 2, 1, None, None, None]
    assert prior.sample(0).shape == (0, *GRID)


def test_completion(prior: Prior) -> None:
    given = prior.sample(3)
    given[:, 1:] = -1
    completed = prior.sample(3, given=given, seed=9)
    np.testing.assert_array_equal(completed[:, 0], given[:, 0])
    assert (completed >= 0).all()
    np.testing.assert_array_equal(prior.sample(3, given=given[:1], seed=9)[:, 0], given[[0, 0, 0], 0])


def test_images(prior: Prior, toy_codec: Codec, path: Path) -> None:
    tokens = prior.sample(2)
    images = prior.images(tokens)
    assert (images.shape, images.dtype) == ((2, 6, 8, 3), np.uint8)
    np.testing.assert_array_equal(images, toy_codec.decode(tokens))
    assert Prior.load(path, codec=toy_codec).codec is toy_codec


def test_larger_grids_and_masked_priors(
    prior: Prior, tmp_path: Path, random_params: Any, toy_codec: Codec, refused: Refused
) -> None:
    assert prior.sample(1, grid=(4, 5)).shape == (1, 4, 5)
    masked = Prior.load(save(tmp_path / "masked", random_params, toy_codec, "masked"), batch_size=2)
    assert masked.sample(2, steps=3).shape == (2, *GRID)
    with refused("autoregressive and draws token after token: leave steps"):
        prior.sample(1, steps=3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"labels": "fsh"}, "class fsh: there is no such class; did you mean fish"),
        ({"labels": 3}, "class 3: there is no such class; give a number from 0 to 2"),
        ({"seed": 2**32}, "seeds must lie in"),
        ({"count": -1}, "seeds must lie in"),
        ({"top_p": 0.0}, "sampling.top_p is 0.0"),
        ({"given": np.zeros((3, 12), int)}, "given is of shape"),
        ({"given": np.zeros((3, 3, 4), int)}, "given is of shape"),
        ({"given": np.full((2, 3, 4), 99)}, "known tokens reach from 99"),
        ({"condition": np.zeros((2, 3, 4), int)}, "trained without one"),
    ],
)
def test_refusals(prior: Prior, arguments: dict[str, Any], says: str, refused: Refused) -> None:
    with refused(says):
        prior.sample(**{"count": 2, **arguments})


def test_codecs_that_are_refused(path: Path, tmp_path: Path, random_params: Any, refused: Refused) -> None:
    with refused("give the codec or data set that belongs to it"):
        _ = Prior.load(path, codec="tiny").codec
    with refused("nothing there"):
        _ = Prior.load(path, codec=tmp_path / "none").codec
    lost = CodecIdentity("ab" * 32, str(tmp_path / "gone"), {}, 8)
    config = PriorConfig(codebook_size=32, grid=GRID, layers=1, heads=2, width=16)
    save_prior(tmp_path / "prior", config, random_params(config), codec=lost)
    with refused(r"names a codec that is unavailable .*Prior\.load\(\.\.\., codec=\.\.\.\)"):
        Prior.load(tmp_path / "prior").images(np.zeros((1, 3, 4), int))
    with refused("nothing there"):
        Prior.load(tmp_path / "nothing")


def test_the_face() -> None:
    assert set(vqgan.__all__) <= set(dir(vqgan))
    for name in vqgan.__all__:
        assert getattr(vqgan, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Codex'"):
        _ = vqgan.Codex  # type: ignore[attr-defined]
