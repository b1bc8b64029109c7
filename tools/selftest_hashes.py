"""Write src/slmq/machine/selftest.txt anew: what `slmq doctor --selftest` expects.

Run it after a kernel, a format or a case of the self test was added. Hashes of cases that were
there before must not change: the answers of released versions would.

    python tools/selftest_hashes.py
"""

from __future__ import annotations

from pathlib import Path

from slmq.machine.selftest import read_hashes, write_hashes

FILE = Path(__file__).resolve().parents[1] / "src" / "slmq" / "machine" / "selftest.txt"


def main() -> None:
    """Write the file and name what changed."""
    before = read_hashes(FILE) if FILE.exists() else {}
    write_hashes(FILE)
    after = read_hashes(FILE)
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            print(f"new      {name}")
        elif name not in after:
            print(f"gone     {name}")
        elif before[name] != after[name]:
            print(f"CHANGED  {name}: slmq gives other bits than before")
    print(f"{FILE}: {len(after)} hashes")


if __name__ == "__main__":
    main()
