"""What the commands around asv share: the machine's name, the configuration, results by name."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "asv.conf.json"
RESULTS = ROOT / "asv_bench" / "results"

NOISE = r"\((R|TM)\)|@.*|\bCPU\b|\bProcessor\b|\d+-Core"  # in the names that CPUs give themselves
# AMD's families to microarchitectures: cloud machines often hide the model behind "AMD EPYC".
ZEN = {
    23: ((0x30, "Zen"), (0x100, "Zen2")),
    25: ((0x10, "Zen3"), (0x20, "Zen4"), (0x60, "Zen3"), (0x100, "Zen4")),
    26: ((0x100, "Zen5"),),
}

Key = tuple[str, tuple[str, ...]]


def cpu_fields(cpuinfo: str) -> dict[str, str]:
    """The first CPU's lines of /proc/cpuinfo."""
    lines = (line.partition(":") for line in cpuinfo.split("\n\n", maxsplit=1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def machine_name(cpuinfo: str, cpus: int) -> str:
    """A name by the CPU's model, such as "AMD-EPYC-Zen3-2c"; never the host's.

    Examples
    --------
    >>> machine_name("model name : Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 2)
    'Intel-Xeon-Platinum-8481C-2c'
    """
    fields = cpu_fields(cpuinfo)
    name = re.sub(NOISE, " ", fields.get("model name", ""))
    words = re.findall(r"[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*", name) or ["unknown", "CPU"]
    if fields.get("vendor_id") == "AuthenticAMD":
        family, model = int(fields.get("cpu family", 0)), int(fields.get("model", 0))
        words += [zen for end, zen in ZEN.get(family, ()) if model < end][:1]
    return "-".join([*words, f"{cpus}c"])


def this_machine() -> dict[str, str]:
    """What asv notes about a machine: nothing of it names a host or a person."""
    text, cpus = Path("/proc/cpuinfo").read_text("utf-8"), len(os.sched_getaffinity(0))
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "machine": machine_name(text, cpus),
        "os": platform.system(),
        "arch": platform.machine(),
        "cpu": cpu_fields(text).get("model name", "unknown"),
        "num_cpu": str(cpus),
        "ram": f"{ram:.0f} GiB",
    }


def asv(arguments: Sequence[str]) -> int:
    """Runs asv in the repository; returns its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "asv", *arguments], cwd=ROOT, check=False
    ).returncode


def register_machine() -> str:
    """Tells asv about this machine (in ~/.asv-machine.json); returns its name."""
    try:
        from asv.machine import MachineCollection  # type: ignore[import-untyped]
    except ImportError as error:
        raise SystemExit(f"asv is not installed: pip install '.[bench]' ({error})") from error
    machine = this_machine()
    # Not by `asv machine`: it leaves out what equals its own guess.
    MachineCollection.save(machine["machine"], machine)
    return machine["machine"]


def git(*arguments: str) -> str:
    """Output of a git command; ends the program if it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def read_config() -> dict[str, Any]:
    """asv.conf.json without its comment lines."""
    lines = CONFIG.read_text("utf-8").splitlines()
    kept = "\n".join(line for line in lines if not line.lstrip().startswith("//"))
    config: dict[str, Any] = json.loads(kept)
    return config


def write_config(folder: Path, *, best_isa_only: bool = False, **changes: Any) -> Path:
    """asv.conf.json for this machine, somewhere else: same environments, same builds.

    The curve of a lower instruction set goes where the CPU has none that is higher: its benchmarks
    would all be skipped, one process each.

    Parameters
    ----------
    folder : Path
        Where the file goes.
    best_isa_only : bool
        No curves of other instruction sets at all.
    changes
        Settings of asv.conf.json to replace.
    """
    config = read_config()
    for key in ("repo", "benchmark_dir", "env_dir", "results_dir", "html_dir"):
        config[key] = str(ROOT / config[key])
    if best_isa_only or "avx512_vnni" not in Path("/proc/cpuinfo").read_text("utf-8"):
        del config["matrix"]["env_nobuild"]["SLMQ_ISA"]
    config |= changes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "asv.conf.json"
    path.write_text(json.dumps(config, indent=4), "utf-8")
    return path


def read_results(folder: Path, commit: str) -> dict[Key, float | None]:
    """All results of a commit on one machine: None where a benchmark failed, skips left out.

    Parameters
    ----------
    folder : Path
        The results of one machine.
    commit : str
        Full hash.
    """
    found: dict[Key, float | None] = {}
    for path in sorted(folder.glob(f"{commit[:8]}-*.json")):
        content = json.loads(path.read_text("utf-8"))
        columns = content["result_columns"]
        for name, row in content["results"].items():
            entry = dict(zip(columns, row, strict=False))
            found |= _one_benchmark(name, entry)
    return found


def _one_benchmark(name: str, entry: dict[str, Any]) -> dict[Key, float | None]:
    combinations: Iterable[tuple[str, ...]] = product(*entry.get("params") or [])
    values = entry["result"]
    if values is None:  # failed for all parameters
        return {(name, params): None for params in combinations}
    pairs = zip(combinations, values, strict=True)
    return {(name, p): v for p, v in pairs if v is None or not math.isnan(v)}
