"""What the manifests of all sharded jobs have in common; written last, from what the shards hold."""

import datetime
import functools
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from typing import Any

from transforms.sharded.plan import Plan
from transforms.sharded.summary import SliceTotals
from vqgan.errors import UserError
from vqgan.html_page import Tile
from vqgan.manifest import FORMAT_VERSION
from vqgan.token_layouts import GRID, layout_of

PACKAGES = ("vqgan-pipelines", "apache-beam", "jax", "jaxlib", "flax", "numpy", "pyarrow", "pillow")


def common_parts(
    plan: Plan, totals: SliceTotals, codec: Mapping[str, Any], grid: tuple[int, int]
) -> dict[str, Any]:
    """Returns the parts of a manifest, as JSON data, that every job has.

    Args:
      plan: the plan that was carried out.
      totals: of all its slices.
      codec: JSON data about the codec, for readers.
      grid: ``(h, w)`` of each row's tokens.

    Raises:
      UserError: the slices do not add up to the plan.
    """
    check_complete(plan, totals)
    layout = layout_of(codec.get("config") or {})
    return {
        "version": FORMAT_VERSION,
        "plan_hash": plan.hash,
        "identity": plan.identity,
        "codec": dict(codec),
        "grid": list(grid),
        **({} if layout == GRID else {"layout": layout}),
        "counts": {
            "planned": totals.planned,
            "images": totals.images,
            "rejects": sum(entry["rows"] for entry in totals.rejects),
            "rows": totals.rows,
        },
        "shards": by_name(totals.shards),
        "rejects": by_name(totals.rejects),
        "reject_reasons": by_count(totals.reasons),
        "throughput": describe_throughput(totals.new_images, totals.seconds),
        "versions": versions(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def describe_throughput(images: int, seconds: float) -> dict[str, float]:
    """Returns how fast so many images were made in so many seconds of workers."""
    return {
        "images": images,
        "worker_seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 3) if seconds else 0.0,
    }


def layout_tile(manifest: Mapping[str, Any]) -> Tile:
    """Returns the number of a report that says how the tokens of one image lie."""
    height, width = manifest["grid"]
    layout = manifest.get("layout", GRID)
    if layout == GRID:
        return Tile("grid", f"{height} × {width}", "tokens of one image")
    return Tile(layout, f"{width:,}", "tokens of one image")


def check_complete(plan: Plan, totals: SliceTotals) -> None:
    """Refuses sums that are not those of the whole plan.

    Raises:
      UserError: the shards do not add up to the plan.
    """
    if len(totals.shards) != plan.slices or totals.planned != plan.entries:
        raise UserError(
            f"{len(totals.shards)} shards of {totals.planned} entries do not make the plan's "
            f"{plan.slices} of {plan.entries}; run the same command again"
        )


def by_name(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns JSON entries of files in the order of their names."""
    return sorted(entries, key=lambda entry: entry["name"])


def by_count(reasons: Mapping[str, int]) -> dict[str, int]:
    """Returns how often each reason occurs, the most frequent first, equal ones by name."""
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def versions() -> dict[str, str]:
    """Returns versions of Python and of the packages that made the tokens."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


@functools.cache  # reading what is installed takes longer than writing a small data set
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
