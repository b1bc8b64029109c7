"""The self test without Python: every kernel and a tiny model, ISA against ISA."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from slmq import _native, formats
from slmq.machine.selftest import HASHES, read_hashes

LINE = re.compile(r"(\w+) +([\w.]+) +([0-9a-f]{16})")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "src" / "cpp" / "selftest").is_dir(), reason="needs the source tree"
    ),
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="builds a static Linux executable"
    ),
]


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        timeout=1200,
    )


@pytest.fixture(scope="module")
def selftest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executable, built without Python."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("needs a C++ compiler")
    build = tmp_path_factory.mktemp("selftest")
    options = ("-DSLMQ_SELFTEST=ON", "-DSLMQ_PYTHON=OFF")
    for command in (
        ("cmake", "-S", ROOT, "-B", build, *options),
        ("cmake", "--build", build, "--parallel", "2"),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "slmq_selftest"


def hashes(output: str) -> dict[str, dict[str, str]]:
    """ISA -> kernel -> hash, from the printed lines."""
    found: dict[str, dict[str, str]] = {}
    for isa, kernel, value in (m.groups() for m in map(LINE.fullmatch, output.splitlines()) if m):
        assert kernel not in found.setdefault(isa, {}), f"{isa} {kernel} is printed twice"
        found[isa][kernel] = value
    return found


def test_every_isa_gives_the_bits_of_scalar(selftest: Path) -> None:
    done = run(selftest)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "OK"
    tiled = [f for f in formats.FORMATS.values() if f.quantized]
    assert f"amx_int8 on a model of its registers: {len(tiled)} formats" in done.stdout
    found = hashes(done.stdout)
    tables = _native.isa_tables()
    assert found.keys() == {name for name, table in tables.items() if table is not None}
    assert all(kernels == found["scalar"] for kernels in found.values())
    for name in tables.keys() - found.keys():
        assert f"{name} is not run: it needs" in re.sub(" +", " ", done.stdout)


def test_no_kernel_is_left_out(selftest: Path) -> None:
    integers = [name for name, layout in formats.FORMATS.items() if layout.quantized]
    wanted = {f"dequantize.{f}" for f in formats.FORMATS} | {"linear.f16", "linear.f32"}
    # Weights with one scale a row read activations with one a row.
    rows = {a: a.replace("g32", "r") for a in formats.ACTIVATIONS}
    for a, of_rows in rows.items():
        wanted |= {f"linear.{f}.{of_rows if f.endswith('rs') else a}" for f in integers}
        wanted |= {f"quantize.{a}", f"quantize.{of_rows}"}
    wanted |= {f"{verb}.{kv}" for verb in ("kv_append", "attend", "model") for kv in ("f16", "f32")}
    wanted |= {"rmsnorm", "layernorm", "rope", "swiglu", "geglu", "softcap", "softmax"}
    wanted |= {"gelu", "gelu_tanh", "relu", "relu2", "silu", "tanh", "xielu"}
    wanted |= {f"attend_softcap.{kv}" for kv in ("f16", "f32", "int8", "int4")}
    wanted |= {"merge", "attend_finish", "model.split"}
    assert wanted <= hashes(run(selftest).stdout)["scalar"].keys()


def test_one_isa_alone(selftest: Path) -> None:
    alone = run(selftest, "--isa", "scalar", "--threads", "1")
    assert alone.returncode == 0
    assert hashes(alone.stdout) == {"scalar": hashes(run(selftest).stdout)["scalar"]}


def test_the_shipped_hashes(selftest: Path, tmp_path: Path) -> None:
    done = run(selftest, "--against", HASHES)
    assert done.returncode == 0, done.stdout
    assert hashes(done.stdout)["scalar"] == read_hashes()
    wrong = tmp_path / "wrong"
    value = read_hashes()["rope"]
    wrong.write_text(HASHES.read_text("utf-8").replace(value, f"{int(value, 16) ^ 1:016x}"))
    done = run(selftest, "--isa", "scalar", "--against", wrong)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == f"DIFFERS: scalar rope: not the bits of {wrong}"


def test_what_it_cannot_do_it_says(selftest: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_text("rope 12345\n")
    for arguments, said in (
        (("--isa", "mmx"), "unknown ISA 'mmx'"),
        (("--all",), "usage:"),
        (("--against", tmp_path / "absent"), "cannot read"),
        (("--against", odd), "16 hex digits, got 'rope 12345'"),
    ):
        done = run(selftest, *arguments)
        assert done.returncode == 2
        assert said in done.stderr
        assert not done.stdout


def test_arm_gives_the_same_bits(selftest: Path, tmp_path: Path) -> None:
    """On emulated CPUs with and without dot and matrix products."""
    script = ROOT / "tools" / "selftest_arm.sh"
    if not all(shutil.which(p) for p in ("aarch64-linux-gnu-g++", "qemu-aarch64-static")):
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user-static")
    done = run("env", f"NATIVE={selftest}", script, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "OK"
    checked = re.findall(r"^([\w-]+) (\w+): (\d+) hashes", done.stdout, re.MULTILINE)
    assert [(cpu, isa) for cpu, isa, _ in checked] == [
        (cpu, isa)
        for cpu, isas in (
            ("cortex-a72", ("scalar", "neon")),
            ("neoverse-n1", ("scalar", "neon", "neon_dotprod")),
            ("max", ("scalar", "neon", "neon_dotprod", "neon_i8mm")),
        )
        for isa in isas
    ]
    native = hashes(run(selftest, "--isa", "scalar").stdout)["scalar"]
    assert {int(count) for *_, count in checked} == {len(native)}


def test_older_x86_cpus_run_and_answer_the_same(selftest: Path) -> None:
    """Python and slmq_selftest on CPUs without AVX, and without AVX-512."""
    if platform.machine() != "x86_64":
        pytest.skip("needs x86-64: there the same Python runs on older CPUs")
    if not any(shutil.which(name) for name in ("qemu-x86_64-static", "qemu-x86_64")):
        pytest.skip("needs qemu-user-static")
    variables = ("QUICK=1", f"SELFTEST={selftest}", f"PYTHON={sys.executable}")
    done = run("env", *variables, ROOT / "tools" / "older_cpus.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "OK"
    count = len(read_hashes())
    for said in (
        "Nehalem: dies of AVX, as the real one would",
        f"qemu64: slmq_selftest, scalar: {count} hashes are the package's",
        f"Haswell: slmq_selftest, avx2: {count} hashes are the package's",
        "Nehalem: SLMQ_ISA=avx2 is an error, and says why",
    ):
        assert said in lines
    answers = [line.partition(":")[0] for line in lines if ": the same answer" in line]
    tables = [name for name, table in _native.isa_tables().items() if table is not None]
    assert answers == [f"this machine, SLMQ_ISA={name}" for name in tables] + ["Nehalem", "Haswell"]


def test_x86_tables_that_this_cpu_lacks(selftest: Path) -> None:
    """On emulated CPUs; AVX-512 without VNNI must not count, nor tiles that miscompute."""
    bochs = Path(os.environ.get("BOCHS_ROOT", "/")) / "usr/bin/bochs-bin"
    amx = bochs.is_file() and b"TDPBSSD" in bochs.read_bytes()
    user = importlib.util.find_spec("bochscpu") is not None
    if not user and not amx:
        pytest.skip("needs bochscpu-python 0.4.0, or Bochs 3.0")
    done = run("env", f"PYTHON={sys.executable}", ROOT / "tools" / "selftest_x86.sh", selftest)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "OK"
    equal = f"{len(read_hashes())} hashes are the package's"
    assert (f"arrowlake avxvnni: {equal}" in lines) is user
    assert (f"icelake avx512vnni: {equal}" in lines) is user
    assert (f"sapphire rapids amx_int8: {equal}" in lines) is amx
    refused = {line.partition(":")[0] for line in lines if ": refused, it needs" in line}
    assert ({"skylake avx512vnni", "skylake amx_int8"} <= refused) is user
    assert ("sapphire rapids, wrong tiles, amx_int8" in refused) is amx


@pytest.mark.parametrize(
    ("script", "packages"),
    [
        ("selftest_arm.sh", "g++-aarch64-linux-gnu qemu-user-static"),
        ("older_cpus.sh", "g++ python3 qemu-user-static"),
        ("selftest_x86.sh", "pip install bochscpu-python==0.4.0"),
    ],
)
def test_scripts_say_what_is_missing(script: str, packages: str, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or name)
    done = run("env", f"PATH={tools}", "bash", ROOT / "tools" / script)
    assert done.returncode == 69
    assert packages in done.stderr
