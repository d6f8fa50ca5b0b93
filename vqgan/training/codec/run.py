"""A whole training run of a codec: LPIPS's weights, a codec to start from, validation, export."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.codec_checkpoint import PARTS, Weights, load_weights, read_info, recover_codec, save_codec
from vqgan.config import CODEBOOK_QUANTIZERS, UNTRAINED_QUANTIZERS, ModelConfig
from vqgan.config_json import to_dict
from vqgan.errors import UserError
from vqgan.functional import Arrays, Functional, take_apart
from vqgan.image_grid import tile_pairs
from vqgan.image_sizes import describe_size
from vqgan.metrics.codebook_usage import codebook_usage
from vqgan.metrics.image import mean_absolute_error, mean_psnr, psnr
from vqgan.metrics.lpips import Lpips, distance, load_lpips
from vqgan.model.parameters import codec_parameter_shapes
from vqgan.model.vqgan import VQGAN, denormalize, network_range, normalize
from vqgan.training.codec.config import CodecTrainConfig, LossConfig
from vqgan.training.codec.growth import can_grow_decoder, differ_in_size_alone, grow_decoder, with_tokens_of
from vqgan.training.codec.learner import CodecLearner, build_vqgan
from vqgan.training.codec.state import CodecTrainState
from vqgan.training.loop import Done, Evaluate, Evaluation, Outcome, ResumableBatches
from vqgan.training.sharding import use_cpu_devices
from vqgan.training.training_run import FREE_FIELDS, TrainingRun

CODEC_FOLDER = "codec"
VALIDATION_BATCH = 16
GRID_IMAGES = 16
CODEC_FREE_FIELDS = FREE_FIELDS | {
    "data.threads",
    "data.cache_mib",
    "data.max_rejects",
    "discriminator_optimizer.learning_rate",
    "discriminator_optimizer.clip_norm",
}
"""Fields that may change when a run goes on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecRun(TrainingRun):
    """What the training of a codec needs beside its data; the best one goes to ``codec/``.

    Attributes:
      init: codec to start from, of the same architecture, or with a smaller decoder, which is then grown
        (:mod:`vqgan.training.codec.growth`). Its codebook is kept: there is no autoencoder phase, and nothing
        is placed. With another number of codes there is one, and all codes are placed at its end. With
        ``codebook.keep_tokens`` the decoder may also be smaller, and starts anew.
    """

    config: CodecTrainConfig
    init: str | None = None


def fit_codec(run: CodecRun, batches: ResumableBatches, validation: np.ndarray) -> Outcome[CodecTrainState]:
    """Trains to the end or until SIGTERM, from the newest checkpoint in the folder if there is one.

    Args:
      run: configuration and folder.
      batches: uint8 ``[B, S, S, C]`` crops.
      validation: uint8 ``[N, S, S, C]`` images, perhaps none.

    Raises:
      UserError: weights that are unavailable, a folder of another run, a loss that is not finite, or a
        place that cannot be written to.
    """
    keep_tokens = run.config.codebook.keep_tokens
    if keep_tokens and run.init is None:
        raise UserError("codebook.keep_tokens is on: name with --init the codec whose tokens are to stay")
    use_cpu_devices(run.config.train)
    perceptual = load_perceptual(run.config.loss)
    alex = load_lpips("alex") if run.config.loss.perceptual_alex else None
    config, initial = run.config, None
    if run.init is not None:
        before = read_info(run.init).config
        model = with_tokens_of(before, config.model) if keep_tokens else config.model
        initial = initial_params(run.init, model, keep_tokens)
        codebook = config.codebook
        if before.codebook_size == model.codebook_size:
            codebook = dataclasses.replace(codebook, autoencoder_steps=0)
        elif codebook.autoencoder_steps == 0:
            raise UserError(
                f"--init {run.init}: it has {before.codebook_size} codes, model.codebook_size is "
                f"{model.codebook_size}: say with codebook.autoencoder_steps, 1 or more, when all are placed"
            )
        config = dataclasses.replace(config, model=model, codebook=codebook)
    run = dataclasses.replace(run, config=config)
    # An exported codec computes in float32, whatever it was trained in.
    exact = dataclasses.replace(config, train=dataclasses.replace(config.train, dtype="float32"))
    vqgan = take_apart(functools.partial(build_vqgan, exact))

    def export(params: Arrays, done: Done, metrics: Mapping[str, float]) -> None:
        size = describe_size(config.data.evaluated_size)
        reference = f"validation images, centre-cropped and resized to {size} px"
        card = run.exported_card(done, metrics, len(validation), reference)
        card["parents"] = [] if run.init is None else [run.init]
        save_codec(run.folder / CODEC_FOLDER, config.model, split_parts(params), card=card)

    return run.carry_out(
        CodecLearner(config, perceptual, initial, alex),
        make_codec_evaluation(vqgan, config.model, perceptual, validation),
        export,
        batches,
        identity={"init": run.init},
        free=CODEC_FREE_FIELDS,
        recover=lambda: recover_codec(run.folder / CODEC_FOLDER),
    )


def load_perceptual(config: LossConfig) -> Lpips | None:
    """Loads the weights of LPIPS, or None where the loss does without.

    Raises:
      UserError: they are unavailable.
    """
    if not config.perceptual:
        return None
    files = (config.perceptual_heads, config.perceptual_backbone)
    heads, backbone = (None if file is None else Path(file) for file in files)
    try:
        return load_lpips("alex" if config.perceptual_network == "alex" else "vgg", heads, backbone)
    except UserError as error:
        raise UserError(
            f"{error}; or train without LPIPS: --set loss.perceptual=0 --set train.best=psnr"
        ) from error


