"""A tokenizer of every family in every kind of file, from the small vocabularies in goldens.

`CASES` says what the files of each hold; `make_tokenizer_goldens.py` writes them, asks the
reference, and keeps digests of its ids, which the tests compare with.
"""

from __future__ import annotations

import json
import lzma
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unicodedata import category

import gguf
from mixed_lines import mixed_lines
from places import GOLDENS
from tokenizer_files import write_folder

from slmq.tokenizer.sentencepiece_model import SentencePieceModel, read_sentencepiece_model
from slmq.tokenizer.vocabulary import Kind

VOCABULARIES = GOLDENS / "tokenizers"
IDS = VOCABULARIES / "ids.json"
SPACE = "▁"

CONTROL = """
<|endoftext|> <|im_start|> <|im_end|> <|begin_of_text|> <|eot_id|> <|start_header_id|>
<|end_header_id|> <|user|> <|assistant|> <|end|>
""".split()  # noqa: SIM905 - easier to read
USER_DEFINED = ("<think>", "</think>", "<tool_call>", "      ")


@dataclass(frozen=True)
class Case:
    """A tokenizer in files of one kind.

    Attributes
    ----------
    reference : str
        Who knows the right ids: ``transformers``, ``sentencepiece`` or ``llama.cpp``.
    write : callable
        Writes the files into an empty folder and returns what is to be loaded.
    fits : callable
        Whether the reference is right about a line.
    """

    reference: str
    write: Callable[[Path], Path]
    fits: Callable[[str], bool] | None = None

    @property
    def lines(self) -> list[str]:
        """The lines that the reference is asked for."""
        return [line for line in mixed_lines() if self.fits is None or self.fits(line)]


def unpacked(name: str) -> bytes:
    """A committed vocabulary."""
    return lzma.decompress((VOCABULARIES / f"{name}.xz").read_bytes())


@lru_cache
def byte_level() -> tuple[list[str], list[str]]:
    """Tokens and merges of the byte-level vocabulary."""
    found = json.loads(unpacked("byte_level.json"))
    return found["tokens"], found["merges"]


def added(i: int, text: str, **flags: bool) -> dict[str, Any]:
    """An entry of `added_tokens` in a tokenizer.json."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": text, **plain, "special": True, **flags}


def write_vocabulary(path: Path, keys: dict[str, Any], architecture: str = "llama") -> Path:
    """Write a GGUF file without tensors, with numbers of the widths that llama.cpp insists on."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(len(keys["tokenizer.ggml.tokens"]))
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


# Byte-level BPE ---------------------------------------------------------------------------------

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}


def cut(*patterns: str) -> dict[str, Any]:
    """Patterns one after the other, then bytes."""
    steps = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*steps, BYTES]}


def words(digits: str) -> str:
    """The pattern of Llama 3 and Qwen2, which differ in the digits that go together."""
    return (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS_FIRST = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2],
}


def byte_level_folder(
    pre_tokenizer: dict[str, Any], *, kind: str | None = None, nfc: bool = False, bos: bool = False,
    ignore_merges: bool = False, runs: bool = False,
) -> Callable[[Path], Path]:  # fmt: skip
    """A folder with a tokenizer.json. `runs`: tokens for runs of spaces, as Phi-2 adds them."""

    def write(folder: Path) -> Path:
        tokens, merges = byte_level()
        n = len(tokens)
        extra = [added(n + i, text) for i, text in enumerate(CONTROL)]
        user = [*USER_DEFINED, *((" " * i for i in range(31, 1, -1) if i != 6) if runs else ())]
        extra += [
            added(n + len(CONTROL) + i, text, special=False, normalized=runs)
            for i, text in enumerate(user)
        ]
        begin = [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}] if bos else []
        ids = {"id": "<|begin_of_text|>", "ids": [n + 3], "tokens": ["<|begin_of_text|>"]}
        template = {
            "type": "TemplateProcessing",
            "single": [*begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|begin_of_text|>": ids} if bos else {},
        }  # fmt: skip
        description = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": extra,
            "normalizer": {"type": "NFC"} if nfc else None,
            "pre_tokenizer": pre_tokenizer, "post_processor": template, "decoder": GPT2,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "ignore_merges": ignore_merges,
                      "vocab": {t: i for i, t in enumerate(tokens)},
                      "merges": [m.split(" ") for m in merges]},
        }  # fmt: skip
        config = {"tokenizer_class": kind or "PreTrainedTokenizerFast",
                  "bos_token": "<|begin_of_text|>" if bos else None,
                  "eos_token": "<|endoftext|>"}  # fmt: skip
        files = {"tokenizer.json": description, "tokenizer_config.json": config}
        return write_folder(folder, files)

    return write


