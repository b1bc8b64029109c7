"""Compare slmq with llama.cpp on the goldens' GGUF files: do both mean the same by their keys?

Run by hand, in an environment with llama-cpp-python; without names it takes all families::

    python tests/support/llama_cpp_logits.py [FAMILY ...]

The files are those of test_families.py, in float32, and so is llama.cpp's cache. It prints the
largest difference over the largest logit: about 1e-6, and 1e-3 where llama.cpp looks gelu up in a
table of float16. llama.cpp does not apply the windows of Phi-3 ("Phi SWA is currently disabled").
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from family_files import read_config, to_gguf, tokenizer_keys
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


def main() -> None:
    """Print a line for every case and text."""
    cases = [*GGUF_CASES, *(("llama", name) for name in golden_names("llama"))]
    for family, name in cases:
        if sys.argv[1:] and family not in sys.argv[1:]:
            continue
        golden = read_golden(family, name)
        # GPT-2 has no positions but those that it learned.
        n_ctx = min(N_CTX, read_config(golden.folder).get("n_positions", N_CTX))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            if family == "llama":
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
                error = relative_error(logits_of(path, tokens, n_ctx=n_ctx), want)
                print(f"{family:12} {name:30} {len(tokens):4} tokens {error:.1e}", flush=True)


if __name__ == "__main__":
    main()
