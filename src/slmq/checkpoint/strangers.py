"""Files and folders that are no model, named for what they are.

A name ends in ``.gguf`` or ``.safetensors`` for many reasons; the error says which it is, and what
to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmq.checkpoint.mapped import MappedFile

__all__ = [
    "RESOURCE_FORK",
    "became_text",
    "describe_folder",
    "describe_start",
    "known_stranger",
    "text_error",
    "visible",
]

RESOURCE_FORK = "._"  # how macOS names what other file systems cannot hold beside a file

STARTS = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself; run `git lfs pull` or download the file",
    ),
    (
        b"\x00\x05\x16\x07",
        "a resource fork of macOS (its name begins with ._), not the file itself, which has the "
        "name without ._",
    ),
    (b"PK\x03\x04", "a zip archive, as PyTorch writes; convert the model to safetensors"),
    (b"\x80\x02", "a Python pickle, as PyTorch wrote; convert the model to safetensors"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"\xfd7zXZ", "an xz archive; unpack it"),
    (b"7z\xbc\xaf", "a 7-zip archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes; convert the model to safetensors"),
    (b"lmgg", "a GGML file from before GGUF; convert the model anew"),
    (b"tjgg", "a GGML file from before GGUF; convert the model anew"),
    (b"fmgg", "a GGML file from before GGUF; convert the model anew"),
    (b"algg", "a GGML file from before GGUF; convert the model anew"),
    (b"GGUF", "a GGUF file; give it a name that ends in .gguf, and its path"),
)
# File names that tell a folder of something else, and what it is.
FOLDERS = (
    (
        "adapter_config.json",
        "a LoRA adapter, not a model: merge it into its base model with peft "
        "(`PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new)`)",
    ),
    ("model_index.json", "a diffusers pipeline, which makes pictures"),
    ("consolidated.safetensors", "weights in Mistral's own layout; take the Hugging Face files"),
    ("params.json", "weights in Meta's or Mistral's own layout; take the Hugging Face files"),
    ("openvino_model.xml", "a model of OpenVINO; take the one it was made from"),
    ("tf_model.h5", "TensorFlow weights only; convert them to safetensors with transformers"),
    ("flax_model.msgpack", "Flax weights only; convert them to safetensors with transformers"),
)
ENDINGS = ((".onnx", "an ONNX model; take the one it was made from"),)
SAMPLE = 4 << 20
ENOUGH = 16  # line feeds in a sample that show how they are written


def known_stranger(start: bytes) -> str | None:
    """What a file is by its first bytes, where they are of something known."""
    for magic, what in STARTS:
        if start.startswith(magic):
            return what
    if start.lstrip()[:1] == b"<":
        return "an HTML or XML page, perhaps the error page of a download"
    return None


def describe_start(start: bytes) -> str:
    """Say what a file that is not a checkpoint looks like, from its first bytes."""
    if known := known_stranger(start):
        return known
    if start[8:10] == b'{"':
        return "a safetensors file; give the folder that holds it and its config.json"
    return f"a file that begins with {start[:4]!r}"


def describe_folder(names: list[str]) -> str | None:
    """What a folder without weights that slmq reads is, by the names in it."""
    for name, what in FOLDERS:
        if name in names:
            return what
    for ending, what in ENDINGS:
        if any(name.endswith(ending) for name in names):
            return what
    return None


def visible(names: list[str]) -> list[str]:
    """Names without the resource forks that macOS leaves on other file systems."""
    return [name for name in names if not name.startswith(RESOURCE_FORK)]


def became_text(file: MappedFile) -> bool:
    """Whether a binary file went through a program that ends lines with carriage returns.

    Of the line feeds in binary data one in 256 has a carriage return before it by chance.
    """
    sample = file.buffer[:SAMPLE]
    feeds = sample.count(b"\n")
    return feeds >= ENOUGH and sample.count(b"\r\n") == feeds


def text_error(path: Path) -> str:
    """The message for such a file."""
    return (
        f"every line feed in {path.name} has a carriage return before it: the file was changed as "
        f"if it were text (git's autocrlf, FTP in text mode); copy or download it again as binary"
    )