def byte_level_pair(kind: str, model_type: str) -> Callable[[Path], Path]:
    """A folder with vocab.json and merges.txt."""

    def write(folder: Path) -> Path:
        tokens, merges = byte_level()
        vocabulary = {t: i for i, t in enumerate(tokens)}
        extra: dict[str, Any] = {}
        if kind == "GPT2Tokenizer":
            vocabulary["<|endoftext|>"] = len(tokens)
        else:
            listed = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
            extra = {
                str(len(tokens) + i): {k: v for k, v in added(0, t).items() if k != "id"}
                for i, t in enumerate(listed)
            }
        files = {
            "vocab.json": vocabulary,
            "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
            "config.json": {"model_type": model_type},
            "tokenizer_config.json": {"tokenizer_class": kind, "added_tokens_decoder": extra},
        }
        return write_folder(folder, files)

    return write


def byte_level_gguf(pre: str) -> Callable[[Path], Path]:
    """A GGUF file as llama.cpp's converter writes it."""

    def write(folder: Path) -> Path:
        tokens, merges = byte_level()
        keys = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": [*tokens, *CONTROL, *USER_DEFINED],
            "tokenizer.ggml.token_type": (
                [1] * len(tokens) + [3] * len(CONTROL) + [4] * len(USER_DEFINED)
            ),
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": len(tokens) + 3,
            "tokenizer.ggml.eos_token_id": len(tokens),
        }
        return write_vocabulary(folder / "model.gguf", keys)

    return write


# SentencePiece ----------------------------------------------------------------------------------


@lru_cache
def sentencepiece(name: str) -> SentencePieceModel:
    """A committed model, read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(unpacked(f"{name}.model"))
        return read_sentencepiece_model(path)


def model_folder(name: str, file: str = "tokenizer.model", **config: Any) -> Callable[[Path], Path]:
    """A folder with a model of the SentencePiece library."""

    def write(folder: Path) -> Path:
        write_folder(folder, {"tokenizer_config.json": config})
        (folder / file).write_bytes(unpacked(f"{name}.model"))
        return folder

    return write


PHI3 = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")


def merges_of(model: SentencePieceModel) -> list[list[str]]:
    """All ways to cut the pieces, ordered as transformers orders them when it converts a model."""
    ids = {piece: i for i, piece in enumerate(model.pieces) if model.kinds[i] in (1, 4)}
    found = []
    for piece, i in ids.items():
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        pairs = [(left, right) for left, right in cuts if left in ids and right in ids]
        for left, right in sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]])):
            found.append((-model.scores[i], [left, right]))
    return [pair for _, pair in sorted(found, key=lambda entry: entry[0])]


def sentencepiece_json(name: str) -> Callable[[Path], Path]:
    """A folder with the tokenizer.json that a family has instead of its model."""

    def write(folder: Path) -> Path:
        model = sentencepiece("gemma" if name == "gemma" else "llama")
        n = len(model.pieces)
        extra = [added(i, model.pieces[i]) for i in model.of_kind(Kind.UNKNOWN, Kind.CONTROL)]
        extra += [
            added(i, model.pieces[i], special=False) for i in model.of_kind(Kind.USER_DEFINED)
        ]
        if name == "phi3":
            for entry in extra:
                entry["rstrip"] = entry["content"] == "</s>"
            extra += [added(n + i, t, rstrip=t != "<|endoftext|>") for i, t in enumerate(PHI3)]
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        prepend = {"type": "Prepend", "prepend": SPACE}
        normalizer: dict[str, Any] | None = {"type": "Sequence", "normalizers": [prepend, replace]}
        pre_tokenizer: dict[str, Any] | None = None
        if name == "mistral":
            normalizer = None
            pre_tokenizer = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first",
                             "split": False}  # fmt: skip
        if name == "gemma":
            normalizer = replace
            pre_tokenizer = {"type": "Split", "pattern": {"String": " "},
                             "behavior": "MergedWithPrevious", "invert": False}  # fmt: skip
        bos = model.pieces[model.special["bos"]]
        steps: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
        ]  # fmt: skip
        if name != "gemma":
            steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        description = {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": sorted(extra, key=lambda entry: entry["id"]),
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": bos, "type_id": 0}},
                           {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                         {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {bos: {"id": bos, "ids": [model.special["bos"]],
                                         "tokens": [bos]}},
            },
            "decoder": {"type": "Sequence", "decoders": steps},
            "model": {"type": "BPE", "dropout": None, "fuse_unk": True, "byte_fallback": True,
                      "unk_token": model.pieces[model.special["unk"]],
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "ignore_merges": False,
                      "vocab": {piece: i for i, piece in enumerate(model.pieces)},
                      "merges": merges_of(model)},
        }  # fmt: skip
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos,
                  "eos_token": model.pieces[model.special["eos"]],
                  "unk_token": model.pieces[model.special["unk"]]}  # fmt: skip
        return write_folder(
            folder, {"tokenizer.json": description, "tokenizer_config.json": config}
        )

    return write


def sentencepiece_gguf(
    name: str, architecture: str = "llama", title: str = "A tokenizer"
) -> Callable[[Path], Path]:
    """A GGUF file as llama.cpp's converter writes it."""

    def write(folder: Path) -> Path:
        model = sentencepiece(name)
        tokens, kinds, scores = list(model.pieces), list(model.kinds), list(model.scores)
        # User-defined pieces are written as the text that they stand for.
        for i in model.of_kind(Kind.USER_DEFINED):
            tokens[i] = tokens[i].replace(SPACE, " ")
        if architecture == "phi3":
            tokens += PHI3
            kinds += [3] * len(PHI3)
            scores += [-1000.0] * len(PHI3)
            kinds[2] = 3
        found: dict[str, Any] = {
            "general.name": title,
            "tokenizer.ggml.model": "llama" if model.model_type == "bpe" else "t5",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.add_space_prefix": model.dummy_prefix,
        }
        for short, long in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            if short in model.special:
                found[f"tokenizer.ggml.{long}_token_id"] = model.special[short]
        if model.model_type == "unigram":
            found["tokenizer.ggml.remove_extra_whitespaces"] = model.remove_spaces
            if model.charsmap:
                found["tokenizer.ggml.precompiled_charsmap"] = model.charsmap
        return write_vocabulary(folder / "model.gguf", found, architecture)

    return write


