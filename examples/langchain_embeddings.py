"""slmq's encoders in LangChain: `pip install slmq langchain-core`.

vectors = InMemoryVectorStore(SlmqEmbeddings("all-minilm-l6-v2"))
"""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings

import slmq


class SlmqEmbeddings(Embeddings):
    """Vectors of texts; options are those of `slmq.load_encoder`."""

    def __init__(self, model: str, **options: Any) -> None:
        self.encoder = slmq.load_encoder(model, **options)
        self._query = "query" if self.encoder.prompts.get("query") else None
        self._document = "document" if self.encoder.prompts.get("document") else None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector for each text; of long ones the mean of their parts."""
        return self.encoder.embed(texts, prompt=self._document, chunk=True).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return self.encoder.embed(text, prompt=self._query, chunk=True).tolist()
