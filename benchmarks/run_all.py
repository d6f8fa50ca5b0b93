"""Runs the benchmarks one after the other, keeps their figures, and prints them as one table.

Each script is a process of its own and leaves ``results/NAME.json`` with its figures, their spread, and the
machine that they are of. Where one fails or a peer is not installed, the others still run and the output
says so.

    python benchmarks/run_all.py                          # make benchmark; hours on two cores
    python benchmarks/run_all.py --only sampling size
    python benchmarks/run_all.py --table                  # what results/ holds; nothing is run
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import parser, say

HERE = Path(__file__).parent
# In the order of the table. Scripts that need a data set of the user's, or a trained prior, are not here.
SCRIPTS = (
    "whole_job",
    "pipeline",
    "decoding",
    "sampling",
    "token_reading",
    "decode_images",
    "engines",
    "peers",
    "cores",
    "convolutions",
    "size",
    "memory",
    "plan",
    "clusters",
    "import_checkpoint",
)


def run(name: str, results: Path) -> bool:
    """Runs a script; tells whether it left its figures."""
    say(f"\n== {name}")
    command = [sys.executable, str(HERE / f"{name}.py"), "--output", str(results / f"{name}.json")]
    done = subprocess.run(command, check=False)
    if done.returncode:
        say(f"== {name} FAILED with code {done.returncode}")
    return done.returncode == 0


def table(results: Path) -> list[str]:
    """Returns the lines of a table in Markdown, and under it the machines that its figures are of."""
    lines = ["| | median (least to greatest) | script |", "|---|---|---|"]
    machines: dict[str, list[str]] = {}
    for name in SCRIPTS:
        path = results / f"{name}.json"
        if not path.is_file():
            continue
        found = json.loads(path.read_text())
        lines += [f"| {row['what']} | {shown(row)} | `benchmarks/{name}.py` |" for row in found["figures"]]
        machines.setdefault(describe(found["machine"]), []).append(name)
    lines += ["", *(f"{', '.join(names)}: {machine}." for machine, names in machines.items())]
    return lines


def shown(row: dict[str, Any]) -> str:
    """Formats a figure with its spread; one round has none."""
    middle = f"{row['value']:.3g} {row['unit']}".strip()
    return middle if row["low"] == row["high"] else f"{middle} ({row['low']:.3g} to {row['high']:.3g})"


def describe(machine: dict[str, Any]) -> str:
    """Says in one line what figures were measured on."""
    processor = machine["processor"]
    features = f" ({', '.join(processor['features'])})" if processor.get("features") else ""
    packages = machine["packages"]
    return (
        f"{machine['date']}, {machine['cores']} cores of {processor['model']}{features}, JAX "
        f"{packages['jax']} on {machine['device']}, Python {machine['python']}"
    )


def main() -> None:
    """Runs what was asked for, then prints the table."""
    flags = parser("All benchmarks, and their table.")
    flags.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS), metavar="NAME")
    flags.add_argument("--results", type=Path, default=HERE / "results", help="folder of JSON files")
    flags.add_argument("--table", action="store_true", help="run nothing")
    args = flags.parse_args()
    failed = [] if args.table else [name for name in args.only if not run(name, args.results)]
    say("\n" + "\n".join(table(args.results)))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
