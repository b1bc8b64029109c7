"""Tokenizers: the ids of the model's own tokenizer from both kinds of file, and broken files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import (
    SPECIAL,
    USER_DEFINED,
    bos_first,
    gguf_keys,
    lines,
    train,
    write_folder,
    write_gguf,
)
from tokenizers import Tokenizer as Reference

from slmq.checkpoint import open_checkpoint
from slmq.errors import CheckpointError, Error, TokenizerError
from slmq.tokenizer import Tokenizer, load_tokenizer

# The `pre_tokenizer` of each family, as its tokenizer.json has it.
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}


def split(*patterns: str) -> dict[str, Any]:
    """The usual sequence: patterns, then bytes."""
    steps = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*steps, BYTES]}


FAMILIES: dict[str, tuple[dict[str, Any], str | None]] = {
    "gpt-2": (GPT2, None),
    "smollm": (
        {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2],
        },
        None,
    ),
    "llama-bpe": (
        split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        None,
    ),
    "qwen2": (
        split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "NFC",
    ),
    "tekken": (
        split(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        None,
    ),
    "gpt-4o": (
        split(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
            r"\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        None,
    ),
    "deepseek-v3": (
        split(
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
            r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        None,
    ),
}


def load(path: Path) -> Tokenizer:
    with open_checkpoint(path) as checkpoint:
        return load_tokenizer(checkpoint)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """A small tokenizer that cuts as SmolLM2's does."""
    return train(*FAMILIES["smollm"][:1])


@pytest.fixture
def folder(tmp_path: Path, reference: Reference) -> Callable[..., Path]:
    """A function that writes the reference as a folder, with files changed."""

    def write(**files: Any) -> Path:
        named = {name.replace("__", "."): value for name, value in files.items()}
        return write_folder(tmp_path / "model", {"tokenizer.json": reference.to_str()} | named)

    return write


# The ids of the model's own tokenizer ---------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_both_files_give_the_ids_of_the_reference(name: str, tmp_path: Path) -> None:
    pre_tokenizer, normalizer = FAMILIES[name]
    reference = train(pre_tokenizer, normalizer=normalizer)
    folder = load(write_folder(tmp_path / "hf", {"tokenizer.json": reference.to_str()}))
    binary = load(write_gguf(tmp_path / "m.gguf", gguf_keys(reference, name)))
    assert len(lines()) >= 2000
    different = [
        line
        for line in lines()
        if not folder.encode(line) == binary.encode(line) == reference.encode(line).ids
    ]
    assert different == []
    reference.encode_special_tokens = True
    for line in lines()[:500]:
        expected = reference.encode(line).ids
        assert folder.encode(line, parse_special=False) == expected
        assert binary.encode(line, parse_special=False) == expected


def test_both_files_agree_on_everything_else(
    reference: Reference, folder: Callable[..., Path], tmp_path: Path
) -> None:
    keys = gguf_keys(reference, "smollm")
    binary = load(write_gguf(tmp_path / "m.gguf", keys))
    config = {
        "bos_token": SPECIAL[1],
        "eos_token": {"content": SPECIAL[2]},
        "chat_template": keys["tokenizer.chat_template"],
    }
    hf = load(folder(tokenizer_config__json=config))
    assert binary.n_vocab == hf.n_vocab == reference.get_vocab_size()
    assert binary.bos_id == hf.bos_id == 1
    assert binary.eos_ids == hf.eos_ids == {0, 2}
    assert binary.special_ids == hf.special_ids == {0, 1, 2}
    assert binary.chat_template == hf.chat_template == config["chat_template"]
    for token in range(hf.n_vocab):
        assert binary.token_bytes(token) == hf.token_bytes(token)
    chat = [{"role": "user", "content": "a <|im_end|> b"}]
    assert (
        binary.render_chat(chat) == hf.render_chat(chat) == "<|im_start|>a <|im_end|> b<|im_end|>"
    )
    expected = hf.encode("<|im_start|>a <|im_end|> b<|im_end|>", add_special=False)
    assert binary.encode_chat(chat) == hf.encode_chat(chat) == expected
    assert expected.count(2) == 2


