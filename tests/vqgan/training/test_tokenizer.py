"""The small trainer learns, in two phases, the same for the same seed."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.checkpoint import PARTS, load_weights, save_codec
from vqgan.codec import Codec
from vqgan.config import ModelConfig
from vqgan.metrics import codebook_usage, psnr
from vqgan.model import VQGAN
from vqgan.training import tokenizer
from vqgan.training.tokenizer import (
    Progress,
    TrainConfig,
    evaluate,
    k_means,
    model_weights,
    revive,
    train,
)

MODEL = ModelConfig(
    resolution=16,
    ch=8,
    ch_mult=(1, 1),  # few shapes of weights, so that little is compiled
    num_res_blocks=1,
    attn_resolutions=(),
    mid_attention=False,
    z_channels=8,
    embed_dim=4,
    codebook_size=16,
    norm_groups=4,
)
TRAIN = TrainConfig(
    steps=30,
    batch_size=4,
    crop_size=16,
    learning_rate=5e-3,
    warmup_steps=3,
    autoencoder_steps=15,
    revive_every=4,
    seed=1,
)


def gradients(count: int, size: int = 24) -> list[np.ndarray]:
    """Smooth pictures: easy to learn in a few steps."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, size)[:, None, None]
    pictures = []
    for _ in range(count):
        start, end, side = rng.uniform(0, 255, (3, 3))
        mixed = start + (end - start) * ramp + (side - start) * ramp.transpose(1, 0, 2) / 2
        pictures.append(np.clip(mixed, 0, 255).astype(np.uint8))
    return pictures


class Run(NamedTuple):
    model: VQGAN
    progress: list[Progress]
    placed: list[tuple[np.ndarray, np.ndarray]]  # points and centres of each k-means
    revivals: list[int]  # codes that each revival found unused


def recorded_run(config: TrainConfig) -> Run:
    progress: list[Progress] = []
    placed: list[tuple[np.ndarray, np.ndarray]] = []
    revivals: list[int] = []

    def spy_k_means(points: np.ndarray, clusters: int, *rest: Any) -> Any:
        centres = k_means(points, clusters, *rest)
        placed.append((points, np.asarray(centres)))
        return centres

    def spy_revive(codebook: Any, counts: np.ndarray, *rest: Any) -> Any:
        revivals.append(int(np.sum(counts == 0)))
        return revive(codebook, counts, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "k_means", spy_k_means)
        patch.setattr(tokenizer, "revive", spy_revive)
        model = train(MODEL, config, gradients(6), report=progress.append)
    return Run(model, progress, placed, revivals)


@pytest.fixture(scope="module")
def run() -> Run:
    return recorded_run(TRAIN)


def test_every_step_is_reported(run: Run) -> None:
    assert [item.step for item in run.progress] == list(range(1, 31))
    assert all(item.images_per_second > 0 for item in run.progress)


def test_losses_fall(run: Run) -> None:
    pixel = [item.pixel_loss for item in run.progress]
    assert np.isfinite(pixel).all()
    assert np.mean(pixel[-3:]) < 0.5 * np.mean(pixel[:3])
    assert np.mean(pixel[12:15]) < 0.6 * np.mean(pixel[:3])  # as an autoencoder, before any code


def test_codebook_is_placed_once_on_latents(run: Run) -> None:
    ((points, centres),) = run.placed
    assert points.shape[0] >= 32 * 16
    assert points.shape[1] == 4
    assert points.min() <= centres.min() <= centres.max() <= points.max()


def test_codebook_fits_the_latents_when_it_is_placed(run: Run) -> None:
    """Far better than the codes of the start, which were never trained before."""
    commitment = [item.commitment_loss for item in run.progress]
    assert commitment[15] < 0.5 * commitment[14]


def test_quantized_phase_trains_the_codebook(run: Run) -> None:
    codebook = np.asarray(run.model.quantizer.codebook[...])
    assert not np.array_equal(codebook, run.placed[0][1])


def test_revival_stops_in_the_last_fifth(run: Run) -> None:
    """Steps 16, 20 and 24 look for unused codes; step 28 is in the last fifth."""
    assert len(run.revivals) == 3


def test_same_seed_same_model(run: Run) -> None:
    again = recorded_run(TRAIN)
    weights, others = model_weights(run.model), model_weights(again.model)
    for part in PARTS:
        for name, value in weights[part].items():
            np.testing.assert_array_equal(value, others[part][name], err_msg=name)
    assert [item.pixel_loss for item in again.progress] == [item.pixel_loss for item in run.progress]


def test_evaluation_is_that_of_the_saved_codec(run: Run, tmp_path: Any) -> None:
    images = np.stack([picture[:16, :16] for picture in gradients(5)])
    quality = evaluate(run.model, MODEL, images, batch_size=3)
    codec = Codec.load(save_codec(tmp_path / "codec", MODEL, model_weights(run.model)).path, batch_size=5)
    tokens = codec.encode(images)
    usage = codebook_usage(np.bincount(tokens.ravel(), minlength=16))
    assert quality.used_codes == usage.used
    assert quality.perplexity == pytest.approx(usage.perplexity)
    assert quality.psnr == pytest.approx(psnr(images, codec.decode(tokens)).mean(), abs=0.05)
    assert quality.psnr > 12


def test_model_weights_are_the_three_parts(run: Run, tmp_path: Any) -> None:
    weights = model_weights(run.model)
    loaded = load_weights(save_codec(tmp_path / "codec", MODEL, weights), PARTS)
    assert {part: set(loaded[part]) for part in PARTS} == {part: set(weights[part]) for part in PARTS}


