"""Decoders that say whether a document fits a query, beside sentence-transformers' CrossEncoder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_files import write_json
from encoder_golden import open_runner
from gguf_writer import write_gguf
from numpy_weights import read_safetensors
from places import GOLDENS
from reranker_cases import CASES, RerankerCase

import slmq
from slmq import CheckpointError, ContextOverflowError, UnsupportedModelError
from slmq.embedding.folder import SentenceFolder
from slmq.embedding.loading import open_encoder
from slmq.embedding.options import EncoderOptions
from slmq.embedding.runner import EncodedText
from slmq.embedding.texts import TextEncoder
from slmq.embedding.verdict import INSTRUCTION, PROMPT, pair_prompts
from slmq.models import qwen3
from slmq.tokenizer import Tokenizer

FOLDER = GOLDENS / "rerankers"
ISAS = [name for name, table in slmq.isa.items() if table is not None]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BY_NAME = {case.name: case for case in CASES}


def wanted(case: RerankerCase) -> dict[str, dict[str, float]]:
    """Scores by query and document."""
    found: dict[str, dict[str, float]] = {}
    for query, document, score in json.loads((FOLDER / case.name / "scores.json").read_text()):
        found.setdefault(query, {})[document] = score
    return found


def scores_of(path: Path, case: RerankerCase, isa: str | None = None, **options: Any) -> Any:
    """The same by us."""
    encoder = open_encoder(path, EncoderOptions(**options), isa=isa)
    with encoder:
        return {
            query: {
                ranked.text: ranked.score
                for ranked in encoder.rerank(query, documents, instruction=case.instruction)
            }
            for query, documents in wanted(case).items()
        }


@cases
def test_scores_are_those_of_the_library(case: RerankerCase) -> None:
    found = scores_of(FOLDER / case.name, case, format="f32")
    for query, scores in wanted(case).items():
        assert found[query].keys() == scores.keys()
        spread = 1 if max(map(abs, scores.values())) <= 1 else max(map(abs, scores.values()))
        for document, score in scores.items():
            assert found[query][document] == pytest.approx(score, abs=1e-5 * spread)
        assert len({round(score, 4) for score in scores.values()}) > 2  # they tell documents apart


@pytest.mark.parametrize("format", ["f32", None])
@cases
def test_verdicts_have_the_same_bits_everywhere(case: RerankerCase, format: Any) -> None:
    folder = FOLDER / case.name
    want = scores_of(folder, case, "scalar", format=format, n_threads=1)
    for isa in ISAS:
        for threads in (1, 2):
            assert scores_of(folder, case, isa, format=format, n_threads=threads) == want, isa
    with slmq.load_encoder(folder, format=format) as encoder:
        for query, scores in want.items():
            given = {"instruction": case.instruction}
            for document, score in scores.items():
                assert encoder.rerank(query, [document], **given)[0].score == score
            many = encoder.rerank(query, [*scores, *reversed(scores)] * 9, **given)
            assert all(one.score == scores[one.text] for one in many)
            assert [one.score for one in many] == sorted((o.score for o in many), reverse=True)


@cases
def test_packed_folders_judge_alike(case: RerankerCase, tmp_path: Path) -> None:
    kept = "f32" if case.dtype == "float32" else "f16"
    packed = slmq.convert(FOLDER / case.name, tmp_path / "packed")
    assert scores_of(packed, case) == scores_of(FOLDER / case.name, case, format=kept)
    rounded = slmq.quantize(FOLDER / case.name, tmp_path / "int8", format="int8")
    for query, scores in scores_of(rounded, case).items():
        for document, score in scores.items():
            assert score == pytest.approx(wanted(case)[query][document], abs=0.3)


def test_only_rows_of_the_words_are_computed() -> None:
    with slmq.load_encoder(FOLDER / "tied_sigmoid", format="f32") as encoder:
        assert encoder._open.body.verdict.n == 2
        encoder.rerank("a", ["b"])
        (plan,) = encoder._open._plans.values()
        assert plan.native.logits().shape[1] == 2
    with slmq.load_encoder(FOLDER / "yes_alone_default_prompt") as encoder:
        assert encoder._open.body.verdict.n == 1


def test_instructions() -> None:
    with slmq.load_encoder(FOLDER / "official", format="f32") as encoder:
        plain = encoder.rerank("a cat", ["b"])[0].score
        usual = "Given a web search query, retrieve relevant passages that answer the query"
        assert encoder.rerank("a cat", ["b"], instruction=usual)[0].score == plain
        assert encoder.rerank("a cat", ["b"], instruction="Be strict.")[0].score != plain
    with (
        slmq.load_encoder(FOLDER / "side_by_side") as encoder,
        pytest.raises(ValueError, match=r"instruction: expected none, as .* has no prompt for it"),
    ):
        encoder.rerank("a", ["b"], instruction="c")


def test_long_documents(tmp_path: Path) -> None:
    """Only the document is cut, and the question behind it stays."""
    folder = tmp_path / "m"
    shutil.copytree(FOLDER / "tied_sigmoid", folder)
    length = json.loads((folder / "sentence_bert_config.json").read_text())
    write_json(folder / "sentence_bert_config.json", length | {"max_seq_length": 200})
    with slmq.load_encoder(folder, format="f32") as encoder:
        with pytest.raises(ContextOverflowError, match=r"text 1 has [0-9]+ tokens with the query"):
            encoder.rerank("cat?", ["a", "dog " * 99])
        with pytest.raises(ContextOverflowError, match=r"text 0 has at least [0-9]+ tokens"):
            encoder.rerank("cat?", ["dog " * 99_999])
        cut = encoder.rerank("cat?", ["dog " * 99_999], truncate=True)[0].score
        around = len(encoder.tokenizer.encode(encoder._pair_prompts.written("cat?", "")))
        left = ("dog " * 99)[: 200 - around]  # a token is a letter
        assert encoder.rerank("cat?", [left])[0].score == cut
        with pytest.raises(ContextOverflowError, match="leave no room for a document in 200"):
            encoder.rerank("cat?" * 99, ["a"], truncate=True)
        with pytest.raises(TypeError, match="text 1: expected a str, got NoneType"):
            encoder.rerank("cat?", ["a", None])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="query: expected a str, got int"):
            encoder.rerank(5, ["a"])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="docs: expected several texts, got one str"):
            encoder.rerank("cat?", "a")
        assert encoder.rerank("cat?", []) == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "'true_token_id': expected int, found None"),
        ({"true_token_id": -1}, "'true_token_id': expected 0"),
        ({"true_token_id": 1, "false_token_id": "no"}, "'false_token_id'"),
        ({"true_token_id": 1, "false_token_id": 9999}, "expected tokens below [0-9]+ as the words"),
    ],
)
def test_words_that_make_no_sense(tmp_path: Path, config: Any, expected: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(FOLDER / "tied_sigmoid", folder)
    write_json(folder / "1_LogitScore" / "config.json", config)
    with pytest.raises(CheckpointError, match=expected):
        slmq.load_encoder(folder)


def test_a_template_that_shows_no_pair(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(FOLDER / "tied_sigmoid", folder)
    for path in folder.glob("chat_template*"):
        path.unlink()
    told = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", told | {"chat_template": "{{ messages|length }}"})
    with pytest.raises(UnsupportedModelError, match="shows no messages of the roles 'query'"):
        slmq.load_encoder(folder)


def test_a_decoder_without_marks_of_chats_compares_vectors(tmp_path: Path) -> None:
    """Nothing says that it was made to judge."""
    folder = tmp_path / "m"
    shutil.copytree(FOLDER / "official", folder)
    text = (folder / "tokenizer.json").read_text("utf-8").replace("<|im_end|>", "<|over|>")
    (folder / "tokenizer.json").write_text(text, "utf-8")
    with slmq.load_encoder(folder) as encoder:
        assert encoder._open.body.verdict is None
        assert encoder.rerank("a cat", ["a cat"])[0].score == pytest.approx(1, abs=1e-6)


def test_it_still_embeds_and_writes() -> None:
    folder = FOLDER / "tied_sigmoid"
    with slmq.load_encoder(folder, format="f32") as encoder:
        mean = encoder.states("a cat").mean(axis=0)
        assert np.allclose(encoder.embed("a cat"), mean, atol=1e-6)
    with slmq.load(folder) as model:
        assert isinstance(model.generate("a", max_tokens=2, temperature=0).text, str)


# --- GGUF files ------------------------------------------------------------------------------


def gguf_of(case: str, path: Path, labels: list[str]) -> Path:
    """A reranker as llama.cpp's converter writes it: two rows of the head, and no others."""
    folder = FOLDER / case
    config = json.loads((folder / "config.json").read_text())
    words = json.loads((folder / "1_LogitScore" / "config.json").read_text())
    tensors = {
        qwen3.GGUF.name(name): np.asarray(values, np.float32)
        for name, values in read_safetensors(folder / "model.safetensors").items()
        if name != "lm_head.weight"
    }
    rows = {"yes": words["true_token_id"], "no": words["false_token_id"]}
    tied = tensors["token_embd.weight"]
    tensors["cls.output.weight"] = np.stack([tied[rows.get(name, 0)] for name in labels])
    told = {
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_parameters"]["rope_theta"],
        "pooling_type": 4,
        "classifier.output_labels": labels,
    }
    named = {f"qwen3.{key}": value for key, value in told.items()}
    return write_gguf(path, {"general.architecture": "qwen3", **named}, tensors)