def test_decodes_as_the_reference_does(reference: Reference, folder: Callable[..., Path]) -> None:
    tokenizer = load(folder())
    rng = random.Random(3)
    for _ in range(500):
        ids = [rng.randrange(tokenizer.n_vocab) for _ in range(rng.randint(0, 20))]
        assert tokenizer.decode(ids) == reference.decode(ids)
        text = tokenizer.decode(ids, skip_special=False)
        assert text == reference.decode(ids, skip_special_tokens=False)


@settings(deadline=None, max_examples=300)
@given(text=st.text())
def test_round_trip(text: str, round_trip_tokenizer: Tokenizer) -> None:
    ids = round_trip_tokenizer.encode(text)
    assert round_trip_tokenizer.decode(ids, skip_special=False) == text
    plain = round_trip_tokenizer.encode(text, parse_special=False)
    assert round_trip_tokenizer.decode(plain) == text
    joined = b"".join(map(round_trip_tokenizer.token_bytes, ids))
    assert joined == text.encode("utf-8")


@pytest.fixture(scope="module")
def round_trip_tokenizer(
    reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return load(write_gguf(path, gguf_keys(reference, "smollm")))


def test_special_tokens_stay_text_where_asked(round_trip_tokenizer: Tokenizer) -> None:
    text = f"{SPECIAL[1]}user{SPECIAL[2]}{USER_DEFINED[0]}"
    assert set(round_trip_tokenizer.encode(text)) >= {1, 2}
    plain = round_trip_tokenizer.encode(text, parse_special=False)
    assert not round_trip_tokenizer.special_ids & set(plain)
    assert round_trip_tokenizer.decode(plain) == text
    # User-defined tokens are text that happens to be one token.
    assert plain[-1] == round_trip_tokenizer.encode(USER_DEFINED[0])[0] >= 900


# Beginnings and ends --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"tokenizer.ggml.add_bos_token": True}, [1]),
        ({"tokenizer.ggml.add_eos_token": True}, [2]),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, [1, 2]),
        ({"tokenizer.ggml.add_bos_token": None}, []),
        ({"tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.pre": "llama-bpe"}, [1]),
        ({"tokenizer.ggml.pre": "llama-bpe"}, []),
    ],
)
def test_bos_and_eos_of_gguf(
    changes: dict[str, Any], expected: list[int], reference: Reference, tmp_path: Path
) -> None:
    tokenizer = load(write_gguf(tmp_path / "m.gguf", gguf_keys(reference, "smollm") | changes))
    assert tokenizer.encode("") == expected
    assert tokenizer.encode("", add_special=False) == []


def test_bos_of_a_folder_comes_from_its_post_processor(tmp_path: Path) -> None:
    reference = train(GPT2)
    bos_first(reference)
    tokenizer = load(write_folder(tmp_path, {"tokenizer.json": reference.to_str()}))
    assert tokenizer.encode("x")[0] == 0
    assert tokenizer.encode("x", add_special=False) == tokenizer.encode("x")[1:]


@pytest.mark.parametrize(
    ("files", "bos", "ends"),
    [
        ({}, None, {0, 2}),
        ({"config.json": {"bos_token_id": 5, "eos_token_id": 6}}, 5, {0, 2, 6}),
        ({"config.json": {"eos_token_id": [6, 7]}}, None, {0, 2, 6, 7}),
        ({"generation_config.json": {"bos_token_id": 5, "eos_token_id": [8, 2]}}, 5, {0, 2, 8}),
        ({"tokenizer_config.json": {"eos_token": "Q"}}, None, {0, 2, "Q"}),
        ({"special_tokens_map.json": {"bos_token": {"content": SPECIAL[1]}}}, 1, {0, 2}),
        (
            {"tokenizer_config.json": {"bos_token": None}, "config.json": {"bos_token_id": 5}},
            None,
            {0, 2},
        ),
    ],
)
def test_special_tokens_of_a_folder(
    files: dict[str, Any],
    bos: int | None,
    ends: set[int | str],
    folder: Callable[..., Path],
    reference: Reference,
) -> None:
    tokenizer = load(folder(**files))
    expected = {reference.token_to_id(e) if isinstance(e, str) else e for e in ends}
    assert tokenizer.bos_id == bos
    assert tokenizer.eos_ids == expected


