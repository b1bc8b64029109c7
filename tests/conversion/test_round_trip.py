"""`slmq.dequantize` of every family's GGUF files: folders that mean the same to everybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import to_gguf
from gguf_cases import in_gguf
from golden import golden_names, read_golden
from llama_files import logits_of, relative_error
from places import GOLDENS

import slmq
from slmq.checkpoint import open_checkpoint
from slmq.conversion.published import CLASSES
from slmq.tokenizer import load_tokenizer

FAMILIES = sorted(path.name for path in GOLDENS.iterdir() if path.name in CLASSES)
CASES = [
    (family, name)
    for family in FAMILIES
    for name in golden_names(family)
    if (GOLDENS / family / name / "model.safetensors").is_file() and in_gguf(family, name)
]
# Their own folders have another order of rows, or parameters without a shape.
OWN = [(family, name) for family in ("helium", "apertus") for name in golden_names(family)]
ERROR = 1e-5


@pytest.mark.parametrize("packed", [False, True], ids=["gguf", "packed"])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_folder_of_a_gguf_file(family: str, name: str, packed: bool, tmp_path: Path) -> None:
    golden = read_golden(family, name)
    source = to_gguf(golden.folder, tmp_path / "model.gguf")
    stored = slmq.convert(source, tmp_path / "packed") if packed else source
    folder = slmq.dequantize(stored, tmp_path / "floats", dtype="f32")
    for tokens in golden.tokens:
        want = logits_of(source, tokens, n_ctx=len(tokens))
        assert relative_error(logits_of(folder, tokens, n_ctx=len(tokens)), want) < ERROR
    config = json.loads((folder / "config.json").read_text("utf-8"))
    own = json.loads((golden.folder / "config.json").read_text("utf-8"))
    assert config["architectures"] == [CLASSES[config["model_type"]]]
    if "text_config" not in own:
        assert config["model_type"] in (own["model_type"], "llama", "olmo2", "granite")
    with open_checkpoint(source) as checkpoint:
        assert {config["eos_token_id"]} == load_tokenizer(checkpoint).eos_ids


@pytest.mark.parametrize(("family", "name"), CASES + OWN)
def test_transformers_opens_it(family: str, name: str, tmp_path: Path) -> None:
    """With the same logits, every tensor found, and none left over."""
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    golden = read_golden(family, name)
    own = (family, name) in OWN
    source = golden.folder if own else to_gguf(golden.folder, tmp_path / "model.gguf")
    folder = slmq.dequantize(source, tmp_path / "floats", dtype="f32")
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert {key: names for key, names in found.items() if names} == {}
    for tokens in golden.tokens:
        with torch.no_grad():
            got = model(torch.tensor([tokens])).logits[0].numpy()
        want = logits_of(source, tokens, n_ctx=len(tokens))
        assert relative_error(got, want) < 5 * ERROR


@pytest.mark.parametrize("name", golden_names("helium"))
def test_rows_of_neighbours_are_where_they_were(name: str, tmp_path: Path) -> None:
    """Helium's own rope turns neighbours; we read its queries and keys in another order."""
    golden = read_golden("helium", name)
    packed = slmq.convert(golden.folder, tmp_path / "packed")
    for source in (golden.folder, packed):
        folder = slmq.dequantize(source, tmp_path / f"{source.name}-floats", dtype="f32")
        got = logits_of(folder, golden.tokens[0])
        assert np.array_equal(got, logits_of(golden.folder, golden.tokens[0]))
