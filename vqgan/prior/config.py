"""Configuration of a prior: its architecture, with the names and shapes of its parameters, and its objective.

Imports no JAX and no NumPy.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, TypeAlias

from vqgan.config import MOST_PARAMETERS
from vqgan.errors import UserError

KINDS = ("autoregressive", "masked")
BLOCKS = ("llama", "gpt")
ROTARY = ("grid", "sequence")
MASK_SCHEDULES = ("cosine", "linear", "square", "cubic")
MOST_LAYERS = 1000
MOST_POSITIONS = 1 << 20
MOST_TEXT = 1024  # positions of a text
HIDDEN_MULTIPLE = 64  # widths of the gated layer that matrix units like

TEXT_SIZES = ("text_length", "text_words", "text_width")

Shape: TypeAlias = tuple[int, ...]
NamedShapes: TypeAlias = Iterator[tuple[str, Shape]]


def _later(default: Any) -> Any:
    """Declares a field of a later release: at its default it is not written, so priors stay as they were."""
    return dataclasses.field(default=default, metadata={"left_out": default})


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """A transformer over the tokens of one grid, in raster order.

    The sequence that it sees is a prefix (a text and the tokens of a condition grid, if there are any, then
    one start or class token) followed by the grid's tokens. Start and class tokens have embeddings of their
    own: no id of the codebook stands for them.

    Attributes:
      kind: ``autoregressive`` predicts each token from those before it; ``masked`` predicts hidden
        tokens from all others (MaskGIT, arXiv 2202.04200).
      block: ``llama`` (RMSNorm, SwiGLU, rotary positions, normalised queries and keys) or ``gpt``
        (LayerNorm, GELU, learned positions: the layout of *Taming Transformers*' prior, minGPT).
      codebook_size: number of codes, K.
      grid: ``(h, w)`` of the tokens; the sequence is ``h * w`` long.
      classes: number of classes; 0 for a prior without labels.
      condition_codebook_size: codes of the condition grid; 0 for a prior without one.
      condition_grid: ``(h, w)`` of the condition grid; both 0 without one.
      start_token: whether a start or class token stands between the condition and the first token. Priors of
        *Taming Transformers* with a condition grid go without: the condition's last token takes its part.
      layers: transformer blocks.
      heads: attention heads; they divide ``width``.
      width: features of a token.
      hidden: features inside a block's feed-forward part; 0 for the usual width of the block's kind.
      dropout: of embeddings, attention's output and feed-forward output, in training.
      text_length: positions of a text, which end where the rest of the prefix begins; 0 for a prior without.
      text_words: rows of the table of words, the first for all that are unknown; 0 where texts are vectors.
      text_width: features of a text's vectors, from whatever encoder; 0 where texts are words.
      text_null: whether vectors that were learned stand for no text, as in LlamaGen; if not, no text is one
        of which nothing is seen. Texts as vectors only.
      blank_prefix: whether queries and keys of the prefix are zero, so that all of it is attended to alike:
        so it is in LlamaGen, in ``llama`` only.
      query_key_norm: whether queries and keys are normalised, in ``llama``; LlamaGen's are not.
      rotary: what rotary positions of ``llama`` count: ``grid``, rows and columns, or ``sequence``, the place
        in the sequence, as in Llama itself (arXiv 2302.13971). With ``sequence`` and no ``query_key_norm`` a
        prior is a Llama, and can be exported as one.
    """

    kind: str = "autoregressive"
    block: str = "llama"
    codebook_size: int = 1024
    grid: tuple[int, int] = (16, 16)
    classes: int = 0
    condition_codebook_size: int = 0
    condition_grid: tuple[int, int] = (0, 0)
    start_token: bool = True
    layers: int = 6
    heads: int = 4
    width: int = 256
    hidden: int = 0
    dropout: float = 0.0
    text_length: int = _later(0)
    text_words: int = _later(0)
    text_width: int = _later(0)
    text_null: bool = _later(False)
    blank_prefix: bool = _later(False)
    query_key_norm: bool = _later(True)
    rotary: str = _later("grid")

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("block", BLOCKS), ("rotary", ROTARY)):
            if getattr(self, name) not in known:
                raise UserError(f"model.{name} is {getattr(self, name)!r}: give one of {', '.join(known)}")
        for name, least in (("codebook_size", 2), ("layers", 1), ("heads", 1), ("width", 4)):
            self._check_least(name, getattr(self, name), least)
        if self.layers > MOST_LAYERS:
            raise UserError(f"model.layers is {self.layers}: at most {MOST_LAYERS}")
        for name in ("classes", "condition_codebook_size", "hidden", *TEXT_SIZES):
            self._check_least(name, getattr(self, name), 0)
        self._check_grids()
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout is {self.dropout}: it must lie in [0, 1)")
        self._check_text()
        if self.block != "llama" and (self.rotary != "grid" or not self.query_key_norm):
            raise UserError("model.rotary and query_key_norm are of block llama: leave them at grid and True")
        self._check_start()
        self._check_heads()
        self._check_size()

    def _check_least(self, name: str, value: int, least: int) -> None:
        if value < least:
            raise UserError(f"model.{name} is {value}: it must be at least {least}")

    def _check_grids(self) -> None:
        for name, least in (("grid", 1), ("condition_grid", 0)):
            sides = getattr(self, name)
            if len(sides) != 2 or min(sides) < least:
                raise UserError(
                    f"model.{name} is {list(sides)}: it must be a height and a width of at least {least}"
                )
        given = self.condition_codebook_size > 0
        if any((side > 0) != given for side in self.condition_grid):
            raise UserError(
                f"model.condition_grid is {list(self.condition_grid)} and condition_codebook_size "
                f"{self.condition_codebook_size}: give both, or leave both 0"
            )

    def _check_text(self) -> None:
        if self.text_length > MOST_TEXT:
            raise UserError(f"model.text_length is {self.text_length}: at most {MOST_TEXT}")
        if (self.text_words > 0) + (self.text_width > 0) != (self.text_length > 0):
            raise UserError(
                f"model.text_length is {self.text_length}, text_words {self.text_words} and text_width "
                f"{self.text_width}: give a length and one of the others, or leave all 0"
            )
        if self.text_null and not self.text_width:
            raise UserError("model.text_null is True: only a prior whose texts are vectors has one for none")
        if self.block != "llama" and self.blank_prefix:
            raise UserError("model.blank_prefix is True: it is of block llama; leave it at False")

    def _check_start(self) -> None:
        has_other = self.condition_length > 0 if self.block == "gpt" else self.text_null
        if not self.start_token and not (has_other and not self.classes and self.is_causal):
            raise UserError(
                "model.start_token is False: only an autoregressive prior of block gpt with a condition grid "
                "and no classes can do without, or one of block llama with text_null"
            )

    def _check_size(self) -> None:
        """Refuses what is larger than any prior, before memory or time is spent on it."""
        if self.prefix + self.length > MOST_POSITIONS:
            raise UserError(
                f"model.grid is {list(self.grid)}, condition_grid {list(self.condition_grid)}: at most "
                f"{MOST_POSITIONS:,} tokens"
            )
        parameters = prior_parameter_count(self)
        if parameters > MOST_PARAMETERS:
            raise UserError(
                f"the prior would have {parameters:,} parameters, at most {MOST_PARAMETERS:,}; correct "
                "model.layers, width, hidden, classes or the sizes of the codebooks"
            )

    def _check_heads(self) -> None:
        if self.width % self.heads:
            raise UserError(f"model.heads is {self.heads}: it must divide model.width, {self.width}")
        if self.block == "llama" and self.head_width % 4:
            raise UserError(
                f"model.width / model.heads is {self.head_width}: rotary positions in two dimensions need a "
                "multiple of 4"
            )

    @property
    def head_width(self) -> int:
        """Returns the features of one attention head."""
        return self.width // self.heads

    @property
    def length(self) -> int:
        """Returns the tokens of the grid, L."""
        return math.prod(self.grid)

    @property
    def condition_length(self) -> int:
        """Returns the tokens of the condition grid."""
        return math.prod(self.condition_grid)

    @property
    def prefix(self) -> int:
        """Returns the positions before the grid's first token, P: text, condition grid and start token."""
        return self.text_length + self.condition_length + self.start_token

    @property
    def is_guidable(self) -> bool:
        """Tells whether there is something that guidance can leave out: a class, or a text."""
        return self.classes > 0 or self.text_length > 0

    @property
    def is_causal(self) -> bool:
        """Tells whether a position attends to earlier positions only."""
        return self.kind == "autoregressive"

    @property
    def vocabulary(self) -> int:
        """Returns the rows of the token embedding: the codes, and for masked priors the mask's id, K."""
        return self.codebook_size + (self.kind == "masked")

    @property
    def feed_forward_width(self) -> int:
        """Returns the features inside a block's feed-forward part.

        Four times the width; for the gated one two thirds of that, so that both have as many parameters
        (arXiv 2002.05202, section 3), rounded up to a multiple of :data:`HIDDEN_MULTIPLE`.
        """
        if self.hidden:
            return self.hidden
        if self.block == "gpt":
            return 4 * self.width
        return -(-8 * self.width // (3 * HIDDEN_MULTIPLE)) * HIDDEN_MULTIPLE


def prior_parameter_shapes(config: PriorConfig) -> dict[str, Shape]:
    """Returns the shape of each parameter by dotted name, without JAX; a test holds it against the module."""
    return dict(_model(config))


def prior_parameter_count(config: PriorConfig) -> int:
    """Returns the number of parameters."""
    return sum(map(math.prod, prior_parameter_shapes(config).values()))


def _model(config: PriorConfig) -> NamedShapes:
    width = config.width
    yield "token_embedding", (config.vocabulary, width)
    yield "class_embedding", (config.classes + 1, width)
    if config.condition_codebook_size:
        yield "condition_embedding", (config.condition_codebook_size, width)
    if config.block == "gpt":
        yield "position_embedding", (config.prefix + config.length, width)
    if config.text_length:
        yield from _text(config)
    for index in range(config.layers):
        yield from _block(f"blocks.{index}", config)
    yield from _norm("norm", config)
    yield "head.kernel", (width, config.codebook_size)


def _text(config: PriorConfig) -> NamedShapes:
    if config.text_words:
        yield "text.table", (config.text_words, config.width)
        return
    yield "text.inner.kernel", (config.text_width, config.width)
    yield "text.outer.kernel", (config.width, config.width)
    if config.text_null:
        yield "text.null", (config.text_length, config.text_width)


def _block(name: str, config: PriorConfig) -> NamedShapes:
    width, hidden = config.width, config.feed_forward_width
    yield from _norm(f"{name}.attention_norm", config)
    for layer in ("query", "key", "value", "out"):
        yield from _linear(f"{name}.attention.{layer}", width, width, config)
    if config.block == "llama" and config.query_key_norm:
        for layer in ("query_norm", "key_norm"):
            yield f"{name}.attention.{layer}.scale", (config.head_width,)
    yield from _norm(f"{name}.feed_forward_norm", config)
    for layer in ("gate", "up") if config.block == "llama" else ("up",):
        yield from _linear(f"{name}.feed_forward.{layer}", width, hidden, config)
    yield from _linear(f"{name}.feed_forward.down", hidden, width, config)


def _linear(name: str, inputs: int, outputs: int, config: PriorConfig) -> NamedShapes:
    yield f"{name}.kernel", (inputs, outputs)
    if config.block == "gpt":
        yield f"{name}.bias", (outputs,)


def _norm(name: str, config: PriorConfig) -> NamedShapes:
    yield f"{name}.scale", (config.width,)
    if config.block == "gpt":
        yield f"{name}.bias", (config.width,)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """How a prior is trained to predict tokens: what the loss does to its inputs and targets.

    Attributes:
      class_dropout: probability that a sample is trained as one without its class and text, which guidance
        needs (arXiv 2207.12598, section 3.2). Nothing changes in a prior that has neither.
      keep: probability that an input token stays; the others become random codes, while the targets stay
        as they are (``pkeep`` in the reference implementation of arXiv 2012.09841). 1 keeps all.
        Autoregressive priors only.
      label_smoothing: share of each target that is spread over all codes (arXiv 1512.00567, section 7);
        MaskGIT trains with 0.1.
      mask_schedule: share of masked tokens by a uniform number (arXiv 2202.04200, section 3.3). Masked
        priors only.
    """

    class_dropout: float = 0.1
    keep: float = 1.0
    label_smoothing: float = 0.0
    mask_schedule: str = "cosine"

    def __post_init__(self) -> None:
        for name in ("class_dropout", "keep"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"objective.{name} is {getattr(self, name)}: it must lie in [0, 1]")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"objective.label_smoothing is {self.label_smoothing}: it must lie in [0, 1)")
        if self.mask_schedule not in MASK_SCHEDULES:
            raise UserError(
                f"objective.mask_schedule is {self.mask_schedule!r}: give one of {', '.join(MASK_SCHEDULES)}"
            )


def check_objective(config: ObjectiveConfig, kind: str) -> None:
    """Checks that a prior of this kind can be trained so.

    Raises:
      UserError: input tokens are to be replaced in a masked prior, which hides them instead.
    """
    if kind == "masked" and config.keep < 1:
        raise UserError(
            f"objective.keep is {config.keep}: a masked prior hides tokens, it replaces none: leave it 1"
        )
