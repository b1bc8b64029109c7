"""Print a model's answer and a hash of its logits as JSON, to compare machines.

    python tools/answer.py [MODEL] [--prompt TEXT] [--max-tokens N] [--format FORMAT]

Without MODEL it is a tiny random one of the tests, in int4. stdout is the same on every machine;
CPU and kernels stand on stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import get_args

import slmq
from slmq.machine.runtime import runtime_info
from slmq.settings import WeightFormat

TESTS = Path(__file__).resolve().parents[1] / "tests"


def make_tiny_model(folder: Path) -> Path:
    """A random Llama of odd sizes with a tokenizer of bytes."""
    sys.path.insert(0, str(TESTS / "support"))
    from byte_tokenizer import byte_tokenizer

    shutil.copytree(TESTS / "goldens" / "llama" / "odd_sizes", folder / "tiny")
    byte_tokenizer().save(str(folder / "tiny" / "tokenizer.json"))
    return folder / "tiny"


def answer(
    model: str, prompt: str, max_tokens: int, format: WeightFormat | None
) -> dict[str, object]:
    """What the model says, greedily, and a hash of the bits of the prompt's logits."""
    with slmq.load(model, format=format) as m:
        logits = m.logits(prompt)
        said = m.generate(prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return {
        "prompt": prompt,
        "text": said.text,
        "tokens": list(said.tokens),
        "logits": list(logits.shape),
        "sha256": hashlib.sha256(logits.tobytes()).hexdigest(),
    }


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--format", choices=get_args(WeightFormat))
    options = parser.parse_args()
    facts = runtime_info()
    print(f"{facts['cpu']}: {facts['isa']}, {facts['threads']} threads", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        tiny = options.model is None
        model = str(make_tiny_model(Path(folder))) if tiny else options.model
        wanted = options.format or ("int4" if tiny else None)
        print(json.dumps(answer(model, options.prompt, options.max_tokens, wanted)))


if __name__ == "__main__":
    main()
