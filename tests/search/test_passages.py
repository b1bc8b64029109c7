"""Texts out of files, and passages out of texts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from encoder_files import TEXT, encoder_folder

from slmq import DataError
from slmq.checkpoint import open_checkpoint
from slmq.search.documents import files_below, text_of
from slmq.search.passages import Passage, passages_of
from slmq.search.words import any_of, gram_terms, word_terms
from slmq.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:

    with open_checkpoint(encoder_folder(tmp_path_factory.mktemp("t") / "m")) as checkpoint:
        return load_tokenizer(checkpoint)


def cut(text: str, tokenizer: Tokenizer, most: int = 20, overlap: int = 0) -> list[Passage]:
    return list(passages_of(text, tokenizer, most=most, overlap=overlap, headings=True))


def test_passages_are_whole_sentences(tokenizer: Tokenizer) -> None:
    text = "The cat eats fast. The dog eats slow. Anna lives in Paris. A man is playing."
    assert [p.text for p in cut(text, tokenizer, most=10)] == [
        "The cat eats fast. The dog eats slow.",
        "Anna lives in Paris. A man is playing.",
    ]
    assert [p.text for p in cut(text, tokenizer, most=10, overlap=5)] == [
        "The cat eats fast. The dog eats slow.",
        "The dog eats slow. Anna lives in Paris.",
        "Anna lives in Paris. A man is playing.",
    ]


def test_passages_end_before_headings(tokenizer: Tokenizer) -> None:
    text = "cat\n\n# One\n\ndog\n```\n# rain in code\n```\n## Two ##\nsun\n# Three\n\n\nman"
    assert cut(text, tokenizer) == [
        Passage("cat", 1, ""),
        Passage("dog\n```\n# rain in code\n```", 5, "One"),
        Passage("sun", 10, "One > Two"),
        Passage("man", 14, "Three"),
    ]
    assert cut(text, tokenizer)[2].whole == "One > Two\nsun"


def test_nothing_is_lost_and_all_fits(tokenizer: Tokenizer) -> None:
    rng = random.Random(3)
    marks = [" ", " ", " ", ". ", "\n", "\n\n", "。", "! ", "\n- "]
    words = [*TEXT.split(), "吾輩は猫である", "x" * 90]
    for size in (0, 1, 50, 9000):
        text = "".join(rng.choice(words) + rng.choice(marks) for _ in range(size))
        for overlap in (0, 6):
            found = list(passages_of(text, tokenizer, most=24, overlap=overlap, headings=False))
            lines = text.split("\n")
            for passage in found:
                tokens = len(tokenizer.encode(passage.text, add_special=False))
                assert tokens <= 24
                assert passage.text.split("\n")[0] in lines[passage.line - 1]
            if not overlap:
                assert "".join("".join(p.text.split()) for p in found) == "".join(text.split())


def test_ten_megabytes_are_cut_in_pieces(tokenizer: Tokenizer) -> None:
    text = "x" * 200_000 + " cat" * 50_000
    found = cut(text, tokenizer, most=200)
    assert "".join("".join(p.text.split()) for p in found) == text.replace(" ", "")


def test_html_is_read_as_a_reader_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text(
        "<!doctype html><head><title>T</title><style>p {}</style><body><h2>Two &amp; more</h2>"
        "<p>One\n  line <i>here</i>.<ul><li>first<li>second</ul><pre>a\n  b</pre>"
        "<table><tr><td>1<td>2</table><script>no()</script>end",
        "utf-8",
    )
    assert text_of(path) == (
        "T\n\n## Two & more\n\nOne line here.\n\nfirst\nsecond\n\na\n  b\n\n 1 2\n\nend"
    )


def test_pdf(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.4\nnot really")
    with pytest.raises(DataError, match=r"a.pdf: the PDF cannot be read"):
        text_of(path)
    path.write_bytes(one_page("The cat eats."))
    assert text_of(path).strip() == "The cat eats."
    writer = pypdf.PdfWriter(clone_from=path)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(path)
    with pytest.raises(DataError, match="locked with a password"):
        text_of(path)


def one_page(text: str) -> bytes:
    """The smallest PDF file with a text."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    bodies = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >> stream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 6\n0000000000 65535 f \n" + table
    end = b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(out)
    return out + head + end


def test_files_that_are_read(tmp_path: Path) -> None:
    for name in ("b.md", "a.TXT", ".hidden.txt", "x.py", "sub/c.html", ".git/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x", "utf-8")
    found = [p.relative_to(tmp_path).as_posix() for p in files_below(tmp_path)]
    assert found == ["a.TXT", "b.md", "sub/c.html"]
    with pytest.raises(DataError, match=r"expected one of .txt, .* got .py"):
        text_of(tmp_path / "x.py")
    (tmp_path / "z.txt").write_bytes(b"a\0b")
    with pytest.raises(DataError, match="found a zero byte at 1"):
        text_of(tmp_path / "z.txt")


def test_what_full_text_search_is_asked_for() -> None:
    assert word_terms("What is the cat's name, Cat?") == ["Cat", "s", "name"]
    assert word_terms("is it") == ["is", "it"]
    assert word_terms("猫である _") == []
    assert gram_terms("猫である cat 猫であ") == ["猫であ", "である"]
    assert gram_terms("猫") == []
    assert any_of(['a"b', "c"]) == '"a""b" OR "c"'
