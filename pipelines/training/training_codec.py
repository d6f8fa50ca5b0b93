"""``vqgan train``: a preset and settings, images of any source, and a codec trained on them."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.options.settings import apply_settings
from pipelines.training.training_runs import (
    TrainingRequest,
    TrainingSummary,
    render_training,
    require_training,
    say_outcome,
)
from transforms.images.dataset import ImageDataset, split
from transforms.images.decode import DecodeConfig
from transforms.sharded.run import Say, speaker
from transforms.sources import SourceConfig
from vqgan.codec_checkpoint import read_info
from vqgan.data.splits import key_hash
from vqgan.errors import UserError, counted
from vqgan.image_sizes import describe_size, shape_of_size
from vqgan.publishing import make_folder, write_atomically
from vqgan.training.codec.config import CODEC_TRAINING_PRESETS, CodecTrainConfig, DataConfig

if TYPE_CHECKING:
    from vqgan.data.image_crops import CropBatches
    from vqgan.training.codec.run import CodecRun
    from vqgan.training.loop import Outcome

CHECK_EVERY = 100  # batches between looks at the number of rejects


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRequest(TrainingRequest):
    """What the user asked for; presets are those of :mod:`vqgan.training.codec.config`.

    Attributes:
      source: training images.
      validation: validation images; by default a share of the source.
      init: codec to start from.
    """

    source: SourceConfig
    validation: SourceConfig | None = None
    init: str | None = None


def run_codec_training(request: TrainRequest, record: Mapping[str, Any] | None = None) -> TrainingSummary:
    """Trains until the end, or until SIGTERM; goes on where an earlier run in the same folder stopped.

    Args:
      request: all settings.
      record: the settings as they were given, for the run's folder.

    Returns:
      How it ended.

    Raises:
      UserError: a mistake in the request, no usable images, or the loss is not finite any more.
    """
    require_training(request.wandb_project)
    from vqgan.training.codec.run import CODEC_FOLDER
    from vqgan.training.training_run import check_run_folder

    config = configure_codec_training(request.preset, request.settings)
    if request.init is not None:
        read_info(request.init)  # one that cannot be opened is refused before images are listed
    training, validation = _training_and_validation(request, config)
    started = time.monotonic()
    say = speaker(request.quiet)
    check_run_folder(Path(request.output))
    outcome = _train(request, config, (training, validation), record, say)
    return say_outcome(outcome, request, CODEC_FOLDER, started, say)


def _train(
    request: TrainRequest,
    config: CodecTrainConfig,
    sets: tuple[ImageDataset, ImageDataset],
    record: Mapping[str, Any] | None,
    say: Say,
) -> "Outcome[Any]":
    from vqgan.training.codec.run import fit_codec
    from vqgan.training.training_run import has_checkpoints

    folder, (training, validation) = Path(request.output), sets
    batches = _WatchedBatches(training, config, folder)
    try:
        images = validation_images(validation, config.data, config.model.channels.count)
        _check_usable(training, config.data, folder)
        say(f"{counted(len(training), 'image')} to train on, {len(images)} for validation")
        job = _codec_run(request, config, sets, images, record)
        outcome = fit_codec(job, batches, images)
    except UserError:
        # In a folder with checkpoints this may not even be the run that it belongs to, before a first batch.
        if batches.begun or not has_checkpoints(folder):
            with contextlib.suppress(UserError):
                _write_rejects(folder, {**training.rejects, **validation.rejects}, say)
        raise
    finally:
        batches.close()
    _write_rejects(folder, {**training.rejects, **validation.rejects}, say)
    return outcome


def _codec_run(
    request: TrainRequest,
    config: CodecTrainConfig,
    sets: tuple[ImageDataset, ImageDataset],
    images: np.ndarray,
    record: Mapping[str, Any] | None,
) -> "CodecRun":
    from vqgan.training.codec.run import CodecRun

    return CodecRun(
        config=config,
        folder=Path(request.output),
        init=request.init,
        data=_digest(*sets),
        card=_card(request, sets[0], images),
        quiet=request.quiet,
        wandb_project=request.wandb_project,
        record=render_training("train", record, config),
    )


def configure_codec_training(preset: str, settings: Sequence[str]) -> CodecTrainConfig:
    """Returns a preset with every ``section.field=value`` applied; values are JSON, or else plain text.

    Raises:
      UserError: unknown preset, section or field, or a wrong value.
    """
    return apply_settings(CODEC_TRAINING_PRESETS, preset, settings)


def validation_images(images: ImageDataset, config: DataConfig, channels: int = 3) -> np.ndarray:
    """Reads validation images, centre-cropped and resized, uint8 ``[N, H, W, C]``, but for unusable ones."""
    from vqgan.data.image_crops import center_crop_resize

    size, found = config.evaluated_size, []
    # By a hash of the key: the first ones of a listing may all be of one class.
    numbers = sorted(range(len(images)), key=lambda number: key_hash(images.keys[number]))
    for number in numbers[: config.validation_limit]:
        image = images[number]
        if image is not None:
            found.append(center_crop_resize(image, size))
    return np.stack(found) if found else np.zeros((0, *shape_of_size(size), channels), np.uint8)


def _training_and_validation(
    request: TrainRequest, config: CodecTrainConfig
) -> tuple[ImageDataset, ImageDataset]:
    training = open_images(request.source, config)
    if request.validation is not None:
        return training, open_images(request.validation, config).uncached()
    training, validation = split(training, config.data.holdout)
    return training, validation.uncached()


def open_images(source: SourceConfig, config: CodecTrainConfig) -> ImageDataset:
    """Opens the images of a source that are large enough to crop, with the model's channels."""
    data, channels = config.data, config.model.channels.of_files()
    source = dataclasses.replace(source, arrays=not channels.is_rgb)
    decode = DecodeConfig(colour=data.colour, channels=channels)
    return ImageDataset(source, decode, data.max_short_side, data.crop_size, data.cache_mib << 20)


