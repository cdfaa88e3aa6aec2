"""One token a character."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.tokenizer import TokenizerError
from gpt2x.tokenizer.char import CharTokenizer, UnknownCharacterError


def test_layout():
    tokenizer = CharTokenizer.from_corpus(["hé", "l🦙", "lo"])
    assert tokenizer.kind == "char"
    assert tokenizer.characters == "hloé🦙"
    assert tokenizer.vocab_size == 6 and tokenizer.end_of_text == 5
    assert tokenizer.encode("olé🦙").tolist() == [2, 1, 3, 4] and tokenizer.encode("olé").dtype == np.int32
    assert tokenizer.token_lengths().tolist() == [1, 1, 1, 2, 4, 0]
    assert tokenizer.decode([0, 5, 1]) == "h<|endoftext|>l"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.data())
def test_any_text_over_the_alphabet_comes_back(corpus, data):
    tokenizer = CharTokenizer.from_corpus([corpus])
    text = data.draw(st.text(sorted(set(corpus))))
    ids = tokenizer.encode(text)
    assert ids.shape == (len(text),)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_lengths()[ids].sum() == len(text.encode())


def test_same_ids_as_the_loop_everybody_writes(mirror_text):
    text = mirror_text("tinyshakespeare-input.txt")
    characters = sorted(set(text))
    id_of = {c: i for i, c in enumerate(characters)}
    tokenizer = CharTokenizer.from_corpus([text[:1000], text[1000:]])
    assert len(characters) == 65 and tokenizer.vocab_size == 66
    assert tokenizer.encode(text).tolist() == [id_of[c] for c in text]


def test_end_of_text_is_never_read_from_text():
    tokenizer = CharTokenizer.from_corpus(["<|endoftext|>"])
    ids = tokenizer.encode("<|endoftext|>")
    assert len(ids) == 13 and tokenizer.end_of_text not in ids


def test_unknown_characters_are_named():
    tokenizer = CharTokenizer.from_corpus(["abc \n"])
    with pytest.raises(UnknownCharacterError) as caught:
        tokenizer.encode("a bécéz")
    error = caught.value
    assert isinstance(error, ValueError) and not isinstance(error, KeyError)
    assert error.characters == "éz" and error.position == 3
    for part in (
        "'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE) at position 3",
        "'z' (U+007A LATIN SMALL LETTER Z) at position 6",
        "3 of 7 characters",
        r"'\n abc'",
        "tokenizer=bpe",
    ):
        assert part in str(error)


def test_the_message_about_many_unknown_characters_stays_short():
    tokenizer = CharTokenizer.from_corpus([chr(i) for i in range(0x4E00, 0x9000)])
    with pytest.raises(UnknownCharacterError, match="and 21 others") as caught:
        tokenizer.encode("abcdefghijklmnopqrstuvwxyz")
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("character", ["\x00", "\x07", "\ud800", "\U0010ffff"])  # no name, or no UTF-8
def test_odd_unknown_characters(character):
    with pytest.raises(UnknownCharacterError, match=f"U\\+{ord(character):04X}") as caught:
        CharTokenizer("?ab").encode(f"ab{character}")
    assert caught.value.position == 2
    str(caught.value).encode("utf-8")  # can be printed


def test_combining_marks_and_newlines_are_characters_of_their_own():
    tokenizer = CharTokenizer.from_corpus(["e\u0301\r\n"])
    assert tokenizer.characters == "\n\re\u0301"
    assert tokenizer.decode(tokenizer.encode("\r\ne\u0301")) == "\r\ne\u0301"


def test_nothing_to_learn_from():
    for texts in ([], [""]):
        with pytest.raises(TokenizerError, match="empty"):
            CharTokenizer.from_corpus(texts)
    with pytest.raises(ValueError, match="sorted"):
        CharTokenizer("ba")


def test_empty_text():
    tokenizer = CharTokenizer("abc")
    assert tokenizer.encode("").shape == (0,) and tokenizer.decode(tokenizer.encode("")) == ""


def test_fingerprint_tells_tokenizers_apart():
    prints = {CharTokenizer(c).fingerprint for c in ("abc", "abd", "ab", "abcd")}
    assert len(prints) == 4
    assert CharTokenizer.from_corpus(["cab"]).fingerprint == CharTokenizer("abc").fingerprint
