"""What several benchmarks need: what a commit and a CPU can run, and inputs.

Benchmarks run against old commits too. What one of them lacks is a skip, never a failure: asv
skips a benchmark whose `setup` raises NotImplementedError.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
import numpy.typing as npt

ISAS = ["scalar", "avx2", "avxvnni", "avx512vnni", "amx_int8"]
THREADS = [1, 2, 4]  # those that the machine lacks are skipped


def need(module: str, name: str | None = None) -> Any:
    """A module of slmq, or a name in it; a skip where this commit has none."""
    try:
        found = importlib.import_module(module)
        return found if name is None else getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise NotImplementedError(f"this commit lacks {module} {name or ''}: {error}") from error


def need_threads(threads: int) -> None:
    """Skips what needs more CPUs than this process may use."""
    have = len(os.sched_getaffinity(0))
    if threads > have:
        raise NotImplementedError(f"{threads} threads need as many CPUs, here are {have}")


def need_isa(isa: str) -> Any:
    """The kernel table of an instruction set; skips one that the CPU lacks."""
    table = need("slmq._native", "isa_tables")().get(isa)
    if table is None:
        raise NotImplementedError(f"this CPU lacks {isa}")
    return table


def need_own_curve() -> None:
    """Skips where SLMQ_ISA would only repeat the curve of the CPU's best instruction set.

    The matrix of asv.conf.json runs everything without SLMQ_ISA and with it. The second run adds
    nothing if it asks for what the CPU would take anyway, and cannot be had if the CPU lacks it.
    """
    asked = os.environ.get("SLMQ_ISA")
    if not asked:
        return
    need_isa(asked)
    tables = need("slmq._native", "isa_tables")()
    best = [name for name, table in tables.items() if table is not None][-1]
    if asked == best:
        raise NotImplementedError(f"{asked} is this CPU's best: see the curve without SLMQ_ISA")


def once_for_all_isas() -> None:
    """Skips under SLMQ_ISA: for what takes the instruction set as a parameter, or needs none."""
    if os.environ.get("SLMQ_ISA"):
        raise NotImplementedError("the same for every SLMQ_ISA: see the curve without it")


def random_rows(m: int, k: int) -> npt.NDArray[np.float32]:
    """float32[m, k], the same in every process."""
    return np.random.default_rng(7).standard_normal((m, k), dtype=np.float32)
