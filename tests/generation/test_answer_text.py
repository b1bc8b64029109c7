"""The text of an answer: what prompt and answer say together, without the prompt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_files import to_gguf
from spm_oracle import spm_keys
from tokenizers import Tokenizer

import slmq

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a SentencePiece vocabulary."""
    keys = {k: v for k, v in spm_keys().items() if k != "general.architecture"}
    keys["tokenizer.chat_template"] = TEMPLATE
    return padded(tmp_path_factory.mktemp("spm") / "model.gguf", keys)


def padded(path: Path, keys: dict[str, Any]) -> Path:
    """The golden with as many rows of the embedding as the vocabulary has tokens."""
    size = len(keys["tokenizer.ggml.tokens"])
    plain = to_gguf("gqa_untied", path.with_name("plain.gguf"))
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(plain).tensors}
    for name in ("token_embd.weight", "output.weight"):
        tensors[name] = np.resize(tensors[name], (size, tensors[name].shape[1]))
    return to_gguf("gqa_untied", path, metadata=keys | {"llama.vocab_size": size}, tensors=tensors)


def spaced_word(model: slmq.Model) -> int:
    """A token that is a word with a space before it."""
    pieces = map(model.tokenizer.token_bytes, range(model.n_vocab))
    return next(i for i, piece in enumerate(pieces) if piece[:1] == b" " and piece[1:].isalpha())


def test_a_completion_keeps_its_first_space(model_path: Path) -> None:
    with slmq.load(model_path) as model:
        tokenizer = model.tokenizer
        word = spaced_word(model)
        want = tokenizer.token_bytes(word).decode()
        forced = {"max_tokens": 1, "logit_bias": {word: 1000.0}}
        assert model.generate("hello", **forced).text == want
        assert model.generate(tokenizer.encode("hello"), **forced).text == want
        assert "".join(chunk.text for chunk in model.stream("hello", **forced)) == want


def test_the_answer_to_a_chat_begins_a_text(model_path: Path) -> None:
    with slmq.load(model_path) as model:
        word = spaced_word(model)
        want = model.tokenizer.token_bytes(word).decode().removeprefix(" ")
        forced = {"max_tokens": 1, "logit_bias": {word: 1000.0}}
        assert model.generate([{"role": "user", "content": "hello"}], **forced).text == want
        assert model.chat().send("hello", **forced).text == want


def test_a_prompt_that_spells_the_first_token_is_said_once(
    model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with slmq.load(model_path) as model:
        model.generate("hello", max_tokens=1)
        assert caplog.text == ""
        for _ in range(2):
            model.generate("<s>hello", max_tokens=1)
    assert caplog.text.count("now there are two") == 1


def test_a_tokenizer_with_more_tokens_than_the_model(
    tiny_model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """[PAD] behind the last row: the model runs, and only that token is refused."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with slmq.load(tiny_model_path) as model:
        size, want = model.n_vocab, model.generate("hi", max_tokens=3).tokens
    tokenizer.add_special_tokens([f"[PAD{i}]" for i in range(size)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with slmq.load(folder) as model:
        assert "the model only" in caplog.text
        assert model.n_vocab == size
        assert model.generate("hi", max_tokens=3).tokens == want
        with pytest.raises(ValueError, match="expected a token id"):
            model.generate(f"hi[PAD{size - 1}]", max_tokens=1)