def test_tokens_that_only_the_configuration_calls_special(folder: Callable[..., Path]) -> None:
    config = {
        "eos_token": "Q",
        "added_tokens_decoder": {"902": {"content": "<extra>", "special": True}},
    }
    tokenizer = load(folder(tokenizer_config__json=config))
    eos = tokenizer.encode("Q", add_special=False)
    assert set(eos) <= tokenizer.special_ids
    assert tokenizer.decode(tokenizer.encode("aQb<extra>c")) == "abc"


def test_padding_rows_are_silent_tokens(folder: Callable[..., Path]) -> None:
    tokenizer = load(folder(config__json={"vocab_size": 1024}))
    assert tokenizer.n_vocab == 1024
    assert tokenizer.token_bytes(1023) == b""
    assert tokenizer.decode([1023, 1000]) == ""


def test_settings_of_training_do_not_cut_prompts(
    folder: Callable[..., Path], reference: Reference
) -> None:
    description = json.loads(reference.to_str())
    description["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    description["padding"] = {
        "strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "x",
    }  # fmt: skip
    tokenizer = load(folder(tokenizer__json=description))
    assert (
        tokenizer.encode("one two three four five")
        == reference.encode("one two three four five").ids
    )


# Chat templates in files ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "plain", "with_tools"),
    [
        ({"tokenizer_config.json": {"chat_template": "a"}}, "a", "a"),
        ({"tokenizer_config.json": {"chat_template": "a"}, "chat_template.jinja": "b"}, "b", "b"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "default", "template": "a"},
                        {"name": "tool_use", "template": "b"},
                    ]
                }
            },
            "a",
            "b",
        ),
        (
            {
                "chat_template.jinja": "{{ eos_token }}",
                "additional_chat_templates/tool_use.jinja": "b",
                "special_tokens_map.json": {"eos_token": SPECIAL[2]},
            },
            SPECIAL[2],
            "b",
        ),
    ],
)
def test_templates_of_a_folder(
    files: dict[str, Any], plain: str, with_tools: str, folder: Callable[..., Path]
) -> None:
    tokenizer = load(folder(**files))
    chat = [{"role": "user", "content": "x"}]
    assert tokenizer.render_chat(chat) == plain
    assert tokenizer.render_chat(chat, tools=[{}]) == with_tools


def test_templates_of_gguf(reference: Reference, tmp_path: Path) -> None:
    keys = gguf_keys(reference, "smollm") | {
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "tools",
    }
    tokenizer = load(write_gguf(tmp_path / "m.gguf", keys))
    chat = [{"role": "user", "content": "x"}]
    assert tokenizer.render_chat(chat) == "<|im_start|>x<|im_end|>"
    assert tokenizer.render_chat(chat, tools=[{}]) == "tools"


# Wrong arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"bytes", None, 5, ["a"]])
def test_encode_takes_strings_only(text: Any, round_trip_tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="expected a str"):
        round_trip_tokenizer.encode(text)


def test_encode_refuses_lone_surrogates(round_trip_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"U\+DC80 at index 3"):
        round_trip_tokenizer.encode("ab " + b"\x80".decode("utf-8", "surrogateescape"))


def test_ids_are_checked(round_trip_tokenizer: Tokenizer) -> None:
    n = round_trip_tokenizer.n_vocab
    for token in (-1, n, 1 << 70):
        with pytest.raises(ValueError, match=f"from 0 to {n - 1}, got {token}"):
            round_trip_tokenizer.decode([5, token])
        with pytest.raises(ValueError, match="from 0 to"):
            round_trip_tokenizer.stream().push(token)
    wrong: list[Any] = ["a", 1.0, None]
    for token in wrong:
        with pytest.raises(TypeError, match="an integer"):
            round_trip_tokenizer.token_bytes(token)


# Broken files ---------------------------------------------------------------------------------

