"""Prompts from a file or a pipe.

Two forms, both UTF-8 (a byte order mark is skipped) and both one prompt a line; lines without a character are skipped:

- plain text: the line, without its line end, is the prompt;
- JSON lines: {"prompt": "Once", "id": "a7", "seed": 3}, of which "id" and "seed" may be left out. A prompt may have
  several lines here.

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

    id    what its results are called by: the one given, or the number of its line
    seed  the seed of its random numbers; None: that of the command
    """

    text: str
    id: str | int = 1
    seed: int | None = None


def read_prompts(path: str) -> list[Prompt]:
    """The prompts in the file `path`, or in the standard input if that is "-"; at least one.

    Raises UserError naming the file and, where it is about a line, the line.
    """
    name = "the standard input" if path == "-" else f"prompt_file={path}"
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    lines = list(_lines(data, name))
    if not lines:
        raise UserError(f"{name}: holds no prompt; one a line is expected")
    if path.endswith(".jsonl") or (path == "-" and lines[0][1].startswith("{")):
        return [_from_json(line, number, f"{name}, line {number}") for number, line in lines]
    return [Prompt(line, number) for number, line in lines]


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


def _from_json(line: str, number: int, where: str) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where}: this is no JSON ({error}); a line is such as {{"prompt": "Once"}}') from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError(f'{where}: expected an object with "prompt", a text; such as {{"prompt": "Once"}}')
    for key in record.keys() - {"prompt", "id", "seed"}:
        raise UserError(f'{where}: "{key}" is not known; there are "prompt", "id" and "seed"')
    text, id, seed = record["prompt"], record.get("id", number), record.get("seed")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: the prompt holds half a character ({text[error.start]!a}, a lone surrogate)") from None
    if not isinstance(id, (str, int)) or isinstance(id, bool):
        raise UserError(f'{where}: "id" must be a text or a whole number, not {json.dumps(id)}')
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32):
        raise UserError(f'{where}: "seed" must be a whole number from 0 to {2**32 - 1}, not {json.dumps(seed)}')
    return Prompt(text, id, seed)
