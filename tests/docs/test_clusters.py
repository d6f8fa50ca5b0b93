"""Flags of runners that README and docs/clusters.md name: Beam knows them. No cluster is run."""

import re

import pytest

from pipelines.cli import build_parser
from pipelines.flags import check_flags
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
