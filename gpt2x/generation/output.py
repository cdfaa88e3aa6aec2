"""Completions to the standard output or a file, as text or as JSON lines.

A file appears under its name when all is done and whole; until then what has been made is in FILE.partial, every
completion as soon as there is one, and stays there if the program is interrupted, killed or fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2x.errors import UserError
from gpt2x.files import fsync_folder, shown
from gpt2x.generation.prompts import Prompt

if TYPE_CHECKING:
    from gpt2x.generation.generator import Completion

# What would move a terminal's cursor or change its colours is shown as a sign instead.
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)


def write_to_stdout(text: str) -> None:
    """Print `text` at once; on a terminal its control characters become visible signs."""
    try:
        print(text.translate(_SIGNS) if sys.stdout.isatty() else text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"the standard output cannot be written ({error.strerror})") from None


@contextlib.contextmanager
def opened(path: str | None) -> Iterator[Callable[[str], None]]:
    """A function that writes text to the file `path`, or to the standard output if that is None.

    The file replaces an older one when the block ends in order. Raises UserError if it cannot be written, or if an
    interrupted run left a partial one.
    """
    if path is None:
        yield write_to_stdout
        return
    target = Path(path)
    if target.is_symlink():
        target = target.resolve()
    if not target.name or target.is_dir():
        raise UserError(f"output={path}: this is a folder; name a file in it")
    if target.exists() and not target.is_file():
        raise UserError(f"output={path}: this is no ordinary file and would be replaced by one; for a pipe leave output out")
    partial = target.with_name(f"{target.name}.partial")
    if partial.exists():
        remedy = "keep it under another name or delete it"
        raise UserError(f"output={path}: {shown(partial)} holds what an interrupted run has made; {remedy}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = open(partial, "x", encoding="utf-8", errors="replace", newline="\n")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"output={path}: cannot be written ({error.strerror})") from None

    def write(text: str) -> None:
        file.write(text)
        file.flush()

    try:
        with file:
            yield write
            os.fsync(file.fileno())
        os.replace(partial, target)
        fsync_folder(target.parent)
    except BaseException:
        if partial.exists():
            if partial.stat().st_size:
                print(f"what was made until now is in {shown(partial)}", file=sys.stderr)
            else:
                partial.unlink()
        raise


class TextOutput:
    """Prompt and continuation as plain text, of an instruction the answer alone; the only one appears as it is made, several
    each below a line with its id."""

    def __init__(self, write: Callable[[str], None], *, prompts: int, samples: int):
        self._write, self._samples = write, samples
        self._single = prompts * samples == 1
        self._begun = False

    def on_text(self, prompts: list[Prompt]) -> Callable[[int, str], None] | None:
        """What TextGenerator.generate is to call with each piece of text that continues `prompts`."""

        def show(index: int, text: str) -> None:
            self._begin(prompts[0])
            self._write(text)

        return show if self._single else None

    def add(self, prompt: Prompt, completion: Completion, seed: int) -> None:
        """One completion is done."""
        if self._single:
            self._begin(prompt)
            self._write("\n")
            return
        sample = f", sample {completion.sample + 1}" if self._samples > 1 else ""
        if completion.finish == "interrupted":
            sample += ", interrupted"
        blank = "\n" if self._begun else ""
        self._begun = True
        self._write(f"{blank}=== {prompt.id}{sample} ===\n{prompt.shown}{completion.text}\n")

    def _begin(self, prompt: Prompt) -> None:
        if not self._begun:
            self._begun = True
            self._write(prompt.shown)


class JsonLinesOutput:
    """One JSON object a line for each completion, as soon as it is done.

    id, prompt, seed   as given; the text follows from them and the settings. Of an instruction there are "instruction"
                       and "input" too, and the prompt is what the run's template made of them
    sample             0, 1, ...: which of the prompt's samples
    text, tokens       the continuation, and the ids it was made of
    finish             why it ended: length, stop, end_of_text, context or interrupted
    score              of beam search: log-probability / length ** length_penalty
    logprobs           if asked for: each token's id, text and log-probability in the model's own distribution, before any
                       control, and the same of the likeliest ones ("top")
    """

    def __init__(self, write: Callable[[str], None], *, token_text: Callable[[int], str] | None = None):
        """`token_text` gives the text of a token, where log-probabilities are asked for."""
        self._write, self._token_text = write, token_text

    def on_text(self, prompts: list[Prompt]) -> None:
        """Nothing is written before a completion is done."""

    def add(self, prompt: Prompt, completion: Completion, seed: int) -> None:
        """One completion is done."""
        asked = {} if prompt.instruction is None else {"instruction": prompt.instruction, "input": prompt.input}
        record = {
            "id": prompt.id,
            **asked,
            "prompt": prompt.text,
            "seed": seed,
            "sample": completion.sample,
            "text": completion.text,
            "tokens": completion.tokens,
            "finish": completion.finish,
        }
        if completion.score is not None:
            record["score"] = completion.score
        if self._token_text is not None:
            record["logprobs"] = [
                {
                    "token": entry.token,
                    "text": self._token_text(entry.token),
                    "logprob": entry.logprob,
                    "top": [{"token": token, "text": self._token_text(token), "logprob": p} for token, p in entry.top],
                }
                for entry in completion.logprobs
            ]
        self._write(json.dumps(record, ensure_ascii=False) + "\n")
