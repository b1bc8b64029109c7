"""Takes a quantized model's weights off their grid: a few hundred optimizer steps in float32.

The only real-size decoder of the package indexes is quantized: every weight lies on the grid of its
file, which favours the format of that file. This script decodes it to floats, moves every weight of
a matrix to a random place between its neighbours on the grid (where rounding once took it from),
and trains the model on, on a text, which heals most of what that did. The result is an ordinary
folder (float32), to be quantized by any tool. It needs torch and transformers, takes three seconds
a step on one core, and is not part of the package.

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


def off_grid(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Uniform noise of half a step both ways, where rows lie on the grid of Q4_1 or of Q8_0.

    The step of a group of 32 weights is that between the nearest two of them that differ.
    """
    groups = weights.reshape(-1, 32)
    ordered = groups.sort(dim=1).values
    gaps = ordered.diff(dim=1)
    range_ = ordered[:, -1:] - ordered[:, :1]
    gaps = torch.where(gaps > range_ / 1000, gaps, torch.inf).min(dim=1, keepdim=True).values
    gaps = torch.where(torch.isfinite(gaps), gaps, 0)
    noise = torch.rand(groups.shape, generator=generator) - 0.5
    return weights + (noise * gaps).reshape(weights.shape)


def main() -> None:
    """Trains, and says how far the weights have moved."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rate", type=float, default=4e-4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
        floats = slmq.dequantize(options.model, Path(folder) / "floats")
        model = transformers.AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(floats)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim == 2:
                values.copy_(off_grid(values, generator))
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