def test_dropout_can_be_trained_with() -> None:
    """Every step draws new masks, and evaluation draws none."""
    config = dataclasses.replace(TRAIN, steps=2, autoencoder_steps=1)
    model_config = dataclasses.replace(MODEL, dropout=0.5)
    model = train(model_config, config, gradients(2))
    draws = {int(count[...]) for _, count in nnx.to_flat_state(nnx.state(model, nnx.RngCount))}
    assert min(draws) >= 2
    images = np.stack([picture[:16, :16] for picture in gradients(2)])
    plain = nnx.merge(
        nnx.graphdef(nnx.eval_shape(lambda: VQGAN(MODEL, rngs=nnx.Rngs(0)))), nnx.state(model, nnx.Param)
    )
    assert evaluate(model, model_config, images) == evaluate(plain, MODEL, images)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("crop_size", -1),
        ("revive_every", 0),
        ("warmup_steps", -1),
        ("autoencoder_steps", -1),
        ("autoencoder_steps", 2000),
        ("commitment", -0.1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
    ],
)
def test_invalid_setting_is_named(field: str, value: Any, refused: Any) -> None:
    with refused(rf"^train\.{field} is "):
        TrainConfig(**{field: value})


def test_crop_must_fit_the_model(refused: Any) -> None:
    with refused("images of 15x15 pixels do not fit this codec"):
        train(MODEL, dataclasses.replace(TRAIN, crop_size=15), gradients(1))


def test_pictures_are_wanted(refused: Any) -> None:
    with refused("training data: there is no picture in it"):
        train(MODEL, TRAIN, [])


def test_pictures_must_hold_a_crop(refused: Any) -> None:
    with refused("a picture has a side of 15 pixels; the least is train.crop_size, 16"):
        train(MODEL, TRAIN, [*gradients(2), np.zeros((40, 15, 3), np.uint8)])


def clusters() -> np.ndarray:
    """Three tight clusters of very unlike sizes."""
    rng = np.random.default_rng(0)
    centres = np.repeat([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], [300, 30, 30], axis=0)
    return (centres + 0.1 * rng.standard_normal(centres.shape)).astype(np.float32)


def spread(points: np.ndarray, centres: Any) -> float:
    distances = ((points[:, None] - np.asarray(centres)[None]) ** 2).sum(axis=2)
    return float(distances.min(axis=1).mean())


def test_k_means_finds_the_clusters() -> None:
    centres = k_means(clusters(), 12, np.random.default_rng(0))
    assert centres.shape == (12, 2)
    assert centres.dtype == jnp.float32
    assert spread(clusters(), centres) < 0.02


def test_k_means_improves_with_every_round() -> None:
    points = np.random.default_rng(1).standard_normal((400, 3)).astype(np.float32)
    spreads = [
        spread(points, k_means(points, 8, np.random.default_rng(2), iterations=rounds))
        for rounds in (0, 1, 3, 8)
    ]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.8 * spreads[0]


def test_k_means_centres_are_means() -> None:
    points = np.array([[0.0], [1.0], [10.0], [14.0]], np.float32)
    for seed in range(5):
        centres = k_means(points, 2, np.random.default_rng(seed))
        assert sorted(np.ravel(centres).tolist()) == [0.5, 12.0]


def test_k_means_of_fewer_points_than_clusters() -> None:
    points = np.array([[1.0], [2.0]], np.float32)
    centres = k_means(points, 4, np.random.default_rng(0))
    assert set(np.ravel(centres).tolist()) <= {1.0, 2.0}


def test_revive_moves_unused_codes_onto_latents_and_no_other() -> None:
    codebook = np.arange(8, dtype=np.float32).reshape(4, 2)
    latents = np.random.default_rng(0).uniform(50, 60, (2, 3, 3, 2)).astype(np.float32)
    counts = np.array([3, 0, 1, 0])
    revived = np.asarray(revive(codebook.copy(), counts, latents, np.random.default_rng(0)))
    np.testing.assert_array_equal(revived[[0, 2]], codebook[[0, 2]])
    flat = {tuple(latent) for latent in latents.reshape(-1, 2).tolist()}
    assert {tuple(code) for code in revived[[1, 3]].tolist()} <= flat


def test_revive_leaves_a_used_codebook_alone() -> None:
    codebook = np.arange(8, dtype=np.float32).reshape(4, 2)
    revived = revive(codebook.copy(), np.ones(4, int), np.zeros((1, 1, 1, 2)), np.random.default_rng(0))
    np.testing.assert_array_equal(revived, codebook)


def test_revive_moves_hardly_used_codes_too() -> None:
    codebook = np.arange(8, dtype=np.float32).reshape(4, 2)
    counts = np.array([100, 9, 11, 0])  # of a mean of 30, a third is 10
    revived = revive(codebook.copy(), counts, np.full((1, 2), 7.5), np.random.default_rng(0), 1 / 3)
    np.testing.assert_array_equal(revived, [[0, 1], [7.5, 7.5], [4, 5], [7.5, 7.5]])


def test_least_share_evens_out_the_codebook() -> None:
    """Of a dense and a sparse cloud: codes that serve few points are wanted in the dense one."""
    rng = np.random.default_rng(0)
    dense, sparse = rng.normal(0, 1, (3000, 2)), rng.uniform(20, 200, (800, 2))
    points = np.concatenate([dense, sparse]).astype(np.float32)

    def perplexity(least_share: float) -> float:
        centres = np.asarray(k_means(points, 64, np.random.default_rng(1), least_share, iterations=30))
        nearest = np.argmin(((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2), axis=1)
        return codebook_usage(np.bincount(nearest, minlength=64)).perplexity

    assert perplexity(0.5) > perplexity(0.0) + 2
