"""`slmq.Index`: what is found, what changes, and what is refused."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_files import encoder_folder, sentence_folder

import slmq
from slmq import BusyError, ClosedError, ContextOverflowError, DataError, Index
from slmq.search import writing
from slmq.search.answering import MISSING, grounds
from slmq.search.ranking import fused
from slmq.search.results import Indexed, Source

NOTES = {
    "music.md": "# Music\n\nA man is playing the guitar.\n\n## Fast\n\nA dog is playing fast.",
    "cat.txt": "The cat eats in the rain.\nIt eats slow.",
    "paris.html": "<html><body><h1>Paris</h1><p>Anna lives in <b>Paris</b>.</p>"
    "<script>var dog = 1;</script></body></html>",
    "neko.txt": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
}


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_folder(tmp_path_factory.mktemp("encoder") / "m")


@pytest.fixture(scope="module")
def encoder(encoder_path: Path) -> Iterator[slmq.Encoder]:
    with slmq.load_encoder(encoder_path) as opened:
        yield opened


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    for name, text in NOTES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return folder


@pytest.fixture
def index(tmp_path: Path, notes: Path, encoder: slmq.Encoder) -> Iterator[Index]:
    with Index(tmp_path / "notes.index", encoder) as made:
        made.add(notes)
        yield made


def names(hits: Any) -> list[str]:
    return [Path(hit.source).name for hit in hits]


def test_what_was_indexed_is_found(index: Index, notes: Path) -> None:
    assert [(Path(s.name).name, s.passages) for s in index.sources()] == [
        ("cat.txt", 1), ("music.md", 2), ("neko.txt", 1), ("paris.html", 1),
    ]  # fmt: skip
    assert len(index) == 5
    (hit, *_) = index.search("where lives Anna", mode="words")
    assert (hit.source, hit.text) == ((notes / "paris.html").as_posix(), "Anna lives in Paris.")
    assert (hit.heading, hit.cosine) == ("Paris", None)
    (hit, *_) = index.search("dogs that play", mode="words")  # by their stems
    assert (hit.heading, hit.line, hit.text) == ("Music > Fast", 7, "A dog is playing fast.")
    assert hit.place == f"{hit.source}:7"
    index.check()


def test_vectors_are_those_of_the_encoder(index: Index, encoder: slmq.Encoder) -> None:
    hits = index.search("a cat eats", mode="vectors", top_k=9)
    assert len(hits) == 5
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    wholes = [f"{hit.heading}\n{hit.text}" if hit.heading else hit.text for hit in hits]
    want = encoder.similarity("a cat eats", wholes)[0]
    assert [hit.score for hit in hits] == [hit.cosine for hit in hits]
    # Vectors are rounded to 1/127 of the largest of 32 numbers.
    np.testing.assert_allclose([hit.score for hit in hits], want, atol=0.01)


def test_a_hybrid_knows_cosines_and_shares(index: Index) -> None:
    query = "the cat eats"
    near = {hit.place: hit.score for hit in index.search(query, mode="vectors", top_k=9)}
    words = {hit.place: hit for hit in index.search(query, mode="words", top_k=9)}
    hits = index.search(query, top_k=9)
    assert {hit.place for hit in hits} == near.keys()
    for hit in hits:
        assert hit.cosine == near[hit.place]
        assert hit.share == (words[hit.place].share if hit.place in words else 0)
    assert words[hits[0].place].share > 0.6  # "cat" and "eats", in a short passage


def passages(best: float, count: int = 200) -> Any:
    cosines = np.random.default_rng(1).normal(0.3, 0.1, count).clip(0, 0.6).astype(np.float32)
    cosines[7] = best
    return cosines


def test_each_search_counts_as_far_as_it_is_sure() -> None:
    at, numbers = np.array([3, 7, 50]), [4, 8, 51]
    # A cosine that stands out, and words that all have: the vectors decide.
    sure = fused(passages(0.95), at, numbers, [0.5, 0.4, 0.5])
    assert sure.argmax() == 1
    assert sure[1] == pytest.approx(1)
    # None stands out, and one has more words: they decide, and order all the others, too.
    assert fused(passages(0.6), at, numbers, [0.9, 0.0, 0.3]).tolist() == [
        1,
        0,
        pytest.approx(1 / 3),
    ]
    # Neighbours share sentences, so that having the same words is no sign against them.
    both = fused(passages(0.6), np.array([3, 4, 50]), [4, 5, 51], [0.9, 0.9, 0.1])
    assert both.tolist() == [1, 1, pytest.approx(1 / 9)]
    # Neither is sure.
    assert not fused(passages(0.6), at, numbers, [0.5, 0.0, 0.5]).any()
    assert not fused(passages(0.6), at, numbers, [0.0, 0.0, 0.0]).any()
    assert fused(np.ones(1, np.float32), np.array([0]), [1], [0.0]).tolist() == [0]


def test_shares_weigh_words_by_how_rare_they_are(tmp_path: Path, encoder: slmq.Encoder) -> None:
    texts = {f"t{i}": f"the cat eats {'in the rain' if i % 2 else 'fast'}" for i in range(40)}
    with Index(tmp_path / "i", encoder) as index:
        index.add_texts(texts | {"rare": "the quokka eats fast"})
        (best, other, *_) = index.search("quokka cat", mode="words", top_k=9)
        assert best.source == "rare"
        assert best.share > 0.9
        assert other.share < 0.2
        # A word that is nowhere is the rarest of all.
        (best, *_) = index.search("quokka zyzzyva", mode="words")
        assert 0.4 < best.share < 0.6


def test_an_answer_stands_on_rare_words(tmp_path: Path, encoder: slmq.Encoder) -> None:
    """However far their passage is from the question."""
    texts = {f"t{i}": f"where does anna live, {i} a man is playing" for i in range(60)}
    texts["quokka"] = "rain rain rain. Fast guitar. A quokka of 7 pounds. Sun in the rain."
    texts["neko"] = "吾輩は猫である。名前はまだ無い。煎餅を齧る主人。どこで生れたか。"
    with Index(tmp_path / "i", encoder) as index:
        index.add_texts(texts)
        asked = "where does anna live with a quokka"
        found = grounds(index, asked, top_k=4)
        assert found.found
        assert "quokka" in [hit.source for hit in found.sources]
        number = 1 + [hit.source for hit in found.sources].index("quokka")
        assert found.quote(number) == "A quokka of 7 pounds."
        japanese = grounds(index, "煎餅を齧るのは誰か", top_k=4)
        assert japanese.found
        number = 1 + [hit.source for hit in japanese.sources].index("neko")
        assert japanese.quote(number) == "煎餅を齧る主人。"
        nothing = grounds(index, "zyzzyva capybara armadillo wombat?", top_k=4)
        assert nothing.share == 0


def test_an_empty_index_grounds_nothing(tmp_path: Path, encoder: slmq.Encoder) -> None:
    with Index(tmp_path / "i", encoder) as index:
        found = grounds(index, "where is the cat", top_k=4)
        assert (found.found, found.sources, found.text) == (False, [], MISSING)


def test_questions_that_are_too_long(index: Index) -> None:
    long = "the cat eats " * 99
    for ask in (index.search, lambda query: grounds(index, query, top_k=2)):
        with pytest.raises(ContextOverflowError, match="query: expected at most 64 tokens, as the"):
            ask(long)
    assert index.search(long, mode="words")
    for mode in ("words", "hybrid"):
        with pytest.raises(ValueError, match="lone surrogate"):
            index.search("cat \ud800", mode=mode)


@pytest.mark.parametrize("name", ["version", "passage_tokens"])
def test_facts_that_make_no_sense(index: Index, encoder: slmq.Encoder, name: str) -> None:
    index.close()
    with sqlite3.connect(index.path / "index.sqlite") as db:
        db.execute("UPDATE facts SET value = 'many' WHERE name = ?", (name,))
    db.close()
    with pytest.raises(DataError, match=f"damaged: {name} is 'many'; delete the index"):
        Index(index.path, encoder).search("cat")


@pytest.mark.parametrize("query", ["猫はどこで生れたか", "見当", "無い"])
def test_japanese_is_found_by_its_characters(index: Index, query: str) -> None:
    assert names(index.search(query, mode="words")) == ["neko.txt"]


@pytest.mark.parametrize("query", ['"', "NEAR(a b) AND *", "cat' OR 1=1 --", "a^b: {c}", "!?"])
def test_operators_are_only_text(index: Index, query: str) -> None:
    index.search(query)


def test_only_what_changes_is_read_again(index: Index, notes: Path) -> None:
    assert index.add(notes) == Indexed(0, 0, 0, 4, 0, {})
    (notes / "cat.txt").write_text("The dog eats.", "utf-8")
    (notes / "paris.html").unlink()
    (notes / "new.rst").write_text("Rain and sun.", "utf-8")
    (notes / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (notes / "data.bin").write_bytes(b"not of a kind that is read")
    done = index.add(notes)
    assert (done.added, done.changed, done.removed, done.unchanged, done.passages) == (
        1,
        1,
        1,
        2,
        2,
    )
    ((name, reason),) = done.refused.items()
    assert (Path(name).name, reason) == ("bad.txt", "expected UTF-8, found the byte 0xff at 0")
    assert str(done) == "1 added, 1 changed, 1 removed, 2 unchanged, 1 refused; 2 passages embedded"
    assert not index.search("the cat", mode="words", top_k=9)
    assert names(index.search("anna lives", mode="words")) == []
    assert set(names(index.search("cat", mode="vectors", top_k=99))) == {
        "cat.txt", "music.md", "neko.txt", "new.rst",
    }  # fmt: skip
    index.check()


def test_a_folder_has_one_name(
    index: Index, notes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Called otherwise, its documents would be there twice."""
    before = index.sources()
    monkeypatch.chdir(notes)
    assert index.add(".") == Indexed(0, 0, 0, 4, 0, {})
    monkeypatch.chdir(notes.parent)
    assert index.add(notes.name) == Indexed(0, 0, 0, 4, 0, {})
    assert index.add(f"{notes.name}/cat.txt") == Indexed(0, 0, 0, 1, 0, {})
    (tmp_path / "link").symlink_to(notes)
    assert index.add(tmp_path / "link") == Indexed(0, 0, 0, 4, 0, {})
    assert index.sources() == before
    (notes / "cat.txt").unlink()
    assert index.add(f"{notes.name}/../{notes.name}").removed == 1
    moved = notes.rename(notes.with_name("moved"))
    assert index.add(moved).added == 3  # another folder


