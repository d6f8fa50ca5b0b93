"""Captions as a prior takes them: matched to rows of token sets by key, as words or vectors, padded.

No JAX is imported here.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vqgan.data.captions import Captions, caption_numbers, read_captions
from vqgan.data.splits import is_validation
from vqgan.data.tokens import TokenBatch, TokenSet
from vqgan.errors import UserError
from vqgan.prior.config import PriorConfig
from vqgan.prior.text import Text, build_vocabulary, check_length, number_words, pad_texts, word_ids
from vqgan.training.prior.prior_rows import all_names


class CaptionRows:
    """Captions of the rows of token sets.

    Attributes:
      captions: all of them.
      words: vocabulary, of the captions of images that are trained on; none for vectors.
      images: number of different keys in the token sets.
      missing: how many of them have no caption.
    """

    def __init__(self, captions: Captions, keys: Sequence[str], training: Sequence[str]):
        """Takes captions and the keys that are there.

        Args:
          captions: of whatever images.
          keys: of all images.
          training: of those that are trained on.

        Raises:
          UserError: no image that is trained on has a caption, or one is too long.
        """
        self.captions = captions
        self.images = len(keys)
        self.missing = sum(1 for found in caption_numbers(captions, keys) if not found)
        if not any(caption_numbers(captions, training)):
            raise UserError(
                f"{captions.address}: no caption of any image that is trained on: its keys are such as "
                f"{next(iter(captions.numbers))!r}, those of the tokens such as {keys[0]!r}; make them agree"
            )
        self.words: tuple[str, ...] = ()
        self._values: list[np.ndarray] | None = None
        if captions.texts is not None:
            texts = captions.texts
            self.words = build_vocabulary(
                texts[number] for found in caption_numbers(captions, training) for number in found
            )
            ids = number_words(self.words)
            self._values = [word_ids(text, ids) for text in texts]
        self.model = PriorConfig(**self._fields())

    def _fields(self) -> dict[str, Any]:
        longest = self.captions.longest
        if self._values is not None:
            longest = max(map(len, self._values))
        check_length(longest, self.captions.address)
        return {
            "text_length": longest,
            "text_words": len(self.words) + 1 if self._values is not None else 0,
            "text_width": self.captions.width,
        }

    def fit(self, model: PriorConfig) -> PriorConfig:
        """Returns a configuration that takes these captions."""
        return dataclasses.replace(model, **self._fields())

    def of(self, batch: TokenBatch, seed: tuple[int, ...] | None = None) -> Text:
        """Returns the texts of a batch; of several captions of an image one is drawn.

        Args:
          batch: with a column ``key``.
          seed: decides on the draw; None for the first caption of each.
        """
        keys = [str(key) for key in batch.columns["key"]]
        draws = np.zeros(len(keys)) if seed is None else np.random.default_rng(seed).random(len(keys))
        found = [
            numbers[int(draw * len(numbers))] if numbers else None
            for numbers, draw in zip(caption_numbers(self.captions, keys), draws, strict=True)
        ]
        return pad_texts([None if number is None else self._value(number) for number in found], self.model)

    def _value(self, number: int) -> np.ndarray:
        if self._values is not None:
            return self._values[number]
        value = self.captions[number]
        assert isinstance(value, np.ndarray)  # where there are no words
        return value

    def __str__(self) -> str:
        """Returns what there is, for people."""
        model = self.model
        what = f"{len(self.words):,} words" if self.words else f"vectors of {model.text_width}"
        line = f"texts of up to {model.text_length} positions, {what}"
        if self.missing:
            line += f"; {self.missing:,} of {self.images:,} images have no caption and are trained without"
        return line


def open_caption_rows(
    text: str | None, embeddings: str | None, training: Sequence[TokenSet], holdout: int
) -> CaptionRows | None:
    """Opens the captions of some token sets; None where none are given.

    Args:
      text: ``FILE.parquet:COLUMN`` with texts.
      embeddings: the same with vectors.
      training: splits of what is trained on; they stand for their whole data set.
      holdout: one image in so many is for validation; 0 for none.

    Raises:
      UserError: both are given, the file cannot be read, or it has no caption of these images.
    """
    address = text if embeddings is None else embeddings
    if address is None:
        return None
    if text is not None and embeddings is not None:
        raise UserError("--condition-text and --condition-embeddings: a prior takes one of them")
    captions = read_captions(address, vectors=embeddings is not None)
    keys = list(dict.fromkeys(key for tokens in training for key, _ in all_names(tokens)))
    return CaptionRows(captions, keys, [key for key in keys if not is_validation(key, holdout)])
