"""Rerankers that are decoders: asked whether a document fits a query, they say yes or no.

Query and document stand in one prompt. The score is how much likelier the next token is "yes" than
"no" (Zhang et al., "Qwen3 Embedding", 2025); of all the output head only these rows are computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.embedding.folder import Words
from slmq.embedding.runner import EncodedText
from slmq.errors import CheckpointError, ContextOverflowError, TemplateError, UnsupportedModelError
from slmq.plan.linear import Linear

if TYPE_CHECKING:
    from slmq.embedding.folder import SentenceFolder
    from slmq.embedding.texts import TextEncoder
    from slmq.tokenizer import Tokenizer

__all__ = ["PairPrompts", "pair_prompts", "verdict", "verdict_rows", "words_of"]

F32 = npt.NDArray[np.float32]

YES, NO = "yes", "no"
WRITES = "ForCausalLM"  # how classes of transformers end whose models have an output head
# Qwen3 Reranker's prompt, for folders from before its chat template knew queries and documents.
MARKS = ("<|im_start|>", "<|im_end|>")
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PROMPT = (
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
FIELD = re.compile(r"\{(instruction|query|document)\}")
STORED = "rerank"  # the name of such a prompt in a GGUF file


class PairPrompts:
    """Writes a query and a document as one prompt.

    Parameters
    ----------
    texts : TextEncoder
    instruction : str or None
        What is asked for unless the caller says otherwise; None leaves it to the prompt.
    pattern : str, optional
        The prompt with {query}, {document} and perhaps {instruction}; None leaves it to the
        tokenizer's chat template.
    """

    def __init__(
        self, texts: TextEncoder, instruction: str | None, pattern: str | None = None
    ) -> None:
        self._texts = texts
        self._tokenizer = texts.tokenizer
        self._instruction = instruction
        self._pattern = pattern
        self.takes_instruction = pattern is None or "{instruction}" in pattern

    def written(self, query: str, document: str, instruction: str | None = None) -> str:
        """The prompt."""
        told = self._instruction if instruction is None else instruction
        if self._pattern is None:
            return _rendered(self._tokenizer, query, document, told)
        asked = {"instruction": told or INSTRUCTION, "query": query, "document": document}
        return FIELD.sub(lambda found: asked[found[1]], self._pattern)

    def encoded(
        self, number: int, query: str, document: str, instruction: str | None, *, truncate: bool
    ) -> EncodedText:
        """What runs for one document; of one that is too long the end is left out, if allowed.

        Raises
        ------
        TypeError
            If it is no text; `number` says which one.
        ContextOverflowError
            If it is too long, or the query is.
        """
        whole, most = self._texts.checked(number, document), self._texts.max_length
        part = self._texts.beginning(whole)
        ids = self._ids(query, part, instruction)
        if len(ids) > most and not truncate:
            raise ContextOverflowError(
                f"text {number} has {'' if part == whole else 'at least '}{len(ids)} tokens with "
                f"the query and those around it, the model takes {most}; truncate=True leaves out "
                f"the rest"
            )
        if len(ids) > most:
            ids = self._cut(number, query, part, instruction, len(ids) - most)
        return EncodedText(np.array(ids, np.int32), np.zeros(len(ids), np.int32))

    def _cut(
        self, number: int, query: str, document: str, instruction: str | None, over: int
    ) -> list[int]:
        """A prompt with so many tokens of the document less, or more where they do not add up."""
        ids: list[int] = []
        found = self._tokenizer.encode_parts(document, add_special=False)
        begins = [first for first, _ in found.offsets]
        kept = len(begins)
        while over > 0 and kept > 0:
            kept = max(0, kept - over)
            ids = self._ids(query, document[: begins[kept]], instruction)
            over = len(ids) - self._texts.max_length
        if over > 0:
            raise ContextOverflowError(
                f"text {number}: the query and what stands around it leave no room for a document "
                f"in {self._texts.max_length} tokens"
            )
        return ids

    def _ids(self, query: str, document: str, instruction: str | None) -> list[int]:
        return self._tokenizer.encode(self.written(query, document, instruction), add_special=False)


def words_of(
    folder: SentenceFolder, config: Mapping[str, Any], tokenizer: Tokenizer
) -> Words | None:
    """The tokens whose logits are a decoder's verdict: those that its folder names.

    A decoder without a list of modules says yes and no, if it writes chats as Qwen does.
    """
    if folder.listed or folder.words is not None:
        return folder.words
    names = config.get("architectures")
    writes = isinstance(names, list) and any(str(name).endswith(WRITES) for name in names)
    if not writes or not all(mark in tokenizer.markers for mark in MARKS):
        return None
    found = [tokenizer.encode(word, add_special=False) for word in (YES, NO)]
    return Words(found[0][0], found[1][0]) if [len(ids) for ids in found] == [1, 1] else None


def pair_prompts(folder: SentenceFolder, judges: bool, texts: TextEncoder) -> PairPrompts | None:
    """What writes pairs as prompts; None where they stand side by side.

    `judges`: whether the model is a decoder that says yes or no.

    Raises
    ------
    UnsupportedModelError
        If the folder says that its chat template writes pairs, and that does not.
    """
    told = folder.prompts.get(folder.default_prompt) if folder.default_prompt else None
    stored = texts.tokenizer.parts.templates.get(STORED)
    if stored is not None and judges:
        return PairPrompts(texts, told, stored.replace(INSTRUCTION, "{instruction}"))
    if folder.listed and not folder.chats and (folder.words is not None or not judges):
        return None
    if _carries(texts.tokenizer):
        return PairPrompts(texts, told)
    if folder.chats:
        raise UnsupportedModelError(
            f"{folder.model}: pairs are written by its chat template (modality_config), and this "
            f"one shows no messages of the roles 'query' and 'document'"
        )
    return PairPrompts(texts, told, PROMPT) if judges else None


def verdict(logits: F32) -> F32:
    """The score of a pair: float32[1]."""
    return logits if len(logits) == 1 else logits[:1] - logits[1:]


def verdict_rows(head: Linear, words: Words) -> Linear:
    """The rows of an output head that are needed, as floats.

    Raises
    ------
    CheckpointError
        If it has no such rows.
    """
    ids = [words.yes] if words.no is None else [words.yes, words.no]
    if max(ids) >= head.n:
        raise CheckpointError(
            f"expected tokens below {head.n} as the words of a verdict, found {max(ids)}"
        )
    rows = np.concatenate([head.matrix.dequantize(i, i + 1) for i in ids])
    packed = _native.Matrix.pack("f32", rows.reshape(-1).view(np.uint8), len(ids), head.k, "f32")
    bias = None if head.bias is None else head.bias[ids]
    return replace(head, held=packed, bias=bias, name="")


def _rendered(tokenizer: Tokenizer, query: str, document: str, instruction: str | None) -> str:
    messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
    if instruction is not None:
        messages.insert(0, {"role": "system", "content": instruction})
    return tokenizer.render_chat(messages, add_generation_prompt=False)


def _carries(tokenizer: Tokenizer) -> bool:
    """Whether the chat template shows a query and a document."""
    if tokenizer.chat_template is None:
        return False
    try:
        shown = _rendered(tokenizer, "slmq-query", "slmq-document", None)
    except TemplateError:
        return False
    return "slmq-query" in shown and "slmq-document" in shown
