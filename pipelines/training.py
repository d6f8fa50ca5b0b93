"""``vqgan train``: a preset and settings, pictures of any source, and a codec trained on them."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.settings import configure as apply_settings
from transforms.images.dataset import Pictures, split
from transforms.images.decode import DecodeConfig
from transforms.sharded.run import Say, speaker
from transforms.sources import SourceConfig
from vqgan.codec_checkpoint import read_info
from vqgan.data.splits import key_hash
from vqgan.errors import UserError
from vqgan.extras import require_extra
from vqgan.filesystems import write_atomically
from vqgan.training.presets import TRAINING_PRESETS
from vqgan.training.tokenizer_config import DataConfig, TokenizerConfig

if TYPE_CHECKING:
    from vqgan.data.image_crops import CropBatches

CHECK_EVERY = 100  # batches between looks at the number of rejects


@dataclasses.dataclass(frozen=True)
class TrainRequest:
    """What the user asked for.

    Attributes:
      source: training pictures.
      output: folder of the run.
      preset: name in :data:`vqgan.training.presets.TRAINING_PRESETS`.
      settings: ``section.field=value`` each.
      validation: held-back pictures; by default a share of the source.
      init: codec to start from.
      license: of the codec, for its card.
      wandb_project: also log to Weights & Biases.
      quiet: print errors only.
    """

    source: SourceConfig
    output: str
    preset: str = "tiny"
    settings: tuple[str, ...] = ()
    validation: SourceConfig | None = None
    init: str | None = None
    license: str = "unspecified"
    wandb_project: str | None = None
    quiet: bool = False


def run(request: TrainRequest) -> bool:
    """Trains until the end, or until SIGTERM; goes on where an earlier run in the same folder stopped.

    Returns:
      Whether all steps were done.

    Raises:
      UserError: a mistake in the request, no usable pictures, or the loss is not finite any more.
    """
    require_training(request.wandb_project)
    from vqgan.training.tokenizer_run import TokenizerRun, train

    config = configure(request.preset, request.settings)
    if request.init is not None:
        read_info(request.init)  # one that cannot be opened is refused before pictures are listed
    training, validation = _pictures(request, config)
    started = time.monotonic()
    batches = _Watched(training, config)
    images = validation_images(validation, config.data)
    say = speaker(request.quiet)
    say(f"{len(training)} pictures to train on, {len(images)} held back")
    job = TokenizerRun(
        config=config,
        folder=Path(request.output),
        init=request.init,
        data=_digest(training, validation),
        card=_card(request, training, images),
        quiet=request.quiet,
        wandb_project=request.wandb_project,
    )
    try:
        outcome = train(job, batches, images)
    finally:
        batches.close()
    _write_rejects(Path(request.output), {**training.rejects, **validation.rejects}, say)
    minutes = (time.monotonic() - started) / 60
    if not outcome.finished:
        say(f"stopped after step {outcome.step}; the same command goes on from there")
        return False
    figures = (
        ", ".join(f"{name} {value:.4g}" for name, value in outcome.figures.items()) or "nothing held back"
    )
    say(f"{minutes:.1f} minutes; best at step {outcome.best_step}: {figures}")
    say(f"codec: {request.output}/codec\nreport: {request.output}/report.html")
    return True


def require_training(wandb_project: str | None) -> None:
    """Checks that what a training run needs is installed.

    Raises:
      UserError: it is not.
    """
    require_extra("train", "training")
    if wandb_project is not None:
        require_extra("wandb", f"wandb project {wandb_project}")


def configure(preset: str, settings: Sequence[str]) -> TokenizerConfig:
    """A preset with every ``section.field=value`` applied; values are JSON, or else plain text.

    Raises:
      UserError: unknown preset, section or field, or a wrong value.
    """
    return apply_settings(TRAINING_PRESETS, preset, settings)


def validation_images(pictures: Pictures, config: DataConfig) -> np.ndarray:
    """Held-back pictures, centre-cropped and resized, uint8 ``[N, S, S, 3]``; unusable ones are left out."""
    from vqgan.data.image_crops import center_crop_resize

    size, found = config.evaluated_size, []
    # By a hash of the key: the first ones of a listing may all be of one class.
    numbers = sorted(range(len(pictures)), key=lambda number: key_hash(pictures.keys[number]))
    for number in numbers[: config.validation_limit]:
        picture = pictures[number]
        if picture is not None:
            found.append(center_crop_resize(picture, size))
    return np.stack(found) if found else np.zeros((0, size, size, 3), np.uint8)


def _pictures(request: TrainRequest, config: TokenizerConfig) -> tuple[Pictures, Pictures]:
    """Pictures to train on and pictures held back."""
    training = open_pictures(request.source, config.data)
    if request.validation is not None:
        return training, open_pictures(request.validation, config.data).uncached()
    training, validation = split(training, config.data.holdout)
    return training, validation.uncached()


def open_pictures(source: SourceConfig, data: DataConfig) -> Pictures:
    """The pictures of a source that are large enough to crop."""
    return Pictures(source, DecodeConfig(), data.max_short_side, data.crop_size, data.cache_mib << 20)


def open_batches(pictures: Pictures, config: TokenizerConfig) -> "CropBatches":
    """Endless batches of training crops."""
    from vqgan.data.image_crops import CropConfig, crop_batches

    data, train = config.data, config.train
    return crop_batches(
        pictures,
        CropConfig(data.crop_size, flip=data.flip),
        train.batch_size,
        train.seed,
        threads=data.threads,
        blocks=pictures.blocks,
        name=pictures.config.input,
    )


def _digest(*sets: Pictures) -> str:
    """sha256 over the keys of the pictures, set by set."""
    digest = hashlib.sha256()
    for pictures in sets:
        for key in pictures.keys:
            digest.update(key.encode() + b"\0")
        digest.update(b"\1")
    return digest.hexdigest()


class _Watched:
    """Batches of crops that stop the run when too many pictures are of no use."""

    def __init__(self, pictures: Pictures, config: TokenizerConfig):
        self._pictures, self._limit, self._count = pictures, config.data.max_rejects, 0
        self._batches = open_batches(pictures, config)

    def __iter__(self) -> "_Watched":
        return self

    def __next__(self) -> np.ndarray:
        if self._count % CHECK_EVERY == 0:
            self._check()
        self._count += 1
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)

    def close(self) -> None:
        self._batches.close()

    def _check(self) -> None:
        rejects = self._pictures.rejects
        if len(rejects) > self._limit * len(self._pictures):
            key, reason = next(iter(rejects.items()))
            raise UserError(
                f"{self._pictures.config.input}: {len(rejects)} of {len(self._pictures)} pictures cannot "
                f"be used (such as {key}: {reason}); correct the input or raise data.max_rejects"
            )


def _card(request: TrainRequest, training: Pictures, validation: np.ndarray) -> Mapping[str, Any]:
    held_back = request.source if request.validation is None else request.validation
    return {
        "license": request.license,
        "data": {
            "source": request.source.input,
            "training_images": len(training),
            "validation_source": held_back.input,
            "held_back_images": len(validation),
        },
    }


def _write_rejects(folder: Path, rejects: Mapping[str, str], say: Say) -> None:
    """``rejects.jsonl``: a line for each picture that was of no use, before a stop as well as after it."""
    path = folder / "rejects.jsonl"
    earlier = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {record["key"]: record["reason"] for record in earlier} | dict(rejects)
    if not known:
        return
    lines = [json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in sorted(known.items())]
    write_atomically(path, "".join(lines).encode())
    say(f"{len(known)} pictures could not be used: {path}")
