"""How far what an engine has made is what JAX makes in float32, for the manifest of every such run."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vqgan.errors import counted

if TYPE_CHECKING:
    from vqgan.codec import Codec

CLEAR_MARGIN = 1e-4
"""Tokens of at least this margin are the same whichever engine computes the latents in float32."""
SAMPLE = 4
"""Images that are compared: few, since JAX compiles the network for them."""


@dataclasses.dataclass(frozen=True)
class TokenAgreement:
    """Tokens of an engine beside those of JAX in float32.

    Attributes:
      images: how many were encoded by both.
      tokens: of all of them.
      equal: tokens that are the same.
      clear: tokens of a margin of at least :data:`CLEAR_MARGIN`.
      clear_equal: of these, tokens that are the same.
    """

    images: int
    tokens: int
    equal: int
    clear: int
    clear_equal: int

    def __str__(self) -> str:
        return (
            f"{self.equal:,} of {counted(self.tokens, 'token')} of {counted(self.images, 'image')} are "
            f"JAX's, {self.clear_equal:,} of the {self.clear:,} clear ones"
        )


@dataclasses.dataclass(frozen=True)
class PixelAgreement:
    """Decoded images of an engine beside those of JAX in float32.

    Attributes:
      images: how many were decoded by both.
      equal: share of values that are the same, 0 to 1.
      largest: difference of two values, of 255.
    """

    images: int
    equal: float
    largest: int

    def __str__(self) -> str:
        return (
            f"{self.equal:.2%} of the values of {counted(self.images, 'image')} are JAX's, "
            f"the largest difference is {self.largest} of 255"
        )


def read_agreement(found: Mapping[str, Any]) -> TokenAgreement | PixelAgreement:
    """Returns the agreement that a manifest holds as JSON data."""
    return TokenAgreement(**found) if "tokens" in found else PixelAgreement(**found)


def compare_tokens(reference: "Codec", images: np.ndarray, tokens: np.ndarray) -> TokenAgreement:
    """Compares the tokens ``[N, h, w]`` that an engine found for uint8 images ``[N, H, W, 3]``."""
    expected, margins = reference.encode_with_margins(images)
    equal, clear = tokens == expected, margins >= CLEAR_MARGIN
    counts = (tokens.size, equal.sum(), clear.sum(), (equal & clear).sum())
    return TokenAgreement(len(images), *map(int, counts))


def compare_pixels(reference: "Codec", tokens: np.ndarray, images: np.ndarray) -> PixelAgreement:
    """Compares the uint8 images ``[N, H, W, 3]`` that an engine made of tokens ``[N, h, w]``."""
    differences = np.abs(reference.decode(tokens).astype(int) - images)
    return PixelAgreement(len(images), float(np.mean(differences == 0)), int(differences.max()))
