"""The interactive mode: what is typed is a prompt that the model continues, or an instruction that it answers."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from gpt2x.config.check import settings
from gpt2x.config.option import show
from gpt2x.errors import UserError
from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.output import write_to_stdout
from gpt2x.generation.session import QUOTES, Session, complete, first_word, note, unquoted

if TYPE_CHECKING:
    from gpt2x.generation.generator import TextGenerator

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
    ask: Callable[[str, str, SamplingConfig], str] | None = None,
) -> None:
    """Continue what is typed, until the input ends or /quit.

    change   gives settings with one override more, written as on the command line ("sampling.top_k=5",
             "sampling=greedy"), or raises ConfigError
    presets  the choices of sampling=, to be completed
    history  the file that keeps the typed lines between sessions
    ask      makes the prompt of an instruction and its input: what is typed are instructions then, and of a text that is
             made only what follows the prompt is shown
    """
    session = _Chat if ask is None else _Instructions
    session(generator, sampling, seed, change, presets, ask).run(history)


class _Chat(Session):
    greeting = "Begin a text and the model goes on. /help tells more; Ctrl-C stops a text, Ctrl-D leaves."
    quoted = "a prompt of several lines, or one that begins with a slash"
    nothing_yet = "there is no text yet; begin one"
    commands: ClassVar[dict[str, tuple[str, str]]] = {
        "more": ("", "go on from where the text stopped"),
        "again": ("", "another continuation of the same prompt"),
        "set": ("NAME VALUE", "change a setting of sampling; for short: /temperature 0.5"),
        "sampling": ("CHOICE", "take all settings from a file of configs/sampling, such as greedy"),
        "settings": ("", "show them all"),
        "seed": ("NUMBER", "the seed of the next text; the one after it gets the next number, and so on"),
        **Session.commands,
    }

    def __init__(self, generator, sampling, seed, change, presets, ask):
        super().__init__()
        self.generator, self.sampling, self.seed = generator, sampling, seed
        self.change, self.presets, self.ask = change, presets, ask
        self.settings = {setting.key: setting for setting in settings(SamplingConfig)}
        self.prompt: str | None = None  # of the last text
        self.text = ""  # the last prompt with all that has been made from it

    # -- commands ---------------------------------------------------------------------------------------------

    def command(self, name: str, value: str) -> None:
        if name in self.settings:
            name, value = "set", f"{name} {value}"
        super().command(name, value)

    def words(self) -> list[str]:
        return [*self.commands, *self.settings]

    def do_more(self, _: str) -> None:
        self._need_text("more")
        self.go_on(self.text)

    def do_again(self, _: str) -> None:
        self._need_text("again")
        self.start(self.prompt)

    def do_set(self, value: str) -> None:
        """Change a setting, or show it where no value is given."""
        name, value = first_word(value)
        if name and (value or name not in self.settings):
            self.sampling = self.change(self.sampling, f"sampling.{name}={value}")
        self.show_settings([name] if name else self.settings)

    def do_sampling(self, value: str) -> None:
        before = self.sampling
        self.sampling = self.change(before, f"sampling={value}")
        changed = [name for name in self.settings if getattr(before, name) != getattr(self.sampling, name)]
        self.show_settings(changed or None)

    def do_settings(self, _: str) -> None:
        self.show_settings()

    def do_seed(self, value: str) -> None:
        if value:
            if not re.fullmatch(r"[0-9]{1,10}", value) or int(value) >= 2**32:
                raise UserError(f"/seed {value}: expected a whole number from 0 to {2**32 - 1}")
            self.seed = int(value)
        note(f"  seed={self.seed}")

    def do_help(self, _: str) -> None:
        super().do_help("")
        note(textwrap.fill(f"settings: {', '.join(self.settings)}", 100, initial_indent="  ", subsequent_indent=" " * 12))

    def show_settings(self, names: Iterable[str] | None = None) -> None:
        given = {name: f"{name}={show(getattr(self.sampling, name))}" for name in names or self.settings}
        width = max(map(len, given.values()))
        note("\n".join(f"  {given[name]:{width}}  {self.settings[name].help}" for name in given))
        if names is None:
            note(f"  {f'seed={self.seed}':{width}}  of the next text")

    def _need_text(self, name: str) -> None:
        if self.prompt is None:
            raise UserError(f"/{name}: {self.nothing_yet}")

    # -- generation -------------------------------------------------------------------------------------------

    def begin(self, text: str) -> None:
        self.start(text)

    def start(self, prompt: str) -> None:
        """A new text from `prompt`."""
        self.go_on(prompt, shown=self.shown(prompt))
        self.prompt = prompt

    def shown(self, prompt: str) -> str:
        """The part of a prompt that is shown before its continuation."""
        return prompt

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
            note(f"\033[2m{status}\033[0m" if self.coloured else status)
        elif finish == "interrupted":
            raise KeyboardInterrupt
        self.seed = (self.seed + 1) % 2**32

    # -- completion -------------------------------------------------------------------------------------------

    def completions(self, before: str, word: str) -> list[str]:
        names = {"/set ": list(self.settings), "/sampling ": list(self.presets)}.get(before)
        return super().completions(before, word) if names is None else complete(word, names)


class _Instructions(_Chat):
    greeting = "Type an instruction and the model answers. /help tells more; Ctrl-C stops an answer, Ctrl-D leaves."
    quoted = "an instruction (or, after /input, an input) of several lines, or one that begins with a slash"
    nothing_yet = "there is no answer yet; type an instruction"
    commands: ClassVar[dict[str, tuple[str, str]]] = {
        "input": ("TEXT", "what the next instruction is about; without TEXT: nothing"),
        **_Chat.commands,
        "more": ("", "go on from where the answer stopped"),
        "again": ("", "another answer to the same instruction, with the same input"),
    }

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.input = ""

    def opening(self, line: str) -> str | None:
        begin = re.match(rf"(?:/input\s+)?{QUOTES}", line)
        return begin and begin[0]

    def handle(self, line: str) -> None:
        command, _, value = line.partition(" ")
        if command == "/input":  # as it is: an input may begin with an equals sign
            self.do_input(value.strip())
        else:
            super().handle(line)

    def do_input(self, value: str) -> None:
        self.input = unquoted(value)

    def begin(self, text: str) -> None:
        self.start(self.ask(text, self.input, self.sampling))
        self.input = ""

    def shown(self, prompt: str) -> str:
        return ""
