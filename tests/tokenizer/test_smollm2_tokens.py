"""SmolLM2's own tokenizer: the ids of llama.cpp, and real text read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import GOLDENS
from tokenizer_files import DATA

from slmq.checkpoint import open_checkpoint
from slmq.tokenizer import Tokenizer, load_tokenizer

TOKENS = GOLDENS / "smollm2_tokens.json"


def load(path: Path) -> Tokenizer:
    with open_checkpoint(path) as checkpoint:
        return load_tokenizer(checkpoint)


@pytest.mark.slow
def test_smollm2_gives_the_ids_of_llama_cpp(smollm2_path: Path) -> None:
    tokenizer = load(smollm2_path)
    for case in json.loads(TOKENS.read_text(encoding="utf-8")):
        text = case["text"]
        assert tokenizer.encode(text) == case["ids"], text
        assert tokenizer.encode(text, parse_special=False) == case["plain_ids"], text
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.n_vocab == 49152


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_smollm2_reads_real_text_back(smollm2_path: Path) -> None:
    tokenizer = load(smollm2_path)
    for name in ("wikitext2/wiki.test.raw", "ja/neko.txt"):
        text = (DATA / name).read_text(encoding="utf-8")[:200_000]
        assert tokenizer.decode(tokenizer.encode(text)) == text
