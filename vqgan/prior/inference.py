"""The inference face of a prior: classes and seeds to token grids, and on to images."""

import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vqgan.codec import Codec
from vqgan.errors import UserError
from vqgan.prior.checkpoint import PriorInfo, class_numbers, load_prior_weights, read_prior, require_codec
from vqgan.prior.config import PriorConfig
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import UNKNOWN, Request
from vqgan.prior.sampling.sampler import PriorSampler
from vqgan.prior.text import Text, encode_prompts, pad_vectors
from vqgan.token_layouts import GRID, layout_of

Label = int | str | None
"""A class by number or name; None is no class."""


class Prior:
    """Draws token grids from a trained prior, and decodes them by the codec whose tokens it has learned.

    Use :meth:`Prior.load`. Weights are read at the first call that needs them.

    >>> from vqgan import Prior
    >>> prior = Prior.load("prior/")
    >>> tokens = prior.sample(16, labels=["cat", "dog"], guidance=3.0)
    >>> tokens.shape
    (16, 8, 8)
    >>> prior.images(tokens).shape
    (16, 64, 64, 3)

    Attributes:
      info: what the prior's folder says of it.
    """

    def __init__(
        self,
        info: PriorInfo,
        *,
        codec: Codec | str | os.PathLike[str] | None = None,
        batch_size: int = 16,
        dtype: DTypeLike = jnp.float32,
        devices: list[jax.Device] | None = None,
    ) -> None:
        """Takes what :meth:`load` takes, and a prior's description in place of its path."""
        self.info = info
        self._codec, self._batch_size, self._dtype, self._devices = codec, batch_size, dtype, devices

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        codec: Codec | str | os.PathLike[str] | None = None,
        batch_size: int = 16,
        dtype: DTypeLike = jnp.float32,
        devices: list[jax.Device] | None = None,
    ) -> Self:
        """Opens a prior.

        Args:
          path: folder of a prior, or of the run that has trained it, or ``hf://owner/name[@revision]``.
          codec: decodes the images, open or by its path or name; the one that the prior names by default.
          batch_size: samples per device call; rounded up to a multiple of the number of devices.
          dtype: type of activations and of the cache. Logits are float32.
          devices: devices to split a batch over; all local ones by default.

        Raises:
          UserError: no prior there, or a damaged one.
        """
        return cls(read_prior(path), codec=codec, batch_size=batch_size, dtype=dtype, devices=devices)

    @property
    def config(self) -> PriorConfig:
        """Returns the architecture, with the grid and the number of codes and classes."""
        return self.info.config

    @property
    def fingerprint(self) -> str:
        """Returns the sha256 over the configuration and the weights."""
        return self.info.fingerprint

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns the names of classes 0, 1, ...; none where they are not known."""
        return self.info.class_names

    def sample(
        self,
        count: int = 1,
        *,
        labels: Label | Sequence[Label] | np.ndarray = (),
        seed: int = 0,
        config: SamplingConfig | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        given: np.ndarray | None = None,
        condition: np.ndarray | None = None,
        prompts: str | Sequence[str] = (),
        vectors: Sequence[np.ndarray] = (),
        grid: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Draws token grids; the same arguments give the same tokens, whatever the batch size.

        Args:
          count: number of samples.
          labels: a class by number or name, None for no class, or several of them, taken in turn; all
            classes of the prior by default.
          seed: of the first sample, in ``[0, 2^32 - count]``; the others follow.
          config: how tokens are drawn; the arguments from here to ``steps`` win over it.
          temperature: divides the logits; 0 takes the most probable token.
          top_k: only the k most probable tokens are drawn; 0 for all.
          top_p: only the most probable tokens are drawn, as few as reach this probability together.
          guidance: scale of classifier-free guidance; 1 for none.
          steps: passes of a masked prior.
          given: tokens to complete, integers ``[N, h, w]``, -1 where they are to be drawn, with N ``count``
            or 1. An autoregressive prior completes the beginning of a grid, in raster order.
          condition: for a prior with a condition grid, its tokens, integers ``[N, hc, wc]``.
          prompts: for a prior that was trained on words, a text or several of them, taken in turn.
          vectors: for a prior that was trained on vectors of texts, ``[t, E]`` each, taken in turn.
          grid: ``(H, W)`` in tokens, larger than trained, for an autoregressive prior.

        Returns:
          int32 ``[count, h, w]`` (or ``[count, H, W]``) in ``[0, codebook_size)``.

        Raises:
          UserError: an unknown class, a value out of range, or something that this prior cannot do.
        """
        if grid is not None and (layout := layout_of(self.info.codec.config)) != GRID:
            raise UserError(f"grid: the prior's tokens are no grid (layout {layout}); leave it out")
        if count < 0 or not 0 <= seed <= 2**32 - max(count, 1):
            raise UserError(f"{count} samples from seed {seed} on: seeds must lie in [0, 2^32)")
        listed = class_numbers(self.info, _listed(labels))
        numbers = [UNKNOWN if number is None else number for number in listed]
        request = Request(
            seeds=np.arange(seed, seed + count, dtype=np.int64),
            labels=np.resize(np.array(numbers, np.int32), count),
            condition=_rows("condition", condition, count),
            known=_rows("given", given, count),
            text=self._text(prompts, vectors, count),
        )
        drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        return self._sampler.sample(request, _settings(config, drawn, steps), grid=grid)

    def log_likelihoods(
        self,
        tokens: np.ndarray,
        *,
        labels: Label | Sequence[Label] | np.ndarray = (None,),
        condition: np.ndarray | None = None,
        prompts: str | Sequence[str] = (),
        vectors: Sequence[np.ndarray] = (),
    ) -> np.ndarray:
        """Computes how likely given tokens are under a condition: the right caption makes them more likely.

        Args:
          tokens: integers ``[N, h, w]`` of the prior's grid.
          labels: a class for all, or one for each.
          condition: as for :meth:`sample`.
          prompts: a text for all, or one for each.
          vectors: of texts, ``[t, E]`` each: one for all, or one for each.

        Returns:
          float32 ``[N]``: the logarithm of the probability of a grid's tokens together, in nats.

        Raises:
          UserError: a masked prior, which gives no likelihood; or what it was not trained on.
        """
        if not self.config.is_causal:
            raise UserError("a masked prior gives no likelihood of tokens; take an autoregressive one")
        count = len(tokens)
        numbers = [UNKNOWN if n is None else n for n in class_numbers(self.info, _listed(labels))]
        request = Request(
            seeds=np.zeros(count, np.int64),
            labels=np.resize(np.array(numbers, np.int32), count),
            condition=_rows("condition", condition, count),
            known=_rows("tokens", tokens, count),
            text=self._text(prompts, vectors, count),
        )
        return self._sampler.log_likelihoods(request)

    def _text(self, prompts: str | Sequence[str], vectors: Sequence[np.ndarray], count: int) -> Text | None:
        """Returns ``count`` texts, those that are given in turn; None where none are."""
        if not len(prompts) and not len(vectors):
            return None
        if len(vectors):
            text = pad_vectors(vectors, self.config)
        else:
            listed = [prompts] if isinstance(prompts, str) else prompts
            text = encode_prompts(listed, self.info.words, self.config)
        return text.take(np.arange(count) % len(text.mask))

    def images(self, tokens: np.ndarray) -> np.ndarray:
        """Decodes token grids, integers ``[N, h, w]``, to images, uint8 ``[N, H, W, 3]``.

        Raises:
          UserError: the codec is unavailable or another one, or a token lies outside its codebook.
        """
        return self.codec.decode(tokens)

    @cached_property
    def codec(self) -> Codec:
        """Opens the codec whose tokens the prior has learned.

        Raises:
          UserError: it is unavailable, or another one was given.
        """
        codec = self._codec if self._codec is not None else self.info.codec.name
        if not isinstance(codec, Codec):
            name = os.fspath(codec)
            try:
                codec = Codec.load(name, batch_size=self._batch_size, devices=self._devices)
            except UserError as error:
                if self._codec is not None:
                    raise
                why = f"names a codec that is unavailable ({error}); give one as Prior.load(..., codec=...)"
                raise UserError(f"prior {self.info.path} {why}") from error
        require_codec(self.info, codec.fingerprint, str(codec.info.path))
        return codec

    @cached_property
    def _sampler(self) -> PriorSampler:
        weights = load_prior_weights(self.info)
        return PriorSampler(
            self.config, weights, batch_size=self._batch_size, dtype=self._dtype, devices=self._devices
        )


def _settings(config: SamplingConfig | None, drawn: dict[str, Any], steps: int | None) -> SamplingConfig:
    config = SamplingConfig() if config is None else config
    masked = config.masked if steps is None else dataclasses.replace(config.masked, steps=steps)
    changed = {name: value for name, value in drawn.items() if value is not None}
    return dataclasses.replace(config, masked=masked, **changed)


def _listed(labels: Label | Sequence[Label] | np.ndarray) -> list[Label]:
    return [labels] if labels is None or isinstance(labels, (int, str)) else list(labels)


def _rows(name: str, grids: np.ndarray | None, count: int) -> np.ndarray | None:
    """Returns grids ``[N, h, w]`` row by row, ``[count, h * w]``; one grid serves all samples."""
    if grids is None:
        return None
    grids = np.asarray(grids)
    if grids.ndim != 3 or len(grids) not in (1, count):
        raise UserError(
            f"{name} is of shape {list(grids.shape)}: give integers [N, h, w] with N {count} or 1"
        )
    return np.broadcast_to(grids.reshape(len(grids), -1), (count, grids.shape[1] * grids.shape[2]))
