"""Bits per token on disk against the empirical entropy, for codebooks of 1,024 and 16,384 codes.

The smaller codebook is the shipped codec's. The larger has the same encoder, and for codes latents of
the photographs themselves, drawn at random. Tokens are those of many random crops of photographs.

    python benchmarks/size.py
"""

import dataclasses
from pathlib import Path

import numpy as np
from common import PHOTOS, add_output, figure, parser, say, scratch, write_results
from flax import nnx
from PIL import Image

from pipelines import tokenize_images
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sources import SourceConfig
from vqgan import codec_checkpoint
from vqgan.data.image_crops import CropConfig, crop_batches
from vqgan.model.vqgan import TokenEncoder, normalize

LARGE_CODEBOOK = 16384


def with_drawn_codebook(folder: Path, photos: Path) -> str:
    """The shipped codec with a codebook of latents drawn from crops of the photographs."""
    info = codec_checkpoint.read_info("tiny")
    weights = codec_checkpoint.load_weights(info, codec_checkpoint.PARTS)
    abstract = nnx.eval_shape(lambda: TokenEncoder(info.config, rngs=nnx.Rngs(0)))
    state = codec_checkpoint.module_state(abstract, weights["encoder"], "tiny")
    encode = nnx.jit(
        lambda images: nnx.merge(nnx.graphdef(abstract), state)(normalize(images, info.config.input_range))
    )
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(photos.glob("*.jpg"))]
    batches = crop_batches(images, CropConfig(128), 32, 1)
    latents = np.concatenate([np.asarray(encode(next(batches))) for _ in range(16)])
    latents = latents.reshape(-1, info.config.embed_dim)
    chosen = np.random.default_rng(0).choice(len(latents), LARGE_CODEBOOK, replace=False)
    config = dataclasses.replace(info.config, codebook_size=LARGE_CODEBOOK)
    weights["quantizer"] = {"codebook": latents[chosen]}
    codec_checkpoint.save_codec(folder, config, weights)
    return str(folder)


def main() -> None:
    """Tokenizes with both codebooks and prints sizes."""
    flags = parser("Bits per token against entropy.")
    flags.add_argument("--crops", type=int, default=100, help="random crops of each photograph, at most 256")
    flags.add_argument("--size", type=int, default=256, help="side of a crop")
    flags.add_argument("--photos", type=Path, default=PHOTOS)
    add_output(flags)
    args = flags.parse_args()
    figures = []
    with scratch() as name:
        folder = Path(name)
        codecs = {1024: "tiny", LARGE_CODEBOOK: with_drawn_codebook(folder / "large", args.photos)}
        for codes, codec in codecs.items():
            config = tokenize_images.TokenizeConfig(
                source=SourceConfig(input=f"{args.photos}/*.jpg"),
                output=str(folder / f"tokens-{codes}"),
                codec=codec,
                geometry=Geometry(image_size=args.size, views="random-crops", random_crops=args.crops),
                decode=DecodeConfig(),
                report=False,
                quiet=True,
            )
            manifest = tokenize_images.run_tokenize(config, [])
            tokens, usage = manifest["counts"]["tokens"], manifest["codebook"]
            bits, entropy = manifest["storage"]["bits_per_token"], usage["entropy_bits"]
            say(
                f"K = {codes}: {tokens:,} tokens, {usage['used']} codes used, entropy {entropy:.3f} bits, "
                f"on disk {bits:.3f} bits a token, ratio {bits / entropy:.3f}"
            )
            figures.append(
                figure(f"bits a token on disk beside the entropy, {codes} codes", [bits / entropy])
            )
    write_results(args.output, figures)


if __name__ == "__main__":
    main()
