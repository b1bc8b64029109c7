"""slmq's encoders in LlamaIndex: `pip install slmq llama-index-core`.

Settings.embed_model = SlmqEmbedding("all-minilm-l6-v2")
"""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

import slmq


class SlmqEmbedding(BaseEmbedding):
    """Vectors of texts; options are those of `slmq.load_encoder`."""

    _encoder: slmq.Encoder = PrivateAttr()

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(model_name=model)
        self._encoder = slmq.load_encoder(model, **options)

    def _named(self, name: str) -> str | None:
        return name if self._encoder.prompts.get(name) else None

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._encoder.embed(query, prompt=self._named("query"), chunk=True).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._encoder.embed(texts, prompt=self._named("document"), chunk=True).tolist()
