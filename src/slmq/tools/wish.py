"""What a caller wants of tools and reasoning, checked."""

from __future__ import annotations

from dataclasses import dataclass

from slmq.tools.tool import Tool

__all__ = ["CHOICES", "Wish"]

CHOICES = ("auto", "required", "none")


@dataclass(frozen=True)
class Wish:
    """What a caller wants of tools and reasoning.

    Attributes
    ----------
    tools : tuple of Tool
    choice : str
        "auto", "required", "none" or the name of a tool.
    several : bool
        Whether an answer may have more than one call.
    dialect : str or None
        A name instead of what the template tells.
    thinking : bool or None
        Whether the model reasons, where its template leaves the choice.
    """

    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    several: bool = True
    dialect: str | None = None
    thinking: bool | None = None

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if self.choice not in CHOICES and self.choice not in names:
            expected = ", ".join((*CHOICES, *names))
            raise ValueError(f"tool_choice: expected one of {expected}; got {self.choice!r}")
        if self.choice == "required" and not names:
            raise ValueError("tool_choice: expected 'auto' or 'none' without tools, got 'required'")

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that the answer may call."""
        if self.choice == "none":
            return ()
        if self.choice in CHOICES:
            return self.tools
        return tuple(tool for tool in self.tools if tool.name == self.choice)
