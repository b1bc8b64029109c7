"""How many threads: each system's way to tell, on machines that are made up."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from slmq import _native


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


@pytest.mark.parametrize("quota", [("-1", "150000"), ("150000", "-1"), ("150000", "400000")])
def test_nested_groups_of_v1(eight_cores: Machine, quota: tuple[str, str]) -> None:
    eight_cores.write("proc/self/cgroup", "4:cpu,cpuacct:/docker/abc\n")
    eight_cores.write("proc/self/mountinfo", V1_MOUNT.format(root="/"))
    for folder, text in zip(("docker", "docker/abc"), quota, strict=True):
        base = f"sys/fs/cgroup/cpu,cpuacct/{folder}"
        eight_cores.write(f"{base}/cpu.cfs_quota_us", f"{text}\n")
        eight_cores.write(f"{base}/cpu.cfs_period_us", "100000\n")
    assert eight_cores.choose()["threads"] == 2


@pytest.mark.parametrize(
    "cpu_max", ["inf 100000", "nan 100000", "0x10000 1", "1e5 100000", "9" * 40 + " 1", "1 2 3"]
)
def test_what_is_no_decimal_number_is_no_quota(eight_cores: Machine, cpu_max: str) -> None:
    eight_cores.write("proc/self/cgroup", "0::/\n")
    eight_cores.write("proc/self/mountinfo", V2_MOUNT.format(root="/"))
    eight_cores.write("sys/fs/cgroup/cpu.max", cpu_max)
    assert eight_cores.choose()["quota_cpus"] is None


def test_hybrid_x86_where_only_efficiency_cores_are_named(machine: Machine) -> None:
    for cpu in range(6):
        machine.add_core(str(cpu), [cpu])
    machine.write("sys/devices/cpu_atom/cpus", "2-5\n")
    assert machine.choose()["threads"] == 2
    assert machine.choose([2, 3, 4])["threads"] == 3


def test_frequencies_where_there_are_no_capacities(machine: Machine) -> None:
    for cpu, khz in enumerate([1000000, 1000000, 2400000, 2400000, 1800000]):
        machine.add_core(str(cpu), [cpu])
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        machine.write(f"{folder}/cpufreq/cpuinfo_max_freq", f"{khz}\n")
    assert machine.choose()["threads"] == 3
    machine.write("sys/devices/system/cpu/cpu3/cpufreq/cpuinfo_max_freq", "<unknown>\n")
    assert machine.choose()["threads"] == 5, "one that does not tell: nothing is known"
    for cpu in range(5):
        machine.write(f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", "1024\n")
    assert machine.choose()["threads"] == 5, "capacities are the better word"


def test_siblings_that_leave_the_cpu_out_are_not_believed(machine: Machine) -> None:
    for cpu in range(4):
        machine.add_core("x" if cpu % 2 else "7", [cpu])
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        machine.write(f"{folder}/core_id", f"{cpu // 2}\n")
    assert machine.choose()["physical_cores"] == 2


def test_equal_core_numbers_on_several_dies(machine: Machine) -> None:
    for cpu in range(4):
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        for name, value in (("physical_package_id", 0), ("die_id", cpu // 2), ("core_id", cpu % 2)):
            machine.write(f"{folder}/{name}", f"{value}\n")
        machine.cpus.append(cpu)
    assert machine.choose()["physical_cores"] == 4


def test_damaged_files_are_survived(eight_cores: Machine) -> None:
    """Any byte of any file may be anything: the answer stays within what the affinity allows."""
    eight_cores.write("proc/self/cgroup", "4:cpu,cpuacct:/a/b\n0::/c/d\n")
    eight_cores.write("proc/self/mountinfo", V2_MOUNT.format(root="/c") + V1_MOUNT.format(root="/"))
    eight_cores.write("sys/fs/cgroup/d/cpu.max", "600000 100000\n")
    eight_cores.write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "700000\n")
    eight_cores.write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n")
    eight_cores.write("sys/devices/cpu_core/cpus", "0-3,8-11\n")
    for cpu in eight_cores.cpus:
        eight_cores.write(f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", "1024\n")
    assert eight_cores.choose()["threads"] == 4
    files = sorted(path for path in eight_cores.root.rglob("*") if path.is_file())
    dice = random.Random(6)
    for _ in range(1500):
        file = dice.choice(files)
        whole = file.read_bytes()
        at = dice.randrange(len(whole) + 1)
        strange = dice.choice([b"", b"\0", b"-", b"\\0", b":", b"9" * 30, b"\n", dice.randbytes(5)])
        file.write_bytes(whole[:at] + strange + whole[dice.randrange(at, len(whole) + 1) :])
        choice = eight_cores.choose()
        assert (
            1 <= choice["threads"] <= choice["performance_cores"] <= choice["physical_cores"] <= 16
        )
        assert choice["quota_cpus"] is None or choice["quota_cpus"] > 0
        file.write_bytes(whole)


# --- macOS ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sysctl", "threads", "why"),
    [
        # Apple M1: four of each kind
        (
            {"hw.logicalcpu": 8, "hw.physicalcpu": 8, "hw.perflevel0.physicalcpu": 4},
            4,
            "4 performance cores of 8 physical cores",
        ),
        # Intel: two hardware threads a core, no performance levels
        ({"hw.logicalcpu": 16, "hw.physicalcpu": 8}, 8, "8 physical cores behind 16 CPUs"),
        # nothing but CPUs, or numbers that cannot be
        ({"hw.logicalcpu": 6}, 6, "6 CPUs (which of them share a core is unknown)"),
        ({"hw.logicalcpu": 6, "hw.physicalcpu": 9}, 6, "6 CPUs"),
        ({"hw.logicalcpu": 6, "hw.physicalcpu": -1}, 6, "6 CPUs"),
        (
            {"hw.logicalcpu": 6, "hw.physicalcpu": 6, "hw.perflevel0.physicalcpu": 7},
            6,
            "6 physical cores",
        ),
    ],
)
def test_macos(sysctl: dict[str, int], threads: int, why: str) -> None:
    choice = _native.choose_threads_macos(sysctl)
    assert choice["threads"] == threads
    assert choice["why"].startswith(why)


def test_macos_that_tells_nothing() -> None:
    assert _native.choose_threads_macos({})["threads"] >= 1


@pytest.mark.parametrize(
    ("callers", "workers"),
    [(0x00, 0x19), (0x15, 0x19), (0x21, 0x21), (0x19, 0x19), (0x11, 0x11), (0x09, 0x09)],
)
def test_workers_are_as_urgent_as_their_maker_asks(callers: int, workers: int) -> None:
    """Unspecified and default become user-initiated; utility and background stay so."""
    assert _native.worker_quality(callers) == workers


# --- Windows -------------------------------------------------------------------------------


def core_record(mask: int, *, group: int = 0, efficiency: int = 0, kind: int = 0) -> bytes:
    """SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX of one core, as 64-bit Windows lays it out."""
    smt = mask.bit_count() > 1
    return struct.pack("<II BB20xH QH6x", kind, 48, smt, efficiency, 1, mask, group)


def windows(records: list[bytes], group: int = 0, mask: int = (1 << 64) - 1) -> dict[str, Any]:
    return _native.choose_threads_windows(b"".join(records), group, mask)


def test_windows_hardware_threads_count_once() -> None:
    choice = windows([core_record(3 << (2 * core)) for core in range(4)])
    assert (choice["threads"], choice["affinity_cpus"]) == (4, 8)
    assert choice["why"] == "4 physical cores behind 8 CPUs"


def test_windows_hybrid() -> None:
    fast = [core_record(3 << (2 * core), efficiency=1) for core in range(2)]
    slow = [core_record(1 << cpu) for cpu in range(4, 8)]
    assert windows(fast + slow)["why"] == "2 performance cores of 6 physical cores behind 8 CPUs"
    assert windows(fast + slow, mask=0xF0)["threads"] == 4, "efficiency cores alone are used"
    assert windows(fast + slow, mask=0x12)["threads"] == 1


def test_windows_processor_groups() -> None:
    cores = [core_record(1 << cpu, group=group) for group in (0, 1) for cpu in range(3 + group)]
    assert windows(cores, group=0)["threads"] == 3
    assert windows(cores, group=1)["threads"] == 4
    assert windows(cores, mask=0)["threads"] == 7, "a process in several groups has no mask"
    assert windows(cores, group=1, mask=0b11)["threads"] == 2


def test_windows_other_records_are_skipped() -> None:
    cache = core_record(0xFF, kind=2)
    assert windows([cache, core_record(1), cache, core_record(2)])["threads"] == 2


def test_windows_damaged_records_are_survived() -> None:
    whole = b"".join(core_record(3 << (2 * core), efficiency=core % 2) for core in range(6))
    assert "unknown" in windows([])["why"]
    dice = random.Random(7)
    for _ in range(2000):
        damaged = bytearray(whole[: dice.randrange(len(whole) + 1)])
        for _ in range(dice.randrange(4)):
            if damaged:
                damaged[dice.randrange(len(damaged))] = dice.choice([0, 1, 7, 8, 255])
        choice = windows([bytes(damaged)])
        assert 1 <= choice["threads"] <= max(choice["affinity_cpus"], 1) <= 6 * 64


# --- names of ARM cores --------------------------------------------------------------------


def cpuinfo(*cores: tuple[int, int]) -> str:
    """As Linux on 64-bit ARM writes /proc/cpuinfo: implementer and part of each CPU."""
    return "".join(
        f"processor\t: {cpu}\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd evtstrm aes\n"
        f"CPU implementer\t: {implementer:#04x}\nCPU architecture: 8\nCPU variant\t: 0x3\n"
        f"CPU part\t: {part:#05x}\nCPU revision\t: 1\n\n"
        for cpu, (implementer, part) in enumerate(cores)
    )


def arm_name(machine: Machine) -> str:
    return _native.arm_cpu_name(str(machine.root / "proc"), str(machine.root / "sys"))


@pytest.mark.parametrize(
    ("cores", "name"),
    [
        ([(0x41, 0xD0C)] * 64, "Arm Neoverse-N1"),  # Graviton 2, Ampere Altra
        ([(0x41, 0xD40)] * 2, "Arm Neoverse-V1"),  # Graviton 3
        ([(0x41, 0xD08)] * 4, "Arm Cortex-A72"),  # Raspberry Pi 4
        ([(0xC0, 0xAC3)] * 8, "Ampere-1"),
        # Rockchip RK3588
        ([(0x41, 0xD05)] * 4 + [(0x41, 0xD0B)] * 4, "4 x Arm Cortex-A76, 4 x Arm Cortex-A55"),
        ([(0x61, 0x22)] * 4 + [(0x61, 0x23)] * 4, "4 x Apple M1 Firestorm, 4 x Apple M1 Icestorm"),
        ([(0x99, 0x123)], "ARM core 0x99:0x123"),  # of tomorrow
    ],
)
def test_arm_names_from_cpuinfo(machine: Machine, cores: list[tuple[int, int]], name: str) -> None:
    machine.write("proc/cpuinfo", cpuinfo(*cores))
    assert arm_name(machine) == name


def test_arm_names_from_the_register(machine: Machine) -> None:
    for cpu, midr in enumerate([0x412FD050, 0x412FD050, 0x414FD0B1]):
        folder = f"sys/devices/system/cpu/cpu{cpu}/regs/identification"
        machine.write(f"{folder}/midr_el1", f"{midr:#018x}\n")
    machine.write("proc/cpuinfo", "processor : 0\nmodel name : something else\n")
    assert arm_name(machine) == "1 x Arm Cortex-A76, 2 x Arm Cortex-A55"
    assert _native.arm_core_name(0x410FD083) == "Arm Cortex-A72"


def test_arm_without_a_word_has_no_name(machine: Machine) -> None:
    assert arm_name(machine) == ""
    machine.write("proc/cpuinfo", "CPU implementer : 65\nCPU part : 0xd08\nCPU part\n:\n\n")
    assert arm_name(machine) == ""


def test_arm_damaged_cpuinfo_is_survived(machine: Machine) -> None:
    whole = cpuinfo((0x41, 0xD05), (0x41, 0xD0B)).encode()
    dice = random.Random(8)
    file = machine.root / "proc" / "cpuinfo"
    machine.write("proc/cpuinfo", "")
    for _ in range(500):
        at = dice.randrange(len(whole))
        file.write_bytes(whole[:at] + dice.randbytes(2) + whole[at + dice.randrange(9) :])
        name = arm_name(machine)
        assert name == "" or name.isprintable()
