"""How documents get into an index and out of it: passages and their vectors in one commit."""

from __future__ import annotations

import errno
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.embedding.encoder import Encoder
from slmq.errors import WriteError
from slmq.search.passages import passages_of
from slmq.search.reading import Document
from slmq.search.store import NewDocument, Store
from slmq.search.vectors import MappedVectors, append_vectors, packed_vectors, picked_rows

__all__ = ["Done", "Writer", "vector_path"]

F32 = npt.NDArray[np.float32]
OVERLAP_TOKENS = 40
COMMIT_PASSAGES = 256  # written together, so that a run that is killed loses little
WORN_SHARE, WORN_ROWS = 0.3, 1024  # of rows without a passage, before the file is made anew


@dataclass
class Done:
    """What a run of writing did.

    Attributes
    ----------
    seen : set of str
        Names of all documents that were looked at.
    added, changed, passages : int
    """

    seen: set[str] = field(default_factory=set)
    added: int = 0
    changed: int = 0
    passages: int = 0


def vector_path(folder: Path, store: Store) -> Path:
    """The file of vectors that counts."""
    return folder / f"vectors-{store.fact('vectors')}.bin"


class Writer:
    """Writes to an index; whoever makes one holds the right to.

    Parameters
    ----------
    folder : Path
        Of the index.
    store : Store
    encoder : Encoder
    passage_tokens : int
        Most tokens of a passage.
    vectors_of : callable
        Makes the vectors of passages.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        encoder: Encoder,
        passage_tokens: int,
        vectors_of: Callable[[list[str]], F32],
    ) -> None:
        self._folder = folder
        self._store = store
        self._encoder = encoder
        self._passage_tokens = passage_tokens
        self._vectors_of = vectors_of

    def write(self, root: str, documents: Iterable[Document], known: Mapping[str, str]) -> Done:
        """Embed and commit documents, some hundred passages at a time.

        Raises
        ------
        WriteError
            If the disk is full; what was committed stays.
        """
        done = Done()
        held: list[NewDocument] = []
        for document in documents:
            done.seen.add(document.name)
            if document.text is None:
                continue
            passages = passages_of(
                document.text,
                self._encoder.tokenizer,
                most=self._passage_tokens,
                overlap=min(OVERLAP_TOKENS, self._passage_tokens // 4),
                headings=document.headings,
            )
            held.append(NewDocument(document.name, root, document.digest, list(passages)))
            if sum(len(one.passages) for one in held) >= COMMIT_PASSAGES:
                self._commit(held, known, done)
                held = []
        if held:
            self._commit(held, known, done)
        self._renew()
        return done

    def forget(self, names: list[str]) -> None:
        """Remove documents; raises as `write`."""
        if names:
            with self._store.writing():
                for name in names:
                    self._store.remove(name)
            self._renew()

    def _commit(self, held: list[NewDocument], known: Mapping[str, str], done: Done) -> None:
        store = self._store
        texts = [passage.whole for document in held for passage in document.passages]
        vectors = self._vectors_of(texts)
        data = packed_vectors(vectors) if texts else b""
        whole = sum(size for size, _ in store.parts())
        row = self._rows_of(whole)
        with store.writing():
            self._append(whole, data)
            for document in held:
                store.remove(document.name)
                store.insert(document, row)
                row += len(document.passages)
            if data:
                store.add_part(len(data), zlib.crc32(data))
        done.passages += len(texts)
        changed = sum(document.name in known for document in held)
        done.changed += changed
        done.added += len(held) - changed

    def _append(self, whole: int, data: bytes) -> None:
        path = vector_path(self._folder, self._store)
        try:
            if data:
                append_vectors(path, whole, data)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk is full" if full else error.strerror or error
            raise WriteError(
                f"{path}: cannot be written: {reason}; what was indexed before stays"
            ) from None

    def _renew(self) -> None:
        """Write the vectors anew, without those that no passage has, once they are many."""
        store = self._store
        parts = store.parts()
        rows = store.rows()
        held = self._rows_of(sum(size for size, _ in parts))
        if held - len(rows) < max(WORN_ROWS, WORN_SHARE * held):
            return
        old = vector_path(self._folder, store)
        mapped = MappedVectors(old, self._encoder.dimensions, parts)
        data = picked_rows(mapped.packed, self._encoder.dimensions, [row for _, row in rows])
        with store.writing():
            store.set_fact("vectors", str(store.number("vectors") + 1))
            self._append(0, data)
            store.renumber([number for number, _ in rows], len(data), zlib.crc32(data))
        del mapped
        old.unlink(missing_ok=True)

    def _rows_of(self, size: int) -> int:
        """Rows that so many bytes hold."""
        pair = _native.packed_bytes("q8g32s", 32, self._encoder.dimensions)
        return size // pair * 32
