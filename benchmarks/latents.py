"""The image in docs/vectors.md: one photograph becomes another through the latents of a codec.

python benchmarks/latents.py docs/latents.jpg
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import PHOTOS, parser, read_photos, say
from PIL import Image

from vqgan import Codec

STEPS = 6


def main() -> None:
    """Writes the image; prints the nearest photograph of each and the share of tokens that float16 keeps."""
    flags = parser("Latents: mixtures of two photographs, the nearest photographs, rounding to float16.")
    flags.add_argument("output", type=Path)
    flags.add_argument("--codec", default="tiny")
    flags.add_argument("--photos", type=Path, default=PHOTOS)
    flags.add_argument("--size", type=int, default=192)
    args = flags.parse_args()
    codec = Codec.load(args.codec, batch_size=2)
    paths, images = read_photos(args.photos, args.size)
    latents = codec.latents(images)
    Image.fromarray(mixtures(codec, images, latents)).save(args.output, quality=85)
    views = np.concatenate([latents, codec.latents(images[:, :, ::-1])])
    pooled = views.mean(axis=(1, 2))
    pooled = (pooled - pooled.mean(axis=0)) / pooled.std(axis=0)
    distances = np.linalg.norm(pooled[: len(paths), None] - pooled[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1)
    say(
        f"nearest by averaged latents, of {len(paths)} photographs and their mirror images: the mirror image "
        f"for {int((nearest == np.arange(len(paths)) + len(paths)).sum())} of {len(paths)}"
    )
    kept = codec.quantize(latents.astype(np.float16)) == codec.encode(images)
    say(f"tokens of latents that were rounded to float16: {kept.mean():.2%} are those of the images")


def mixtures(codec: Codec, images: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """Three rows between the first two photographs: pixels, quantized latents, latents as they are."""
    functions = codec.functions(value_range=(0, 255))
    decode = jax.jit(functions.decode)
    rows = []
    shares = np.linspace(0, 1, STEPS, dtype=np.float32)
    pixels = [(1 - share) * images[0] + share * images[1] for share in shares]
    rows.append(np.concatenate(pixels, axis=1))
    mixed = np.stack([(1 - share) * latents[0] + share * latents[1] for share in shares])
    rows.append(np.concatenate(list(codec.decode(codec.quantize(mixed))), axis=1))
    plain = [decode(functions.weights, jnp.asarray(each[None]))[0] for each in mixed]
    rows.append(np.concatenate([np.asarray(each) for each in plain], axis=1))
    return np.clip(np.round(np.concatenate(rows)), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
