"""What make_pipeline_goldens.py asks transformers' pipelines, of which folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from encoder_files import FRAME, encoder_folder, write_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

TEXTS = [
    "Anna lives in Paris, the man plays.",
    "slowly! The dogs eat faster?  rain",
    "☃ anna",
    "cat",
]
LABELS = {
    "inside": {"0": "O", "1": "B-PER", "2": "I-PER"},
    "ends": {"0": "S-LOC", "1": "O", "2": "E-LOC"},
    "plain": {"0": "no", "1": "PER", "2": "O"},
}
AGGREGATIONS = ("none", "simple", "first", "average", "max")
MASKED = ["the [MASK] eats", "the [MASK] [MASK] in paris"]
CLAIMS = ["dog", "cat", "rain in paris"]
TEMPLATE = "the {} eats"
NLI = {
    "usual": {"0": "contradiction", "1": "neutral", "2": "entailment"},
    "turned": {"0": "ENTAILMENT", "1": "NEUTRAL", "2": "CONTRADICTION"},
    "named_otherwise": {"0": "other", "1": "entails", "2": "third"},
}


def tags_folder(target: Path, labels: str, *, blanks: bool = False) -> Path:
    """A model that labels tokens; with `blanks` those of a tokenizer that marks blanks."""
    folder = encoder_folder(target, "tags", "eurobert", id2label=LABELS[labels])
    if blanks:
        letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
        pieces = [
            *FRAME,
            "▁",
            "▁a",
            "▁the",
            "▁in",
            "▁man",
            ",",
            ".",
            "?",
            "!",
            "an",
            "er",
            *letters,
        ]
        blank_tokenizer(pieces).save(str(folder / "tokenizer.json"))
    return folder


def blank_tokenizer(pieces: list[str]) -> Tokenizer:
    """Pieces of sentences, as XLM-RoBERTa has them."""
    scored = [(piece, 0.0 if i < len(FRAME) else -5.0) for i, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(FRAME)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def masks_folder(target: Path) -> Path:
    """A model that fills masks."""
    return encoder_folder(target, "masks_gelu_tanh")


def nli_folder(target: Path, labels: str) -> Path:
    """A model for natural language inference."""
    names = NLI[labels]
    numbers = {name: int(number) for number, name in names.items()}
    return encoder_folder(target, "three_labels", "roberta", id2label=names, label2id=numbers)


def with_transformers_names(folder: Path) -> Path:
    """A copy whose tokenizer transformers takes as it is."""
    target = folder.with_name(folder.name + "-transformers")
    shutil.copytree(folder, target)
    names: dict[str, Any] = {f"{name.strip('[]').lower()}_token": name for name in FRAME}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(target / "tokenizer_config.json", names | kind)
    return target
