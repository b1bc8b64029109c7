"""A tokenizer of every family, from every kind of file, against what its reference said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mixed_lines import BLOCK, digests, mixed_lines
from tokenizer_cases import CASES, IDS

from slmq.checkpoint import open_checkpoint
from slmq.tokenizer import Tokenizer, load_tokenizer

GOLDENS = json.loads(IDS.read_text(encoding="utf-8"))


def load(name: str, folder: Path) -> Tokenizer:
    with open_checkpoint(CASES[name].write(folder)) as checkpoint:
        return load_tokenizer(checkpoint)


def test_every_case_has_its_golden() -> None:
    assert GOLDENS.keys() == CASES.keys()
    assert all(len(case.lines) >= 2000 for case in CASES.values())
    different = {tuple(golden["digests"]) for golden in GOLDENS.values()}
    assert len(different) > len(GOLDENS) / 2


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    tokenizer, golden, lines = load(name, tmp_path), GOLDENS[name], CASES[name].lines
    # SentencePiece's library adds no special tokens and reads none in a text.
    plain = CASES[name].reference == "sentencepiece"

    def encode(line: str) -> list[int]:
        return tokenizer.encode(line, add_special=not plain, parse_special=not plain)

    assert [encode(line) for line in lines[4 : 4 + len(golden["sample"])]] == golden["sample"]
    found = digests(encode, lines)
    wrong = [i * BLOCK for i, digest in enumerate(golden["digests"]) if digest != found[i]]
    assert wrong == [], f"blocks of {BLOCK} lines that differ from {golden['reference']}"
    assert len(found) == len(golden["digests"])


@pytest.mark.parametrize(
    ("binary", "folder"),
    [
        ("gpt-2", "gpt2"),
        ("llama-bpe", "llama3"),
        ("qwen2", "qwen2"),
        ("smollm", "smollm2"),
        ("dbrx", "phi4"),
        ("stablelm2", "stablelm2"),
        ("llama2", "llama2"),
        ("phi3", "phi3"),
    ],
)
def test_both_references_mean_the_same_tokenizer(binary: str, folder: str) -> None:
    assert GOLDENS[f"gguf/{binary}"]["digests"] == GOLDENS[f"folder/{folder}"]["digests"]


# Those that normalize text, drop its first space, or have neither piece nor byte for a character.
LOSSY = {"folder/qwen2", "folder/qwen2-pair", "gguf/qwen2", "folder/gpt-neox", "folder/mistral",
         "model/t5", "gguf/t5", "gguf/rinna"}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CASES.keys() - LOSSY))
def test_text_comes_back(name: str, tmp_path: Path) -> None:
    tokenizer = load(name, tmp_path)
    for line in mixed_lines()[::7]:
        ids = tokenizer.encode(line, add_special=False, parse_special=False)
        assert tokenizer.decode(ids) == line
        stream = tokenizer.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == line
