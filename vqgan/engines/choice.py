"""Which engine runs a codec's networks, settled once for a whole run.

Results of two engines, or of two releases of one, differ in their last bits, which turns a token here and
there. So a choice is made where a run is launched, becomes part of its plan, and binds every worker. JAX is
not loaded here.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from vqgan.config import ModelConfig
from vqgan.errors import UserError
from vqgan.extras import is_installed, require_extra

if TYPE_CHECKING:
    import numpy as np

ENGINES = ("jax", "openvino", "auto")
EXTRA = "cpu"
"""The extra that brings OpenVINO."""
KNOWN_FIELDS = frozenset(
    {
        *("resolution", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "mid_attention", "attention"),
        *("z_channels", "double_z", "embed_dim", "codebook_size", "quantizer", "fsq_levels", "quant_conv"),
        *("dropout", "norm_groups", "input_range", "clip_output", "bias", "shortcut_from_branch"),
        *("resamp_with_conv", "pool_downsample", "mid_blocks", "decoder_res_blocks", "stem_channels"),
        *("encoder_out_kernel", "has_decoder", "symmetric_downsample", "depth_to_space", "adaptive_norm"),
        *("fsq_bound", "channels", "decoder_ch", "decoder_added_blocks"),
    }
)
"""Fields of a configuration that :mod:`vqgan.model.network_graph`, or a quantizer beside it, knows."""


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """An engine, and the release of it that a run is bound to.

    Attributes:
      name: ``jax`` or ``openvino``.
      version: of its package; empty for JAX, whose release is told in the manifest but binds nobody.
    """

    name: str = "jax"
    version: str = ""

    @property
    def is_jax(self) -> bool:
        """Tells whether JAX runs the networks itself, as it does by default."""
        return self.name == "jax"

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()

    def require_latents(self) -> None:
        """Checks that latents can be had.

        Raises:
          UserError: another engine than JAX.
        """
        if not self.is_jax:
            raise UserError(f"engine {self.name}: it gives tokens and no latents; take the engine jax")

    def identity(self) -> dict[str, Any]:
        """Returns its part of a plan's identity; JAX has none, so that older plans stay as they are."""
        return {} if self.is_jax else {"engine": str(self)}

    def told(self, asked: str) -> str:
        """Returns it as the end of a line for people; nothing where ``asked`` left no question."""
        return "" if asked == "jax" else f", engine {self}"

    def check_installed(self) -> None:
        """Checks that this very release is installed here, on a worker for instance.

        Raises:
          UserError: the package is missing, or of another release.
        """
        if self.is_jax:
            return
        found = _openvino_version()
        if found != self.version:
            raise UserError(
                f"the run is bound to openvino {self.version}, here is {found}; "
                f"install it with: pip install openvino=={self.version}"
            )


JAX_ENGINE = EngineChoice()


class PendingArray(Protocol):
    """A result that may still be being computed; ``np.asarray`` waits for it. A ``jax.Array`` is one."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> "np.ndarray": ...


class Engine(Protocol):
    """What runs a codec's networks. Of a full batch the first ``count`` results are wanted, more may come."""

    def encode(self, images: "np.ndarray", count: int) -> PendingArray:
        """Starts turning uint8 ``[B, H, W, C]`` images into int32 ``[B, h, w]`` tokens; returns at once."""

    def decode(self, tokens: "np.ndarray", count: int) -> PendingArray:
        """Starts turning int32 ``[B, h, w]`` tokens into uint8 ``[B, H, W, C]`` images; returns at once."""


def resolve_engine(name: str, *configs: ModelConfig) -> EngineChoice:
    """Settles an engine.

    Args:
      name: one of :data:`ENGINES`. ``auto`` is OpenVINO where that is installed, has a graph for each codec,
        and JAX has no accelerator; else JAX.
      configs: of the codecs that it is to run.

    Raises:
      UserError: no engine of this name, its package is not installed, or it has no graph for a codec.
    """
    if name not in ENGINES:
        raise UserError(f"--engine {name}: known are {', '.join(ENGINES)}")
    if name == "jax" or (name == "auto" and not _suits_openvino(configs)):
        return JAX_ENGINE
    for config in configs:
        check_variant(config)
    return EngineChoice("openvino", _openvino_version())


def check_variant(config: ModelConfig) -> None:
    """Checks that OpenVINO's graphs know all of a configuration.

    Raises:
      UserError: it is of another kind, or a field that is not known has another value than its default.
    """
    unknown = unknown_variant(config)
    if unknown is not None:
        raise graph_refusal(unknown)


def unknown_variant(config: ModelConfig) -> str | None:
    """Returns what of a configuration graphs do not know; None where they know all of it."""
    if type(config) is not ModelConfig:
        return f"a codec of kind {type(config).__name__}"
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in KNOWN_FIELDS and value != field.default:
            return f"model.{field.name}" + ("" if dataclasses.is_dataclass(value) else f"={value!r}")
    if config.attention not in ("full", "linear"):
        return f"model.attention={config.attention!r}"
    return None


def graph_refusal(what: str) -> UserError:
    """Returns the error for a variant without a graph."""
    return UserError(f"the engine openvino has no graph for {what}; leave out --engine, or give --engine jax")


def _suits_openvino(configs: Sequence[ModelConfig]) -> bool:
    try:
        for config in configs:
            check_variant(config)
    except UserError:
        return False
    return is_installed("openvino") and not expects_accelerator()


def recorded_engine(text: str | None) -> EngineChoice:
    """Returns the engine that a plan's identity names, as ``openvino 2026.4.1``; JAX where it names none."""
    name, _, version = (text or "jax").partition(" ")
    return EngineChoice(name, version)


def expects_accelerator() -> bool:
    """Tells, without loading JAX, whether it has a GPU or TPU: by ``JAX_PLATFORMS``, else its plugins."""
    if platforms := os.environ.get("JAX_PLATFORMS", ""):
        return platforms.split(",")[0] != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None


def _openvino_version() -> str:
    require_extra(EXTRA, "--engine openvino")
    return importlib.metadata.version("openvino")
