"""Make tests/goldens/FAMILY of encoders: tiny random models, and what transformers makes of texts.

Run by hand, in an environment with torch and transformers; without names it makes all::

    python tests/support/make_encoder_goldens.py [FAMILY ...]

Each case is a folder as transformers saves it, and encoder.npz: tokens_0, types_0, states_0 (of
all tokens), head_0 (what the head gives, if there is one), and the same of a second text. Each text
runs alone and in float32. The weights are scaled as those of make_goldens.py, and for the same
reason.
"""

from __future__ import annotations

import shutil
import sys
from typing import Any

import numpy as np
import torch
import transformers
from encoder_cases import CASES, EncoderCase
from places import GOLDENS

COMMON = {"num_hidden_layers": 2, "max_position_embeddings": 128}


def scale_weights(model: torch.nn.Module, seed: int) -> None:
    """Fill `model` with random weights whose every part shows in the results."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            shape = tuple(p.shape)
            if name.endswith("bias") and "relative" not in name:
                values = rng.normal(0, 0.5, shape)
            elif len(shape) == 1:
                values = rng.uniform(0.5, 1.5, shape)
            elif "embeddings" in name or "relative" in name:
                values = rng.normal(0, 1.0, shape)
            else:
                values = rng.normal(0, 1.5 / np.sqrt(shape[1]), shape)
            p.copy_(torch.from_numpy(values))


def make(family: str, case: EncoderCase, seed: int) -> None:
    """Write the folder of one case."""
    folder = GOLDENS / family / case.name
    shutil.rmtree(folder, ignore_errors=True)
    config = transformers.AutoConfig.for_model(case.model_type or family, **(COMMON | case.config))
    auto = getattr(
        transformers, f"Auto{'Model' if case.auto == 'Model' else 'ModelFor' + case.auto[3:]}"
    )
    model = auto.from_config(config)
    scale_weights(model, seed)
    torch.nn.Module.to(model, getattr(torch, case.dtype))
    model.save_pretrained(folder)
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.train(False)
    rng = np.random.default_rng(seed + 1)
    goldens: dict[str, Any] = {}
    for i, length in enumerate(case.lengths):
        # From 2 on: what pads a text would not count as one of its tokens.
        tokens = rng.integers(2, config.vocab_size, length)
        types = np.sort(rng.integers(0, case.types, length))
        given = {"input_ids": torch.from_numpy(tokens)[None]}
        if case.types > 1:
            given["token_type_ids"] = torch.from_numpy(types)[None]
        with torch.no_grad():
            found = model(**given, output_hidden_states=True)
        states = found.hidden_states[-1] if case.auto != "Model" else found.last_hidden_state
        goldens |= {
            f"tokens_{i}": tokens.astype(np.int32),
            f"types_{i}": types.astype(np.int32),
            f"states_{i}": states[0].numpy(),
        }
        if case.auto != "Model":
            goldens[f"head_{i}"] = found.logits[0].numpy()
        spread = states.std().item()
        print(f"{family:10} {case.name:32} {length} tokens, states std {spread:.2f}")
    np.savez_compressed(folder / "encoder.npz", **goldens)


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        for number, one in enumerate(CASES[name]):
            make(name, one, seed=300 + number)
