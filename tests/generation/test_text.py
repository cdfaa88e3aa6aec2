"""Text as it comes: whole characters, nothing that may yet be a stop string, the same end however it is cut into tokens."""

from __future__ import annotations

import codecs
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2x.generation.text import TextStream
from gpt2x.tokenizer.base import Tokenizer
from gpt2x.tokenizer.bpe import BPETokenizer
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer

ALPHABET = "ab é€😀\n"
TEXTS = st.text(ALPHABET, max_size=20)
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=3)


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "char":
        return CharTokenizer("".join(sorted(ALPHABET)))
    return GPT2Tokenizer() if kind == "gpt2" else BPETokenizer.from_corpus(["ab é€ 😀a\nabab aa " * 20], vocab_size=270)


def first_stop(text: str, stop: list[str]) -> int:
    """Where the earliest stop string begins, or the text's length."""
    return min((text.find(s) for s in stop if s in text), default=len(text))


def decided(text: str, stop: list[str]) -> int:
    """How much of `text` can be shown whatever follows it: up to a stop string, or up to what may become one."""
    beginnings = [len(text) - n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
    return min([first_stop(text, stop), *beginnings])


def check(tok: Tokenizer, tokens: list[int], stop: list[str]) -> None:
    stream, shown = TextStream(tok, stop), ""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    known = ""
    for token in tokens:
        known += decoder.decode(tok.decode_bytes([token]))
        shown += stream.feed(token)
        assert shown == stream.text == known[: decided(known, stop)]  # all that is certain, and no more
        assert stream.stopped == (first_stop(known, stop) == decided(known, stop) < len(known))
        if stream.stopped:
            break
    shown += stream.close()
    full = tok.decode(tokens)
    assert shown == stream.text
    assert shown == full[: first_stop(full, stop)]
    assert stream.stopped == any(s in full for s in stop)
    assert (stream.feed(tokens[0]) if stream.stopped else "") == ""
    assert stream.close() == ""


@settings(deadline=None)
@given(text=TEXTS, stop=STOPS, kind=st.sampled_from(["char", "bpe", "gpt2"]))
@example(text="aaab", stop=["ab", "ba", "aa"], kind="char")
@example(text="aab", stop=["aab\n", "ab"], kind="char")  # the later one is complete first, and the earlier one never is
@example(text="aab\n", stop=["aab\n", "ab"], kind="char")  # ... and here it is
@example(text="abab€", stop=["ab€"], kind="bpe")
def test_the_pieces_are_the_text_up_to_its_first_stop_string(text, stop, kind):
    tok = tokenizer(kind)
    check(tok, tok.encode(text).tolist(), stop)


@settings(deadline=None)
@given(tokens=st.lists(st.integers(0, 269), max_size=30), stop=STOPS)
def test_tokens_that_make_no_characters_do_not_confuse_it(tokens, stop):
    check(tokenizer("bpe"), tokens, stop)


@settings(deadline=None)
@given(text=TEXTS, stop=STOPS)
def test_how_the_text_is_cut_into_tokens_makes_no_difference(text, stop):
    tok, ends = tokenizer("bpe"), set()
    for tokens in (tok.encode(text).tolist(), [int(tok.encode_bytes(bytes([byte]))[0]) for byte in text.encode()]):
        stream = TextStream(tok, stop)
        for token in tokens:
            stream.feed(token)
        stream.close()
        ends.add((stream.text, stream.stopped))
    assert len(ends) == 1


def feed(text: str, stop: list[str]) -> tuple[list[str], TextStream]:
    """What each character gives."""
    tok = CharTokenizer("".join(sorted(set(text))))
    stream = TextStream(tok, stop)
    return [stream.feed(token) for token in tok.encode(text).tolist()], stream


@pytest.mark.parametrize(
    ("text", "stop", "pieces"),
    [
        ("xab!", ["abc"], ["x", "", "", "ab!"]),  # held back until it is no stop string
        ("aaab", ["aab"], ["", "", "a", ""]),
        ("aaab", ["ab", "bc", "aa"], ["", "", "", ""]),
        ("abcd", ["bcd", "abcx"], ["", "", "", "a"]),
        ("abcx", ["bcd", "abcx"], ["", "", "", ""]),
        ("xbc.", ["bc"], ["x", "", "", ""]),
        ("User: ", ["\nUser:"], list("User: ")),
    ],
)
def test_overlapping_stop_strings_character_by_character(text, stop, pieces):
    assert feed(text, stop)[0] == pieces


def test_what_was_held_back_comes_at_the_end():
    pieces, stream = feed("the en", ["end"])
    assert pieces == ["t", "h", "", "e ", "", ""]
    assert (stream.close(), stream.text, stream.stopped) == ("en", "the en", False)


def test_half_a_character_waits_and_is_replaced_if_its_rest_never_comes():
    tok = tokenizer("bpe")
    first, second, third = (int(tok.encode_bytes(bytes([byte]))[0]) for byte in "€".encode())
    stream = TextStream(tok)
    assert [stream.feed(first), stream.feed(second), stream.feed(third)] == ["", "", "€"]
    assert [stream.feed(first), stream.feed(second)] == ["", ""]
    letter = int(tok.encode("a")[0])
    assert stream.feed(letter) == "\ufffda"  # as soon as it is certain
    stream.feed(first)
    assert stream.close() == "\ufffd"
