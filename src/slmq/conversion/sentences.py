"""What sentence-transformers keeps beside a model, so that a new folder embeds as the old one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from slmq.checkpoint import Checkpoint
from slmq.checkpoint.modules import MODELS, MODULES, read_modules
from slmq.errors import UnsupportedModelError
from slmq.models.parts.encoder_gguf import pooling_of

__all__ = ["copy_sentences", "write_sentences"]

SETTINGS = ("config_sentence_transformers.json",)
OF_THE_MODEL = ("sentence_bert_config.json",)
WORDS = {"last": "lasttoken"}  # of kinds of pooling, where sentence-transformers' differ
OF_A_MODULE = ("config.json", "model.safetensors")  # pooling and dense layers


def copy_sentences(path: Path, target: Path) -> None:
    """Copy the list of modules, settings, and every module but the model, which lies at the top.

    Raises
    ------
    CheckpointError
        If the list of modules cannot be read.
    OSError
        If a file cannot be copied.
    """
    modules = read_modules(path)
    if not modules:
        return
    listed = []
    for number, module in enumerate(modules):
        place = "" if module.kind in MODELS else module.place
        listed.append({"idx": number, "name": str(number), "path": place, "type": module.type})
        if module.kind in MODELS:
            _copy(path / module.place, target, OF_THE_MODEL)
        elif place:
            (target / place).mkdir(parents=True, exist_ok=True)
            _copy(path / place, target / place, OF_A_MODULE)
    _copy(path, target, SETTINGS)
    (target / MODULES).write_text(json.dumps(listed, indent=2) + "\n", "utf-8")


def write_sentences(checkpoint: Checkpoint, target: Path) -> None:
    """Write of a GGUF file what `copy_sentences` copies of a folder: pooling, and length 1.

    Raises
    ------
    UnsupportedModelError
        If the file names an unknown kind of pooling, or holds dense layers behind it.
    """
    if not checkpoint.layout.gguf_terms or (pool := pooling_of(checkpoint.metadata)) is None:
        return
    if "dense_2.weight" in checkpoint.tensors:
        raise UnsupportedModelError(
            f"{checkpoint.path}: dense layers behind the pooling are not converted; load the file "
            f"itself, or convert the folder that it was made of"
        )
    kinds = {MODELS[0]: "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    listed = [
        {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, place) in enumerate(kinds.items())
    ]
    (target / MODULES).write_text(json.dumps(listed, indent=2) + "\n", "utf-8")
    (target / kinds["Pooling"]).mkdir()
    config = {"pooling_mode": WORDS.get(pool, pool)}
    (target / kinds["Pooling"] / "config.json").write_text(json.dumps(config) + "\n", "utf-8")


def _copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
