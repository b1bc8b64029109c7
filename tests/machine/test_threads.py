"""How many threads, why, and how the pool behaves."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from places import ROOT

from slmq import _native

REPO = ROOT
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
    cpp = REPO / "src" / "cpp"
    sources = ("threads/barrier.cpp", "machine/cpu.cpp", "threads/pool.cpp")
    program = tmp_path / "pool_stress"
    subprocess.run(
        [compiler, "-std=c++20", "-O1", "-pthread", f"-I{cpp}", "-o", str(program)]
        + [str(REPO / "tests" / "cpp" / "pool_stress.cpp")]
        + [str(cpp / name) for name in sources],
        check=True,
        timeout=300,
    )
    done = subprocess.run(
        [program, "100"], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
