"""Rules that cut text before merging: all names that files call them, and where they cut."""

from __future__ import annotations

import pytest
from tokenizer_files import lines

from slmq.tokenizer.pretokenizers import PRE_TOKENIZERS


def test_every_rule_cuts_without_losing_text() -> None:
    for name, rule in PRE_TOKENIZERS.items():
        splitter = rule.splitter(space_prefix=False)
        for line in lines()[::25]:
            parts = splitter.pre_tokenize_str(line)
            spans = [span for _, span in parts]
            assert "".join(line[a:b] for a, b in spans) == line, name


@pytest.mark.parametrize(
    ("names", "like"),
    [
        ("falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano llama3 llama-v3", "llama-bpe"),
        ("deepseek-r1-qwen kormo f2llmv2 megrez", "qwen2"),
        ("jina-es jina-de gigachat a.x-4.0 mellum modern-bert exaone4 trillion", "gpt-2"),
        ("command-r codeshell exaone minerva-7b refact starcoder", "smollm"),
        ("llama4 kanana2 talkie minimax-m2", "gpt-4o"),
        ("hunyuan-dense joyai-llm hy_v4", "deepseek-v3"),
        ("glm5", "glm4"),
        ("poro-chat gpt3-finnish", "bloom"),
        ("bailingmoe2 llada-moe", "bailingmoe"),
    ],
)
def test_all_names_that_llama_cpp_has_for_a_rule(names: str, like: str) -> None:
    for name in names.split():
        assert PRE_TOKENIZERS[name] is PRE_TOKENIZERS[like]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("minicpm5", ["It", "'s", " ", "123", "45", "!\n\n", " x"]),
        ("ufakzeka", ["It", "'s", " ", "1", "2", "3", "4", "5", "!\n\n", " x"]),
        ("seed-coder", ["It", "'s", " ", "1", "2", "3", "4", "5", "!", "\n\n", " x"]),
        ("viking", ["It's", " ", "1", "2", "3", "4", "5", "!\n\n", " x"]),
        ("bloom", ["It's", " 12345", "!\n\n", " x"]),
        ("superbpe", ["It's ", "12", "345", "!\n\n x"]),
        ("falcon", ["It", "'", "s", " ", "123", "45", "!", "\n\n", " x"]),
    ],
)
def test_rules_of_other_llamas(name: str, parts: list[str]) -> None:
    splitter = PRE_TOKENIZERS[name].splitter(space_prefix=False)
    found = [part for part, _ in splitter.pre_tokenize_str("It's 12345!\n\n x")]
    assert [part.replace("\u0120", " ").replace("\u010a", "\n") for part in found] == parts
