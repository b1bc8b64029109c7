"""How many threads, why, and how the pool behaves."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from slmq import _native

REPO = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


def run_python(code: str) -> str:
    """Run code in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the choice, on made-up machines --------------------------------------------------------


@dataclass
class Machine:
    """Trees like /proc and /sys in a folder."""

    root: Path
    cpus: list[int] = field(default_factory=list)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def add_core(self, siblings: str, cpus: list[int], capacity: int | None = None) -> None:
        for cpu in cpus:
            folder = f"sys/devices/system/cpu/cpu{cpu}"
            self.write(f"{folder}/topology/thread_siblings_list", f"{siblings}\n")
            if capacity is not None:
                self.write(f"{folder}/cpu_capacity", f"{capacity}\n")
            self.cpus.append(cpu)

    def choose(self, affinity: list[int] | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = _native.choose_threads(
            proc_root=str(self.root / "proc"),
            sys_root=str(self.root / "sys"),
            affinity=self.cpus if affinity is None else affinity,
        )
        return choice


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def eight_cores(machine: Machine) -> Machine:
    """8 cores with 2 hardware threads each, numbered as Linux does: 0 and 8, 1 and 9, ..."""
    for core in range(8):
        machine.add_core(f"{core},{core + 8}", [core, core + 8])
    return machine


def test_hardware_threads_of_a_core_count_once(eight_cores: Machine) -> None:
    choice = eight_cores.choose()
    assert choice == {
        "threads": 8,
        "why": "8 physical cores behind 16 CPUs",
        "affinity_cpus": 16,
        "physical_cores": 8,
        "performance_cores": 8,
        "quota_cpus": None,
    }


@pytest.mark.parametrize(
    ("affinity", "threads"),
    [([0], 1), ([0, 8], 1), ([8], 1), ([0, 1], 2), ([0, 1, 8, 9, 12], 3), ([5, 13, 6, 14, 7], 3)],
)
def test_only_cores_within_the_affinity(
    eight_cores: Machine, affinity: list[int], threads: int
) -> None:
    choice = eight_cores.choose(affinity)
    assert choice["threads"] == threads
    assert choice["affinity_cpus"] == len(affinity)


def test_cpu_numbers_beyond_1024(machine: Machine) -> None:
    machine.add_core("1500", [1500])
    machine.add_core("2047", [2047])
    assert machine.choose()["threads"] == 2


def test_cores_by_id_where_siblings_are_missing(machine: Machine) -> None:
    for cpu, (package, core) in enumerate([(0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (1, 1)]):
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        machine.write(f"{folder}/physical_package_id", f"{package}\n")
        machine.write(f"{folder}/core_id", f"{core}\n")
        machine.cpus.append(cpu)
    assert machine.choose()["physical_cores"] == 4


def test_no_topology_counts_cpus_and_says_so(machine: Machine) -> None:
    choice = machine.choose([0, 1, 2])
    assert choice["threads"] == 3
    assert "unknown" in choice["why"]


def test_no_cpu_at_all_is_one_thread(machine: Machine) -> None:
    assert machine.choose([])["threads"] == 1


def test_hybrid_x86_takes_performance_cores(machine: Machine) -> None:
    for core in range(4):
        machine.add_core(f"{2 * core}-{2 * core + 1}", [2 * core, 2 * core + 1])
    for cpu in range(8, 16):
        machine.add_core(str(cpu), [cpu])
    machine.write("sys/devices/cpu_core/cpus", "0-7\n")
    machine.write("sys/devices/cpu_atom/cpus", "8-15\n")
    choice = machine.choose()
    assert (choice["threads"], choice["physical_cores"]) == (4, 12)
    assert choice["why"] == "4 performance cores of 12 physical cores behind 16 CPUs"
    assert machine.choose([7, 8, 9])["threads"] == 1
    assert machine.choose([9, 10, 11])["threads"] == 3, "efficiency cores alone are used"


def test_arm_drops_cores_below_half_of_the_fastest(machine: Machine) -> None:
    for cpu, capacity in enumerate([279, 279, 279, 279, 905, 905, 905, 1024]):
        machine.add_core(str(cpu), [cpu], capacity)
    choice = machine.choose()
    assert (choice["threads"], choice["physical_cores"]) == (4, 8)
    assert machine.choose([0, 1, 2, 3])["threads"] == 4, "slow cores alone are used"
    assert machine.choose([0, 1, 4])["threads"] == 1


V2_MOUNT = "31 23 0:28 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.mark.parametrize(
    ("cpu_max", "threads", "quota"),
    [
        ("max 100000", 8, None),
        ("30000 100000", 1, 0.3),
        ("100000 100000", 1, 1.0),
        ("150000 100000", 2, 1.5),
        ("400000 100000", 4, 4.0),
        ("25000 5000", 5, 5.0),
        ("3200000 100000", 8, 32.0),
        ("", 8, None),
        ("lots", 8, None),
        ("-1 100000", 8, None),
        ("100000 0", 8, None),
    ],
)
def test_cgroup_v2_quota(
    eight_cores: Machine, cpu_max: str, threads: int, quota: float | None
) -> None:
    eight_cores.write("proc/self/cgroup", "0::/app\n")
    eight_cores.write("proc/self/mountinfo", V2_MOUNT.format(root="/"))
    eight_cores.write("sys/fs/cgroup/app/cpu.max", f"{cpu_max}\n")
    choice = eight_cores.choose()
    assert (choice["threads"], choice["quota_cpus"]) == (threads, quota)
    assert ("quota" in choice["why"]) is (quota is not None)


@pytest.mark.parametrize("level", ["", "/system.slice", "/system.slice/app.service"])
def test_the_tightest_quota_on_the_way_up_wins(eight_cores: Machine, level: str) -> None:
    eight_cores.write("proc/self/cgroup", "0::/system.slice/app.service\n")
    eight_cores.write("proc/self/mountinfo", V2_MOUNT.format(root="/"))
    for folder in ["", "/system.slice", "/system.slice/app.service"]:
        quota = 200000 if folder == level else 600000
        eight_cores.write(f"sys/fs/cgroup{folder}/cpu.max", f"{quota} 100000\n")
    eight_cores.write("sys/fs/cgroup/system.slice/other/cpu.max", "100000 100000\n")
    assert eight_cores.choose()["threads"] == 2


@pytest.mark.parametrize(
    ("group", "root"),
    [
        ("/", "/"),  # a container with its own namespace
        ("/docker/abc", "/docker/abc"),  # one that sees the host's path
        ("/docker/abc", "/docker/other"),  # one that sees a path its mount does not have
        ("/docker/abcdef", "/docker/abc"),
        ("/../elsewhere", "/"),
        ("no-slash", "/"),
    ],
)
def test_quota_inside_a_container(eight_cores: Machine, group: str, root: str) -> None:
    eight_cores.write("proc/self/cgroup", f"0::{group}\n")
    eight_cores.write("proc/self/mountinfo", V2_MOUNT.format(root=root))
    eight_cores.write("sys/fs/cgroup/cpu.max", "300000 100000\n")
    assert eight_cores.choose()["threads"] == 3


@pytest.mark.parametrize(("quota", "threads"), [("-1", 8), ("250000", 3), ("50000", 1)])
def test_cgroup_v1_quota(eight_cores: Machine, quota: str, threads: int) -> None:
    eight_cores.write(
        "proc/self/cgroup", "9:name=systemd:/\n4:cpu,cpuacct:/docker/abc\n3:cpuset:/\n0::/\n"
    )
    eight_cores.write(
        "proc/self/mountinfo",
        V1_MOUNT.format(root="/docker/abc")
        .replace("cpu,cpuacct rw", "cpuset rw")
        .replace("rw,cpu,cpuacct", "rw,cpuset")
        + V1_MOUNT.format(root="/docker/abc"),
    )
    eight_cores.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", f"{quota}\n")
    eight_cores.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    eight_cores.write("sys/fs/cgroup/cpuset/cpu.cfs_quota_us", "100000\n")
    eight_cores.write("sys/fs/cgroup/cpuset/cpu.cfs_period_us", "100000\n")
    assert eight_cores.choose()["threads"] == threads


def test_a_mount_point_with_blanks(eight_cores: Machine) -> None:
    eight_cores.write("proc/self/cgroup", "0::/\n")
    eight_cores.write(
        "proc/self/mountinfo",
        V2_MOUNT.format(root="/").replace("/sys/fs/cgroup", "/sys/fs/c\\040group"),
    )
    eight_cores.write("sys/fs/c group/cpu.max", "200000 100000\n")
    assert eight_cores.choose()["threads"] == 2


def test_odd_files_are_no_quota(eight_cores: Machine) -> None:
    eight_cores.write("proc/self/cgroup", "\n:\n0:\n0::\nnonsense\n")
    eight_cores.write("proc/self/mountinfo", "\n - \n1 2 3 - cgroup2\n" + "x" * 5000)
    assert eight_cores.choose()["threads"] == 8


# --- what is asked for ---------------------------------------------------------------------


def test_a_request_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMQ_NUM_THREADS", "5")
    assert _native.resolve_threads(3)["threads"] == 3
    choice = _native.resolve_threads(None)
    assert (choice["threads"], choice["why"]) == (5, "SLMQ_NUM_THREADS=5")
    monkeypatch.setenv("SLMQ_NUM_THREADS", "")
    assert _native.resolve_threads(None) == _native.choose_threads()


@pytest.mark.parametrize("requested", [0, -1, 1025, 10**12])
def test_an_impossible_request(requested: int) -> None:
    with pytest.raises(ValueError, match=rf"n_threads: expected .* 1\.\.1024, got {requested}"):
        _native.resolve_threads(requested)


@pytest.mark.parametrize("text", ["0", "-2", "1025", "two", "2.0", " 2", "2x", "9" * 30])
def test_an_impossible_environment(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SLMQ_NUM_THREADS", text)
    with pytest.raises(ValueError, match=rf"SLMQ_NUM_THREADS: expected .*1024, got '{text}'"):
        _native.resolve_threads(None)
    assert _native.resolve_threads(2)["threads"] == 2


@LINUX
def test_this_machine_bound_to_one_cpu() -> None:
    out = run_python(
        "import os; os.sched_setaffinity(0, {max(os.sched_getaffinity(0))});"
        "from slmq import _native; c = _native.choose_threads();"
        "print(c['threads'], c['affinity_cpus'], c['physical_cores'])"
    )
    assert out.split() == ["1", "1", "1"]


@LINUX
def test_this_machine() -> None:
    choice = _native.choose_threads()
    assert choice["affinity_cpus"] == len(os.sched_getaffinity(0))
    assert 1 <= choice["threads"] <= choice["physical_cores"] <= choice["affinity_cpus"]


# --- the pool -------------------------------------------------------------------------------


def test_wrong_pool_sizes() -> None:
    for threads in (0, 1025):
        with pytest.raises(ValueError, match=rf"1\.\.1024, got {threads}"):
            _native.time_barriers(threads, 1)
    with pytest.raises(ValueError, match="at least 1 barrier, got 0"):
        _native.time_barriers(2, 0)


def test_callers_from_several_threads_queue() -> None:
    seconds: list[float] = []
    callers = [
        threading.Thread(target=lambda n=n: seconds.append(_native.time_barriers(n, 500)))
        for n in (1, 2, 2, 3, 3, 5)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert len(seconds) == len(callers)
    assert all(s > 0 for s in seconds)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_child_of_a_fork_has_its_own_threads() -> None:
    out = run_python(
        "import os, warnings\n"
        "warnings.simplefilter('ignore')\n"  # newer Pythons warn of threads and fork
        "from slmq import _native\n"
        "_native.time_barriers(3, 100)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    _native.time_barriers(3, 100)\n"
        "    os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "_native.time_barriers(3, 100)\n"
    )
    assert out.split() == ["7"]


def test_nothing_spins_while_idle() -> None:
    out = run_python(
        "import time\n"
        "from slmq import _native\n"
        "_native.time_barriers(4, 100)\n"
        "start = time.process_time()\n"
        "time.sleep(1)\n"
        "print(time.process_time() - start)\n"
    )
    assert float(out) < 0.05


@LINUX
def test_workers_have_names_and_leave_signals_alone() -> None:
    out = run_python(
        "import pathlib, signal\n"
        "from slmq import _native\n"
        "_native.time_barriers(3, 10)\n"
        "for task in pathlib.Path('/proc/self/task').iterdir():\n"
        "    status = dict(l.split(':\\t', 1) for l in (task / 'status').open() if ':\\t' in l)\n"
        "    blocked = int(status['SigBlk'], 16)\n"
        "    bits = [blocked >> (s - 1) & 1 for s in (signal.SIGINT, signal.SIGSEGV)]\n"
        "    if status['Name'].startswith('slmq-'):\n"
        "        print(status['Name'].strip(), *bits)\n"
    )
    assert sorted(out.splitlines()) == ["slmq-1 1 0", "slmq-2 1 0"]


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() != "x86_64",
    reason="sets MXCSR through fenv_t of x86-64 Linux",
)
def test_another_library_switched_the_floating_point_mode() -> None:
    libm = ctypes.CDLL("libm.so.6")
    environment = (ctypes.c_uint32 * 8)()  # x87 state, then MXCSR
    assert libm.fegetenv(environment) == 0
    saved = environment[7]
    flush_and_round_up = 0x1F80 | 0x8040 | 0x4000
    environment[7] = flush_and_round_up
    try:
        assert libm.fesetenv(environment) == 0
        results = _native.probe_fp_mode(3)
        assert libm.fegetenv(environment) == 0
        after = environment[7]
    finally:
        environment[7] = saved
        libm.fesetenv(environment)
    assert results == [(0x00400000, 0x3F800000)] * 3  # 2^-127 and 1
    assert after & ~0x3F == flush_and_round_up


@pytest.mark.skipif(os.name == "nt", reason="the stress program is built with a POSIX compiler")
def test_stress_of_barrier_and_pool(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    core = REPO / "src" / "cpp" / "core"
    program = tmp_path / "pool_stress"
    subprocess.run(
        [compiler, "-std=c++20", "-O1", "-pthread", f"-I{core.parent}", "-o", str(program)]
        + [str(REPO / "tests" / "cpp" / "pool_stress.cpp")]
        + [str(core / name) for name in ("barrier.cpp", "cpu.cpp", "pool.cpp")],
        check=True,
        timeout=300,
    )
    done = subprocess.run(
        [program, "100"], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
