"""The adapters for LangChain and LlamaIndex, with the real packages where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from encoder_files import sentence_folder
from places import ROOT

import slmq

TEXTS = ["A man is playing the guitar.", "the cat eats", "rain in paris " * 60]
PROMPTS = {"prompts": {"query": "a dog ", "document": ""}}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sentence_folder(tmp_path / "m", settings=PROMPTS)


def test_langchain(folder: Path) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.vectorstores import InMemoryVectorStore

    embeddings = example("langchain_embeddings").SlmqEmbeddings(str(folder), format="f32")
    encoder = slmq.load_encoder(folder, format="f32")
    assert np.array_equal(embeddings.embed_documents(TEXTS), encoder.embed(TEXTS, chunk=True))
    assert np.array_equal(embeddings.embed_query("cat"), encoder.embed("cat", prompt="query"))
    store = InMemoryVectorStore(embeddings)
    store.add_texts(TEXTS)
    question = encoder.embed("the cat eats", prompt="query")
    best = int(np.argmax(encoder.embed(TEXTS, chunk=True) @ question))
    assert store.similarity_search("the cat eats", k=1)[0].page_content == TEXTS[best]


def test_llama_index(folder: Path) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    model = example("llama_index_embeddings").SlmqEmbedding(str(folder), format="f32")
    encoder = slmq.load_encoder(folder, format="f32")
    assert np.array_equal(model.get_text_embedding_batch(TEXTS), encoder.embed(TEXTS, chunk=True))
    assert np.array_equal(model.get_query_embedding("cat"), encoder.embed("cat", prompt="query"))
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=model)
    question = encoder.embed("the cat eats", prompt="query")
    best = int(np.argmax(encoder.embed(TEXTS, chunk=True) @ question))
    (found,) = index.as_retriever(similarity_top_k=1).retrieve("the cat eats")
    assert found.node.get_content() == TEXTS[best]
