"""VQGAN in JAX: model, codec, checkpoints and training.

>>> from vqgan import Codec
>>> codec = Codec.load("tiny")
>>> codec.config.codebook_size
1024
"""

from typing import TYPE_CHECKING, Any

from vqgan.config import ModelConfig
from vqgan.errors import UserError

if TYPE_CHECKING:
    from vqgan.codec import Codec

__version__ = "0.1.0"

__all__ = ["Codec", "ModelConfig", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    # Codec loads JAX; a launcher that only reads configurations must not pay for that.
    if name == "Codec":
        try:
            from vqgan.codec import Codec
        except ModuleNotFoundError as error:
            if error.name != "vqgan.codec":
                raise
            raise ImportError("vqgan-tokens only reads tokens; for codecs install vqgan-pipelines") from None
        return Codec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
