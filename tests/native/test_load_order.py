"""One row reads its weights in the order of their addresses, whatever the compiler thinks of it.

Hardware prefetchers follow addresses that rise. Scales lie behind the lines of a group; loaded
first, they cost up to a third of the memory's speed. The machine code tells.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from weight_loops import (
    ARM64,
    X86,
    Code,
    Instruction,
    early_scales,
    functions,
    group_loop,
    one_row_products,
)

from slmq.formats import FORMATS

X86_TABLES = ("avx2", "avxvnni", "avx512vnni")
ARM64_TABLES = {
    "neon": "-march=armv8-a",
    "neon_dotprod": "-march=armv8.2-a+dotprod",
    "neon_i8mm": "-march=armv8.2-a+dotprod+i8mm",
}
# Where a row has one scale and nothing else, it stands behind all groups.
QUANTIZED = {
    i: fmt for i, fmt in enumerate(FORMATS.values()) if fmt.quantized and (fmt.run or fmt.two_level)
}


# Products that ask memory for an adapter's matrices, or for weights that meet both planes.
FETCHING = re.compile(r"\b(low_rank_down|linear_few|pair_times_planes)\b")


def fetches(function: list[Instruction]) -> int:
    """How many instructions fetch lines."""
    return sum(at.text.startswith("prefetch") for at in function)


def in_loop(number: int) -> int:
    """Groups that a loop may have: two where they share a line of factors."""
    return 2 if number in QUANTIZED and QUANTIZED[number].half_line else 1


def late_lines(path: Path, code: Code, expected: set[int]) -> dict[str, list[str]]:
    """Formats whose loop loads scales before lines, and which loads."""
    found = {
        number: early_scales(group_loop(function, code), code, in_loop(number))
        for number, function in one_row_products(path, code)
    }
    assert found.keys() >= expected
    return {QUANTIZED[i].name: found[i] for i in expected if found[i]}


on_each_x86_table = pytest.mark.parametrize("isa", X86_TABLES)
on_x86 = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() != "x86_64",
    reason="reads objects of x86-64",
)


def object_of(objects: dict[str, list[Path]], isa: str) -> Path:
    if isa not in objects:
        pytest.skip("this compiler does not know it")
    (path,) = objects[isa]
    return path


@on_x86
@on_each_x86_table
def test_scales_come_behind_the_lines_of_their_group(
    objects: dict[str, list[Path]], isa: str
) -> None:
    path = object_of(objects, isa)
    assert not late_lines(path, X86, set(QUANTIZED))


@on_x86
@on_each_x86_table
def test_weights_are_fetched_ahead(objects: dict[str, list[Path]], isa: str) -> None:
    """GCC drops calls of a function that only prefetches, unless it must inline it."""
    path = object_of(objects, isa)
    products = dict(one_row_products(path, X86))
    assert products.keys() >= set(QUANTIZED)
    assert not [i for i in QUANTIZED if not fetches(products[i])]


@on_x86
@on_each_x86_table
def test_other_products_fetch_ahead(objects: dict[str, list[Path]], isa: str) -> None:
    """A of adapters by its own product, B by the products of few rows with weights beside it."""
    path = object_of(objects, isa)
    found = {name: function for name, function in functions(path, X86) if FETCHING.search(name)}
    wanted = {"low_rank_down", "linear_few", "pair_times_planes"}
    assert {FETCHING.search(name)[1] for name in found} == wanted
    assert not [name for name, function in found.items() if not fetches(function)]


@pytest.mark.slow
@pytest.mark.parametrize("isa", ARM64_TABLES)
def test_scales_come_behind_the_lines_on_arm(tmp_path: Path, isa: str) -> None:
    """Formats of two levels have scales in whole registers, as lines are: the test cannot tell."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None or shutil.which(ARM64.objdump) is None:
        pytest.skip("needs a compiler for 64-bit ARM")
    sources, made = ROOT / "src" / "cpp", tmp_path / "made.o"
    flags = ("-std=c++20", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno")
    source = sources / "kernels" / f"isa_{isa}.cpp"
    command = (compiler, *flags, ARM64_TABLES[isa], f"-I{sources}", "-c", source, "-o", made)
    subprocess.run(list(map(str, command)), check=True)
    assert not late_lines(made, ARM64, {i for i, fmt in QUANTIZED.items() if not fmt.two_level})


def test_a_scale_that_comes_first_is_found() -> None:
    texts = (
        "vmovdqa64 (%rax),%zmm1",
        "vcvtph2ps 0x200(%rax),%zmm3",
        "vmovdqa64 0x40(%rax),%zmm2",
        "vpdpbusd (%rcx){1to16},%zmm2,%zmm4",
        "vmovdqa64 -0x40(%rbp),%zmm5",
        "jne 0 <product>",
    )
    loop = group_loop([Instruction(i, text) for i, text in enumerate(texts)], X86)
    assert len(loop) == len(texts)
    assert early_scales(loop, X86) == [texts[1]]
    assert early_scales([loop[0], loop[2], *loop[3:], loop[1]], X86) == []