def test_a_file_that_becomes_unreadable_stays_as_it_was(index: Index, notes: Path) -> None:
    (notes / "cat.txt").write_bytes(b"\xff")
    done = index.add(notes)
    assert (done.removed, list(done.refused)) == (0, [(notes / "cat.txt").as_posix()])
    assert names(index.search("the cat eats", mode="words"))[0] == "cat.txt"


def test_texts_that_are_no_files(tmp_path: Path, encoder: slmq.Encoder) -> None:
    with Index(tmp_path / "i", encoder) as index:
        assert index.add_texts({"a": "the cat eats", "b": "", "c": "rain"}).added == 3
        assert index.add_texts({"a": "the dog eats", "c": "rain"}) == Indexed(0, 1, 0, 1, 1, {})
        assert index.sources() == [Source("a", 1), Source("b", 0), Source("c", 1)]
        index.remove("c")
        assert [hit.source for hit in index.search("rain", top_k=9)] == ["a"]
        with pytest.raises(DataError, match="there is no document 'c'"):
            index.remove("c")
        with pytest.raises(TypeError, match="expected names and texts, got 'x': bytes"):
            index.add_texts({"x": b"no text"})  # type: ignore[dict-item]


def test_an_empty_index_finds_nothing(tmp_path: Path, encoder: slmq.Encoder) -> None:
    with Index(tmp_path / "i", encoder) as index:
        assert index.search("cat") == []
        assert len(index) == 0


