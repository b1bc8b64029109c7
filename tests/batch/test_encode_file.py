"""Vectors and labels of a file: a run that ends early loses nothing that it has written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoder_files import encoder_folder, sentence_folder

import slmq
from slmq.batch import encode_file
from slmq.batch.encode_file import EncodeJob, classify_file, embed_file
from slmq.batch.records import Records
from slmq.embedding.encoder import Encoder
from slmq.embedding.text_options import TextOptions
from slmq.errors import BusyError, ContextOverflowError, DataError, WriteError

TEXTS = ["a man is playing", "the cat eats", "rain", "dog sun"] * 50


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return slmq.load_encoder(sentence_folder(tmp_path_factory.mktemp("resume") / "m"))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncodeJob:
    monkeypatch.setattr(encode_file, "WRITTEN_S", 0.0)
    (tmp_path / "t.txt").write_text("\n".join(TEXTS), "utf-8")
    return EncodeJob(tmp_path / "t.txt", tmp_path / "v.npy", TextOptions())


def stop_after(count: int) -> encode_file.Report:
    def report(done: int, _total: int | None) -> None:
        if done >= count:
            raise StoppedError

    return report


def ignore(_done: int, _total: int | None) -> None:
    pass


def test_a_run_goes_on(encoder: Encoder, job: EncodeJob) -> None:
    part = job.out.with_name("v.npy.part")
    for count in (60, 110):
        with pytest.raises(StoppedError):
            embed_file(encoder, job, stop_after(count))
        assert not job.out.exists()
    with part.open("ab") as file:
        file.write(b"half a vector")
    done = embed_file(encoder, job, ignore)
    assert (done.rows, done.resumed) == (200, 110)
    assert np.array_equal(np.load(job.out), encoder.embed(TEXTS))
    assert not part.exists()


def test_labels_go_on(job: EncodeJob, tmp_path: Path) -> None:
    model = slmq.load_encoder(encoder_folder(tmp_path / "m", "three_labels", "roberta"))
    out = EncodeJob(job.source, tmp_path / "l.csv", job.options)
    with pytest.raises(StoppedError):
        classify_file(model, out, stop_after(70))
    done = classify_file(model, out, ignore)
    assert (done.resumed, sum(done.counts.values())) == (70, 200)
    found = [line.split(",")[1] for line in out.out.read_text("utf-8").splitlines()[1:]]
    assert found == [scored[0].label for scored in model.classify(TEXTS)]


def test_results_of_another_job_are_not_mixed(encoder: Encoder, job: EncodeJob) -> None:
    with pytest.raises(StoppedError):
        embed_file(encoder, job, stop_after(50))
    with pytest.raises(WriteError, match="results of another job"):
        embed_file(encoder, job, ignore, dimensions=8)
    job.source.write_text("\n".join(["other", *TEXTS]), "utf-8")
    with pytest.raises(WriteError, match="remove it"):
        embed_file(encoder, job, ignore)
    assert job.out.with_name("v.npy.part").exists()


def test_errors_count_texts_from_the_beginning(encoder: Encoder, job: EncodeJob) -> None:
    job.source.write_text("\n".join([*TEXTS, "the cat " * 100]), "utf-8")
    for _ in range(2):  # the second time, 200 vectors are there
        with pytest.raises(ContextOverflowError, match="text 200 has 202 tokens"):
            embed_file(encoder, job, ignore)
    assert job.out.with_name("v.npy.part").stat().st_size > 100 * 256


def test_one_run_at_a_time(encoder: Encoder, job: EncodeJob) -> None:
    with Records(job.out, {}, "<f4") as other:
        other.append(np.zeros(3, np.float32))
        with pytest.raises(BusyError, match="another run is writing it"):
            embed_file(encoder, job, ignore)


def test_a_pair_that_a_row_lacks(job: EncodeJob, tmp_path: Path) -> None:
    model = slmq.load_encoder(encoder_folder(tmp_path / "m", "pairs_one_score"))
    with pytest.raises(DataError, match="expected a text in 'b' of every row"):
        classify_file(model, job, ignore, pair="b")


@pytest.mark.parametrize("column", ["label", "score", "vector"])
def test_columns_are_not_written_over(encoder: Encoder, tmp_path: Path, column: str) -> None:
    """Labels to compare with would be lost without a word."""
    source = tmp_path / "t.csv"
    source.write_text(f"text,{column}\nthe cat eats,mine\n", "utf-8")
    job = EncodeJob(source, tmp_path / "o.csv", TextOptions(), labels=column != "vector")
    with pytest.raises(DataError, match=f"row 1: has a column '{column}', which would be written"):
        job.check()
    array = EncodeJob(source, tmp_path / "o.npy", TextOptions())  # has no other columns
    embed_file(encoder, array, ignore)
    assert np.load(array.out).shape == (1, encoder.dimensions)
