"""A run's template as llama.cpp and transformers read it: in Jinja.

It makes of a conversation the prompt that gpt2x-generate makes of an instruction:

    user: X                  the instruction X; where all training had one instruction, that one, with the input X
    system: I, then user: X  the instruction I with the input X

Of several questions the last is asked, by itself, as in training. A language model has no template: what the user says is
its prompt. Nothing is cut to fit the model's context, as gpt2x-generate would.
"""

from __future__ import annotations

from gpt2x.errors import UserError
from gpt2x.task.template import FIELD, Template
from gpt2x.tokenizer.base import END_OF_TEXT

_CONVERSATION = """\
{{%- set chat = namespace(system={instruction}, user='', answer=none) -%}}
{{%- for message in messages -%}}
  {{%- if message['role'] == 'system' and message['content'].strip() -%}}
    {{%- set chat.system = message['content'] -%}}
  {{%- elif message['role'] == 'user' -%}}
    {{%- set chat.user = message['content'] -%}}
    {{%- set chat.answer = none -%}}
  {{%- elif message['role'] == 'assistant' -%}}
    {{%- set chat.answer = message['content'] -%}}
  {{%- endif -%}}
{{%- endfor -%}}
{prompt}
{{%- if chat.answer is not none -%}}
  {{{{- chat.answer + {end} -}}}}
{{%- endif -%}}
"""
_WORDS = "{{- chat.user -}}"
_INSTRUCTION = """\
{{%- if chat.system and chat.user.strip() -%}}
  {{{{- {with_input} -}}}}
{{%- else -%}}
  {{%- set instruction = chat.system or chat.user -%}}
  {{{{- {without_input} -}}}}
{{%- endif -%}}"""


def jinja_template(template: Template | None, instruction: str | None = None) -> str:
    """The chat template of a model that was tuned with `template`, or of a language model (None).

    `instruction` is the one that all of its training had. An answer that ends the conversation is written too, and
    end-of-text behind it: an example as the model has learned it. Raises UserError for what llama.cpp cannot read.
    """
    prompt = _WORDS
    if template is not None:
        prompt = _INSTRUCTION.format(
            with_input=_expression(template.with_input, {"instruction": "chat.system", "input": "chat.user"}),
            without_input=_expression(template.without_input, {"instruction": "instruction"}),
        )
    return _CONVERSATION.format(instruction=_quoted(instruction or ""), prompt=prompt, end=_quoted(END_OF_TEXT))


def _expression(text: str, names: dict[str, str]) -> str:
    """A template's text as a sum of strings; `names` are those of its fields."""
    parts = FIELD.split(text)  # text, field, text, ..., field, text
    return " + ".join(names[part] if i % 2 else _quoted(part) for i, part in enumerate(parts) if part)


def _quoted(text: str) -> str:
    """A string of Jinja."""
    if "\0" in text:
        raise UserError("the run's template has the character NUL, where llama.cpp would take it to end")
    for character, escaped in {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r"}.items():
        text = text.replace(character, escaped)
    return f"'{text}'"
