"""tokenize, decode and sample over a handful of images, in this process and without Beam."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pipelines import decode_tokens, tokenize_images
from pipelines.decode_tokens import DecodeTokensConfig
from pipelines.sampling import sample_prior
from pipelines.sampling.sample_prior import SampleConfig
from pipelines.tokenize_images import TokenizeConfig
from transforms.decoding.image_format import ImageFormat
from transforms.images.config import DecodeConfig
from transforms.images.crops import Geometry
from transforms.sharded.job import make_all
from transforms.sources import SourceConfig
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import Request

from .test_sample_prior import save_random_prior

JOBS = ("tokenize", "decode to files", "decode to tar", "decode to parquet", "sample")


class SmallJobs(NamedTuple):
    """What small jobs are made of.

    Attributes:
      source: folder of images, in a folder for each class.
      tokens: a finished token data set of them.
      prior: folder of a prior.
      codec: folder of a codec.
    """

    source: Path
    tokens: Path
    prior: Path
    codec: str

    def command(self, job: str, output: Path) -> Callable[[], Any]:
        """Returns a command that does one of :data:`JOBS`; given again, it continues."""
        if job == "tokenize":
            return lambda: _tokenize(self.source, output, self.codec)
        if job == "sample":
            return lambda: _sample(self.prior, output)
        return lambda: _decode(self.tokens, output, job.removeprefix("decode to "))


def make_small_jobs(photos: Sequence[Path], codec: str, root: Path) -> SmallJobs:
    """Makes five images of two classes and one reject, their tokens, and a prior, below ``root``."""
    for number, path in enumerate(photos[:5]):
        folder = root / "in" / f"class-{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    (root / "in" / "class-0" / "broken.jpg").write_bytes(b"no image")
    _tokenize(root / "in", root / "tokens", codec)
    prior = save_random_prior(root / "prior", codec)
    return SmallJobs(root / "in", root / "tokens", prior, codec)


def _tokenize(source: Path, output: Path, codec: str) -> dict[str, Any]:
    config = TokenizeConfig(
        source=SourceConfig(str(source), folder_labels=True),
        output=str(output),
        codec=codec,
        geometry=Geometry(image_size=32),
        decode=DecodeConfig(),
        slice_size=3,
        batch_size=4,
        threads=2,
        report=False,
        quiet=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize_images, "_run_pipeline", _carry_out)
        return tokenize_images.run_tokenize(config, [])


def _decode(tokens: Path, output: Path, container: str) -> dict[str, Any]:
    config = DecodeTokensConfig(
        tokens=str(tokens),
        output=str(output),
        form=ImageFormat(container),
        batch_size=4,
        threads=2,
        report=False,
        quiet=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_tokens, "_run_pipeline", _carry_out)
        return decode_tokens.run_decode(config, [])


def _sample(prior: Path, output: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_prior, "_drawing", lambda planned, shown: _draw)
        return sample_prior.run_sample(
            SampleConfig(str(prior), str(output), 5, batch_size=4, slice_size=3, quiet=True)
        )


def _carry_out(prepared: Any, beam_args: Any) -> None:
    """Does what the pipeline does, in a plain loop."""
    make_all(prepared.job, prepared.plan, lambda images, rejects: None)


def _draw(request: Request, settings: SamplingConfig) -> np.ndarray:
    """Draws tokens that depend on the seed alone, as a prior's do."""
    grids = [np.random.default_rng(int(seed)).integers(0, 64, (4, 4)) for seed in request.seeds]
    return np.array(grids, np.int32)
