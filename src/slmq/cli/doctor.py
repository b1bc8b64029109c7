"""`slmq doctor`: what slmq finds on this machine, and what to watch out for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmq.cli import options as o
from slmq.cli.output import note, print_json, write
from slmq.errors import WriteError
from slmq.machine.disk import readable_bytes

if TYPE_CHECKING:
    from slmq.machine.selftest import TableReport

__all__ = ["check_kernels", "doctor", "examine", "warnings_of"]

LITTLE_DISK = 1_000_000_000
VARIABLES = (
    "SLMQ_ISA",
    "SLMQ_NUM_THREADS",
    "SLMQ_TUNE",
    "SLMQ_CACHE_DIR",
    "SLMQ_LOG_LEVEL",
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
)


SelfTest = Annotated[
    bool,
    typer.Option(
        "--selftest",
        help="Run every kernel and compare its results with the reference, bit for bit.",
    ),
]


Bug = Annotated[
    bool,
    typer.Option(
        "--bug", help="Print a bug report to fill in: the facts and the self test, as Markdown."
    ),
]


Tune = Annotated[
    bool,
    typer.Option(
        "--tune",
        help="Measure how far ahead weights are best fetched here, which takes two seconds, and "
        "keep it.",
    ),
]


def doctor(
    selftest: SelfTest = False, bug: Bug = False, tune: Tune = False, as_json: o.Json = False
) -> None:
    """Show the CPU, the kernels and threads chosen (and why), the cache and versions.

    Warnings name whatever costs speed. With --selftest, run every kernel that this CPU supports and
    a tiny model, and check that all results match the reference, bit for bit; the exit status is 1
    if any differs. With --tune, measure the settings of the kernels anew, on a quiet machine; no
    answer depends on them. With --bug, print all that a bug report needs, ready to paste.
    """
    if bug:
        write(bug_report())
        return
    if selftest:
        if not check_kernels(as_json):
            raise typer.Exit(1)
        return
    if tune:
        measure_tuning()
    facts = examine()
    if as_json:
        print_json(facts)
        return
    write(report(facts))
    note("found a bug? `slmq doctor --bug` prints a report to fill in and paste")


def measure_tuning() -> None:
    """As `tune`; a cache that cannot be written is the user's to mend."""
    import slmq.hub as hub
    from slmq.plan.tuning import tune

    cache = hub.cache_dir()
    try:
        tune(cache)
    except OSError as error:
        raise WriteError(f"cannot keep the measurement in {cache}: {error}") from error


def examine() -> dict[str, Any]:
    """All facts.

    Raises
    ------
    ValueError
        If SLMQ_ISA or SLMQ_NUM_THREADS asks for something impossible.
    """
    import slmq._native as _native
    import slmq.hub as hub
    from slmq.machine.memory import available_memory_bytes
    from slmq.machine.runtime import runtime_info
    from slmq.plan.tuning import ensure_tuned, tuned

    folder = hub.cache_dir()
    ensure_tuned(folder, measuring=False)
    models = hub.list_models()
    facts: dict[str, Any] = {
        **runtime_info(),
        "thread_limits": {
            key: value
            for key, value in _native.resolve_threads(None).items()
            if key not in ("threads", "why")
        },
        "tuning": asdict(tuned()),
        "memory_available_bytes": available_memory_bytes(),
        "cache": {
            "folder": str(folder),
            "writable": os.access(existing(folder), os.W_OK),
            "free_bytes": shutil.disk_usage(existing(folder)).free,
            "models": [{"name": m.name, "bytes": m.bytes} for m in models],
        },
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "executable": sys.executable,
    }
    facts["warnings"] = warnings_of(facts)
    return facts


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def warnings_of(facts: dict[str, Any]) -> list[str]:
    """What a user may want to change, of the facts of `examine`."""
    found = []
    best = facts["isa_available"][-1]
    if facts["isa"] != best:
        found.append(
            f"the {facts['isa']} kernels are forced, but this CPU also runs {best}, which is faster"
        )
    elif best == "scalar":
        found.append("this CPU only runs the portable kernels: expect a tenth of the usual speed")
    limits, threads = facts["thread_limits"], facts["threads"]
    cores, quota = limits["physical_cores"], limits["quota_cpus"]
    if quota is not None and quota < cores:
        found.append(f"the container's CPU quota ({quota:g}) is below the {cores} physical cores")
    if limits["affinity_cpus"] < cores:
        found.append(f"this process may use only {limits['affinity_cpus']} CPUs of {cores} cores")
    if threads > cores:
        found.append(f"{threads} threads on {cores} physical cores: fewer would be faster")
    cache = facts["cache"]
    if not cache["writable"]:
        found.append(f"the cache {cache['folder']} is not writable; set SLMQ_CACHE_DIR")
    if cache["free_bytes"] < LITTLE_DISK:
        found.append(f"only {readable_bytes(cache['free_bytes'])} of disk space left for the cache")
    return found


