"""``vqgan train``: pictures of a source, held in memory, into the small trainer."""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from transforms.geometry import Geometry
from transforms.images import DecodeConfig, Reject, decode, prepare
from transforms.sources import SourceConfig, open_source
from transforms.sources.base import Entry, Source
from vqgan.checkpoint import save_codec
from vqgan.config import ModelConfig, from_dict, to_dict
from vqgan.errors import UserError
from vqgan.presets import PRESETS

MAX_SHORT_SIDE = 640  # pictures are kept in memory; more detail than this is seldom cropped
REPORT_EVERY = 50


def run(
    source: SourceConfig,
    output: str,
    preset: str,
    settings: Sequence[str],
    holdout: int,
    quiet: bool,
) -> None:
    """Trains a codec and writes it, with its figures on held-back pictures, to ``output``.

    Raises:
      UserError: unknown preset or setting, or no usable pictures.
    """
    from vqgan.training.tokenizer import Progress, TrainConfig, evaluate, model_weights, train

    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: known are {', '.join(sorted(PRESETS))}")
    model_config = override(PRESETS[preset], "model", settings)
    config = override(TrainConfig(), "train", settings)
    training, validation = load_pictures(source, model_config, config.crop_size, holdout)
    say = (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    say(f"{len(training)} pictures to train on, {len(validation)} held back")
    started = time.monotonic()

    def report(progress: Progress) -> None:
        if progress.step % REPORT_EVERY == 0 or progress.step == config.steps:
            left = (config.steps - progress.step) * config.batch_size / progress.images_per_second
            say(
                f"step {progress.step} of {config.steps}, pixel loss {progress.pixel_loss:.4f}, "
                f"{progress.images_per_second:.1f} images/s, {left:.0f} s left"
            )

    model = train(model_config, config, training, report=report)
    card: dict[str, Any] = {
        "data": {"training_images": len(training), "held_back_images": len(validation)},
        "training": dataclasses.asdict(config),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    if len(validation):
        card["held_back"] = evaluate(model, model_config, validation)._asdict()
        say(f"held back: {json.dumps(card['held_back'])}")
    info = save_codec(output, model_config, model_weights(model), card=card)
    say(f"{output}: codec {info.fingerprint[:12]}")


def override(config: Any, section: str, settings: Sequence[str]) -> Any:
    """``config`` with every ``section.field=value`` of ``settings`` applied; values are JSON.

    Raises:
      UserError: not of this form, an unknown section or field, or a wrong type.
    """
    data = to_dict(config)
    for setting in settings:
        name, equals, text = setting.partition("=")
        part, dot, field = name.partition(".")
        if not equals or not dot or part not in ("model", "train"):
            raise UserError(f"--set {setting}: write model.FIELD=VALUE or train.FIELD=VALUE")
        if part == section:
            try:
                data[field] = json.loads(text)
            except ValueError:
                data[field] = text
    return from_dict(type(config), data, where=section)


def load_pictures(
    source_config: SourceConfig, model: ModelConfig, crop_size: int, holdout: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """All readable pictures large enough to crop, split by a hash of their key.

    Returns:
      Training pictures ``[H, W, 3]`` and centre-cropped validation pictures ``[N, S, S, 3]``, uint8.

    Raises:
      UserError: no usable picture.
    """
    source = open_source(source_config)
    training: list[np.ndarray] = []
    validation: list[np.ndarray] = []
    square = Geometry(image_size=model.resolution)
    for key, data in _readable(source):
        try:
            if holdout > 0 and int(hashlib.sha1(key.encode()).hexdigest(), 16) % holdout == 0:
                validation.append(prepare(data, key, DecodeConfig(), square).pixels[0])
            else:
                picture = _bounded(decode(data, DecodeConfig(), MAX_SHORT_SIDE).image)
                if min(picture.size) < crop_size:
                    raise Reject("filter", "TooSmall", f"smaller than a crop of {crop_size} pixels")
                training.append(np.asarray(picture))
        except Reject as reject:
            print(f"{key}: left out ({reject})", file=sys.stderr)
    if not training:
        raise UserError(f"{source_config.input}: no picture of at least {crop_size} pixels to train on")
    size = model.resolution
    return training, np.stack(validation) if validation else np.zeros((0, size, size, 3), np.uint8)


def _readable(source: Source) -> Any:
    """Key and bytes of each example that can be read."""
    entries: list[Entry] = [entry for entry in source.list() if entry.error is None]
    for entry, load in zip(entries, source.read(entries), strict=True):
        try:
            yield entry.key, load().data
        except Exception as error:
            print(f"{entry.key}: left out ({error})", file=sys.stderr)


def _bounded(picture: Image.Image) -> Image.Image:
    """The picture with its shorter side at no more than :data:`MAX_SHORT_SIDE`."""
    scale = MAX_SHORT_SIDE / min(picture.size)
    if scale >= 1:
        return picture
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)
