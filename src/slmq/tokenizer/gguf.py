"""A tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, models, normalizers, processors

from slmq.checkpoint import Checkpoint
from slmq.tokenizer.backend import library_errors
from slmq.tokenizer.fields import Fields
from slmq.tokenizer.pieces import (
    SPACE_MARK,
    Pieces,
    byte_level_bytes,
    sentencepiece_bytes,
    wordpiece_speller,
)
from slmq.tokenizer.pretokenizers import pre_tokenizer
from slmq.tokenizer.sentencepiece import (
    HIDDEN_SCORE,
    build_sentencepiece,
    build_unigram,
    space_steps,
)
from slmq.tokenizer.special import END_OF_TURN, answer_ends
from slmq.tokenizer.tokenizer import Tokenizer, TokenizerParts
from slmq.tokenizer.vocabulary import Kind, Vocabulary
from slmq.tokenizer.wordpiece import PREFIX, build_wordpiece, knows_capitals

__all__ = ["load_gguf"]

log = logging.getLogger("slmq")

# Phi-3's own tokenizer.json lets these swallow the white space behind them; metadata cannot say so.
PHI3_KEEP_SPACE = frozenset({"<unk>", "<s>", "<|endoftext|>"})


class Model(NamedTuple):
    """A tokenizer without special tokens, and what holds for it where the file is silent."""

    backend: tokenizers.Tokenizer
    byte_level: bool
    space_prefix: bool
    add_bos: bool
    add_eos: bool = False
    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    merging: Mapping[str, float] | None = None
    spell: Callable[[str], bytes] | None = None


def load_gguf(checkpoint: Checkpoint) -> Tokenizer:
    """Build the tokenizer that the metadata describes.

    Raises
    ------
    TokenizerError
        The metadata is incomplete, contradicts itself, or names a kind that slmq lacks.
    """
    fields = Fields(checkpoint.metadata)
    build = {
        "gpt2": _byte_level,
        "llama": _sentencepiece,
        "t5": _unigram,
        "bert": _wordpiece,
    }
    name = fields.text("tokenizer.ggml.model")
    if name is None:
        fields.fail("no tokenizer.ggml.model: the file has no tokenizer")
    if name not in build:
        fields.fail(
            f"a tokenizer of kind {name!r:.80}, which is not supported yet; expected 'gpt2' "
            f"(byte-level BPE), 'llama' (SentencePiece BPE), 't5' (SentencePiece unigram) or "
            f"'bert' (WordPiece)"
        )
    vocabulary = Vocabulary(fields)
    with library_errors("cannot build the tokenizer"):
        return _assemble(fields, vocabulary, build[name](fields, vocabulary))


def _byte_level(fields: Fields, vocabulary: Vocabulary) -> Model:
    name = fields.text("tokenizer.ggml.pre")
    if name is None:
        fields.fail(
            "no tokenizer.ggml.pre: the file does not say how text is cut into words; convert the "
            "model anew with a current llama.cpp"
        )
    rule = pre_tokenizer(name)
    space_prefix = bool(fields.flag("tokenizer.ggml.add_space_prefix"))
    backend = tokenizers.Tokenizer(_bpe(fields, vocabulary.ids, whole_words=rule.whole_words))
    backend.pre_tokenizer = rule.splitter(space_prefix=space_prefix)
    if (normalizer := rule.normalizer()) is not None:
        backend.normalizer = normalizer
    # A space that GPT-2's rule puts before a text stays in the text when it is read back.
    return Model(backend, byte_level=True, space_prefix=False, add_bos=rule.bos)


def _bpe(fields: Fields, ids: dict[str, int], *, whole_words: bool) -> models.BPE:
    key = "tokenizer.ggml.merges"
    entries = fields.array(key, str)
    if entries is None:
        fields.fail(f"no {key}: a byte-level vocabulary needs its merges")
    pairs: list[Any] = [tuple(entry.split(" ")) for entry in entries]
    if set(map(len, pairs)) <= {2}:
        # The library checks that tokens are tokens, faster than we can; what it says of those that
        # are not is for us to say better.
        with suppress(Exception):
            return models.BPE(ids, pairs, ignore_merges=whole_words)
    return models.BPE(ids, _merges(fields, key, entries, ids), ignore_merges=whole_words)


def _merges(
    fields: Fields, key: str, entries: list[str], ids: dict[str, int]
) -> list[tuple[str, str]]:
    """Pairs of tokens, checked one by one."""
    merges = []
    for i, entry in enumerate(entries):
        cut = entry.find(" ", 1)
        left, right = entry[:cut], entry[cut + 1 :]
        if cut < 0 or left not in ids or right not in ids or left + right not in ids:
            fields.fail(
                f"{key}: entry {i} is {entry!r:.80}, expected two tokens with a space between "
                f"whose concatenation is a token, too"
            )
        merges.append((left, right))
    return merges


def _sentencepiece(fields: Fields, vocabulary: Vocabulary) -> Model:
    scores = _scores(fields, vocabulary)
    space_prefix = _flag(fields, "add_space_prefix", True)
    unk_id = _id(fields, "unknown", len(vocabulary), 0)
    by_piece = {vocabulary.tokens[i]: scores[i] for i in vocabulary.of_kind(Kind.NORMAL)}
    backend = build_sentencepiece(
        vocabulary.ids,
        by_piece,
        unknown=None if unk_id is None else vocabulary.tokens[unk_id],
    )
    backend.normalizer = normalizers.Sequence(space_steps(prefix=space_prefix))
    return Model(
        backend,
        False,
        space_prefix,
        add_bos=True,
        bos_id=1,
        eos_id=2,
        unk_id=unk_id,
        merging=None if backend.pre_tokenizer is None else by_piece,
    )


def _unigram(fields: Fields, vocabulary: Vocabulary) -> Model:
    scores = _scores(fields, vocabulary)
    space_prefix = _flag(fields, "add_space_prefix", False)
    unk_id = _id(fields, "unknown", len(vocabulary), 2)
    if unk_id is None:
        fields.fail("no tokenizer.ggml.unknown_token_id: a unigram vocabulary needs it")
    text = set(vocabulary.of_kind(Kind.NORMAL, Kind.USER_DEFINED))
    backend = build_unigram(
        # Names that no text has, for tokens that the library cannot hold.
        [t if t in vocabulary.ids else f"\0{i}" for i, t in enumerate(vocabulary.tokens)],
        [score if i in text else HIDDEN_SCORE for i, score in enumerate(scores)],
        unknown_id=unk_id,
    )
    charsmap = fields.array("tokenizer.ggml.precompiled_charsmap", int) or []
    backend.normalizer = normalizers.Sequence(
        space_steps(
            prefix=space_prefix,
            charsmap=bytes(byte & 0xFF for byte in charsmap),
            remove_spaces=_flag(fields, "remove_extra_whitespaces", False),
        )
    )
    return Model(
        backend, False, space_prefix, add_bos=False, add_eos=True, eos_id=1, unk_id=unk_id, pad_id=0
    )


def _wordpiece(fields: Fields, vocabulary: Vocabulary) -> Model:
    """BERT's tokenizer, whose file marks the first pieces of words, not those that follow."""
    kinds = vocabulary.kinds
    whole = (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
    vocabulary.respell(
        [t if kinds[i] in whole else _piece(t) for i, t in enumerate(vocabulary.tokens)]
    )
    unk_id = _id(fields, "unknown", len(vocabulary), 100)
    if unk_id is None:
        fields.fail("no tokenizer.ggml.unknown_token_id: WordPiece needs it")
    words = (vocabulary.tokens[i] for i in vocabulary.of_kind(Kind.NORMAL))
    lower = fields.flag("tokenizer.ggml.normalizer.lowercase")
    backend = build_wordpiece(
        vocabulary.ids,
        unknown=vocabulary.tokens[unk_id],
        lower=not knows_capitals(words) if lower is None else lower,
        strip_accents=fields.flag("tokenizer.ggml.normalizer.strip_accents"),
    )
    return Model(
        backend,
        False,
        space_prefix=True,
        add_bos=True,
        add_eos=True,
        bos_id=_id(fields, "cls", len(vocabulary), 101),
        eos_id=_id(fields, "seperator", len(vocabulary), 102),  # spelled so in these files
        unk_id=unk_id,
        pad_id=0,
        spell=wordpiece_speller(PREFIX),
    )


def _piece(token: str) -> str:
    """A token of a GGUF file as BERT writes it."""
    return token.removeprefix(SPACE_MARK) if token.startswith(SPACE_MARK) else PREFIX + token


def _scores(fields: Fields, vocabulary: Vocabulary) -> list[float]:
    scores = fields.array("tokenizer.ggml.scores", float, len(vocabulary))
    if scores is None:
        fields.fail("no tokenizer.ggml.scores: a SentencePiece vocabulary needs them")
    return scores


def _flag(fields: Fields, name: str, default: bool) -> bool:
    flag = fields.flag(f"tokenizer.ggml.{name}")
    return default if flag is None else flag


def _assemble(fields: Fields, vocabulary: Vocabulary, model: Model) -> Tokenizer:
    """Add what is known about special tokens."""
    n_vocab, tokens = len(vocabulary), vocabulary.tokens
    bos = _id(fields, "bos", n_vocab, model.bos_id)
    eos = _id(fields, "eos", n_vocab, model.eos_id)
    unk = _id(fields, "unknown", n_vocab, model.unk_id)
    pad = _id(fields, "padding", n_vocab, model.pad_id)
    others = [_id(fields, name, n_vocab) for name in ("eot", "eom")]

    ends = {i for i in (eos, *others) if i is not None}
    special = vocabulary.special(ends | {i for i in (bos, unk, pad) if i is not None})
    ends |= {i for i in special if tokens[i] in END_OF_TURN}
    ends = answer_ends(ends, {tokens[i]: i for i in special}.get)
    user_defined = set(vocabulary.of_kind(Kind.USER_DEFINED)) - special

    backend = model.backend
    phi3 = not model.byte_level and fields.text("general.architecture") == "phi3"
    backend.add_special_tokens(
        [
            AddedToken(
                tokens[i], normalized=False, rstrip=phi3 and tokens[i] not in PHI3_KEEP_SPACE
            )
            for i in sorted(special)
            if tokens[i] in vocabulary.ids
        ]
    )
    backend.add_tokens([AddedToken(tokens[i], normalized=False) for i in sorted(user_defined)])
    _add_bos_eos(fields, model, bos, eos)

    verbatim = {i: tokens[i] for i in special | user_defined}
    verbatim |= {i: "" for i, kind in enumerate(vocabulary.kinds) if kind == Kind.UNUSED}
    pieces = Pieces(
        n_vocab=n_vocab,
        text_of=tokens.__getitem__,
        spell=model.spell or (byte_level_bytes if model.byte_level else sentencepiece_bytes),
        verbatim=verbatim,
        special=frozenset(special),
        drops_leading_space=model.space_prefix,
    )
    mask = _id(fields, "mask", n_vocab)
    named = {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad}
    named["mask_token"] = mask
    return Tokenizer(
        TokenizerParts(
            backend,
            pieces,
            bos_id=bos,
            eos_ids=frozenset(ends),
            templates=_templates(fields),
            special_tokens={name: tokens[i] for name, i in named.items() if i is not None},
            merging=model.merging,
        )
    )


def _id(fields: Fields, name: str, n_vocab: int, default: int | None = None) -> int | None:
    token = fields.token_id(f"tokenizer.ggml.{name}_token_id", n_vocab)
    if token is None and default is not None and default < n_vocab:
        return default
    return token


def _add_bos_eos(fields: Fields, model: Model, bos: int | None, eos: int | None) -> None:
    add_bos = fields.flag("tokenizer.ggml.add_bos_token")
    add_eos = fields.flag("tokenizer.ggml.add_eos_token")
    if add_bos is None:
        add_bos = model.add_bos and bos is not None
    if add_eos is None:
        add_eos = model.add_eos and eos is not None
    for name, wanted, token in (("bos", add_bos, bos), ("eos", add_eos, eos)):
        if wanted and token is None:
            log.warning(
                "tokenizer.ggml.add_%s_token is true, but no usable %s_token_id is named: texts go "
                "without it",
                name,
                name,
            )
    before = [("bos", bos)] if add_bos and bos is not None else []
    after = [("eos", eos)] if add_eos and eos is not None else []
    if before or after:
        around = [name for name, _ in before], [name for name, _ in after]
        second = [f"{name}:1" for name in around[1]]
        model.backend.post_processor = processors.TemplateProcessing(
            single=[*around[0], "$A", *around[1]],
            pair=[*around[0], "$A", *around[1], "$B:1", *second],
            special_tokens=before + after,
        )


def _templates(fields: Fields) -> dict[str, str]:
    """Chat templates: the usual one, and the others that the file lists by name."""
    templates = {}
    default = fields.text("tokenizer.chat_template")
    if default is not None:
        templates["default"] = default
    for name in fields.array("tokenizer.chat_templates", str) or []:
        template = fields.text(f"tokenizer.chat_template.{name}")
        if template is not None:
            templates[name] = template
    return templates
