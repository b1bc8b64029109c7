"""How much memory is free, and how much this process has held."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def peak_memory_bytes() -> int | None:
    """Most memory that this process has held, in bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return _windows_peak()
    if sys.platform == "linux":
        # ru_maxrss of Linux survives exec, so it may be the peak of the parent; VmHWM may not.
        found = re.search(r"VmHWM:\s*(\d+) kB", _text_of(Path("/proc/self/status")))
        if found:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _windows_peak() -> int | None:
    if sys.platform != "win32":  # lets type checkers skip what only Windows has
        return None
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            ("PeakWorkingSetSize", ctypes.c_size_t),
            ("WorkingSetSize", ctypes.c_size_t),
            ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
            ("QuotaPagedPoolUsage", ctypes.c_size_t),
            ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
            ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
            ("PagefileUsage", ctypes.c_size_t),
            ("PeakPagefileUsage", ctypes.c_size_t),
        ]

    counters = Counters(cb=ctypes.sizeof(Counters))
    query = ctypes.WinDLL("kernel32").K32GetProcessMemoryInfo
    query.argtypes = [wintypes.HANDLE, ctypes.POINTER(Counters), wintypes.DWORD]
    process = ctypes.WinDLL("kernel32").GetCurrentProcess
    process.restype = wintypes.HANDLE
    if not query(process(), ctypes.byref(counters), counters.cb):
        return None
    return int(counters.PeakWorkingSetSize)


PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


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
