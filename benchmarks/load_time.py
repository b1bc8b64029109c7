"""Times from a cold start to the first token, each in a fresh process, on files that are cached.

    python benchmarks/load_time.py MODEL [--memory mmap] [--repeat 5] [--prompt 8]

`import` is what `import slmq` and its parts take, `load` is `slmq.load`, `first token` is the run
of a prompt of that many token ids to its first logits. Interpreter start is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

CHILD = """
import json, sys, time
began = time.perf_counter()
import slmq, slmq.engine, slmq.generate
imported = time.perf_counter()
model, memory, prompt, decode = json.loads(sys.argv[1])
loaded_model = slmq.load(model, memory=memory)
loaded = time.perf_counter()
engine = loaded_model.engine
sequence = engine.sequence()
engine.feed(sequence, list(range(3, 3 + prompt)))
first = time.perf_counter()
for token in range(decode):
    engine.feed(sequence, [token + 3])
last = time.perf_counter()
times = [imported - began, loaded - imported, first - loaded, first - imported]
print(json.dumps([engine.info.memory, *times, (last - first) / decode]))
"""
ROWS = ("import", "load", "first token", "load + first token", "later token")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--memory", choices=("mmap", "huge", "small"))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=8)
    parser.add_argument("--decode", type=int, default=16)
    given = parser.parse_args()
    work = json.dumps([given.model, given.memory, given.prompt, given.decode])
    runs = []
    for _ in range(given.repeat + 1):  # the first one warms the file cache
        command = [sys.executable, "-c", CHILD, work]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        memory, *times = json.loads(done.stdout)
        runs.append(times)
    print(f"{given.model}, memory {memory}, seconds (median, least and most of {given.repeat})")
    for row, values in zip(ROWS, zip(*runs[1:], strict=True), strict=True):
        middle = statistics.median(values)
        print(f"  {row:20}{middle:8.4f}  ({min(values):.4f} to {max(values):.4f})")


if __name__ == "__main__":
    main()
