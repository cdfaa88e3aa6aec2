"""The interactive mode as its user has it: a real process behind a pseudo-terminal, and behind pipes."""

from __future__ import annotations

import codecs
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="no pseudo-terminals")

SESSION = Path(__file__).with_name("chat_session.py")
ROOT = SESSION.parents[2]
UP, CTRL_A, CTRL_C, CTRL_D, TAB = "\x1b[A", "\x01", "\x03", "\x04", "\t"


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "INPUTRC")}
    return kept | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "PYTHONUTF8": "1", "INPUTRC": "/dev/null"} | more


class Terminal:
    """A session at a terminal: what is typed into it, and what it shows, without the codes of line editing."""

    def __init__(self, *arguments: str, **variables: str):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, str(SESSION), *arguments], environment(**variables))
        self.raw, self.decoder = "", codecs.getincrementaldecoder("utf-8")()
        self.seen = 0
        self.code: int | None = None

    def expect(self, text: str, seconds: float = 60) -> str:
        """Wait until `text` is shown, after what was expected last; gives what stands between."""
        deadline = time.monotonic() + seconds
        while (found := self.shown.find(text, self.seen)) < 0:
            ready = select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"no {text!r} in {self.shown[self.seen :]!r}"
            try:
                self.raw += self.decoder.decode(os.read(self.terminal, 4096))
            except OSError:  # Linux: the other end is closed
                raise AssertionError(f"no {text!r} in {self.shown[self.seen :]!r}, and it has ended") from None
        between, self.seen = self.shown[self.seen : found], found + len(text)
        return between

    @property
    def shown(self) -> str:
        return re.sub(r"\x1b\[\?2004[hl]\r?|\x07", "", self.raw).replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def line(self, text: str) -> None:
        """Type a line at the prompt."""
        self.expect("> ")
        self.type(text + "\r")

    def clear_line(self) -> None:
        """Type Ctrl-C; again if Python was just about to wait for a key, for then it notices only at the next one."""
        self.type(CTRL_C)
        while not select.select([self.terminal], [], [], 1)[0]:
            self.type(CTRL_C)

    def leave(self) -> int:
        self.expect("> ")
        self.type(CTRL_D)
        self.expect("left in order")
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def close(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)


@pytest.fixture
def terminal():
    opened = []

    def start(*arguments: str, **variables: str) -> Terminal:
        opened.append(Terminal(*map(str, arguments), **variables))
        return opened[-1]

    yield start
    for session in opened:
        session.close()


def pipe(text: str | bytes, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SESSION), *arguments],
        input=text.encode() if isinstance(text, str) else text,
        capture_output=True,
        timeout=60,
        env=environment(**variables),
    )


# -- at a terminal ------------------------------------------------------------------------------------------


def test_a_line_is_continued_and_more_and_again_do_what_they_say(terminal):
    session = terminal()
    session.expect("Begin a text and the model goes on.")
    session.line("Once")
    session.expect("\nOnce <Once|3|1>\n")
    session.line("/more")
    session.expect("\n <Once <Once|3|1>|4|1>\n")  # all of it is the prompt now, and is not shown again
    session.line("/again")
    session.expect("\nOnce <Once|5|1>\n")
    session.line("/more")
    session.expect("\n <Once <Once|5|1>|6|1>\n")
    session.line("/seed 3")
    session.line("/again")
    session.expect("\nOnce <Once|3|1>\n")
    assert session.leave() == 0


def test_a_dim_line_tells_how_it_went(terminal):
    session = terminal()
    session.line("Once")
    session.expect("\nOnce <Once|3|1>\n\x1b[2m(2 tokens, ")
    assert re.fullmatch(r"[\d.]+ tokens/s", session.expect(", max_new_tokens reached, seed 3)\x1b[0m\n"))
    session.line("nothing")
    session.expect("\nnothing\n\x1b[2m(0 tokens, 0.0 tokens/s, end of text, seed 4)")


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_it_is_plain(terminal, variable):
    session = terminal(**variable)
    session.line("Once")
    session.expect("\nOnce <Once|3|1>\n(2 tokens, ")
    session.leave()
    assert "\x1b[2m" not in session.raw