@pytest.mark.parametrize("labels", [["yes", "no"], ["no", "yes"]])
def test_gguf_files_give_the_verdicts_of_the_folder(labels: list[str], tmp_path: Path) -> None:
    path = gguf_of("tied_sigmoid", tmp_path / "m.gguf", labels)
    ids = [np.arange(5, 5 + n, dtype=np.int32) for n in (9, 40)]
    texts = [EncodedText(one, np.zeros_like(one)) for one in ids]
    with slmq.load_encoder(FOLDER / "tied_sigmoid", format="f32") as encoder:
        want = list(encoder._open.verdicts(texts))
    got = list(open_runner(path, format="f32").verdicts(texts))
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def test_gguf_heads_of_other_labels(tmp_path: Path) -> None:
    path = gguf_of("tied_sigmoid", tmp_path / "m.gguf", ["a", "b"])
    with pytest.raises(UnsupportedModelError, match=r"a head with the labels \['a', 'b'\]"):
        open_runner(path)


def test_the_prompt_that_a_gguf_file_holds() -> None:
    """With its instruction, in whose place another may stand."""
    tokenizer = slmq.load_encoder(FOLDER / "official").tokenizer
    listed = SentenceFolder(FOLDER, listed=True)

    def prompts(template: str) -> Any:
        parts = replace(tokenizer.parts, templates={"rerank": template})
        return pair_prompts(listed, True, TextEncoder(Tokenizer(parts), 1024))

    usual = prompts(PROMPT.replace("{instruction}", INSTRUCTION))
    asked = ("a {document}?", "{query} b")
    plain = PROMPT.format(instruction=INSTRUCTION, query=asked[0], document=asked[1])
    assert usual.written(*asked) == plain
    assert usual.written(*asked, "Be strict.") == plain.replace(INSTRUCTION, "Be strict.")
    other = prompts("Q {query} D {document}")
    assert other.written(*asked) == "Q a {document}? D {query} b"
    assert not other.takes_instruction
