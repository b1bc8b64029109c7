"""What a folder in the form of sentence-transformers says about a model of sentences.

`modules.json` lists what follows each other: the model itself, pooling, dense layers, a
normalization. Each has its own folder with a `config.json`. Types are matched by the last part of
their names, which is all that releases of sentence-transformers agree on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmq.checkpoint.jsonfile import read_json_object
from slmq.checkpoint.modules import MODELS, MODULES, read_modules
from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models.parts.values import config_count, config_value

__all__ = ["MAX_BYTES", "DenseModule", "SentenceFolder", "Words", "read_folder"]

log = logging.getLogger("slmq")

MAX_BYTES = 4 << 20  # of each of these files
SETTINGS, LENGTH = "config_sentence_transformers.json", "sentence_bert_config.json"
# The kinds of pooling, by flag of their configuration and by the word of later releases.
POOLS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
WORDS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
# Activations of dense layers by class; "" is none.
ACTIVATIONS = {
    "Identity": "",
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
    "Tanh": "tanh",
}
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True)
class DenseModule:
    """A dense layer behind the pooling, in a folder of its own.

    Attributes
    ----------
    folder : Path
    inputs, outputs : int
    bias : bool
    activation : str
        As `Recorder.linear` names it; empty for none.
    """

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class Words:
    """Tokens whose logits a decoder's verdict is made of.

    Attributes
    ----------
    yes : int
    no : int or None
        None: the score is the logit of `yes` alone.
    """

    yes: int
    no: int | None


@dataclass(frozen=True)
class SentenceFolder:
    """What follows a model, and how its texts are to be treated.

    Attributes
    ----------
    model : Path
        The folder with the model itself.
    pool : {"cls", "last", "max", "mean", "mean_sqrt_len", "weighted_mean"}
    pool_inputs : int or None
        Numbers of a token's vector, as the pooling's file says.
    pool_file : Path or None
        That file.
    include_prompt : bool
        Whether the tokens of a prompt are pooled with the others.
    dense : tuple of DenseModule
    normalize : bool
        Whether vectors have length 1.
    prompts : dict of str to str
        Texts that are put before others, by name.
    default_prompt : str or None
    similarity : {"cosine", "dot", "euclidean", "manhattan"}
    max_length : int or None
        Most tokens of a text.
    lower_case : bool
        Whether texts are written in small letters first.
    words : Words or None
        Of a decoder that says whether a document fits a query.
    chats : bool
        Whether its chat template writes pairs of texts.
    activation : str or None
        The class of what follows the score of a pair.
    listed : bool
        Whether there is a list of modules; without one, pooling is the mean.
    """

    model: Path
    pool: str = "mean"
    pool_inputs: int | None = None
    pool_file: Path | None = None
    include_prompt: bool = True
    dense: tuple[DenseModule, ...] = ()
    normalize: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str = "cosine"
    max_length: int | None = None
    lower_case: bool = False
    words: Words | None = None
    chats: bool = False
    activation: str | None = None
    listed: bool = False


def read_folder(path: Path) -> SentenceFolder:
    """Read what a folder says; a file, or a folder without a list, is a model alone.

    Raises
    ------
    CheckpointError
        If one of the files is damaged or contradicts itself.
    UnsupportedModelError
        For a kind of module, pooling or activation that slmq lacks.
    """
    modules = read_modules(path)
    if not modules:
        return SentenceFolder(path)
    found: dict[str, Any] = {"model": path, "listed": True, "dense": ()}
    seen: list[str] = []
    for module in modules:
        _read_module(module.kind, path / module.place, seen, found)
        seen.append(module.kind)
    if seen[0] not in MODELS:
        raise UnsupportedModelError(
            f"{path / MODULES}: expected a Transformer as the first module, found {', '.join(seen)}"
        )
    return SentenceFolder(**found, **_settings(path), **_length(found["model"]))


def _read_module(kind: str, folder: Path, seen: list[str], found: dict[str, Any]) -> None:
    """Adds what one module says."""
    if kind in MODELS and not seen:
        found["model"] = folder
    elif kind == "Pooling" and seen == ["Transformer"]:
        config = _config(folder)
        found["pool"] = _pool(config, folder)
        if config.get("word_embedding_dimension") is not None:
            found["pool_inputs"] = config_count(config, "word_embedding_dimension")
            found["pool_file"] = folder / "config.json"
        found["include_prompt"] = config_value(config, "include_prompt", bool, True)
    elif kind == "Dense" and "Pooling" in seen and "Normalize" not in seen:
        found["dense"] = (*found["dense"], _dense(folder))
    elif kind == "Normalize" and ("Pooling" in seen or seen == ["StaticEmbedding"]):
        found["normalize"] = True
    elif kind == "LogitScore" and seen == ["Transformer"]:
        found["words"] = _words(folder)
    elif kind == "Dropout":
        pass  # of no effect behind training
    else:
        raise UnsupportedModelError(
            f"{folder}: a module of kind {kind!r:.40} behind {', '.join(seen) or 'nothing'} is not "
            f"supported; supported: Transformer, Pooling, Dense and Normalize, in this order, or "
            f"Transformer and LogitScore"
        )


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.exists():
        raise CheckpointError("is missing", file=file)
    return read_json_object(file, MAX_BYTES)


def _pool(config: Mapping[str, Any], folder: Path) -> str:
    mode = config.get("pooling_mode")
    if mode is None:
        modes = [word for flag, word in POOLS.items() if config.get(flag) is True]
        unknown = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
        modes += [key for key in unknown if key not in POOLS]
    else:
        modes = mode if isinstance(mode, list) else [mode]
        modes = [WORDS.get(word, word) if isinstance(word, str) else word for word in modes]
    if len(modes) != 1 or modes[0] not in POOLS.values():
        raise UnsupportedModelError(
            f"{folder}: expected one kind of pooling of {', '.join(POOLS.values())}; found "
            f"{', '.join(map(str, modes)) or 'none':.80}"
        )
    return str(modes[0])


def _dense(folder: Path) -> DenseModule:
    config = _config(folder)
    name = config_value(config, "activation_function", str, "torch.nn.modules.activation.Tanh")
    activation = ACTIVATIONS.get(name.rpartition(".")[2])
    if activation is None:
        raise UnsupportedModelError(
            f"{folder}: activation {name!r:.80} is not supported; supported: "
            f"{', '.join(ACTIVATIONS)}"
        )
    return DenseModule(
        folder,
        config_count(config, "in_features"),
        config_count(config, "out_features"),
        config_value(config, "bias", bool, True),
        activation,
    )


def _words(folder: Path) -> Words:
    config = _config(folder)
    yes = config_count(config, "true_token_id", low=0)
    alone = config.get("false_token_id") is None
    return Words(yes, None if alone else config_count(config, "false_token_id", low=0))


def _settings(path: Path) -> dict[str, Any]:
    """Prompts, similarity, and what follows the scores of pairs."""
    file = path / SETTINGS
    config = read_json_object(file, MAX_BYTES) if file.exists() else {}
    prompts = config_value(config, "prompts", dict, {})
    if not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"prompts: expected texts by name, found {prompts!r:.80}", file=file)
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise CheckpointError(
            f"default_prompt_name: expected one of {', '.join(prompts) or 'no prompts'}, found "
            f"{default!r:.80}",
            file=file,
        )
    similarity = config_value(config, "similarity_fn_name", str, "cosine")
    if similarity not in SIMILARITIES:
        raise UnsupportedModelError(
            f"{file}: similarity_fn_name {similarity!r:.80} is not supported; supported: "
            f"{', '.join(SIMILARITIES)}"
        )
    return {
        "prompts": prompts,
        "default_prompt": default,
        "similarity": similarity,
        "activation": config_value(config, "activation_fn", str, "") or None,
    }


def _length(model: Path) -> dict[str, Any]:
    """The most tokens of a text, and how texts are written."""
    file = model / LENGTH
    config = read_json_object(file, MAX_BYTES) if file.exists() else {}
    stated = config.get("max_seq_length") is not None
    return {
        "max_length": config_count(config, "max_seq_length") if stated else None,
        "lower_case": config_value(config, "do_lower_case", bool, False),
        "chats": "message" in config_value(config, "modality_config", dict, {}),
    }
