"""Chat templates of families with tools of their own: their logic, with prose of our own.

As in `chat_templates`: each follows the published template of its family statement by statement.
"""

from __future__ import annotations

QWEN3_CODER = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = [] %}
{%- endif %}
{%- if system_message is defined %}
    {{- "<|im_start|>system\\n" + system_message }}
{%- elif tools is iterable and tools | length > 0 %}
    {{- "<|im_start|>system\\nYou are a model of ours." }}
{%- endif %}
{%- if tools is iterable and tools | length > 0 %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {%- if tool.function is defined %}
            {%- set tool = tool.function %}
        {%- endif %}
        {{- "\\n<function>\\n<name>" ~ tool.name ~ "</name>" }}
        {{- '\\n<description>' ~ (tool.description | trim) ~ '</description>' }}
        {{- '\\n<parameters>' }}
        {%- for key, field in tool.parameters.properties | items %}
            {{- '\\n<parameter>\\n<name>' ~ key ~ '</name>' }}
            {%- if field.type is defined %}
                {{- '\\n<type>' ~ (field.type | string) ~ '</type>' }}
            {%- endif %}
            {{- '\\n</parameter>' }}
        {%- endfor %}
        {{- '\\n</parameters>\\n</function>' }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nCall with <tool_call>\\n<function=name>\\n<parameter=key>\\nvalue" }}
    {{- "\\n</parameter>\\n</function>\\n</tool_call>" }}
{%- endif %}
{%- if system_message is defined or (tools is iterable and tools | length > 0) %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in loop_messages %}
    {%- if message.role == "assistant" and message.tool_calls is defined and
           message.tool_calls is iterable and message.tool_calls | length > 0 %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content is defined and message.content is string and
               message.content | trim | length > 0 %}
            {{- '\\n' + message.content | trim + '\\n' }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n<function=' + tool_call.name + '>\\n' }}
            {%- for key, value in tool_call.arguments | items %}
                {{- '<parameter=' + key + '>\\n' }}
                {%- set value = value | tojson | safe if value is mapping or
                       (value is sequence and value is not string) else value | string %}
                {{- value }}
                {{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}
            {{- '<|im_start|>user\\n' }}
        {%- endif %}
        {{- '<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>\\n' }}
        {%- if not loop.last and loop.nextitem.role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- elif loop.last %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

MISTRAL_ARGS = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- '[SYSTEM_PROMPT]' + messages[0]['content'] + '[/SYSTEM_PROMPT]' }}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if tools is defined and tools is not none and tools | length > 0 %}
    {{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{%- for message in loop_messages %}
    {%- if message['role'] == 'user' %}
        {{- '[INST]' + message['content'] + '[/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {%- if message['content'] is string %}
            {{- message['content'] }}
        {%- endif %}
        {%- if message['tool_calls'] is defined and message['tool_calls'] is not none %}
            {%- for tool in message['tool_calls'] %}
                {%- set arguments = tool['function']['arguments'] %}
                {%- if arguments is not string %}
                    {%- set arguments = arguments | tojson %}
                {%- endif %}
                {{- '[TOOL_CALLS]' + tool['function']['name'] + '[ARGS]' + arguments }}
            {%- endfor %}
        {%- endif %}
        {{- eos_token }}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS]' + message['content'] | string + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Only user, system, assistant and tool roles are known') }}
    {%- endif %}
{%- endfor %}
"""

PYTHONIC = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "Call a tool only if it helps." %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- 'Answer with [func_name1(params_name1=params_value1), func_name2(params)].\\n\\n' }}
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
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n[' -}}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- tool_call.name + '(' -}}
            {%- for param in tool_call.arguments %}
                {{- param + '=' -}}
                {{- "%s" | format(tool_call.arguments[param]) -}}
                {% if not loop.last %}, {% endif %}
            {%- endfor %}
            {{- ')' -}}
            {% if not loop.last %}, {% endif %}
        {%- endfor %}
        {{- ']<|eot_id|>' -}}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- {"output": message.content} | tojson }}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

OLMO3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "You call functions." %}
{%- endif %}
{{- "<|im_start|>system\\n" }}{{- system_message }}
{%- if tools is not none and tools | length > 0 %}
    {{- "\\n\\n<function_calls>\\nname(key='value')\\n</function_calls>\\n<functions>\\n" }}
    {%- for tool in tools %}
        {%- if tool.function is defined %}
            {%- set tool = tool.function %}
        {%- endif %}
        {{- tool | tojson }}
        {%- if not loop.last %}{{- "\\n" }}{%- endif %}
    {%- endfor %}
    {{- "\\n</functions>" }}
{%- endif %}
{{- "<|im_end|>\\n" }}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- "<|im_start|>user\\n" + message.content | trim + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" %}
        {%- if message.tool_calls is defined and message.tool_calls | length > 0 %}
            {{- "<|im_start|>assistant\\n<function_calls>\\n" }}
            {%- for tool_call in message.tool_calls %}
                {%- if tool_call.function is defined %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- tool_call.name + "(" }}
                {%- for key, value in tool_call.arguments.items() %}
                    {{- key + "=" }}
                    {%- if value is string %}
                        {{- "'" + value + "'" }}
                    {%- elif value is none %}
                        {{- "null" }}
                    {%- else %}
                        {{- value | tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- ")" }}
                {%- if not loop.last %}{{- "\\n" }}{%- endif %}
            {%- endfor %}
            {{- "\\n</function_calls><|im_end|>\\n" }}
        {%- else %}
            {{- "<|im_start|>assistant\\n" + message.content | trim + "<|im_end|>\\n" }}
        {%- endif %}
    {%- elif message.role == "tool" %}
        {{- "<|im_start|>tool\\n" }}
        {%- if message.name is defined %}
            {{- message.name + " returned:\\n" }}
        {%- endif %}
        {{- message.content | trim + "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
"""

FUNCTION_GEMMA = """{%- macro argument(value) -%}
    {%- if value is string -%}
        {{- '<escape>' + value + '<escape>' -}}
    {%- elif value is boolean -%}
        {{- 'true' if value else 'false' -}}
    {%- elif value is mapping -%}
        {{- '{' -}}
        {%- for key, item in value | dictsort -%}
            {{- ',' if not loop.first -}}{{- key + ':' -}}{{- argument(item) -}}
        {%- endfor -%}
        {{- '}' -}}
    {%- elif value is sequence -%}
        {{- '[' -}}
        {%- for item in value -%}
            {{- ',' if not loop.first -}}{{- argument(item) -}}
        {%- endfor -%}
        {{- ']' -}}
    {%- else -%}
        {{- value -}}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set ns = namespace(previous='') -%}
{%- set loop_messages = messages -%}
{%- if messages[0]['role'] in ['system', 'developer'] -%}
    {%- set loop_messages = messages[1:] -%}
{%- endif -%}
{%- if tools or messages[0]['role'] in ['system', 'developer'] -%}
    {{- '<start_of_turn>developer\\n' -}}
    {%- if messages[0]['role'] in ['system', 'developer'] -%}
        {{- messages[0]['content'] | trim -}}
    {%- endif -%}
    {%- for tool in tools or [] -%}
        {{- '<start_function_declaration>declaration:' + tool['function']['name'] -}}
        {{- '{description:<escape>' + tool['function']['description'] + '<escape>' -}}
        {{- ',parameters:' -}}{{- argument(tool['function']['parameters']) -}}
        {{- '}<end_function_declaration>' -}}
    {%- endfor -%}
    {{- '<end_of_turn>\\n' -}}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if message['role'] == 'tool' -%}
        {%- if ns.previous != 'calls' -%}{{- '<start_function_response>' -}}{%- endif -%}
        {{- 'response:' + message['name'] + '{value:' -}}{{- argument(message['content']) -}}
        {{- '}<end_function_response>' -}}
        {%- set ns.previous = 'results' -%}
    {%- else -%}
        {%- if ns.previous != 'results' -%}
            {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
            {{- '<start_of_turn>' + role + '\\n' -}}
        {%- endif -%}
        {%- set ns.previous = '' -%}
        {%- if message['content'] is string -%}{{- message['content'] | trim -}}{%- endif -%}
        {%- if message.tool_calls -%}
            {%- for call in message.tool_calls -%}
                {{- '<start_function_call>call:' + call['function']['name'] -}}
                {{- argument(call['function']['arguments']) -}}{{- '<end_function_call>' -}}
            {%- endfor -%}
            {{- '<start_function_response>' -}}
            {%- set ns.previous = 'calls' -%}
        {%- else -%}
            {{- '<end_of_turn>\\n' -}}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.previous != 'results' -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""

THINKING = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content is string %}
        {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
"""

TOOL_TEMPLATES = {
    "qwen3-coder": QWEN3_CODER,
    "mistral-args": MISTRAL_ARGS,
    "llama-4 pythonic": PYTHONIC,
    "olmo-3": OLMO3,
    "functiongemma": FUNCTION_GEMMA,
    "thinking": THINKING,
}
