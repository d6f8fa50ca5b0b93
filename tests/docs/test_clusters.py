"""What documents say of clusters: flags that Beam knows, figures that were measured. No cluster is run."""

import json
import re
from typing import Any

import pytest

from pipelines.cli import build_parser
from pipelines.options.flags import check_flags
from tests.docs.reading import ROOT, shell_words

FLAGS = re.compile(r"--runner=(?:Flink|Spark)Runner(?: +--\w+=[^\s`]+)*")
NAMED = [
    flags.replace("…", "x")
    for name in ("README.md", "docs/clusters.md")
    for flags in FLAGS.findall((ROOT / name).read_text())
]


def test_both_runners_are_named() -> None:
    assert [flags.split()[0].partition("=")[2] for flags in NAMED].count("FlinkRunner") == 1
    assert sum("SparkRunner" in flags for flags in NAMED) == 1


@pytest.mark.parametrize("flags", NAMED)
def test_flags_are_known(flags: str) -> None:
    line = f"vqgan tokenize --input gs://bucket/photos --codec tiny --output gs://bucket/tokens {flags}"
    args, unknown = build_parser().parse_known_args(shell_words(line)[1:])
    assert unknown == flags.split()
    check_flags(unknown, args.parser, beam=True)


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return found


def test_figures_of_workers_are_those_measured() -> None:
    text = (ROOT / "docs" / "clusters.md").read_text()
    for row in results("clusters")["figures"]:
        spread = "{low:.2f} to {high:.2f}".format(**row)
        assert "| {what} | {value:.2f} {unit} | ".format(**row) + f"{spread} |" in text
