"""Training beside PyTorch, with PEFT: speed and memory of the same task, alternating in one run.

    python benchmarks/train.py MODEL --text FILE [--float FOLDER --peer PYTHON] [--batch 4]

MODEL is what slmq trains on, of any format; FOLDER the same model for transformers (`slmq
dequantize` writes it), which trains in float32 with the PYTHON of an environment that has torch,
transformers and peft. Samples have 256 tokens from different places of FILE; rank 8 on all linear
layers, or all weights with --type full (MODEL is FOLDER then). Every round starts each engine in a
process of its own; they take turns, step by step, as a shared machine is fast and slow for seconds
at a time. Columns are tokens learned from per second (the median of steps), and the most memory
that the process held while it trained; then the ratio of neighbouring steps, its median and
quartiles, and what slmq said before: seconds and memory of its forecast beside what came.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LENGTH = 256
RANK, ALPHA = 8, 16
CLEAR_PEAK = Path("/proc/self/clear_refs")


def peak_bytes() -> int:
    """Most memory since `forget_peak`."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell the peak of memory")


def forget_peak() -> None:
    """Loading is not what is compared."""
    CLEAR_PEAK.write_text("5", "ascii")


class Turns:
    """A worker's steps, each when it is asked for."""

    def __init__(self) -> None:
        self.waited_s = 0.0
        self._began_s = time.monotonic()

    def tell(self, **values: Any) -> None:
        """Writes a line for whoever asks."""
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()

    def wait(self) -> None:
        """Returns when the next step is wanted."""
        began_s = time.monotonic()
        sys.stdin.readline()
        self._began_s = time.monotonic()
        self.waited_s += self._began_s - began_s

    def begin(self) -> None:
        """Tells that the first step may be asked for, and waits."""
        self.tell(ready=True)
        self.wait()

    def stepped(self, tokens: int) -> None:
        """Tells the speed of a step, and waits."""
        self.tell(tokens_per_s=tokens / (time.monotonic() - self._began_s))
        self.wait()


def train_slmq(args: argparse.Namespace, turns: Turns) -> dict[str, Any]:
    """Some steps with slmq."""
    from slmq.engine.training.events import Forecast, Report
    from slmq.engine.training.options import TrainOptions
    from slmq.engine.training.run import Run

    told: dict[str, Any] = {}

    def tell(event: Any) -> None:
        if isinstance(event, Forecast):
            told.update(forecast_s=event.seconds, forecast_bytes=event.memory_bytes)
            turns.begin()
            turns.waited_s = 0.0
            told["began_s"] = time.monotonic()
        elif isinstance(event, Report):
            turns.stepped(args.batch * LENGTH)

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        (data / "train.txt").write_text(args.text.read_text("utf-8")[:2_000_000], "utf-8")
        low_rank: dict[str, Any] = {}
        if args.type == "lora":
            low_rank = {"rank": RANK, "alpha": ALPHA}
        options = TrainOptions(
            type=args.type, **low_rank, iters=args.steps, batch_size=args.batch,
            max_seq_length=LENGTH + 1, n_threads=args.threads, steps_per_report=1,
            grad_checkpoint=args.grad_checkpoint,
        )  # fmt: skip
        run = Run(args.model, data, Path(folder) / "out", options, name="model", listener=tell)
        forget_peak()
        done = run.finish()
        took_s = time.monotonic() - told.pop("began_s") - turns.waited_s
    return told | {"bytes": peak_bytes(), "seconds": took_s, "loss": done.reports[-1].loss}


def train_torch(args: argparse.Namespace, turns: Turns) -> dict[str, Any]:
    """The same with PyTorch and PEFT."""
    import peft
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.float)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.float, dtype=torch.float32)
    if args.grad_checkpoint:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    if args.type == "lora":
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
        model = peft.get_peft_model(model, config)
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=1e-5)
    ids = tokenizer(args.text.read_text("utf-8")[:2_000_000], return_tensors="pt").input_ids[0]
    forget_peak()
    at, loss = 0, 0.0
    turns.begin()
    for _ in range(args.steps):
        rows = [ids[at + i * LENGTH : at + i * LENGTH + LENGTH + 1] for i in range(args.batch)]
        at += args.batch * LENGTH
        batch = torch.stack(rows)
        logits = model(input_ids=batch[:, :-1]).logits
        found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        optimizer.step()
        loss = float(found.detach())
        turns.stepped(args.batch * LENGTH)
    return {"bytes": peak_bytes(), "loss": loss}


class Worker:
    """An engine in a process of its own, once it is ready for its first step."""

    def __init__(self, python: str, name: str, threads: int) -> None:
        self._process = subprocess.Popen(
            [python, __file__, *sys.argv[1:], "--worker", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        self._read()

    def next(self) -> dict[str, Any]:
        """What a step, or the end, tells."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


def round_of(engines: dict[str, str], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Steps of all engines in turn: speeds of each, and what it told at its end."""
    # One after another: slmq's forecast times some work, which the other's loading must not slow.
    workers = {name: Worker(python, name, args.threads) for name, python in engines.items()}
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for step in range(args.steps):
        for name in sorted(engines, reverse=step % 2 == 1):
            speeds[name].append(workers[name].next()["tokens_per_s"])
    return {name: workers[name].next() | {"speeds": speeds[name]} for name in engines}


def main() -> None:
    """Rounds of both engines, or one of them as a worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--float", type=Path)
    parser.add_argument("--peer", type=Path, help="Python with torch, transformers and peft")
    parser.add_argument("--type", choices=["lora", "full"], default="lora")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--grad-checkpoint", action="store_true")
    parser.add_argument("--worker", choices=["slmq", "torch"])
    args = parser.parse_args()
    if args.worker is not None:
        turns = Turns()
        turns.tell(**(train_slmq if args.worker == "slmq" else train_torch)(args, turns))
        return
    engines = ({"torch": str(args.peer)} if args.peer else {}) | {"slmq": sys.executable}
    rounds = [round_of(engines, args) for _ in range(args.rounds)]
    print(f"{'engine':8} {'tokens/s':>9} {'MB':>7} {'loss':>8}")
    for name in engines:
        speed = statistics.median(speed for found in rounds for speed in found[name]["speeds"])
        most = max(found[name]["bytes"] for found in rounds)
        print(f"{name:8} {speed:9.1f} {most / 1e6:7.0f} {rounds[-1][name]['loss']:8.4f}")
    if "torch" in engines:
        for found in rounds:
            speeds = [found[name]["speeds"] for name in ("slmq", "torch")]
            ratios = [ours / theirs for ours, theirs in zip(*speeds, strict=True)]
            low, middle, high = statistics.quantiles(ratios)
            print(f"slmq over torch, step by step: {middle:.2f} ({low:.2f} to {high:.2f})")
    for told in (one["slmq"] for one in rounds):
        parts = []
        for unit, kind, size in (("s", "s", 1.0), ("MB", "bytes", 1e6)):
            said, took = told[f"forecast_{kind}"], told["seconds" if kind == "s" else kind]
            parts.append(
                f"forecast {said / size:.1f} {unit}, it took {took / size:.1f} "
                f"({100 * (said / took - 1):+.0f}%)"
            )
        print("; ".join(parts))


if __name__ == "__main__":
    main()
