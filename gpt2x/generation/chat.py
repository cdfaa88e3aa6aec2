"""The interactive mode: lines typed at a terminal, or read from a pipe, are prompts that the model continues.

Generated text goes to the standard output and everything else to the standard error. Line editing, history and
completion by the tab key are readline's; where Python has none (Windows) and for a pipe, lines are read without.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2x.config.check import settings, similar
from gpt2x.config.option import show
from gpt2x.errors import UserError
from gpt2x.files import write_atomic
from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.output import write_to_stdout

if TYPE_CHECKING:
    from gpt2x.generation.generator import TextGenerator

COMMANDS = {  # name -> (what follows it, what it does)
    "more": ("", "go on from where the text stopped"),
    "again": ("", "another continuation of the same prompt"),
    "set": ("NAME VALUE", "change a setting of sampling; for short: /temperature 0.5"),
    "sampling": ("CHOICE", "take all settings from a file of configs/sampling, such as greedy"),
    "settings": ("", "show them all"),
    "seed": ("NUMBER", "the seed of the next text; the one after it gets the next number, and so on"),
    "help": ("", "show this"),
    "quit": ("", "leave (Ctrl-D does too)"),
}
QUOTES = '"""'
HISTORY_LENGTH = 1000  # lines

_FINISH = {
    "length": "max_new_tokens reached",
    "stop": "at a stop string",
    "end_of_text": "end of text",
    "context": "context full",
    "interrupted": "interrupted",
}


def chat(
    generator: TextGenerator,
    *,
    sampling: SamplingConfig,
    seed: int,
    change: Callable[[SamplingConfig, str], SamplingConfig],
    presets: Sequence[str] = (),
    history: Path | None = None,
) -> None:
    """Continue what is typed, until the input ends or /quit.

    change   gives settings with one override more, written as on the command line ("sampling.top_k=5",
             "sampling=greedy"), or raises ConfigError
    presets  the choices of sampling=, to be completed
    history  the file that keeps the typed lines between sessions

    On a terminal Ctrl-C stops the text that is being made, or clears the line that is being typed; from a pipe it
    raises KeyboardInterrupt as anywhere.
    """
    _Chat(generator, sampling, seed, change, presets).run(history)


class _Quit(Exception):
    """The user wants to leave."""


