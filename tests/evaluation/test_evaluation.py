"""slmq.evaluate against whole matrices of logits, and files that it must refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import slmq
from slmq.cli.app import app
from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.errors import ContextOverflowError, DataError
from slmq.evaluation import Evaluation, Prompt, prepare
from slmq.evaluation.harness import request_of
from slmq.evaluation.likelihood import Request, score, shared_prefix

SST2 = [("a fine film", 1), ("dull", 0), ('it \'s "art" , they say', 0), ("a joy", 1)] * 3
LAMBADA = [
    ("The cat sat on the", "mat"),
    ("He said \u201c", "no\u201d\nthen"),
    ("One two", "three"),
]
CHOICES = [
    ("What is it?", ["a cat", "a very long answer", "x"], 1),
    ("Which?", ["yes", "no"], 0),
    ("\u00fcber", ["A", "B", "C", "DD"], 3),
]


@pytest.fixture(scope="module")
def engine(tiny_model_path: Path) -> Iterator[Engine]:
    opened = open_engine(tiny_model_path, LoadOptions(n_ctx=600))
    yield opened
    opened.close()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A file of each task."""
    sst2 = tmp_path / "dev.tsv"
    sst2.write_text("".join(f"{s}\t{label}\n" for s, label in SST2), "utf-8")
    found = {"sst2": sst2}
    rows: dict[str, list[dict[str, Any]]] = {
        "lambada": [{"context": c, "continuation": w} for c, w in LAMBADA],
        "choices": [{"question": q, "options": o, "answer": a} for q, o, a in CHOICES],
    }
    for name, values in rows.items():
        found[name] = write_lines(tmp_path / f"{name}.jsonl", values)
    return found


