"""Tokenizers in Hugging Face's files: transformers makes our ids of any text, and we read what it and tokenizers write."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from tokenizers import Tokenizer as Tokenizers
from transformers import AutoTokenizer
from transformers import GPT2Tokenizer as TheirGPT2Tokenizer

from gpt2x.errors import UserError
from gpt2x.interop.chat import jinja_template
from gpt2x.interop.huggingface_tokenizer import inspect_tokenizer, tokenizer_files
from gpt2x.interop.pretrained import PretrainedError
from gpt2x.task.template import load_template
from gpt2x.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2x.tokenizer.bpe import BPETokenizer
from gpt2x.tokenizer.byte_level import PATTERN
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer, byte_letters, official_files

STORY = (Path(__file__).parents[2] / "gpt2x" / "data" / "storybook.txt").read_text(encoding="utf-8")
ALPHABET = "\n\t\u00a0 !'09AZaz\u0301éß雪\u3000\ufeff🙂\U0001f1e9"
# Which letter or digit a character is depends on the version of Unicode that a program was built with; those that Python's
# knows, all know alike.
characters = st.characters(exclude_categories=["Cs", "Cn"])
texts = st.text(characters | st.sampled_from(" \n\t'stmdrel0aé雪 \u3000\u200d🙂"), max_size=60)
texts = st.lists(texts | st.sampled_from([" ", "\n\n", "don't", " the", "   ", STORY[300:340]]), max_size=8).map("".join)


def save(folder: Path, tokenizer: Tokenizer, **settings) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in tokenizer_files(tokenizer, context_length=77, **settings).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Each kind of ours, and what transformers makes of its files."""
    folder = tmp_path_factory.mktemp("tokenizers")
    kinds = {
        "gpt2": GPT2Tokenizer(),
        "bpe": BPETokenizer.from_corpus([STORY[:60_000], "雪や雪 é é 🙂🙂 don't"], vocab_size=900),
        "bytes": BPETokenizer([bytes([byte]) for byte in range(256)]),
        "char": CharTokenizer("".join(sorted(ALPHABET))),
    }
    return {name: (ours, AutoTokenizer.from_pretrained(save(folder / name, ours))) for name, ours in kinds.items()}


# -- out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "bytes"])
@settings(max_examples=200)
@given(text=texts)
def test_transformers_makes_our_ids_and_our_text(pairs, kind, text):
    ours, theirs = pairs[kind]
    ids = ours.encode(text.replace(END_OF_TEXT, "")).tolist()
    assert theirs(text.replace(END_OF_TEXT, ""))["input_ids"] == ids
    assert theirs.decode(ids) == ours.decode(ids)


@given(text=st.text(ALPHABET, max_size=60))
def test_characters_are_the_same(pairs, text):
    ours, theirs = pairs["char"]
    ids = ours.encode(text).tolist()
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == ours.decode(ids) == text


def test_every_character_that_all_know_is_cut_alike(pairs):
    """Into the same words: what a vocabulary makes of them afterwards could hide a difference."""
    theirs, letters = pairs["bpe"][1].backend_tokenizer.pre_tokenizer, byte_letters()
    kinds = {chr(i): unicodedata.category(chr(i)) for i in range(0x110000)}
    known = [c for c, kind in kinds.items() if kind not in ("Cs", "Cn", "Co") and (kind != "Lo" or ord(c) % 20 == 0)]
    for start in range(0, len(known), 5000):
        text = "".join(f"a{c}a1{c}1!{c}! {c}  {c}{c}" for c in known[start : start + 5000])
        words = ["".join(letters[byte] for byte in word.encode()) for word in regex.findall(PATTERN, text)]
        assert [word for word, _ in theirs.pre_tokenize_str(text)] == words


@pytest.mark.parametrize("text", ["Q", "AQ", "\r"])
def test_an_unknown_character_is_an_error_there_too(pairs, text):
    ours, theirs = pairs["char"]
    with pytest.raises(UserError):
        ours.encode(text)
    with pytest.raises(Exception, match="WordLevel"):
        theirs(text)


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "bytes", "char"])
def test_end_of_text_is_the_token_and_long_texts_can_be_cut(pairs, kind):
    ours, theirs = pairs[kind]
    assert theirs.eos_token_id == theirs.bos_token_id == ours.end_of_text
    assert len(theirs) == ours.vocab_size
    assert theirs.pad_token is None
    assert theirs("a" + END_OF_TEXT)["input_ids"] == [*ours.encode("a"), ours.end_of_text]
    assert theirs.decode([ours.encode("a")[0], ours.end_of_text], skip_special_tokens=True) == "a"
    assert len(theirs("Az" * 200, truncation=True)["input_ids"]) == theirs.model_max_length == 77


