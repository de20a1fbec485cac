"""Chat templates for tests, in the manners that are met in the wild; the wording is our own.

Owns those that `tidegate.synth` does not ship: roles that must alternate without a system turn, content in
parts only, and thoughts that the prompt itself opens.
"""

from __future__ import annotations

# A system turn is refused, roles must alternate, the assistant is called otherwise.
ALTERNATING = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""  # noqa: E501 - a template's lines are one line each

# Content is always a list of parts.
PARTS = """\
{% for message in messages %}<|im_start|>{{ message['role'] | capitalize }}:
{%- for line in message['content'] %}{% if line['type'] == 'text' %}{{ ' ' + line['text'] }}
{%- elif line['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""

# The prompt ends within the model's thoughts; earlier thoughts are left out.
THINKING = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
{%- if ns.last < 0 and message.role == 'user' %}
{%- set ns.last = (messages | length) - loop.index %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' and '</think>' in content %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|' + message.role + '|>' + content + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}
{#- today is {{ strftime_now('%Y') }} #}"""

# Tells the day, and marks for training what the model says.
DATED = """\
{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}
{%- endgeneration %}{% else %}{{ message.content }}{% if loop.index > 30 %}{% break %}{% endif %}{% endif %}
{% endfor %}Today is {{ strftime_now('%d %B %Y') }}."""
