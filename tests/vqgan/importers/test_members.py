"""A model within a checkpoint is found by its parameters, whatever it is called and stands beside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqgan import UserError
from vqgan.importers import ImportedCodec, import_checkpoint
from vqgan.importers.registry import is_averaged


@pytest.fixture(scope="module")
def raw(foreign: Any) -> dict[str, np.ndarray]:
    """A model as a state dict in taming's names."""
    config = foreign.config_for("taming")
    return foreign.foreign_tensors("taming", config, foreign.random_weights(config))


@pytest.fixture(scope="module")
def averaged(raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: 0.5 * value for name, value in raw.items()}


@pytest.fixture
def imported(foreign: Any, tmp_path: Path) -> Callable[..., ImportedCodec]:
    """Writes a tree as a torch checkpoint and imports it."""

    def run(tree: Any, options: str = "") -> ImportedCodec:
        foreign.write_torch_zip(tmp_path / "m.pt", tree)
        return import_checkpoint(f"{tmp_path / 'm.pt'}{options}")

    return run


def codebook(found: ImportedCodec) -> np.ndarray:
    return found.weights["quantizer"]["codebook"]


DISCRIMINATOR = {"main.0.weight": np.ones((2, 3, 4, 4), np.float32)}
MOMENTS = {"state": {"0": {"exp_avg": np.ones(3, np.float32)}}, "param_groups": [{"lr": 0.1}]}
PLACES: dict[str, Callable[[Any], Any]] = {
    "bare": lambda model: model,
    "bare beside others": lambda model: {**model, "optimizer": MOMENTS, "critic": DISCRIMINATOR, "epoch": 3},
    **{
        name: lambda model, name=name: {name: model, "optimizer": MOMENTS, "epoch": 3, "D": DISCRIMINATOR}
        for name in ("model_state_dict", "vae", "net", "vq_model", "weights", "tokenizer", "Ünicode", "0")
    },
    "deep": lambda model: {"a": {"b": {"c": {"model": model}}, "lpips": DISCRIMINATOR}},
    "prefixed": lambda model: {
        "state_dict": {f"net.vq.{n}": v for n, v in model.items()} | {"lin.w": MOMENTS}
    },
    "beside in the same state dict": lambda model: {
        "state_dict": model | {f"{n}.x.weight": np.ones(3, np.float32) for n in ("lpips", "perceptual_loss")}
    },
    "distributed": lambda model: {"module": {f"module.{name}": value for name, value in model.items()}},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_model_is_found_wherever_it_stands(place: str, raw: Any, imported: Any) -> None:
    found = imported(PLACES[place](raw))
    np.testing.assert_array_equal(codebook(found), raw["quantize.embedding.weight"])
    others = found.origin.get("unused_parts", [])
    if "optimizer" in PLACES[place](raw):
        assert "optimizer" in others
        assert len(others) == 2
    assert (place in ("bare", "distributed")) == (not others)


WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_dropped_wherever_they_stand(wrapper: str, raw: Any, imported: Any) -> None:
    def wrapped(name: str, place: int) -> str:
        parts = name.split(".")
        parts[min(place, len(parts) - 1) : 0] = [wrapper]
        return ".".join(parts)

    for place in (0, 1, 3):
        found = imported({"state_dict": {wrapped(name, place): value for name, value in raw.items()}})
        np.testing.assert_array_equal(codebook(found), raw["quantize.embedding.weight"])
    both = {f"{wrapper}.{name}": value for name, value in raw.items()} | {
        "encoder.conv_in.bias": raw["encoder.conv_in.bias"]
    }
    with pytest.raises(UserError, match=r"encoder\.conv_in\.bias with a wrapper and without"):
        imported(both)


TWINS = (
    "ema", "state_dict_ema", "model_ema", "params_ema", "ema_state_dict", "emaModel", "ema_model_0.999",
    "swa", "averaged_model", "net_EMA", "modelema", "shadow", "avg_params",
)  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_trained_weights_are_taken_unless_averaged_ones_are_asked_for(
    name: str, raw: Any, averaged: Any, imported: Any
) -> None:
    tree = {name: averaged, "net": raw}
    for options, expected in (("", raw), ("?weights=raw", raw), ("?weights=ema", averaged)):
        found = imported(tree, options)
        np.testing.assert_array_equal(codebook(found), expected["quantize.embedding.weight"])
        assert found.origin["unused_parts"] == ["net" if expected is averaged else name.split(".")[0]]
    found = imported({name: averaged})
    np.testing.assert_array_equal(codebook(found), averaged["quantize.embedding.weight"])
    assert found.origin["weights"] == "ema"


def test_averages_in_the_same_state_dict(raw: Any, averaged: Any, imported: Any) -> None:
    tree = raw | {f"ema.module.{name}": value for name, value in averaged.items()}
    for options, expected in (("", raw), ("?weights=ema", averaged)):
        np.testing.assert_array_equal(
            codebook(imported(tree, options)), expected["quantize.embedding.weight"]
        )


@pytest.mark.parametrize("name", ["net.", "schema.", "state_dict.", "", "embedding.", "mavg_pool."])
def test_names_that_mean_no_average(name: str) -> None:
    assert not is_averaged(name)


def test_what_is_not_clear_is_an_error(raw: Any, averaged: Any, imported: Any) -> None:
    with pytest.raises(UserError, match=r"holds several VQGANs \(first, second\)"):
        imported({"first": raw, "second": averaged})
    with pytest.raises(UserError, match=r"holds several VQGANs \(net_ema, swa\)"):
        imported({"net": raw, "net_ema": averaged, "swa": averaged}, "?weights=ema")
    with pytest.raises(UserError, match="it has no averaged weights"):
        imported({"net": raw}, "?weights=ema")
    with pytest.raises(UserError, match=r"theirs that we do not know: pre_quant_norm\.weight"):
        imported({"net": raw | {"pre_quant_norm.weight": np.ones(3, np.float32)}})