def test_the_old_files_are_openai_s(tmp_path):
    save(tmp_path, GPT2Tokenizer(), pads=True)
    official = official_files()
    assert (tmp_path / "vocab.json").read_bytes() == official["encoder.json"]
    assert (tmp_path / "merges.txt").read_bytes() == official["vocab.bpe"]
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id == 50256


# -- in ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", ["ours", "saved by transformers", "vocab.json and merges.txt"])
@pytest.mark.parametrize("kind", ["gpt2", "bpe", "bytes", "char"])
def test_what_was_written_is_read(pairs, tmp_path, kind, files):
    ours, theirs = pairs[kind]
    if files == "saved by transformers":
        theirs.save_pretrained(tmp_path)
    else:
        save(tmp_path, ours)
    if files == "vocab.json and merges.txt":
        (tmp_path / "tokenizer.json").unlink()
        if kind == "char":
            with pytest.raises(PretrainedError, match="neither tokenizer.json nor vocab.json and merges.txt"):
                inspect_tokenizer(tmp_path, 300)
            return
    found = inspect_tokenizer(tmp_path, ours.vocab_size + 3)
    assert (found.kind, found.end_of_text) == (ours.kind, ours.end_of_text)
    assert found.make().fingerprint == ours.fingerprint


def test_a_folder_without_one_has_gpt2_s_if_the_rows_are_as_many(tmp_path):
    assert isinstance(inspect_tokenizer(tmp_path, 50257).make(), GPT2Tokenizer)
    with pytest.raises(PretrainedError, match="has no tokenizer"):
        inspect_tokenizer(tmp_path, 50304)


