"""Documents to be indexed, read one after the other; those that have not changed without a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from slmq.errors import DataError
from slmq.machine.disk import read_regular
from slmq.search.documents import HTML, LARGEST_BYTES, digest_of, files_below, text_of

__all__ = ["Document", "read_folder", "read_texts"]

HEADED = (".md", ".markdown", *HTML)


@dataclass(frozen=True)
class Document:
    """A document.

    Attributes
    ----------
    name, digest : str
    text : str or None
        None if it is known as it is.
    headings : bool
        Whether lines that begin with # are headings.
    """

    name: str
    digest: str
    text: str | None
    headings: bool


def read_folder(
    path: Path,
    root: Path,
    known: Mapping[str, str],
    refused: dict[str, str],
    report: Callable[[int, int], None] | None,
) -> Iterator[Document]:
    """Files below a folder, named as if it were `root`; what cannot be read is noted in `refused`.

    Raises
    ------
    DataError
        If there is nothing of that name.
    """
    files = list(files_below(path))
    for done, file in enumerate(files):
        if report is not None:
            report(done, len(files))
        name = (root / file.relative_to(path)).as_posix()
        try:
            data = read_regular(file, LARGEST_BYTES)
            digest = digest_of(data)
            text = None if known.get(name) == digest else text_of(file, data)
        except OSError as error:
            refused[name] = error.strerror or str(error)
            continue
        except (DataError, ImportError) as error:
            refused[name] = str(error).removeprefix(f"{file}: ")
            continue
        yield Document(name, digest, text, file.suffix.lower() in HEADED)
    if report is not None:
        report(len(files), len(files))


def read_texts(texts: Mapping[str, str], known: Mapping[str, str]) -> Iterator[Document]:
    """Texts by their names; raises TypeError for one that is none."""
    for name, text in texts.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(
                f"texts: expected names and texts, got {name!r:.80}: {type(text).__name__}"
            )
        try:
            digest = digest_of(text.encode("utf-8"))
        except UnicodeEncodeError:
            raise ValueError(f"text {name!r:.80} holds a lone surrogate") from None
        yield Document(name, digest, None if known.get(name) == digest else text, True)
