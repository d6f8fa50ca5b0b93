"""Recipes side by side: docs/training.md shows what was recorded, and every arm can be trained."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines.training.training_codec import configure_codec_training

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("recipes")


def _run(**fields: Any) -> dict[str, Any]:
    run = {"part": "recipes", "name": "ours", "codes": 1024, "steps": 100, "seconds": 9.6}
    quality = {"psnr": 20.0, "lpips_alex": 0.3, "lpips_vgg": 0.4, "frechet_efficientnet_lite0": 200.0}
    return {**run, **quality, "used": 512, "perplexity": 300.0, **fields}


def test_the_page_shows_what_was_recorded(recipes: ModuleType) -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    results = json.loads(recipes.RESULTS.read_text())
    shown = page.partition(recipes.BEGIN)[2].partition(recipes.END)[0].strip()
    assert shown == recipes.tables(results)
    assert f"{results['steps']} steps" in page


def test_tables_are_put_between_the_marks(recipes: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{recipes.BEGIN}\n\nold\n\n{recipes.END}\n\nafter\n")
    results = {"runs": [_run()]}
    recipes.put_tables(page, results)
    assert page.read_text() == (
        f"before\n\n{recipes.BEGIN}\n\n{recipes.tables(results)}\n\n{recipes.END}\n\nafter\n"
    )


def test_a_row_has_means_and_half_of_the_range_of_the_seeds(recipes: ModuleType) -> None:
    runs = [_run(psnr=20.0), _run(psnr=21.0, used=1024, seconds=4.4), _run(psnr=20.5, name="reference")]
    rows = recipes.table(runs, with_codes=True).splitlines()[2:]
    assert rows == [
        "| 1,024 | ours | 2 | 100 | 4 s | 20.50 ± 0.50 | 0.300 ± 0.000 | 0.400 ± 0.000 | 200.0 ± 0.0 "
        "| 75.0 ± 25.0 % | 300 ± 0 |",
        "| 1,024 | reference | 1 | 100 | 10 s | 20.50 ± 0.00 | 0.300 ± 0.000 | 0.400 ± 0.000 | 200.0 ± 0.0 "
        "| 50.0 ± 0.0 % | 300 ± 0 |",
    ]


def test_every_arm_is_a_configuration(recipes: ModuleType) -> None:
    arms = [*recipes.recipe_arms(144, "vgg"), *recipes.quantizer_arms(144)]
    for arm in arms:
        steps, codes = f"train.steps={arm.steps}", f"model.codebook_size={arm.codes}"
        config = configure_codec_training(recipes.PRESET, (*recipes.SHARED, codes, *arm.settings, steps))
        assert config.model.codebook_size == arm.codes
        if arm.part == "recipes":
            assert config.loss.perceptual_network == "vgg"
            assert (config.adversarial.weight == 0) == arm.name.endswith("no discriminator")
            assert config.loss.legacy == arm.name.startswith("reference")


def test_finished_runs_are_not_done_again(recipes: ModuleType, tmp_path: Path) -> None:
    arm = recipes.quantizer_arms(144)[0]
    recipes.Record(tmp_path / "runs.jsonl").add({**arm.key(0), "seconds": 1.0})
    again = recipes.Record(tmp_path / "runs.jsonl")
    assert again.has(arm.key(0))
    assert not again.has(arm.key(1))
    assert not again.has(recipes.quantizer_arms(288)[0].key(0))


@pytest.mark.parametrize(("kind", "codes"), [("", 1024), (", no discriminator", 16_384)])
@pytest.mark.parametrize("cheaper", ["ours", "reference"])
def test_equal_time_follows_from_what_was_measured(
    recipes: ModuleType, kind: str, codes: int, cheaper: str
) -> None:
    arms = {arm.name: arm for arm in recipes.recipe_arms(144, "alex") if arm.codes == codes}
    arm = arms[f"ours{kind}"]

    def runs(of: str, *seconds: float, **fields: Any) -> list[dict[str, Any]]:
        own = {"name": of + kind, "codes": codes, "steps": 144, **fields}
        return [_run(seconds=one, **own) for one in seconds]

    (dearer,) = {"ours", "reference"} - {cheaper}
    once = [*runs(cheaper, 30), *runs(dearer, 60)]
    assert recipes.equal_time(arm, once, "alex") is None  # both have compiled
    other = [*runs(cheaper, 1, steps=100), *runs(cheaper, 1, codes=7)]
    same_time = recipes.equal_time(arm, [*runs(cheaper, 70, 30), *runs(dearer, 90, 60), *other], "alex")
    assert (same_time.steps, same_time.codes) == (288, codes)
    assert same_time.name == f"{cheaper}{kind}, equal time"
    assert same_time.settings[-1] == ("adversarial.weight=0" if kind else "adversarial.start=180")
    assert recipes.equal_time(arm, [*runs(cheaper, 30, 30), *runs(dearer, 31, 32)], "alex") is None
