"""CPU features count only with the operating system's consent."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from slmq import _native

SSE4_2, FMA, AVX, F16C = 1 << 20, 1 << 12, 1 << 28, 1 << 29
AVX2, AVX512F, AVX512DQ, AVX512BW, AVX512VL = 1 << 5, 1 << 16, 1 << 17, 1 << 30, 1 << 31
AVX512VNNI = 1 << 11
AMX_BF16, AMX_TILE, AMX_INT8 = 1 << 22, 1 << 24, 1 << 25
AVXVNNI = 1 << 4

# What a server with AVX-512, VNNI and AMX answers, and an operating system that saves all of it.
EVERYTHING = {
    "leaf1_ecx": SSE4_2 | FMA | AVX | F16C,
    "leaf7_ebx": AVX2 | AVX512F | AVX512DQ | AVX512BW | AVX512VL,
    "leaf7_ecx": AVX512VNNI,
    "leaf7_edx": AMX_TILE | AMX_INT8 | AMX_BF16,
    "leaf7_1_eax": AVXVNNI,
    "xcr0": 0x602E7,
}

CPUINFO_NAMES = {
    "sse4_2": "sse4_2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avxvnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512vbmi": "avx512vbmi",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
}


def test_a_full_machine_can_do_everything() -> None:
    cpu = _native.decode_cpu_features(**EVERYTHING)
    assert cpu["usable_avx2"]
    assert cpu["usable_avxvnni"]
    assert cpu["usable_avx512vnni"]
    assert cpu["usable_amx_int8"]
    assert cpu["amx_bf16"]


def test_no_words_no_features() -> None:
    cpu = _native.decode_cpu_features()
    assert cpu.pop("brand") == ""
    assert not any(cpu.values())


@pytest.mark.parametrize(
    ("xcr0", "avx2", "avx512", "amx"),
    [
        (0x0, False, False, False),  # no OSXSAVE
        (0x3, False, False, False),  # x87 and xmm: an old or cautious hypervisor
        (0x5, False, False, False),  # ymm without xmm is no state that exists
        (0x7, True, False, False),
        (0x67, True, False, False),  # zmm0-15 only
        (0x87, True, False, False),
        (0xE7, True, True, False),
        (0x200E7, True, True, False),  # tile configuration without tile data
        (0x602E7, True, True, True),
    ],
)
def test_registers_must_be_saved(xcr0: int, avx2: bool, avx512: bool, amx: bool) -> None:
    cpu = _native.decode_cpu_features(**{**EVERYTHING, "xcr0": xcr0})
    assert cpu["usable_avx2"] is avx2
    assert cpu["usable_avxvnni"] is avx2
    assert cpu["usable_avx512vnni"] is avx512
    assert cpu["usable_amx_int8"] is amx
    assert cpu["sse4_2"]  # its registers are always there


@pytest.mark.parametrize(
    ("word", "bit", "avx2"),
    [
        ("leaf1_ecx", AVX, False),
        ("leaf1_ecx", FMA, False),
        ("leaf1_ecx", F16C, False),
        ("leaf7_ebx", AVX2, False),
        ("leaf7_ebx", AVX512F, True),
        ("leaf7_ebx", AVX512BW, True),
        ("leaf7_ebx", AVX512DQ, True),
        ("leaf7_ebx", AVX512VL, True),
        ("leaf7_ecx", AVX512VNNI, True),
    ],
)
def test_a_missing_part_rules_the_isa_out(word: str, bit: int, avx2: bool) -> None:
    cpu = _native.decode_cpu_features(**{**EVERYTHING, word: EVERYTHING[word] & ~bit})
    assert cpu["usable_avx2"] is avx2
    assert cpu["usable_avxvnni"] is avx2
    assert not cpu["usable_avx512vnni"]
    assert not cpu["usable_amx_int8"]


AVX_WORDS = {"leaf1_ecx": SSE4_2 | FMA | AVX | F16C, "leaf7_ebx": AVX2, "xcr0": 0x7}
AVX512_WORDS = {
    **AVX_WORDS,
    "leaf7_ebx": AVX2 | AVX512F | AVX512DQ | AVX512BW | AVX512VL,
    "xcr0": 0xE7,
}
VNNI_WORDS = {**AVX512_WORDS, "leaf7_ecx": AVX512VNNI}
MACHINES: dict[str, tuple[dict[str, int], str]] = {
    "Nehalem": ({"leaf1_ecx": SSE4_2}, "scalar"),
    "Sandy Bridge": ({"leaf1_ecx": SSE4_2 | AVX, "xcr0": 0x7}, "scalar"),
    "Haswell, Zen to Zen 3": (AVX_WORDS, "avx2"),
    "Haswell without YMM state": ({**AVX_WORDS, "xcr0": 0x3}, "scalar"),
    "Alder Lake": ({**AVX_WORDS, "leaf7_1_eax": AVXVNNI}, "avxvnni"),
    "Skylake-X": (AVX512_WORDS, "avx2"),
    "Cascade Lake, Ice Lake, Zen 4": (VNNI_WORDS, "avx512vnni"),
    "Zen 5": ({**VNNI_WORDS, "leaf7_1_eax": AVXVNNI}, "avx512vnni"),
    "Zen 5 without ZMM state": (
        {**VNNI_WORDS, "leaf7_1_eax": AVXVNNI, "xcr0": 0x7},
        "avxvnni",
    ),
    "Sapphire Rapids": (EVERYTHING, "amx_int8"),
    "Sapphire Rapids, AMX not shown": ({**EVERYTHING, "leaf7_edx": 0}, "avx512vnni"),
    "Sapphire Rapids, tiles without their int8": (
        {**EVERYTHING, "leaf7_edx": AMX_TILE | AMX_BF16},
        "avx512vnni",
    ),
    "Sapphire Rapids, Linux before 5.16": ({**EVERYTHING, "xcr0": 0xE7}, "avx512vnni"),
}


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the tables of x86-64 are listed there"
)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_best_table_of_a_machine(machine: str) -> None:
    """The last listed table whose needs the words satisfy (AMX is then tried, too)."""
    words, best = MACHINES[machine]
    cpu = _native.decode_cpu_features(**words)
    names = list(_native.isa_tables())
    assert names[0] == "scalar"
    assert [name for name in names if name == "scalar" or cpu[f"usable_{name}"]][-1] == best


@pytest.mark.parametrize(
    ("hwcap", "hwcap2", "neon", "dotprod", "i8mm"),
    [
        (0xFF, 0, True, False, False),  # Raspberry Pi 4, Cortex-A72: fp asimd ... crc32
        (0x119FFF, 0, True, True, False),  # Neoverse N1: ... asimddp
        (0x119FFF, 0x2000, True, True, True),  # with i8mm, as Neoverse V1 and Apple's M2
        (0x019FFF, 0x2000, True, False, False),  # the i8mm table wants dot products, too
        (0x119FFD, 0x2000, False, False, False),  # no NEON, nothing on top of it
        (0x2000, 0x100000, False, False, False),  # the bits of one word in the other
    ],
)
def test_arm_tables_need_their_bits(
    hwcap: int, hwcap2: int, neon: bool, dotprod: bool, i8mm: bool
) -> None:
    cpu = _native.decode_arm_features(hwcap=hwcap, hwcap2=hwcap2)
    assert cpu["neon"] is neon
    assert cpu["usable_neon_dotprod"] is dotprod
    assert cpu["usable_neon_i8mm"] is i8mm
    assert not cpu["usable_avx2"]


def test_this_cpu_as_the_kernel_sees_it() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.exists():
        pytest.skip("needs x86-64 Linux")
    lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    flags = next(value.split() for key, _, value in lines if key.strip() == "flags")
    cpu = _native.cpu_features()
    seen = {name: cpu[name] for name in CPUINFO_NAMES}
    assert seen == {name: flag in flags for name, flag in CPUINFO_NAMES.items()}
    model = next(value.strip() for key, _, value in lines if key.strip() == "model name")
    assert cpu["brand"].split() == model.split()
