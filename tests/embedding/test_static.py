"""Static embeddings as model2vec stores them: the mean of rows of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_files import word_tokenizer, write_json
from safetensors.numpy import save_file

import slmq
from slmq import CheckpointError, UnsupportedModelError

TEXTS = ["A man is playing the guitar.", "the ☃ cat", "rain " * 700]
TABLE = np.random.default_rng(3).normal(0, 1, (259, 48)).astype(np.float32)


def folder_of(target: Path, modules: bool = True, **tensors: Any) -> Path:
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True}
    write_json(target / "config.json", {**config, "seq_length": 1000000, "hidden_dim": 48})
    save_file(tensors or {"embeddings": TABLE}, target / "model.safetensors")
    word_tokenizer(259).save(str(target / "tokenizer.json"))
    write_json(target / "tokenizer_config.json", {"unk_token": "[UNK]"})
    if modules:
        kinds = {"StaticEmbedding": ".", "Normalize": "1_Normalize"}
        entries = [
            {
                "idx": i,
                "name": str(i),
                "path": place,
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, (kind, place) in enumerate(kinds.items())
        ]
        write_json(target / "modules.json", entries)
    return target


def wanted(text: str) -> Any:
    """Rows of all tokens but unknown ones, nothing around them."""
    ids = [i for i in word_tokenizer(259).encode(text, add_special_tokens=False).ids if i != 1]
    mean = TABLE[ids].mean(axis=0, dtype=np.float64)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("modules", [True, False])
def test_means_of_rows(tmp_path: Path, modules: bool) -> None:
    folder = folder_of(tmp_path / "m", modules)
    exact = slmq.load_encoder(folder, format="f32")
    assert exact.dimensions == 48
    for text, got in zip(TEXTS, exact.embed(TEXTS), strict=True):
        assert np.allclose(got, wanted(text), atol=1e-6)
        assert np.array_equal(exact.embed(text), got)
    rounded = slmq.load_encoder(folder).embed(TEXTS)
    assert (rounded * exact.embed(TEXTS)).sum(axis=1).min() > 0.999


def test_packed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    packed = slmq.convert(folder, tmp_path / "packed")
    want = slmq.load_encoder(folder, format="f32").embed(TEXTS)
    assert np.array_equal(slmq.load_encoder(packed).embed(TEXTS), want)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text 1: expected a token that is known"):
        slmq.load_encoder(folder_of(tmp_path / "m")).embed(["rain", "☃"])
    weighted = folder_of(tmp_path / "w", embeddings=TABLE, weights=np.ones(259, np.float32))
    with pytest.raises(UnsupportedModelError, match="'weights' is not supported"):
        slmq.load_encoder(weighted)
    with pytest.raises(CheckpointError, match="expected a table of vectors"):
        slmq.load_encoder(folder_of(tmp_path / "n", other=TABLE))
    with pytest.raises(UnsupportedModelError, match="static is an encoder"):
        slmq.load(folder_of(tmp_path / "l"))
