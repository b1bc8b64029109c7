"""Hostile ``tokenizer.json`` files: refused before they take time or memory, and generated ones."""

from __future__ import annotations

import base64
import copy
import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from storm import watch
from tokenizer_files import write_folder

from slmq.checkpoint import open_checkpoint
from slmq.errors import TokenizerError
from slmq.tokenizer import Tokenizer, load_tokenizer
from slmq.tokenizer.growth import MAX_GROWN, growth_of_steps, steps_of

BASE: dict[str, Any] = json.loads(byte_tokenizer().to_str())
BYTES = BASE["pre_tokenizer"]
STORM = str(Path(__file__).parents[1] / "support" / "tokenizer_storm.py")


def load(folder: Path, description: Any, config: Any = None) -> Tokenizer:
    files = {"tokenizer.json": description, "tokenizer_config.json": config or {}}
    with open_checkpoint(write_folder(folder / "model", files)) as checkpoint:
        return load_tokenizer(checkpoint)


def changed(**sections: Any) -> dict[str, Any]:
    return {**copy.deepcopy(BASE), **sections}


def replace(content: str, pattern: str = "a") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def chain(steps: list[Any], kind: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", kind: steps}


def token(content: str, i: int = 300) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": content, "special": i % 2 == 0, **flags}


def frame(ids: list[int], single: list[str]) -> dict[str, Any]:
    kinds = {"A": {"Sequence": {"id": "A", "type_id": 0}}}
    other = {"SpecialToken": {"id": "x", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [kinds.get(name, other) for name in single],
        "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
        "special_tokens": {"x": {"id": "x", "ids": ids, "tokens": ["a"] * len(ids)}},
    }


def charsmap(claimed: int, rules: bytes = b"") -> dict[str, Any]:
    data = struct.pack("<I", claimed) + b"\0" * 64 + rules
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


UNIGRAM = {"type": "Unigram", "unk_id": 0, "byte_fallback": False}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "replacement of 10 MB": (changed(normalizer=replace("b" * 10**7)), "without a quote"),
    "replacement of escapes": (changed(normalizer=replace('"' * 300)), "at most 256"),
    "prepended text": (
        changed(normalizer={"type": "Prepend", "prepend": "b" * 999}),
        "at most 256",
    ),
    "chain that doubles": (changed(normalizer=chain([replace("aa")] * 40)), "bytes of one"),
    "chain of patterns": (
        changed(
            normalizer=chain([{"type": "Replace", "pattern": {"Regex": ""}, "content": "bc"}] * 9)
        ),
        "bytes of one",
    ),
    "forms and letters": (
        changed(normalizer=chain([replace("\ufdfa"), {"type": "NFKC"}] * 9)),
        "bytes of one",
    ),
    "bytes of bytes": (changed(pre_tokenizer=chain([BYTES] * 40, "pretokenizers")), "bytes of one"),
    "nested chains": (changed(normalizer=chain([chain([replace("aa")] * 9)] * 9)), "at most 64"),
    "many steps": (changed(normalizer=chain([{"type": "NFC"}] * 65)), "at most 64 steps, got 65"),
    "many decoders": (
        changed(decoder=chain([BASE["decoder"]] * 10**5, "decoders")),
        "'decoder': expected at most",
    ),
    "decoder's text": (
        changed(decoder=chain([replace("b" * 5000), BASE["decoder"]], "decoders")),
        "at most 256",
    ),
    "frame of ids": (changed(post_processor=frame([0] * 100, ["x", "A"])), "at most 64 ids"),
    "frame of a million ids": (
        changed(post_processor=frame([0] * 10**6, ["x", "A"])),
        "without a quote",
    ),
    "long added token": (changed(added_tokens=[token("a" * 5000)]), "at most 4096 characters"),
    "frame of pieces": (changed(post_processor=frame([0], ["x"] * 99 + ["A"])), "at most 64 ids"),
    "frame that repeats": (changed(post_processor=frame([0], ["A", "A"])), "repeats the text"),
    "frames that add up": (
        changed(post_processor=chain([frame([0], ["x", "A"])] * 20, "processors")),
        "at most 64 ids",
    ),
    "table of 4 GB": (
        changed(normalizer=charsmap((1 << 32) - 4)),
        "corrupt: a table of 4294967292",
    ),
    "table of odd size": (changed(normalizer=charsmap(7)), "corrupt"),
    "rule of 1 MB": (changed(normalizer=charsmap(64, b"a" * 2000)), "a rule of 2000 bytes"),
    "no base64": (changed(normalizer=charsmap(64) | {"precompiled_charsmap": "\u4e00"}), "base64"),
    "added token of 10 MB": (changed(added_tokens=[token("a" * 10**7)]), "without a quote"),
    "added token of quotes": (changed(added_tokens=[token('"' * 5000)]), "without a quote"),
    "added tokens in all": (
        changed(added_tokens=[token("a" * 4000 + str(i), 300 + i) for i in range(2100)]),
        "at most 8388608 characters",
    ),
    "too many added tokens": (
        changed(added_tokens=[{"content": "a"}] * ((1 << 18) + 1)),
        "at most 262144 added tokens",
    ),
    "unigram of a long piece": (
        changed(model=UNIGRAM | {"vocab": [["<unk>", 0.0], ["a" * 10**6, -1.0]]}),
        "without a quote",
    ),
    "suffix of words": (
        changed(model=BASE["model"] | {"end_of_word_suffix": "b" * 999}),
        "end_of_word_suffix",
    ),
    "long words": (
        changed(
            model={
                "type": "WordPiece",
                "unk_token": "a",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 10**9,
                "vocab": {"a": 0},
            }
        ),
        "max_input_chars_per_word",
    ),
    "unknown step": (changed(normalizer={"type": "Nonsense"}), "'Nonsense' is not supported"),
    "no object": (changed(normalizer=[5]), "expected an object, got list"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str, tmp_path: Path) -> None:
    description, match = HOSTILE[name]
    start = time.thread_time()
    with pytest.raises(TokenizerError, match=match):
        load(tmp_path, description)
    assert time.thread_time() - start < 2


def test_many_added_tokens_are_no_trouble(tmp_path: Path) -> None:
    entries = {str(i): token(f"<t{i}>", i) for i in range(300, 50_300)}
    start = time.thread_time()
    tokenizer = load(tmp_path, BASE, {"added_tokens_decoder": entries})
    assert time.thread_time() - start < 5  # one by one it takes minutes
    ids = tokenizer.encode("<t300><t50299>")
    assert len(ids) == 2
    assert ids[1] - ids[0] == 49_999
    assert tokenizer.decode(ids, skip_special=False) == "<t300><t50299>"
    assert ids[0] in tokenizer.special_ids
    assert ids[1] not in tokenizer.special_ids


SECTION = {"type": "Sequence", "normalizers": [replace("aa")] * 40}


@pytest.mark.parametrize("name", ['"normalizer"', '"n\\u006frmalizer"', '"normalize\\u0072"'])
@pytest.mark.parametrize("space", ["", " ", "\n\t"])
def test_nothing_hides_behind_the_model(name: str, space: str, tmp_path: Path) -> None:
    rest = {key: value for key, value in BASE.items() if key not in ("model", "normalizer")}
    text = json.dumps({**rest, "model": BASE["model"]})
    hidden = f"{text[:-1]},{name}{space}:{space}{json.dumps(SECTION)}}}"
    with pytest.raises(TokenizerError, match="bytes of one"):
        load(tmp_path, hidden)
    with pytest.raises(TokenizerError, match="'normalizer' occurs twice"):
        load(tmp_path, f'{{"normalizer": null, {hidden[1:]}')


def test_sections_may_stand_in_any_order(tmp_path: Path) -> None:
    found = []
    for i, names in enumerate((list(BASE), sorted(BASE), sorted(BASE, reverse=True))):
        folder = tmp_path / str(i)
        folder.mkdir()
        tokenizer = load(folder, json.dumps({name: BASE[name] for name in names}, indent=i))
        found.append(tokenizer.encode("some text"))
    assert found == [found[0]] * 3
    assert tokenizer.decode(found[0]) == "some text"


def test_tokens_that_look_like_sections_are_tokens(tmp_path: Path) -> None:
    description = copy.deepcopy(BASE)
    texts = [":{", '":{', '"normalizer":{', 'x": [', "normalizer", '\\":{', ":["]
    vocabulary = description["model"]["vocab"]
    size = max(vocabulary.values()) + 50
    vocabulary.update({text: size + i for i, text in enumerate(texts) if text not in vocabulary})
    tokenizer = load(tmp_path, description)
    assert tokenizer.token_bytes(size + 1) == b'":{'


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model"', '{"model": {}', "null", '{"a" 5}', "{]"]
)
def test_no_json_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load(tmp_path, text)


def test_growth_is_that_of_the_steps() -> None:
    def growth(*steps: dict[str, Any]) -> tuple[float, int]:
        found = growth_of_steps(steps_of(chain(list(steps)), "x"), "x")
        return float(found.factor), found.added

    assert growth() == (1, 0)
    assert growth({"type": "Prepend", "prepend": "\u2581"}, replace("\u2581", " ")) == (3, 9)
    assert growth(replace("b", "aaaa"), replace("aa", "b")) == (2, 0)
    assert growth({"type": "NFKC"}, {"type": "NFKC"}) == (11, 0)
    assert growth({"type": "NFC"}, replace("aa"), {"type": "NFC"}) == (18, 0)
    # Bounds hold for what grows the most of all.
    assert len("\ufdfa".encode()) * 11 == 33


def test_a_text_that_would_grow_too_long_is_refused(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, changed(normalizer=replace("b" * 200)))
    assert len(tokenizer.encode("a")) == 200
    with pytest.raises(TokenizerError, match=f"more than {MAX_GROWN}; split the text"):
        tokenizer.encode("a" * (MAX_GROWN // 400 + 1))
    # Where the rules could, but the text does not, it is tried and taken.
    long = "c" * (MAX_GROWN // 400 + 1)
    assert len(tokenizer.encode(long)) == len(long)


def test_generated_files_keep_to_their_time_and_memory() -> None:
    found = watch([STORM, "200", "1"], [STORM, "200", "2"])
    assert [run["over"] for run in found] == [[], []]
    for run in found:
        assert run["cases"] >= 200
        assert run["cases"] / 20 < run["texts"] < run["cases"] * 2 / 3
