"""`Index`: a folder that finds passages of documents, by meaning and by words."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.embedding.encoder import Encoder
from slmq.embedding.identity import encoder_identity
from slmq.embedding.loading import load_encoder
from slmq.errors import BusyError, ClosedError, ContextOverflowError, DataError, WriteError
from slmq.machine.disk import lock_file
from slmq.search.background import UNRELATED, needed_fit
from slmq.search.documents import expect_documents
from slmq.search.finding import CANDIDATES, Found, View
from slmq.search.reading import read_folder, read_texts
from slmq.search.results import Answered, Hit, Indexed, Source
from slmq.search.store import Store
from slmq.search.vectors import MappedVectors
from slmq.search.writing import Writer, vector_path

if TYPE_CHECKING:
    from typing_extensions import Self

    from slmq.generation.model import Model

__all__ = ["DEFAULT_ENCODER", "Index"]

F32 = npt.NDArray[np.float32]
DEFAULT_ENCODER = "all-minilm-l6-v2"
MODES = ("hybrid", "vectors", "words")
LOCK = "lock"
MOST_TOKENS = 200  # of a passage, unless the encoder takes less
SPARE_TOKENS = 8  # a passage of joined sentences may have a few more than they have
LEAST_SHARE = 1 / 3  # of a question's words that speaks for an answer
Report = Callable[[int, int], None]


class Index:
    """Documents that can be searched. Safe to use from several threads.

    A folder with a database and a file of vectors. It knows by which encoder it was made, and is
    opened with the same one. Changes survive whatever happens while they are written: after a
    crash there is the state before or after a document. One process writes, any number read.

    Parameters
    ----------
    path : str or path
        The folder; made if it is not there.
    encoder : Encoder, str or path, optional
        Open, or the name of one. None takes the one that made the index, and for a new one
        all-MiniLM-L6-v2.
    create : bool
        Whether to make it if it is not there.
    passage_tokens : int, optional
        Most tokens of a passage, for a new index; None takes 200, or what the encoder takes.
    **options
        By which an encoder is loaded; see `slmq.load_encoder`.

    Attributes
    ----------
    path : Path
    encoder : Encoder
    passage_tokens : int

    Raises
    ------
    DataError
        If the folder is no index, damaged, or made by another encoder.
    WriteError
        If it cannot be made.
    Error
        As `slmq.load_encoder`.

    Examples
    --------
    >>> import slmq
    >>> with slmq.Index("notes.index") as index:  # doctest: +SKIP
    ...     index.add("notes/")
    ...     print(index.search("When does the lease end?")[0].text)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        encoder: Encoder | str | os.PathLike[str] | None = None,
        *,
        create: bool = True,
        passage_tokens: int | None = None,
        **options: Any,
    ) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self._view: View | None = None
        self._seen = -1
        self._threads = int(_native.resolve_threads(options.get("n_threads"))["threads"])
        new = not Store.is_in(self.path)
        if new:
            self._make_folder(create=create)
        self._store: Store | None = Store(self.path)
        try:
            known = self._store.fact("encoder")
            self._owned = not isinstance(encoder, Encoder)
            if isinstance(encoder, Encoder):
                self.encoder = encoder
            else:
                self.encoder = load_encoder(encoder or known or DEFAULT_ENCODER, **options)
            try:
                self._bind(known, encoder, passage_tokens)
            except BaseException:
                self._close_encoder()
                raise
        except BaseException:
            self._store.close()
            raise

    def __repr__(self) -> str:
        return f"<slmq.Index {os.fspath(self.path)!r}, {self.encoder.name!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it, with an encoder that it has loaded; harmless when repeated."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._close_encoder()
            self._store = self._view = None

    # --- changing -------------------------------------------------------------------------------

    def add(self, path: str | os.PathLike[str], report: Report | None = None) -> Indexed:
        """Index a file, or all files below a folder: those that are new or have changed.

        Documents of an earlier call with the same path whose files are gone are removed. Files that
        cannot be read are named in what is returned, and stay as they were. A folder keeps the name
        by which it was first indexed, from wherever it is called later.

        Parameters
        ----------
        path : str or path
        report : callable, optional
            Called with how many files of how many are done.

        Raises
        ------
        DataError
            If there is nothing of that name.
        BusyError
            If another process writes.
        WriteError
            If the disk is full; what was committed stays, and the same call goes on from there.
        """
        expect_documents(Path(path))
        with self._writing() as store:
            root = _root_of(store, Path(path))
            known = store.digests()
            refused: dict[str, str] = {}
            documents = read_folder(Path(path), root, known, refused, report)
            writer = self._writer(store)
            done = writer.write(root.as_posix(), documents, known)
            gone = store.digests(root.as_posix()).keys() - done.seen - refused.keys()
            writer.forget(sorted(gone))
        return Indexed(
            done.added,
            done.changed,
            len(gone),
            len(done.seen) - done.added - done.changed,
            done.passages,
            refused,
        )

    def add_texts(self, texts: Mapping[str, str]) -> Indexed:
        """Index texts that are no files, by name; one that has changed takes the other's place.

        Raises
        ------
        TypeError
            If one is no text.
        BusyError, WriteError
            As `add`.
        """
        with self._writing() as store:
            known = store.digests()
            done = self._writer(store).write("", read_texts(texts, known), known)
        same = len(done.seen) - done.added - done.changed
        return Indexed(done.added, done.changed, 0, same, done.passages, {})

    def remove(self, name: str) -> None:
        """Forget a document.

        Raises
        ------
        DataError
            If there is none of that name.
        BusyError, WriteError
            As `add`.
        """
        with self._writing() as store:
            if name not in store.digests():
                raise DataError(f"{self.path}: there is no document {name!r:.200}")
            self._writer(store).forget([name])

    # --- asking ---------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        *,
        top_k: int = 5,
        mode: str = "hybrid",
        rerank: Encoder | None = None,
    ) -> list[Hit]:
        """Passages that fit a query, the best first.

        Parameters
        ----------
        query : str
        top_k : int
            At most so many.
        mode : {"hybrid", "vectors", "words"}
            By meaning and by words, or by one of them.
        rerank : Encoder, optional
            Reads the query beside each of the best 60 passages and ranks them; a cross-encoder.

        Raises
        ------
        TypeError, ValueError
            For a wrong argument, or an empty query.
        ContextOverflowError
            If the query is longer than the encoder takes.
        DataError
            If the index is damaged.
        """
        _check(query)
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}; got {mode!r}")
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k: expected at least 1, got {top_k!r}")
        vector = None if mode == "words" else self.query_vector(query)
        most = top_k if rerank is None else max(CANDIDATES, top_k)
        with self._lock, self._open.reading():
            view = self._viewed(vectors=vector is not None)
            ranked = view.ranked(query, vector, words=mode != "vectors", most=most)
            hits = [self._hit(found) for found in ranked]
        if rerank is None or not hits:
            return hits
        texts = [f"{hit.heading}\n{hit.text}" if hit.heading else hit.text for hit in hits]
        order = rerank.rerank(query, texts, top_k=top_k, truncate=True)
        return [Hit(**{**vars(hits[r.index]), "score": r.score}) for r in order]

    def ask(
        self,
        question: str,
        model: Model,
        *,
        top_k: int = 4,
        sentences: int | None = 3,
        **params: Any,
    ) -> Answered:
        """Let a model answer a question from the passages that fit it.

        The model is not asked if no passage is near enough; see `fit`.

        Parameters
        ----------
        question : str
        model : Model
        top_k : int
            Passages to look at.
        sentences : int, optional
            Sentences that the model is shown, the nearest of all passages. None shows it whole
            passages, which larger models answer better from.
        **params
            Sampling parameters; see `slmq.generation.params.SamplingParams`.

        Raises
        ------
        Error
            As `search` and `Model.generate`.
        """
        from slmq.search.answering import answer

        return answer(self, model, question, top_k=top_k, sentences=sentences, params=params)

    def fit(self, hits: Iterable[Hit]) -> tuple[float, float]:
        """How near passages are to their query, and how near one has to be to hold an answer.

        What is needed is measured on this index: some questions about nothing in particular find
        their nearest passages, too, and an answer has to be nearer than nearly all of those.
        """
        with self._lock, self._open.reading():
            best = self._viewed().cosines(self._unrelated()).max(axis=1, initial=-1.0)
        return max((h.cosine for h in hits if h.cosine is not None), default=-1.0), needed_fit(best)

    def word_fit(self, hits: Iterable[Hit]) -> tuple[float, float]:
        """The same for words: the largest share that a passage has, and what is needed."""
        with self._lock, self._open.reading():
            view = self._viewed(vectors=False)
            shares = [view.shares(question, 1).values() for question in UNRELATED]
        best = np.array([max((s for _, s in found), default=0.0) for found in shares], np.float32)
        needed = max(needed_fit(best), LEAST_SHARE)
        return max((hit.share for hit in hits), default=0.0), needed

    def grounds(self, question: str, *, top_k: int) -> list[Hit]:
        """As a hybrid `search`, but words that few passages have are among what is found."""
        vector = self.query_vector(question)
        with self._lock, self._open.reading():
            found = self._viewed().grounds(question, vector, top_k)
            return [self._hit(one) for one in found]

    def shares_of(self, texts: Sequence[str], question: str) -> list[float]:
        """The shares of a question's words that some texts have; rare is what few passages have."""
        with self._lock, self._open.reading():
            return self._open.shares_of(texts, question)

    def query_vector(self, query: str) -> F32:
        """The vector that a query is looked for by: float32[1, dimensions]; errors as `search`."""
        _check(query)
        try:
            return self.encoder.embed([query], prompt=self._prompts()[0], normalize=True)
        except ContextOverflowError:
            raise ContextOverflowError(
                f"query: expected at most {self.encoder.max_length} tokens, as the encoder "
                f"{self.encoder.name!r} takes, got {query!r:.40}, which has more; ask shorter"
            ) from None

    def passage_vectors(self, texts: Iterable[str]) -> F32:
        """The vectors of texts, as those of passages are made."""
        return self.encoder.embed(
            list(texts), prompt=self._prompts()[1], normalize=True, chunk=True
        )

    def sources(self) -> list[Source]:
        """The documents, by name."""
        with self._lock:
            return [Source(name, count) for name, count in self._open.counts()]

    def __len__(self) -> int:
        """How many passages there are."""
        return sum(source.passages for source in self.sources())

    def check(self) -> None:
        """Look at every part of the index.

        Raises
        ------
        DataError
            If one is damaged.
        """
        with self._lock, self._open.reading():
            self._open.check()
            self._seen = -1
            self._viewed()

    # --- what these are made of -----------------------------------------------------------------

    @property
    def _open(self) -> Store:
        if self._store is None:
            raise ClosedError(f"the index {os.fspath(self.path)!r} is closed")
        return self._store

    def _make_folder(self, *, create: bool) -> None:
        if self.path.exists() and (not self.path.is_dir() or any(self._strangers())):
            raise DataError(f"{self.path}: expected an index, or an empty folder for a new one")
        if not create:
            raise DataError(f"{self.path}: there is no index; `slmq index` makes one")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"{self.path}: cannot be made: {error.strerror or error}") from None

    def _strangers(self) -> list[str]:
        return [path.name for path in self.path.iterdir() if path.name != LOCK]

    def _bind(self, known: str | None, given: Any, passage_tokens: int | None) -> None:
        """Compare the encoder with the one that the index was made by, or write it down."""
        identity = encoder_identity(self.encoder)
        before = self.encoder.prompts.get(self._prompts()[1] or "", "")
        # One token of text, and all that stands around it.
        room = self.encoder.max_length - len(self.encoder.tokenizer.encode_parts(before + "a")) + 1
        if known is None:
            wanted = min(MOST_TOKENS, room - SPARE_TOKENS)
            tokens = wanted if passage_tokens is None else passage_tokens
            if not 16 <= tokens <= room:
                raise ValueError(f"passage_tokens: expected 16..{room}, got {passage_tokens!r}")
            name = os.fspath(given) if isinstance(given, (str, os.PathLike)) else self.encoder.name
            if given is None:
                name = DEFAULT_ENCODER
            name = os.path.abspath(name) if Path(name).exists() else name  # noqa: PTH100
            with self._writing() as store, store.writing():
                store.set_fact("encoder", name)
                store.set_fact("identity", identity)
                store.set_fact("passage_tokens", str(tokens))
                store.set_fact("vectors", "1")
        elif self._open.fact("identity") != identity:
            raise DataError(
                f"{self.path}: it was made by {known!r} ({self._open.fact('identity')}), and "
                f"{self.encoder.name!r} as it is loaded ({identity}) gives other vectors; open it "
                f"with the encoder that made it, or make a new index"
            )
        self.passage_tokens = self._open.number("passage_tokens")

    def _close_encoder(self) -> None:
        if self._owned:
            self.encoder.close()

    def _prompts(self) -> tuple[str | None, str | None]:
        """Names of the encoder's prompts for queries and for passages."""
        named = self.encoder.prompts
        query = next((name for name in ("query", "search_query") if named.get(name)), None)
        found = ("document", "passage", "search_document")
        return query, next((name for name in found if named.get(name)), None)

    @contextmanager
    def _writing(self) -> Iterator[Store]:
        """The right to write; the operating system takes it back from a process that dies."""
        with self._lock:
            store = self._open
            try:
                held = lock_file(self.path / LOCK)
            except OSError as error:
                raise WriteError(
                    f"{self.path}: cannot be written: {error.strerror or error}"
                ) from None
            if held is None:
                raise BusyError(f"{self.path}: another process writes to this index; try again")
            try:
                yield store
            finally:
                os.close(held)

    def _writer(self, store: Store) -> Writer:
        self._view = None  # not every system removes a file that is mapped
        return Writer(self.path, store, self.encoder, self.passage_tokens, self.passage_vectors)

    def _viewed(self, *, vectors: bool = True) -> View:
        """What is to be searched: all that another process, or this one, has written until now.

        Without `vectors` a damaged file of them is no matter.
        """
        store = self._open
        if not vectors:
            nothing = MappedVectors(self.path, self.encoder.dimensions, [])
            return View(store, nothing, np.empty(0, np.int64), self._threads)
        version = store.version()
        if version == self._seen and self._view is not None:
            return self._view
        mapped = MappedVectors(
            vector_path(self.path, store), self.encoder.dimensions, store.parts()
        )
        numbers = np.full(mapped.rows, -1, np.int64)
        rows = np.array(store.rows(), np.int64).reshape(-1, 2)
        if len(rows) and rows[-1, 1] >= mapped.rows:
            raise DataError(
                f"{mapped.path}: expected {rows[-1, 1] + 1} vectors, found {mapped.rows}"
            )
        numbers[rows[:, 1]] = rows[:, 0]
        self._view, self._seen = View(store, mapped, numbers, self._threads), version
        return self._view

    def _hit(self, found: Found) -> Hit:
        at = self._open.passage(found.number)
        place = (at.source, at.line, at.heading, at.text)
        return Hit(*place, found.score, found.cosine, found.share)

    def _unrelated(self) -> F32:
        """Vectors of questions about nothing in particular, made once."""
        if not hasattr(self, "_apart"):
            self._apart = self.encoder.embed(
                list(UNRELATED), prompt=self._prompts()[0], normalize=True
            )
        return self._apart


def _root_of(store: Store, path: Path) -> Path:
    """What names of documents below a path begin with: else another spelling would double them."""
    place = Path(os.path.realpath(path))
    known = store.places()
    for folder in (place, *place.parents):
        if (name := known.get(folder.as_uri())) is not None:
            return Path(name) / place.relative_to(folder)
    with store.writing():
        store.set_place(path.as_posix(), place.as_uri())
    return path


def _check(query: object) -> None:
    """Raise unless it is some text."""
    if not isinstance(query, str):
        raise TypeError(f"query: expected a str, got {type(query).__name__}")
    if not query.strip():
        raise ValueError("query: expected some text, got none")
    if not query.isascii() and any("\ud800" <= letter <= "\udfff" for letter in query):
        raise ValueError("query: holds a lone surrogate")
