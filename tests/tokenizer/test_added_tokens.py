"""Tokens that only the small files beside a tokenizer.json hold, and the flags that they give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import SPECIAL, train, write_folder

from slmq.checkpoint import open_checkpoint
from slmq.tokenizer import Tokenizer, load_tokenizer

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
BASE = train(BYTE_LEVEL)
SIZE = BASE.get_vocab_size()
START, END = "<|start|>", "<|stop|>"
CHAT = f"{START}user\nhi{END}\n"


def folder(path: Path, rows: int = SIZE + 2, **files: Any) -> Tokenizer:
    """The tokenizer of a folder whose model has so many rows."""
    named = {name.replace("__", "."): value for name, value in files.items()}
    config = {"model_type": "llama", "vocab_size": rows}
    write_folder(path, {"config.json": config, "tokenizer.json": BASE.to_str(), **named})
    with open_checkpoint(path) as checkpoint:
        return load_tokenizer(checkpoint)


PLACES: dict[str, dict[str, Any]] = {
    "added_tokens.json": {
        "added_tokens__json": {END: SIZE, START: SIZE + 1},
        "tokenizer_config__json": {"eos_token": END, "additional_special_tokens": [START]},
    },
    "added_tokens_decoder": {
        "tokenizer_config__json": {
            "added_tokens_decoder": {
                str(SIZE): {"content": END, "special": True},
                str(SIZE + 1): {"content": START, "special": True},
            }
        }
    },
    "additional_special_tokens": {
        "tokenizer_config__json": {"eos_token": END, "additional_special_tokens": [START]}
    },
    "extra_special_tokens": {
        "tokenizer_config__json": {"eos_token": END, "extra_special_tokens": [START]}
    },
    "extra_special_tokens by name": {
        "tokenizer_config__json": {"eos_token": END, "extra_special_tokens": {"soi": START}}
    },
    "a name of its own": {"tokenizer_config__json": {"eos_token": END, "image_token": START}},
    "special_tokens_map.json": {
        "special_tokens_map__json": {
            "eos_token": {"content": END},
            "additional_special_tokens": [START],
        }
    },
}


@pytest.mark.parametrize("files", PLACES.values(), ids=list(PLACES))
def test_tokens_of_every_file_are_read(tmp_path: Path, files: dict[str, Any]) -> None:
    """A base model's tokenizer.json, and chat tokens that only the small files add."""
    tokenizer = folder(tmp_path, **files)
    ids = tokenizer.encode(CHAT, add_special=False)
    assert (ids[0], ids[-2]) == (SIZE + 1, SIZE)
    assert {SIZE, SIZE + 1} <= tokenizer.special_ids
    assert tokenizer.token_bytes(SIZE + 1) == START.encode()
    assert tokenizer.decode(ids) == "user\nhi\n"


def test_transformers_gives_the_same_ids(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for i, files in enumerate(PLACES.values()):
        ours = folder(tmp_path / str(i), **files)
        config = tmp_path / str(i) / "tokenizer_config.json"
        parsed = json.loads(config.read_text()) if config.exists() else {}
        config.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **parsed}))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / str(i))
        assert ours.encode(CHAT) == theirs(CHAT).input_ids


def test_special_only_if_a_file_says_so(tmp_path: Path) -> None:
    """CodeGen and Phi list runs of white space, which are text."""
    files = {
        "added_tokens__json": {"\t\t": SIZE, "<tool>": SIZE + 1, END: SIZE + 2},
        "tokenizer_config__json": {"eos_token": END},
    }
    tokenizer = folder(tmp_path, rows=SIZE + 3, **files)
    text = "a\n\t\tb<tool>c" + END
    ids = tokenizer.encode(text, add_special=False)
    assert {SIZE, SIZE + 1, SIZE + 2} <= set(ids)
    assert tokenizer.decode(ids) == "a\n\t\tb<tool>c"


def test_the_flags_of_the_configuration_count(tmp_path: Path) -> None:
    """tokenizer.json calls it special and lets it be; the configuration lets it take spaces."""
    entry = {"content": SPECIAL[1], "lstrip": True, "rstrip": True, "special": False}
    described = {"added_tokens_decoder": {"1": entry}}
    plain = folder(tmp_path / "plain").encode(f"a {SPECIAL[1]} b")
    changed = folder(tmp_path / "changed", tokenizer_config__json=described)
    ids = changed.encode(f"a {SPECIAL[1]} b")
    assert len(ids) < len(plain)
    assert 1 not in changed.special_ids


def test_tokens_beyond_the_embedding_stay_text_and_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """[PAD] as id 32000 of 32000 rows: its row does not exist."""
    files = {
        "added_tokens__json": {"[PAD]": SIZE},
        "tokenizer_config__json": {"pad_token": "[PAD]"},
    }
    tokenizer = folder(tmp_path, rows=SIZE, **files)
    assert tokenizer.n_vocab == SIZE
    assert tokenizer.decode(tokenizer.encode("a[PAD]")) == "a[PAD]"
    assert "no embedding" in caplog.text


def test_a_name_counts_as_the_newer_file_says(tmp_path: Path) -> None:
    """Without added_tokens_decoder special_tokens_map.json counts, as in transformers."""
    old = {"eos_token": SPECIAL[2]}
    new = {"eos_token": SPECIAL[1]}
    first = folder(tmp_path / "1", tokenizer_config__json=new, special_tokens_map__json=old)
    assert first.parts.special_tokens["eos_token"] == SPECIAL[2]
    described = {"0": {"content": SPECIAL[0], "special": True}}
    second = folder(
        tmp_path / "2",
        tokenizer_config__json=new | {"added_tokens_decoder": described},
        special_tokens_map__json=old,
    )
    assert second.parts.special_tokens["eos_token"] == SPECIAL[1]


def test_an_id_that_is_taken_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path, rows=SIZE + 9, added_tokens__json={"<|new|>": SIZE + 5})
    assert f"the id {SIZE + 5}, the tokenizer gives it {SIZE}" in caplog.text
