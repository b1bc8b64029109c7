"""Compiling and running chat templates. Imported when the first one is needed: jinja2 is large."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import jinja2

from slmq.chat.meter import BUDGET, Meter
from slmq.chat.sandbox import TemplateSandbox, forget
from slmq.errors import TemplateError

__all__ = ["compile_template", "run_template"]

MAX_SOURCE = 1 << 19  # characters; real templates have hundreds to tens of thousands
COLLECT = BUDGET - (32 << 20)
"""Of the budget: below, so much may be left in circles that it is collected at once."""
MAX_MESSAGE = 4000  # of them in an error


def run_template(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Render a template; whatever goes wrong in it is a `TemplateError`."""
    context = template.new_context(dict(variables))
    meter = Meter()
    token = Meter.current.set(meter)
    try:
        return template.environment.concat(template.root_render_func(context))
    except jinja2.exceptions.SecurityError as e:
        refusal = f"the chat template was stopped: {said(e)}"
    except jinja2.TemplateError as e:
        refusal = f"the chat template refuses these messages: {said(e)}"
    except Exception as e:
        # The template is a program of somebody else's: any error in it is an error of it.
        refusal = f"the chat template failed: {type(e).__name__}: {said(e)}"
    finally:
        Meter.current.reset(token)
        forget(context, meter.namespaces)
        if meter.left < COLLECT:
            gc.collect()
    # Without the cause, whose frames would keep all that the template made.
    raise TemplateError(refusal)


def said(error: Exception) -> str:
    """What an error says, if it is a text: of a key that was not found, it is the key."""
    message = error.args[0] if error.args else ""
    return message[:MAX_MESSAGE] if isinstance(message, str) else type(message).__name__


def compile_template(source: str) -> jinja2.Template:
    """Compile a template in a sandbox of its own."""
    if len(source) > MAX_SOURCE:
        raise TemplateError(
            f"expected a chat template of at most {MAX_SOURCE} characters, got {len(source)}"
        )
    token = Meter.current.set(Meter())
    try:
        return TemplateSandbox().from_string(source)
    except jinja2.TemplateSyntaxError as e:
        refusal = f"the chat template is invalid: line {e.lineno}: {e.message}"
    except Exception as e:
        # Also what Python's own compiler makes of the result: too deeply nested, too large.
        refusal = f"the chat template cannot be compiled: {type(e).__name__}: {said(e)}"
    finally:
        Meter.current.reset(token)
    raise TemplateError(refusal)
