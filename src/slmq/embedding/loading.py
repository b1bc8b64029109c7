"""`slmq.load_encoder`: from the name of a model to one that embeds, scores and labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import slmq._native as _native
import slmq.hub as hub
from slmq.checkpoint import Checkpoint, open_checkpoint, open_model
from slmq.checkpoint.foreign.weight import foreign_weights
from slmq.embedding.encoder import Encoder
from slmq.embedding.folder import DenseModule, SentenceFolder, read_folder
from slmq.embedding.options import EncoderArgs, EncoderOptions
from slmq.embedding.runner import EncoderBody, Runner
from slmq.embedding.settings import settings_of
from slmq.embedding.verdict import verdict_rows, words_of
from slmq.engine.opening import ACTIVATIONS
from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models import static
from slmq.models.loading import open_weights, tensors_of
from slmq.models.parts.encoder_gguf import pooling_of
from slmq.models.parts.headless import Headless
from slmq.models.parts.values import config_value
from slmq.models.registry import family_of, is_encoder
from slmq.settings import from_keywords, takes
from slmq.tokenizer import load_tokenizer
from slmq.weights.reader import WeightReader

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["load_body", "load_encoder", "open_encoder"]

log = logging.getLogger("slmq")

# Parts of a body that transformers stores and nothing here reads: what was made for training, and
# what poolers make of the first token where something else pools.
UNREAD = ("position_ids", "pooler.dense.weight", "pooler.dense.bias")
HEAD = "lm_head.weight"
VERDICT = "cls.output.weight"  # in GGUF files
DENSE = ("dense_2.weight", "dense_3.weight")  # in GGUF files


@takes(EncoderOptions)
def load_encoder(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    **options: Unpack[EncoderArgs],
) -> Encoder:
    """Load an encoder, downloading it first if need be.

    Parameters
    ----------
    model : str or path
        Name in the catalogue, hub id ``"org/name"``, or folder: one that sentence-transformers has
        saved, or a model of transformers alone.
    revision : str, optional
        Revision (branch, tag or commit) of the hub repository.
    local_files_only : bool
        Never use the network.
    **options
        See `slmq.embedding.options.EncoderOptions`.

    Returns
    -------
    Encoder

    Raises
    ------
    ModelNotFoundError
        If nothing answers to this name.
    CheckpointError, UnsupportedModelError, DownloadError, TokenizerError
        If the model is damaged, of a kind that slmq lacks, or cannot be fetched.
    TypeError, ValueError
        If an option is unknown or has a wrong value; before anything is looked for.
    """
    checked = from_keywords(EncoderOptions, options)
    found = hub.resolve(model, revision=revision, local_files_only=local_files_only)
    return open_encoder(found.path, checked, name=found.name)


def open_encoder(
    path: str | os.PathLike[str],
    options: EncoderOptions | None = None,
    *,
    name: str | None = None,
    isa: str | None = None,
) -> Encoder:
    """Open an encoder's folder; errors as `load_encoder`.

    `name` is what it is called in messages, `isa` the kernels to run, as SLMQ_ISA.
    """
    options = EncoderOptions() if options is None else options
    folder = read_folder(Path(path))
    with open_model(Path(path)) as checkpoint:
        if checkpoint.layout.gguf_terms:
            folder = _of_gguf(checkpoint, folder)
        tokenizer = load_tokenizer(checkpoint)
        body, raw = load_body(checkpoint, folder, options)
        if body.family is static:
            unit = config_value(raw, "normalize", bool, folder.normalize)
            folder = replace(folder, normalize=unit, listed=True)
        if body.family is static and tokenizer.n_vocab > body.config.tokens:
            raise CheckpointError(
                f"expected vectors of {tokenizer.n_vocab} tokens, as the tokenizer has, found "
                f"{body.config.tokens}",
                file=checkpoint.path,
            )
        if isinstance(body.family, Headless) and body.verdict is None:
            words = words_of(folder, raw, tokenizer)
            if words is not None:
                body = replace(body, verdict=verdict_rows(body.weights.lm_head, words))
        called = os.fspath(path) if name is None else name
        settings = settings_of(folder, raw, body.config, called, judges=body.verdict is not None)
    if not folder.listed and body.task is None:
        log.warning(
            "%s: no modules.json says how the vectors of tokens become that of a text; it is their "
            "mean",
            path,
        )
    return Encoder(Runner(body, isa), tokenizer, settings)


def load_body(
    checkpoint: Checkpoint, folder: SentenceFolder, options: EncoderOptions
) -> tuple[EncoderBody, Mapping[str, Any]]:
    """A model with what follows it, and its configuration as stored; errors as `load_encoder`."""
    family, raw = encoder_of(checkpoint)
    threads = int(_native.resolve_threads(options.n_threads)["threads"])
    opened = open_weights(
        checkpoint,
        threads=threads,
        format=_format(checkpoint, options, family),
        memory=options.memory,
        found=(family, raw),
    )
    with tensors_of(checkpoint):
        weights = family.load(opened.reader, opened.config)
    for tensor in checkpoint.tensors:
        if tensor.endswith(UNREAD):
            opened.reader.note(tensor)
    dense = [(_dense(module, threads), module.activation) for module in folder.dense]
    verdict = None
    if checkpoint.layout.gguf_terms:
        dense += _stored_dense(opened.reader)
        if isinstance(family, Headless):
            verdict = _stored_verdict(opened.reader, weights.embed.k)
    opened.reader.tell()
    config: Any = opened.config
    _check_widths(folder, config.hidden_size)
    usual = "mixed" if isinstance(family, Headless) else "fast"
    body = EncoderBody(
        family=family,
        config=config,
        weights=weights,
        pool=folder.pool,
        dense=dense,
        typed=weights.types is not None and weights.types.n > 1,
        threads=threads,
        activations=ACTIVATIONS[options.activations or usual],
        verdict=verdict,
        weight_bytes=opened.reader.packed_nbytes + sum(one.matrix.nbytes for one, _ in dense),
    )
    return body, opened.raw_config


def _check_widths(folder: SentenceFolder, hidden: int) -> None:
    """Whether pooling and dense layers take what is before them."""
    if folder.pool_inputs not in (None, hidden):
        raise CheckpointError(
            f"expected word_embedding_dimension {hidden}, as the model has, found "
            f"{folder.pool_inputs}; if the model is the right one, correct this file",
            file=folder.pool_file,
        )
    widths = [hidden, *(module.outputs for module in folder.dense)]
    for module, width in zip(folder.dense, widths, strict=False):
        if module.inputs != width:
            raise CheckpointError(
                f"expected in_features {width}, as what is before it gives, found {module.inputs}",
                file=module.folder / "config.json",
            )


def encoder_of(checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
    """The family of an encoder, or of a decoder that embeds, and its configuration.

    Raises
    ------
    UnsupportedModelError, CheckpointError
        As `family_of`.
    """
    family, raw = family_of(checkpoint)
    if is_encoder(family):
        return family, raw
    if not any(name.endswith(HEAD) for name in checkpoint.tensors):
        raw = {**raw, "tie_word_embeddings": True}  # there is none, and none is wanted
    return Headless(family), raw


def _format(checkpoint: Checkpoint, options: EncoderOptions, family: Any) -> str | None:
    """What weights become: int8 if they are floats and nothing else is asked for.

    The int8 of encoders has one scale a row, which multiplies many rows of text fastest. Decoders
    that embed keep a scale for 32 columns: their activations differ more from each other.
    """
    if checkpoint.packed or foreign_weights(checkpoint):
        return options.format
    wanted = options.format or "int8"
    return "q8rs" if wanted == "int8" and not isinstance(family, Headless) else wanted


def _of_gguf(checkpoint: Checkpoint, folder: SentenceFolder) -> SentenceFolder:
    """What a GGUF file says of its use; its vectors have length 1, as llama.cpp makes them."""
    pool = pooling_of(checkpoint.metadata)
    return replace(folder, pool=pool or folder.pool, listed=pool is not None, normalize=True)


def _stored_dense(reader: WeightReader) -> list[tuple[Any, str]]:
    """Dense layers behind the pooling that a GGUF file holds itself."""
    found = []
    for name in DENSE:
        if reader.has(name):
            rows, columns = reader.checkpoint.tensors[name].shape
            found.append((reader.linear(name, rows, columns, floats=True), ""))
    return found


def _stored_verdict(reader: WeightReader, width: int) -> Any:
    """The rows of yes and no that a GGUF file of a reranker holds in place of an output head."""
    if not reader.has(VERDICT):
        return None
    labels = reader.checkpoint.metadata.get(
        f"{reader.checkpoint.metadata['general.architecture']}.classifier.output_labels", []
    )
    if sorted(labels) != ["no", "yes"]:
        raise UnsupportedModelError(
            f"{reader.checkpoint.path}: a head with the labels {labels!r:.80} on a decoder is not "
            f"supported; supported: yes and no"
        )
    order = np.array([labels.index("yes"), labels.index("no")], np.int32)
    return reader.linear(VERDICT, 2, width, order=order, floats=True)


def _dense(module: DenseModule, threads: int) -> Any:
    """The weights of a dense layer, which stay floats."""
    with open_checkpoint(module.folder) as checkpoint:
        reader = WeightReader(checkpoint, threads=threads)
        bias = "linear.bias" if module.bias else None
        return reader.linear("linear.weight", module.outputs, module.inputs, bias=bias)