def ahead_said(setting: dict[str, Any]) -> str:
    """A setting of the kernels as a line."""
    of = f"{setting['rows']} by {setting['weights']}: "
    if setting["nbytes"] == 0:
        return f"{of}nothing is fetched ahead{_gain(setting)}"
    level = ", into the second-level cache" if setting["second_level"] else ""
    return f"{of}{setting['nbytes']} bytes ahead{level}{_gain(setting)}"


def _gain(setting: dict[str, Any]) -> str:
    gain = setting["gain"]
    return "" if gain == 1 else f" ({gain:.2f} times the built-in setting's speed)"


def report(facts: dict[str, Any]) -> str:
    """The facts as text."""
    limits, cache = facts["thread_limits"], facts["cache"]
    quota = "none" if limits["quota_cpus"] is None else f"{limits['quota_cpus']:g} CPUs"
    memory = facts["memory_available_bytes"]
    models = [f"{m['name']} ({readable_bytes(m['bytes'])})" for m in cache["models"]] or [
        "no models"
    ]
    missing = [f"not {name}: {why}" for name, why in facts["isa_missing"].items()]
    lines = [
        ("slmq", f"{facts['slmq']} on Python {facts['python']} ({facts['executable']})"),
        ("system", facts["platform"]),
        ("cpu", facts["cpu"]),
        ("features", ", ".join(facts["cpu_features"])),
        ("kernels", f"{facts['isa']}: {facts['isa_why']}"),
        ("", f"available: {', '.join(facts['isa_available'])}"),
        *(("", text) for text in missing),
        ("ahead", facts["tuning"]["why"]),
        *(("", ahead_said(setting)) for setting in facts["tuning"]["settings"]),
        ("threads", f"{facts['threads']}: {facts['threads_why']}"),
        (
            "",
            f"{limits['physical_cores']} physical cores, {limits['affinity_cpus']} CPUs allowed, "
            f"quota {quota}",
        ),
        ("memory", "unknown" if memory is None else f"{readable_bytes(memory)} available"),
        ("cache", f"{cache['folder']}, {readable_bytes(cache['free_bytes'])} free"),
        *(("", text) for text in models),
        ("versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())),
        *(("environment", f"{k}={v}") for k, v in facts["environment"].items()),
        *(("warning", text) for text in facts["warnings"]),
    ]
    return "".join(f"{label:12}{text}\n" for label, text in lines)


def bug_report() -> str:
    """What a bug report needs, as Markdown; the home folder, which names a person, is ``~``."""
    facts = report(examine()).replace(str(Path.home()), "~")
    checked = "".join(table_lines(found) for found in run_selftest())
    where = reports_go_to()
    return f"""\
<!-- Fill in the three headings{f" and open an issue at {where}" if where else ""}.
Leave out what is private: the lines below name your CPU, folders and models. -->

### What happened, and what I expected

### The command or the code, and all of its output (SLMQ_LOG_LEVEL=DEBUG shows tracebacks)

```
```

### The model (name or file, and where it is from)

### Machine

```
{facts}
{checked}```
"""


def reports_go_to() -> str | None:
    """The page for bugs that the package's metadata names."""
    from importlib.metadata import metadata

    urls = (entry.partition(", ") for entry in metadata("slmq").get_all("Project-URL") or [])
    return next((url for label, _, url in urls if label == "Issues"), None)


def run_selftest() -> Iterator[TableReport]:
    """Self test of every table of kernels that this CPU runs."""
    import slmq._native as _native
    from slmq.machine.runtime import isa
    from slmq.machine.selftest import check_table

    missing = _native.isa_missing()
    return (check_table(name) for name in isa if name not in missing)


def check_kernels(as_json: bool) -> bool:
    """Self test of all tables, printed; whether all of them are right."""
    import slmq._native as _native
    from slmq.machine.runtime import cpu_name

    missing = _native.isa_missing()
    reports = []
    if not as_json:
        write(f"{'cpu':12}{cpu_name()}\n")
    for found in run_selftest():
        reports.append(found)
        if not as_json:
            write(table_lines(found))
    ok = all(found.ok for found in reports)
    if as_json:
        tables = {
            found.isa: {
                "equal": found.equal,
                "total": found.total,
                "differing": found.differing,
                "faults": found.faults,
                "seconds": found.seconds,
            }
            for found in reports
        }
        print_json({"ok": ok, "cpu": cpu_name(), "tables": tables, "not_run": list(missing)})
        return ok
    for name, why in missing.items():
        write(f"{'not run':12}{name}: it {why}\n")
    write(
        "all results match the reference, bit for bit\n"
        if ok
        else "some results DIFFER from the reference\n"
    )
    return ok


def table_lines(found: TableReport) -> str:
    """A line for a table, and one for everything that is wrong with it."""
    lines = [f"{found.isa + ':':12}{found.equal} of {found.total} equal ({found.seconds:.1f} s)"]
    lines += [f"{'':12}differs: {name}" for name in found.differing]
    lines += [f"{'':12}inconsistent: {fault}" for fault in found.faults]
    return "\n".join(lines) + "\n"
