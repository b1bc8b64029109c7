"""Packed and quantized folders of sentence-transformers embed as the folder they were made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from encoder_files import sentence_folder

import slmq

TEXTS = ["A man is playing the guitar.", "the cat eats", "rain in paris"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    settings = {"prompts": {"query": "a dog "}, "similarity_fn_name": "dot"}
    dense = [(40, "Tanh"), (24, "Identity")]
    pooling = {"pooling_mode_max_tokens": True}
    return sentence_folder(tmp_path / "m", pooling=pooling, dense=dense, settings=settings)


def test_convert(folder: Path, tmp_path: Path) -> None:
    packed = slmq.convert(folder, tmp_path / "packed")
    got, want = slmq.load_encoder(packed), slmq.load_encoder(folder, format="f16")
    assert got.dimensions == 24
    for prompt in (None, "query"):
        assert np.array_equal(got.embed(TEXTS, prompt=prompt), want.embed(TEXTS, prompt=prompt))
    assert np.array_equal(got.similarity(TEXTS, TEXTS), want.similarity(TEXTS, TEXTS))


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_quantize(folder: Path, tmp_path: Path, format: str) -> None:
    made = slmq.quantize(folder, tmp_path / "small", format=format)
    got = slmq.load_encoder(made.path)
    want = slmq.load_encoder(folder, format=format)
    assert got.weight_bytes < slmq.load_encoder(folder, format="f16").weight_bytes
    assert (got.embed(TEXTS) * want.embed(TEXTS)).sum(axis=1).min() > 0.98  # random weights


def test_a_model_in_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    """As releases before 2022 saved it."""
    old = tmp_path / "old"
    old.mkdir()
    for path in folder.iterdir():
        if path.name[0].isdigit() or path.name in (
            "modules.json",
            "config_sentence_transformers.json",
        ):
            shutil.move(path, old / path.name)
    shutil.move(folder, old / "0_Transformer")
    modules = json.loads((old / "modules.json").read_text("utf-8"))
    modules[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(modules), "utf-8")
    packed = slmq.convert(old, tmp_path / "packed")
    want = slmq.load_encoder(old, format="f16").embed(TEXTS)
    assert np.array_equal(slmq.load_encoder(packed).embed(TEXTS), want)
