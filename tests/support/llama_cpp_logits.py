"""Compare slmq with llama.cpp on the goldens' GGUF files: do both mean the same by their keys?

Run by hand, in an environment with llama-cpp-python; without names it takes all families::

    python tests/support/llama_cpp_logits.py [FAMILY ...]

The files are those of test_families.py, in float32, and so is llama.cpp's cache. It prints the
largest difference over the largest logit: about 1e-6, and 1e-3 where llama.cpp looks gelu up in a
table of float16. llama.cpp does not apply the windows of Phi-3 ("Phi SWA is currently disabled"),
and those of EXAONE 4, whose other layers have no rope, only to models of 64 layers.

gpt-oss is compared as llama.cpp has it. It rounds the bounds of yarn's channels, which the model's
authors do not ("truncate": false), reads no other beta than 32 and 1, knows one limit and alpha of
the experts' units, and wants biases and a head of its own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from family_files import read_config, rewritten, to_gguf, tokenizer_keys
from golden import golden_names, read_golden
from llama_files import logits_of, relative_error
from llama_files import to_gguf as llama_to_gguf
from places import TESTS

sys.path.insert(0, str(TESTS / "models"))
from test_families import GGUF_CASES

N_CTX = 256  # for both: longrope goes by it, and llama.cpp has no fewer


def llama_cpp_logits(path: Path, tokens: list[int]) -> Any:
    """float32[m, vocab] of a fresh context."""
    model = llama_cpp.Llama(
        str(path), n_ctx=N_CTX, n_batch=256, n_ubatch=256, n_threads=1, logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, verbose=False,
    )  # fmt: skip
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def as_llama_cpp_has_it(source: Path, folder: Path) -> Path:
    """A gpt-oss that means the same to transformers, to slmq, and to llama.cpp."""

    def change(config: dict[str, Any]) -> None:
        yarn = {"truncate": True, "beta_fast": 32.0, "beta_slow": 1.0}
        if config["rope_parameters"]["rope_type"] == "yarn":
            config["rope_parameters"] |= yarn
        config |= {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}
        config |= {"attention_bias": True, "tie_word_embeddings": False}

    def complete(weights: Any) -> None:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"].copy())
        for name in [n for n in weights if "self_attn" in n and n.endswith("_proj.weight")]:
            zeros = np.zeros(len(weights[name]), weights[name].dtype)
            weights.setdefault(name.replace("weight", "bias"), zeros)

    return rewritten(source, folder, change, complete)


def main() -> None:
    """Print a line for every case and text."""
    others = [(family, name) for family in ("llama", "gpt_oss") for name in golden_names(family)]
    cases = [*(case for case in GGUF_CASES if case not in others), *others]
    for family, name in cases:
        if sys.argv[1:] and family not in sys.argv[1:]:
            continue
        golden = read_golden(family, name)
        # GPT-2 has no positions but those that it learned.
        n_ctx = min(N_CTX, read_config(golden.folder).get("n_positions", N_CTX))
        with tempfile.TemporaryDirectory() as folder:
            path = held = Path(folder) / "model.gguf"
            if family == "gpt_oss":
                held = as_llama_cpp_has_it(golden.folder, Path(folder) / "held")
                to_gguf(held, path)
            elif family == "llama":
                size = read_config(golden.folder)["vocab_size"]
                llama_to_gguf(name, path, metadata=tokenizer_keys(size))
            else:
                to_gguf(golden.folder, path)
            for tokens in golden.tokens:
                try:
                    want = llama_cpp_logits(path, tokens)
                except ValueError as refused:  # such as GPT-NeoX without biases
                    print(f"{family:12} {name:30} llama.cpp: {refused}".replace(str(path), "it"))
                    break
                error = relative_error(logits_of(held, tokens, n_ctx=n_ctx), want)
                print(f"{family:12} {name:30} {len(tokens):4} tokens {error:.1e}", flush=True)


if __name__ == "__main__":
    main()
