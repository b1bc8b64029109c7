"""`Encoder`: vectors of texts, how alike they are, and what a head says of texts and tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from slmq.embedding import scores
from slmq.embedding.parts import means_of_parts
from slmq.embedding.results import Filled, Ranked, Scored, Tagged, check_top_k
from slmq.embedding.runner import EncodedText, Runner
from slmq.embedding.settings import EncoderSettings
from slmq.embedding.tags import AGGREGATIONS, tagged
from slmq.embedding.texts import TextEncoder, several
from slmq.embedding.verdict import pair_prompts, verdict
from slmq.embedding.zero_shot import claims_of, entailed, likely_by_cosine
from slmq.errors import ClosedError, UnsupportedModelError
from slmq.models import static
from slmq.models.parts.headless import Headless
from slmq.tokenizer import Tokenizer

__all__ = ["Encoder"]

F32 = npt.NDArray[np.float32]
TEMPLATE = "This example is {}."


class Encoder:
    """A loaded encoder, made by `slmq.load_encoder`. Safe to use from several threads.

    A text has the same vector alone and among others, on every CPU and number of threads.

    Attributes
    ----------
    name : str
    dimensions : int
        Numbers of a vector.
    max_length : int
        Most tokens of a text, those that the model puts around it included.
    task : {"classify", "tags", "fill_mask"} or None
        What the model's head is for, if it has one.
    labels : list of str
        Of a head that classifies.
    prompts : dict of str to str
        What is put before texts, by name.
    """

    def __init__(self, runner: Runner, tokenizer: Tokenizer, settings: EncoderSettings) -> None:
        folder = settings.folder
        self._runner: Runner | None = runner
        self._texts = TextEncoder(
            tokenizer,
            settings.max_length,
            lower_case=folder.lower_case,
            bare=runner.body.family is static,
            known=runner.body.family is static and not runner.body.config.keep_unknown,
            token_rows=getattr(runner.body.weights, "token_rows", None),
            token_weights=getattr(runner.body.weights, "token_weights", None),
        )
        self._pair_prompts = pair_prompts(folder, runner.body.verdict is not None, self._texts)
        self._settings = settings
        self.tokenizer = tokenizer
        self.name = settings.name
        self.dimensions = runner.body.dimensions
        self.max_length = settings.max_length
        self.task = runner.body.task
        self.labels = list(settings.labels)
        self.prompts = dict(folder.prompts)

    def __repr__(self) -> str:
        head = f", {self.task}" if self.task else ""
        return f"<slmq.Encoder {self.name!r}, {self.dimensions} dimensions{head}>"

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free weights and buffers."""
        self._runner = None

    # --- vectors --------------------------------------------------------------------------------

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        truncate: bool = False,
        chunk: bool = False,
    ) -> F32:
        """The vectors of texts.

        Parameters
        ----------
        texts : str or iterable of str
        prompt : str, optional
            Name of one of `prompts`, such as "query"; "" for none, where the model has one by
            default.
        normalize : bool, optional
            Whether vectors have length 1; None does what the model's folder says.
        dimensions : int, optional
            Keep so many numbers of each vector, for models that were trained for it.
        truncate : bool
            Leave out what is too long, instead of an error.
        chunk : bool
            The vector of a text that is too long is the mean of those of its parts, weighted by
            their tokens.

        Returns
        -------
        float32[dimensions] for one text, float32[n, dimensions] for several.

        Raises
        ------
        ContextOverflowError
            If a text is too long.
        TypeError, ValueError
            If one is no text, or an argument has a wrong value.
        """
        one = isinstance(texts, str)
        listed = [cast(str, texts)] if one else texts
        vectors = list(
            self.embed_stream(
                listed,
                prompt=prompt,
                normalize=normalize,
                dimensions=dimensions,
                truncate=truncate,
                chunk=chunk,
            )
        )
        if one:
            return vectors[0]
        width = self.dimensions if dimensions is None else dimensions
        return np.stack(vectors) if vectors else np.empty((0, width), np.float32)

    def embed_stream(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        truncate: bool = False,
        chunk: bool = False,
        first: int = 0,
    ) -> Iterator[F32]:
        """The vectors of any number of texts, in order, as they come; see `embed`.

        Texts are taken some hundred tokens at a time, so that a million of them need no memory.
        `first` is the number of the first one in messages.
        """
        if isinstance(texts, str):
            raise TypeError("texts: expected several texts, got one str; embed() takes it")
        if truncate and chunk:
            raise ValueError("truncate, chunk: expected one of them, got both")
        width = self._width(dimensions, "dimensions")
        texts = several(texts, "texts")
        before = self._prompt(prompt)
        unit = self._settings.folder.normalize if normalize is None else normalize
        runner = self._open
        if chunk:
            parts = self._parts(enumerate(texts, first), before)
            vectors = means_of_parts(runner, parts, unit=unit)
        else:
            inputs = self._inputs(enumerate(texts, first), before, truncate=truncate)
            vectors = runner.pooled(inputs)
        return (self._finished(vector, width, unit) for vector in vectors)

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        **_ignored: Any,
    ) -> F32:
        """`embed` with the arguments of sentence-transformers, which cuts long texts off.

        `prompt` is put before texts as it stands; `prompt_name` is one of `prompts`. Arguments
        about batches, devices, progress bars and tensors mean nothing here.
        """
        one = isinstance(sentences, str)
        listed = [cast(str, sentences)] if one else list(several(sentences, "sentences"))
        before = self._prompt(prompt_name) if prompt is None else prompt
        unit = normalize_embeddings or self._settings.folder.normalize
        width = self._width(truncate_dim, "truncate_dim")
        vectors = [
            self._finished(vector, width, unit)
            for vector in self._open.pooled(self._inputs(enumerate(listed), before, truncate=True))
        ]
        if one:
            return vectors[0]
        return np.stack(vectors) if vectors else np.empty((0, width), np.float32)

    def states(self, text: str, *, truncate: bool = False) -> F32:
        """Hidden states of a text's tokens: float32[tokens, hidden]; errors as `embed`."""
        (found,) = self._open.states([self._texts.encoded(0, text, truncate=truncate)])
        return found

    def similarity(self, a: F32 | str | Sequence[str], b: F32 | str | Sequence[str]) -> F32:
        """How alike vectors or texts are, by the measure of the model: float32[len(a), len(b)]."""
        rows = [
            scores.checked_vectors(x) if isinstance(x, np.ndarray) else np.atleast_2d(self.embed(x))
            for x in (a, b)
        ]
        if rows[0].shape[1] != rows[1].shape[1]:
            raise ValueError(
                f"similarity: expected vectors of one length, got {rows[0].shape[1]} and "
                f"{rows[1].shape[1]} numbers"
            )
        return scores.similarities(rows[0], rows[1], self._settings.folder.similarity)

    def rerank(
        self,
        query: str,
        docs: Iterable[str],
        *,
        instruction: str | None = None,
        top_k: int | None = None,
        truncate: bool = False,
    ) -> list[Ranked]:
        """Documents by how well they fit a query, the best first.

        A cross-encoder, whose head gives one score, reads the query beside each document. So does a
        decoder that says yes or no, such as Qwen3 Reranker: its score is how likely it says yes. A
        model of neither kind compares vectors.

        Parameters
        ----------
        query : str
        docs : iterable of str
        instruction : str, optional
            What makes a document fit, for models whose prompt says it; None is the model's own.
        top_k : int, optional
            At most so many.
        truncate : bool
            Leave out what is too long, instead of an error.

        Raises
        ------
        UnsupportedModelError
            If the model has a head for something else.
        ContextOverflowError, TypeError, ValueError
            As `embed`.
        """
        if not isinstance(query, str):
            raise TypeError(f"query: expected a str, got {type(query).__name__} {query!r:.40}")
        if isinstance(docs, str):
            raise TypeError("docs: expected several texts, got one str")
        prompts = self._pair_prompts
        if instruction is not None and (prompts is None or not prompts.takes_instruction):
            raise ValueError(f"instruction: expected none, as {self.name!r} has no prompt for it")
        texts = list(several(docs, "docs"))
        check_top_k(top_k)
        runner = self._open
        judges = runner.body.verdict is not None
        if judges or (self.task == "classify" and len(self.labels) == 1):
            pairs = self._query_beside(query, texts, instruction, truncate=truncate)
            rows = map(verdict, runner.verdicts(pairs)) if judges else runner.heads(pairs)
            found = [float(self._activated(row)[0]) for row in rows]
        elif self.task is None:
            one = self.embed(query, prompt=self._named("query"), truncate=truncate)
            many = self.embed(texts, prompt=self._named("document"), truncate=truncate)
            found = self.similarity(one, many)[0].tolist()
        else:
            raise UnsupportedModelError(
                f"{self.name}: rerank needs a model without a head, or one whose head gives one "
                f"score; this one is for {self.task} with {len(self.labels)} labels"
            )
        order = sorted(range(len(texts)), key=lambda i: (-found[i], i))
        return [Ranked(i, found[i], texts[i]) for i in order[:top_k]]

    # --- heads ----------------------------------------------------------------------------------

    def classify(
        self,
        texts: str | Iterable[str | tuple[str, str]],
        *,
        top_k: int | None = 1,
        truncate: bool = False,
    ) -> list[Any]:
        """The labels of texts, or of pairs of them, the likeliest first.

        Parameters
        ----------
        texts : str or iterable of str or (str, str)
        top_k : int, optional
            So many labels of each; None for all.
        truncate : bool
            Leave out what is too long, instead of an error.

        Returns
        -------
        list of Scored for one text; a list of such lists for several.

        Raises
        ------
        UnsupportedModelError
            If the model has no head for it.
        ContextOverflowError, TypeError, ValueError
            As `embed`.
        """
        one = isinstance(texts, str)
        listed = [cast(str, texts)] if one else texts
        found = list(self.classify_stream(listed, top_k=top_k, truncate=truncate))
        return found[0] if one else found

    def classify_stream(
        self,
        texts: Iterable[str | tuple[str, str]],
        *,
        top_k: int | None = 1,
        truncate: bool = False,
        first: int = 0,
    ) -> Iterator[list[Scored]]:
        """The labels of any number of texts, in order, as they come; see `classify`.

        `first` is the number of the first one in messages.
        """
        self._need("classify")
        check_top_k(top_k)
        texts = several(texts, "texts")
        rows = self._open.heads(self._pairs(enumerate(texts, first), truncate=truncate))
        return (self._scored(self._activated(row), top_k) for row in rows)

    def zero_shot(
        self,
        text: str,
        labels: Sequence[str],
        *,
        template: str = TEMPLATE,
        multi_label: bool = False,
        truncate: bool = False,
    ) -> list[Scored]:
        """Labels that the model was not trained for, the likeliest first.

        A model for natural language inference says whether the text entails "This example is
        LABEL."; a model without a head compares the vectors of both (the softmax of 20 times their
        cosines, or with `multi_label` the cosines).

        Raises
        ------
        UnsupportedModelError
            If the model has a head without a label of entailment.
        ValueError
            For no labels, or a template without {}.
        """
        names, claims = claims_of(labels, template)
        if self.task is None:
            cosines = self.similarity(self.embed(text, truncate=truncate), self.embed(claims))[0]
            found = cosines if multi_label else likely_by_cosine(cosines)
        else:
            found = self._entailed(text, claims, multi_label=multi_label, truncate=truncate)
        order = sorted(range(len(names)), key=lambda i: (-float(found[i]), i))
        return [Scored(names[i], float(found[i])) for i in order]

    def tags(
        self, text: str, *, aggregation: str = "simple", truncate: bool = False
    ) -> list[Tagged]:
        """The parts of a text that the model names, with where they stand.

        Parameters
        ----------
        text : str
        aggregation : {"none", "simple", "first", "average", "max"}
            How tokens become parts: not at all; neighbours of one label, as their tokens say; or
            whole words, by their first token, the mean of all, or the surest.
        truncate : bool

        Raises
        ------
        UnsupportedModelError
            If the model has no head for it.
        ContextOverflowError, TypeError, ValueError
            As `embed`.
        """
        self._need("tags")
        if aggregation not in AGGREGATIONS:
            raise ValueError(
                f"aggregation: expected one of {', '.join(AGGREGATIONS)}; got {aggregation!r}"
            )
        found = self._texts.encoding(0, text, None, truncate=truncate)
        encoded = EncodedText(np.array(found.ids, np.int32), np.array(found.types, np.int32))
        (rows,) = self._open.heads([encoded])
        likely = np.stack([scores.softmax(row) for row in rows])
        continues = self.tokenizer.continues(text, found)
        return tagged(text, found, continues, likely, self.labels, aggregation)

    def fill_mask(self, text: str, *, top_k: int = 5) -> list[list[Filled]]:
        """The likeliest tokens for each mask of a text (`mask_token`), the likeliest first.

        Raises
        ------
        UnsupportedModelError
            If the model has no head for it.
        ValueError
            If there is no mask in the text.
        ContextOverflowError, TypeError
            As `embed`.
        """
        self._need("fill_mask")
        check_top_k(top_k)
        found = self.tokenizer.encode_parts(text, parse_special=True)
        mask = self.tokenizer.id_of("mask_token")
        rows = np.array([i for i, token in enumerate(found.ids) if token == mask], np.int32)
        if mask is None or not len(rows):
            raise ValueError(f"expected a mask ({self.mask_token}) in the text, got {text!r:.80}")
        whole = self._texts.encoded(0, text) if len(found) > self.max_length else None
        assert whole is None  # a text that long has raised
        encoded = EncodedText(np.array(found.ids, np.int32), np.array(found.types, np.int32))
        (logits,) = self._open.heads([replace(encoded, rows=rows)])
        return [self._likeliest(row, top_k) for row in logits]

    @property
    def weight_bytes(self) -> int:
        """What the weights take."""
        return self._open.body.weight_bytes

    @cached_property
    def mask_token(self) -> str | None:
        """What stands for a token that `fill_mask` is to find; None if there is no such token."""
        return self.tokenizer.parts.special_tokens.get("mask_token")

    # --- what these are made of -----------------------------------------------------------------

    @property
    def _open(self) -> Runner:
        if self._runner is None:
            raise ClosedError(f"the model {self.name!r} is closed")
        return self._runner

    def _width(self, dimensions: int | None, name: str) -> int:
        """So many numbers of a vector are kept."""
        width = self.dimensions if dimensions is None else dimensions
        whole = isinstance(width, int) and not isinstance(width, bool)
        if not whole or not 1 <= width <= self.dimensions:
            raise ValueError(
                f"{name}: expected 1..{self.dimensions} of {self.name!r}, got {dimensions!r:.40}"
            )
        return width

    def _prompt(self, name: str | None) -> str:
        """The text of a prompt."""
        if name is None:
            name = self._settings.folder.default_prompt or ""
        if name == "":
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise ValueError(
                f"prompt: expected the name of a prompt of {self.name!r} ({known}), got {name!r}"
            )
        return self.prompts[name]

    def _named(self, *names: str) -> str | None:
        """The first of these prompts that there is; None for the usual one."""
        return next((name for name in names if self.prompts.get(name)), None)

    def _skipped(self, prompt: str) -> int:
        """Tokens at the beginning that are not pooled."""
        if not prompt or self._settings.folder.include_prompt:
            return 0
        return self._texts.prompt_tokens(prompt)

    def _inputs(
        self, texts: Iterable[tuple[int, str]], prompt: str, *, truncate: bool
    ) -> Iterator[EncodedText]:
        skipped = self._skipped(prompt)
        for number, text in texts:
            whole = prompt + text if prompt and isinstance(text, str) else text
            found = self._texts.encoded(number, whole, truncate=truncate)
            yield replace(found, first=min(skipped, len(found.ids) - 1)) if skipped else found

    def _parts(
        self, texts: Iterable[tuple[int, str]], prompt: str
    ) -> Iterator[tuple[int, EncodedText, int]]:
        """Parts of texts that fit: of which text, what runs, how many tokens of the text."""
        skipped = self._skipped(prompt)
        for number, text in texts:
            for encoded, tokens in self._texts.pieces(number, text, prompt):
                yield number, replace(encoded, first=skipped), tokens

    def _finished(self, vector: F32, width: int, unit: bool) -> F32:
        kept: F32 = scores.unit_rows(vector[None, :width])[0] if unit else vector[:width].copy()
        return kept

    def _pairs(self, texts: Iterable[tuple[int, Any]], *, truncate: bool) -> Iterator[EncodedText]:
        for number, text in texts:
            if isinstance(text, tuple):
                if len(text) != 2:
                    raise ValueError(f"text {number}: expected a pair, got {len(text)} texts")
                yield self._texts.encoded(number, *text, truncate=truncate)
            else:
                yield self._texts.encoded(number, text, truncate=truncate)

    def _query_beside(
        self, query: str, docs: list[str], instruction: str | None, *, truncate: bool
    ) -> Iterator[EncodedText]:
        # A decoder without a prompt for pairs reads texts that somebody has written as one.
        marked = isinstance(self._open.body.family, Headless)
        for i, doc in enumerate(docs):
            if self._pair_prompts is None:
                yield self._texts.encoded(i, query, doc, truncate=truncate, marked=marked)
            else:
                yield self._pair_prompts.encoded(i, query, doc, instruction, truncate=truncate)

    def _scored(self, values: F32, top_k: int | None) -> list[Scored]:
        """Labels with these values, the likeliest first."""
        order = sorted(range(len(values)), key=lambda i: (-float(values[i]), i))
        return [Scored(self.labels[i], float(values[i])) for i in order[:top_k]]

    def _need(self, task: str) -> None:
        if self.task != task:
            has = f"one for {self.task}" if self.task else "none"
            raise UnsupportedModelError(
                f"{self.name}: {task} needs a model with a head for it; this model has {has}"
            )

    def _activated(self, row: F32) -> F32:
        return scores.ACTIVATIONS[self._settings.activation](row)

    def _entailed(self, text: str, claims: list[str], *, multi_label: bool, truncate: bool) -> F32:
        """How likely a text entails each claim."""
        self._need("classify")
        pairs = (
            self._texts.encoded(i, text, claim, truncate=truncate, whole_pair=True)
            for i, claim in enumerate(claims)
        )
        rows = np.stack(list(self._open.heads(pairs)))
        return entailed(rows, self.labels, self.name, multi_label=multi_label)

    def _likeliest(self, logits: F32, top_k: int) -> list[Filled]:
        # Of all rows, those that only fill the table up included, as transformers does.
        likely = scores.softmax(logits)[: self.tokenizer.n_vocab]
        order = np.lexsort((np.arange(len(likely)), -likely))[:top_k]
        return [Filled(self.tokenizer.token_text(int(i)), float(likely[i]), int(i)) for i in order]
