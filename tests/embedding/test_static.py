"""Static embeddings as model2vec stores them: the mean of rows of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_files import word_tokenizer, write_json
from places import GOLDENS
from safetensors.numpy import load_file, save_file
from static_cases import TEXTS as STATIC_TEXTS

import slmq
from slmq import CheckpointError, UnsupportedModelError
from slmq.embedding.loading import open_encoder
from slmq.embedding.options import EncoderOptions

TEXTS = ["A man is playing the guitar.", "the ☃ cat", "rain " * 700]
FOLDERS = GOLDENS / "tables"
CASES = sorted(path.parent.name for path in FOLDERS.glob("*/vectors.npz"))
ISAS = [name for name, table in slmq.isa.items() if table is not None]
TABLE = np.random.default_rng(3).normal(0, 1, (259, 48)).astype(np.float32)


def folder_of(target: Path, modules: bool = True, **tensors: Any) -> Path:
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True}
    write_json(target / "config.json", {**config, "seq_length": 1000000, "hidden_dim": 48})
    save_file(tensors or {"embeddings": TABLE}, target / "model.safetensors")
    word_tokenizer(259).save(str(target / "tokenizer.json"))
    write_json(target / "tokenizer_config.json", {"unk_token": "[UNK]"})
    if modules:
        kinds = {"StaticEmbedding": ".", "Normalize": "1_Normalize"}
        entries = [
            {
                "idx": i,
                "name": str(i),
                "path": place,
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, (kind, place) in enumerate(kinds.items())
        ]
        write_json(target / "modules.json", entries)
    return target


def wanted(text: str) -> Any:
    """Rows of all tokens but unknown ones, nothing around them."""
    ids = [i for i in word_tokenizer(259).encode(text, add_special_tokens=False).ids if i != 1]
    mean = TABLE[ids].mean(axis=0, dtype=np.float64)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("modules", [True, False])
def test_means_of_rows(tmp_path: Path, modules: bool) -> None:
    folder = folder_of(tmp_path / "m", modules)
    exact = slmq.load_encoder(folder, format="f32")
    assert exact.dimensions == 48
    for text, got in zip(TEXTS, exact.embed(TEXTS), strict=True):
        assert np.allclose(got, wanted(text), atol=1e-6)
        assert np.array_equal(exact.embed(text), got)
    rounded = slmq.load_encoder(folder).embed(TEXTS)
    assert (rounded * exact.embed(TEXTS)).sum(axis=1).min() > 0.999


def test_packed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    packed = slmq.convert(folder, tmp_path / "packed")
    want = slmq.load_encoder(folder, format="f32").embed(TEXTS)
    assert np.array_equal(slmq.load_encoder(packed).embed(TEXTS), want)


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_those_of_model2vec(name: str) -> None:
    want = np.load(FOLDERS / name / "vectors.npz")["vectors"]
    with slmq.load_encoder(FOLDERS / name, format="f32") as encoder:
        got = encoder.embed(STATIC_TEXTS)
        assert np.abs(got - want).max() < (2e-3 if name == "both_halves" else 1e-6)
        with pytest.raises(ValueError, match="text 1: expected a token that is known"):
            encoder.embed(["rain", "☃"])
    with slmq.load_encoder(FOLDERS / name) as encoder:
        rounded = encoder.embed(STATIC_TEXTS, normalize=True)
    lengths = np.linalg.norm(want, axis=1)
    assert ((rounded * want).sum(axis=1) / lengths).min() > 0.998


def test_rows_and_weights_of_tokens_are_what_they_say() -> None:
    """In double precision, of halves that model2vec itself adds up as halves."""
    tensors = load_file(FOLDERS / "both_halves" / "model.safetensors")
    table = tensors["embeddings"].astype(np.float64)
    with slmq.load_encoder(FOLDERS / "both_halves", format="f32") as encoder:
        for text in STATIC_TEXTS:
            ids = word_tokenizer(120).encode(text, add_special_tokens=False).ids
            ids = [i for i in ids if i != 1]
            mean = (table[tensors["mapping"][ids]] * tensors["weights"][ids, None]).mean(axis=0)
            assert np.allclose(encoder.embed(text), mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize("format", ["f32", None])
@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_on_every_isa(name: str, format: Any) -> None:
    def vectors(isa: str | None, threads: int, texts: list[str]) -> Any:
        options = EncoderOptions(format=format, n_threads=threads)
        with open_encoder(FOLDERS / name, options, isa=isa) as encoder:
            return encoder.embed(texts)

    want = vectors("scalar", 1, STATIC_TEXTS)
    for isa in ISAS:
        for threads in (1, 2):
            assert np.array_equal(vectors(isa, threads, STATIC_TEXTS), want), isa
    many = vectors(None, 2, STATIC_TEXTS[::-1] * 30)
    assert np.array_equal(many, np.tile(want[::-1], (30, 1)))
    for text, row in zip(STATIC_TEXTS, want, strict=True):
        assert np.array_equal(vectors(None, 2, [text])[0], row)


@pytest.mark.parametrize("name", CASES)
def test_parts_of_texts_leave_unknown_tokens_out(name: str) -> None:
    with slmq.load_encoder(FOLDERS / name, format="f32") as encoder:
        whole = encoder.embed(STATIC_TEXTS[:4])
        assert np.array_equal(encoder.embed(STATIC_TEXTS[:4], chunk=True), whole)
        with pytest.raises(ValueError, match="text 1: expected a token that is known"):
            encoder.embed(["rain", "☃"], chunk=True)


@pytest.mark.parametrize("name", CASES)
def test_packed_tables(name: str, tmp_path: Path) -> None:
    packed = slmq.convert(FOLDERS / name, tmp_path / "packed")
    kept = "f16" if name == "both_halves" else "f32"
    with slmq.load_encoder(packed) as one, slmq.load_encoder(FOLDERS / name, format=kept) as other:
        assert np.array_equal(one.embed(STATIC_TEXTS), other.embed(STATIC_TEXTS))
        long = STATIC_TEXTS[3] * 60
        assert np.array_equal(one.embed(long, chunk=True), other.embed(long, chunk=True))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"mapping": np.full(259, 300)}, r"'mapping': expected rows 0..258, found 300..300"),
        ({"mapping": np.full(259, -1)}, r"'mapping': expected rows 0..258, found -1..-1"),
        ({"mapping": np.full(259, 1 << 40)}, "expected integers of at most 16777216"),
        ({"mapping": np.zeros(9, np.int64)}, "expected vectors of 259 tokens, as the tokenizer"),
        ({"weights": np.ones(9, np.float32)}, "expected a row for each of 9 tokens, or a tensor"),
        ({"weights": np.full(259, np.nan, np.float32)}, "expected finite weights, found NaN"),
        ({"mapping": np.zeros(259, np.int64), "weights": np.ones(9, np.float32)}, "shape"),
    ],
)
def test_tables_that_make_no_sense(tmp_path: Path, tensors: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        slmq.load_encoder(folder_of(tmp_path / "m", embeddings=TABLE, **tensors))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text 1: expected a token that is known"):
        slmq.load_encoder(folder_of(tmp_path / "m")).embed(["rain", "☃"])
    with pytest.raises(CheckpointError, match="expected a table of vectors"):
        slmq.load_encoder(folder_of(tmp_path / "n", other=TABLE))
    with pytest.raises(UnsupportedModelError, match="static is an encoder"):
        slmq.load(folder_of(tmp_path / "l"))


def table_folder(target: Path, *kinds: str) -> Path:
    """As sentence-transformers saves a table: no configuration, in a folder of its own."""
    places = {"StaticEmbedding": "0_StaticEmbedding", "Normalize": "1_Normalize"}
    entries = [
        {
            "idx": i,
            "name": str(i),
            "path": places[kind],
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    write_json(target / "modules.json", entries)
    write_json(
        target / "config_sentence_transformers.json",
        {"prompts": {"query": "rain "}, "similarity_fn_name": "dot"},
    )
    model = target / places["StaticEmbedding"]
    model.mkdir()
    save_file({"embedding.weight": TABLE}, model / "model.safetensors")
    word_tokenizer(259).save(str(model / "tokenizer.json"))
    return target


@pytest.mark.parametrize("unit", [False, True])
def test_tables_of_sentence_transformers(tmp_path: Path, unit: bool) -> None:
    """Unknown tokens have a vector there, and count."""
    kinds = ["StaticEmbedding", *(["Normalize"] if unit else [])]
    folder = table_folder(tmp_path / "m", *kinds)
    texts = [*TEXTS, "☃"]
    with slmq.load_encoder(folder, format="f32") as encoder:
        got = encoder.embed(texts)
        asked = encoder.embed("sun", prompt="query")
        assert np.array_equal(asked, encoder.embed("rain sun"))
        assert encoder.similarity(got[:1], got[1:2]) == pytest.approx(got[0] @ got[1], rel=1e-5)
    for text, vector in zip(texts, got, strict=True):
        ids = word_tokenizer(259).encode(text, add_special_tokens=False).ids
        mean = TABLE[ids].mean(axis=0, dtype=np.float64)
        assert np.allclose(vector, mean / np.linalg.norm(mean) if unit else mean, atol=1e-6)
    packed = slmq.convert(folder, tmp_path / "packed")
    with slmq.load_encoder(packed) as encoder:
        assert np.array_equal(encoder.embed(texts), got)
    rounded = slmq.quantize(folder, tmp_path / "rounded", format="int8")
    with slmq.load_encoder(rounded) as encoder:
        near = encoder.embed(texts, normalize=True)
    lengths = np.linalg.norm(got, axis=1)
    assert ((near * got).sum(axis=1) / lengths).min() > 0.999


def test_a_table_without_vectors(tmp_path: Path) -> None:
    folder = table_folder(tmp_path / "m", "StaticEmbedding")
    file = folder / "0_StaticEmbedding" / "model.safetensors"
    save_file({"weight": TABLE}, file)
    with pytest.raises(CheckpointError, match="expected a table of vectors as the tensor"):
        slmq.load_encoder(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors"):
        slmq.load_encoder(folder)
