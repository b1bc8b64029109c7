"""Training beside PyTorch, with PEFT: speed and memory of the same task, alternating in one run.

    python benchmarks/train.py MODEL --text FILE [--float FOLDER --peer PYTHON] [--batch 4]

MODEL is what slmq trains on, of any format; FOLDER the same model for transformers (`slmq
dequantize` writes it), which trains in float32 with the PYTHON of an environment that has torch,
transformers and peft. Samples have 256 tokens from different places of FILE; rank 8 on all linear
layers, or all weights with --type full (MODEL is FOLDER then). Every round runs each engine for
some steps in a process of its own. Columns are tokens learned from per second (the median of
steps), and the most memory that the process held while it trained; for slmq also what it said
before: seconds and memory of its forecast beside what came.
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


def train_slmq(args: argparse.Namespace) -> dict[str, Any]:
    """Some steps with slmq."""
    from slmq.engine.training.events import Forecast
    from slmq.engine.training.options import TrainOptions
    from slmq.engine.training.run import Run

    told: dict[str, Any] = {}

    def tell(event: Any) -> None:
        if isinstance(event, Forecast):
            told.update(forecast_s=event.seconds, forecast_bytes=event.memory_bytes)
            told["began_s"] = time.monotonic()

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
        took_s = time.monotonic() - told.pop("began_s")
    speeds = [report.tokens_per_s for report in done.reports]
    return told | {
        "tokens_per_s": statistics.median(speeds), "bytes": peak_bytes(), "seconds": took_s,
        "loss": done.reports[-1].loss,
    }  # fmt: skip


def train_torch(args: argparse.Namespace) -> dict[str, Any]:
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
    speeds, at, loss = [], 0, 0.0
    for _ in range(args.steps):
        rows = [ids[at + i * LENGTH : at + i * LENGTH + LENGTH + 1] for i in range(args.batch)]
        at += args.batch * LENGTH
        batch = torch.stack(rows)
        began_s = time.monotonic()
        logits = model(input_ids=batch[:, :-1]).logits
        found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        optimizer.step()
        speeds.append(args.batch * LENGTH / (time.monotonic() - began_s))
        loss = float(found.detach())
    return {"tokens_per_s": statistics.median(speeds), "bytes": peak_bytes(), "loss": loss}


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
        found = (train_slmq if args.worker == "slmq" else train_torch)(args)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    engines = {"slmq": sys.executable} | ({"torch": str(args.peer)} if args.peer else {})
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    for _ in range(args.rounds):
        for name, python in engines.items():
            command = [python, __file__, *sys.argv[1:], "--worker", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'engine':8} {'tokens/s':>9} {'MB':>7} {'loss':>8}")
    for name, rounds in results.items():
        speed = statistics.median(found["tokens_per_s"] for found in rounds)
        most = max(found["bytes"] for found in rounds)
        print(f"{name:8} {speed:9.1f} {most / 1e6:7.0f} {rounds[-1]['loss']:8.4f}")
    for found in results["slmq"]:
        parts = []
        for unit, kind, size in (("s", "s", 1.0), ("MB", "bytes", 1e6)):
            said, took = found[f"forecast_{kind}"], found["seconds" if kind == "s" else kind]
            parts.append(
                f"forecast {said / size:.1f} {unit}, it took {took / size:.1f} "
                f"({100 * (said / took - 1):+.0f}%)"
            )
        print("; ".join(parts))


if __name__ == "__main__":
    main()
