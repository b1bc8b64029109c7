"""What an index answers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Answered", "Hit", "Indexed", "Source"]


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes
    ----------
    source : str
        Path of its file as it was indexed, or the name that its text was given.
    line : int
        Where it begins: 1 is the first line. For HTML and PDF of the text that was taken from them.
    heading : str
        The headings above it, outermost first; "" without.
    text : str
    score : float
        What it is ranked by: in a hybrid search what `slmq.search.ranking` makes of cosine and
        share, among vectors the cosine, among words BM25, after a reranking the score of that.
    cosine : float or None
        Of the vectors of passage and query; None if only words were looked for.
    share : float
        Of the query's words, weighed by how rare they are; 0 if only vectors were looked at.
    """

    source: str
    line: int
    heading: str
    text: str
    score: float
    cosine: float | None
    share: float

    @property
    def place(self) -> str:
        """Where it stands, such as ``docs/serve.md:42``."""
        return f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Indexed:
    """What adding to an index did, in documents.

    Attributes
    ----------
    added, changed, removed, unchanged : int
    passages : int
        That were embedded now.
    refused : dict of str to str
        Files that could not be read, and why; what was known of them before stays.
    """

    added: int
    changed: int
    removed: int
    unchanged: int
    passages: int
    refused: dict[str, str]

    def __str__(self) -> str:
        counts = {
            "added": self.added,
            "changed": self.changed,
            "removed": self.removed,
            "unchanged": self.unchanged,
            "refused": len(self.refused),
        }
        told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return f"{told or 'nothing to do'}; {self.passages} passages embedded"


@dataclass(frozen=True)
class Source:
    """A document of an index.

    Attributes
    ----------
    name : str
    passages : int
    """

    name: str
    passages: int


@dataclass(frozen=True)
class Answered:
    """An answer from documents.

    Attributes
    ----------
    text : str
        What the model wrote; if the documents do not hold the answer, a sentence that says so.
    sources : list of Hit
        The passages, the best first.
    found : bool
        Whether the documents hold something that fits the question.
    fit : float
        The cosine of the question and the passage nearest to it.
    needed : float
        What it has to reach, unless the words do.
    share : float
        The share of the question's words, weighed by how rare they are, that a passage has.
    needed_share : float
        What that has to reach, unless the cosine does.
    quotes : list of (float, int, str)
        The sentences of the sources, those that say most first: the cosine with the share of the
        question's words added, the number of the source, which counts from 1, and the sentence as
        it stands there.
    """

    text: str
    sources: list[Hit]
    found: bool
    fit: float
    needed: float
    share: float
    needed_share: float
    quotes: list[tuple[float, int, str]]

    def quote(self, number: int) -> str:
        """The sentence of a source that says most about the question; "" for none."""
        return next((text for _, source, text in self.quotes if source == number), "")
