"""The soak in small: what dies in mid-run loses nothing and leaves nothing behind."""

import sys
from pathlib import Path

import pytest

from .soak import Soak


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_kills_lose_and_leave_nothing(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    report = Soak(tmp_path, images=600, slice_size=10, kills=3).run()
    assert (report.rows, report.rejects, report.broken) == (588, 12, 12)
    assert (report.worker_kills, report.launcher_kills) == (2, 1)
    assert report.left == ()
    assert report.early_bytes > 0
    assert report.late_bytes > 0
