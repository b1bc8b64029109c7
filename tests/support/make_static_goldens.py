"""Make tests/goldens/tables: small tables of vectors, and what model2vec makes of texts.

Run by hand, in an environment with model2vec::

    python tests/support/make_static_goldens.py

Each case is a folder as model2vec saves it, and vectors.npz with the vectors of `TEXTS`.
"""

from __future__ import annotations

import shutil

import numpy as np
from encoder_files import word_tokenizer
from model2vec import StaticModel
from model2vec.model import quantize_model
from places import GOLDENS
from static_cases import TEXTS

OUT = GOLDENS / "tables"
TOKENS, WIDTH = 120, 24


def main() -> None:
    """All cases: weights of tokens, shared rows, both, and what model2vec itself clusters."""
    shutil.rmtree(OUT, ignore_errors=True)
    rng = np.random.default_rng(8)
    table = rng.normal(0, 1, (TOKENS, WIDTH)).astype(np.float32)
    weights = rng.uniform(0.1, 2, TOKENS).astype(np.float32)
    rows = rng.integers(0, 30, TOKENS)
    tokenizer = word_tokenizer(TOKENS)
    plain = StaticModel(table, tokenizer, normalize=True)
    weighted = StaticModel(table, tokenizer, weights=weights, normalize=True)
    shared = StaticModel(table[:30], tokenizer, token_mapping=rows, normalize=False)
    both = StaticModel(
        table[:30].astype(np.float16),
        tokenizer,
        token_mapping=rows.astype(np.int32),
        weights=weights.astype(np.float64),
        normalize=True,
        max_length=None,
    )
    clustered = quantize_model(weighted, vocabulary_quantization=40)
    for name, model in {
        "plain": plain,
        "weights": weighted,
        "mapping": shared,
        "both_halves": both,
        "clustered": clustered,
    }.items():
        model.config["model_type"] = "model2vec"  # as distilling writes it
        folder = OUT / name
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        vectors = StaticModel.from_pretrained(folder).encode(TEXTS)
        np.savez_compressed(folder / "vectors.npz", vectors=vectors.astype(np.float32))
        print(name, vectors.dtype, vectors.shape, model.embedding.shape)


if __name__ == "__main__":
    main()
