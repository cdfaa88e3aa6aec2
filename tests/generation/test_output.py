"""What is made, as text and as JSON lines, and the file it goes to."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from gpt2x.errors import UserError
from gpt2x.generation.generator import Completion
from gpt2x.generation.output import JsonLinesOutput, TextOutput, opened, write_to_stdout
from gpt2x.generation.prompts import Prompt


def completion(text: str, sample: int = 0, **more) -> Completion:
    return Completion(prompt="", text=text, tokens=[1, 2], finish="length", sample=sample, **more)


@pytest.fixture
def written():
    return []


def test_a_single_text_appears_as_it_is_made(written):
    output, prompt = TextOutput(written.append, prompts=1, samples=1), Prompt("Once")
    show = output.on_text([prompt])
    assert written == []  # nothing before the first piece: the prompt may yet be refused
    show(0, " upon")
    show(0, " a time")
    output.add(prompt, completion(" upon a time"), 1)
    assert written == ["Once", " upon", " a time", "\n"]


def test_a_single_text_without_a_continuation(written):
    TextOutput(written.append, prompts=1, samples=1).add(Prompt("Once"), completion(""), 1)
    assert "".join(written) == "Once\n"


def test_several_texts_stand_below_their_names(written):
    output = TextOutput(written.append, prompts=2, samples=1)
    assert output.on_text([Prompt("a"), Prompt("b")]) is None
    output.add(Prompt("a", "first"), completion("A"), 1)
    output.add(Prompt("b", 7), completion("B"), 1)
    assert "".join(written) == "=== first ===\naA\n\n=== 7 ===\nbB\n"


def test_samples_of_one_prompt_are_numbered(written):
    output = TextOutput(written.append, prompts=1, samples=2)
    for sample in range(2):
        output.add(Prompt("a", 1), completion("A", sample), 1)
    assert "".join(written) == "=== 1, sample 1 ===\naA\n\n=== 1, sample 2 ===\naA\n"


def test_of_an_instruction_the_answer_alone_is_shown(written):
    prompt = Prompt("Below is an instruction: Add.", "x", instruction="Add.", input="1 + 1")
    one = TextOutput(written.append, prompts=1, samples=1)
    one.on_text([prompt])(0, "2")
    one.add(prompt, completion("2"), 1)
    assert "".join(written) == "2\n"
    written.clear()
    TextOutput(written.append, prompts=2, samples=1).add(prompt, completion("2"), 1)
    assert "".join(written) == "=== x ===\n2\n"
    written.clear()
    JsonLinesOutput(written.append).add(prompt, completion("2"), 1)
    record = json.loads(written[0])
    assert [record[key] for key in ("instruction", "input", "prompt", "text")] == ["Add.", "1 + 1", prompt.text, "2"]


@dataclass
class Logprob:
    token: int
    logprob: float
    top: list


def test_json_lines(written):
    made = completion("é\n", 3, logprobs=[Logprob(1, -0.5, [(1, -0.5), (2, -1.0)]), Logprob(2, -1.0, [])])
    output = JsonLinesOutput(written.append)
    assert output.on_text([Prompt("a")]) is None
    output.add(Prompt("a", "x", 9), made, 9)
    JsonLinesOutput(written.append, token_text=lambda token: f"<{token}>").add(Prompt("a", "x", 9), made, 9)
    assert [line.count("\n") for line in written] == [1, 1]  # and the one in the text is escaped
    plain, full = map(json.loads, written)
    assert plain == dict(id="x", prompt="a", seed=9, sample=3, text="é\n", tokens=[1, 2], finish="length")
    one, two = (dict(token=n, text=f"<{n}>", logprob=-0.5 * n) for n in (1, 2))
    assert full == plain | {"logprobs": [one | {"top": [one, two]}, two | {"top": []}]}
    assert "é" in written[0]


def test_a_file_appears_when_it_is_whole(tmp_path):
    target, partial = tmp_path / "new/o.txt", tmp_path / "new/o.txt.partial"
    with opened(str(target)) as write:
        write("a\n")
        assert not target.exists()
        assert partial.read_text() == "a\n"  # already there, whatever happens next
        write("é\udce9")
    assert target.read_bytes() == "a\né?".encode()
    with opened(str(target)) as write:
        write("b")
        assert target.read_text() == "a\né?"
    assert target.read_text() == "b"
    assert [path.name for path in target.parent.iterdir()] == ["o.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_what_was_made_stays_when_something_happens(tmp_path, capsys, error):
    target, partial = tmp_path / "o.txt", tmp_path / "o.txt.partial"
    target.write_text("old")
    with pytest.raises(error), opened(str(target)) as write:
        write("some")
        raise error
    assert (target.read_text(), partial.read_text()) == ("old", "some")
    assert "what was made until now is in" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"o.txt.partial holds what an interrupted run has made; keep it"), opened(str(target)):
        raise AssertionError
    assert partial.read_text() == "some"


def test_a_run_that_made_nothing_leaves_nothing(tmp_path, capsys):
    with pytest.raises(UserError), opened(str(tmp_path / "o.txt")):
        raise UserError("no such checkpoint")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path, problem in ((tmp_path, "this is a folder"), (tmp_path / "file/o.txt", "cannot be written")):
        with pytest.raises(UserError, match=f"output=.*: {problem}"), opened(str(path)):
            raise AssertionError


def test_only_a_terminal_is_protected_from_control_characters(capsys, monkeypatch):
    with opened(None) as write:
        write("\x1b[31mé\n\t\x07\x9b")
    assert capsys.readouterr().out == "\x1b[31mé\n\t\x07\x9b"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    write_to_stdout("\x1b[31mé\n\t\x07\r\x9b\x7f")
    assert capsys.readouterr().out == "␛[31mé\n\t␇␍\ufffd\ufffd"
