"""Text to token ids and back, and chats to prompts, as the model's own tokenizer does it.

`load_tokenizer` reads the tokenizer of a checkpoint: ``tokenizer.json`` and its companions in a
folder, or the metadata of a GGUF file.
"""

from __future__ import annotations

from slmq.checkpoint import Checkpoint
from slmq.errors import TokenizerError
from slmq.tokenizer.gguf import load_gguf
from slmq.tokenizer.hf_json import load_folder
from slmq.tokenizer.stream import StreamDecoder
from slmq.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Read the tokenizer of a checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
        An open GGUF file or safetensors folder; not needed any more afterwards.

    Returns
    -------
    Tokenizer
        Ready for use.

    Raises
    ------
    TokenizerError
        The tokenizer is missing, corrupt, or of a kind that slmq lacks.
    CheckpointError
        A file beside ``tokenizer.json`` is corrupt.
    """
    try:
        if checkpoint.holds_tokenizer:
            return load_gguf(checkpoint)
        return load_folder(checkpoint)
    except TokenizerError as e:
        raise TokenizerError(f"{checkpoint.path}: {e}") from e
