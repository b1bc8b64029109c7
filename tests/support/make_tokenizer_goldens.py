"""Ask the references for the ids of every tokenizer case and keep digests of their answers.

Run by hand, in an environment with transformers, sentencepiece, gguf and llama-cpp-python::

    python tests/support/tokenizer_vocabularies.py     # trains the vocabularies anew; rarely
    python tests/support/make_tokenizer_goldens.py     # all cases, or those named
"""

from __future__ import annotations

import json
import sys
import tempfile
import unicodedata
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixed_lines import digests
from tokenizer_cases import CASES, IDS, Case

SAMPLE = 7  # lines whose ids are kept, for people
# llama.cpp leaves out the normal form that these models' own tokenizers bring text to.
NFC = {"gguf/qwen2"}


def reference(name: str, case: Case, path: Path) -> Callable[[str], list[int]]:
    """How a case's reference encodes."""
    if case.reference == "transformers":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path)
        return lambda text: list(tokenizer.encode(text))
    if case.reference == "sentencepiece":
        return sentencepiece_reference(path)
    import llama_cpp

    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)

    def encode(text: str) -> list[int]:
        text = unicodedata.normalize("NFC", text) if name in NFC else text
        ids: list[int] = model.tokenize(text.encode(), add_bos=True, special=True)
        return ids

    return encode


def sentencepiece_reference(path: Path) -> Callable[[str], list[int]]:
    """SentencePiece's own library, which takes special tokens for text."""
    import sentencepiece

    (file,) = path.glob("*.model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return lambda text: list(model.encode(text))


def main() -> None:
    """Update the goldens."""
    goldens: dict[str, Any] = json.loads(IDS.read_text("utf-8")) if IDS.exists() else {}
    packages = {"llama.cpp": "llama-cpp-python"}
    for name, case in CASES.items():
        if sys.argv[1:] and not any(name.startswith(wanted) for wanted in sys.argv[1:]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            encode = reference(name, case, case.write(Path(folder)))
            package = packages.get(case.reference, case.reference)
            goldens[name] = {
                "reference": f"{package} {version(package)}",
                "digests": digests(encode, case.lines),
                "sample": [encode(line) for line in case.lines[4 : 4 + SAMPLE]],
            }
            print(name, goldens[name]["sample"][0][:12])
    goldens = {name: goldens[name] for name in CASES if name in goldens}
    lines = [f" {json.dumps(name)}: {json.dumps(found)}" for name, found in goldens.items()]
    IDS.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
