"""A text's fewest tokens, found without tokenizing: never more than it has, and at once."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import slmq
from slmq.checkpoint import open_checkpoint
from slmq.errors import ContextOverflowError
from slmq.tokenizer import load_tokenizer
from slmq.tokenizer.tokenizer import Tokenizer

# What steps strip, fold, compose, absorb or have no token for.
SIGNS = [
    *("a", "  ", "\t\n", "\u3000", "\xa0", "e\u0301\u0323", "\u1112\u1161\u11ab", "\u212a", "ſ"),
    *("中", "🙂", "\U0001d400", "\ufb03", "\x00", "\x07", "\ufeff", "\u200b", "<|im_end|>", "<s>"),
    *("</s>", "<mask>", "--------", "ÃÂÃÂ", "The quick brown fox", "1234567", "'s", "\ue000"),
]


@pytest.fixture(scope="module")
def tiny(tiny_model_path: Path) -> Tokenizer:
    with open_checkpoint(tiny_model_path) as checkpoint:
        return load_tokenizer(checkpoint)


@settings(deadline=None, max_examples=300)
@given(parts=st.lists(st.sampled_from(SIGNS) | st.text(max_size=8), max_size=30))
def test_the_bound_is_never_too_high(tiny: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    assert tiny.least_tokens(text) <= len(tiny.encode(text, add_special=False))


def backend_of(state: dict[str, object]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(state))


NORMALIZERS = [
    None,
    {"type": "NFC"},
    {"type": "NFKC"},
    {"type": "Lowercase"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Replace", "pattern": {"String": "a"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": "[a-z]+"}, "content": ""},
    {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "StripAccents"}]},
]
BYTE_LEVEL = {"type": "ByteLevel"} | dict.fromkeys(
    ("add_prefix_space", "trim_offsets", "use_regex"), True
)
REMOVING = {"type": "Split", "pattern": {"Regex": "[a-m]"}, "behavior": "Removed", "invert": False}
PRE_TOKENIZERS = [BYTE_LEVEL, {"type": "Sequence", "pretokenizers": [REMOVING, BYTE_LEVEL]}]


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda n: json.dumps(n)[:60])
@pytest.mark.parametrize("pre_tokenizer", PRE_TOKENIZERS, ids=["all", "removed"])
@pytest.mark.parametrize("missing", ["", "b", "é"])
def test_steps_that_shorten_text(
    normalizer: object, pre_tokenizer: object, missing: str, tiny_model_path: Path
) -> None:
    """Steps and vocabularies that lose text: then there is no bound, or one that holds."""
    from slmq.tokenizer.bound import TokenBound
    from slmq.tokenizer.pieces import Pieces, byte_level_bytes

    state = json.loads((tiny_model_path / "tokenizer.json").read_text())
    state["normalizer"], state["pre_tokenizer"] = normalizer, pre_tokenizer
    vocab = state["model"]["vocab"]
    for sign in missing.encode():
        for text in [t for t in vocab if byte_level_bytes(t) == bytes((sign,))]:
            del vocab[text]
    backend = backend_of(state)
    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    pieces = Pieces(size, backend.id_to_token, byte_level_bytes, {}, frozenset())
    bound = TokenBound(backend, pieces)
    rng = random.Random(3)
    texts = ["".join(rng.choices(SIGNS, k=20)) for _ in range(30)]
    for text in ["a" * 100, "b" * 100, "é" * 100, "K" * 99, "\u212a" * 99, " " * 99, *texts]:
        assert bound.least(text) <= len(backend.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("sign", ["a", "中", "word ", "{}", "🙂"])
def test_ten_megabytes_for_a_small_context(sign: str, tiny_model_path: Path) -> None:
    prompt = sign * (10_000_000 // len(sign.encode()))
    with slmq.load(tiny_model_path, n_ctx=128, n_threads=1) as model:
        for asked in (prompt, [{"role": "user", "content": prompt}]):
            began = time.monotonic()
            with pytest.raises(ContextOverflowError, match=r"at least \d+ tokens, but the context"):
                model.generate(asked, max_tokens=1)
            assert time.monotonic() - began < 3


def test_a_text_that_might_fit_is_tokenized(tiny_model_path: Path) -> None:
    """Blanks may be one token or none: only the tokenizer knows."""
    loaded = slmq.load(tiny_model_path, n_ctx=64, n_threads=1)
    with loaded as model, pytest.raises(ContextOverflowError, match=r"has \d+ tokens, but"):
        model.generate(" " * 2000, max_tokens=1)
