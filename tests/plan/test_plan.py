"""The recorded plan: what it prints, profiles and shows, and how it refuses misuse."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from golden import read_golden
from llama_files import build, feed
from numpy_weights import load_hf_folder

from slmq import _native
from slmq.plan.handle import Handle
from slmq.plan.plan import RecordedPlan
from slmq.plan.recorder import Recorder

GOLDEN = read_golden("llama", "gqa_untied")
TOKENS = np.array(GOLDEN.tokens[0][:9], np.int32)


@pytest.fixture(scope="module")
def plan() -> RecordedPlan:
    return build(GOLDEN.folder, threads=2)


def step_of(plan: RecordedPlan, op: str) -> int:
    return next(i for i, step in enumerate(plan.steps) if step.op == op)


def test_print_names_every_step(plan: RecordedPlan) -> None:
    lines = str(plan).splitlines()
    assert len(lines) == len(plan.steps) + 1
    assert lines[0].split() == ["step", "scope", "op", "format", "shape", "bytes"]
    assert "layer 1" in str(plan)
    for op in ("embed", "rope", "rmsnorm", "linear", "attention", "linear+add", "swiglu", "select"):
        assert any(f" {op} " in line for line in lines), op


def test_at_most_five_meetings_in_a_layer(plan: RecordedPlan) -> None:
    """Row steps are computed by every thread for itself: only the others are shared."""
    joined = [s for s in plan.steps if s.scope == "layer 1" and s.op not in ("rmsnorm", "quantize")]
    assert [s.op for s in joined] == ["linear", "attention", "linear+add", "swiglu", "linear+add"]


def test_profile_times_every_step(plan: RecordedPlan) -> None:
    sequence = plan.cache.sequence()
    profile = plan.profile(TOKENS, [(sequence, len(TOKENS))])
    assert [step for step, _ in profile] == plan.steps
    assert all(microseconds > 0 for _, microseconds in profile)
    assert sequence.length == len(TOKENS)
    profile = plan.profile(TOKENS[:1], [(sequence, 1)])
    assert all(microseconds > 0 for _, microseconds in profile), "row steps are part of others"


def test_values_of_steps(plan: RecordedPlan) -> None:
    """Any step's result can be looked at, and looking leaves the sequence as it was."""
    config, weights = load_hf_folder(GOLDEN.folder)
    sequence = plan.cache.sequence()
    segments = [(sequence, len(TOKENS))]
    embedded = plan.values(step_of(plan, "embed"), TOKENS, segments)
    want = weights["model.embed_tokens.weight"][TOKENS]
    assert np.array_equal(embedded, want)
    normed = plan.values(step_of(plan, "rmsnorm"), TOKENS, segments)
    scale = 1 / np.sqrt((want.astype(np.float64) ** 2).mean(1, keepdims=True) + config.rms_norm_eps)
    norm = weights["model.layers.0.input_layernorm.weight"]
    np.testing.assert_allclose(normed, want * scale * norm, rtol=1e-5, atol=1e-7)
    assert sequence.length == 0
    before = feed(plan, sequence, TOKENS.tolist())
    plan.values(5, TOKENS, segments)
    assert sequence.length == len(TOKENS)
    assert np.array_equal(feed(plan, plan.cache.sequence(), TOKENS.tolist()), before)
    with pytest.raises(ValueError, match=r"expected a step 0\.\."):
        plan.values(len(plan.steps), TOKENS, segments)


def test_pages_come_back() -> None:
    plan = build(GOLDEN.folder)
    sequence = plan.cache.sequence()
    feed(plan, sequence, GOLDEN.tokens[0] * 4)
    fork = sequence.fork(100)
    assert plan.cache.pages_in_use == 3  # 160 positions in pages of 64; the fork shares two
    del fork
    sequence.truncate(10)
    assert plan.cache.pages_in_use == 1
    sequence.truncate(0)
    assert plan.cache.pages_in_use == 0


def test_a_fork_and_its_source_go_their_ways() -> None:
    """Shared pages are copied before either side writes."""
    plan = build(GOLDEN.folder)
    prompt, left, right = GOLDEN.tokens[0], GOLDEN.tokens[1][:9], GOLDEN.tokens[1][9:18]
    source = plan.cache.sequence()
    feed(plan, source, prompt)
    fork = source.fork(source.length)
    got = [feed(plan, source, left), feed(plan, fork, right), feed(plan, source, right)]
    fresh = [plan.cache.sequence() for _ in range(2)]
    want_left = feed(plan, fresh[0], prompt + left + right)[len(prompt) :]
    want_right = feed(plan, fresh[1], prompt + right)[len(prompt) :]
    assert np.array_equal(got[0], want_left[:9])
    assert np.array_equal(got[1], want_right)
    assert np.array_equal(got[2], want_left[9:])


