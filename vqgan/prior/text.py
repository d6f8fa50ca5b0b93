"""Texts that a prior is conditional on: as ids of words of a small vocabulary, or as vectors of any encoder.

Texts of a batch are padded at their beginning, so that each ends where the rest of the sequence begins, as in
LlamaGen (arXiv 2406.06525, section 3.2); attention does not see the padding. Needs no JAX.
"""

import collections
import difflib
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vqgan.errors import UserError, counted, printable
from vqgan.prior.config import MOST_TEXT, PriorConfig

UNKNOWN_WORD = 0
"""Id of all words that are not in the vocabulary, whose words follow from 1 on."""
MOST_WORDS = 1 << 14
_WORD = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")


class Text(NamedTuple):
    """Texts of a batch.

    Attributes:
      values: int32 ``[B, T]`` ids of words, or float32 ``[B, T, E]`` vectors.
      mask: bool ``[B, T]``, False where there is padding; a row of it for no text.
    """

    values: Any
    mask: Any

    def take(self, at: Any) -> "Text":
        """Returns some rows, by number or by a mask."""
        return Text(self.values[at], self.mask[at])

    @classmethod
    def absent(cls, config: PriorConfig, batch: int, library: Any = np) -> "Text":
        """Returns ``batch`` rows without a text, made by NumPy or ``jax.numpy``."""
        shape = (batch, config.text_length)
        if config.text_words:
            return cls(library.zeros(shape, np.int32), library.zeros(shape, bool))
        return cls(library.zeros((*shape, config.text_width), np.float32), library.zeros(shape, bool))

    @property
    def sha256(self) -> str:
        """Returns a sum over values and mask."""
        digest = hashlib.sha256(np.ascontiguousarray(self.values).tobytes())
        digest.update(np.ascontiguousarray(self.mask).tobytes())
        return digest.hexdigest()


def pad_texts(texts: Sequence[np.ndarray | None], config: PriorConfig) -> Text:
    """Pads texts at their beginning.

    Args:
      texts: of each row int ids ``[t]`` or float vectors ``[t, E]`` with t up to T; None, or an empty one, is
        no text.
      config: of the prior.
    """
    padded = Text.absent(config, len(texts))
    for row, text in enumerate(texts):
        if text is not None and len(text):
            padded.values[row, -len(text) :] = text
            padded.mask[row, -len(text) :] = True
    return padded


def pad_vectors(texts: Sequence[np.ndarray], config: PriorConfig) -> Text:
    """Pads vectors of texts, ``[t, E]`` each, for a prior that was trained on such.

    Raises:
      UserError: it was not, or they are of another width or too many.
    """
    if not config.text_width:
        raise UserError("vectors of a text were given to a prior that was not trained on such: leave it out")
    for text in texts:
        if np.ndim(text) != 2 or np.shape(text)[1] != config.text_width or len(text) > config.text_length:
            raise UserError(
                f"vectors of a text are of shape {list(np.shape(text))}: the prior takes up to "
                f"{config.text_length} of {config.text_width}; encode them as for its training"
            )
    return pad_texts(texts, config)


def split_words(text: str) -> list[str]:
    """Splits a text into words in lower case and signs of punctuation.

    >>> split_words("A red circle, isn't it?")
    ['a', 'red', 'circle', ',', "isn't", 'it', '?']
    """
    return _WORD.findall(text.lower())


def build_vocabulary(texts: Iterable[str]) -> tuple[str, ...]:
    """Returns the words of texts, the most frequent first and at most :data:`MOST_WORDS`."""
    counts = collections.Counter(word for text in texts for word in split_words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return tuple(ranked[:MOST_WORDS])


def word_ids(text: str, ids: dict[str, int]) -> np.ndarray:
    """Returns the ids of a text's words, int32 ``[t]``; :data:`UNKNOWN_WORD` for those without."""
    return np.array([ids.get(word, UNKNOWN_WORD) for word in split_words(text)], np.int32)


def number_words(words: Sequence[str]) -> dict[str, int]:
    """Returns the id of each word of a vocabulary."""
    return {word: number for number, word in enumerate(words, UNKNOWN_WORD + 1)}


def encode_prompts(prompts: Sequence[str | None], words: Sequence[str], config: PriorConfig) -> Text:
    """Turns prompts into what a prior takes.

    Args:
      prompts: a text each; None or an empty one is no text.
      words: the prior's vocabulary.
      config: of the prior.

    Raises:
      UserError: the prior takes no words; a prompt is too long, or has a word that the prior has never seen.
    """
    if not config.text_words:
        other = "vectors: give them as condition embeddings" if config.text_width else "classes or nothing"
        raise UserError(f"a prompt was given to a prior that was not trained on words but on {other}")
    ids = number_words(words)
    found = []
    for prompt in prompts:
        text = word_ids(prompt or "", ids)
        _check_prompt(prompt or "", text, words, config)
        found.append(text)
    return pad_texts(found, config)


def _check_prompt(prompt: str, ids: np.ndarray, words: Sequence[str], config: PriorConfig) -> None:
    if len(ids) > config.text_length:
        raise UserError(
            f"prompt {_shown(prompt)}: it has {counted(len(ids), 'word')}, but the prior was trained on "
            f"{config.text_length} at most; shorten it"
        )
    unknown = [word for word, number in zip(split_words(prompt), ids, strict=True) if number == UNKNOWN_WORD]
    if unknown:
        near = difflib.get_close_matches(unknown[0], words, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(words[:8])}, ..."
        raise UserError(
            f"prompt {_shown(prompt)}: the prior was trained without the word {_shown(unknown[0])}; {hint}"
        )


def check_text(config: PriorConfig, text: Text | None, count: int) -> None:
    """Refuses texts that a prior cannot take.

    Raises:
      UserError: it takes none, or arrays of other shapes; or vectors that are not finite.
    """
    if text is None:
        return
    if not config.text_length:
        raise UserError("a text was given to a prior that was trained without texts: leave it out")
    expected = Text.absent(config, count)
    values, mask = np.asarray(text.values), np.asarray(text.mask)
    if values.shape != expected.values.shape or mask.shape != expected.mask.shape:
        raise UserError(
            f"a text's values and mask are of shapes {list(values.shape)} and {list(mask.shape)}: give "
            f"{list(expected.values.shape)} and {list(expected.mask.shape)}"
        )
    if config.text_words and values.size and not 0 <= values.min() <= values.max() < config.text_words:
        raise UserError(f"words reach from {values.min()} to {values.max()}: at most {config.text_words - 1}")
    if not np.isfinite(values).all():
        raise UserError("a text's vectors have values that are not finite: mend the encoder's output")


def check_length(longest: int, what: str) -> None:
    """Refuses texts that are longer than a prior takes.

    Raises:
      UserError: they are.
    """
    if longest > MOST_TEXT:
        raise UserError(f"{what}: a text of {longest:,} positions; at most {MOST_TEXT:,}: shorten it")


def _shown(text: str) -> str:
    return repr(printable(text[:60]))
