"""Small things in the place of those that a reader has: photographs, codecs, and the Hub."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from pipelines import cli
from tests.docs.reading import ROOT, Change
from tests.vqgan.importers import foreign
from vqgan.checkpoint import save_codec
from vqgan.config import ModelConfig

PHOTOS = sorted((ROOT / "tests/testdata/photos").glob("*.jpg"))
SIZES = ((96, 80), (80, 120), (70, 70), (150, 66))

MAKE = Change("make ", f"make -C {ROOT} --dry-run ", "takes long; make names what it would run")

_TRAINING = (
    "model.ch=8", "model.ch_mult=[1,2]", "model.num_res_blocks=1", "model.norm_groups=4", "model.resolution=32",
    "model.attn_resolutions=[]", "data.crop_size=32", "data.validation_size=32", "discriminator.channels=4",
    "train.steps=3", "train.batch_size=4", "train.evaluate_every=3", "train.save_every=3",
    "codebook.autoencoder_steps=1", "adversarial.start=2", "loss.perceptual=0", "train.best=psnr",
)  # fmt: skip
_PRIOR = (
    "model.layers=1", "model.heads=2", "model.width=16", "model.hidden=16", "data.samples=2",
    "data.validation_limit=8", "train.steps=3", "train.batch_size=4", "train.evaluate_every=3",
    "train.save_every=3",
)  # fmt: skip


def small_training(old: str) -> Change:
    """A change that makes ``vqgan train`` short."""
    return Change(old, f"{old} {_flags(_TRAINING)}", "half an hour, and weights of LPIPS from the network")


def small_prior(old: str) -> Change:
    """A change that makes ``vqgan train-prior`` short."""
    return Change(old, f"{old} {_flags(_PRIOR)}", "minutes")


def _flags(settings: Sequence[str]) -> str:
    return " ".join(f"--set '{setting}'" for setting in settings)


def make_photos(folder: Path, count: int = 40) -> Path:
    """A folder of small JPEGs in ten folders by what they show, and one file that is none."""
    for path, (number, size) in itertools.islice(itertools.product(PHOTOS, enumerate(SIZES)), count):
        (folder / path.stem).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.resize(size).save(folder / path.stem / f"{number}.jpg")
    (folder / PHOTOS[0].stem / "broken.jpg").write_bytes(b"no image")
    return folder


def make_codec(path: Path, resolution: int = 32) -> Path:
    """A codec with random weights, four pixels a token."""
    config = ModelConfig(
        resolution=resolution, ch=8, ch_mult=(1, 1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=8,
        embed_dim=4, codebook_size=64, norm_groups=4, mid_attention=False,
    )  # fmt: skip
    save_codec(path, config, foreign.random_weights(config))
    return path


def tokenize(photos: Path, output: Path, *flags: str, codec: str = "tiny", size: int = 32) -> Path:
    """A finished token data set."""
    where = ["--input", str(photos), "--output", str(output), "--codec", codec]
    assert cli.main(["tokenize", *where, "--image-size", str(size), "--quiet", *flags]) == 0
    return output


class EntryNotFoundError(Exception):
    """What ``huggingface_hub`` raises where a repository has no such file."""


class Hub:
    """Stands in for ``huggingface_hub``: its repositories are folders.

    Args:
      folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def HfApi(self, library_name: str) -> "Hub":  # noqa: N802
        return self

    def CommitOperationAdd(self, name: str, content: Path | bytes) -> tuple[str, bytes]:  # noqa: N802
        return name, content if isinstance(content, bytes) else Path(content).read_bytes()

    def CommitOperationDelete(self, name: str, is_folder: bool = False) -> tuple[str, None]:  # noqa: N802
        return name, None

    def create_repo(self, repo: str, **_: Any) -> None:
        (self.folder / repo).mkdir(parents=True, exist_ok=True)

    def list_repo_files(self, repo: str, **_: Any) -> list[str]:
        root = self.folder / repo
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def create_commit(self, repo: str, operations: Sequence[tuple[str, bytes | None]], **_: Any) -> Any:
        for name, content in operations:
            path = self.folder / repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")

    def hf_hub_download(self, repo: str, file: str, **_: Any) -> str:
        if not (self.folder / repo / file).is_file():
            raise EntryNotFoundError(file)
        return str(self.folder / repo / file)

    def snapshot_download(self, repo: str, **_: Any) -> str:
        return str(self.folder / repo)
