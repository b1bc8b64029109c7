"""Messages with nulls and lists of parts: what a template asks for is what it gets."""

from __future__ import annotations

from typing import Any

import pytest
from chat_templates import FAMILY_TEMPLATES

from slmq.chat.templates import ChatTemplates
from slmq.errors import TemplateError

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "w?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "21"},
]


def render(template: str, messages: Any = CHAT) -> str:
    return ChatTemplates({"default": template}, {}).render(
        messages, add_generation_prompt=False, tools=None, extra={}
    )


def test_a_template_that_asks_for_null_content_gets_it() -> None:
    """As DeepSeek-R1-Distill's: content is none where there are calls, and split elsewhere."""
    template = (
        "{% for m in messages %}"
        "{% if m['role'] == 'assistant' and m['content'] is none %}"
        "<call>{{ m['tool_calls'][0]['function']['name'] }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'].split('</think>')[-1] }}"
        "{% else %}<{{ m['role'] }}>{{ m['content'] }}{% endif %}{% endfor %}"
    )
    assert render(template) == "<user>w?<call>f<tool>21"


def test_a_template_that_would_be_silent_about_it_gets_it_too() -> None:
    template = (
        "{% for m in messages %}{% if m.content is not none %}{{ m.content }}{% else %}"
        "<call>{% endif %}{% endfor %}"
    )
    assert render(template) == "w?<call>21"


def test_a_template_that_fails_without_it_gets_it() -> None:
    """As LFM2's: what is no string is written as JSON."""
    template = (
        "{% for m in messages %}<{{ m.role }}>{% set c = m['content'] %}"
        "{% if c is not string %}{% set c = c | tojson %}{% endif %}{{ c }}{% endfor %}"
    )
    assert render(template) == "<user>w?<assistant>null<tool>21"


def test_a_template_that_writes_content_does_not_say_none() -> None:
    assert render("{% for m in messages %}[{{ m.content }}]{% endfor %}") == "[w?][][21]"
    assert render("{% for m in messages %}{{ '-' ~ m.content }}{% endfor %}") == "-w?--21"


def test_the_first_failure_is_told() -> None:
    with pytest.raises(TemplateError, match="'dict object' has no attribute 'content'"):
        render("{% for m in messages %}{{ m.content + '' }}{% endfor %}")


def test_other_nulls_are_as_good_as_absent() -> None:
    messages = [{"role": "user", "content": "x", "tool_calls": None, "name": None}]
    assert render("{{ messages[0] | tojson }}", messages) == '{"role": "user", "content": "x"}'


PARTS = [{"type": "text", "text": " a "}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize("place", ["m.content", "m['content']", 'm["content"]'])
def test_parts_reach_a_template_that_takes_them_apart(place: str) -> None:
    template = (
        "{%- for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        f"{{% for part in {place} %}}<{{{{ part.text | trim }}}}>{{% endfor %}}"
        "{% endif %}{% endfor %}"
    )
    assert render(template, [{"role": "user", "content": PARTS}]) == "<a><b>"
    assert render(template, [{"role": "user", "content": "c"}]) == "c"


def test_parts_are_one_text_elsewhere() -> None:
    template = "{{ messages[0].content | trim }}"
    assert render(template, [{"role": "user", "content": PARTS}]) == "a b"


def test_parts_are_as_transformers_gives_them() -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [{"role": "user", "content": PARTS}]
    taken = [t for t in FAMILY_TEMPLATES.values() if " in message['content']" in t]
    assert taken
    for template in taken:
        chat = ChatTemplates({"default": template}, {"bos_token": "<s>"})
        ours = chat.render(messages, add_generation_prompt=True, tools=None, extra={})
        theirs = utils.render_jinja_template(
            conversations=[messages],
            chat_template=template,
            add_generation_prompt=True,
            bos_token="<s>",
        )
        assert ours == theirs[0][0]
