"""Tokenizers of folders that have no ``tokenizer.json``.

A model of the SentencePiece library (``tokenizer.model``, ``spiece.model``), the ``vocab.json`` and
``merges.txt`` of byte-level BPE, or the ``vocab.txt`` of WordPiece. All say little: what else there
is to know is what the class named in ``tokenizer_config.json`` does in `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from slmq.checkpoint.jsonfile import read_json_object
from slmq.errors import TokenizerError
from slmq.tokenizer.added import Named, listed_tokens
from slmq.tokenizer.files import read_text_file
from slmq.tokenizer.japanese import JAPANESE_CLASS, cut_japanese
from slmq.tokenizer.merging import PrefixOnce
from slmq.tokenizer.pieces import SPACE_MARK
from slmq.tokenizer.pretokenizers import pre_tokenizer
from slmq.tokenizer.sentencepiece import (
    HIDDEN_SCORE,
    build_sentencepiece,
    build_unigram,
    space_steps,
)
from slmq.tokenizer.sentencepiece_model import SentencePieceModel, read_sentencepiece_model
from slmq.tokenizer.vocabulary import Kind
from slmq.tokenizer.wordpiece import SPECIAL, add_frame, build_wordpiece

__all__ = ["SENTENCEPIECE_FILES", "WORDS", "OlderFiles", "read_older_files"]

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
MAX_BYTES = 64 << 20

# The rule of cutting by tokenizer class, or by model type where no class is named.
BYTE_LEVEL_RULES = {
    "GPT2Tokenizer": "gpt-2",
    "CodeGenTokenizer": "phi-2",
    "GPTNeoXTokenizer": "olmo",
    "Qwen2Tokenizer": "qwen2",
    "gpt2": "gpt-2",
    "phi": "phi-2",
    "gpt_neox": "olmo",
    "qwen2": "qwen2",
    "qwen3": "qwen2",
}
WORDS = "vocab.txt"
END_OF_TEXT = "<|endoftext|>"  # what all of these classes call their end token by default


class OlderFiles(NamedTuple):
    """A tokenizer, and its special tokens by name (``bos_token``) where the folder names none."""

    backend: tokenizers.Tokenizer
    special: dict[str, str]


def read_older_files(
    folder: Path, config: Mapping[str, Any], model_type: object, named: Named
) -> OlderFiles | None:
    """Build the tokenizer of a folder without ``tokenizer.json``; None if it has no files for one.

    Parameters
    ----------
    folder : Path
    config : Mapping
        ``tokenizer_config.json``.
    model_type : object
        That of ``config.json``.
    named : Named
        Special tokens, as far as the small files name them.

    Raises
    ------
    TokenizerError
        A file is corrupt or of a kind that slmq lacks.
    CheckpointError
        ``vocab.json`` or ``added_tokens.json`` is no JSON object.
    """
    kind = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    texts = named.texts
    added = listed_tokens(folder, config, named.all)
    for name in SENTENCEPIECE_FILES:
        if (folder / name).exists():
            model = read_sentencepiece_model(folder / name)
            return _from_sentencepiece(model, config, kind, texts, added)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _byte_level(folder, config, kind or str(model_type), texts, added)
    if (folder / WORDS).exists():
        return _wordpiece(folder, config, kind, texts, added)
    return None


def _from_sentencepiece(
    model: SentencePieceModel,
    config: Mapping[str, Any],
    kind: str,
    texts: Mapping[str, str],
    added: Mapping[int, AddedToken],
) -> OlderFiles:
    named = {f"{name}_token": model.pieces[i] for name, i in model.special.items()}
    backend = _bpe(model) if model.model_type == "bpe" else _unigram(model)
    prefix = config.get("add_prefix_space")
    prefix = model.dummy_prefix if not isinstance(prefix, bool) else prefix
    # Before the whole text only, or also behind every special token, as transformers once did.
    everywhere = config.get("legacy") is True
    backend.normalizer = normalizers.Sequence(
        space_steps(
            prefix=prefix and everywhere,
            charsmap=model.charsmap,
            remove_spaces=model.remove_spaces,
        )
    )
    if prefix and not everywhere:
        once = pre_tokenizers.PreTokenizer.custom(PrefixOnce(SPACE_MARK))
        merging = [] if backend.pre_tokenizer is None else [backend.pre_tokenizer]
        backend.pre_tokenizer = pre_tokenizers.Sequence([once, *merging])
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    _add_tokens(backend, added)
    known = {token.content for token in added.values()}
    for *kinds, special in ((Kind.CONTROL, Kind.UNKNOWN, True), (Kind.USER_DEFINED, False)):
        pieces = [model.pieces[i] for i in model.of_kind(*kinds) if model.pieces[i] not in known]
        tokens = [AddedToken(piece, normalized=not special) for piece in pieces]
        (backend.add_special_tokens if special else backend.add_tokens)(tokens)
    t5 = kind == "T5Tokenizer"
    _add_around(backend, config, {**named, **texts}, bos=not t5, eos=t5)
    return OlderFiles(backend, named)


def _bpe(model: SentencePieceModel) -> tokenizers.Tokenizer:
    # Unused pieces keep their place, under names that no text has.
    unused = set(model.of_kind(Kind.UNUSED))
    ids = {f"\0{i}" if i in unused or not p else p: i for i, p in enumerate(model.pieces)}
    return build_sentencepiece(
        ids,
        {model.pieces[i]: model.scores[i] for i in model.of_kind(Kind.NORMAL)},
        unknown=model.pieces[model.special["unk"]],
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: SentencePieceModel) -> tokenizers.Tokenizer:
    text = set(model.of_kind(Kind.NORMAL, Kind.USER_DEFINED))
    return build_unigram(
        [piece or f"\0{i}" for i, piece in enumerate(model.pieces)],
        [score if i in text else HIDDEN_SCORE for i, score in enumerate(model.scores)],
        unknown_id=model.special["unk"],
        byte_fallback=model.byte_fallback,
    )


def _byte_level(
    folder: Path,
    config: Mapping[str, Any],
    kind: str,
    texts: Mapping[str, str],
    added: Mapping[int, AddedToken],
) -> OlderFiles:
    if kind not in BYTE_LEVEL_RULES:
        raise TokenizerError(
            f"vocab.json and merges.txt of {kind!r:.80}: unknown how it splits text into words; "
            f"expected one of {', '.join(BYTE_LEVEL_RULES)}. Save a tokenizer.json with "
            f"transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    rule = pre_tokenizer(BYTE_LEVEL_RULES[kind])
    ids = _vocabulary(folder / "vocab.json")
    backend = tokenizers.Tokenizer(models.BPE(ids, _merges(folder / "merges.txt", ids)))
    backend.pre_tokenizer = rule.splitter(space_prefix=config.get("add_prefix_space") is True)
    if (normalizer := rule.normalizer()) is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, added)
    named: dict[str, str] = {}
    if END_OF_TEXT in ids or BYTE_LEVEL_RULES[kind] == "qwen2":
        named = dict.fromkeys(("eos_token", "unk_token"), END_OF_TEXT)
        if BYTE_LEVEL_RULES[kind] != "qwen2":
            named["bos_token"] = END_OF_TEXT
    _add_around(backend, config, {**named, **texts}, bos=False, eos=False)
    return OlderFiles(backend, named)


def _wordpiece(
    folder: Path,
    config: Mapping[str, Any],
    kind: str,
    texts: Mapping[str, str],
    added: Mapping[int, AddedToken],
) -> OlderFiles:
    """One token a line, by id; BERT's class wants small letters unless told otherwise."""
    lines = read_text_file(folder / WORDS, MAX_BYTES).split("\n")
    tokens = lines[:-1] if lines[-1] == "" else lines
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        raise TokenizerError(f"{WORDS}: expected no two tokens alike")
    special = {name: texts.get(name, usual) for name, usual in SPECIAL.items()}
    japanese = kind == JAPANESE_CLASS
    backend = build_wordpiece(
        ids,
        unknown=special["unk_token"],
        lower=_flag(config, "do_lower_case", not japanese),
        strip_accents=None if config.get("strip_accents") is None else config["strip_accents"],
        split_chinese=_flag(config, "tokenize_chinese_chars", True),
    )
    if japanese:
        cut_japanese(backend, config)
    named = {name: text for name, text in special.items() if text in ids}
    _add_tokens(backend, added)
    known = {token.content for token in added.values()}
    backend.add_special_tokens([text for text in named.values() if text not in known])
    if {"cls_token", "sep_token"} <= named.keys():
        first, end = named["cls_token"], named["sep_token"]
        add_frame(backend, (first, ids[first]), (end, ids[end]))
    return OlderFiles(backend, named)


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise TokenizerError(f"tokenizer_config.json: {key}: expected true or false, got {value!r}")
    return value


