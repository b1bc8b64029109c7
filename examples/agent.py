"""An agent in ten lines: a small model answers questions with functions of this file, offline.

    python examples/agent.py [MODEL]

SmolLM2-135M, the default, was never taught to call functions; `tool_choice="required"` makes it
call one first, and its arguments are always valid.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Literal

import slmq

QUESTIONS = (
    "What is 37 multiplied by 21?",
    "What is the price of an apple?",
    "How large is the file todo.txt?",
)
FRUIT = [("apple", 0.5), ("pear", 0.75), ("cherry", 0.1)]


def multiply(a: float, b: float) -> float:
    """Multiply two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a * b


def price(fruit: Literal["apple", "pear", "cherry"]) -> str:
    """Look up the price of a fruit.

    Args:
        fruit: Name of the fruit.
    """
    with sqlite3.connect(FOLDER / "shop.db") as shop:
        (found,) = shop.execute("SELECT price FROM fruit WHERE name = ?", (fruit,)).fetchone()
    return f"{found} dollars"


def file_size(name: Literal["notes.txt", "todo.txt"]) -> str:
    """Tell how many bytes a file has.

    Args:
        name: Name of the file.
    """
    return f"{(FOLDER / name).stat().st_size} bytes"


def main(model: str = "smollm2-135m-instruct") -> None:
    """Ask the questions, and show what is called."""
    with sqlite3.connect(FOLDER / "shop.db") as shop:
        shop.execute("CREATE TABLE fruit (name TEXT, price REAL)")
        shop.executemany("INSERT INTO fruit VALUES (?, ?)", FRUIT)
    (FOLDER / "notes.txt").write_bytes(b"Buy milk and bread.\n")
    (FOLDER / "todo.txt").write_bytes(b"Call Ada at noon.\n")

    def show(call: slmq.ToolCall) -> None:
        arguments = ", ".join(f"{key}={value!r}" for key, value in call.arguments.items())
        print(f"  calls {call.name}({arguments})")

    with slmq.load(model) as m:
        for question in QUESTIONS:
            print(question)
            chat = m.chat(
                tools=[multiply, price, file_size],
                tool_choice="required",
                max_rounds=1,
                on_call=show,
                max_tokens=60,
            )
            answer = chat.send(question)
            print(f"  is told {chat.messages[2]['content']}")
            print(f"  says {answer.text}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        FOLDER = Path(folder)
        main(*sys.argv[1:2])
