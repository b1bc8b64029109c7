"""Every instruction set stays in the objects of its own table.

The classic mistake: an inline function of a header, std::vector's say, is compiled in a file for
AVX2 and in others. The linker keeps one of the copies; if it is the one for AVX2, all files call
it, and an old CPU dies of it.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from disassembly import beyond, needs, shared_symbols
from linked_code import Library

from slmq import _native
from slmq.generation import _sampling

# What the files of each table are compiled for; anything else may need SSE2 only.
ALLOWED = {
    "scalar": set[str](),
    "avx2": {"sse4", "avx"},
    "avxvnni": {"sse4", "avx", "avxvnni"},
    "avx512vnni": {"sse4", "avx", "avx512"},
    "amx_int8": {"sse4", "avx", "avx512", "amx"},
}

pytestmark = [
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or platform.machine() != "x86_64",
        reason="reads ELF files of x86-64",
    ),
    pytest.mark.skipif(
        not all(shutil.which(tool) for tool in ("objdump", "objcopy", "nm", "readelf")),
        reason="needs binutils",
    ),
]


def test_every_table_has_objects(objects: dict[str, list[Path]]) -> None:
    assert objects.keys() - {""} == set(_native.isa_tables())
    assert len(objects[""]) > 10


@pytest.mark.slow
def test_instructions_stay_in_their_own_tables(objects: dict[str, list[Path]]) -> None:
    strays = [
        f"{path.name}: {stray}"
        for isa, paths in objects.items()
        for path in paths
        for stray in beyond(path, ALLOWED[isa] if isa else set())
    ]
    assert not strays, "\n".join(strays)


@pytest.mark.slow
def test_tables_do_use_their_instructions(objects: dict[str, list[Path]]) -> None:
    """Else the test above would read nothing."""
    for isa, paths in objects.items():
        if isa not in ("", "scalar"):
            used = {need for path in paths for each in needs(path).values() for need in each}
            assert used == ALLOWED[isa] - {"sse4"}, isa


def test_objects_of_tables_share_nothing_but_the_table(objects: dict[str, list[Path]]) -> None:
    for isa, paths in objects.items():
        for path in paths if isa else ():
            shared = shared_symbols(path)
            assert len(shared) == 1, f"{path.name} also shares: {shared}"
            assert shared[0].startswith("slmq::kKernels")


@pytest.mark.slow
def test_the_linked_module_runs_no_table_by_mistake() -> None:
    library = Library(Path(_native.__file__))
    assert library.tables(ALLOWED).keys() == set(_native.isa_tables())
    strays = library.strays(ALLOWED)
    assert not strays, "\n".join(strays)


def test_sampling_needs_nothing_special() -> None:
    assert not Library(Path(_sampling.__file__)).strays({})


@pytest.mark.parametrize("order", [("avx2", "common"), ("common", "avx2")])
def test_the_classic_mistake_is_caught_in_what_is_linked(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    """Of two copies of a function the linker keeps the first: only one order is an accident."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    header = (
        "template <class T> [[gnu::noinline]] T twice(const T* x, int i) {\n"
        "  return x[i] + x[i]; }\n"
        "struct Table { const char* name; float (*kernels[2])(const float*); };\n"
    )
    sources = {
        "avx2": "static float f(const float* x) { return twice(x, 1); }\n"
        "static float g(const float* x) { return twice(x, 2) * x[0]; }\n"
        'extern const Table table; const Table table = {"avx2", {f, g}};\n',
        "common": "float common(const float* x) { return twice(x, 3); }\n",
    }
    flags = {"avx2": "-mavx2", "common": "-msse2"}
    for name, source in sources.items():
        (tmp_path / f"{name}.cpp").write_text(header + source)
        made = ("-c", str(tmp_path / f"{name}.cpp"), "-o", str(tmp_path / f"{name}.o"))
        subprocess.run(["c++", "-std=c++20", "-O2", "-fPIC", flags[name], *made], check=True)
    linked = tmp_path / "linked.so"
    objects = [str(tmp_path / f"{name}.o") for name in order]
    subprocess.run(
        ["c++", "-shared", "-s", "-Wl,-Bsymbolic", *objects, "-o", str(linked)], check=True
    )
    library = Library(linked)
    assert library.tables(ALLOWED).keys() == {"avx2"}
    strays = [stray for stray in library.strays(ALLOWED) if stray.startswith("common code")]
    assert bool(strays) is (order[0] == "avx2")


def test_the_classic_mistake_is_caught(tmp_path: Path) -> None:
    """A function of a header, compiled for AVX2: the linker may give it to everybody."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    source, made = tmp_path / "bad.cpp", tmp_path / "bad.o"
    source.write_text(
        "template <class T> T twice(const T* x, int i) { return x[i] + x[i]; }\n"
        "float table(const float* x) { return twice(x, 1); }\n"
        "template float twice<float>(const float*, int);\n"
    )
    subprocess.run(["c++", "-O2", "-mavx2", "-c", str(source), "-o", str(made)], check=True)
    assert any("twice<float>" in symbol for symbol in shared_symbols(made))
    assert any("COMDAT" in symbol for symbol in shared_symbols(made))
    assert any("(avx)" in stray for stray in beyond(made, set()))
    assert not beyond(made, {"avx"})
