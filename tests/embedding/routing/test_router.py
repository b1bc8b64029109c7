"""`slmq.Router`: what is chosen, by which rule and for which price, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_files import sentence_folder
from tiny_heads import EASY, HARD, tiny_heads

import slmq
from slmq import ContextOverflowError, DataError, Router
from slmq.embedding.routing.config import read_config
from slmq.embedding.routing.features import NAMES, plain_features
from slmq.embedding.routing.heads import load_heads, sigmoid
from slmq.embedding.routing.ledger import Ledger, entry_of, read_log, report_of
from slmq.embedding.routing.training import fitted_head, train_right

SMALL = """
[[models]]
name = "small"
target = "smollm2-135m-instruct"
quality = 0.5
context = 500
tags = ["local"]
"""
LARGE = """
[[models]]
name = "large"
url = "https://api.example.com/v1/"
model = "large-2"
key_env = "EXAMPLE_KEY"
price_in = 2.5
price_out = 10
quality = 0.9
"""
Make = Callable[..., Router]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slmq.Encoder]:
    with slmq.load_encoder(sentence_folder(tmp_path_factory.mktemp("e") / "m")) as opened:
        yield opened


@pytest.fixture(scope="module")
def heads(encoder: slmq.Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heads") / "heads.npz"
    tiny_heads(encoder).save(path)
    return path


@pytest.fixture
def make(tmp_path: Path, heads: Path, encoder: slmq.Encoder) -> Make:
    def made(text: str, models: str = SMALL + LARGE) -> Router:
        path = tmp_path / "router.toml"
        path.write_text(f"heads = {json.dumps(str(heads))}\n{text}\n{models}", "utf-8")
        return Router.open(path, encoder)

    return made


def test_what_is_easy_goes_to_the_cheap_model(make: Make) -> None:
    router = make("[policy]\ntarget = 0.6")
    easy, hard = router.route(EASY[0]), router.route(HARD[0])
    assert (easy.model, easy.order) == ("small", ["small", "large"])
    assert easy.reason == "the cheapest that is right with at least 60%"
    assert (hard.model, hard.order) == ("large", ["large", "small"])
    assert easy.p_right["small"] > 0.6 > hard.p_right["small"]
    assert (easy.labels.task, hard.labels.task) == ("easy", "hard")
    assert (easy.labels.domain, hard.labels.domain) == ("animals", "sums")
    assert easy.labels.complexity < hard.labels.complexity
    assert easy.costs["small"] == 0
    tokens = easy.tokens
    assert easy.costs["large"] == pytest.approx((tokens * 2.5 + 300 * 10) / 1e6)
    assert json.loads(json.dumps(easy.as_json()))["model"] == "small"
    assert repr(router) == "<slmq.Router, small, large>"


def test_modes(make: Make) -> None:
    router = make('[policy]\nmode = "quality"')
    assert router.route(HARD[0]).model == "large"
    assert router.route(EASY[0], mode="balanced").model == "small"
    assert make("[policy]\ntarget = 0").route(HARD[0]).model == "small"
    strict = make("[policy]\ntarget = 1.0")
    found = strict.route(HARD[0])
    assert (found.model, found.reason) == ("large", "none is right with 100%: the likeliest")
    with pytest.raises(ValueError, match="mode: expected one of cheapest, balanced, quality"):
        router.route("x", mode="best")


@pytest.mark.parametrize(
    ("rule", "text", "fits"),
    [
        ('match = "(?:secret|private)"', "a PRIVATE cat", True),
        ('match = "secret"', "a cat", False),
        ('domains = ["sums"]', HARD[0], True),
        ('tasks = ["hard"]', EASY[0], False),
        ('languages = ["en"]', "cat", True),
        ("min_tokens = 50", "cat " * 60, True),
        ("max_tokens = 50", "cat " * 60, False),
        ("tools = false", "cat", True),
        ("tools = true", "cat", False),
    ],
)
def test_rules(make: Make, rule: str, text: str, fits: bool) -> None:
    router = make(f'[[rules]]\nname = "r"\nuse = ["tag:local"]\n{rule}\n')
    found = router.route(text)
    assert found.rule == ("r" if fits else None)
    assert (list(found.p_right) == ["small"]) == fits


def test_contexts(make: Make) -> None:
    router = make("")
    long = "the cat eats " * 300
    assert list(router.route(long).p_right) == ["large"]
    assert list(router.route("cat", max_tokens=600).p_right) == ["large"]
    local = make("", SMALL)
    with pytest.raises(ContextOverflowError, match="which with 1 of an answer fit none of small"):
        local.route(long)


def test_messages(make: Make) -> None:
    router = make("")
    asked = [
        {"role": "system", "content": "x = y"},
        {"role": "user", "content": [{"type": "text", "text": EASY[0]}]},
        {"role": "assistant", "content": None},
    ]
    assert router.route(asked).labels == router.route(EASY[0]).labels
    assert router.route(asked).tokens > router.route(EASY[0]).tokens
    assert router.route("").model
    for wrong, error in (([], ValueError), (["x"], TypeError), ([{"content": 5}], TypeError)):
        with pytest.raises(error, match="messages"):
            router.route(wrong)  # type: ignore[arg-type]


def test_a_model_is_right_as_often_as_its_quality_says(make: Make) -> None:
    heads = make("").heads
    for quality in (0.1, 0.55, 0.7, 0.97):
        share, shift = heads._shift(quality)
        weak, strong = heads._usual.T
        mean = np.mean(
            [sigmoid(float(w + share * (s - w) + shift)) for w, s in zip(weak, strong, strict=True)]
        )
        assert mean == pytest.approx(quality, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "models", "expected"),
    [
        ("", "", r"expected at least one \[\[models\]\]"),
        ("x = 1", SMALL, "unknown key 'x'"),
        ("", SMALL + SMALL, "two models are called 'small'"),
        ("", SMALL + 'url = "http://x"', "expected either target, a model of ours, or url"),
        ("", SMALL.replace("0.5", "1.5"), "'small': quality: expected 0.01..0.99, got 1.5"),
        ("", SMALL.replace("quality = 0.5", ""), "'small': quality is missing"),
        ("", LARGE.replace("price_out = 10", ""), "'large': price_out is missing"),
        ("", LARGE.replace("2.5", '"2.5"'), "price_in: expected int or float, got '2.5'"),
        ("", LARGE.replace("https:", "ftp:"), r"url: expected http\(s\)://..., got 'ftp:"),
        ("", SMALL.replace("small", "auto"), "name: expected one that is not"),
        ('reference = "x"', SMALL, "reference: expected one of small, got 'x'"),
        ('[policy]\nmode = "best"', SMALL, "policy: mode: expected one of cheapest"),
        ("[policy]\ntarget = true", SMALL, "target: expected int or float, got True"),
        ('[[rules]]\nuse = ["small"]', SMALL, "expected a condition, such as match"),
        ('[[rules]]\nmatch = "("\nuse = ["small"]', SMALL, r"match: '\(': missing \)"),
        ('[[rules]]\nmatch = "x"\nuse = ["tag:y"]', SMALL, "expected a name or tag .* got 'tag:y'"),
        ('[[rules]]\nmatch = "x"', SMALL, "use: expected a name or tag"),
        ("[policy", SMALL, "expected TOML"),
    ],
)
def test_wrong_configurations(make: Make, text: str, models: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        make(text, models)


def test_wrong_heads(make: Make, tmp_path: Path, encoder: slmq.Encoder, heads: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_heads(tmp_path / "none")
    bad = tmp_path / "bad.npz"
    for data in (b"", b"no archive", heads.read_bytes()[:-30]):
        bad.write_bytes(data)
        with pytest.raises(DataError, match=r"bad.npz: no heads, or damaged"):
            load_heads(bad)
    stranger = sentence_folder(tmp_path / "s", dense=[(64, "Tanh")])
    config = make("").config
    with (
        slmq.load_encoder(stranger) as other,
        pytest.raises(DataError, match="gives other vectors"),
    ):
        Router(config, other)


def test_heads_from_a_log(make: Make, encoder: slmq.Encoder, tmp_path: Path) -> None:
    router = make("")
    entries: list[Any] = [
        {"text": text, "right": {"small": text in HARD, "large": i % 7 > 0}}
        for i, text in enumerate(EASY + HARD)
    ]
    found, trained = train_right(router.heads, encoder, [{}, *entries], Path("log"))
    assert [(m.name, m.rows) for m in trained] == [("large", 54), ("small", 54)]
    assert trained[1].log_loss < 0.5 * trained[1].usual_loss
    found.save(tmp_path / "mine.npz")
    text = SMALL.replace("quality = 0.5", "") + LARGE
    path = tmp_path / "mine.toml"
    path.write_text(f'heads = "mine.npz"\n[policy]\ntarget = 0.6\n{text}', "utf-8")
    with Router.open(path, encoder) as mine:  # now the small one is right about what is hard
        assert mine.route(HARD[0]).model == "small"
        assert mine.route(EASY[0]).p_right["small"] < 0.4
    assert encoder.embed("still open").shape == (64,)
    for wrong, expected in (
        ([], 'expected lines with "text" and "right"'),
        (entries[:10], "expected at least 20 judged prompts"),
        ([{"text": 5, "right": {}}], "line 1: expected"),
        ([{"text": "x", "right": {"small": 1}}], "line 1: expected"),
    ):
        with pytest.raises(DataError, match=f"log: .*{expected}"):
            train_right(router.heads, encoder, wrong, Path("log"))


def entry(router: Router, text: str, answered: str | None, **more: Any) -> Any:
    decision = router.route(text)
    return {
        **entry_of(
            router.config, decision, id="r", answered=answered, tokens_in=1000, tokens_out=100,
            reference_right=router.right(decision, "large"), text=text, failures={},
        ),
        **more,
    }  # fmt: skip


def test_saving_and_quality_are_told_together(make: Make, tmp_path: Path) -> None:
    router = make("[policy]\ntarget = 0.6")
    log = tmp_path / "log.jsonl"
    ledger = Ledger(log)
    for text, answered, more in (
        (EASY[0], "small", {"right": {"small": True, "large": True}}),
        (EASY[1], "small", {"right": {"small": False, "large": True}}),
        (HARD[0], "large", {}),
        (EASY[2], "large", {"failures": {"small": "down"}}),
    ):
        ledger.write(entry(router, text, answered, **more))
    with log.open("a", encoding="utf-8") as file:
        file.write('{"cut sho')
    found = report_of(read_log(log), log)
    assert (found.requests, found.fallbacks, found.failed) == (4, 1, 0)
    price = (1000 * 2.5 + 100 * 10) / 1e6
    assert found.cost == pytest.approx(2 * price)
    assert found.reference_cost == pytest.approx(4 * price)
    assert found.saving == pytest.approx(0.5)
    assert 0.5 < found.quality_kept <= 1
    assert (found.judged, found.judged_right, found.judged_reference_right) == (2, 0.5, 1.0)
    assert found.models == {"small": 2, "large": 2}
    assert str(found).startswith("4 requests: 50.0% of the cost of large saved, ")
    assert (
        "of its quality kept; of 2 judged requests 50.0% were right, with large alone 100.0%"
        in (str(found))
    )
    unjudged = report_of([{k: v for k, v in e.items() if k != "right"} for e in read_log(log)], log)
    assert str(unjudged).endswith("no answer was judged, so quality is an estimate of the heads")
    for data, expected in (
        ("", "expected lines of a router's log, found none"),
        ('{"chosen": "x"}\n', "request 1: KeyError: 'shadow'"),
        ("no\n{}\n", "line 1: expected JSON"),
        ("[]\n{}\n", r"line 1: expected an object, got \[\]"),
    ):
        log.write_text(data, "utf-8")
        with pytest.raises(DataError, match=rf"log.jsonl: {expected}"):
            report_of(read_log(log), log)


def test_plain_features_are_finite() -> None:
    for text in ("", " ", "\n" * 9999, "A. x\nB. y", "猫" * 5000, "1+1=2 def f(): ```", "\0"):
        found = plain_features(text)
        assert found.shape == (len(NAMES),)
        assert np.isfinite(found).all()
        assert 0 <= found.min() <= found.max() <= 4


def test_paths_are_those_of_the_configuration(make: Make, tmp_path: Path) -> None:
    make('log = "a/log.jsonl"\nencoder = "x"')
    config = read_config(tmp_path / "router.toml")
    assert (config.log, config.encoder, config.reference) == (
        tmp_path / "a" / "log.jsonl", "x", "large",
    )  # fmt: skip


def test_the_heads_of_the_package_say_where_they_come_from() -> None:
    heads = load_heads()
    assert heads.encoder == "all-minilm-l6-v2"
    assert heads.facts["sources"].keys() == {"task", "domain", "usual", "languages"}
    assert (len(heads.facts["task"]), len(heads.facts["domain"])) == (10, 14)
    assert heads.facts["measured"]["languages"]["accuracy"] > 0.94
    assert heads.facts["measured"]["domain"]["accuracy"] > 0.8


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat eats fish, and the dog looks on.", "en"),
        ("Die Katze frisst den Fisch, und der Hund schaut zu.", "de"),
        ("El gato come pescado y el perro mira.", "es"),
        ("吾輩は猫である。名前はまだ無い。", "ja"),
        ("Кошка ест рыбу, а собака смотрит.", "ru"),
        ("고양이가 생선을 먹고 개가 바라본다.", "ko"),
    ],
)
def test_languages(text: str, language: str) -> None:
    heads = load_heads()
    assert heads._language.language_of(text)[0] == language


def test_no_language_in_numbers() -> None:
    assert load_heads()._language.language_of("12 + 34 = ?") == ("", 0.0)


@pytest.mark.slow
def test_the_real_router(minilm_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(f"[policy]\ntarget = 0.75\n{SMALL}{LARGE}", "utf-8")
    with slmq.load_encoder(minilm_path) as encoder, Router.open(path, encoder) as router:
        tasks = {
            "Write a Java function that reverses a linked list.": "code",
            "Summarize the following report in two sentences.": "summarization",
            "What is the capital of Peru?": "question_answering",
            "What is 23 times 19?": "mathematics",
            "Hello, good morning!": "conversation",
        }
        for text, task in tasks.items():
            assert router.route(text).labels.task == task
        law = router.route("In international law, when may a state use force in self-defence?")
        assert law.labels.domain == "law"
        hard = router.route("Find the degree of the field extension Q(sqrt 2, sqrt 3) over Q.")
        easy = router.route("What is the capital of Peru?")
        assert hard.labels.complexity > easy.labels.complexity
        assert hard.p_right["small"] < easy.p_right["small"] < easy.p_right["large"]


def test_a_column_that_hardly_varies_is_left_alone() -> None:
    """MiniLM has one: what rounding makes of it would get weights of millions."""
    rng = np.random.default_rng(2)
    y = (np.arange(200) % 2).astype(np.int64)
    x = np.stack([rng.normal(y, 0.5), 0.1 + rng.normal(0, 1e-8, 200), np.ones(200)], axis=1)
    weights, _, _ = fitted_head(x, y, 2)
    assert np.abs(weights[:, 0]).min() > 0.5
    assert np.abs(weights[:, 1:]).max() < 0.1


def test_the_heads_of_the_package_have_weights_of_a_usual_size() -> None:
    arrays = load_heads().arrays
    for name, values in arrays.items():
        if name.endswith("weights") and not name.startswith("languages"):
            assert np.abs(values).max() < 1000, name
