"""Chat templates: the same text as transformers, checked messages, and a sandbox that holds."""

from __future__ import annotations

import json
import threading
from datetime import datetime, tzinfo
from typing import Any

import pytest
from chat_cases import CHATS, RENDERED, SPECIAL_TOKENS, TEMPLATES, WEATHER, cases
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq.chat.templates import ChatTemplates
from slmq.errors import TemplateError

USER = [{"role": "user", "content": "hi"}]


def render(template: str, messages: Any = USER, tools: Any = None, **extra: Any) -> str:
    """Render one template that is the default one."""
    extra.setdefault("add_generation_prompt", True)
    chat = ChatTemplates({"default": template}, SPECIAL_TOKENS)
    prompt = extra.pop("add_generation_prompt")
    return chat.render(messages, add_generation_prompt=prompt, tools=tools, extra=extra)


# The same text as transformers ------------------------------------------------------------------

EXPECTED = json.loads(RENDERED.read_text(encoding="utf-8"))


def test_every_case_has_its_golden() -> None:
    assert sorted(EXPECTED) == sorted(f"{template}/{chat}" for template, chat in cases())
    refused = [name for name, text in EXPECTED.items() if text.startswith("TemplateError")]
    assert 0 < len(refused) < len(EXPECTED) / 2


@pytest.mark.parametrize(("template", "chat"), cases())
def test_renders_as_transformers_does(template: str, chat: str) -> None:
    expected = EXPECTED[f"{template}/{chat}"]
    refusal = expected.removeprefix("TemplateError: ")
    if refusal != expected:
        with pytest.raises(TemplateError) as caught:
            render(TEMPLATES[template], **CHATS[chat])
        assert refusal in str(caught.value)
    else:
        assert render(TEMPLATES[template], **CHATS[chat]) == expected


def test_dates_are_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Clock:
            return cls(2026, 3, 9, 7, 5, tzinfo=tz)

    monkeypatch.setattr("slmq.chat.sandbox.datetime", Clock)
    assert render("{{ strftime_now('%d %b %Y, %H:%M') }}") == "09 Mar 2026, 07:05"
    assert "Today: 09 Mar 2026" in render(TEMPLATES["headers"])


def test_reasoning_has_all_of_its_names() -> None:
    template = "{{ messages[0] | tojson }}"
    for name in ("reasoning", "reasoning_content", "thinking"):
        said = {"role": "assistant", "content": "x", name: "y"}
        known = json.loads(render(template, [said]))
        assert known == {**said, "thinking": "y", "reasoning_content": "y"}
    assert "thinking" not in render(template, [{"role": "assistant", "content": "x"}])


PIPES = ChatTemplates({"default": TEMPLATES["pipes"]}, SPECIAL_TOKENS)


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text()}
        ),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_any_content_comes_through(messages: list[dict[str, str]], prompt: bool) -> None:
    expected = "".join(f"<|{m['role']}|>\n{m['content']}</s>\n" for m in messages)
    expected += "<|assistant|>\n" if prompt else ""
    text = PIPES.render(messages, add_generation_prompt=prompt, tools=None, extra={})
    assert text == expected


# Choice of the template -------------------------------------------------------------------------


def test_tools_choose_their_own_template() -> None:
    chat = ChatTemplates({"default": "plain", "tool_use": "{{ tools | length }} tools"}, {})
    options: dict[str, Any] = {"add_generation_prompt": True, "extra": {}}
    assert chat.render(USER, tools=None, **options) == "plain"
    assert chat.render(USER, tools=[WEATHER], **options) == "1 tools"
    assert chat.default == "plain"


def test_no_template_says_what_to_do() -> None:
    chat = ChatTemplates({}, {})
    assert chat.default is None
    with pytest.raises(TemplateError, match="pass the prompt as a string"):
        chat.render(USER, add_generation_prompt=True, tools=None, extra={})
    chat = ChatTemplates({"rag": "x"}, {})
    with pytest.raises(TemplateError, match="'rag'"):
        chat.render(USER, add_generation_prompt=True, tools=None, extra={})


# Messages ---------------------------------------------------------------------------------------


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "ab"


def test_messages_are_copied() -> None:
    message = {"role": "user", "content": "x", "tool_calls": None, "extra": {"k": (1, 2.5, True)}}
    template = "{{ messages[0] | tojson }}"
    expected = '{"role": "user", "content": "x", "extra": {"k": [1, 2.5, true]}}'
    assert render(template, (message,)) == expected
    assert "tool_calls" in message


