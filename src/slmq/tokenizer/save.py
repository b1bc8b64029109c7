"""A checkpoint's tokenizer as the files of a folder, so that the folder gives the same ids.

Files of a folder are copied. Of a GGUF file, ``tokenizer.json`` and ``tokenizer_config.json`` are
made; what these cannot say exactly stands in the latter's section ``"slmq"``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders

from slmq.checkpoint import Checkpoint
from slmq.tokenizer.backend import library_errors
from slmq.tokenizer.gguf import load_gguf
from slmq.tokenizer.hf_json import EXACT, TEMPLATES
from slmq.tokenizer.older_files import SENTENCEPIECE_FILES, WORDS
from slmq.tokenizer.pieces import byte_level_bytes, spelled
from slmq.tokenizer.tokenizer import TokenizerParts
from slmq.tokenizer.vocabulary import is_unicode

__all__ = ["save_tokenizer"]

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *SENTENCEPIECE_FILES,
    "vocab.json",
    "merges.txt",
    WORDS,
    "generation_config.json",
    "chat_template.jinja",
)


def save_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the files that `load_tokenizer` reads into a folder.

    Raises
    ------
    TokenizerError
        The checkpoint's tokenizer cannot be loaded.
    OSError
        The folder cannot be written.
    """
    if checkpoint.holds_tokenizer:
        _write(load_gguf(checkpoint).parts, folder)
        return
    for name in FILES:
        if (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, folder / name)
    templates = checkpoint.path / TEMPLATES
    if templates.is_dir():
        (folder / TEMPLATES).mkdir()
        for path in templates.glob("*.jinja"):
            shutil.copyfile(path, folder / TEMPLATES / path.name)


def _write(parts: TokenizerParts, folder: Path) -> None:
    backend, pieces = parts.backend, parts.pieces
    # Nothing decodes with it here; it tells readers how tokens are spelled.
    if pieces.spell is byte_level_bytes:
        backend.decoder = decoders.ByteLevel()
    elif not isinstance(backend.decoder, decoders.WordPiece):
        scheme = "always" if pieces.drops_leading_space else "never"
        backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    if parts.merging is not None:
        backend.pre_tokenizer = None  # in Python, which no file can hold
    with library_errors("cannot write tokenizer.json"):
        (folder / "tokenizer.json").write_text(backend.to_str(), "utf-8")
    config: dict[str, Any] = {
        name: text for name, text in parts.special_tokens.items() if is_unicode(text)
    }
    templates = {name: text for name, text in parts.templates.items() if is_unicode(text)}
    if templates:
        config["chat_template"] = [
            {"name": name, "template": text} for name, text in templates.items()
        ]
    config[EXACT] = _exact(parts, backend)
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, "ascii")


def _exact(parts: TokenizerParts, backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """What `hf_json.load_folder` takes as it stands, instead of working it out."""
    pieces = parts.pieces
    merging = {} if parts.merging is None else {"merging": dict(parts.merging)}
    return {
        **merging,
        "n_vocab": pieces.n_vocab,
        "bos_id": parts.bos_id,
        "eos_ids": sorted(parts.eos_ids),
        "special_ids": sorted(pieces.special),
        "bytes": {
            str(i): pieces[i].hex()
            for i in range(pieces.n_vocab)
            if pieces[i] != spelled(backend.id_to_token(i), pieces.spell)
        },
    }
