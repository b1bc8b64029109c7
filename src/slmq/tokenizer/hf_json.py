"""A tokenizer from a folder: ``tokenizer.json`` and the small files beside it.

``tokenizer.json`` says how text becomes ids, BOS and EOS included; `slmq.tokenizer.older_files`
reads what older folders have instead. The others name the special tokens and the chat templates,
in places that changed over the years; all of them are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from slmq.checkpoint import Checkpoint
from slmq.checkpoint.jsonfile import read_json_object
from slmq.checkpoint.strangers import known_stranger
from slmq.errors import TokenizerError
from slmq.tokenizer.added import Named, add_missing, listed_tokens, named_tokens
from slmq.tokenizer.backend import library_errors
from slmq.tokenizer.files import read_text_file
from slmq.tokenizer.hf_check import check_model, check_tokenizer_json
from slmq.tokenizer.merging import piece_splitter
from slmq.tokenizer.older_files import OlderFiles, read_older_files
from slmq.tokenizer.pieces import (
    SPACE_MARK,
    Pieces,
    byte_level_bytes,
    sentencepiece_bytes,
    wordpiece_speller,
)
from slmq.tokenizer.special import END_OF_TURN, answer_ends, usable_ids
from slmq.tokenizer.tokenizer import Tokenizer, TokenizerParts

__all__ = ["EXACT", "TEMPLATES", "load_folder"]

MAX_TOKENIZER_BYTES = 128 << 20  # Gemma 3 has one of the largest: 33 MB
MAX_CONFIG_BYTES = 16 << 20
TEMPLATES = "additional_chat_templates"
EXACT = "slmq"  # section of tokenizer_config.json


def load_folder(checkpoint: Checkpoint) -> Tokenizer:
    """Build the tokenizer of a folder.

    Raises
    ------
    TokenizerError
        There is no ``tokenizer.json``, or it is broken or of a kind that slmq lacks.
    CheckpointError
        One of the small files is no JSON object.
    """
    folder = checkpoint.path
    config = _config(folder, "tokenizer_config.json")
    generation = _config(folder, "generation_config.json")
    named = named_tokens(config, _config(folder, "special_tokens_map.json"))
    if EXACT in config:
        return _exactly(folder, config, named)
    rows = _rows(checkpoint.metadata)
    with library_errors("tokenizer"):
        backend, usual = _backend(folder, config, checkpoint.metadata.get("model_type"), named)
        texts = {**usual, **named.texts}
        all_named = dict.fromkeys([*texts.values(), *named.all])
        add_missing(backend, listed_tokens(folder, config, named.all), all_named, rows)
        added = backend.get_added_tokens_decoder()
        highest = _highest_id(backend)
        spell, drops_space = _spelling(backend)
    n_vocab = max(highest + 1, rows)
    _check_frame(backend, n_vocab)

    special = {i for i, token in added.items() if token.special}
    ends = {i for i in special if added[i].content in END_OF_TURN}
    for source, name in (
        (generation, "generation_config.json"),
        (checkpoint.metadata, "config.json"),
    ):
        ends |= set(usable_ids(source.get("eos_token_id"), n_vocab, f"{name}: eos_token_id"))
    if "eos_token" in texts and (eos := backend.token_to_id(texts["eos_token"])) is not None:
        ends.add(eos)
    ends = answer_ends(ends, {added[i].content: i for i in special}.get)

    pieces = Pieces(
        n_vocab=n_vocab,
        text_of=backend.id_to_token,
        spell=spell,
        verbatim={
            # SentencePiece also writes the spaces of added tokens as U+2581.
            i: token.content
            for i, token in added.items()
            if token.special or spell is byte_level_bytes
        },
        special=frozenset(special),
        drops_leading_space=drops_space,
    )
    bos = _bos(backend, config, texts, [checkpoint.metadata, generation], n_vocab)
    parts = TokenizerParts(backend, pieces, bos, frozenset(ends), _templates(folder, config), texts)
    return Tokenizer(parts)


def _highest_id(backend: tokenizers.Tokenizer) -> int:
    """The highest token id. The dictionary of all is slow to make, and seldom needed."""
    count = backend.get_vocab_size(with_added_tokens=True)
    if all(map(backend.id_to_token, range(count))):  # as many ids as tokens: there are no others
        return count - 1
    return max(backend.get_vocab(with_added_tokens=True).values(), default=-1)


def _exactly(folder: Path, config: Mapping[str, Any], named: Named) -> Tokenizer:
    """The tokenizer of a folder that `slmq convert` made of a GGUF file."""
    section = config[EXACT]
    where = f"tokenizer_config.json: {EXACT}"
    if not isinstance(section, dict):
        raise TokenizerError(f"{where}: expected an object, got {type(section).__name__}")
    with library_errors("tokenizer.json"):
        backend, _ = _backend(folder, config, None, named)
        spell, drops_space = _spelling(backend)
        if "merging" in section:
            backend.pre_tokenizer = _merging(section["merging"], backend, f"{where}.merging")
    n_vocab = _size({"vocab_size": section.get("n_vocab", 0)})
    _check_frame(backend, n_vocab)
    special = frozenset(_ids(section, "special_ids", n_vocab, where))
    pieces = Pieces(
        n_vocab=n_vocab,
        text_of=backend.id_to_token,
        spell=spell,
        verbatim={},
        special=special,
        drops_leading_space=drops_space,
        known=_known_bytes(section.get("bytes"), n_vocab, f"{where}.bytes"),
    )
    bos = next(iter(_ids(section, "bos_id", n_vocab, where)), None)
    ends = frozenset(_ids(section, "eos_ids", n_vocab, where))
    templates = _templates(folder, config)
    return Tokenizer(TokenizerParts(backend, pieces, bos, ends, templates, named.texts))


def _merging(
    scores: Any, backend: tokenizers.Tokenizer, where: str
) -> tokenizers.pre_tokenizers.PreTokenizer:
    """The merging of pieces in Python, of scores by piece."""
    if not isinstance(scores, dict) or not all(type(s) in (int, float) for s in scores.values()):
        raise TokenizerError(f"{where}: expected an object of scores by piece")
    return piece_splitter(scores, backend.get_vocab(with_added_tokens=False))


def _known_bytes(found: Any, n_vocab: int, where: str) -> dict[int, bytes]:
    """Tokens whose bytes are given, in hexadecimal by id."""
    if not isinstance(found, dict):
        raise TokenizerError(f"{where}: expected an object, got {type(found).__name__}")
    known = {}
    for key, value in found.items():
        try:
            if not (key.isascii() and key.isdecimal() and len(key) < 12 and int(key) < n_vocab):
                raise ValueError
            known[int(key)] = bytes.fromhex(value)
        except (TypeError, ValueError):
            raise TokenizerError(
                f"{where}: expected hexadecimal bytes by id, got {key!r:.40}: {value!r:.40}"
            ) from None
    return known


def _check_frame(backend: tokenizers.Tokenizer, n_vocab: int) -> None:
    """Raise if what the post-processor adds, BOS and EOS, lies outside of the vocabulary."""
    with library_errors("tokenizer.json"):
        around = backend.encode("").ids
    if max(around, default=-1) >= n_vocab:
        raise TokenizerError(
            f"tokenizer.json: the post-processor adds {around}, expected ids below {n_vocab}"
        )


def _config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return read_json_object(path, MAX_CONFIG_BYTES, allow_duplicates=True) if path.exists() else {}


def _backend(
    folder: Path, config: Mapping[str, Any], model_type: object, named: Named
) -> OlderFiles:
    path = folder / "tokenizer.json"
    if not path.exists():
        found = read_older_files(folder, config, model_type, named)
        if found is None:
            raise TokenizerError(
                "no tokenizer.json in the folder, nor tokenizer.model, nor vocab.json with "
                "merges.txt; save one with transformers: "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        return found
    text = read_text_file(path, MAX_TOKENIZER_BYTES)
    if stranger := known_stranger(text[:64].encode()):
        raise TokenizerError(f"tokenizer.json: expected JSON, found {stranger}")
    check_tokenizer_json(text.encode(), text)
    with library_errors("tokenizer.json"):
        backend = tokenizers.Tokenizer.from_str(text)
    check_model(backend.model)
    # Some files carry the settings of a training run, which would cut prompts without a word.
    backend.no_truncation()
    backend.no_padding()
    return OlderFiles(backend, {})


def _spelling(backend: tokenizers.Tokenizer) -> tuple[Callable[[str], bytes], bool]:
    """How tokens write bytes, and whether a leading space is dropped, read from the decoder."""
    state = None if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    steps = list(_decoder_steps(state))
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return byte_level_bytes, False
    if "WordPiece" in kinds:
        (step,) = (step for step in steps if step.get("type") == "WordPiece")
        return wordpiece_speller(step.get("prefix")), True
    metaspace = [step for step in steps if step.get("type") == "Metaspace"]
    marks = [step for step in steps if step.get("pattern") == {"String": SPACE_MARK}]
    if metaspace or marks or "ByteFallback" in kinds:
        drops = any(step.get("prepend_scheme") != "never" for step in metaspace)
        drops |= any(step.get("type") == "Strip" and step.get("start") for step in steps)
        return sentencepiece_bytes, drops
    raise TokenizerError(
        f"a decoder of kind {', '.join(sorted(map(str, kinds))) or 'none'} is not supported yet, "
        f"expected ByteLevel, Metaspace, ByteFallback or WordPiece"
    )


def _decoder_steps(state: Any) -> Iterator[dict[str, Any]]:
    if isinstance(state, dict):
        if state.get("type") == "Sequence":
            for step in state.get("decoders", []):
                yield from _decoder_steps(step)
        else:
            yield state


def _rows(config: Mapping[str, Any]) -> int:
    """Rows of the embedding, where the configuration says it, also of a part of a larger model."""
    language = config.get("text_config")
    return _size(config) or _size(language if isinstance(language, Mapping) else {})


def _size(config: Mapping[str, Any]) -> int:
    """Rows of the embedding: often more than tokens, rounded up."""
    size = config.get("vocab_size", 0)
    if type(size) is not int or not 0 <= size < 1 << 31:
        raise TokenizerError(f"config.json: expected vocab_size from 0 to 2^31, got {size!r:.40}")
    return size


def _ids(source: Mapping[str, Any], key: str, n_vocab: int, name: str) -> list[int]:
    """Read a token id, a list of them, or nothing, of a file that slmq wrote."""
    value = source.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    for token in values:
        if type(token) is not int or not 0 <= token < n_vocab:
            raise TokenizerError(
                f"{name}: {key} is {value!r:.80}, expected ids from 0 to {n_vocab - 1}"
            )
    return values


def _bos(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    texts: Mapping[str, str],
    sources: list[Mapping[str, Any]],
    n_vocab: int,
) -> int | None:
    if "bos_token" in texts:
        return backend.token_to_id(texts["bos_token"])
    if "bos_token" in config:  # and is null: the tokenizer has none, whatever the model says
        return None
    for source in sources:
        if found := usable_ids(source.get("bos_token_id"), n_vocab, "bos_token_id"):
            return found[0]
    return None


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name. Files of their own count more than the configuration."""
    templates: dict[str, str] = {}
    entry = config.get("chat_template")
    if isinstance(entry, str):
        templates["default"] = entry
    elif isinstance(entry, list):
        for item in entry:
            named = item if isinstance(item, dict) else {}
            name, template = named.get("name"), named.get("template")
            if not isinstance(name, str) or not isinstance(template, str):
                raise TokenizerError(f"chat_template: expected name and template, got {item!r:.80}")
            templates[name] = template
    elif entry is not None:
        raise TokenizerError(
            f"chat_template: expected a string or a list, got {type(entry).__name__}"
        )
    files = {"default": folder / "chat_template.jinja"}
    more = folder / TEMPLATES
    if more.is_dir():
        files |= {path.stem: path for path in sorted(more.glob("*.jinja"))}
    for name, path in files.items():
        if path.exists():
            templates[name] = read_text_file(path, MAX_CONFIG_BYTES)
    return templates
