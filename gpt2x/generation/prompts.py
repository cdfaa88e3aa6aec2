"""Prompts from a file or a pipe.

Two forms, both UTF-8 (a byte order mark is skipped) and both one prompt a line; lines without a character are skipped:

- plain text: the line, without its line end, is the prompt, or the instruction where the model was tuned to them;
- JSON lines: {"prompt": "Once", "id": "a7", "seed": 3}, of which "id" and "seed" may be left out. A prompt may have
  several lines here. Instead of "prompt" a model that was tuned to instructions takes "instruction" and maybe "input".

A file named *.jsonl holds JSON lines, any other plain text; a pipe holds JSON lines if its first line begins with "{".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2x.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """A text to continue.

    id           what its results are called by: the one given, or the number of its line
    seed         the seed of its random numbers; None: that of the command
    instruction  what the text was made of, with `input`, by the template of a run; None: it was given as it is
    """

    text: str
    id: str | int = 1
    seed: int | None = None
    instruction: str | None = None
    input: str = ""

    @property
    def shown(self) -> str:
        """What of it is shown before its continuation: nothing where that is an answer."""
        return self.text if self.instruction is None else ""


def read_prompts(path: str, *, instructions: bool = False) -> list[Prompt]:
    """The prompts in the file `path`, or in the standard input if that is "-"; at least one.

    `instructions` says that the model was tuned to them; the prompts of instructions have no text yet.
    Raises UserError naming the file and, where it is about a line, the line.
    """
    lines = read_lines(path)
    if path.endswith(".jsonl") or (path == "-" and lines[0][1].startswith("{")):
        return [_from_json(line, number, f"{called(path)}, line {number}", instructions) for number, line in lines]
    if instructions:
        return [Prompt("", number, instruction=line) for number, line in lines]
    return [Prompt(line, number) for number, line in lines]


def read_lines(path: str) -> list[tuple[int, str]]:
    """The lines that are not empty, at least one, each with its number, of a file or of the standard input ("-")."""
    lines = list(_lines(read_bytes(path), called(path)))
    if not lines:
        raise UserError(f"{called(path)}: holds no prompt; one a line is expected")
    return lines


def read_bytes(path: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{called(path)}: cannot be read ({error.strerror})") from None


def called(path: str) -> str:
    """What messages call it."""
    return "the standard input" if path == "-" else f"prompt_file={path}"


def _lines(data: bytes, name: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not empty."""
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            line = raw.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"byte {error.start + 1} is not UTF-8 (0x{raw[error.start]:02x})"
            raise UserError(f"{name}, line {number}: {problem}; save the file as UTF-8") from None
        if line:
            yield number, line


def _from_json(line: str, number: int, where: str, instructions: bool) -> Prompt:
    such_as = '{"instruction": "Name a colour."}' if instructions else '{"prompt": "Once"}'
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: this is no JSON ({error}); a line is such as {such_as}") from None
    asked = isinstance(record, dict) and "instruction" in record
    if asked and not instructions:
        raise UserError(f'{where}: "instruction" is for a model that was tuned to instructions; this one continues a "prompt"')
    if asked and "prompt" in record:
        raise UserError(f'{where}: expected "instruction" or "prompt", and here are both')
    wanted = ("instruction",) if asked else ("prompt",)
    if not isinstance(record, dict) or not isinstance(record.get(wanted[0]), str):
        kinds = ' or "instruction"' if instructions and not asked else ""
        raise UserError(f'{where}: expected an object with "{wanted[0]}"{kinds}, a text; such as {such_as}')
    if asked:
        wanted += ("input",)
    for key in record.keys() - {*wanted, "id", "seed"}:
        known = ", ".join(f'"{name}"' for name in (*wanted, "id"))
        raise UserError(f'{where}: "{key}" is not known; there are {known} and "seed"')
    if not isinstance(record.get("input", ""), str):
        raise UserError(f'{where}: "input" must be a text, not {json.dumps(record["input"])}')
    if asked and not record["instruction"].strip():
        raise UserError(f"{where}: the instruction is empty")
    for key in wanted:
        try:
            record.get(key, "").encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"half a character ({record[key][error.start]!a}, a lone surrogate)"
            raise UserError(f"{where}: the {key} holds {half}") from None
    id, seed = record.get("id", number), record.get("seed")
    if not isinstance(id, (str, int)) or isinstance(id, bool):
        raise UserError(f'{where}: "id" must be a text or a whole number, not {json.dumps(id)}')
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32):
        raise UserError(f'{where}: "seed" must be a whole number from 0 to {2**32 - 1}, not {json.dumps(seed)}')
    if asked:
        return Prompt("", id, seed, record["instruction"], record.get("input", ""))
    return Prompt(record["prompt"], id, seed)