def write_lines(path: Path, values: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")
    return path


def by_hand(engine: Engine, prompt: str, option: str) -> tuple[float, bool]:
    """Log-probability of the bytes of an option, and whether greedy decoding says them."""
    ids = engine.tokenizer.encode(prompt + option, add_special=False)
    logits = engine.feed(engine.sequence(), ids, logits="all").astype(np.float64)
    begin = len(engine.tokenizer.encode(prompt, add_special=False))
    logs = [
        logits[i - 1, ids[i]] - np.log(np.exp(logits[i - 1]).sum()) for i in range(begin, len(ids))
    ]
    greedy = all(logits[i - 1].argmax() == ids[i] for i in range(begin, len(ids)))
    return float(sum(logs)), greedy


def texts(task: str) -> list[tuple[str, list[str], int]]:
    """Prompts, options and answers, written out once more."""
    if task == "sst2":
        question = "\nQuestion: Is this sentence positive or negative?\nAnswer:"
        return [(s + question, [" negative", " positive"], label) for s, label in SST2]
    if task == "lambada":
        return [(context, [f" {word}"], 0) for context, word in LAMBADA]
    return [(f"Question: {q}\nAnswer:", [f" {o}" for o in opts], a) for q, opts, a in CHOICES]


def stderr(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("task", ["lambada", "sst2", "choices"])
@pytest.mark.parametrize("shots", [0, 1])
def test_numbers_are_those_of_whole_sequences(
    engine: Engine, files: dict[str, Path], task: str, shots: int
) -> None:
    items = texts(task)
    shown = "".join(f"{p}{o[a]}\n\n" for p, o, a in items[:shots])
    found = slmq.evaluate(engine, task, files[task], shots=shots)
    assert len(found.samples) == len(items) - shots
    right, losses, norm, per_token = [], [], [], []
    for (prompt, options, answer), sample in zip(items[shots:], found.samples, strict=True):
        logs, greedy = zip(*(by_hand(engine, shown + prompt, o) for o in options), strict=True)
        for one, log, says in zip(sample.likelihoods, logs, greedy, strict=True):
            assert one.log_probability == pytest.approx(log, rel=1e-9)
            assert one.greedy == says
        right.append(greedy[0] if len(options) == 1 else int(np.argmax(logs)) == answer)
        losses.append(-logs[0])
        lengths = [len(option) - 1 for option in options]
        norm.append(int(np.argmax(np.divide(logs, lengths))) == answer)
        lengths = [len(option.encode()) for option in options]
        per_token.append(int(np.argmax(np.divide(logs, lengths))) == answer)
        assert [one.tokens for one in sample.likelihoods] == lengths
    assert found.metrics["acc"].value == pytest.approx(np.mean(right))
    assert found.metrics["acc"].standard_error == pytest.approx(stderr(right))
    assert (set(found.metrics) - {"acc"}) == {
        "lambada": {"perplexity"}, "sst2": set(), "choices": {"acc_norm", "acc_token"},
    }[task]  # fmt: skip
    if task == "lambada":
        perplexity = math.exp(np.mean(losses))
        assert found.metrics["perplexity"].value == pytest.approx(perplexity)
        error = perplexity * stderr(losses)
        assert found.metrics["perplexity"].standard_error == pytest.approx(error)
    if task == "choices":
        assert found.metrics["acc_norm"].value == pytest.approx(np.mean(norm))
        assert found.metrics["acc_token"].value == pytest.approx(np.mean(per_token))


def outcome(found: Evaluation) -> dict[str, Any]:
    return found.as_json() | {"seconds": 0, "samples": [s.as_json() for s in found.samples]}


@pytest.mark.parametrize("task", ["sst2", "choices"])
def test_threads_and_batches_change_nothing(
    engine: Engine, tiny_model_path: Path, files: dict[str, Path], task: str
) -> None:
    wanted = outcome(slmq.evaluate(engine, task, files[task], shots=2))
    three = open_engine(tiny_model_path, LoadOptions(n_threads=3, n_ctx=600))
    three.chunk = 17  # shorter than an item: every context is cut, every option runs by itself
    try:
        assert outcome(slmq.evaluate(three, task, files[task], shots=2)) == wanted
    finally:
        three.close()


def test_what_items_share_is_read_once(
    engine: Engine, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    run = Engine.run

    def count(self: Engine, batch: Any) -> Any:
        fed.extend(len(tokens) for _, tokens, _ in batch)
        return run(self, batch)

    monkeypatch.setattr(Engine, "run", count)
    prompts = prepare("sst2", files["sst2"], shots=4)
    bare = prepare("sst2", files["sst2"])[4:]
    slmq.evaluate(engine, "sst2", files["sst2"], shots=4)
    shown = len(prompts[0].text) - len(bare[0].text)
    answers = 2 * len("positive") * len(bare)  # the last byte of an option is only looked up
    # Sentences begin with "a" or not: their beginnings may be shared too, where all have them.
    assert sum(fed) == shown + sum(len(prompt.text.encode()) for prompt in bare) + answers


def test_sequences_give_their_pages_back(engine: Engine, files: dict[str, Path]) -> None:
    before = engine.plan.cache.pages_in_use
    slmq.evaluate(engine, "choices", files["choices"])
    assert engine.plan.cache.pages_in_use == before


def test_score_of_long_answers_and_contexts(engine: Engine) -> None:
    """A context beyond one run, answers beyond one block of logits, single tokens among others."""
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 256, 400).tolist()
    requests = [
        Request(ids[:380], [ids[380:]]),
        Request(ids[:9], [ids[9:100], ids[100:101], ids[200:203]]),
        Request(ids[:2], [ids[2:3]]),
    ]
    chunk, engine.chunk = engine.chunk, 64
    try:
        found = list(score(engine, requests))
    finally:
        engine.chunk = chunk
    for request, likelihoods in zip(requests, found, strict=True):
        for option, likelihood in zip(request.options, likelihoods, strict=True):
            whole = request.context + option
            logits = engine.feed(engine.sequence(), whole, logits="all").astype(np.float64)
            rows = logits[len(request.context) - 1 : -1]
            logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
            wanted = logs[np.arange(len(option)), option].sum()
            assert likelihood.log_probability == pytest.approx(wanted, rel=1e-9)
            assert likelihood.tokens == len(option)
    assert list(score(engine, [])) == []


def test_shared_prefix() -> None:
    assert shared_prefix([]) == []
    assert shared_prefix([[1, 2]]) == [1, 2]
    assert shared_prefix([[1, 2, 3], [1, 2], [1, 2, 9]]) == [1, 2]
    assert shared_prefix([[2], [1]]) == []


# ------------------------------------------------------------------ prompts


def test_shots_come_from_the_head_or_from_another_file(
    files: dict[str, Path], tmp_path: Path
) -> None:
    head = prepare("sst2", files["sst2"], shots=2, limit=3)
    (first, options, right), (second, _, other) = texts("sst2")[:2]
    shown = f"{first}{options[right]}\n\n{second}{options[other]}\n\n"
    assert [p.text for p in head] == [shown + text for text, _, _ in texts("sst2")[2:5]]
    train = tmp_path / "train.tsv"
    train.write_text("".join(f"sentence {i}\t{i % 2}\n" for i in range(50)), "utf-8")
    drawn = [
        prepare("sst2", files["sst2"], shots=5, train=train, seed=seed)[0].text
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    numbers = [int(line.split()[1]) for line in drawn[0].split("\n") if "sentence " in line[:9]]
    # Fixed for good: numbers of a seed are compared between machines and years.
    assert numbers == [44, 38, 6, 34, 14]
    assert len(prepare("sst2", files["sst2"], shots=5, train=train)) == len(SST2)


def test_templates(files: dict[str, Path]) -> None:
    prompt = prepare("choices", files["choices"], template="{question} {x}?{answer}")[0]
    assert (prompt.text, prompt.options[0]) == ("What is it? {x}?", "a cat")
    spaces = prepare("choices", files["choices"], template="{question}:  {answer}")[0]
    assert (spaces.text, spaces.options[0]) == ("What is it?:", "  a cat")
    for template in ("{question}", "{answer}", "{question}{answer}.", "{sentence}{answer}"):
        with pytest.raises(ValueError, match=r"expected \{question\} and, at the end, \{answer\}"):
            prepare("choices", files["choices"], template=template)


def test_files_may_be_written_in_several_ways(tmp_path: Path) -> None:
    def items(task: str, name: str, content: str) -> list[tuple[str, tuple[str, ...], int]]:
        path = tmp_path / name
        path.write_text(content, "utf-8", newline="")
        return [(p.item.text, p.item.options, p.item.answer) for p in prepare(task, path)]

    labels = ("negative", "positive")
    wanted = [('a "b', labels, 1), ("c", labels, 0)]
    assert items("sst2", "a.tsv", 'a "b\t1\nc\t0\n') == wanted
    assert (
        items("sst2", "b.tsv", '\ufefflabel\tsentence\r\npositive\ta "b\r\n\r\n0\tc \r\n') == wanted
    )
    assert items("sst2", "c.csv", '"a ""b",1\nc,negative\n') == wanted
    rows = [{"sentence": 'a "b', "label": 1, "idx": 7}, {"sentence": "c", "label": "0"}]
    assert items("sst2", "d.json", json.dumps(rows)) == wanted
    wanted = [("Q\nx", ("one", "two"), 1), ("R", ("p", "q", "r"), 2)]
    assert (
        items("choices", "e.csv", 'question,A,B,C,answer\n"Q\nx",one,two,,B\nR,p,q,r,r\n') == wanted
    )
    csv = 'question,options,answer\n"Q\nx","[""one"", ""two""]",1\nR,"[""p"",""q"",""r""]",C\n'
    assert items("choices", "f.csv", csv) == wanted
    text = json.dumps({"text": "It was a\u2028 long day.\n"}, ensure_ascii=False)
    assert items("lambada", "g.jsonl", text) == [("It was a\u2028 long", ("day.",), 0)]


# ------------------------------------------------------------------ what is refused

ROW = '{"question": "q", "options": ["a", "b"], "answer": %s}\n'


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("sst2", "x.txt", "a\t1\n", r"expected a \.jsonl, \.json, \.csv or \.tsv file"),
        ("sst2", "x.tsv", "", "expected at least one row, found none"),
        ("sst2", "x.csv", "sentence,label\n", "expected at least one row, found none"),
        ("sst2", "x.jsonl", "\n", "expected at least one row, found none"),
        ("sst2", "x.tsv", "sentence\tmark\na\t1\n", "line 2: column 'label': expected 0"),
        ("sst2", "x.tsv", "a\t1\nb\n", "line 2: expected 2 columns"),
        ("sst2", "x.tsv", "a\t2\n", "line 1: column 'label': expected 0 .negative. or 1"),
        ("sst2", "x.tsv", " \t1\n", "line 1: column 'sentence': expected text"),
        ("sst2", "x.jsonl", '{"text": "a", "label": 1}', "line 1: expected a column 'sentence'"),
        ("sst2", "x.jsonl", "[1]", "line 1: expected an object, found list"),
        ("sst2", "x.jsonl", "{", "line 1: not valid JSON"),
        ("sst2", "x.json", '{"a": 1}', "expected a list of objects, found dict"),
        ("sst2", "x.json", "[" * 100_000, "not valid JSON"),
        ("sst2", "x.csv", 'sentence,label\n"a,1\n', "x.csv, line 2"),
        ("lambada", "x.jsonl", '{"context": "a"}', "expected a column 'continuation'"),
        ("lambada", "x.jsonl", '{"text": "word"}', "expected more than one word"),
        ("lambada", "x.jsonl", '{"context": 3, "continuation": "x"}', "expected text, got 3"),
        ("choices", "x.jsonl", '{"question": "q"}', "'options' with a list, or columns 'A', 'B'"),
        ("choices", "x.csv", "question,options,answer\nq,a,0\n", "expected a JSON list"),
        ("choices", "x.csv", "question,A,B,answer\nq,a,,A\n", "two options or more, found 1"),
        ("choices", "x.csv", "question,A,B,C,answer\nq,a,,c,A\n", "option 1: expected text"),
        ("choices", "x.jsonl", ROW % 2, "expected a letter, a number from 0 to 1 or the text"),
        ("choices", "x.jsonl", ROW % '"C"', "got 'C'"),
        ("choices", "x.jsonl", ROW % "true", "got True"),
        ("choices", "x.jsonl", ROW % '"AB"', "got 'AB'"),
        ("choices", "x.jsonl", ROW % "null", "got None"),
    ],
)
def test_bad_files_are_refused(
    tmp_path: Path, task: str, name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    with pytest.raises(DataError, match=message) as caught:
        prepare(task, path)
    assert str(path) in str(caught.value)


def test_bad_arguments_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    sst2 = files["sst2"]
    with pytest.raises(ValueError, match="task: expected one of lambada, sst2, choices; got 'x'"):
        prepare("x", sst2)
    with pytest.raises(ValueError, match="shots: expected an integer >= 0, got -1"):
        prepare("sst2", sst2, shots=-1)
    with pytest.raises(ValueError, match="limit: expected an integer >= 1, got 0"):
        prepare("sst2", sst2, limit=0)
    with pytest.raises(DataError, match="12 examples leave none of the 12 rows to ask"):
        prepare("sst2", sst2, shots=12)
    with pytest.raises(ValueError, match="which would give away the answers"):
        prepare("sst2", sst2, shots=1, train=sst2)
    train = tmp_path / "train.tsv"
    train.write_text("a\t1\n", "utf-8")
    with pytest.raises(DataError, match="at least 2 rows for the shots, found 1"):
        prepare("sst2", sst2, shots=2, train=train)
    with pytest.raises(DataError, match="cannot read"):
        prepare("sst2", tmp_path / "missing.tsv")


def test_an_item_beyond_the_context_is_refused(tiny_model_path: Path, tmp_path: Path) -> None:
    rows = [("x" * 60, "y"), ("x" * 100, " " + "y" * 28), ("x" * 100, "y" * 29)]
    values = [{"context": context, "continuation": word} for context, word in rows]
    path = write_lines(tmp_path / "long.jsonl", values)
    with slmq.load(tiny_model_path, n_ctx=128) as model:
        assert len(slmq.evaluate(model, "lambada", path, limit=2).samples) == 2
        with pytest.raises(ContextOverflowError, match=r"long\.jsonl, line 3: .* 129 tokens"):
            slmq.evaluate(model, "lambada", path)


def test_one_item_has_no_standard_error(engine: Engine, files: dict[str, Path]) -> None:
    found = slmq.evaluate(engine, "sst2", files["sst2"], limit=1)
    assert found.as_json()["acc_stderr"] is None


# ------------------------------------------------------------------ tokens of options


class Words:
    """A tokenizer whose tokens are given: what precedes a text is cut where `cuts` says."""

    def __init__(self, known: dict[str, list[int]], bos_id: int | None = None) -> None:
        self.known, self.bos_id, self.eos_ids = known, bos_id, frozenset({9, 7})

    def encode(self, text: str, **_: bool) -> list[int]:
        return list(self.known[text])


def request(tokenizer: Words, text: str, options: Sequence[str], bos: int | None) -> Request:
    item = prepare_item(options)
    return request_of(tokenizer, Prompt(text, tuple(options), item), bos)  # type: ignore[arg-type]


def prepare_item(options: Sequence[str]) -> Any:
    from slmq.evaluation.tasks import Item

    return Item("a", tuple(options), 0, "here")


def test_options_are_what_follows_the_shared_tokens() -> None:
    plain = Words({"a": [1, 2], "a b": [1, 2, 3], "a c": [1, 2, 4, 5]})
    assert request(plain, "a", [" b", " c"], None) == Request([1, 2], [[3], [4, 5]])
    assert request(plain, "a", [" b", " c"], 8) == Request([8, 1, 2], [[3], [4, 5]])
    # The second option merges with the end of the prompt: both are scored from there.
    merging = Words({"a": [1, 2], "a b": [1, 2, 3], "a c": [1, 6]})
    assert request(merging, "a", [" b", " c"], None) == Request([1], [[2, 3], [6]])
    # Nothing is left in front: a text begins with BOS or with the end of the one before.
    alone = Words({"a": [1], "a b": [2], "a c": [3]})
    assert request(alone, "a", [" b", " c"], None) == Request([7], [[2], [3]])
    alone.bos_id = 5
    assert request(alone, "a", [" b", " c"], None) == Request([5], [[2], [3]])
    silent = Words({"a": [1, 2], "a b": [1, 2], "a c": [1, 2, 3]})
    with pytest.raises(DataError, match="here: the tokenizer has no token for the option ' b'"):
        request(silent, "a", [" b", " c"], None)


# ------------------------------------------------------------------ the command


def test_the_command_prints_what_the_library_finds(
    engine: Engine, tiny_model_path: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ["eval", str(tiny_model_path), "--task", "choices", "--file", str(files["choices"])]
    samples = tmp_path / "samples.jsonl"
    shown = CliRunner().invoke(app, [*arguments, "--json", "--samples", str(samples)])
    wanted = slmq.evaluate(engine, "choices", files["choices"])
    found = json.loads(shown.stdout)
    assert found.pop("model") == str(tiny_model_path)
    assert found | {"seconds": 0} == wanted.as_json() | {"seconds": 0}
    lines = samples.read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [s.as_json() for s in wanted.samples]
    people = CliRunner().invoke(app, [*arguments, "--limit", "2"])
    assert "acc_token" in people.stdout
    assert "2 items, 0-shot" in people.stdout


def test_the_command_names_the_fault_before_it_loads(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("a\t3\n", "utf-8")
    for task, message in (("sst2", "line 1: column 'label'"), ("x", "expected one of lambada")):
        arguments = ["eval", "no-such-model", "--task", task, "--file", str(path)]
        shown = CliRunner().invoke(app, arguments)
        assert shown.exit_code == 1
        assert message in shown.stderr
