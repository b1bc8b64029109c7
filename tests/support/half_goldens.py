"""Make half.npz beside goldens.npz: the logits of the same model in float16.

make_goldens.py does so for what it makes; for goldens that are there, in the same environment::

    python tests/support/half_goldens.py [FAMILY ...]

The reference is transformers with every matrix rounded to float16 and with a cache that rounds the
keys and values that it takes, computed in float32: the roundings of the format, and no others.
Stored are float16[m, vocab] differences from the float32 logits, rounding_0 and rounding_1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import GOLDENS, read_golden
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.qwen3_5 import modeling_qwen3_5

# Token by token, as transformers decodes: its form for prompts solves a system for each chunk and
# loses digits (4e-5 of the logits of 150 tokens).
modeling_qwen3_5.torch_chunk_gated_delta_rule = modeling_qwen3_5.torch_recurrent_gated_delta_rule


class HalfCache(DynamicCache):
    """Keys and values as float16 holds them."""

    def update(self, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        """Round and store; returns all that is stored, as float32."""
        return super().update(keys.half().float(), values.half().float(), *args, **kwargs)


def write_half(folder: Path) -> None:
    """half.npz of a golden's folder."""
    golden = read_golden(folder.parent.name, folder.name)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model.train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stacked = ".experts." in name and parameter.ndim == 3
            if stacked or (parameter.ndim == 2 and not name.endswith("bias")):
                parameter.copy_(parameter.half().float())
    roundings: dict[str, Any] = {}
    for i, (tokens, exact) in enumerate(zip(golden.tokens, golden.logits, strict=True)):
        with torch.no_grad():
            ids, cache = torch.tensor([tokens]), HalfCache(config=model.config)
            rounded = model(ids, past_key_values=cache).logits[0].numpy()
        roundings[f"rounding_{i}"] = (rounded - exact).astype(np.float16)
    np.savez_compressed(folder / "half.npz", **roundings)


if __name__ == "__main__":
    for family in sys.argv[1:] or sorted(p.name for p in GOLDENS.iterdir()):
        for path in sorted((GOLDENS / family).glob("*/goldens.npz")):
            write_half(path.parent)
            print(path.parent)
