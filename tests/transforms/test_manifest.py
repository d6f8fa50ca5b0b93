"""The manifest: sums in any order, and what it refuses."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transforms.manifest import (
    PACKAGES,
    Totals,
    build_manifest,
    total,
    versions,
)
from transforms.plan import Plan
from transforms.summary import FileSummary, SliceSummary
from transforms.tokenizing import SumSummaries
from vqgan.errors import UserError
from vqgan.manifest import read_manifest, write_manifest

PLAN = Plan({"version": 2}, slices=3, entries=30)


def summary(number: int, rejects: int = 0, seconds: float | None = 2.0) -> SliceSummary:
    reject_file = FileSummary(f"rejects-{number}", rejects, 9, "r") if rejects else None
    return SliceSummary(
        number=number,
        planned=10,
        images=10 - rejects,
        shard=FileSummary(f"tokens-{number}", 10 - rejects, 100 + number, "s"),
        reject_file=reject_file,
        reject_reasons=Counter({"b: x": rejects, "a: y": rejects} if rejects else {}),
        token_bytes=50,
        histogram=np.array([number, 1, 0, 3]),
        seconds=seconds,
    )


SUMMARIES = [summary(0), summary(1, 2), summary(2, 1, None)]


def built(totals: Totals) -> dict[str, Any]:
    manifest = build_manifest(PLAN, totals, {"fingerprint": "f"}, (1, 2))
    return {name: value for name, value in manifest.items() if name != "finished"}


def test_sums() -> None:
    manifest = built(total(SUMMARIES))
    assert manifest["counts"] == {"planned": 30, "images": 27, "rejects": 3, "rows": 27, "tokens": 15}
    assert manifest["codebook"]["histogram"] == [3, 3, 0, 9]
    assert manifest["codebook"]["used"] == 3
    share = np.array([3, 3, 9]) / 15
    assert manifest["codebook"]["entropy_bits"] == pytest.approx(-(share * np.log2(share)).sum())
    assert manifest["storage"] == {"bytes": 303, "token_bytes": 150, "bits_per_token": 80.0}
    assert manifest["throughput"] == {"images": 18, "worker_seconds": 4.0, "images_per_second": 4.5}
    assert manifest["plan_hash"] == PLAN.hash
    assert json.loads(json.dumps(manifest)) == manifest


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_order_does_not_matter(order: tuple[int, ...]) -> None:
    shuffled = [SUMMARIES[number] for number in order]
    assert json.dumps(built(total(shuffled))) == json.dumps(built(total(SUMMARIES)))


@pytest.mark.parametrize("cut", range(4))
def test_combining_in_parts(cut: int) -> None:
    combine = SumSummaries()

    def accumulate(part: list[SliceSummary]) -> Totals:
        accumulator = combine.create_accumulator()
        for entry in part:
            accumulator = combine.add_input(accumulator, entry)
        return accumulator

    parts = [accumulate(SUMMARIES[cut:]), combine.create_accumulator(), accumulate(SUMMARIES[:cut])]
    merged = combine.extract_output(combine.merge_accumulators(parts))
    assert json.dumps(built(merged)) == json.dumps(built(total(SUMMARIES)))


def test_summaries_are_not_changed() -> None:
    before = SUMMARIES[0].histogram.copy()
    built(total(SUMMARIES))
    np.testing.assert_array_equal(SUMMARIES[0].histogram, before)


@pytest.mark.parametrize("present", [[], SUMMARIES[:2], [*SUMMARIES, SUMMARIES[0]]])
def test_shards_that_do_not_make_the_plan(present: list[SliceSummary]) -> None:
    with pytest.raises(UserError, match="do not make the plan's 3 of 30"):
        built(total(present))


def test_no_tokens_at_all() -> None:
    manifest = build_manifest(Plan({}, 0, 0), Totals(), {}, (1, 1))
    assert manifest["storage"]["bits_per_token"] == 0
    assert manifest["throughput"]["images_per_second"] == 0
    assert manifest["codebook"]["perplexity"] == 0


def test_round_trip(tmp_path: Path) -> None:
    assert read_manifest(str(tmp_path)) is None
    manifest = build_manifest(PLAN, total(SUMMARIES), {}, (1, 2))
    write_manifest(str(tmp_path), manifest)
    assert read_manifest(str(tmp_path)) == manifest


def test_versions() -> None:
    found = versions()
    assert set(found) == {"python", *PACKAGES}
    assert found["jax"][0].isdigit()
