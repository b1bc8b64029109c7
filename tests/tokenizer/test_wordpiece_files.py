"""WordPiece of folders with a vocab.txt alone, and words that MeCab cuts."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from encoder_files import FRAME, encoder_folder, word_tokenizer

import slmq
from slmq.errors import TokenizerError
from slmq.tokenizer.tokenizer import Tokenizer

TEXTS = ["A man is playing, the GUITAR?", "  Élan rain\tsun ", "rain[SEP]sun", "中文 rain", ""]
WORDS = ("吾輩", "は", "猫", "で", "ある", "。", "名前", "まだ", "無い", "##い", "日本", "語")
JAPANESE = [*WORDS, "名", "前", "1", "ｶﾀｶﾅ", "カタカナ"]


def folder_of(target: Path, tokens: list[str], **config: Any) -> Path:
    """A tiny model whose tokenizer is a vocab.txt."""
    encoder_folder(target)
    (target / "tokenizer.json").unlink()
    tokens = [*tokens, *(f"[unused{i}]" for i in range(259 - len(tokens)))]
    (target / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    (target / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return target


def tokenizer_of(folder: Path) -> Tokenizer:
    return slmq.load_encoder(folder).tokenizer


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    words = word_tokenizer(259)
    ids = words.get_vocab()
    folder = folder_of(tmp_path / "m", sorted(ids, key=ids.__getitem__))
    tokenizer = tokenizer_of(folder)
    for text in TEXTS:
        assert tokenizer.encode(text) == words.encode(text.replace("[SEP]", " [SEP] ")).ids or (
            "[SEP]" in text
        )
    pair = tokenizer.encode_parts("rain", "sun")
    assert (pair.ids, pair.types) == (words.encode("rain", "sun").ids, [0, 0, 0, 1, 1])
    assert tokenizer.id_of("mask_token") == 4
    packed = slmq.convert(folder, tmp_path / "packed")
    assert tokenizer_of(packed).encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_capital_letters(tmp_path: Path) -> None:
    tokens = [*FRAME, "Man", "man", "É", "##lan", "e", "中", "中文"]
    small = tokenizer_of(folder_of(tmp_path / "a", tokens))
    assert small.encode("Man Élan", add_special=False) == [6, 9, 8]
    cased = tokenizer_of(folder_of(tmp_path / "b", tokens, do_lower_case=False))
    assert cased.encode("Man Élan man", add_special=False) == [5, 7, 8, 6]
    assert cased.encode("中文", add_special=False) == [10, 1]
    whole = {"tokenize_chinese_chars": False, "strip_accents": False}
    kept = tokenizer_of(folder_of(tmp_path / "c", tokens, **whole))
    assert kept.encode("中文", add_special=False) == [11]


@pytest.mark.parametrize(
    ("tokens", "config", "message"),
    [
        ([*FRAME, "a", "a"], {}, "no two tokens alike"),
        (["a", "b"], {}, r"unknown token '\[UNK\]'"),
        (FRAME, {"do_lower_case": "yes"}, "expected true or false"),
        (
            FRAME,
            {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "sudachi"},
            "words by basic or mecab",
        ),
        (
            FRAME,
            {
                "tokenizer_class": "BertJapaneseTokenizer",
                "word_tokenizer_type": "mecab",
                "mecab_kwargs": {"mecab_dic": "mine"},
            },
            "mecab_dic: expected one of unidic_lite",
        ),
    ],
)
def test_refusals(tmp_path: Path, tokens: list[str], config: dict[str, Any], message: str) -> None:
    folder = folder_of(tmp_path / "m", tokens, **config)
    if "unknown" in message:
        (folder / "vocab.txt").write_text("a\nb\n", "utf-8")
    with pytest.raises(TokenizerError, match=message):
        tokenizer_of(folder)


# --- Japanese --------------------------------------------------------------------------------


def japanese(pieces: str, **config: Any) -> dict[str, Any]:
    return {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "mecab",
        "subword_tokenizer_type": pieces,
        "mecab_kwargs": {"mecab_dic": "unidic_lite"},
        **config,
    }


@pytest.mark.parametrize("pieces", ["wordpiece", "character"])
def test_words_of_mecab(tmp_path: Path, pieces: str) -> None:
    fugashi = pytest.importorskip("fugashi")
    unidic_lite = pytest.importorskip("unidic_lite")
    tokens = [*FRAME, *JAPANESE, *"吾輩猫名前"]
    tokens = list(dict.fromkeys(tokens))
    tokenizer = tokenizer_of(folder_of(tmp_path / "m", tokens, **japanese(pieces)))
    tagger = fugashi.GenericTagger(f'-d "{unidic_lite.DICDIR}" -r "{unidic_lite.DICDIR}/mecabrc"')
    for text in ("吾輩は猫である。名前はまだ無い。", "日本語 1 猫", "ｶﾀｶﾅ", "犬", ""):
        words = [word.surface for word in tagger(unicodedata.normalize("NFKC", text))]
        if pieces == "character":
            words = list("".join(words))
        want = [tokens.index(w) if w in tokens else 1 for w in words]
        assert tokenizer.encode(text, add_special=False) == want
    found = tokenizer.encode_parts("日本語の猫")
    assert [found.offsets[i] for i in (1, -2)] == (
        [(0, 2), (4, 5)] if pieces == "wordpiece" else [(0, 1), (4, 5)]
    )


@pytest.mark.parametrize("pieces", ["wordpiece", "character"])
def test_as_transformers_does_it(tmp_path: Path, pieces: str) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("fugashi")
    pytest.importorskip("unidic_lite")
    folder = folder_of(tmp_path / "m", [*FRAME, *JAPANESE], **japanese(pieces))
    theirs = transformers.BertJapaneseTokenizer.from_pretrained(folder)
    ours = tokenizer_of(folder)
    for text in ("吾輩は猫である。名前はまだ無い。", "日本語 1", "ｶﾀｶﾅ は カタカナ", "無いい"):
        assert ours.encode(text) == theirs(text)["input_ids"]


def test_without_mecab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import slmq.tokenizer.japanese as module

    def missing(name: str) -> Any:
        raise ImportError(name=name)

    monkeypatch.setattr(module, "import_module", missing)
    module._tagger.cache_clear()
    with pytest.raises(TokenizerError, match=r"fugashi is missing\): pip install 'slmq\[ja\]'"):
        tokenizer_of(folder_of(tmp_path / "m", FRAME, **japanese("wordpiece")))
