"""Tokens that the small files beside a vocabulary add or describe, as `transformers` reads them.

``tokenizer_config.json`` lists them by id with their flags in ``added_tokens_decoder``; older
folders have ``added_tokens.json``, ids by text, and ``special_tokens_map.json``. Special tokens
that are only named, as ``eos_token`` or among the additional ones, come behind all others.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from slmq.checkpoint.jsonfile import read_json_object
from slmq.errors import TokenizerError
from slmq.tokenizer.hf_check import check_added

__all__ = ["Named", "add_missing", "listed_tokens", "named_tokens"]

log = logging.getLogger("slmq")

MAX_BYTES = 64 << 20
STANDARD = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
LISTS = ("extra_special_tokens", "additional_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Named:
    """Special tokens that the small files name.

    Attributes
    ----------
    texts : dict of str to str
        By name: ``bos_token``, ``eos_token``, and what else ends in ``_token``.
    others : list of str
        Those without a name.
    """

    def __init__(self, texts: dict[str, str], others: list[str]) -> None:
        self.texts = texts
        self.others = others

    @property
    def all(self) -> list[str]:
        """Each once, in order."""
        return list(dict.fromkeys([*self.texts.values(), *self.others]))


def named_tokens(config: Mapping[str, Any], old: Mapping[str, Any]) -> Named:
    """The special tokens that ``tokenizer_config.json`` and ``special_tokens_map.json`` name.

    A name that both have counts as the former says it, but for folders without an
    ``added_tokens_decoder``: there the latter, which is as old, counts.

    Raises
    ------
    TokenizerError
        If a standard name (``bos_token``) stands for something that is no token.
    """
    first, second = (config, old) if "added_tokens_decoder" in config else (old, config)
    texts: dict[str, str] = {}
    for name in STANDARD:
        value = first.get(name)
        text = _text(second.get(name) if value is None else value)
        if text is None:
            got = type(value).__name__
            raise TokenizerError(f"{name}: expected a string, got {got}")
        if text:
            texts[name] = text
    others: list[str] = []
    for source in (second, first):
        for name, value in source.items():
            if name.endswith("_token") and name not in STANDARD and isinstance(value, str | dict):
                texts[name] = _text(value) or ""
        listed: Any = next((source[name] for name in LISTS if source.get(name)), None)
        if isinstance(listed, Mapping):
            texts |= {name: text for name, value in listed.items() if (text := _text(value))}
        elif isinstance(listed, list):
            others = [text for value in listed if (text := _text(value))]
    return Named({name: text for name, text in texts.items() if text}, others)


def _text(value: object) -> str | None:
    """A token's text, "" for none, None for what is no token."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return "" if value is None else value if isinstance(value, str) else None


def listed_tokens(
    folder: Path, config: Mapping[str, Any], special: Collection[str]
) -> dict[int, AddedToken]:
    """Tokens by id that the small files list; `special`: those that they name as special.

    Raises
    ------
    TokenizerError, CheckpointError
        A file is malformed.
    """
    described = _described(config.get("added_tokens_decoder") or {})
    known = {token.content for token in described.values()}
    path = folder / "added_tokens.json"
    added: dict[int, AddedToken] = {}
    if path.exists():
        for text, i in read_json_object(path, MAX_BYTES).items():
            if type(i) is not int or not text:
                raise TokenizerError("added_tokens.json: expected an object of ids by token")
            if text not in known:
                named = text in special
                added[i] = AddedToken(text, normalized=not named, special=named)
    return added | described


def _described(entries: object) -> dict[int, AddedToken]:
    if not isinstance(entries, Mapping):
        raise TokenizerError("added_tokens_decoder: expected an object of tokens by id")
    check_added(list(entries.values()), "added_tokens_decoder")
    added = {}
    for key, entry in entries.items():
        named = entry if isinstance(entry, Mapping) else {}
        if not (key.isdecimal() and len(key) < 10 and isinstance(named.get("content"), str)):
            raise TokenizerError(f"added_tokens_decoder: expected a token, got {entry!r:.80}")
        flags = {flag: named[flag] for flag in FLAGS if isinstance(named.get(flag), bool)}
        if named["content"]:
            added[int(key)] = AddedToken(named["content"], **flags)
    return added


def add_missing(
    backend: tokenizers.Tokenizer,
    added: Mapping[int, AddedToken],
    named: Iterable[str],
    rows: int,
) -> None:
    """Add what a tokenizer lacks: tokens of the small files, with the flags that those give.

    Parameters
    ----------
    added : Mapping
        As `listed_tokens` returns them.
    named : iterable of str
        Special tokens that are only named: at the next free ids.
    rows : int
        Rows of the model's embedding: ids beyond have no meaning, and their tokens stay text. 0:
        unknown, and then only tokens whose ids are listed are new.
    """
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    named = list(dict.fromkeys(named))
    special = set(named)
    end = _next_id(backend)
    new: dict[int, AddedToken] = {}
    left: list[str] = []
    for i in sorted(added):
        token = added[i]
        if token.content in special:
            token.special = True
        before = known.get(token.content)
        if before is not None and _same(before, token):
            continue
        if before is None and backend.token_to_id(token.content) is None:
            if 0 < rows <= end:
                left.append(token.content)
                continue
            end += 1
        new[i] = known[token.content] = token
    backend.add_tokens(
        list(new.values())
    )  # at once: the library looks at all that it has each time
    for i, token in new.items():
        if (got := backend.token_to_id(token.content)) != i:
            log.warning(
                "the small files give the token %r the id %d, the tokenizer gives it %d",
                token.content,
                i,
                got,
            )
    behind = []
    for text in named:
        if text in known:
            continue
        if backend.token_to_id(text) is None:
            if end >= rows:
                left += [text] if rows else []
                continue
            end += 1
        behind.append(AddedToken(text, normalized=False))
    backend.add_special_tokens(behind)
    if left:
        log.warning(
            "the model has no embedding for tokens that its tokenizer names; they are read as "
            "text: %s",
            ", ".join(map(repr, left[:8])),
        )


def _same(one: AddedToken, other: AddedToken) -> bool:
    return all(getattr(one, flag) == getattr(other, flag) for flag in FLAGS)


def _next_id(backend: tokenizers.Tokenizer) -> int:
    """The id that the library gives the next new token."""
    last = max(backend.get_added_tokens_decoder(), default=-1)
    return max(last + 1, backend.get_vocab_size(with_added_tokens=False))
