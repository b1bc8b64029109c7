"""Logits of chosen tokens only: the bits of the whole head, and none of its other rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from answers import open_tiny
from golden import read_golden
from llama_files import build

import slmq
from slmq.engine.engine import Engine
from slmq.engine.sequence import TokenSequence
from slmq.plan.plan import RecordedPlan

ISAS = [name for name, table in slmq.isa.items() if table is not None]
FORMATS = ["f32", "f16", "int8", "int4", "q4g32s", "q4g32a"]
GOLDEN = read_golden("llama", "odd_sizes")
TOKENS = np.array(GOLDEN.tokens[1][:40], np.int32)


def logits(plan: RecordedPlan, rows: list[int], ids: np.ndarray | None, again: bool) -> np.ndarray:  # type: ignore[type-arg]
    """Of these rows of the text: by the run itself, or asked for after it."""
    segments = [(plan.cache.sequence(), len(TOKENS))]
    outputs = np.array(rows, np.int32)
    if again:
        plan.native.run(TOKENS, segments, np.array([3], np.int32))
        plan.native.run_outputs(outputs, ids)
    else:
        plan.native.run(TOKENS, segments, outputs, columns=ids)
    return plan.logits()


@pytest.mark.parametrize("format", FORMATS)
def test_the_bits_of_the_whole_head(format: str) -> None:
    """Every ISA, one to three threads, few and many rows; ids in any order, also twice."""
    rng = np.random.default_rng(17)
    for isa in ISAS:
        for threads in (1, 2, 3):
            plan = build(GOLDEN.folder, format=format, isa=isa, threads=threads)
            for rows in ([39], [39, 2, 17], list(range(40))):
                whole = logits(plan, rows, None, False)
                last = whole.shape[1] - 1
                for ids in ([0], [last, 5, 5, 31, 32], rng.integers(0, last + 1, 60)):
                    wanted = np.array(ids, np.int32)
                    for again in (False, True):
                        found = logits(plan, rows, wanted, again)
                        assert np.array_equal(found, whole[:, wanted]), f"{isa}, {threads} threads"
            assert np.array_equal(logits(plan, [39], None, True)[0], whole[39])


def test_only_wanted_rows_of_the_head_are_read() -> None:
    """What was not asked for is not there to be read, nor is there any trace of it."""
    plan = build(GOLDEN.folder)
    segments = [(plan.cache.sequence(), len(TOKENS))]
    plan.native.run(TOKENS, segments, np.array([39], np.int32), columns=np.array([7], np.int32))
    with pytest.raises(ValueError, match="only some of its columns were wanted"):
        plan.native.read(plan.steps[-1].buffer)
    for ids, message in (([-1], "expected columns"), ([10**6], "columns of"), ([], "at least one")):
        with pytest.raises(ValueError, match=message):
            plan.native.run_outputs(np.array([0], np.int32), np.array(ids, np.int32))
    with pytest.raises(TypeError, match="columns: expected int32"):
        plan.native.run_outputs(np.array([0], np.int32), [1])  # type: ignore[arg-type]


@pytest.fixture
def engine(tiny_model_path: Path) -> Engine:
    return open_tiny(tiny_model_path, threads=2, chunk=512)


def fed(engine: Engine, count: int, first: int) -> TokenSequence:
    sequence = engine.sequence()
    engine.feed(sequence, [(first + 7 * i) % 250 for i in range(count)])
    return sequence


def test_parts_of_a_run_want_different_ids(engine: Engine) -> None:
    """Some all, some few, some none; neighbours that want the same come together, 64 at a time."""
    few, other = [9, 3, 200], [0]
    tokens = [[(5 * i + j) % 250 for j in range(4 + i)] for i in range(6)]
    wanted = [(1, None), (2, few), (3, few), (0, other), (1, other), (2, None)]
    sequences = [fed(engine, 10 + i, i) for i in range(6)]
    whole = [
        engine.feed(sequence.fork(), part, logits="all")[len(part) - count :]
        for sequence, part, (count, _) in zip(sequences, tokens, wanted, strict=True)
    ]
    blocks = engine.run(
        [
            (sequence, part, count) if ids is None else (sequence, part, count, ids)
            for sequence, part, (count, ids) in zip(sequences, tokens, wanted, strict=True)
        ]
    )
    assert blocks is not None
    expected = [
        whole[0],
        np.concatenate([whole[1], whole[2]])[:, few],
        whole[4][:, other],
        whole[5],
    ]
    found = list(blocks)
    assert [block.shape for block in found] == [block.shape for block in expected]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    long, text = engine.sequence(), [(3 * i) % 250 for i in range(150)]
    every = engine.feed(long.fork(), text, logits="all")
    found = list(engine.run([(long, text, 150, few)]) or ())
    assert [len(block) for block in found] == [64, 64, 22]
    assert np.array_equal(np.concatenate(found), every[:, few])


def test_ids_are_checked_before_anything_runs(engine: Engine) -> None:
    sequence = fed(engine, 5, 1)
    for ids in ([], [-1], [engine.n_vocab], [[1]]):
        with pytest.raises(ValueError, match=r"at least one token id in 0\.\."):
            engine.run([(sequence, [1], 1, ids)])  # type: ignore[list-item]
    assert len(sequence.tokens) == 5
