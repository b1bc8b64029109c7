"""Compiling and running chat templates. Imported when the first one is needed: jinja2 is large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from slmq.chat.meter import Meter
from slmq.chat.sandbox import TemplateSandbox
from slmq.errors import TemplateError

__all__ = ["compile_template", "run_template"]

MAX_SOURCE = 1 << 20  # characters; real templates have hundreds to tens of thousands


def run_template(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Render a template; whatever goes wrong in it is a `TemplateError`."""
    token = Meter.current.set(Meter())
    try:
        return template.render(variables)
    except jinja2.exceptions.SecurityError as e:
        raise TemplateError(f"the chat template was stopped: {e}") from e
    except jinja2.TemplateError as e:
        raise TemplateError(f"the chat template refuses these messages: {e}") from e
    except (Exception, RecursionError) as e:
        # The template is a program of somebody else's: any error in it is an error of it.
        raise TemplateError(f"the chat template failed: {type(e).__name__}: {e!s:.400}") from e
    finally:
        Meter.current.reset(token)


def compile_template(source: str) -> jinja2.Template:
    """Compile a template in a sandbox of its own."""
    if len(source) > MAX_SOURCE:
        raise TemplateError(
            f"expected a chat template of at most {MAX_SOURCE} characters, got {len(source)}"
        )
    try:
        return TemplateSandbox().from_string(source)
    except jinja2.TemplateSyntaxError as e:
        raise TemplateError(f"the chat template is invalid: line {e.lineno}: {e.message}") from e
    except Exception as e:
        # Also what Python's own compiler makes of the result: too deeply nested, too large.
        raise TemplateError(
            f"the chat template cannot be compiled: {type(e).__name__}: {e!s:.400}"
        ) from e
