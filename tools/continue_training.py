"""Takes a quantized model's weights off their grid: a few hundred optimizer steps in float32.

The only real-size decoder that package indexes carry is quantized: every weight lies on the grid of
its file, which favours the format of that file. This script decodes it to floats and trains it on,
on a text, so that weights move off the grid while the model stays what it is. The result is an
ordinary folder (float32), to be quantized by any tool. It needs torch and transformers, takes about
ten seconds a step on two cores, and is not part of the package.

    python tools/continue_training.py smollm2-135m-instruct OUT --text FILE [--steps 200]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
import transformers

import slmq


def batches(tokenizer: transformers.PreTrainedTokenizerBase, text: str, rows: int, length: int):
    """Batches int64[rows, length] of a text's tokens, over and over, windows in a fixed order."""
    ids = torch.tensor(tokenizer(text).input_ids)
    windows = ids[: len(ids) // length * length].reshape(-1, length)
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(windows), generator=generator)
        for begin in range(0, len(order) - rows + 1, rows):
            yield windows[order[begin : begin + rows]]


def main() -> None:
    """Trains, and says how far the weights have moved."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=5e-5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
        floats = slmq.dequantize(options.model, Path(folder) / "floats")
        model = transformers.AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(floats)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=0.0, fused=True)
    source = batches(tokenizer, options.text.read_text("utf-8"), options.rows, options.length)
    began_s = time.perf_counter()
    for step, batch in zip(range(1, options.steps + 1), source, strict=False):
        rate = options.rate * min(1.0, step / 20) * (1 - step / (options.steps + 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # new memory costs more than zeros
        if step % 10 == 0:
            seconds = time.perf_counter() - began_s
            print(f"step {step}: loss {loss.item():.3f}, {seconds / step:.1f} s a step", flush=True)
    moved = sum(((v - before[n]) ** 2).sum().item() for n, v in model.named_parameters())
    size = sum((v**2).sum().item() for v in before.values())
    print(f"weights moved by {100 * (moved / size) ** 0.5:.2f}% of their RMS")
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
