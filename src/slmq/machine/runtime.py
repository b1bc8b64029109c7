"""What runs here: CPU, kernels, threads, versions."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from typing import Any

import slmq._native as _native

MEMORY_POLICY = (
    "packed folders are mapped, other weights are packed into 2 MiB pages; memory= overrides this"
)


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
        "isa_why": f"SLMQ_ISA={forced}" if forced else "the best that this CPU supports",
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
