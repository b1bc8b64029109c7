"""Answers of a model from passages, which have numbers, and the sentences that say most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from slmq.generation.prompts import one_question
from slmq.search.passages import sentences_of
from slmq.search.results import Answered, Hit

if TYPE_CHECKING:
    from slmq.generation.model import Model
    from slmq.search.index import Index

__all__ = ["ANSWER_TOKENS", "GREEDY", "MISSING", "answer", "grounds", "prompt_of"]

SYSTEM = "You answer questions from a text. Be short."
MISSING = "The documents do not hold an answer to this question."
ANSWER_TOKENS = 128
GREEDY = {"temperature": 0.0}
TEMPLATE_TOKENS = 32


def grounds(index: Index, question: str, *, top_k: int = 4) -> Answered:
    """The passages for a question, and whether they fit it; the text is that for none, or empty.

    They do if one of them is near to it, or has most of its words, rare ones above all.
    """
    hits = index.grounds(question, top_k=top_k)
    fit, needed = index.fit(hits)
    share, needed_share = index.word_fit(hits)
    found = bool(hits) and (fit >= needed or share >= needed_share)
    said = Answered("", hits, found, fit, needed, share, needed_share, [])
    if not found:
        return replace(said, text=MISSING, sources=[])
    return replace(said, quotes=_quotes(index, question, hits))


def prompt_of(
    model: Model, question: str, found: Answered, *, sentences: int | None, max_tokens: int
) -> Any:
    """What the model is asked.

    It is shown the sentences nearest to the question, at most so many, or whole passages as far as
    its context holds them.
    """
    told = [f"[{n}] {hit.text}" for n, hit in enumerate(found.sources, 1)]
    if sentences is not None:
        told = [f"- {text}" for _, _, text in found.quotes[:sentences]]
    while True:
        text = "Text:\n" + "\n".join(told) + f"\n\nQuestion: {question}"
        tokens = len(model.tokenizer.encode(f"{SYSTEM}\n{text}")) + TEMPLATE_TOKENS
        if len(told) == 1 or tokens + max_tokens <= model.n_ctx:
            break
        told.pop()
    if model.tokenizer.chat_template is None:
        return f"{SYSTEM}\n\n{text}\nAnswer:"
    return one_question(text, SYSTEM)


def answer(
    index: Index,
    model: Model,
    question: str,
    *,
    top_k: int,
    sentences: int | None,
    params: Mapping[str, Any],
) -> Answered:
    """As `Index.ask`."""
    if sentences is not None and sentences < 1:
        raise ValueError(f"sentences: expected at least 1, or None; got {sentences!r}")
    found = grounds(index, question, top_k=top_k)
    if not found.found:
        return found
    given = {**GREEDY, "max_tokens": ANSWER_TOKENS, **params}
    most = given["max_tokens"] or 0
    prompt = prompt_of(model, question, found, sentences=sentences, max_tokens=max(most, 0))
    return replace(found, text=model.generate(prompt, **given).text.strip())


def _quotes(index: Index, question: str, hits: Sequence[Hit]) -> list[tuple[float, int, str]]:
    """Sentences of the passages, those that say most first: how much, of which source, sentence.

    It is the cosine, for which each is read under the last of its headings, and the share of the
    question's words.
    """
    listed = [
        (number, hit.heading.rpartition(" > ")[2], sentence)
        for number, hit in enumerate(hits, 1)
        for sentence in sentences_of(hit.text)
    ]
    vectors = index.passage_vectors(
        [f"{heading}: {text}" if heading else text for _, heading, text in listed]
    )
    cosines = index.encoder.similarity(index.query_vector(question), vectors)[0].tolist()
    shares = index.shares_of([text for _, _, text in listed], question)
    found: dict[str, tuple[float, int, str]] = {}  # passages overlap
    for cosine, share, (number, _, text) in zip(cosines, shares, listed, strict=True):
        found.setdefault(text, (cosine + share, number, text))
    return sorted(found.values(), key=lambda quote: (-quote[0], quote[1]))