def test_the_hub_s_file_of_an_old_version_is_read(tmp_path, pairs):
    """That of gpt2 does not say that its model is BPE, nor knows the newer settings."""
    path = save(tmp_path, pairs["gpt2"][0])
    data = json.loads((path / "tokenizer.json").read_text())
    for name in ("type", "byte_fallback"):
        del data["model"][name]
    del data["pre_tokenizer"]["use_regex"]
    data["added_tokens"][0]["normalized"] = True
    data["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    (path / "tokenizer.json").write_text(json.dumps(data))
    (path / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    found, theirs = inspect_tokenizer(path, 50257), Tokenizers.from_file(str(path / "tokenizer.json"))
    assert (found.kind, found.end_of_text) == ("gpt2", 50256)
    assert found.make().encode(STORY[:3000]).tolist() == theirs.encode(STORY[:3000]).ids


def trained_by_tokenizers(folder: Path, *special: str) -> Path:
    made = ByteLevelBPETokenizer()
    made.train_from_iterator([STORY[:40_000]], vocab_size=500, special_tokens=list(special), show_progress=False)
    made.add_special_tokens([END_OF_TEXT])
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_one_that_tokenizers_has_learned_is_read(tmp_path):
    path = trained_by_tokenizers(tmp_path)
    found, theirs = inspect_tokenizer(path, 501), AutoTokenizer.from_pretrained(path)
    assert found.kind == "bpe"
    assert found.make().encode(STORY[5000:9000]).tolist() == theirs(STORY[5000:9000])["input_ids"]


def test_one_whose_end_of_text_comes_first_is_refused(tmp_path):
    path = trained_by_tokenizers(tmp_path, END_OF_TEXT)
    with pytest.raises(
        PretrainedError, match=r"tokenizer.json: the ids are not 0 to 499, of which <\|endoftext\|> has the last"
    ):
        inspect_tokenizer(path, 500)


def test_added_tokens_behind_the_last_are_spare_rows(tmp_path, pairs, caplog):
    theirs = TheirGPT2Tokenizer.from_pretrained(save(tmp_path / "plain", GPT2Tokenizer()))
    theirs.add_special_tokens({"pad_token": "[PAD]"})
    theirs.save_pretrained(tmp_path / "padded")
    found = inspect_tokenizer(tmp_path / "padded", 50258)
    assert (found.kind, found.end_of_text) == ("gpt2", 50256)
    assert found.make().fingerprint == GPT2Tokenizer().fingerprint
    assert "the added tokens [PAD] are not tokens here" in caplog.text


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(tmp_path, pairs):
    with pytest.raises(PretrainedError, match="its tokenizer has 900 tokens, and the model of config.json 899"):
        inspect_tokenizer(save(tmp_path, pairs["bpe"][0]), 899)


TEMPLATE_WITH_BOS = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}, {"Sequence": {"id": "A"}}]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"type": "WordPiece"}}, 'model.type="WordPiece"'),
        ({"model": {"type": "Unigram"}}, 'model.type="Unigram"'),
        ({"model": {"dropout": 0.1}}, "model.dropout=0.1"),
        ({"model": {"ignore_merges": True}}, "model.ignore_merges=true"),
        ({"model": {"byte_fallback": True}}, "model.byte_fallback=true"),
        ({"model": {"end_of_word_suffix": "</w>"}}, 'model.end_of_word_suffix="</w>"'),
        ({"normalizer": {"type": "NFC"}}, 'normalizer={"type": "NFC"}'),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, 'pre_tokenizer={"type": "ByteLevel"'),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}}, "pre_tokenizer="),
        ({"pre_tokenizer": {"type": "Whitespace"}}, 'pre_tokenizer={"type": "Whitespace"}'),
        ({"pre_tokenizer": None}, "pre_tokenizer=null"),
        ({"post_processor": TEMPLATE_WITH_BOS}, 'post_processor={"type": "TemplateProcessing"'),
        ({"post_processor": {"type": "BertProcessing"}}, 'post_processor={"type": "BertProcessing"}'),
        ({"model": {"vocab": {"a": 0, END_OF_TEXT: 2}}}, "the ids are not 0 to 1"),
        ({"model": {"vocab": {"a": "0"}}}, "the ids are not 0 to 1"),
        ({"added_tokens": [], "model": {"vocab": {"a": 0}}}, "<|endoftext|> has the last"),
        (
            {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"content": END_OF_TEXT, "id": 2}]},
            "every byte must be a token",
        ),
        (
            {"model": {"vocab": {"a b": 0}}, "added_tokens": [{"content": END_OF_TEXT, "id": 1}]},
            "not the tokens of a byte-level",
        ),
        ({"model": {"merges": []}}, "joins the tokens in another order than that of their ids"),
        ({"model": None}, "not a file of the package tokenizers"),
        ({"added_tokens": [3]}, "not a file of the package tokenizers"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_another_tokenizer_is_refused_by_name(tmp_path, pairs, changes, said):
    path = save(tmp_path, pairs["bpe"][0])
    data = json.loads((path / "tokenizer.json").read_text())
    for name, value in changes.items():
        data[name] = data[name] | value if isinstance(value, dict) and name == "model" else value
    (path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(PretrainedError) as error:
        inspect_tokenizer(path, 50304).make()
    assert "tokenizer.json: " in str(error.value)
    assert said in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"add_prefix_space": True}, "add_prefix_space=true: our tokenizers add and change nothing"),
        ({"add_bos_token": True}, "add_bos_token=true"),
        ({"tokenizer_class": "BertTokenizer"}, 'tokenizer_class="BertTokenizer": expected one of GPT2Tokenizer,'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_change_the_ids_are_refused(tmp_path, pairs, changes, said):
    path = save(tmp_path, pairs["bpe"][0])
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(PretrainedError) as error:
        inspect_tokenizer(path, 900)
    assert f"tokenizer_config.json: {said}" in str(error.value)


def test_torn_files_are_refused_by_name(tmp_path, pairs):
    path = save(tmp_path, pairs["bpe"][0])
    for name in ("tokenizer_config.json", "tokenizer.json"):
        text = (path / name).read_text()
        (path / name).write_text(text[: len(text) // 2])
        with pytest.raises(PretrainedError, match=f"{name}: no JSON, or torn"):
            inspect_tokenizer(path, 900)
        (path / name).write_text(text)
    (path / "tokenizer.json").unlink()
    (path / "merges.txt").write_bytes(b"\xff")
    with pytest.raises(PretrainedError, match=r"merges.txt: cannot be read"):
        inspect_tokenizer(path, 900)


# -- instructions ------------------------------------------------------------------------------------------------


def test_a_chat_becomes_the_prompt_that_the_model_was_trained_with(tmp_path, pairs):
    ours, template = pairs["bpe"][0], load_template("stanford")
    theirs = AutoTokenizer.from_pretrained(save(tmp_path, ours, chat_template=jinja_template(template)))
    question = {"role": "user", "content": "café 'n' {input}\n"}
    for chat, prompt in (
        ([question], template.render(question["content"])),
        ([{"role": "system", "content": "Sort these."}, question], template.render("Sort these.", question["content"])),
    ):
        for more in ({}, {"add_generation_prompt": True}):
            assert theirs.apply_chat_template(chat, tokenize=False, **more) == prompt
            assert theirs.apply_chat_template(chat, **more)["input_ids"] == ours.encode(prompt).tolist()
