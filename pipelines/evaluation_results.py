"""Results of ``vqgan evaluate`` as JSON data, as a table to read, and as CSV."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines import scoring
from pipelines.scoring import Figure
from transforms.sharded.manifest import versions

if TYPE_CHECKING:
    from pipelines.evaluating import Run

REJECTS_LISTED = 100


def describe(run: "Run") -> dict[str, Any]:
    """Everything that a run has found, as :func:`pipelines.evaluating.evaluate` returns it."""
    reference = _reference(run)
    skipped = dict(run.instruments.skipped)
    if run.reference is not None and run.reference.count < 2:
        skipped[scoring.FRECHET] = "frechet: a covariance needs at least 2 images"
    codecs = [_codec(run, number, _in_words(reference)) for number in range(len(run.codecs))]
    return {
        "reference": reference,
        "codecs": codecs,
        "skipped": skipped,
        "notes": [note for codec in codecs for note in _notes(codec)],
        "rejects": [row._asdict() for row in run.rejects[:REJECTS_LISTED]],
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _reference(run: "Run") -> dict[str, Any]:
    """Which pictures, how many of them, and how they became squares."""
    config, geometry = run.config, run.job.geometry
    reasons = Counter(f"{row.stage}: {row.error}" for row in run.rejects)
    return {
        "data": config.source.input,
        "split": config.split,
        "holdout": None if config.split == "all" else config.holdout,
        "limit": config.limit,
        "chosen": run.chosen,
        "images": len(run.keys),
        "rejects": len(run.rejects),
        "reject_reasons": dict(reasons.most_common()),
        "image_size": geometry.image_size,
        "resampling": f"{geometry.resize}, {geometry.filter}",
        "preprocessing": run.job.preprocessing(),
    }


def _in_words(reference: Mapping[str, Any]) -> str:
    """The reference set in a few words, which stand beside every figure."""
    split = reference["split"]
    if reference["holdout"]:
        split += f" (1 of {reference['holdout']} held back)"
    if reference["limit"]:
        split += f", sample of {reference['limit']}"
    return f"{reference['data']}, {split}, {reference['image_size']} px, {reference['resampling']}"


def _codec(run: "Run", number: int, reference_set: str) -> dict[str, Any]:
    codec, scores, network = run.codecs[number], run.scores[number], run.instruments.network
    figures = scoring.image_figures(scores) | scoring.codebook_figures(scores, len(run.keys))
    reference, reconstructed = run.reference, scores.features
    if network is not None and reference and reconstructed and reference.count > 1:
        figures[scoring.frechet_name(network)] = scoring.frechet_figure(network, reference, reconstructed)
    return {
        "codec": run.config.codecs[number],
        "fingerprint": codec.fingerprint,
        "downsampling": codec.config.downsampling,
        "codebook_size": codec.config.codebook_size,
        "resolution": codec.config.resolution,
        "figures": {name: {**figure, "reference_set": reference_set} for name, figure in figures.items()},
    }


def _notes(codec: Mapping[str, Any]) -> Iterator[str]:
    """What a reader has to know about single figures."""
    for name, figure in codec["figures"].items():
        if figure.get("equal_images"):
            yield (
                f"{codec['codec']}, {name}: {figure['equal_images']} of {figure['images']} reconstructions "
                "equal their originals; the mean is over the others"
            )
        if figure.get("biased"):
            yield (
                f"{codec['codec']}, {name}: {figure['images']} images are too few for "
                f"{figure['dimension']} features (singular covariances); the figure is biased, compare it "
                "over the same images only"
            )


def as_json(result: Mapping[str, Any]) -> str:
    """JSON without infinities and NaN."""
    return json.dumps(result, indent=2, allow_nan=False) + "\n"


def as_text(result: Mapping[str, Any]) -> str:
    """An aligned table, and below it what was left out and why."""
    reference = result["reference"]
    lines = list(_aligned([list(row) for row in table(result)]))
    lines += ["", f"{reference['images']} of {reference['chosen']} images measured"]
    lines += [f"rejected, {reason}: {count}" for reason, count in reference["reject_reasons"].items()]
    lines += [f"skipped {name}: {reason}" for name, reason in result["skipped"].items()]
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines)


def table(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each figure below a row of headings: name, a cell for each codec, better, n, set."""
    codecs = result["codecs"]
    rows = [("figure", *names([codec["codec"] for codec in codecs]), "better", "images", "reference set")]
    for name, figure in codecs[0]["figures"].items():
        cells = [_cell(codec["figures"][name]) for codec in codecs]
        rows.append((name, *cells, figure["better"], f"{figure['images']:,}", figure["reference_set"]))
    return rows


def names(codecs: Sequence[str]) -> list[str]:
    """Last parts of paths where those differ, else the whole paths."""
    short = [PurePath(codec).name or codec for codec in codecs]
    return short if len(set(short)) == len(short) else list(codecs)


def _cell(figure: Figure) -> str:
    value = figure["value"]
    if value is None:
        return "all equal"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f"{text} {figure['unit']}".rstrip()


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def per_image_csv(run: "Run") -> str:
    """One line for each image and codec: ``key``, ``codec``, and each per-image figure (PSNR may be inf)."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    for codec, scores in zip(run.config.codecs, run.scores, strict=True):
        values = scores.per_image
        if not sink.tell():
            writer.writerow(["key", "codec", *(name.replace("-", "_") for name in values)])
        columns = np.array(list(values.values())).T if values else np.zeros((len(run.keys), 0))
        for key, row in zip(run.keys, columns, strict=True):
            writer.writerow([key, codec, *(repr(float(value)) for value in row)])
    return sink.getvalue()
