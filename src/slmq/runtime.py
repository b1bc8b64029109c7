"""What runs here: CPU, kernels, threads, versions."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slmq import _native

MEMORY_POLICY = (
    "packed folders are mapped, other weights are packed into 2 MiB pages; memory= overrides"
)

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")

isa: dict[str, _native.IsaTable | None] = _native.isa_tables()
"""Kernel tables by ISA name, from the plainest to the best; None if this CPU lacks the ISA."""


def cpu_name() -> str:
    """The CPU's name, or its architecture where it has none."""
    return _native.cpu_features()["brand"] or platform.processor() or platform.machine()


def runtime_info() -> dict[str, Any]:
    """Facts about this process, for people and programs.

    Raises
    ------
    ValueError
        If SLMQ_ISA or SLMQ_NUM_THREADS asks for something impossible.
    """
    features = _native.cpu_features()
    forced = os.environ.get("SLMQ_ISA")
    threads = _native.resolve_threads(None)
    return {
        "slmq": version("slmq"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_features": sorted(k for k, v in features.items() if v is True),
        "isa": _native.active_isa(),
        "isa_why": f"SLMQ_ISA={forced}" if forced else "the best that this CPU runs",
        "isa_available": [name for name, table in isa.items() if table is not None],
        "isa_missing": _native.isa_missing(),
        "threads": threads["threads"],
        "threads_why": threads["why"],
        "memory": MEMORY_POLICY,
        "versions": {name: version(name) for name in ("numpy", "tokenizers", "jinja2")},
    }


def show_runtime() -> None:
    """Prints CPU, kernels and threads and why, where weights go, and versions to stdout."""
    found = runtime_info()
    lines = [
        f"slmq {found['slmq']} on Python {found['python']}, {found['platform']}",
        f"cpu      {found['cpu']}",
        f"kernels  {found['isa']} ({found['isa_why']}); "
        f"available: {', '.join(found['isa_available'])}",
        *(f"         not {name}: {why}" for name, why in found["isa_missing"].items()),
        f"threads  {found['threads']} ({found['threads_why']})",
        f"memory   {found['memory']}",
        "versions " + ", ".join(f"{k} {v}" for k, v in found["versions"].items()),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def available_memory_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Bytes that can be had without swapping; None where the system does not tell.

    The least of what the machine has left and what the process's control group, or one around it,
    has left; file cache that can be dropped counts as free.

    Parameters
    ----------
    proc, cgroups : Path
        Where /proc and /sys/fs/cgroup are.
    """
    if sys.platform != "linux":
        return None
    found = [_numbers(proc / "meminfo").get("MemAvailable:", 0) * 1024 or None]
    for line in _lines(proc / "self" / "cgroup"):
        _, kinds, path = line.split(":", 2)
        base = cgroups / "memory" if kinds == "memory" else cgroups
        if kinds in ("", "memory"):
            group = base / path.strip("/")
            within = [g for g in (group, *group.parents) if g.is_relative_to(base)]
            found += [_group_left(folder) for folder in within]
    known = [left for left in found if left is not None]
    return min(known) if known else None


def _group_left(folder: Path) -> int | None:
    """What a control group (version 2 or 1) may still take; None without a limit."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most, used = (" ".join(_lines(folder / name)) for name in (limit, usage))
        if most.isdigit() and used.isdigit():
            stat = _numbers(folder / "memory.stat")
            cache = stat.get("total_inactive_file", stat.get("inactive_file", 0))
            return max(int(most) - int(used) + cache, 0)
    return None


def _numbers(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    words = [line.split() for line in _lines(path)]
    return {w[0]: int(w[1]) for w in words if len(w) > 1 and w[1].isdigit()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
