"""Figures of a model on held-back pictures while it is trained, and a sheet of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.config import ModelConfig
from vqgan.functional import Arrays, Functional
from vqgan.lpips import Lpips, distance
from vqgan.metrics import codebook_usage, mean_absolute_error, mean_psnr, psnr
from vqgan.model.vqgan import VQGAN, denormalize, normalize
from vqgan.sheets import reconstruction_sheet
from vqgan.training.loop import Evaluation

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
    others = vqgan.initial_others()

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
        one, other = (normalize(pixels, (-1.0, 1.0)) for pixels in (rounded, batch))
        lpips = jnp.zeros(len(batch)) if perceptual is None else distance(perceptual, one, other)
        return rounded, tokens, lpips

    def evaluate(params: Arrays) -> Evaluation:
        if not len(images):
            return Evaluation({}, None)
        histogram = np.zeros(config.codebook_size, np.int64)
        values: list[np.ndarray] = []  # (n, 3) of each part: PSNR, L1, LPIPS
        shown: list[np.ndarray] = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            padded = np.concatenate([part, np.zeros((BATCH - len(part), *part.shape[1:]), np.uint8)])
            rounded, tokens, lpips = (np.asarray(v)[: len(part)] for v in forward(params, perceptual, padded))
            values.append(np.stack([psnr(part, rounded), mean_absolute_error(part, rounded), lpips], axis=1))
            shown += [rounded] if start < SHEET_PICTURES else []
            histogram += np.bincount(np.ravel(tokens), minlength=len(histogram))
        usage = codebook_usage(histogram)
        of_images = np.concatenate(values)
        figures = {
            "psnr": mean_psnr(of_images[:, 0]),
            "l1": float(np.mean(of_images[:, 1])),
            "used_codes": float(usage.used),
            "perplexity": usage.perplexity,
        }
        if perceptual is not None:
            figures["lpips"] = float(np.mean(of_images[:, 2]))
        sheet = np.concatenate(shown)[:SHEET_PICTURES]
        return Evaluation(figures, reconstruction_sheet(images[: len(sheet)], sheet))

    return evaluate
