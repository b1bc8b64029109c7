"""How much memory is free: the machine's and the control group's word."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from slmq.machine.memory import available_memory_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GB = 10**9


def write(root: Path, **files: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text, "utf-8")


def machine(tmp_path: Path, groups: str) -> tuple[Path, Path]:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc, meminfo=f"MemTotal: 9 kB\nMemAvailable: {8 * GB // 1024} kB\n")
    write(proc / "self", cgroup=groups)
    cgroups.mkdir()
    return proc, cgroups


def test_this_machine_has_some() -> None:
    free = available_memory_bytes()
    assert free is not None
    assert 0 < free < 1 << 60


def test_without_limits_it_is_what_the_machine_has(tmp_path: Path) -> None:
    proc, cgroups = machine(tmp_path, "0::/a\n")
    write(cgroups / "a", memory__max="max\n", memory__current="5\n")
    assert available_memory_bytes(proc, cgroups) == 8 * GB // 1024 * 1024
    assert available_memory_bytes(tmp_path / "none", cgroups) is None


def test_a_group_and_those_around_it_limit_it(tmp_path: Path) -> None:
    """Version 2: the tightest of them counts; inactive file cache is free, anonymous is not."""
    proc, cgroups = machine(tmp_path, "0::/a/b\n")
    write(
        cgroups / "a", memory__max=f"{4 * GB}\n", memory__current=f"{3 * GB}\n",
        memory__stat=f"anon {2 * GB}\ninactive_file {GB // 2}\n",
    )  # fmt: skip
    write(cgroups / "a" / "b", memory__max=f"{5 * GB}\n", memory__current=f"{GB}\n")
    assert available_memory_bytes(proc, cgroups) == GB + GB // 2


def test_groups_of_version_1(tmp_path: Path) -> None:
    proc, cgroups = machine(tmp_path, "8:pids:/x\n4:memory:/not/mounted/here\n")
    write(
        cgroups / "memory", memory__limit_in_bytes=f"{2 * GB}\n",
        memory__usage_in_bytes=f"{3 * GB}\n", memory__stat="inactive_file 7\n",
    )  # fmt: skip
    assert available_memory_bytes(proc, cgroups) == 0