def _vocabulary(path: Path) -> dict[str, int]:
    found = read_json_object(path, MAX_BYTES)
    ids = list(found.values())
    if not found or not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
        raise TokenizerError("vocab.json: expected an object of ids by token")
    if len(set(ids)) != len(ids):
        raise TokenizerError("vocab.json: expected distinct token ids")
    return found


def _merges(path: Path, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    # Tokens may hold characters that splitlines() takes for ends of lines.
    entries = read_text_file(path, MAX_BYTES).split("\n")
    merges = []
    for number, entry in enumerate(entries, 1):
        if not entry or (number == 1 and entry.startswith("#version")):
            continue
        left, _, right = entry.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise TokenizerError(
                f"merges.txt: line {number} is {entry!r:.80}, expected two tokens of vocab.json "
                f"whose concatenation is a token, too"
            )
        merges.append((left, right))
    return merges


def _add_tokens(backend: tokenizers.Tokenizer, added: Mapping[int, AddedToken]) -> None:
    """Add tokens in the order of their ids, all at once, and check that they get them."""
    backend.add_tokens([added[i] for i in sorted(added)])
    for i, token in added.items():
        if (got := backend.token_to_id(token.content)) != i:
            raise TokenizerError(
                f"the added token {token.content!r:.80} has the id {i}, but comes {got} after the "
                f"vocabulary; the files of the folder belong to different tokenizers"
            )


def _add_around(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    texts: Mapping[str, str],
    *,
    bos: bool,
    eos: bool,
) -> None:
    """Let texts begin with BOS and end with EOS where the configuration or the class says so."""
    before: list[str] = []
    after: list[str] = []
    ids: dict[str, int] = {}
    for name, default, place in (("bos", bos, before), ("eos", eos, after)):
        token = backend.token_to_id(texts.get(f"{name}_token", ""))
        if token is not None and config.get(f"add_{name}_token", default):
            place.append(name)
            ids[name] = token
    if ids:
        backend.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], special_tokens=list(ids.items())
        )