LONG = "a" * 2000


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": None}, "no tokenizer.ggml.model"),
        ({"model": "rwkv"}, "'rwkv'.*not supported yet"),
        ({"model": 5}, "expected a string, got int 5"),
        ({"pre": None}, "no tokenizer.ggml.pre"),
        ({"pre": "klingon"}, "unknown pre-tokenizer 'klingon', expected one of .*smollm"),
        ({"tokens": None}, "expected the vocabulary"),
        ({"tokens": [1, 2]}, "expected a list of str, got int"),
        ({"tokens": "abc"}, "expected a list of str, got str"),
        ({"tokens": lambda t: [*t[:-1], t[0]]}, "both '<|endoftext|>'"),
        ({"token_type": lambda t: t[:-1]}, "expected 902 entries"),
        ({"token_type": lambda t: [*t[:-1], 9]}, "expected 0 to 6, got 9"),
        ({"token_type": lambda t: [float(i) for i in t]}, "expected a list of int, got float"),
        ({"merges": None}, "needs its merges"),
        ({"merges": ["a b", "ab"]}, "entry [01] is"),
        ({"merges": ["a zzz"]}, "entry 0 is 'a zzz'"),
        ({"merges": ["Q W"]}, "entry 0 is 'Q W'"),
        ({"merges": [" "]}, "entry 0 is ' '"),
        ({"merges": [LONG + " " + LONG]}, "entry 0 is 'aaa"),
        ({"merges": [5]}, "expected a list of str, got int"),
        ({"add_bos_token": 1}, "expected true or false, got int"),
        ({"tokenizer.chat_template": 5}, "chat_template: expected a string"),
        ({"tokenizer.chat_templates": [1]}, "expected a list of str"),
    ],
)
def test_broken_gguf_metadata(
    changes: dict[str, Any], match: str, reference: Reference, tmp_path: Path
) -> None:
    keys = gguf_keys(reference, "smollm")
    for name, value in changes.items():
        key = name if name.startswith("tokenizer.") else f"tokenizer.ggml.{name}"
        keys[key] = value(keys[key]) if callable(value) else value
    path = write_gguf(tmp_path / "m.gguf", keys)
    with pytest.raises(TokenizerError, match=match) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bos_token_id": 905}, "bos_token_id is 905, expected ids from 0 to 901"),
        ({"eos_token_id": 32000}, "eos_token_id is 32000"),
        ({"eot_token_id": 1 << 40}, "eot_token_id is 1099511627776"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'"),
        ({"unknown_token_id": 1.5}, "unknown_token_id is 1.5"),
        ({"padding_token_id": 902}, "padding_token_id is 902"),
        ({"add_bos_token": True, "bos_token_id": None}, "no usable bos_token_id"),
        ({"add_eos_token": True, "eos_token_id": 905}, "no usable eos_token_id"),
        ({"eos_token_id": -1, "padding_token_id": 0xFFFFFFFF}, ""),
    ],
)
def test_ids_of_special_tokens_that_are_none(
    changes: dict[str, Any],
    words: str,
    reference: Reference,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in llama.cpp: the file loads, and the id is as good as absent."""
    keys = gguf_keys(reference, "smollm")
    keys |= {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    tokenizer = load(write_gguf(tmp_path / "m.gguf", keys))
    assert tokenizer.encode("a b") == reference.encode("a b").ids
    assert words in caplog.text
    assert (caplog.text == "") == (words == "")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": {"eos_token_id": 50256}}, "config.json: eos_token_id is 50256"),
        ({"config.json": {"eos_token_id": [2, 50256]}}, "eos_token_id is [2, 50256]"),
        ({"config.json": {"eos_token_id": -1, "bos_token_id": -1, "pad_token_id": -1}}, ""),
        ({"generation_config.json": {"eos_token_id": [0, "x"]}}, "generation_config.json: eos"),
        ({"config.json": {"bos_token_id": True}}, "bos_token_id is True"),
    ],
)
def test_ids_of_a_folder_that_are_none(
    files: dict[str, Any],
    words: str,
    folder: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in transformers: tiny test models and merges keep ids of another vocabulary."""
    tokenizer = load(folder(**{name.replace(".", "__"): value for name, value in files.items()}))
    assert tokenizer.bos_id is None
    assert tokenizer.eos_ids <= {0, 2}
    assert words in caplog.text
    assert (caplog.text == "") == (words == "")


@pytest.mark.parametrize(
    ("files", "error", "match"),
    [
        ({"tokenizer.json": None}, TokenizerError, "no tokenizer.json"),
        ({"tokenizer.json": "{"}, TokenizerError, "tokenizer.json: "),
        ({"tokenizer.json": "[]"}, TokenizerError, "tokenizer.json: "),
        ({"tokenizer.json": {"model": {"type": "X"}}}, TokenizerError, "tokenizer.json: "),
        (
            {"tokenizer.json": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}},
            TokenizerError,
            "decoder of kind none",
        ),
        (
            {
                "tokenizer.json": {
                    "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
                    "decoder": {"type": "CTC", "pad_token": "", "word_delimiter_token": "",
                                "cleanup": True},
                }
            },
            TokenizerError,
            "decoder of kind CTC",
        ),
        (
            {"tokenizer.json": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1},
                                          "merges": ["a b"]}}},
            TokenizerError,
            "tokenizer.json: ",
        ),
        ({"tokenizer_config.json": "{"}, CheckpointError, "tokenizer_config.json"),
        ({"tokenizer_config.json": {"bos_token": 5}}, TokenizerError, "bos_token: expected a str"),
        ({"tokenizer_config.json": {"chat_template": 5}}, TokenizerError, "chat_template: "),
        ({"tokenizer_config.json": {"chat_template": ["x"]}}, TokenizerError, "chat_template: "),
        ({"tokenizer_config.json": {"added_tokens_decoder": [1]}}, TokenizerError, "by id"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"1": 2}}}, TokenizerError, "a token"),
        ({"config.json": {"vocab_size": -1}}, TokenizerError, "vocab_size"),
        ({"config.json": {"vocab_size": "x"}}, TokenizerError, "vocab_size"),
        ({"generation_config.json": "[1]"}, CheckpointError, "generation_config.json"),
    ],
)  # fmt: skip
def test_broken_folders(
    files: dict[str, Any], error: type[Error], match: str, folder: Callable[..., Path]
) -> None:
    with pytest.raises(error, match=match):
        load(folder(**files))


