"""Make tests/goldens/llama: tiny random models and the logits that transformers gives for them.

Run by hand, in an environment with torch and transformers::

    python tests/make_goldens.py

Each case is a folder as transformers saves it (config.json, model.safetensors or shards) and
goldens.npz: tokens_0, logits_0 (float32[m, vocab]), tokens_1, logits_1. Two cases also have a
config.v4.json, the same config in the form of transformers 4, which most published models have.

The weights are scaled so that the goldens can tell right from wrong: attention that is far from
uniform, norm weights and biases that matter, logits with a standard deviation over 1.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).parent / "goldens" / "llama"


@dataclass(frozen=True)
class Case:
    """One tiny model: what differs from the common config, and how it is stored."""

    name: str
    config: dict[str, Any]
    lengths: tuple[int, int]
    dtype: torch.dtype = torch.float32
    shard_size: str = "1GB"
    v4: dict[str, Any] = field(default_factory=dict)  # rope keys of config.v4.json


def sizes(hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int = 96) -> dict[str, Any]:
    """The size keys of a config, by short names."""
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
    }


# With theta 100 and 32 original positions, one pair of eight is kept, two are blended and five are
# slowed, and even the slowest turns enough in 90 positions to show.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "factor": 2.5}

CASES = [
    Case("gqa_untied", sizes(64, 8, 2, 96), (40, 67)),
    Case(
        "mha_tied",
        sizes(64, 4, 4, 80) | {"tie_word_embeddings": True},
        (49, 64),
        dtype=torch.bfloat16,
    ),
    Case(
        "odd_sizes",
        sizes(60, 3, 1, 172, vocab=259) | {"tie_word_embeddings": True},
        (41, 73),
        dtype=torch.float16,
    ),
    Case(
        "rope_llama3",
        sizes(48, 3, 3, 64)
        | {"rope_parameters": LLAMA3 | {"rope_theta": 100.0}, "max_position_embeddings": 256},
        (45, 90),
        v4={"rope_theta": 100.0, "rope_scaling": LLAMA3},
    ),
    Case(
        "rope_linear",
        sizes(48, 2, 1, 64) | {"rope_parameters": LINEAR | {"rope_theta": 500.0}},
        (44, 81),
        dtype=torch.bfloat16,
        v4={"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.5}},
    ),
    Case(
        "biases",
        sizes(36, 3, 1, 68) | {"attention_bias": True, "mlp_bias": True},  # head_dim 12
        (40, 66),
    ),
    Case("head_dim", sizes(48, 4, 2, 72) | {"head_dim": 20}, (47, 65), dtype=torch.float16),
    Case("sharded", sizes(48, 6, 3, 64), (42, 59), shard_size="100KB"),
]


def scale_weights(model: LlamaForCausalLM, seed: int) -> None:
    """Fill `model` with random weights whose every part shows in the logits."""
    rng = np.random.default_rng(seed)
    # Gains over 1 / sqrt(fan-in): scores q.k / sqrt(d) get a standard deviation near 2, so that
    # attention picks, and the blocks add to the residual stream as much as it holds.
    gains = {"q_proj": 1.4, "k_proj": 1.4, "v_proj": 1.2, "o_proj": 1.5}
    gains |= {"gate_proj": 1.5, "up_proj": 1.5, "down_proj": 1.5, "lm_head": 2.0}
    with torch.no_grad():
        for name, p in model.named_parameters():
            shape, part = tuple(p.shape), name.split(".")[-2]
            if name.endswith(".bias"):
                values = rng.normal(0, 0.5, shape)
            elif len(shape) == 1:
                values = rng.uniform(0.5, 1.5, shape)
            elif part == "embed_tokens":  # which may be the output matrix too
                values = rng.normal(0, 2.0 / np.sqrt(shape[1]), shape)
            else:
                values = rng.normal(0, gains[part] / np.sqrt(shape[1]), shape)
            p.copy_(torch.from_numpy(values))


def make(case: Case, seed: int) -> None:
    """Write the folder of one case."""
    folder = OUT / case.name
    shutil.rmtree(folder, ignore_errors=True)
    common = {"num_hidden_layers": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5}
    config = LlamaConfig(**(common | case.config))
    model = LlamaForCausalLM(config)
    scale_weights(model, seed)
    torch.nn.Module.to(model, case.dtype)
    model.save_pretrained(folder, max_shard_size=case.shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # Loaded anew, so that what was rounded for storage is the weights and not the rope buffers.
    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model.train(False)
    rng = np.random.default_rng(seed + 1)
    goldens: dict[str, Any] = {}
    for i, length in enumerate(case.lengths):
        tokens = rng.integers(0, config.vocab_size, length)
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
        goldens |= {f"tokens_{i}": tokens.astype(np.int32), f"logits_{i}": logits}
        print(f"{case.name:12} {length} tokens, logits std {logits.std():.2f}")
    np.savez_compressed(folder / "goldens.npz", **goldens)
    if case.v4:
        saved = json.loads((folder / "config.json").read_text("utf-8"))
        saved["torch_dtype"] = saved.pop("dtype")
        del saved["rope_parameters"]
        text = json.dumps(saved | case.v4, indent=2, sort_keys=True) + "\n"
        (folder / "config.v4.json").write_text(text, "utf-8")


if __name__ == "__main__":
    for number, golden_case in enumerate(CASES):
        make(golden_case, seed=100 + number)
