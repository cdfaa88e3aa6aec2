"""Templates: the published words exactly, and no file that leaves something out or says too much."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.config.option import ConfigError
from gpt2x.data.instructions import Record
from gpt2x.errors import UserError
from gpt2x.task.config import TEMPLATES, InstructionTuningConfig
from gpt2x.task.template import load_template, parse_template

BEGINNING = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)


def test_alpaca_is_the_books_prompt_to_the_character():
    alpaca = load_template("alpaca")
    asked = "### Instruction:\nFix it.\n\n"
    assert alpaca.render("Fix it.", "teh") == BEGINNING + asked + "### Input:\nteh\n\n### Response:\n"
    assert alpaca.render("Fix it.") == BEGINNING + asked + "### Response:\n"


def test_the_books_first_formatted_entries(mirror):
    """Put together from the file's own fields, as the book describes the format."""
    alpaca = load_template("alpaca")
    entries = json.loads((mirror / "instruction-data.json").read_text())
    for entry in entries:
        parts = [
            BEGINNING.strip(),
            f"### Instruction:\n{entry['instruction']}",
            f"### Input:\n{entry['input']}",
            "### Response:\n",
        ]
        if not entry["input"]:
            del parts[2]
        assert alpaca.render(entry["instruction"], entry["input"]) == "\n\n".join(parts)
    assert alpaca.render(entries[50]["instruction"], entries[50]["input"]) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nIdentify the correct spelling of the following word.\n\n### Input:\nOcassion\n\n### Response:\n"
    )


def test_stanford_announces_the_input_and_ends_without_a_line_end():
    stanford = load_template("stanford")
    assert stanford.render("Fix it.", "teh") == PAIRED + "### Instruction:\nFix it.\n\n### Input:\nteh\n\n### Response:"
    assert stanford.render("Fix it.") == BEGINNING + "### Instruction:\nFix it.\n\n### Response:"


def test_phi3_is_roles_alone():
    phi3 = load_template("phi3")
    assert phi3.render("Fix it.", "teh") == "<|user|>\nFix it.\nteh\n<|assistant|>\n"
    assert phi3.render("Fix it.") == "<|user|>\nFix it.\n<|assistant|>\n"


@pytest.mark.parametrize("name", TEMPLATES)
@given(instruction=st.text(min_size=1), input=st.text())
def test_what_is_filled_in_stands_in_the_prompt_as_it_is(name, instruction, input):
    prompt = load_template(name).render(instruction, input)
    assert instruction in prompt
    assert input.strip() == "" or input in prompt


def test_braces_in_what_is_filled_in_mean_nothing():
    prompt = load_template("phi3").render("Say {input} and {name}.", "{instruction}")
    assert prompt == "<|user|>\nSay {input} and {name}.\n{instruction}\n<|assistant|>\n"


def test_a_blank_input_is_none():
    alpaca = load_template("alpaca")
    assert alpaca.render("Fix it.", " \n") == alpaca.render("Fix it.")


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# mine\nwith_input: 'Q {instruction} {input} {} {no field} A '\nwithout_input: |-\n  Q {instruction}\n  A\n"
    )
    mine = load_template(str(path))
    assert mine.render("x", "y") == "Q x y {} {no field} A "
    assert mine.render("x") == "Q x\nA"
    assert parse_template(mine.source, "run") == mine  # what a run keeps is enough
    assert len({mine.source, *(load_template(name).source for name in TEMPLATES)}) == 1 + len(TEMPLATES)


def test_texts_are_what_a_model_will_read():
    records = [Record("Add.", "1 2", ("3", "three"), 1), Record("Sing.", "", ("la",), 2)]
    assert list(load_template("phi3").texts(records)) == [
        "<|user|>\nAdd.\n1 2\n<|assistant|>\n3",
        "<|user|>\nSing.\n<|assistant|>\nla",
    ]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("with_input: '{instruction} {input}'\nwithout_input: hello", r"without_input does not say where \{instruction\} goes"),
        ("with_input: '{instruction}'\nwithout_input: '{instruction}'", r"with_input does not say where \{input\} goes"),
        ("with_input: '{instruction} {input} {name}'\nwithout_input: '{instruction}'", r"unknown field \{name\}"),
        (
            "with_input: '{instruction} {input}'\nwithout_input: '{instruction} {input}'",
            r"without_input has the unknown field \{input\}",
        ),
        ("with_input: '{instruction} {input}'", "expected two texts"),
        ("with_input: '{instruction} {input}'\nwithout_input: '{instruction}'\nthird: x", "expected two texts"),
        ("with_input: '{instruction} {input}'\nwithout_input: 3", "expected two texts"),
        ("with_input: {instruction}\nwithout_input: {instruction}", "expected two texts"),
        ("just text", "expected two texts"),
        ("", "expected two texts"),
        ("with_input: '{instruction", "no valid YAML"),
        ("with_input: !!python/object:os.system {}", "no valid YAML"),
        ("\0", "no valid YAML"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_one_that_can(source, problem, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(source)
    with pytest.raises(UserError, match=problem) as refused:
        load_template(path)
    assert str(path) in str(refused.value) or path.name in str(refused.value)
    example = str(refused.value).partition("the last line:\n")[2]
    assert parse_template("\n".join(line[4:] for line in example.splitlines()), "example").render("a", "b") == "a\nb\nAnswer:\n"


def test_files_that_are_not_there_or_no_text(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("with_input: é".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.yaml: not valid UTF-8 \(byte 12\)"):
        load_template(tmp_path / "latin.yaml")
    for missing in ("alpacca", str(tmp_path / "none.yaml"), str(tmp_path)):
        with pytest.raises(UserError, match="A template is one of alpaca, stanford, phi3, or a file of your own"):
            load_template(missing)
        with pytest.raises(ConfigError, match="use one of alpaca, stanford, phi3, or the path of a file"):
            InstructionTuningConfig(template=missing).check_available()
    for name in TEMPLATES:
        InstructionTuningConfig(template=name).check_available()