def test_mutated_tokenizer_json(folder: Callable[..., Path]) -> None:
    """Whatever a byte becomes: a tokenizer that works, or an error of ours."""
    rng = random.Random(11)
    small = {
        "added_tokens": [{"id": 3, "content": "<s>", "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True}],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated",
                          "invert": False},
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                    "split": True},
        "model": {"type": "BPE", "unk_token": "a", "fuse_unk": True, "byte_fallback": True,
                  "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3}, "merges": [["a", "b"]]},
    }  # fmt: skip
    text = json.dumps(small, ensure_ascii=False)
    good = bad = 0
    for _ in range(600):
        cut = rng.randrange(len(text))
        mutated = text[:cut] + rng.choice(["", "0", "9", '"', "}", "]", "x", "-", "null"])
        mutated += text[cut + rng.randint(0, 3) :]
        path = folder(tokenizer__json=mutated)
        try:
            tokenizer = load(path)
            tokenizer.decode(tokenizer.encode("ab c <s>x"))
            good += 1
        except Error:
            bad += 1
    assert good > 20
    assert bad > 200


def test_mutated_gguf_metadata(tmp_path: Path) -> None:
    """Whatever the metadata holds: a tokenizer that works, or an error of ours."""
    rng = random.Random(12)
    base: dict[str, Any] = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": ["<|im_end|>", "a", "b", "ab", "Ġ", "Ġab"],
        "token_type": [3, 1, 1, 1, 1, 1],
        "merges": ["a b", "Ġ ab"],
        "scores": [0.0, -1.0, -2.0, -3.0, -4.0, -5.0],
        "bos_token_id": 1,
        "eos_token_id": 0,
        "add_bos_token": True,
        "add_space_prefix": True,
    }
    strange: list[Any] = [
        None, 0, -1, 7, 1 << 62, True, 1.5, float("nan"), "", "llama", "gpt2", "default", "a b",
        [""], ["a", "a"], ["a b", "b a"], [0], [3, 3, 3, 3, 3, 3], [5, 5, 5, 5, 5, 5],
        [2, 4, 6, 0, 1, 3], [0.0] * 6, [float("inf")] * 6, ["", "a", "b", "ab", "▁", "▁ab"],
        ["<0x0A>", "a", "b", "ab", "\u0000", "\n"],
    ]  # fmt: skip
    good = bad = 0
    for i in range(600):
        keys = dict(base, model=rng.choice(["gpt2", "llama"]))
        for name in rng.choices(list(keys), k=rng.randint(1, 3)):
            keys[name] = rng.choice(strange)
        named = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
        try:
            tokenizer = load(write_gguf(tmp_path / f"{i}.gguf", named))
            tokenizer.decode(tokenizer.encode("ab <|im_end|> ba\n"))
            good += 1
        except TokenizerError:
            bad += 1
    assert good > 20
    assert bad > 200
