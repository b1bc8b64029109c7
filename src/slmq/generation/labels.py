"""Labels by likelihood: every label is scored as the answer, and none has to be generated.

What all prompts begin with is computed once, a text once for all questions about it, and the first
tokens of all labels are read from one row: only their rows of the head are computed. Scores do not
depend on any of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from slmq.engine.engine import Engine, Rows
from slmq.engine.runs import cut_runs
from slmq.engine.sequence import PAGE, TokenSequence, common_length
from slmq.errors import CheckpointError
from slmq.generation._sampling import logsumexp
from slmq.generation.label_prompts import Example, LabelPrompt
from slmq.generation.prompts import require_room
from slmq.machine.exact import exact_exp, exact_log

__all__ = ["Label", "Labeller", "Labels", "Question"]

CONTENT_FREE = ("N/A", "[MASK]", "...")  # Zhao et al., "Calibrate before use", 2021
MOST_TEXTS = 32  # whose prompts are computed together
MOST_LABELS = 1000

F32 = npt.NDArray[np.float32]
Labels = Sequence[str] | Mapping[str, Sequence[str]]
Question = tuple[str, Sequence[str]]  # what is asked, and the labels that may answer it
Exclusive = Callable[[], AbstractContextManager[Engine]]


@dataclass(frozen=True)
class Label:
    """What a model makes of a text.

    Attributes
    ----------
    label : str
        The likeliest label.
    probability : float
        Its probability, among the labels.
    probabilities : dict of str to float
        Of every label, in the order in which they were given; they add up to 1.
    """

    label: str
    probability: float
    probabilities: dict[str, float]

    def __str__(self) -> str:
        return self.label


class Labeller:
    """Labels any number of texts; made by `Model.labeller`.

    Parameters
    ----------
    exclusive : callable
        `Model.exclusive`; the engine is taken for some texts at a time.
    engine : Engine
    labels : sequence of str, or mapping of str to sequence of str
        The labels, or those of several questions.
    instruction : str, optional
        What is asked. Of several questions each has one of its own, which names it.
    examples : sequence of (str, str)
        Texts with their labels, shown before the text.
    calibrate : bool
        Whether what the model prefers without a text is taken out of its scores.
    """

    _bias: list[list[float]] | None = None

    def __init__(
        self,
        exclusive: Exclusive,
        engine: Engine,
        labels: Labels,
        *,
        instruction: str | None = None,
        examples: Sequence[Example] = (),
        calibrate: bool = False,
    ) -> None:
        names, prompts = _prompts(engine, labels, instruction, examples)
        self._ask(exclusive, names, prompts)
        if calibrate:
            self._bias = self._preferences()

    @classmethod
    def asking(
        cls, exclusive: Exclusive, engine: Engine, questions: Mapping[str, Question]
    ) -> Labeller:
        """One for several questions, each with an instruction of its own.

        Parameters
        ----------
        exclusive : callable
        engine : Engine
        questions : mapping of str to (str, sequence of str)
            By name: the instruction, and the labels.
        """
        found = cls.__new__(cls)
        prompts = [
            LabelPrompt.of(engine, _checked(labels, name), instruction=instruction)
            for name, (instruction, labels) in questions.items()
        ]
        found._ask(exclusive, tuple(questions), prompts)
        return found

    def prompt_tokens(self, text: str) -> int:
        """Tokens of all questions about a text; what they share counts once."""
        shared, rests = _Batch(self._prompts).contexts(text)
        return len(shared) + sum(map(len, rests))

    @property
    def questions(self) -> tuple[str, ...] | None:
        """The names of several questions; None if there is one, without a name."""
        return self._names

    def __call__(self, texts: Iterable[str]) -> Iterator[Label | dict[str, Label]]:
        """A label for each text, or one for each question, in order, as they are found."""
        for scores in self._scores(texts):
            found = [
                _label(prompt.labels, self._calibrated(i, one))
                for i, (prompt, one) in enumerate(zip(self._prompts, scores, strict=True))
            ]
            if self._names is None:
                yield found[0]
            else:
                yield dict(zip(self._names, found, strict=True))

    def _ask(
        self, exclusive: Exclusive, names: tuple[str, ...] | None, prompts: list[LabelPrompt]
    ) -> None:
        self._exclusive = exclusive
        self._names = names
        self._prompts = prompts

    def _calibrated(self, question: int, scores: list[float]) -> list[float]:
        if self._bias is None:
            return scores
        return [a - b for a, b in zip(scores, self._bias[question], strict=True)]

    def _preferences(self) -> list[list[float]]:
        """Log-probabilities of the labels where there is no text, for each question."""
        found = list(self._scores(CONTENT_FREE))
        means = []
        for question in zip(*found, strict=True):
            each = [_probabilities(scores) for scores in question]
            means.append([_log(sum(values) / len(values)) for values in zip(*each, strict=True)])
        return means

    def _scores(self, texts: Iterable[str]) -> Iterator[list[list[float]]]:
        """For each text, and each question about it, a score for each label."""
        waiting = iter(texts)
        batch = _Batch(self._prompts)
        try:
            while group := list(islice(waiting, MOST_TEXTS)):
                contexts = [batch.contexts(text) for text in group]
                while contexts:
                    with self._exclusive() as engine:
                        count = batch.fitting(engine, contexts)
                        found = batch.scores(engine, contexts[:count])
                    contexts = contexts[count:]
                    yield from found
        finally:
            batch.close()


Context = tuple[list[int], list[list[int]]]  # what questions about a text share, and their rests


class _Batch:
    """Scores the prompts of some texts together; holds what all prompts begin with."""

    def __init__(self, prompts: Sequence[LabelPrompt]) -> None:
        self._prompts = prompts
        self._base: TokenSequence | None = None
        probes = [p.context(text) for p in prompts[:1] for text in ("a", "1")]
        self._shared = probes[0][: _common(probes)]

    def close(self) -> None:
        if self._base is not None:
            self._base.close()

    def contexts(self, text: str) -> Context:
        """The tokens of all questions about a text."""
        if not isinstance(text, str):
            raise TypeError(f"texts: expected strings, got {type(text).__name__}")
        whole = [prompt.context(text) for prompt in self._prompts]
        for prompt, ids in zip(self._prompts, whole, strict=True):
            require_room(prompt.engine, len(ids), max(map(len, prompt.options)))
        # The last token of each is needed for its row.
        shared = min(_common(whole), min(map(len, whole)) - 1) if len(whole) > 1 else 0
        return whole[0][:shared], [ids[shared:] for ids in whole]

    def fitting(self, engine: Engine, contexts: Sequence[Context]) -> int:
        """How many of these can be computed together: in a run, and in the cache."""
        rows, pages = 0, len(self._shared) // PAGE + 1
        most = engine.n_ctx // PAGE
        forks = 1 + sum(len(ids) > 1 for prompt in self._prompts for ids in prompt.options)
        for i, (shared, rests) in enumerate(contexts):
            count = len(shared) + sum(map(len, rests)) - len(self._shared)
            rows += count
            pages += count // PAGE + 2 + 2 * len(rests) * forks
            if i and (rows > engine.chunk or pages > most):
                return i
        return len(contexts)

    def scores(self, engine: Engine, contexts: Sequence[Context]) -> list[list[list[float]]]:
        opened: list[TokenSequence] = []
        try:
            return self._found(engine, contexts, opened)
        finally:
            for sequence in opened:
                sequence.close()

    def _found(
        self, engine: Engine, contexts: Sequence[Context], opened: list[TokenSequence]
    ) -> list[list[list[float]]]:
        def fork(sequence: TokenSequence, length: int | None = None) -> TokenSequence:
            opened.append(sequence.fork(length))
            return opened[-1]

        if self._base is None:
            self._base = engine.sequence()
            if self._shared:
                engine.feed(self._base, self._shared, logits="none")
        begun = [
            self._base.kept(_common([self._shared, shared or each[0][:-1]]))
            for shared, each in contexts
        ]
        sequences = [fork(self._base, length) for length in begun]
        texts: list[Rows] = [
            (sequence, shared[length:], 0)
            for sequence, length, (shared, _) in zip(sequences, begun, contexts, strict=True)
            if length < len(shared)
        ]
        for run in cut_runs(texts, engine.chunk):
            engine.run(run)
        # All texts' rows of one question, then of the next: rows of the same ids run together.
        asked: list[Rows] = []
        for i, prompt in enumerate(self._prompts):
            ids = [option[0] for option in prompt.options]
            for sequence, length, (shared, each) in zip(sequences, begun, contexts, strict=True):
                own = fork(sequence) if shared else sequence
                asked.append((own, each[i] if shared else each[i][length:], 1, ids))
        found = [row.astype(np.float64).tolist() for row in _run(engine, asked)]
        n_texts = len(contexts)
        rests: list[Rows] = []
        places: list[tuple[int, int, int]] = []  # row, label and token of what is added there
        for row, (own, *_) in enumerate(asked):
            for label, option in enumerate(self._prompts[row // n_texts].options):
                if len(option) > 1:
                    rests.append((fork(own), option[:-1], len(option) - 1))
                    places += [(row, label, token) for token in option[1:]]
        logs = _looked_up(engine, rests, [token for _, _, token in places])
        for (row, label, _), log in zip(places, logs, strict=True):
            found[row][label] += log
        return [found[i::n_texts] for i in range(n_texts)]


def _run(engine: Engine, parts: Sequence[Rows]) -> Iterator[F32]:
    """The wanted rows of logits, in order; a row is the engine's, until the next one."""
    for run in cut_runs(parts, engine.chunk):
        for block in engine.run(run) or ():
            for row in block:
                if not np.isfinite(row).all():
                    raise CheckpointError(
                        f"the model {engine.name!r} produced NaN or infinite logits; its weights "
                        "are damaged or overflow in this format"
                    )
                yield row