# llama.cpp's patterns leave out some of what the models' own patterns say; `test_tokenizer.py`
# holds the rules against the latter on all lines.


def plain_letters(line: str) -> bool:
    """No combining marks, and no letters with case beyond ASCII."""
    return all(c.isascii() or category(c) not in ("Lu", "Ll", "Lt", "Mn", "Mc", "Me") for c in line)


def plain_spaces(line: str) -> bool:
    """No white space inside of the ranges that stand for Han and Hangul."""
    return not any(c.isspace() and "\u0800" <= c <= "\u4e00" for c in line)


FITS = {
    "gpt-4o": plain_letters,
    "tekken": plain_letters,
    "deepseek-llm": plain_spaces,
    "deepseek-coder": plain_spaces,
}


def _cases() -> dict[str, Case]:
    folders = {
        "gpt2": byte_level_folder(GPT2, kind="GPT2Tokenizer"),
        "llama3": byte_level_folder(cut(words(r"\p{N}{1,3}")), bos=True, ignore_merges=True),
        "qwen2": byte_level_folder(cut(words(r"\p{N}")), kind="Qwen2Tokenizer", nfc=True),
        "smollm2": byte_level_folder(DIGITS_FIRST),
        "phi2": byte_level_folder(GPT2, runs=True),
        "phi4": byte_level_folder(cut(words(r"\p{N}{1,3}"))),
        "phi4-mini": byte_level_folder(cut(GPT4O)),
        "stablelm2": byte_level_folder(cut(words(r"\p{N}"))),
        "gpt-neox": byte_level_folder(GPT2, nfc=True),
        **{name: sentencepiece_json(name) for name in ("llama2", "mistral", "phi3", "gemma")},
        "gpt2-pair": byte_level_pair("GPT2Tokenizer", "gpt2"),
        "qwen2-pair": byte_level_pair("Qwen2Tokenizer", "qwen2"),
    }
    models = {
        "llama": model_folder("llama"),
        "gemma": model_folder("gemma"),
        "rakuten": model_folder("rakuten"),
        "rinna": model_folder("rinna", "spiece.model", tokenizer_class="T5Tokenizer"),
        "t5": model_folder("t5", "spiece.model", tokenizer_class="T5Tokenizer"),
    }
    rules = """
    default gpt-2 llama-bpe qwen2 smollm phi-2 dbrx gpt-4o stablelm2 olmo tekken deepseek-llm
    deepseek-coder deepseek-v3
    """.split()  # noqa: SIM905 - easier to read
    files = {
        **{rule: byte_level_gguf(rule) for rule in rules},
        "llama2": sentencepiece_gguf("llama"),
        "gemma": sentencepiece_gguf("gemma"),
        "phi3": sentencepiece_gguf("llama", "phi3", "Phi3"),
        "rakuten": sentencepiece_gguf("rakuten"),
        "rinna": sentencepiece_gguf("rinna"),
        "t5": sentencepiece_gguf("t5"),
    }
    return {
        **{f"folder/{name}": Case("transformers", write) for name, write in folders.items()},
        **{f"model/{name}": Case("sentencepiece", write) for name, write in models.items()},
        **{
            f"gguf/{name}": Case("llama.cpp", write, FITS.get(name))
            for name, write in files.items()
        },
    }


CASES = _cases()
