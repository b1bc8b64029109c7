"""The tiny rerankers that make_reranker_goldens.py makes, and their tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

QUERIES = ["Where do cats sleep?", "no {document} 日本"]
DOCUMENTS = [
    "A cat sleeps on the mat.",
    "Rain falls.\n\nyes, yes!",
    "",
    "猫は寝る。" * 9,
    " blanks at both ends ",
]
# As such templates are: by role, with an instruction that may be left out, and an open answer.
TEMPLATE = """\
{%- set told = messages | selectattr("role", "eq", "system") | map(attribute="content") | first \
| default("Does it answer?") -%}
<|im_start|>system
Say yes or no. {{ told }}<|im_end|>
<|im_start|>user
Q: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
D: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first \
}}<|im_end|>
<|im_start|>assistant
<think>

</think>

"""


@dataclass(frozen=True)
class RerankerCase:
    """One of them.

    Attributes
    ----------
    name : str
    kind : {"score", "labels", "official"}
        With a module LogitScore; with a head of one label; or a decoder without a list of modules.
    config : dict
    told : dict
        Of config_sentence_transformers.json.
    model_type, dtype : str
    alone : bool
        Whether the score is the logit of "yes" alone.
    chats : bool
        Whether the chat template writes pairs; else they stand side by side.
    instruction : str or None
    """

    name: str
    kind: str = "score"
    config: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    model_type: str = "qwen3"
    dtype: str = "float32"
    alone: bool = False
    chats: bool = True
    instruction: str | None = None


IDENTITY = {"activation_fn": "torch.nn.modules.linear.Identity"}
CASES = [
    RerankerCase("tied_sigmoid", config={"tie_word_embeddings": True}),
    RerankerCase(
        "own_head_identity",
        config={"tie_word_embeddings": False, "attention_bias": True},
        told=IDENTITY,
        dtype="bfloat16",
        instruction="Find what the cat does.",
    ),
    RerankerCase(
        "yes_alone_default_prompt",
        config={"tie_word_embeddings": False},
        told=IDENTITY | {"prompts": {"web": "Is it told?"}, "default_prompt_name": "web"},
        alone=True,
        dtype="float16",
    ),
    RerankerCase("side_by_side", config={"tie_word_embeddings": True}, chats=False),
    RerankerCase("one_label", "labels", config={"num_labels": 1}, told=IDENTITY),
    RerankerCase(
        "softcapped_gemma2",
        config={"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 12},
        told=IDENTITY,
        model_type="gemma2",
    ),
    RerankerCase("official", "official", config={"tie_word_embeddings": True}),
]


def chat_tokenizer() -> Tokenizer:
    """Bytes, the words yes and no, and the marks of Qwen's chats."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|pad|>": 0, **{letter: i for i, letter in enumerate(letters, 1)}}
    for piece in ("ye", "yes", "no"):
        vocabulary[piece] = len(vocabulary)
    merges = [("y", "e"), ("ye", "s"), ("n", "o")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in ("<think>", "</think>")])
    return tokenizer
