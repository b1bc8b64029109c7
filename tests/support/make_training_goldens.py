"""Make tests/goldens/training/curves.json: losses of 50 steps of PyTorch, with PEFT or in full.

The bases are tiny models, as stored and as rounded to integers, dequantized for PyTorch. It needs
torch, transformers and peft, which tests do not:

    python tests/support/make_training_goldens.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from curve_cases import CURVES, FILE, Curve, batches
from training_cases import folder_of, network_for, peft_of, torch_loss, torch_of

from slmq.checkpoint import open_checkpoint
from slmq.models.loading import load_weights
from slmq.models.parts.gguf import Weights
from slmq.plan.linear import Linear

torch.set_num_threads(1)


def matrices(weights: Weights) -> Iterator[Linear]:
    """All matrices of a model."""
    for value in vars(weights).values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Linear):
                yield one
            elif isinstance(one, Weights):
                yield from matrices(one)


def rounded(case: Curve, folder: Path) -> Any:
    """A model with an adapter, whose own weights are those of a format."""
    model: Any = peft_of(folder, network_for(folder, format=case.format, **case.options))
    with open_checkpoint(folder) as checkpoint:
        packed = load_weights(checkpoint, threads=1, format=case.format).weights
    for linear in matrices(packed):
        module = model.base_model.model.get_submodule(linear.name.removesuffix(".weight"))
        rows = torch.tensor(linear.matrix.dequantize(0, linear.n))
        getattr(module, "base_layer", module).weight.data.copy_(rows)
    return model


def curve(case: Curve) -> list[float]:
    """The mean loss of the targets of every batch, each before its update."""
    folder = folder_of(case.family)
    model = torch_of(folder) if case.full else rounded(case, folder)
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=case.rate, weight_decay=0.01)
    losses = []
    for texts, firsts in batches(case):
        count = sum(len(t) - f for t, f in zip(texts, firsts, strict=True))
        total = sum(torch_loss(model, t, f) for t, f in zip(texts, firsts, strict=True))
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        optimizer.step()
        losses.append(float(total.detach()) / count)
    return losses


if __name__ == "__main__":
    found = {case.name: curve(case) for case in CURVES}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    for name, losses in found.items():
        print(f"{name}: {losses[0]:.4f} to {losses[-1]:.4f}")
