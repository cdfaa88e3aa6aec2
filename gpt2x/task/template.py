"""Templates: how an instruction and its input become the prompt that a response follows.

A template is a YAML file with two texts, with_input and without_input, in which {instruction} and {input} stand for
a record's own. It ends where the response begins: after a line end if it is written with |, before one with |-.
gpt2x/task/templates holds those that ship; any path is a user's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from gpt2x.data.instructions import Record
from gpt2x.errors import UserError
from gpt2x.files import shown
from gpt2x.task.config import TEMPLATES

FIELD = re.compile(r"\{(\w+)\}")
_FIELDS = {"with_input": {"instruction", "input"}, "without_input": {"instruction"}}  # each is needed, no other is known


@dataclass(frozen=True)
class Template:
    """The two texts of a template, and `source`, the whole file they come from: a run keeps it, for `parse`."""

    with_input: str
    without_input: str
    source: str

    def render(self, instruction: str, input: str = "") -> str:
        """The prompt; the response follows it at once. Braces in what is filled in mean nothing."""
        values = {"instruction": instruction, "input": input}
        return FIELD.sub(lambda field: values[field[1]], self.with_input if input.strip() else self.without_input)

    def texts(self, records: Iterable[Record]) -> Iterator[str]:
        """Each record as a model will read it, prompt and first output: for learning a tokenizer."""
        for record in records:
            yield self.render(record.instruction, record.input) + record.outputs[0]


def load_template(name: str | os.PathLike) -> Template:
    """The template that ships under this name, or that of a file. Raises UserError if it cannot be used."""
    path = Path(__file__).parent / "templates" / f"{name}.yaml" if name in TEMPLATES else Path(os.path.expanduser(name))
    try:
        return parse_template(path.read_bytes().decode("utf-8"), shown(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: not valid UTF-8 (byte {error.start:,})") from error
    except OSError as error:
        remedy = f"A template is one of {', '.join(TEMPLATES)}, or a file of your own."
        raise UserError(f"task.template={name}: cannot be read ({error.strerror})\n  {remedy}") from error


def parse_template(source: str, name: str) -> Template:
    """The template that the text of a file describes; `name` is the file's, for messages."""
    try:
        found = yaml.safe_load(source)
    except (yaml.YAMLError, ValueError) as error:
        raise _refused(name, f"no valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict) or set(found) != set(_FIELDS) or not all(isinstance(text, str) for text in found.values()):
        raise _refused(name, "expected two texts, with_input and without_input, and nothing else")
    for part, needed in _FIELDS.items():
        fields = set(FIELD.findall(found[part]))
        if missing := needed - fields:
            raise _refused(name, f"{part} does not say where {{{min(missing)}}} goes")
        if unknown := fields - needed:
            raise _refused(name, f"{part} has the unknown field {{{min(unknown)}}}")
    return Template(**found, source=source)


def _refused(name: str, problem: str) -> UserError:
    return UserError(
        f"{name}: {problem}\n"
        "  A template is YAML such as this, where the response follows the last line:\n"
        "    with_input: |\n      {instruction}\n      {input}\n      Answer:\n"
        "    without_input: |\n      {instruction}\n      Answer:"
    )
