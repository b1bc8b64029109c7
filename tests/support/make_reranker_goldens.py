"""Make tests/goldens/rerankers: tiny random decoders that say yes or no, and their scores.

Run by hand, in an environment with torch, transformers and sentence-transformers::

    python tests/support/make_reranker_goldens.py

Each case is a folder, and scores.json: queries with documents, and the scores that CrossEncoder
gives them ("official": those of Qwen's own recipe, by transformers alone).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from places import GOLDENS
from reranker_cases import CASES, DOCUMENTS, QUERIES, TEMPLATE, RerankerCase, chat_tokenizer

OUT = GOLDENS / "rerankers"
SIZES = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def main() -> None:
    """All cases."""
    shutil.rmtree(OUT, ignore_errors=True)
    for number, case in enumerate(CASES):
        folder = OUT / case.name
        make(folder, case, 700 + number)
        scores = by_hand(folder) if case.kind == "official" else by_library(folder, case)
        (folder / "scores.json").write_text(json.dumps(scores, indent=1), "utf-8")
        print(case.name, [round(score, 3) for _, _, score in scores])


def make(folder: Path, case: RerankerCase, seed: int) -> None:
    """Write the folder of one case."""
    tokenizer = chat_tokenizer()
    size = tokenizer.get_vocab_size()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>")
    if case.kind != "official":
        fast.chat_template = TEMPLATE
    config = transformers.AutoConfig.for_model(
        case.model_type, vocab_size=size, **SIZES, **case.config
    )
    auto: Any = transformers.AutoModelForCausalLM
    if case.kind == "labels":
        auto = transformers.AutoModelForSequenceClassification
    model = auto.from_config(config)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for p in model.parameters():
            shape = tuple(p.shape)
            flat = len(shape) == 1
            values = rng.uniform(0.5, 1.5, shape) if flat else rng.normal(0, 1, shape)
            p.copy_(torch.from_numpy(values if flat else values * 1.2 / np.sqrt(shape[1])))
    torch.nn.Module.to(model, getattr(torch, case.dtype))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    if case.kind in ("score", "labels"):
        modules(folder, case, tokenizer)


def modules(folder: Path, case: RerankerCase, tokenizer: Any) -> None:
    """What sentence-transformers stores beside the model."""
    kinds = [("", "sentence_transformers.base.modules.transformer.Transformer")]
    if case.kind == "score":
        logit = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
        kinds.append(("1_LogitScore", logit))
        words = {"true_token_id": tokenizer.token_to_id("yes")}
        if not case.alone:
            words["false_token_id"] = tokenizer.token_to_id("no")
        (folder / "1_LogitScore").mkdir()
        write(folder / "1_LogitScore/config.json", {**words, "module_input_name": "causal_logits"})
    listed = [{"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(kinds)]
    write(folder / "modules.json", listed)
    write(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder", **case.told})
    way = {"method": "forward", "method_output_name": "logits"}
    task = "sequence-classification" if case.kind == "labels" else "text-generation"
    ways = {"text": way, "message": {**way, "format": "flat"}} if case.chats else {"text": way}
    output = "scores" if case.kind == "labels" else "causal_logits"
    write(
        folder / "sentence_bert_config.json",
        {"transformer_task": task, "modality_config": ways, "module_output_name": output},
    )


def write(path: Path, value: Any) -> None:
    """A file of JSON."""
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def by_library(folder: Path, case: RerankerCase) -> list[list[Any]]:
    """Query, document, score: as CrossEncoder says."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), model_kwargs={"dtype": "float32"}, device="cpu")
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    scores = model.predict(pairs, prompt=case.instruction, batch_size=1).tolist()
    return [
        [query, document, score] for (query, document), score in zip(pairs, scores, strict=True)
    ]


def by_hand(folder: Path) -> list[list[Any]]:
    """The same by the recipe of Qwen3 Reranker's card: parts of a prompt, softmax of two logits."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    before = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    )
    behind = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    task = "Given a web search query, retrieve relevant passages that answer the query"
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("no", "yes")]
    found = []
    for query in QUERIES:
        for document in DOCUMENTS:
            text = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}"
            ids: list[int] = []
            for part in (before, text, behind):
                ids += tokenizer.encode(part, add_special_tokens=False)
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            found.append([query, document, torch.softmax(logits[words], 0)[1].item()])
    return found


if __name__ == "__main__":
    main()
