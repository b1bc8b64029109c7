"""Reads x86-64 objects with binutils: what a function needs of a CPU, what an object shares."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Beyond SSE2, and not told by their encoding. tzcnt is left out: GCC writes it for bsf, which it is
# on CPUs that do not know it.
LATER_THAN_SSE2 = re.compile(
    r"v?(addsub|hadd|hsub)p[sd]|lddqu|mov(ddup|shdup|sldup)|pshufb|ph(add|sub)s?[wd]|pabs[bwd]"
    r"|palignr|pmulhrsw|psign[bwd]|pmaddubsw|pmulld|pmuldq|p(min|max)(s[bd]|u[wd])|ptest"
    r"|round[ps][sd]|blendv?p[sd]|pblend\w+|dpp[sd]|p(extr|insr)[bdq]|insertps|extractps"
    r"|pmov[sz]x\w+|mpsadbw|packusdw|pcmp(eq|gt)q|pcmp[ei]str[im]|phminposuw|movntdqa|crc32[bwlq]?"
    r"|popcnt[wlq]?|lzcnt[wlq]?|movbe[wlq]?|aes\w+|pclmul\w*|sha(1|256)\w+|adcx|adox"
)
AMX = re.compile(r"ldtilecfg|sttilecfg|tile\w+|tdp\w+|tcmm\w+")
AVX_VNNI = re.compile(r"vpdpbusds?|vpdpwssds?")
PREFIXES = {"26", "2e", "36", "3e", "64", "65", "67"}
ROW = re.compile(r"\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t(.*)")
FUNCTION = re.compile(r"[0-9a-f]+ <(.+)>:")


@dataclass(frozen=True)
class Instruction:
    """One instruction: the function that it stands in, its address, its text, and what it needs."""

    function: str
    address: int
    text: str
    needs: str  # "": SSE2; "sse4", "avx", "avxvnni", "avx512" or "amx"


def needs_of(encoding: list[str], text: str) -> str:
    """The instruction set of an instruction of these bytes."""
    words = [word for word in text.split() if not word.startswith("{")]
    mnemonic = words[0] if words else ""
    if AMX.fullmatch(mnemonic):
        return "amx"
    first = next((byte for byte in encoding if byte not in PREFIXES), "")
    if first == "62":
        return "avx512"
    if first in ("c4", "c5"):
        return "avxvnni" if AVX_VNNI.fullmatch(mnemonic) else "avx"
    return "sse4" if LATER_THAN_SSE2.fullmatch(mnemonic) else ""


def instructions(path: Path) -> Iterator[Instruction]:
    """All instructions of an object or library."""
    done = subprocess.run(
        ["objdump", "-d", "-w", "-C", str(path)], check=True, capture_output=True, text=True
    )
    function = ""
    for line in done.stdout.splitlines():
        if row := ROW.match(line):
            address, encoding, text = row.groups()
            needs = needs_of(encoding.split(), text)
            yield Instruction(function, int(address, 16), text, needs)
        elif head := FUNCTION.match(line):
            function = head[1]


@cache
def needs(path: Path) -> dict[str, dict[str, str]]:
    """What each function needs beyond SSE2, each with the first instruction that does."""
    found: dict[str, dict[str, str]] = {}
    for at in instructions(path):
        if at.needs:
            found.setdefault(at.function, {}).setdefault(at.needs, at.text)
    return found


def beyond(path: Path, allowed: set[str]) -> list[str]:
    """Functions that need more than what is allowed."""
    return [
        f"{function}: {text} ({need})"
        for function, wanted in needs(path).items()
        for need, text in wanted.items()
        if need not in allowed
    ]


def shared_symbols(path: Path) -> list[str]:
    """What other objects may use of an object: its global and weak definitions, and its groups
    (comdat), of which the linker keeps one copy for all.
    """
    symbols = subprocess.run(
        ["nm", "-C", "--defined-only", "--extern-only", str(path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    groups = subprocess.run(
        ["readelf", "-gW", str(path)], check=True, capture_output=True, text=True
    ).stdout
    names = [line.split(maxsplit=2)[2] for line in symbols.splitlines() if line[:1].isalnum()]
    return names + re.findall(r"^COMDAT group section .*", groups, re.MULTILINE)
