"""Reads x86-64 objects with binutils: what a function needs of a CPU, what an object shares."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

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
FUNCTION = re.compile(r"[0-9a-f]+ <(.+)>:")


class Instruction(NamedTuple):
    """One instruction: the function that it stands in, its address, its text, and what it needs."""

    function: str
    address: int
    text: str
    needs: str  # "": SSE2; "sse4", "avx", "avxvnni", "avx512" or "amx"


@cache
def needs_of(first: str, mnemonic: str) -> str:
    """The instruction set of an instruction: its first byte that is no prefix, and its name."""
    if AMX.fullmatch(mnemonic):
        return "amx"
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
        columns = line.split("\t")
        if len(columns) == 3:
            address, encoding, text = columns
            first = encoding[:2]
            if first in PREFIXES:
                first = next((byte for byte in encoding.split() if byte not in PREFIXES), "")
            mnemonic = text.split(None, 1)[0] if text[:1] != "{" else text.split()[1]
            yield Instruction(function, int(address[:-1], 16), text, needs_of(first, mnemonic))
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
