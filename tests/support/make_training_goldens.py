"""Make tests/goldens/training/curves.json: losses of 50 steps of PyTorch with PEFT.

The bases are tiny models, as stored and as packed in int4, dequantized for PyTorch. It needs
torch, transformers and peft, which tests do not:

    python tests/support/make_training_goldens.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from curve_cases import CURVES, FILE, Curve, batches
from training_cases import folder_of, network_for, peft_of, torch_loss

import slmq

torch.set_num_threads(1)


def curve(case: Curve) -> list[float]:
    """The mean loss of the targets of every batch, each before its update."""
    source = folder_of(case.family)
    with tempfile.TemporaryDirectory() as made:
        base = source
        if case.format != "f32":
            slmq.convert(source, Path(made) / "packed", format=case.format)
            slmq.dequantize(Path(made) / "packed", Path(made) / "float")
            base = Path(made) / "float"
        model: Any = peft_of(base, network_for(source, format=case.format, **case.options))
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
