"""The database of an index: documents, their passages, full-text search, and what is whole.

One SQLite file. What a change needs is in it after one commit or not at all, whatever is killed and
however full the disk is; the file of vectors is written before, behind what the database counts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from slmq.errors import BusyError, DataError, WriteError
from slmq.machine.exact import exact_log
from slmq.search.passages import Passage
from slmq.search.words import any_of, gram_terms, has_runs, quoted, runs_of, word_terms

__all__ = ["Matched", "NewDocument", "Store", "Stored"]

DATABASE = "index.sqlite"
MARK, VERSION = 0x736C6D71, 1  # "slmq"
PLACE = "place of "  # how facts are called that say where a folder is
WAIT_S = 30.0  # for another process to end its commit
SQLITE = (3, 34, 0)  # the first with a trigram tokenizer
FEW = 20  # passages
LEAST = 1e-6  # weight of a term that most passages have, as FTS5 has it
RARE_PASSAGES, RARE_SHARE = 10, 0.02  # a rare term is in no more of them
CUT = {"words": "porter unicode61 remove_diacritics 2", "grams": "trigram"}  # into terms
SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value);
CREATE TABLE documents (
  id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, root TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE passages (
  id INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES documents, line INTEGER NOT NULL,
  row INTEGER UNIQUE NOT NULL, heading TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX passages_document ON passages (document);
CREATE TABLE parts (id INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, checksum INTEGER NOT NULL);
CREATE VIRTUAL TABLE words USING fts5(
  heading, text, content='passages', content_rowid='id',
  tokenize='{words}');
CREATE VIRTUAL TABLE grams USING fts5(
  text, content='passages', content_rowid='id', tokenize='{grams}');
"""


@dataclass(frozen=True)
class NewDocument:
    """A document to be written.

    Attributes
    ----------
    name : str
    root : str
        The folder or file that was added; "" for a text.
    digest : str
        Of its contents.
    passages : list of Passage
    """

    name: str
    root: str
    digest: str
    passages: list[Passage]


@dataclass(frozen=True)
class Stored:
    """A passage as it is stored.

    Attributes
    ----------
    source, heading, text : str
    line : int
    """

    source: str
    line: int
    heading: str
    text: str


@dataclass(frozen=True)
class Matched:
    """Passages that have any of some terms.

    Attributes
    ----------
    found : list of (int, float)
        The best, with BM25.
    worth : float
        BM25 of a passage of the usual length that has every term once.
    """

    found: list[tuple[int, float]]
    worth: float


Weight = tuple[float, int, int, bool]
NOTHING = Matched([], 0.0)