@pytest.mark.parametrize(
    ("messages", "error", "match"),
    [
        ("hi", TypeError, "expected a list of messages.* got str"),
        (None, TypeError, "got NoneType"),
        ({"role": "user", "content": "x"}, TypeError, "got dict"),
        ([], ValueError, "at least one message"),
        (["hi"], TypeError, r"messages\[0\]: expected a mapping with role and content, got str"),
        ([*USER, {"content": "x"}], TypeError, r"messages\[1\]: expected a role.* got no role"),
        ([{"role": 1, "content": "x"}], TypeError, "got int"),
        ([{"role": "user"}], ValueError, "expected content"),
        ([{"role": "user", "content": None}], ValueError, "expected content"),
        ([{"role": "user", "content": b"x"}], TypeError, "got bytes"),
        ([{"role": "user", "content": 5}], TypeError, "got int"),
        ([{"role": "user", "content": ["x"]}], TypeError, r"content\[0\].*got str"),
        (
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
            ValueError,
            "reads text only",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], TypeError, "got NoneType"),
        ([{"role": "user", "content": "a\ud800"}], ValueError, r"U\+D800 at index 1"),
        ([{"role": "user", "content": "x", "name": object()}], TypeError, "messages.*name.*object"),
    ],
)
def test_malformed_messages(messages: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        render("{{ messages[0].content }}", messages)


def nested(depth: int, kind: type = list) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


@pytest.mark.parametrize("kind", [list, dict])
@pytest.mark.parametrize("depth", [101, 200_000])
def test_messages_that_are_nested_too_deep(depth: int, kind: type) -> None:
    deep = nested(depth, kind)
    itself: list[Any] = []
    itself.append(itself)
    for value in (deep, itself):
        message = {"role": "user", "content": "x", "extra": value}
        with pytest.raises(ValueError, match=r"messages\[0\].*nested up to 100 deep"):
            render("x", [message])
        with pytest.raises(ValueError, match=r"nested up to 100 deep"):
            render("x", tools=[{"a": value}])
        with pytest.raises(ValueError, match=r"nested up to 100 deep"):
            render("x", more=value)
        with pytest.raises(ValueError, match=r"expected a part of type 'text', got (list|dict)"):
            render("x", [{"role": "user", "content": [{"type": value}]}])
    assert render("{{ messages[0].extra | tojson }}", [message | {"extra": nested(90, kind)}])


@pytest.mark.parametrize("tools", ["x", {"a": 1}, [print], [1]])
def test_malformed_tools(tools: Any) -> None:
    with pytest.raises(TypeError, match="tools"):
        render("x", tools=tools)


def test_extra_variables_are_data() -> None:
    assert render("{{ a.b[0] }}", a={"b": ["c"]}) == "c"
    with pytest.raises(TypeError, match="a: expected JSON data"):
        render("{{ a }}", a=open)


# Broken templates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}",
        "{{ messages",
        "{% nonsense %}",
        "{{ 'a' | no_such_filter }}",
        "{% for a in b %}" * 60 + "{% endfor %}" * 60,
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "x" * ((1 << 19) + 1),
    ],
    ids=["open block", "open braces", "unknown tag", "unknown filter", "nested", "deep", "long"],
)
def test_invalid_templates(template: str) -> None:
    with pytest.raises(TemplateError, match="chat template"):
        render(template)


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{{ raise_exception('no ' ~ messages[0].role) }}", "refuses.*no user"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        ("{{ missing.attribute }}", "'missing' is undefined"),
        ("{{ missing() }}", "'missing' is undefined"),
        ("{{ missing | tojson }}", "TypeError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_failing_templates(template: str, match: str) -> None:
    with pytest.raises(TemplateError, match=match):
        render(template)


# The sandbox ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ messages.__class__.__base__ }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ '{0.__class__}'.format_map({'0': 1}) }}",
        "{{ ('{0.__class__}'|attr('format'))(1) }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ strftime_now.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('id') }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__dict__ = {} %}",
        "{% set ns = namespace() %}{{ ns.__init__.__globals__ }}",
        "{{ dict.__call__.__globals__ }}",
        "{{ range.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].pop('role') }}",
        "{{ [].__class__.__base__.__subclasses__()[0] }}",
        "{{ 'a'.encode() }}",
        "{{ (5).to_bytes(9, 'big') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ lipsum() }}",
    ],
)
def test_no_way_out(template: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    try:
        text = render(template, messages)
    except TemplateError:
        pass
    else:
        # Names that lead out are undefined and print as nothing.
        assert text.strip() == ""
    assert messages == [{"role": "user", "content": "hi"}]


def test_the_meter_leaves_real_work_alone() -> None:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": "lorem ipsum " * 100} for i in range(401)
    ]
    assert len(render(TEMPLATES["instruct"], messages)) > 401 * 1200
    tools = [WEATHER] * 200
    assert render("{{ tools | tojson(indent=4) }}", tools=tools).count('"city"') == 400


def test_renderings_do_not_share_a_meter() -> None:
    chat = ChatTemplates({"default": "{{ messages[0].content * 9 }}"}, {})
    options: dict[str, Any] = {"add_generation_prompt": True, "tools": None, "extra": {}}
    texts: list[str] = []

    def work() -> None:
        messages = [{"role": "user", "content": "x" * 100_000}]
        texts.extend(chat.render(messages, **options) for _ in range(40))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["x" * 900_000] * 320