def open_crop_batches(images: ImageDataset, config: CodecTrainConfig) -> "CropBatches":
    """Opens endless batches of training crops."""
    from vqgan.data.image_crops import CropConfig, crop_batches

    data, train = config.data, config.train
    return crop_batches(
        images,
        CropConfig(data.crop_size, flip=data.flip),
        train.batch_size,
        train.seed,
        threads=data.threads,
        blocks=images.blocks,
        name=images.config.input,
    )


def _check_usable(images: ImageDataset, data: DataConfig, folder: Path) -> None:
    """Looks for a first image that can be used, before a model is made.

    Raises:
      UserError: there is none; all have been looked at.
    """
    if any(images[number] is not None for number in range(len(images))):
        return
    key, reason = next(iter(images.rejects.items()))
    example = f"such as {key}: {reason}; data.crop_size is {describe_size(data.crop_size)}"
    raise UserError(
        f"{images.config.input}: not one of {len(images)} images can be used; see the reasons of the rejects "
        f"in {folder}/rejects.jsonl ({example}) and correct the input"
    )


def _digest(*sets: ImageDataset) -> str:
    """Returns sha256 over the keys of the images, set by set."""
    digest = hashlib.sha256()
    for images in sets:
        for key in images.keys:
            digest.update(key.encode() + b"\0")
        digest.update(b"\1")
    return digest.hexdigest()


class _WatchedBatches:
    """CropBatches of crops that stop the run when too many images are of no use."""

    def __init__(self, images: ImageDataset, config: CodecTrainConfig, folder: Path):
        self._folder = folder
        self._images, self._limit, self._count = images, config.data.max_rejects, 0
        self._batches = open_crop_batches(images, config)

    @property
    def begun(self) -> bool:
        """Whether a batch was taken."""
        return self._count > 0

    def __iter__(self) -> "_WatchedBatches":
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
        rejects = self._images.rejects
        if len(rejects) > self._limit * len(self._images):
            key, reason = next(iter(rejects.items()))
            raise UserError(
                f"{self._images.config.input}: {len(rejects)} of {len(self._images)} images cannot "
                f"be used (such as {key}: {reason}; all found are in {self._folder}/rejects.jsonl); "
                "correct the input or raise data.max_rejects"
            )


def _card(request: TrainRequest, training: ImageDataset, validation: np.ndarray) -> Mapping[str, Any]:
    validation_source = request.source if request.validation is None else request.validation
    return {
        "license": request.license,
        "data": {
            "source": request.source.input,
            "training_images": len(training),
            "validation_source": validation_source.input,
            "validation_images": len(validation),
        },
    }


def _write_rejects(folder: Path, rejects: Mapping[str, str], say: Say) -> None:
    """Writes ``rejects.jsonl``: a line for each image that was of no use, before a stop and after it."""
    from vqgan.training.training_run import REJECTS_FILE, has_checkpoints

    path = folder / REJECTS_FILE
    goes_on = path.exists() and has_checkpoints(folder)
    earlier = [json.loads(line) for line in path.read_text().splitlines()] if goes_on else []
    known = {record["key"]: record["reason"] for record in earlier} | dict(rejects)
    if not known:
        return
    make_folder(str(folder))
    lines = [json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in sorted(known.items())]
    write_atomically(path, "".join(lines).encode())
    say(f"{counted(len(known), 'image')} could not be used: {path}")