class Store:
    """An open database.

    Parameters
    ----------
    folder : Path
        Of the index; it is there.

    Raises
    ------
    DataError
        If the database is damaged, or none of an index.
    WriteError
        If it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        require_sqlite()
        self.path = folder / DATABASE
        with self._errors():
            # No implicit transactions; used by one thread at a time, whichever it is.
            self._db = sqlite3.connect(
                self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False
            )
        try:
            with self._errors():
                self._db.execute("PRAGMA synchronous = FULL")
                self._check()
        except BaseException:
            self._db.close()
            raise

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder holds the database of an index."""
        return (folder / DATABASE).is_file()

    def close(self) -> None:
        """Close it; harmless when repeated."""
        self._db.close()

    # --- reading ----------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within the block nothing changes, whoever writes."""
        with self._errors():
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    def number(self, name: str) -> int:
        """A number that is written down by a name, 0 for none; raises DataError for a text."""
        found = self.fact(name)
        try:
            return int(found or 0)
        except ValueError:
            raise DataError(
                f"{self.path}: damaged: {name} is {found!r:.40}; delete the index and make it again"
            ) from None

    def fact(self, name: str) -> str | None:
        """What is written down by a name."""
        with self._errors():
            found = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def places(self) -> dict[str, str]:
        """Folders and files that were indexed, by where they are; how they were called."""
        query = "SELECT value, substr(name, ?) FROM facts WHERE substr(name, 1, ?) = ?"
        with self._errors():
            return dict(self._db.execute(query, (len(PLACE) + 1, len(PLACE), PLACE)).fetchall())

    def version(self) -> int:
        """A count of all changes."""
        return self.number("version")

    def parts(self) -> list[tuple[int, int]]:
        """Bytes and checksum of each part of the vectors."""
        with self._errors():
            return self._db.execute("SELECT bytes, checksum FROM parts ORDER BY id").fetchall()

    def rows(self) -> list[tuple[int, int]]:
        """Passages with their rows among the vectors, in the order of rows."""
        with self._errors():
            return self._db.execute("SELECT id, row FROM passages ORDER BY row").fetchall()

    def digests(self, root: str | None = None) -> dict[str, str]:
        """Documents with their digests; of all roots, or of one."""
        query, given = "SELECT name, digest FROM documents", ()
        if root is not None:
            query, given = query + " WHERE root = ?", (root,)  # type: ignore[assignment]
        with self._errors():
            return dict(self._db.execute(query + " ORDER BY name", given).fetchall())

    def counts(self) -> list[tuple[str, int]]:
        """Documents and how many passages each has."""
        query = (
            "SELECT name, (SELECT count(*) FROM passages WHERE document = documents.id)"
            " FROM documents ORDER BY name"
        )
        with self._errors():
            return self._db.execute(query).fetchall()

    def passage(self, number: int) -> Stored:
        """A passage by its number."""
        query = (
            "SELECT name, line, heading, text FROM passages"
            " JOIN documents ON documents.id = document WHERE passages.id = ?"
        )
        with self._errors():
            found = self._db.execute(query, (number,)).fetchone()
        if found is None:
            raise DataError(f"{self.path}: damaged: the passage {number} is gone")
        return Stored(*found)

    def by_words(self, text: str, most: int) -> Matched:
        """Passages that have any of a text's words, the best first."""
        return self._matches("words", word_terms(text), most)

    def by_grams(self, text: str, most: int) -> Matched:
        """Passages that have parts of what a text writes without blanks, the best first."""
        terms = gram_terms(text)
        if terms:
            return self._matches("grams", terms, most)
        runs = runs_of(text)  # too short for three characters: looked for everywhere
        if not runs:
            return NOTHING
        test = " OR ".join("instr(text, ?)" for _ in runs)
        with self._errors():
            found = self._db.execute(
                f"SELECT id FROM passages WHERE {test} ORDER BY id LIMIT ?", (*runs, most)
            ).fetchall()
        return Matched([(number, 1.0) for (number,) in found], 1.0)

    def check(self) -> None:
        """Look at all of it.

        Raises
        ------
        DataError
        """
        with self._errors():
            ((found, *_),) = self._db.execute("PRAGMA quick_check(1)").fetchall()
            if found != "ok":
                raise DataError(f"{self.path}: damaged: {found}")
            for table in ("words", "grams"):
                self._db.execute(f"INSERT INTO {table}({table}) VALUES ('integrity-check')")

    def _matches(self, table: str, terms: list[str], most: int) -> Matched:
        if not terms:
            return NOTHING
        with self._errors():
            weights = self._weights(table, terms)
            if any(few for _, _, _, few in weights.values()):
                return self._counted(table, weights, most)
            found = self._db.execute(
                f"SELECT rowid, bm25({table}) FROM {table} WHERE {table} MATCH ?"
                " ORDER BY 2, 1 LIMIT ?",
                (any_of(terms), most),
            ).fetchall()
        worth = sum(weight for weight, *_ in weights.values())
        return Matched([(number, -score) for number, score in found], worth)

    def _counted(self, table: str, weights: Mapping[str, Weight], most: int) -> Matched:
        """The same where FTS5 knows too few passages to tell what is rare."""
        scores: dict[int, float] = {}
        for term, (weight, *_) in weights.items():
            query = f"SELECT rowid FROM {table} WHERE {table} MATCH ?"
            for (number,) in self._db.execute(query, (quoted(term),)):
                scores[number] = scores.get(number, 0.0) + weight
        order = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        return Matched(order[:most], sum(weight for weight, *_ in weights.values()))

    def rare_terms(self, text: str) -> list[tuple[float, set[int]]]:
        """Words or parts of a text that few passages have: how much each weighs, and which."""
        rare = []
        with self._errors():
            for table, terms in (("words", word_terms(text)), ("grams", gram_terms(text))):
                for term, (weight, having, count, _) in self._weights(table, terms).items():
                    if 0 < having <= max(1, min(RARE_PASSAGES, RARE_SHARE * count)):
                        query = f"SELECT rowid FROM {table} WHERE {table} MATCH ?"
                        found = self._db.execute(query, (quoted(term),)).fetchall()
                        rare.append((weight, {number for (number,) in found}))
        return rare

    def shares_of(self, texts: Sequence[str], query: str) -> list[float]:
        """The share of a query's words that each of some texts has, weighed as in `Matched`."""
        has, worth = [0.0] * len(texts), 0.0
        for table, terms in (("words", word_terms(query)), ("grams", gram_terms(query))):
            with self._errors():
                weights = self._weights(table, terms)
            worth += sum(weight for weight, *_ in weights.values())
            # The same stems as in the index, by the same means.
            with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
                db.execute(f"CREATE VIRTUAL TABLE texts USING fts5(text, tokenize='{CUT[table]}')")
                rows = list(enumerate(texts))
                db.executemany("INSERT INTO texts (rowid, text) VALUES (?, ?)", rows)
                for term, (weight, *_) in weights.items():
                    found = "SELECT rowid FROM texts WHERE texts MATCH ?"
                    for (number,) in db.execute(found, (quoted(term),)):
                        has[number] += weight
        return [share / worth if worth > 0 else 0.0 for share in has]

    def _weights(self, table: str, terms: list[str]) -> dict[str, Weight]:
        """Of each term its weight in BM25, how many passages have it, of how many, and if of few.

        Of few texts without blanks, all passages are counted.
        """
        (count,) = self._db.execute(f"SELECT count(*) FROM {table}_docsize").fetchone()
        few = count < FEW
        if few:
            (count,) = self._db.execute("SELECT count(*) FROM passages").fetchone()
        found = {}
        for term in terms:
            query = f"SELECT count(*) FROM {table} WHERE {table} MATCH ?"
            (having,) = self._db.execute(query, (quoted(term),)).fetchone()
            weight = exact_log((count - having + 0.5) / (having + 0.5))
            found[term] = (max(LEAST, weight), having, count, few)
        return found

    # --- writing ----------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What the block does is done when it ends, or not at all.

        Raises
        ------
        WriteError
            If the disk is full, or the file is not ours.
        """
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("UPDATE facts SET value = value + 1 WHERE name = 'version'")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def set_fact(self, name: str, value: str) -> None:
        """Write something down."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def set_place(self, name: str, place: str) -> None:
        """Write down where something is that is called so."""
        self.set_fact(PLACE + name, place)

    def add_part(self, size: int, checksum: int) -> None:
        """Count bytes at the end of the vectors."""
        self._db.execute("INSERT INTO parts (bytes, checksum) VALUES (?, ?)", (size, checksum))

    def remove(self, name: str) -> None:
        """Forget a document."""
        found = self._db.execute("SELECT id FROM documents WHERE name = ?", (name,)).fetchone()
        if found is None:
            return
        rows = self._db.execute(
            "SELECT id, heading, text FROM passages WHERE document = ?", found
        ).fetchall()
        for number, heading, text in rows:
            self._db.execute(
                "INSERT INTO words(words, rowid, heading, text) VALUES ('delete', ?, ?, ?)",
                (number, heading, text),
            )
            if has_runs(text):
                self._db.execute(
                    "INSERT INTO grams(grams, rowid, text) VALUES ('delete', ?, ?)", (number, text)
                )
        self._db.execute("DELETE FROM passages WHERE document = ?", found)
        self._db.execute("DELETE FROM documents WHERE id = ?", found)

    def insert(self, document: NewDocument, row: int) -> None:
        """Add a document, whose first passage has this row among the vectors."""
        made = self._db.execute(
            "INSERT INTO documents (name, root, digest) VALUES (?, ?, ?)",
            (document.name, document.root, document.digest),
        )
        for at, passage in enumerate(document.passages, row):
            number = self._db.execute(
                "INSERT INTO passages (document, line, row, heading, text) VALUES (?, ?, ?, ?, ?)",
                (made.lastrowid, passage.line, at, passage.heading, passage.text),
            ).lastrowid
            self._db.execute(
                "INSERT INTO words (rowid, heading, text) VALUES (?, ?, ?)",
                (number, passage.heading, passage.text),
            )
            if has_runs(passage.text):
                self._db.execute(
                    "INSERT INTO grams (rowid, text) VALUES (?, ?)", (number, passage.text)
                )

    def renumber(self, numbers: Sequence[int], size: int, checksum: int) -> None:
        """Passages get the rows 0, 1, ... of one part."""
        # Rows are unique all the time, so they step aside first.
        self._db.execute("UPDATE passages SET row = -1 - row")
        self._db.executemany("UPDATE passages SET row = ? WHERE id = ?", list(enumerate(numbers)))
        self._db.execute("DELETE FROM parts")
        self.add_part(size, checksum)

    # --- making -----------------------------------------------------------------------------------

    def _check(self) -> None:
        """Make the tables of a new database; refuse one that is something else."""
        (mark,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if mark == MARK and version == VERSION:
            return
        if mark == MARK:
            raise DataError(
                f"{self.path}: it is of version {version}, this slmq reads {VERSION}; make a new "
                f"index"
            )
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if mark or tables:
            raise DataError(f"{self.path}: it is the database of another program")
        script = (
            f"BEGIN IMMEDIATE; {SCHEMA.format_map(CUT)} INSERT INTO facts VALUES ('version', 0);"
        )
        script += f"PRAGMA application_id = {MARK}; PRAGMA user_version = {VERSION}; COMMIT;"
        self._db.executescript(script)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "locked" in text:
                raise BusyError(f"{self.path}: another program holds it: {text}") from None
            if any(word in text for word in ("full", "readonly", "unable to open", "disk I/O")):
                raise WriteError(f"{self.path}: cannot be written: {text}") from None
            raise DataError(
                f"{self.path}: damaged: {text}; delete the index and make it again"
            ) from None


def require_sqlite() -> None:
    """Raise ImportError if Python's SQLite cannot do what is needed."""
    if sqlite3.sqlite_version_info < SQLITE:
        needed = ".".join(map(str, SQLITE))
        raise ImportError(
            f"an index needs SQLite {needed} or later, this Python has {sqlite3.sqlite_version}"
        )
    with sqlite3.connect(":memory:") as trial:
        options = {name for (name,) in trial.execute("PRAGMA compile_options")}
    trial.close()
    if "ENABLE_FTS5" not in options:
        raise ImportError("an index needs an SQLite with FTS5, which this Python's lacks")