def test_ctrl_c_stops_the_text_and_more_goes_on_from_it(terminal):
    session = terminal()
    for prompt in ("forever", "rudely forever"):  # the generator returns what it has, or is ended by the exception
        session.line(prompt)
        session.expect(f"\n{prompt} on on on")
        session.type(CTRL_C)
        session.expect("interrupted, seed")
    text = re.search(r"rudely forever( on)+", session.shown[session.shown.rfind("\nrudely forever on") :])[0]
    session.line("/more")
    session.expect(" on on")
    session.type(CTRL_C)
    session.expect("interrupted")
    session.line("/set temperature 0.5")
    session.expect("temperature=0.5")
    session.line("/again")
    session.expect("\nrudely forever on on")
    session.type(CTRL_C)
    session.expect("interrupted")
    assert text.count(" on") >= 3
    assert session.leave() == 0


def test_ctrl_c_at_the_prompt_clears_the_line(terminal):
    session = terminal()
    session.expect("> ")
    session.type("not this")
    session.expect("not this")
    session.clear_line()
    session.line("Once")
    session.expect("\nOnce <Once|3|1>\n")
    session.line('"""not')
    session.expect(". ")
    session.type("this either")
    session.expect("this either")
    session.clear_line()
    session.line("Twice")
    session.expect("\nTwice <Twice|4|1>\n")
    assert session.leave() == 0


def test_lines_can_be_edited(terminal):
    session = terminal()
    session.expect("> ")
    session.type(f"nce{CTRL_A}O\r")
    session.expect("\nOnce <Once|3|1>\n")


def test_history_lasts_from_one_session_to_the_next(terminal, tmp_path):
    history = tmp_path / "new/history"
    session = terminal(history)
    for line in ("Erste", "Größe", "/seed 8", "  "):
        session.line(line)
    session.leave()
    assert history.read_text(encoding="utf-8") == "Erste\nGröße\n/seed 8\n"
    session = terminal(history)
    session.line(UP * 2)
    session.expect("\nGröße <Größe|3|1>\n")
    session.line(UP * 4)
    session.expect("\nErste <Erste|4|1>\n")
    session.leave()
    assert history.read_text(encoding="utf-8").endswith("/seed 8\nGröße\nErste\n")


def test_a_long_history_is_cut_and_a_useless_one_is_no_obstacle(terminal, tmp_path):
    history = tmp_path / "history"
    history.write_bytes(b"\xff\n" + b"".join(b"line %d\n" % number for number in range(2500)))
    session = terminal(history)
    session.line(UP)
    session.expect("\nline 2499 <line 2499|3|1>\n")
    session.leave()
    lines = history.read_text().splitlines()
    assert (len(lines), lines[0], lines[-1]) == (1001, "line 1500", "line 2499")
    session = terminal(tmp_path)
    session.expect("lines typed are not kept for the next session (Is a directory)")
    session.line("Once")
    session.expect("\nOnce <Once|3|1>\n")
    assert session.leave() == 0


def test_tab_completes_commands_settings_and_presets(terminal):
    session = terminal()
    session.expect("> ")
    session.type(f"/sampl{TAB}")
    session.type("\x15")  # Ctrl-U: /sampling or /samples
    session.type(f"/temp{TAB}0.25\r")
    session.expect("temperature=0.25 ")
    session.expect("> ")
    session.type(f"/se{TAB}t temp{TAB}0.75\r")
    session.expect("temperature=0.75 ")
    session.expect("> ")
    session.type(f"/sampling gr{TAB}\r")
    session.expect("temperature=0.0 ")
    session.expect("> ")
    session.type(f"/aga{TAB}\r")
    session.expect("there is no text yet; begin one")
    session.expect("> ")
    session.type(f"/nowhere te{TAB}\r")
    session.expect("/nowhere: no such command")


