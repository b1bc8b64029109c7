"""Which file reads which architecture."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq.checkpoint import Checkpoint
from slmq.checkpoint.gguf import MODEL, role_in
from slmq.checkpoint.safetensors import CONFIG
from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models.family import C, Family
from slmq.models.parts.headless import Headless, writes_nothing

# model_type -> module in slmq.models
FAMILIES = {
    "apertus": "apertus",
    "arcee": "arcee",
    "bitnet": "bitnet",
    "exaone4": "exaone4",
    "gemma": "gemma",
    "gemma-embedding": "gemma3_text",  # in GGUF files
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",  # with a vision tower that is left out, and the name in GGUF files
    "gemma3_text": "gemma3_text",
    "gemma4": "gemma4_text",  # with towers that are left out, and the name in GGUF files
    "gemma4_text": "gemma4_text",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "gptneox": "gpt_neox",  # in GGUF files
    "gpt-oss": "gpt_oss",  # in GGUF files
    "gpt_oss": "gpt_oss",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "granitemoehybrid": "granitemoehybrid",  # without experts and states
    "helium": "helium",
    "hunyuan-dense": "hunyuan_v1_dense",  # in GGUF files
    "hunyuan_v1_dense": "hunyuan_v1_dense",
    "lfm2": "lfm2",
    "lfm2_moe": "lfm2_moe",
    "lfm2moe": "lfm2_moe",  # in GGUF files
    "llama": "llama",
    "ministral3": "ministral3",
    "mistral": "mistral",
    "mistral3": "ministral3",  # with a vision tower that is left out, and the name in GGUF files
    "nanochat": "nanochat",
    "olmo2": "olmo2",
    "olmo3": "olmo2",  # "olmo2" in GGUF files
    "olmoe": "olmoe",
    "phi": "phi",
    "phi2": "phi",  # in GGUF files
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen35": "qwen3_5_text",  # in GGUF files
    "qwen3_5": "qwen3_5_text",  # with a vision tower that is left out
    "qwen3_5_text": "qwen3_5_text",
    "qwen3_moe": "qwen3_moe",
    "qwen3moe": "qwen3_moe",  # in GGUF files
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
}

# The same for encoders, which write no text: `slmq.load_encoder` reads them.
ENCODERS = {
    "bert": "bert",
    "camembert": "roberta",
    "distilbert": "distilbert",
    "electra": "electra",
    "eurobert": "eurobert",
    "gte": "gte",
    "model2vec": "static",
    "modern-bert": "modernbert",  # in GGUF files
    "modernbert": "modernbert",
    "mpnet": "mpnet",
    "new": "gte",  # its first name
    "nomic-bert": "nomic_bert",  # in GGUF files
    "nomic_bert": "nomic_bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
}

# What a GGUF file may be beside a model.
ROLES = {
    "adapter": "a LoRA adapter",
    "mmproj": "a projector, which reads pictures beside a model",
    "imatrix": "an importance matrix, which helps to quantize a model",
    "control vector": "a control vector",
}

if TYPE_CHECKING:  # at run time a family is imported when a file asks for it
    from slmq.models import (
        apertus,
        arcee,
        bert,
        bitnet,
        distilbert,
        electra,
        eurobert,
        exaone4,
        gemma,
        gemma2,
        gemma3_text,
        gemma4_text,
        gpt2,
        gpt_neox,
        gpt_oss,
        granite,
        granitemoe,
        granitemoehybrid,
        gte,
        helium,
        hunyuan_v1_dense,
        lfm2,
        lfm2_moe,
        llama,
        ministral3,
        mistral,
        modernbert,
        mpnet,
        nanochat,
        nomic_bert,
        olmo2,
        olmoe,
        phi,
        phi3,
        qwen2,
        qwen3,
        qwen3_5_text,
        qwen3_moe,
        roberta,
        seed_oss,
        smollm3,
        stablelm,
        static,
    )
    from slmq.models.family import EncoderFamily

    def _checked(family: Family[C]) -> Family[C]:
        return family

    # mypy compares every family file with `Family`, and its functions with its own Config.
    CHECKED: list[Family[Any]] = [
        _checked(apertus), _checked(arcee), _checked(bitnet), _checked(exaone4), _checked(gemma),
        _checked(gemma2), _checked(gemma3_text), _checked(gemma4_text), _checked(gpt2),
        _checked(gpt_neox), _checked(gpt_oss), _checked(granite), _checked(granitemoe),
        _checked(granitemoehybrid), _checked(helium), _checked(hunyuan_v1_dense), _checked(lfm2),
        _checked(lfm2_moe), _checked(llama), _checked(ministral3), _checked(mistral),
        _checked(nanochat), _checked(olmo2), _checked(olmoe), _checked(phi), _checked(phi3),
        _checked(qwen2), _checked(qwen3), _checked(qwen3_5_text), _checked(qwen3_moe),
        _checked(seed_oss), _checked(smollm3), _checked(stablelm),
    ]  # fmt: skip

    def _encoder(family: EncoderFamily[C]) -> EncoderFamily[C]:
        return family

    CHECKED_ENCODERS: list[EncoderFamily[Any]] = [
        _encoder(bert), _encoder(distilbert), _encoder(electra), _encoder(eurobert),
        _encoder(gte), _encoder(modernbert), _encoder(mpnet), _encoder(nomic_bert),
        _encoder(roberta), _encoder(static),
    ]  # fmt: skip


def family_of(checkpoint: Checkpoint) -> tuple[Family[Any], dict[str, Any]]:
    """The family module of a checkpoint, and its configuration in Hugging Face's terms.

    Raises
    ------
    UnsupportedModelError
        Names the architecture, the supported ones, the nearest, and how to add one.
    CheckpointError
        If the checkpoint does not say what it is.
    """
    key = checkpoint.architecture_key
    architecture = checkpoint.metadata.get(key)
    if not isinstance(architecture, str):
        raise CheckpointError(
            f"expected {key} to name the architecture, found {architecture!r}", file=checkpoint.path
        )
    if checkpoint.layout.gguf_terms and (role := role_in(checkpoint.metadata)) != MODEL:
        raise UnsupportedModelError(
            f"{checkpoint.path}: {ROLES.get(role, f'a file of type {role!r:.40}')} (general.type), "
            f"not a model"
        )
    family = family_named(architecture, checkpoint.path)
    config = dict(checkpoint.metadata)
    if checkpoint.layout.gguf_terms:
        with errors_of(checkpoint):
            config = family.GGUF.config(config, checkpoint.tensors)
    if (complete := getattr(family, "completed", None)) is not None:
        with errors_of(checkpoint):
            config = complete(config, checkpoint.tensors)
    if not is_encoder(family) and writes_nothing(config):
        headless: Any = Headless(family)  # a family by what it does, though no module
        return headless, config
    return family, config


@contextmanager
def errors_of(checkpoint: Checkpoint) -> Iterator[None]:
    """Names the file in errors of a configuration that was read from it."""
    try:
        yield
    except CheckpointError as error:
        file = checkpoint.path if checkpoint.layout.gguf_terms else checkpoint.path / CONFIG
        raise CheckpointError(error.message, file=error.file or file) from None
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{checkpoint.path}: {error}") from None


def family_named(architecture: str, path: str | Path) -> Family[Any]:
    """The module of an architecture; raises UnsupportedModelError as `family_of`."""
    known = FAMILIES | ENCODERS
    if architecture not in known:
        raise unsupported(architecture, path)
    family: Family[Any] = importlib.import_module(f"slmq.models.{known[architecture]}")
    return family


def is_encoder(family: Family[Any]) -> bool:
    """Whether a family's model writes no text, and is for `slmq.load_encoder`."""
    return isinstance(family, Headless) or family.__name__.rpartition(".")[2] in ENCODERS.values()