def test_runs_of_two_threads_queue() -> None:
    plan = build(GOLDEN.folder, threads=2)
    want = feed(plan, plan.cache.sequence(), TOKENS.tolist())[-1]
    results: list[bool] = []

    def work() -> None:
        for _ in range(30):
            sequence = plan.cache.sequence()
            plan.native.run(TOKENS, [(sequence, len(TOKENS))], np.array([], np.int32))
            results.append(sequence.length == len(TOKENS))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 90
    assert np.array_equal(feed(plan, plan.cache.sequence(), TOKENS.tolist())[-1], want)


def test_handles_have_no_value() -> None:
    """A branch or a conversion inside forward() is an error that says so."""
    seen: list[Handle] = []

    def record(p: Recorder) -> Handle:
        x = p.embed(linear)
        seen.append(x)
        for misuse in (bool, np.asarray, list):
            with pytest.raises(TypeError, match=r"has no value yet.*RecordedPlan\.values\(step\)"):
                misuse(x)  # type: ignore[operator]
        with pytest.raises(ValueError, match=r"split\(\) needs"):
            x.split()
        return p.linear(p.select(x), linear)

    from slmq.plan.linear import Linear

    rows = np.ones((8, 32), np.float32).view(np.uint8).reshape(-1)
    linear = Linear(_native.Matrix.pack("f32", rows, 8, 32, "f32"))
    plan = RecordedPlan(record, threads=1, max_rows=4, max_outputs=2, vocabulary=8)
    assert seen[0].width == 32
    assert len(plan.steps) == 3


def test_threads_that_share_a_sequence_queue() -> None:
    """Runs, forks and truncations of one sequence from several threads take turns."""
    plan = build(GOLDEN.folder, threads=2)
    sequence = plan.cache.sequence()
    feed(plan, sequence, TOKENS.tolist())
    failures: list[BaseException] = []

    def grow() -> None:
        for _ in range(200):
            plan.native.run(TOKENS[:7], [(sequence, 7)], np.array([], np.int32))

    def cut() -> None:
        for _ in range(400):
            sequence.truncate(len(TOKENS))

    def branch() -> None:
        for _ in range(400):
            fork = sequence.fork(len(TOKENS))
            assert fork.length == len(TOKENS)

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (grow, cut, branch)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    sequence.truncate(len(TOKENS))
    again = feed(plan, sequence, TOKENS[:3].tolist())
    want = feed(plan, plan.cache.sequence(), [*TOKENS.tolist(), *TOKENS[:3].tolist()])[-3:]
    assert np.array_equal(again, want)
    sequence.truncate(0)
    assert plan.cache.pages_in_use == 0


def test_steps_agree_with_numpy(plan: RecordedPlan) -> None:
    """The values between the steps, not only the logits: the first layer by hand."""
    config, w = load_hf_folder(GOLDEN.folder)
    segments = [(plan.cache.sequence(), len(TOKENS))]
    prefix = "model.layers.0"
    normed = plan.values(step_of(plan, "rmsnorm"), TOKENS, segments).astype(np.float64)
    qkv = plan.values(step_of(plan, "linear"), TOKENS, segments)
    offset = 0
    for part in "qkv":
        weight = w[f"{prefix}.self_attn.{part}_proj.weight"]
        want = normed @ weight.astype(np.float64).T
        np.testing.assert_allclose(qkv[:, offset : offset + len(weight)], want, atol=1e-5)
        offset += -(-len(weight) // 32) * 32  # parts start at whole groups
    angles = plan.values(step_of(plan, "rope"), TOKENS, segments)
    turns = np.outer(np.arange(len(TOKENS)), config.inv_freq)
    np.testing.assert_allclose(angles, np.hstack([np.cos(turns), np.sin(turns)]), atol=1e-6)
    second_norm = [i for i, s in enumerate(plan.steps) if s.op == "rmsnorm"][1]
    h = plan.values(second_norm, TOKENS, segments).astype(np.float64)
    gate, up = (h @ w[f"{prefix}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
    got = plan.values(step_of(plan, "swiglu"), TOKENS, segments)
    np.testing.assert_allclose(got, gate / (1 + np.exp(-gate)) * up, atol=1e-5)
