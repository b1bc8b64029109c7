"""Tokens that end a turn, recognised by how they are written.

Files name one end token, and models end their turns with others as well: an instruct model keeps
that of the base model it was made from, and Llama 3 has three. A model that emits any of these has
finished.
"""

from __future__ import annotations

from slmq.tokenizer.pieces import SPACE_MARK

__all__ = ["END_OF_TURN"]

BAR = "\N{FULLWIDTH VERTICAL LINE}"

END_OF_TURN = frozenset(
    {
        "<|endoftext|>",  # GPT-2, Qwen, StableLM, Phi
        "<|end_of_text|>",  # Llama 3, Granite
        "<|eot_id|>",  # Llama 3
        "<|eom_id|>",  # Llama 3.1: a message to a tool
        "<|im_end|>",  # ChatML: SmolLM2, Qwen, StableLM
        "<|end|>",  # Phi-3
        "<end_of_turn>",  # Gemma
        f"<{BAR}end{SPACE_MARK}of{SPACE_MARK}sentence{BAR}>",  # DeepSeek
        "<EOT>",
    }
)