def initial_params(codec: str, config: ModelConfig, other_decoder: bool = False) -> Arrays:
    """Reads the parameters of a codec to start from.

    Args:
      codec: path or name.
      config: architecture that starts from them.
      other_decoder: encoder and codebook stay as they are, and its decoder may be of another size; one that
        cannot be grown is then left out. Otherwise the codebook may be, which is left out as well.

    Raises:
      UserError: it is of another architecture, or has numbers that are not finite.
    """
    info = read_info(codec)
    before = info.config
    if not other_decoder and {before.quantizer, config.quantizer} <= set(CODEBOOK_QUANTIZERS):
        before = dataclasses.replace(before, codebook_size=config.codebook_size)
    there, here = codec_parameter_shapes(before), codec_parameter_shapes(config)
    grows = can_grow_decoder(before, config)
    fitting = [part for part in PARTS if there[part] == here[part] or (part == "decoder" and grows)]
    anew = other_decoder and differ_in_size_alone(before, config)
    parts = [part for part in PARTS if part in fitting or part != "decoder" or not anew]
    if parts != fitting:
        raise UserError(f"--init {codec}: another architecture ({_differences(info.config, config)})")
    if info.config.quantizer in UNTRAINED_QUANTIZERS:
        raise UserError(f"--init {codec}: its quantizer {info.config.quantizer} is not trained here")
    if info.config.symmetric_downsample != config.symmetric_downsample:
        raise UserError(f"--init {codec}: set model.symmetric_downsample={info.config.symmetric_downsample}")
    if before != info.config:
        parts.remove("quantizer")
    weights = load_weights(info, parts)
    if grows:
        weights["decoder"] = grow_decoder(weights["decoder"], before, config)
    params = {f"{part}.{name}": value for part in parts for name, value in weights[part].items()}
    broken = [name for name, value in params.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(
            f"--init {codec}: {broken[0]} has values that are not finite; start from another codec"
        )
    return {name: jnp.asarray(value) for name, value in params.items()}


def _differences(before: ModelConfig, now: ModelConfig) -> str:
    """Lists fields that differ, as JSON has them; one that is left out of it is at its default."""
    written, default = (to_dict(before), to_dict(now)), ModelConfig()
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    pairs = {name: [data.get(name, getattr(default, name)) for data in written] for name in names}
    return ", ".join(f"{name} is {a!r} there, {b!r} here" for name, (a, b) in pairs.items() if a != b)


def split_parts(params: Arrays) -> dict[str, Weights]:
    """Splits a model's parameters into parts, as :func:`vqgan.codec_checkpoint.save_codec` takes them."""
    host = jax.device_get(params)
    return {
        part: {
            name.removeprefix(f"{part}."): np.asarray(value, np.float32)
            for name, value in host.items()
            if name.startswith(f"{part}.")
        }
        for part in PARTS
    }


def make_codec_evaluation(
    vqgan: Functional[VQGAN], config: ModelConfig, perceptual: Lpips | None, images: np.ndarray
) -> Evaluate:
    """Builds a function from parameters to metrics over all of ``images``.

    Reconstructions are rounded to uint8 first, so that metrics are those of the images a codec gives.

    Args:
      vqgan: structure of the model.
      config: its architecture.
      perceptual: weights for ``lpips``, left out without them.
      images: uint8 ``[N, H, W, C]``; none give no metrics.
    """
    others = vqgan.initial_others()

    @jax.jit
    def forward(
        params: Arrays, perceptual: Lpips | None, batch: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = vqgan.bind(params, others)
        model.eval()
        latents = model.encoder(normalize(batch, network_range(config)))
        tokens = model.quantizer.tokens(latents)
        decoded = model.decoder(model.quantizer.lookup(tokens))
        rounded = denormalize(decoded, network_range(config))
        one, other = (normalize(pixels, (-1.0, 1.0)) for pixels in (rounded, batch))
        lpips = jnp.zeros(len(batch)) if perceptual is None else distance(perceptual, one, other)
        return rounded, tokens, lpips

    def evaluate(params: Arrays) -> Evaluation:
        if not len(images):
            return Evaluation({}, None)
        histogram = np.zeros(config.codebook_size, np.int64)
        values: list[np.ndarray] = []  # (n, 3) of each part: PSNR, L1, LPIPS
        shown: list[np.ndarray] = []
        for start in range(0, len(images), VALIDATION_BATCH):
            part = images[start : start + VALIDATION_BATCH]
            padded = np.concatenate(
                [part, np.zeros((VALIDATION_BATCH - len(part), *part.shape[1:]), np.uint8)]
            )
            rounded, tokens, lpips = (np.asarray(v)[: len(part)] for v in forward(params, perceptual, padded))
            values.append(np.stack([psnr(part, rounded), mean_absolute_error(part, rounded), lpips], axis=1))
            shown += [rounded] if start < GRID_IMAGES else []
            histogram += np.bincount(np.ravel(tokens), minlength=len(histogram))
        usage = codebook_usage(histogram)
        of_images = np.concatenate(values)
        metrics = {
            "psnr": mean_psnr(of_images[:, 0]),
            "l1": float(np.mean(of_images[:, 1])),
            "used_codes": float(usage.used),
            "perplexity": usage.perplexity,
        }
        if perceptual is not None:
            metrics["lpips"] = float(np.mean(of_images[:, 2]))
        grid = np.concatenate(shown)[:GRID_IMAGES]
        return Evaluation(metrics, tile_pairs(images[: len(grid)], grid))

    return evaluate