def test_a_prompt_of_several_lines(terminal):
    session = terminal()
    session.line('"""')
    for line in ("first", "", '/second"""'):
        session.expect(". ")
        session.type(line + "\r")
    session.expect("\nfirst\n\n/second <first\n\n/second|3|1>\n")
    session.line('"""/one line"""')
    session.expect("\n/one line </one line|4|1>\n")
    session.line('""""""')
    session.expect("\n <|5|1>\n")  # nothing at all is a prompt too


def test_what_is_wrong_is_said_and_the_session_goes_on(terminal):
    session = terminal()
    session.line("naïve")
    session.expect("unknown to this character tokenizer: 'ï'\n")
    session.line("/more")
    session.expect("/more: there is no text yet; begin one\n")
    session.line("Once")
    session.expect("\nOnce <Once|3|1>\n")  # the seed of the text that was refused
    session.line("naïve")
    session.line("/more")
    session.expect("\n <Once <Once|3|1>|4|1>\n")
    session.line("")
    session.line("/quit")
    session.expect("left in order")


def test_the_terminal_is_safe_from_what_a_model_makes(terminal):
    session = terminal()
    session.line("escape")
    session.expect("\nescape␛[31m <escape|3|1>\n")


# -- through pipes ------------------------------------------------------------------------------------------


def test_a_pipe_gets_the_texts_and_nothing_else(tmp_path):
    done = pipe('Once\r\n/more\n\n"""a\nb"""\nescape', str(tmp_path / "history"))
    assert done.returncode == 0
    once = "Once <Once|3|1>\n <Once <Once|3|1>|4|1>\n"
    assert done.stdout.decode() == f"{once}a\nb <a\nb|5|1>\nescape\x1b[31m <escape|6|1>\nleft in order\n"
    assert done.stderr == b""
    assert list(tmp_path.iterdir()) == []  # what is not typed is not remembered


def test_a_pipe_that_ends_within_quotes_or_is_not_utf8_is_told():
    done = pipe(b'caf\xe9\nOnce\n"""never\nclosed')
    assert done.stdout.decode() == "Once <Once|3|1>\nleft in order\n"
    assert done.stderr.decode().splitlines() == [
        "this line is not UTF-8 and was left out",
        'the input ended before the closing """',
    ]


def commands(*lines: str) -> str:
    """What the session says to these."""
    return pipe("\n".join(lines)).stderr.decode()


def test_settings_are_changed_and_checked_as_on_the_command_line():
    assert "  temperature=0.5  divides the logits" in commands("/set temperature 0.5")
    for line in ("/temperature 0.5", "/set temperature=0.5", "/temperature=0.5", "/temperature   0.5  "):
        assert commands(line) == commands("/set temperature 0.5")
    assert pipe("/temperature 0.5\n/top_k 3\nOnce").stdout.startswith(b"Once <Once|3|0.5>")
    assert "  top_k=3  " in commands("/top_k 3", "/top_k")
    assert '  stop=[a b,"]  ' in commands("/stop ['a b','\"']")
    assert commands("/temperature -1") == "sampling.temperature=-1: must be at least 0\n"
    assert commands("/temperature hot") == "sampling.temperature=hot: expected a number\n"
    wrong = "sampling.temprature=1: no such setting; did you mean sampling.temperature?\n  settings of sampling: max_new_tokens"
    assert commands("/set temprature 1").startswith(wrong)
    assert "sampling.samples=2: interactive=true shows one text at a time" in commands("/samples 2")


def test_presets():
    assert "  temperature=0.0 " in commands("/sampling greedy")
    assert "  top_k=40 " in commands("/top_k 3", "/sampling creative", "/top_k")
    assert "did you mean sampling=greedy?" in commands("/sampling gredy")


def test_settings_shows_all_and_help_names_all():
    shown = commands("/settings")
    for name in ("max_new_tokens=100", "temperature=1.0", "top_k=null", "stop=[]", "seed=3"):
        assert f"  {name} " in shown
    assert commands("/set") in shown
    text = commands("/help")
    for name in ("/more", "/again", "/set NAME VALUE", "/sampling CHOICE", "/settings", "/seed NUMBER", "/quit", "temperature"):
        assert name in text


