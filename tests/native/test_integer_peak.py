"""The integer peak, under every fraction that is printed, is the machine's and not the compiler's.

GCC once kept the sums of the loop on the stack: each dot waited for a store, and "0.9 of the peak"
was 0.4 of it.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from places import TESTS

from slmq import _native
from slmq.speed.limits import MOST

SOURCE = TESTS / "cpp" / "integer_peak.cpp"
ISAS = ("avx2", "avxvnni", "avx512vnni")  # that the other loop knows
SPELL_S = 0.05
PATIENCE_S = 20.0

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or shutil.which("c++") is None,
    reason="needs a C++ compiler for x86-64",
)


@pytest.fixture(scope="module")
def assembly_loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that finds the same peak by a loop that no compiler has touched."""
    program = tmp_path_factory.mktemp("peak") / "integer_peak"
    subprocess.run(
        ["c++", "-std=c++20", "-O1", "-Wall", "-Wextra", str(SOURCE), "-o", str(program)],
        check=True,
    )
    return program


@pytest.mark.parametrize("isa", ISAS)
def test_the_peak_is_what_another_loop_finds(assembly_loop: Path, isa: str) -> None:
    """Best pass against best pass; on a busy machine both take turns until they agree."""
    if _native.isa_tables().get(isa) is None:
        pytest.skip(f"this CPU does not run {isa}")
    own = other = 0.0
    began = time.monotonic()
    while own == 0.0 or not 1 / MOST <= own / other <= MOST:
        assert time.monotonic() - began < PATIENCE_S, f"{own:.0f} against {other:.0f} GMAC/s"
        own = max(own, _native.integer_peak_gmac_per_s(1, isa, SPELL_S))
        told = subprocess.run(
            [str(assembly_loop), isa, str(SPELL_S)], check=True, capture_output=True, text=True
        )
        other = max(other, float(told.stdout))
