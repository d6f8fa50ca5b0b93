"""What samples start from or are conditional on: token data sets, and texts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vqgan.data.captions import read_captions
from vqgan.data.tokens import TokenSet, all_batches, called, open_tokens
from vqgan.errors import UserError
from vqgan.model_card import ModelCard
from vqgan.prior.checkpoint import NO_CLASS, PriorInfo
from vqgan.prior.config import PriorConfig
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import UNKNOWN, check_settings
from vqgan.prior.text import Text, encode_prompts, pad_texts
from vqgan.token_layouts import GRID, layout_of


@dataclasses.dataclass(frozen=True)
class GivenTokens:
    """Tokens that samples start from.

    Attributes:
      tokens: a token data set; sample i takes its row i.
      keep_rows: rows of the grid, from the top, that are given; None where ``inpaint`` says what is not.
      inpaint: top, left, bottom and right of the region of the grid that is sampled, the rest being given.
    """

    tokens: str
    keep_rows: int | None = None
    inpaint: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if (self.keep_rows is None) == (self.inpaint is None):
            raise UserError("--given: say what of it is given, by --keep-rows or by --inpaint")

    def identity(self, plan_hash: str) -> dict[str, Any]:
        """Returns what samples depend on, as JSON data; the data set by its plan, wherever it lies."""
        region = None if self.inpaint is None else list(self.inpaint)
        return {"plan_hash": plan_hash, "keep_rows": self.keep_rows, "inpaint": region}


def open_given(given: GivenTokens, prior: PriorInfo) -> TokenSet:
    """Returns the data set that samples start from.

    Raises:
      UserError: it cannot be opened, is of another codec or grid, or the prior cannot fill in what is
        missing.
    """
    check_can_complete(prior, given.inpaint is not None, "--given")
    codec = prior.codec
    return open_tokens(
        given.tokens, fingerprint=codec.fingerprint, codec_name=codec.name, grid=prior.config.grid
    )


def check_can_complete(prior: PriorInfo, inpaints: bool, flag: str) -> None:
    """Refuses what a prior cannot fill in.

    Args:
      prior: that is to do it.
      inpaints: whether a region within the grid is missing, rather than its lower rows.
      flag: that asked for it.

    Raises:
      UserError: the prior's tokens are no grid, or it continues from the top only.
    """
    if inpaints and prior.config.kind != "masked":
        raise UserError(
            "--inpaint: an autoregressive prior only continues from the top; use --keep-rows, or train a "
            "masked prior"
        )
    if (layout := layout_of(prior.codec.config)) != GRID:
        raise UserError(
            f"{flag}: the prior's tokens are no grid (layout {layout}), so there are no rows to keep"
        )


def known_tokens(given: GivenTokens, tokens: TokenSet, count: int) -> np.ndarray:
    """Returns the first ``count`` rows of tokens, int32 ``[N, L]``, -1 where they are to be sampled.

    Raises:
      UserError: the region or the rows do not lie in the grid.
    """
    known = first_rows(tokens, count).reshape(-1, *tokens.grid)
    missing = missing_tokens(tokens.grid, given.keep_rows, given.inpaint)
    return np.where(missing, UNKNOWN, known).reshape(len(known), -1)


def missing_tokens(
    grid: tuple[int, int], keep_rows: int | None, inpaint: tuple[int, int, int, int] | None
) -> np.ndarray:
    """Returns which tokens are to be sampled, bool ``[h, w]``.

    Args:
      grid: ``(h, w)``.
      keep_rows: rows that are given, from the top; or else
      inpaint: top, left, bottom and right of what is not given.

    Raises:
      UserError: the region or the rows do not lie in the grid.
    """
    h, w = grid
    missing = np.zeros(grid, bool)
    if keep_rows is not None:
        if not 0 < keep_rows < h:
            raise UserError(f"--keep-rows {keep_rows}: the grid has {h} rows; give 1 to {h - 1}")
        missing[keep_rows:] = True
        return missing
    assert inpaint is not None  # one of the two is there
    top, left, bottom, right = inpaint
    if not (0 <= top < bottom <= h and 0 <= left < right <= w):
        raise UserError(
            f"--inpaint {top},{left},{bottom},{right}: give top, left, bottom and right of a region in "
            f"the {h}x{w} grid, top above bottom and left before right"
        )
    missing[top:bottom, left:right] = True
    return missing


def open_condition(path: str | None, prior: PriorInfo) -> TokenSet | None:
    """Returns the data set of condition grids; None for a prior without.

    Raises:
      UserError: there is none and the prior needs one, or the other way round; it cannot be opened, or is of
        another codec or grid than the conditions that the prior has learned from.
    """
    if path is None:
        if prior.config.condition_length:
            raise UserError("--condition: this prior needs condition grids; give a token data set of them")
        return None
    if not prior.config.condition_length:
        raise UserError("--condition: this prior was trained without a condition grid; leave it out")
    tokens = open_tokens(path, grid=prior.config.condition_grid)
    if tokens.codebook_size != prior.config.condition_codebook_size:
        raise UserError(
            f"{path}: its codebook has {tokens.codebook_size} codes, the prior's condition "
            f"{prior.config.condition_codebook_size}"
        )
    trained = prior.card.get("data", {}).get("condition_codec", {})
    if trained.get("fingerprint", tokens.fingerprint) != tokens.fingerprint:
        raise UserError(
            f"{path}: its tokens were made by codec "
            f"{called(tokens.fingerprint, str(tokens.codec.get('name') or ''))}, the prior's condition by "
            f"{called(trained['fingerprint'], str(trained.get('name') or ''))}; give tokens of that codec"
        )
    return tokens


@dataclasses.dataclass(frozen=True)
class GivenText:
    """Texts that samples are conditional on, taken in turn.

    Attributes:
      prompts: texts in words.
      embeddings: ``FILE.parquet:COLUMN`` of vectors.
    """

    prompts: tuple[str, ...] = ()
    embeddings: str | None = None

    @property
    def count(self) -> int:
        """Returns the number of prompts, by which columns of an image grid are made."""
        return len(self.prompts)

    @property
    def is_given(self) -> bool:
        """Returns whether there is any text; prompts that are all empty are none."""
        return any(prompt.strip() for prompt in self.prompts) or self.embeddings is not None


def open_text(given: GivenText, prior: PriorInfo) -> Text | None:
    """Returns the texts, in the order of prompts or of the file; None where none are given.

    Raises:
      UserError: prompts and vectors both, texts that the prior does not take, or a file that cannot be read.
    """
    if given.prompts and given.embeddings is not None:
        raise UserError("--prompt and --condition-embeddings: give one of them")
    if given.prompts:
        return encode_prompts(given.prompts, prior.words, prior.config)
    if given.embeddings is None:
        return None
    return encode_vectors(given.embeddings, prior.config)


def encode_vectors(address: str, config: PriorConfig) -> Text:
    """Reads all captions of ``FILE.parquet:COLUMN``, vectors, as a prior takes them.

    Raises:
      UserError: the file cannot be read, or its vectors are too many or of another width.
    """
    if not config.text_width:
        what = "words: give --prompt" if config.text_words else "classes or nothing: leave it out"
        raise UserError(f"--condition-embeddings: this prior was not trained on vectors but on {what}")
    captions = read_captions(address, vectors=True)
    if captions.width != config.text_width or captions.longest > config.text_length:
        raise UserError(
            f"{address}: up to {captions.longest} vectors of {captions.width}; the prior takes up to "
            f"{config.text_length} of {config.text_width}: encode them as for its training"
        )
    numbers = sorted(number for found in captions.numbers.values() for number in found)
    return pad_texts([np.asarray(captions[number]) for number in numbers], config)


def first_rows(tokens: TokenSet, count: int) -> np.ndarray:
    """Returns the first rows of a token data set, int32 ``[N, L]`` with N at most ``count``."""
    found: list[np.ndarray] = []
    for batch in all_batches(tokens, min(count, 1024)):
        found.append(batch.tokens)
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count].astype(np.int32)


def check_drawing(info: PriorInfo, settings: SamplingConfig, classes: Sequence[str], text: GivenText) -> None:
    """Refuses settings that mean nothing to a prior.

    Raises:
      UserError: as :func:`vqgan.prior.sampling.request.check_settings`; guidance towards a text that is not
        given; or an answer to "no class" or "no text" is needed of a prior that has never learned one.
    """
    check_settings(info.config, settings)
    takes_text = info.config.text_length > 0
    flag = "--prompt" if info.config.text_words else "--condition-embeddings"
    if takes_text and settings.is_guided and not text.is_given:
        raise UserError(f"--guidance {settings.guidance:g}: there is no text to lead to; give {flag}")
    if knows_no_class(info):
        return
    if settings.is_guided or NO_CLASS in classes:
        what = "--guidance" if settings.is_guided else f"--class {NO_CLASS}"
        raise UserError(
            f"{what}: this prior was trained with objective.class_dropout=0 and has never learned from "
            "images without a class or text; leave it out, or train one with class_dropout=0.1"
        )
    if takes_text and not text.is_given:
        raise UserError(
            f"this prior has never learned from images without a text (class_dropout=0): give {flag}"
        )


def knows_no_class(prior: PriorInfo) -> bool:
    """Tells whether a prior can be asked for no class or text: it has none, or has learned without one."""
    objective = ModelCard.from_json(prior.card).configuration.get("objective")
    dropout = objective.get("class_dropout") if isinstance(objective, Mapping) else None
    return not prior.config.is_guidable or dropout != 0
