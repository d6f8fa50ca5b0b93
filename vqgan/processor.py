"""What is known of the processor that this process runs on."""

import math
import os
import platform
from pathlib import Path

QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
_FIELDS = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",
)  # fmt: skip


def available_cores() -> int:
    """Returns the number of cores that this process may use.

    On Linux by its affinity and by the quota of its container, which may have four cores' time on a machine
    of a hundred; elsewhere all.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, _quota() or cores)


def _quota() -> int | None:
    """Returns the cores whose time a container gets, rounded up; None without a limit.

    Of the second version of Linux's control groups, as a container sees its own.
    """
    try:
        quota, period = QUOTA_FILE.read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or "max 100000"
        return None


def describe_processor() -> str:
    """Returns what the system says of the first processor, its features above all, in lines."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            first = file.read(1 << 16).split("\n\n")[0]
    except OSError:
        return f"{platform.processor()} {platform.version()}"
    lines = [line.split(":", 1) for line in first.splitlines() if ":" in line]
    return "\n".join(f"{name.strip()}:{value}" for name, value in lines if name.strip() in _FIELDS)
