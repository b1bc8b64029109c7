"""`slmq.load_encoder`: vectors of texts, prompts, long texts, heads, and what is refused."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_files import encoder_folder, rewrite_tensors, sentence_folder, write_json

import slmq
from slmq import CheckpointError, ClosedError, ContextOverflowError, UnsupportedModelError
from slmq.embedding.scores import sigmoid, softmax

TEXTS = ["A man is playing the guitar.", "the cat eats", "", "rain in paris, sun in paris?"]


def opened(path: Path, **options: Any) -> slmq.Encoder:
    return slmq.load_encoder(path, **{"format": "f32", "n_threads": 2, **options})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> slmq.Encoder:
    return opened(sentence_folder(tmp_path_factory.mktemp("plain") / "m"))


def lengths(rows: Any) -> Any:
    return np.linalg.norm(np.asarray(rows, np.float64), axis=-1)


def test_one_text_and_several(plain: slmq.Encoder) -> None:
    many = plain.embed(TEXTS)
    assert many.shape == (4, 64)
    assert many.dtype == np.float32
    np.testing.assert_allclose(lengths(many), 1, atol=1e-6)
    for text, row in zip(TEXTS, many, strict=True):
        assert np.array_equal(plain.embed(text), row)
    assert plain.embed([]).shape == (0, 64)
    assert np.array_equal(plain.embed(reversed(TEXTS)), many[::-1])
    assert repr(plain) == "<slmq.Encoder 'm', 64 dimensions>"


def test_vectors_are_means_of_hidden_states(plain: slmq.Encoder) -> None:
    for text in TEXTS:
        mean = plain.states(text).mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose(plain.embed(text, normalize=False), mean, atol=1e-6)
        np.testing.assert_allclose(plain.embed(text), mean / lengths(mean), atol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True}, lambda x: x[0]),
        ({"pooling_mode_lasttoken": True}, lambda x: x[-1]),
        ({"pooling_mode_max_tokens": True}, lambda x: x.max(axis=0)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, lambda x: x.sum(axis=0) / len(x) ** 0.5),
        (
            {"pooling_mode": "weightedmean"},
            lambda x: np.average(x, axis=0, weights=np.arange(1, len(x) + 1)),
        ),
        ({"pooling_mode": ["mean"]}, lambda x: x.mean(axis=0)),
    ],
)
def test_kinds_of_pooling(tmp_path: Path, pooling: Any, expected: Any) -> None:
    encoder = opened(sentence_folder(tmp_path / "m", pooling=pooling, normalize=False))
    for text, row in zip(TEXTS, encoder.embed(TEXTS), strict=True):
        np.testing.assert_allclose(row, expected(encoder.states(text).astype(float)), atol=3e-6)


def test_dense_layers(tmp_path: Path) -> None:
    path = sentence_folder(tmp_path / "m", dense=[(40, "Tanh"), (24, "Identity")])
    encoder = opened(path)
    from safetensors.numpy import load_file

    x = encoder.states(TEXTS[0]).mean(axis=0, dtype=np.float64)
    for folder, f in (("2_Dense", np.tanh), ("3_Dense", lambda v: v)):
        weights = load_file(path / folder / "model.safetensors")
        x = f(weights["linear.weight"] @ x + weights["linear.bias"])
    assert encoder.dimensions == 24
    np.testing.assert_allclose(encoder.embed(TEXTS[0]), x / lengths(x), atol=1e-6)


def test_fewer_dimensions(plain: slmq.Encoder) -> None:
    few = plain.embed(TEXTS, dimensions=10)
    whole = plain.embed(TEXTS, normalize=False)[:, :10]
    np.testing.assert_allclose(few, whole / lengths(whole)[:, None], atol=1e-6)
    for wrong in (0, 65, 1.5):
        with pytest.raises(ValueError, match=r"dimensions: expected 1..64 of 'm'"):
            plain.embed(TEXTS, dimensions=wrong)  # type: ignore[arg-type]


def test_prompts(tmp_path: Path) -> None:
    settings = {"prompts": {"query": "a dog ", "document": ""}, "default_prompt_name": "query"}
    encoder = opened(sentence_folder(tmp_path / "m", settings=settings))
    assert encoder.prompts == settings["prompts"]
    assert np.array_equal(encoder.embed("eats"), encoder.embed("a dog eats", prompt=""))
    assert np.array_equal(encoder.embed("eats", prompt="query"), encoder.embed("eats"))
    assert not np.array_equal(encoder.embed("eats", prompt="document"), encoder.embed("eats"))
    with pytest.raises(ValueError, match=r"the name of a prompt of 'm' \('query', "):
        encoder.embed("eats", prompt="Query")
    assert np.array_equal(encoder.encode("eats", prompt="a dog "), encoder.embed("eats"))
    assert np.array_equal(encoder.encode(["eats"], "query")[0], encoder.embed("eats"))


def test_a_prompt_that_is_not_pooled(tmp_path: Path) -> None:
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    settings = {"prompts": {"query": "a dog "}}
    encoder = opened(
        sentence_folder(tmp_path / "m", pooling=pooling, settings=settings, normalize=False)
    )
    states = encoder.states("a dog eats")  # [CLS] a dog eat ##s [SEP]: the first three do not count
    want = states[3:].mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(encoder.embed("eats", prompt="query"), want, atol=1e-6)


# --- long texts -----------------------------------------------------------------------------


def test_long_texts(plain: slmq.Encoder) -> None:
    long = "the cat eats " * 30
    with pytest.raises(
        ContextOverflowError,
        match="text 1 has 92 tokens with those around it, the model takes 64; truncate=True",
    ):
        plain.embed(["the cat", long])
    cut = plain.embed(["the cat", long], truncate=True)
    assert np.array_equal(cut[1], plain.embed("the cat eats " * 20 + "the cat"))
    assert np.array_equal(plain.encode(long), cut[1])
    # Two parts of 62 and 28 tokens.
    parts = ["the cat eats " * 20 + "the cat", "eats " + "the cat eats " * 9]
    vectors = plain.embed(parts).astype(np.float64)
    mean = (62 * vectors[0] + 28 * vectors[1]) / 90
    chunked = plain.embed(["the cat", long, "a dog"], chunk=True)
    np.testing.assert_allclose(chunked[1], mean / lengths(mean), atol=2e-6)
    assert np.array_equal(chunked[[0, 2]], plain.embed(["the cat", "a dog"]))
    with pytest.raises(ValueError, match="truncate, chunk: expected one of them"):
        plain.embed(long, truncate=True, chunk=True)


def test_a_text_of_ten_megabytes(plain: slmq.Encoder) -> None:
    """Refused and cut off by its beginning."""
    huge = "the cat eats " * 800_000
    with pytest.raises(ContextOverflowError, match=r"text 0 has at least [0-9]+ tokens"):
        plain.embed(huge)
    assert np.array_equal(plain.embed(huge, truncate=True), plain.embed(huge[:1000], truncate=True))
    blank = " " * 10_000_000 + "the cat"
    assert np.array_equal(plain.embed(blank), plain.embed("the cat"))


def test_any_number_of_texts_in_bounded_memory(plain: slmq.Encoder) -> None:
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        for i in range(10_000_000):
            taken = i
            yield TEXTS[i % 2]

    stream = plain.embed_stream(texts())
    want = plain.embed(TEXTS[:2])
    for i in range(500):
        assert np.array_equal(next(stream), want[i % 2])
    assert taken < 700
    with pytest.raises(TypeError, match="texts: expected several texts, got one str"):
        plain.embed_stream("a text")


def test_a_text_longer_than_a_usual_run(tmp_path: Path) -> None:
    """Of 512 rows."""
    folder = encoder_folder(tmp_path / "m", "windows_mean_pooled", "modernbert")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    write_json(folder / "config.json", config | {"max_position_embeddings": 3000})
    encoder = opened(folder)
    long = "the cat eats " * 400
    whole = encoder.embed([*TEXTS, long, *TEXTS])
    assert np.array_equal(whole[4], encoder.embed(long))
    assert np.array_equal(whole[:4], whole[5:])
    np.testing.assert_allclose(whole[4], encoder.states(long).mean(axis=0), atol=2e-6)


# --- threads, closing, bad input -------------------------------------------------------------


def test_several_threads(plain: slmq.Encoder) -> None:
    want = plain.embed(TEXTS)
    found: list[Any] = [None] * 6

    def work(i: int) -> None:
        found[i] = plain.embed(TEXTS * 30)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(rows, np.tile(want, (30, 1))) for rows in found)


def test_bad_texts(plain: slmq.Encoder) -> None:
    with pytest.raises(TypeError, match="text 2: expected a str, got int 7"):
        plain.embed(["a", "b", 7])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="lone surrogate"):
        plain.embed("\ud800")


@pytest.mark.parametrize("wrong", [None, 5, b"bytes"])
def test_what_is_no_list_of_texts(plain: slmq.Encoder, wrong: Any) -> None:
    kind = type(wrong).__name__
    with pytest.raises(TypeError, match=f"texts: expected texts, got {kind}"):
        plain.embed(wrong)
    with pytest.raises(TypeError, match=f"sentences: expected texts, got {kind}"):
        plain.encode(wrong)
    with pytest.raises(TypeError, match=f"docs: expected texts, got {kind}"):
        plain.rerank("a", wrong)
    with pytest.raises(TypeError, match=f"text 0: expected a str, got {kind}"):
        plain.embed([wrong])
    with pytest.raises(TypeError, match=f"query: expected a str, got {kind}"):
        plain.rerank(wrong, ["a"])


def test_vectors_that_cannot_be_compared(plain: slmq.Encoder) -> None:
    for wrong in (np.full(64, np.nan, np.float32), np.array([[np.inf] * 64])):
        with pytest.raises(ValueError, match="expected vectors of finite numbers, got NaN or inf"):
            plain.similarity("a", wrong)
    for strange in (np.zeros((2, 2, 64)), np.array(["a"]), np.zeros((3, 0))):
        with pytest.raises(ValueError, match=r"expected vectors, float32\[n, numbers\]; got"):
            plain.similarity(strange, "a")  # type: ignore[arg-type]
    assert plain.similarity([], ["a", "b"]).shape == (0, 2)
    for few in (0, 65, True):
        with pytest.raises(ValueError, match=r"truncate_dim: expected 1..64 of 'm'"):
            plain.encode("a", truncate_dim=few)
    for none in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="top_k: expected at least 1, got"):
            plain.rerank("a", ["b"], top_k=none)  # type: ignore[arg-type]


def test_a_prompt_that_is_not_pooled_in_parts_of_a_text(tmp_path: Path) -> None:
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    settings = {"prompts": {"query": "a dog "}}
    encoder = opened(sentence_folder(tmp_path / "m", pooling=pooling, settings=settings))
    want = encoder.embed(["eats", "the cat"], prompt="query")
    assert np.array_equal(encoder.embed(["eats", "the cat"], prompt="query", chunk=True), want)


def test_closed(tmp_path: Path) -> None:
    with opened(sentence_folder(tmp_path / "m")) as encoder:
        encoder.embed("a")
    for ask in (encoder.embed, encoder.encode, encoder.states, encoder.embed_stream):
        with pytest.raises(ClosedError, match="the model 'm' is closed"):
            ask(["a"] if ask == encoder.embed_stream else "a")  # type: ignore[operator]
    with pytest.raises(ClosedError, match="the model 'm' is closed"):
        encoder.rerank("a", [])


def test_int8_unless_asked_otherwise(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "m")
    whole = opened(folder).embed(TEXTS)
    default = slmq.load_encoder(folder).embed(TEXTS)
    assert np.array_equal(default, slmq.load_encoder(folder, format="int8").embed(TEXTS))
    assert (default * whole).sum(axis=1).min() > 0.999
    assert not np.array_equal(default, whole)
    # Older files also store the numbers of positions, which are no weights.
    numbers = {"embeddings__position_ids": np.arange(64)[None]}
    rewrite_tensors(folder / "model.safetensors", lambda name: [name], **numbers)
    assert np.array_equal(slmq.load_encoder(folder).embed(TEXTS), default)


def test_without_a_list_of_modules_pooling_is_the_mean(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "slmq"):
        encoder = opened(encoder_folder(tmp_path / "m"))
    assert "no modules.json says how the vectors of tokens become that of a text" in caplog.text
    mean = encoder.states("the cat").mean(axis=0)
    np.testing.assert_allclose(encoder.embed("the cat"), mean, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pooling": {"pooling_mode": "median"}}, UnsupportedModelError, "one kind of pooling"),
        (
            {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}},
            UnsupportedModelError,
            "found cls, max",
        ),
        (
            {"pooling": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}},
            CheckpointError,
            "expected word_embedding_dimension 64, as the model has, found 32; if the model",
        ),
        (
            {"pooling": {"word_embedding_dimension": "64", "pooling_mode_mean_tokens": True}},
            CheckpointError,
            "word_embedding_dimension",
        ),
        ({"dense": [(8, "Mish")]}, UnsupportedModelError, "Mish' is not supported; supported: "),
        ({"settings": {"default_prompt_name": "x"}}, CheckpointError, "default_prompt_name"),
        ({"settings": {"prompts": {"a": 1}}}, CheckpointError, "prompts: expected texts by name"),
        (
            {"settings": {"similarity_fn_name": "odd"}},
            UnsupportedModelError,
            "'odd' is not supported",
        ),
        ({"length": {"max_seq_length": "many"}}, CheckpointError, "max_seq_length"),
    ],
)
def test_folders_that_make_no_sense(
    tmp_path: Path, change: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        opened(sentence_folder(tmp_path / "m", **change))


@pytest.mark.parametrize(
    ("modules", "error", "message"),
    [
        ("{", CheckpointError, "cannot be read"),
        ([], CheckpointError, "expected a list of modules"),
        ([{"path": ""}], CheckpointError, "expected type and path"),
        ([{"type": "x.Transformer", "path": "../b"}], CheckpointError, "expected a folder inside"),
        ([{"type": "x.Transformer", "path": ""}, {"type": "x.CNN", "path": ""}],
         UnsupportedModelError, "a module of kind 'CNN' behind Transformer is not supported"),
        ([{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1"}],
         CheckpointError, "is missing"),
        ([{"type": "x.WordEmbeddings", "path": ""}], UnsupportedModelError, "behind nothing"),
    ],
)  # fmt: skip
def test_lists_of_modules_that_make_no_sense(
    tmp_path: Path, modules: Any, error: type[Exception], message: str
) -> None:
    folder = sentence_folder(tmp_path / "m")
    text = modules if isinstance(modules, str) else json.dumps(modules)
    (folder / "modules.json").write_text(text, "utf-8")
    with pytest.raises(error, match=message):
        opened(folder)


def test_models_of_the_other_kind(tmp_path: Path) -> None:
    encoder = encoder_folder(tmp_path / "m")
    with pytest.raises(UnsupportedModelError, match="bert is an encoder, which writes no text"):
        slmq.load(encoder)
    text = tmp_path / "text.txt"
    text.write_text("the cat eats " * 99, "utf-8")
    with pytest.raises(UnsupportedModelError, match="quantizing by a text needs a decoder"):
        slmq.quantize(encoder, tmp_path / "out", calibrate=text)
    both = encoder_folder(tmp_path / "b", "gemma3_both_ways", "headless")
    with pytest.raises(UnsupportedModelError, match="gemma3_text without an output head"):
        slmq.load(both)


# --- similarity and ranking ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity(tmp_path: Path, kind: str) -> None:
    settings = {"similarity_fn_name": kind}
    encoder = opened(sentence_folder(tmp_path / "m", settings=settings, normalize=False))
    a, b = (encoder.embed(texts).astype(np.float64) for texts in (TEXTS, TEXTS[1:]))
    gaps = a[:, None] - b
    want = {
        "cosine": a @ b.T / lengths(a)[:, None] / lengths(b),
        "dot": a @ b.T,
        "euclidean": -lengths(gaps),
        "manhattan": -np.abs(gaps).sum(axis=-1),
    }[kind]
    np.testing.assert_allclose(encoder.similarity(TEXTS, TEXTS[1:]), want, rtol=1e-5, atol=1e-5)
    one = encoder.similarity(TEXTS[0], encoder.embed(TEXTS[1:]))
    np.testing.assert_allclose(one, want[:1], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="expected vectors of one length, got 64 and 3"):
        encoder.similarity("a", np.zeros((1, 3), np.float32))


def test_ranking_by_vectors(plain: slmq.Encoder) -> None:
    ranked = plain.rerank("the cat eats", TEXTS)
    assert ranked[0].index == 1
    assert ranked[0].text == "the cat eats"
    assert ranked[0].score == pytest.approx(1, abs=1e-6)
    assert [r.score for r in ranked] == sorted((r.score for r in ranked), reverse=True)
    assert plain.rerank("the cat", TEXTS, top_k=2) == plain.rerank("the cat", TEXTS)[:2]
    assert plain.rerank("the cat", []) == []
    with pytest.raises(ValueError, match="top_k: expected at least 1, got 0"):
        plain.rerank("the cat", TEXTS, top_k=0)


def test_ranking_by_a_cross_encoder(tmp_path: Path) -> None:
    encoder = opened(encoder_folder(tmp_path / "m", "pairs_one_score"))
    ranked = encoder.rerank("the cat", TEXTS)
    by_pairs = encoder.classify([("the cat", text) for text in TEXTS])
    for r in ranked:
        assert by_pairs[r.index][0].score == r.score
    assert [r.score for r in ranked] == sorted((r.score for r in ranked), reverse=True)
    # The two texts are told apart by their types.
    joined = encoder.classify(["the cat the cat eats"])
    assert joined[0][0].score != by_pairs[1][0].score
    plainly = opened(
        encoder_folder(
            tmp_path / "n",
            "pairs_one_score",
            sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"},
        )
    )
    raw = {r.index: r.score for r in plainly.rerank("the cat", TEXTS)}
    for r in ranked:
        assert r.score == pytest.approx(1 / (1 + np.exp(-raw[r.index])), abs=1e-6)
    with pytest.raises(UnsupportedModelError, match=r"activation_fn 'torch\.Odd' is not supported"):
        opened(
            encoder_folder(
                tmp_path / "o",
                "pairs_one_score",
                sentence_transformers={"activation_fn": "torch.Odd"},
            )
        )


# --- heads ----------------------------------------------------------------------------------


def test_classify(tmp_path: Path) -> None:
    encoder = opened(encoder_folder(tmp_path / "m", "three_labels", "roberta"))
    assert encoder.task == "classify"
    assert encoder.labels == ["no", "maybe", "yes"]
    every = encoder.classify(TEXTS, top_k=None)
    for text, scored in zip(TEXTS, every, strict=True):
        assert sum(s.score for s in scored) == pytest.approx(1, abs=1e-6)
        assert sorted(s.label for s in scored) == ["maybe", "no", "yes"]
        assert encoder.classify(text) == scored[:1]
    many = opened(
        encoder_folder(
            tmp_path / "n",
            "three_labels",
            "roberta",
            problem_type="multi_label_classification",
        )
    )
    assert sum(s.score for s in many.classify("the cat", top_k=None)) != pytest.approx(1, abs=1e-3)
    with pytest.raises(UnsupportedModelError, match="tags needs a model with a head for it; this"):
        encoder.tags("the cat")
    with pytest.raises(UnsupportedModelError, match="rerank needs a model without a head"):
        encoder.rerank("the cat", TEXTS)
    with pytest.raises(ValueError, match="text 0: expected a pair, got 3 texts"):
        encoder.classify([("a", "b", "c")])  # type: ignore[list-item]


def test_labels_that_are_not_numbered(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'id2label': expected names of 0..1, found"):
        opened(
            encoder_folder(tmp_path / "m", "three_labels", "roberta", id2label={"0": "a", "2": "b"})
        )


def test_zero_shot(tmp_path: Path, plain: slmq.Encoder) -> None:
    nli = {"id2label": {"0": "CONTRADICTION", "1": "neutral", "2": "ENTAILMENT"}}
    encoder = opened(encoder_folder(tmp_path / "m", "three_labels", "roberta", **nli))
    found = encoder.zero_shot("the cat eats", ["dog", "cat"], template="the {} eats")
    assert {s.label for s in found} == {"dog", "cat"}
    assert sum(s.score for s in found) == pytest.approx(1, abs=1e-6)
    apart = encoder.zero_shot(
        "the cat eats", ["dog", "cat"], template="the {} eats", multi_label=True
    )
    pair = encoder.classify([("the cat eats", "the cat eats")], top_k=None)[0]
    scores = {s.label: s.score for s in pair}
    want = scores["ENTAILMENT"] / (scores["ENTAILMENT"] + scores["CONTRADICTION"])
    assert {s.label: s.score for s in apart}["cat"] == pytest.approx(want, abs=1e-5)
    by_vectors = plain.zero_shot("the cat eats", ["dog", "cat"], template="the {} eats")
    assert by_vectors[0].label == "cat"
    with pytest.raises(ValueError, match=r"expected at least one label and \{\} in the template"):
        plain.zero_shot("the cat", [])
    other = opened(encoder_folder(tmp_path / "n", "three_labels", "roberta"))
    with pytest.raises(UnsupportedModelError, match="zero_shot needs a label of entailment"):
        other.zero_shot("the cat", ["a"])


def test_tags(tmp_path: Path) -> None:
    labels = {"id2label": {"0": "O", "1": "B-PER", "2": "I-PER"}}
    encoder = opened(encoder_folder(tmp_path / "m", "tags_odd_sizes_relu", **labels))
    text = "Anna lives in Paris, the man plays."
    each = encoder.tags(text, aggregation="none")
    assert {tag.label for tag in each} <= {"B-PER", "I-PER"}
    for aggregation in ("simple", "first", "average", "max"):
        for tag in encoder.tags(text, aggregation=aggregation):
            assert tag.label == "PER"
            assert tag.text == text[tag.start : tag.end]
            assert 1 / 3 < tag.score <= 1
    assert len(each) >= len(encoder.tags(text))
    with pytest.raises(ValueError, match="aggregation: expected one of none, simple"):
        encoder.tags(text, aggregation="median")


def test_a_body_that_was_saved_under_the_name_of_a_class_with_a_head(tmp_path: Path) -> None:
    """As all-mpnet-base-v2 is: its configuration says MPNetForMaskedLM."""
    folder = encoder_folder(tmp_path / "m", "body", "mpnet", architectures=["MPNetForMaskedLM"])
    encoder = opened(folder)
    assert encoder.task is None
    assert encoder.embed("the cat").shape == (64,)
    lost = encoder_folder(
        tmp_path / "n", "body", "mpnet", architectures=["MPNetForSequenceClassification"]
    )
    with pytest.raises(CheckpointError, match=r"tensor 'classifier\.dense\.weight' is missing"):
        opened(lost)


def test_fill_mask(tmp_path: Path) -> None:
    encoder = opened(encoder_folder(tmp_path / "m", "masks_gelu_tanh"))
    assert encoder.mask_token == "[MASK]"
    (one,) = encoder.fill_mask("the [MASK] eats", top_k=3)
    assert [f.score for f in one] == sorted((f.score for f in one), reverse=True)
    two = encoder.fill_mask("the [MASK] eats [MASK]", top_k=100)
    assert len(two) == 2
    assert sum(f.score for f in two[0]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match=r"expected a mask \(\[MASK\]\) in the text"):
        encoder.fill_mask("the cat eats")
    with pytest.raises(ContextOverflowError):
        encoder.fill_mask("the [MASK] eats " * 200)


def test_probabilities_have_the_same_bits_everywhere() -> None:
    row = np.array([0.5, -3, 2, 80], np.float32)
    np.testing.assert_allclose(softmax(row), np.exp(row) / np.exp(row).sum(), atol=1e-7)
    np.testing.assert_allclose(sigmoid(row), 1 / (1 + np.exp(-row)), atol=1e-7)
