"""A Modelfile: what Ollama is told of a GGUF file by `ollama create NAME -f MODELFILE`."""

from __future__ import annotations

import re

from gpt2x.task.template import FIELD, Template
from gpt2x.tokenizer.base import END_OF_TEXT

MAX_NEW_TOKENS = 100
MARK = "# gpt2x-export wrote it"


def modelfile(gguf: str, *, context_length: int, template: Template | None, instruction: str | None = None) -> str:
    """The Modelfile of the model in `gguf`, a file's name, which it must lie beside.

    Its prompts are those that chat.py describes. Texts are drawn as by gpt2x-generate, unless its settings are changed.
    """
    return f'''\
# ollama create NAME -f THIS_FILE; then: ollama run NAME
{MARK}, and replaces it when it writes {gguf} again.
FROM ./{gguf}
TEMPLATE """{go_template(template, instruction)}"""
PARAMETER stop "{END_OF_TEXT}"
PARAMETER num_ctx {context_length}
PARAMETER num_predict {min(MAX_NEW_TOKENS, context_length // 2)}
PARAMETER temperature 0.8
PARAMETER top_k 40
PARAMETER top_p 1
PARAMETER min_p 0
PARAMETER repeat_penalty 1
'''


def go_template(template: Template | None, instruction: str | None = None) -> str:
    """What chat.jinja_template says in the language of Go's text/template, for a conversation that ends with a question."""
    user = '{{ $user := "" }}{{ range .Messages }}{{ if eq .Role "user" }}{{ $user = .Content }}{{ end }}{{ end }}'
    if template is None:
        return user + "{{ $user }}"
    system = f"{{{{ $system := or .System {_quoted(instruction)} }}}}" if instruction else "{{ $system := .System }}"
    with_input = _text(template.with_input, {"instruction": "$system", "input": "$user"})
    without_input = _text(template.without_input, {"instruction": "or $system $user"})
    return f"{system}{user}{{{{ if and $system $user }}}}{with_input}{{{{ else }}}}{without_input}{{{{ end }}}}"


# What may mean something to Go or end a Modelfile's text, and what Ollama would leave out of it: all that is not printable.
_SPECIAL = re.compile(r'\{+|"{3,}|[^\n\t -~]')


def _text(text: str, names: dict[str, str]) -> str:
    """A template's text; `names` are those of its fields."""
    parts = FIELD.split(text)  # text, field, text, ..., field, text
    return "".join(f"{{{{ {names[part]} }}}}" if i % 2 else _SPECIAL.sub(_shown, part) for i, part in enumerate(parts))


def _shown(found: re.Match) -> str:
    plain = found[0].isprintable() and found[0][0] not in '{"'
    return found[0] if plain else f"{{{{ {_quoted(found[0])} }}}}"


def _quoted(text: str) -> str:
    """A string of Go."""
    escaped = {"\\": "\\\\", '"': '\\"'}
    return '"' + "".join(escaped.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + '"'
