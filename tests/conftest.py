"""Fixtures that all tests share: a toy codec with random weights, and the form of a user's error."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

from tests.faulty import KILLS
from vqgan.config import ModelConfig
from vqgan.errors import UserError

if TYPE_CHECKING:
    from vqgan.codec import Codec

# No test depends on how fast the machine is: Hypothesis would fail one that is slow once.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

# What tests compile is kept for the other worker and the next run, inside of the checkout.
os.environ.setdefault(
    "VQGAN_COMPILATION_CACHE", str(Path(__file__).parent.parent / ".pytest_cache" / "compiled")
)

Refused = Callable[[str], AbstractContextManager[None]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was killed, which faults were injected, and which blocks of the documents were run."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    calls = [report for report in reports if getattr(report, "when", "") == "call"]
    properties = [pair for report in calls for pair in report.user_properties]
    killed = Counter[str]()
    for report in reports:  # of a test's end, when all are counted
        if getattr(report, "when", "") == "teardown":
            killed.update(*(value for name, value in report.user_properties if name == "kills"))
    if killed:
        terminalreporter.section("Processes ended by SIGKILL")
        terminalreporter.line(f"{killed.total()}: " + ", ".join(f"{n} {who}" for who, n in killed.items()))
    if faults := [str(value) for name, value in properties if name == "faults"]:
        terminalreporter.section("Faults and damage")
        for value in faults:
            terminalreporter.line(value)
    found = [str(value) for name, value in properties if name == "documented block"]
    if not found:
        return
    marked = [value for value in found if ": marked: " in value]
    changed = [value for value in found if ": run, changed: " in value]
    plain = len(found) - len(marked) - len(changed)
    terminalreporter.section("README and docs")
    terminalreporter.line(
        f"{plain} blocks and commands run as they stand, {len(changed)} with declared changes, "
        f"{len(marked)} marked"
    )
    for value in sorted(changed + marked):
        terminalreporter.line(value)


@pytest.fixture(autouse=True)
def _kills_are_told(record_property: Callable[[str, object], None]) -> Iterator[None]:
    yield
    if KILLS:
        record_property("kills", dict(KILLS))
        KILLS.clear()


@pytest.fixture(scope="session")
def refused() -> Refused:
    """A context that expects a :class:`UserError` of one line which matches a pattern."""

    @contextlib.contextmanager
    def expect(match: str) -> Iterator[None]:
        with pytest.raises(UserError, match=match) as caught:
            yield
        assert "\n" not in str(caught.value)

    return expect


@pytest.fixture(scope="session", autouse=True)
def _compiled_programs() -> None:
    """Has JAX take what other tests, or an earlier run of them, have compiled."""
    from vqgan.compilation_cache import enable_compilation_cache

    enable_compilation_cache()


@pytest.fixture(scope="module")
def few_optimizations() -> Iterator[None]:
    """For modules that compile much and run it little: XLA optimizes less, in child processes too."""
    import jax

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        before = jax.config.values["jax_disable_most_optimizations"]
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session", autouse=True)
def _late_reads() -> Iterator[None]:
    """Drops what Orbax's reads say when it gave up on a damaged or unlike folder before them.

    They end after the event loop that waited for them, or when their memory is collected: at any time, so
    in any test.
    """
    plain = sys.unraisablehook
    late = ("Event loop is closed", "Encountered error while reading array index")

    def hook(unraisable: Any) -> None:
        if not str(unraisable.exc_value).startswith(late):
            plain(unraisable)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = plain


@pytest.fixture(scope="session")
def toy_config() -> ModelConfig:
    from tests.toy_codec import TOY_WITH_ATTENTION

    return TOY_WITH_ATTENTION


@pytest.fixture(scope="session")
def toy_images() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that keep the size of activations."""
    noise = rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]) if len(shape) > 1 else 400)
    return np.asarray(noise + name.endswith("scale"), np.float32)


@pytest.fixture(scope="session")
def toy_weights(toy_config: ModelConfig, toy_images: np.ndarray) -> dict[str, Any]:
    """Random weights, none of them zero; the codes lie on latents, so that tokens are diverse."""
    import jax
    from flax import nnx

    from vqgan.codec_checkpoint import module_state
    from vqgan.model.vqgan import VQGAN, normalize

    rng = np.random.default_rng(0)
    model = nnx.eval_shape(lambda: VQGAN(toy_config, rngs=nnx.Rngs(0)))
    weights: dict[str, Any] = {}
    for part in ("encoder", "quantizer", "decoder"):
        flat_state = nnx.to_flat_state(nnx.state(getattr(model, part), nnx.Param))
        shapes = {".".join(map(str, path)): tuple(param.shape) for path, param in flat_state}
        weights[part] = {name: _random(rng, name, shape) for name, shape in shapes.items()}
    state = module_state(model.encoder, weights["encoder"], "toy")
    graph = nnx.graphdef(model.encoder)
    encode = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
    latents = np.asarray(encode(state, normalize(toy_images, toy_config.input_range)))
    flat = latents.reshape(-1, toy_config.embed_dim)
    weights["quantizer"]["codebook"] = flat[rng.choice(len(flat), toy_config.codebook_size, replace=False)]
    return weights


@pytest.fixture(scope="session")
def toy_path(
    toy_config: ModelConfig, toy_weights: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of the toy codec. Tests that damage it work on a copy."""
    from vqgan.codec_checkpoint import save_codec

    return save_codec(tmp_path_factory.mktemp("codecs") / "toy", toy_config, toy_weights).path


@pytest.fixture(scope="session")
def toy_codec(toy_path: Path) -> "Codec":
    from vqgan.codec import Codec

    return Codec.load(toy_path, batch_size=4)
