"""Figures of a model on held-back pictures while it is trained, and a sheet of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.config import ModelConfig
from vqgan.lpips import Lpips, distance
from vqgan.metrics import codebook_usage, psnr
from vqgan.model import VQGAN, denormalize, normalize
from vqgan.training.functional import Arrays, Functional
from vqgan.training.loop import Evaluation
from vqgan.training.sheets import reconstruction_sheet

BATCH = 16
SHEET_PICTURES = 16


def make_evaluate(
    vqgan: Functional[VQGAN], config: ModelConfig, perceptual: Lpips | None, images: np.ndarray
) -> Callable[[Arrays], Evaluation]:
    """A function from parameters to figures over all of ``images``.

    Reconstructions are rounded to uint8 first, so that figures are those of the pictures a codec gives.

    Args:
      vqgan: structure of the model.
      config: its architecture.
      perceptual: weights for ``lpips``, left out without them.
      images: uint8 ``[N, H, W, 3]``; none give no figures.
    """
    others = vqgan.initial()[1]

    @jax.jit
    def forward(
        params: Arrays, perceptual: Lpips | None, batch: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = vqgan.bind(params, others)
        model.eval()
        latents = model.encoder(normalize(batch, config.input_range))
        tokens = model.quantizer.tokens(latents)
        decoded = model.decoder(model.quantizer.lookup(tokens))
        rounded = denormalize(decoded, config.input_range)
        pair = [normalize(pixels, (-1.0, 1.0)) for pixels in (rounded, batch)]
        lpips = jnp.zeros(len(batch)) if perceptual is None else distance(perceptual, *pair)
        return rounded, tokens, lpips

    def evaluate(params: Arrays) -> Evaluation:
        if not len(images):
            return Evaluation({}, None)
        histogram = np.zeros(config.codebook_size, np.int64)
        reconstructions, distances = np.empty_like(images), np.empty(len(images))
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            padded = np.concatenate([part, np.zeros((BATCH - len(part), *part.shape[1:]), np.uint8)])
            rounded, tokens, lpips = (np.asarray(v)[: len(part)] for v in forward(params, perceptual, padded))
            reconstructions[start : start + len(part)] = rounded
            distances[start : start + len(part)] = lpips
            histogram += np.bincount(np.ravel(tokens), minlength=len(histogram))
        usage = codebook_usage(histogram)
        figures = {
            "psnr": float(np.mean(psnr(images, reconstructions))),
            "l1": float(np.mean(np.abs(images.astype(np.float32) - reconstructions))),
            "used_codes": float(usage.used),
            "perplexity": usage.perplexity,
        }
        if perceptual is not None:
            figures["lpips"] = float(np.mean(distances))
        shown = slice(SHEET_PICTURES)
        return Evaluation(figures, reconstruction_sheet(images[shown], reconstructions[shown]))

    return evaluate
