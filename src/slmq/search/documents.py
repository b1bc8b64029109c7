"""Texts out of files: plain text, Markdown, HTML, and PDF with the extra `slmq[pdf]`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from slmq.errors import DataError
from slmq.machine.disk import read_regular

__all__ = ["LARGEST_BYTES", "SUFFIXES", "digest_of", "expect_documents", "files_below", "text_of"]

LARGEST_BYTES = 256 << 20
PLAIN = (".txt", ".md", ".markdown", ".rst")
HTML = (".html", ".htm", ".xhtml")
PDF = (".pdf",)
SUFFIXES = (*PLAIN, *HTML, *PDF)
SILENT = {"script", "style", "template", "noscript", "svg"}
BLOCKS = {
    *("address", "article", "aside", "blockquote", "dd", "div", "dl", "dt", "figcaption", "footer"),
    *("form", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "tr"),
    *("ul", "br", "body", "title"),
}
HEADING = re.compile(r"h([1-6])")


def expect_documents(folder: Path) -> None:
    """Raise DataError if there is neither a folder nor a file of that name."""
    if not folder.is_file() and not folder.is_dir():
        raise DataError(f"{folder}: expected a folder or a file, there is none")


def files_below(folder: Path) -> Iterator[Path]:
    """Files that can be indexed, in the order of their names; none that begin with a dot.

    A file itself is returned as it is.

    Raises
    ------
    DataError
        If there is nothing of that name.
    """
    expect_documents(folder)
    if folder.is_file():
        yield folder
        return
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def digest_of(data: bytes) -> str:
    """The name of a file's contents."""
    return hashlib.sha256(data).hexdigest()


def text_of(path: Path, data: bytes | None = None) -> str:
    """The text of a file; headings of HTML are those of Markdown.

    Raises
    ------
    DataError
        If it is of no kind that can be read, is no text, or cannot be opened.
    ImportError
        If a PDF file needs pypdf.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: expected one of {', '.join(SUFFIXES)}, got {suffix or 'none'}")
    try:
        found = read_regular(path, LARGEST_BYTES) if data is None else data
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if suffix in PDF:
        return _pdf_text(path, found)
    try:
        text = found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8, found the byte {found[error.start]:#04x} at {error.start}"
        ) from None
    if "\x00" in text:
        raise DataError(f"{path}: expected text, found a zero byte at {text.index(chr(0))}")
    return _html_text(text) if suffix in HTML else text.replace("\r\n", "\n")


class _HtmlText(HTMLParser):
    """Gathers what a reader would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent: list[str] = []
        self._kept = 0  # depth of elements whose blanks count

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        if tag in SILENT:
            self._silent.append(tag)
        elif level := HEADING.fullmatch(tag):
            self.parts.append("\n\n" + "#" * int(level[1]) + " ")
        elif tag in BLOCKS:
            self.parts.append("\n" if tag in ("li", "br", "tr", "dt", "dd") else "\n\n")
        elif tag in ("td", "th"):
            self.parts.append(" ")
        self._kept += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in SILENT:
            if tag in self._silent:
                del self._silent[self._silent.index(tag) :]
        elif HEADING.fullmatch(tag) or tag in BLOCKS:
            self.parts.append("\n\n" if tag not in ("li", "tr", "br") else "")
        self._kept = max(0, self._kept - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data if self._kept else re.sub(r"\s+", " ", data))


def _html_text(text: str) -> str:
    reader = _HtmlText()
    reader.feed(text)
    reader.close()
    lines = [line.rstrip() for line in "".join(reader.parts).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _pdf_text(path: Path, data: bytes) -> str:
    try:
        import pypdf
        import pypdf.errors
    except ModuleNotFoundError:
        raise ImportError(f"{path}: PDF files need pypdf: pip install 'slmq[pdf]'") from None
    import io

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError(f"{path}: it is locked with a password")
        return "\n\n".join(page.extract_text() for page in reader.pages)
    # A damaged file can make pypdf fail in any way, down to RecursionError.
    except (pypdf.errors.PyPdfError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path}: the PDF cannot be read: {error}") from None
