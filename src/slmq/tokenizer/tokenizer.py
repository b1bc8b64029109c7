"""The tokenizer that everybody uses, whatever file it came from."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import tokenizers

from slmq.chat.templates import ChatTemplates
from slmq.tokenizer.backend import library_errors
from slmq.tokenizer.bound import TokenBound
from slmq.tokenizer.encoding import Encoding
from slmq.tokenizer.growth import TextLimit
from slmq.tokenizer.pieces import Pieces
from slmq.tokenizer.stream import StreamDecoder

__all__ = ["Tokenizer", "TokenizerParts"]

log = logging.getLogger("slmq")


@dataclass(frozen=True)
class TokenizerParts:
    """What a reader finds in a file, and a `Tokenizer` is made of.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        Text to ids; its post-processor adds BOS and EOS as the model wants them.
    pieces : Pieces
        Ids to bytes.
    bos_id : int or None
        The token that begins a text.
    eos_ids : frozenset of int
        Every token that ends a turn.
    templates : Mapping
        Chat templates by name; the usual one is ``"default"``.
    special_tokens : Mapping
        Texts that templates know by name: ``bos_token``, ``eos_token``, ...
    merging : Mapping, optional
        Scores of the pieces where they are merged in Python; see `slmq.tokenizer.merging`.
    """

    backend: tokenizers.Tokenizer
    pieces: Pieces
    bos_id: int | None
    eos_ids: frozenset[int]
    templates: Mapping[str, str]
    special_tokens: Mapping[str, str]
    merging: Mapping[str, float] | None = None


class Tokenizer:
    """Text to token ids and back, and chats to prompts. Safe to use from several threads.

    Attributes
    ----------
    parts : TokenizerParts
        What it was made of.
    n_vocab : int
        Ids are ``0 ... n_vocab - 1``, rows that pad the model's embedding included.
    bos_id : int or None
        The token that begins a text, if the model has one.
    eos_ids : frozenset of int
        Every token that ends a turn.
    special_ids : frozenset of int
        Tokens that are no text; `decode` and `stream` leave them out by default.
    chat_template : str or None
        The source of the default chat template.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self.parts = parts
        self._backend = parts.backend
        self._pieces = parts.pieces
        self._chat = ChatTemplates(parts.templates, parts.special_tokens)
        self._lock = threading.Lock()
        self._limit = TextLimit(parts.backend)
        self._bound: TokenBound | None = None
        self._said_twice = False
        self.n_vocab = parts.pieces.n_vocab
        self.bos_id = parts.bos_id
        self.eos_ids = parts.eos_ids
        self.special_ids = frozenset(parts.pieces.special)

    def __repr__(self) -> str:
        chat = "with" if self.chat_template is not None else "without"
        return f"<slmq.Tokenizer of {self.n_vocab:,} tokens, {chat} a chat template>"

    @cached_property
    def markers(self) -> Mapping[str, int]:
        """Texts that are tokens of their own wherever they stand, with their ids."""
        added = self._backend.get_added_tokens_decoder()
        return {
            token.content: i
            for i, token in added.items()
            if i < self.n_vocab and self._backend.token_to_id(token.content) == i
        }

    def template_for(self, *, tools: bool) -> str | None:
        """The source of the template that renders chats with tools, or without."""
        return self._chat.source(tools=tools)

    @property
    def chat_template(self) -> str | None:
        """The source of the default chat template."""
        return self._chat.default

    def within(self, n_vocab: int) -> Tokenizer:
        """The same for a model of `n_vocab` ids: the others mean nothing to it."""
        parts = self.parts
        pieces = replace(
            parts.pieces,
            n_vocab=n_vocab,
            special=frozenset(i for i in parts.pieces.special if i < n_vocab),
        )
        bos = parts.bos_id if parts.bos_id is not None and parts.bos_id < n_vocab else None
        ends = frozenset(i for i in parts.eos_ids if i < n_vocab)
        return Tokenizer(replace(parts, pieces=pieces, bos_id=bos, eos_ids=ends))

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Turn text into token ids.

        Bytes that the vocabulary has no token for vanish, as in the model's own tokenizer: some
        vocabularies lack a few control characters.

        Parameters
        ----------
        text : str
            Any Unicode text.
        add_special : bool
            Whether BOS and EOS are added where the model wants them.
        parse_special : bool
            Whether control tokens written out in the text (``<|im_end|>``) become those tokens.
            False for text from strangers: it then stays text.

        Returns
        -------
        list of int
            Token ids.

        Raises
        ------
        TypeError
            `text` is no string.
        ValueError
            `text` holds a lone surrogate, which is no Unicode character.
        TokenizerError
            The tokenizer's own rules could make more of the text than memory should hold.
        """
        self._limit.check(text, check_text(text))
        # The flag belongs to the shared backend, so setting it and using it are one step.
        with self._lock, library_errors("cannot tokenize"):
            self._backend.encode_special_tokens = not parse_special
            ids = self._backend.encode(text, add_special_tokens=add_special).ids
        if ids[:2] == [self.bos_id] * 2 and add_special and not self._said_twice:
            self._said_twice = True
            log.warning(
                "a text begins with the token that the tokenizer puts before it, %r: now there are "
                "two, which models are not used to; leave it out of the text",
                text[:40],
            )
        return ids

    def encode_parts(
        self,
        text: str,
        pair: str | None = None,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        most: int | None = None,
        whole_pair: bool = False,
    ) -> Encoding:
        """Turn a text, or two side by side, into tokens that know where they come from.

        Control tokens that are written out in a text stay text unless `parse_special`. Of more than
        `most` tokens the last ones of the text are left out, or those of the longer text; with
        `whole_pair` only those of the first. Raises as `encode`.
        """
        for one in (text,) if pair is None else (text, pair):
            self._limit.check(one, check_text(one))
        with self._lock, library_errors("cannot tokenize"):
            self._backend.encode_special_tokens = not parse_special
            # So does the flag that cuts texts off.
            if most is not None:
                way = "only_first" if whole_pair else "longest_first"
                self._backend.enable_truncation(most, strategy=way)
            try:
                found = self._backend.encode(text, pair, add_special_tokens=add_special)
            finally:
                if most is not None:
                    self._backend.no_truncation()
        return Encoding(
            found.ids, found.type_ids, found.offsets, found.word_ids, found.sequence_ids
        )

    def continues(self, text: str, encoding: Encoding) -> list[bool]:
        """Whether each token goes on with the word of the one before it, as transformers sees it.

        Pieces of WordPiece say so themselves. Others do where no blank stands between them.
        """
        marked = bool(getattr(self._backend.model, "continuing_subword_prefix", None))
        unknown = self.unknown_id
        found = []
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            piece = self._backend.id_to_token(token) or ""
            if token == unknown:
                found.append(False)
            elif marked:
                found.append(len(piece) != end - start)
            else:
                found.append(start > 0 and " " not in text[start - 1 : start + 1])
        return found

    def token_text(self, token: int) -> str:
        """A token as people are shown it: one that goes on with a word keeps its mark."""
        mark = getattr(self._backend.model, "continuing_subword_prefix", None)
        piece = self._backend.id_to_token(token) or ""
        if mark and piece.startswith(mark):
            return piece
        return self.decode([token], skip_special=False)

    def id_of(self, name: str) -> int | None:
        """The id of a token that has a role (``"mask_token"``), None if there is none."""
        text = self.parts.special_tokens.get(name)
        found = None if text is None else self._backend.token_to_id(text)
        return found if found is not None and found < self.n_vocab else None

    @cached_property
    def unknown_id(self) -> int | None:
        """The token of what the vocabulary lacks: named by role, or by the tokenizer's model."""
        found = self.id_of("unk_token")
        if found is not None:
            return found
        model = self._backend.model
        if isinstance(model, tokenizers.models.Unigram):  # whose object does not tell
            known = json.loads(self._backend.to_str())["model"].get("unk_id")
            return known if isinstance(known, int) else None
        text = getattr(model, "unk_token", None)
        return self._backend.token_to_id(text) if isinstance(text, str) else None

    def least_tokens(self, text: str) -> int:
        """The fewest tokens that `encode` can make of a text, found without tokenizing it.

        A text of megabytes is refused by this in milliseconds. The bound is far below the truth,
        and 0 for kinds of tokenizers of which nothing is known.
        """
        check_text(text)
        with self._lock:
            if self._bound is None:
                with library_errors("cannot bound tokens"):
                    self._bound = TokenBound(self._backend, self._pieces)
        return self._bound.least(text)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Turn token ids into text; bytes that are no UTF-8 become U+FFFD.

        Raises
        ------
        TypeError
            An id is not an integer.
        ValueError
            An id is outside the vocabulary.
        """
        pieces = self._pieces
        skipped = pieces.special if skip_special else frozenset[int]()
        text = b"".join([pieces[token] for token in ids if token not in skipped])
        if pieces.drops_leading_space:
            text = text.removeprefix(b" ")
        return text.decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """Return the exact bytes of one token, which may be part of a character.

        Raises
        ------
        TypeError
            The id is not an integer.
        ValueError
            The id is outside the vocabulary.
        """
        return self._pieces[token]

    def stream(self, prompt: Sequence[int] = (), *, skip_special: bool = True) -> StreamDecoder:
        """Return a decoder that takes tokens one at a time and never emits half a character.

        Parameters
        ----------
        prompt : sequence of int
            The tokens that are continued, so that no space and no begun character is lost; none
            where a text begins, as the answer to a chat does.
        skip_special : bool
            Whether control tokens are silent.
        """
        return StreamDecoder(self._pieces, skip_special=skip_special, prompt=prompt)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """Write a chat as the prompt that the model was trained on.

        Parameters
        ----------
        messages : sequence of mappings
            Each with ``role`` and ``content``: a string, or a list of ``{"type": "text", "text":
            ...}`` parts. Other keys (``name``, ``tool_calls``) reach the template as they are.
        add_generation_prompt : bool
            Whether the prompt ends with the opening of the assistant's answer.
        tools : sequence of mappings, optional
            JSON schemas of functions, for templates that know tools.
        **extra
            Further variables of the template, JSON values only.

        Returns
        -------
        str
            The prompt; encode it with ``add_special=False``.

        Raises
        ------
        TypeError, ValueError
            The messages are not of that form.
        TemplateError
            The model has no template, or its template is invalid, refuses the messages, leaves
            its sandbox or does too much.
        """
        return self._chat.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, extra=extra
        )

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **kw: Any) -> list[int]:
        """Render a chat and turn it into token ids; takes what `render_chat` takes."""
        return self.encode(self.render_chat(messages, **kw), add_special=False)


def check_text(text: object) -> int:
    """Return the bytes of `text` in UTF-8; raise unless it is a string of Unicode characters."""
    if not isinstance(text, str):
        hint = "; decode it first: text.decode('utf-8')" if isinstance(text, bytes) else ""
        raise TypeError(f"expected a str to tokenize, got {type(text).__name__}{hint}")
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError as e:
        raise ValueError(
            f"expected Unicode text, got a lone surrogate U+{ord(text[e.start]):04X} at index "
            f"{e.start}; was it decoded with errors='surrogateescape'?"
        ) from None
