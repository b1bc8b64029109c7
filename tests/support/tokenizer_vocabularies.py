"""Train the small vocabularies in tests/goldens/tokenizers. Run by hand.

They stand for those of real families: the same kinds of pieces and settings, a thousand instead of
a hundred thousand pieces. Training text is that of ../shared/data and of `mixed_lines`.
"""

from __future__ import annotations

import io
import json
import lzma
import struct
from typing import Any

from mixed_lines import SENTENCES, mixed_lines
from places import GOLDENS, SHARED_DATA

VOCABULARIES = GOLDENS / "tokenizers"
DATA = SHARED_DATA
GEMMA_SYMBOLS = ["<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "\n\n\n",
                 "▁▁", "▁▁▁", "▁▁▁▁", "▁▁▁▁▁▁▁▁", "<table>", "</table>"]  # fmt: skip


def training_text() -> list[str]:
    """Lines that no control character spoils."""
    text = (DATA / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8").splitlines()[:1500]
    text += (DATA / "ja" / "neko.txt").read_text(encoding="utf-8").splitlines()[:700]
    text += SENTENCES * 30
    text += ["    return x  # comment", "\tif (a == b) {", "        x = 1_000"] * 40
    return [line for line in text if line.strip() and "\0" not in line]


def sentencepiece_model(**options: Any) -> bytes:
    """Train a model of the SentencePiece library."""
    import sentencepiece

    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_text()),
        model_writer=buffer,
        num_threads=1,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return buffer.getvalue()


PLAIN = {
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 0.997,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": PLAIN | {"model_type": "bpe", "vocab_size": 1400},
    "gemma": PLAIN
    | {
        "model_type": "bpe",
        "vocab_size": 1400,
        "add_dummy_prefix": False,
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "pad_piece": "<pad>",
        "bos_piece": "<bos>",
        "eos_piece": "<eos>",
        "user_defined_symbols": GEMMA_SYMBOLS,
    },
    "t5": {"model_type": "unigram", "vocab_size": 1200, "normalization_rule_name": "nmt_nfkc",
           "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>",
           "character_coverage": 0.98},
    "rinna": PLAIN | {"model_type": "unigram", "vocab_size": 1400, "add_dummy_prefix": False},
}  # fmt: skip


def extended(model: bytes) -> bytes:
    """A model extended by pieces of another, whose scores begin anew: as Rakuten's vocabulary."""
    from sentencepiece import SentencePieceProcessor

    first = SentencePieceProcessor(model_proto=model)
    larger = sentencepiece_model(**(MODELS["llama"] | {"vocab_size": 2200}))
    second = SentencePieceProcessor(model_proto=larger)
    known = {first.id_to_piece(i) for i in range(first.get_piece_size())}
    fresh = [second.id_to_piece(i) for i in range(second.get_piece_size())]
    fresh = [piece for piece in fresh if piece not in known]
    # A repeated field may go on at the end of a message: pieces are field 1, their text and score
    # fields 1 and 2.
    for rank, piece in enumerate(fresh):
        text = piece.encode()
        body = bytes((0x0A, len(text))) + text + b"\x15" + struct.pack("<f", -rank)
        model += bytes((0x0A, len(body))) + body
    return model


def byte_level_vocabulary() -> dict[str, Any]:
    """A byte-level BPE trained on parts of all kinds, so that every rule of cutting shows."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Words with their digits, signs and spaces on: merges cross what the rules cut.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s*\S{1,12}|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2600, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(training_text() + list(mixed_lines()), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {"tokens": vocabulary, "merges": [" ".join(pair) for pair in model["merges"]]}


def main() -> None:
    """Write the vocabularies."""
    VOCABULARIES.mkdir(parents=True, exist_ok=True)
    files = {f"{name}.model": sentencepiece_model(**options) for name, options in MODELS.items()}
    files["rakuten.model"] = extended(files["llama.model"])
    text = json.dumps(byte_level_vocabulary(), ensure_ascii=False)
    files["byte_level.json"] = text.encode()
    for name, data in files.items():
        packed = lzma.compress(data, preset=9)
        (VOCABULARIES / f"{name}.xz").write_bytes(packed)
        print(name, len(data), len(packed))


if __name__ == "__main__":
    main()
