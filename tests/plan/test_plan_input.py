"""Recordings and frames that cannot be: refused with a reason, and nothing has changed."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import ISAS, Recording, normal, pack, same_bits

import slmq
from slmq import _native


def numbers(*values: int) -> npt.NDArray[np.int32]:
    return np.array(values, np.int32)


BAD_RECORDINGS: dict[str, tuple[Callable[[Recording], Any], str]] = {
    "an unknown buffer": (lambda r: r.native.select((9, 0, 64)), "expected a buffer 0..0, got 9"),
    "a negative buffer": (lambda r: r.native.quantize((-1, 0, 64), "a8g32"), "got -1"),
    "columns outside": (lambda r: r.native.select((r.x, 16, 64)), "outside a buffer of 64"),
    "no columns": (lambda r: r.native.select((r.x, 0, 0)), "outside a buffer of 64"),
    "columns that wrap": (lambda r: r.native.select((r.x, 64, 2**31 - 1)), "outside a buffer"),
    "an odd offset": (lambda r: r.native.quantize((r.x, 3, 32), "a8g32"), "multiple of 16, got 3"),
    "part of a group": (lambda r: r.native.select((r.x, 0, 17)), "got 17 columns from 0"),
    "half a group further": (lambda r: r.native.select((r.x, 16, 32)), "got 32 columns from 16"),
    "a short norm": (lambda r: r.norm(normal(63)), "a weight of 64 values, got 63"),
    "a negative eps": (
        lambda r: r.native.rmsnorm((r.x, 0, 64), normal(64), -1.0),
        "expected eps >= 0",
    ),
    "an eps of NaN": (
        lambda r: r.native.rmsnorm((r.x, 0, 64), normal(64), np.nan),
        "expected eps >= 0",
    ),
    "a short embedding": (
        lambda r: r.native.embed(pack(normal(63, 64), "f32")),
        "at least 64 rows, got 63",
    ),
    "weights of another width": (
        lambda r: r.native.linear(r.x, [(pack(normal(64, 65), "f32"), None)]),
        "k = 64, got 64x65",
    ),
    "integer weights on float rows": (
        lambda r: r.native.linear(r.x, [(pack(normal(64, 64), "q4g32a"), None)]),
        "take quantized activations, got float32 rows",
    ),
    "float weights on codes": (
        lambda r: r.native.linear(r.native.quantize((r.x, 0, 64), "a8g32"), [(r.matrix, None)]),
        "take float32 rows, got quantized",
    ),
    "no weights": (lambda r: r.native.linear(r.x, []), "at least one matrix"),
    "a short bias": (lambda r: r.biased(normal(63)), "a bias of 64 values, got 63"),
    "an add of another width": (
        lambda r: r.native.linear(r.x, [(r.matrix, None)], (r.x, 0, 32)),
        "add= of width 64, got 32",
    ),
    "an add of nothing": (
        lambda r: r.native.linear(r.x, [(r.matrix, None)], (-1, 0, 64)),
        "expected a buffer, got -1",
    ),
    "an add of other rows": (
        lambda r: r.native.linear(r.native.select((r.x, 0, 64)), [(r.matrix, None)], (r.x, 0, 64)),
        "the same rows",
    ),
    "a norm with an add of another width": (
        lambda r: r.native.rmsnorm((r.x, 0, 64), normal(64), 0.1, (r.x, 0, 32)),
        "rmsnorm: expected add= of width 64, got 32",
    ),
    "a norm with an add of nothing": (
        lambda r: r.native.rmsnorm((r.x, 0, 64), normal(64), 0.1, (-1, 0, 64)),
        "rmsnorm add: expected a buffer, got -1",
    ),
    "a norm with an add of other rows": (
        lambda r: r.native.rmsnorm(
            (r.native.select((r.x, 0, 64)), 0, 64), normal(64), 0.1, (r.x, 0, 64)
        ),
        "rmsnorm: expected add= and the input to have the same rows",
    ),
    "a cap below zero": (
        lambda r: r.native.linear(r.x, [(r.matrix, None)], softcap=-1.0),
        "linear: expected a softcap of 0 or",
    ),
    "a cap of NaN": (
        lambda r: r.native.linear(r.x, [(r.matrix, None)], softcap=np.nan),
        "linear: expected a softcap of 0 or",
    ),
    "a cap of scores that is infinite": (
        lambda r: r.native.attention(*[(r.x, 0, 32)] * 3, -1, 1, 1, 32, 0, 1.0, 0, np.inf),
        "attention: expected a softcap of 0 or",
    ),
    "an add to several": (
        lambda r: r.native.linear(r.x, [(pack(normal(32, 64), "f32"), None)] * 2, (r.x, 0, 64)),
        "one matrix with add=, got several",
    ),
    "a norm of codes": (
        lambda r: r.native.rmsnorm(
            (r.native.quantize((r.x, 0, 64), "a8g32"), 0, 64), normal(64), 0.1
        ),
        "expected a float32 buffer, got a quantized one",
    ),
    "a norm of no whole heads": (
        lambda r: r.native.head_norm((r.x, 0, 64), normal(24), 0.1),
        "a weight that divides 64 channels, got 24 values",
    ),
    "a norm of heads behind the selection": (
        lambda r: r.native.head_norm((r.native.select((r.x, 0, 64)), 0, 64), normal(32), 0.1),
        "head_norm: record it before select",
    ),
    "heads turned by angles of another width": (
        lambda r: r.native.rotate((r.x, 0, 64), r.native.rope(normal(8)), 8, 32),
        "rotate: the rope angles do not fit the rotated channels",
    ),
    "turned by nothing": (
        lambda r: r.native.rotate((r.x, 0, 64), r.native.rope(normal(8)), 0, 32),
        "rotate: expected an even number of rotated channels within the head",
    ),
    "no whole heads turned": (
        lambda r: r.native.rotate((r.x, 0, 64), r.native.rope(normal(8)), 16, 24),
        "rotate: expected heads that divide 64 channels, got 24",
    ),
    "heads turned behind the selection": (
        lambda r: r.native.rotate((r.native.select((r.x, 0, 64)), 0, 64), 0, 16, 32),
        "rotate: record it before select",
    ),
    "growth at every position of none": (
        lambda r: r.native.scale_by_position((r.x, 0, 64), 0.1, 0),
        "scale_by_position: expected every >= 1, got 0",
    ),
    "growth of NaN": (
        lambda r: r.native.scale_by_position((r.x, 0, 64), np.nan, 8),
        "scale_by_position: expected a growth of -1e6..1e6",
    ),
    "growth behind the selection": (
        lambda r: r.native.scale_by_position((r.native.select((r.x, 0, 64)), 0, 64), 0.1, 8),
        "scale_by_position: record it before select",
    ),
    "an activation with a parameter of NaN": (
        lambda r: r.native.xielu((r.x, 0, 64), 1.0, np.nan, 1.0),
        "xielu: expected parameters of -1e6..1e6",
    ),
    "a layer norm of no whole heads": (
        lambda r: r.native.layernorm((r.x, 0, 64), normal(64), None, 24, 0.1),
        "heads that divide 64 channels, got 24",
    ),
    "a layer norm with half a bias": (
        lambda r: r.native.layernorm((r.x, 0, 64), normal(64), normal(32), 64, 0.1),
        "a weight of 64 values and as many in a bias, got 64 and 32",
    ),
    "an unknown activation": (
        lambda r: r.native.linear(r.x, [(r.matrix, None)], None, "mish"),
        "expected 'gelu', 'gelu_tanh', 'relu', 'silu', 'tanh' or 'relu2', got 'mish'",
    ),
    "positions of another width": (
        lambda r: r.native.embed(r.matrix, 1.0, pack(normal(8, 32), "f32")),
        "positions of 64 columns, got 8x32",
    ),
    "gate and up that differ": (
        lambda r: r.native.gated(
            r.x, (r.matrix, None), (pack(normal(32, 64), "f32"), None), "silu"
        ),
        "swiglu: expected gate and up of one shape",
    ),
    "a gate of an unknown activation": (
        lambda r: r.native.gated(r.x, (r.matrix, None), (r.matrix, None), "mish"),
        "activation of a gate: expected 'silu'",
    ),
    "fewer inputs than gate and up": (
        lambda r: r.native.gated([r.x], (r.matrix, None), (r.matrix, None), "silu"),
        "gated: expected an input for each of 2 weights, got 1",
    ),
    "a column outside": (
        lambda r: r.native.gather((r.x, 32, 32), numbers(0, 32)),
        "columns in 0..31, got 32",
    ),
    "a negative column": (lambda r: r.native.gather((r.x, 0, 64), numbers(-1)), "0..63, got -1"),
    "no columns gathered": (lambda r: r.native.gather((r.x, 0, 64), numbers()), "one column"),
    "fewer inputs than weights": (
        lambda r: r.native.linear([r.x], [(r.matrix, None)] * 2),
        "an input for each of 2 weights, got 1",
    ),
    "inputs of other rows": (
        lambda r: r.native.linear([r.native.select((r.x, 0, 64)), r.x], [(r.matrix, None)] * 2),
        "linear: expected inputs of the same rows",
    ),
    "no frequencies": (lambda r: r.native.rope(normal(0)), "at least one frequency"),
    "endless frequencies": (lambda r: r.native.rope(normal(4) * np.float32(np.inf)), "finite"),
    "unfinished head": (lambda r: r.native.finish(r.x), "record select() before"),
    "finish with tokens": (
        lambda r: (r.native.select((r.x, 0, 64)), r.native.finish(r.x)),
        "logits of at least 64 columns",
    ),
    "a second selection": (
        lambda r: (r.native.select((r.x, 0, 64)), r.native.select((r.x, 0, 64))),
        "selected once",
    ),
    "attention behind the selection": (
        lambda r: (r.native.select((r.x, 0, 64)), r.finished()),
        "attention: record it before select()",
    ),
    "released twice": (lambda r: (r.native.release(r.x), r.native.release(r.x)), "released twice"),
    "reading what was released": (
        lambda r: (r.native.release(r.x), r.norm(normal(64))),
        "buffer 0 was released",
    ),
    "weights on what was released": (
        lambda r: (r.native.release(r.x), r.native.linear(r.x, [(r.matrix, None)])),
        "buffer 0 was released",
    ),
    "finish with what was released": (
        lambda r: (
            y := r.native.select((r.x, 0, 64)),
            r.native.release(y),
            r.native.finish(y),
        ),
        "was released",
    ),
    "all rows behind the selection": (
        lambda r: (r.native.select((r.x, 0, 64)), r.norm(normal(64))),
        "rmsnorm: behind select() only its rows can be read",
    ),
    "recording after the end": (lambda r: (r.finished(), r.norm(normal(64))), "finished"),
    "a second end": (lambda r: (r.finished(), r.native.finish(1)), "recording is finished"),
    "nothing to read": (
        lambda r: _native.Recording(1, 8, 8, 8).select((0, 0, 64)),
        "expected a buffer of an earlier step, got 0",
    ),
    "an unknown ISA": (
        lambda r: _native.Recording(1, 8, 8, 8, "f16", "sse9"),
        "unknown ISA 'sse9'",
    ),
    "no threads": (lambda r: _native.Recording(0, 8, 8, 8), "1..1024 threads, got 0"),
    "no rows": (lambda r: _native.Recording(1, 0, 1, 8), "1..65536 rows in a chunk, got 0"),
    "too many outputs": (lambda r: _native.Recording(1, 8, 9, 8), "1..8 output rows, got 9"),
    "no vocabulary": (lambda r: _native.Recording(1, 8, 8, 0), "a vocabulary of at least 1, got 0"),
    "a cache of float8": (
        lambda r: _native.Recording(1, 8, 8, 8, "f8"),
        "'f16', 'f32', 'int8' or 'int4', got 'f8'",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_RECORDINGS.values(), ids=list(BAD_RECORDINGS))
def test_recordings_that_cannot_run(call: Callable[[Recording], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(Recording())


def attention(r: Recording, **changes: Any) -> None:
    x = (r.x, 0, 64)
    arguments: dict[str, Any] = {"q": x, "k": x, "v": x, "rope": -1, "heads": 4, "kv_heads": 4}
    arguments |= {"head_dim": 16, "rotary": 0, "scale": 0.25} | changes
    r.native.attention(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, "multiple of kv_heads, got 0 and 4"),
        ({"kv_heads": 3}, "multiple of kv_heads, got 4 and 3"),
        ({"kv_heads": -4}, "multiple of kv_heads"),
        ({"head_dim": 15}, "do not fit 4 heads"),
        ({"head_dim": 0}, "do not fit"),
        ({"head_dim": -16}, "do not fit"),
        ({"heads": 2**30, "kv_heads": 2**30, "head_dim": 2**30}, "do not fit"),
        ({"heads": 65, "kv_heads": 1}, "64 query heads may share"),
        ({"rotary": 3}, "even number of rotated channels"),
        ({"rotary": 18}, "within the head"),
        ({"rotary": -2}, "within the head"),
        ({"rotary": 16}, "expected a buffer"),
        ({"rotary": 16, "rope": 0}, "do not fit the rotated channels"),
        ({"window": -1}, "window >= 0"),
        ({"k": (0, 0, 32)}, "do not fit"),
        ({"q": (7, 0, 64)}, "expected a buffer"),
    ],
    ids=str,
)
def test_attention_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        attention(Recording(), **changes)


def test_angles_must_be_angles() -> None:
    r = Recording()
    codes = r.native.quantize((r.x, 0, 64), "a8g32")
    wide = {"heads": 1, "kv_heads": 1, "head_dim": 64, "rotary": 64}
    with pytest.raises(ValueError, match="do not fit the rotated channels"):
        attention(r, rope=codes, **wide)


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.native.embed(None),
        lambda r: r.native.linear(r.x, [(None, None)]),
        lambda r: r.native.gated(r.x, (r.matrix, None), (None, None), "silu"),
        lambda r: r.native.gated(r.x, (r.matrix, None), (r.matrix, None)),
        lambda r: r.native.linear(r.x, None),
        lambda r: r.native.select(r.x),
        lambda r: r.native.select((r.x, 0)),
        lambda r: r.native.select((r.x, 0.5, 64)),
        lambda r: r.native.select((r.x, 0, 2**40)),
        lambda r: r.native.finish("logits"),
    ],
)
def test_recordings_of_other_types(call: Callable[[Recording], Any]) -> None:
    with pytest.raises(TypeError):
        call(Recording())


def test_a_plan_only_runs_and_a_recording_only_records() -> None:
    """What cannot be done at the wrong time is not there to be called."""
    with pytest.raises(TypeError, match="No constructor defined"):
        _native.Plan()
    calls = {name for name in dir(_native.Plan) if not name.startswith("_")}
    records = {name for name in dir(_native.Recording) if not name.startswith("_")}
    assert {"run", "run_outputs", "read", "logits", "make_cache"} <= calls
    assert {"embed", "linear", "gated", "attention", "release", "finish"} <= records
    assert not calls & records


def test_a_plan_outlives_its_recording() -> None:
    r = Recording()
    plan = r.finished()
    plan.run(numbers(1), [(plan.make_cache().sequence(), 1)], numbers(0))
    before = plan.logits()
    del r
    gc.collect()
    plan.run(numbers(1), [(plan.make_cache().sequence(), 1)], numbers(0))
    assert same_bits(plan.logits(), before)


def test_a_refused_call_changes_nothing() -> None:
    r = Recording()
    plan = r.finished()
    pages, steps = plan.page_bytes, len(plan.describe())
    x = (0, 0, 64)
    for call in (
        lambda: r.native.attention(x, x, x, -1, 4, 4, 16, 0, 0.25),
        lambda: r.native.rmsnorm(x, normal(64), 1e-5),
        lambda: r.native.embed(pack(normal(64, 64), "f32")),
        lambda: r.native.rope(normal(4)),
        lambda: r.native.finish(1),
    ):
        with pytest.raises(ValueError, match="the recording is finished"):
            call()
    r.native.release(0)  # handles may outlive their recording
    r.native.release(0)
    assert (plan.page_bytes, len(plan.describe())) == (pages, steps)
    plan.run(numbers(1), [(plan.make_cache().sequence(), 1)], numbers(0))
    assert np.isfinite(plan.logits()).all()


column_lists = st.sampled_from([range(64), range(63, -1, -1), range(20), [5] * 48, [-1], []])
slices = st.tuples(st.integers(-1, 6), st.sampled_from([0, 1, 16, 32, 48, 64]), st.integers(-1, 80))


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_any_recording_is_refused_or_runs(data: st.DataObject) -> None:
    """Random calls with random slices: what is accepted must also run."""
    r = Recording()
    weights = [r.matrix, pack(normal(20, 64), "f32"), pack(normal(48, 64), "q8g32s")]
    weights += [pack(normal(64, 20), "f32"), pack(normal(64, 48), "q4g32a")]

    def a_slice() -> tuple[int, int, int]:
        return data.draw(slices)

    def a_buffer() -> int:
        return data.draw(st.integers(-1, 6))

    def a_weight() -> tuple[Any, None]:
        return data.draw(st.sampled_from(weights)), None

    calls: list[Callable[[], Any]] = [
        lambda: r.native.rmsnorm(a_slice(), normal(data.draw(st.sampled_from([20, 48, 64]))), 1e-5),
        lambda: r.native.quantize(
            a_slice(), data.draw(st.sampled_from(["a8g32", "a16g32", "a8o16g32"]))
        ),
        lambda: r.native.gather(a_slice(), numbers(*data.draw(column_lists))),
        lambda: r.native.linear(a_buffer(), [a_weight(), a_weight()]),
        lambda: r.native.linear([a_buffer(), a_buffer()], [a_weight(), a_weight()]),
        lambda: r.native.linear(a_buffer(), [a_weight()], a_slice()),
        lambda: r.native.gated(
            a_buffer(), a_weight(), a_weight(), data.draw(st.sampled_from(["silu", "gelu_tanh"]))
        ),
        lambda: r.native.rope(normal(data.draw(st.sampled_from([2, 8])))),
        lambda: r.native.attention(
            a_slice(),
            a_slice(),
            a_slice(),
            a_buffer(),
            4,
            4,
            data.draw(st.sampled_from([5, 16])),
            data.draw(st.sampled_from([0, 4, 16])),
            0.25,
        ),
        lambda: r.native.select(a_slice()),
        lambda: r.native.release(data.draw(st.integers(0, 4))),
    ]
    for _ in range(data.draw(st.integers(1, 10))):
        with contextlib.suppress(ValueError):
            data.draw(st.sampled_from(calls))()
    try:
        plan = r.finished()
    except ValueError:
        return
    cache = plan.make_cache()
    for m in (1, 2, 3, 17, 32):
        tokens = np.arange(m, dtype=np.int32)
        plan.run(tokens, [(cache.sequence(), m)], numbers(m - 1, 0))
        assert plan.logits().shape == (2, 64)


# --- running --------------------------------------------------------------------------------


def test_frames_that_cannot_run() -> None:
    plan = Recording().finished()
    cache = plan.make_cache()
    one, two = cache.sequence(), cache.sequence()
    other = _native.Recording(1, 8, 8, 8)
    without_attention = other.finish(other.select((other.embed(pack(normal(8, 8), "f32")), 0, 8)))
    foreign = without_attention.make_cache().sequence()
    tokens = numbers(1, 2, 3)
    refused: list[tuple[tuple[Any, ...], str]] = [
        ((numbers(), [], numbers()), "expected 1..32 tokens, got 0"),
        ((np.zeros(33, np.int32), [(one, 33)], numbers()), "expected 1..32 tokens, got 33"),
        ((numbers(1, 64), [(one, 2)], numbers()), "token ids in 0..63, got 64"),
        ((numbers(-1), [(one, 1)], numbers()), "token ids in 0..63, got -1"),
        ((tokens, [(one, 2)], numbers()), "must add up to 3 tokens"),
        ((tokens, [(one, 4)], numbers()), "must add up to 3 tokens"),
        ((tokens, [(one, 2**31 - 1)], numbers()), "must add up to 3 tokens"),
        ((tokens, [(one, 3), (two, 1)], numbers()), "must add up to 3 tokens"),
        ((tokens, [(one, 3), (two, 0)], numbers()), "at least one row each"),
        ((tokens, [(one, -3)], numbers()), "at least one row each"),
        ((tokens, [(None, 3)], numbers()), "at least one row each"),
        ((tokens, [(one, 1), (one, 2)], numbers()), "once in a run"),
        ((tokens, [(foreign, 3)], numbers()), "cache of another model"),
        ((tokens, [(one, 3)], numbers(3)), "output rows within the tokens, got 3"),
        ((tokens, [(one, 3)], numbers(-1)), "output rows within the tokens, got -1"),
        ((tokens, [(one, 3)], np.zeros(9, np.int32)), "at most 8 output rows"),
        ((tokens, [(one, 3)], numbers(), 99), "expected a step 0..3, got 99"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=re.escape(message)):
            plan.run(*arguments)
    for wrong in (tokens.astype(np.int64), [1, 2, 3], None, tokens.astype(">i4")):
        with pytest.raises(TypeError, match=r"tokens: expected int32\[any\]"):
            plan.run(wrong, [(one, 3)], numbers())
        with pytest.raises(TypeError, match=r"outputs: expected int32\[any\]"):
            plan.run(tokens, [(one, 3)], wrong)
    for shaped in (tokens[None], tokens[::-1], tokens[::2]):
        with pytest.raises(ValueError, match="expected"):
            plan.run(shaped, [(one, shaped.size)], numbers())
    for segments in (None, [one], [(one, 1.5)], [("sequence", 3)], 3):
        with pytest.raises(TypeError):
            plan.run(tokens, segments, numbers())
    assert (one.length, two.length, cache.pages_in_use) == (0, 0, 0)
    with pytest.raises(ValueError, match="must come before run_outputs"):
        plan.run_outputs(numbers(0))
    plan.run(tokens, [(one, 3)], numbers(2))
    for rows, message in [(numbers(), "1..8"), (numbers(3), "got 3"), (numbers(-1), "got -1")]:
        with pytest.raises(ValueError, match=message):
            plan.run_outputs(rows)
    with pytest.raises(ValueError, match="expected a buffer"):
        plan.read(99)


def test_a_run_that_stopped_has_no_logits() -> None:
    """Neither logits nor rows of the output head are left over from the run before."""
    plan = Recording().finished()
    sequence = plan.make_cache().sequence()
    with pytest.raises(ValueError, match="nothing has run; run to the end"):
        plan.logits()
    plan.run(numbers(1, 2, 3), [(sequence, 3)], numbers(2))
    want = plan.logits()
    for stop in (0, 1, 2):
        plan.run(numbers(1, 2, 3), [(sequence, 3)], numbers(2), stop)
        with pytest.raises(ValueError, match="run to the end"):
            plan.logits()
        with pytest.raises(ValueError, match=r"run\(\) must|repeat it to the end"):
            plan.run_outputs(numbers(1))
    sequence.truncate(0)
    plan.run(numbers(1, 2, 3), [(sequence, 3)], numbers(2))
    assert np.array_equal(plan.logits(), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_columns_in_another_order(rows: int, isa: str) -> None:
    """Inputs of their own for the weights of one step: the sums are those of sorted weights."""
    rng = np.random.default_rng(rows)
    r = _native.Recording(2, 32, 32, 50, "f32", isa)
    table, a, b = normal(50, 70), normal(33, 70, seed=1), normal(40, 70, seed=2)
    orders = [rng.permutation(70).astype(np.int32) for _ in range(2)]
    x = r.select((r.embed(pack(table, "f32")), 0, 70))
    sorted_x = [r.gather((x, 0, 70), order) for order in orders]
    parts = [(pack(w[:, o], "f32"), None) for w, o in zip((a, b), orders, strict=True)]
    both = r.linear(sorted_x, parts)
    gated = r.gated(
        [x, sorted_x[1]], (pack(b, "f32"), None), (pack(b[:, orders[1]], "f32"), None), "silu"
    )
    plan = r.finish(r.linear(gated, [(pack(normal(50, 40), "f32"), None)]))
    tokens = rng.integers(0, 50, rows).astype(np.int32)
    plan.run(tokens, [(plan.make_cache().sequence(), rows)], np.arange(rows, dtype=np.int32))
    got = plan.read(both)
    for i, (w, at) in enumerate([(a, 0), (b, 64)]):
        want = table[tokens][:, orders[i]].astype(np.float64) @ w[:, orders[i]].T
        np.testing.assert_allclose(got[:, at : at + len(w)], want, rtol=1e-4, atol=1e-4)
    y = table[tokens].astype(np.float64) @ b.T
    np.testing.assert_allclose(plan.read(gated), y / (1 + np.exp(-y)) * y, rtol=1e-4, atol=1e-4)
    plan.run(tokens, [(plan.make_cache().sequence(), rows)], np.arange(rows, dtype=np.int32), 3)
    assert same_bits(plan.read(sorted_x[0]), table[tokens][:, orders[0]])


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_what_a_late_thread_reads_is_kept(rows: int) -> None:
    """A released buffer is not reused while a row step that reads it may still be computed."""
    r = _native.Recording(4, 8, 8, 64)
    table, weight = normal(64, 64), normal(64, 64, seed=1)
    matrix = pack(weight, "f32")
    x = r.embed(pack(table, "f32"))
    normed = r.rmsnorm((x, 0, 64), np.ones(64, np.float32), 1e-5)
    r.release(x)
    y = r.linear(normed, [(matrix, None)])
    assert y != x
    r.release(normed)
    z = r.linear(y, [(matrix, None)])
    assert z == x, "free again once its norm is released"
    again = r.rmsnorm((z, 0, 64), np.ones(64, np.float32), 1e-5)
    assert again == normed
    r.release(again)
    selected = r.select((z, 0, 64))
    plan = r.finish(selected)
    tokens = np.arange(rows, dtype=np.int32)
    plan.run(tokens, [(plan.make_cache().sequence(), rows)], tokens)
    mean = (table[:rows].astype(np.float64) ** 2).mean(1, keepdims=True)
    want = table[:rows] / np.sqrt(mean + 1e-5) @ weight.T.astype(np.float64) @ weight.T
    np.testing.assert_allclose(plan.logits(), want, rtol=1e-4, atol=1e-3)


def test_the_value_of_a_replica_is_current_or_refused() -> None:
    """With few rows a row step's result is kept only until its buffer serves another step."""
    r = _native.Recording(2, 8, 8, 64)
    matrix = pack(normal(64, 64), "f32")
    x = r.embed(matrix)
    normed = r.rmsnorm((x, 0, 64), np.ones(64, np.float32), 1e-5)
    y = r.linear(normed, [(matrix, None)])
    selected = r.select((y, 0, 64))
    head = r.linear(selected, [(matrix, None)])
    plan = r.finish(selected)  # not the last step, and written by a row step
    tokens = numbers(5)
    for _ in range(20):
        sequence = plan.make_cache().sequence()
        plan.run(tokens, [(sequence, 1)], numbers(0))
        assert np.array_equal(plan.logits(), plan.read(y))
        assert np.isfinite(plan.read(head)).all()
        with contextlib.suppress(ValueError):  # which thread computed it is chance
            row = plan.read(normed)
            assert np.allclose((row**2).mean(), 1, atol=1e-3)
        plan.run(tokens, [(plan.make_cache().sequence(), 1)], numbers(0), 2)
        assert np.allclose((plan.read(normed) ** 2).mean(), 1, atol=1e-3)
        with pytest.raises(ValueError, match="before the step that writes it"):
            plan.read(y)


def test_kernels_that_do_nothing_are_no_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    """They can be asked for by a plan that measures itself, and in no other way."""
    r = _native.Recording(2, 8, 8, 64, "f16", "empty")
    plan = r.finish(r.select((r.embed(pack(normal(64, 64), "f32")), 0, 64)))
    assert plan.isa == "empty"
    assert "empty" not in slmq.isa
    monkeypatch.setenv("SLMQ_ISA", "empty")
    with pytest.raises(ValueError, match="unknown ISA 'empty'"):
        _native.Recording(1, 8, 8, 64)


def test_lengths_of_sequences() -> None:
    plan = Recording().finished()
    sequence = plan.make_cache().sequence()
    plan.run(numbers(1, 2, 3), [(sequence, 3)], numbers())
    for call, name in [(sequence.truncate, "truncate"), (sequence.fork, "fork")]:
        for length in (-1, 4, 2**31 - 1):
            with pytest.raises(ValueError, match=rf"{name}: expected 0..3, got {length}"):
                call(length)
        for wrong in (None, "2", 1.5, 2**40):
            with pytest.raises(TypeError):
                call(wrong)
    assert sequence.length == 3
