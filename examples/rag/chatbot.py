"""A chatbot over a folder of documents, offline: two small models on the CPU, no other program.

    python examples/rag/chatbot.py [DOCUMENTS]

all-MiniLM-L6-v2 finds the passages, SmolLM2-135M-Instruct answers from them. The index lies beside
the documents; from the second start on, only files that have changed are read. With lines on stdin
it answers those; in a terminal it asks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import slmq

HERE = Path(__file__).parent


def answer(index: slmq.Index, model: slmq.Model, question: str) -> str:
    """The answer, and where it comes from: the sentence of each source that is nearest."""
    found = index.ask(question, model, top_k=2)
    sources = [
        f"  [{number}] {Path(hit.source).name}, line {hit.line}: {found.quote(number)}"
        for number, hit in enumerate(found.sources, 1)
    ]
    return "\n".join([found.text, *sources])


def main() -> None:
    """Index the documents, then answer questions until there are no more."""
    documents = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "documents"
    folder = documents.with_name(documents.name + ".index")
    with slmq.Index(folder) as index, slmq.load("smollm2-135m-instruct") as model:
        print(index.add(documents), file=sys.stderr)
        prompt = "? " if sys.stdin.isatty() else ""
        while True:
            try:
                question = input(prompt).strip()
            except EOFError:
                return
            if question:
                print(answer(index, model, question), flush=True)


if __name__ == "__main__":
    main()
