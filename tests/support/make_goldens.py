"""Make tests/goldens/FAMILY: tiny random models and the logits that transformers gives for them.

Run by hand, in an environment with torch and transformers; without names it makes all::

    python tests/support/make_goldens.py [FAMILY ...]

Each case is a folder as transformers saves it (config.json, model.safetensors or shards) and
goldens.npz: tokens_0, logits_0 (float32[m, vocab]), tokens_1, logits_1; half.npz has the same in
float16 (half_goldens.py). Some cases also have a config.v4.json, the same config in the form of
transformers 4, which most published models have.

The weights are scaled so that the goldens can tell right from wrong: attention that is far from
uniform, norm weights and biases that matter, logits with a standard deviation over 1.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

import numpy as np
import torch
from golden_cases import CASES, Case
from half_goldens import write_half
from places import GOLDENS
from transformers import AutoConfig, AutoModelForCausalLM

OUT = GOLDENS
STATES = ("A_log", "dt_bias")
EMBEDDINGS = ("embed_tokens", "embed_tokens_per_layer", "wte", "wpe", "embed_in")


def scale_weights(model: torch.nn.Module, seed: int) -> None:
    """Fill `model` with random weights whose every part shows in the logits."""
    rng = np.random.default_rng(seed)
    # Gains over 1 / sqrt(fan-in): scores q.k / sqrt(d) get a standard deviation near 2, so that
    # attention picks, and the blocks add to the residual stream as much as it holds.
    gains = {"q_proj": 1.4, "k_proj": 1.4, "v_proj": 1.2, "o_proj": 1.5}
    gains |= {"gate_proj": 1.5, "up_proj": 1.5, "down_proj": 1.5, "lm_head": 2.0}
    gains |= {"qkv_proj": 1.3, "gate_up_proj": 1.5}
    gains |= {"c_attn": 1.3, "c_proj": 1.5, "c_fc": 1.5}
    gains |= {"query_key_value": 1.3, "dense": 1.5, "dense_h_to_4h": 1.5, "dense_4h_to_h": 1.5}
    gains |= {"fc1": 1.5, "fc2": 1.5, "input_linear": 1.5, "output_linear": 1.5}
    gains |= {"w1": 1.5, "w3": 1.5, "w2": 1.5, "out_proj": 1.5}
    gains |= {"experts": 1.5, "gate": 2.0, "router": 2.0}
    kind = model.config.model_type
    offset_norms = kind.startswith(("gemma", "qwen3_5")) and not kind.startswith("gemma4")
    with torch.no_grad():
        for name, p in model.named_parameters():
            shape, part = tuple(p.shape), name.split(".")[-2]
            if name.endswith(("bias", "sinks")):
                values = rng.normal(0, 0.5, shape)
            elif len(shape) == 1:
                offset = offset_norms and not name.endswith((*STATES, "linear_attn.norm.weight"))
                values = rng.uniform(0.5, 1.5, shape) - (1.0 if offset else 0.0)
                if part == "q_norm" and kind.startswith("gemma4"):  # nothing else scales scores
                    values *= 2 / np.sqrt(shape[0])
            elif part in EMBEDDINGS:  # which may be the output matrix too
                values = rng.normal(0, 2.0 / np.sqrt(shape[1]), shape)
            else:
                inputs = shape[0] if part.startswith("c_") else shape[1]  # GPT-2's are transposed
                if part == "experts" and model.config.model_type != "gpt_oss":  # so are its experts
                    inputs = shape[2]
                values = rng.normal(0, gains.get(part, 1.0) / np.sqrt(inputs), shape)
            p.copy_(torch.from_numpy(values))
        for name, buffer in model.named_buffers():
            if name.endswith("expert_bias"):
                buffer.copy_(torch.from_numpy(rng.normal(0, 0.3, tuple(buffer.shape))))
            if name.endswith("layer_scalar"):
                buffer.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, 1)))


def make(family: str, case: Case, seed: int) -> None:
    """Write the folder of one case."""
    folder = OUT / family / case.name
    shutil.rmtree(folder, ignore_errors=True)
    common = {"num_hidden_layers": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5}
    model_type = case.model_type or ("llama" if family == "rope" else family)
    if "text_config" in case.config:
        common = {}
    config = AutoConfig.for_model(model_type, **(common | case.config))
    vocabulary = config.get_text_config().vocab_size
    model = AutoModelForCausalLM.from_config(config)
    scale_weights(model, seed)
    torch.nn.Module.to(model, getattr(torch, case.dtype))
    model.save_pretrained(folder, max_shard_size=case.shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # Loaded anew, so that what was rounded for storage is the weights and not the rope buffers.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model.train(False)
    rng = np.random.default_rng(seed + 1)
    goldens: dict[str, Any] = {}
    for i, length in enumerate(case.lengths):
        tokens = rng.integers(0, vocabulary, length)
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
        goldens |= {f"tokens_{i}": tokens.astype(np.int32), f"logits_{i}": logits}
        print(f"{family:8} {case.name:16} {length} tokens, logits std {logits.std():.2f}")
    np.savez_compressed(folder / "goldens.npz", **goldens)
    write_half(folder)
    if case.v4:
        saved = json.loads((folder / "config.json").read_text("utf-8"))
        saved["torch_dtype"] = saved.pop("dtype")
        del saved["rope_parameters"]
        text = json.dumps(saved | case.v4, indent=2, sort_keys=True) + "\n"
        (folder / "config.v4.json").write_text(text, "utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        for number, golden_case in enumerate(CASES[name]):
            make(name, golden_case, seed=100 + number + golden_case.seed)
