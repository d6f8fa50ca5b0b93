"""VQGAN in JAX: codecs, priors and token data sets, and how both models are trained.

These names are the public face; everything is imported when it is first asked for.

>>> from vqgan import Codec
>>> codec = Codec.load("tiny")
>>> codec.config.codebook_size
1024
"""

import importlib
from typing import TYPE_CHECKING, Any

from vqgan.errors import UserError

if TYPE_CHECKING:
    from vqgan.codec import Codec
    from vqgan.config import ModelConfig
    from vqgan.data.token_batches import token_batches
    from vqgan.data.tokens import open_tokens
    from vqgan.prior.inference import Prior
    from vqgan.prior.sampling.config import SamplingConfig

__version__ = "0.1.0"

__all__ = [
    "Codec",
    "ModelConfig",
    "Prior",
    "SamplingConfig",
    "UserError",
    "__version__",
    "open_tokens",
    "token_batches",
]

_PLACES = {
    "Codec": "vqgan.codec",
    "ModelConfig": "vqgan.config",
    "Prior": "vqgan.prior.inference",
    "SamplingConfig": "vqgan.prior.sampling.config",
    "open_tokens": "vqgan.data.tokens",
    "token_batches": "vqgan.data.token_batches",
}


def __getattr__(name: str) -> Any:
    # Models load JAX and data sets Arrow; a launcher that only reads configurations must not pay for that.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_PLACES[name])
    except ModuleNotFoundError as error:
        if error.name is None or not _PLACES[name].startswith(error.name):
            raise
        raise ImportError(
            f"vqgan-tokens only reads tokens; for vqgan.{name} install vqgan-pipelines"
        ) from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
