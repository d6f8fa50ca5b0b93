"""What a format says of itself, and what an import gives."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from vqgan.config import ModelConfig
from vqgan.importers.naming import Place
from vqgan.importers.tensors import Tensor

Fields: TypeAlias = dict[str, Any]
"""Fields of a :class:`~vqgan.config.ModelConfig`, some of them."""

Probe: TypeAlias = Callable[[str], tuple[int, ...] | None]
"""Our name of a parameter to its shape, in our layout; None where the file has no such parameter."""


@dataclass(frozen=True)
class Options:
    """What cannot be read from a file, and choices among what is in it.

    Attributes:
      input_range: pixel values that the network expects for uint8 0 and 255.
      resolution: side in pixels that the model was trained at.
      attn_resolutions: sides, at ``resolution``, of the levels with attention.
      weights: ``raw``, or ``ema`` for the averaged weights where the file has both.
      name: published name, whose settings and parameter count must fit.
      config: native configuration file, if it lies elsewhere.
    """

    input_range: tuple[float, float] | None = None
    resolution: int | None = None
    attn_resolutions: tuple[int, ...] | None = None
    weights: str = "raw"
    name: str | None = None
    config: str | None = None


@dataclass(frozen=True)
class Native:
    """A checkpoint's own configuration file, as plain data."""

    path: Path
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """How one code base names and stores parameters.

    Attributes:
      name: of the format.
      marker: a parameter that every file of this format has, and no other format.
      from_torch: kernels are stored as torch does (output, input, height, width).
      names: foreign names that a parameter may have, given levels and encoder blocks per level.
      native: reads fields from a native configuration; it may refuse one, or return nothing.
      ignored: names of parameters that a codec does not need.
      fields: what the shapes cannot tell, and is the same for every file of the format.
      geometry: levels and encoder blocks per level, where counting names does not give them.
      ema_prefix: of averaged twins, whose names are those of the parameters without dots.
    """

    name: str
    marker: str
    from_torch: bool
    names: Callable[[Place, int, int], tuple[str, ...]]
    native: Callable[[Native], Fields]
    ignored: re.Pattern[str] = re.compile(r"(?!)")
    fields: Mapping[str, Any] = field(default_factory=dict)
    geometry: Callable[[Mapping[str, Tensor]], tuple[int, int]] | None = None
    ema_prefix: str | None = None


@dataclass(frozen=True)
class Imported:
    """A converted checkpoint.

    Attributes:
      config: architecture.
      weights: for encoder, quantizer and decoder, parameters by our names, float32.
      origin: JSON data: format, file, sha256, and what else is known of where it came from.
    """

    config: ModelConfig
    weights: Mapping[str, dict[str, np.ndarray]]
    origin: Mapping[str, Any]
