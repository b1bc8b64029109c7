"""SentencePiece vocabularies in GGUF files, against the algorithm done the slow way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spm_oracle import SPACE, spm_encode, spm_keys
from tokenizer_files import lines, write_folder, write_gguf

from slmq.checkpoint import open_checkpoint
from slmq.errors import TokenizerError
from slmq.tokenizer import Tokenizer, load_tokenizer


def load(path: Path, **changes: Any) -> Tokenizer:
    keys = spm_keys() | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    with open_checkpoint(write_gguf(path / "m.gguf", keys)) as checkpoint:
        return load_tokenizer(checkpoint)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load(tmp_path_factory.mktemp("gguf"))


def test_ids_are_those_of_the_slow_way(tokenizer: Tokenizer) -> None:
    keys = spm_keys()
    assert len(lines()) >= 2000
    for line in lines():
        ids = tokenizer.encode(line[:60], parse_special=False)
        assert ids == [1, *spm_encode(line[:60], keys)], line


@settings(deadline=None, max_examples=300)
@given(text=st.text(alphabet=st.sampled_from("abcdehlnorst e.\n\té😀"), max_size=60))
def test_any_text_is_as_the_slow_way_and_comes_back(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text, add_special=False)
    assert ids == spm_encode(text, spm_keys())
    assert tokenizer.decode(ids) == text


def test_runs_of_spaces_that_share_a_score(tmp_path: Path) -> None:
    """As in Llama 2, where they all have the worst score there is."""
    keys = spm_keys()
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    kept = [i for i, token in enumerate(tokens) if not token.startswith(SPACE * 2)]
    runs = [SPACE * n for n in (2, 4, 8, 5, 3, 7, 6)]
    changes = {
        "tokens": [tokens[i] for i in kept] + runs,
        "scores": [scores[i] for i in kept] + [-1e9] * len(runs),
        "token_type": [keys["tokenizer.ggml.token_type"][i] for i in kept] + [1] * len(runs),
    }
    tokenizer = load(tmp_path, **changes)
    changed = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    for n in range(30):
        for text in (" " * n, "the" + " " * n + "end", " " * n + "\n" + " " * (n // 2) + "to"):
            assert tokenizer.encode(text, add_special=False) == spm_encode(text, changed)


@pytest.mark.parametrize("levels", [1, 2, 7, 60])
def test_pieces_that_share_their_scores(levels: int, tmp_path: Path) -> None:
    """As in vocabularies that were extended by pieces of another model: the leftmost goes first."""
    keys = spm_keys()
    scores = [-float(int(-score) % levels) for score in keys["tokenizer.ggml.scores"]]
    tokenizer = load(tmp_path, scores=scores)
    changed = keys | {"tokenizer.ggml.scores": scores}
    for line in lines()[::8]:
        ids = tokenizer.encode(line[:60], parse_special=False)
        assert ids == [1, *spm_encode(line[:60], changed)], line
    long = "the end of the lines " * 2000
    assert tokenizer.decode(tokenizer.encode(long)) == long


def test_control_tokens_begin_a_new_text(tokenizer: Tokenizer) -> None:
    keys = spm_keys()
    expected = [1, *spm_encode("a", keys), 2, *spm_encode(" b", keys)]
    assert tokenizer.encode("a</s> b") == expected
    plain = tokenizer.encode("a</s> b", parse_special=False)
    assert plain == [1, *spm_encode("a</s> b", keys)]
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.eos_ids == {2}


def test_without_the_space_before(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, add_space_prefix=False, add_bos_token=False, add_eos_token=True)
    assert tokenizer.encode("ab cd") == [*spm_encode("ab cd", spm_keys(), space_prefix=False), 2]
    assert tokenizer.decode(tokenizer.encode(" ab")) == " ab"


def test_characters_without_pieces_are_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0010fffe", add_special=False)
    assert [tokenizer.token_bytes(i) for i in ids] == [b" ", b"\xf4", b"\x8f", b"\xbf", b"\xbe"]
    assert tokenizer.decode(ids[:-1]) == "\N{REPLACEMENT CHARACTER}"


def test_pieces_that_are_no_unicode_are_read_only(tmp_path: Path) -> None:
    keys = spm_keys()
    broken = [*keys["tokenizer.ggml.tokens"][:-1], b"\xe2\x96"]
    tokenizer = load(tmp_path, tokens=[t.encode() if isinstance(t, str) else t for t in broken])
    last = tokenizer.n_vocab - 1
    assert tokenizer.token_bytes(last) == b"\xe2\x96"
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


MARKS = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
BYTES = {"type": "ByteFallback"}
FUSE = {"type": "Fuse"}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
METASPACE = {"type": "Metaspace", "replacement": SPACE, "split": False}


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        ({"type": "Sequence", "decoders": [MARKS, BYTES, FUSE, STRIP]}, "a a\n"),
        ({"type": "Sequence", "decoders": [MARKS, BYTES, FUSE]}, " a a\n"),
        (
            {"type": "Sequence", "decoders": [BYTES, METASPACE | {"prepend_scheme": "first"}]},
            "a a\n",
        ),
        (METASPACE | {"prepend_scheme": "never"}, " a a\n"),
    ],
)
def test_folders_say_by_their_decoder_how_text_is_spelled(
    decoder: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    description = {
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": text != SPACE * 2}
            for i, text in enumerate(["<s>", SPACE * 2])
        ],
        "model": {"type": "BPE", "byte_fallback": True, "merges": [[SPACE, "a"]],
                  "vocab": {"<s>": 0, SPACE * 2: 1, "a": 2, SPACE: 3, f"{SPACE}a": 4,
                            "<0x0A>": 5}},
        "decoder": decoder,
    }  # fmt: skip
    with open_checkpoint(write_folder(tmp_path, {"tokenizer.json": description})) as checkpoint:
        tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.decode([0, 4, 4, 5]) == expected
    assert [tokenizer.token_bytes(i) for i in range(6)] == [b"<s>", b"  ", b"a", b" ", b" a", b"\n"]
    assert tokenizer.encode(f"{SPACE}a\n<s>") == [4, 5, 0]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scores": None}, "needs them"),
        ({"scores": [0.0]}, "expected .* entries, one for each token, got 1"),
        ({"scores": [1, 2]}, "expected a list of float, got int"),
        ({"scores": "nan"}, "is nan, expected a number"),
        ({"tokens": "long"}, "a piece of 2000 characters"),
    ],
)
def test_vocabularies_that_cannot_be_reproduced(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    tokens = spm_keys()["tokenizer.ggml.tokens"]
    lists = {
        "nan": [float("nan")] * len(tokens),
        "long": [*tokens[:-1], SPACE * 2000],
    }
    values = {k: lists.get(v, v) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(TokenizerError, match=match):
        load(tmp_path, **values)
