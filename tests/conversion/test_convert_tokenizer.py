"""Tokenizers of packed folders: the ids, texts and prompts of the checkpoint they came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_cases import CASES
from tokenizer_files import bos_first, gguf_keys, lines, train, write_folder, write_gguf

from slmq.checkpoint import open_checkpoint
from slmq.errors import TokenizerError
from slmq.tokenizer import Tokenizer, load_tokenizer
from slmq.tokenizer.save import save_tokenizer

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
CHAT = [{"role": "user", "content": "Hi <|im_end|> é"}]
LETTERS = [f"{chr(0x61 + i % 26)}{chr(0x41 + i // 26)}" for i in range(60)]


def load(path: Path) -> Tokenizer:
    with open_checkpoint(path) as checkpoint:
        return load_tokenizer(checkpoint)


def saved(source: Path, folder: Path) -> Path:
    """A folder with the tokenizer of a checkpoint, as a conversion writes it."""
    write_folder(folder, {})
    with open_checkpoint(source) as checkpoint:
        save_tokenizer(checkpoint, folder)
    return folder


def assert_same(source: Path, folder: Path) -> None:
    want, got = load(source), load(saved(source, folder))
    for name in ("n_vocab", "bos_id", "eos_ids", "special_ids", "chat_template"):
        assert getattr(got, name) == getattr(want, name), name
    pieces = range(want.n_vocab)
    assert [got.token_bytes(i) for i in pieces] == [want.token_bytes(i) for i in pieces]
    for i, line in enumerate(lines()[:1500]):
        flags: dict[str, Any] = {"add_special": i % 2 == 0, "parse_special": i % 3 > 0}
        ids = want.encode(line, **flags)
        assert got.encode(line, **flags) == ids
        assert got.decode(ids) == want.decode(ids)
    if want.chat_template is not None:
        assert got.render_chat(CHAT) == want.render_chat(CHAT)


def sentencepiece_keys() -> dict[str, Any]:
    """A vocabulary with bytes, a user-defined token, unused and empty ones, and broken UTF-8."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    pieces = ["\u2581", "h", "i", "hi", "\u2581hi", "e", "\u2581\u2581", *LETTERS]
    tokens += [*pieces, "<think> x", "<unused0>", "\u2581now"]
    kinds += [*[1] * len(pieces), 4, 5, 3]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [float(-i) for i in range(len(tokens))],
        "tokenizer.chat_template": "{{ bos_token }}[{{ messages[0].content }}]{{ eos_token }}",
    }


@pytest.mark.parametrize("changes", [
    {},
    {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 0},
    {"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.token_type": None},
    {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.eos_token_id": 300},
    {"tokenizer.chat_template": None},
    {"tokenizer.chat_templates": ["rag"], "tokenizer.chat_template.rag": "{{ messages }}"},
])  # fmt: skip
def test_byte_level_of_a_gguf_file(changes: dict[str, Any], tmp_path: Path) -> None:
    keys = gguf_keys(train(GPT2), "gpt-2") | changes
    assert_same(write_gguf(tmp_path / "m.gguf", keys), tmp_path / "folder")


@pytest.mark.parametrize("changes", [
    {},
    {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_eos_token": True},
    {"tokenizer.ggml.token_type": None},
])  # fmt: skip
def test_sentencepiece_of_a_gguf_file(changes: dict[str, Any], tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", sentencepiece_keys() | changes)
    assert_same(source, tmp_path / "folder")
    # Nothing was decided anew: the file beside it is the whole truth.
    config = json.loads((tmp_path / "folder" / "tokenizer_config.json").read_text("utf-8"))
    assert config["slmq"]["n_vocab"] == load(source).n_vocab


def test_files_of_a_folder_are_copied(tmp_path: Path) -> None:
    tokenizer = train(GPT2)
    bos_first(tokenizer)
    source = write_folder(
        tmp_path / "source",
        {
            "tokenizer.json": tokenizer.to_str(pretty=True),
            "tokenizer_config.json": {"eos_token": "<|im_end|>", "chat_template": "{{ 1 }}"},
            "generation_config.json": {"eos_token_id": [0, 2]},
            "chat_template.jinja": "{{ messages[0].content }}é",
            "additional_chat_templates/tool_use.jinja": "{{ tools }}",
        },
    )
    assert_same(source, tmp_path / "folder")
    assert load(tmp_path / "folder").render_chat(CHAT, tools=[{"a": 1}]) == "[{'a': 1}]"
    copied = (tmp_path / "folder" / "tokenizer.json").read_bytes()
    assert copied == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ([], "expected an object, got list"),
        ({"n_vocab": -1}, "expected vocab_size from 0"),
        ({"n_vocab": 900, "special_ids": [900]}, "expected ids from 0 to 899"),
        ({"n_vocab": 900, "bos_id": "x"}, "bos_id"),
        ({"n_vocab": 900, "eos_ids": [-1]}, "expected ids from 0 to 899"),
        ({"n_vocab": 900, "bytes": []}, "expected an object, got list"),
        ({"n_vocab": 900, "bytes": {"900": "00"}}, "expected hexadecimal bytes by id"),
        ({"n_vocab": 900, "bytes": {"-1": "00"}}, "expected hexadecimal bytes by id"),
        ({"n_vocab": 900, "bytes": {"1": "0g"}}, "expected hexadecimal bytes by id"),
        ({"n_vocab": 900, "bytes": {"1": 5}}, "expected hexadecimal bytes by id"),
    ],
)
def test_a_hostile_section(section: Any, message: str, tmp_path: Path) -> None:
    config = {"slmq": {"bytes": {}} | section if isinstance(section, dict) else section}
    files = {"tokenizer.json": train(GPT2).to_str(), "tokenizer_config.json": config}
    with pytest.raises(TokenizerError, match=message):
        load(write_folder(tmp_path / "m", files))


@pytest.mark.parametrize(
    "name",
    ["gguf/rakuten", "gguf/phi3", "gguf/t5", "model/gemma", "model/rinna", "folder/gpt2-pair"],
)
def test_tokenizers_of_every_kind_of_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    assert_same(CASES[name].write(tmp_path / "source"), tmp_path / "saved")


def test_damaged_scores_of_merging(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    folder = saved(CASES["gguf/rakuten"].write(tmp_path / "source"), tmp_path / "saved")
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    for damaged in ([1.0], {"a": "1"}, {"a": None}):
        config["slmq"]["merging"] = damaged
        (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        with pytest.raises(TokenizerError, match="merging: expected an object of scores"):
            load(folder)