def refuse_encoder(family: Family[Any], path: str | Path, wanted: str) -> None:
    """Raise UnsupportedModelError if a family's model writes no text, which `wanted` needs."""
    if is_encoder(family):
        name = family.__name__.rpartition(".")[2]
        what = f"{name} without an output head" if isinstance(family, Headless) else name
        raise UnsupportedModelError(
            f"{path}: {what} is an encoder, which writes no text; {wanted} needs a decoder "
            f"({', '.join(sorted(FAMILIES))}). slmq.load_encoder reads it, and rounds "
            f"its weights while it loads"
        )


def unsupported(architecture: str, path: str | Path) -> UnsupportedModelError:
    """The error for an architecture that has no family: what is near, and what can be done.

    Parameters
    ----------
    architecture : str
        ``model_type`` of a ``config.json`` or ``general.architecture`` of a GGUF file.
    path : str or Path
        The model.
    """
    name = architecture.lower()
    # The family that the name begins with says more than one that shares its ending.
    known = FAMILIES | ENCODERS
    begun = sorted((family for family in known if name.startswith(family)), key=len)
    nearest = begun[-1:] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; the nearest is {nearest[0]}" if nearest else ""
    return UnsupportedModelError(
        f"architecture {architecture!r:.80} of {path} is not supported; supported: "
        f"{', '.join(sorted(known))}{hint}. A family is one Python file; "
        f"docs/adding-a-model.md shows how to add one"
    )
