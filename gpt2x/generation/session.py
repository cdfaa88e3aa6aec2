"""Sessions: lines typed at a terminal, or read from a pipe, each of which is a text to do something with, or a command.

What is made goes to the standard output and everything else to the standard error. Line editing, history and completion
by the tab key are readline's; where Python has none (Windows) and for a pipe, lines are read without.
"""

from __future__ import annotations

import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

from gpt2x.config.check import similar
from gpt2x.errors import UserError
from gpt2x.files import write_atomic

QUOTES = '"""'
HISTORY_LENGTH = 1000  # lines


class Session(ABC):
    """Reads lines until the input ends or /quit; what is done with them is a subclass's: `begin` gets each text, and each
    command NAME of `commands` is a method do_NAME, called with what follows the name.

    On a terminal Ctrl-C ends what is being made, or clears the line that is being typed; from a pipe it raises
    KeyboardInterrupt as anywhere.
    """

    greeting = ""
    quoted = "a text of several lines, or one that begins with a slash"
    commands: ClassVar[dict[str, tuple[str, str]]] = {  # name -> (what follows it, what it does)
        "help": ("", "show this"),
        "quit": ("", "leave (Ctrl-D does too)"),
    }

    def __init__(self):
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"

    @abstractmethod
    def begin(self, text: str) -> None:
        """A text has been typed."""

    def run(self, history: Path | None) -> None:
        """The loop; `history` is the file that keeps the typed lines between sessions."""
        lines = _Lines(self.terminal, history, self.completions)
        if self.terminal:
            note(self.greeting)
        while True:
            try:
                self.handle(self.entry(lines.read))
            except (EOFError, _Quit):
                return
            except UserError as error:
                note(str(error))
            except KeyboardInterrupt:
                if not self.terminal:
                    raise
                note("")

    def entry(self, read: Callable[[str], str]) -> str:
        """The next line; of several lines between triple quotes all of it, quotes included."""
        line = read("> ")
        opening = self.opening(line)
        if opening is None:
            return line
        while not line[len(opening) :].endswith(QUOTES):
            try:
                line += "\n" + read(". ")
            except EOFError:
                note(f"the input ended before the closing {QUOTES}")
                raise
        return line

    def opening(self, line: str) -> str | None:
        """The beginning of a line up to quotes that begin a text, if they do."""
        return QUOTES if line.startswith(QUOTES) else None

    def handle(self, line: str) -> None:
        if line.startswith("/"):
            self.command(*first_word(line[1:]))
        elif line:
            self.begin(unquoted(line))

    def command(self, name: str, value: str) -> None:
        if name not in self.commands:
            close = similar(name, self.words())
            hint = f"; did you mean /{close[0]}?" if close else ""
            raise UserError(
                f"/{name}: no such command{hint}\n  commands: {', '.join(f'/{known}' for known in self.commands)}\n"
                f"  a prompt that begins with a slash is put between {QUOTES}"
            )
        if value and not self.commands[name][0]:
            raise UserError(f"/{name} {value}: nothing follows /{name}")
        getattr(self, f"do_{name}")(value)

    def words(self) -> list[str]:
        """What may follow a slash."""
        return list(self.commands)

    def do_help(self, _: str) -> None:
        rows = [(f"/{name} {argument}".strip(), text) for name, (argument, text) in self.commands.items()]
        rows.append((f"{QUOTES}TEXT{QUOTES}", self.quoted))
        width = max(len(left) for left, _ in rows)
        note("\n".join(f"  {left:{width}}  {right}" for left, right in rows))

    def do_quit(self, _: str) -> None:
        raise _Quit

    def completions(self, before: str, word: str) -> list[str]:
        """What `word` may become where the line begins with `before`."""
        return complete(word, [f"/{name}" for name in self.words()]) if word.startswith("/") and not before else []


class _Quit(Exception):
    """The user wants to leave."""


class _Lines:
    """Lines from the terminal, with history and completion where there is readline, or from a pipe."""

    def __init__(self, terminal: bool, history: Path | None, completions: Callable[[str, str], list[str]]):
        self.terminal, self.history, self.completions = terminal, history, completions
        self.readline = None
        if not terminal:
            return
        try:
            import readline  # for terminals only: on some, importing it prints an escape code
        except ImportError:  # Windows
            return
        self.readline = readline
        readline.set_auto_history(False)
        readline.set_completer_delims(" ")
        readline.set_completer(self._complete)
        readline.parse_and_bind("bind ^I rl_complete" if "libedit" in readline.__doc__ else "tab: complete")
        for line in self._remembered():
            readline.add_history(line)

    def read(self, prompt: str) -> str:
        """The next line without its end. Raises EOFError where the input ends, and UserError for what is no UTF-8."""
        try:
            if self.terminal:
                line = input(prompt)
                self._remember(line)
                return line
            raw = sys.stdin.buffer.readline()
            if not raw:
                raise EOFError
            return raw.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
        except EOFError:
            if self.terminal:
                note("")
            raise
        except UnicodeDecodeError:
            raise UserError("this line is not UTF-8 and was left out") from None

    def _complete(self, word: str, number: int) -> str | None:
        """As readline asks: the completion of that number, None after the last."""
        before = self.readline.get_line_buffer()[: self.readline.get_begidx()]
        return [*self.completions(before, word), None][number]

    def _remembered(self) -> list[str]:
        if self.history is None or not self.history.exists():
            return []
        try:
            lines = self.history.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
            if len(lines) > 2 * HISTORY_LENGTH:
                write_atomic(self.history, "".join(f"{line}\n" for line in lines[-HISTORY_LENGTH:]))
            return lines[-HISTORY_LENGTH:]
        except OSError as error:
            self._give_up_history(error)
            return []

    def _remember(self, line: str) -> None:
        if not line.strip() or self.readline is None:
            return
        self.readline.add_history(line)
        if self.history is None:
            return
        try:
            self.history.parent.mkdir(parents=True, exist_ok=True)
            with open(self.history, "a", encoding="utf-8", errors="replace") as file:
                file.write(line.replace("\n", " ") + "\n")  # a pasted text may have several lines
        except OSError as error:
            self._give_up_history(error)

    def _give_up_history(self, error: OSError) -> None:
        note(f"{self.history}: lines typed are not kept for the next session ({error.strerror})")
        self.history = None


def complete(word: str, names: Iterable[str]) -> list[str]:
    return [f"{name} " for name in names if name.startswith(word)]


def first_word(text: str) -> tuple[str, str]:
    """ "temperature 0.5" and "temperature=0.5" as name and value; the value is empty where there is none."""
    name, value = [*re.split(r"[\s=]+", text.strip(), maxsplit=1), ""][:2]
    return name, value


def unquoted(text: str) -> str:
    """A text without the triple quotes that it may stand between."""
    return text[len(QUOTES) : -len(QUOTES)].removeprefix("\n") if text.startswith(QUOTES) else text


def note(text: str) -> None:
    """Tell something beside the texts."""
    print(text, file=sys.stderr, flush=True)