def _looked_up(engine: Engine, parts: Sequence[Rows], tokens: Sequence[int]) -> list[float]:
    """The log-probability of one token in each row."""
    rows = zip(_run(engine, parts), tokens, strict=True)
    return [float(row[token]) - logsumexp(np.ascontiguousarray(row)) for row, token in rows]


def _prompts(
    engine: Engine, labels: Labels, instruction: str | None, examples: Sequence[Example]
) -> tuple[tuple[str, ...] | None, list[LabelPrompt]]:
    if instruction is not None and not isinstance(instruction, str):
        raise TypeError(f"instruction: expected a str, got {type(instruction).__name__}")
    if not isinstance(labels, Mapping):
        known = _checked(labels, "labels")
        pairs = _checked_examples(examples, known)
        return None, [LabelPrompt.of(engine, known, instruction=instruction, examples=pairs)]
    if not labels:
        raise ValueError("labels: expected at least one question, got none")
    if instruction is not None or examples:
        raise ValueError(
            "instruction, examples: expected none where there are several questions; the name of "
            "a question says what it asks"
        )
    for name in labels:
        if not isinstance(name, str) or not name:
            raise TypeError(f"labels: expected questions as non-empty strings, got {name!r:.80}")
    prompts = [
        LabelPrompt.of(engine, _checked(ones, name), instruction=None, question=name)
        for name, ones in labels.items()
    ]
    return tuple(labels), prompts


