"""Mixtures of experts: which experts a row goes to, what it gets of them, and what is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from kernel_cases import ISAS, assert_within, normal, pack, same_bits

from slmq import _native

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

EXPERTS, TOP_K, HIDDEN, INNER = 7, 3, 64, 96
ROWS = 150


def recorded(isa: str, threads: int, **rows: F32) -> tuple[Any, dict[str, tuple[int, int, int]]]:
    """A recording whose tokens are rows of given matrices, and a slice of each."""
    m = len(next(iter(rows.values())))
    native = _native.Recording(threads, m, 1, m, "f32", isa)
    slices = {name: (native.embed(pack(x, "f32")), 0, x.shape[1]) for name, x in rows.items()}
    return native, slices


def plan_of(native: Any, step: int, width: int, rows: int) -> Any:
    """The finished plan, with a head that nobody asks for."""
    head = pack(np.zeros((rows, width), np.float32), "f32")
    return native.finish(native.linear(native.select((step, 0, width)), [(head, None)]))


def values(plan: Any, step: int, tokens: list[int], cuts: list[int]) -> F32:
    """What a step makes of tokens, given in runs that end at `cuts`, each a text of its own."""
    cache, found, start = plan.make_cache(), [], 0
    for end in [*cuts, len(tokens)]:
        part = np.array(tokens[start:end], np.int32)
        plan.run(part, [(cache.sequence(), 1) for _ in part], np.zeros(1, np.int32))
        found.append(plan.read(step))
        start = end
    return np.concatenate(found)


# --- routes -----------------------------------------------------------------------------------


def routes_of(logits: F32, isa: str = "scalar", threads: int = 1, **options: Any) -> F32:
    native, slices = recorded(isa, threads, logits=logits)
    step = native.route(slices["logits"], **options)
    plan = plan_of(native, step, 2 * options["top_k"], len(logits))
    return values(plan, step, list(range(len(logits))), [1, 3, 40])


def softmax(x: F64) -> F64:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "chosen"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_routes(scores: str, normalized: bool, biased: bool) -> None:
    logits = normal(ROWS, EXPERTS, seed=1) * np.float32(2)
    bias = normal(1, EXPERTS, seed=2)[0] if biased else None
    options = {
        "top_k": TOP_K, "scores": scores, "normalized": normalized, "eps": 0.5, "scale": 1.5,
        "bias": bias,
    }  # fmt: skip
    want = routes_of(logits, **options)
    for isa in ISAS:
        for threads in (1, 2):
            assert same_bits(routes_of(logits, isa, threads, **options), want)
    wide = logits.astype(np.float64)
    made = {"softmax": softmax(wide), "sigmoid": 1 / (1 + np.exp(-wide)), "chosen": wide}[scores]
    ranks = made if bias is None else made + bias
    chosen = np.sort(np.argsort(-ranks, axis=1)[:, :TOP_K], axis=1)
    assert np.array_equal(want[:, :TOP_K], chosen)
    weights = np.take_along_axis(made, chosen, axis=1)
    weights = softmax(weights) if scores == "chosen" else weights
    if normalized:
        weights /= weights.sum(axis=1, keepdims=True) + 0.5
    assert np.abs(want[:, TOP_K:] - 1.5 * weights).max() < 1e-6


def test_of_equal_scores_the_lower_numbers_are_chosen() -> None:
    logits = np.array([[1, 2, 2, 2, 0], [3, 3, 3, 3, 3], [0, 0, 0, 0, 9]], np.float32)
    found = routes_of(np.tile(logits, (20, 1)), top_k=2, scores="chosen")[:3, :2]
    assert found.tolist() == [[1, 2], [0, 1], [0, 4]]


@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "chosen"])
def test_whatever_logits_are_a_row_has_different_experts(scores: str) -> None:
    """NaN and infinities, too: 0 times an infinity, an infinity, and numbers."""
    kinds = np.array([[1e38, 0], [1e38, 1], [-1e38, 1], [0, 1], [1e-30, 1]], np.float32)
    pairs = np.stack(np.meshgrid(*[np.arange(5)] * 4), axis=-1).reshape(-1, 4)
    native, slices = recorded("scalar", 1, gate=kinds[pairs, 1])
    large = native.embed(pack(kinds[pairs, 0], "f32"), 1e30)
    logits = native.gate((large, 0, 4), slices["gate"], "silu")
    step = native.route((logits, 0, 4), 3, scores)
    plan = plan_of(native, step, 6, len(pairs))
    found = values(plan, step, list(range(len(pairs))), [1])[:, :3]
    assert ((found[:, :-1] < found[:, 1:]) & (found[:, 1:] < 4)).all()
    assert (found[:, 0] >= 0).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_k": 0}, r"1\.\.7 experts for a row, got 0"),
        ({"top_k": 8}, r"1\.\.7 experts for a row, got 8"),
        ({"scores": "argmax"}, "'softmax', 'sigmoid' or 'chosen'"),
        ({"bias": np.zeros(6, np.float32)}, "a bias of 7 values, got 6"),
        ({"bias": np.full(7, np.nan, np.float32)}, "biases of"),
        ({"eps": -1.0}, "eps of 0"),
        ({"scale": np.inf}, "a scale of"),
    ],
)
def test_routes_that_make_no_sense(wrong: dict[str, Any], message: str) -> None:
    native, slices = recorded("scalar", 1, logits=normal(4, 7))
    with pytest.raises(ValueError, match=message):
        native.route(slices["logits"], **({"top_k": 2, "scores": "softmax"} | wrong))


# --- what experts make of rows ----------------------------------------------------------------


class Mixture:
    """Experts with matrices of a format, and rows for them."""

    def __init__(self, fmt: str, biased: bool, **options: Any) -> None:
        self.options = options
        formats = [*fmt.split(), *fmt.split()][:2]  # of even experts, of odd ones
        self.x = normal(ROWS, HIDDEN, seed=3)
        self.logits = normal(ROWS, EXPERTS, seed=4) * np.float32(2)
        self.add = normal(ROWS, HIDDEN, seed=5)
        sizes = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
        self.packed: dict[str, list[tuple[Any, F32 | None]]] = {
            part: [
                (
                    pack(normal(n, k, seed=100 * i + e) * np.float32(k**-0.5), formats[e % 2]),
                    normal(1, n, seed=1000 * i + e)[0] if biased else None,
                )
                for e in range(EXPERTS)
            ]
            for i, (part, (n, k)) in enumerate(sizes.items(), start=1)
        }

    def plan(self, isa: str, threads: int) -> tuple[Any, int]:
        native, slices = recorded(isa, threads, x=self.x, logits=self.logits, add=self.add)
        routes = native.route(slices["logits"], TOP_K, "softmax", True)
        step = native.mixture(
            slices["x"], routes, **self.packed, activation="silu", activations="a16g32",
            add=slices["add"], **self.options,
        )  # fmt: skip
        return plan_of(native, step, HIDDEN, ROWS), step

    def exact(self) -> F64:
        """In float64, with the weights as they are packed."""
        chosen = np.argsort(-self.logits, axis=1, kind="stable")[:, :TOP_K]
        weights = softmax(np.take_along_axis(self.logits, chosen, axis=1).astype(np.float64))
        found = self.add.astype(np.float64)
        for e in range(EXPERTS):
            (gate, g), (up, u), (down, d) = (
                (m.dequantize(0, m.n).astype(np.float64), 0.0 if bias is None else bias)
                for m, bias in (self.packed[part][e] for part in ("gate", "up", "down"))
            )
            a, b = self.x @ gate.T + g, self.x @ up.T + u
            if limit := self.options.get("limit"):
                alpha = self.options["alpha"]
                a, b = np.minimum(a, limit), np.clip(b, -limit, limit) + 1
                middle = a / (1 + np.exp(-alpha * a)) * b
            else:
                middle = a / (1 + np.exp(-a)) * b
            share = (weights * (chosen == e)).sum(axis=1, keepdims=True)
            found += share * (middle @ down.T + d)
        return found


CASES = [
    ("f32", False, {}),
    ("f16", True, {}),
    ("q4g32s", False, {}),
    ("q8g32s", True, {}),
    ("q4g32a", True, {"limit": 0.8, "alpha": 1.7}),
    ("q8g32s f16", True, {}),
]


@pytest.mark.parametrize(("fmt", "biased", "options"), CASES)
def test_mixture(fmt: str, biased: bool, options: dict[str, Any]) -> None:
    """The same bits for every way of cutting rows into runs, threads and instruction sets."""
    mixture = Mixture(fmt, biased, **options)
    tokens = list(range(ROWS))
    plan, step = mixture.plan("scalar", 1)
    want = values(plan, step, tokens, [])
    exact = mixture.exact()
    assert_within(want, exact, np.full_like(exact, 2e-3 if fmt.startswith("q") else 1e-5))
    for isa in ISAS:
        for threads, cuts in ((1, [1, 3, 20]), (2, []), (2, [1, 2, 4]), (3, [2, 66, 149])):
            plan, step = mixture.plan(isa, threads)
            assert same_bits(values(plan, step, tokens, cuts), want), (isa, threads, cuts)
        plan, step = mixture.plan(isa, 2)
        assert same_bits(values(plan, step, tokens, list(range(1, ROWS))), want), isa
    order = list(np.random.default_rng(0).permutation(ROWS))
    assert same_bits(values(plan, step, order, [5, 90]), want[order])


def test_only_the_experts_of_a_run_are_read() -> None:
    mixture = Mixture("q8g32s", False)
    plan, step = mixture.plan("scalar", 2)
    one = sum(mixture.packed[part][0][0].nbytes for part in ("gate", "up", "down"))
    chosen = np.argsort(-mixture.logits, axis=1, kind="stable")[:, :TOP_K]
    for rows in ([0], [1, 2], [3, 3], list(range(5)), list(range(ROWS))):
        before = plan.bytes_read
        values(plan, step, rows, [])
        head = HIDDEN * 32 * -(-ROWS // 32) * 4
        assert plan.bytes_read - before - head == one * len(np.unique(chosen[rows])), rows


def test_weights_of_experts_that_nobody_asks_for_may_be_anything() -> None:
    mixture = Mixture("f32", False)
    chosen = np.argsort(-mixture.logits, axis=1, kind="stable")[:, :TOP_K]
    rows = [i for i in range(ROWS) if 0 not in chosen[i]]
    assert rows
    plan, step = mixture.plan("scalar", 1)
    want = values(plan, step, rows, [])
    for part in mixture.packed.values():
        shape = (part[0][0].n, part[0][0].k)
        part[0] = (pack(np.full(shape, 1e30, np.float32), "f32"), None)
    plan, step = mixture.plan("scalar", 1)
    assert same_bits(values(plan, step, rows, []), want)


def wrong(mixture: Mixture, part: str, matrix: Any) -> dict[str, Any]:
    changed = list(mixture.packed[part])
    changed[2] = (matrix, None)
    return mixture.packed | {part: changed}


def test_experts_that_do_not_fit_each_other() -> None:
    mixture = Mixture("q8g32s", False)
    native, slices = recorded("scalar", 1, x=mixture.x, logits=mixture.logits)
    routes = native.route(slices["logits"], 2, "softmax")

    def record(packed: dict[str, Any], **more: Any) -> None:
        options = {"activation": "silu", "activations": "a16g32"} | more
        native.mixture(slices["x"], more.pop("routes", routes), **packed, **options)

    with pytest.raises(ValueError, match="a matrix gate of each of 7 experts, got 6"):
        record(mixture.packed | {"gate": mixture.packed["gate"][1:]})
    with pytest.raises(ValueError, match="down of expert 2: expected 64x96, got 64x64"):
        record(wrong(mixture, "down", pack(normal(HIDDEN, HIDDEN), "q8g32s")))
    with pytest.raises(ValueError, match="up of expert 2: expected a format whose scales"):
        record(wrong(mixture, "up", pack(normal(INNER, HIDDEN), "q8rs")))
    with pytest.raises(ValueError, match="got none"):
        record(mixture.packed | {"up": []})
    with pytest.raises(ValueError, match="an alpha"):
        record(mixture.packed, limit=1.0, alpha=0.0)
    with pytest.raises(ValueError, match=r"what route\(\) returned"):
        native.mixture(
            slices["x"], slices["x"][0], **mixture.packed, activation="silu",
            activations="a16g32",
        )  # fmt: skip
