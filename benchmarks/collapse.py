"""What the cures for codebook collapse do: the same training without them, then with them.

Prints codes used, perplexity and PSNR on held-back images of your own corpus.

    python benchmarks/collapse.py --data photos/
"""

import json
from pathlib import Path

from common import finished, parser, say, scratch

from pipelines.training.training_codec import TrainRequest, run_codec_training
from transforms.sources import SourceConfig

COMMON = ("adversarial.weight=0", "loss.perceptual=0", "train.best=psnr")
VARIANTS = {"without": ("codebook.autoencoder_steps=0", "codebook.revive_every=0"), "with": ()}


def last_figures(folder: Path) -> dict[str, float]:
    """Validation figures at the end of a run."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last: dict[str, float] = [record for record in records if "validation/psnr" in record][-1]
    return last


def main() -> None:
    """Runs every variant and prints a row for each."""
    flags = parser(__doc__ or "")
    flags.add_argument("--data", required=True, help="images, in any form that tokenize reads")
    flags.add_argument("--preset", default="cpu-64", help="training preset")
    flags.add_argument("--steps", type=int, default=800, help="steps of each run")
    args = flags.parse_args()
    say("| cures | codes used | perplexity | PSNR |\n|---|---|---|---|")
    for name, settings in VARIANTS.items():
        with scratch() as folder:
            steps = (f"train.steps={args.steps}", f"train.evaluate_every={args.steps}")
            request = TrainRequest(
                source=SourceConfig(args.data),
                output=f"{folder}/run",
                preset=args.preset,
                settings=(*COMMON, *settings, *steps),
                quiet=True,
            )
            finished(run_codec_training(request))
            found = last_figures(Path(folder) / "run")
        used, perplexity = found["validation/used_codes"], found["validation/perplexity"]
        say(f"| {name} | {used:.0f} | {perplexity:.1f} | {found['validation/psnr']:.2f} dB |")


if __name__ == "__main__":
    main()
