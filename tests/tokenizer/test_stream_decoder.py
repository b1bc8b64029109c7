"""Streaming: whole characters only, and the same text as decoding everything at once."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spm_oracle import spm_keys
from tokenizer_files import gguf_keys, train, write_gguf

from slmq.checkpoint import open_checkpoint
from slmq.tokenizer import Tokenizer, load_tokenizer

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def load(path: Path) -> Tokenizer:
    with open_checkpoint(path) as checkpoint:
        return load_tokenizer(checkpoint)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return load(write_gguf(path, gguf_keys(train(GPT2), "gpt-2")))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load(write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", spm_keys()))


@pytest.fixture(params=["byte_level", "sentencepiece"], scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Tokenizer)
    return found


def streamed(tokenizer: Tokenizer, ids: list[int], *, skip_special: bool = True) -> list[str]:
    """The text of each token, and of the flush."""
    stream = tokenizer.stream(skip_special=skip_special)
    return [*map(stream.push, ids), stream.flush()]


def byte_by_byte(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of text if none were merged."""
    single = {tokenizer.token_bytes(i): i for i in range(3, 259)}  # after the special tokens
    return [single[bytes((byte,))] for byte in text.encode()]


def test_halves_of_a_character_wait(byte_level: Tokenizer) -> None:
    ids = byte_by_byte(byte_level, "😀!")
    assert streamed(byte_level, ids) == ["", "", "", "😀", "!", ""]


def test_an_unfinished_character_is_replaced_at_the_end(byte_level: Tokenizer) -> None:
    ids = byte_by_byte(byte_level, "a😀")[:-1]
    assert streamed(byte_level, ids) == ["a", "", "", "", REPLACEMENT]
    stream = byte_level.stream()
    for token in ids:
        stream.push(token)
    assert stream.flush() == REPLACEMENT
    assert stream.flush() == ""
    assert stream.push(ids[0]) == "a"


def test_special_tokens_are_silent_unless_wanted(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a<|im_end|>b")
    assert "".join(streamed(byte_level, ids)) == "ab"
    assert "".join(streamed(byte_level, ids, skip_special=False)) == "a<|im_end|>b"


def test_a_special_token_inside_a_character_does_not_break_it(byte_level: Tokenizer) -> None:
    first, second = byte_by_byte(byte_level, "é")
    assert streamed(byte_level, [first, 2, second]) == ["", "", "é", ""]
    assert byte_level.decode([first, 2, second]) == "é"


def test_sentencepiece_drops_its_own_space_only(sentencepiece: Tokenizer) -> None:
    for text in ("hello world", " hello", "  ", "", "\n", "é😀"):
        ids = sentencepiece.encode(text)
        assert ids[0] == sentencepiece.bos_id
        assert "".join(streamed(sentencepiece, ids)) == sentencepiece.decode(ids) == text
    ids = sentencepiece.encode("a b")
    assert sentencepiece.decode(ids, skip_special=False) == "<s> a b"
    assert "".join(streamed(sentencepiece, ids, skip_special=False)) == "<s> a b"


@settings(deadline=None, max_examples=300)
@given(data=st.data(), skip_special=st.booleans())
def test_streaming_any_tokens_equals_decoding_them(
    data: st.DataObject, skip_special: bool, tokenizer: Tokenizer
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=30))
    text = "".join(streamed(tokenizer, ids, skip_special=skip_special))
    assert text == tokenizer.decode(ids, skip_special=skip_special)


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.characters(exclude_characters="\u2581", codec="utf-8"), max_size=40))
def test_streaming_any_text_emits_whole_characters(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text, parse_special=False)
    parts = streamed(tokenizer, ids)
    assert "".join(parts) == text
    for part in parts:
        assert REPLACEMENT not in part or REPLACEMENT in text
        assert all(unicodedata.category(char) != "Cs" for char in part)


# Behind a prompt ------------------------------------------------------------------------------


def continued(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """The text of an answer to a prompt."""
    stream = tokenizer.stream(prompt)
    return "".join([*map(stream.push, answer), stream.flush()])


def test_a_word_that_continues_a_prompt_keeps_its_space(sentencepiece: Tokenizer) -> None:
    prompt = sentencepiece.encode("hello")
    answer = sentencepiece.encode("hello world")[len(prompt) :]
    assert sentencepiece.decode(answer) == "world"  # as a text of its own
    assert continued(sentencepiece, prompt, answer) == " world"
    assert continued(sentencepiece, [], answer) == "world"
    assert continued(sentencepiece, [1], answer) == "world"  # BOS is no text


def test_a_character_that_a_prompt_has_begun_is_whole(byte_level: Tokenizer) -> None:
    ids = byte_by_byte(byte_level, "a😀!")
    for cut in range(1, 5):
        assert continued(byte_level, ids[:cut], ids[cut:]) == "😀!"
    assert continued(byte_level, ids[:5], ids[5:]) == "!"


@settings(deadline=None, max_examples=300)
@given(prompt=st.text(max_size=20), data=st.data())
def test_an_answer_is_the_text_of_both_without_that_of_the_prompt(
    prompt: str, data: st.DataObject, tokenizer: Tokenizer
) -> None:
    before = tokenizer.encode(prompt)
    answer = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=10))
    whole = tokenizer.decode(before + answer)
    assert whole == tokenizer.decode(before) + continued(tokenizer, before, answer)
