"""Recipes side by side, and quantizers at equal bits a token: the same pictures, model, steps and seeds.

The reference's recipe is that of taming-transformers (arXiv 2012.09841): a codebook of random numbers, beta
on the codebook's term, a patch discriminator with hinge loss and adaptive weight, a constant rate, no
averages. Ours is that of the preset cpu-64. Quantizers learn by pixels alone. What a preset gives in steps
is taken as a share of the run. Finished runs are lines in the work folder: the same command goes on after
them.

    python benchmarks/training_data.py photos/ --textures
    python benchmarks/recipes.py photos/ --work recipes-work --output benchmarks/results/recipes.json
    python benchmarks/recipes.py --tables docs/training.md           # tables anew, from the results
"""

import argparse
import dataclasses
import itertools
import json
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import add_output, finished, parser, say, write_results

from pipelines.evaluating.evaluate_codecs import EvaluateConfig, run_evaluation
from pipelines.evaluating.evaluation_metrics import MetricChoice
from pipelines.training.training_codec import TrainRequest, run_codec_training
from transforms.sources import SourceConfig
from vqgan.compilation_cache import enable_compilation_cache

RESULTS = Path(__file__).parent / "results" / "recipes.json"
PRESET = "cpu-64"
STEPS = 192
ABOUT_EQUAL = 1.1  # times, up to which two recipes take equal time
PARTS = ("recipes", "quantizers", "placement")
BEGIN, END = "<!-- recipes -->", "<!-- end of recipes -->"
SIZES = (1024, 16_384)
QUALITY_SIZE, USAGE_SIZE = 64, 256  # pixels of validation images: for pictures, and for tokens enough
QUALITY = ("psnr", "lpips-alex", "lpips-vgg", "frechet")
MEASURES = ("psnr", "lpips_alex", "lpips_vgg", "frechet_efficientnet_lite0", "used", "perplexity")
SHARED = (
    "train.batch_size=16", "train.log_every=50", "data.crop_size=32", "data.max_short_side=128",
    "data.validation_limit=16", "data.threads=1", "model.ch=8", "model.norm_groups=2",
    "model.z_channels=32", "model.embed_dim=8",
)  # fmt: skip
REFERENCE = (
    "train.ema_decay=0", "optimizer.schedule=constant", "optimizer.warmup_steps=0", "optimizer.b1=0.5",
    "optimizer.b2=0.9", "optimizer.clip_norm=0", "loss.l2=0", "loss.perceptual=1", "loss.legacy=true",
    "codebook.autoencoder_steps=0", "codebook.revive_every=0", "adversarial.weight=0.8",
    "adversarial.lecam=0", "discriminator.channels=64", "discriminator.layers=3",
    "discriminator_optimizer.learning_rate=0.001", "discriminator_optimizer.warmup_steps=0",
    "discriminator_optimizer.clip_norm=0",
)  # fmt: skip
PIXELS = ("loss.perceptual=0", "adversarial.weight=0", "train.best=psnr")
QUANTIZERS: Mapping[str, tuple[str, ...]] = {
    "nearest": (),
    "nearest, rotation trick": ("codebook.rotation=true",),
    "ema": ("model.quantizer=ema",),
    "cosine": ("model.quantizer=cosine",),
    "fsq": ("model.quantizer=fsq", "model.fsq_levels=[4,4,4,4,4]", "model.embed_dim=5"),
    "lfq": ("model.quantizer=lfq", "model.embed_dim=10", "loss.entropy=0.1"),
    "gumbel": ("model.quantizer=gumbel",),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """A recipe at one size of the codebook.

    Attributes:
      part: ``recipes`` or ``quantizers``.
      name: what it is called in tables.
      codes: size of the codebook.
      steps: of its runs.
      settings: what differs from the preset.
    """

    part: str
    name: str
    codes: int
    steps: int
    settings: tuple[str, ...]

    def key(self, seed: int) -> dict[str, Any]:
        """Returns what a run's line is known by."""
        return {**dataclasses.asdict(self), "settings": [*SHARED, *self.settings], "seed": seed}


def ours(steps: int) -> tuple[str, ...]:
    """Returns the preset's steps as shares of a run: of 2,400, a codebook after 200, averages over 200 …"""
    return (
        f"codebook.autoencoder_steps={steps // 12}",
        f"codebook.revive_every={max(1, steps // 12)}",
        f"optimizer.warmup_steps={steps // 24}",
        f"train.ema_decay={1 - 12 / steps:.4f}",
        f"codebook.temperature_steps={steps}",
    )


def recipe_arms(steps: int, network: str) -> list[Arm]:
    """Returns both recipes without their discriminators, at both sizes, and with them at the smaller one.

    A discriminator comes in after 5 parts of 8, as in the preset: the published start lies beyond such a run.
    """
    recipes = {"reference": REFERENCE, "ours": ours(steps)}
    kinds = (
        (", no discriminator", SIZES, "adversarial.weight=0"),
        ("", SIZES[:1], f"adversarial.start={steps * 5 // 8}"),
    )
    return [
        Arm("recipes", name + kind, codes, steps, (*settings, f"loss.perceptual_network={network}", start))
        for kind, sizes, start in kinds
        for codes, (name, settings) in itertools.product(sizes, recipes.items())
    ]


def quantizer_arms(steps: int) -> list[Arm]:
    """Returns the quantizers, each of 1,024 codes."""
    return [
        Arm("quantizers", name, SIZES[0], steps, (*ours(steps), *PIXELS, *settings))
        for name, settings in QUANTIZERS.items()
    ]


def placement_arms(steps: int, network: str) -> list[Arm]:
    """Returns our recipe with many codes: all placed at the start, and once more after nine tenths of it."""
    (ours_alone,) = [
        arm
        for arm in recipe_arms(steps, network)
        if arm.codes == SIZES[1] and arm.name == "ours, no discriminator"
    ]
    once = dataclasses.replace(ours_alone, part="placement", name="codes placed once")
    again = (*once.settings, "codebook.place_again=0.9")
    stricter = (*again, "codebook.least_share=0.5")
    return [
        once,
        dataclasses.replace(once, name="codes placed again", settings=again),
        dataclasses.replace(once, name="codes placed again, least share 0.5", settings=stricter),
    ]


def equal_time(arm: Arm, runs: Sequence[Mapping[str, Any]], network: str) -> Arm | None:
    """Returns the cheaper recipe with as many steps as take the other's time.

    Args:
      arm: of our recipe.
      runs: finished ones.
      network: of LPIPS.

    Returns:
      None where both take about as long, or it is not known yet: the first run compiles.
    """
    times: dict[str, list[float]] = {arm.name.replace("ours", "reference"): [], arm.name: []}
    for run in runs:
        if run["name"] in times and (run["codes"], run["steps"]) == (arm.codes, arm.steps):
            times[run["name"]].append(run["seconds"])
    if min(map(len, times.values())) < 2:
        return None
    cheaper, dearer = sorted(times, key=lambda name: min(times[name]))
    ratio = min(times[dearer]) / min(times[cheaper])
    if ratio < ABOUT_EQUAL:
        return None
    longer = recipe_arms(round(arm.steps * ratio / 12) * 12, network)
    (same,) = [one for one in longer if (one.name, one.codes) == (cheaper, arm.codes)]
    return dataclasses.replace(same, name=f"{cheaper}, equal time")


def train_and_measure(arm: Arm, seed: int, data: str, folder: Path) -> dict[str, Any]:
    """Trains once and measures the codec on validation images."""
    shutil.rmtree(folder, ignore_errors=True)
    lengths = [f"train.{name}={arm.steps}" for name in ("steps", "evaluate_every", "save_every")]
    codes = f"model.codebook_size={arm.codes}"
    settings = (*SHARED, codes, *arm.settings, *lengths, f"train.seed={seed}")
    started = time.process_time()
    request = TrainRequest(
        source=SourceConfig(data), output=str(folder), preset=PRESET, settings=settings, quiet=True
    )
    finished(run_codec_training(request))
    seconds = time.process_time() - started
    shutil.rmtree(folder / "checkpoints")
    return {**arm.key(seed), "seconds": round(seconds, 1), **measure(str(folder), data)}


def measure(codec: str, data: str) -> dict[str, float]:
    """Returns the metrics of :data:`MEASURES`; how codes are used is seen in many tokens alone."""
    tokens = _evaluated(codec, data, USAGE_SIZE, ("psnr",))
    found = _evaluated(codec, data, QUALITY_SIZE, QUALITY)
    found |= {"used": tokens["codes_used"], "perplexity": tokens["perplexity"]}
    return {name: round(found[name], 4) for name in MEASURES}


def _evaluated(codec: str, data: str, size: int, metrics: tuple[str, ...]) -> dict[str, float]:
    config = EvaluateConfig(
        source=SourceConfig(data), codecs=(codec,), image_size=size, split="validation",
        choice=MetricChoice(metrics), threads=1, batch_size=16, quiet=True,
    )  # fmt: skip
    found = run_evaluation(config)["codecs"][0]["metrics"]
    return {name: metric["value"] for name, metric in found.items()}


class Record:
    """Finished runs: lines of a file.

    Args:
      path: of the file.
    """

    def __init__(self, path: Path):
        self._path = path
        path.touch()

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Returns all runs, those of another process included that works on another part."""
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def has(self, key: Mapping[str, Any]) -> bool:
        """Tells whether a run is finished."""
        return any(key.items() <= run.items() for run in self.runs)

    def add(self, run: dict[str, Any]) -> None:
        """Writes a finished run."""
        with self._path.open("a") as file:
            file.write(json.dumps(run) + "\n")


def remaining(record: Record, seeds: int, args: argparse.Namespace) -> Iterator[tuple[Arm, int]]:
    """Yields what is to be trained: arms with one seed, then with the next; what takes longest at the end."""
    recipes = recipe_arms(args.steps, args.network) if "recipes" in args.only else []
    quantizers = quantizer_arms(args.steps) if "quantizers" in args.only else []
    placement = placement_arms(args.steps, args.network) if "placement" in args.only else []
    cheap = [arm for arm in recipes if arm.name.endswith("no discriminator")]
    dear = [arm for arm in recipes if arm not in cheap]
    for arms in (cheap, quantizers, placement, dear):
        yield from ((arm, seed) for seed in range(seeds) for arm in arms)
    for seed, arm in itertools.product(range(seeds), recipes):
        if arm.name.startswith("ours") and (same_time := equal_time(arm, record.runs, args.network)):
            yield same_time, seed


# Tables


def tables(results: Mapping[str, Any]) -> str:
    """Returns the tables, as docs/training.md has them."""
    runs = results["runs"]
    parts = [
        table([run for run in runs if run["part"] == part], with_codes=part != "quantizers") for part in PARTS
    ]
    return "\n\n".join(part for part in parts if part)


def table(runs: Sequence[Mapping[str, Any]], with_codes: bool) -> str:
    """Returns rows of means over seeds, with half of the range of the seeds."""
    heads = ["codes", "recipe"] if with_codes else ["quantizer"]
    heads += ["seeds", "steps", "processor time", "PSNR, dB", "LPIPS (AlexNet)", "LPIPS (VGG)", "Fréchet"]
    heads += ["codes used", "perplexity"]
    lines = [heads, ["---"] * len(heads)]
    names = dict.fromkeys((run["codes"], run["name"]) for run in runs)
    for codes, name in sorted(names, key=lambda one: one[0]):
        of_arm = [run for run in runs if (run["codes"], run["name"]) == (codes, name)]
        lines.append([*([f"{codes:,}"] if with_codes else []), name, *_cells(of_arm)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if names else ""


def _cells(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    values = {name: [run[name] for run in runs] for name in MEASURES}
    used = [run["used"] / run["codes"] * 100 for run in runs]
    return [
        f"{len(runs)}",
        f"{runs[0]['steps']:,}",
        f"{min(run['seconds'] for run in runs):.0f} s",
        _mean(values["psnr"], ".2f"),
        _mean(values["lpips_alex"], ".3f"),
        _mean(values["lpips_vgg"], ".3f"),
        _mean(values["frechet_efficientnet_lite0"], ".1f"),
        f"{_mean(used, '.1f')} %",
        _mean(values["perplexity"], ",.0f"),
    ]


def _mean(values: Sequence[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ± {(max(values) - min(values)) / 2:{form}}"


def put_tables(page: Path, results: Mapping[str, Any]) -> None:
    """Replaces what stands between the marks of a page."""
    between = re.compile(rf"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    page.write_text(between.sub(lambda _: f"\n{tables(results)}\n\n", page.read_text()))


def main() -> None:
    """Trains what is not yet trained, and prints the tables."""
    flags = parser("Recipes and quantizers side by side.")
    flags.add_argument("data", nargs="?", help="training pictures, in any form that tokenize reads")
    flags.add_argument("--work", type=Path, default=Path("recipes-work"), help="folder of finished runs")
    flags.add_argument("--steps", type=int, default=STEPS)
    flags.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="part to train")
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--network", choices=("alex", "vgg"), default="alex", help="LPIPS that is trained on")
    flags.add_argument("--tables", type=Path, help="page to write recorded results into; nothing is trained")
    add_output(flags)
    args = flags.parse_args()
    if args.tables:
        put_tables(args.tables, json.loads(RESULTS.read_text()))
        return
    if args.data is None:
        flags.error("data: name the training pictures")
    enable_compilation_cache()
    args.work.mkdir(parents=True, exist_ok=True)
    record = Record(args.work / "runs.jsonl")
    for arm, seed in remaining(record, args.seeds, args):
        if not record.has(arm.key(seed)):
            folder = args.work / f"{arm.name}-{arm.codes}-{seed}".replace(", ", "-").replace(" ", "-")
            record.add(train_and_measure(arm, seed, args.data, folder))
            say(table(record.runs[-1:], with_codes=True).splitlines()[-1])
    write_results(args.output, [], steps=args.steps, network=args.network, runs=record.runs)
    say(tables({"runs": record.runs}))


if __name__ == "__main__":
    main()