class _Chat:
    def __init__(self, generator, sampling, seed, change, presets):
        self.generator, self.sampling, self.seed = generator, sampling, seed
        self.change, self.presets = change, presets
        self.settings = {setting.key: setting for setting in settings(SamplingConfig)}
        self.prompt: str | None = None  # of the last text
        self.text = ""  # the last prompt with all that has been made from it
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"

    # -- the loop ---------------------------------------------------------------------------------------------

    def run(self, history: Path | None) -> None:
        lines = _Lines(self.terminal, history, self.completions)
        if self.terminal:
            _note("Begin a text and the model goes on. /help tells more; Ctrl-C stops a text, Ctrl-D leaves.")
        while True:
            try:
                self.handle(self.entry(lines.read))
            except (EOFError, _Quit):
                return
            except UserError as error:
                _note(str(error))
            except KeyboardInterrupt:
                if not self.terminal:
                    raise
                _note("")

    def entry(self, read: Callable[[str], str]) -> str:
        """The next line; of several lines between triple quotes all of it, quotes included."""
        line = read("> ")
        if not line.startswith(QUOTES):
            return line
        while not line[len(QUOTES) :].endswith(QUOTES):
            try:
                line += "\n" + read(". ")
            except EOFError:
                _note(f"the input ended before the closing {QUOTES}")
                raise
        return line

    def handle(self, line: str) -> None:
        if line.startswith("/"):
            self.command(line)
        elif line.startswith(QUOTES):
            self.begin(line[len(QUOTES) : -len(QUOTES)].removeprefix("\n"))
        elif line:
            self.begin(line)

    # -- commands ---------------------------------------------------------------------------------------------

    def command(self, line: str) -> None:
        name, value = _first_word(line[1:])
        if name in self.settings:
            name, value = "set", f"{name} {value}"
        if name not in COMMANDS:
            close = similar(name, [*COMMANDS, *self.settings])
            hint = f"; did you mean /{close[0]}?" if close else ""
            raise UserError(
                f"/{name}: no such command{hint}\n  commands: {', '.join(f'/{known}' for known in COMMANDS)}\n"
                f"  a prompt that begins with a slash is put between {QUOTES}"
            )
        argument = COMMANDS[name][0]
        if value and not argument:
            raise UserError(f"/{name} {value}: nothing follows /{name}")
        if name == "set":
            self.set(*_first_word(value))
        elif name == "sampling":
            before = self.sampling
            self.sampling = self.change(before, f"sampling={value}")
            changed = [name for name in self.settings if getattr(before, name) != getattr(self.sampling, name)]
            self.show_settings(changed or None)
        elif name == "settings":
            self.show_settings()
        elif name == "seed":
            self.set_seed(value)
        elif name == "help":
            self.help()
        elif name == "quit":
            raise _Quit
        elif self.prompt is None:
            raise UserError(f"/{name}: there is no text yet; begin one")
        elif name == "more":
            self.go_on(self.text)
        elif name == "again":
            self.begin(self.prompt)

    def set(self, name: str, value: str) -> None:
        """Change a setting, or show it where no value is given."""
        if name and (value or name not in self.settings):
            self.sampling = self.change(self.sampling, f"sampling.{name}={value}")
        self.show_settings([name] if name else self.settings)

    def set_seed(self, value: str) -> None:
        if value:
            if not re.fullmatch(r"[0-9]{1,10}", value) or int(value) >= 2**32:
                raise UserError(f"/seed {value}: expected a whole number from 0 to {2**32 - 1}")
            self.seed = int(value)
        _note(f"  seed={self.seed}")

    def show_settings(self, names: Iterable[str] | None = None) -> None:
        given = {name: f"{name}={show(getattr(self.sampling, name))}" for name in names or self.settings}
        width = max(map(len, given.values()))
        _note("\n".join(f"  {given[name]:{width}}  {self.settings[name].help}" for name in given))
        if names is None:
            _note(f"  {f'seed={self.seed}':{width}}  of the next text")

    def help(self) -> None:
        rows = [(f"/{name} {argument}".strip(), text) for name, (argument, text) in COMMANDS.items()]
        rows.append((f"{QUOTES}TEXT{QUOTES}", "a prompt of several lines, or one that begins with a slash"))
        width = max(len(left) for left, _ in rows)
        _note("\n".join(f"  {left:{width}}  {right}" for left, right in rows))
        _note(textwrap.fill(f"settings: {', '.join(self.settings)}", 100, initial_indent="  ", subsequent_indent=" " * 12))

    # -- generation -------------------------------------------------------------------------------------------

    def begin(self, prompt: str) -> None:
        """A new text from `prompt`, which is shown with it."""
        self.go_on(prompt, shown=prompt)
        self.prompt = prompt

    def go_on(self, text: str, shown: str = "") -> None:
        """Continue `text`; `shown` is the part of it that is shown before the continuation, once there is one."""
        made: list[str] = []

        def on_text(_: int, piece: str) -> None:
            write_to_stdout(piece if made else shown + piece)
            made.append(piece)

        finish, about = "interrupted", []
        started = time.perf_counter()
        try:
            (completion,) = self.generator.generate([text], sampling=self.sampling, seed=self.seed, on_text=on_text)
            seconds, n = time.perf_counter() - started, len(completion.tokens)
            finish, about = completion.finish, [f"{n} token{'s' * (n != 1)}", f"{n / seconds:.1f} tokens/s"]
        except KeyboardInterrupt:
            if not self.terminal:
                raise
        self.text = text + "".join(made)
        write_to_stdout("\n" if made else shown + "\n")
        if self.terminal:
            status = f"({', '.join([*about, _FINISH[finish], f'seed {self.seed}'])})"
            _note(f"\033[2m{status}\033[0m" if self.coloured else status)
        elif finish == "interrupted":
            raise KeyboardInterrupt
        self.seed = (self.seed + 1) % 2**32

    # -- completion -------------------------------------------------------------------------------------------

    def completions(self, before: str, word: str) -> list[str]:
        """What `word` may become where the line begins with `before`."""
        if not before:
            names = [f"/{name}" for name in [*COMMANDS, *self.settings]] if word.startswith("/") else []
        else:
            names = {"/set ": list(self.settings), "/sampling ": list(self.presets)}.get(before, [])
        return [f"{name} " for name in names if name.startswith(word)]


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
                _note("")
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
        _note(f"{self.history}: lines typed are not kept for the next session ({error.strerror})")
        self.history = None


def _first_word(text: str) -> tuple[str, str]:
    """ "temperature 0.5" and "temperature=0.5" as name and value; the value is empty where there is none."""
    name, value = [*re.split(r"[\s=]+", text.strip(), maxsplit=1), ""][:2]
    return name, value


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
