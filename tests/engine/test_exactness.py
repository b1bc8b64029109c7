"""One answer: the same bits for every ISA, thread count, batch, chunking and use of the cache."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from golden import read_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_files import build, feed, logits_of

import slmq

ISAS = [name for name, table in slmq.isa.items() if table is not None]
FORMATS = [
    ("f32", "f32"),
    ("f16", "f16"),
    ("int8", "int8"),
    ("int4", "f16"),
    ("int4", "int8"),
    ("q4g32s", "f32"),
]
GOLDEN = read_golden("llama", "odd_sizes")
TOKENS = GOLDEN.tokens[1]


@pytest.mark.parametrize(("format", "kv_dtype"), FORMATS)
def test_isas_and_threads(format: str, kv_dtype: str) -> None:
    """Every ISA of this machine, one to three threads."""
    want = logits_of(GOLDEN.folder, TOKENS, format=format, kv_dtype=kv_dtype, isa="scalar")
    assert np.ptp(want) > 1
    for isa in ISAS:
        for threads in (1, 2, 3):
            got = logits_of(
                GOLDEN.folder, TOKENS, format=format, kv_dtype=kv_dtype, isa=isa, threads=threads
            )
            assert np.array_equal(got, want), f"{isa}, {threads} threads"


@pytest.mark.parametrize(("format", "kv_dtype"), FORMATS)
def test_rows_by_themselves(format: str, kv_dtype: str) -> None:
    """m rows in one run, for m = 2 to 33, equal the same rows one by one."""
    plan = build(GOLDEN.folder, format=format, kv_dtype=kv_dtype, threads=2)
    want = feed(plan, plan.cache.sequence(), TOKENS[:33], cuts=range(33))
    for m in range(2, 34):
        got = feed(plan, plan.cache.sequence(), TOKENS[:m])
        assert np.array_equal(got, want[:m]), f"m = {m}"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, len(TOKENS) - 1), max_size=6),
    st.sampled_from(["f16", "f32", "int8", "int4"]),
)
def test_any_chunking(cuts: list[int], kv_dtype: str) -> None:
    """However a prompt is cut."""
    plan = build(GOLDEN.folder, format="int4", kv_dtype=kv_dtype, threads=2)
    want = feed(plan, plan.cache.sequence(), TOKENS)
    assert np.array_equal(feed(plan, plan.cache.sequence(), TOKENS, cuts=cuts), want)


@pytest.mark.parametrize("kv_dtype", ["f16", "int8", "int4"])
@pytest.mark.parametrize("keep", [1, 15, 16, 17, 31, 63, 64, 65])
def test_cache_reuse(keep: int, kv_dtype: str) -> None:
    """A sequence that went another way, cut back and continued; and a fork of it."""
    tokens = (TOKENS * 3)[:130]
    plan = build(GOLDEN.folder, format="int8", kv_dtype=kv_dtype, threads=2)
    want = feed(plan, plan.cache.sequence(), tokens)
    sequence = plan.cache.sequence()
    feed(plan, sequence, tokens[:keep] + tokens[::-1][: 130 - keep])
    fork = sequence.fork(keep)
    sequence.truncate(keep)
    assert np.array_equal(feed(plan, sequence, tokens[keep:]), want[keep:])
    assert np.array_equal(feed(plan, fork, tokens[keep:]), want[keep:])


@pytest.mark.parametrize("kv_dtype", ["f16", "int8", "int4"])
def test_long_contexts_are_split_and_merged_alike(kv_dtype: str) -> None:
    """Beyond 512 positions one row is attended in parts: by one thread or by several."""
    tokens = (TOKENS * 30)[:1100]
    wanted = None
    for threads in (1, 2, 3):
        plan = build(GOLDEN.folder, format="int8", kv_dtype=kv_dtype, threads=threads)
        sequence = plan.cache.sequence()
        feed(plan, sequence, tokens)
        got = feed(plan, sequence, TOKENS[:5], cuts=range(5))
        whole = feed(plan, plan.cache.sequence(), [*tokens, *TOKENS[:5]])[-5:]
        assert np.array_equal(got, whole)
        wanted = got if wanted is None else wanted
        assert np.array_equal(got, wanted), f"{threads} threads"


@pytest.mark.parametrize("kv_dtype", ["f16", "int8", "int4"])
def test_rows_that_share_a_prefix_have_the_bits_of_each_alone(kv_dtype: str) -> None:
    """They begin with the same pages, as long or less, and strangers are between them."""
    shared = (TOKENS * 30)[:1100]
    plan = build(GOLDEN.folder, format="int8", kv_dtype=kv_dtype, threads=2)
    root, stranger = plan.cache.sequence(), plan.cache.sequence()
    feed(plan, root, shared)
    feed(plan, stranger, shared[::-1][:700])
    sequences = [root, stranger]
    for i in range(40):
        fork = root.fork([1100, 1024, 512, 530, 100][i % 5])
        feed(plan, fork, TOKENS[: 1 + i % 7])
        sequences.insert(i % 3, fork)
    tokens = [TOKENS[i % len(TOKENS)] for i in range(len(sequences))]
    alone = [
        feed(plan, sequence.fork(sequence.length), [token])
        for sequence, token in zip(sequences, tokens, strict=True)
    ]
    for count in (2, 3, 8, len(sequences)):
        forks = [(sequence.fork(sequence.length), 1) for sequence in sequences[:count]]
        plan.run(np.array(tokens[:count], np.int32), forks, np.arange(count, dtype=np.int32))
        assert np.array_equal(plan.logits(), np.concatenate(alone[:count])), f"{count} rows"


def test_threads_that_come_late() -> None:
    """Eight threads, most without a core, some asleep: whoever computes what, and when."""
    want = logits_of(GOLDEN.folder, TOKENS[:12], format="int4", kv_dtype="f16")
    plan = build(GOLDEN.folder, format="int4", kv_dtype="f16", threads=8)
    delay = np.random.default_rng(0)
    for run in range(40):
        sequence, logits = plan.cache.sequence(), []
        cuts = {0: range(12), 1: range(0, 12, 2), 2: [5, 6, 7]}[run % 3]
        for begin, end in itertools.pairwise(sorted({0, 12, *cuts})):
            logits.append(feed(plan, sequence, TOKENS[begin:end]))
            if delay.random() < 0.2:  # long enough for threads to fall asleep
                time.sleep(delay.random() * 1e-3)
        assert np.array_equal(np.concatenate(logits), want), f"run {run}"


def test_sequences_in_one_run() -> None:
    """Rows of several sequences in one run equal each sequence alone."""
    plan = build(GOLDEN.folder, format="int4", kv_dtype="f16", threads=2)
    prompts = [TOKENS[:7], TOKENS[5:38], TOKENS[3:4]]
    alone = []
    for prompt in prompts:
        sequence = plan.cache.sequence()
        first = feed(plan, sequence, prompt)
        alone.append((first, feed(plan, sequence, TOKENS[:1])))
    sequences = [plan.cache.sequence() for _ in prompts]
    for step, parts in ((0, prompts), (1, [TOKENS[:1]] * 3)):
        rows = np.concatenate([np.array(part, np.int32) for part in parts])
        segments = [(s, len(p)) for s, p in zip(sequences, parts, strict=True)]
        plan.run(rows, segments, np.arange(len(rows), dtype=np.int32))
        want = np.concatenate([pair[step] for pair in alone])
        assert np.array_equal(plan.logits(), want)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_text_in_other_processes(tiny_model_path: Path, temperature: float) -> None:
    """The same seed gives the same text under every forced ISA and thread count."""
    code = (
        "import slmq, sys\n"
        f"with slmq.load(sys.argv[1], n_ctx=128) as m:\n"
        f"    r = m.generate('Once', max_tokens=24, temperature={temperature}, seed=7,"
        " ignore_eos=True)\n"
        "    print(r.tokens)\n"
    )
    answers = set()
    for isa in ISAS:
        for threads in ("1", "2"):
            env = os.environ | {"SLMQ_ISA": isa, "SLMQ_NUM_THREADS": threads}
            command = [sys.executable, "-c", code, str(tiny_model_path)]
            answers.add(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
    assert len(answers) == 1
    assert len(answers.pop()) > 24
