"""Prompts from files and pipes: what is read, and what is refused by file and line."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.errors import UserError
from gpt2x.generation.prompts import Prompt, read_prompts


@pytest.fixture
def read(tmp_path):
    def read(data: bytes | str, name: str = "prompts.txt", **more) -> list[Prompt]:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return read_prompts(str(path), **more)

    return read


@pytest.fixture
def pipe(monkeypatch):
    def pipe(data: str) -> list[Prompt]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data.encode())))
        return read_prompts("-")

    return pipe


def test_a_line_is_a_prompt_and_its_number_its_name(read):
    assert read("One\n\n  two \nthree") == [Prompt("One", 1), Prompt("  two ", 3), Prompt("three", 4)]
    assert read("\ufeffOne\r\ntwo\r\n") == [Prompt("One", 1), Prompt("two", 2)]  # from Windows
    assert read("a\u2028b\x0bc\x85d\n") == [Prompt("a\u2028b\x0bc\x85d", 1)]  # no line ends of a text file
    assert read('{"prompt": "x"}\n') == [Prompt('{"prompt": "x"}', 1)]


def test_json_lines(read):
    lines = '{"prompt": "a\\nb", "id": "x", "seed": 7}\n\n{"prompt": "", "id": 5}\n{"prompt": "\\ud83d\\ude00"}\n'
    assert read(lines, "p.jsonl") == [Prompt("a\nb", "x", 7), Prompt("", 5), Prompt("😀", 4)]


def test_instructions(read):
    lines = '{"instruction": "Add.", "input": "1 + 1", "id": "x", "seed": 7}\n{"instruction": "Do"}\n{"prompt": "Once"}\n'
    assert read(lines, "p.jsonl", instructions=True) == [
        Prompt("", "x", 7, instruction="Add.", input="1 + 1"),
        Prompt("", 2, instruction="Do"),
        Prompt("Once", 3),
    ]
    assert read("Do\n\n this ", instructions=True) == [Prompt("", 1, instruction="Do"), Prompt("", 3, instruction=" this ")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "a", "instruction": "b"}', 'expected "instruction" or "prompt", and here are both'),
        ('{"instruction": 3}', 'expected an object with "instruction", a text; such as {"instruction": "Name a colour."}'),
        ('{"instruction": " "}', "the instruction is empty"),
        ('{"instruction": "a", "input": null}', '"input" must be a text, not null'),
        ('{"prompt": "a", "input": "b"}', '"input" is not known; there are "prompt", "id" and "seed"'),
        ('{"instruction": "a", "inputs": ""}', '"inputs" is not known; there are "instruction", "input", "id" and "seed"'),
        ('{"instruction": "a", "input": "b\\ud83d"}', "the input holds half a character"),
        ("{}", 'expected an object with "prompt" or "instruction", a text'),
    ],
)
def test_a_wrong_instruction_is_named(read, line, problem):
    with pytest.raises(UserError) as error:
        read(f'{{"instruction": "good"}}\n{line}\n', "p.jsonl", instructions=True)
    assert "p.jsonl, line 2: " in str(error.value) and problem in str(error.value)


def test_an_instruction_for_another_model_is_refused(read):
    with pytest.raises(UserError, match='p.jsonl, line 2: "instruction" is for a model that was tuned to instructions'):
        read('{"prompt": "a"}\n{"instruction": "b"}', "p.jsonl")


def test_a_pipe_says_by_its_first_line_what_it_holds(pipe):
    assert pipe('\n{"prompt": "a", "seed": 0}\n') == [Prompt("a", 2, 0)]
    assert pipe("a\n{b\n") == [Prompt("a", 1), Prompt("{b", 2)]


@given(st.lists(st.tuples(st.text(), st.text() | st.integers(), st.none() | st.integers(0, 2**32 - 1))))
def test_what_json_can_say_comes_back(tmp_path_factory, records):
    if not records:
        return
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    path.write_text("\n".join(json.dumps(dict(zip(("prompt", "id", "seed"), record))) for record in records))
    assert read_prompts(str(path)) == [Prompt(*record) for record in records]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "this is no JSON"),
        ('"text"', 'expected an object with "prompt"'),
        ("{}", 'expected an object with "prompt"'),
        ('{"prompt": 3}', 'expected an object with "prompt"'),
        ('{"prompt": "a", "sed": 1}', '"sed" is not known; there are "prompt", "id" and "seed"'),
        ('{"prompt": "a", "id": null}', '"id" must be a text or a whole number, not null'),
        ('{"prompt": "a", "id": true}', '"id" must be a text or a whole number, not true'),
        ('{"prompt": "a", "seed": -1}', '"seed" must be a whole number from 0 to 4294967295, not -1'),
        ('{"prompt": "a", "seed": 1.5}', "not 1.5"),
        ('{"prompt": "a", "seed": true}', "not true"),
        ('{"prompt": "a\\ud83d"}', "half a character"),
        ("[" * 100_000, "this is no JSON"),
    ],
)
def test_a_wrong_line_is_named(read, tmp_path, line, problem):
    with pytest.raises(UserError) as error:
        read(f'{{"prompt": "good"}}\n{line}\n', "p.jsonl")
    assert str(error.value).startswith(f"prompt_file={tmp_path / 'p.jsonl'}, line 2: ")
    assert problem in str(error.value)


def test_what_is_no_utf8_is_named(read):
    with pytest.raises(UserError, match=r"prompts.txt, line 3: byte 4 is not UTF-8 \(0xe9\)"):
        read("eins\nzwei\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match="line 1: byte 1 is not UTF-8"):
        read("text".encode("utf-16"))


def test_no_prompt_is_an_error(read, pipe, tmp_path):
    for empty in ("", "\n\n", "\ufeff"):
        with pytest.raises(UserError, match="holds no prompt"):
            read(empty)
    with pytest.raises(UserError, match="the standard input: holds no prompt"):
        pipe("")
    with pytest.raises(UserError, match="cannot be read \\(No such file"):
        read_prompts(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(str(tmp_path))