def _checked(labels: object, name: str) -> list[str]:
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise TypeError(f"{name}: expected a list of labels, got {type(labels).__name__}")
    found = list(labels)
    for label in found:
        if not isinstance(label, str) or not label.strip():
            raise TypeError(f"{name}: expected non-empty strings, got {label!r:.80}")
    if not 2 <= len(found) <= MOST_LABELS or len(set(found)) < len(found):
        raise ValueError(
            f"{name}: expected 2 to {MOST_LABELS} different labels, got {found!r:.120}"
        )
    return found


def _checked_examples(examples: Sequence[Example], labels: Sequence[str]) -> list[Example]:
    found = []
    for example in examples:
        if not (isinstance(example, Sequence) and len(example) == 2) or isinstance(example, str):
            raise TypeError(f"examples: expected (text, label), got {example!r:.80}")
        text, label = example
        if not isinstance(text, str) or label not in labels:
            raise ValueError(
                f"examples: expected a text and one of the labels, got {example!r:.80}"
            )
        found.append((text, label))
    return found


def _label(labels: Sequence[str], scores: Sequence[float]) -> Label:
    values = _probabilities(scores)
    best = max(range(len(values)), key=lambda i: (values[i], -i))
    return Label(labels[best], values[best], dict(zip(labels, values, strict=True)))


def _probabilities(scores: Sequence[float]) -> list[float]:
    top = max(scores)
    weights = [float(exact_exp(score - top)) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


def _log(value: float) -> float:
    return float(exact_log(max(value, 1e-300)))


def _ids(tokens: Sequence[int]) -> npt.NDArray[np.int32]:
    return np.array(tokens, np.int32)


def _common(lists: Sequence[Sequence[int]]) -> int:
    """How many tokens all lists begin with in common."""
    first = _ids(lists[0])
    return min((common_length(first, _ids(one)) for one in lists[1:]), default=len(first))
