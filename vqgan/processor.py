"""What is known of the processor that this process runs on."""

import os
import platform
from pathlib import Path

_FIELDS = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",
)  # fmt: skip


def available_cores() -> int:
    """Returns the number of cores that this process may use: on Linux by its affinity, else all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def describe_processor() -> str:
    """Returns what the system says of the first processor, its features above all, in lines."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            first = file.read(1 << 16).split("\n\n")[0]
    except OSError:
        return f"{platform.processor()} {platform.version()}"
    lines = [line.split(":", 1) for line in first.splitlines() if ":" in line]
    return "\n".join(f"{name.strip()}:{value}" for name, value in lines if name.strip() in _FIELDS)
