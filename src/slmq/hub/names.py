"""What the names of a hub mean: a model, its revision, and which files of a repository it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from slmq.errors import ModelNotFoundError, printable

__all__ = ["INDEX", "HubModel", "is_plain_name", "parse_hub_id", "select_files"]

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(?::(?P<pattern>[^:]+))?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,254}(?<![/.])")
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer*",
    "chat_template*",
)
# What older repositories have instead of tokenizer.json.
_OLD_TOKENIZERS = ("vocab.json", "merges.txt", "spiece.model", "added_tokens.json")
INDEX = "model.safetensors.index.json"
_SHARDS = "model-*-of-*.safetensors"
_MANY = 20  # names that fit into an error
_LONGEST_NAME, _LONGEST_PART, _DEEPEST = 400, 200, 8
_NOT_EVERYWHERE = frozenset('\\:*?"<>|')
# Names that Windows gives to devices, in every folder and with every suffix.
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class HubModel:
    """What a hub id means: a repository and, for GGUF, which of its files."""

    repo: str
    pattern: str | None
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.pattern is None else f"{self.repo}:{self.pattern}"


def parse_hub_id(model: str, revision: str | None = None) -> HubModel | None:
    """Read ``org/name`` or ``org/name:pattern``; None when `model` is neither.

    Raises
    ------
    ModelNotFoundError
        When the revision cannot be one.
    """
    match = _HUB_ID.fullmatch(model)
    if match is None or ".." in match["repo"] or match["repo"].endswith(".gguf"):
        return None
    if revision is not None and (
        _REVISION.fullmatch(revision) is None or ".." in revision or "//" in revision
    ):
        raise ModelNotFoundError(
            f"{model}: expected a branch, tag or commit as revision, got {revision!r:.100}"
        )
    return HubModel(match["repo"], match["pattern"], revision)


def select_files(names: Sequence[str], model: HubModel) -> list[str]:
    """Choose what to load out of the files of a repository.

    Without a pattern: `config.json`, the tokenizer and the safetensors weights, or the only GGUF
    file. With one: the GGUF file that it matches (``Q4_0``, ``*q4_0.gguf``), case ignored.

    Raises
    ------
    ModelNotFoundError
        When nothing fits, or several GGUF files do.
    """
    top = [name for name in names if "/" not in name]
    if model.pattern is None and "config.json" in top:
        weights = [name for name in top if name == "model.safetensors"]
        if not weights and INDEX in top:
            weights = [INDEX, *(name for name in top if fnmatchcase(name, _SHARDS))]
        if weights:
            wanted = _COMPANIONS if "tokenizer.json" in top else (*_COMPANIONS, *_OLD_TOKENIZERS)
            companions = [
                name for name in top if any(fnmatchcase(name, pattern) for pattern in wanted)
            ]
            return [*companions, *weights]
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    pattern = (model.pattern or "*").lower()
    pattern = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = [name for name in ggufs if fnmatchcase(name.lower(), pattern)]
    if len(found) == 1:
        return found
    if not ggufs:
        raise ModelNotFoundError(
            f"{model}: the repository has neither config.json with model.safetensors (or "
            f"{INDEX}) nor a GGUF file"
        )
    offered = ", ".join(printable(name) for name in ggufs[:_MANY])
    if len(ggufs) > _MANY:
        offered += f" and {len(ggufs) - _MANY} more"
    several = f"{len(found)} GGUF files match" if found else "no GGUF file matches"
    raise ModelNotFoundError(
        f"{model}: {several}; choose one as {model.repo}:PATTERN out of {offered}"
    )


def is_plain_name(name: str) -> bool:
    """Tell whether a file of a repository may have this name on every disk, inside its folder.

    Parts are divided by ``/``; none is empty, begins with a dot or ends with a dot or blank.
    """
    parts = name.split("/")
    return len(name) <= _LONGEST_NAME and len(parts) <= _DEEPEST and all(map(_is_plain_part, parts))


def _is_plain_part(part: str) -> bool:
    return (
        0 < len(part.encode("utf-8", "replace")) <= _LONGEST_PART
        and part.isprintable()
        and part[0] not in ". "
        and part[-1] not in ". "
        and not _NOT_EVERYWHERE & set(part)
        and _DEVICES.fullmatch(part) is None
    )