def test_it_is_opened_with_its_own_encoder(
    index: Index, encoder_path: Path, encoder: slmq.Encoder, tmp_path: Path
) -> None:
    want = index.search("the cat")
    path = index.path
    index.close()
    with pytest.raises(ClosedError, match=r"the index .*notes.index' is closed"):
        index.search("cat")
    assert encoder.embed("still open").shape == (64,)
    with Index(path, encoder_path) as again:
        assert again.search("the cat") == want
    said = r"made by 'm' \(en_\w+\), and 'm' as it is loaded"
    with (
        slmq.load_encoder(encoder_path, format="f32") as other,
        pytest.raises(DataError, match=said),
    ):
        Index(path, other)
    stranger = sentence_folder(tmp_path / "s", pooling={"pooling_mode_cls_token": True})
    with pytest.raises(DataError, match="gives other vectors"):
        Index(path, stranger)


def test_it_remembers_the_folder_of_its_encoder(tmp_path: Path, encoder_path: Path) -> None:
    Index(tmp_path / "i", encoder_path).close()
    with Index(tmp_path / "i") as index:
        assert index.encoder.name == encoder_path.name


def test_what_is_no_index(tmp_path: Path, encoder: slmq.Encoder) -> None:
    with pytest.raises(DataError, match="there is no index; `slmq index` makes one"):
        Index(tmp_path / "none", encoder, create=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="expected an index, or an empty folder"):
        Index(tmp_path / "full", encoder)
    other = tmp_path / "other"
    other.mkdir()
    with sqlite3.connect(other / "index.sqlite") as db:
        db.execute("CREATE TABLE x (y)")
    db.close()
    with pytest.raises(DataError, match="the database of another program"):
        Index(other, encoder)
    (other / "index.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match="damaged: file is not a database"):
        Index(other, encoder)


@pytest.mark.parametrize("what", ["cut", "changed", "gone"])
def test_damaged_vectors_are_named(index: Index, encoder: slmq.Encoder, what: str) -> None:
    index.close()
    (file,) = index.path.glob("vectors-*.bin")
    data = bytearray(file.read_bytes())
    if what == "cut":
        file.write_bytes(data[:-1])
        expected = "it was cut short"
    elif what == "changed":
        data[5] ^= 1
        file.write_bytes(data)
        expected = "damaged between the bytes 0 and"
    else:
        file.unlink()
        expected = "cannot be read: No such file"
    with Index(index.path, encoder) as again:
        assert again.search("the cat", mode="words")
        with pytest.raises(DataError, match=rf"vectors-1.bin: .*{expected}"):
            again.search("the cat")


def test_a_damaged_database_is_named(index: Index, encoder: slmq.Encoder) -> None:
    index.close()
    file = index.path / "index.sqlite"
    data = bytearray(file.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"index.sqlite: damaged: .*; delete the index"):
        Index(index.path, encoder).check()


def test_one_writes_at_a_time(index: Index, encoder: slmq.Encoder, notes: Path) -> None:
    with Index(index.path, encoder) as other, index._writing():
        with pytest.raises(BusyError, match="another process writes to this index"):
            other.add(notes)
        assert other.search("the cat") == index.search("the cat")
    assert index.add(notes).unchanged == 4


def test_readers_see_what_others_write(index: Index, encoder: slmq.Encoder) -> None:
    with Index(index.path, encoder) as reader:
        before = reader.search("sun", mode="vectors", top_k=99)
        index.add_texts({"sun": "sun sun sun"})
        after = reader.search("sun", mode="vectors", top_k=99)
        assert {hit.source for hit in after} - {hit.source for hit in before} == {"sun"}


def test_worn_files_are_made_anew(
    tmp_path: Path, encoder: slmq.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WORN_ROWS", 64)
    monkeypatch.setattr(writing, "COMMIT_PASSAGES", 7)
    words = ["cat", "dog", "rain", "sun", "anna", "paris", "guitar", "man"]
    texts = {f"t{i}": f"{words[i % 8]} {words[i // 8 % 8]} eats {i}" for i in range(70)}
    with Index(tmp_path / "i", encoder) as index:
        index.add_texts(texts)
        with index._writing() as store:
            index._writer(store).forget([f"t{i}" for i in range(70) if i % 3])
        kept = {f"t{i}": texts[f"t{i}"] for i in range(0, 70, 3)}
        (file,) = index.path.glob("vectors-*")
        assert file.name != "vectors-1.bin"
        assert file.stat().st_size == 32 * 68  # 24 rows, in one pair
        index.check()
        with Index(tmp_path / "fresh", encoder) as fresh:
            fresh.add_texts(kept)
            for query in ("cat eats", "anna"):
                one, other = (x.search(query, mode="vectors", top_k=99) for x in (index, fresh))
                key = lambda hit: (-hit.score, hit.source)  # noqa: E731
                found = [(hit.source, hit.score) for hit in sorted(one, key=key)]
                assert found == [(hit.source, hit.score) for hit in sorted(other, key=key)]
                assert len(found) == len(kept)


def test_wrong_questions(index: Index) -> None:
    for wrong, error, text in (
        ({"query": ""}, ValueError, "query: expected some text"),
        ({"query": 5}, TypeError, "query: expected a str, got int"),
        ({"query": "x", "mode": "both"}, ValueError, "mode: expected one of hybrid"),
        ({"query": "x", "top_k": 0}, ValueError, "top_k: expected at least 1, got 0"),
    ):
        with pytest.raises(error, match=text):
            index.search(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="expected a folder or a file, there is none"):
        index.add("/none/such")


def test_a_reranker_has_the_last_word(index: Index, tmp_path: Path) -> None:
    with slmq.load_encoder(encoder_folder(tmp_path / "p", "pairs_one_score")) as reranker:
        hits = index.search("the cat", rerank=reranker, top_k=3)
        assert len(hits) == 3
        whole = [f"{h.heading}\n{h.text}" if h.heading else h.text for h in hits]
        want = reranker.rerank("the cat", whole)
        assert [hit.score for hit in hits] == [one.score for one in want]
        assert [one.index for one in want] == [0, 1, 2]


def test_many_threads(index: Index) -> None:
    want = index.search("the cat")
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(index.search("the cat"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [want] * 8
