"""Chat templates in the manner of well-known families, chats, and what transformers makes of them.

``python tests/support/chat_cases.py`` renders every case with transformers and writes
``tests/goldens/chat_rendered.json``. The tests compare with that file and need no transformers.
"""

from __future__ import annotations

import json
from typing import Any

from chat_templates import FAMILY_TEMPLATES
from places import GOLDENS
from tool_templates import TOOL_TEMPLATES

RENDERED = GOLDENS / "chat_rendered.json"

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

CHATML = """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nYou answer in few words.<|im_end|>\\n' }}
    {% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""

HEADERS = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "Answer with JSON to call one of these functions.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("One call at a time, please") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", ' + '"parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and
               message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

TOOL_TAGS = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\nSignatures inside <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nReply with <tool_call>{\\"name\\": ..., \\"arguments\\": ...}" }}
    {{- "</tool_call>.<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and not
           message.content.startswith('<tool_response>') %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content if message.content is defined else '' %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and reasoning %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') }}
            {{- '\\n</think>\\n\\n' }}
            {{- content }}
        {%- else %}
            {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

INSTRUCT = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the system message, user and assistant take turns") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""

PIPES = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

# Everything else that jinja2 and transformers offer and templates use here and there.
CORNERS = """{%- macro header(role, sep=' ') -%}
    <{{ role | upper }}{{ sep }}{{ caller() if caller }}>
{%- endmacro -%}
{#- a comment that leaves no trace -#}
{%- set order = {'system': 0, 'user': 1}.items() | list -%}
{{- order | length }}|{{ dict(a=1, b=[2, 3]) | tojson(sort_keys=true) }}|{{ none }}|{{ missing }}|
{%- for message in messages if message.role != 'system' %}
    {%- if loop.index > 4 %}{% break %}{% endif %}
    {%- if message.content == 'skip' %}{% continue %}{% endif %}
    {{- header(message.role) }}
    {%- call header(message.role, sep='/') %}{{ loop.index }} of {{ loop.length }}{% endcall %}
    {%- generation %}{{ message.content[:9] ~ '...' }}{% endgeneration %}
    {{- ['a', 'b', 'c'] | join('-') }}{{ '%s:%03d' | format('n', 7) }}{{ '%.2f' % 1.5 }}
    {{- message.content | replace('o', '0') | indent(2) }}{{ loop.cycle('x', 'y') }}
    {{- loop.changed(message.role) }}{{ loop.revindex }}{{ loop.previtem.role if not loop.first }}
    {{- '{} {name}'.format(message.role, name='z') }}{{ 'ab' * 2 }}{{ [1] * 2 + [3] }}{{ 2 ** 5 }}
{%- else %}
    nobody
{%- endfor %}
{{- messages | map(attribute='role') | join(',') }};{{ messages | selectattr('role', 'equalto',
    'user') | list | length }};{{ range(3) | list }};{{ 'b' in 'abc' }};{{ (1, 2)[0] }};
{{- messages | groupby('role') | map('first') | join('/') }};{{ '<&>' }};{{ '<&>' | e }};
{{- bos_token }}{{ unk_token }}{{ namespace(a=1).a }}{{ 7 // 2 }}{{ -7 % 3 }}{{ 1.0 }}{{ true }}
"""

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "tool_tags": TOOL_TAGS,
    "instruct": INSTRUCT,
    "pipes": PIPES,
    "corners": CORNERS,
    **FAMILY_TEMPLATES,
    **TOOL_TEMPLATES,
}

HELLO = [{"role": "user", "content": "Why is the sky blue?"}]
SYSTEM = [{"role": "system", "content": "  You are terse.\n"}, *HELLO]
LONG = [
    *SYSTEM,
    {"role": "assistant", "content": "  Rayleigh scattering. \n"},
    {"role": "user", "content": "skip"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA city."},
    {"role": "user", "content": '東京は? 🗼 <&> "quoted" {braces}'},
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city, in °C & more <now>",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TOOLS = [
    *SYSTEM,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "12"},
    {"role": "tool", "name": "weather", "content": "13"},
    {"role": "assistant", "content": "<think>\nsums\n</think>\n\nTwelve."},
]

NAMED = [
    *SYSTEM,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "abcdef012",
                "type": "function",
                "function": {
                    "name": "weather",
                    "arguments": {
                        "city": 'A "B"\n',
                        "days": 2,
                        "now": True,
                        "at": {"x": [1, "y"]},
                    },
                },
            }
        ],
    },
    {"role": "tool", "tool_call_id": "abcdef012", "name": "weather", "content": "12"},
]
PARALLEL = [
    *HELLO,
    {
        "role": "assistant",
        "content": "Two cities.",
        "tool_calls": [{"id": "abcdef012", **CALL}, {"id": "abcdef345", **CALL}],
    },
    {"role": "tool", "tool_call_id": "abcdef012", "content": '{"degrees": 12, "sky": "☁️"}'},
    {"role": "tool", "tool_call_id": "abcdef345", "content": "13"},
    {"role": "assistant", "content": " Twelve and thirteen. "},
    {"role": "user", "content": "And tomorrow?"},
]
TURNS = [
    *HELLO,
    {"role": "assistant", "content": "Air scatters blue light."},
    {"role": "user", "content": "  なぜ夕方は赤い？ 🌇\n"},
    {"role": "assistant", "content": "The light's way is longer.", "reasoning": "\nlong way\n"},
]

CHATS: dict[str, dict[str, Any]] = {
    "hello": {"messages": HELLO},
    "open": {"messages": HELLO, "add_generation_prompt": False},
    "system": {"messages": SYSTEM, "date_string": "1 Jan 2026"},
    "system open": {"messages": SYSTEM, "add_generation_prompt": False, "date_string": "today"},
    "turns": {"messages": TURNS, "add_generation_prompt": False},
    "answered": {"messages": TURNS},
    "system turns": {"messages": [SYSTEM[0], *TURNS, *HELLO], "date_string": "today"},
    "twice": {"messages": [*HELLO, *HELLO]},
    "late system": {"messages": [*TURNS, SYSTEM[0]], "enable_thinking": True},
    "stranger": {"messages": [{"role": "critic", "content": "boo"}], "date_string": "today"},
    "long": {"messages": LONG, "enable_thinking": False, "date_string": "1 Jan 2026"},
    "tools": {"messages": TOOLS, "tools": [WEATHER, WEATHER], "date_string": "1 Jan 2026"},
    "tool question": {"messages": SYSTEM, "tools": [WEATHER], "date_string": "today"},
    "named": {"messages": NAMED, "tools": [WEATHER], "date_string": "today"},
    "parallel": {"messages": PARALLEL, "tools": [WEATHER], "date_string": "today"},
    "system with tools": {
        "messages": [{**SYSTEM[0], "tools": json.dumps([WEATHER["function"]])}, *HELLO],
        "date_string": "today",
    },
}


def cases() -> list[tuple[str, str]]:
    """Every template with every chat, except that a default date would change every day."""
    return [
        (template, chat)
        for template in TEMPLATES
        for chat in CHATS
        if template != "headers" or "date_string" in CHATS[chat]
    ]


def render_with_transformers(template: str, chat: str) -> str:
    """Render a case as `apply_chat_template` does; a refusal is recorded as such."""
    import jinja2
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()),
        chat_template=TEMPLATES[template],
        **SPECIAL_TOKENS,
    )
    options = {"add_generation_prompt": True, **CHATS[chat]}
    messages = options.pop("messages")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except (jinja2.TemplateError, TypeError) as e:
        return f"TemplateError: {e}"


def main() -> None:
    """Write the goldens."""
    rendered = {f"{t}/{c}": render_with_transformers(t, c) for t, c in cases()}
    text = json.dumps(rendered, ensure_ascii=False, indent=1, sort_keys=True)
    RENDERED.parent.mkdir(exist_ok=True)
    RENDERED.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
