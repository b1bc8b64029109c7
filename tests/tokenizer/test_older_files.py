"""Folders without tokenizer.json: SentencePiece models, vocab.json with merges.txt, and broken."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizer_cases import byte_level, byte_level_pair, model_folder, unpacked
from tokenizer_files import write_folder

from slmq.checkpoint import open_checkpoint
from slmq.errors import CheckpointError, Error, TokenizerError
from slmq.tokenizer import Tokenizer, load_tokenizer
from slmq.tokenizer.sentencepiece_model import read_sentencepiece_model


def load(folder: Path) -> Tokenizer:
    with open_checkpoint(folder) as checkpoint:
        return load_tokenizer(checkpoint)


# Protocol buffers, written the short way ----------------------------------------------------------


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value % (1 << 64))


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(field: int, body: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(body)) + body


def piece(text: str | bytes, score: float = 0.0, kind: int = 1) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    body = message(1, raw) + b"\x15" + struct.pack("<f", score)
    return message(1, body + (number(3, kind) if kind != 1 else b""))


TRAINER = number(3, 2) + number(35, 1) + number(43, -1)
PIECES = [
    piece("<unk>", 0, 2),
    piece("<s>", 0, 3),
    piece("</s>", 0, 3),
    *(piece(f"<0x{byte:02X}>", 0, 6) for byte in range(256)),
    piece("▁a", -1.0),
    piece("▁", -2.0),
    piece("a", -3.0),
    piece("gone", -4.0, 5),
    piece("<sep>", 0.0, 4),
]
SMALL = b"".join(PIECES) + message(2, TRAINER) + message(3, number(4, 0)) + message(9, b"unknown")


def small(folder: Path, model: bytes = SMALL, **config: Any) -> Tokenizer:
    write_folder(folder, {"tokenizer_config.json": config})
    (folder / "tokenizer.model").write_bytes(model)
    return load(folder)


# What is read -----------------------------------------------------------------------------------


def test_a_small_model(tmp_path: Path) -> None:
    tokenizer = small(tmp_path)
    assert tokenizer.n_vocab == 264
    assert tokenizer.encode("a a") == [1, 259, 259]
    assert tokenizer.encode(" a<sep>a</s>a", add_special=False) == [260, 259, 263, 261, 2, 261]
    assert tokenizer.encode("\n", add_special=False) == [260, 3 + 10]
    assert tokenizer.decode([1, 259, 259, 13]) == "a a\n"
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, {2})
    assert tokenizer.special_ids == {0, 1, 2}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"add_bos_token": False}, [259, 2, 261]),
        ({"add_eos_token": True}, [1, 259, 2, 261, 2]),
        ({"tokenizer_class": "T5Tokenizer"}, [259, 2, 261, 2]),
        ({"tokenizer_class": "LlamaTokenizerFast", "legacy": False}, [1, 259, 2, 261]),
        ({"legacy": True}, [1, 259, 2, 259]),
        ({"add_prefix_space": False}, [1, 261, 2, 261]),
        ({"bos_token": "</s>"}, [2, 259, 2, 261]),
    ],
)
def test_what_the_configuration_says(
    config: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    assert small(tmp_path, **config).encode("a</s>a") == expected


def test_added_tokens_go_behind_the_vocabulary(tmp_path: Path) -> None:
    entry = {"content": "<|end|>", "rstrip": True, "special": True}
    write_folder(tmp_path, {"added_tokens.json": {"<|user|>": 265, "<|end|>": 264}})
    tokenizer = small(
        tmp_path,
        added_tokens_decoder={"264": entry, "2": entry | {"content": "</s>"}},
        additional_special_tokens=["<|user|>"],
    )
    assert tokenizer.encode("a<|user|><|end|>  a</s> a", add_special=False) == [
        259, 265, 264, 261, 2, 261,
    ]  # fmt: skip
    assert {264, 265} <= tokenizer.special_ids
    with pytest.raises(TokenizerError, match="has the id 300, but comes 264"):
        small(tmp_path / "other", added_tokens_decoder={"300": entry})


def test_gpt2_without_any_configuration(tmp_path: Path) -> None:
    folder = byte_level_pair("GPT2Tokenizer", "gpt2")(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load(folder)
    end = len(byte_level()[0])
    assert tokenizer.encode("Hello<|endoftext|>")[-1] == end
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (end, {end})
    (folder / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(TokenizerError, match=r"'whisper': unknown how it splits text"):
        load(folder)


def test_real_models_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    found = {}
    for name in ("llama", "gemma", "t5", "rinna"):
        path.write_bytes(unpacked(f"{name}.model"))
        model = read_sentencepiece_model(path)
        found[name] = (model.model_type, model.byte_fallback, model.dummy_prefix,
                       model.remove_spaces, len(model.charsmap) > 0)  # fmt: skip
    assert found == {
        "llama": ("bpe", True, True, False, False),
        "gemma": ("bpe", True, False, False, False),
        "t5": ("unigram", False, True, True, True),
        "rinna": ("unigram", True, False, False, False),
    }


# Broken files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (b"", "found none"),
        (b"\x00", "truncated or no protocol buffer|no number"),
        (b"\xff" * 30, "no number|no protocol buffer"),
        (b"<html>Log in</html>", "tokenizer.model"),
        (SMALL[:-3], "truncated"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "truncated"),
        (SMALL + piece("a"), "distinct pieces"),
        (SMALL + piece(b"\xff"), "expected UTF-8"),
        (SMALL + piece("x", 0, 9), "a kind from 1 to 6, got 9"),
        (SMALL + piece("x", 0, 2), "one unknown token"),
        (SMALL + piece("xy", float("nan")) + piece("x", -9.0) + piece("y", -8.0), "is nan"),
        (SMALL + message(1, message(1, b"x") + number(2, 5)), "a float of 4 bytes"),
        (SMALL + message(2, number(3, 4)), "type char, expected unigram or bpe"),
        (SMALL + message(2, number(24, 1)), "at the end of words"),
        (SMALL + message(3, number(5, 0)), "not escaped"),
        (SMALL + message(2, number(3, 1)) + message(3, message(2, b"xyz")), "charsmap"),
        (SMALL + message(3, message(2, b"\x40\0\0\0" + bytes(40))), "charsmap"),
        (SMALL + message(2, number(40, 7)), "one unknown token"),
    ],
)  # fmt: skip
def test_broken_models(model: bytes, match: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=match) as caught:
        small(tmp_path, model)
    assert str(tmp_path) in str(caught.value)


def test_mutated_models(tmp_path: Path) -> None:
    """Whatever a byte becomes: a tokenizer that works, or an error of ours."""
    rng = random.Random(3)
    pieces = b"".join([*PIECES[:3], *PIECES[-5:]])
    good = bad = 0
    for i in range(600):
        kind = number(3, rng.choice([1, 2])) + number(35, rng.randrange(2))
        data = bytearray(pieces + message(2, kind) + message(3, number(4, 0)))
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.choice([0, 1, 2, 9, 0x7F, 0x80, 0xFF, 0x1F])
        try:
            tokenizer = small(tmp_path / str(i % 4), bytes(data[: rng.choice([None, None, 40])]))
            tokenizer.decode(tokenizer.encode("a</s> a\n"))
            good += 1
        except Error:
            bad += 1
    assert good > 20
    assert bad > 200


@pytest.mark.parametrize(
    ("files", "error", "match"),
    [
        ({"vocab.json": "[1]"}, CheckpointError, "vocab.json"),
        ({"vocab.json": {}}, TokenizerError, "an object of ids"),
        ({"vocab.json": {"a": "b"}}, TokenizerError, "an object of ids"),
        ({"vocab.json": {"a": -1}}, TokenizerError, "an object of ids"),
        ({"vocab.json": {"a": True}}, TokenizerError, "an object of ids"),
        ({"vocab.json": {"a": 1, "b": 1}}, TokenizerError, "distinct token ids"),
        ({"merges.txt": "a"}, TokenizerError, "line 1 is 'a'"),
        ({"merges.txt": "#version: 0.2\n\nzz yy\n"}, TokenizerError, "line 3 is 'zz yy'"),
        ({"merges.txt": None}, TokenizerError, "nor vocab.json with merges.txt"),
        ({"tokenizer_config.json": {"tokenizer_class": "X"}}, TokenizerError, "'X': unknown"),
        ({"added_tokens.json": {"x": "1"}}, TokenizerError, "added_tokens.json"),
        ({"added_tokens.json": {"x": 5}}, TokenizerError, "has the id 5, but comes 3"),
        (
            {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer",
                                       "added_tokens_decoder": {"-1": {"content": "x"}}}},
            TokenizerError,
            "added_tokens_decoder",
        ),
    ],
)  # fmt: skip
def test_broken_pairs(
    files: dict[str, Any], error: type[Error], match: str, tmp_path: Path
) -> None:
    good = {
        "config.json": {"model_type": "gpt2"},
        "vocab.json": {"a": 0, "b": 1, "ab": 2},
        "merges.txt": "#version: 0.2\na b\n",
    }
    assert load(write_folder(tmp_path / "good", good)).encode("abab") == [2, 2]
    with pytest.raises(error, match=match):
        load(write_folder(tmp_path / "bad", good | files))


def test_another_name_for_the_model(tmp_path: Path) -> None:
    folder = model_folder("rinna", "sentencepiece.bpe.model")(tmp_path)
    assert load(folder).decode(load(folder).encode("吾輩は猫である。")) == "吾輩は猫である。"