def test_wrong_commands():
    answer = commands("/agian")
    assert answer.startswith("/agian: no such command; did you mean /again?\n  commands: /more, /again, ")
    assert "/temprature: no such command; did you mean /temperature?" in commands("/temprature 1")
    assert commands("/quit now", "Once") == "/quit now: nothing follows /quit\n"
    assert "/: no such command" in commands("/")
    for value in ("-1", "x", "4294967296", "1.0"):
        assert commands(f"/seed {value}") == f"/seed {value}: expected a whole number from 0 to 4294967295\n"
    assert commands("/seed 7", "/seed") == "  seed=7\n  seed=7\n"


def test_ctrl_c_ends_a_session_in_a_pipe():
    command = [sys.executable, str(SESSION)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    process.stdin.write("forever\nOnce\n")
    process.stdin.flush()
    assert process.stdout.read(20) == "forever on on on on "
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "Once" not in out
    assert "KeyboardInterrupt" in err


def test_without_readline_lines_are_read_all_the_same(tmp_path, terminal):
    (tmp_path / "readline.py").write_text("raise ImportError('as on Windows')\n")
    session = terminal(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    session.line("Once")
    session.expect("\nOnce <Once|3|1>\n")
    assert session.leave() == 0


# -- instructions -------------------------------------------------------------------------------------------


def answers(*lines: str) -> tuple[str, str]:
    """What a session of instructions prints for these, and what it says beside."""
    done = pipe("\n".join(lines), INSTRUCTIONS="1")
    assert done.returncode == 0
    return done.stdout.decode().removesuffix("left in order\n"), done.stderr.decode()


def test_of_an_instruction_only_the_answer_is_shown():
    first, more = " <[Add./1 + 1/100]|3|1>", " <[Add./1 + 1/100] <[Add./1 + 1/100]|3|1>|4|1>"
    again, without = " <[Add./1 + 1/100]|5|1>", " <[Name it.//7]|6|1>"
    made, said = answers("/input 1 + 1", "Add.", "/more", "/again", "/max_new_tokens 7", "Name it.")
    assert made == f"{first}\n{more}\n{again}\n{without}\n"
    assert said.startswith("  max_new_tokens=7 ")


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["/input =5 = x ", "Do"], "[Do/=5 = x/100]"),
        (["/input   a", "/input b", "Do"], "[Do/b/100]"),
        (["/input a", "/input", "Do"], "[Do//100]"),
        (['/input """', "/a", '"b" """', "Do"], '[Do//a\n"b" /100]'),
        (['/input\t"""a"""', '"""Do', 'it"""'], "[Do\nit/a/100]"),
        (["/input a", "too long", "Do"], "[Do/a/100]"),  # that it was about is kept where nothing was made
        (["/input a", "naïve", "Do"], "[Do/a/100]"),
    ],
)
def test_what_an_instruction_is_about(lines, text):
    assert answers(*lines)[0] == f" <{text}|3|1>\n"


def test_a_session_of_instructions_tells_how_it_works(terminal):
    assert "  /input TEXT " in answers("/help")[1] and "/input" not in commands("/help")
    assert answers("/again", "/more")[1].splitlines() == [
        "/again: there is no answer yet; type an instruction",
        "/more: there is no answer yet; type an instruction",
    ]
    assert commands("/input x").startswith("/input: no such command")
    session = terminal(INSTRUCTIONS="1")
    session.expect("Type an instruction and the model answers.")
    session.line(f"/inp{TAB}1 + 1")
    session.line("forever")
    session.expect("forever\n on on on")
    session.type(CTRL_C)
    session.expect("interrupted, seed 3")
    session.line("/seed 9")
    session.line("Add.")
    session.expect("\n <[Add.//100]|9|1>\n")
    assert session.leave() == 0
