"""Chat templates of synthetic language models: Jinja, as it lies in a GGUF's `tokenizer.chat_template`.

Two families, with the tool calls each is known for: ChatML as Hermes and Qwen write it, where a call is JSON
between `<tool_call>` marks, and Llama 3, where a call is a bare JSON object. The marks and the names of roles
are those of the real ones, because that is what a server must recognise; the wording is our own.
"""

from __future__ import annotations

CHATML = """\
{%- if messages[0].role == 'system' %}{% set opening = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set opening = 'You are a helpful assistant.' %}{% set rest = messages %}{% endif %}
{{- '<|im_start|>system\\n' + opening }}
{%- if tools %}
{{- '\\n\\n# Tools\\n\\nThese functions can be called:\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
{{- '\\n</tools>\\n\\nAnswer a call with one JSON object between marks:\\n<tool_call>\\n' }}
{{- '{"name": <function name>, "arguments": <object>}\\n</tool_call>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in rest %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}
{%- elif message.content %}
{%- for part in message.content %}
{%- if part.type == 'text' %}{{ part.text }}
{%- else %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% endif %}
{%- endfor %}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set opening = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set opening = '' %}{% set rest = messages %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools %}
{{- 'Environment: ipython\\nThese functions can be called. Answer a call with one JSON object ' }}
{{- '{"name": function name, "parameters": object}.\\n\\n' }}
{%- for tool in tools %}{{ tool | tojson(indent=4) + '\\n\\n' }}{% endfor %}
{%- endif %}
{{- opening + '<|eot_id|>' }}
{%- for message in rest %}
{%- if message.role == 'tool' or message.role == 'ipython' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content + '<|eot_id|>' }}
{%- elif message.tool_calls %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
{{- call.arguments | tojson + '}<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
